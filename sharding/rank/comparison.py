"""The result of a comparison: ranked rows, as plain values and as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from lpu_jax.errors import LpuError
from lpu_jax.machine.system import System
from lpu_jax.provenance import Constant
from lpu_jax.quantities import format_bytes, format_count, format_seconds
from models.params import n_parameters

from .. import report
from ..pictures import picture_format
from ..plan import Plan
from ..plan import legend as letters
from ..predict.energy import MEANING, knows_energy, unknown_reason
from ..predict.evaluate import Evaluation
from ..predict.serving import chunk_lengths
from ..predict.slot_reading import SlotReading, slot_table
from ..report import versions
from ..request import Request
from ..scenario import Scenario
from .draft_row import DraftRow, draft_note, draft_table
from .rates_plot import Mark, Panel, Series, draw

#: Reasons that begin so refuse a plan for its memory; all others refuse a split for its shapes.
DOES_NOT_FIT = "does not fit"

Objective = Literal["latency", "throughput", "pareto", "first-token"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan of a comparison."""

    plan: Plan
    fits: bool
    reason: str | None  #: why it does not fit
    short_bytes: float  #: what the fullest chip lacks, negative where there is room
    sram_used_fraction: float
    decode_latency_s: float
    decode_latency_lower_s: float
    decode_latency_upper_s: float
    #: with all uncertain constants at their favourable ends, and at their unfavourable ends
    decode_latency_range_s: tuple[float, float]
    tokens_per_s_per_user: float
    tokens_per_s_total: float
    tokens_per_step: float  #: that a step adds to a sequence, on average
    in_flight: int  #: micro-batches
    users_in_flight: int
    total_bound_by: str  #: `slowest stage`, `draft model` or `users in flight`
    reserve_limit_fraction: float  #: part of the memory that may be reserved until it fits no more
    hand_over_s: float
    host_s: float  #: host and sampling, part of the latency
    prefill_latency_s: float  #: of the prompt of every sequence of the batch
    prefill_chunk_tokens: int  #: new tokens per sequence of a step: the fastest that fit
    prefill_chunk_bound_by: str  #: `memory` if a longer one would be faster, else `time`
    time_to_first_token_s: float  #: prefill, and the host's part
    wire_bytes_per_token: float  #: payload of all collectives and hand-overs, each once
    energy_j_per_token_lower: float | None  #: None: the power of the chip is not public
    energy_j_per_token_upper: float | None
    energy_j_per_token_upper_alone: float | None  #: one micro-batch in flight
    memory_bytes: Mapping[str, float]  #: of the fullest chip
    slots: SlotReading | None = None  #: of a mixture on LPUs
    draft: DraftRow | None = None  #: the draft model, whose time and fit the row includes
    numerics: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values; scripts parse these names."""
        return {
            **{name: value for name, value in vars(self).items() if name != "plan"},
            "plan": self.plan.as_dict(),
            "name": self.plan.name,
            "chips": self.plan.n_chips,
            "stages": self.plan.stages,
            "slots": None if self.slots is None else self.slots.as_dict(),
            "draft": None if self.draft is None else self.draft.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ranked plans of a model on a machine, and what was searched."""

    scenario: Scenario
    prompt_tokens: int
    objective: Objective
    rows: tuple[Row, ...]  #: the best that fit; if none fits, those that lack least
    legal: int
    fitting: int
    rejected: Mapping[str, int]  #: plans and ways refused, by reason
    nearest: Row | None  #: the plan that does not fit and lacks least
    assumed: tuple[Constant, ...] = field(repr=False)
    evaluation: Evaluation = field(repr=False, compare=False)  #: all plans that were ranked

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return {
            "model": {
                "name": self.scenario.model.name,
                "parameters": n_parameters(self.scenario.model),
                "policy": self.scenario.policy.name,
                "policy_source": self.scenario.policy.source,
            },
            "system": {
                "name": self.scenario.system.name,
                "chips": self.scenario.system.n_chips,
                "sram_bytes": self.scenario.system.memory_bytes,
                "memory": self.scenario.system.chip.memory_name,
                "note": self.scenario.system.note,
            },
            "request": vars(self.scenario.request) | {"prompt": self.prompt_tokens},
            "draft_model": None if self.scenario.draft is None else self.scenario.draft.model.name,
            "energy": {"meaning": MEANING, "reason": unknown_reason(self.scenario.system.chip)},
            "objective": self.objective,
            "rows": [row.as_dict() for row in self.rows],
            "searched": {
                "legal": self.legal,
                "fitting": self.fitting,
                "rejected": dict(self.rejected),
                "nearest_that_does_not_fit": self.nearest.as_dict() if self.nearest else None,
            },
            "versions": versions(),
            "assumed": [constant.as_dict() for constant in self.assumed],
        }

    def to_json(self) -> str:
        """The comparison as JSON text."""
        return json.dumps(self.as_dict(), indent=1)

    def table(self) -> str:
        """The comparison as text for a terminal."""
        return comparison_text(self)

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`, a plan a row, best first.

        Nested values of `as_dict` become columns such as `memory_bytes.weights`.

        Raises:
            LpuError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise LpuError("pandas is not installed; `pip install pandas` installs it.") from None
        return pandas.json_normalize([row.as_dict() for row in self.rows], max_level=1)

    def plot(self, path: str | Path) -> None:
        """Draw the rows into a PNG, SVG or PDF file: one user's rate against that of all users.

        A bar spans the rates of one user at the upper and the lower bound of the time.

        Raises:
            LpuError: another suffix, there is nothing to draw, or the file cannot be
                written.
        """
        picture_format(path)
        if not self.fitting:
            raise LpuError(f"{path} was not drawn: no plan of {self.scenario.model.name} fits.")
        request = self.scenario.request
        marks = [_mark(number, row) for number, row in enumerate(self.rows, 1)]
        series = Series(
            name=series_name(self.scenario.system),
            marks=tuple(sorted(marks, key=lambda mark: -mark.tokens_per_s_per_user)),
            is_front=self.objective == "pareto",
        )
        draw(
            Path(path),
            [Panel(title="whole system", rate="tokens/s of the system", series=(series,))],
            title=f"{self.scenario.model.name}, weights {self.scenario.policy.name}, "
            f"batch {request.batch}, context {request.context}",
            legend="numbers beside points are rows of the table; bars: bounds of the time",
        )


def comparison_text(comparison: Comparison) -> str:
    """The table of a comparison with what was asked, what was searched and what was refused."""
    c, asked = comparison, comparison.scenario
    system, request = asked.system, asked.request
    memory = system.chip.memory_name
    head = (
        f"{asked.model.name}: {format_count(n_parameters(asked.model), digits=4)} parameters, "
        f"weights {asked.policy.name}; "
        f"{system.name}: {_chips(system.n_chips)} of {system.chip.title}, "
        f"{format_bytes(system.memory_bytes, digits=4)} {memory}; batch {request.batch}, "
        f"context {request.context}"
    )
    rows = report.table(
        ("#", "right"),
        ("plan", "left"),
        ("chips", "right"),
        (memory, "right"),
        ("token" if request.acceptance is None else "step", "right"),
        ("lower..upper", "right"),
        ("over constants", "right"),
        ("tok/s user", "right"),
        ("tok/s total", "right"),
        ("hand-over", "right"),
        ("wire/token", "right"),
        ("SQNR", "right"),
    )
    for number, row in enumerate(c.rows, 1):
        rows.add_row(str(number), *_cells(row))
    drafts = [row.draft for row in c.rows if row.draft is not None]
    slots = [row.slots for row in c.rows if row.slots is not None]
    lines = [
        head,
        *([system.note] if system.note else []),
        rows,
        *([draft_table(drafts, memory)] if drafts else []),
        *([slot_table(slots)] if slots else []),
        serving_table(c.rows, c.prompt_tokens),
        _first_token_note(c),
        legend(memory),
        *serving_notes(request, system, None if asked.draft is None else asked.draft.model.name),
        f"{len(c.assumed)} of the {len(system.constants())} numbers and rules of {system.name} are "
        "assumed: --json lists them, --sensitivity N draws them from their ranges. Over constants: "
        "all that have a range or alternatives at their favourable..unfavourable ends.",
        f"weights {asked.policy.name}: {asked.policy.source}.",
        _searched(c),
    ]
    if not c.fitting and c.nearest is not None:
        lines += ["No plan fits.", *memory_maps(c.nearest, memory)]
    return report.render(*lines)


def _mark(number: int, row: Row) -> Mark:
    kept = row.tokens_per_step
    return Mark(
        tokens_per_s_per_user=row.tokens_per_s_per_user,
        tokens_per_s=row.tokens_per_s_total,
        label=str(number),
        user_range=(kept / row.decode_latency_upper_s, kept / row.decode_latency_lower_s),
    )


def series_name(system: System) -> str:
    """What a legend calls a system, and whether it is not scheduled like an LPU."""
    roofline = ", roofline" if system.note else ""
    return f"{system.name} ({system.n_chips} x {system.chip.title}{roofline})"


def _chips(count: int) -> str:
    return "1 chip" if count == 1 else f"{count} chips"


def legend(memory: str = "SRAM") -> str:
    """What a plan's name means."""
    return (
        f"plan: {letters()}; row or column: split of output "
        f"projections (a/f/m if they differ). {memory}: fullest chip, reserve included."
    )


def serving_table(rows: Sequence[Row], prompt_tokens: int) -> Table:
    """What plans serve: who is in flight, the first token of a prompt, and energy where known."""
    has_energy = any(row.energy_j_per_token_upper is not None for row in rows)
    made = report.table(
        ("#", "right"),
        ("micro-batches", "right"),
        ("users", "right"),
        ("total bound by", "left"),
        ("first token", "right"),
        ("chunk", "right"),
        ("chunk bound by", "left"),
        ("fits to a reserve of", "right"),
        *([("J/token", "right"), ("alone", "right")] if has_energy else []),
        title=f"In flight, and the first token of a prompt of {prompt_tokens}",
    )
    for number, row in enumerate(rows, 1):
        cells = [
            str(number),
            str(row.in_flight),
            str(row.users_in_flight),
            row.total_bound_by,
            format_seconds(row.time_to_first_token_s),
            str(row.prefill_chunk_tokens),
            row.prefill_chunk_bound_by,
            f"{row.reserve_limit_fraction:.1%}" if row.reserve_limit_fraction >= 0 else "none",
        ]
        if has_energy:
            cells += [
                format_energy(row.energy_j_per_token_lower, row.energy_j_per_token_upper),
                format_energy(None, row.energy_j_per_token_upper_alone),
            ]
        made.add_row(*cells)
    return made


def _first_token_note(comparison: Comparison) -> str:
    """What the first token rests on: the chunks, what they attend to, how plans were chosen."""
    asked = comparison.scenario
    longest = chunk_lengths(asked)[-1]
    chosen = (
        "plans are ranked by it."
        if comparison.objective == "first-token"
        else f"plans are ranked by {comparison.objective}, not by it (--objective first-token)."
    )
    return (
        f"first token: the fastest chunk that fits, of 1, 2, 4, ... and {longest} tokens; "
        f"each attends to all {asked.request.context} allocated positions; {chosen}"
    )


def format_energy(lower_j: float | None, upper_j: float | None) -> str:
    """Bounds of an energy in joules as text: both, the upper one, or a dash."""
    if upper_j is None:
        return "-" if lower_j is None else f"at least {lower_j:.3g}"
    return f"up to {upper_j:.3g}" if lower_j is None else f"{lower_j:.3g}..{upper_j:.3g}"


def serving_notes(request: Request, system: System, draft_model: str | None = None) -> list[str]:
    """What the serving figures rest on, one sentence a line; `draft_model` is who drafts."""
    (host,) = (c for c in system.constants() if c.name == "host_overhead_s")
    spread = (
        ""
        if host.low is None or host.high is None
        else f", {host.low * 1e6:g} to {host.high * 1e6:g} us"
    )
    notes = [
        f"host and sampling: {host.value * 1e6:g} us per step ({host.status}{spread}), in "
        "every latency."
    ]
    if request.acceptance is not None:
        notes.append(draft_note(request, draft_model))
    reason = unknown_reason(system.chip)
    notes += [reason] if reason else []
    if knows_energy(system.chip):
        notes.append(f"energy: {MEANING}")
    return notes


def _cells(row: Row) -> list[str]:
    numerics = row.numerics
    return [
        row.plan.name,
        str(row.plan.n_chips),
        f"{row.sram_used_fraction:.1%}",
        format_seconds(row.decode_latency_s),
        report.interval(row.decode_latency_lower_s, row.decode_latency_upper_s),
        report.interval(*row.decode_latency_range_s),
        f"{row.tokens_per_s_per_user:.0f}",
        f"{row.tokens_per_s_total:.0f}",
        format_seconds(row.hand_over_s),
        format_bytes(row.wire_bytes_per_token),
        "-" if numerics is None else _decibels(numerics["sqnr_db"]),
    ]


def _decibels(sqnr_db: float | None) -> str:
    """An SQNR as text; None is no error at all."""
    return "exact" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def _searched(comparison: Comparison) -> str:
    lines = [f"{comparison.legal} legal plans, {comparison.fitting} fit."]
    for reason, count in sorted(comparison.rejected.items(), key=lambda item: -item[1])[:6]:
        what = "refused" if reason.startswith(DOES_NOT_FIT) else "ways to split refused"
        lines.append(f"  {count:>7} {what}: {reason}")
    nearest = comparison.nearest
    if nearest is not None:
        lines.append(
            f"  nearest that does not fit: {nearest.plan.name}, short of "
            f"{format_bytes(nearest.short_bytes)} on the fullest chip."
        )
    return "\n".join(lines)


def memory_maps(row: Row, memory: str = "SRAM") -> list[Table]:
    """What the fullest chip of a plan would hold, and that of the draft model beside it."""
    draft = row.draft
    return [
        memory_map(row, memory),
        *([] if draft is None else [memory_map(draft, memory, of=f"{draft.model}, ")]),
    ]


def memory_map(row: Row | DraftRow, memory: str = "SRAM", of: str = "") -> Table:
    """What the fullest chip of a plan would hold; `of` names whose plan it is."""
    made = report.table(
        ("fullest chip", "left"),
        ("bytes", "right"),
        (f"of {memory}", "right"),
        title=f"Memory map of {of}{row.plan.name}",
    )
    sram = row.memory_bytes["sram"]
    for name, size in row.memory_bytes.items():
        if name != "sram":
            made.add_row(name, format_bytes(size), f"{size / sram:.1%}")
    total = sum(size for name, size in row.memory_bytes.items() if name != "sram")
    made.add_section()
    made.add_row("needed", format_bytes(total), f"{total / sram:.1%}")
    made.add_row("there is", format_bytes(sram), "100.0%")
    made.add_row(
        "short of" if total > sram else "spare",
        format_bytes(abs(total - sram)),
        f"{abs(total - sram) / sram:.1%}",
    )
    return made
