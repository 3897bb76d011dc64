"""Drafts by a model of their own: its plan, its time and its memory beside those of the model.

The draft model lies on chips of the machine that a plan leaves free: from the plan's last chip on
if it fits into the rest of that node, else from the next node on. A step is k drafts one after
another, the hand-over of k token ids, the model's own step that judges them, and the way back of
what it keeps. Not modelled: other links of the draft model's groups than at the machine's first
chips, where it would lie across an edge of a rack; a draft model's prefill, which runs beside the
model's; and the row that its cache lacks after a step of which every draft was kept.

Of a mixed system the draft model has the LPUs for itself, and the model all GPUs: token ids cross
the network between them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from lpu_jax.cost.timing import spread_cycles
from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System

from ..plan import Plan
from ..scenario import Scenario
from .evaluate import CutPlans, Drafting, Evaluation, Numbers, evaluate, latencies_cycles
from .hand_overs import TOKEN_BYTES
from .pools import last_chip


def evaluate_with_drafts(
    plans: Sequence[Plan], scenario: Scenario, drafts: Sequence[Plan] = ()
) -> Evaluation:
    """Evaluate legal plans, each with the best plan of the draft model, if there is one.

    Args:
        plans: as for `evaluate`.
        scenario: the same; its draft model drafts.
        drafts: plans that the draft model may get, of which each plan takes the best that fits on
            the chips it leaves; none without a draft model.

    Raises:
        PlanError: a plan leaves the draft model too few chips.

    Fidelity: approximate.
    """
    found = evaluate(plans, scenario)
    if scenario.draft is None:
        return found
    return _with(evaluate(drafts, scenario.draft_step), found)


def latencies_s(cut: CutPlans, scenario: Scenario, beside: CutPlans | None = None) -> Numbers:
    """Evaluate the latency of plans alone.

    Args:
        cut: the plans, cut on a machine of the same shape.
        scenario: the model, the machine, the request and the formats.
        beside: the draft model's plan of each; None without a draft model.
    """
    clock_hz, own = float(scenario.system.chip.clock_hz), latencies_cycles(cut, scenario)
    if beside is None:
        return np.asarray(own / clock_hz)
    step, system = scenario.draft_step, scenario.system
    drafts_s = latencies_cycles(beside, step) / float(step.system.chip.clock_hz)
    if scenario.mixed is None:
        ends, chips = _ends(cut.plans, system), _ends(beside.plans, system)
        also = _exchange_cycles(_first_chip(ends, chips, system) + chips, scenario)
    else:
        also = _network_cycles(cut.plans, beside.plans, scenario)
    return np.asarray((own + also) / clock_hz + (scenario.request.tokens - 1) * drafts_s)


def _exchanged_bytes(scenario: Scenario) -> list[int]:
    """Bytes of the drafts on their way to the model, and of the tokens kept on their way back."""
    request = scenario.request
    return [TOKEN_BYTES * request.batch * n for n in (request.tokens - 1, request.tokens)]


def _exchange_cycles(n_chips: Int[np.ndarray, " plans"], scenario: Scenario) -> Numbers:
    """Cycles in which drafts, and the tokens kept, are on so many of the first chips."""
    sent = (spread_cycles(scenario.system, n_chips, n) for n in _exchanged_bytes(scenario))
    return sum(sent, np.zeros(len(n_chips)))


def _network_cycles(plans: Sequence[Plan], beside: Sequence[Plan], scenario: Scenario) -> Numbers:
    """Cycles of the drafts on their way from LPUs to GPUs, and of the tokens kept back."""
    assert scenario.mixed is not None
    gpus = np.array([plan.n_chips for plan in plans])
    lpus = np.array([plan.n_chips for plan in beside])
    clock_hz = float(scenario.system.chip.clock_hz)
    sent = (scenario.mixed.link.transfer_s(n, lpus, gpus) for n in _exchanged_bytes(scenario))
    return np.asarray(sum(sent, np.zeros(len(gpus))) * clock_hz)


def chips_beside(share: int, system: System) -> int:
    """Count the first chips on which every plan leaves a draft model so many in one piece."""
    return int((_room(np.arange(1, system.n_chips + 1), system) >= share).sum())


def draft_s(drafts: Evaluation, share: int) -> float:
    """Return the time of one draft by the plan that a draft model gets on so many chips."""
    return float(drafts.latency_s[_best_within(drafts, np.array([share]))[0]])


def _with(drafts: Evaluation, found: Evaluation) -> Evaluation:
    """Put the best plan of the draft model beside each plan, and count what it takes.

    Args:
        drafts: one draft, under the plans that the draft model may get.
        found: the model's own steps.
    """
    asked, system = found.scenario, found.scenario.system
    if asked.mixed is not None:
        return _with_elsewhere(drafts, found)
    ends = _ends(found.plans, system)
    best = _best_within(drafts, _room(ends, system))
    if (best < 0).any():
        name = found.plans[int(np.argmin(best))].name
        least = _ends(drafts.plans, system).min()
        raise PlanError(
            f"plan {name} leaves too few of the {system.n_chips} chips of {system.name} for draft "
            f"model {drafts.scenario.model.name}, which needs at least {least} in one piece."
        )
    beside = evaluate(drafts.plans.take(best), drafts.scenario)
    chips = _ends(beside.plans, system)
    both = _first_chip(ends, chips, system) + chips
    return _added(found, beside, _exchange_cycles(both, asked), system.copies(both))


def _with_elsewhere(drafts: Evaluation, found: Evaluation) -> Evaluation:
    """Let the fastest plan of the draft model, on LPUs of their own, draft for every plan."""
    asked, n = found.scenario, len(found.plans)
    order = np.lexsort((drafts.latency_cycles, np.maximum(drafts.short_bytes, 0.0)))
    beside = evaluate(drafts.plans.take(np.full(n, order[0])), drafts.scenario)
    also = _network_cycles(list(found.plans), list(beside.plans), asked)
    return _added(found, beside, also, np.minimum(found.copies, beside.copies))


def _added(
    found: Evaluation, beside: Evaluation, also: Numbers, copies: Int[np.ndarray, " plans"]
) -> Evaluation:
    """Add drafts to steps.

    Args:
        found: the model's own steps.
        beside: one draft for each.
        also: cycles of token ids there and back.
        copies: of both side by side.
    """
    asked = found.scenario
    n_drafts, ids = asked.request.tokens - 1, _exchanged_bytes(asked)
    drafting = Drafting(
        evaluation=beside,
        n_drafts=n_drafts,
        hand_over_cycles=also,
        verification_cycles=found.latency_cycles,
        clock_ratio=found.clock_hz / beside.clock_hz,
    )
    ratio = n_drafts * drafting.clock_ratio
    caches = np.minimum(found.cached_batches, beside.cached_batches)
    return replace(
        found,
        drafting=drafting,
        latency_cycles=found.latency_cycles + drafting.cycles + also,
        worst_latency_cycles=found.worst_latency_cycles
        + ratio * beside.worst_latency_cycles
        + also,
        lower_cycles=found.lower_cycles + ratio * beside.lower_cycles + also,
        upper_cycles=found.upper_cycles + ratio * beside.upper_cycles + also,
        copies=copies,
        # The draft model serves one micro-batch at a time, like one more stage.
        slowest_stage_cycles=np.maximum(found.slowest_stage_cycles, drafting.cycles),
        wire_bytes=found.wire_bytes + n_drafts * beside.wire_bytes + sum(ids),
        cached_batches=caches,
        in_flight=np.minimum(caches, found.plans.n_stages + 1).astype(np.int64),
    )


def _ends(plans: Sequence[Plan], system: System) -> Int[np.ndarray, " plans"]:
    """The chip after the last one of each plan, if it begins at the machine's first."""
    pools = [plan.pools for plan in plans]
    ends = {own: last_chip(own, system) for own in dict.fromkeys(pools)}
    return np.array([ends[own] for own in pools])


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
