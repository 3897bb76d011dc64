"""The best plans of one pool: its branches, with their bounds, and the plans of each.

A branch is a number of stages and of chips of a group. Of each the ways to split its parts are
timed that could still be part of a wanted plan, combined, and the best that fit are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lpu_jax.cost.placed_machine import Groups
from models.blocks import Kind, block_chain

from ..predict.hand_overs import hand_over_times
from ..predict.placements import Placements
from .best_first import Branches, least_in_flight, look_at_best_first, shapes
from .bounds import Bounds, bounds, least_hop_cycles
from .candidates import Candidates
from .goals import Shape
from .options import Combinations, Item, Options, Timer, combined, told_apart
from .records import Found, Spec
from .sought import Sought

#: Plans whose stages are cut at once.
_CUT_AT_ONCE = 256

Numbers = Float[np.ndarray, " branches"]
Whole = Int[np.ndarray, " branches"]


@dataclass
class Counts:
    """What became of the branches and plans of a search."""

    branches: int = 0
    no_room: int = 0  #: branches that cannot hold the model however they are split
    looked_at: int = 0  #: times that a branch was looked at
    timed: int = 0  #: ways to split a part that were timed where they lie
    compared: int = 0  #: plans that were compared
    fitting: int = 0  #: of those that could be wanted, plans that fit
    cut: int = 0  #: plans whose stages were cut
    beyond: int = 0  #: branches that were left because nothing of them could be wanted


#: Options of a branch, their combinations, and cycles of all hand-overs and of the slowest one.
_Explored = tuple[Mapping[str, Options], Combinations, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a branch lies."""

    placement: int
    hop: tuple[float, float]
    copies: int


class OnePool:
    """The search of the plans of one pool for those that are wanted."""

    def __init__(self, sought: Sought) -> None:
        self.sought, self.scenario, self.record = sought, sought.scenario, sought.record
        self.room, self.host_cycles = sought.room[0], sought.scenario.host_cycles
        self.bound: Bounds = bounds(
            sought.scenario,
            sought.space,
            sought.least,
            many_in_flight=self.record.goal.needs_period and self.record.goal.flies,
        )
        self.placements = Placements(sought.scenario.system)
        self.timer = Timer(self.bound, self.room, self.placements)
        self.counts = Counts()
        self.apart = told_apart(self.bound)
        self.chain: tuple[Kind, ...] = tuple(b.kind for b in block_chain(sought.scenario.model))
        self._places: dict[tuple[int, int], _Place] = {}

    def run(self) -> list[Found]:
        """Search; return the plans that the record wants, best first."""
        branches = self._branches()

        def look_at(rows: Whole, latency: Numbers) -> Numbers:
            shape = branches.shape.take(rows)
            least = branches.latency[rows]
            flying = least_in_flight(self.record, least, shape)
            flights = np.searchsorted(self.bound.flights, flying, side="right") - 1
            periods = self.record.period_limit(least, shape)
            return self._look_at(shape, latency, periods, flights)

        self.counts.beyond = look_at_best_first(
            branches, self.record, self.sought.most_cycles, look_at
        )
        self.counts.timed = self.timer.n_timed
        return self.record.plans()

    def _branches(self) -> Branches:
        """List the branches that may hold the model."""
        n_chips, goal = self.sought.n_chips, self.record.goal
        most_stages = self.sought.choices.most_stages or len(self.chain)
        stages, chips = shapes(n_chips, min(most_stages, len(self.chain)))
        self.counts.branches = len(stages)
        holds = self.bound.holds(stages, chips, self.room)
        stages, chips = stages[holds], chips[holds]
        hop, back = least_hop_cycles(self.scenario)
        hops = np.where(stages > 1, (stages - 1) * hop + back, 0.0)
        by_flight = np.stack(
            [
                self.bound.blocks_cycles(f, stages, chips, self.room) + hops + self.host_cycles
                for f in range(len(self.bound.flights))
            ]
        )
        least = self.bound.chain(
            self.chain,
            stages,
            chips,
            room=self.room,
            hop_cycles=np.where(stages > 1, hop, 0.0),
            latency_cycles=by_flight[0] if goal.flies else None,
        )
        rows = np.flatnonzero(least.fits)
        stages, chips, by_flight, least = (
            stages[rows],
            chips[rows],
            by_flight[:, rows],
            least.take(rows),
        )
        self.counts.no_room = self.counts.branches - len(rows)
        latency = by_flight[0]
        period = latency / stages
        # As many in flight as are told apart, less one: those have the bound of the fewer.
        most = np.append(self.bound.flights[1:] - 1, len(self.chain))
        have_room = np.isfinite(by_flight).sum(0)
        if goal.needs_period and len(stages):
            period = least.shortest_period
            if goal.flies:
                flying = by_flight / np.minimum(most[:, None], stages)
                period = np.maximum(period, flying.min(0))
        return Branches(
            shape=Shape(stages=stages, chips=stages * chips, copies=n_chips // (stages * chips)),
            latency=latency,
            period=period,
            most_in_flight=most[np.maximum(have_room, 1) - 1],
        )

    def _place(self, shape: Shape) -> list[_Place]:
        """Find where branches lie, each once."""
        keys = list(zip(shape.stages.tolist(), shape.group_chips.tolist(), strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._places]
        system = self.scenario.system
        bases = [system.stage_bases(*key) for key in new]
        groups = [Groups(chips, first) for (_, chips), first in zip(new, bases, strict=True)]
        hops = hand_over_times(groups, self.scenario)
        ends = np.array([first[-1] + chips for (_, chips), first in zip(new, bases, strict=True)])
        copies = system.copies(ends.astype(np.int64))
        for key, group, hop, n in zip(new, groups, hops.tolist(), copies.tolist(), strict=True):
            self._places[key] = _Place(
                placement=self.placements.number(group.chips, group.bases),
                hop=(hop[0], hop[1]),
                copies=n,
            )
        return [self._places[key] for key in keys]

    def _look_at(self, shape: Shape, latency: Numbers, periods: Numbers, flights: Whole) -> Numbers:
        """Keep the best plans of branches up to a latency; return up to which they were seen."""
        places = self._place(shape)
        items = [
            Item(
                stages=stages,
                group_chips=chips,
                placement=place.placement,
                most_cycles=most - place.hop[0] - self.host_cycles,
                most_period=period,
                flight=flight,
            )
            for stages, chips, most, place, period, flight in zip(
                shape.stages.tolist(),
                shape.group_chips.tolist(),
                latency.tolist(),
                places,
                periods.tolist(),
                flights.tolist(),
                strict=True,
            )
        ]
        self.counts.looked_at += len(items)
        options = self.timer.options(items)
        seen = latency.copy()
        branches: list[_Explored] = []
        rows = []
        for i, (item, own, place) in enumerate(zip(items, options, places, strict=True)):
            if own is None:
                if self.timer.has_none(item):
                    seen[i] = np.inf
                continue
            n_flying = int(self.bound.flights[item.flight])
            found = combined(own, item, n_flying, self.room)
            seen[i] += found.upto_cycles - item.most_cycles
            if found.upto_cycles == item.most_cycles and self.timer.has_all(item):
                seen[i] = np.inf
            if len(found.cycles):
                branches.append((own, found, place.hop))
                rows.append(i)
        if branches:
            own_shape = Shape(
                stages=shape.stages[rows],
                chips=shape.chips[rows],
                copies=np.array([places[i].copies for i in rows]),
            )
            candidates = Candidates.of(
                self.chain, branches, own_shape, self.host_cycles, self.sought.scenario.system
            )
            self._keep_best(candidates, branches)
        return seen

    def _keep_best(
        self,
        candidates: Candidates,
        branches: Sequence[_Explored],
    ) -> None:
        """Keep the candidates that fit and are the best of their form."""
        self.counts.compared += len(candidates)
        record = self.record
        least = candidates.latency / candidates.shape.stages
        candidates = candidates.take(
            record.wants(candidates.latency, least, candidates.shape)
            & (candidates.latency <= self.sought.most_cycles)
        )
        if not len(candidates):
            return
        blocks = candidates.blocks(flies=record.goal.flies)
        self.counts.fitting += int(blocks.fits.sum())
        if not record.goal.needs_period:
            rows = np.flatnonzero(blocks.fits)
            self._add(candidates.take(rows), candidates.latency[rows], branches)
            return
        rows = np.flatnonzero(blocks.fits)
        order = record.order(candidates.latency, blocks.least_period, candidates.shape)
        rows = rows[np.lexsort((candidates.latency[rows], order[rows]))]
        while True:
            limit = record.period_limit(candidates.latency[rows], candidates.shape.take(rows))
            allowed = np.isinf(limit)
            if not allowed.all():
                allowed |= blocks.take(rows).allows(np.where(allowed, 1.0, limit))
            rows = rows[allowed]
            if not len(rows):
                break
            now, rows = rows[:_CUT_AT_ONCE], rows[_CUT_AT_ONCE:]
            self.counts.cut += len(now)
            self._add(candidates.take(now), blocks.take(now).shortest_period, branches)

    def _add(
        self,
        candidates: Candidates,
        period: Numbers,
        branches: Sequence[_Explored],
    ) -> None:
        """Offer plans that fit to the record."""
        record = self.record
        cost = record.goal.cost(candidates.latency, period, candidates.shape)
        for i in np.flatnonzero(
            record.wants(candidates.latency, period, candidates.shape)
        ).tolist():
            options, found, _ = branches[candidates.branch[i]]
            rows = {part: int(own[candidates.row[i]]) for part, own in found.rows.items()}
            stages, chips = int(candidates.shape.stages[i]), int(candidates.shape.group_chips[i])
            plan = Found(
                cost=float(cost[i]),
                latency=float(candidates.latency[i]),
                chips=stages * chips,
                stages=stages,
                place=tuple(rows.values()),
                form=tuple(int(options[part].core[rows[part]]) for part in self.apart),
                spec=Spec(pools=((stages, chips),), options=options, rows=rows),
            )
            record.add(plan)
