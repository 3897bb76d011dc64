"""The main job: rank a model's plans on a machine, with what each costs and whether it fits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Num

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError, unknown
from lpu_jax.machine.system import System
from lpu_jax.predicates import is_whole
from lpu_jax.provenance import assumed
from models.config import ModelConfig
from models.policy import Policy

from ..legal import Search, check_plan
from ..plan import Plan, check_are_plans
from ..predict.drafts import evaluate_with_drafts, search_with_drafts
from ..predict.energy import energy, one
from ..predict.evaluate import Evaluation, evaluate, without_idle_stages
from ..predict.latency_range import latency_ranges_s
from ..predict.serving import prefill
from ..predict.slot_reading import slot_readings
from ..request import NEXT_TOKEN, Request, check_prompt
from ..scenario import Scenario, check_formats, check_policy, scenario
from .comparison import Comparison, Objective, Row
from .draft_row import draft_row
from .front import on_front

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "pareto", "first-token")


def compare(
    model: str | Path | ModelConfig,
    system: str | Path | System,
    request: Request = NEXT_TOKEN,
    *,
    policy: str | Policy = "fp16",
    draft_model: str | Path | ModelConfig | None = None,
    draft_plan: Plan | None = None,
    plans: Sequence[Plan] | None = None,
    objective: Objective = "latency",
    prompt: int | None = None,
    top: int = 10,
    expert_shares: Sequence[float] | Num[np.ndarray, " experts"] | None = None,
) -> Comparison:
    """Rank plans; nothing of the model is allocated.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        system: a system's name, the path of a TOML file, or a system.
        request: what a step does: sequences, new tokens, allocated positions, drafts.
        policy: name of a precision policy, or a policy.
        draft_model: the model that makes the drafts, as `model`, on chips that a plan leaves free;
            None: they cost nothing.
        draft_plan: its plan; None: for each plan the fastest that fits on the chips left.
        plans: the plans to rank; None: all legal ones are searched.
        objective: `latency` of a token, `throughput` of all in flight, the `pareto` front of both
            rates, or the `first-token` of a prompt.
        prompt: tokens of a prompt, for the time to the first token; None: the whole context.
        top: how many rows to keep.
        expert_shares: how often each expert is chosen; None: all alike.

    Returns:
        The ranked rows, the number of plans searched and fitting, and the reasons of the others.

    Raises:
        LpuError: an unknown name, an impossible number or an illegal plan: one sentence.

    Fidelity: approximate (docs/timing.md).
    """
    asked = scenario(
        model,
        system,
        request,
        policy=policy,
        draft_model=draft_model,
        draft_plan=draft_plan,
        expert_shares=expert_shares,
    )
    prompt_tokens = check_prompt(prompt, request)
    _check_words(objective, top)
    check_policy(asked.policy, asked.model, asked.system)
    if asked.draft is not None:
        check_formats(asked.draft.policy, asked.draft.model, asked.system)
    refused: Mapping[str, int] = {}
    if plans is None:
        evaluation, refused = search_plans(asked)
    else:
        check_plans(plans, asked)
        evaluation = evaluate_with_drafts(plans, asked)
    if objective == "first-token":
        order = rank_by_first_token(evaluation, prompt_tokens)
    else:
        order = rank(evaluation, objective)
    best, nearest = _best_of_each_shape(evaluation, order), _nearest(evaluation)
    fits, memory = evaluation.fits, asked.system.chip.memory_name
    unfit = Counter(_reason(evaluation, int(i), memory) for i in np.flatnonzero(~fits))
    kept = best[:top] if fits.any() else nearest[:top]
    chosen = [*kept, *nearest[:1]]
    rows = _rows(evaluation, chosen, prompt_tokens)
    return Comparison(
        scenario=asked,
        prompt_tokens=prompt_tokens,
        objective=objective,
        rows=tuple(rows[: len(kept)]),
        legal=len(evaluation.plans),
        fitting=int(fits.sum()),
        rejected={**unfit, **refused},
        nearest=rows[-1] if nearest else None,
        assumed=assumed(asked.system.constants()),
        evaluation=evaluation,
    )


def _check_words(objective: object, top: object) -> None:
    """Refuse an objective that does not exist, or a number of rows that cannot be kept.

    Raises:
        LpuError: says which.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective", str(objective), OBJECTIVES)
    if not is_whole(top) or top < 1:
        raise LpuError(f"top is {described(top)}; it must be a whole number of at least 1.")


def check_plans(plans: Sequence[Plan], scenario: Scenario) -> None:
    """Refuse plans that do not exist, or none at all.

    Raises:
        PlanError: says which, and what is allowed.
    """
    check_are_plans("compare", plans)
    for plan in plans:
        check_plan(plan, scenario)


def search_plans(scenario: Scenario) -> tuple[Evaluation, Mapping[str, int]]:
    """Evaluate all legal plans, each without stages that hold no block, and with its drafts.

    Returns:
        The plans, and how many ways to split were refused, by reason.
    """
    if scenario.draft is not None:
        return search_with_drafts(scenario)
    search = Search(scenario)
    return without_idle_stages(evaluate(list(search.plans()), scenario)), search.refused


def rank(evaluation: Evaluation, objective: Objective) -> list[int]:
    """Order the plans that fit by a rate, best first; equal plans keep the order of the search."""
    fitting = np.flatnonzero(evaluation.fits)
    per_user, total = evaluation.tokens_per_s_per_user, evaluation.tokens_per_s_total
    first, second = (total, per_user) if objective == "throughput" else (per_user, total)
    order = fitting[np.lexsort((-second[fitting], -first[fitting]))]
    if objective != "pareto":
        return [int(i) for i in order]
    is_best = on_front(per_user[order], total[order])
    return [int(i) for i in order[is_best]]


def rank_by_first_token(evaluation: Evaluation, prompt_tokens: int) -> list[int]:
    """Order the plans that fit by the first token of a prompt, then by the rate of one user."""
    fitting = np.flatnonzero(evaluation.fits)
    if not len(fitting):
        return []
    plans = [evaluation.plans[int(i)] for i in fitting]
    found = prefill(plans, evaluation.fits[fitting], evaluation.scenario, prompt_tokens)
    rates = evaluation.tokens_per_s_per_user[fitting]
    return [int(i) for i in fitting[np.lexsort((-rates, found.time_to_first_token_s))]]


def _best_of_each_shape(evaluation: Evaluation, order: Sequence[int]) -> list[int]:
    """Keep the best number of stages of plans that split their groups alike."""
    seen: dict[Plan, int] = {}
    for i in order:
        seen.setdefault(replace(evaluation.plans[i], stages=1), i)
    return list(seen.values())


def _nearest(evaluation: Evaluation) -> list[int]:
    """Plans that do not fit, by what the fullest chip lacks, each shape once."""
    missing = np.flatnonzero(~evaluation.fits)
    order = missing[
        np.lexsort((evaluation.latency_cycles[missing], evaluation.short_bytes[missing]))
    ]
    return _best_of_each_shape(evaluation, [int(i) for i in order])


def _reason(evaluation: Evaluation, i: int, memory: str) -> str:
    """Which part of the memory is too much."""
    usable = evaluation.sram_bytes - evaluation.reserved_bytes
    if evaluation.own_short_bytes[i] <= 0:
        return f"does not fit: the draft model exceeds the {memory} of the chips left for it"
    if evaluation.weight_bytes[i] > usable:
        return f"does not fit: weights alone exceed a chip's {memory}"
    if evaluation.weight_bytes[i] + evaluation.cache_bytes[i] > usable:
        return f"does not fit: weights and cache exceed a chip's {memory}"
    return f"does not fit: weights, cache and activations exceed a chip's {memory}"


def _total_bound_by(evaluation: Evaluation, i: int) -> str:
    """What bounds the rate of all sequences of a plan."""
    if not evaluation.is_stage_bound[i]:
        return "users in flight"
    drafting, slowest = evaluation.drafting, evaluation.slowest_stage_cycles[i]
    return "draft model" if drafting and drafting.cycles[i] == slowest else "slowest stage"


def _rows(evaluation: Evaluation, chosen: Sequence[int], prompt_tokens: int) -> list[Row]:
    plans = [evaluation.plans[i] for i in chosen]
    request = evaluation.scenario.request
    memory = evaluation.scenario.system.chip.memory_name
    taken_in = prefill(plans, evaluation.fits[chosen], evaluation.scenario, prompt_tokens)
    joules = energy(evaluation)
    sized = [evaluation.slots[i] for i in chosen] if evaluation.slots else []
    slots = slot_readings(plans, sized, evaluation.scenario)
    ranges_s = latency_ranges_s(plans, evaluation.scenario) if plans else np.empty((0, 2))
    return [
        Row(
            plan=plan,
            fits=bool(evaluation.fits[i]),
            reason=None if evaluation.fits[i] else _reason(evaluation, i, memory),
            short_bytes=float(evaluation.short_bytes[i]),
            sram_used_fraction=float(
                (evaluation.used_bytes[i] + evaluation.reserved_bytes) / evaluation.sram_bytes
            ),
            decode_latency_s=float(evaluation.latency_s[i]),
            decode_latency_lower_s=float(evaluation.lower_cycles[i] / evaluation.clock_hz),
            decode_latency_upper_s=float(evaluation.upper_cycles[i] / evaluation.clock_hz),
            decode_latency_range_s=(float(ranges_s[row, 0]), float(ranges_s[row, 1])),
            tokens_per_s_per_user=float(evaluation.tokens_per_s_per_user[i]),
            tokens_per_s_total=float(evaluation.tokens_per_s_total[i]),
            tokens_per_step=request.kept_tokens,
            in_flight=int(evaluation.in_flight[i]),
            users_in_flight=int(evaluation.in_flight[i]) * request.batch,
            total_bound_by=_total_bound_by(evaluation, i),
            reserve_limit_fraction=float(evaluation.largest_reserve_fraction[i]),
            hand_over_s=float(evaluation.hand_over_cycles[i] / evaluation.clock_hz),
            host_s=float(evaluation.host_cycles / evaluation.clock_hz),
            prefill_latency_s=float(taken_in.latency_s[row]),
            prefill_chunk_tokens=int(taken_in.chunk_tokens[row]),
            prefill_chunk_bound_by="memory" if taken_in.is_memory_bound[row] else "time",
            time_to_first_token_s=float(taken_in.time_to_first_token_s[row]),
            wire_bytes_per_token=float(
                evaluation.wire_bytes[i] / (request.batch * request.kept_tokens)
            ),
            energy_j_per_token_lower=one(joules.lower_j_per_token, i),
            energy_j_per_token_upper=one(joules.upper_j_per_token, i),
            energy_j_per_token_upper_alone=one(joules.upper_alone_j_per_token, i),
            memory_bytes=evaluation.memory_bytes(i),
            slots=slots[row],
            draft=None if evaluation.drafting is None else draft_row(evaluation.drafting, i),
        )
        for row, (i, plan) in enumerate(zip(chosen, plans, strict=True))
    ]
