"""Rows with scales, made on the vector unit: what caches with narrow values are written from.

What it computes: `numerics.quantized.quantize` along the last axis. What it costs: the largest
magnitude of each block, folded within its lanes, a scale for each block, a division and a
conversion of each value. Not modelled: codes of fewer than eight bits in streams and in live
values, which are of bytes (assumed); they are packed where they lie in a cache.
"""

import math
from typing import Any

import jax
from jaxtyping import Array, Float32

from ..arguments import checked
from ..errors import LpuError
from ..numerics.quantized import QuantizedArray, quantize
from ..numerics.schemes import Scheme
from .alu import ALU
from .primitive import primitive
from .work import Call, Hardware, Unit, Work, ceil, largest, vectors


def _shapes(x: Any, *, scheme: Scheme) -> tuple[Any, Any]:
    return (
        jax.ShapeDtypeStruct(x.shape, scheme.code_dtype),
        jax.ShapeDtypeStruct(scheme.scales_shape(x.shape, -1), scheme.scale_dtype),
    )


def _meaning(x: Array, *, scheme: Scheme) -> tuple[Array, Array]:
    made = quantize(x.reshape(-1, x.shape[-1]), scheme, axis=-1)
    return made.codes.reshape(x.shape), made.scales.reshape(*x.shape[:-1], -1)


def quantize_cost(machine: Hardware, call: Call) -> Work:
    """Cost the fold of every vector's blocks, and the ALUs of what each value passes then.

    A fold takes the larger of a lane and of one half a block away, and so on, over two hemispheres,
    as in `vxm.lane_fold_cycles`; comparisons hide behind rotations. Then all lanes of a block have
    its maximum, and each makes the scale and its own code (assumed): a magnitude, a product, a
    conversion, and the value's quotient and conversion.
    """
    chip = machine.chip
    (x,) = call.operands
    block = call.params["scheme"].block_rows or x.shape[-1]
    n_vectors = vectors(x, chip)
    fold = math.ceil(math.log2(block)) * (chip.lane_rotate_cycles + ceil(n_vectors / 2) - 1)
    division = ALU["div"]
    roots = sum(chip.special_passes(name) for name in division.special)
    operations = 4 + division.operations + roots
    limits = {
        "ALUs": n_vectors * operations / chip.vxm_alus_per_lane,
        "large ALUs": n_vectors * roots / chip.vxm_large_alus_per_lane,
        "streams in": n_vectors / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=fold + largest(*limits.values()),
        limits={**limits, "lane fold": fold},
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * operations,
    )


_quantize_rows = primitive(
    "vxm_quantize_rows", abstract=_shapes, meaning=_meaning, cost=quantize_cost
)


@checked
def quantize_rows(x: Float32[Array, "*rows n"], scheme: Scheme) -> QuantizedArray:
    """Round rows to codes with a scale for each block of a row.

    Args:
        x: rows; blocks run along the last axis, and no row shares a scale with another.
        scheme: of one level, with scales for blocks of a row alone.

    Returns:
        Codes and scales, with blocks along axis -1.

    Raises:
        LpuError: another scheme.

    Fidelity:
        That of `quantized.quantize`: floating point scales are rounded once to fp32 and once to
        their own format, and so are quotients; powers of two are exact, codes are rounded once.

    Source:
        That the vector unit finds scales as it writes is assumed.
    """
    if scheme.scale_format is None or scheme.is_two_level or scheme.block_columns != 1:
        raise LpuError(
            f"block_scales.quantize_rows: scheme {scheme.name} was given; it must have scales of "
            "blocks of one row, and none of a whole matrix."
        )
    codes, scales = _quantize_rows(x, scheme=scheme)
    return QuantizedArray(codes=codes, scales=scales, scheme=scheme, axis=-1)
