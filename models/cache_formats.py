"""Formats of cached keys, values and latents, and of partial sums on their way between chips.

Each is a word of a policy's name. Holds no arrays: how entries of a cache are made and read is in
`layers.caching`, how partial sums cross in `layers.linear`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from lpu_jax.numerics.formats import E4M3FN, FP32
from lpu_jax.numerics.schemes import MXFP8_E4M3, NVFP4, Scheme

#: Format of cached keys and values. `fp8` is e4m3fn, saturating, under one scale of all tensors
#: (`Policy.cache_scale`): 1 is what a serving engine takes for a checkpoint without any.
CacheFormat = Literal["base", "fp8", "fp8-head", "mxfp8", "nvfp4"]
#: Format in which partial sums cross chips to be added.
WireFormat = Literal["base", "bf16", "fp8", "fp32", "exact"]


def _fp8_head(width: int) -> Scheme:
    """Return the scheme of a head's vector: e4m3 codes and one fp32 scale.

    Source: the scale `amax / 448` of each token and head, found as it is written, is that of
    serving engines' dynamic quantisation per token and head; fp32 is assumed.
    """
    return Scheme(name="fp8-head", format=E4M3FN, block_rows=width, scale_format=FP32)


#: NVFP4 without the scale of a whole tensor, which a growing cache does not have. Source: the
#: latents of vLLM's `nvfp4_ds_mla` caches, e2m1 with one e4m3 scale `amax / 6` for 16 values.
_NVFP4_CACHE = replace(NVFP4, name="nvfp4-cache", is_two_level=False)

#: Codes under a scale of the whole tensor that is not 1.
FP8_TENSOR = Scheme(name="fp8-tensor", format=E4M3FN, block_columns=None, scale_format=FP32)

_SCHEMES: Mapping[CacheFormat, Callable[[int], Scheme]] = MappingProxyType(
    {
        "fp8-head": _fp8_head,
        "mxfp8": lambda width: MXFP8_E4M3,
        "nvfp4": lambda width: _NVFP4_CACHE,
    }
)


def cache_scheme(cache: CacheFormat, width: int) -> Scheme | None:
    """Return codes and scales of cached vectors.

    Args:
        cache: the format.
        width: values of a vector: those of a head, or of a latent and what is rotated beside it.

    Returns:
        The scheme, its blocks within one vector; None for a format without scales.
    """
    make = _SCHEMES.get(cache)
    return None if make is None else make(width)


def stored_bits(scheme: Scheme, width: int) -> float:
    """Return the bits of a cached value with its share of the scales of its vector."""
    assert scheme.scale_format is not None
    n_scales = -(-width // scheme.row_granule)
    return scheme.format.bits + scheme.scale_format.bits * n_scales / width
