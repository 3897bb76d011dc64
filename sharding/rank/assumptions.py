"""What of a ranking could be otherwise: constants and rules of a machine, and rules of plans.

A rule of the machine is a field of its specification with options, made by `provenance.const`:
nothing else needs to know it to draw it. A rule of plans is a row of `PLAN_RULES`. Not modelled:
choices that tell plans apart, which are ranked, not assumed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lpu_jax.machine.uncertainty import (
    draw_system,
    plausible,
    uncertain_constants,
    value_of,
    variant,
)
from lpu_jax.provenance import Constant

from ..plan import Plan, SlotRule
from ..scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class PlanRule:
    """A rule that plans follow: what else it could be, and how a plan follows it."""

    constant: Constant
    value_of: Callable[[Plan, Scenario], Any]  #: None where the plan has no use for the rule
    given: Callable[[Plan, Any], Plan]  #: the plan with another value


def _slot_rule(plan: Plan, scenario: Scenario) -> Any:
    has_rule = plan.moe is not None and plan.moe.slots is None and scenario.system.lpus
    return plan.moe.slot_rule if has_rule and plan.moe is not None else None


def _with_slot_rule(plan: Plan, rule: Any) -> Plan:
    return plan if plan.moe is None else replace(plan, moe=replace(plan.moe, slot_rule=rule))


#: By full name, in the order in which they are drawn, after all constants.
PLAN_RULES: Mapping[str, PlanRule] = {
    "plan.slot_rule": PlanRule(
        constant=Constant(
            name="slot_rule",
            value=SlotRule.CAPACITY,
            unit="rule",
            status="assumed",
            source="not public how many experts a static program has room for",
            options=tuple(SlotRule),
        ),
        value_of=_slot_rule,
        given=_with_slot_rule,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Plans on a scenario: what constants and rules are about."""

    plans: Sequence[Plan]
    scenario: Scenario

    def uncertain(self) -> dict[str, Constant]:
        """List what is uncertain and moves plans, by full name, such as `chip.transit_cycles`.

        A rule that some plan follows otherwise was chosen by a person, and is certain.
        """
        rules = {}
        for name, rule in PLAN_RULES.items():
            values = {rule.value_of(plan, self.scenario) for plan in self.plans} - {None}
            if values == {rule.constant.value}:
                rules[name] = rule.constant
        return uncertain_constants(self.scenario.machine) | rules

    def value_of(self, name: str) -> Any:
        """Return the value of a constant or rule by its full name."""
        if name in PLAN_RULES:
            values = (PLAN_RULES[name].value_of(plan, self.scenario) for plan in self.plans)
            return next(value for value in values if value is not None)
        return value_of(self.scenario.machine, name)

    def variant(self, values: Mapping[str, Any]) -> "Ranked":
        """Give some constants and rules, by full name, other values."""
        of_system = {name: value for name, value in values.items() if name not in PLAN_RULES}
        plans = self.plans
        for name in values.keys() & PLAN_RULES.keys():
            plans = [PLAN_RULES[name].given(plan, values[name]) for plan in plans]
        system = variant(self.scenario.machine, of_system)
        return Ranked(plans=plans, scenario=self.scenario.on(system))

    def drawn(self, rng: np.random.Generator) -> "Ranked":
        """Draw everything that is uncertain: the machine first, then the rules of plans."""
        rules = {name: c for name, c in self.uncertain().items() if name in PLAN_RULES}
        system = draw_system(self.scenario.machine, rng)
        values = {name: plausible(constant, rng.random()) for name, constant in rules.items()}
        on_drawn = Ranked(plans=self.plans, scenario=self.scenario.on(system))
        return on_drawn.variant(values)
