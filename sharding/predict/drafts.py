"""Drafts by a model of their own: its plan, its time and its memory beside those of the model.

The draft model lies on chips of the machine that a plan leaves free: from the plan's last chip on
if it fits into the rest of that node, else from the next node on. A step is k drafts one after
another, the hand-over of k token ids, the model's own step that judges them, and the way back of
what it keeps. Not modelled: other links of the draft model's groups than at the machine's first
chips, where it would lie across an edge of a rack; a draft model's prefill, which runs beside the
model's; and the row that its cache lacks after a step of which every draft was kept.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from lpu_jax.cost.timing import spread_cycles
from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System

from ..legal import Search, check_plan
from ..plan import Plan
from ..scenario import Scenario
from .evaluate import TOKEN_BYTES, Drafting, Evaluation, evaluate, without_idle_stages

#: Why a plan is refused that leaves the draft model no chips.
NO_ROOM = "does not fit: too few chips are left for the draft model"


def evaluate_with_drafts(plans: Sequence[Plan], scenario: Scenario) -> Evaluation:
    """Evaluate legal plans, each with the best plan of the draft model, if there is one.

    Args:
        plans: as for `evaluate`.
        scenario: the same; its draft model drafts.

    Raises:
        PlanError: a plan leaves the draft model too few chips, or its own plan does not exist.

    Fidelity: approximate.
    """
    found = evaluate(plans, scenario)
    return found if scenario.draft is None else _with(draft_candidates(scenario), found)


def search_with_drafts(scenario: Scenario) -> tuple[Evaluation, Mapping[str, int]]:
    """Evaluate legal plans that leave the draft model chips, each with its best plan there.

    The draft model gets 1, 2, 4 and so on of the chips, at most half of them, from as many as it
    fits on to as many as make it fastest; a plan of the model is one for the chips that remain.

    Returns:
        The plans, and how many ways to split were refused, by reason.

    Raises:
        PlanError: there is none, or the draft model's own plan does not exist.
    """
    drafts, n_chips = draft_candidates(scenario), scenario.system.n_chips
    found: dict[Plan, None] = {}
    refused: Counter[str] = Counter()
    for share in _shares(drafts, n_chips):
        if share >= n_chips:
            raise PlanError(
                f"the draft model's plan takes all {n_chips} chips of {scenario.system.name}; it "
                "must leave some to the model."
            )
        search = Search(replace(scenario, system=replace(scenario.system, n_chips=n_chips - share)))
        found |= dict.fromkeys(search.plans())
        refused |= search.refused  # of the shares that which refuses most
    whole = without_idle_stages(evaluate(list(found), scenario))
    least = _ends(drafts.plans, scenario.system).min()
    has_room = _room(_ends(whole.plans, scenario.system), scenario.system) >= least
    if not has_room.any():
        raise PlanError(f"{scenario.system.name} has no plan that leaves a draft model chips.")
    refused[NO_ROOM] += int(np.sum(~has_room))
    plans = [plan for plan, kept in zip(whole.plans, has_room, strict=True) if kept]
    return _with(drafts, evaluate(plans, scenario)), +refused


def draft_candidates(scenario: Scenario) -> Evaluation:
    """Evaluate one draft under every plan that the draft model may get.

    Returns:
        The plan that was given, or those for 1, 2, 4 and so on chips, at most half of the machine.

    Raises:
        PlanError: the plan that was given does not exist.
    """
    assert scenario.draft is not None
    step, plan = scenario.draft_step, scenario.draft.plan
    if plan is not None:
        check_plan(plan, step)
        return evaluate([plan], step)
    found: dict[Plan, None] = {}
    for share in _powers(scenario.system.n_chips):
        part = replace(step, system=replace(step.system, n_chips=share))
        found |= dict.fromkeys(Search(part).within_reach().plans())
    return without_idle_stages(evaluate(list(found), step))


def _powers(n_chips: int) -> list[int]:
    """Powers of two up to half of the chips."""
    return [1 << i for i in range((n_chips // 2).bit_length())]


def _shares(drafts: Evaluation, n_chips: int) -> list[int]:
    """How many chips to leave the draft model: those that make a difference."""
    chips = _ends(drafts.plans, drafts.scenario.system)
    if len(chips) == 1:
        return [int(chips[0])]
    fits, powers = drafts.fits, _powers(n_chips)
    if not fits.any():
        return powers[-1:]
    most = chips[fits][np.argmin(drafts.latency_cycles[fits])]
    return [n for n in powers if chips[fits].min() <= n < 2 * most] or powers[-1:]


def _with(drafts: Evaluation, found: Evaluation) -> Evaluation:
    """Put the best plan of the draft model beside each plan, and count what it takes.

    Args:
        drafts: one draft, under the plans that the draft model may get.
        found: the model's own steps.
    """
    asked, system = found.scenario, found.scenario.system
    ends = _ends(found.plans, system)
    best = _best_within(drafts, _room(ends, system))
    if (best < 0).any():
        name = found.plans[int(np.argmin(best))].name
        least = _ends(drafts.plans, system).min()
        raise PlanError(
            f"plan {name} leaves too few of the {system.n_chips} chips of {system.name} for draft "
            f"model {drafts.scenario.model.name}, which needs at least {least} in one piece."
        )
    beside = evaluate([drafts.plans[i] for i in best], drafts.scenario)
    n_drafts, batch = asked.request.tokens - 1, asked.request.batch
    chips = _ends(beside.plans, system)
    both = _first_chip(ends, chips, system) + chips
    ids = [TOKEN_BYTES * batch * n for n in (n_drafts, n_drafts + 1)]
    drafting = Drafting(
        evaluation=beside,
        n_drafts=n_drafts,
        hand_over_cycles=sum((spread_cycles(system, both, n) for n in ids), np.zeros(len(best))),
        verification_cycles=found.latency_cycles,
    )
    also = drafting.hand_over_cycles
    caches = np.minimum(found.cached_batches, beside.cached_batches)
    return replace(
        found,
        drafting=drafting,
        latency_cycles=found.latency_cycles + drafting.cycles + also,
        worst_latency_cycles=found.worst_latency_cycles
        + n_drafts * beside.worst_latency_cycles
        + also,
        lower_cycles=found.lower_cycles + n_drafts * beside.lower_cycles + also,
        upper_cycles=found.upper_cycles + n_drafts * beside.upper_cycles + also,
        # The draft model serves one micro-batch at a time, like one more stage.
        slowest_stage_cycles=np.maximum(found.slowest_stage_cycles, drafting.cycles),
        wire_bytes=found.wire_bytes + n_drafts * beside.wire_bytes + sum(ids),
        cached_batches=caches,
        in_flight=np.minimum(caches, found.cuts.busy_stages + 1).astype(np.int64),
    )


def _ends(plans: Sequence[Plan], system: System) -> Int[np.ndarray, " plans"]:
    """The chip after the last one of each plan, if it begins at the machine's first."""
    ends: dict[tuple[int, int], int] = {}
    for plan in plans:
        key = plan.stages, plan.group_chips
        if key not in ends:
            ends[key] = int(system.topology.stage_bases(*key)[-1]) + plan.group_chips
    return np.array([ends[plan.stages, plan.group_chips] for plan in plans])


def _room(ends: Int[np.ndarray, " plans"], system: System) -> Int[np.ndarray, " plans"]:
    """Chips in one piece behind each plan: in the rest of its last node, or after it."""
    node = system.topology.node_chips
    edge = np.minimum(-(-ends // node) * node, system.n_chips)
    return np.asarray(np.maximum(edge - ends, system.n_chips - edge))


def _first_chip(
    ends: Int[np.ndarray, " plans"], chips: Int[np.ndarray, " plans"], system: System
) -> Int[np.ndarray, " plans"]:
    """Where a draft model on so many chips begins behind each plan."""
    node = system.topology.node_chips
    edge = -(-ends // node) * node
    return np.where(ends + chips <= edge, ends, edge)


def _best_within(drafts: Evaluation, room: Int[np.ndarray, " plans"]) -> Int[np.ndarray, " plans"]:
    """The fastest draft that fits on so many chips, else the one that lacks least; -1: no plan."""
    order = np.lexsort((drafts.latency_cycles, np.maximum(drafts.short_bytes, 0.0)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    chips = _ends(drafts.plans, drafts.scenario.system)
    by_chips = np.argsort(chips, kind="stable")
    best = order[np.minimum.accumulate(rank[by_chips])]
    within = np.searchsorted(chips[by_chips], room, side="right")
    return np.where(within > 0, best[within - 1], -1)
