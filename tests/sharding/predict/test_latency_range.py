"""Every latency lies in its range, on the machine as described and on any that may be drawn."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lpu_jax.machine import time_range as module
from lpu_jax.machine.mixed import Machine
from lpu_jax.machine.uncertainty import draw_system, extremes, uncertain_constants, variant
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.drafts import latencies_s
from sharding.predict.evaluate import cut_plans, evaluate
from sharding.predict.latency_range import latency_ranges_s
from sharding.request import Request
from sharding.scenario import Scenario, scenario


def _dense(tensor: int, stages: int) -> Plan:
    return Plan(
        stages=stages,
        group_chips=tensor,
        attention=AttentionShard(tensor=tensor),
        mlp=MlpShard(tensor=tensor),
    )


def _mixture(expert: int, tensor: int, stages: int) -> Plan:
    whole = expert * tensor
    return Plan(
        stages=stages,
        group_chips=whole,
        attention=AttentionShard(tensor=8, replica=whole // 8),
        mlp=MlpShard(tensor=whole),
        moe=MoeShard(expert=expert, tensor=tensor),
    )


#: Dense models and mixtures, on machines of either kind, of one rack and of more.
CASES = {
    "dense on groq": ("llama-3.1-8b", "groq-576", "int8", 1, (_dense(8, 32), _dense(16, 16))),
    "dense on lpx": ("llama-3.1-8b", "lpx-rack", "fp8", 16, (_dense(8, 8), _dense(32, 2))),
    "mixture on groq": (
        "mixtral-8x7b", "groq-576", "int4", 2, (_mixture(1, 16, 32), _mixture(2, 8, 32)),
    ),
    "mixture on lpx": (
        "mixtral-8x7b", "lpx-9", "int4", 8, (_mixture(1, 16, 32), _mixture(8, 2, 64)),
    ),
    "dense on GPUs": ("llama-3.1-8b", "vr-nvl72", "fp8", 16, (_dense(8, 1), _dense(4, 1))),
    # Of one stage each, so that every machine cuts them alike.
    "pools on lpx": (
        "mixtral-8x7b", "lpx-9", "int4", 8,
        (Plan.parse("1x8 a:8t + 1x64 f:64t m:8e·8t"), _mixture(8, 2, 64)),
    ),
    "pools on GPUs and LPUs": (
        "mixtral-8x7b", "vr-lpx-9", "int4", 8,
        (Plan.parse("1x4 a:4t + 1x64 f:64t m:8e·8t"), Plan.parse("1x8 a:8t + 1x64 f:64t m:64t")),
    ),
}  # fmt: skip


@cache
def _case(name: str) -> tuple[Scenario, tuple[Plan, ...], np.ndarray]:
    named, machine, policy, batch, plans = CASES[name]
    request = Request(batch=batch, context=2048)
    small = replace(model(named), n_layers=4, sliding_layers=())
    asked = scenario(small, machine, request, policy=policy)
    return asked, plans, latency_ranges_s(plans, asked)


def _latency_s(asked: Scenario, plans: tuple[Plan, ...], machine: Machine) -> np.ndarray:
    found = evaluate(plans, asked.on(machine))
    assert np.all(found.lower_cycles <= found.latency_cycles)
    assert np.all(found.latency_cycles <= found.upper_cycles)
    return np.asarray(found.latency_s)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_drawn_machines_lie_inside_and_so_does_the_nominal_one(name: str) -> None:
    """Draws are those of the sensitivity; the ends are reached, so that nothing is rounded."""
    asked, plans, ranges = _case(name)
    shortest, longest = ranges.T
    nominal = _latency_s(asked, plans, asked.machine)
    assert np.all((shortest < nominal) & (nominal < longest))
    rng = np.random.default_rng(4)
    for _ in range(12):
        drawn = _latency_s(asked, plans, draw_system(asked.machine, rng))
        assert np.all((shortest <= drawn) & (drawn <= longest)), (shortest, drawn, longest)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_end_that_a_constant_declares_is_the_faster_one(name: str) -> None:
    asked, plans, _ = _case(name)
    nominal = _latency_s(asked, plans, asked.machine)
    for full, constant in uncertain_constants(asked.machine).items():
        for value in extremes(constant):
            moved = _latency_s(asked, plans, variant(asked.machine, {full: value}))
            if constant.options:
                continue
            is_faster = (value == constant.low) == (constant.faster_at == "low")
            assert np.all(moved <= nominal if is_faster else moved >= nominal), (full, value)


@pytest.mark.slow
def test_a_constant_that_is_declared_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all ends turned round, what is drawn does not stay inside."""
    asked, plans, _ = _case("dense on lpx")
    right = module._end
    turned = {"shortest": "longest", "longest": "shortest"}
    monkeypatch.setattr(module, "_end", lambda c, what: right(c, turned[what]))
    shortest, longest = latency_ranges_s(plans, asked).T
    rng = np.random.default_rng(4)
    drawn = [_latency_s(asked, plans, draw_system(asked.machine, rng)) for _ in range(12)]
    assert np.any((drawn < shortest) | (drawn > longest))


@pytest.mark.slow
def test_a_plan_has_the_same_range_alone_as_among_others() -> None:
    asked, plans, ranges = _case("mixture on lpx")
    for plan, own in zip(plans, ranges, strict=True):
        assert latency_ranges_s([plan], asked).tolist() == [own.tolist()]


@pytest.mark.slow
def test_cut_plans_have_the_latencies_of_evaluated_ones() -> None:
    asked = scenario("kimi-k2", "lpx-9", Request(batch=4, context=8192), policy="int4")
    plans = [
        Plan.parse("31x64 a:64t f:64t m:32e·2t"),
        Plan.parse("8x8 a:8t + 30x64 f:64t m:64e"),
        Plan.parse("2x32 a:32t + 15x128 f:128t m:64e·2t"),
    ]
    found = latencies_s(cut_plans(plans, asked), asked)
    assert found.tolist() == evaluate(plans, asked).latency_s.tolist()


@pytest.mark.slow
def test_a_named_collective_that_other_links_do_not_have() -> None:
    """One shot over 16 chips of a tray: trays of 8, an alternative, have no such links."""
    asked, _, _ = _case("dense on lpx")
    plans = [replace(_dense(16, 4), collective="one_shot"), _dense(8, 4)]
    shortest, longest = latency_ranges_s(plans, asked).T
    nominal = _latency_s(asked, tuple(plans), asked.machine)
    assert np.all((shortest < nominal) & (nominal < longest))
    alone = latency_ranges_s(plans[1:], asked)
    assert (shortest[1], longest[1]) == tuple(alone[0])
