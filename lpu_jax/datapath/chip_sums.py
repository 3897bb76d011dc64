"""The orders in which chips add, as functions of what all of them hold: the sums of `c2c`.

Chip by chip within each level, round a ring, by a binary tree, or without any rounding. Not
modelled: which chip adds what; a link schedule says what travels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ..numerics import elementary, rounding, wide
from ..numerics.formats import BF16
from ..numerics.quantized import dequantize, quantize
from ..numerics.schemes import MXFP8_E4M3
from .axis import steps_of

#: How partial sums of chips are added. `chips`: in fp32 by ascending number within each level, or
#: in the order that the algorithm has of its own; `tree`: in fp32, neighbours first; `whole`:
#: whole numbers; `wide`: wide numbers.
Sums = Literal["chips", "tree", "whole", "wide"]


#: Formats of values in fp32 on their way; all else crosses in the type of the operand.
WireFormat = Literal["bf16", "fp8"]
#: Rounds sums to what crosses the links.
Rounded = Callable[[Array], Array]


def to_wire(x: Array, wire: WireFormat) -> Array:
    """Round fp32 numbers to the values of a format; bf16 overflows to infinity.

    `fp8` has a scale for each 32 values of the last axis, those of MXFP8. By integer arithmetic: a
    compiler may drop a conversion to bf16 and back.
    """
    if wire == "fp8":
        rows = x.reshape(-1, x.shape[-1])
        return dequantize(quantize(rows, MXFP8_E4M3, axis=-1)).reshape(x.shape)
    return rounding.round_to(x, BF16, overflow="ieee")


def _rounded_to(dtype: Any, wire: WireFormat | None) -> Rounded:
    if wire is not None:
        return lambda x: to_wire(x, wire)
    return lambda x: rounding.to_fp16(x) if dtype == jnp.float16 else x.astype(dtype)


def total(
    parts: Array,
    *,
    sums: Sums,
    tiers: tuple[int, ...],
    algorithm: str,
    wire: WireFormat | None = None,
) -> Array:
    """Add what all chips hold, `[n, ...]`, for every chip."""
    if parts.shape[0] == 1:
        return parts[0]
    match sums:
        case "tree":
            return elementary.sum_tree(parts)
        case "whole":
            added: Array = parts.sum(0, dtype=parts.dtype)
            return added
        case "wide":
            return wide.sum_leading(parts)
    own_order = OWN_ORDERS.get(steps_of(algorithm))
    to = _rounded_to(parts.dtype, wire)
    return _tiered_sum(parts, tiers, to) if own_order is None else own_order.whole(parts, to)


def share_totals(
    parts: Array,
    *,
    sums: Sums,
    tiers: tuple[int, ...],
    algorithm: str,
    dim: int,
    wire: WireFormat | None = None,
) -> Array:
    """Add what all chips hold: share i of `dim` (negative) for chip i, `[n, ..., c, ...]`."""
    own_order = OWN_ORDERS.get(steps_of(algorithm))
    n_chips = parts.shape[0]
    if own_order is not None and sums == "chips" and n_chips > 1:
        return own_order.shares(parts, dim, _rounded_to(parts.dtype, wire))
    whole = total(parts, sums=sums, tiers=tiers, algorithm=algorithm, wire=wire)
    return cut(whole, n_chips, dim)


def _ordered_sum(parts: Array, to: Rounded, axis: int = 0) -> Array:
    """Add parts in ascending order in fp32."""
    parts = jnp.moveaxis(parts, axis, 0).astype(jnp.float32)
    return to(elementary.sum_chips(parts))


def _tiered_sum(parts: Array, tiers: tuple[int, ...], to: Rounded) -> Array:
    n_chips = parts.shape[0]
    if n_chips == 1:
        return parts[0]
    if not tiers or n_chips <= tiers[0]:
        return _ordered_sum(parts, to)
    # All whole runs in one scan: a scan for each run would take long to compile.
    n_whole = n_chips // tiers[0]
    whole = parts[: n_whole * tiers[0]].reshape(n_whole, tiers[0], *parts.shape[1:])
    runs = _ordered_sum(whole, to, axis=1)
    if n_chips % tiers[0]:
        rest = _tiered_sum(parts[n_whole * tiers[0] :], (), to)
        runs = jnp.concatenate([runs, rest[None]])
    return _tiered_sum(runs, tuple(level // tiers[0] for level in tiers[1:]), to)


def _ring_sums(parts: Array, dim: int, to: Rounded) -> Array:
    """Sum share i of `dim` (negative) from chip i + 1 all the way round: `[n, ..., c, ...]`."""
    n_chips = parts.shape[0]
    shares = cut(parts, n_chips, dim)  # [share, chip, ...]
    share, hop_number = np.meshgrid(np.arange(n_chips), np.arange(n_chips))
    hops = shares[share, (share + 1 + hop_number) % n_chips]  # [hop, share, ...]

    def hop(total: Array, own: Array) -> tuple[Array, None]:
        return _ordered_sum(jnp.stack([total, own]), to), None

    total: Array = lax.scan(hop, hops[0], hops[1:])[0]
    return total


def _ring_sum(parts: Array, to: Rounded) -> Array:
    """Sum as a ring does: the last dimension is cut into one share per chip.

    Share i starts at chip i + 1 and travels round to chip i; each chip on the way adds its own in
    fp32 and rounds to what crosses the links. The last shares may be shorter.
    """
    if parts.ndim == 1:
        return _ring_sum(parts[:, None], to)[0]
    length = parts.shape[-1]
    padding = [(0, 0)] * (parts.ndim - 1) + [(0, -length % parts.shape[0])]
    return laid_out(_ring_sums(jnp.pad(parts, padding), -1, to), -1)[..., :length]


@dataclass(frozen=True)
class SumOrder:
    """An order of summation among the chips of a node, as functions of what all chips hold.

    `whole` sums `[n, ...]`; `shares` sums share i of a dimension for chip i, `[n, ..., c, ...]`.
    """

    whole: Callable[[Array, Rounded], Array]
    shares: Callable[[Array, int, Rounded], Array]


#: By algorithm: those that do not add chip by chip within each level, as all others do.
OWN_ORDERS: Mapping[str, SumOrder] = MappingProxyType(
    {"ring": SumOrder(whole=_ring_sum, shares=_ring_sums)}
)


def cut(x: Array, n_shares: int, dim: int) -> Array:
    """Cut `dim` (negative) into shares, put in front: `[..., n c, ...] -> [n, ..., c, ...]`."""
    at = x.ndim + dim
    x = x.reshape(*x.shape[:at], n_shares, -1, *x.shape[at + 1 :])
    return jnp.moveaxis(x, at, 0)


def laid_out(parts: Array, dim: int) -> Array:
    """Undo `cut`: `[n, ..., c, ...] -> [..., n c, ...]`."""
    at = parts.ndim - 1 + dim
    x = jnp.moveaxis(parts, 0, at)
    return x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])
