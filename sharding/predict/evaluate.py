"""A plan's time and memory, for one plan or for thousands at once: a plan is a row of numbers.

Each kind of block is evaluated once for every distinct row of its own degrees (`kinds`); plans are
sums of blocks. Latency of one token: embedding, blocks stage by stage, hand-overs, head and the
return. Stages are cut between any two blocks (`cuts`). A plan that needs fewer chips than there are
stands side by side as often as it fits: totals count the copies.

Not modelled: overlap between blocks of a stage, and a host that limits the rate of all sequences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.placed_machine import Groups
from models.blocks import BLOCK_KINDS, Kind, block_chain, block_kinds

from ..plan import FFN_PARTS, Plan, Pool
from ..scenario import Scenario
from ..slots.sizes import SlotPlan
from ..space.plan_table import PlanTable
from .block_report import BlockReport, live_bytes, merge
from .cuts import Chain, Cuts, Stages
from .hand_overs import hand_over_times, hidden_bytes
from .kinds import evaluate_kind
from .placement import Live, dram_room_bytes, usable_bytes
from .placements import Placements
from .pools import (
    CutPools,
    copies_of,
    cut_pools,
    hand_overs_of_plans,
    lay_out,
    most_in_flight,
)

Numbers = Float[np.ndarray, " plans"]


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What a draft model adds to the steps of plans; one entry per plan."""

    evaluation: "Evaluation"  #: one draft, of the draft model's plan beside each plan
    n_drafts: int
    hand_over_cycles: Numbers  #: of the drafts to the model, and of the tokens kept back
    verification_cycles: Numbers  #: the model's own step
    clock_ratio: float = 1.0  #: cycles of the model's machine in one of the draft model's

    @property
    def cycles(self) -> Numbers:
        """Cycles of all drafts of a step, one after another."""
        return np.asarray(self.n_drafts * self.clock_ratio * self.evaluation.latency_cycles)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Numbers of many plans, one entry per plan: cycles of the clock, bytes of the fullest chip."""

    plans: PlanTable
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
    #: of the fullest chip if stages are cut by bytes alone: it decides the fit
    least_bytes: Numbers
    reserved_bytes: Numbers  #: of the fullest chip
    sram_bytes: Numbers  #: of that chip; of a GPU, its HBM
    cached_batches: Numbers  #: micro-batches whose caches fit
    dram_bytes: Numbers  #: caches of one micro-batch in DRAM beside the fullest chip
    dram_room_bytes: float  #: DRAM that a chip has for them; infinite where none lie there
    in_flight: Int[np.ndarray, " plans"]
    copies: Int[np.ndarray, " plans"]  #: of the plan, side by side on the machine
    cuts: Cuts
    drafting: Drafting | None = None  #: of a draft model; time, rates and fit then include it

    @property
    def n_chips(self) -> Int[np.ndarray, " plans"]:
        """Chips of one copy of each plan, a draft model's too."""
        chips = self.plans.n_chips
        return chips if self.drafting is None else chips + self.drafting.evaluation.n_chips

    @property
    def used_bytes(self) -> Numbers:
        """Bytes of the fullest chip without the reserve."""
        return np.asarray(self.weight_bytes + self.cache_bytes + self.activation_bytes)

    def memory_bytes(self, plan: int) -> dict[str, float]:
        """What fills the fullest chip of one plan, by its number, and how much a chip has.

        Where caches lie in DRAM also what of one micro-batch lies beside a chip there, and how much
        there is.
        """
        in_dram = {"dram_cache": float(self.dram_bytes[plan]), "dram": self.dram_room_bytes}
        return {
            "weights": float(self.weight_bytes[plan]),
            "cache": float(self.cache_bytes[plan]),
            "activations": float(self.activation_bytes[plan]),
            "reserved": float(self.reserved_bytes[plan]),
            "sram": float(self.sram_bytes[plan]),
            **(in_dram if np.isfinite(self.dram_room_bytes) else {}),
        }

    @property
    def short_bytes(self) -> Numbers:
        """Bytes the fullest chip lacks, a draft model's too; negative where there is room."""
        if self.drafting is None:
            return self.own_short_bytes
        return np.asarray(np.maximum(self.own_short_bytes, self.drafting.evaluation.short_bytes))

    @property
    def own_short_bytes(self) -> Numbers:
        """The same without a draft model's chips; where caches lie in DRAM, what lacks most."""
        in_chip = self.least_bytes + self.reserved_bytes - self.sram_bytes
        return np.asarray(np.maximum(in_chip, self.dram_bytes - self.dram_room_bytes))

    @property
    def lacks_dram(self) -> Bool[np.ndarray, " plans"]:
        """Whether caches have no room in the DRAM beside chips where they lie."""
        return np.asarray(self.dram_bytes > self.dram_room_bytes)

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
        """The part of the memory that may be reserved before a plan stops fitting.

        Negative if it does not fit: by the share that is missing, of DRAM where that lacks room.
        """
        used = self.least_bytes
        if self.drafting is not None:
            used = np.maximum(used, self.drafting.evaluation.least_bytes)
        in_dram = 1 - self.dram_bytes / self.dram_room_bytes
        return np.asarray(np.where(self.lacks_dram, in_dram, 1 - used / self.sram_bytes))

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
        """Rate of all micro-batches of all copies of a plan that stand side by side."""
        return np.asarray(self.copies * self.tokens_per_s_of_copy)

    @property
    def tokens_per_s_of_copy(self) -> Numbers:
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
    table = PlanTable.of(plans)
    alike = _by_pools(table)
    if len(alike) > 1:
        return _joined(table, alike, [evaluate(table.take(rows), scenario) for rows in alike])
    lie, of_plan = _lie(table, scenario)
    blocks, slots = _blocks(table, lie, of_plan, scenario, Live.MEASURED)
    copies = copies_of(lie.groups, scenario)
    if table.ffn_stages.any():
        cut = _cut_pools(table, blocks, [lie.groups[i] for i in of_plan], scenario)
    else:
        hops = hand_over_times([groups[0] for groups in lie.groups], scenario)[of_plan]
        cut = _cut_stages(table, blocks, hops, scenario)
    return _evaluation_of(table, blocks, cut, copies[of_plan], slots, scenario)


@dataclass(frozen=True, kw_only=True)
class CutPlans:
    """Plans with the cuts that their latencies depend on."""

    plans: Sequence[Plan]
    #: In plans of two pools, whose hidden states cross where these are cut; 0 in those of one.
    stage_of_block: Stages

    def one(self, number: int) -> "CutPlans":
        """Keep one plan."""
        rows = slice(number, number + 1)
        return CutPlans(plans=self.plans[rows], stage_of_block=self.stage_of_block[:, rows])


def cut_plans(plans: Sequence[Plan], scenario: Scenario) -> CutPlans:
    """Cut legal plans, at least one, as `evaluate` does; for `latencies_cycles`."""
    table = PlanTable.of(plans)
    stage = np.zeros((len(block_chain(scenario.model)), len(table)), np.int64)
    if len(pooled := np.flatnonzero(table.ffn_stages)):
        stage[:, pooled] = evaluate(table.take(pooled), scenario).cuts.stage_of_block
    return CutPlans(plans=plans, stage_of_block=stage)


def latencies_cycles(cut: CutPlans, scenario: Scenario) -> Numbers:
    """Evaluate the latency of plans alone, however their machine would cut them; see `evaluate`."""
    table = PlanTable.of(cut.plans)
    found = np.empty(len(table))
    for rows in _by_pools(table):
        own, stage_of_block = table.take(rows), cut.stage_of_block[:, rows]
        lie, of_plan = _lie(own, scenario)
        blocks, _ = _blocks(own, lie, of_plan, scenario, Live.NONE)
        if own.ffn_stages.any():
            laid_out = [lie.groups[i] for i in of_plan]
            steps = hand_overs_of_plans(stage_of_block, laid_out, scenario)
            hops = np.array([float(step.cycles.sum()) for step in steps])
        else:
            hops = hand_over_times([groups[0] for groups in lie.groups], scenario)[of_plan, 0]
        found[rows] = _latency(blocks, hops, scenario)
    return found


def _by_pools(table: PlanTable) -> list[Int[np.ndarray, " _plans"]]:
    """Number the plans of one pool, and those of two, where there are any."""
    has_two = table.ffn_stages > 0
    return [rows for rows in (np.flatnonzero(~has_two), np.flatnonzero(has_two)) if len(rows)]


@dataclass(frozen=True, kw_only=True)
class _Lie:
    """Where plans lie: each distinct set of pools."""

    groups: Sequence[tuple[Groups, ...]]  #: of each pool
    numbers: Int[np.ndarray, "pools lies"]  #: of their placements
    placements: tuple[Placements, Placements]  #: on the machine of each pool


def _lie(table: PlanTable, scenario: Scenario) -> tuple[_Lie, Int[np.ndarray, " plans"]]:
    """Place plans, and say which of the places each has."""
    machines = [own.system for own in scenario.pools]
    first = Placements(machines[0])
    placements = first, (first if not scenario.crosses else Placements(machines[1]))
    columns = (table.stages, table.group_chips, table.ffn_stages, table.ffn_chips)
    distinct, of_plan = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    groups = [
        lay_out(
            [Pool(stages=n, group_chips=m) for n, m in pools if n],
            *(machines if scenario.crosses else machines[:1]),
        )
        for pools in distinct.reshape(-1, 2, 2).tolist()
    ]
    numbers = np.array(
        [
            [
                known.number(group.chips, group.bases)
                for known, group in zip(placements, own, strict=False)
            ]
            for own in groups
        ]
    ).T
    return _Lie(groups=groups, numbers=numbers, placements=placements), of_plan.reshape(-1)


def _blocks(
    table: PlanTable,
    lie: _Lie,
    of_plan: Int[np.ndarray, " plans"],
    scenario: Scenario,
    live: Live,
) -> tuple[dict[Kind, BlockReport], tuple[SlotPlan, ...]]:
    """Evaluate each kind of block in every plan, and the slots of mixtures."""
    slots: tuple[SlotPlan, ...] = ()
    blocks: dict[Kind, BlockReport] = {}
    for kind in block_kinds(scenario.model):
        part = BLOCK_KINDS[kind].part
        blocks[kind], (sized, own) = evaluate_kind(
            kind,
            table.shards[part],
            table.rows[part],
            lie.numbers[-1 if (is_ffn := part in FFN_PARTS) else 0][of_plan],
            lie.placements[is_ffn],
            scenario.pools[is_ffn],
            table.collective,
            table.collectives,
            live=live,
        )
        slots = slots or tuple(sized[i] for i in own.tolist())
    return blocks, slots


def _total(
    blocks: Mapping[Kind, BlockReport], scenario: Scenario, read: Callable[[BlockReport], Any]
) -> Numbers:
    """Add up a number of every block of the chain."""
    # One after another: numpy's own order of a sum differs between one plan and many.
    chain = [np.asarray(read(blocks[block.kind])) for block in block_chain(scenario.model)]
    return np.asarray(sum(chain[1:], chain[0]))


def _latency(
    blocks: Mapping[Kind, BlockReport], hand_over_cycles: Numbers, scenario: Scenario
) -> Numbers:
    """Cycles of a token: its blocks, the hand-overs, and the host."""
    cycles = _total(blocks, scenario, lambda b: b.timing.cycles)
    return np.asarray(cycles + hand_over_cycles + scenario.host_cycles)


def _cut_stages(
    table: PlanTable,
    blocks: Mapping[Kind, BlockReport],
    hops: Float[np.ndarray, "plans 2"],
    scenario: Scenario,
) -> CutPools:
    """Cut plans of one pool; `hops` are cycles of all hand-overs of a token, and the slowest."""
    chain = [blocks[block.kind] for block in block_chain(scenario.model)]
    live = live_bytes(blocks, len(table))
    cuts = Chain.of(
        [block.held.weights for block in chain],
        [block.held.cache for block in chain],
        [block.timing.cycles for block in chain],
        table.stages,
        room_bytes=usable_bytes(scenario.system.chip) - live,
        latency_cycles=_latency(blocks, hops[:, 0], scenario),
        hop_cycles=hops[:, 1],
        dram_cache=[block.held.dram_cache for block in chain],
        dram_room_bytes=dram_room_bytes(scenario.system),
    ).cut()
    return CutPools(
        cuts=cuts,
        hand_over_cycles=hops[:, 0],
        slowest_stage_cycles=cuts.slowest_cycles + hops[:, 1],
        live_bytes=live,
        fullest_pool=np.zeros(len(table), np.int64),
        handed_bytes=hidden_bytes(scenario) * (table.stages - 1.0),
    )


def _cut_pools(
    table: PlanTable,
    blocks: Mapping[Kind, BlockReport],
    laid_out: Sequence[tuple[Groups, ...]],
    scenario: Scenario,
) -> CutPools:
    """Cut plans of two pools."""
    n = len(table)

    def columns(read: Callable[[BlockReport], Any]) -> dict[Kind, Numbers]:
        return {
            kind: np.broadcast_to(np.asarray(read(block), np.float64), (n,))
            for kind, block in blocks.items()
        }

    serves = {kind: BLOCK_KINDS[kind].part in FFN_PARTS for kind in blocks}
    return cut_pools(
        table,
        laid_out,
        {
            "cycles": columns(lambda b: b.timing.cycles),
            "weights": columns(lambda b: b.held.weights),
            "cache": columns(lambda b: b.held.cache),
            "dram_cache": columns(lambda b: b.held.dram_cache),
        },
        [
            live_bytes({kind: blocks[kind] for kind in blocks if serves[kind] == of_ffn}, n)
            for of_ffn in (False, True)
        ],
        scenario,
        host_cycles=scenario.host_cycles,
    )


def _evaluation_of(
    table: PlanTable,
    blocks: Mapping[Kind, BlockReport],
    cut: CutPools,
    copies: Int[np.ndarray, " plans"],
    slots: tuple[SlotPlan, ...],
    scenario: Scenario,
) -> Evaluation:
    """Add the blocks of plans up.

    Args:
        table: the plans.
        blocks: each kind of block in every plan.
        cut: how they are cut.
        copies: of each plan, side by side.
        slots: of mixtures, one per plan.
        scenario: the model, the machine, the request and the formats.
    """
    cuts, hops, host = cut.cuts, cut.hand_over_cycles, scenario.host_cycles
    chips = [own.system.chip for own in scenario.pools]
    memory = np.array([float(chip.memory_bytes) for chip in chips])
    usable = np.array([usable_bytes(chip) for chip in chips])

    def total(read: Callable[[BlockReport], Any]) -> Numbers:
        return _total(blocks, scenario, read)

    return Evaluation(
        plans=table,
        scenario=scenario,
        clock_hz=float(scenario.system.chip.clock_hz),
        blocks=blocks,
        slots=slots,
        latency_cycles=_latency(blocks, hops, scenario),
        worst_latency_cycles=total(lambda b: b.worst_cycles) + hops + host,
        lower_cycles=total(lambda b: b.timing.lower_cycles) + hops + host,
        upper_cycles=total(lambda b: b.timing.upper_cycles) + hops + host,
        slowest_stage_cycles=cut.slowest_stage_cycles,
        hand_over_cycles=hops,
        host_cycles=host,
        wire_bytes=total(lambda b: b.wire_bytes) + cut.handed_bytes,
        weight_bytes=cuts.fullest_bytes - cuts.fullest_stage_cache_bytes,
        cache_bytes=cuts.fullest_stage_cache_bytes,
        activation_bytes=cut.live_bytes,
        least_bytes=cuts.least_bytes + cut.live_bytes,
        reserved_bytes=(memory - usable)[cut.fullest_pool],
        sram_bytes=memory[cut.fullest_pool],
        cached_batches=cuts.cached_batches,
        dram_bytes=cuts.dram_bytes,
        dram_room_bytes=min(dram_room_bytes(own.system) for own in scenario.pools),
        in_flight=np.minimum(cuts.cached_batches, most_in_flight(table.n_stages, scenario)).astype(
            np.int64
        ),
        copies=copies,
        cuts=cuts,
    )


def _joined(
    table: PlanTable, rows: Sequence[Int[np.ndarray, " _plans"]], found: Sequence[Evaluation]
) -> Evaluation:
    """Put evaluations of some plans each into one of all."""
    order = np.argsort(np.concatenate(rows))

    def columns(every: Sequence[Any]) -> dict[str, Any]:
        """Read what is an array, with the plans last."""
        return {
            one.name: np.concatenate([getattr(e, one.name) for e in every], axis=-1)[..., order]
            for one in fields(every[0])
            if isinstance(getattr(every[0], one.name), np.ndarray)
        }

    blocks = {
        kind: merge([(own, e.blocks[kind]) for own, e in zip(rows, found, strict=True)], len(table))
        for kind in found[0].blocks
    }
    slots = [slots for one in found for slots in one.slots]
    return replace(
        found[0],
        plans=table,
        blocks=blocks,
        slots=tuple(slots[i] for i in order) if slots else (),
        cuts=Cuts(**columns([one.cuts for one in found])),
        **columns(found),
    )
