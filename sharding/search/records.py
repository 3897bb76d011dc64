"""The best plans so far, and what another plan must do to be wanted."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from ..space.plan_table import PlanTable
from ..space.shard_table import joined
from .goals import GOALS, Goal, Numbers, Shape, Whole
from .options import Options

Cores = Int[np.ndarray, "*plans"]

#: Cores of a part have numbers of so many bits.
_CORE_BITS = 31
#: What rounding may add to a bound, or take from the cost of a plan that is no better.
_ROUNDING = 1 - 16 * np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A plan as rows of the tables that it was found in."""

    pools: tuple[tuple[int, int], ...]  #: stages, and chips of each
    options: Mapping[str, Options]
    rows: Mapping[str, int]


def table_of(specs: Sequence[Spec]) -> PlanTable:
    """Hold plans as a table."""
    pools = np.array([[own.pools[0], own.pools[1] if own.pools[1:] else (0, 0)] for own in specs])
    return PlanTable(
        stages=pools[:, 0, 0],
        group_chips=pools[:, 0, 1],
        ffn_stages=pools[:, 1, 0],
        ffn_chips=pools[:, 1, 1],
        shards={
            part: joined(
                [own.options[part].table.take(np.array([own.rows[part]])) for own in specs]
            )
            for part in specs[0].options
        },
        rows={part: np.arange(len(specs)) for part in specs[0].options},
        collective=np.zeros(len(specs), np.int64),
    )


def two_cores(first: Cores, second: Cores) -> Cores:
    """The form of plans of two pools, from the core that tells rows apart in each.

    Args:
        first: of attention's pool; negative if it is not known.
        second: of that of FFNs.
    """
    is_known = (first >= 0) & (second >= 0)
    return np.asarray(np.where(is_known, (first << _CORE_BITS) | second, -1))


@dataclass(frozen=True, order=True)
class Found:
    """A plan that fits, with its rank: cost, then latency, chips, and its place in the space."""

    cost: float
    latency: float
    chips: int
    stages: int
    place: tuple[int, ...]
    #: Plans of one form are one row of a comparison: cores, or of two pools one of `two_cores`.
    form: tuple[int, ...]
    spec: Spec = field(compare=False)


@runtime_checkable
class Record(Protocol):
    """The best plans so far; costs and limits are lower bounds where arguments are.

    Attributes:
        goal: what plans are ranked by.
        has_bounds: costs only bound what is wanted: of plans that cost the same any may be it.
    """

    goal: Goal
    has_bounds: bool

    def wants(self, latency: Numbers, period: Numbers, shape: Shape) -> Bool[np.ndarray, " plans"]:
        """Say which plans may be kept."""

    def order(self, latency: Numbers, period: Numbers, shape: Shape) -> Numbers:
        """Say which branches to look at first: those with the least."""

    def latency_limit(self, shape: Shape) -> Numbers:
        """Bound the latency of plans that may be kept."""

    def period_limit(self, latency: Numbers, shape: Shape) -> Numbers:
        """Bound the period of plans that may be kept."""

    def improves(self, form: Whole, cost: Numbers, chips: Whole) -> Bool[np.ndarray, " plans"]:
        """Say which plans of two pools may be better than what is kept of their form.

        Args:
            form: from `two_cores`.
            cost: by the goal.
            chips: of each plan.
        """

    def add(self, plan: Found) -> None:
        """Keep a plan if it is wanted."""

    def plans(self) -> list[Found]:
        """List the plans kept, best first."""


class Best:
    """The best plans of so many forms, by one goal."""

    has_bounds = False

    def __init__(self, goal: Goal, top: int, threshold: float = np.inf) -> None:
        self.goal, self.top = goal, top
        self._best: dict[Hashable, Found] = {}
        self._two_pools: tuple[Whole, Numbers, Whole] | None = None
        self.threshold = threshold  #: what a plan must cost less than to be wanted

    def wants(self, latency: Numbers, period: Numbers, shape: Shape) -> Bool[np.ndarray, " plans"]:
        """Say which plans cost less than the last."""
        cost = self.goal.cost(latency, period, shape)
        return np.asarray(cost < self.threshold * _ROUNDING)

    def order(self, latency: Numbers, period: Numbers, shape: Shape) -> Numbers:
        """The least cost first."""
        return self.goal.cost(latency, period, shape)

    def latency_limit(self, shape: Shape) -> Numbers:
        """Bound the latency by the cost of the last."""
        return self.goal.latency_cycles(self.threshold, shape)

    def period_limit(self, latency: Numbers, shape: Shape) -> Numbers:
        """Bound the period by the cost of the last."""
        return self.goal.period_cycles(self.threshold, shape)

    def add(self, plan: Found) -> None:
        """Keep a plan if it is the best of its form."""
        form = self._form(plan)
        if form not in self._best or plan < self._best[form]:
            self._best[form] = plan
            self._two_pools = None
            if len(self._best) >= self.top:
                costs = sorted(found.cost for found in self._best.values())
                self.threshold = min(self.threshold, costs[self.top - 1])

    def improves(self, form: Whole, cost: Numbers, chips: Whole) -> Bool[np.ndarray, " plans"]:
        """Say which plans cost less than those of their form, or as much on fewer chips."""
        if self._two_pools is None:
            self._two_pools = self._known_forms()
        forms, costs, its_chips = self._two_pools
        at = np.searchsorted(forms, form)
        is_known = forms[at] == form
        known = np.where(is_known, costs[at], np.inf)
        is_less = cost < known * _ROUNDING
        return np.asarray(is_less | ((cost * _ROUNDING <= known) & (chips < its_chips[at])))

    def _known_forms(self) -> tuple[Whole, Numbers, Whole]:
        """List forms of two pools with the cost and the chips of the best plan of each."""
        found = sorted((plan.form[0], plan) for plan in self._best.values() if not plan.form[1:])
        plans = [plan for _, plan in found]
        last = np.iinfo(np.int64).max  # so that something follows any form
        return (
            np.array([*(form for form, _ in found), last]),
            np.array([*(plan.cost for plan in plans), np.inf]),
            np.array([*(plan.chips for plan in plans), 0]),
        )

    def _form(self, plan: Found) -> Hashable:
        return plan.form

    def of_first(self, n_forms: int) -> "Best":
        """Begin again with the best of so many forms, and want no more than these."""
        first = Best(self.goal, min(n_forms, self.top), self.threshold)
        for plan in self.plans()[:n_forms]:
            first.add(plan)
        return first

    def plans(self) -> list[Found]:
        """List the best of each form."""
        return sorted(self._best.values())[: self.top]


class BestPlans(Best):
    """The best plans, of equal forms or not: for costs that bound what is wanted."""

    has_bounds = True

    def improves(self, form: Whole, cost: Numbers, chips: Whole) -> Bool[np.ndarray, " plans"]:
        """Any plan may, whatever others of its form cost."""
        return np.ones(len(form), bool)

    def _form(self, plan: Found) -> Hashable:
        return table_of([plan.spec])[0]  # places change while more ways are timed

    def of_first(self, n_forms: int) -> "Best":
        """Begin again, with all: a bound must hold for whatever is left."""
        first = BestPlans(self.goal, self.top, self.threshold)
        for plan in self.plans():
            first.add(plan)
        return first


class Any:
    """Any plan that fits, to know whether there is one: branches with most room come first."""

    goal = GOALS["latency"]
    has_bounds = False

    def __init__(self) -> None:
        self._found: list[Found] = []

    def wants(self, latency: Numbers, period: Numbers, shape: Shape) -> Bool[np.ndarray, " plans"]:
        """Want any plan until one is known."""
        return np.full(len(latency), not self._found)

    def order(self, latency: Numbers, period: Numbers, shape: Shape) -> Numbers:
        """The most chips first."""
        return np.asarray(-shape.chips.astype(np.float64))

    def latency_limit(self, shape: Shape) -> Numbers:
        """Set no bound."""
        return np.full(len(shape.stages), np.inf)

    def period_limit(self, latency: Numbers, shape: Shape) -> Numbers:
        """Set no bound."""
        return np.full(len(shape.stages), np.inf)

    def improves(self, form: Whole, cost: Numbers, chips: Whole) -> Bool[np.ndarray, " plans"]:
        """Any plan may until one is known."""
        return np.full(len(form), not self._found)

    def add(self, plan: Found) -> None:
        """Keep the first."""
        self._found = self._found or [plan]

    def plans(self) -> list[Found]:
        """List the plan, if there is one."""
        return self._found


class Front:
    """Plans that no other equals or beats in both latency and the cost of a goal."""

    has_bounds = False

    def __init__(self, goal: Goal = GOALS["throughput"], known: "Front | None" = None) -> None:
        """Begin with nothing, or with what another search found for a goal of the same costs."""
        self.goal = goal
        self._known = [] if known is None else known.plans()
        self._front = list(self._known)  # by latency, costs fall

    def _ends(self) -> tuple[Numbers, Numbers]:
        front = self._front
        return np.array([p.latency for p in front]), np.array([p.cost for p in front])

    def _least_cost(self, latency: Numbers) -> Numbers:
        """The least cost among plans of the front that are no slower."""
        ends, costs = self._ends()
        at = np.searchsorted(ends, latency, side="right")
        return np.concatenate([[np.inf], costs])[at]

    def wants(self, latency: Numbers, period: Numbers, shape: Shape) -> Bool[np.ndarray, " plans"]:
        """Say which plans no plan of the front equals or beats in both."""
        return np.asarray(self.goal.cost(latency, period, shape) < self._least_cost(latency))

    def order(self, latency: Numbers, period: Numbers, shape: Shape) -> Numbers:
        """The least product of both first."""
        return np.asarray(latency * self.goal.cost(latency, period, shape))

    def latency_limit(self, shape: Shape) -> Numbers:
        """Bound the latency beyond which any plan of a shape costs what the front has for less."""
        if not self._front:
            return np.full(len(shape.stages), np.inf)
        ends, costs = self._ends()
        limit = np.full(len(shape.stages), ends[0])
        for begin, end, cost in zip(ends, [*ends[1:], np.inf], costs, strict=True):
            most = self.goal.latency_cycles(cost, shape)
            limit = np.where(most > begin, np.maximum(limit, np.minimum(most, end)), limit)
        return limit

    def period_limit(self, latency: Numbers, shape: Shape) -> Numbers:
        """Bound the period by the cost that the front has at a latency."""
        limit = np.full(len(shape.stages), np.inf)
        for i, cost in enumerate(self._least_cost(latency).tolist()):
            if np.isfinite(cost):
                limit[i] = self.goal.period_cycles(cost, shape.take(np.array([i])))[0]
        return limit

    def improves(self, form: Whole, cost: Numbers, chips: Whole) -> Bool[np.ndarray, " plans"]:
        """Any plan may: a front has plans of any form."""
        return np.ones(len(form), bool)

    def add(self, plan: Found) -> None:
        """Keep a plan, and drop those that it beats."""
        if any(p.latency <= plan.latency and p.cost <= plan.cost for p in self._front):
            return
        kept = [p for p in self._front if p.latency < plan.latency or p.cost < plan.cost]
        self._front = sorted([*kept, plan], key=lambda p: p.latency)

    def plans(self) -> list[Found]:
        """List the front, fastest for one user first."""
        return list(self._front)

    def new_plans(self) -> list[Found]:
        """List the plans of the front that were not known at the beginning."""
        return [plan for plan in self._front if not any(plan is old for old in self._known)]
