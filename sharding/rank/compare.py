"""The main job: rank a model's plans on a machine, with what each costs and whether it fits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Num

from lpu_jax.machine.mixed import Machine
from lpu_jax.provenance import assumed
from models.config import ModelConfig
from models.policy import Policy

from ..legal import check_plan
from ..plan import Plan, check_are_plans
from ..predict.drafts import evaluate_with_drafts
from ..predict.energy import energy
from ..predict.evaluate import Evaluation
from ..request import NEXT_TOKEN, Request, check_prompt
from ..scenario import Scenario, scenario
from ..search.drafts import draft_plans, find_with_drafts
from ..search.fewest import smallest_part
from ..search.find import INVARIANT, Searched, find_plans
from ..search.first_token import find_first_tokens
from ..search.goals import FRONTS
from ..search.nearest import nearest_plans
from ..space.plan_table import PlanTable
from .chip_figures import Figure, Figures, figures_by_system
from .comparison import Comparison
from .first_token import first_tokens
from .limits import Limits
from .ranking import Objective, Rates, best_first
from .row import reason_of, rows_of, with_figures
from .wanted import Wanted, check_asked, check_min_chips


def compare(
    model: str | Path | ModelConfig,
    system: str | Path | Machine,
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
    invariant: str = "off",
    min_rate: float | None = None,
    max_first_token_s: float | None = None,
    min_chips: bool = False,
    chip_watts: Figure = None,
    chip_hour_cost: Figure = None,
) -> Comparison:
    """Rank plans; nothing of the model is allocated.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        system: a system's name, the path of a TOML file, or a system; a mixed one has the model's
            attention on its GPUs, unless its name chooses another split.
        request: what a step does: sequences, new tokens, allocated positions, drafts.
        policy: name of a precision policy, or a policy.
        draft_model: the model that makes the drafts, as `model`, on chips that a plan leaves free;
            None: they cost nothing.
        draft_plan: its plan; None: for each plan the fastest that fits on the chips left.
        plans: the plans to rank; None: the best of all legal ones are searched.
        objective: `latency` of a token; `throughput` of all in flight, copies of a plan side by
            side included; the same `per-chip`; fewest `chips`; least `energy` of a token; earliest
            `first-token` of a prompt; or a front of two: `latency,throughput` (also `pareto`),
            `latency,per-chip` or `latency,chips`.
        prompt: tokens of a prompt, for the time to the first token; None: the whole context.
        top: how many rows to keep.
        expert_shares: how often each expert is chosen; None: all alike.
        invariant: `off`; `certified`: only plans that give the bits of one chip; `tree` or `wide`:
            only plans that give those of one chip that adds so, whatever their number of chips.
        min_rate: tokens/s of one user, at least.
        max_first_token_s: time to the first token of the prompt, at most.
        min_chips: on the smallest part of the machine on which something fits.
        chip_watts: of a chip, for tokens/s per MW; of a mixed system by its machines' names.
        chip_hour_cost: of a chip, in any currency, for the cost of a million tokens: the same.

    Returns:
        The ranked rows, and what was searched.

    Raises:
        LpuError: an unknown name, an impossible number or an illegal plan: one sentence.

    Fidelity: approximate (docs/timing.md); no plan of the space is better than the first row.
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
    limits = Limits(
        min_rate=min_rate,
        max_first_token_s=max_first_token_s,
        prompt=check_prompt(prompt, request),
    )
    wanted = Wanted(objective=objective, top=top, invariant=invariant, limits=limits)
    figures = figures_by_system([asked.machine], chip_watts, chip_hour_cost)[asked.machine.name]
    check_min_chips(min_chips)
    if min_chips:
        check_asked(asked, wanted)
        # Where it fits nowhere, the whole machine says by how much.
        asked = asked.on(smallest_part(asked, INVARIANT[invariant]) or asked.machine)
    return compare_in(asked, wanted, plans, figures)


def compare_in(
    asked: Scenario,
    wanted: Wanted,
    plans: Sequence[Plan] | None = None,
    figures: Figures | None = None,
) -> Comparison:
    """Rank plans of a scenario.

    Args:
        asked: the model, the machine, the request, the formats and who drafts.
        wanted: which plans are wanted.
        plans: as for `compare`.
        figures: of the chips; None: none were given.

    Raises:
        LpuError: as `compare`.
    """
    check_asked(asked, wanted)
    drafts = draft_plans(asked)
    searched, binding = None, wanted.limits
    if plans is None:
        evaluation, searched, binding = _found(asked, drafts, wanted)
    else:
        check_plans(plans, asked)
        evaluation = evaluate_with_drafts(plans, asked, drafts)
    if figures is None:
        figures = figures_by_system([asked.machine], None, None)[asked.machine.name]
    return _comparison(evaluation, searched, drafts, wanted, binding, figures)


def _found(
    asked: Scenario, drafts: Sequence[Plan], wanted: Wanted
) -> tuple[Evaluation, Searched, Limits]:
    """Search for the best plans that keep to limits; without any, for those that come nearest.

    Returns:
        The plans, what was searched, and the limits that bind: of two only one, if no plan keeps
        to that one.
    """
    objective, top, limits = wanted.objective, wanted.top, wanted.limits
    choices = INVARIANT[wanted.invariant]

    def found_on(
        part: Scenario, objective: str, n_forms: int, most_s: float
    ) -> tuple[PlanTable | None, Searched]:
        if objective == "first-token":
            tokens = find_first_tokens(part, limits.prompt, n_forms, choices=choices)
            if tokens is not None:
                return tokens.plans, tokens.searched
            objective = "latency"
        goal = _GOALS.get(objective, objective)
        return find_plans(part, goal, n_forms, choices=choices, most_latency_s=most_s)

    def search(
        objective: str, n_forms: int, most_s: float
    ) -> tuple[Sequence[Plan] | None, Searched]:
        if asked.draft is None:
            return found_on(asked, objective, n_forms, most_s)
        return find_with_drafts(
            asked, drafts, lambda part, own_s: found_on(part, objective, n_forms, own_s), most_s
        )

    def nearest(searched: Searched) -> Sequence[Plan]:
        if asked.draft is None:
            return nearest_plans(asked, _NEAREST, choices)
        found, _ = find_with_drafts(
            asked, drafts, lambda part, _: (nearest_plans(part, _NEAREST, choices), searched)
        )
        return found or ()

    for best_by, alone in limits.alone.items():
        plans, searched = search(best_by, 1, np.inf)
        if plans is None:
            continue
        best = evaluate_with_drafts(plans, asked, drafts)
        if best.fits.any() and not (alone.kept(best) & best.fits).any():
            return best, searched, alone
    most_s, n_forms = limits.most_latency_s(asked.request), top
    while True:
        plans, searched = search(objective, n_forms, most_s)
        if plans is None:
            return evaluate_with_drafts(nearest(searched), asked, drafts), searched, limits
        found = evaluate_with_drafts(plans, asked, drafts)
        # What keeps to a limit that the search does not know may come after much that does not.
        is_front = objective in FRONTS
        if limits.kept(found).any():
            return found, searched, limits
        if n_forms >= _MOST_WANTED or len(plans) < n_forms or is_front:
            others = [search(best_by, _NEAREST, most_s)[0] or () for best_by in limits.alone]
            every = list(dict.fromkeys(plan for some in others for plan in some))
            return evaluate_with_drafts(every, asked, drafts), searched, limits
        n_forms *= 4


#: Objectives that order plans as another one does: energy is power, and time, of all chips.
_GOALS: Mapping[str, str] = {"energy": "per-chip"}
#: Forms of plans that are searched for at most, to find one with an early first token.
_MOST_WANTED = 200
#: Plans of which the one that lacks least is taken, where none fits.
_NEAREST = 64


def _comparison(
    evaluation: Evaluation,
    searched: Searched | None,
    drafts: Sequence[Plan],
    wanted: Wanted,
    limits: Limits,
    figures: Figures,
) -> Comparison:
    """Rank what was evaluated, by the limits that bind."""
    objective, top = wanted.objective, wanted.top
    asked = evaluation.scenario
    order = rank(evaluation, objective, limits.prompt)
    kept = limits.kept(evaluation)
    excluded = limits.excluded(evaluation, order) if order and not kept[order].any() else None
    best = [i for i in order if kept[i]]
    if objective not in FRONTS:  # a front has plans that differ in their stages alone
        best = _best_of_each_shape(evaluation, best)
    fits, memory = evaluation.fits, asked.machine.memory_name
    nearest = _nearest(evaluation) if searched is None or not fits.any() else []
    unfit = Counter(reason_of(evaluation, int(i), memory) for i in np.flatnonzero(~fits))
    shown = best[:top] if fits.any() else nearest[:top]
    chosen = [*shown, *nearest[:1]]
    found = rows_of(evaluation, chosen, limits.prompt)
    rows = [with_figures(row, figures, asked.machine) for row in found]
    return Comparison(
        scenario=asked,
        prompt_tokens=limits.prompt,
        objective=objective,
        invariant=wanted.invariant,
        limits=wanted.limits,
        rows=tuple(rows[: len(shown)]),
        legal=len(evaluation.plans),
        fitting=len(best) if searched is not None else int(fits.sum()),
        rejected=dict(unfit) if searched is None else dict(searched.refused),
        nearest=rows[-1] if nearest else None,
        searched=searched,
        excluded=excluded,
        drafts=tuple(drafts),
        figures=figures,
        assumed=assumed(asked.machine.constants()),
        evaluation=evaluation,
    )


def check_plans(plans: Sequence[Plan], scenario: Scenario) -> None:
    """Refuse plans that do not exist, or none at all.

    Raises:
        PlanError: says which, and what is allowed.
    """
    check_are_plans("compare", plans)
    for plan in plans:
        check_plan(plan, scenario)


def rank(
    evaluation: Evaluation, objective: Objective, prompt_tokens: int | None = None
) -> list[int]:
    """Order the plans that fit by an objective, best first; equal ones keep their order.

    Args:
        evaluation: of the plans.
        objective: if it is a front, other plans are left out.
        prompt_tokens: of the prompt whose first token plans are ordered by; None: the context.

    Returns:
        The numbers of the plans.
    """
    fitting = np.flatnonzero(evaluation.fits)
    unknown_numbers = np.full(len(evaluation.plans), np.nan)
    first_token_s, energy_j = unknown_numbers.copy(), unknown_numbers
    if objective == "first-token" and len(fitting):
        plans, fits = [evaluation.plans[int(i)] for i in fitting], evaluation.fits[fitting]
        prompt = prompt_tokens or evaluation.scenario.request.context
        found = first_tokens(plans, fits, evaluation.scenario, prompt)
        first_token_s[fitting] = found.time_to_first_token_s
    if objective == "energy":
        joules = energy(evaluation).upper_j_per_token
        energy_j = unknown_numbers if joules is None else joules
    rates = Rates(
        per_user=evaluation.tokens_per_s_per_user[fitting],
        total=evaluation.tokens_per_s_total[fitting],
        per_chip=(evaluation.tokens_per_s_of_copy / evaluation.n_chips)[fitting],
        chips=evaluation.n_chips[fitting],
        first_token_s=first_token_s[fitting],
        energy_j=energy_j[fitting],
    )
    return [int(i) for i in fitting[best_first(rates, objective)]]


def _best_of_each_shape(evaluation: Evaluation, order: Sequence[int]) -> list[int]:
    """Keep the best number of stages of plans that split their groups alike."""
    seen: dict[Plan, int] = {}
    for i in order:
        plan = evaluation.plans[i]
        ffn = plan.ffn and replace(plan.ffn, stages=1)
        seen.setdefault(replace(plan, stages=1, ffn=ffn), i)
    return list(seen.values())


def _nearest(evaluation: Evaluation) -> list[int]:
    """Plans that do not fit, by what the fullest chip lacks, each shape once."""
    missing = np.flatnonzero(~evaluation.fits)
    order = missing[
        np.lexsort((evaluation.latency_cycles[missing], evaluation.short_bytes[missing]))
    ]
    return _best_of_each_shape(evaluation, [int(i) for i in order])
