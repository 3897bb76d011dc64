"""A plan's time and memory, for one plan or for thousands at once: a plan is a row of numbers.

Each kind of block is evaluated once for every distinct row of its own degrees; plans are sums of
blocks. Latency of one token: embedding, blocks stage by stage, hand-overs, head and the return.
Stages are cut between any two blocks.

Not modelled: overlap between blocks of a stage, and a host that limits the rate of all sequences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.placed_machine import Groups
from lpu_jax.cost.program import Program
from lpu_jax.cost.schedule import Timing
from lpu_jax.cost.timing import Placed, hand_over_cycles, placed, timing
from lpu_jax.datapath.work import Unit
from lpu_jax.machine.system import System
from models.blocks import Kind, block_arguments, block_chain, block_kinds
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from .. import axes
from ..axes import MESH_AXES, dispatch_of, split_of
from ..plan import Plan
from ..scenario import Scenario
from ..slots.sizes import SlotPlan, slot_plans
from .block_report import BlockReport, mean_over_steps, merge, take
from .placement import Cuts, block_bytes, cut_stages, usable_bytes
from .symbolic import symbol_values, trace_block

Numbers = Float[np.ndarray, " plans"]
#: Bytes of a token id on its way back to the first stage.
TOKEN_BYTES = 4


def hidden_bytes(scenario: Scenario) -> float:
    """Bytes of the hidden state of a step on its way to the next stage."""
    request, bits = scenario.request, scenario.system.chip.wire_value_bits
    return request.batch * request.tokens * scenario.model.d_model * bits / 8


@dataclass(frozen=True, kw_only=True)
class ScheduledBlock:
    """One kind of block with its schedule, operation by operation."""

    program: Program
    symbols: Mapping[str, Any]
    arguments: Any  #: tree of `Leaf`
    machine: Placed
    timing: Timing

    def report(self) -> BlockReport:
        """Its time, what it holds and what it sends."""
        sent = (slot.work for slot in self.timing.slots if slot.work.unit is Unit.C2C)
        return BlockReport(
            timing=self.timing,
            held=block_bytes(
                self.arguments, self.program, self.timing, self.symbols, self.machine.chip
            ),
            wire_bytes=sum((work.moved_bytes for work in sent), 0.0),
            worst_cycles=self.timing.cycles,
        )


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What a draft model adds to the steps of plans; one entry per plan."""

    evaluation: "Evaluation"  #: one draft, of the draft model's plan beside each plan
    n_drafts: int
    hand_over_cycles: Numbers  #: of the drafts to the model, and of the tokens kept back
    verification_cycles: Numbers  #: the model's own step

    @property
    def cycles(self) -> Numbers:
        """Cycles of all drafts of a step, one after another."""
        return np.asarray(self.n_drafts * self.evaluation.latency_cycles)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Numbers of many plans, one entry per plan: cycles of the clock, bytes of the fullest chip."""

    plans: Sequence[Plan]
    scenario: Scenario
    clock_hz: float
    blocks: Mapping[Kind, BlockReport]
    slots: tuple[SlotPlan, ...]  #: of mixtures, one per plan; empty for models without experts
    latency_cycles: Numbers
    worst_latency_cycles: Numbers  #: of a step whose mixtures need all slots they ever can
    lower_cycles: Numbers
    upper_cycles: Numbers
    slowest_stage_cycles: Numbers
    hand_over_cycles: Numbers
    host_cycles: float  #: host and sampling, part of the latency
    wire_bytes: Numbers
    weight_bytes: Numbers  #: of the fullest chip
    cache_bytes: Numbers
    activation_bytes: Numbers  #: live values and tables
    reserved_bytes: float
    sram_bytes: float  #: of a chip; of a GPU, its HBM
    cached_batches: Numbers  #: micro-batches whose caches fit
    in_flight: Int[np.ndarray, " plans"]
    cuts: Cuts
    drafting: Drafting | None = None  #: of a draft model; time, rates and fit then include it

    @property
    def used_bytes(self) -> Numbers:
        """Bytes of the fullest chip without the reserve."""
        return np.asarray(self.weight_bytes + self.cache_bytes + self.activation_bytes)

    def memory_bytes(self, plan: int) -> dict[str, float]:
        """What fills the fullest chip of one plan, by its number, and how much a chip has."""
        return {
            "weights": float(self.weight_bytes[plan]),
            "cache": float(self.cache_bytes[plan]),
            "activations": float(self.activation_bytes[plan]),
            "reserved": self.reserved_bytes,
            "sram": self.sram_bytes,
        }

    @property
    def short_bytes(self) -> Numbers:
        """Bytes the fullest chip lacks, a draft model's too; negative where there is room."""
        if self.drafting is None:
            return self.own_short_bytes
        return np.asarray(np.maximum(self.own_short_bytes, self.drafting.evaluation.short_bytes))

    @property
    def own_short_bytes(self) -> Numbers:
        """The same without a draft model's chips."""
        return self.used_bytes + self.reserved_bytes - self.sram_bytes

    @property
    def fits(self) -> Bool[np.ndarray, " plans"]:
        """Whether the fullest chip holds its share."""
        return np.asarray(self.short_bytes <= 0)

    @property
    def latency_s(self) -> Numbers:
        """Time of one step: of one token, or of a token with its drafts."""
        return self.latency_cycles / self.clock_hz

    @property
    def largest_reserve_fraction(self) -> Numbers:
        """The part of the memory that may be reserved before a plan stops fitting."""
        used = self.used_bytes
        if self.drafting is not None:
            used = np.maximum(used, self.drafting.evaluation.used_bytes)
        return np.asarray(1 - used / self.sram_bytes)

    @property
    def tokens_per_s_per_user(self) -> Numbers:
        """Rate of one sequence."""
        return self.scenario.request.kept_tokens / self.latency_s

    @property
    def cycles_per_batch(self) -> Numbers:
        """Cycles between the steps of two micro-batches that leave the last stage."""
        return np.asarray(
            np.maximum(self.slowest_stage_cycles, self.latency_cycles / self.in_flight)
        )

    @property
    def is_stage_bound(self) -> Bool[np.ndarray, " plans"]:
        """Whether the slowest stage bounds the rate of all; if not, what is in flight does."""
        return np.asarray(self.in_flight * self.slowest_stage_cycles >= self.latency_cycles)

    @property
    def tokens_per_s_total(self) -> Numbers:
        """Rate of all micro-batches: bound by the slowest stage, or by what is in flight."""
        kept = self.scenario.request.batch * self.scenario.request.kept_tokens
        return kept * self.clock_hz / self.cycles_per_batch


def evaluate(plans: Sequence[Plan], scenario: Scenario) -> Evaluation:
    """Evaluate legal plans, without a draft model (`drafts`).

    Args:
        plans: at least one; each was accepted by `legal.check_plan`.
        scenario: the model, the machine, the request and the formats.

    Fidelity: approximate; one plan gets the same numbers alone as among thousands.
    """
    cfg, system, request = scenario.model, scenario.system, scenario.request
    groups, group_of_plan = _groups(plans, system)
    slots: tuple[SlotPlan, ...] = ()
    blocks: dict[Kind, BlockReport] = {}
    for kind in block_kinds(cfg):
        if kind == "moe":
            blocks[kind], slots = _evaluate_mixture(plans, groups, group_of_plan, scenario)
        else:
            none = [None] * len(plans)
            blocks[kind] = _evaluate_kind(kind, plans, groups, group_of_plan, scenario, none)
    chain = [blocks[block.kind] for block in block_chain(cfg)]
    clock = float(system.chip.clock_hz)
    payload = hidden_bytes(scenario)
    sampled = request.batch * request.sampled_tokens
    host = system.host_overhead_s * clock
    hops = np.array([_hand_over_cycles(g, system, payload, sampled) for g in groups])[group_of_plan]
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
    # A stage may hold blocks of every kind; blocks of one kind share their tables, and sliding
    # layers those of the others.
    tables = np.sum(
        [
            np.broadcast_to(block.held.tables, n_stages.shape)
            for kind, block in blocks.items()
            if kind != "sliding" or "attention" not in blocks
        ],
        0,
    )
    spare = usable_bytes(system.chip) - cuts.fullest_bytes - activations - tables
    more = np.floor(np.maximum(spare, 0) / np.maximum(cuts.fullest_cache_bytes, 1))
    total = {
        name: sum(
            (np.broadcast_to(getattr(b.timing, name), n_stages.shape) for b in chain),
            np.zeros(n_stages.shape),
        )
        for name in ("cycles", "lower_cycles", "upper_cycles")
    }
    worst = sum(
        (np.broadcast_to(block.worst_cycles, n_stages.shape) for block in chain),
        np.zeros(n_stages.shape),
    )
    return Evaluation(
        plans=plans,
        scenario=scenario,
        clock_hz=clock,
        blocks=blocks,
        slots=slots,
        latency_cycles=total["cycles"] + hops[:, 0] + host,
        worst_latency_cycles=worst + hops[:, 0] + host,
        lower_cycles=total["lower_cycles"] + hops[:, 0] + host,
        upper_cycles=total["upper_cycles"] + hops[:, 0] + host,
        slowest_stage_cycles=cuts.slowest_cycles + hops[:, 1],
        hand_over_cycles=hops[:, 0],
        host_cycles=host,
        wire_bytes=sum((b.wire_bytes for b in chain), np.zeros(n_stages.shape))
        + payload * (n_stages - 1),
        weight_bytes=cuts.fullest_bytes - cuts.fullest_stage_cache_bytes,
        cache_bytes=cuts.fullest_stage_cache_bytes,
        activation_bytes=activations + tables,
        reserved_bytes=system.chip.memory_bytes - usable_bytes(system.chip),
        sram_bytes=float(system.chip.memory_bytes),
        cached_batches=1 + more,
        in_flight=np.minimum(1 + more, cuts.busy_stages).astype(np.int64),
        cuts=cuts,
    )


def without_idle_stages(evaluation: Evaluation) -> Evaluation:
    """Evaluate plans without the stages that hold no block: these only cost chips and hand-overs.

    The others hold what they held: fewer stages of the same chips cannot need more memory.
    """
    busy = evaluation.cuts.busy_stages
    plans = dict.fromkeys(
        plan if plan.stages == n else replace(plan, stages=int(n))
        for plan, n in zip(evaluation.plans, busy, strict=True)
    )
    return evaluate(list(plans), evaluation.scenario)


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
    group: Groups, system: System, payload_bytes: float, n_tokens: int
) -> tuple[float, float]:
    """Cycles of all hand-overs of a token, the return included, and of the slowest one."""
    steps, back = hand_over_steps(group, system, payload_bytes, n_tokens)
    return float(np.sum(steps) + back), float(np.max(steps, initial=0.0))


def hand_over_steps(
    group: Groups, system: System, payload_bytes: float, n_tokens: int
) -> tuple[Float[np.ndarray, " steps"], float]:
    """Cycles of the hand-over from each stage to the next, and of the token ids' return."""
    if len(group.bases) == 1:
        return np.zeros(0), 0.0
    steps = hand_over_cycles(system, group.chips, group.bases, payload_bytes)
    back = hand_over_cycles(system, group.chips, group.bases[[-1, 0]], TOKEN_BYTES * n_tokens)
    return steps, float(np.sum(back))


def _evaluate_kind(
    kind: Kind,
    plans: Sequence[Plan],
    groups: tuple[Groups, ...],
    group_of_plan: Int[np.ndarray, " plans"],
    scenario: Scenario,
    sized: Sequence[SlotPlan | None],
) -> BlockReport:
    """Evaluate a kind of block for each distinct row of degrees, per split rule and collective.

    `sized` are the slots of each plan; None for blocks without experts.
    """
    names = MESH_AXES[kind]
    degrees = [axes.degrees(plan, kind, scenario.model) for plan in plans]
    number: dict[SlotPlan | None, int] = {}
    rows = np.array(
        [
            [group, *(ways[name] for name in names), number.setdefault(slots, len(number))]
            for group, ways, slots in zip(group_of_plan, degrees, sized, strict=True)
        ]
    )
    slot_plans = tuple(number)
    variants = [
        (
            split_of(plan, kind),
            plan.collective,
            tuple(ways),
            dispatch_of(plan, kind),
            slots is not None and slots.capacity is not None,
            axes.moving_axes(kind, ways),
        )
        for plan, ways, slots in zip(plans, degrees, sized, strict=True)
    ]
    parts: list[tuple[Int[np.ndarray, " ..."], BlockReport]] = []
    for variant in dict.fromkeys(variants):
        split, collective, order, dispatch, *_ = variant
        chosen = np.array([i for i, v in enumerate(variants) if v == variant])
        distinct, back = np.unique(rows[chosen], axis=0, return_inverse=True)
        steps, row_of_step, probability = _steps([slot_plans[i] for i in distinct[:, -1]])
        of_step = distinct[row_of_step]
        column = {name: of_step[:, 1 + i] for i, name in enumerate(names)}
        report = schedule_block(
            kind,
            {name: column[name] for name in order},
            placed(scenario.system, groups, of_step[:, 0]),
            scenario,
            slots=steps,
            split=split,
            collective=collective,
            dispatch=dispatch,
        ).report()
        if steps:
            report = mean_over_steps(report, row_of_step, probability, len(distinct))
        parts.append((chosen, take(report, back.reshape(-1), len(distinct))))
    return parts[0][1] if len(parts) == 1 else merge(parts, len(plans))


def _evaluate_mixture(
    plans: Sequence[Plan],
    groups: tuple[Groups, ...],
    group_of_plan: Int[np.ndarray, " plans"],
    scenario: Scenario,
) -> tuple[BlockReport, tuple[SlotPlan, ...]]:
    """Evaluate mixtures with each number of rows that slots may have; keep the fastest of a plan.

    Of equals the fewest rows.
    """
    options = [slot_plans(plan.moe, scenario) for plan in plans if plan.moe is not None]
    plan_of_option = np.repeat(np.arange(len(plans)), [len(option) for option in options])
    sized = [slots for option in options for slots in option]
    report = _evaluate_kind(
        "moe",
        [plans[i] for i in plan_of_option.tolist()],
        groups,
        group_of_plan[plan_of_option],
        scenario,
        sized,
    )
    cycles = np.broadcast_to(np.asarray(report.timing.cycles), plan_of_option.shape)
    order = np.lexsort((np.arange(len(sized)), cycles, plan_of_option))
    best = order[np.searchsorted(plan_of_option, np.arange(len(plans)))]
    return take(report, best, len(sized)), tuple(sized[i] for i in best)


def step_lengths(slots: SlotPlan | None) -> dict[str, int]:
    """Lengths of the step that slots are planned for; empty without experts."""
    if slots is None:
        return {}
    step = slots.main
    return {"slots": step.slots, "sent": step.sent, "capacity": slots.capacity or 0}


def _steps(
    sized: Sequence[SlotPlan | None],
) -> tuple[dict[str, Any], Int[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Lay the ways in which each row of plans may run a step end to end.

    Returns:
        Lengths of each; the row of each, ascending; the probability of each.
    """
    found = [
        (row, step, plan.capacity)
        for row, plan in enumerate(sized)
        if plan is not None
        for step in plan.steps
    ]
    if not found:
        return {}, np.arange(len(sized)), np.ones(len(sized))
    lengths = {
        "slots": np.array([step.slots for _, step, _ in found]),
        "sent": np.array([step.sent for _, step, _ in found]),
        "capacity": np.array([capacity or 0 for *_, capacity in found]),
    }
    probability = np.array([step.probability for _, step, _ in found])
    return lengths, np.array([row for row, *_ in found]), probability


def schedule_block(
    kind: Kind,
    ways: Mapping[str, Any],
    machine: Placed,
    scenario: Scenario,
    *,
    slots: Mapping[str, Any],
    split: Split,
    collective: str,
    dispatch: Dispatch,
) -> ScheduledBlock:
    """Schedule one kind of block for numbers, or one number per plan, as its degrees.

    Args:
        kind: the kind of block.
        ways: chips along each of its mesh axes, outermost first.
        machine: chip and links.
        scenario: the model, its formats, and batch, tokens and context.
        slots: lengths of a mixture's program: `slots`, `sent` and `capacity`, 0 where slots have
            room for all rows; empty without experts.
        split: how output projections are split.
        collective: algorithm of its collectives.
        dispatch: how rows reach the chips of their experts.
    """
    cfg, policy, request = scenario.model, scenario.policy, scenario.request
    program = trace_block(
        cfg,
        kind,
        policy,
        split,
        collective,
        tuple(ways),
        dispatch,
        axes.moving_axes(kind, ways),
        gathers=bool(np.max(slots.get("capacity", 0)) > 0),
    ).program
    if kind == "head":  # one row per position whose token is chosen, as of so many sequences
        rows = request.batch * request.sampled_tokens
        request = replace(request, batch=rows, tokens=request.tokens // request.sampled_tokens)
    sizes = axes.sizes(cfg, kind, policy, ways, request)
    symbols = symbol_values(sizes, ways, slots)
    return ScheduledBlock(
        program=program,
        symbols=symbols,
        arguments=block_arguments(cfg, kind, policy, split, sizes, dispatch),
        machine=machine,
        timing=timing(program, machine, symbols),
    )
