"""Quantised weights: codes and scales as a pytree, and the schemes that make them.

Matrices are `[..., k, n]` with the contraction first, scales `[..., groups, n]`. Not modelled:
activation quantisation, scale search (scales come from the largest magnitude of a group), and
the packing of two int4 codes into a byte (`stored_bytes` counts as if packed).

A `QuantizedArray` is valid if
- `codes` has the scheme's array type and `scales` is float32 (None for a scheme without scales);
- `scales.shape == (*batch, ceil(k / group_rows), n)`, one row if a group is the whole column;
- each value is `code * scale` of its group, group `i` covering rows `i * group_rows` and up; a
  last group may be shorter.
`check` raises if the shapes or types do not agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float16, Float32

from ..errors import LpuError, unknown
from .elementary import div, mul
from .formats import BF16, E4M3, FP16, FP32, INT4, INT8, Format
from .rounding import encode, round_product, round_to, to_fp16, to_signed

#: Groups whose largest weight is smaller become zero: fp16 ends at 2**-24, and a scale this small
#: could be a subnormal, which some backends flush.
_SMALLEST_AMAX = 2.0**-100


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a weight matrix is stored. `stored` counts real bytes, whatever arrays hold the codes."""

    name: str
    format: Format
    #: Largest magnitude that a code stands for after scaling; 0 for a scheme without scales.
    largest_code: float
    #: Rows along K that share a scale; None for the whole column.
    group_rows: int | None
    #: Columns that share a scale. In memory a scale is repeated per column all the same, so that
    #: columns can be split over chips anywhere.
    group_columns: int
    #: Format of a scale; None for a scheme without scales.
    scale_format: Format | None

    @property
    def bits_per_value(self) -> float:
        """Stored bits of one weight with its share of a group's scale.

        A scale per whole column is left out: it is applied to the result, once per column.
        """
        if self.scale_format is None or self.group_rows is None:
            return float(self.format.bits)
        group = self.group_rows * self.group_columns
        return self.format.bits + self.scale_format.bits / group

    def stored_bytes(self, shape: tuple[Any, ...]) -> Any:
        """Return the bytes of a stored array of this shape, codes and scales, without padding.

        Args:
            shape: `(*batch, k, n)`, of integers, symbolic dimensions or NumPy integer arrays.

        Fidelity:
            Exact; codes are packed over the whole array and rounded up to a byte once.
        """
        *batch, k, n = shape
        matrices: Any = 1
        for size in batch:
            matrices = matrices * size
        code_bytes = -(-matrices * k * n * self.format.bits // 8)
        if self.scale_format is None:
            return code_bytes
        groups = 1 if self.group_rows is None else -(-k // self.group_rows)
        scales = matrices * groups * -(-n // self.group_columns)
        return code_bytes + scales * (self.scale_format.bits // 8)


#: Codes -7..7: a symmetric grid, so that a weight and its negative have the same error; -8 would
#: have no counterpart. Source: the released form of Kimi K2 Thinking and K2.5 (int4, symmetric,
#: group 32, 16-bit scales); that the 16 bits are bf16 is assumed, from the models' other weights.
INT4_GROUP32 = Scheme(
    name="int4",
    format=INT4,
    largest_code=7.0,
    group_rows=32,
    group_columns=1,
    scale_format=BF16,
)
#: Source: DeepSeek-V3 and Kimi K2 released forms (e4m3, blocks of 128 x 128, fp32 scales).
FP8_BLOCK128 = Scheme(
    name="fp8",
    format=E4M3,
    largest_code=E4M3.max_value,
    group_rows=128,
    group_columns=128,
    scale_format=FP32,
)
#: Codes -127..127, one scale per output column. Source: Abts et al., ISCA 2020 (symmetric int8);
#: the scale per column instead of per layer is assumed.
INT8_COLUMN = Scheme(
    name="int8",
    format=INT8,
    largest_code=127.0,
    group_rows=None,
    group_columns=1,
    scale_format=FP32,
)
FP16_PLAIN = Scheme(
    name="fp16",
    format=FP16,
    largest_code=0.0,
    group_rows=None,
    group_columns=1,
    scale_format=None,
)

#: Every named scheme.
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {s.name: s for s in (FP16_PLAIN, INT8_COLUMN, FP8_BLOCK128, INT4_GROUP32)}
)


def scheme_named(name: str) -> Scheme:
    """Return the scheme called `name`.

    Raises:
        UnknownNameError: if there is no such scheme; the message lists the nearest names.
    """
    if name not in SCHEMES:
        raise unknown("weight scheme", name, SCHEMES)
    return SCHEMES[name]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class QuantizedArray:
    """Codes and scales of weights `[..., k, n]`; the module's text lists what makes one valid.

    The leaves are untyped because trees of shardings, shapes and tracers take the same form.
    """

    #: int8 (schemes int4 and int8), float8_e4m3fn (fp8) or float16 (fp16), `[..., k, n]`.
    codes: Any
    #: float32 `[..., groups, n]`, or None.
    scales: Any
    #: Name of the scheme.
    scheme: str = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shape of the weights; dimensions may be symbolic."""
        return tuple(self.codes.shape)

    @property
    def bits_per_value(self) -> float:
        """Stored bits per weight, as `Scheme.bits_per_value`."""
        return scheme_named(self.scheme).bits_per_value

    @property
    def stored_bytes(self) -> Any:
        """Stored bytes, as `Scheme.stored_bytes`."""
        return scheme_named(self.scheme).stored_bytes(self.codes.shape)


def check(q: QuantizedArray) -> None:
    """Raise if types or shapes of a quantised array do not agree with its scheme.

    Raises:
        LpuError: with what was found and what the scheme asks for.
        UnknownNameError: if there is no such scheme.
    """
    scheme = scheme_named(q.scheme)
    dtype = _code_dtype(scheme)
    if q.codes.dtype != dtype or q.codes.ndim < 2:
        raise LpuError(
            f"quantised array: codes of scheme {scheme.name} must be {jnp.dtype(dtype).name} "
            f"[..., k, n], but are {q.codes.dtype.name} {q.codes.shape}."
        )
    expected = _scales_shape(q.codes.shape, scheme)
    found = None if q.scales is None else tuple(q.scales.shape)
    if found != expected:
        raise LpuError(
            f"quantised array: scales of scheme {scheme.name} for weights {q.codes.shape} must "
            f"have shape {expected}, but have {found}."
        )


def quantize(w: Float32[Array, "*batch k n"], scheme: str) -> QuantizedArray:
    """Quantise finite weights.

    Per group: `scale = round(amax / largest code)` to fp32 and then to the scale's format, and
    `code = encode(w / scale)`, all RNE. A group with no weight above 2**-100 has scale 0.

    Args:
        w: weights `[..., k, n]`; zeros count for the missing rows of a last group.
        scheme: name of a scheme.

    Raises:
        UnknownNameError: if there is no such scheme.

    Fidelity:
        Each of the steps is rounded once (RNE).
    """
    spec = scheme_named(scheme)
    if spec.scale_format is None:
        return QuantizedArray(codes=to_fp16(w), scales=None, scheme=scheme)
    amax = _group_maxima(w, spec)
    amax = jnp.where(amax < _SMALLEST_AMAX, jnp.float32(0), amax)
    scales = div(amax, jnp.full_like(amax, spec.largest_code))
    scales = round_to(scales, spec.scale_format)
    spread = _spread_rows(scales, w.shape[-2], spec)
    is_zero = spread == 0
    ratio = div(w, jnp.where(is_zero, jnp.float32(1), spread))
    codes = encode(jnp.where(is_zero, jnp.float32(0), ratio), spec.format)
    return QuantizedArray(codes=_store(codes, spec), scales=scales, scheme=scheme)


def widen(q: QuantizedArray) -> Float16[Array, "*batch k n"]:
    """Return fp16 weights: code times scale, rounded once (RNE; overflow to infinity).

    Fidelity:
        Exact product, one rounding.

    Source:
        Widening to fp16 at the matrix unit is assumed.
    """
    spec = scheme_named(q.scheme)
    if spec.scale_format is None:
        codes: Array = q.codes
        return codes
    scales = _spread_rows(q.scales, q.codes.shape[-2], spec)
    bits = round_product(q.codes.astype(jnp.float32), scales, FP16)
    return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.float16)


def dequantize(q: QuantizedArray) -> Float32[Array, "*batch k n"]:
    """Return fp32 weights: code times scale.

    Fidelity:
        Exact for fp16 and int4 (a 3-bit code times an 8-bit scale); for fp8 and int8 (fp32 scales)
        the product is rounded once (RNE).
    """
    spec = scheme_named(q.scheme)
    values: Array = q.codes.astype(jnp.float32)
    if spec.scale_format is None:
        return values
    return mul(values, _spread_rows(q.scales, q.codes.shape[-2], spec))


def _code_dtype(scheme: Scheme) -> Any:
    """Return the array type that holds the codes of a scheme."""
    return {"fp16": jnp.float16, "e4m3": jnp.float8_e4m3fn}.get(scheme.format.name, jnp.int8)


def _scales_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...] | None:
    """Return the shape of the scales of weights of this shape."""
    if scheme.scale_format is None:
        return None
    groups = 1 if scheme.group_rows is None else -(-shape[-2] // scheme.group_rows)
    return (*shape[:-2], groups, shape[-1])


def _group_maxima(
    w: Float32[Array, "*batch k n"], scheme: Scheme
) -> Float32[Array, "*batch groups n"]:
    """Return the largest magnitude of each weight's group, one per group of rows and column."""
    *batch, k, n = w.shape
    rows = scheme.group_rows or k
    magnitude = jnp.pad(jnp.abs(w), (*((0, 0),) * len(batch), (0, -k % rows), (0, 0)))
    maxima = magnitude.reshape(*batch, -1, rows, n).max(-2)
    columns = scheme.group_columns
    if columns == 1:
        return maxima
    maxima = jnp.pad(maxima, (*((0, 0),) * (len(batch) + 1), (0, -n % columns)))
    blocks = maxima.reshape(*maxima.shape[:-1], -1, columns).max(-1)
    return jnp.repeat(blocks, columns, axis=-1)[..., :n]


def _spread_rows(
    scales: Float32[Array, "*batch groups n"], k: int, scheme: Scheme
) -> Float32[Array, "*batch k n"]:
    """Repeat scales over the rows of their groups."""
    *batch, groups, n = scales.shape
    rows = scheme.group_rows or k
    repeated = jnp.broadcast_to(scales[..., None, :], (*batch, groups, rows, n))
    return repeated.reshape(*batch, groups * rows, n)[..., :k, :]  # [.., g, r, n] -> [.., k, n]


def _store(codes: Array, scheme: Scheme) -> Array:
    """Return codes in the array type of the scheme."""
    if scheme.format.is_integer:
        return to_signed(codes, scheme.format).astype(jnp.int8)
    return lax.bitcast_convert_type(codes.astype(jnp.uint8), jnp.float8_e4m3fn)
