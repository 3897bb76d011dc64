"""The curve between one user's rate and that of all users: the best plans over batch sizes.

Each point is a plan at a batch size, with as many micro-batches in flight as fit. A point is on the
front of a system if no other is at least as fast for one user and for all users together; on the
front per chip if the same holds for the rate of a plan divided by its chips. Not modelled: requests
that come and go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import Machine, MixedSystem, Split
from lpu_jax.predicates import is_whole
from lpu_jax.provenance import assumed
from lpu_jax.quantities import format_seconds
from models.config import ModelConfig
from models.policy import Policy

from .. import report
from ..pictures import picture_format
from ..plan import Plan
from ..predict.energy import MEANING, energy, one, unknown_reason
from ..predict.evaluate import Evaluation, evaluate
from ..report import versions
from ..request import NEXT_TOKEN, Request, check_request
from ..scenario import Scenario, check_policy, machine_of, scenario, splits_of
from ..search.find import fits_somehow, found_by
from ..search.goals import GOALS, per_sequence
from ..search.records import Front, table_of
from ..space.cores import Choices
from .comparison import format_energy, serving_notes
from .comparison import legend as plan_legend
from .front import on_front
from .rates_plot import Mark, Panel, Series, draw
from .rows_plot import series_name

#: Batch sizes are doubled until nothing fits, but not beyond this one.
LARGEST_BATCH = 1 << 12
_BATCHES = frozenset(1 << i for i in range(LARGEST_BATCH.bit_length()))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan at one batch size."""

    system: str
    plan: Plan
    batch: int
    copies: int  #: of the plan, side by side
    users_in_flight: int  #: of all copies
    step_s: float
    tokens_per_s_per_user: float
    tokens_per_s_total: float
    tokens_per_s_per_chip: float  #: of a copy's rate, and its chips
    energy_j_per_token_lower: float | None
    energy_j_per_token_upper: float | None
    on_front: bool = False  #: no other point is as good for one user and for the system
    on_front_per_chip: bool = False  #: no other point is as good for one user and per chip

    def as_dict(self) -> dict[str, Any]:
        """The point as plain values; scripts parse these names."""
        return {
            **vars(self),
            "plan": self.plan.as_dict(),
            "name": self.plan.name,
            "chips": self.plan.n_chips,
        }


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one model on one or more systems; each system has fronts of its own."""

    model: ModelConfig
    systems: tuple[Machine, ...]
    policy: Policy
    request: Request  #: of the smallest batch
    batches: tuple[tuple[int, ...], ...]  #: sizes at which something fits, per system
    points: tuple[Point, ...]  #: on either front, by system, fastest for one user first

    def front(self, system: str, *, per_chip: bool = False) -> tuple[Point, ...]:
        """The points of one front, fastest for one user first.

        Args:
            system: its name.
            per_chip: the front of the rate per chip; else of the rate of the system.
        """
        return tuple(
            point
            for point in self.points
            if point.system == system and (point.on_front_per_chip if per_chip else point.on_front)
        )

    def as_dict(self) -> dict[str, Any]:
        """The curve as plain values."""
        return {
            "model": self.model.name,
            "policy": self.policy.name,
            "context": self.request.context,
            "draft_tokens": self.request.tokens - 1,
            "acceptance": self.request.acceptance,
            "tokens_per_step": self.request.kept_tokens,
            "systems": [
                {
                    "name": system.name,
                    "chips": system.n_chips,
                    "note": system.note,
                    "batches": list(batches),
                    "energy": {"meaning": MEANING, "reason": unknown_reason(system)},
                    "assumed": [constant.name for constant in assumed(system.constants())],
                }
                for system, batches in zip(self.systems, self.batches, strict=True)
            ],
            "points": [point.as_dict() for point in self.points],
            "versions": versions(),
        }

    def table(self) -> str:
        """The curve as text for a terminal."""
        return curve_text(self)

    def plot(self, path: str | Path) -> None:
        """Draw both fronts of every system into a PNG, SVG or PDF file.

        Raises:
            LpuError: another suffix, there is nothing to draw, or the file cannot be
                written.
        """
        picture_format(path)
        if not self.points:
            raise LpuError(f"{path} was not drawn: no plan of {self.model.name} fits.")
        drafts = (
            ""
            if self.request.acceptance is None
            else f", {self.request.tokens - 1} drafts accepted with {self.request.acceptance:g}"
        )
        draw(
            Path(path),
            [self._panel(per_chip=False), self._panel(per_chip=True)],
            title=self.model.name,
            subtitle=f"weights {self.policy.name}, context {self.request.context}{drafts}",
            note="Numbers beside points are batch sizes; modelled, with assumed constants.",
        )

    def _panel(self, *, per_chip: bool) -> Panel:
        """The fronts of one rate, a series a system."""
        return Panel(
            title="per chip of the plan" if per_chip else "whole system",
            second="tokens/s per chip" if per_chip else "tokens/s of the system",
            series=tuple(
                Series(
                    name=series_name(system),
                    marks=tuple(
                        Mark(
                            tokens_per_s_per_user=point.tokens_per_s_per_user,
                            second=point.tokens_per_s_per_chip
                            if per_chip
                            else point.tokens_per_s_total,
                            label=str(point.batch),
                        )
                        for point in self.front(system.name, per_chip=per_chip)
                    ),
                    is_front=True,
                )
                for system in self.systems
            ),
        )


def curve(
    model: str | Path | ModelConfig,
    systems: str | Path | Machine | Sequence[str | Path | Machine],
    request: Request = NEXT_TOKEN,
    *,
    policy: str | Policy = "fp16",
    batches: Sequence[int] | None = None,
) -> Curve:
    """Find the best plans between one user's rate and that of all users.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        systems: one or more names, paths of TOML files, or systems; a mixed one has a curve of
            each split in which no model drafts, unless its name chooses one.
        request: what a step does for a sequence; its batch is 1, since `batches` are tried.
        policy: name of a precision policy, or a policy.
        batches: sequences per micro-batch; None: 1, 2, 4 and so on as long as something fits, at
            most 4096.

    Returns:
        The points on the front of each system, and on its front per chip.

    Raises:
        LpuError: an unknown name or an impossible number: one sentence.

    Fidelity: approximate (docs/timing.md).
    """
    given = [systems] if isinstance(systems, str | Path | Machine) else systems
    if not isinstance(given, list | tuple):
        raise LpuError(
            f"systems is {described(given)}; it must be a name, a path, a system, or a list of "
            "these."
        )
    if not given:
        raise LpuError("no system was given; at least one is needed.")
    machines = splits_of([machine_of(one_of) for one_of in given], drafts=False)
    for machine in machines:
        if isinstance(machine, MixedSystem) and machine.split is Split.DRAFT_VERIFY:
            raise LpuError(
                f"curve: {machine.name} needs a draft model, which a curve has none of; "
                f"allowed are {Split.ATTENTION_FFN} and {Split.PREFILL_DECODE}."
            )
    asked = [scenario(model, machine, request, policy=policy) for machine in machines]
    names = [each.machine.name for each in asked]
    if len(set(names)) < len(names):
        raise LpuError(f"systems are {', '.join(names)}; each may be given once.")
    if request.batch != 1:
        raise LpuError(f"batch of the request is {request.batch}; a curve takes batches= instead.")
    if not isinstance(batches, Sequence | np.ndarray | None) or isinstance(batches, str | bytes):
        raise LpuError(f"batches is {described(batches)}; it must be a list of batch sizes.")
    if batches is not None and not len(batches):
        raise LpuError("no batch size was given; at least one is needed.")
    for size in () if batches is None else batches:
        if not is_whole(size):
            raise LpuError(f"batch is {described(size)}; it must be a whole number.")
    sizes = sorted({int(size) for size in batches} if batches is not None else _BATCHES)
    requests = [replace(request, batch=batch) for batch in sizes]
    for each in asked:
        check_policy(each.policy, each.model, each.system)
        for one_request in requests:
            check_request(one_request, each.model)
    found = [_fronts(each, requests, until_none_fits=batches is None) for each in asked]
    return Curve(
        model=asked[0].model,
        systems=tuple(machines),
        policy=asked[0].policy,
        request=requests[0],
        batches=tuple(fitting for fitting, _ in found),
        points=tuple(point for _, points in found for point in points),
    )


def _fronts(
    scenario: Scenario, requests: Sequence[Request], *, until_none_fits: bool
) -> tuple[tuple[int, ...], list[Point]]:
    """Batch sizes at which something fits, and the points on either front.

    The fronts of all batch sizes so far bound the search of the next. On one machine plans are of
    one pool: over two a front takes minutes for each batch size.
    """
    batches, points, choices = [], [], Choices(pools=scenario.crosses)
    fronts: dict[str, Front] = {}
    for request in requests:
        asked = replace(scenario, request=request)
        if not fits_somehow(asked, choices):
            if until_none_fits:
                break  # a larger batch needs more memory still
            continue
        batches.append(request.batch)
        for goal in ("throughput", "per-chip"):
            known = fronts.get(goal)
            front = Front(per_sequence(GOALS[goal], request.batch), known)
            found_by(front, asked, choices)
            fronts[goal] = front
            if new := front.new_plans():
                points += _points(evaluate(table_of([plan.spec for plan in new]), asked))
    return tuple(batches), _points_on_fronts(points)


def _points(evaluation: Evaluation) -> list[Point]:
    """Plans that fit, one point each."""
    joules, batch = energy(evaluation), evaluation.scenario.request.batch
    return [
        Point(
            system=evaluation.scenario.machine.name,
            plan=evaluation.plans[i],
            batch=batch,
            copies=int(evaluation.copies[i]),
            users_in_flight=int(evaluation.copies[i] * evaluation.in_flight[i]) * batch,
            step_s=float(evaluation.latency_s[i]),
            tokens_per_s_per_user=float(evaluation.tokens_per_s_per_user[i]),
            tokens_per_s_total=float(evaluation.tokens_per_s_total[i]),
            tokens_per_s_per_chip=float(evaluation.tokens_per_s_of_copy[i] / evaluation.n_chips[i]),
            energy_j_per_token_lower=one(joules.lower_j_per_token, i),
            energy_j_per_token_upper=one(joules.upper_j_per_token, i),
        )
        for i in map(int, np.flatnonzero(evaluation.fits))
    ]


def _points_on_fronts(points: Sequence[Point]) -> list[Point]:
    """Keep the points on either front of all of them, fastest for one user first."""
    user = np.array([point.tokens_per_s_per_user for point in points])
    total = np.array([point.tokens_per_s_total for point in points])
    per_chip = np.array([point.tokens_per_s_per_chip for point in points])
    on_system, on_chip = on_front(user, total), on_front(user, per_chip)
    return [
        replace(points[i], on_front=bool(on_system[i]), on_front_per_chip=bool(on_chip[i]))
        for i in np.argsort(-user, kind="stable")
        if on_system[i] or on_chip[i]
    ]


def curve_text(found: Curve) -> str:
    """The points of a curve as a table, with what was asked and what is not counted."""
    knows = any(point.energy_j_per_token_upper is not None for point in found.points)
    rows = report.table(
        ("system", "left"),
        ("batch", "right"),
        ("plan", "left"),
        ("chips", "right"),
        ("users", "right"),
        ("step", "right"),
        ("tok/s user", "right"),
        ("tok/s total", "right"),
        ("tok/s chip", "right"),
        ("best", "left"),
        *([("J/token", "right")] if knows else []),
    )
    for point in found.points:
        best = {"system": point.on_front, "per chip": point.on_front_per_chip}
        cells = [
            point.system,
            str(point.batch),
            point.plan.name,
            str(point.plan.n_chips),
            str(point.users_in_flight),
            format_seconds(point.step_s),
            f"{point.tokens_per_s_per_user:.0f}",
            f"{point.tokens_per_s_total:.0f}",
            report.rate(point.tokens_per_s_per_chip),
            ", ".join(name for name, on in best.items() if on),
        ]
        if knows:
            cells.append(
                format_energy(point.energy_j_per_token_lower, point.energy_j_per_token_upper)
            )
        rows.add_row(*cells)
    head = (
        f"{found.model.name}, weights {found.policy.name}, context {found.request.context}: one "
        "user's rate against that of all users of the system, and against that of a chip"
    )
    fits = [
        f"{system.name}: {_sizes(batches)}; {len(assumed(system.constants()))} of its "
        f"{len(system.constants())} numbers are assumed."
        for system, batches in zip(found.systems, found.batches, strict=True)
    ]
    pools = (
        "Plans on one machine are those of one pool; `lpu compare --objective pareto` has those of "
        "two too."
    )
    notes = dict.fromkeys(
        note for system in found.systems for note in serving_notes(found.request, system)
    )
    also = [f"{system.name}: {system.note}" for system in found.systems if system.note]
    return report.render(head, *also, rows, plan_legend(), *fits, pools, *notes)


def _sizes(batches: tuple[int, ...]) -> str:
    if not batches:
        return "no plan fits at any batch size"
    return f"something fits at batch {', '.join(map(str, batches))}"
