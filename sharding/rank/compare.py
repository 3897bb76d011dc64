"""The main job: rank a model's plans on a machine, what each costs and whether it fits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lpu_jax.errors import LpuError, PlanError, unknown
from lpu_jax.machine.catalogue import system as named_system
from lpu_jax.machine.system import System
from lpu_jax.provenance import assumed
from models.config import ModelConfig
from models.policy import Policy, policy_named
from models.zoo import model as named_model

from ..legal import Search, check_plan, check_policy
from ..plan import Plan
from ..predict.energy import energy, one
from ..predict.evaluate import Evaluation, evaluate
from ..predict.serving import prefill
from ..request import Request, check_prompt, decode_request
from .comparison import Comparison, Objective, Row
from .front import on_front

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "pareto")


def compare(
    model: str | ModelConfig,
    system: str | System,
    plans: Sequence[Plan] | None = None,
    *,
    weights_format: str | Policy = "fp16",
    batch: int = 1,
    context: int = 4096,
    top: int = 10,
    objective: Objective = "latency",
    draft_tokens: int | None = None,
    acceptance: float | None = None,
    prompt: int | None = None,
) -> Comparison:
    """Rank plans; nothing of the model is allocated.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        system: a system's name, the path of a TOML file, or a system.
        plans: the plans to rank; left out, all legal ones are searched.
        weights_format: name of a precision policy, or a policy.
        batch: sequences per micro-batch.
        context: allocated positions per sequence.
        top: how many rows to keep.
        objective: `latency` of a token, `throughput` of all in flight, or the `pareto` front of
            both rates.
        draft_tokens: tokens drafted for every step; None: no speculative decoding.
        acceptance: probability that a draft is accepted; given with `draft_tokens`.
        prompt: tokens of a prompt, for the time to the first token; None: the whole context.

    Returns:
        The ranked rows, the number of plans searched and fitting, and the reasons of the others.

    Raises:
        LpuError: an unknown name, an impossible number or an illegal plan: one sentence.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise LpuError(f"top is {top!r}; it must be a whole number of at least 1.")
    cfg = named_model(model) if isinstance(model, str) else model
    machine = named_system(system) if isinstance(system, str) else system
    policy = (
        policy_named(weights_format, cfg) if isinstance(weights_format, str) else weights_format
    )
    request = decode_request(
        cfg, batch=batch, context=context, draft_tokens=draft_tokens, acceptance=acceptance
    )
    prompt_tokens = check_prompt(prompt, request)
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    check_policy(policy, cfg, machine)
    refused: Mapping[str, int] = {}
    if plans is None:
        evaluation, refused = search_plans(cfg, machine, policy, request)
    else:
        if not plans:
            raise PlanError("no plan was given; at least one is needed.")
        for plan in plans:
            check_plan(plan, cfg, machine, policy, request)
        evaluation = evaluate(plans, cfg, machine, policy, request)
    order = rank(evaluation, objective)
    best, nearest = _best_of_each_shape(evaluation, order), _nearest(evaluation)
    fits, memory = evaluation.fits, machine.chip.memory_name
    unfit = Counter(_reason(evaluation, int(i), memory) for i in np.flatnonzero(~fits))
    kept = best[:top] if fits.any() else nearest[:top]
    chosen = [*kept, *nearest[:1]]
    rows = _rows(evaluation, chosen, cfg, machine, policy, prompt_tokens)
    return Comparison(
        model=cfg,
        system=machine,
        policy=policy,
        request=request,
        prompt_tokens=prompt_tokens,
        objective=objective,
        rows=tuple(rows[: len(kept)]),
        legal=len(evaluation.plans),
        fitting=int(fits.sum()),
        rejected={**unfit, **refused},
        nearest=rows[-1] if nearest else None,
        assumed=assumed(machine.constants()),
        evaluation=evaluation,
    )


def search_plans(
    cfg: ModelConfig, system: System, policy: Policy, request: Request
) -> tuple[Evaluation, Mapping[str, int]]:
    """Evaluate all legal plans, each without stages that hold no block.

    Args:
        cfg: the model.
        system: the machine.
        policy: formats of the weights.
        request: what a step does.

    Returns:
        The plans, and how many ways to split were refused, by reason.
    """
    search = Search(cfg, system, policy, request)
    evaluation = evaluate(list(search.plans()), cfg, system, policy, request)
    return _without_idle_stages(evaluation, cfg, system, policy), search.refused


def rank(evaluation: Evaluation, objective: Objective) -> list[int]:
    """Order the plans that fit, best first; equal plans keep the order of the search."""
    fitting = np.flatnonzero(evaluation.fits)
    per_user, total = evaluation.tokens_per_s_per_user, evaluation.tokens_per_s_total
    first, second = (total, per_user) if objective == "throughput" else (per_user, total)
    order = fitting[np.lexsort((-second[fitting], -first[fitting]))]
    if objective != "pareto":
        return [int(i) for i in order]
    is_best = on_front(per_user[order], total[order])
    return [int(i) for i in order[is_best]]


def _without_idle_stages(
    evaluation: Evaluation, cfg: ModelConfig, system: System, policy: Policy
) -> Evaluation:
    """Evaluate plans without the stages that hold no block: these only cost chips and hand-overs.

    The others hold what they held: fewer stages of the same chips cannot need more memory.
    """
    busy = evaluation.cuts.busy_stages
    plans = dict.fromkeys(
        plan if plan.stages == n else replace(plan, stages=int(n))
        for plan, n in zip(evaluation.plans, busy, strict=True)
    )
    return evaluate(list(plans), cfg, system, policy, evaluation.request)


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
    if evaluation.weight_bytes[i] > usable:
        return f"does not fit: weights alone exceed a chip's {memory}"
    if evaluation.weight_bytes[i] + evaluation.cache_bytes[i] > usable:
        return f"does not fit: weights and cache exceed a chip's {memory}"
    return f"does not fit: weights, cache and activations exceed a chip's {memory}"


def _rows(
    evaluation: Evaluation,
    chosen: Sequence[int],
    cfg: ModelConfig,
    system: System,
    policy: Policy,
    prompt_tokens: int,
) -> list[Row]:
    plans = [evaluation.plans[i] for i in chosen]
    request = evaluation.request
    memory = system.chip.memory_name
    taken_in = prefill(plans, evaluation.fits[chosen], cfg, system, policy, request, prompt_tokens)
    joules = energy(evaluation, cfg, system.chip)
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
            tokens_per_s_per_user=float(evaluation.tokens_per_s_per_user[i]),
            tokens_per_s_total=float(evaluation.tokens_per_s_total[i]),
            tokens_per_step=request.kept_tokens,
            in_flight=int(evaluation.in_flight[i]),
            users_in_flight=int(evaluation.in_flight[i]) * request.batch,
            total_bound_by="slowest stage" if evaluation.is_stage_bound[i] else "users in flight",
            reserve_limit_fraction=float(evaluation.largest_reserve_fraction[i]),
            hand_over_s=float(evaluation.hand_over_cycles[i] / evaluation.clock_hz),
            host_s=float(evaluation.host_cycles / evaluation.clock_hz),
            prefill_latency_s=float(taken_in.latency_s[row]),
            prefill_chunk_tokens=int(taken_in.chunk_tokens[row]),
            time_to_first_token_s=float(taken_in.time_to_first_token_s[row]),
            wire_bytes_per_token=float(
                evaluation.wire_bytes[i] / (request.batch * request.kept_tokens)
            ),
            energy_j_per_token_lower=one(joules.lower_j_per_token, i),
            energy_j_per_token_upper=one(joules.upper_j_per_token, i),
            energy_j_per_token_upper_alone=one(joules.upper_alone_j_per_token, i),
            memory_bytes=evaluation.memory_bytes(i),
        )
        for row, (i, plan) in enumerate(zip(chosen, plans, strict=True))
    ]
