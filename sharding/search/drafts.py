"""The plans of a draft model, and of the model beside it: the space is searched for both.

The draft model gets 1, 2, 4 and so on of the chips, at most half of them, from as many as it fits
on to as many as make it fastest; a plan of the model is one for the chips that remain.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System

from ..legal import check_plan
from ..plan import Plan
from ..predict.drafts import chips_beside, draft_s
from ..predict.evaluate import Evaluation, evaluate
from ..predict.pools import last_chip
from ..scenario import Scenario
from .find import Searched, find_plans
from .nearest import nearest_plans


def draft_plans(scenario: Scenario) -> list[Plan]:
    """List the plans that the draft model may get; none without a draft model.

    Returns:
        The plan that was given, or the fastest, else the leanest, for 1, 2, 4 and so on chips.

    Raises:
        PlanError: the plan that was given does not exist.
    """
    if scenario.draft is None:
        return []
    step, plan = scenario.draft_step, scenario.draft.plan
    if plan is not None:
        check_plan(plan, step)
        return [plan]
    if scenario.mixed is not None:  # which has chips of its own for it
        plans, _ = find_plans(step)
        return [(nearest_plans(step, 1) if plans is None else plans)[0]]
    found: dict[Plan, None] = {}
    for share in _powers(scenario.system):
        part = replace(step, system=replace(step.system, n_chips=share))
        plans, _ = find_plans(part)
        found[(nearest_plans(part, 1) if plans is None else plans)[0]] = None
    return list(found)


#: Searches a part of the machine for plans whose own step takes at most so many seconds.
Finder = Callable[[Scenario, float], tuple[Sequence[Plan] | None, Searched]]


def find_with_drafts(
    scenario: Scenario, drafts: Sequence[Plan], find: Finder, most_latency_s: float = np.inf
) -> tuple[list[Plan] | None, Searched]:
    """Find the best plans that leave a draft model chips, for each number of chips it may get.

    Args:
        scenario: the model, the machine, the request, the formats and who drafts.
        drafts: from `draft_plans`.
        find: searches the chips that are left for the model.
        most_latency_s: of a step, its drafts included.

    Returns:
        The plans, or None if nothing was found; and what was searched for the model alone on the
        most chips.

    Raises:
        PlanError: no chip is left for the model.
    """
    system, beside = scenario.system, evaluate(drafts, scenario.draft_step)
    n_drafts = scenario.request.tokens - 1
    if scenario.mixed is not None:
        plans, covered = find(scenario, most_latency_s - n_drafts * float(beside.latency_s[0]))
        return (None if plans is None else list(plans)), covered
    found: dict[Plan, None] = {}
    searched: Searched | None = None
    for share in _shares(beside):
        n_chips = chips_beside(share, system)
        if not n_chips:
            raise PlanError(
                f"the draft model's plan takes all {system.n_chips} chips of {system.name}; it "
                "must leave some to the model."
            )
        part = replace(scenario, system=replace(system, n_chips=n_chips))
        drafting_s = n_drafts * draft_s(beside, share)
        plans, covered = find(part, most_latency_s - drafting_s)
        found |= dict.fromkeys(plans or ())
        searched = searched or covered
    assert searched is not None
    return list(found) or None, searched


def chips_left(scenario: Scenario) -> Callable[[int], int]:
    """Count the chips of the first so many on which a plan leaves a draft model enough.

    Without a draft model these are all.
    """
    system, draft = scenario.system, scenario.draft
    if draft is None:
        return lambda n_chips: n_chips
    beside = evaluate(draft_plans(scenario), scenario.draft_step)
    least = min(_chips(beside)[beside.fits].tolist(), default=system.n_chips)

    def left(n_chips: int) -> int:
        part = replace(system, n_chips=n_chips)
        may_have = n_chips if draft.plan is not None else max(_powers(part), default=0)
        return chips_beside(least, part) if least <= may_have else 0

    return left


def _powers(system: System) -> list[int]:
    """Powers of two up to half of the chips."""
    return [1 << i for i in range((system.n_chips // 2).bit_length())]


def _shares(drafts: Evaluation) -> list[int]:
    """How many chips to leave the draft model, fewest first: those that make a difference."""
    system, chips = drafts.scenario.system, _chips(drafts)
    if len(chips) == 1:
        return [int(chips[0])]
    fits, powers = drafts.fits, _powers(system)
    if not fits.any():
        return powers[-1:]
    most = chips[fits][np.argmin(drafts.latency_cycles[fits])]
    return [n for n in powers if chips[fits].min() <= n < 2 * most] or powers[-1:]


def _chips(drafts: Evaluation) -> Int[np.ndarray, " plans"]:
    """The chips that each plan needs in one piece."""
    system = drafts.scenario.system
    return np.array([last_chip(plan.pools, system) for plan in drafts.plans])
