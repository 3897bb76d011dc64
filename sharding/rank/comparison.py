"""The result of a comparison: ranked rows, as plain values and as text."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from rich.table import Table

from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import Machine, MixedSystem, Split
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
from ..predict.slot_reading import slot_table
from ..report import versions
from ..request import Request
from ..scenario import Scenario
from ..search.find import Searched
from ..search.goals import FRONTS
from . import exports
from .chip_figures import Figures
from .draft_row import DraftRow, draft_note, draft_table
from .limits import Limits
from .ranking import Objective
from .row import Row
from .rows_plot import draw_rows, series_name

#: Reasons that begin so refuse a plan for its memory; all others refuse a split for its shapes.
DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ranked plans of a model on a machine, and what was searched."""

    scenario: Scenario
    prompt_tokens: int
    objective: Objective
    invariant: str  #: which bits plans must give
    limits: Limits  #: as they were asked for
    rows: tuple[Row, ...]  #: the best that fit; if none fits, those that lack least
    legal: int  #: plans that were evaluated in full
    fitting: int  #: of them, those that fit and keep to the limits
    rejected: Mapping[str, int]  #: plans and degrees refused, by reason
    nearest: Row | None  #: the plan that does not fit and lacks least, where none fits
    searched: Searched | None  #: what was searched; None: plans were given
    excluded: str | None  #: which limit leaves no plan, though some fit
    drafts: tuple[Plan, ...]  #: plans that the draft model could get
    figures: Figures  #: of the chips, as they were given
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
                "name": self.scenario.machine.name,
                "chips": self.scenario.machine.n_chips,
                "sram_bytes": self.scenario.machine.memory_bytes,
                "memory": self.scenario.machine.memory_name,
                "note": self.scenario.machine.note,
            },
            "request": vars(self.scenario.request) | {"prompt": self.prompt_tokens},
            "draft_model": None if self.scenario.draft is None else self.scenario.draft.model.name,
            "energy": {"meaning": MEANING, "reason": unknown_reason(self.scenario.machine)},
            "objective": self.objective,
            "invariant": self.invariant,
            "limits": self.limits.as_dict(),
            **self.figures.as_dict(),
            "rows": [row.as_dict() for row in self.rows],
            "searched": {
                "legal": self.legal,
                "fitting": self.fitting,
                "rejected": dict(self.rejected),
                "space": None if self.searched is None else self.searched.as_dict(),
                "excluded_by": self.excluded,
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

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`, a plan a row, best first.

        Each row has its number and what was asked. A value inside another has a column such as
        `memory_bytes.weights`, the ends of a range `.low` and `.high`.

        Raises:
            LpuError: pandas is not installed.
        """
        return exports.dataframe(exports.asked_rows(self.as_dict()))

    @overload
    def to_csv(self, path: None = None) -> str: ...

    @overload
    def to_csv(self, path: str | Path) -> None: ...

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """The rows as CSV, with the columns of `to_dataframe`; None is an empty cell.

        Text that a spreadsheet would run as a formula, such as a model's name `=1+1`, has an
        apostrophe before it.

        Args:
            path: of a file, which is written whole or not at all; None: return the text.

        Returns:
            The text if there is no path.

        Raises:
            LpuError: what is no path, or the file cannot be written.
        """
        return exports.csv_to(path, exports.asked_rows(self.as_dict()))

    def _repr_html_(self) -> str:
        """The rows as a table in a notebook."""
        return exports.html_table(self.as_dict())

    def plot(self, path: str | Path) -> None:
        """Draw the rows into a PNG, SVG or PDF file: one user's rate against that of all users.

        A front has its own second axis: that rate, the rate per chip, or chips.

        A column of a paper wide. Bars span the rates of one user at the bounds of the schedule's
        time and, lighter, over the assumed constants; a front is a line.

        Raises:
            LpuError: another suffix, there is nothing to draw, or the file cannot be
                written.
        """
        picture_format(path)
        fitting = [(number, row) for number, row in enumerate(self.rows, 1) if row.fits]
        asked, request = self.scenario, self.scenario.request
        if not fitting:
            raise LpuError(f"{path} was not drawn: no plan of {asked.model.name} fits.")
        which = "plans of the front" if self.objective in FRONTS else "plans"
        draw_rows(
            Path(path),
            {f"{which}, by row": fitting},
            self.objective,
            title=f"{asked.model.name} on {series_name(asked.machine)}",
            subtitle=f"weights {asked.policy.name}, batch {request.batch}, "
            f"context {request.context}",
        )


def comparison_text(comparison: Comparison) -> str:
    """The table of a comparison with what was asked, what was searched and what was refused."""
    c, asked = comparison, comparison.scenario
    system, request = asked.machine, asked.request
    memory = system.memory_name
    head = (
        f"{asked.model.name}: {format_count(n_parameters(asked.model), digits=4)} parameters, "
        f"weights {asked.policy.name}; "
        f"{system.name}: {system.title}, "
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
        *filter(None, [c.limits.in_words(c.invariant)]),
        *([rows] if c.rows else []),
        *([draft_table(drafts, memory)] if drafts else []),
        *([slot_table(slots)] if slots else []),
        *([serving_table(c.rows, c.prompt_tokens)] if c.rows else []),
        _first_token_note(c),
        legend(memory),
        *([c.figures.in_words] if c.figures.in_words else []),
        *dict.fromkeys(
            row.prefill_elsewhere.in_words for row in c.rows if row.prefill_elsewhere is not None
        ),
        *lone_micro_batches((row, system) for row in c.rows),
        *serving_notes(request, system, None if asked.draft is None else asked.draft.model.name),
        f"{len(c.assumed)} of the {len(system.constants())} numbers and rules of {system.name} are "
        "assumed: --json lists them, --sensitivity N draws them from their ranges. Over constants: "
        "all that have a range or alternatives at their favourable..unfavourable ends.",
        f"weights {asked.policy.name}: {asked.policy.source}.",
        _searched(c),
    ]
    if c.excluded is not None:
        lines.append(f"No row: {c.excluded}")
    elif not c.fitting and c.nearest is not None:
        lines += ["No plan fits.", *memory_maps(c.nearest, memory)]
    return report.render(*lines)


def lone_micro_batches(rows: Iterable[tuple[Row, Machine]]) -> Iterator[str]:
    """Say what it costs where one micro-batch alone goes to and fro between two machines.

    Args:
        rows: in order, each with its machine.
    """
    for number, (row, machine) in enumerate(rows, 1):
        is_split = isinstance(machine, MixedSystem) and machine.split is Split.ATTENTION_FFN
        if is_split and row.fits and row.in_flight == 1:
            yield (
                f"row {number}: one micro-batch in flight, so that GPUs and LPUs wait for one "
                f"another: of the {format_seconds(row.decode_latency_s)} of a token its busiest "
                f"stage or lane works {format_seconds(row.busiest_s)}; were there more, the rate "
                f"of all would be up to {row.decode_latency_s / row.busiest_s:.3g} times as high."
            )


def legend(memory: str = "SRAM") -> str:
    """What a plan's name means."""
    return (
        f"plan: {letters()}; row, column, tree or wide: split of output "
        f"projections (a/f/m if they differ). {memory}: fullest chip, reserve included."
    )


def serving_table(rows: Sequence[Row], prompt_tokens: int) -> Table:
    """What plans serve: who is in flight, the first token of a prompt, and energy where known."""
    has_energy = any(row.energy_j_per_token_upper is not None for row in rows)
    headings = _figure_headings(rows)
    made = report.table(
        ("#", "right"),
        ("copies", "right"),
        ("micro-batches", "right"),
        ("users", "right"),
        ("tok/s chip", "right"),
        ("total bound by", "left"),
        ("first token", "right"),
        ("chunk", "right"),
        ("chunk bound by", "left"),
        ("fits to a reserve of", "right"),
        *([("J/token", "right"), ("alone", "right")] if has_energy else []),
        *headings,
        title=f"In flight, and the first token of a prompt of {prompt_tokens}",
    )
    for number, row in enumerate(rows, 1):
        cells = [
            str(number),
            str(row.copies),
            str(row.in_flight),
            str(row.users_in_flight),
            report.rate(row.tokens_per_s_per_chip),
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
        cells += _figure_cells(row, headings)
        made.add_row(*cells)
    return made


#: Columns of what follows of figures that were given: the value of a row, and how it is written.
_FIGURE_COLUMNS: Mapping[str, tuple[Callable[[Row], float | None], Callable[[float], str]]] = {
    "tok/s MW": (lambda row: row.tokens_per_s_per_mw, format_count),
    "cost/Mtok": (lambda row: row.cost_per_million_tokens, "{:.4g}".format),
}


def _figure_headings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Columns of what follows of figures that were given for some row."""
    return [
        (heading, "right")
        for heading, (value, _) in _FIGURE_COLUMNS.items()
        if any(value(row) is not None for row in rows)
    ]


def _figure_cells(row: Row, headings: Sequence[tuple[str, str]]) -> list[str]:
    """What a row has in these columns."""
    columns = [_FIGURE_COLUMNS[heading] for heading, _ in headings]
    found = [(value(row), written) for value, written in columns]
    return ["-" if value is None else written(value) for value, written in found]


def _first_token_note(comparison: Comparison) -> str:
    """What the first token rests on: the chunks, what they attend to, how plans were chosen."""
    asked = comparison.scenario
    longest = chunk_lengths(asked)[-1]
    ranked_by = "the rate of one user" if comparison.objective == "pareto" else comparison.objective
    chosen = (
        "plans are ranked by it."
        if comparison.objective == "first-token"
        else f"plans are ranked by {ranked_by}, not by it (--objective first-token)."
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


def serving_notes(request: Request, system: Machine, draft_model: str | None = None) -> list[str]:
    """What the serving figures rest on, one sentence a line; `draft_model` is who drafts."""
    # Of a mixed system that of its GPUs, which have the head.
    host = next(c for c in system.constants() if c.name.endswith("host_overhead_s"))
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
    reason = unknown_reason(system)
    notes += [reason] if reason else []
    if knows_energy(system):
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
        report.brief_rate(row.tokens_per_s_per_user),
        report.brief_rate(row.tokens_per_s_total),
        format_seconds(row.hand_over_s),
        format_bytes(row.wire_bytes_per_token),
        "-" if numerics is None else _decibels(numerics["sqnr_db"]),
    ]


def _decibels(sqnr_db: float | None) -> str:
    """An SQNR as text; None is no error at all."""
    return "exact" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def _searched(comparison: Comparison) -> str:
    """What was searched, and what was refused and why."""
    space = comparison.searched
    if space is None:
        n, fitting = comparison.legal, comparison.fitting
        fits = "it fits" if fitting else "it does not fit"
        lines = [
            f"1 plan was given; {fits}." if n == 1 else f"{n} plans were given, {fitting} fit."
        ]
    else:
        lines = [*space.in_words]
    for reason, count in sorted(comparison.rejected.items(), key=lambda item: -item[1])[:6]:
        what = "refused" if reason.startswith(DOES_NOT_FIT) else "degrees refused"
        lines.append(f"  {count:>7} {what}: {reason}")
    nearest = comparison.nearest
    if nearest is not None:
        lines.append(
            f"  nearest that does not fit: {nearest.plan.name}, short of "
            f"{format_bytes(nearest.short_bytes)} on the fullest chip."
        )
    return "\n".join(lines)


#: What lies in the memory of a chip itself.
_IN_CHIP = ("weights", "cache", "activations", "reserved")


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
    in_chip = {name: row.memory_bytes[name] for name in _IN_CHIP}
    for name, size in in_chip.items():
        made.add_row(name, format_bytes(size), f"{size / sram:.1%}")
    total = sum(in_chip.values())
    made.add_section()
    made.add_row("needed", format_bytes(total), f"{total / sram:.1%}")
    made.add_row("there is", format_bytes(sram), "100.0%")
    made.add_row(
        "short of" if total > sram else "spare",
        format_bytes(abs(total - sram)),
        f"{abs(total - sram) / sram:.1%}",
    )
    if "dram" in row.memory_bytes:
        kept, room = row.memory_bytes["dram_cache"], row.memory_bytes["dram"]
        made.add_section()
        made.add_row("cache in DRAM, a micro-batch", format_bytes(kept), "")
        made.add_row("DRAM of a chip", format_bytes(room), f"{kept / room:.1%} of it")
    return made
