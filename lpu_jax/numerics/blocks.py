"""Blocks of an array and the scales they share, from the largest magnitude of each block.

An array is seen as `[..., g, r, n]` (blocks along axis -2) or `[..., m, g, r]` (along -1): `g`
blocks of `r` rows each. Scales keep the axis `r` with length 1. Not modelled: scales searched for
the smallest error, or averaged over time.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32, Shaped

from ..arguments import checked
from ..errors import LpuError
from .elementary import div
from .formats import E8M0, FP32
from .rounding import round_to
from .schemes import Scheme

_INF_BITS = 0x7F800000
_FRACTION_BITS = 23
#: Blocks whose largest magnitude is smaller get the floating point scale 0: a scale this small
#: could be a subnormal, which some backends flush.
SMALLEST_AMAX = 2.0**-100
_VECTOR_LANES = 8


def check_axis(caller: str, shape: tuple[Any, ...], axis: int) -> None:
    """Raise unless the shape is that of matrices and blocks run along one of their axes."""
    if len(shape) < 2 or axis not in (-2, -1):
        raise LpuError(
            f"{caller}: shape {shape} and axis {axis} were given; allowed are matrices [..., k, n] "
            "with axis -2, or [..., m, k] with axis -1."
        )


@checked
def to_blocks(x: Shaped[Array, "*batch i j"], scheme: Scheme, axis: int) -> Shaped[Array, "..."]:
    """Split an axis (-2 or -1) into blocks and the rows of a block; zeros fill the last block."""
    check_axis("blocks.to_blocks", x.shape, axis)
    length = x.shape[axis]
    rows = scheme.block_rows or length
    missing = -length % rows if length else 0
    if missing:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, missing)
        x = jnp.pad(x, padding)
    at = x.ndim + axis
    groups = (length + missing) // rows if rows else 1
    return x.reshape(*x.shape[:at], groups, rows, *x.shape[at + 1 :])


@checked
def from_blocks(
    blocked: Shaped[Array, "*batch i j k"], length: int, axis: int
) -> Shaped[Array, "..."]:
    """Join what `to_blocks` split and drop what it filled up."""
    check_axis("blocks.from_blocks", blocked.shape, axis)
    at = blocked.ndim + axis
    lead, tail = blocked.shape[: at - 1], blocked.shape[at + 1 :]
    joined = blocked.reshape(*lead, blocked.shape[at - 1] * blocked.shape[at], *tail)
    if not 0 <= length <= joined.shape[at - 1]:
        raise LpuError(
            f"blocks.from_blocks: length={length} was given for blocks of {joined.shape[at - 1]} "
            "rows in all; it must be at most that."
        )
    return lax.slice_in_dim(joined, 0, length, axis=at - 1)


@checked
def block_maxima(
    blocked: Float32[Array, "*batch i j k"], scheme: Scheme, axis: int
) -> Int32[Array, "..."]:
    """Return the fp32 bits of the largest magnitude of each block, once per column.

    Magnitudes are compared as integers, which order like them: NaN, then infinity, come first.

    Fidelity:
        Exact, subnormals included.
    """
    check_axis("blocks.block_maxima", blocked.shape, axis)
    magnitude = lax.bitcast_convert_type(blocked, jnp.int32) & jnp.int32(0x7FFFFFFF)
    maxima = _row_maxima(magnitude, axis)
    across = -1 if axis == -2 else -3
    if scheme.block_columns is None:
        return maxima.max(across, keepdims=True, initial=0)
    if scheme.block_columns == 1:
        return maxima
    return _column_maxima(maxima, scheme.block_columns, across)


def _row_maxima(magnitude: Int32[Array, "..."], axis: int) -> Int32[Array, "..."]:
    """Return maxima over an axis, which is kept.

    XLA:CPU makes a scalar loop of a maximum over the last axis. Here vectors of it are compared
    first and what remains is turned; without the barrier the two are merged again.
    """
    rows = magnitude.shape[axis]
    if axis != -1 or rows % _VECTOR_LANES or rows == _VECTOR_LANES:
        return magnitude.max(axis, keepdims=True, initial=0)
    lanes = magnitude.reshape(-1, rows // _VECTOR_LANES, _VECTOR_LANES).max(-2)
    turned = lax.optimization_barrier(lanes).T
    maxima: Array = turned.max(0)
    return maxima.reshape(*magnitude.shape[:-1], 1)


def _column_maxima(
    maxima: Int32[Array, "..."], block_columns: int, across: int
) -> Int32[Array, "..."]:
    """Return maxima over each block's columns, repeated for each of them."""
    moved = jnp.moveaxis(maxima, across, -1)
    n = moved.shape[-1]
    padded = jnp.pad(moved, (*((0, 0),) * (moved.ndim - 1), (0, -n % block_columns)))
    blocks = padded.reshape(*padded.shape[:-1], -1, block_columns).max(-1, initial=0)
    return jnp.moveaxis(jnp.repeat(blocks, block_columns, axis=-1)[..., :n], -1, across)


@checked
def power_of_two_scales(maxima: Int32[Array, "..."], scheme: Scheme) -> Int32[Array, "..."]:
    """Return E8M0 codes of the scales of blocks with these largest magnitudes.

    With `amax = s * 2**e`, `1 <= s < 2`, the code is `e - emax + 127`, one more where `s` reaches
    the threshold of the scheme's rule: none for `floor`, above the largest value's significand for
    `up`, where rounding to the elements' precision gives 2 for `even`.

    Special cases: a block of zeros has code 0, as every block whose code would be below 0. Codes
    above 254 become 254, and its elements saturate. An infinity or NaN makes the code 255 (NaN):
    no value of such a block survives.

    Args:
        maxima: fp32 bits, as `block_maxima` returns.
        scheme: with power-of-two scales.

    Raises:
        LpuError: another scheme.

    Fidelity:
        Exact: exponents are read, never computed by a logarithm, and subnormals count.

    Source:
        OCP Microscaling v1.0 (`floor`); NVIDIA PTX and JAX `scaled_dot_general` (`up`); torchao
        `ScaleCalculationMode.EVEN` (`even`). The zero block is as in gfloat and microxcaling. What
        a block with infinity or NaN becomes is left open by the standard, and assumed here.
    """
    if not scheme.has_power_of_two_scales:
        raise LpuError(
            f"blocks.power_of_two_scales: scheme {scheme.name} was given; its scales must be e8m0."
        )
    field = maxima >> _FRACTION_BITS
    fraction = maxima & jnp.int32((1 << _FRACTION_BITS) - 1)
    # A subnormal is read as if the field stood for 2**-127, one below the smallest normal number:
    # of those further below, the code is 0 whatever the significand.
    significand = jnp.where(field == 0, fraction << 1, fraction | jnp.int32(1 << _FRACTION_BITS))
    raised = (significand >= _threshold(scheme)).astype(jnp.int32)
    code = field - jnp.int32(scheme.max_exponent + scheme.code_exponent) + raised
    code = jnp.clip(code, 0, E8M0.max_code)
    return jnp.where(maxima >= _INF_BITS, jnp.int32(E8M0.nan_code or 0), code)


def _threshold(scheme: Scheme) -> int:
    """Return the 24-bit significand of `amax` from which a rule takes the next power of two."""
    fmt = scheme.format
    fraction_bits = scheme.max_exponent if fmt.is_integer else fmt.mantissa_bits
    match scheme.rule:
        case "floor":
            return 1 << (_FRACTION_BITS + 1)
        case "up":
            fraction = fmt.max_code & ((1 << fraction_bits) - 1)
            largest = (fraction | 1 << fraction_bits) << (_FRACTION_BITS - fraction_bits)
            return largest + 1
        case "even":  # half a step below 2 is a tie, and 2 is even
            return (1 << (_FRACTION_BITS + 1)) - (1 << (_FRACTION_BITS - 1 - fraction_bits))


@checked
def float_scales(amax: Float32[Array, "..."], scheme: Scheme) -> Float32[Array, "..."]:
    """Return `amax / largest code`, rounded to fp32 and then to the format of scales (RNE).

    Raises:
        LpuError: a scheme with other scales.

    Fidelity:
        Two roundings; a scale format that ends below saturates.
    """
    if scheme.scale_format is None or not scheme.has_float_scales:
        raise LpuError(
            f"blocks.float_scales: scheme {scheme.name} was given; its scales must be of a "
            "floating point format."
        )
    scales = div(amax, jnp.full_like(amax, scheme.format.max_value))
    return scales if scheme.scale_format == FP32 else round_to(scales, scheme.scale_format)


@checked
def finite_amax(maxima: Int32[Array, "..."]) -> Float32[Array, "..."]:
    """Return largest magnitudes as numbers: NaN for infinity, 0 below `SMALLEST_AMAX`."""
    amax = lax.bitcast_convert_type(maxima, jnp.float32)
    amax = jnp.where(amax < SMALLEST_AMAX, jnp.float32(0), amax)
    return jnp.where(maxima >= _INF_BITS, jnp.float32(jnp.nan), amax)
