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
from sharding.detail.scheduled import schedule_plan
from sharding.detail.timeline import kind_slices
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.rank.compare import compare
from sharding.rank.row import reason_of
from sharding.request import Request
from sharding.scenario import Scenario, scenario

NAME = "16x16 a:16t f:16t row"
#: Llama 3.1 8B on 16 chips at 4,096 positions: 8 heads of 128 values are split 8 ways, so that a
#: chip has one: as many keys as values, 2 bytes each.
_BYTES = 2 * 4096 * 128 * 2
_READ_S = _BYTES / 9.6e9  # an eighth of 76.8 GB/s


def _evaluated(name: str, plans: Sequence[str], batch: int = 1) -> Evaluation:
    asked = scenario("llama-3.1-8b", name, Request(batch=batch, context=4096), policy="int8")
    return evaluate([Plan.parse(plan) for plan in plans], asked)


def test_a_layer_ends_when_its_last_value_has_come_and_been_used() -> None:
    """Keys come first, then values; what follows them follows the last of these."""
    there, beside = (_evaluated(name, [NAME]) for name in ("lpx-rack", "lpx-rack-dram"))
    block = beside.blocks["attention"]
    assert float(block.held.dram_cache[0]) == _BYTES
    seconds = float(block.timing.cycles[0]) / beside.clock_hz
    alone = float(there.blocks["attention"].timing.cycles[0]) / there.clock_hz
    # The product with values, the output projection and the all-reduce come behind the read.
    tail = seconds - (1e-6 + _READ_S)
    assert 0.5e-6 < tail < alone
    assert float(block.timing.lower_cycles[0]) / beside.clock_hz > 1e-6 + _READ_S
    more = 32 * (seconds - alone)
    assert float(beside.latency_s[0] - there.latency_s[0]) == pytest.approx(more, rel=1e-6)


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
    """Of 32 GB a chip has, one sequence takes 2.1 MB a layer; half of that is too little."""
    asked = scenario("llama-3.1-8b", "lpx-rack-dram", Request(context=4096), policy="int8")
    plan = Plan.parse(NAME)
    needed = float(evaluate([plan], asked).dram_bytes[0])
    for share, fits in ((0.5, False), (1.0, True)):
        dram = TrayDram(dram_bytes=int(8 * share * needed) + 1)
        found = evaluate([plan], replace(asked, system=replace(asked.system, dram=dram)))
        assert bool(found.fits[0]) == fits
        assert (found.largest_reserve_fraction[0] >= 0) == fits
        if not fits:
            assert float(found.short_bytes[0]) == pytest.approx(needed / 2, rel=1e-6)
            assert (
                reason_of(found, 0, "SRAM") == "does not fit: caches exceed the DRAM beside a chip"
            )


@pytest.mark.slow
def test_the_report_says_what_lies_in_dram() -> None:
    request = Request(context=4096)
    found = compare(
        "llama-3.1-8b", "lpx-rack-dram", request, policy="int8", plans=[Plan.parse(NAME)]
    )
    memory = found.rows[0].memory_bytes
    assert memory["cache"] == 0
    assert memory["dram_cache"] == 2 * _BYTES  # a stage has two layers
    assert memory["dram"] == 32e9
    assert (
        "dram"
        not in compare("llama-3.1-8b", "lpx-rack", request, policy="int8", top=1)
        .rows[0]
        .memory_bytes
    )


def test_an_fp8_cache_takes_half_the_bytes_and_is_read_in_half_the_time() -> None:
    plan = Plan.parse(NAME)

    def found(policy: str, name: str = "lpx-rack-dram") -> Evaluation:
        request = Request(context=4096)
        return evaluate([plan], scenario("llama-3.1-8b", name, request, policy=policy))

    wide, narrow = found("int8"), found("int8+fp8-cache")
    assert 2 * narrow.dram_bytes[0] == wide.dram_bytes[0]
    assert narrow.weight_bytes[0] == wide.weight_bytes[0]
    # What is not the reading of a cache, which dominates here, is the same.
    assert narrow.latency_s[0] == pytest.approx(wide.latency_s[0] / 2, rel=0.05)

    wide, narrow = found("int8", "lpx-rack"), found("int8+fp8-cache", "lpx-rack")
    assert 2 * narrow.cache_bytes[0] == wide.cache_bytes[0]
    # The matrix unit widens to float16: SRAM holds more, and nothing is faster.
    assert narrow.latency_s[0] == wide.latency_s[0]


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
    assert "from DRAM in 219.4" in text
    for name in ("dram.dram_bytes_per_s", "dram.dram_latency_s"):
        assert name in text


def test_what_comes_from_dram_is_drawn() -> None:
    asked = scenario("llama-3.1-8b", "lpx-rack-dram", Request(context=4096), policy="int8")
    kind = schedule_plan(Plan.parse(NAME), asked).kinds["attention"]
    keys, values = (one for one in kind_slices(kind) if one.track == "DRAM")
    assert (keys.name, values.name) == ("keys", "values")
    assert (keys.start_cycle, keys.end_cycle) == (0, values.start_cycle)
    assert values.end_cycle == max(map(float, kind.block.dram_cycles.values()))


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


@pytest.mark.slow
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
