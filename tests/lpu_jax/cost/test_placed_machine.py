"""Collectives as placed machines price them: plans side by side, runs of stages, refusals."""

import numpy as np
import pytest

from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS, AUTO
from lpu_jax.cost.collectives.kinds import PRICED_KINDS
from lpu_jax.cost.placed_machine import Groups, PlacedMachine, one_group
from lpu_jax.errors import CostError, LpuError
from lpu_jax.machine.built_topologies import LpxTopology
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQ3_LPU
from lpu_jax.machine.system import System

LPX = LpxTopology(n_chips=256)


def staged(topology, group, first, stages):
    """A machine with stages one after another, wherever they lie."""
    named = System(name="test", chip=GROQ3_LPU, topology=topology, n_chips=topology.n_chips)
    bases = first + group * np.arange(stages)
    return PlacedMachine(system=named, groups=(Groups(group, bases),))


def test_plans_side_by_side_cost_what_each_costs_alone():
    topology = LpxTopology(n_chips=2304)
    named = System(name="test", chip=GROQ3_LPU, topology=topology, n_chips=2304)
    cases = [(0, 1, 1), (0, 16, 1), (0, 64, 1), (0, 4, 16), (1, 12, 1), (1, 3, 12), (1, 36, 1)]
    groups = tuple(Groups(chips, topology.stage_bases(4, chips)) for chips in (64, 36))
    index, n, stride = (np.array(column) for column in zip(*cases, strict=True))
    together = PlacedMachine(system=named, groups=groups, group_of_plan=index)
    for kind in PRICED_KINDS:
        payload = 14_336 * n
        found = together.collective_cycles(kind, "auto", n, stride, payload)
        for i, (group, n_chips, gap) in enumerate(cases):
            alone = PlacedMachine(system=named, groups=(groups[group],))
            cost = alone.collective_cycles(kind, "auto", n_chips, gap, int(payload[i]))
            assert {name: every[i] for name, every in vars(found).items()} == vars(cost)
    with pytest.raises(CostError, match="single plan"):
        together.chosen("all_reduce", "auto", 16, 1, 320)
    with pytest.raises(CostError, match="single plan"):
        together.runs(16, 1, 0)


def test_runs_cut_every_stage_and_miss_no_chip():
    machine = staged(LPX, 24, 8, 3)
    runs = np.concatenate([machine.runs(3, 4, stage) for stage in range(3)])
    assert runs.shape == (24, 3)
    assert sorted(runs.reshape(-1)) == list(range(8, 80))
    assert np.all(np.diff(runs, axis=1) == 4)
    np.testing.assert_array_equal(machine.runs(3, 4, 1), runs[8:16])
    np.testing.assert_array_equal(machine.runs(3, 4, 1)[4], [44, 48, 52])
    np.testing.assert_array_equal(machine.runs(1, 1, 0)[:, 0], np.arange(8, 32))
    with pytest.raises(CostError, match="24 chips cannot be cut into runs of 5 chips, each 1"):
        machine.runs(5, 1, 0)
    with pytest.raises(CostError, match=r"stage 3 is not in 0\.\.2"):
        machine.runs(3, 4, 3)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("kind", PRICED_KINDS)
def test_one_chip_is_free_under_every_name(kind, algorithm):
    machine = one_group(system("lpx-rack"), 64)
    found = machine.collective_cycles(kind, algorithm, 1, 16, 14_336)
    assert (found.hops, found.first, found.last) == (0.0, 0.0, 0.0)
    _, chosen = machine.chosen(kind, algorithm, 1, 1, 14_336)
    assert chosen.as_dict(14_336)["steps"] == []
    assert chosen.as_dict(14_336)["cycles"] == 0


def test_a_kind_that_an_algorithm_does_not_have_is_left_to_auto():
    machine = one_group(system("lpx-rack"), 64)
    auto = machine.collective_cycles("all_gather", "auto", 64, 1, 14_336)
    assert machine.collective_cycles("all_gather", "hier4", 64, 1, 14_336) == auto
    assert machine.chosen("all_gather", "one_shot", 64, 1, 14_336)[0] in AUTO
    assert machine.chosen("all_reduce", "hier4", 64, 1, 14_336)[0] == "hier4"
    assert machine.chosen("all_reduce", "auto", 4, 16, 1_000_000)[0] == "hier4+pipelined"


@pytest.mark.parametrize(
    ("name", "algorithm", "n", "stride", "sentence"),
    [
        ("lpx-rack", "direct", 32, 1, "'direct' needs all chips of a run in one node of 16 chips"),
        ("lpx-rack", "ring", 32, 2, "a run of 32 chips lies over 4 node"),
        ("lpx-rack", "hier4", 8, 1, "'hier4' needs runs that fill several nodes of 16 chips"),
        ("lpx-2", "two_step", 512, 1, r"lies over 32 node\(s\) of 2 rack\(s\)"),
        ("groq-rack", "two_step", 64, 1, r"a link from each of a node's 8 chips .* are 4\)"),
        ("groq-rack", "hier5", 64, 1, None),
        ("groq-rack", "hier5", 4, 1, "'flat3' exists for every run"),
    ],
)
def test_a_named_algorithm_without_its_links_is_refused(name, algorithm, n, stride, sentence):
    machine = one_group(system(name), n * stride)
    if sentence is None:
        assert machine.chosen("all_reduce", algorithm, n, stride, 320)[0] == algorithm
        return
    with pytest.raises(CostError, match=sentence):
        machine.collective_cycles("all_reduce", algorithm, n, stride, 320)


def test_gpus_have_no_link_schedules():
    with pytest.raises(
        LpuError, match=r"one_group: h100x8 is a GPU roofline .* give an LPU system"
    ):
        one_group(system("h100x8"), 8)


def test_an_axis_without_chips_is_refused():
    machine = one_group(system("lpx-rack"), 64)
    for n, stride in ((0, 1), (4, 0), (-2, 1)):
        with pytest.raises(CostError, match="must be at least 1"):
            machine.collective_cycles("all_reduce", "auto", n, stride, 320)
