"""Entries of a cache: made in its format, turned into its layout, and read from it.

An entry is an array, or codes and scales (`QuantizedArray`) with blocks along the vector of one
token and head. Scales are those of that vector alone, so that no split and no earlier or later
token changes a bit of them. Codes and scales have the same dimensions but the last one of a new
entry, so that whatever turns, writes or reads the one does the same to the other.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Num

from lpu_jax.datapath import block_scales, sparse, sxm, vxm
from lpu_jax.numerics.quantized import QuantizedArray

from ..cache_formats import FP8_TENSOR, cache_scheme
from ..policy import Policy
from .linear import narrowed

#: New entries or a whole cache: values, or codes with their scales.
Entries = Array | QuantizedArray


def cached(x: Float32[Array, "*rows n"], policy: Policy) -> Entries:
    """Round vectors to the format of the cache.

    Args:
        x: vectors along the last axis, each of one token and head.
        policy: the format.

    Returns:
        Values; for a format with scales codes and scales, with blocks along axis -1.

    Fidelity: that of `bare`; with scales that of `block_scales.quantize_rows`.
    """
    scheme = cache_scheme(policy.cache, x.shape[-1])
    return bare(x, policy) if scheme is None else block_scales.quantize_rows(x, scheme)


def bare(x: Float32[Array, "..."], policy: Policy) -> Float[Array, "..."]:
    """Round to the format of a cache whose vectors have no scales: e4m3, or the base format.

    Fidelity: one rounding (RNE): e4m3 saturates, else as `narrowed`; before it a division by the
        scale of all tensors, unless that is 1.
    """
    if policy.cache != "fp8":
        return narrowed(x, policy)
    return vxm.to_fp8(x if policy.cache_scale == 1 else vxm.div(x, policy.cache_scale))


def as_read(entries: Entries, policy: Policy) -> Entries:
    """Give a cache to the matrix unit: codes under the scale of all tensors with that scale."""
    if isinstance(entries, QuantizedArray) or policy.cache != "fp8" or policy.cache_scale == 1:
        return entries
    one = jnp.full((1,) * entries.ndim, policy.cache_scale, jnp.float32)
    scales = jnp.broadcast_to(one, (*entries.shape[:-2], 1, 1))
    return QuantizedArray(codes=entries, scales=scales, scheme=FP8_TENSOR)


def of_each(change: Callable[[Array], Array], entries: Entries) -> Entries:
    """Do the same to values, or to codes and scales."""
    found: Entries = jax.tree.map(change, entries)
    return found


def turned(entries: Entries, pattern: str, **lengths: Any) -> Entries:
    """Turn vectors into columns: an einops pattern that changes the places of the last two axes.

    Args:
        entries: new ones, vectors along the last axis.
        pattern: as for `sxm.rearrange`; the last axis on the left is the vector, and the last but
            one on the right.
        **lengths: of all axes but the vector.
    """
    vector = pattern.split("->")[0].split()[-1]
    found = of_each(
        lambda x: sxm.rearrange(x, pattern, **lengths, **{vector: x.shape[-1]}), entries
    )
    return replace(found, axis=-2) if isinstance(found, QuantizedArray) else found


def in_groups(entries: Entries, *lead: Any) -> Entries:
    """Give entries other leading dimensions: a reshape, free."""
    return of_each(lambda x: x.reshape(*lead, *x.shape[-2:]), entries)


def gathered(rows: Entries, addresses: Int32[Array, "b t k"], n_sequences: Any) -> Entries:
    """Read vectors by address, `[b, ..., s, n] -> [m, k, n]`; scales have addresses of their own.

    Args:
        rows: a cache of rows.
        addresses: of each sequence, or head.
        n_sequences: of these.
    """
    m, k = n_sequences * addresses.shape[1], addresses.shape[2]

    def read(x: Num[Array, "..."]) -> Num[Array, "m k n"]:
        found: Array = sparse.gather(x.reshape(n_sequences, *x.shape[-2:]), addresses)
        return found.reshape(m, k, x.shape[-1])

    return of_each(read, rows)


def first_columns(entries: Entries, n: int) -> Entries:
    """Keep the first values of vectors, and the scales of the blocks that have them."""
    if not isinstance(entries, QuantizedArray):
        found: Array = sxm.keep_columns(entries, n)
        return found
    n_scales = -(-n // entries.scheme.row_granule)
    return replace(
        entries,
        codes=sxm.keep_columns(entries.codes, n),
        scales=sxm.keep_columns(entries.scales, n_scales),
    )
