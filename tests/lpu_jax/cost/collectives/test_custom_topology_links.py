"""Closed-form collectives and hand-overs against listed links, on machines of a user's own."""

import dataclasses
import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS
from lpu_jax.cost.collectives.kinds import PRICED_KINDS
from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.links import hand_overs, schedule
from lpu_jax.machine.built_topologies import GroqTopology
from lpu_jax.machine.custom_topology import LevelSpec, custom_topology

CLOCK_HZ = 1e9


def machine(*levels, hop_s=(1e-6, 2e-6, 3e-6), wiring="line"):
    """Levels as (units, links); the outermost of three is wired as said."""
    specs = [
        LevelSpec(
            name=f"level {index}", units=units, links=links, lanes=1, link_bytes_per_s=12.5e9,
            hop_s=hop_s[index], wiring=wiring if index == 2 else "all-to-all",
        )
        for index, (units, links) in enumerate(levels)
    ]  # fmt: skip
    return custom_topology(specs, chip_lanes=10_000)


MACHINES = (
    machine((4, 1), (6, 2), (4, 24)),  # a line, nodes linked by some of their chips
    machine((3, 1), (2, 2), (3, 6)),  # parts that do not fall on whole chips
    machine((4, 1), (5, 1), (4, 20)),
    machine((4, 1), (2, 8), (3, 16)),  # each chip has two links to its counterpart
    machine((3, 1), (3, 3), (3, 3), wiring="all-to-all"),
    machine((2, 1), (3, 2), (3, 1), wiring="all-to-all"),
    machine((5, 2), (4, 6)),
)


def priced(topology, kind, n, first=0, stride=1, algorithm="flat3"):
    span = dataclasses.replace(topology.span([first], n * stride), n_chips=n)
    return schedule(topology, CLOCK_HZ, kind, algorithm, span, stride)


def listed(topology, kind, n, n_vectors, first=0, stride=1, algorithm="flat3"):
    runs = np.add.outer(first + np.arange(stride), stride * np.arange(n))
    return link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, n_vectors * 320)


# Four nodes of eight chips, with one, two and four links from each chip to its counterparts.
PARALLEL = {links: machine((8, 1), (4, links)) for links in (8, 16, 32)}


@pytest.mark.first(9)
@pytest.mark.parametrize("kind", PRICED_KINDS)
@pytest.mark.parametrize(("n", "stride"), [(32, 1), (16, 1), (8, 4), (4, 8)])
def test_more_links_between_nodes_are_never_slower(kind, n, stride):
    one_vector, n_vectors, seen = [], 32 * 32 * 8, 0
    many = {name: [] for name, row in ALGORITHMS.items() if kind in row.kinds}
    for topology in PARALLEL.values():
        first = []
        for name, cycles in many.items():
            closed = priced(topology, kind, n, 0, stride, name)
            if not closed.legal:
                continue
            found = listed(topology, kind, n, n_vectors, 0, stride, name)
            limit = float(closed.cycles(n_vectors * 320))
            assert found.cycles <= limit * (1 + 1e-9)
            if closed.exact:
                assert found.cycles == pytest.approx(limit)
                seen += 1
            if stride == 1:
                check(found, topology, most_followed=3_000)
            cycles.append(limit)
            first.append(float(closed.cycles(320)))
        one_vector.append(min(first))
    assert seen or kind == "send"
    assert one_vector == sorted(one_vector, reverse=True)
    for name, cycles in many.items():
        # What is legal with few links stays so, and parallel ones halve the time of a long vector.
        assert len(cycles) in (0, len(PARALLEL)), name
        assert cycles == sorted(cycles, reverse=True), name


def test_two_links_to_a_counterpart_carry_half_each():
    # 32 chips sum 512 vectors: 64 for each in its node, and a quarter of these to each other node.
    frame = 328 / 12.5
    for links, each in ((8, 16), (16, 8), (32, 4)):
        closed = priced(PARALLEL[links], "all_reduce", 32, algorithm="hier4")
        by_hand = 2 * (1000 + 63 * frame) + 2 * (2000 + (each - 1) * frame)
        assert float(closed.cycles(512 * 320)) == pytest.approx(by_hand)


@pytest.mark.parametrize("group", [4, 5, 8, 16])
def test_more_links_between_nodes_never_slow_a_hand_over(group):
    bases = np.array([8 - group, 8] if group < 8 else [0, group])
    chips = np.concatenate([base + np.arange(group) for base in bases])[None]
    payload, times = 16 * 5 * 16 * 320, []
    for topology in PARALLEL.values():
        closed = hand_overs(topology, CLOCK_HZ, group, bases)
        found = link_schedule(topology, CLOCK_HZ, "hand_over", "flat3", chips, payload)
        check(found, topology)
        assert found.cycles <= float(closed.cycles(payload)[0]) * (1 + 1e-9)
        times.append((found.cycles, float(closed.cycles(payload)[0])))
    assert times == sorted(times, reverse=True)
    assert times[0][0] > times[-1][0]


def test_a_sum_is_collected_for_the_links_of_a_line():
    # Two of four chips have the links to the other boxes and hold the sums, half a vector each;
    # each of the four takes a quarter of them on to the next rack, and hands its quarter out.
    closed, found = (
        f(MACHINES[0], "all_reduce", 48, *x) for f, x in ((priced, ()), (listed, (96,)))
    )
    names = [step.name for step in closed.steps if step.share > 0]
    assert names == list(found.step_names)
    assert names[2:4] == ["gather in node", "exchange between racks"]
    assert found.busiest_vectors.tolist() == [48, 48, 24, 24, 24]
    assert not closed.exact
    assert found.cycles <= closed.cycles(96 * 320)


def test_a_hop_shorter_than_a_frame_holds_its_link_for_the_frame():
    topology = machine((8, 1), hop_s=(1e-9,))
    frame = 328 / 12.5
    for name, steps in (("one_shot", 1), ("direct", 2), ("ring", 14)):
        closed = schedule(topology, CLOCK_HZ, "all_reduce", name, topology.span([0], 8))
        runs = np.arange(8)[None]
        found = link_schedule(topology, CLOCK_HZ, "all_reduce", name, runs, 64 * 320)
        vectors = 64 if name == "one_shot" else 8
        assert closed.cycles(64 * 320) == pytest.approx(steps * vectors * frame)
        assert found.cycles == pytest.approx(steps * vectors * frame)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    topology=st.sampled_from(MACHINES),
    kind=st.sampled_from(PRICED_KINDS),
    n=st.sampled_from([2, 3, 4, 8, 12, 16, 24, 32]),
    stride=st.sampled_from([1, 1, 1, 2, 3, 4]),
    first=st.sampled_from([0, 0, 1, 3]),
)
@example(topology=MACHINES[1], kind="all_reduce", n=3, stride=4, first=0)
@example(topology=MACHINES[2], kind="all_reduce", n=32, stride=1, first=0)
def test_listed_links_are_never_slower_than_priced(topology, kind, n, stride, first):
    assume(first + n * stride <= topology.n_chips)
    n_vectors = 2 * n * n * topology.node_ports.n_links * topology.rack_ports.n_links * 15
    closed = priced(topology, kind, n, first, stride)
    found = listed(topology, kind, n, n_vectors, first, stride)
    limit = float(closed.cycles(n_vectors * 320))
    assert found.cycles <= limit * (1 + 1e-9)
    if closed.exact:
        assert found.cycles == pytest.approx(limit)


def pair_times(topology, group, bases):
    """Listed and priced cycles of each hand-over."""
    closed = hand_overs(topology, CLOCK_HZ, group, bases)
    for index, (src, dst) in enumerate(itertools.pairwise(bases)):
        pair = np.concatenate([src + np.arange(group), dst + np.arange(group)])[None]

        def found(n_vectors, pair=pair):
            return link_schedule(
                topology, CLOCK_HZ, "hand_over", "flat3", pair, n_vectors * 320
            )  # fmt: skip

        n_vectors = 2 * found(1).n_pieces
        yield found(n_vectors).cycles, float(closed.cycles(n_vectors * 320)[index])


@pytest.mark.first(17)
@pytest.mark.parametrize("group", [3, 4, 5])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "topology", [*MACHINES, GroqTopology(n_chips=16), GroqTopology(n_chips=32)],
    ids=lambda t: f"{t.family}-{t.n_chips}",
)  # fmt: skip
def test_listed_hand_overs_are_never_slower_than_priced(topology, group, first):
    stages = min(6, (topology.n_chips - first) // group)
    for found, limit in pair_times(topology, group, first + group * np.arange(stages)):
        assert found <= limit * (1 + 1e-9)


def at_once(topology, group, bases):
    """Priced cycles of each hand-over, and how long it takes if all of them are made at once.

    All start every step together and wait until each link they use has carried what all send.
    """
    chips = bases[:, None] + np.arange(group)
    pairs = np.concatenate([chips[:-1], chips[1:]], axis=1)
    pieces = link_schedule(topology, CLOCK_HZ, "hand_over", "flat3", pairs, 320).n_pieces
    payload = 2 * pieces * 320
    found = link_schedule(topology, CLOCK_HZ, "hand_over", "flat3", pairs, payload)
    done = np.maximum(found.release_cycle, found.arrival_cycle)
    free = defaultdict(float)
    links = list(zip(found.step, found.src, found.dst, found.part, strict=True))
    for link, end in zip(links, done, strict=True):
        free[link] = max(free[link], end)
    begins = np.append(0.0, found.step_end_cycle)
    taken = np.zeros((len(pairs), found.hops))
    for link, run in zip(links, found.run, strict=True):
        taken[run, link[0]] = max(taken[run, link[0]], free[link] - begins[link[0]])
    return taken.sum(axis=1), hand_overs(topology, CLOCK_HZ, group, bases).cycles(payload)


SMALL_RACKS = machine((2, 1), (2, 2), (8, 4))


@pytest.mark.parametrize(
    ("topology", "group", "first"),
    [
        (MACHINES[4], 4, 3),  # groups of a chip more than a node: two leave it over the same links
        (machine((4, 1), (3, 2), (4, 6), wiring="all-to-all"), 2, 1),
        (MACHINES[0], 5, 1),
        (MACHINES[2], 6, 3),
        (MACHINES[5], 3, 0),
        (GroqTopology(n_chips=72), 5, 1),
        # Groups of more than a rack of a line, so that two hand-overs cross the same boundary.
        *((SMALL_RACKS, group, first) for group in (4, 5, 6, 8) for first in (0, 2)),
        (dataclasses.replace(SMALL_RACKS, outer_link_bytes_per_s=1e8), 6, 2),
    ],
)
def test_hand_overs_made_at_once_are_never_slower_than_priced(topology, group, first):
    bases = first + group * np.arange(min(8, (topology.n_chips - first) // group))
    found, limit = at_once(topology, group, bases)
    assert np.all(found <= limit * (1 + 1e-9))


def test_the_links_of_a_line_carry_of_a_hand_over_what_was_priced():
    # Racks of 4 chips, groups of one rack, slow links between racks: they carry a half each.
    topology = dataclasses.replace(machine((2, 1), (2, 4), (8, 4)), outer_link_bytes_per_s=1e7)
    found, limit = at_once(topology, 4, 4 * np.arange(8))
    # 2 %: the steps inside racks, which the slow links outweigh.
    assert np.all(found <= limit)
    assert found == pytest.approx(limit, rel=0.02)


SHARED_LINKS = [
    # On a line: runs of a block and those of the next use links of the same node.
    (machine((4, 1), (3, 2), (4, 12)), "all_reduce", 5, 2, 4, 0),
    (machine((4, 1), (3, 2), (4, 12)), "all_reduce", 4, 2, 4, 2),
    # All to all: one run leaves for the next rack, the other came from the one before.
    (machine((2, 1), (3, 2), (3, 1), wiring="all-to-all"), "all_reduce", 7, 1, 2, 2),
    (machine((4, 1), (3, 2), (4, 6), wiring="all-to-all"), "all_reduce", 12, 1, 3, 1),
    (machine((3, 1), (3, 3), (3, 3), wiring="all-to-all"), "send", 8, 1, 2, 3),
    # A run inside the rack as well.
    (machine((4, 1), (3, 2), (4, 6), wiring="all-to-all"), "all_reduce", 4, 1, 4, 10),
    (machine((4, 1), (4, 2), (4, 3), wiring="all-to-all"), "all_reduce", 5, 1, 4, 13),
]


@pytest.mark.parametrize("slow", ["", "inner", "middle"])
@pytest.mark.parametrize(
    ("topology", "kind", "n", "stride", "blocks", "first"), SHARED_LINKS
)  # fmt: skip
def test_runs_over_racks_that_share_links_are_never_slower_than_priced(
    topology, kind, n, stride, blocks, first, slow
):
    if slow:
        topology = dataclasses.replace(topology, **{f"{slow}_link_bytes_per_s": 12.5e7})
    group = n * stride * blocks
    span = dataclasses.replace(topology.span([first], n * stride, group), n_chips=n)
    closed = schedule(topology, CLOCK_HZ, kind, "flat3", span, stride)
    blocks_of = np.add.outer(np.arange(0, group, n * stride), np.arange(stride)).reshape(-1)
    runs = first + np.add.outer(blocks_of, stride * np.arange(n))
    payload = 30 * n * n * topology.node_ports.n_links * topology.rack_ports.n_links * 320
    found = link_schedule(topology, CLOCK_HZ, kind, "flat3", runs, payload)
    assert span.racks > 1
    assert found.cycles <= float(closed.cycles(payload)) * (1 + 1e-9)


def test_a_giver_in_the_receivers_node_hands_on_what_it_started_with():
    # Stages of 3 chips on 32: chips 6 and 7 and, in the next node, 8 give to 9, 10 and 11. Chip 8
    # alone has the half that its node is to give; the other half lands there over 10 links.
    topology = GroqTopology(n_chips=32)
    closed = hand_overs(topology, CLOCK_HZ, 3, np.array([6, 9]))
    last = float(closed.steps[-1].share[0])
    found = link_schedule(
        topology, CLOCK_HZ, "hand_over", "flat3", np.arange(6, 12)[None], 640 * 320
    )
    assert found.busiest_vectors[-1] <= last * 640
    assert found.busiest_vectors[-1] > 640 / 2
