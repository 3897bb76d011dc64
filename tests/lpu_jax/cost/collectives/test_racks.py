"""Collectives and hand-overs over racks in a line and in a ring, against links listed singly."""

import dataclasses

import numpy as np
import pytest
from priced_and_listed import CLOCK_HZ, closed, explicit
from small_machines import ring

from lpu_jax.cost.collectives.kinds import PRICED_KINDS
from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.links import hand_overs
from lpu_jax.machine.built_topologies import LpxTopology


@pytest.mark.parametrize("kind", PRICED_KINDS)
def test_a_line_of_racks_is_passed_rack_by_rack(kind):
    topology = LpxTopology(n_chips=768)
    chips, n_vectors = 272, 272 * 32
    priced = closed(topology, kind, "flat3", chips, first=248)
    found = explicit(topology, kind, "flat3", chips, n_vectors * 320, first=248)
    across = [step for step in priced.steps if step.name == "exchange between racks"]
    assert [float(step.times) for step in across] == [2.0]
    assert found.cycles <= priced.cycles(n_vectors * 320) + 1e-6
    assert found.hops <= priced.hops
    if kind == "all_reduce":
        whole = closed(topology, kind, "flat3", 512)
        assert whole.exact
        listed = explicit(topology, kind, "flat3", 512, n_vectors * 320)
        assert whole.cycles(n_vectors * 320) == pytest.approx(listed.cycles)


@pytest.mark.first(1)
@pytest.mark.parametrize(("n_racks", "passes"), [(2, 1), (3, 1), (4, 2), (5, 2), (8, 4)])
def test_a_ring_is_passed_both_ways(n_racks, passes):
    topology, payload = ring(n_racks), 16 * n_racks * 4 * 320
    for kind in PRICED_KINDS:
        priced = closed(topology, kind, "flat3", topology.n_chips)
        (across,) = [step for step in priced.steps if step.name == "exchange between racks"]
        assert across.times == (min(2, passes) if kind == "send" else passes)
        found = explicit(topology, kind, "flat3", topology.n_chips, payload)
        check(found, topology)
        assert found.cycles <= priced.cycles(payload) + 1e-6
        assert found.hops <= priced.hops
        if kind == "all_reduce":
            assert found.cycles == pytest.approx(priced.cycles(payload))


def test_a_ring_is_closed_for_all_of_its_racks_only():
    topology = ring(5)
    priced = closed(topology, "all_reduce", "flat3", 64)
    line = closed(dataclasses.replace(topology, rack_chain="line"), "all_reduce", "flat3", 64)
    assert priced.cycles(320) == line.cycles(320)
    assert [s.times for s in priced.steps if s.name == "exchange between racks"] == [3]


@pytest.mark.parametrize(
    ("group", "bases"), [(32, (0, 48)), (32, (48, 0)), (16, (0, 64)), (24, (4, 52))]
)
def test_a_hand_over_round_a_ring_costs_at_least_what_its_links_take(group, bases):
    """Groups of two racks are farther apart than their outer ends, which are neighbours."""
    topology, payload = ring(5), group * 24 * 320
    priced = hand_overs(topology, CLOCK_HZ, group, np.array(bases))
    runs = np.concatenate([base + np.arange(group) for base in bases])[None]
    listed = link_schedule(topology, CLOCK_HZ, "hand_over", "flat3", runs, payload)
    check(listed, topology)
    assert listed.cycles <= float(priced.cycles(payload)[0]) + 1e-6


def test_a_run_that_misses_a_rack_is_priced_as_on_a_line():
    """Every run of a block of five racks has chips in four of them."""
    topology, payload = ring(5), 4 * 64 * 320
    priced = closed(topology, "all_reduce", "flat3", 4, stride=20)
    found = explicit(topology, "all_reduce", "flat3", 4, payload, stride=20)
    assert found.cycles <= priced.cycles(payload) + 1e-6


def test_the_way_back_is_short_round_a_ring():
    """From the last rack to the first: one hop, where a line has four."""
    costs = [
        float(
            hand_overs(
                dataclasses.replace(ring(5), rack_chain=chain), CLOCK_HZ, 16, np.array([64, 0])
            ).cycles(320)[0]
        )
        for chain in ("ring", "line")
    ]
    assert costs[1] - costs[0] == pytest.approx(3 * 450)
