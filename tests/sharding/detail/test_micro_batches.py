"""Micro-batches over two machines: nothing is held twice, and rates are no better than priced."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from brute_force import EveryPlan
from random_scenarios import random_mixed_scenario

from lpu_jax.machine.catalogue import any_system
from sharding import Plan
from sharding.detail.micro_batch_plot import micro_batch_plot
from sharding.detail.micro_batches import RESOURCES, steps_of, turns
from sharding.detail.scheduled import ScheduledPlan, schedule_plan
from sharding.request import Request
from sharding.scenario import scenario

PLAN = "1x64 a:64t + 31x64 f:16t·4r m:2e·32t row"


def _kimi(batch: int = 8) -> ScheduledPlan:
    asked = scenario("kimi-k2", any_system("vr-lpx-9"), Request(batch=batch), policy="int4")
    return schedule_plan(Plan.parse(PLAN), asked)


def _random(seed: int) -> ScheduledPlan:
    rng = Random(seed)
    asked = random_mixed_scenario(rng, 300)
    return schedule_plan(rng.choice(EveryPlan(asked).plans), asked)


@pytest.mark.parametrize("seed", range(8))
def test_no_two_hold_the_same_at_once(seed: int) -> None:
    scheduled = _random(seed)
    steps, n = steps_of(scheduled), 5
    taken = turns(steps, n)
    assert len(taken) == n * len(steps)
    for number in range(n):  # its steps in order, each after the one before
        own = [turn for turn in taken if turn.micro_batch == number]
        assert [turn.step for turn in own] == list(steps)
        assert all(one.end_cycle <= two.start_cycle for one, two in pairwise(own))
    for what in {what for step in steps for what in step.holds}:
        held = [turn for turn in taken if what in turn.step.holds]
        ends = [turn.start_cycle + turn.step.held_cycles for turn in held]
        assert all(end <= turn.start_cycle for end, turn in zip(ends, held[1:], strict=False))


@pytest.mark.parametrize("seed", range(8))
def test_one_takes_as_long_as_a_token_and_many_come_no_faster_than_is_priced(seed: int) -> None:
    scheduled = _random(seed)
    found, steps = scheduled.evaluation, steps_of(scheduled)
    (last,) = turns(steps, 1)[-1:]
    assert last.end_cycle + found.host_cycles == pytest.approx(scheduled.latency_cycles, rel=1e-9)
    taken = turns(steps, 24)
    ends = sorted(turn.end_cycle for turn in taken if turn.step is steps[-1])
    # Whatever is slowest is held once for each: 23 are through between the first and the last.
    per_batch = (ends[-1] - ends[0]) / 23
    busiest = max(
        sum(step.held_cycles for step in steps if what in step.holds)
        for what in {what for step in steps for what in step.holds}
    )
    assert ends[-1] >= 24 * busiest * (1 - 1e-9)
    assert busiest == pytest.approx(float(found.slowest_stage_cycles[0]), rel=1e-9)
    assert per_batch > 0


def test_kimi_k2_alternates_between_the_machines() -> None:
    scheduled = _kimi()
    taken = turns(steps_of(scheduled)[:13], 2)
    assert {turn.step.resource for turn in taken} == set(RESOURCES)
    # While one is on the LPUs the other has the GPUs: at some time both work.
    gpus, lpus = (
        [(t.start_cycle, t.end_cycle) for t in taken if t.step.resource == name]
        for name in ("GPUs", "LPUs")
    )
    assert any(a < d and c < b for a, b in gpus for c, d in lpus)


@pytest.mark.slow
def test_the_picture_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    svg = micro_batch_plot(_kimi(), "svg").decode()
    for word in (*RESOURCES, "micro-batch 2", "layer 0 attention", "vr-lpx-9"):
        assert word in svg
    assert micro_batch_plot(_kimi(), "svg").decode() == svg
    assert np.frombuffer(micro_batch_plot(_kimi(), "png")[:8], np.uint8)[1:4].tobytes() == b"PNG"
