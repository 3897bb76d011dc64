"""One plan with nothing thrown away: every block operation by operation, stages and hand-overs.

`evaluate` does the same for many plans and keeps sums. Explanations, traces and plots read what is
here. Not modelled: as in `evaluate`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from lpu_jax.cost.memory import LiveRange, live_ranges
from lpu_jax.cost.placed_machine import BestPlaced, Groups
from lpu_jax.cost.program import Operation
from lpu_jax.cost.time_report import OperationRow, operation_rows
from lpu_jax.cost.timing import constants_read, placed
from lpu_jax.datapath.work import Unit
from lpu_jax.machine.system import System
from lpu_jax.provenance import Constant, assumed, constants_of
from models.blocks import BLOCK_KINDS, Block, Kind, block_chain, block_kinds, is_leaf

from .. import axes
from ..legal import check_plan
from ..plan import Plan
from ..predict.evaluate import Evaluation, evaluate
from ..predict.hand_overs import TOKEN_BYTES, hidden_bytes
from ..predict.kinds import ScheduledBlock, schedule_block, step_lengths
from ..predict.pools import hand_overs, lay_out, places_of
from ..scenario import Scenario, check_policy

_LONGEST_NAME = 34
#: Constants that are in every time: the clock, the way from unit to unit, the host.
_IN_EVERY_TIME = ("clock_hz", "transit_cycles", "host_overhead_s")
#: Constants that decide what fits, beside the tiles that matrices are padded to.
_IN_EVERY_FIT = (
    "sram_bytes", "memory_bytes", "reserved_fraction", "vector_bytes", "lanes", "dram_bytes",
    "fpga_lpus",
)  # fmt: skip
#: Constants of DRAM that are in the time of whoever reads it.
_OF_DRAM = ("lpu_lanes", "lane_bytes_per_s", "fpga_lpus", "dram_bytes_per_s", "dram_latency_s")
_TILES = "mode"  # unit of the constants that say them
_LISTED_BLOCKS = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a plan, with the time of a token at which each of its blocks starts."""

    number: int
    system: System  #: the machine that has it
    number_in_pool: int
    first_chip: int
    n_chips: int
    blocks: tuple[Block, ...]
    start_cycles: tuple[float, ...]  #: of each block
    cycles: float  #: of all blocks

    @property
    def name(self) -> str:
        """What it holds, in words."""
        return f"stage {self.number}: {block_list([block_name(block) for block in self.blocks])}"


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """The hidden state on its way to the next stage, or token ids on their way to the first."""

    source: int
    target: int
    start_cycle: float
    cycles: float
    payload_bytes: float
    is_back: bool  #: token ids

    @property
    def name(self) -> str:
        """What it is, in words."""
        what = "token ids back" if self.is_back else "hidden state"
        return f"{what} to stage {self.target}"


@dataclass(frozen=True, kw_only=True)
class KindSchedule:
    """One kind of block of a plan, with its operations described."""

    kind: Kind
    system: System  #: the machine that has it
    ways: Mapping[str, int]  #: chips along each mesh axis, outermost first
    group: Groups  #: where the stages that hold it lie
    block: ScheduledBlock

    @cached_property
    def rows(self) -> tuple[OperationRow, ...]:
        """The operations that take a unit, in program order."""
        block = self.block
        assert not isinstance(block.machine, BestPlaced)  # it lies somewhere
        read = constants_read(block.program, block.machine, block.symbols)
        return operation_rows(block.timing, read)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations of `rows`."""
        slots = self.block.timing.slots
        return tuple(slot.operation for slot in slots if slot.work.unit is not Unit.FREE)

    @property
    def assumed(self) -> set[str]:
        """Names of the assumed constants behind its operations, of those that have work."""
        slots = (slot for slot in self.block.timing.slots if slot.work.unit is not Unit.FREE)
        pairs = zip(slots, self.rows, strict=True)
        return {name for slot, row in pairs if not slot.work.absent for name in row.assumed}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What to call the operations of `rows`: their name, and the arguments they read."""
        return operation_names(self.block)

    @cached_property
    def ranges(self) -> tuple[LiveRange, ...]:
        """When its values are in memory."""
        block = self.block
        return live_ranges(
            block.program, block.timing, block.symbols, block.machine.chip.vector_bytes
        )

    @property
    def strides(self) -> dict[str, int]:
        """Chips from one chip to the next along each mesh axis."""
        strides, stride = {}, 1
        for axis, ways in reversed(list(self.ways.items())):
            strides[axis] = stride
            stride *= ways
        return {axis: strides[axis] for axis in self.ways}


@dataclass(frozen=True, kw_only=True)
class ScheduledPlan:
    """One plan: its numbers, and what they are made of."""

    plan: Plan
    scenario: Scenario
    evaluation: Evaluation
    kinds: Mapping[Kind, KindSchedule]
    stages: tuple[Stage, ...]
    hand_overs: tuple[HandOver, ...]  #: the last one is the way back

    @property
    def latency_cycles(self) -> float:
        """Cycles of one token."""
        return float(self.evaluation.latency_cycles[0])

    @cached_property
    def assumed_of_time(self) -> tuple[Constant, ...]:
        """The assumed constants that its time rests on, in the order of their declaration."""
        names = {*_IN_EVERY_TIME, *(n for kind in self.kinds.values() for n in kind.assumed)}
        if self.scenario.system.dram is not None:
            names |= set(_OF_DRAM)
        links = {
            constant.name
            for own in self.scenario.pools
            for constant in constants_of(own.system.topology)
        }
        if self.scenario.mixed is not None:
            names_of_link = {constant.name for constant in constants_of(self.scenario.mixed.link)}
            links |= {name for name in names_of_link if not name.startswith("dram_")}
        if self.plan.n_chips == 1:  # a chip alone crosses no link
            names -= links
        elif self.hand_overs:
            names |= links
        return tuple(c for c in self._assumed if _field(c) in names)

    @property
    def assumed_of_fit(self) -> tuple[Constant, ...]:
        """The assumed constants that decide whether it fits."""
        tiles = {c.name for c in self.assumed_of_time if c.unit == _TILES}
        return tuple(c for c in self._assumed if c.name in tiles or _field(c) in _IN_EVERY_FIT)

    @property
    def _assumed(self) -> tuple[Constant, ...]:
        return tuple(c for c in assumed(self.scenario.machine.constants()) if c.moves_plans)


def _field(constant: Constant) -> str:
    """The name of a constant in its part: that of a mixed system begins with the part's."""
    return constant.name.rpartition(".")[2]


def schedule_plan(plan: Plan, scenario: Scenario) -> ScheduledPlan:
    """Schedule one plan in full.

    Args:
        plan: a legal plan, whether it fits or not.
        scenario: the model, the machine, the request and the formats.

    Raises:
        LpuError: the plan is not possible: one sentence.
    """
    cfg, systems = scenario.model, [own.system for own in scenario.pools]
    for system in systems:
        check_policy(scenario.policy, cfg, system)
    check_plan(plan, scenario)
    evaluation = evaluate([plan], scenario)
    groups = lay_out(plan.pools, *(systems if scenario.crosses else systems[:1]))
    machines = [placed(own, (group,)) for own, group in zip(systems, groups, strict=False)]
    kinds: dict[Kind, KindSchedule] = {}
    for kind in block_kinds(cfg):
        ways, pool = axes.degrees(plan, kind, cfg), plan.pool_of(BLOCK_KINDS[kind].part)
        block = schedule_block(
            kind,
            ways,
            machines[pool],
            scenario.pools[pool],
            slots=step_lengths(evaluation.slots[0] if kind == "moe" else None),
            split=axes.split_of(plan, kind),
            collective=plan.collective,
            dispatch=axes.dispatch_of(plan, kind),
        )
        kinds[kind] = KindSchedule(
            kind=kind, system=systems[pool], ways=ways, group=groups[pool], block=block
        )
    stages, steps = _timeline(evaluation, groups)
    return ScheduledPlan(
        plan=plan,
        scenario=scenario,
        evaluation=evaluation,
        kinds=kinds,
        stages=stages,
        hand_overs=steps,
    )


def _timeline(
    evaluation: Evaluation, groups: Sequence[Groups]
) -> tuple[tuple[Stage, ...], tuple[HandOver, ...]]:
    """Put blocks and hand-overs of one token one after another."""
    asked = evaluation.scenario
    stage_of_block = evaluation.cuts.stage_of_block[:, 0]
    steps = hand_overs(stage_of_block, groups, asked)
    after = dict(zip(steps.block.tolist(), range(len(steps.block)), strict=True))
    ids = TOKEN_BYTES * asked.request.batch * asked.request.sampled_tokens
    chain, now = block_chain(asked.model), 0.0
    starts, handed = [], []
    for number, block in enumerate(chain):
        starts.append(now)
        now += first_of(evaluation.blocks[block.kind].timing.cycles)
        if number in after:
            step = after[number]
            is_back = number == len(chain) - 1
            handed.append(
                HandOver(
                    source=int(steps.giver[step]),
                    target=int(steps.taker[step]),
                    start_cycle=now,
                    cycles=float(steps.cycles[step]),
                    payload_bytes=float(ids) if is_back else hidden_bytes(asked),
                    is_back=is_back,
                )
            )
            now += float(steps.cycles[step])
    within = [number for group in groups for number in range(len(group.bases))]
    pools = zip(asked.pools, groups, strict=False)
    systems = [own.system for own, group in pools for _ in group.bases]
    stages = []
    for stage, (first_chip, n_chips) in enumerate(zip(*places_of(groups), strict=True)):
        own = np.flatnonzero(stage_of_block == stage).tolist()
        stages.append(
            Stage(
                number=stage,
                system=systems[stage],
                number_in_pool=within[stage],
                first_chip=int(first_chip),
                n_chips=int(n_chips),
                blocks=tuple(chain[i] for i in own),
                start_cycles=tuple(starts[i] for i in own),
                cycles=sum(first_of(evaluation.blocks[chain[i].kind].timing.cycles) for i in own),
            )
        )
    return tuple(stages), tuple(handed)


def first_of(numbers: Any) -> float:
    """Take the number of the first plan."""
    return float(np.asarray(numbers).reshape(-1)[0])


def block_name(block: Block) -> str:
    """What to call a block."""
    title = BLOCK_KINDS[block.kind].title
    return title if BLOCK_KINDS[block.kind].part == "vocab" else f"layer {block.layer} {title}"


def block_list(names: Sequence[str]) -> str:
    """Names of blocks on a line; of many only the first two and the last."""
    if len(names) > _LISTED_BLOCKS:
        names = [*names[:2], f"... {len(names) - 3} blocks ...", names[-1]]
    return ", ".join(names) or "no block"


def axis_names(operation: Operation) -> tuple[str, ...]:
    """Mesh axes that a collective spans, outermost first, from its symbolic size."""
    # `trace_block` calls the degree of an axis `n_` and its name.
    return tuple(re.findall(r"n_([a-z]+)", getattr(operation.params.get("size"), "text", "")))


def operation_names(block: ScheduledBlock) -> tuple[str, ...]:
    """Call each operation that takes a unit by its name and the weights and caches it reads."""
    called: dict[int | None, str] = dict(
        zip(block.program.inputs, _argument_names(block.arguments), strict=True)
    )
    names = []
    for slot in block.timing.slots:
        operation = slot.operation
        read = [called[value] for value in operation.reads if called.get(value)]
        if operation.result_known and read:
            called.update(dict.fromkeys(operation.makes, read[0]))
        if slot.work.unit is not Unit.FREE:
            name = operation.name.split("_", 1)[-1].replace("+", " ")
            name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
            names.append(f"{name} ({', '.join(dict.fromkeys(read))})" if read else name)
    return tuple(names)


def _argument_names(arguments: Any) -> list[str]:
    """Name the leaves of a block's arguments by their key; others stay without a name."""
    named = []
    for path, _ in jax.tree_util.tree_flatten_with_path(arguments, is_leaf=is_leaf)[0]:
        keys = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
        named.append(keys[-1] if keys else "")
    return named
