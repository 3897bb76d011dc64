"""A plan's time and memory, for one plan or for thousands at once: a plan is a row of numbers.

Each kind of block is evaluated once for every distinct row of its own degrees; plans are sums of
blocks. Latency of one token: embedding, blocks stage by stage, hand-overs, head and the way back.
Stages are cut between any two blocks.

Not modelled: host and sampling time (0, assumed), and overlap between blocks of a stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.links import hand_overs
from lpu_jax.cost.machine import Groups, PlacedMachine
from lpu_jax.cost.schedule import Timing, schedule
from lpu_jax.datapath.work import Unit
from lpu_jax.system import System
from models.blocks import Kind, block_arguments, block_chain, block_kinds
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import Policy

from . import axes
from .axes import MESH_AXES, Request
from .placement import BlockBytes, Cuts, block_bytes, cut_stages, usable_bytes
from .plan import Plan
from .trace import symbol_values, trace_block

Numbers = Float[np.ndarray, " plans"]
#: Bits of a value of the hidden state on its way to the next stage.
WIRE_BITS = 16
#: Bytes of a token id on its way back to the first stage.
TOKEN_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One kind of block in every plan."""

    timing: Timing
    held: BlockBytes
    wire_bytes: Any  #: payload of its collectives


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Numbers of many plans, one entry per plan: cycles of the clock, bytes of the fullest chip."""

    plans: Sequence[Plan]
    request: Request
    clock_hz: float
    blocks: Mapping[Kind, BlockReport]
    latency_cycles: Numbers
    lower_cycles: Numbers
    upper_cycles: Numbers
    slowest_stage_cycles: Numbers
    hand_over_cycles: Numbers
    wire_bytes: Numbers
    weight_bytes: Numbers  #: of the fullest chip
    cache_bytes: Numbers
    activation_bytes: Numbers  #: live values and tables
    reserved_bytes: float
    sram_bytes: float
    in_flight: Int[np.ndarray, " plans"]
    cuts: Cuts

    @property
    def used_bytes(self) -> Numbers:
        """Bytes of the fullest chip without the reserve."""
        return np.asarray(self.weight_bytes + self.cache_bytes + self.activation_bytes)

    @property
    def short_bytes(self) -> Numbers:
        """Bytes the fullest chip lacks; negative where there is room."""
        return self.used_bytes + self.reserved_bytes - self.sram_bytes

    @property
    def fits(self) -> Bool[np.ndarray, " plans"]:
        """Whether the fullest chip holds its share."""
        return np.asarray(self.short_bytes <= 0)

    @property
    def latency_s(self) -> Numbers:
        """Time of one token."""
        return self.latency_cycles / self.clock_hz

    @property
    def tokens_per_s_per_user(self) -> Numbers:
        """Rate of one sequence."""
        return self.request.tokens / self.latency_s

    @property
    def tokens_per_s_total(self) -> Numbers:
        """Rate of all micro-batches: bound by the slowest stage, or by what is in flight."""
        batch = self.request.batch * self.request.tokens
        per_stage = batch * self.clock_hz / self.slowest_stage_cycles
        return np.asarray(np.minimum(per_stage, self.in_flight * batch / self.latency_s))


def evaluate(
    plans: Sequence[Plan], cfg: ModelConfig, system: System, policy: Policy, request: Request
) -> Evaluation:
    """Evaluate legal plans.

    Args:
        plans: at least one; each was accepted by `legal.check_plan`.
        cfg: the model.
        system: the machine.
        policy: formats of the weights.
        request: batch, new tokens and allocated context.
    """
    groups, group_of_plan = _groups(plans, system)
    blocks = {
        kind: _evaluate_kind(kind, plans, groups, group_of_plan, cfg, system, policy, request)
        for kind in block_kinds(cfg)
    }
    chain = [blocks[block.kind] for block in block_chain(cfg)]
    clock = float(system.chip.clock_hz)
    payload = request.batch * request.tokens * cfg.d_model * WIRE_BITS / 8
    hops = np.array([_hand_over_cycles(g, system, payload, request.batch) for g in groups])[
        group_of_plan
    ]
    n_stages = np.array([plan.stages for plan in plans])
    cuts = cut_stages(
        [block.held.weights for block in chain],
        [block.held.cache for block in chain],
        [block.timing.cycles for block in chain],
        n_stages,
    )
    activations = np.max(
        [np.broadcast_to(b.held.activations, n_stages.shape) for b in blocks.values()], 0
    )
    # A stage may hold blocks of every kind; blocks of one kind share their tables.
    tables = np.sum([np.broadcast_to(b.held.tables, n_stages.shape) for b in blocks.values()], 0)
    spare = usable_bytes(system.chip) - cuts.fullest_bytes - activations - tables
    more = np.floor(np.maximum(spare, 0) / np.maximum(cuts.fullest_cache_bytes, 1))
    total = {
        name: sum(
            (np.broadcast_to(getattr(b.timing, name), n_stages.shape) for b in chain),
            np.zeros(n_stages.shape),
        )
        for name in ("cycles", "lower_cycles", "upper_cycles")
    }
    return Evaluation(
        plans=plans,
        request=request,
        clock_hz=clock,
        blocks=blocks,
        latency_cycles=total["cycles"] + hops[:, 0],
        lower_cycles=total["lower_cycles"] + hops[:, 0],
        upper_cycles=total["upper_cycles"] + hops[:, 0],
        slowest_stage_cycles=cuts.slowest_cycles + hops[:, 1],
        hand_over_cycles=hops[:, 0],
        wire_bytes=sum((b.wire_bytes for b in chain), np.zeros(n_stages.shape))
        + payload * (n_stages - 1),
        weight_bytes=cuts.fullest_bytes - cuts.fullest_stage_cache_bytes,
        cache_bytes=cuts.fullest_stage_cache_bytes,
        activation_bytes=activations + tables,
        reserved_bytes=system.chip.sram_bytes - usable_bytes(system.chip),
        sram_bytes=float(system.chip.sram_bytes),
        in_flight=np.minimum(1 + more, cuts.busy_stages).astype(np.int64),
        cuts=cuts,
    )


def _groups(
    plans: Sequence[Plan], system: System
) -> tuple[tuple[Groups, ...], Int[np.ndarray, " plans"]]:
    """Place the stages of each distinct pair of stages and chips."""
    index: dict[tuple[int, int], int] = {}
    of_plan = np.array(
        [index.setdefault((plan.stages, plan.group_chips), len(index)) for plan in plans]
    )
    groups = tuple(
        Groups(chips, system.topology.stage_bases(stages, chips)) for stages, chips in index
    )
    return groups, of_plan


def _hand_over_cycles(
    group: Groups, system: System, payload_bytes: float, batch: int
) -> tuple[float, float]:
    """Cycles of all hand-overs of a token, the way back included, and of the slowest one."""
    if len(group.bases) == 1:
        return 0.0, 0.0
    clock = float(system.chip.clock_hz)
    steps = hand_overs(system.topology, clock, group.chips, group.bases).cycles(payload_bytes)
    back = hand_overs(system.topology, clock, group.chips, group.bases[[-1, 0]])
    token_ids = back.cycles(TOKEN_BYTES * batch)
    return float(np.sum(steps) + np.sum(token_ids)), float(np.max(steps))


def _evaluate_kind(
    kind: Kind,
    plans: Sequence[Plan],
    groups: tuple[Groups, ...],
    group_of_plan: Int[np.ndarray, " plans"],
    cfg: ModelConfig,
    system: System,
    policy: Policy,
    request: Request,
) -> BlockReport:
    """Evaluate a kind of block for each distinct row of degrees, per split rule and collective."""
    names = MESH_AXES[kind]
    rows = np.array(
        [
            [group, *(axes.degrees(plan, kind, cfg)[name] for name in names), _slots(plan, kind)]
            for plan, group in zip(plans, group_of_plan, strict=True)
        ]
    )
    variants = [(_split(plan, kind), plan.collective) for plan in plans]
    parts: list[tuple[Int[np.ndarray, " ..."], BlockReport]] = []
    for split, collective in dict.fromkeys(variants):
        chosen = np.array([i for i, v in enumerate(variants) if v == (split, collective)])
        distinct, back = np.unique(rows[chosen], axis=0, return_inverse=True)
        machine = PlacedMachine(system=system, groups=groups, group_of_plan=distinct[:, 0])
        ways = {name: distinct[:, 1 + i] for i, name in enumerate(names)}
        report = evaluate_block(
            kind, ways, distinct[:, -1], split, collective, machine, cfg, policy, request
        )
        parts.append((chosen, _take(report, back.reshape(-1), len(distinct))))
    return parts[0][1] if len(parts) == 1 else _merge(parts, len(plans))


def evaluate_block(
    kind: Kind,
    ways: Mapping[str, Any],
    slots: Any,
    split: Split,
    collective: str,
    machine: PlacedMachine,
    cfg: ModelConfig,
    policy: Policy,
    request: Request,
) -> BlockReport:
    """Evaluate one kind of block for numbers, or one number per plan, as its degrees.

    Args:
        kind: the kind of block.
        ways: chips along each of its mesh axes.
        slots: expert slots, at least the worst case of the request; ignored without experts.
        split: how output projections are split.
        collective: algorithm of its collectives.
        machine: chip and links.
        cfg: the model.
        policy: formats of the weights.
        request: batch, tokens and context.
    """
    program = trace_block(cfg, kind, policy, split, collective).program
    sizes = axes.sizes(cfg, kind, policy, ways, request)
    if kind == "moe":
        assert cfg.moe is not None
        worst = np.minimum(sizes.local["experts"], request.batch * request.tokens * cfg.moe.top_k)
        # More slots than the worst case of this request are run all the same; fewer are not legal,
        # and those of a decode step do not bind a prefill step.
        slots = np.maximum(slots, worst)
        slots = slots if slots.ndim else int(slots)
    symbols = symbol_values(sizes, ways, slots)
    timing = schedule(program, machine, symbols)
    arguments = block_arguments(cfg, kind, policy, split, sizes)
    wire = sum((slot.work.moved_bytes for slot in timing.slots if slot.work.unit is Unit.C2C), 0.0)
    return BlockReport(
        timing=timing,
        held=block_bytes(arguments, program, symbols, machine.chip),
        wire_bytes=wire,
    )


def _split(plan: Plan, kind: Kind) -> Split:
    match kind:
        case "attention":
            return plan.attention.split
        case "dense":
            return plan.mlp.split
        case "moe" if plan.moe is not None:
            return plan.moe.split
        case _:
            return Split.ROW


def _slots(plan: Plan, kind: Kind) -> int:
    return plan.moe.slots or 0 if kind == "moe" and plan.moe is not None else 0


def _map(function: Any, *reports: BlockReport) -> BlockReport:
    """Apply a function to every number of block reports; schedules keep their totals only."""

    def of(read: Any) -> Any:
        return function(*(read(report) for report in reports))

    return BlockReport(
        timing=Timing(
            cycles=of(lambda r: r.timing.cycles),
            lower_cycles=of(lambda r: r.timing.lower_cycles),
            upper_cycles=of(lambda r: r.timing.upper_cycles),
            busy_cycles={
                unit: of(lambda r, unit=unit: r.timing.busy_cycles[unit])
                for unit in reports[0].timing.busy_cycles
            },
            slots=(),
        ),
        held=BlockBytes(
            **{
                name: of(lambda r, name=name: getattr(r.held, name))
                for name in ("weights", "cache", "tables", "activations")
            }
        ),
        wire_bytes=of(lambda r: r.wire_bytes),
    )


def _take(report: BlockReport, rows: Int[np.ndarray, " plans"], n_rows: int) -> BlockReport:
    """Give each plan the numbers of its row."""
    return _map(lambda x: np.broadcast_to(np.asarray(x, np.float64), (n_rows,))[rows], report)


def _merge(parts: list[tuple[Int[np.ndarray, "..."], BlockReport]], n_plans: int) -> BlockReport:
    """Put the plans of all variants back into their order."""
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
    assert len(order) == n_plans
    return _map(lambda *xs: np.concatenate(xs)[order], *(report for _, report in parts))
