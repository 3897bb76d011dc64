"""Tensor cores, the matrix unit of a GPU: products with the roundings of its generation.

What it computes is a model of the chip (`numerics.tensor_core_rules`), not measured on it. What it
costs is what every product of a GPU does: the roofline of its kernel (`cost.kernels`); an LPU has
no such unit. Not modelled: accumulators that begin with other values than zero, and the splits of K
that a library's kernels may make.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32, Num

from ..arguments import checked, described
from ..errors import CostError, LpuError
from ..numerics import quantized, tensor_core
from ..numerics.quantized import QuantizedArray
from ..numerics.schemes import Scheme
from ..numerics.tensor_core_rules import Generation, rule_of
from . import mxm
from .primitive import primitive
from .work import Call, Hardware, Work


@checked
def matmul(
    x: Num[Array, "..."] | QuantizedArray,
    w: Num[Array, "..."] | QuantizedArray,
    *,
    generation: Generation,
    rows: Int32[Array, " g"] | None = None,
) -> Float32[Array, "..."]:
    """Multiply rows by weights as a tensor core does: `y = x @ w`, added up in fp32.

    Forms: those of `mxm.matmul` for arrays; `[m, k] @ [k, n]` for two arrays with block scales.

    Args:
        x: float16, bfloat16, float8_e4m3fn or float8_e5m2; or mxfp8, mxfp6, mxfp4 or nvfp4 with
            blocks along its last axis.
        w: weights of the same kind, blocks along axis -2; or, for float16 rows, any
            `QuantizedArray`, widened to float16 before it is multiplied. Scales of a whole matrix
            are the caller's.
        generation: "hopper", "blackwell", or "rubin" (assumed to be Blackwell's).
        rows: addresses of matrices in a store `w`, as for `mxm.matmul`.

    Raises:
        LpuError: operands that do not go together, or that the generation does not take.

    Fidelity:
        Order-dependent, the order is fixed: each step of K is added to the sum by the rule of its
        kind. A model of the chip, not measured on it.

    Source:
        `numerics.tensor_core_rules`.
    """
    for operand in (x, w):
        if isinstance(operand, QuantizedArray):
            quantized.check_operand(operand)
    if isinstance(x, QuantizedArray):
        return _scaled(x, w, rows, generation)
    weight_bits = float(w.bits_per_value if isinstance(w, QuantizedArray) else 8 * w.dtype.itemsize)
    if isinstance(w, QuantizedArray):
        if x.dtype != jnp.float16:
            raise LpuError(
                f"tensor_core.matmul: {x.dtype.name} rows were given with weights of scheme "
                f"{w.scheme.name}; stored weights are widened for float16 rows only."
            )
        w = mxm.widened(w)
    rule_of(generation, tensor_core.kind_of(x.dtype, w.dtype))
    mxm.check_operands("tensor_core.matmul", x, w, rows)
    out: Array = _matmul(
        *((x, w) if rows is None else (x, w, rows)),
        shared_x=x.ndim == 2,
        grouped=w.ndim == 3,
        addressed=rows is not None,
        weight_bits=weight_bits,
        generation=generation,
    )
    return out


def _scaled(x: QuantizedArray, w: Any, rows: Array | None, generation: Generation) -> Array:
    """Check operands with block scales and bind their product."""
    if not isinstance(w, QuantizedArray) or rows is not None or w.codes.ndim != 2:
        raise LpuError(
            f"tensor_core.matmul: x of scheme {x.scheme.name} was given with w {described(w)}; "
            "it multiplies one matrix [k, n] with block scales too, without addresses."
        )
    tensor_core.check_scaled(x, w)
    rule_of(generation, tensor_core.scaled_kind_of(x.scheme, w.scheme))
    mxm.check_operands("tensor_core.matmul", x.codes, w.codes, None)
    out: Array = _scaled_matmul(
        x.codes,
        w.codes,
        x.scales,
        w.scales,
        schemes=(x.scheme, w.scheme),
        generation=generation,
        grouped=False,
        # Scales are operands, and counted as such.
        weight_bits=float(w.scheme.format.bits),
    )
    return out


def _abstract(x: Any, w: Any, *rows: Any, grouped: bool = False, **_: Any) -> Any:
    addresses = rows[0] if rows else w
    lead = (addresses.shape[0],) if grouped else ()
    return jax.ShapeDtypeStruct((*lead, x.shape[-2], w.shape[-1]), jnp.float32)


def _meaning(
    x: Array,
    w: Array,
    *rows: Array,
    shared_x: bool,
    grouped: bool,
    addressed: bool,
    weight_bits: float,
    generation: Generation,
) -> Array:
    del weight_bits
    if not grouped:
        return tensor_core.matmul(x, w, generation=generation)

    def one(i: Array) -> Array:
        row = rows[0][i] if addressed else i

        def product() -> Array:
            # Inside the branch: an empty slot must not copy a matrix.
            weights = lax.dynamic_index_in_dim(w, row, 0, keepdims=False)
            its_rows = x if shared_x else lax.dynamic_index_in_dim(x, i, 0, keepdims=False)
            return tensor_core.matmul(its_rows, weights, generation=generation)

        nothing = jnp.zeros((x.shape[-2], w.shape[-1]), jnp.float32)
        return lax.cond(row >= 0, product, lambda: nothing) if addressed else product()

    matrices = (rows[0] if addressed else w).shape[0]
    out: Array = lax.map(one, jnp.arange(matrices, dtype=jnp.int32))
    return out


def _scaled_meaning(
    x: Array,
    w: Array,
    x_scales: Array,
    w_scales: Array,
    *,
    schemes: tuple[Scheme, Scheme],
    generation: Generation,
    **_: Any,
) -> Array:
    sides = zip((x, w), (x_scales, w_scales), schemes, (-1, -2), strict=True)
    # The scales of whole matrices are left for the result.
    one, two = (
        QuantizedArray(
            codes=codes, scales=scales, scheme=replace(scheme, is_two_level=False), axis=axis
        )
        for codes, scales, scheme, axis in sides
    )
    for side in (one, two):
        quantized.check(side)
    return tensor_core.scaled_matmul(one, two, generation=generation)


def _no_cost(machine: Hardware, call: Call) -> Work:
    del call
    raise CostError(
        f"tensor_core.matmul: {machine.chip.name} has no tensor cores; price the program on a GPU, "
        "or multiply with mxm.matmul."
    )


_matmul = primitive(
    "tensor_core_matmul",
    abstract=_abstract,
    meaning=_meaning,
    cost=_no_cost,
    batching_rule=mxm.batching_rule,
)

_scaled_matmul = primitive(
    "tensor_core_scaled_matmul",
    abstract=_abstract,
    meaning=_scaled_meaning,
    cost=_no_cost,
    needs_x64=True,
)
