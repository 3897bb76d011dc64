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
from ..predict.evaluate import evaluate
from ..predict.placements import Placements
from ..predict.pools import copies_of, lay_out
from .best_first import least_in_flight, look_at_best_first
from .candidates import Candidates
from .goals import Shape
from .options import Combinations, Item, Options, Timer, combined, told_apart
from .pairs import Pairing, Pairs
from .records import Found, Spec, table_of
from .sought import Sought

#: Plans that are evaluated at once.
_AT_ONCE = 256
#: Combinations of two pools' ways that are looked at together.
_MOST_PAIRS = 1 << 20
#: What rounding may add to a sum.
_SLACK = 1 + 1e-12
#: First in the form of a plan of two pools, so that it is none of one pool's.
_TWO_POOLS = -2

Numbers = Float[np.ndarray, " plans"]
Whole = Int[np.ndarray, " plans"]


@dataclass
class PairCounts:
    """What became of the pairs and plans of a search."""

    pairs: int = 0
    looked_at: int = 0  #: times that a pair was looked at
    evaluated: int = 0  #: plans
    beyond: int = 0  #: times that a pair was left because nothing of it could be wanted


@dataclass(frozen=True, kw_only=True)
class _Ways:
    """What a pool of a pair may be: its options, their combinations, and what these take."""

    options: Mapping[str, Options]
    found: Combinations
    period: Numbers  #: of a plan, at least
    short_cycles: float  #: so much below what was asked for the combinations end
    has_all: bool  #: all ways that may fit are combinations of what is timed by now


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """A pair that is looked at."""

    shape: Shape
    groups: tuple[Groups, Groups]
    crossings: tuple[float, float]  #: cycles from attention's pool to the other, and back
    least_cycles: tuple[float, float]  #: of a token's blocks in each pool
    rest_cycles: float  #: of a token, beside its blocks, at least
    most_cycles: float  #: latency up to which it is looked at
    most_period: float  #: of a plan that may be wanted
    n_flying: int  #: micro-batches in flight that it needs


#: A pair that was looked at, and the ways of its pools.
_Found = tuple[_Looked, Sequence[_Ways]]


@dataclass(frozen=True, kw_only=True)
class _Plans:
    """Plans of several pairs with their bounds: an entry per plan."""

    pair: Whole  #: which of those that were looked at together
    ways: tuple[Whole, Whole]  #: which of the combinations of each pool
    latency: Numbers
    period: Numbers

    def take(self, rows: Whole) -> "_Plans":
        """Keep some plans."""
        first, second = self.ways
        return _Plans(
            pair=self.pair[rows],
            ways=(first[rows], second[rows]),
            latency=self.latency[rows],
            period=self.period[rows],
        )

    @staticmethod
    def joined(plans: "Sequence[_Plans]") -> "_Plans":
        """Put plans behind one another."""
        first, second = zip(*(own.ways for own in plans), strict=True)
        return _Plans(
            pair=np.concatenate([own.pair for own in plans]),
            ways=(np.concatenate(first), np.concatenate(second)),
            latency=np.concatenate([own.latency for own in plans]),
            period=np.concatenate([own.period for own in plans]),
        )


class TwoPools:
    """The search of the plans of two pools for those that are wanted."""

    def __init__(self, sought: Sought) -> None:
        self.sought, self.scenario, self.record = sought, sought.scenario, sought.record
        self.counts = PairCounts()
        self.placements = [Placements(own.system) for own in sought.scenario.pools]
        self.pairing = Pairing(sought)
        self.pools = self.pairing.pools
        self.timers = [
            Timer(pool.bound, room, placements)
            for pool, room, placements in zip(self.pools, sought.room, self.placements, strict=True)
        ]
        self.apart = tuple(part for pool in self.pools for part in told_apart(pool.bound))
        self._places: dict[int, tuple[tuple[Groups, Groups], int]] = {}
        self._have_room: tuple[dict[int, bool], dict[int, bool]] = {}, {}

    def run(self) -> list[Found]:
        """Search; return the plans that the record wants, best first."""
        pairs = self.pairing.pairs()
        left = look_at_best_first(
            pairs.bounds,
            self.record,
            self.sought.most_cycles,
            lambda rows, latency: self._look_at(pairs, rows, latency),
            known_stretch=np.inf,
        )
        self.counts.pairs = pairs.n_all
        self.counts.beyond = pairs.n_all - len(pairs.bounds.latency) + left
        return self.record.plans()

    def _look_at(self, pairs: Pairs, rows: Whole, latency: Numbers) -> Numbers:
        """Keep the best plans of pairs up to a latency; return up to which they were seen."""
        self.counts.looked_at += len(rows)
        seen = latency.copy()
        if np.all(np.isinf(self.record.latency_limit(pairs.bounds.shape.take(rows)))):
            # Nothing is known to beat, and what has no room would come again and again.
            room = self._with_room(pairs, rows)
            seen[~room] = np.inf
            if room.any():
                seen[room] = self._quick_ways(pairs, rows[room], latency[room])
            return seen
        return self._quick_ways(pairs, rows, latency)

    def _with_room(self, pairs: Pairs, rows: Whole) -> Bool[np.ndarray, " pairs"]:
        """Say which pairs have room in both pools for some way, however slow."""
        found = np.ones(len(rows), bool)
        for number, known in enumerate(self._have_room):
            branches = pairs.branch[number][rows]
            new, first = np.unique(branches, return_index=True)
            first = first[[branch not in known for branch in new.tolist()]]
            if len(first):
                looked_at = self._looked_at(pairs, rows[first], np.full(len(first), np.inf))
                known |= zip(
                    branches[first].tolist(), self._some_fit(number, looked_at), strict=True
                )
            found &= np.array([known[branch] for branch in branches.tolist()])
        return found

    def _some_fit(self, number: int, looked_at: Sequence[_Looked]) -> list[bool]:
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
        found: list[_Found] = []
        plans: list[_Plans] = []
        for i, other in zip(hopeful, others, strict=True):
            own = ways[i]
            if own is not None and other is not None:
                own_plans, seen[i] = self._plans(len(found), looked_at[i], (own, other))
                found.append((looked_at[i], (own, other)))
                plans.append(own_plans)
        for i in set(range(len(ways))).difference(hopeful):
            if (own := ways[i]) is not None:
                seen[i] = np.inf if own.has_all else latency[i] - own.short_cycles
        self._keep_best(found, plans)
        return seen

    def _looked_at(self, pairs: Pairs, rows: Whole, latency: Numbers) -> list[_Looked]:
        """Place pairs that are looked at up to a latency."""
        places = self._place(pairs, rows)
        shape = replace(pairs.bounds.shape.take(rows), copies=np.array([n for _, n in places]))
        latency_bound = pairs.bounds.latency[rows]
        flying = least_in_flight(self.record, latency_bound, shape)
        periods = self.record.period_limit(latency_bound, shape)
        first, second = self.pools
        own, other = (branch[rows] for branch in pairs.branch)
        there, back = (cycles[rows] for cycles in pairs.crossings)
        if self.scenario.crosses:  # known, now that it is known where pools lie
            ways = [crossings_of(groups, self.scenario).cycles for groups, _ in places]
            back, there = np.array(ways).T
        rest = self.pairing.rest((there, back))
        least, least_other = first.cycles[0, own], second.cycles[0, other]
        return [
            _Looked(
                shape=shape.take(np.array([i])),
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

    def _item(self, number: int, one: _Looked) -> Item:
        """What of a pool may be part of a plan that is wanted."""
        pool, groups = self.pools[number], one.groups[number]
        return Item(
            stages=len(groups.bases),
            group_chips=groups.chips,
            placement=self.placements[number].number(groups.chips, groups.bases),
            most_cycles=one.most_cycles - one.rest_cycles - one.least_cycles[1 - number],
            most_period=one.most_period,
            flight=int(np.searchsorted(pool.bound.flights, one.n_flying, side="right") - 1),
        )

    def _ways(self, number: int, looked_at: Sequence[_Looked]) -> list[_Ways | None]:
        """Combine the options of one pool of each pair, as far as they fit and are quick enough."""
        pool, timer = self.pools[number], self.timers[number]
        items = [self._item(number, one) for one in looked_at]
        ways: list[_Ways | None] = [None] * len(items)
        rows, branches = [], []
        for i, own in enumerate(timer.options(items)):
            if own is None:
                continue
            one, n_flying = looked_at[i], int(pool.bound.flights[items[i].flight])
            found = combined(own, items[i], n_flying, self.sought.room[number])
            rest = one.rest_cycles + one.least_cycles[1 - number]
            rows.append(i)
            branches.append((own, found, (rest, self.pairing.busy_share * one.crossings[number])))
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
        kept, period = self._kept(number, candidates, shapes)
        ends = np.searchsorted(candidates.branch[kept], np.arange(len(rows) + 1))
        for i, branch, begin, end in zip(rows, branches, ends[:-1], ends[1:], strict=True):
            own, found, _ = branch
            short = items[i].most_cycles - found.upto_cycles
            ways[i] = _Ways(
                options=own,
                found=found.take(candidates.row[kept[begin:end]]),
                period=period[begin:end],
                short_cycles=short,
                has_all=not short and timer.has_all(items[i]),
            )
        return ways

    def _kept(self, number: int, candidates: Candidates, shapes: Shape) -> tuple[Whole, Numbers]:
        """Say which ways of a pool fit and may be wanted, and bound the period of their plans.

        Args:
            number: of the pool.
            candidates: its ways in several pairs.
            shapes: of the pairs.
        """
        record, latency = self.record, candidates.latency
        shape = shapes.take(candidates.branch)
        kept = np.flatnonzero(record.wants(latency, self._shared(latency, shape), shape))
        latency, shape = latency[kept], shape.take(kept)
        blocks = candidates.take(kept).blocks(
            flies=record.goal.flies, gives=self.pools[number].gives, most_in_flight=shape.stages
        )
        if not record.goal.needs_period:
            return kept[blocks.fits], np.zeros(int(blocks.fits.sum()))
        limit = np.minimum(record.period_limit(latency, shape), blocks.longest_period)
        may = blocks.fits & blocks.allows(limit)
        return kept[may], blocks.take(may).shortest_period

    def _shared(self, latency: Numbers, shape: Shape) -> Numbers:
        """Bound the period by the latency shared among the stages."""
        return np.asarray(latency / shape.stages if self.record.goal.flies else 0 * latency)

    def _plans(self, number: int, one: _Looked, ways: Sequence[_Ways]) -> tuple[_Plans, float]:
        """Combine the ways of both pools of a pair.

        Args:
            number: of the pair, among those that are looked at together.
            one: the pair.
            ways: of each pool.

        Returns:
            The plans that may be wanted, and the latency up to which these are all.
        """
        rest, others = one.rest_cycles, one.least_cycles[::-1]
        cycles = [own.found.cycles for own in ways]
        quickest = rest + sum(float(own.min(initial=np.inf)) for own in cycles)
        # What is not cut short ends exactly where it was asked to.
        upto = one.most_cycles - max(own.short_cycles for own in ways)
        while True:
            rows = [
                np.flatnonzero(own + other + rest <= upto * _SLACK)
                for own, other in zip(cycles, others, strict=True)
            ]
            if len(rows[0]) * len(rows[1]) <= _MOST_PAIRS or upto <= quickest * _SLACK:
                break
            upto = quickest + (upto - quickest) / 2
        own, other = (row.reshape(-1) for row in np.meshgrid(*rows, indexing="ij"))
        latency = cycles[0][own] + cycles[1][other] + rest
        shape = one.shape.take(np.zeros(len(own), np.int64))
        period = np.maximum(ways[0].period[own], ways[1].period[other])
        period = np.maximum(period, self._shared(latency, shape))
        kept = self.record.wants(latency, period, shape) & (latency <= upto * _SLACK)
        plans = _Plans(
            pair=np.full(int(kept.sum()), number),
            ways=(own[kept], other[kept]),
            latency=latency[kept],
            period=period[kept],
        )
        slowest = rest + sum(
            float(part.costs.all_cycles.max()) for way in ways for part in way.options.values()
        )
        is_all = all(own.has_all for own in ways) and slowest <= upto
        return plans, np.inf if is_all else upto

    def _keep_best(self, found: Sequence[_Found], plans: Sequence[_Plans]) -> None:
        """Evaluate plans in the order of their bounds, while they may be wanted."""
        if not found:
            return
        left, shapes = _Plans.joined(plans), Shape.joined([one.shape for one, _ in found])
        order = self.record.order(left.latency, left.period, shapes.take(left.pair))
        left = left.take(np.lexsort((left.latency, order)))
        while len(left.pair):
            shape = shapes.take(left.pair)
            left = left.take(np.flatnonzero(self.record.wants(left.latency, left.period, shape)))
            rows = np.arange(len(left.pair))
            now, left = left.take(rows[:_AT_ONCE]), left.take(rows[_AT_ONCE:])
            if len(now.pair):
                self._add(now, found)

    def _add(self, plans: _Plans, found: Sequence[_Found]) -> None:
        """Evaluate plans, and offer those that fit to the record."""
        record = self.record
        specs = [
            _spec(found[pair], rows)
            for pair, *rows in zip(
                plans.pair.tolist(), *(own.tolist() for own in plans.ways), strict=True
            )
        ]
        self.counts.evaluated += len(specs)
        got = evaluate(table_of(specs), self.scenario)
        period = got.cycles_per_batch if record.goal.flies else got.slowest_stage_cycles
        shape = Shape.joined([one.shape for one, _ in found]).take(plans.pair)
        cost = record.goal.cost(got.latency_cycles, period, shape)
        wanted = record.wants(got.latency_cycles, period, shape) & got.fits
        wanted &= got.latency_cycles <= self.sought.most_cycles
        for i in np.flatnonzero(wanted).tolist():
            spec = specs[i]
            cores = (int(spec.options[p].core[spec.rows[p]]) for p in self.apart)
            record.add(
                Found(
                    cost=float(cost[i]),
                    latency=float(got.latency_cycles[i]),
                    chips=int(shape.chips[i]),
                    stages=int(shape.stages[i]),
                    place=tuple(spec.rows.values()),
                    form=(_TWO_POOLS, *cores),
                    spec=spec,
                )
            )


def _spec(found: _Found, rows: Sequence[int]) -> Spec:
    """Make the plan of a pair in which each pool is one of its ways."""
    one, ways = found
    return Spec(
        pools=tuple((len(groups.bases), groups.chips) for groups in one.groups),
        options={part: own for way in ways for part, own in way.options.items()},
        rows={
            part: int(own[row])
            for way, row in zip(ways, rows, strict=True)
            for part, own in way.found.rows.items()
        },
    )
