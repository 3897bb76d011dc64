"""Why one plan takes as long as it does, as data and as text; `explain` finds it out.

A share of the time is what an operation adds to the end of its block: shares of operations that
run at the same time add up. Times are in us. Not modelled: as in `evaluate`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

from lpu_jax.cost.time_report import OperationRow
from lpu_jax.provenance import Constant, weakest
from lpu_jax.quantities import format_bytes
from models.blocks import Kind

from .. import report
from ..plan import Plan
from ..predict.slot_reading import SlotReading
from ..request import Request
from .scheduled import block_list

#: Neighbouring operations that add less of their block's time than this are shown in one row.
_SHOWN_SHARE = 0.015


@dataclass(frozen=True, kw_only=True)
class AxisUse:
    """A mesh axis of a kind of block on the machine."""

    axis: str
    chips: int
    stride: int  #: chips from one to the next
    level: str  #: the outermost level that it crosses


@dataclass(frozen=True, kw_only=True)
class CollectiveUse:
    """A collective of a kind of block over its links."""

    operation: int  #: number of its row
    kind: str
    algorithm: str  #: the one that was taken
    axes: tuple[str, ...]
    chips: int
    stride: int
    level: str
    hops: int
    exact: bool  #: else an upper bound over these links
    cycles: float  #: from its first vector in to its last vector out
    busiest_link_cycles: float
    payload_bytes: float
    link_bytes: float  #: that a chip puts on its links, frames included, on average
    steps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OperationUse:
    """An operation of a kind of block, with its part of the time."""

    name: str
    row: OperationRow
    share_of_block: float  #: of the block's time
    share_of_token: float  #: of a token's time, all blocks of the kind together


@dataclass(frozen=True, kw_only=True)
class SlotUse:
    """The slots of a mixture, and how long a block takes with them and without enough."""

    reading: SlotReading
    planned_cycles: float  #: of a block whose slots are enough
    worst_cycles: float  #: of a block that needs all it ever can


@dataclass(frozen=True, kw_only=True)
class BlockUse:
    """A kind of block: all blocks of a kind take the same time."""

    kind: Kind
    count: int
    cycles: float  #: of a mixture: the mean over the routings of a step
    lower_cycles: float
    upper_cycles: float
    share_of_token: float
    utilisation: Mapping[str, float]  #: busy share of the time, by unit
    axes: tuple[AxisUse, ...]
    operations: tuple[OperationUse, ...]
    collectives: tuple[CollectiveUse, ...]
    weight_bytes: float  #: of the fullest chip, one block
    cache_bytes: float
    dram_cycles: float  #: in which they come from DRAM beside the chip; 0 if they lie in it
    cached_bytes: float  #: its values alone: each once, without padding
    live_bytes: float  #: of intermediate values, alive at once at most
    allocated_bytes: float  #: what they take with addresses: first fit, largest first
    slots: SlotUse | None = None  #: of a mixture on LPUs


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """A stage of the plan."""

    number: int
    system: str  #: the machine that has it
    first_chip: int
    last_chip: int
    blocks: tuple[str, ...]
    cycles: float


@dataclass(frozen=True, kw_only=True)
class HandOverUse:
    """A hand-over between stages."""

    name: str
    source: int
    target: int
    level: str
    cycles: float
    payload_bytes: float
    is_back: bool  #: token ids to the first stage


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One plan, explained. Cycles are those of the chip's clock."""

    plan: Plan
    model: str
    system: str
    policy: str
    request: Request
    clock_hz: float
    latency_cycles: float
    lower_cycles: float
    upper_cycles: float
    latency_range_s: tuple[float, float]  #: all uncertain constants at either end
    hand_over_cycles: float
    host_cycles: float  #: host and sampling
    fits: bool
    memory_bytes: Mapping[str, float]  #: of the fullest chip
    stages: tuple[StageUse, ...]
    blocks: tuple[BlockUse, ...]
    hand_overs: tuple[HandOverUse, ...]
    note: str  #: what kind of model the times come from, where it is not a schedule
    assumed: tuple[Constant, ...]  #: constants without a public source that the times rest on
    assumed_fit: tuple[Constant, ...]  #: those that decide whether the plan fits

    @property
    def latency_s(self) -> float:
        """Time of one token."""
        return self.latency_cycles / self.clock_hz

    def microseconds(self, cycles: float) -> float:
        """Convert cycles."""
        return cycles / self.clock_hz * 1e6

    def as_dict(self) -> dict[str, Any]:
        """The explanation as plain values."""
        plain = asdict(self)
        for block in plain["blocks"]:
            block["operations"] = [
                {**row.pop("row"), **row} | {"operation": use.row.name}
                for row, use in zip(
                    block["operations"], self._operations(block["kind"]), strict=True
                )
            ]
        plain["assumed"] = [constant.as_dict() for constant in self.assumed]
        plain["assumed_fit"] = [constant.as_dict() for constant in self.assumed_fit]
        return plain | {"plan": self.plan.as_dict(), "latency_s": self.latency_s}

    def _operations(self, kind: str) -> tuple[OperationUse, ...]:
        return next(block.operations for block in self.blocks if block.kind == kind)

    def text(self) -> str:
        """The explanation as text for a terminal."""
        return explanation_text(self)


# --- as text --------------------------------------------------------------------------------------


def explanation_text(explanation: Explanation) -> str:
    """Stages, axes, operations, collectives and hand-overs of a plan, for a terminal."""
    parts: list[Any] = [_stages(explanation), _axes(explanation)]
    for block in explanation.blocks:
        parts += [_heading(explanation, block), _operations(explanation, block)]
    if any(block.collectives for block in explanation.blocks):
        parts.append(_collectives(explanation))
    parts += [_hand_over_line(explanation), _time_line(explanation), _assumed_line(explanation)]
    return report.render(*parts)


def _us(explanation: Explanation, cycles: float) -> str:
    return f"{explanation.microseconds(cycles):.3f}"


def _stages(explanation: Explanation) -> Table:
    """Stages that hold the same kinds of blocks share a line."""
    made = report.table(
        ("stages", "right"), ("chips", "right"), ("us each", "right"), ("blocks", "left"),
        title=f"Stages of {explanation.plan.name}",
    )  # fmt: skip

    def alike(stage: StageUse) -> Any:
        return [block.split()[-1] for block in stage.blocks], round(stage.cycles)

    for _, group in groupby(explanation.stages, key=alike):
        stages = list(group)
        first, last = stages[0], stages[-1]
        own = "" if first.system == explanation.system else f"{first.system} "
        made.add_row(
            str(first.number) if first is last else f"{first.number}..{last.number}",
            f"{own}{first.first_chip}..{last.last_chip}",
            _us(explanation, first.cycles),
            block_list(first.blocks) + ("" if first is last else ", and so on"),
        )
    return made


def _axes(explanation: Explanation) -> Table:
    made = report.table(
        ("block", "left"), ("axis", "left"), ("chips", "right"), ("stride", "right"),
        ("level", "left"),
        title="Mesh axes, outermost first, and the outermost level that each crosses",
    )  # fmt: skip
    for block in explanation.blocks:
        used = [axis for axis in block.axes if axis.chips > 1]
        for axis in used:
            made.add_row(block.kind, axis.axis, f"x{axis.chips}", str(axis.stride), axis.level)
        if not used:
            made.add_row(block.kind, "-", "x1", "-", "chip")
    return made


def _heading(explanation: Explanation, block: BlockUse) -> str:
    busy = ", ".join(f"{unit} {share:.1%}" for unit, share in block.utilisation.items())
    bounds = f"{_us(explanation, block.lower_cycles)}..{_us(explanation, block.upper_cycles)}"
    slots = "" if block.slots is None else f"\n  {_slots(explanation, block.slots)}"
    return (
        f"{block.kind} x{block.count}: {_us(explanation, block.cycles)} us each (between {bounds}),"
        f" {block.share_of_token:.1%} of the token; busy: {busy or 'nothing'}; "
        f"weights {format_bytes(block.weight_bytes)}, cache {_cache(explanation, block)}, "
        f"live values {format_bytes(block.live_bytes)} at most "
        f"({format_bytes(block.allocated_bytes)} with addresses){slots}"
    )


def _slots(explanation: Explanation, use: SlotUse) -> str:
    found = use.reading
    rows = "room for all rows" if found.capacity is None else f"room for {found.capacity} rows"
    overflow = f"{found.overflow:.1e}" if found.overflow else "None"
    rules = ", ".join(f"{rule} {1e6 * s:.1f} us" for rule, s in found.latency_s_by_rule.items())
    return (
        f"slots: {found.slots} on a chip, each with {rows}; {found.worst_slots} at worst. "
        f"{overflow} of steps need more; a block takes "
        f"{_us(explanation, use.planned_cycles)} us with them, "
        f"{_us(explanation, use.worst_cycles)} us at worst. One step by slot rule: {rules}."
    )


def _cache(explanation: Explanation, block: BlockUse) -> str:
    if not block.cached_bytes:
        return "none"
    times = block.cache_bytes / block.cached_bytes
    read = f" from DRAM in {_us(explanation, block.dram_cycles)} us" if block.dram_cycles else ""
    return f"{format_bytes(block.cache_bytes)}{read} ({times:.2f} times its values)"


def _merged(operations: Sequence[OperationUse]) -> Iterator[tuple[OperationUse, ...]]:
    """Put neighbours that add little into one group; the others stay alone."""
    few: list[OperationUse] = []
    for use in operations:
        if use.share_of_block < _SHOWN_SHARE:
            few.append(use)
            continue
        if few:
            yield tuple(few)
        few = []
        yield (use,)
    if few:
        yield tuple(few)


def _operations(explanation: Explanation, block: BlockUse) -> Table:
    made = report.table(
        ("unit", "left"), ("operation", "left"), ("start us", "right"), ("busy us", "right"),
        ("end us", "right"), ("of block", "right"), ("of token", "right"), ("bound by", "left"),
        ("rests on", "left"),
    )  # fmt: skip
    for group in _merged(block.operations):
        rows = [use.row for use in group]
        one = len(group) == 1
        status = weakest(row.status for row in rows)
        made.add_row(
            "+".join(dict.fromkeys(row.unit for row in rows)),
            group[0].name if one else f"{len(group)} operations",
            _us(explanation, min(row.start_cycle for row in rows)),
            _us(explanation, sum(row.busy_cycles for row in rows)),
            _us(explanation, max(row.end_cycle for row in rows)),
            f"{sum(use.share_of_block for use in group):.1%}",
            f"{sum(use.share_of_token for use in group):.1%}",
            rows[0].bound_by if one else "-",
            status,
        )
    return made


def _collectives(explanation: Explanation) -> Table:
    made = report.table(
        ("block", "left"), ("collective", "left"), ("algorithm", "left"), ("over", "left"),
        ("chips", "right"), ("level", "left"), ("hops", "right"), ("us", "right"),
        ("busiest link us", "right"), ("payload", "right"), ("sent per chip", "right"),
        title="Collectives: minimal routes only; ~ marks an upper bound over shared links",
    )  # fmt: skip
    for block in explanation.blocks:
        for use in block.collectives:
            made.add_row(
                block.kind,
                use.kind,
                use.algorithm,
                "·".join(use.axes),
                str(use.chips) + (f" by {use.stride}" if use.stride > 1 else ""),
                use.level,
                str(use.hops),
                ("" if use.exact else "~") + _us(explanation, use.cycles),
                _us(explanation, use.busiest_link_cycles),
                format_bytes(use.payload_bytes),
                format_bytes(use.link_bytes),
            )
    return made


def _hand_over_line(explanation: Explanation) -> str:
    if not explanation.hand_overs:
        return "hand-overs: none, one stage."
    steps = explanation.hand_overs
    alike = Counter((s.level, _us(explanation, s.cycles)) for s in steps if not s.is_back)
    back = [
        f"; token ids back {_us(explanation, s.cycles)} us ({s.level})" for s in steps if s.is_back
    ]
    share = explanation.hand_over_cycles / explanation.latency_cycles
    groups = [f"{count} of {time} us ({level})" for (level, time), count in alike.items()]
    return (
        f"hand-overs: {_us(explanation, explanation.hand_over_cycles)} us, {share:.1%} of the "
        f"token: {', '.join(groups)}{''.join(back)}."
    )


def _time_line(explanation: Explanation) -> str:
    return (
        f"host and sampling: {_us(explanation, explanation.host_cycles)} us.\n"
        f"one step: {_us(explanation, explanation.latency_cycles)} us; lower bound "
        f"{_us(explanation, explanation.lower_cycles)} us, upper bound "
        f"{_us(explanation, explanation.upper_cycles)} us; with all uncertain constants at their "
        f"favourable or unfavourable ends {report.interval(*explanation.latency_range_s)}."
    )


def _assumed_line(explanation: Explanation) -> str:
    def listed(what: str, constants: Sequence[Constant]) -> str:
        names = ", ".join(dict.fromkeys(constant.name for constant in constants))
        return f"{what} on assumed constants: {names}." if names else ""

    parts = (
        explanation.note,
        listed("These times rest", explanation.assumed),
        listed("Whether the plan fits rests", explanation.assumed_fit),
    )
    return " ".join(part for part in parts if part)
