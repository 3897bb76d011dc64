"""The slots of a plan: how many, with how many rows, and with which probability they are enough.

A step that needs more runs the rest of the worst case too. On a chip with bounded branching a block
is compiled for a few numbers of slots, and a step takes the smallest that is enough. Rows that a
slot multiplies while the next weights are installed are free: that decides its capacity, unless
the plan says otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, expm1, log1p

import numpy as np
from jaxtyping import Float

from lpu_jax.machine.chip import ChipSpec
from lpu_jax.machine.gpu import GpuSpec
from models.config import MoeConfig
from models.layers.dispatch import Dispatch
from models.policy import Policy

from ..plan import MOST_OVERFLOW, MoeShard, SlotRule
from ..request import Request
from ..scenario import Scenario
from .statistics import (
    Routing,
    busiest_tail,
    least_beyond,
    longest_list_tail,
    mean_of,
    worst_slots,
)

#: With bounded branching, a block is compiled for the slots that are exceeded with these
#: probabilities, for those that the plan's rule asks for, and for the worst case (assumed).
BRANCHES = (0.5, 0.1)

Tail = Float[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One way in which a step may run: its slots on every chip, and how often it does."""

    slots: int
    sent: int  #: places of a list from chip to chip; as many as a share has rows: all of them
    probability: float


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """Slots of a mixture on every chip of its group."""

    capacity: int | None  #: rows of a slot; None: all rows, where they are
    steps: tuple[Step, ...]  #: by ascending slots; the last is enough for every routing
    planned: int  #: which of the steps the plan's rule asks for
    layers: int  #: mixtures of the model

    @property
    def main(self) -> Step:
        """The step that the plan's rule asks for."""
        return self.steps[self.planned]

    @property
    def worst(self) -> Step:
        """The step that is enough for every routing."""
        return self.steps[-1]

    @property
    def overflow(self) -> float:
        """Probability that some mixture of a step needs more than the plan's rule asks for."""
        beyond = sum(step.probability for step in self.steps[self.planned + 1 :])
        return max(0.0, -expm1(self.layers * log1p(-beyond))) if beyond < 1 else 1.0


def routing_of(moe: MoeConfig, request: Request, shares: tuple[float, ...] | None) -> Routing:
    """Describe the rows of a step: new tokens of all sequences."""
    return Routing(
        rows=request.batch * request.tokens,
        top_k=moe.top_k,
        n_experts=moe.n_experts,
        # Numbers that are all alike are no histogram, and quick to count.
        shares=shares if shares is not None and len(set(shares)) > 1 else None,
    )


def slot_plan(shard: MoeShard, scenario: Scenario) -> SlotPlan:
    """Size the slots of a plan for a step of a scenario's request.

    Args:
        shard: how the mixture is split, and what it says of slots.
        scenario: the model, the machine, the request and the formats.

    Returns:
        What every chip of the group runs.
    """
    cfg, chip = scenario.model, scenario.system.chip
    assert cfg.moe is not None
    routing = routing_of(cfg.moe, scenario.request, scenario.expert_shares)
    if isinstance(chip, GpuSpec):
        return _sized_for_gpu(shard, routing, cfg.n_moe_layers)
    return _sized(
        shard,
        routing,
        cfg.n_moe_layers,
        _rows_while_installing(chip, scenario.policy),
        chip.branching == "bounded",
    )


def asked_overflow(shard: MoeShard, scenario: Scenario) -> tuple[float, int]:
    """Find how often a step overflows the slots that a plan gives a number for, and the worst case.

    Returns:
        Probability, and slots that are enough for every routing; 0 where the plan gives none.
    """
    cfg = scenario.model
    assert cfg.moe is not None
    if shard.slots is None:
        return 0.0, 0
    routing = routing_of(cfg.moe, scenario.request, scenario.expert_shares)
    sizing = _Sizing(shard, routing, cfg.n_moe_layers, False)
    asked = sizing.with_capacity(min(shard.capacity or routing.rows, routing.rows))
    return asked.overflow, asked.worst.slots


def _rows_while_installing(chip: ChipSpec, policy: Policy) -> int:
    """Rows that multiply while the next round of weights is installed."""
    mode = chip.mxm_mode("fp16")
    scheme = policy.weights.get("expert")
    bits = scheme.bits_per_value if scheme is not None else policy.base_bits
    round_bytes = mode.arrays * mode.k_tile * mode.columns * bits / 8
    streamed = round_bytes / chip.weight_stream_bytes_per_cycle
    return max(1, ceil(max(streamed, mode.k_tile / chip.array_load_rows_per_cycle)))


def _sized_for_gpu(shard: MoeShard, routing: Routing, layers: int) -> SlotPlan:
    """A GPU has no slots: a program that is enough for every routing; the roofline counts rows."""
    n_local = -(-routing.n_experts // shard.expert)
    step = Step(
        slots=worst_slots(routing, n_local, routing.rows),
        sent=-(-routing.rows // shard.expert),
        probability=1.0,
    )
    return SlotPlan(capacity=None, steps=(step,), planned=0, layers=layers)


@lru_cache(maxsize=65536)
def _sized(
    shard: MoeShard, routing: Routing, layers: int, free_rows: int, is_bounded: bool
) -> SlotPlan:
    """Choose the capacity with the least rounds of rows; of equals the smallest.

    Slots that most steps overflow were meant for another step, as those of decoding are for
    prefill: the plan's rule takes their place.
    """
    sizing = _Sizing(shard, routing, layers, is_bounded)
    if shard.slots is not None:
        asked = sizing.with_capacity(min(shard.capacity or routing.rows, routing.rows))
        if asked.overflow <= MOST_OVERFLOW:
            return asked
        ruled = replace(shard, slots=None, capacity=None)
        sizing = _Sizing(ruled, routing, layers, is_bounded)
    found = [sizing.with_capacity(capacity) for capacity in sizing.capacities(free_rows)]
    return min(found, key=lambda plan: sizing.rounds(plan, free_rows))


@dataclass(frozen=True)
class _Sizing:
    """One plan's rule for one routing."""

    shard: MoeShard
    routing: Routing
    layers: int
    is_bounded: bool

    @property
    def n_local(self) -> int:
        """Experts of a chip, padding included."""
        return -(-self.routing.n_experts // self.shard.expert)

    @property
    def n_own(self) -> int:
        """Rows of a chip's share."""
        return -(-self.routing.rows // self.shard.expert)

    @property
    def exchanges(self) -> bool:
        """Whether rows travel to their experts."""
        return self.shard.dispatch is Dispatch.ALL_TO_ALL

    @property
    def probability(self) -> float:
        """Probability with which the slots of one mixture may overflow, and so may its lists."""
        of_layer = -expm1(log1p(-self.shard.overflow) / self.layers)
        return of_layer / 2 if self.exchanges else of_layer

    def capacities(self, free_rows: int) -> Iterator[int]:
        """Rows of a slot to try: what is free, doubled again and again, and all rows."""
        rows = self.routing.rows
        if self.shard.capacity is not None:
            yield min(self.shard.capacity, rows)
            return
        capacity = free_rows
        while capacity < rows:
            yield capacity
            capacity *= 2
        yield rows

    def rounds(self, plan: SlotPlan, free_rows: int) -> float:
        """Cycles of the matrix unit in a mean step, in rounds of one row."""
        total = 0.0
        for step in plan.steps:
            arrived = self.shard.expert * step.sent if self.exchanges else self.routing.rows
            rows = arrived if plan.capacity is None else plan.capacity
            total += step.probability * step.slots * max(rows, free_rows)
        return total

    def with_capacity(self, capacity: int) -> SlotPlan:
        """Size slots and lists for a number of rows of a slot."""
        worst = worst_slots(self.routing, self.n_local, capacity)
        tail = busiest_tail(self.routing, self.n_local, capacity)
        planned = self._planned(tail, worst)
        sent, too_long = self._lists()
        numbers = {planned}
        rule = self.shard.slot_rule
        if self.is_bounded and rule is not SlotRule.EXPECTED:
            numbers |= {max(1, least_beyond(tail, chance)) for chance in BRANCHES}
        steps, left = [], 1.0
        for slots in sorted(n for n in numbers if n <= planned):
            enough = 1 - float(tail[slots]) if slots < tail.size else 1.0
            beyond = 0.0 if rule is SlotRule.EXPECTED else 1 - enough * (1 - too_long)
            steps.append(Step(slots=slots, sent=sent, probability=left - beyond))
            left = beyond
        last = len(steps) - 1
        if planned < worst or sent < self.n_own:
            steps.append(Step(slots=max(planned, worst), sent=self.n_own, probability=left))
        return SlotPlan(
            capacity=None if capacity >= self.routing.rows else capacity,
            steps=tuple(steps),
            planned=last,
            layers=self.layers,
        )

    def _planned(self, tail: Tail, worst: int) -> int:
        """Slots that the plan asks for, or its rule."""
        if self.shard.slots is not None:
            return self.shard.slots
        match self.shard.slot_rule:
            case SlotRule.WORST:
                return worst
            case SlotRule.CAPACITY:
                return max(1, least_beyond(tail, self.probability))
            case SlotRule.EXPECTED:
                return max(1, ceil(mean_of(tail)))

    def _lists(self) -> tuple[int, float]:
        """Places of each list from chip to chip, and how probable it is that one is too short."""
        if not self.exchanges or self.shard.slot_rule is SlotRule.WORST:
            return self.n_own, 0.0
        tail = longest_list_tail(self.routing, self.shard.expert, self.n_local, self.n_own)
        if self.shard.slot_rule is SlotRule.EXPECTED:
            return max(1, ceil(mean_of(tail))), 0.0
        sent = max(1, least_beyond(tail, self.probability))
        return sent, float(tail[sent]) if sent < tail.size else 0.0
