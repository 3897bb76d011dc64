"""More of a mixed machine never makes a plan slower: a faster network, more memory."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_scenarios import random_link
from small_mixed import CLOSE, CUT, PLANS, asked_of, mixed_of, short_of_memory

from lpu_jax.machine.pool_link import PoolLink
from sharding.plan import Plan
from sharding.predict.evaluate import evaluate

FASTER_AT = {
    "lane_bytes_per_s": "high",
    "fpga_port_bytes_per_s": "high",
    "gpu_port_bytes_per_s": "high",
    "lpu_lanes": "high",
    "latency_s": "low",
}


def _faster(rng: Random, link: PoolLink) -> PoolLink:
    """The same network, some of whose numbers are better."""
    better: dict[str, Any] = {}
    for name, end in FASTER_AT.items():
        if rng.random() < 0.5:
            factor = rng.choice([2, 3]) if name == "lpu_lanes" else rng.choice([1.01, 1.7, 30.0])
            value = getattr(link, name)
            better[name] = value * factor if end == "high" else value / factor
    return replace(link, **better)


few, many = settings(max_examples=5), settings(max_examples=200)


def _faster_network(seed: int, name: str, batch: int) -> None:
    rng, plans = Random(seed), [Plan.parse(name)]
    link, n_mega_bytes = random_link(rng), rng.choice([45, 70, 80_000])
    slow, fast = (
        evaluate(plans, asked_of(short_of_memory(mixed_of(one), n_mega_bytes * 10**6), batch=batch))
        for one in (link, _faster(rng, link))
    )
    assert fast.latency_cycles[0] <= slow.latency_cycles[0] * (1 + CLOSE)
    assert fast.slowest_stage_cycles[0] <= slow.slowest_stage_cycles[0] * (1 + CUT)
    assert fast.cycles_per_batch[0] <= slow.cycles_per_batch[0] * (1 + CUT)


def _more_room(seed: int, name: str, batch: int) -> None:
    """Memory of the GPUs decides how many micro-batches are in flight."""
    rng, plans = Random(seed), [Plan.parse(name)]
    machine, n_mega_bytes = mixed_of(random_link(rng)), rng.randint(30, 90)
    less, more = (
        evaluate(plans, asked_of(short_of_memory(machine, n * 10**6), batch=batch, context=512))
        for n in (n_mega_bytes, n_mega_bytes + rng.choice([1, 3, 20]))
    )
    if less.fits[0]:
        assert more.fits[0]
        assert more.cycles_per_batch[0] <= less.cycles_per_batch[0] * (1 + CUT)


LAWS = pytest.mark.parametrize("law", [_faster_network, _more_room])
cases = given(st.integers(0, 1_000_000), st.sampled_from(PLANS), st.sampled_from([1, 4, 16]))


@LAWS
def test_more_never_makes_a_plan_slower(law: Any) -> None:
    few(cases(law))()


@pytest.mark.long
@LAWS
def test_more_never_makes_a_plan_slower_in_many_cases(law: Any) -> None:
    many(cases(law))()
