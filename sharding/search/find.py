"""The best plans of a scenario's space, with the space described and what was left out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.layers.linear import Split

from ..scenario import Scenario
from ..space.cores import EVERYTHING, Choices
from ..space.plan_table import PlanTable
from .bounds import LeastCosts
from .goals import FRONTS, GOALS
from .held import held_cores, machine_may_hold, space_size
from .one_pool import Counts, OnePool
from .records import Any as AnyPlan
from .records import Best, Front, Record, table_of
from .sought import Sought
from .two_pools import PairCounts, TwoPools

#: Axes along which plans are not told apart, and why that loses none that is better.
NOT_SEARCHED = (
    "collectives by name: each takes the fastest that its links have, as auto does",
    "numbers of slots: as the rule says, with the number of rows of a slot that is fastest",
    "all_to_all dispatch where a step has fewer rows than chips that share out the experts",
)
#: Rows of a comparison among which plans of two pools are looked for.
_ROWS_WITH_POOLS = 20
_OF_POOLS = (
    f"plans of two pools beyond the best {_ROWS_WITH_POOLS} rows",
    "groups of different sizes in one pool, and more than two pools",
)
_NO_POOLS = ("groups of different sizes",)
_BETWEEN_MACHINES = (
    "between machines, ways to split a part that take no less and hold no less than another (its "
    "blocks may share stages otherwise, and save a hand-over within a machine)",
)


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search covered."""

    plans: float  #: of one pool: stages, chips of a group, and all ways to split every part
    plans_of_two_pools: float
    counts: Counts
    pairs: PairCounts  #: what became of plans of two pools
    refused: Mapping[str, int] = field(default_factory=dict)  #: degrees, by the rule they break
    not_searched: tuple[str, ...]

    @property
    def in_words(self) -> tuple[str, ...]:
        """The space, what was looked at and what was left, a sentence a line."""
        found, pairs = self.counts, self.pairs
        pooled = (
            f"{self.plans_of_two_pools:.4g} plans; {pairs.pairs} pairs of numbers of stages and "
            f"chips of a group may have room for the model, {pairs.looked_at} were looked at and "
            f"{pairs.evaluated} plans of them evaluated; the rest cannot be better, by their "
            "bounds."
        )
        alone = (
            f"Searched: {self.plans:.4g} plans, of {found.branches} numbers of stages and chips of "
            f"a group; {found.no_room} of these have no room for the model however it is split, "
            f"{found.beyond} have bounds above the rows shown.",
            f"  {found.timed} ways to split a part were timed where they lie, {found.compared} "
            "plans compared; the rest cannot be better, by their bounds.",
        )
        not_searched = f"  Not searched: {'; '.join(self.not_searched)}."
        if not self.plans:  # on a mixed system each machine has a pool
            return f"Searched: {pooled}", not_searched
        return (
            *alone,
            *([f"  Of two pools: {pooled}"] if self.plans_of_two_pools else []),
            not_searched,
        )

    def as_dict(self) -> dict[str, Any]:
        """The description as plain values."""
        return {
            "plans": self.plans,
            **vars(self.counts),
            "two_pools": {"plans": self.plans_of_two_pools, **vars(self.pairs)},
            "refused": dict(self.refused),
            "not_searched": list(self.not_searched),
        }


def find_plans(
    scenario: Scenario,
    objective: str = "latency",
    top: int = 1,
    *,
    choices: Choices = EVERYTHING,
    most_latency_s: float = np.inf,
) -> tuple[PlanTable | None, Searched]:
    """Find the best plans that fit.

    Args:
        scenario: the model, the machine, the request and the formats.
        objective: one of `GOALS`, or of `FRONTS`: all that no other equals or beats on both axes.
        top: how many forms of plans are wanted, of the front all.
        choices: what plans may be.
        most_latency_s: of a token.

    Returns:
        The plans, best first, one of each form (`options.told_apart`), or None if none fits; and
        what was searched.

    Fidelity: no plan of the space is better than the first: what is left out has bounds that say
    so. Times are approximate.
    """
    record: Record = (
        Front(GOALS[FRONTS[objective]]) if objective in FRONTS else Best(GOALS[objective], top)
    )
    return found_by(record, scenario, choices, most_latency_s)


def found_by(
    record: Record,
    scenario: Scenario,
    choices: Choices = EVERYTHING,
    most_latency_s: float = np.inf,
) -> tuple[PlanTable | None, Searched]:
    """Search for what a record wants; see `find_plans`."""
    clock_hz = float(scenario.system.chip.clock_hz)
    most_cycles = most_latency_s * clock_hz
    space = held_cores(scenario, choices)
    sought = Sought(
        scenario=scenario,
        record=record,
        space=space,
        least=LeastCosts(scenario),
        choices=choices,
        most_cycles=most_cycles,
    )
    one_pool, pairs = Counts(), PairCounts()
    if not scenario.crosses:
        search = OnePool(sought)
        search.run()
        one_pool = search.counts
    may_pair = scenario.system.n_chips > 1 and machine_may_hold(space, scenario)
    if choices.pools and (scenario.crosses or may_pair):
        first = record.of_first(_ROWS_WITH_POOLS) if isinstance(record, Best) else record
        pooled = TwoPools(replace(sought, record=first))
        for plan in pooled.run():
            record.add(plan)
        pairs = pooled.counts
    refused: dict[str, int] = {}
    for part in space:
        refused |= part.refused
    size = space_size(space, scenario, choices)
    searched = Searched(
        plans=size.one_pool,
        plans_of_two_pools=size.two_pools,
        counts=one_pool,
        pairs=pairs,
        refused=refused,
        not_searched=(
            *NOT_SEARCHED,
            *(_OF_POOLS if choices.pools else _NO_POOLS),
            *(_BETWEEN_MACHINES if scenario.crosses else ()),
        ),
    )
    found = [plan.spec for plan in record.plans()]
    return (table_of(found) if found else None), searched


def fits_somehow(scenario: Scenario, choices: Choices = EVERYTHING) -> bool:
    """Whether any plan fits."""
    plans, _ = found_by(AnyPlan(), scenario, choices)
    return plans is not None


#: What plans may be, by what they promise: the bits of one chip (`certified`), or those of one chip
#: that adds by the same rule, whatever their number of chips.
INVARIANT: Mapping[str, Choices] = {
    "off": EVERYTHING,
    "certified": Choices(splits=(Split.COLUMN,), moves=False),
    "tree": Choices(splits=(Split.TREE,), moves=False),
    "wide": Choices(splits=(Split.WIDE,), moves=False),
}
