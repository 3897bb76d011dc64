"""Caches in the DRAM beside LPUs: time and room by hand, and laws."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from brute_force import EveryPlan
from random_scenarios import random_scenario

from lpu_jax.machine.tray_dram import TrayDram
from sharding import Plan
from sharding.detail.explain import explain
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.request import Request
from sharding.scenario import Scenario, scenario

NAME = "16x16 a:16t f:16t row"
#: Llama 3.1 8B on 16 chips at 4,096 positions: the 8 heads of keys and values are split 8 ways, so
#: that a chip has one of 128 values; 2 of these fill a vector of 320 bytes: 160 values for 128.
_KEYS = 4096 / 320 * 320 * 128 * 2  # bytes, [head_dim, context] in whole vectors of 320 positions
_VALUES = 4096 * 160 * 2


def _evaluated(name: str, plans: Sequence[str], batch: int = 1) -> Evaluation:
    asked = scenario("llama-3.1-8b", name, Request(batch=batch, context=4096), policy="int8")
    return evaluate([Plan.parse(plan) for plan in plans], asked)


def test_a_layer_takes_what_its_cache_takes_to_come() -> None:
    """A chip reads at an eighth of 76.8 GB/s: that is longer than all else in a layer."""
    there, beside = (_evaluated(name, [NAME]) for name in ("lpx-rack", "lpx-rack-dram"))
    n_bytes = beside.blocks["attention"].held.dram_cache
    # 4,096 positions are 12.8 vectors: 13 are held.
    assert float(n_bytes[0]) == pytest.approx(_KEYS * 13 / 12.8 + _VALUES, rel=1e-12)
    layer_s = 1e-6 + float(n_bytes[0]) / 9.6e9
    found = float(beside.blocks["attention"].timing.cycles[0]) / beside.clock_hz
    assert found == pytest.approx(layer_s, abs=1 / beside.clock_hz)  # whole cycles
    more = 32 * (layer_s - float(there.blocks["attention"].timing.cycles[0]) / there.clock_hz)
    assert float(beside.latency_s[0] - there.latency_s[0]) == pytest.approx(more, rel=1e-4)


def test_it_takes_room_there_and_none_in_the_chip() -> None:
    there, beside = (_evaluated(name, [NAME]) for name in ("lpx-rack", "lpx-rack-dram"))
    assert beside.cache_bytes.tolist() == [0.0]
    assert (there.weight_bytes + there.cache_bytes > beside.weight_bytes).all()
    stage = beside.cuts.stage_of_block[:, 0]
    layers = np.bincount(stage[1:-1:2], minlength=16).max()  # attention blocks of a stage
    assert float(beside.dram_bytes[0]) == pytest.approx(
        layers * float(beside.blocks["attention"].held.dram_cache[0])
    )


def test_a_cache_that_has_no_room_is_so_much_too_large() -> None:
    """Of 32 GB a chip has, one sequence takes 2.4 MB a layer; half of that is too little."""
    asked = scenario("llama-3.1-8b", "lpx-rack-dram", Request(context=4096), policy="int8")
    plan = Plan.parse(NAME)
    needed = float(evaluate([plan], asked).dram_bytes[0])
    for share, fits in ((0.5, False), (1.0, True)):
        dram = TrayDram(dram_bytes=int(8 * share * needed) + 1)
        found = evaluate([plan], replace(asked, system=replace(asked.system, dram=dram)))
        assert bool(found.fits[0]) == fits
        if not fits:
            assert float(found.short_bytes[0]) == pytest.approx(needed / 2, rel=1e-6)


@pytest.mark.parametrize("n_batches", [1, 2, 5])
def test_as_many_are_in_flight_as_dram_has_room_for(n_batches: int) -> None:
    asked = scenario("llama-3.1-8b", "lpx-rack-dram", Request(context=4096), policy="int8")
    plan = Plan.parse(NAME)
    needed = float(evaluate([plan], asked).dram_bytes[0])
    dram = TrayDram(dram_bytes=int(8 * (n_batches + 0.5) * needed))
    found = evaluate([plan], replace(asked, system=replace(asked.system, dram=dram)))
    assert found.in_flight.tolist() == [n_batches]
    assert evaluate([plan], asked).in_flight.tolist() == [16]


def test_the_explanation_says_where_the_time_goes() -> None:
    text = explain(
        "llama-3.1-8b", "lpx-rack-dram", Plan.parse(NAME), Request(context=4096), policy="int8"
    ).text()
    assert "from DRAM in 248.4" in text
    assert "dram_bytes_per_s" in text


def in_dram(asked: Scenario, rng: Random) -> Scenario:
    """The same with caches in DRAM, whose rate and room are in no order."""
    dram = TrayDram(
        dram_bytes=rng.choice([2_000, 100_000, 3_000_000, 10**9]),
        dram_bytes_per_s=rng.choice([1e8, 1e10, 1e12, 1e15]),
        lane_bytes_per_s=1e15,
        fpga_lpus=rng.choice([1, 3]),
        dram_latency_s=rng.choice([1e-9, 1e-6]),
    )
    return replace(asked, system=replace(asked.system, dram=dram))


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_a_slower_dram_is_never_faster(seed: int) -> None:
    rng = Random(seed)
    asked = random_scenario(rng, 60)
    while asked.system.lpus is None:
        asked = random_scenario(rng, 60)
    plans, beside = EveryPlan(asked).plans, in_dram(asked, rng)
    assert beside.system.dram is not None
    there, found = evaluate(plans, asked), evaluate(plans, beside)
    slower = replace(beside.system.dram, dram_bytes_per_s=beside.system.dram.dram_bytes_per_s / 2)
    slow = evaluate(plans, replace(beside, system=replace(beside.system, dram=slower)))
    close = 1 + 1e-9
    assert np.all(found.lower_cycles <= found.latency_cycles * close)
    assert np.all(found.latency_cycles <= found.upper_cycles * close)
    assert np.all(there.latency_cycles <= found.latency_cycles * close)
    assert np.all(found.latency_cycles <= slow.latency_cycles * close)
    assert np.all(slow.tokens_per_s_total <= found.tokens_per_s_total * close)
