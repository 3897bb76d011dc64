"""The result of a sweep: the rows of all its cases in one rank, as plain values and as text."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from rich.table import Table

from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import Machine
from lpu_jax.provenance import assumed
from lpu_jax.quantities import format_bytes, format_count, format_seconds
from models.config import ModelConfig
from models.params import n_parameters
from models.policy import Policy

from .. import report
from ..pictures import picture_format
from ..plan import Plan
from ..predict.energy import MEANING, unknown_reason
from ..report import versions
from ..request import Request
from . import exports
from .chip_figures import Figures
from .comparison import legend, lone_micro_batches, serving_notes, serving_table
from .ranking import Rates, best_first
from .row import Row, with_figures
from .rows_plot import draw_rows, series_name
from .task import Answer
from .wanted import Wanted

#: Cases that a sentence names.
_MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination of a sweep, and what became of it."""

    system: Machine
    policy: Policy
    batch: int
    answer: Answer | None = None  #: None: it was not compared yet

    @property
    def name(self) -> str:
        """The combination in words."""
        return f"{self.system.name}, {self.policy.name}, batch {self.batch}"

    @property
    def taken(self) -> str:
        """The machine, or the part of it that was taken."""
        return self.system.name if self.answer is None else self.answer.system


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One plan of a sweep: a row of a comparison, and of which case."""

    case: Case
    row: Row

    @property
    def system(self) -> str:
        """The machine, or the part of it that was taken."""
        return self.case.taken

    @property
    def policy(self) -> str:
        """The policy's name."""
        return self.case.policy.name

    @property
    def batch(self) -> int:
        """Sequences of a micro-batch."""
        return self.case.batch

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.row.plan

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values; scripts parse these names."""
        own = {"system": self.system, "policy": self.policy, "batch": self.batch}
        return own | self.row.as_dict()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Ranked plans of a model over systems, policies and batch sizes."""

    model: ModelConfig
    request: Request  #: of a sequence; each case has a batch of its own
    draft_model: str | None  #: who drafts
    wanted: Wanted
    cases: tuple[Case, ...]  #: each system with each policy and each batch size
    figures: Mapping[str, Figures]  #: by the name of a system
    top: int | None  #: rows that are kept; None: all
    per: int | None  #: rows that a case may have; None: its part of the front

    @cached_property
    def rows(self) -> tuple[SweepRow, ...]:
        """The best plans of all cases by the objective, best first."""
        found = [
            (case, with_figures(row, self.figures[case.system.name], case.system))
            for case in self.cases
            if case.answer is not None
            for row in case.answer.rows
        ]
        order = best_first(_rates([row for _, row in found]), self.wanted.objective)
        rows, counts = [], dict.fromkeys((case.name for case in self.cases), 0)
        for case, row in (found[i] for i in order):
            counts[case.name] += 1
            if self.per is None or counts[case.name] <= self.per:
                rows.append(SweepRow(case=case, row=row))
        return tuple(rows[: self.top])

    @property
    def left(self) -> tuple[Case, ...]:
        """Cases that were not compared yet."""
        return tuple(case for case in self.cases if case.answer is None)

    @property
    def partial(self) -> str:
        """Which cases were not compared, in a sentence."""
        names = [case.name for case in self.left]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return (
            f"{len(names)} of {len(self.cases)} cases were not compared: "
            f"{'; '.join(names[:_MOST_NAMED])}{more}."
        )

    @property
    def systems(self) -> tuple[Machine, ...]:
        """The machines."""
        return tuple({case.system.name: case.system for case in self.cases}.values())

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies."""
        return tuple({case.policy.name: case.policy for case in self.cases}.values())

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes."""
        return tuple(dict.fromkeys(case.batch for case in self.cases))

    def as_dict(self) -> dict[str, Any]:
        """The sweep as plain values."""
        request = {name: value for name, value in vars(self.request).items() if name != "batch"}
        return {
            "model": {"name": self.model.name, "parameters": n_parameters(self.model)},
            "systems": [
                {
                    "name": system.name,
                    "chips": system.n_chips,
                    "sram_bytes": system.memory_bytes,
                    "memory": system.memory_name,
                    "note": system.note,
                    "energy": {"meaning": MEANING, "reason": unknown_reason(system)},
                    "assumed": [constant.as_dict() for constant in assumed(system.constants())],
                    **self.figures[system.name].as_dict(),
                }
                for system in self.systems
            ],
            "policies": [
                {"name": policy.name, "source": policy.source} for policy in self.policies
            ],
            "batches": list(self.batches),
            "request": request | {"prompt": self.wanted.limits.prompt},
            "draft_model": self.draft_model,
            "objective": self.wanted.objective,
            "invariant": self.wanted.invariant,
            "limits": self.wanted.limits.as_dict(),
            "rows": [row.as_dict() for row in self.rows],
            "cases": [case.answer.as_dict() for case in self.cases if case.answer is not None],
            "left": [
                {"system": case.system.name, "policy": case.policy.name, "batch": case.batch}
                for case in self.left
            ],
            "versions": versions(),
        }

    def to_json(self) -> str:
        """The sweep as JSON text."""
        return json.dumps(self.as_dict(), indent=1)

    def table(self) -> str:
        """The sweep as text for a terminal."""
        return sweep_text(self)

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`, with the columns of `Comparison.to_dataframe`.

        Raises:
            LpuError: pandas is not installed.
        """
        return exports.dataframe(self._asked_rows())

    @overload
    def to_csv(self, path: None = None) -> str: ...

    @overload
    def to_csv(self, path: str | Path) -> None: ...

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """The rows as CSV, as `Comparison.to_csv`.

        Args:
            path: of a file, which is written whole or not at all; None: return the text.

        Returns:
            The text if there is no path.

        Raises:
            LpuError: what is no path, or the file cannot be written.
        """
        return exports.csv_to(path, self._asked_rows())

    def _asked_rows(self) -> exports.Asked:
        """Each row with what was asked, as `exports.asked_rows`."""
        first = self.cases[0]
        return exports.Asked(
            headings=self._asked(first, first.system.name),
            rows=[(self._asked(row.case, row.system), row.row.as_dict()) for row in self.rows],
        )

    def _asked(self, case: Case, system: str) -> dict[str, Any]:
        request = vars(self.request) | {"batch": case.batch}
        return {
            "model": self.model.name,
            "policy": case.policy.name,
            "system": system,
            "objective": self.wanted.objective,
            "request": request | {"prompt": self.wanted.limits.prompt},
            **self.figures[case.system.name].as_dict(),
        }

    def plot(self, path: str | Path) -> None:
        """Draw the rows into a PNG, SVG or PDF file, as `Comparison.plot`.

        Each system is a series of its own, or each policy on it if there are several.

        Raises:
            LpuError: another suffix, there is nothing to draw, or the file cannot be written.
        """
        picture_format(path)
        if not self.rows:
            raise LpuError(f"{path} was not drawn: no plan of {self.model.name} fits.")
        series: dict[str, list[tuple[int, Row]]] = {}
        for number, row in enumerate(self.rows, 1):
            name = series_name(row.case.system)
            if len(self.policies) > 1:
                name = f"{name}, {row.policy}"
            series.setdefault(name, []).append((number, row.row))
        held = ", ".join(policy.name for policy in self.policies)
        sizes = ", ".join(map(str, self.batches))
        draw_rows(
            Path(path),
            series,
            self.wanted.objective,
            title=self.model.name,
            subtitle=f"weights {held}, batch {sizes}, context {self.request.context}",
        )


def _rates(rows: list[Row]) -> Rates:
    """The rates of rows as columns."""

    def column(*values: float) -> np.ndarray:
        return np.array(values, np.float64)

    joules = (row.energy_j_per_token_upper for row in rows)
    return Rates(
        per_user=column(*(row.tokens_per_s_per_user for row in rows)),
        total=column(*(row.tokens_per_s_total for row in rows)),
        per_chip=column(*(row.tokens_per_s_per_chip for row in rows)),
        chips=np.array([row.n_chips for row in rows], np.int64),
        first_token_s=column(*(row.time_to_first_token_s for row in rows)),
        energy_j=column(*(np.nan if value is None else value for value in joules)),
    )


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C, with what was found before it."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__("the sweep was interrupted")
        self.sweep = sweep


def sweep_text(found: Sweep) -> str:
    """The rows of a sweep as a table, what fits nowhere, and what the figures rest on."""
    lines: list[Any] = [_headline(found)]
    lines += filter(None, [found.wanted.limits.in_words(found.wanted.invariant)])
    for note in dict.fromkeys(system.note for system in found.systems if system.note):
        named = ", ".join(system.name for system in found.systems if system.note == note)
        lines.append(f"{named}: {note}")
    if found.left:
        lines.append(f"PARTIAL: {found.partial}")
    if found.rows:
        prompt = found.wanted.limits.prompt
        lines += [_table(found), serving_table([row.row for row in found.rows], prompt)]
    without = [_without_rows(case) for case in found.cases if case.answer and not case.answer.rows]
    lines += ["No plan:", *without] if without else []
    return report.render(*lines, *dict.fromkeys(_notes(found)))


def _headline(found: Sweep) -> str:
    names = [system.name for system in found.systems]
    held = [policy.name for policy in found.policies]
    per = "the front of all" if found.per is None else f"the best {found.per} of each"
    return (
        f"{found.model.name}: {format_count(n_parameters(found.model), digits=4)} parameters; on "
        f"{', '.join(names)}; weights {', '.join(held)}; batch "
        f"{', '.join(map(str, found.batches))}; context {found.request.context}; ranked by "
        f"{found.wanted.objective}, {per if found.per != 1 else 'the best of each'}"
    )


def _differing(found: Sweep) -> dict[str, bool]:
    """Which columns tell cases apart: of systems also where a part of one was taken."""
    parts = any(row.system != row.case.system.name for row in found.rows)
    return {
        "system": parts or len(found.systems) > 1,
        "policy": len(found.policies) > 1,
        "batch": len(found.batches) > 1,
    }


def _memory(found: Sweep) -> str:
    names = {system.memory_name for system in found.systems}
    return names.pop() if len(names) == 1 else "memory"


def _table(found: Sweep) -> Table:
    apart = [name for name, differs in _differing(found).items() if differs]
    made = report.table(
        ("#", "right"),
        *((name, "right" if name == "batch" else "left") for name in apart),
        ("plan", "left"),
        ("chips", "right"),
        (_memory(found), "right"),
        ("token" if found.request.acceptance is None else "step", "right"),
        ("lower..upper", "right"),
        ("over constants", "right"),
        ("tok/s user", "right"),
        ("tok/s total", "right"),
    )
    for number, of in enumerate(found.rows, 1):
        row = of.row
        made.add_row(
            str(number),
            *(str(getattr(of, name)) for name in apart),
            row.plan.name,
            str(row.plan.n_chips),
            f"{row.sram_used_fraction:.1%}",
            format_seconds(row.decode_latency_s),
            report.interval(row.decode_latency_lower_s, row.decode_latency_upper_s),
            report.interval(*row.decode_latency_range_s),
            report.brief_rate(row.tokens_per_s_per_user),
            report.brief_rate(row.tokens_per_s_total),
        )
    return made


def _without_rows(case: Case) -> str:
    """Say why a case has no row: a sentence."""
    answer = case.answer
    assert answer is not None
    nearest = answer.nearest
    if answer.refused is not None:
        return f"  {case.name}: {answer.refused}"
    if nearest is not None:
        return (
            f"  {case.name}: the nearest, {nearest.plan.name}, is short of "
            f"{format_bytes(nearest.short_bytes)} on the fullest chip."
        )
    return f"  {case.name}: {answer.excluded}"


def _notes(found: Sweep) -> Iterator[str]:
    """What the figures rest on."""
    yield legend(_memory(found))
    given = {name: figures.in_words for name, figures in found.figures.items() if figures.in_words}
    is_one = len(set(given.values())) == 1 and len(given) == len(found.systems)
    for name, words in given.items():
        yield words if is_one else f"{name}: {words}"
    yield from lone_micro_batches((row.row, row.case.system) for row in found.rows)
    for system in found.systems:
        yield from serving_notes(found.request, system, found.draft_model)
    for row in found.rows:
        if row.row.prefill_elsewhere is not None:
            yield f"{row.system}: {row.row.prefill_elsewhere.in_words}"
    counts = (
        f"{len(assumed(constants))} of the {len(constants)} numbers and rules of {system.name}"
        for system in found.systems
        if (constants := system.constants())
    )
    yield (
        f"Assumed: {', '.join(counts)} (--json lists them). Over constants: all that have a range "
        "or alternatives at their favourable..unfavourable ends."
    )
    for policy in found.policies:
        yield f"weights {policy.name}: {policy.source}."
    spaces = [
        case.answer.searched["space"]
        for case in found.cases
        if case.answer is not None and case.answer.searched is not None
    ]
    cases = "1 case" if len(spaces) == 1 else f"{len(spaces)} cases"
    yield (
        f"Searched: {sum(space['plans'] for space in spaces):.4g} plans in {cases}, of "
        f"which {sum(space['compared'] for space in spaces)} were compared; the rest cannot be "
        "better, by their bounds."
    )
