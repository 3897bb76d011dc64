"""Quantised arrays: codes and scales as a pytree, and the conversions to and from fp32.

Weights are `[..., k, n]` with blocks along axis -2, activations `[..., m, k]` with blocks along
-1. Not modelled: scale search (scales come from the largest magnitude of a block), and the packing
of codes in memory (`stored_bytes` counts as if packed).

A `QuantizedArray` is valid if
- `codes` and `scales` have the scheme's array types (`scales` is None for a scheme without);
- `scales` has the dimensions of `codes`, with `ceil(k / block_rows)` along the blocks, 1 if a block
  holds all rows; columns that share a scale each have a copy, or one if a block holds all columns;
- `tensor_scale` is float32 `[..., 1, 1]`, one per matrix, for two-level schemes, else None;
- each value is `code * scale` of its block, block `i` covering rows `i * block_rows` and up, times
  the tensor scale; a last block may be shorter.
Functions that take one refuse it otherwise (`check`).
"""

from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float16, Float32, PRNGKeyArray, Shaped, UInt

from ..arguments import check_within, checked, described
from ..errors import LpuError
from ..predicates import is_concrete, may_equal
from .blocks import (
    block_maxima,
    check_axis,
    finite_amax,
    float_scales,
    from_blocks,
    power_of_two_scales,
    to_blocks,
)
from .elementary import div, mul
from .formats import E8M0, FP16, Format, Rounding, check_random
from .rounding import code_dtype, decode, encode, round_product, to_fp16, to_signed
from .schemes import Scheme, scheme_named, storage_dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class QuantizedArray:
    """Codes and scales of an array; the module docstring lists what makes one valid.

    The leaves are untyped because trees of shardings, shapes and tracers take the same form. All
    of them have the rank of the array, so that leading axes may be mapped or scanned over.
    """

    #: In the array type of the format, `Scheme.code_dtype`.
    codes: Any
    #: As stored: `Scheme.scale_dtype`; uint8 holds E8M0 codes. None without scales.
    scales: Any
    #: float32 `[..., 1, 1]` that multiplies the whole matrix; None unless the scheme is two-level.
    tensor_scale: Any = None
    scheme: Scheme = field(metadata={"static": True})
    #: The axis along which blocks run, the contraction: -2 for weights, -1 for activations.
    axis: int = field(default=-2, metadata={"static": True})

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shape of the array; dimensions may be symbolic."""
        return tuple(self.codes.shape)

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value, as `Scheme.bits_per_value`."""
        return self.scheme.bits_per_value

    @property
    def stored_bytes(self) -> Any:
        """Stored bytes, as `Scheme.stored_bytes`."""
        return self.scheme.stored_bytes(self.shape, self.axis)

    def dequantize(self) -> Float32[Array, "*batch rows columns"]:
        """Return the values in fp32, as the function `dequantize`."""
        return dequantize(self)


@checked
def check(q: QuantizedArray) -> None:
    """Raise if types, shapes or codes of a quantised array do not agree with its scheme.

    Codes of formats narrower than their array type are checked where they are known: not while a
    program is traced, nor in trees of shapes.

    Raises:
        LpuError: with what was found and what the scheme asks for.
    """
    check_types(q)
    scheme, codes = q.scheme, q.codes
    tensor_shape = (*codes.shape[:-2], 1, 1) if scheme.is_two_level else None
    for what, array, shape in (
        ("scales", q.scales, scheme.scales_shape(codes.shape, q.axis)),
        ("tensor scale", q.tensor_scale, tensor_shape),
    ):
        found = None if array is None else tuple(array.shape)
        if (found is None) != (shape is None) or not may_equal(found, shape):
            raise LpuError(
                f"quantised array: {what} of scheme {scheme.name} for codes {codes.shape} must "
                f"have shape {shape}, but have {found}."
            )
    _check_codes(codes, scheme)


@checked
def check_types(q: QuantizedArray) -> None:
    """Do the part of `check` that does not compare shapes.

    For programs that are only priced: they may describe one scale for each head where a block would
    reach from one head into the next, which no array that is stored can have.

    Raises:
        LpuError: with what was found and what the scheme asks for.
    """
    arrays = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    for what, found, allowed, words in (
        ("scheme", q.scheme, Scheme, "a Scheme"),
        ("axis", q.axis, int, "-2 or -1"),
        ("codes", q.codes, arrays, "an array"),
        ("scales", q.scales, (*arrays, NoneType), "an array or None"),
        ("tensor_scale", q.tensor_scale, (*arrays, NoneType), "an array or None"),
    ):
        if not isinstance(found, allowed):
            raise LpuError(f"quantised array: {what} must be {words}, but is {described(found)}.")
    scheme, codes = q.scheme, q.codes
    check_axis("quantised array", codes.shape, q.axis)
    if codes.dtype != scheme.code_dtype:
        raise LpuError(
            f"quantised array: codes of scheme {scheme.name} must be {scheme.code_dtype.name}, but "
            f"are {codes.dtype.name} {codes.shape}."
        )
    for what, array, dtype in (
        ("scales", q.scales, scheme.scale_dtype),
        ("tensor scale", q.tensor_scale, jnp.dtype(jnp.float32)),
    ):
        if array is not None and dtype is not None and array.dtype != dtype:
            raise LpuError(
                f"quantised array: {what} of scheme {scheme.name} must be {dtype.name}, but are "
                f"{array.dtype.name}."
            )


def check_operand(q: QuantizedArray) -> None:
    """Check an array whose codes go on: all of it, or types only while a program is traced.

    What is left is checked where the program is lowered and `widen` sees the scales.

    Raises:
        LpuError: as `check`.
    """
    check_types(q)
    if is_concrete(q.codes):
        check(q)


def _check_codes(codes: Any, scheme: Scheme) -> None:
    """Refuse codes that the format does not have, where its array type has more."""
    fmt = scheme.format
    if fmt.bits < 8 * scheme.code_dtype.itemsize:
        least = -(1 << (fmt.bits - 1)) if fmt.is_integer else 0
        most = least + (1 << fmt.bits) - 1
        check_within("quantised array", "code", codes, least, most, f"scheme {scheme.name}")


@checked
def quantize(
    w: Float32[Array, "*batch rows columns"],
    scheme: Scheme | str,
    axis: int = -2,
    *,
    rounding: Rounding = "rne",
    key: PRNGKeyArray | None = None,
) -> QuantizedArray:
    """Quantise an array.

    Per block, by the kind of scales:
    - powers of two: `blocks.power_of_two_scales`, then `encode(w / scale)` by integer arithmetic;
    - floating point: `scale = round(amax / largest code)`, then `encode(w / scale)`;
    - two-level: with `t = amax of the matrix / (largest scale * largest code)` and `v = w / t`,
      `scale = round((amax of v) / largest code)` and `encode(v / scale)`, in this order.
    In the last two a block without a magnitude of 2**-100 or more, or whose scale is too small for
    its format, has scale 0 and codes 0.
    Without scales, values that are too large become infinity. A block with infinity or NaN stands
    for NaN only; with two-level scales so does the whole matrix.

    Args:
        w: values; zeros count for the missing rows of a last block.
        scheme: a scheme, or the name of one.
        axis: along which the blocks run: -2 for weights `[..., k, n]`, -1 for `[..., m, k]`.
        rounding: of the codes; scales are always rounded to nearest.
        key: for stochastic rounding.

    Raises:
        LpuError: an axis other than -2 and -1, no value, or a key missing or not used.
        UnknownNameError: there is no scheme of this name.

    Fidelity:
        Powers of two: exact, one rounding. Others: each of the steps is rounded once.

    Source:
        OCP Microscaling v1.0; arXiv 2509.25149 for two levels, whose order of operations is that
        of JAX's `scaled_dot_general` (torchao's differs below block scales of 2**-6).
    """
    spec = scheme_named(scheme) if isinstance(scheme, str) else scheme
    check_axis("quantize", w.shape, axis)
    check_random("quantize", rounding, has_random=key is not None)
    if 0 in w.shape:
        raise LpuError(
            f"quantize: w of shape {w.shape} was given; it must have at least one value."
        )
    convert = partial(encode, fmt=spec.format, rounding=rounding, key=key)
    if spec.scale_format is None:
        codes = _stored(convert(w, overflow="ieee"), spec.format)
        return QuantizedArray(codes=codes, scales=None, scheme=spec, axis=axis)
    blocked = to_blocks(w, spec, axis)
    maxima = block_maxima(blocked, spec, axis)
    tensor_scale = None
    if spec.has_power_of_two_scales:
        scale_codes = power_of_two_scales(maxima, spec)
        codes = convert(blocked, exponent=scale_codes + jnp.int32(spec.code_exponent - E8M0.bias))
        scales = scale_codes.astype(jnp.uint8)
    else:
        amax = finite_amax(maxima)
        if spec.is_two_level:
            tensor_scale = _tensor_scale(amax, spec)
            divisor = jnp.where(tensor_scale == 0, jnp.float32(1), tensor_scale)[..., None]
            amax, blocked = div(amax, divisor), div(blocked, divisor)
        factors = float_scales(amax, spec)
        is_zero = factors == 0
        ratio = div(blocked, jnp.where(is_zero, jnp.float32(1), factors))
        codes = convert(jnp.where(is_zero, jnp.float32(0), ratio))
        scales = _stored(encode(factors, spec.scale_format), spec.scale_format)
    return QuantizedArray(
        codes=_stored(from_blocks(codes, w.shape[axis], axis), spec.format),
        scales=scales.squeeze(axis),
        tensor_scale=tensor_scale,
        scheme=spec,
        axis=axis,
    )


def _tensor_scale(amax: Float32[Array, "..."], scheme: Scheme) -> Float32[Array, "..."]:
    """Return the scale of each matrix, `[..., 1, 1]`, from the maxima of its blocks."""
    assert scheme.scale_format is not None
    # NaN wins: XLA:CPU's maximum over an axis may lose it.
    largest = jnp.where(amax == amax, amax, jnp.float32(jnp.inf)).max((-3, -2, -1), initial=0)
    largest = jnp.where(largest == jnp.inf, jnp.float32(jnp.nan), largest)[..., None, None]
    divisor = scheme.scale_format.max_value * scheme.format.max_value
    return div(largest, jnp.full_like(largest, divisor))


@checked
def dequantize(q: QuantizedArray) -> Float32[Array, "*batch rows columns"]:
    """Return the values in fp32: code times scale, times the tensor scale.

    Fidelity:
        Without scales and with powers of two: exact where the value is an fp32 number; beyond,
        infinity, and below, the nearest subnormal. int4: exact (a 3-bit code times an 8-bit
        scale). fp8, int8 and two-level: rounded once (RNE), as backends flush below 2**-126.
    """
    check(q)
    values = _block_values(q)
    if q.scheme.has_float_scales:
        values = mul(values, _float_scales_of(q))
    if q.tensor_scale is not None:
        values = mul(values, q.tensor_scale[..., None])
    return _joined(values, q)


@checked
def widen(q: QuantizedArray) -> Float16[Array, "*batch rows columns"]:
    """Return fp16 operands: code times block scale, rounded once (RNE; overflow to infinity).

    The tensor scale of a two-level scheme is left out; `output_scale` gives it.

    Fidelity:
        Exact product, one rounding. NVFP4 needs none: 2 by 4 significant bits between 2**-10 and
        2688 are fp16 numbers.

    Source:
        Widening to fp16 at the matrix unit is assumed.
    """
    check(q)
    if q.scheme.format == FP16 and q.scheme.scale_format is None:
        codes: Array = q.codes
        return codes
    values = _block_values(q)
    if q.scheme.has_float_scales:
        bits = round_product(values, _float_scales_of(q), FP16)
        return _joined(lax.bitcast_convert_type(bits, jnp.float16), q)
    # Powers of two are in the values: exact, or so far out that fp16 ends long before.
    return _joined(to_fp16(values), q)


@checked
def output_scale(q: QuantizedArray, *, of_codes: bool = False) -> Float32[Array, "..."] | None:
    """Return what a product with the operands of `q` must still be multiplied by, or None.

    Args:
        q: weights with blocks along -2.
        of_codes: the operands were bare int8 codes (`Scheme.multiplies_bare`), not `widen(q)`.

    Returns:
        `[..., 1, n]` or `[..., 1, 1]`: for bare codes the column scales, for widened operands the
        tensor scale of a two-level scheme and None for the others.

    Raises:
        LpuError: `of_codes` for a scheme whose codes do not multiply bare.
    """
    check_operand(q)
    if not of_codes:
        scale: Array | None = q.tensor_scale
        return scale
    if not q.scheme.multiplies_bare:
        raise LpuError(
            f"output_scale: codes of scheme {q.scheme.name} were multiplied bare; that needs int8 "
            "codes with one scale per column or matrix."
        )
    scales: Array = q.scales
    return scales


@checked
def partition(q: QuantizedArray, spec: PartitionSpec) -> QuantizedArray:
    """Return how the leaves are split if the array is split as `spec` says.

    Columns may be split anywhere. Along the blocks each share must hold whole blocks, a multiple
    of `Scheme.row_granule` rows. Scales of all rows, of all columns and of the matrix are copied.

    Args:
        q: the array, or its shapes.
        spec: of the array, shorter than its rank if the last dimensions are whole.

    Returns:
        The same tree with a `PartitionSpec` for each leaf.
    """
    check(q)
    if len(spec) > len(q.shape):
        raise LpuError(
            f"quantized.partition: a spec of {len(spec)} entries was given for an array of shape "
            f"{q.shape}; it must have at most that many."
        )
    entries = (*spec, *(None,) * (len(q.shape) - len(spec)))

    def of(leaf: Any) -> PartitionSpec | None:
        if leaf is None:
            return None
        return PartitionSpec(
            *(None if size == 1 else entry for size, entry in zip(leaf.shape, entries, strict=True))
        )

    return QuantizedArray(
        codes=PartitionSpec(*entries),
        scales=of(q.scales),
        tensor_scale=of(q.tensor_scale),
        scheme=q.scheme,
        axis=q.axis,
    )


def _block_values(q: QuantizedArray) -> Float32[Array, "..."]:
    """Return the values of codes in blocks, power-of-two scales included."""
    scheme = q.scheme
    codes = _codes(q.codes, scheme.format)
    if scheme.scale_format is None:
        return decode(codes, scheme.format)
    blocked = to_blocks(codes, scheme, q.axis)
    if not scheme.has_power_of_two_scales:
        return decode(blocked, scheme.format)
    scales: Array = jnp.expand_dims(q.scales, q.axis).astype(jnp.int32)
    exponent = scales + jnp.int32(scheme.code_exponent - E8M0.bias)
    values = decode(blocked, scheme.format, exponent=exponent)
    return jnp.where(scales == E8M0.nan_code, jnp.float32(jnp.nan), values)


def _float_scales_of(q: QuantizedArray) -> Float32[Array, "..."]:
    """Return floating point scales as fp32, one row per block."""
    scheme = q.scheme
    assert scheme.scale_format is not None
    scales = decode(_codes(q.scales, scheme.scale_format), scheme.scale_format)
    return jnp.expand_dims(scales, q.axis)


def _joined(values: Shaped[Array, "..."], q: QuantizedArray) -> Shaped[Array, "..."]:
    """Return values in blocks in the shape of the array."""
    if q.scheme.scale_format is None:
        return values
    return from_blocks(values, q.codes.shape[q.axis], q.axis)


def _stored(codes: UInt[Array, "..."], fmt: Format) -> Shaped[Array, "..."]:
    """Return codes in the array type that holds them."""
    dtype = storage_dtype(fmt)
    if fmt.is_integer:
        return to_signed(codes, fmt).astype(dtype)
    return lax.bitcast_convert_type(codes, dtype)


def _codes(stored: Shaped[Array, "..."], fmt: Format) -> Shaped[Array, "..."]:
    """Return stored codes as unsigned bit patterns; those of integers keep their sign bits."""
    return lax.bitcast_convert_type(stored, code_dtype(fmt))
