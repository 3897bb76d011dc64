"""Plans of pairs of branches: ways of both pools combined, and evaluated while they are wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lpu_jax.cost.placed_machine import Groups

from ..predict.evaluate import evaluate
from .goals import Shape
from .options import Combinations, Options
from .records import Found, Record, Spec, table_of, two_cores
from .sought import Sought

#: Plans that are evaluated at once.
_AT_ONCE = 1024
#: Combinations of two pools' ways that are looked at together.
_MOST_PAIRS = 1 << 20
#: What rounding may add to a sum.
_SLACK = 1 + 1e-12

Numbers = Float[np.ndarray, " plans"]
Whole = Int[np.ndarray, " plans"]


@dataclass(frozen=True, kw_only=True)
class PoolWays:
    """What a pool of a pair may be: its options, their combinations, and what these take."""

    options: Mapping[str, Options]
    found: Combinations
    period: Numbers  #: of a plan, at least
    short_cycles: float  #: so much below what was asked for the combinations end
    has_all: bool  #: all ways that may fit are combinations of what is timed by now


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """A pair that is looked at."""

    shape: Shape
    branch: tuple[int, int]  #: of each pool
    groups: tuple[Groups, Groups]
    crossings: tuple[float, float]  #: cycles from attention's pool to the other, and back
    least_cycles: tuple[float, float]  #: of a token's blocks in each pool
    rest_cycles: float  #: of a token, beside its blocks, at least
    most_cycles: float  #: latency up to which it is looked at
    most_period: float  #: of a plan that may be wanted
    n_flying: int  #: micro-batches in flight that it needs


#: A pair that was looked at, and the ways of its pools.
LookedAtWays = tuple[LookedAt, Sequence[PoolWays]]


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Plans of several pairs with their bounds: an entry per plan."""

    pair: Whole  #: which of those that were looked at together
    form: Whole
    ways: tuple[Whole, Whole]  #: which of the combinations of each pool
    latency: Numbers
    period: Numbers

    def take(self, rows: Whole) -> "Plans":
        """Keep some plans."""
        first, second = self.ways
        return Plans(
            pair=self.pair[rows],
            form=self.form[rows],
            ways=(first[rows], second[rows]),
            latency=self.latency[rows],
            period=self.period[rows],
        )

    @staticmethod
    def joined(plans: "Sequence[Plans]") -> "Plans":
        """Put plans behind one another."""
        first, second = zip(*(own.ways for own in plans), strict=True)
        return Plans(
            pair=np.concatenate([own.pair for own in plans]),
            form=np.concatenate([own.form for own in plans]),
            ways=(np.concatenate(first), np.concatenate(second)),
            latency=np.concatenate([own.latency for own in plans]),
            period=np.concatenate([own.period for own in plans]),
        )


def shared_latency(record: Record, latency: Numbers, shape: Shape) -> Numbers:
    """Bound the period by the latency shared among the stages."""
    return np.asarray(latency / shape.stages if record.goal.flies else 0 * latency)


class PairPlans:
    """Combines the ways of pools, and offers the plans that fit to the record."""

    def __init__(self, sought: Sought, apart: tuple[str, ...]) -> None:
        """Begin with nothing evaluated.

        Args:
            sought: what is searched for.
            apart: of each pool the part that tells rows of a comparison apart.
        """
        self.sought, self.scenario, self.record = sought, sought.scenario, sought.record
        self.apart = apart
        self.n_evaluated = 0

    def combined(self, number: int, one: LookedAt, ways: Sequence[PoolWays]) -> tuple[Plans, float]:
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
        period = np.maximum(period, shared_latency(self.record, latency, shape))
        kept = self.record.wants(latency, period, shape) & (latency <= upto * _SLACK)
        own, other, shape = own[kept], other[kept], shape.take(np.flatnonzero(kept))
        latency, period = latency[kept], period[kept]
        form = two_cores(
            *(
                way.options[part].core[way.found.rows[part][rows]]
                for way, part, rows in zip(ways, self.apart, (own, other), strict=True)
            )
        )
        cost = self.record.goal.cost(latency, period, shape)
        new = self.record.improves(form, cost, shape.chips)
        plans = Plans(
            pair=np.full(int(new.sum()), number),
            form=form[new],
            ways=(own[new], other[new]),
            latency=latency[new],
            period=period[new],
        )
        slowest = rest + sum(
            float(part.costs.all_cycles.max()) for way in ways for part in way.options.values()
        )
        is_all = all(own.has_all for own in ways) and slowest <= upto
        return plans, np.inf if is_all else upto

    def keep_best(self, found: Sequence[LookedAtWays], plans: Sequence[Plans]) -> None:
        """Evaluate plans in the order of their bounds, while they may be wanted."""
        if not found:
            return
        left, shapes = Plans.joined(plans), Shape.joined([one.shape for one, _ in found])
        order = self.record.order(left.latency, left.period, shapes.take(left.pair))
        left = left.take(np.lexsort((left.latency, order)))
        while len(left.pair):
            shape = shapes.take(left.pair)
            wanted = self.record.wants(left.latency, left.period, shape)
            cost = self.record.goal.cost(left.latency, left.period, shape)
            left = left.take(
                np.flatnonzero(wanted & self.record.improves(left.form, cost, shape.chips))
            )
            rows = np.arange(len(left.pair))
            now, left = left.take(rows[:_AT_ONCE]), left.take(rows[_AT_ONCE:])
            if len(now.pair):
                self._add(now, found)

    def _add(self, plans: Plans, found: Sequence[LookedAtWays]) -> None:
        """Evaluate plans, and offer those that fit to the record."""
        record = self.record
        specs = [
            _spec(found[pair], rows)
            for pair, *rows in zip(
                plans.pair.tolist(), *(own.tolist() for own in plans.ways), strict=True
            )
        ]
        self.n_evaluated += len(specs)
        got = evaluate(table_of(specs), self.scenario)
        period = got.cycles_per_batch if record.goal.flies else got.slowest_stage_cycles
        shape = Shape.joined([one.shape for one, _ in found]).take(plans.pair)
        cost = record.goal.cost(got.latency_cycles, period, shape)
        wanted = record.wants(got.latency_cycles, period, shape) & got.fits
        wanted &= got.latency_cycles <= self.sought.most_cycles
        for i in np.flatnonzero(wanted).tolist():
            spec = specs[i]
            record.add(
                Found(
                    cost=float(cost[i]),
                    latency=float(got.latency_cycles[i]),
                    chips=int(shape.chips[i]),
                    stages=int(shape.stages[i]),
                    place=tuple(spec.rows.values()),
                    form=(int(plans.form[i]),),
                    spec=spec,
                )
            )


def _spec(found: LookedAtWays, rows: Sequence[int]) -> Spec:
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
