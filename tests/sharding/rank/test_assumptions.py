"""Rules are drawn and varied like constants: those of a machine, and those that plans follow."""

from dataclasses import replace

import numpy as np
import pytest

from lpu_jax.machine.catalogue import system
from lpu_jax.machine.uncertainty import draw_system, uncertain_constants
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan, SlotRule
from sharding.predict.evaluate import evaluate
from sharding.rank.assumptions import Ranked
from sharding.rank.compare import compare
from sharding.rank.sensitivity import sensitivity
from sharding.request import Request
from sharding.scenario import Scenario

RULE = "plan.slot_rule"
MIXED = Plan(
    stages=4,
    group_chips=16,
    attention=AttentionShard(tensor=8, replica=2),
    mlp=MlpShard(tensor=16),
    moe=MoeShard(expert=2, tensor=8),
)
REQUEST = Request(batch=16, context=512)


def _ranked(*plans: Plan) -> Ranked:
    cfg = replace(model("mixtral-8x7b"), n_layers=2)
    asked = Scenario(cfg, system("lpx-rack"), REQUEST, policy=POLICIES["int4"])
    return Ranked(plans=plans, scenario=asked)


def _rules(ranked: Ranked) -> set[str]:
    return {name for name, c in ranked.uncertain().items() if c.unit in ("rule", "wiring")}


def test_rules_stand_beside_constants() -> None:
    ranked = _ranked(MIXED)
    of_chip = {"chip.weight_prefetch", "chip.padding", "chip.widening", "chip.branching"}
    assert _rules(ranked) == of_chip | {RULE, "topology.rack_chain"}
    assert "chip.wire_value_bits" in ranked.uncertain()
    changed = ranked.variant({RULE: SlotRule.WORST, "chip.transit_cycles": 30})
    assert changed.value_of(RULE) is SlotRule.WORST
    assert changed.value_of("chip.transit_cycles") == 30
    assert (ranked.value_of(RULE), ranked.plans[0]) == (SlotRule.CAPACITY, MIXED)


def test_what_a_person_chose_or_nobody_follows_is_not_drawn() -> None:
    assert MIXED.moe is not None
    sized = replace(MIXED, moe=replace(MIXED.moe, slots=4))
    worst = replace(MIXED, moe=replace(MIXED.moe, slot_rule=SlotRule.WORST))
    dense = replace(MIXED, moe=None)
    for plan in (sized, worst, dense):
        assert RULE not in _rules(_ranked(plan)), plan.name
    assert RULE in _rules(_ranked(MIXED, sized))
    on_gpus = replace(_ranked(MIXED).scenario, system=system("vr-nvl72"))
    assert RULE not in Ranked(plans=[MIXED], scenario=on_gpus).uncertain()


def test_the_machine_is_drawn_first_then_the_rules_of_plans() -> None:
    ranked, machine_only = _ranked(MIXED), np.random.default_rng(5)
    rng = np.random.default_rng(5)
    drawn = [ranked.drawn(rng) for _ in range(40)]
    assert drawn[0].scenario.system == draw_system(ranked.scenario.system, machine_only)
    assert {one.value_of(RULE) for one in drawn} == set(SlotRule)


@pytest.mark.slow
def test_a_rule_has_its_influence() -> None:
    """The latencies at the other rules, beside those of plans that follow them from the start."""
    ranked = _ranked(MIXED)
    asked = ranked.scenario
    compared = compare(asked.model, asked.system, REQUEST, policy=asked.policy, plans=[MIXED])
    found = sensitivity(compared, 2, 0)
    assert len(found.influences) == len(uncertain_constants(asked.system)) + 1
    (rule,) = (influence for influence in found.influences if influence.name == RULE)
    assert MIXED.moe is not None
    nominal_s = float(evaluate([MIXED], asked).latency_s[0])
    for end, name in zip(rule.ends, (SlotRule.WORST, SlotRule.EXPECTED), strict=True):
        own = replace(MIXED, moe=replace(MIXED.moe, slot_rule=name))
        ratio = float(evaluate([own], asked).latency_s[0]) / nominal_s
        assert (end.value, end.stays_first) == (str(name), True)
        assert end.latency_ratio == pytest.approx(ratio, rel=1e-12)
    worst, expected = (end.latency_ratio for end in rule.ends)
    assert worst is not None
    assert expected is not None
    assert expected < 1 < worst
    assert f"{len(found.influences)} uncertain constants and rules" in found.text()
