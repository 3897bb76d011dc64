"""MXM, the matrix unit: products of activations with an installed weight tile.

What it computes: each K tile is summed exactly and rounded once to fp32; tiles are added in fp32 in
ascending order, or carried exactly. What it costs: rounds of weight tiles, each as long as the
larger of its installation and its rows, whatever the rounding and the carry (assumed). The "fast"
fidelity computes plain fp32 products instead, for wide scans. Not modelled: the skew of a vector
across superlanes.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float16, Float32, Int32, Num

from ..arguments import check_within, checked, described
from ..errors import LpuError
from ..numerics import accumulate, quantized, wide
from ..numerics.accumulate import Carry
from ..numerics.quantized import QuantizedArray, widen
from ..numerics.repair import SumRounding
from ..numerics.schemes import Scheme
from .primitive import free, primitive
from .work import Call, Hardware, Length, Quantity, Unit, Work, ceil, ceil_div, largest, smallest

#: "faithful" has the unit's own roundings; "fast" is an fp32 product of the same operands.
Fidelity = Literal["faithful", "fast"]


@checked
def matmul(
    x: Num[Array, "..."],
    w: Num[Array, "..."] | QuantizedArray,
    *,
    rows: Int32[Array, " g"] | None = None,
    rounding: SumRounding = "rne",
    carry: Carry = "fp32",
    fidelity: Fidelity = "faithful",
) -> Float32[Array, "..."] | Int32[Array, "..."]:
    """Multiply activations by stationary weights: `y = x @ w`.

    Forms: `[m, k] @ [k, n]`; `[m, k] @ [g, k, n] -> [g, m, n]` (rows shared by all matrices);
    `[g, m, k] @ [g, k, n] -> [g, m, n]`. With `rows`, matrix `rows[i]` of a store `[e, k, n]` is
    the i-th operand: data chooses the address from which weights stream, never how many stream; a
    negative row gives zeros.

    Args:
        x: activations: float16 with weights of float16, float8 or int8; float8_e4m3fn or
            float8_e5m2 with either; int8 with int8. Mixed with float16, a narrower type is widened
            at the array, which is exact.
        w: weights, or a `QuantizedArray` of a narrower storage format, widened to float16 at the
            array, with blocks along `k`, or along `n` as cached values have them. What its scales
            leave for the products is the caller's (`quantized.output_scale`): the scale of a whole
            matrix, and the column scales of int8 codes that multiply int8 activations.
        rows: addresses of matrices in `w`; one beyond its last is refused where they are known. In
            a program, where they are not, it counts as the last.
        rounding: of an exact sum to fp32: "rne", or "rz" (a patent of the vendor's says truncation;
            public sources do not settle it).
        carry: what passes from tile to tile: "fp32", or "exact": all of `k` is rounded once (the
            vendor's accumulator of 100 bits would allow it).
        fidelity: "faithful", or "fast": plain fp32 products, whose operands may be fp32 too.

    Returns:
        float32, or int32 for int8 operands.

    Raises:
        LpuError: operands of types that do not go together, shapes that do not fit, or a sum too
            long to be exact.

    Fidelity:
        "fast": order-dependent fp32 sums of exact products of the operands, in whatever order the
        backend adds; int8 operands are exact. "faithful", the default:
        Exact within a K tile (160 rows for fp16, 320 for 8-bit operands), one rounding to fp32;
        order-dependent across tiles: fp32 additions in ascending order; exact and rounded once for
        `carry="exact"`. The result does not depend on the number of rows or columns.

    Source:
        Abts et al., ISCA 2022, section 5.2 (sub-operations); one rounding per tile is assumed.
    """
    how = {"rounding": rounding, "carry": carry, "is_wide": False}
    out: Array = _multiplied("mxm.matmul", x, w, rows, fidelity=fidelity, **how)
    return out


@checked
def wide_matmul(
    x: Num[Array, "..."],
    w: Num[Array, "..."] | QuantizedArray,
    *,
    rows: Int32[Array, " g"] | None = None,
    fidelity: Fidelity = "faithful",
) -> Int32[Array, "..."]:
    """Multiply as `matmul` does and give all bits of the sums, as wide numbers (`numerics.wide`).

    Args:
        x: activations, as for `matmul`.
        w: weights, likewise; int8 weights multiply float16 activations.
        rows: addresses of matrices in `w`.
        fidelity: "faithful", or "fast": plain fp32 products, made wide.

    Returns:
        Four words for each value of a row: `[..., m, 4, n]`.

    Raises:
        LpuError: as for `matmul`; int8 activations, whose sums are int32 already.

    Fidelity:
        Exact: nothing is rounded. "fast": as for `matmul`.

    Source:
        That the sums can leave the unit before they are rounded, in the time of rounded ones, is
        assumed; its accumulators are said to have 100 bits.
    """
    if x.dtype == jnp.int8:
        raise LpuError(
            f"mxm.wide_matmul: x {described(x)} was given; sums of int8 are whole numbers, which "
            "mxm.matmul gives."
        )
    how = {"rounding": "rne", "carry": "exact", "is_wide": True}
    out: Array = _multiplied("mxm.wide_matmul", x, w, rows, fidelity=fidelity, **how)
    return out


def _multiplied(
    caller: str,
    x: Array,
    w: Array | QuantizedArray,
    rows: Array | None,
    *,
    fidelity: Fidelity,
    **how: Any,
) -> Array:
    """Check the operands of a product and bind it."""
    weight_bits = None
    if isinstance(w, QuantizedArray):
        quantized.check_operand(w)
        if w.axis != -2 and w.scheme.multiplies_bare:
            raise LpuError(
                f"{caller}: int8 codes with scales along axis {w.axis} were given; scales of codes "
                "that multiply bare must run along axis -2, the contraction."
            )
        weight_bits = w.bits_per_value
        # int8 codes are multiplied bare: their scales are per column, for the caller to apply
        w = w.codes if w.scheme.multiplies_bare and x.dtype == jnp.int8 else widened(w)
    if not (fidelity == "fast" and x.dtype == w.dtype == jnp.float32):
        accumulate.product_kind(x.dtype, w.dtype)
    check_operands(caller, x, w, rows)
    operands = (x, w) if rows is None else (x, w, rows)
    out: Array = _matmul(
        *operands,
        shared_x=x.ndim == 2,
        grouped=w.ndim == 3,
        addressed=rows is not None,
        weight_bits=float(weight_bits if weight_bits is not None else 8 * w.dtype.itemsize),
        fidelity=fidelity,
        **how,
    )
    return out


def check_operands(caller: str, x: Array, w: Array, rows: Array | None) -> None:
    """Refuse operands of a product whose shapes do not go together, and addresses outside a store.

    Raises:
        LpuError: with the shapes that were given and those that are allowed.
    """
    if w.ndim not in (2, 3) or x.ndim not in (2, 3) or (x.ndim == 3 and w.ndim == 2):
        raise LpuError(
            f"{caller}: shapes {x.shape} and {w.shape} were given; allowed are [m, k] @ [k, n], "
            "[m, k] @ [g, k, n] and [g, m, k] @ [g, k, n]."
        )
    if x.shape[-1] != w.shape[-2]:
        raise LpuError(
            f"{caller}: x has {x.shape[-1]} columns but w has {w.shape[-2]} rows; they must be "
            "equal."
        )
    if rows is not None and w.ndim != 3:
        raise LpuError(
            f"{caller}: rows were given with w of shape {w.shape}; it must be a store [e, k, n]."
        )
    matrices = w.shape[0] if rows is None else rows.shape[0]
    if x.ndim == 3 and x.shape[0] != matrices:
        raise LpuError(
            f"{caller}: x has {x.shape[0]} matrices but w has {matrices}; they must be equal."
        )
    if rows is not None:
        check_within(caller, "rows", rows, None, w.shape[0] - 1, "the store w")


@checked
def widened(w: QuantizedArray) -> Float16[Array, "..."]:
    """Widen stored weights to float16, as the array does while installing them.

    Fidelity: one rounding (RNE) of code times block scale to float16. Costs nothing: installation
    is priced by the stored bits. The scale of a whole matrix (`quantized.output_scale`) is left
    for the products.
    """
    quantized.check_operand(w)
    leaves = (w.codes,) if w.scales is None else (w.codes, w.scales)
    out: Array = _widen(*leaves, scheme=w.scheme, axis=w.axis)
    return out


def _abstract(
    x: Any, w: Any, *rows: Any, grouped: bool, addressed: bool, is_wide: bool, **_: Any
) -> Any:
    lead = (rows[0].shape[0],) if addressed else (w.shape[0],) if grouped else ()
    if is_wide:
        shape = (*lead, x.shape[-2], wide.WORDS, w.shape[-1])
        return jax.ShapeDtypeStruct(shape, jnp.int32)
    dtype = jnp.int32 if x.dtype == w.dtype == jnp.int8 else jnp.float32
    return jax.ShapeDtypeStruct((*lead, x.shape[-2], w.shape[-1]), dtype)


def _meaning(
    x: Array,
    w: Array,
    *rows: Array,
    shared_x: bool,
    grouped: bool,
    addressed: bool,
    weight_bits: float,
    rounding: SumRounding,
    carry: Carry,
    fidelity: Fidelity,
    is_wide: bool,
) -> Array:
    del weight_bits, grouped
    is_plain = fidelity == "fast" and not x.dtype == w.dtype == jnp.int8
    if is_wide:
        multiply = _plain_wide_product if is_plain else wide.matmul
    elif is_plain:
        multiply = _plain_product
    else:
        multiply = partial(accumulate.matmul, rounding=rounding, carry=carry)
    if not addressed:
        return multiply(x, w)
    result = jax.eval_shape(multiply, x if shared_x else x[0], w[0])

    def one(i: Array) -> Array:
        row = rows[0][i]

        def product() -> Array:
            # Inside the branch: an empty slot must not copy a matrix.
            weights = lax.dynamic_index_in_dim(w, row, 0, keepdims=False)
            return multiply(x if shared_x else lax.dynamic_index_in_dim(x, i, 0, False), weights)

        y: Array = lax.cond(row >= 0, product, lambda: jnp.zeros(result.shape, result.dtype))
        return y

    # One matrix at a time: a batched conditional would run both of its branches for every matrix.
    out: Array = lax.map(one, jnp.arange(rows[0].shape[0], dtype=jnp.int32))
    return out


def _plain_product(x: Array, w: Array) -> Array:
    """Multiply in fp32, as any backend does at its highest precision."""
    return jnp.matmul(
        x.astype(jnp.float32),
        w.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _plain_wide_product(x: Array, w: Array) -> Array:
    return wide.from_fp32(_plain_product(x, w))


#: Bits of an operand that the matrix unit multiplies, by its mode.
OPERAND_BITS = {"fp16": 16, "int8": 8, "fp8": 8}


def _cost(machine: Hardware, call: Call) -> Work:
    x, w = call.operands[:2]
    return rounds_cost(
        machine,
        kind=accumulate.product_kind(x.dtype, w.dtype),
        groups=call.results[0].shape[0] if call.params["grouped"] else 1,
        m=x.shape[-2],
        k=w.shape[-2],
        n=w.shape[-1],
        weight_bits=call.params["weight_bits"],
    )


def rounds_cost(
    machine: Hardware,
    *,
    kind: str,
    groups: Length,
    m: Length,
    k: Length,
    n: Quantity,
    weight_bits: float | int,
) -> Work:
    """Cost `groups` products `[m, k] @ [k, n]`: rounds of weight tiles, one per array in a round.

    `R = ceil(groups * ceil(k / k_tile) * ceil(n / 320) / arrays)` rounds; the first installs before
    the start, each other takes the larger of its installation and its `m` rows. A round installs as
    fast as the weight streams deliver its stored bytes and the arrays load its rows. Rules of the
    chip say what is streamed (`padding`, `widening`) and how far ahead (`weight_prefetch`): where a
    whole block is, installation is no part of the rounds, and `install_cycles` is that of all.

    All tiles of 320 columns are installed before those of the next, so the first columns are final,
    and may leave, in round `ceil(ceil(k / k_tile) / arrays)`, the last ones in round R. Results
    between the two are counted as coming evenly.

    Source:
        320 columns leave as soon as they are computed: NVIDIA, 2026-08-24. Order of tiles: assumed.
    """
    chip = machine.chip
    mode = chip.mxm_mode(kind)
    if chip.widening == "memory":
        weight_bits = max(weight_bits, OPERAND_BITS[kind])
    rounds = ceil(groups * ceil_div(k, mode.k_tile) * ceil_div(n, mode.columns) / mode.arrays)
    stored_bytes = groups * (chip.stored_rows(k) * chip.stored_columns(n)) * weight_bits / 8
    tile_rows = smallest(1.0 * chip.stored_rows(k), float(mode.k_tile))
    per_round = {
        "rows": m * 1.0,
        "weight stream": stored_bytes / rounds / chip.weight_stream_bytes_per_cycle,
        "array load": tile_rows / chip.array_load_rows_per_cycle,
    }
    install = largest(per_round["weight stream"], per_round["array load"])
    runs_ahead = chip.weight_prefetch == "block"
    limits = {name: (rounds - 1) * cycles + m for name, cycles in per_round.items()}
    busy = rounds * m if runs_ahead else largest(*limits.values())
    first = ceil_div(ceil_div(k, mode.k_tile), mode.arrays)
    lead = (first - 1.0) * (m * 1.0 if runs_ahead else largest(*per_round.values()))
    return Work(
        unit=Unit.MXM,
        busy_cycles=busy,
        latency_cycles=float(chip.mxm_latency_cycles),
        limits=limits,
        install_cycles=rounds * install if runs_ahead else install,
        drain_cycles=m * 1.0,
        # The first round reads the rows as they come.
        rest_cycles=busy - m,
        lead_cycles=lead,
        lead_behind_cycles=lead - m,
        stationary=1,
        moved_bytes=stored_bytes,
    )


def batching_rule(
    prim: Any,
    operands: Sequence[Array],
    dims: Sequence[Any],
    *,
    shared_x: bool,
    grouped: bool,
    addressed: bool,
    **static: Any,
) -> tuple[list[Array], list[int]]:
    """Fold a new axis into rows where the weights do not carry it, into matrices where they do."""
    x, w, *rows = (
        operand if dim is None else jnp.moveaxis(operand, dim, 0)
        for operand, dim in zip(operands, dims, strict=True)
    )
    x_new, w_new, *rows_new = (dim is not None for dim in dims)
    size = next(
        o.shape[0] for o, new in zip((x, w, *rows), (x_new, w_new, *rows_new), strict=True) if new
    )

    def bind(x: Array, w: Array, rows: list[Array], shared_x: bool, grouped: bool) -> Array:
        out: list[Array] = prim.bind(
            x,
            w,
            *rows,
            shared_x=shared_x,
            grouped=grouped,
            addressed=bool(rows),
            **static,
        )
        return out[0]

    if not w_new and not any(rows_new):  # the same matrices: the new axis is more rows
        m = x.shape[-2]
        if shared_x:
            y = bind(x.reshape(-1, x.shape[-1]), w, rows, True, grouped)
        else:  # [c, g, m, k] -> [g, c m, k]
            y = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, x.shape[-1])
            y = bind(y, w, rows, False, grouped)
        at = int(grouped)  # of the rows; behind them a value, or the words of one
        return [y.reshape(*y.shape[:at], size, m, *y.shape[at + 1 :])], [at]
    if not grouped:  # one matrix per entry of the new axis
        return [bind(x, w, rows, not x_new, True)], [0]
    # Matrices of all entries become one list of matrices.
    per_entry = rows[0].shape[-1] if addressed else w.shape[-3]
    if addressed:
        rows = [_store_rows(rows[0], rows_new[0], w_new, size, w.shape[-3])]
    if w_new:
        w = w.reshape(-1, *w.shape[-2:])
    if not addressed and not w_new:
        raise AssertionError("grouped weights without a new axis were folded into rows above")
    if x_new or not shared_x:
        if shared_x:  # [c, m, k]: one x per entry
            x = jnp.broadcast_to(x[:, None], (size, per_entry, *x.shape[1:]))
        elif not x_new:  # [g, m, k]: one x per matrix
            x = jnp.broadcast_to(x[None], (size, *x.shape))
        x = x.reshape(-1, *x.shape[-2:])
    y = bind(x, w, rows, x.ndim == 2, True)
    return [y.reshape(size, per_entry, *y.shape[1:])], [0]


def _store_rows(rows: Array, rows_new: bool, w_new: bool, size: int, n_matrices: int) -> Array:
    """Addresses in the joined store of all entries; a negative address stays negative."""
    if not rows_new:
        rows = jnp.broadcast_to(rows[None], (size, *rows.shape))
    if w_new:
        first = (jnp.arange(size, dtype=rows.dtype) * n_matrices)[:, None]
        rows = jnp.where(rows >= 0, rows + first, rows)
    return rows.reshape(-1)


_matmul = primitive(
    "mxm_matmul",
    abstract=_abstract,
    meaning=_meaning,
    cost=_cost,
    batching_rule=batching_rule,
    needs_x64=True,
)


def _widen_meaning(codes: Array, *scales: Array, scheme: Scheme, axis: int) -> Array:
    # The scale of a whole matrix is left for the products.
    one_level = replace(scheme, is_two_level=False)
    scale = scales[0] if scales else None
    return widen(QuantizedArray(codes=codes, scales=scale, scheme=one_level, axis=axis))


_widen = primitive(
    "mxm_widen",
    abstract=lambda codes, *scales, **_: jax.ShapeDtypeStruct(codes.shape, jnp.float16),
    meaning=_widen_meaning,
    cost=free,
)
