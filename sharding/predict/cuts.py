"""A chain of blocks cut into stages: between any two blocks, so that the rate of all is highest.

The period between two micro-batches is that of the slowest stage and its hand-over, or the way of a
token shared among the micro-batches in flight, whichever is longer. More in flight need room for
more caches, which moves the cuts away from those of equal time; a period therefore decides how many
are in flight, and whether a cut for it exists. Of cuts for the shortest period the one whose
fullest stage holds least is taken. Stages are filled in order: no other filling needs fewer.

Caches may lie in DRAM beside the chips, and then take room there and none in them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.datapath.work import Quantity

Blocks = Float[np.ndarray, "blocks plans"]
Numbers = Float[np.ndarray, " plans"]
Stages = Int[np.ndarray, "blocks plans"]
#: Numbers of plans.
Rows = Int[np.ndarray, " some"]

#: Searches for a number end at one part in so many.
_PRECISION = 1e-9
#: What rounding may add to a sum.
_SLACK = 1 + 1e-12


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """A chain of blocks cut into stages; one entry per plan."""

    stage_of_block: Stages
    fullest_bytes: Numbers  #: weights, and the cache of one micro-batch, of the fullest stage
    fullest_stage_cache_bytes: Numbers  #: the cache part of these
    least_bytes: Numbers  #: what the fullest stage holds if stages are cut by bytes alone
    slowest_cycles: Numbers
    cached_batches: Numbers  #: micro-batches whose caches fit
    dram_bytes: Numbers  #: cache in DRAM of one micro-batch, of the stage with most of it


@dataclass(frozen=True)
class Chain:
    """What the blocks of plans take, in order, and what is to be made of them."""

    cycles: Blocks
    held_bytes: Blocks  #: weights, and the cache of one micro-batch
    cache_bytes: Blocks
    n_stages: Int[np.ndarray, " plans"]
    room_bytes: Numbers  #: what a chip has for weights and caches
    latency_cycles: Numbers  #: of a token through all stages
    hop_cycles: Numbers  #: of the slowest hand-over between stages
    most_in_flight: Int[np.ndarray, " plans"]  #: micro-batches that find something to do
    dram_bytes: Blocks  #: cache of one micro-batch in DRAM beside a chip
    dram_room_bytes: Numbers  #: DRAM that a chip has; infinite where no cache lies there

    @staticmethod
    def of(
        weights: Sequence[Quantity],
        cache: Sequence[Quantity],
        cycles: Sequence[Quantity],
        n_stages: Int[np.ndarray, " plans"],
        *,
        room_bytes: Numbers | float,
        latency_cycles: Numbers,
        hop_cycles: Numbers,
        most_in_flight: Int[np.ndarray, " plans"] | None = None,
        dram_cache: Sequence[Quantity] = (),
        dram_room_bytes: float = math.inf,
    ) -> "Chain":
        """Take what each block holds and takes, a number or one per plan; fields as named.

        As many micro-batches as there are stages find something to do, unless it is said. No block
        has a cache in DRAM, unless all say what.
        """
        plans = n_stages.shape

        def columns(part: Sequence[Quantity]) -> Blocks:
            # Most chains have many blocks of few kinds.
            row = {key: i for i, key in enumerate(dict.fromkeys(map(id, part)))}
            distinct = {id(x): x for x in part}
            numbers = np.empty((len(row), *plans))
            for key, i in row.items():
                numbers[i] = distinct[key]
            return numbers[[row[id(x)] for x in part]]

        kept = columns(cache)
        return Chain(
            columns(cycles),
            columns(weights) + kept,
            kept,
            n_stages,
            np.broadcast_to(np.asarray(room_bytes, np.float64), plans),
            latency_cycles,
            np.broadcast_to(np.asarray(hop_cycles, np.float64), plans),
            n_stages if most_in_flight is None else most_in_flight,
            columns(dram_cache) if len(dram_cache) else np.zeros_like(kept),
            np.full(plans, dram_room_bytes),
        )

    def take(self, rows: Bool[np.ndarray, " plans"] | Int[np.ndarray, " plans"]) -> "Chain":
        """Keep some plans."""
        return Chain(*(getattr(self, one.name)[..., rows] for one in fields(self)))

    @cached_property
    def fits(self) -> Bool[np.ndarray, " plans"]:
        """Whether it can be cut so that each stage's chips have room."""
        return np.asarray(self._has_dram & self._enough(self._by_bytes(self.room_bytes)))

    @cached_property
    def _has_dram(self) -> Bool[np.ndarray, " plans"]:
        """Whether DRAM has room for the caches of one micro-batch under some cut."""
        if not self._has_limit_in_dram:
            return np.ones(len(self.n_stages), bool)
        return self._enough(_fill([(self.dram_bytes, self.dram_room_bytes)]))

    @property
    def _has_limit_in_dram(self) -> bool:
        return bool(np.isfinite(self.dram_room_bytes).any())

    def _in_dram(self, flying: Numbers | float) -> list[tuple[Blocks, Numbers]]:
        """What a stage may hold in DRAM; what has no room there even once has no limit."""
        if not self._has_limit_in_dram:
            return []
        room = np.where(self._has_dram, self.dram_room_bytes, np.inf)
        return [(flying * self.dram_bytes, room)]

    @cached_property
    def least_period(self) -> Numbers:
        """Bound the period: the longest block, equal stages, as many in flight as have room."""
        held, kept = self.held_bytes.sum(0), self.cache_bytes.sum(0)
        spare = self.n_stages * self.room_bytes - held
        more = np.where(kept > 0, np.floor(spare / np.maximum(kept, 1)), np.inf)
        beside = self.dram_bytes.sum(0)
        batches = np.floor(self.n_stages * self.dram_room_bytes / np.maximum(beside, 1))
        flying = np.clip(np.minimum(1 + more, batches), 1, self.most_in_flight)
        slowest = np.maximum(self.cycles.max(0), self.cycles.sum(0) / self.n_stages)
        return np.asarray(np.maximum(slowest + self.hop_cycles, self.latency_cycles / flying))

    def allows(self, period: Numbers) -> Bool[np.ndarray, " plans"]:
        """Say whether a cut of a plan that fits has a period no longer than this."""
        return np.asarray((period >= self.least_period) & self._enough(self._by_time(period)))

    @cached_property
    def shortest_period(self) -> Numbers:
        """The shortest period of plans that fit, to one part in 10^9."""
        longest = self.longest_period
        return self._smallest(
            lambda period, rows: self.take(rows)._by_time(period),
            np.minimum(self.least_period, longest),
            longest,
        )

    @cached_property
    def _balanced(self) -> Stages:
        """The cut with the least in the fullest stage: in DRAM, where it has too little room."""
        balanced = self._least(self.held_bytes, lambda most, rows: self.take(rows)._by_bytes(most))
        if self._has_dram.all():
            return balanced
        in_dram = self._least(
            self.dram_bytes, lambda most, rows: _fill([(self.dram_bytes[:, rows], most)])
        )
        return np.where(self._has_dram, balanced, in_dram)

    def _least(self, held: Blocks, fill: "_Fill") -> Stages:
        """Find the cut whose fullest stage holds least of something."""
        low = np.maximum(held.max(0), held.sum(0) / self.n_stages)
        return fill(self._smallest(fill, low, held.sum(0)), np.arange(len(low))).stage

    @cached_property
    def least_bytes(self) -> Numbers:
        """What the fullest stage holds if stages are cut by bytes alone."""
        return np.asarray(stage_sums(self.held_bytes, self._balanced).max(0))

    @property
    def longest_period(self) -> Numbers:
        """Bound the shortest period of plans that fit from above."""
        return np.asarray(np.maximum(self.latency_cycles, self.hop_cycles + self.cycles.sum(0)))

    def cut(self, at_least: Numbers | float = 0.0) -> Cuts:
        """Cut for the shortest period and then the shortest slowest stage.

        What does not fit is cut with the least in the fullest stage.

        Args:
            at_least: a period that something else does not let plans fall below.
        """
        held, cycles, balanced = self.held_bytes, self.cycles, self._balanced
        least_bytes = self.least_bytes
        fits = self._has_dram & (least_bytes <= self.room_bytes)
        stage = balanced
        if fits.any():
            stage = balanced.copy()
            longest = np.broadcast_to(at_least, fits.shape)[fits]
            stage[:, fits] = self.take(fits)._least_full(least_bytes[fits], longest)
        stage = np.maximum(stage, self._latest)
        by_stage, cache_by_stage = stage_sums(held, stage), stage_sums(self.cache_bytes, stage)
        fullest = by_stage.argmax(0), np.arange(len(fits))
        spare = self.room_bytes - by_stage
        more = np.where(cache_by_stage > 0, spare / np.maximum(cache_by_stage, 1), np.inf).min(0)
        dram_bytes = stage_sums(self.dram_bytes, stage).max(0)
        more = np.minimum(more, self.dram_room_bytes / np.maximum(dram_bytes, 1) - 1)
        return Cuts(
            stage_of_block=stage,
            fullest_bytes=by_stage[fullest],
            fullest_stage_cache_bytes=cache_by_stage[fullest],
            least_bytes=least_bytes,
            slowest_cycles=stage_sums(cycles, stage).max(0),
            cached_batches=1 + np.where(fits, np.minimum(np.floor(more), 1 << 30), 0.0),
            dram_bytes=dram_bytes,
        )

    def _least_full(self, least_bytes: Numbers, at_least: Numbers) -> Stages:
        """Of the cuts with the shortest period of plans that fit, choose one.

        A period may be long for want of micro-batches in flight; a prompt's chunks wait for the
        slowest stage alone, so that it is made as short as so many in flight allow. Of these cuts
        the least full is taken.
        """
        period = np.maximum(self.shortest_period, at_least)
        by_time, *in_flight = self._limits(period)

        def filled(most: Numbers, rows: Rows) -> "_Filling":
            return _fill([(self.cycles[:, rows], most), *_some(in_flight, rows)])

        shortest = np.maximum(self.cycles.max(0), self.cycles.sum(0) / self.n_stages)
        slowest = self._smallest(filled, np.minimum(shortest, by_time[1]), by_time[1])

        def held(most: Numbers, rows: Rows) -> "_Filling":
            others = _some([(self.cycles, slowest), *in_flight], rows)
            return _fill([(self.held_bytes[:, rows], most), *others])

        every = np.arange(len(slowest))
        most = stage_sums(self.held_bytes, filled(slowest, every).stage).max(0)
        return held(self._smallest(held, np.minimum(least_bytes, most), most), every).stage

    @property
    def _latest(self) -> Stages:
        """The stages of a chain whose last blocks have one each, as many as there are."""
        before_last = np.arange(len(self.cycles))[:, None] - len(self.cycles)
        return np.asarray(self.n_stages + before_last)

    def _by_bytes(self, most: Numbers) -> "_Filling":
        return _fill([(self.held_bytes, most), *self._in_dram(1.0)])

    def _by_time(self, period: Numbers) -> "_Filling":
        """Fill stages for a period, with as many micro-batches in flight as that takes."""
        found, flying = _fill(self._limits(period)), self._flying(period)
        fewer = np.divide(
            self.latency_cycles * (1 - _PRECISION),
            flying - 1,
            out=np.full(len(flying), np.inf),
            where=flying > 1,
        )
        return _Filling(
            found.stage,
            np.maximum(found.least + self.hop_cycles, self.latency_cycles / flying),
            np.minimum(found.beyond + self.hop_cycles, fewer),
        )

    def _flying(self, period: Numbers) -> Numbers:
        """Micro-batches in flight that a period takes."""
        flying = np.ceil(self.latency_cycles / period * (1 - _PRECISION))
        return np.asarray(np.clip(flying, 1, self.most_in_flight))

    def _limits(self, period: Numbers) -> list[tuple[Blocks, Numbers]]:
        """What a stage may take for a period: cycles, and bytes of all that are in flight."""
        flying = self._flying(period)
        held = self.held_bytes + (flying - 1) * self.cache_bytes
        in_chips = [(self.cycles, period - self.hop_cycles), (held, self.room_bytes)]
        return [*in_chips, *self._in_dram(flying)]

    def _enough(self, filling: "_Filling") -> Bool[np.ndarray, " plans"]:
        return np.asarray(filling.stage[-1] < self.n_stages)

    def _smallest(self, fill: "_Fill", low: Numbers, high: Numbers) -> Numbers:
        """Find the smallest limit for which a filling needs no more stages than there are.

        A plan gets the same limit alone as among others.

        Args:
            fill: puts blocks into stages under a limit; larger limits never need more stages.
            low: no smaller limit will do.
            high: this one does.
        """
        filling = fill(low, np.arange(len(low)))
        high = np.where(self._enough(filling), low, high)
        low = np.minimum(np.maximum(low, filling.beyond), high)
        while len(rows := np.flatnonzero(high - low > _PRECISION * high)):
            middle = (low[rows] + high[rows]) / 2
            filling = fill(middle, rows)
            enough = filling.stage[-1] < self.n_stages[rows]
            high[rows] = np.where(enough, np.minimum(middle, filling.least), high[rows])
            beyond = np.minimum(np.maximum(middle, filling.beyond), high[rows])
            low[rows] = np.where(enough, low[rows], beyond)
        return high


@dataclass(frozen=True)
class _Filling:
    """Blocks in stages under limits, and between which values of the first limit they lie so."""

    stage: Stages
    least: Numbers  #: no smaller one fills stages so
    beyond: Numbers  #: no smaller one fills them with more


#: Puts blocks of some plans into stages under a limit of each.
_Fill = Callable[[Numbers, Rows], _Filling]


def _fill(limits: Sequence[tuple[Blocks, Numbers]]) -> _Filling:
    """Put blocks into the current stage while none of its sums exceeds its limit.

    A block that exceeds a limit alone takes more stages than there are.
    """
    blocks = [values for values, _ in limits]
    slack = [most * _SLACK for _, most in limits]
    n_blocks, n_plans = blocks[0].shape
    filled = [values[0] for values in blocks]
    least, beyond = filled[0], np.full(n_plans, np.inf)
    stage = np.empty((n_blocks, n_plans), np.int64)
    alone = reduce(np.logical_or, (v.max(0) > most for v, most in zip(blocks, slack, strict=True)))
    stage[0] = current = n_blocks * alone
    for i in range(1, n_blocks):
        sums = [total + values[i] for total, values in zip(filled, blocks, strict=True)]
        over = reduce(np.logical_or, map(np.greater, sums, slack))
        beyond = np.minimum(beyond, np.where(over, sums[0], np.inf))
        filled = [np.where(over, v[i], total) for v, total in zip(blocks, sums, strict=True)]
        least = np.maximum(least, filled[0])
        stage[i] = current = current + over
    return _Filling(stage, least, beyond)


def _some(limits: Sequence[tuple[Blocks, Numbers]], rows: Rows) -> list[tuple[Any, Any]]:
    """Take limits of some plans."""
    return [(values[:, rows], most[rows]) for values, most in limits]


def stage_sums(values: Blocks, stage: Stages) -> Float[np.ndarray, "stages plans"]:
    """Add up the blocks of each stage."""
    n_stages, n_plans = int(stage.max()) + 1, stage.shape[1]
    flat = stage * n_plans + np.arange(n_plans)
    total = np.bincount(flat.reshape(-1), weights=values.reshape(-1), minlength=n_stages * n_plans)
    return total.reshape(n_stages, n_plans)
