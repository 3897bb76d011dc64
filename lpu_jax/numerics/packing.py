"""Two 4-bit codes per byte, and MXFP4 weights as gpt-oss checkpoints store them.

Only layout: no value changes. Not modelled: codes of 6 bits, which no released checkpoint packs,
and the layouts of other kernels.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, UInt8

from ..errors import LpuError
from .quantized import QuantizedArray
from .schemes import MXFP4

_BLOCK_BYTES = 16


def packed(codes: UInt8[Array, "*batch k"]) -> UInt8[Array, "*batch bytes"]:
    """Put two 4-bit codes into each byte, the earlier one into the low half.

    Raises:
        LpuError: an odd number of codes.
    """
    if codes.shape[-1] % 2:
        raise LpuError(
            f"packed: {codes.shape[-1]} codes were given; two fit a byte, so the number must be "
            "even."
        )
    low, high = codes[..., 0::2], codes[..., 1::2]
    both: Array = low & jnp.uint8(0xF) | high << jnp.uint8(4)
    return both


def unpacked(packed_codes: UInt8[Array, "*batch bytes"]) -> UInt8[Array, "*batch k"]:
    """Take two 4-bit codes out of each byte, the low half first."""
    halves = jnp.stack([packed_codes & jnp.uint8(0xF), packed_codes >> jnp.uint8(4)], axis=-1)
    return halves.reshape(*packed_codes.shape[:-1], -1)  # [.., bytes, 2] -> [.., k]


def from_gpt_oss(blocks: UInt8[Array, "..."], scales: UInt8[Array, "..."]) -> QuantizedArray:
    """Take MXFP4 weights out of the arrays `*_blocks` and `*_scales` of a gpt-oss checkpoint.

    Args:
        blocks: `[*batch, n, groups, 16]`: 32 fp4 codes along the contraction in 16 bytes, the low
            half of a byte first.
        scales: `[*batch, n, groups]`: E8M0 codes, exponents biased by 127.

    Returns:
        Weights `[*batch, k, n]`, `k = 32 * groups`, with blocks along axis -2.

    Raises:
        LpuError: the arrays do not describe the same blocks.

    Fidelity:
        Exact: the codes themselves.

    Source:
        openai/gpt-oss, `gpt_oss/torch/weights.py`: a table of fp4 values by code, the low half of
        a byte first, `ldexp` with `scales - 127`.
    """
    if blocks.shape[-1] != _BLOCK_BYTES or blocks.shape[:-1] != scales.shape:
        raise LpuError(
            f"from_gpt_oss: blocks {blocks.shape} and scales {scales.shape} were given; allowed "
            "are [..., n, groups, 16] and [..., n, groups]."
        )
    codes = unpacked(blocks.reshape(*scales.shape[:-1], -1))  # [.., n, g, 16] -> [.., n, k]
    return QuantizedArray(codes=codes.mT, scales=scales.mT, scheme=MXFP4)


def to_gpt_oss(
    q: QuantizedArray,
) -> tuple[UInt8[Array, "*batch n groups 16"], UInt8[Array, "*batch n groups"]]:
    """Lay out MXFP4 weights as a gpt-oss checkpoint does; the inverse of `from_gpt_oss`.

    Raises:
        LpuError: the array is not MXFP4 with whole blocks along axis -2.

    Fidelity:
        Exact: the codes themselves.
    """
    same_layout = replace(q.scheme, name=MXFP4.name, rule=MXFP4.rule) == MXFP4
    if not same_layout or q.axis != -2 or q.codes.shape[-2] % (2 * _BLOCK_BYTES):
        raise LpuError(
            f"to_gpt_oss: {q.codes.shape} of scheme {q.scheme.name} along axis {q.axis} was given; "
            "allowed is mxfp4 along axis -2 with a multiple of 32 rows."
        )
    scales = q.scales.mT
    return packed(q.codes.mT).reshape(*scales.shape, _BLOCK_BYTES), scales
