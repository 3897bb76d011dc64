"""The proof of a link schedule: it holds for every route, and fails for every kind of mistake."""

from dataclasses import fields, replace

import numpy as np
import pytest

from lpu_jax.cost.collectives import link_schedule as module
from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS
from lpu_jax.cost.collectives.kinds import LISTED_KINDS
from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.errors import CostError
from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.machine.custom_topology import LevelSpec, custom_topology

CLOCK_HZ = 0.9e9
VECTOR = 320

GROQ = {n: GroqTopology(n_chips=n) for n in (8, 16, 48, 72, 88, 576, 1512)}
LPX = LpxTopology(n_chips=768)


def run(*ranges):
    return np.array([list(chips) for chips in ranges])


CASES = [
    (GROQ[8], run(range(8))),
    (GROQ[8], run(range(0, 3), range(3, 6))),
    (GROQ[16], run(range(0, 16, 2), range(1, 16, 2))),
    (GROQ[48], run(range(48))),
    (GROQ[48], run(range(3, 20), range(20, 37))),
    (GROQ[72], run(range(72))),
    (GROQ[72], run(range(0, 72, 8), range(5, 72, 8))),
    (GROQ[88], run(range(5, 37))),
    (GROQ[576], run(range(60, 80))),
    (GROQ[576], run(range(64, 80), range(0, 16), range(8, 40, 2))),
    (GROQ[576], run(range(0, 576, 24))),
    (GROQ[1512], run(range(66, 78))),
    (GROQ[1512], run(range(0, 1512, 63))),
    (LPX, run(range(48))),
    (LPX, run(range(0, 64, 4), range(3, 64, 4))),
    (LPX, run(range(250, 262))),
    (LPX, run(range(0, 768, 64), range(7, 768, 64))),
    (LPX, run(range(240, 272), range(496, 528))),
]


@pytest.mark.first(2)
@pytest.mark.parametrize("kind", LISTED_KINDS)
@pytest.mark.parametrize("n_vectors", [1, 23])
def test_every_route_is_proven_right(kind, n_vectors):
    n_proven = 0
    for topology, runs in CASES:
        for algorithm in ALGORITHMS:
            try:
                schedule = link_schedule(
                    topology, CLOCK_HZ, kind, algorithm, runs, n_vectors * VECTOR
                )
            except CostError:
                assert algorithm != "flat3" or (kind == "hand_over" and runs.shape[1] % 2)
                continue
            proof = check(schedule, topology)
            assert proof.complete, (kind, algorithm, runs)
            assert proof.transfers == schedule.n_transfers
            n_proven += 1
    assert n_proven >= len(CASES) - 4


def test_every_algorithm_is_among_the_proven():
    for kind, algorithm, runs in (
        ("all_reduce", "one_shot", run(range(16))),
        ("all_reduce", "ring", run(range(16))),
        ("all_reduce", "hier4", run(range(48))),
        ("all_reduce", "hier5", run(range(48))),
        ("all_to_all", "two_step", run(range(48))),
    ):
        schedule = link_schedule(LPX, CLOCK_HZ, kind, algorithm, runs, 100 * VECTOR)
        assert schedule.n_transfers
        assert check(schedule, LPX).complete


def test_all_data_of_a_large_machine_may_be_sampled():
    schedule = link_schedule(
        LPX, CLOCK_HZ, "all_gather", "flat3", np.arange(256)[None], 512 * VECTOR
    )
    proof = check(schedule, LPX, most_followed=5_000)
    assert 0 < proof.followed < proof.ranges
    assert f"{proof.followed} of {proof.ranges}" in proof.text()
    assert proof.as_dict()["complete"] is False


def changed(schedule, index, **columns):
    """The schedule with one transfer altered."""
    new = {}
    for name, value in columns.items():
        new[name] = getattr(schedule, name).copy()
        new[name][index] = value
    return replace(schedule, **new)


def only(schedule, which):
    """The schedule with these transfers, by index; repeated ones too."""
    per_transfer = {
        field.name: getattr(schedule, field.name)[which]
        for field in fields(schedule)
        if isinstance(getattr(schedule, field.name), np.ndarray)
        and getattr(schedule, field.name).shape == schedule.step.shape
        and field.name not in ("runs", "step_end_cycle")
    }
    return replace(schedule, **per_transfer)


TRIED = [
    (GROQ[16], "all_reduce", "flat3", 16),
    (GROQ[16], "all_gather", "flat3", 16),
    (GROQ[16], "reduce_scatter", "flat3", 16),
    (GROQ[16], "all_to_all", "flat3", 16),
    (GROQ[16], "all_reduce", "hier5", 16),
    (LPX, "all_reduce", "hier4", 32),
    (LPX, "broadcast", "flat3", 32),
    (LPX, "hand_over", "flat3", 32),
]


@pytest.fixture(params=TRIED, ids=lambda case: f"{case[1]}-{case[2]}")
def made(request):
    topology, kind, algorithm, n = request.param
    runs = np.arange(n)[None]
    schedule = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, 256 * VECTOR)
    assert check(schedule, topology).complete
    return topology, schedule


def test_a_link_that_does_not_exist_is_noticed(made):
    topology, schedule = made
    between = int(np.flatnonzero(schedule.level == 1)[0])
    size = topology.node_chips
    far = schedule.dst[between] // size * size + (schedule.dst[between] + 1) % size
    for columns in ({"part": 99}, {"dst": far}, {"dst": topology.n_chips * 100}):
        with pytest.raises(CostError, match=r"link .* that does not exist"):
            check(changed(schedule, between, **columns), topology)


def test_two_frames_at_once_are_noticed(made):
    topology, schedule = made
    doubled = only(schedule, np.r_[np.arange(schedule.n_transfers), 0])
    with pytest.raises(CostError, match="before the link is free"):
        check(doubled, topology)


def test_a_transfer_before_its_data_is_noticed(made):
    topology, schedule = made
    last = int(np.flatnonzero(schedule.step == schedule.hops - 1)[0])
    early = {
        name: getattr(schedule, name)[last] - schedule.start_cycle[last]
        for name in ("start_cycle", "release_cycle", "arrival_cycle")
    }
    with pytest.raises(CostError, match=r"before (what it passes on has arrived|the link is free)"):
        check(changed(schedule, last, **early), topology)


def test_a_step_that_ends_before_its_last_arrival_is_noticed(made):
    topology, schedule = made
    for factor in (0.9, 0.5):
        with pytest.raises(CostError, match="after the end of its step"):
            check(replace(schedule, step_end_cycle=factor * schedule.step_end_cycle), topology)


def test_a_lost_transfer_is_noticed(made):
    topology, schedule = made
    for index in np.linspace(0, schedule.n_transfers - 1, 7).astype(int):
        lost = only(schedule, np.delete(np.arange(schedule.n_transfers), index))
        with pytest.raises(CostError, match=r"without the contribution|does not have|twice"):
            check(lost, topology)


def test_a_doubled_summand_is_noticed(made):
    topology, schedule = made
    # The same again a step later, when the links are free.
    index = 0
    later = only(schedule, np.r_[np.arange(schedule.n_transfers), index])
    end = schedule.cycles
    again = {
        name: getattr(schedule, name)[index] + end
        for name in ("start_cycle", "release_cycle", "arrival_cycle")
    }
    later = replace(
        changed(later, schedule.n_transfers, **again, step=schedule.hops),
        step_names=(*schedule.step_names, "again"),
        step_end_cycle=np.append(schedule.step_end_cycle, 2 * end),
    )
    with pytest.raises(CostError, match=r"already has|twice"):
        check(later, topology)


def test_a_sum_that_takes_in_what_was_already_sent_is_noticed():
    # A gateway that passes on its node's own sum as well, though another gateway does.
    schedule = link_schedule(
        GROQ[72], CLOCK_HZ, "all_reduce", "flat3", np.arange(72)[None], 256 * VECTOR
    )
    passes_on = (schedule.step == 2) & (schedule.since_step == 1)
    gateway = schedule.src[passes_on][0]
    with pytest.raises(CostError, match=r"ends? on chip .* twice"):
        check(changed(schedule, passes_on & (schedule.src == gateway), since_step=-1), GROQ[72])


def test_bytes_that_appear_or_vanish_are_noticed(made):
    topology, schedule = made
    count = schedule.vector_count[0]
    with pytest.raises(CostError, match=f"carries {count - 1} vectors"):
        check(changed(schedule, 0, vector_count=count - 1), topology)
    with pytest.raises(CostError, match="vectors from"):
        check(changed(schedule, 0, first_vector=schedule.first_vector[0] + 1), topology)
    with pytest.raises(CostError, match="holds its link"):
        check(changed(schedule, 0, release_cycle=schedule.start_cycle[0] + 1), topology)
    with pytest.raises(CostError, match="arrives after"):
        check(changed(schedule, 0, arrival_cycle=schedule.start_cycle[0] + 1), topology)


# Machines whose links all differ: in a node, in a half rack (LPX), in a rack, between racks.
WRONG_TIMES = [
    (LPX, run(range(0, 512, 16)), factors)
    for factors in ((2.0, 1.0), (0.5, 1.0), (1.0, 2.0), (1.0, 0.5))
] + [(GROQ[576], run(range(60, 80)), factors) for factors in ((1.1, 1.0), (1.0, 1.1))]


@pytest.mark.parametrize(("topology", "runs", "factors"), WRONG_TIMES)
@pytest.mark.parametrize("sort", range(4))
def test_a_wrong_latency_or_rate_of_any_sort_of_link_is_noticed(
    topology, runs, factors, sort, monkeypatch
):
    def wrong(topology, clock_hz, src, dst):
        hop, frame = right(topology, clock_hz, src, dst)
        half = topology.node_chips * topology.nodes_per_half_rack
        units = (topology.node_chips, half, topology.rack_chips)
        chosen = np.sum([src // unit != dst // unit for unit in units], axis=0) == sort
        used.append(chosen.any())
        return np.where(chosen, factors[0] * hop, hop), np.where(chosen, factors[1] * frame, frame)

    used, right = [], module.link_cycles
    monkeypatch.setattr(module, "link_cycles", wrong)
    schedule = link_schedule(topology, CLOCK_HZ, "all_reduce", "flat3", runs, 256 * VECTOR)
    if not any(used):
        return
    with pytest.raises(CostError, match=r"holds its link for|arrives after \d"):
        check(schedule, topology)


def test_every_sort_of_link_is_tried():
    sorts = set()
    for topology, runs, _ in WRONG_TIMES:
        units = (topology.node_chips, topology.node_chips * topology.nodes_per_half_rack)
        made = link_schedule(topology, CLOCK_HZ, "all_reduce", "flat3", runs, 256 * VECTOR)
        units = (*units, topology.rack_chips)
        crossed = np.sum([made.src // unit != made.dst // unit for unit in units], axis=0)
        sorts |= set(crossed.tolist())
    assert sorts == {0, 1, 2, 3}


def test_a_step_that_ends_while_a_link_is_held_is_noticed():
    # A hop of 1 cycle, far below a frame: the last vector arrives before its link is free.
    level = LevelSpec(
        name="node", units=8, links=1, lanes=1, link_bytes_per_s=12.5e9, hop_s=1 / CLOCK_HZ,
        wiring="all-to-all",
    )  # fmt: skip
    topology = custom_topology([level], chip_lanes=100)
    schedule = link_schedule(topology, CLOCK_HZ, "all_reduce", "direct", run(range(8)), 64 * VECTOR)
    assert schedule.arrival_cycle.max() < schedule.release_cycle.max()
    assert check(schedule, topology).complete
    last = replace(schedule, step_end_cycle=np.array([schedule.step_end_cycle[0], 0.0]))
    last.step_end_cycle[1] = schedule.arrival_cycle.max()
    with pytest.raises(CostError, match="holds its link after the end of its step"):
        check(last, topology)


def test_the_sentence_names_the_transfer():
    schedule = link_schedule(GROQ[8], CLOCK_HZ, "all_reduce", "direct", np.arange(8)[None], 5120)
    with pytest.raises(CostError) as refused:
        check(changed(schedule, 3, part=1), GROQ[8])
    assert str(refused.value) == (
        "all_reduce direct: transfer 3 on link 0>4#1 in step 0 ('spread in node') "
        "takes a link that does not exist"
    )
