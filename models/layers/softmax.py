"""Softmax attention over a cache that is the stationary operand of the matrix unit.

Per-chip: the caller lays rows out in groups that share keys and values. Where the positions of a
context are split over chips, each attends to its own and the results are merged. Not modelled:
softmax in pieces of one chip's positions (the scores of a step are held whole).
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from lpu_jax.datapath import c2c, masks, mem, sxm, vxm
from lpu_jax.datapath.axis import Axis

from ..policy import Policy
from .caching import Entries, as_read, of_each
from .linear import capped, multiplied, narrowed

#: Stands for the largest score of a row that sees no key of a chip.
_LOWEST = float(np.finfo(np.float32).min)

Cache = dict[str, Entries]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Which positions a chip's cache holds; by default all of them, from 0."""

    #: position of the first one: one number for a run of positions, one per sequence for a ring
    first: Int32[Array, " keys_from"] | None = None
    window: int | None = None  #: the cache is a ring, of which a query sees so many positions
    is_chunked: bool = False  #: it sees those from the last multiple of the window on instead
    context: Axis | None = None  #: the cache is a run of positions; these chips hold the others
    #: what attention reads are the entries at these addresses of each group, -1 for none
    addresses: Int32[Array, "groups s"] | None = None

    @staticmethod
    def of(
        positions: Int32[Array, " b"],
        n_positions: Any,
        *,
        window: int | None,
        is_chunked: bool = False,
        first: Int32[Array, " 1"] | None,
        context: Axis,
    ) -> "Held":
        """Describe a chip's cache.

        Args:
            positions: position of the first new token of each of its sequences.
            n_positions: how many positions of a sequence it holds.
            window: of a sliding layer.
            is_chunked: as in `GqaConfig`.
            first: first position it holds, where chips share the positions out.
            context: these chips.
        """
        if window is not None:
            start = mem.ring_start(positions, window=window, n_positions=n_positions)
            return Held(first=start, window=window, is_chunked=is_chunked)
        return Held() if first is None else Held(first=first, context=context)

    def append(
        self,
        cache: Entries,
        new: Entries,
        positions: Int32[Array, " b"],
        axis: int,
    ) -> tuple[Entries, Entries]:
        """Write new entries along an axis; return the cache, and what attention reads of it."""

        def written(cache: Array, new: Array) -> Array:
            if self.window is not None:
                return mem.append_ring(cache, new, positions, axis=axis)
            if self.first is not None:
                return mem.append_run(cache, new, positions, self.first, axis=axis)
            return mem.append(cache, new, positions, axis=axis)

        first, cache = self.first, jax.tree.map(written, cache, new)
        if self.window is None or first is None:
            return cache, cache
        return cache, of_each(lambda x: mem.ring_view(x, first, axis=axis), cache)


def attend(
    q: Float[Array, "groups rows h"],
    keys: Entries,
    values: Entries,
    positions: Int32[Array, " b"],
    n_new: Any,
    policy: Policy,
    *,
    held: Held,
    sinks: Float32[Array, "groups rows 1"] | None = None,
    cap: float | None = None,
) -> Float32[Array, "groups rows v"]:
    """Softmax attention of each group of rows over its own context; `q` is already scaled.

    Args:
        q: rows; row `r` of a group is new token `r % n_new`.
        keys: of the positions that are held, `[groups, h, s]`.
        values: likewise, `[groups, s, v]`.
        positions: position of the first new token of each sequence.
        n_new: new tokens per sequence.
        policy: formats, and how products are made.
        held: which positions these are.
        sinks: a logit of each row that takes part in the softmax without a value.
        cap: keeps scores, not sinks, within it; see `capped`.

    Fidelity:
        Approximate, order-dependent; a longer allocated context changes no bit, because masked keys
        contribute exact zeros and the vectors and K tiles of sums over keys start at multiples of
        320 positions. A sink is added last to the sum of the exponentials. A split of the positions
        moves roundings: see `_merged`.
    """
    keys, values = as_read(keys, policy), as_read(values, policy)
    scores = capped(multiplied(q, keys, policy), cap)
    if held.addresses is not None:
        scores = masks.address_mask(scores, held.addresses)
    elif held.first is None:
        scores = masks.causal_mask(scores, positions, n_new)
    else:
        scores = masks.key_mask(scores, positions, held.first, n_new, held.window, held.is_chunked)
    if held.context is not None:
        return _merged(scores, values, policy, held.context, sinks)
    largest = vxm.max_lanes(scores)
    if sinks is not None:
        largest = vxm.maximum(largest, sinks)
    weights = vxm.exp(vxm.sub(scores, largest))
    total = vxm.sum_lanes(weights)
    if sinks is not None:
        total = vxm.add(total, vxm.exp(vxm.sub(sinks, largest)))
    return vxm.div(multiplied(narrowed(weights, policy), values, policy), total)


def _merged(
    scores: Float32[Array, "groups rows s"],
    values: Entries,
    policy: Policy,
    context: Axis,
    sinks: Float32[Array, "groups rows 1"] | None,
) -> Float32[Array, "groups rows v"]:
    """Attend to a chip's own positions, then join the chips' results by log-sum-exp.

    Each chip sends its normalised result in the base format and, in fp32, its largest score and the
    sum of its exponentials. Every chip of the axis merges all of them: with `w` the sum times the
    exponential of the distance to the largest score of all, it adds `w * result` and `w`, each in
    fp32 in ascending chip order from +0, a sink's exponential last, and divides.

    Fidelity:
        Order-dependent; a chip without a key that a row sees adds exact zeros. Where one chip holds
        all keys, the result rounded to fp16 is that of a context that is not split, but with sinks.
    """
    # A finite floor: where no key is seen, exponentials and their sum are exact zeros, not NaN.
    largest = vxm.maximum(vxm.max_lanes(scores), _LOWEST)
    weights = vxm.exp(vxm.sub(scores, largest))
    total = vxm.sum_lanes(weights)
    mixed = multiplied(narrowed(weights, policy), values, policy)
    # The largest score alone adds 1, so a sum below 1 is that of no key: nothing else changes.
    mixed = narrowed(vxm.div(mixed, vxm.maximum(total, 1.0)), policy)

    mixed = c2c.all_gather(mixed.reshape(1, *mixed.shape), context, dim=-4)
    sums = sxm.join(largest, total)
    sums = c2c.all_gather(sums.reshape(1, *sums.shape), context, dim=-4)
    largest, total = sxm.split(sums, (1, 1))
    overall = vxm.max_leading(largest)
    if sinks is not None:
        overall = vxm.maximum(overall, sinks)
    share = vxm.mul(total, vxm.exp(vxm.sub(largest, overall.reshape(1, *overall.shape))))
    whole = vxm.sum_leading(share)
    if sinks is not None:
        whole = vxm.add(whole, vxm.exp(vxm.sub(sinks, overall)))
    return vxm.div(vxm.sum_leading(vxm.mul(vxm.to_fp32(mixed), share)), whole)
