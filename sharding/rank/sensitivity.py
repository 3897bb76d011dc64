"""How far a ranking of plans rests on constants and rules that nobody has published.

The plans that could win are evaluated again on variants of the machine: samples in which every
uncertain constant is drawn from its range and every rule from its alternatives (`assumptions`), and
variants in which one alone goes to each end of its range, or to each alternative; constants of one
reading go together. Not modelled: errors of the model itself, and other dependences.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.machine.uncertainty import extremes, in_one_reading
from lpu_jax.predicates import is_whole
from lpu_jax.provenance import Constant
from lpu_jax.quantities import format_seconds

from .. import report
from ..plan import Plan
from ..predict.drafts import evaluate_with_drafts
from ..predict.evaluate import Evaluation, evaluate
from ..predict.placement import usable_bytes
from ..report import Watcher, check_watcher
from ..scenario import Scenario
from ..search.drafts import find_with_drafts
from ..search.find import INVARIANT, Searched, find_plans
from ..search.goals import FRONTS
from .assumptions import Ranked
from .compare import rank
from .comparison import Comparison
from .correlation import chance_level, spearman
from .ranking import Objective

#: Plans that are evaluated again: the best of those that fit under the smallest reserve.
MOST_CONTENDERS = 1000
#: Forms of plans that are searched for, where plans were.
SEARCHED_CONTENDERS = 100
#: Winners and constants that are printed; the JSON has every constant.
SHOWN_WINNERS, SHOWN_CONSTANTS = 5, 10
#: The interval of what samples give.
LOW_SHARE, HIGH_SHARE = 0.05, 0.95


@dataclass(frozen=True, kw_only=True)
class End:
    """What happens if one constant or rule alone is another."""

    value: str
    winner: str  #: name of the plan that is first then; empty if none fits
    stays_first: bool
    loss: float | None  #: by how much the nominal winner is slower than the winner; None: no fit
    latency_ratio: float | None  #: of the nominal winner, to its nominal latency; None: no fit


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What one uncertain constant or rule does to the ranking."""

    name: str
    value: str
    unit: str
    status: str
    source: str
    ends: tuple[End, ...]
    is_one_sided: bool  #: the value is an end of its range, so that draws lie to one side of it
    #: Spearman's, between its draws and the loss of the nominal winner; None if one never varies
    rank_correlation: float | None

    @property
    def largest_loss(self) -> float:
        """Loss of the nominal winner at the worst end; infinite where it does not fit."""
        return max((np.inf if end.loss is None else end.loss for end in self.ends), default=0.0)

    @property
    def largest_change(self) -> float:
        """Largest factor by which the nominal winner's latency changes, minus one."""
        ratios = [end.latency_ratio for end in self.ends if end.latency_ratio is not None]
        return max((max(r, 1 / r) - 1 for r in ratios), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How often each plan wins, and which constants decide it.

    Shares are of the samples. A plan's split is the plan with any number of stages, as a
    comparison's rows are; loss is how much slower the nominal winner is than a sample's winner.
    """

    n_samples: int
    seed: int
    objective: Objective
    contenders: int  #: plans that were evaluated in every sample
    eligible: int  #: plans that fit under the smallest reserve, before the cap
    nominal: str  #: name of the plan that wins at the nominal constants
    nominal_latency_s: float
    wins: Mapping[str, float]  #: share of each plan that wins at least once, largest first
    first_share: float
    split_first_share: float
    split_first_three_share: float
    fits_share: float
    latency_s: tuple[float, float] | None  #: 5-95 % of the nominal winner, where it fits
    winner_latency_s: tuple[float, float] | None  #: 5-95 % of each sample's winner
    median_loss: float | None  #: where it fits
    high_loss: float | None  #: 95 % of samples lose less, where it fits
    correlation_noise: float  #: chance gives one of all constants more than this in 5 % of cases
    influences: tuple[Influence, ...]  #: those that move the ranking most first

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return asdict(self)

    def text(self) -> str:
        """The result as text for a terminal."""
        return sensitivity_text(self)


def sensitivity(
    comparison: Comparison,
    n_samples: int,
    seed: int = 0,
    progress: Watcher = lambda *_: None,
) -> Sensitivity:
    """Evaluate a comparison's plans again with other values of the uncertain constants.

    The plans are those of the comparison; if it searched, the best 100 forms by its objective
    (a front: by latency) of those that fit at the nominal constants or would with the smallest
    reserve. A sample is won by the
    best of those that fit in it.

    Args:
        comparison: from `compare`; at least one plan fits.
        n_samples: how many variants of the machine to draw.
        seed: of the draws; the same seed gives the same result to the last bit.
        progress: called with the steps done, the steps in all and what comes next;
            a step is a sample or constant.

    Returns:
        Shares, intervals and the influence of every uncertain constant.

    Raises:
        LpuError: no plan fits, no constant has a range, or a number is impossible.
    """
    check_watcher("sensitivity", progress)
    _check(comparison, n_samples, seed)
    study = _Study(comparison)
    if not study.constants:
        name = comparison.scenario.machine.name
        raise LpuError(f"sensitivity: no constant of {name} has a range to draw from.")
    base = study.outcome(study.ranked)
    assert base.winner is not None
    constants = study.constants
    rng = np.random.default_rng(seed)
    draws = np.empty((n_samples, len(constants)))
    outcomes, n_steps = [], n_samples + len(constants)
    for i in range(n_samples):
        progress(i, n_steps, f"sensitivity: sample {i + 1} of {n_samples}")
        drawn = study.ranked.drawn(rng)
        draws[i] = [_position(drawn, name, constant) for name, constant in constants.items()]
        outcomes.append(study.outcome(drawn, base.winner))
    losses = np.array([outcome.loss for outcome in outcomes])
    influences = []
    for column, (name, constant) in enumerate(constants.items()):
        progress(n_samples + column, n_steps, f"sensitivity: {name} alone")
        ends = [study.end(name, value, base) for value in extremes(constant)]
        correlation = spearman(draws[:, column], losses)
        influences.append(_influence(name, constant, ends, correlation))
    noise = chance_level(n_samples, len(constants))

    def strength(influence: Influence) -> tuple[float, float, float]:
        correlation = abs(influence.rank_correlation or 0.0)
        return (
            influence.largest_loss,
            correlation if correlation > noise else 0.0,
            influence.largest_change,
        )

    influences.sort(key=strength, reverse=True)
    return _summary(study, base, outcomes, influences, n_samples, seed, noise)


def _check(comparison: Comparison, n_samples: int, seed: int) -> None:
    if not isinstance(comparison, Comparison):
        raise LpuError(
            f"sensitivity: comparison is {described(comparison)}; it must be what compare returns."
        )
    for name, number, least in (("samples", n_samples, 1), ("seed", seed, 0)):
        if not is_whole(number) or number < least:
            raise LpuError(
                f"sensitivity: {name} is {described(number)}; it must be a whole number of at "
                f"least {least}."
            )
    if comparison.objective in ("first-token", "chips"):
        raise LpuError(
            f"sensitivity: the objective is {comparison.objective}; samples are ranked by latency, "
            "throughput, per-chip, energy or a front."
        )
    if not comparison.fitting:
        raise LpuError("sensitivity: no plan fits, so there is no ranking to examine.")


def _position(ranked: Ranked, name: str, constant: Constant) -> float:
    """A constant's value on a variant, or its place among the options."""
    value = ranked.value_of(name)
    return float(constant.options.index(value) if constant.options else value)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Who wins on one variant of the machine, and how the nominal winner does there."""

    winner: int | None
    latency_s: float  #: of the nominal winner
    winner_latency_s: float
    loss: float  #: infinite if the nominal winner does not fit
    splits: tuple[Plan, ...]  #: the first three, as plans of one stage


class _Study:
    """The plans of a comparison that could win, ready to be evaluated on variants."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        # A front has no single winner; its fast end is the plan of least latency.
        self.objective: Objective = (
            "latency" if comparison.objective in FRONTS else comparison.objective
        )
        every = Ranked(plans=comparison.evaluation.plans, scenario=comparison.scenario)
        self.constants = every.uncertain()
        whole = comparison.evaluation if comparison.searched is None else self._searched()
        keeps = comparison.limits.kept(whole)
        eligible = np.flatnonzero(self._may_fit(whole) & keeps)
        self.eligible = len(eligible)
        best = eligible[np.argsort(-self.rates(whole)[eligible], kind="stable")]
        # Faster plans that only fit under the smallest reserve may be many: the winner is kept.
        first = next(i for i in rank(whole, self.objective) if keeps[i])
        kept = dict.fromkeys([first, *best.tolist()])
        self.plans = [whole.plans[i] for i in sorted(list(kept)[:MOST_CONTENDERS])]

    def _searched(self) -> Evaluation:
        """Search for more plans than were shown, also among those that fit no other reserve."""
        comparison = self.comparison
        goal = {"energy": "per-chip"}.get(self.objective, str(self.objective))
        roomy = self._with_least_reserve()
        choices = INVARIANT[comparison.invariant]

        def find(part: Scenario, most_s: float) -> tuple[Sequence[Plan] | None, Searched]:
            return find_plans(
                part, goal, SEARCHED_CONTENDERS, choices=choices, most_latency_s=most_s
            )

        most_s = comparison.limits.most_latency_s(roomy.request)
        if roomy.draft is None:
            plans, _ = find(roomy, most_s)
        else:
            plans, _ = find_with_drafts(roomy, comparison.drafts, find, most_s)
        every = list(dict.fromkeys([*comparison.evaluation.plans, *(plans or ())]))
        return evaluate_with_drafts(every, comparison.scenario, comparison.drafts)

    def _with_least_reserve(self) -> Scenario:
        """The scenario on a machine with the smallest plausible reserve."""
        values = {
            name: constant.low
            for name, constant in self.constants.items()
            if name.endswith("chip.reserved_fraction")
        }
        whole = Ranked(plans=(), scenario=self.comparison.scenario)
        return whole.variant(values).scenario

    def _may_fit(self, evaluation: Evaluation) -> Bool[np.ndarray, " plans"]:
        """Say which plans fit on the machine with the smallest plausible reserve."""
        roomy = self._with_least_reserve()
        if roomy.mixed is None:
            return np.asarray(evaluation.used_bytes <= usable_bytes(roomy.system.chip))
        return evaluate(evaluation.plans, roomy).fits

    def rates(self, evaluation: Evaluation) -> Float[np.ndarray, " plans"]:
        """What plans are ranked by."""
        if self.objective == "throughput":
            return np.asarray(evaluation.tokens_per_s_total)
        if self.objective in ("per-chip", "energy"):
            return np.asarray(evaluation.tokens_per_s_of_copy / evaluation.n_chips)
        return np.asarray(evaluation.tokens_per_s_per_user)

    @property
    def ranked(self) -> Ranked:
        """The plans as they are."""
        return Ranked(plans=self.plans, scenario=self.comparison.scenario)

    def outcome(self, ranked: Ranked, nominal: int | None = None) -> _Outcome:
        """Rank a variant of the plans; `nominal` is left out for the plans as they are."""
        found = evaluate_with_drafts(ranked.plans, ranked.scenario, self.comparison.drafts)
        order = rank(found, self.objective)
        own = nominal if nominal is not None else order[0]
        rates = self.rates(found)
        splits = dict.fromkeys(_split(self.plans[i]) for i in order)
        return _Outcome(
            winner=order[0] if order else None,
            latency_s=float(found.latency_s[own]),
            winner_latency_s=float(found.latency_s[order[0]]) if order else np.inf,
            loss=float(rates[order[0]] / rates[own] - 1) if found.fits[own] else np.inf,
            splits=tuple(splits)[:3],
        )

    def end(self, name: str, value: Any, base: _Outcome) -> End:
        """Rank the plans with one constant, and those of its reading, at another value."""
        values = in_one_reading(self.constants, name, value)
        found = self.outcome(self.ranked.variant(values), base.winner)
        fits = np.isfinite(found.loss)
        return End(
            value=_written(value),
            winner="" if found.winner is None else self.plans[found.winner].name,
            stays_first=found.winner == base.winner,
            loss=found.loss if fits else None,
            latency_ratio=found.latency_s / base.latency_s if fits else None,
        )


def _split(plan: Plan) -> Plan:
    return replace(plan, stages=1)


def _influence(
    name: str, constant: Constant, ends: Sequence[End], correlation: float | None
) -> Influence:
    return Influence(
        name=name,
        value=_written(constant.value),
        unit=constant.unit,
        status=constant.status,
        source=constant.source,
        ends=tuple(ends),
        is_one_sided=not constant.options and constant.value in (constant.low, constant.high),
        rank_correlation=correlation,
    )


def _summary(
    study: _Study,
    base: _Outcome,
    outcomes: Sequence[_Outcome],
    influences: Sequence[Influence],
    n_samples: int,
    seed: int,
    noise: float,
) -> Sensitivity:
    """Count winners and take intervals."""
    assert base.winner is not None
    nominal = study.plans[base.winner]
    split = _split(nominal)
    wins = Counter(study.plans[o.winner].name for o in outcomes if o.winner is not None)
    fitting = [o for o in outcomes if np.isfinite(o.loss)]
    won = [o for o in outcomes if o.winner is not None]
    losses = [o.loss for o in fitting]

    def share(count: int) -> float:
        return count / n_samples

    return Sensitivity(
        n_samples=n_samples,
        seed=seed,
        objective=study.objective,
        contenders=len(study.plans),
        eligible=study.eligible,
        nominal=nominal.name,
        nominal_latency_s=base.latency_s,
        wins={name: share(n) for name, n in sorted(wins.items(), key=lambda x: (-x[1], x[0]))},
        first_share=share(sum(o.winner == base.winner for o in outcomes)),
        split_first_share=share(sum(o.splits[:1] == (split,) for o in outcomes)),
        split_first_three_share=share(sum(split in o.splits for o in outcomes)),
        fits_share=share(len(fitting)),
        latency_s=_interval([o.latency_s for o in fitting]),
        winner_latency_s=_interval([o.winner_latency_s for o in won]),
        median_loss=float(np.median(losses)) if losses else None,
        high_loss=float(np.quantile(losses, HIGH_SHARE)) if losses else None,
        correlation_noise=noise,
        influences=tuple(influences),
    )


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, (LOW_SHARE, HIGH_SHARE))
    return float(low), float(high)


def _written(value: Any) -> str:
    """A value as text."""
    if isinstance(value, int | float):
        return f"{value:.6g}"
    if value is None:
        return "none"
    return str(value)


def sensitivity_text(found: Sensitivity) -> str:
    """Shares, intervals and the most influential constants as text."""
    s = found
    capped = f" (the best of {s.eligible})" if s.eligible > s.contenders else ""
    lines: list[Any] = [
        f"Sensitivity: {s.n_samples} samples, seed {s.seed}, of {len(s.influences)} uncertain "
        f"constants and rules; {s.contenders} plans{capped} that fit, or do under the smallest "
        "reserve.",
        f"{s.nominal} is first in {s.first_share:.0%} of samples; its split with any number of "
        f"stages is first in {s.split_first_share:.0%}, among the first three in "
        f"{s.split_first_three_share:.0%}; it fits in {s.fits_share:.0%}.",
        f"Its latency: {format_seconds(s.nominal_latency_s)}, in 90 % of samples "
        f"{_times(s.latency_s)}; that of each sample's winner: {_times(s.winner_latency_s)}.",
    ]
    if s.median_loss is not None and s.high_loss is not None:
        lines.append(
            f"Choosing it loses {s.median_loss:.1%} to the sample's winner in the median, "
            f"at most {s.high_loss:.1%} in 95 % of samples."
        )
    one_sided = [influence.name for influence in s.influences if influence.is_one_sided]
    if one_sided:
        inside = s.latency_s is None or s.latency_s[0] <= s.nominal_latency_s <= s.latency_s[1]
        lines.append(
            f"The nominal time {'may lie' if inside else 'lies'} outside these intervals: the "
            f"values of {', '.join(sorted(one_sided))} are ends of their ranges, and draws lie to "
            "one side."
        )
    winners = report.table(("winner", "left"), ("samples", "right"))
    for name, share in list(s.wins.items())[:SHOWN_WINNERS]:
        winners.add_row(name, f"{share:.0%}")
    rows = report.table(
        ("constant or rule", "left"),
        ("status", "left"),
        ("value", "right"),
        ("alone at", "right"),
        ("loss", "right"),
        ("latency", "right"),
        ("first then", "left"),
        ("correlation", "right"),
    )
    for influence in s.influences[:SHOWN_CONSTANTS]:
        for i, end in enumerate(influence.ends):
            head = ("", "", "") if i else (influence.name, influence.status, influence.value)
            rows.add_row(*head, *_end_cells(end), _correlation(influence) if i == 0 else "")
    legend = (
        "loss: how much slower the nominal winner is than the winner when this alone is so "
        "(constants of one reading together); latency: its change; correlation: Spearman's, of "
        f"draw and loss over the samples, chance below {s.correlation_noise:.2f}. What moves the "
        "ranking most comes first."
    )
    return report.render(*lines, winners, rows, legend)


def _times(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "none"
    return report.interval(*interval)


def _end_cells(end: End) -> tuple[str, str, str, str]:
    return (
        end.value,
        "does not fit" if end.loss is None else f"{end.loss:.1%}",
        "-" if end.latency_ratio is None else f"{end.latency_ratio - 1:+.1%}",
        "the same" if end.stays_first else end.winner or "none fits",
    )


def _correlation(influence: Influence) -> str:
    value = influence.rank_correlation
    return "-" if value is None else f"{value:+.2f}"
