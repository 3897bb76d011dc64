"""The slots of plans beside what the other rules would ask for: how much rests on the routing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from lpu_jax.quantities import format_seconds

from .. import report
from ..plan import Plan, SlotRule
from ..scenario import Scenario
from ..slots.sizes import SlotPlan
from .evaluate import evaluate


@dataclass(frozen=True, kw_only=True)
class SlotReading:
    """Slots of a mixture's chips, and what the routing of a step makes of them."""

    slots: int  #: that the plan asks for, by a number or its rule
    capacity: int | None  #: rows of each; None: all rows
    sent: int  #: places of a list from chip to chip, if rows travel
    worst_slots: int  #: enough for every routing
    overflow: float  #: probability that some mixture of a step needs more than `slots`
    latency_s_by_rule: Mapping[str, float]  #: of a step, by the rule that sizes the slots

    @property
    def in_words(self) -> str:
        """The slots and their rows."""
        return f"{self.slots} x {'all' if self.capacity is None else self.capacity}"

    def as_dict(self) -> dict[str, Any]:
        """The reading as plain values."""
        return dict(vars(self))


def slot_readings(
    plans: Sequence[Plan], sized: Sequence[SlotPlan], scenario: Scenario
) -> list[SlotReading | None]:
    """Read the slots of plans; None for models without experts, and on GPUs, which have none.

    Args:
        plans: legal plans.
        sized: their slots, as `evaluate` chose them.
        scenario: the model, the machine, the request and the formats.
    """
    if scenario.model.moe is None or scenario.system.lpus is None:
        return [None] * len(plans)
    ruled = [
        replace(plan, moe=replace(plan.moe, slots=None, capacity=None, slot_rule=rule))
        for plan in plans
        for rule in SlotRule
        if plan.moe is not None
    ]
    latencies = evaluate(ruled, scenario).latency_s.reshape(len(plans), len(SlotRule)).tolist()
    found: list[SlotReading | None] = []
    for slots, by_rule in zip(sized, latencies, strict=True):
        found.append(
            SlotReading(
                slots=slots.main.slots,
                capacity=slots.capacity,
                sent=slots.main.sent,
                worst_slots=slots.worst.slots,
                overflow=slots.overflow,
                latency_s_by_rule=dict(zip(map(str, SlotRule), by_rule, strict=True)),
            )
        )
    return found


def slot_table(readings: Sequence[SlotReading]) -> Table:
    """The slots of each row of a comparison, and one step under each rule."""
    made = report.table(
        ("#", "right"),
        ("slots x rows", "right"),
        ("at worst", "right"),
        ("steps that need more", "right"),
        *((str(rule), "right") for rule in SlotRule),
        title="Slots of experts on each chip, and one step by the rule that sizes them",
    )
    for number, reading in enumerate(readings, 1):
        made.add_row(
            str(number),
            reading.in_words,
            str(reading.worst_slots),
            f"{reading.overflow:.1e}" if reading.overflow else "none",
            *(format_seconds(reading.latency_s_by_rule[rule]) for rule in SlotRule),
        )
    return made
