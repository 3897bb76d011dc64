"""Pairs of branches, one of each of two pools, with what their plans take at least.

A branch of a pool is a number of its stages and of the chips of one; a pair of branches is the
shape of a plan of two pools. Its bound adds those of its pools, and a hand-over wherever a token
crosses between them.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from models.blocks import Kind, block_chain

from ..plan import FFN_PARTS
from ..predict.crossings import least_crossing_cycles as network_crossing_cycles
from ..predict.crossings import least_gathers
from ..predict.pools import most_in_flight, pool_of_block
from .best_first import Branches, shapes
from .bounds import (
    Bounds,
    bounds,
    least_crossing_cycles,
    least_hand_over_cycles,
    least_hop_cycles,
)
from .goals import Shape
from .sought import Sought

Numbers = Float[np.ndarray, " pairs"]
Whole = Int[np.ndarray, " pairs"]


@dataclass(frozen=True, kw_only=True)
class PoolBranches:
    """Branches of one pool that may hold what it serves, and what they take at least."""

    bound: Bounds
    kinds: tuple[Kind, ...]  #: of the blocks that it serves, in order
    gives: Bool[np.ndarray, " blocks"]  #: after which of them a token crosses to the other pool
    stages: Whole
    group_chips: Whole
    cycles: Float[np.ndarray, "flights pairs"]  #: of the pool's blocks of a token
    period: Numbers
    giver_cycles: Numbers  #: of a block after which a token crosses

    @property
    def chips(self) -> Whole:
        """Of all stages."""
        return np.asarray(self.stages * self.group_chips)

    @property
    def crossings(self) -> int:
        """How often a token crosses to the other pool."""
        return int(self.gives.sum())

    def giver_period(self, branch: Whole | int, crossing_cycles: Numbers) -> Numbers:
        """Bound the period by the stage that gives most often, once for each such block."""
        most = np.ceil(self.crossings / self.stages[branch])
        return np.asarray(most * (self.giver_cycles[branch] + crossing_cycles))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs that may be wanted, with their bounds: an entry per pair."""

    n_all: int  #: pairs for which there are chips enough
    bounds: Branches
    branch: tuple[Whole, Whole]  #: of attention's pool, and of that of FFNs
    crossings: tuple[Numbers, Numbers]  #: cycles of each from the first pool, and of each back


class Pairing:
    """Pairs the branches of two pools."""

    def __init__(self, sought: Sought) -> None:
        """List the branches of both pools."""
        self.sought, self.scenario, self.record = sought, sought.scenario, sought.record
        self.is_mixed = sought.scenario.crosses
        n_blocks = len(block_chain(sought.scenario.model))
        #: Micro-batches that find something to do, at most.
        (self.most_flying,) = most_in_flight(np.array([n_blocks]), sought.scenario).tolist()
        if self.is_mixed:
            self.least_gather = least_gathers(sought.scenario)
        #: Of the token ids, from the last stage to the first.
        self.least_hop, self.least_return = least_hop_cycles(sought.scenario.pools[0])
        self.pools = self._branches(0), self._branches(1)

    @functools.cached_property
    def least_hand_over(self) -> Float[np.ndarray, " chips"]:
        """Bound hand-overs between two groups of as many chips of one machine."""
        return least_hand_over_cycles(self.scenario, self.sought.n_chips // 2)

    def pairs(self) -> Pairs:
        """Pair branches that leave each other enough chips; keep what may be wanted."""
        first, second = self.pools
        left = self.sought.n_chips - (0 if self.is_mixed else 1) * first.chips
        n_others = np.searchsorted(np.sort(second.chips), left, side="right")
        order = np.argsort(first.cycles[0], kind="stable")
        order = order[(n_others > 0)[order] & self._may_be_wanted()[order]]
        found = [self._paired(i) for i in order.tolist()]
        own = np.repeat(order, [len(rows) for rows, *_ in found])
        other = np.concatenate([*(rows for rows, *_ in found), np.zeros(0, np.int64)])
        latency = np.concatenate([*(least for *_, least, _ in found), np.zeros(0)])
        period = np.concatenate([*(least for *_, least in found), np.zeros(0)])
        # As many in flight as are told apart, less one: those have the bound of the fewer.
        have_room = np.isfinite(first.cycles).sum(0)[own]
        crossings = self._crossings(first.group_chips[own], second.group_chips[other])
        return Pairs(
            n_all=int(n_others.sum()),
            bounds=Branches(
                shape=self._shape(own, other),
                latency=latency,
                period=period,
                most_in_flight=self._most_in_flight[have_room - 1],
            ),
            branch=(own, other),
            crossings=crossings,
        )

    def _may_be_wanted(self) -> Bool[np.ndarray, " branches"]:
        """Say which branches of attention's pool may be wanted beside the least of the other."""
        first, second = self.pools
        if self.record.goal.needs_period or not len(second.stages):
            return np.ones(len(first.stages), bool)
        rows = np.arange(len(first.stages))
        # Over the links of a machine each crossing takes a hop.
        hops = 0.0 if self.is_mixed else (first.crossings + second.crossings) * self.least_hop
        latency = first.cycles[0] + second.cycles[0].min() + hops + self.scenario.host_cycles
        shape = self._shape(rows, np.full_like(rows, np.argmin(second.chips)))
        wanted = self.record.wants(latency, np.zeros_like(latency), shape)
        return np.asarray(wanted & (latency <= self.sought.most_cycles))

    def _branches(self, number: int) -> PoolBranches:
        """List the branches of a pool, and bound them."""
        goal, room, scenario = self.record.goal, self.sought.room[number], self.scenario
        pool = pool_of_block(scenario.model)
        served = np.flatnonzero(pool == number)
        gives = np.append(pool[:-1] != pool[1:], False)[served]
        chain = block_chain(scenario.model)
        kinds = tuple(chain[i].kind for i in served)
        # The chips of FFNs hold no caches.
        many = goal.needs_period and goal.flies and number == 0
        space = [own for own in self.sought.space if int(own.part in FFN_PARTS) == number]
        own = scenario.pools[number]
        bound = bounds(own, space, self.sought.least, many_in_flight=many)
        stages, chips = shapes(own.system.n_chips - (not self.is_mixed), len(served))
        holds = bound.holds(stages, chips, room)
        stages, chips = stages[holds], chips[holds]
        cycles = np.stack(
            [bound.blocks_cycles(f, stages, chips, room) for f in range(len(bound.flights))]
        )
        hop = 0.0
        if goal.needs_period and not self.is_mixed:
            hop = self.busy_share * float(self.least_hand_over.min())
        leanest = bound.chain(
            kinds,
            stages,
            chips,
            room=room,
            after_cycles=np.where(gives, hop, 0.0).tolist(),
            latency_cycles=cycles[0] if goal.flies else None,
            most_in_flight=self.most_flying,
        )
        rows = np.flatnonzero(leanest.fits)
        stages, chips = stages[rows], chips[rows]
        givers = {kind for kind, after in zip(kinds, gives, strict=True) if after}
        return PoolBranches(
            bound=bound,
            kinds=kinds,
            gives=gives,
            stages=stages,
            group_chips=chips,
            cycles=cycles[:, rows],
            period=leanest.take(rows).shortest_period
            if goal.needs_period and len(rows)
            else np.zeros(len(rows)),
            giver_cycles=np.min([bound.kind_cycles[kind][chips] for kind in givers], axis=0),
        )

    @property
    def _most_in_flight(self) -> Whole:
        """Micro-batches in flight for which each of the bounds' flights holds."""
        return np.append(self.pools[0].bound.flights[1:] - 1, self.most_flying)

    def _paired(self, i: int) -> tuple[Whole, Numbers, Numbers]:
        """Pair one branch of attention's pool with those of the other.

        Returns:
            Those others that leave it chips enough and may be wanted; latency and period.
        """
        first, second = self.pools
        left = self.sought.n_chips - (0 if self.is_mixed else first.chips[i])
        rows = np.flatnonzero(second.chips <= left)
        chips = second.group_chips[rows]
        there, back = self._crossings(np.full_like(chips, first.group_chips[i]), chips)
        rest = second.cycles[0, rows] + self.rest((there, back), i)
        period = np.maximum(
            first.giver_period(i, self.busy_share * there),
            second.giver_period(rows, self.busy_share * back),
        )
        period = np.maximum(period, np.maximum(first.period[i], second.period[rows]))
        latency = first.cycles[0, i] + rest
        flies, most = self.record.goal.flies, self._most_in_flight
        # First as if all could be in flight, then by what has room.
        for flights, flying in ((first.cycles[:1, i], most[-1:]), (first.cycles[:, i], most)):
            shape = self._shape(np.full_like(rows, i), rows)
            if flies:
                shared = (flights[:, None] + rest) / np.minimum(flying[:, None], shape.stages)
                period = np.maximum(period, shared.min(0))
            kept = self.record.wants(latency, period, shape) & (latency <= self.sought.most_cycles)
            rows, rest, latency, period = rows[kept], rest[kept], latency[kept], period[kept]
        return rows, latency, period

    def _crossings(self, first: Whole, second: Whole) -> tuple[Numbers, Numbers]:
        """Bound a hand-over between pools with so many chips to a stage, there and back."""
        if self.is_mixed:
            return network_crossing_cycles(first, second, self.least_gather, self.scenario)
        return (
            least_crossing_cycles(self.least_hand_over, first, second),
            least_crossing_cycles(self.least_hand_over, second, first),
        )

    @property
    def busy_share(self) -> float:
        """Of a crossing, in which the stage that gives is busy: nothing between machines."""
        return 0.0 if self.is_mixed else 1.0

    def rest(self, crossings: tuple[Numbers, Numbers], own: Whole | int) -> Numbers:
        """Bound the cycles of a token beside its blocks: crossings, ids back, host and sampling.

        Args:
            crossings: cycles of each from the first pool, and of each back.
            own: branches of the first pool.
        """
        first, second = self.pools
        there, back = crossings
        crossing = first.crossings * there + second.crossings * back
        ids = np.where(first.stages[own] > 1, self.least_return, 0.0)
        return np.asarray(crossing + ids + self.scenario.host_cycles)

    def _shape(self, own: Whole, other: Whole) -> Shape:
        """The shape of pairs; as stages count all micro-batches that find something to do."""
        first, second = self.pools
        chips = first.chips[own] + second.chips[other]
        copies = self.sought.n_chips // chips
        if self.is_mixed:
            pools = (first.chips[own], second.chips[other]), self.scenario.pools
            copies = np.min(
                [part.system.n_chips // n for n, part in zip(*pools, strict=True)], axis=0
            )
        stages = first.stages[own] + second.stages[other]
        return Shape(stages=most_in_flight(stages, self.scenario), chips=chips, copies=copies)
