"""One kind of block under many ways to split it: time, memory and wire of each row.

Rows that differ in nothing the block sees are timed once. Rows of one program, by what it cannot
take as a number, are scheduled together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.placed_machine import BestPlaced
from lpu_jax.cost.program import Program
from lpu_jax.cost.schedule import Timing
from lpu_jax.cost.timing import Placed, timing
from lpu_jax.datapath.work import Quantity, Unit, ceil
from lpu_jax.machine.system import System
from lpu_jax.machine.tray_dram import TrayDram
from models.blocks import Kind, block_arguments, is_leaf
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from .. import axes
from ..axes import MOVING
from ..plan import MoeShard
from ..scenario import Scenario
from ..slots.sizes import SlotPlan, slot_plans
from ..space.shard_table import DISPATCHES, SPLITS, Column, ShardTable
from .block_report import BlockReport, mean_over_steps, merge, take
from .placement import Live, bare_bytes, block_bytes, held_bytes
from .placements import BestPlacements, Placements
from .symbolic import symbol_values, trace_block

#: Rows that are scheduled at once: their columns stay in a processor's cache.
_AT_ONCE = 1 << 13


#: Mesh axes of a mixture whose chips of one expert are not neighbours.
_TURNED = ("replica", "tensor", "expert")


@dataclass(frozen=True, kw_only=True)
class ScheduledBlock:
    """One kind of block with its schedule, operation by operation."""

    program: Program
    symbols: Mapping[str, Any]
    arguments: Any  #: tree of `Leaf`
    machine: Placed | BestPlaced
    timing: Timing
    #: of a cache in DRAM: when all of each part, by name, is in the chip
    dram_cycles: Mapping[str, Quantity]
    dram: TrayDram | None  #: where its cache lies; None: in the chip

    def report(self, live: Live = Live.MEASURED) -> BlockReport:
        """Its time, what it holds and what it sends; see `placement.block_bytes`."""
        sent = (slot.work for slot in self.timing.slots if slot.work.unit is Unit.C2C)
        return BlockReport(
            timing=self.timing,
            held=block_bytes(
                self.arguments,
                self.program,
                self.timing,
                self.symbols,
                self.machine.chip,
                self.dram,
                live=live,
            ),
            wire_bytes=sum((work.moved_bytes for work in sent), 0.0),
            worst_cycles=self.timing.cycles,
        )


def schedule_block(
    kind: Kind,
    ways: Mapping[str, Any],
    machine: Placed | BestPlaced,
    scenario: Scenario,
    *,
    slots: Mapping[str, Any],
    split: Split,
    collective: str,
    dispatch: Dispatch,
    strides: Mapping[str, Any] | None = None,
    limited: bool = True,
) -> ScheduledBlock:
    """Schedule one kind of block for numbers, or one number per plan, as its degrees.

    Args:
        kind: the kind of block.
        ways: chips along each of its mesh axes, outermost first; of a mixture at least experts and
            columns among each other.
        machine: chip and links.
        scenario: the model, its formats, and batch, tokens and context.
        slots: lengths of a mixture's program: `slots`, `sent` and `capacity`, 0 where slots have
            room for all rows; empty without experts.
        split: how output projections are split.
        collective: algorithm of its collectives.
        dispatch: how rows reach the chips of their experts.
        strides: chips from one chip of each axis to the next; None: as `ways` are ordered.
        limited: whether to find limits of its time too.
    """
    cfg, policy, request = scenario.model, scenario.policy, scenario.request
    program = trace_block(
        cfg,
        kind,
        policy,
        split,
        collective,
        tuple(ways) if kind == "moe" else None,
        dispatch,
        axes.moving_axes(kind, ways),
        gathers=bool(np.max(slots.get("capacity", 0)) > 0),
    ).program
    if kind == "head":  # one row per position whose token is chosen, as of so many sequences
        rows = request.batch * request.sampled_tokens
        request = replace(request, batch=rows, tokens=request.tokens // request.sampled_tokens)
    sizes = axes.sizes(cfg, kind, policy, ways, request, split)
    symbols = symbol_values(sizes, ways, axes.strides(ways) if strides is None else strides, slots)
    arguments = block_arguments(cfg, kind, policy, split, sizes, dispatch)
    reads = _dram_cycles(arguments, scenario.system)
    arrivals = {program.inputs[place]: cycles for place, (_, cycles) in reads.items()}
    return ScheduledBlock(
        program=program,
        symbols=symbols,
        arguments=arguments,
        machine=machine,
        timing=timing(program, machine, symbols, arrivals, limited=limited),
        dram_cycles=dict(reads.values()),
        dram=scenario.system.dram,
    )


def _dram_cycles(arguments: Any, system: System) -> dict[int, tuple[str, Quantity]]:
    """Find when each part of a cache that lies in DRAM is in the chip, by its place and its name.

    Parts come one after another, beginning with the block, and pass into the matrix unit as they
    come: they take no room in the chip (assumed). Scales come with their codes.
    """
    if system.dram is None:
        return {}
    found: dict[int, tuple[str, Quantity]] = {}
    n_bytes: Quantity = 0.0
    clock_hz = float(system.chip.clock_hz)
    leaves = jax.tree_util.tree_flatten_with_path(arguments, is_leaf=is_leaf)[0]
    for place, (path, leaf) in enumerate(leaves):
        if leaf.kind == "cache" and not leaf.stays:
            n_bytes = n_bytes + bare_bytes(leaf)
            cycles = ceil(system.dram.read_s(n_bytes) * clock_hz)
            name = next(
                part.key for part in reversed(path) if isinstance(part, jax.tree_util.DictKey)
            )
            found[place] = name, cycles if np.ndim(cycles) else float(cycles)
    return found


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows to be timed: ways to split a part, where each lies, and by which collectives."""

    shards: ShardTable
    placement: Column
    collective: Column
    collectives: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.placement)

    def take(self, rows: Column) -> "_Rows":
        return replace(
            self,
            shards=self.shards.take(rows),
            placement=self.placement[rows],
            collective=self.collective[rows],
        )


def evaluate_kind(
    kind: Kind,
    shards: ShardTable,
    rows: Column,
    placement: Column,
    placements: Placements | BestPlacements,
    scenario: Scenario,
    collective: Column | None = None,
    collectives: tuple[str, ...] = ("auto",),
    *,
    live: Live = Live.MEASURED,
    limited: bool = True,
) -> tuple[BlockReport, tuple[tuple[SlotPlan, ...], Int[np.ndarray, " slots"]]]:
    """Evaluate a kind of block under ways to split it.

    Args:
        kind: the kind of block.
        shards: ways to split its part of a plan.
        rows: the way of each entry.
        placement: where the groups of each entry lie.
        placements: what these numbers mean.
        scenario: the model, the machine, the request and the formats.
        collective: which of the collectives each entry takes; None: the first.
        collectives: their names.
        live: how the memory of live values is found. A bound holds for all capacities of slots.
        limited: whether to find limits of the times too.

    Returns:
        Time, memory and wire of each entry. For mixtures also slots, and which of them each entry
        has: those of its fastest capacity, of equals the fewest rows; else no slots.
    """
    algorithm = np.zeros_like(rows) if collective is None else collective
    key = (placement * len(shards) + rows) * len(collectives) + algorithm
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    distinct = _Rows(
        shards=shards.take(rows[first]),
        placement=placement[first],
        collective=algorithm[first],
        collectives=collectives,
    )
    if kind != "moe":
        report = _evaluate(kind, distinct, placements, scenario, None, (live, limited))
        return take(report, back, len(distinct)), ((), np.zeros(0, np.int64))
    sized, of_row = _slot_options(distinct.shards, scenario)
    n_options = np.array([len(options) for options in of_row])
    row = np.repeat(np.arange(len(distinct)), n_options)
    option = np.concatenate(of_row)
    report = _evaluate(
        kind, distinct.take(row), placements, scenario, (sized, option), (live, limited)
    )
    if live is Live.LEAST:
        report = _with_least_live(report, row)
    cycles = np.broadcast_to(np.asarray(report.timing.cycles), row.shape)
    order = np.lexsort((np.arange(len(row)), cycles, row))
    best = order[np.searchsorted(row, np.arange(len(distinct)))]
    return take(report, best[back], len(row)), (sized, option[best[back]])


def _with_least_live(report: BlockReport, row: Column) -> BlockReport:
    """Give all options of a row the least of their live values: any may be its fastest."""
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    least = np.minimum.reduceat(report.held.activations, starts)
    return replace(report, held=replace(report.held, activations=least[row]))


def stored_bytes(
    kind: Kind, shards: ShardTable, scenario: Scenario
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Weights and cache of a kind of block in the fullest chip, in bytes: an entry per row."""
    cfg, policy = scenario.model, scenario.policy
    ways, _ = shards.mesh(kind, cfg)
    weights, cache = np.zeros((2, len(shards)))
    columns = np.broadcast_arrays(shards.split, shards.dispatch, _moving(kind, ways))
    for rows in _alike(columns, len(shards)):
        own = {axis: n[rows] for axis, n in ways.items()}
        split = SPLITS[shards.split[rows[0]]]
        arguments = block_arguments(
            cfg,
            kind,
            policy,
            split,
            axes.sizes(cfg, kind, policy, own, scenario.request, split),
            DISPATCHES[shards.dispatch[rows[0]]],
        )
        held = held_bytes(arguments, scenario.system.chip, scenario.system.dram)
        weights[rows], cache[rows] = held["weights"], held["cache"]
    return weights, cache


def _moving(kind: Kind, ways: Mapping[str, Column]) -> Column:
    """Which axes that round whatever the split have chips: a bit each."""
    bits = ((ways[axis] > 1).astype(np.int64) << i for i, axis in enumerate(MOVING[kind]))
    return sum(bits, np.zeros_like(next(iter(ways.values()))))


def _slot_options(
    shards: ShardTable, scenario: Scenario
) -> tuple[tuple[SlotPlan, ...], list[Int[np.ndarray, " _options"]]]:
    """Size the slots of each row for each number of rows that they may have."""
    number: dict[SlotPlan, int] = {}
    columns = (shards.degrees["expert"], shards.split, shards.dispatch, shards.slots)
    keys, back = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    options = []
    for expert, split, dispatch, words in keys.tolist():
        shard = MoeShard(
            expert=expert,
            split=SPLITS[split],
            dispatch=DISPATCHES[dispatch],
            **shards.slot_words[words],
        )
        found = slot_plans(shard, scenario)
        options.append(np.array([number.setdefault(one, len(number)) for one in found]))
    return tuple(number), [options[i] for i in back.reshape(-1).tolist()]


def _evaluate(
    kind: Kind,
    rows: _Rows,
    placements: Placements | BestPlacements,
    scenario: Scenario,
    slots: tuple[tuple[SlotPlan, ...], Column] | None,
    asked: tuple[Live, bool],
) -> BlockReport:
    """Evaluate rows, each with its slots, program by program; see `evaluate_kind` for the rest."""
    steps = None if slots is None else _Steps(slots[0])
    ways, strides = rows.shards.mesh(kind, scenario.model)
    moves = _moving(kind, ways)
    gathers = 0 if steps is None or slots is None else steps.gathers[slots[1]]
    turned = rows.shards.turned
    columns = np.broadcast_arrays(
        rows.shards.split, rows.shards.dispatch, rows.collective, moves, gathers, turned
    )
    parts = []
    for chosen in _alike(columns):
        order = _TURNED if turned[chosen[0]] else tuple(ways)
        parts.append((chosen, _evaluate_program(
            kind,
            {axis: ways[axis] for axis in order},
            strides,
            rows,
            chosen,
            placements,
            scenario,
            None if steps is None or slots is None else (steps, slots[1][chosen]),
            asked,
        )))  # fmt: skip
    return parts[0][1] if len(parts) == 1 else merge(parts, len(rows))


def _alike(
    columns: Sequence[Column | Bool[np.ndarray, " rows"]], at_once: int = _AT_ONCE
) -> Iterator[Column]:
    """Yield the rows of each distinct combination of columns, a few thousand at once."""
    if not len(columns[0]):
        return
    _, number = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    order = np.argsort(number.reshape(-1), kind="stable")
    edges = np.flatnonzero(np.diff(number.reshape(-1)[order])) + 1
    for rows in np.split(order, edges):
        for start in range(0, len(rows), at_once):
            yield rows[start : start + at_once]


def _evaluate_program(
    kind: Kind,
    ways: Mapping[str, Column],
    strides: Mapping[str, Column],
    rows: _Rows,
    chosen: Int[np.ndarray, " chosen"],
    placements: Placements | BestPlacements,
    scenario: Scenario,
    sized: "tuple[_Steps, Column] | None",
    asked: tuple[Live, bool],
) -> BlockReport:
    """Evaluate rows of one program; those of a mixture in every way in which a step may run."""
    live, limited = asked
    lengths: dict[str, Any] = {}
    step_row, probability = np.arange(len(chosen)), None
    if sized is not None:
        lengths, step_row, probability = sized[0].laid_out(sized[1])
    of_step = chosen[step_row]
    first = int(chosen[0])
    report = schedule_block(
        kind,
        {axis: n[of_step] for axis, n in ways.items()},
        placements.machine(rows.placement[of_step]),
        scenario,
        slots=lengths,
        split=SPLITS[rows.shards.split[first]],
        collective=rows.collectives[rows.collective[first]],
        dispatch=DISPATCHES[rows.shards.dispatch[first]],
        strides={axis: n[of_step] for axis, n in strides.items()},
        limited=limited,
    ).report(live)
    if probability is None:
        return take(report, np.arange(len(chosen)), len(chosen))
    return mean_over_steps(report, step_row, probability, len(chosen))


class _Steps:
    """The steps of distinct slots as columns."""

    def __init__(self, sized: tuple[SlotPlan, ...]) -> None:
        self.count = np.array([len(slots.steps) for slots in sized])
        self.start = np.cumsum(self.count) - self.count
        self.capacity = np.array([slots.capacity or 0 for slots in sized])
        self.gathers = np.array([slots.capacity is not None for slots in sized])
        every = [step for slots in sized for step in slots.steps]
        self.slots = np.array([step.slots for step in every])
        self.sent = np.array([step.sent for step in every])
        self.probability = np.array([step.probability for step in every])

    def laid_out(
        self, sized: Column
    ) -> tuple[dict[str, Any], Int[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
        """Lay the ways in which each row may run a step end to end.

        Returns:
            Lengths of each; the row of each, ascending; the probability of each.
        """
        count = self.count[sized]
        row = np.repeat(np.arange(len(sized)), count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        step = self.start[sized][row] + within
        lengths = {
            "slots": self.slots[step],
            "sent": self.sent[step],
            "capacity": self.capacity[sized][row],
        }
        return lengths, row, self.probability[step]


def step_lengths(slots: SlotPlan | None) -> dict[str, int]:
    """Lengths of the step that slots are planned for; empty without experts."""
    if slots is None:
        return {}
    step = slots.main
    return {"slots": step.slots, "sent": step.sent, "capacity": slots.capacity or 0}
