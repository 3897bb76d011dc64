"""Laws of time that hold for every plan, machine and request, over randomly drawn ones."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from legal_plans import legal_plans, shapes

from lpu_jax.datapath.work import Unit
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.request import Request
from sharding.scenario import Scenario

CASES = [
    ("kimi-k2", "lpx-9", "int4"),
    ("deepseek-v3", "groq-10440", "fp8"),
    ("llama-2-70b", "groq-576", "int8"),
    ("llama-3.1-8b", "groq-264", "fp16"),
    ("smollm2-135m", "groq-node", "bf16"),
]
REQUEST = Request(batch=1, tokens=1, context=2048)
#: Each law is one rule applied to whatever plan comes; some of a case hit all its forms.
PLANS_PER_CASE = 20


@cache
def plans_of(case: tuple[str, str, str]) -> list[Plan]:
    scenario = Scenario(model(case[0]), system(case[1]), REQUEST, policy=POLICIES[case[2]])
    every = shapes(scenario)
    return legal_plans(scenario, every[:: -(-len(every) // PLANS_PER_CASE)], most=1)


def evaluated(
    case: tuple[str, str, str],
    plans: list[Plan],
    machine: System | None = None,
    request: Request = REQUEST,
) -> Evaluation:
    return evaluate(
        plans,
        Scenario(model(case[0]), machine or system(case[1]), request, policy=POLICIES[case[2]]),
    )


def changed(machine: System, factors: dict[str, float]) -> System:
    """Multiply constants of the chip or of the topology, by name."""

    def scaled(spec: Any) -> Any:
        mine = {f.name for f in fields(spec)} & set(factors)
        return replace(spec, **{name: getattr(spec, name) * factors[name] for name in mine})

    return replace(machine, chip=scaled(machine.chip), topology=scaled(machine.topology))


def rates_and_latencies(machine: System) -> tuple[list[str], list[str]]:
    names = [field.name for field in fields(machine.topology)]
    rates = [name for name in names if name.endswith("bytes_per_s")]
    return rates, [name for name in names if name.endswith("_s") and name not in rates]


@pytest.mark.first(1)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_twice_the_clock_and_rates_and_half_the_latencies_take_half_the_time(
    case: tuple[str, str, str],
) -> None:
    machine = system(case[1])
    rates, latencies = rates_and_latencies(machine)
    assert rates
    assert len(latencies) >= 3
    factors = {"clock_hz": 2.0, **dict.fromkeys(rates, 2.0), **dict.fromkeys(latencies, 0.5)}
    slow = evaluated(case, plans_of(case))
    quick = evaluated(case, plans_of(case), changed(machine, factors))
    # Powers of two move no rounding.
    np.testing.assert_array_equal(2 * quick.latency_s, slow.latency_s)
    np.testing.assert_array_equal(quick.tokens_per_s_total, 2 * slow.tokens_per_s_total)
    np.testing.assert_array_equal(quick.lower_cycles, slow.lower_cycles)
    np.testing.assert_array_equal(quick.upper_cycles, slow.upper_cycles)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=8)
def test_a_worse_machine_is_never_faster(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CASES))
    machine = system(case[1])
    rates, latencies = rates_and_latencies(machine)
    cycles = ["mxm_latency_cycles", "transit_cycles", "alu_cycles", "lane_rotate_cycles"]
    worse = {
        **dict.fromkeys([*rates, "weight_stream_bytes_per_cycle"], 0.5),
        **dict.fromkeys([*latencies, *cycles], 3),
    }
    name = data.draw(st.sampled_from(sorted(worse)))
    slower = changed(machine, {name: worse[name]})
    # Bounds are those of the collectives that are taken, and `auto` takes the fastest anew: those
    # of a named algorithm, which exists for every run, obey the law too.
    named = [replace(plan, collective="flat3") for plan in plans_of(case)]
    before, after = evaluated(case, named), evaluated(case, named, slower)
    for bound in ("lower_cycles", "latency_cycles", "upper_cycles"):
        assert np.all(getattr(after, bound) >= getattr(before, bound)), (name, bound)
    before, after = evaluated(case, plans_of(case)), evaluated(case, plans_of(case), slower)
    assert np.all(after.latency_cycles >= before.latency_cycles), name
    assert np.all(after.lower_cycles <= after.latency_cycles)
    assert np.all(after.latency_cycles <= after.upper_cycles)
    # Stages are cut anew, to one part in 10^9.
    fits = before.fits
    assert np.all((after.cycles_per_batch >= before.cycles_per_batch * (1 - 1e-8))[fits])
    # Weights and caches alone: how long values live, and how many rows slots have, follow the time.
    np.testing.assert_array_equal(after.cuts.least_bytes, before.cuts.least_bytes)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=8)
def test_more_of_anything_asked_is_never_faster(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CASES))
    field = data.draw(st.sampled_from(["batch", "tokens", "context"]))
    # Sequences are not split here, so that plans stay legal for every batch.
    plans = [plan for plan in plans_of(case) if plan.attention.data == 1]
    less = data.draw(st.integers(1, 64))
    more = data.draw(st.integers(less, 128))
    base = {"batch": 1, "tokens": 1, "context": 2048}
    small = evaluated(case, plans, request=Request(**base | {field: less}))
    large = evaluated(case, plans, request=Request(**base | {field: more}))
    for bound in ("lower_cycles", "latency_cycles", "upper_cycles"):
        assert np.all(getattr(large, bound) >= getattr(small, bound)), (field, less, more)
    assert np.all(large.least_bytes >= small.least_bytes)
    for bound in ("lower_cycles", "latency_cycles"):
        assert np.all(getattr(small, bound) <= small.upper_cycles)
    assert np.all(small.lower_cycles <= small.latency_cycles)


def test_wider_storage_of_the_same_products_is_never_faster() -> None:
    # Both multiply in float16: the same rounds of the matrix unit. 32 rows that share a scale stay
    # on one chip, so only splits into whole groups leave a chip the same rows.
    cfg, machine, _ = CASES[0]
    plans = [plan for plan in plans_of(CASES[0]) if plan.moe and 2048 % (32 * plan.moe.tensor) == 0]
    assert len(plans) > 5
    narrow, wide = (
        evaluate(plans, Scenario(model(cfg), system(machine), REQUEST, policy=POLICIES[policy]))
        for policy in ("mxfp4-experts", "fp16")
    )
    assert np.all(wide.latency_cycles >= narrow.latency_cycles)
    assert np.all(wide.weight_bytes > narrow.weight_bytes)


def test_one_chip_has_no_wire_time() -> None:
    alone = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
    found = evaluated(CASES[-1], [alone])
    assert found.wire_bytes[0] == found.hand_over_cycles[0] == 0
    for block in found.blocks.values():
        assert not np.any(block.timing.busy_cycles[Unit.C2C])
    # And no link constant matters to it.
    machine = system("groq-node")
    rates, latencies = rates_and_latencies(machine)
    slow_links = changed(machine, {**dict.fromkeys(rates, 0.1), **dict.fromkeys(latencies, 9.0)})
    assert evaluated(CASES[-1], [alone], slow_links).latency_cycles[0] == found.latency_cycles[0]
