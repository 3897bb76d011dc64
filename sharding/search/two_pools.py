"""The best plans of two pools: pairs of branches, placed, combined and evaluated.

Pairs are looked at by what they may cost at least (`pairs`). Of each the ways to split its pools
are timed where they lie, those that fit and may be wanted combined, and the combinations evaluated
in the order of their bounds, while they may be wanted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.placed_machine import Groups

from ..plan import Pool
from ..predict.crossings import crossings_of
from ..predict.placements import Placements
from ..predict.pools import copies_of, lay_out
from .best_first import least_in_flight, look_at_best_first
from .candidates import Candidates
from .goals import Shape
from .options import Combinations, Item, Options, Timer, combined, told_apart, wanted_cores
from .pair_plans import LookedAt, LookedAtWays, PairPlans, Plans, PoolWays, shared_latency
from .pairs import Pairing, Pairs
from .records import Found, two_cores
from .seen_branches import SeenBranches
from .sought import Sought

#: Cycles and cores of none.
_NO_WAYS = np.zeros(0), np.zeros(0, np.int64)
#: Stages that hold anything.
_ENDLESS = 1 << 40
Numbers = Float[np.ndarray, " plans"]
Whole = Int[np.ndarray, " plans"]


@dataclass
class PairCounts:
    """What became of the pairs and plans of a search."""

    pairs: int = 0
    looked_at: int = 0  #: times that a pair was looked at
    evaluated: int = 0  #: plans
    beyond: int = 0  #: times that a pair was left because nothing of it could be wanted


class TwoPools:
    """The search of the plans of two pools for those that are wanted."""

    def __init__(self, sought: Sought) -> None:
        self.sought, self.scenario, self.record = sought, sought.scenario, sought.record
        self.counts = PairCounts()
        self.placements = [Placements(own.system) for own in sought.scenario.pools]
        self.pairing = Pairing(sought)
        self.pools = self.pairing.pools
        self.timers = [
            # On one machine it matters which blocks share a stage: a token crosses from its chips.
            Timer(pool.bound, room, placements, keeps_beaten=not sought.scenario.crosses)
            for pool, room, placements in zip(self.pools, sought.room, self.placements, strict=True)
        ]
        self.apart = tuple(part for pool in self.pools for part in told_apart(pool.bound))
        self.plans = PairPlans(sought, self.apart)
        self._places: dict[int, tuple[tuple[Groups, Groups], int]] = {}
        #: Of each pool, whether a branch at a placement has room for some way.
        self._has_room: tuple[dict[tuple[int, int], bool], ...] = ({}, {})
        #: Of each pool, branches that have none, wherever they lie.
        self._is_full = tuple(np.zeros(len(pool.stages), bool) for pool in self.pools)
        self._least_of_all = [pool.cycles[0].min(initial=np.inf) for pool in self.pools]
        self._least_rest = 0.0
        # On one machine the stages of both pools lie among each other, in every pair elsewhere.
        self._seen = tuple(
            SeenBranches(pool.cycles[0], pool.stages, pool.group_chips)
            if sought.scenario.crosses
            else None
            for pool in self.pools
        )

    def run(self) -> list[Found]:
        """Search; return the plans that the record wants, best first."""
        pairs = self.pairing.pairs()
        rest = self.pairing.rest(pairs.crossings, pairs.branch[0])
        self._least_rest = float(rest.min(initial=np.inf))
        left = look_at_best_first(
            pairs.bounds,
            self.record,
            self.sought.most_cycles,
            lambda rows, latency: self._look_at(pairs, rows, latency),
            known_stretch=np.inf,
            raised=(lambda rows: self._raised(pairs, rows)) if self.scenario.crosses else None,
        )
        self.counts.pairs, self.counts.evaluated = pairs.n_all, self.plans.n_evaluated
        self.counts.beyond = pairs.n_all - len(pairs.bounds.latency) + left
        return self.record.plans()

    def _least(self, number: int, branches: Whole) -> Numbers:
        """Bound the blocks of a token in one pool, but for what was seen already."""
        seen = self._seen[number]
        least = self.pools[number].cycles[0, branches] if seen is None else seen.least(branches)
        return np.asarray(least)

    def _raised(self, pairs: Pairs, rows: Whole) -> Numbers:
        """Bound the latency of what was not seen of pairs and may be the best of its form.

        It is infinite of pairs that are known to have no room.
        """
        own, other = (branch[rows] for branch in pairs.branch)
        full = self._is_full[0][own] | self._is_full[1][other]
        least = np.full(len(rows), np.inf)
        if not full.all():
            least[~full] = self._least_new(pairs, rows[~full])
        return least

    def _least_new(self, pairs: Pairs, rows: Whole) -> Numbers:
        """Bound the same of pairs that may have room."""
        own, other = (branch[rows] for branch in pairs.branch)
        there, back = (cycles[rows] for cycles in pairs.crossings)
        rest = self.pairing.rest((there, back), own)
        if self.record.goal.needs_period:
            return np.asarray(self._least(0, own) + self._least(1, other) + rest)
        seen, seen_other = self._seen
        assert seen is not None  # nothing is raised on one machine
        assert seen_other is not None
        first, second = seen.ways(own), seen_other.ways(other)
        cycles = first.cycles[:, :, None] + second.cycles[:, None, :] + rest[:, None, None]
        form = two_cores(*np.broadcast_arrays(first.core[:, :, None], second.core[:, None, :]))
        latency = cycles.reshape(-1)
        shape = pairs.bounds.shape.take(np.repeat(rows, cycles[0].size))
        cost = self.record.goal.cost(latency, np.zeros_like(latency), shape)
        is_new = self.record.improves(form.reshape(-1), cost, shape.chips)
        return np.asarray(np.where(is_new, latency, np.inf).reshape(cycles.shape).min((1, 2)))

    def _look_at(self, pairs: Pairs, rows: Whole, latency: Numbers) -> Numbers:
        """Keep the best plans of pairs up to a latency; return up to which they were seen."""
        seen = pairs.bounds.latency[rows]
        may = np.ones(len(rows), bool)
        if np.all(np.isinf(self.record.latency_limit(pairs.bounds.shape.take(rows)))):
            # Nothing is known to beat, and what has no room would come again and again.
            may = self._with_room(pairs, rows)
            seen[~may] = np.inf
        hopeful = np.flatnonzero(may)
        now = hopeful[self._tell_most(pairs, rows[hopeful])]
        if len(now):
            self.counts.looked_at += len(now)
            seen[now] = self._quick_ways(pairs, rows[now], latency[now])
        return np.asarray(seen)

    def _tell_most(self, pairs: Pairs, rows: Whole) -> Int[np.ndarray, " now"]:
        """Choose pairs to look at first: one with each branch of which nothing was noted.

        What it tells of the branch may do for the others.
        """
        if self.record.goal.needs_period:
            return np.arange(len(rows))
        now = np.ones(len(rows), bool)
        for branch, seen in zip(pairs.branch, self._seen, strict=True):
            if seen is not None:
                _, first = np.unique(branch[rows], return_index=True)
                is_first = np.zeros(len(rows), bool)
                is_first[first] = True
                now &= is_first | seen.is_noted[branch[rows]]
        return np.flatnonzero(now) if now.any() else np.arange(len(rows))

    def _with_room(self, pairs: Pairs, rows: Whole) -> Bool[np.ndarray, " pairs"]:
        """Say which pairs have room in both pools for some way, however slow."""
        places, left = self._place(pairs, rows), np.arange(len(rows))
        for number, known in enumerate(self._has_room):
            branches = pairs.branch[number][rows]
            keys = [
                (int(branches[i]), self._placement(number, places[i][0][number]))
                for i in left.tolist()
            ]
            asked = {key: i for key, i in zip(keys, left.tolist(), strict=True) if key not in known}
            if asked:
                of_asked = rows[list(asked.values())]
                looked_at = self._looked_at(pairs, of_asked, np.full(len(asked), np.inf))
                known.update(zip(asked, self._some_fit(number, looked_at), strict=True))
            has_room = np.array([known[key] for key in keys], bool)
            if self.scenario.crosses:  # a branch lies alike in all its pairs
                self._is_full[number][branches[left[~has_room]]] = True
            left = left[has_room]
        found = np.zeros(len(rows), bool)
        found[left] = True
        return found

    def _placement(self, number: int, groups: Groups) -> int:
        """Number where the stages of a pool lie."""
        return self.placements[number].number(groups.chips, groups.bases)

    def _some_fit(self, number: int, looked_at: Sequence[LookedAt]) -> list[bool]:
        """Say of one pool of each pair whether some way to split it fits, however slow."""
        pool, room = self.pools[number], self.sought.room[number]
        system = self.scenario.pools[number].system
        items = [
            replace(self._item(number, one), most_cycles=np.inf, most_period=np.inf, flight=0)
            for one in looked_at
        ]
        fit = []
        for one, item, own in zip(
            looked_at, items, self.timers[number].options(items), strict=True
        ):
            if own is None:
                fit.append(False)
                continue
            ways = combined(own, item, 1, room)
            shape = replace(one.shape, stages=np.array([item.stages]))
            plans = Candidates.of(pool.kinds, [(own, ways, (0.0, 0.0))], shape, 0.0, system)
            is_all = np.isinf(ways.upto_cycles)
            fit.append(not is_all or bool(plans.blocks(flies=False).fits.any()))
        return fit

    def _quick_ways(self, pairs: Pairs, rows: Whole, latency: Numbers) -> Numbers:
        """Keep the best plans of pairs that may have room; return up to which they were seen."""
        looked_at, seen = self._looked_at(pairs, rows, latency), latency.copy()
        ways = self._ways(0, looked_at)
        # Without a way for attention none is needed for FFNs.
        hopeful = [i for i, own in enumerate(ways) if own is not None and len(own.period)]
        others = self._ways(1, [looked_at[i] for i in hopeful])
        found: list[LookedAtWays] = []
        plans: list[Plans] = []
        for i, other in zip(hopeful, others, strict=True):
            own = ways[i]
            if own is not None and other is not None:
                own_plans, seen[i] = self.plans.combined(len(found), looked_at[i], (own, other))
                found.append((looked_at[i], (own, other)))
                plans.append(own_plans)
        for i in set(range(len(ways))).difference(hopeful):
            if (own := ways[i]) is not None:
                seen[i] = np.inf if own.has_all else latency[i] - own.short_cycles
        self.plans.keep_best(found, plans)
        return seen

    def _looked_at(self, pairs: Pairs, rows: Whole, latency: Numbers) -> list[LookedAt]:
        """Place pairs that are looked at up to a latency."""
        places = self._place(pairs, rows)
        shape = replace(pairs.bounds.shape.take(rows), copies=np.array([n for _, n in places]))
        latency_bound = pairs.bounds.latency[rows]
        flying = least_in_flight(self.record, latency_bound, shape)
        periods = self.record.period_limit(latency_bound, shape)
        own, other = (branch[rows] for branch in pairs.branch)
        there, back = (cycles[rows] for cycles in pairs.crossings)
        if self.scenario.crosses:  # known, now that it is known where pools lie
            ways = [crossings_of(groups, self.scenario).cycles for groups, _ in places]
            back, there = np.array(ways).T
        rest = self.pairing.rest((there, back), own)
        least, least_other = self._least(0, own), self._least(1, other)
        return [
            LookedAt(
                shape=shape.take(np.array([i])),
                branch=(int(own[i]), int(other[i])),
                groups=places[i][0],
                crossings=(float(there[i]), float(back[i])),
                least_cycles=(float(least[i]), float(least_other[i])),
                rest_cycles=float(rest[i]),
                most_cycles=float(latency[i]),
                most_period=float(periods[i]),
                n_flying=int(flying[i]),
            )
            for i in range(len(rows))
        ]

    def _place(self, pairs: Pairs, rows: Whole) -> list[tuple[tuple[Groups, Groups], int]]:
        """Find where pairs lie, each once, and how many copies have room."""
        new = [i for i in rows.tolist() if i not in self._places]
        machines = [own.system for own in self.scenario.pools]
        if not self.scenario.crosses:
            machines = machines[:1]
        groups = [
            lay_out(
                [
                    Pool(stages=int(pool.stages[b[i]]), group_chips=int(pool.group_chips[b[i]]))
                    for pool, b in zip(self.pools, pairs.branch, strict=True)
                ],
                *machines,
            )
            for i in new
        ]
        copies = copies_of(groups, self.scenario).tolist()
        for i, (first, second), n in zip(new, groups, copies, strict=True):
            self._places[i] = (first, second), n
        return [self._places[i] for i in rows.tolist()]

    def _beside(self, number: int, one: LookedAt) -> float:
        """Bound the cycles of a token outside one pool of a pair.

        What is noted of a branch for all its pairs is looked at up to what the best of them allows.
        """
        if self._seen[number] is None or self.record.goal.needs_period:
            return float(one.rest_cycles + one.least_cycles[1 - number])
        return float(self._least_rest) + float(self._least_of_all[1 - number])

    def _item(self, number: int, one: LookedAt) -> Item:
        """What of a pool may be part of a plan that is wanted."""
        pool, groups = self.pools[number], one.groups[number]
        return Item(
            stages=len(groups.bases),
            group_chips=groups.chips,
            placement=self._placement(number, groups),
            most_cycles=float(one.most_cycles - self._beside(number, one)),
            most_period=one.most_period,
            flight=int(np.searchsorted(pool.bound.flights, one.n_flying, side="right") - 1),
        )

    def _ways(self, number: int, looked_at: Sequence[LookedAt]) -> list[PoolWays | None]:
        """Combine the options of one pool of each pair, as far as they fit and are quick enough."""
        pool, timer = self.pools[number], self.timers[number]
        items = [self._item(number, one) for one in looked_at]
        ways: list[PoolWays | None] = [None] * len(items)
        rows, branches = [], []
        for i, own in enumerate(timer.options(items)):
            if own is None:
                self._note(number, looked_at[i], items[i], _NO_WAYS, items[i].most_cycles)
                continue
            one, n_flying = looked_at[i], int(pool.bound.flights[items[i].flight])
            found = combined(own, items[i], n_flying, self.sought.room[number])
            hop = self.pairing.busy_share * one.crossings[number]
            rows.append(i)
            branches.append((own, found, (self._beside(number, one), hop)))
        if not rows:
            return ways
        shapes = Shape.joined([looked_at[i].shape for i in rows])
        stages = np.array([items[i].stages for i in rows])
        candidates = Candidates.of(
            pool.kinds,
            branches,
            replace(shapes, stages=stages),
            0.0,
            self.scenario.pools[number].system,
        )
        quick, fits, kept, period = self._kept(number, candidates, shapes)
        starts = np.searchsorted(candidates.branch, np.arange(len(rows) + 1))
        ends = np.searchsorted(kept, starts)
        for place, (i, (own, found, _)) in enumerate(zip(rows, branches, strict=True)):
            every = slice(starts[place], starts[place + 1])
            chosen = slice(ends[place], ends[place + 1])
            self._tell(number, (looked_at[i], items[i]), (own, found), quick[every], fits[every])
            short = items[i].most_cycles - found.upto_cycles
            ways[i] = PoolWays(
                options=own,
                found=found.take(candidates.row[kept[chosen]]),
                period=period[chosen],
                short_cycles=short,
                has_all=not short and timer.has_all(items[i]),
            )
        return ways

    def _tell(
        self,
        number: int,
        looked_at: tuple[LookedAt, Item],
        ways: tuple[Mapping[str, Options], Combinations],
        quick: Bool[np.ndarray, " ways"],
        fits: Bool[np.ndarray, " ways"],
    ) -> None:
        """Note what the ways of one pool of a pair tell of its branch.

        Args:
            number: of the pool.
            looked_at: the pair, and what of the pool.
            ways: options, and all their combinations up to some cycles.
            quick: which of them may be wanted.
            fits: which of these fit; all others may.
        """
        (one, item), (options, found) = looked_at, ways
        fit = found.take(np.flatnonzero(fits))
        part = self.apart[number]
        cores = options[part].core[fit.rows[part]]
        self._note(number, one, item, (fit.cycles, cores), found.upto_cycles)
        if fits.all():
            upto = found.cycles[~quick].min(initial=found.upto_cycles)
            self._note_longer(number, one, item, options, float(upto))

    def _note(
        self,
        number: int,
        one: LookedAt,
        item: Item,
        ways: tuple[Numbers, Whole],
        upto_cycles: float,
    ) -> None:
        """Note all ways of a pool up to so many cycles, if they are those of every such pair.

        Args:
            number: of the pool.
            one: the pair.
            item: what of the pool was looked at.
            ways: cycles and cores of each.
            upto_cycles: all others take more.
        """
        seen = self._seen[number]
        if seen is not None and not item.flight and np.isinf(item.most_period):
            seen.add(one.branch[number], *ways, upto_cycles)

    def _note_longer(
        self, number: int, one: LookedAt, item: Item, options: Mapping[str, Options], cycles: float
    ) -> None:
        """Note that more stages of as many chips are for nothing: all that is as quick has room.

        Between machines a token's latency does not depend on how many stages serve it.
        """
        seen, pool, room = self._seen[number], self.pools[number], self.sought.room[number]
        rests_on_stages = self.record.goal.needs_period or self.record.has_bounds
        if seen is None or not self.scenario.crosses or rests_on_stages:
            return
        held = sum(float(own.costs.all_bytes.max()) for own in options.values())
        endless = replace(item, stages=_ENDLESS)
        if held <= item.stages * room and all(
            len(wanted_cores(part, item, pool.bound, room))
            == len(wanted_cores(part, endless, pool.bound, room))
            for part in pool.bound.parts
        ):
            seen.leave_longer(one.branch[number], cycles)

    def _kept(
        self, number: int, candidates: Candidates, shapes: Shape
    ) -> tuple[
        Bool[np.ndarray, " ways"],
        Bool[np.ndarray, " ways"],
        Int[np.ndarray, " kept"],
        Float[np.ndarray, " kept"],
    ]:
        """Say which ways of a pool fit and may be wanted, and bound the period of their plans.

        Args:
            number: of the pool.
            candidates: its ways in several pairs.
            shapes: of the pairs.

        Returns:
            Which ways are quick enough; which fit, as far as these were looked at; those that are
            kept; and the least period of each that is kept.
        """
        record, latency = self.record, candidates.latency
        shape = shapes.take(candidates.branch)
        quick = record.wants(latency, shared_latency(record, latency, shape), shape)
        wanted = np.flatnonzero(quick)
        latency, shape = latency[wanted], shape.take(wanted)
        blocks = candidates.take(wanted).blocks(
            flies=record.goal.flies, gives=self.pools[number].gives, most_in_flight=shape.stages
        )
        fits = ~quick
        fits[wanted] = blocks.fits
        if not record.goal.needs_period:
            return quick, fits, wanted[blocks.fits], np.zeros(int(blocks.fits.sum()))
        limit = np.minimum(record.period_limit(latency, shape), blocks.longest_period)
        may = blocks.fits & blocks.allows(limit)
        return quick, fits, wanted[may], blocks.take(may).shortest_period
