"""The slots of a plan: how many, with how many rows, and with which probability they are enough.

A step that needs more runs the rest of the worst case too. On a chip with bounded branching a block
is compiled for a few numbers of slots, and a step takes the smallest that is enough. How many rows
a slot has is tried where the plan leaves it open: the evaluation takes what is fastest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, expm1, log1p

import numpy as np
from jaxtyping import Float

from lpu_jax.machine.gpu import GpuSpec
from models.config import MoeConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.leaves import experts_of_chip

from ..plan import MoeShard, SlotRule
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


def _routing_of(moe: MoeConfig, request: Request, shares: tuple[float, ...] | None) -> Routing:
    """Describe the rows of a step: new tokens of all sequences."""
    return Routing(
        rows=request.batch * request.tokens,
        top_k=moe.top_k,
        n_experts=moe.n_experts,
        # Numbers that are all alike are no histogram, and quick to count.
        shares=shares if shares is not None and len(set(shares)) > 1 else None,
    )


def slot_plans(shard: MoeShard, scenario: Scenario) -> tuple[SlotPlan, ...]:
    """Size the slots of a plan for a step of a scenario's request.

    Args:
        shard: how the mixture is split, and what it says of slots.
        scenario: the model, the machine, the request and the formats.

    Returns:
        What every chip of the group may run: one entry for each number of rows that a slot may
        have, fewest first.
    """
    cfg, chip = scenario.model, scenario.system.chip
    assert cfg.moe is not None
    routing = _routing_of(cfg.moe, scenario.request, scenario.expert_shares)
    if isinstance(chip, GpuSpec):
        return (_sized_for_gpu(shard, routing, cfg.n_moe_layers),)
    if shard.split is not Split.TREE:
        shard = replace(shard, split=Split.ROW)  # the others have the same slots
    return _sized(shard, routing, cfg.n_moe_layers, chip.branching == "bounded")


def slots_of_values(shard: MoeShard, scenario: Scenario) -> SlotPlan:
    """Size the slots for a run of values, whose bits no size moves.

    What the plan leaves open is chosen for the fewest rows in memory.
    """

    def rows(plan: SlotPlan) -> int:
        step = plan.worst
        arrived = shard.expert * step.sent
        return step.slots * (arrived if plan.capacity is None else plan.capacity)

    return min(slot_plans(shard, scenario), key=rows)


def _held(shard: MoeShard, routing: Routing) -> int:
    """Experts of a chip, padding included."""
    in_tree = shard.split is Split.TREE
    return experts_of_chip(routing.n_experts, shard.expert, in_tree=in_tree)


def _sized_for_gpu(shard: MoeShard, routing: Routing, layers: int) -> SlotPlan:
    """A GPU has no slots: a program that is enough for every routing; the roofline counts rows."""
    n_local = _held(shard, routing)
    step = Step(
        slots=worst_slots(routing, n_local, routing.rows),
        sent=-(-routing.rows // shard.expert),
        probability=1.0,
    )
    return SlotPlan(capacity=None, steps=(step,), planned=0, layers=layers)


@lru_cache(maxsize=65536)
def _sized(
    shard: MoeShard, routing: Routing, layers: int, is_bounded: bool
) -> tuple[SlotPlan, ...]:
    sizing = _Sizing(shard, routing, layers, is_bounded)
    return tuple(sizing.with_capacity(capacity) for capacity in sizing.capacities())


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
        return _held(self.shard, self.routing)

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

    def capacities(self) -> Iterator[int]:
        """Rows of a slot to try: powers of two, and all rows."""
        rows = self.routing.rows
        if self.shard.capacity is not None or self.shard.slots is not None:
            yield min(self.shard.capacity or rows, rows)
            return
        capacity = 1
        while capacity < rows:
            yield capacity
            capacity *= 2
        yield rows

    def with_capacity(self, capacity: int) -> SlotPlan:
        """Size slots and lists for a number of rows of a slot."""
        worst = worst_slots(self.routing, self.n_local, capacity)
        tail = busiest_tail(self.routing, self.n_local, capacity)
        planned = self._planned(tail, worst)
        sent, too_long = self._lists()
        numbers = {planned}
        if self.is_bounded and not self.is_optimistic:
            numbers |= {max(1, least_beyond(tail, chance)) for chance in BRANCHES}
        steps, left = [], 1.0
        for slots in sorted(n for n in numbers if n <= planned):
            enough = 1 - float(tail[slots]) if slots < tail.size else 1.0
            beyond = 0.0 if self.is_optimistic else 1 - enough * (1 - too_long)
            steps.append(Step(slots=slots, sent=sent, probability=left - beyond))
            left = beyond
        last = len(steps) - 1
        if planned < worst or sent < self.n_own:
            steps.append(Step(slots=worst, sent=self.n_own, probability=left))
        return SlotPlan(
            capacity=None if capacity >= self.routing.rows else capacity,
            steps=tuple(steps),
            planned=last,
            layers=self.layers,
        )

    @property
    def is_optimistic(self) -> bool:
        """Whether an overflow has no price: under that rule, unless the plan gives a number."""
        return self.shard.slot_rule is SlotRule.EXPECTED and self.shard.slots is None

    def _planned(self, tail: Tail, worst: int) -> int:
        """Slots that the plan asks for, or its rule: never more than any routing needs."""
        if self.shard.slots is not None:
            return min(self.shard.slots, worst)
        enough = max(1, least_beyond(tail, self.probability))
        match self.shard.slot_rule:
            case SlotRule.WORST:
                return worst
            case SlotRule.CAPACITY:
                return min(enough, worst)
            case SlotRule.EXPECTED:
                return min(max(1, ceil(mean_of(tail))), enough, worst)

    def _lists(self) -> tuple[int, float]:
        """Places of each list from chip to chip, and how probable it is that one is too short."""
        if not self.exchanges or self.shard.slot_rule is SlotRule.WORST:
            return self.n_own, 0.0
        tail = longest_list_tail(self.routing, self.shard.expert, self.n_local, self.n_own)
        sent = max(1, least_beyond(tail, self.probability))
        if self.is_optimistic:
            return min(sent, max(1, ceil(mean_of(tail)))), 0.0
        return sent, float(tail[sent]) if sent < tail.size else 0.0
