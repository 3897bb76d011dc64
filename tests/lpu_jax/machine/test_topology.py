"""Levels, links, placement of groups: against published counts and against brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
from small_machines import ring
from wired_machines import MACHINES, name_of

from lpu_jax.errors import PlanError
from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.machine.graph import link_graph
from lpu_jax.machine.levels import levels_of
from lpu_jax.provenance import Constant, constants_of, vary


def brute_span(topology, bases, n):
    """Count, chip by chip, what runs touch."""
    half = topology.node_chips * topology.nodes_per_half_rack
    per_run = []
    for base in bases:
        chips = np.arange(base, base + n)
        counts = np.unique(chips // topology.node_chips, return_counts=True)[1]
        per_run.append(
            (
                len(counts),
                counts.min(),
                counts.max(),
                len(set(chips // half)),
                len(set(chips // topology.rack_chips)),
            )
        )
    nodes, fewest, most, halves, racks = np.array(per_run).T
    return n, nodes.max(), fewest.min(), most.max(), halves.max(), racks.max()


@pytest.mark.parametrize(
    "topology", [GroqTopology(n_chips=100), GroqTopology(n_chips=576), LpxTopology(n_chips=768)]
)
def test_span_equals_brute_force(topology):
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, topology.n_chips + 1))
        bases = rng.integers(0, topology.n_chips - n + 1, size=3)
        span = topology.span(bases, n)
        given = (span.n_chips, span.nodes, span.fewest, span.most, span.half_racks, span.racks)
        assert given == brute_span(topology, bases, n)


def test_span_cuts_groups_into_runs():
    topology = LpxTopology(n_chips=256)
    assert topology.span([0, 36], 12, 36) == topology.span([0, 12, 24, 36, 48, 60], 12)
    with pytest.raises(PlanError, match="not cut evenly"):
        topology.span([0], 5, 36)
    with pytest.raises(PlanError, match="reach beyond the machine"):
        topology.span([250], 12)


def degrees(topology, level):
    """Links of each chip, counted one by one."""
    count = np.zeros(topology.installed_chips, int)
    for src in topology.graph.src[topology.graph.level == level]:
        count[src] += 1
    return count


@pytest.mark.first(5)
@pytest.mark.parametrize("topology", MACHINES, ids=name_of)
def test_the_graph_is_what_chips_say_pair_by_pair(topology):
    """`links_between` computes a pair by arithmetic, the graph lists a level at once."""
    graph, n_chips = topology.graph, topology.installed_chips
    rng = np.random.default_rng(0)
    sources = range(n_chips) if n_chips <= 24 else {0, n_chips - 1, *rng.integers(0, n_chips, 4)}
    for src in map(int, sources):
        listed = {}
        for link in range(graph.first[src], graph.first[src + 1]):
            assert graph.src[link] == src
            listed.setdefault(int(graph.dst[link]), []).append(int(graph.part[link]))
        others = range(n_chips) if n_chips <= 300 else {*listed, *rng.integers(0, n_chips, 100)}
        for dst in map(int, others):
            links = topology.links_between(src, dst)
            assert [link.part for link in links] == listed.get(dst, [])
            assert len(links) == len(topology.links_between(dst, src))


@pytest.mark.parametrize("topology", MACHINES, ids=name_of)
def test_links_are_symmetric(topology):
    graph = topology.graph
    ways = sorted(zip(graph.src, graph.dst, graph.part, strict=True))
    back = sorted(zip(graph.dst, graph.src, graph.part, strict=True))
    if topology.n_chips <= 600:
        assert [way[:2] for way in ways] == [way[:2] for way in back]
    assert len({(*way,) for way in ways}) == len(ways)
    assert not np.any(graph.src == graph.dst)


@pytest.mark.parametrize("topology", MACHINES, ids=name_of)
def test_no_chip_has_more_lanes_than_the_chip_brings_out(topology):
    per_level = [degrees(topology, level) for level in range(3)]
    lanes = sum(
        count * each for count, each in zip(per_level, topology.lanes_per_link, strict=True)
    )
    # ISCA22: 11 links of 4 lanes. NVB: 96 lanes, one of them (SA26) to the host's FPGA.
    wired = {"groq": 11 * 4, "lpx": 96 - 1, "custom": 16}[topology.family]
    assert lanes.max() <= wired
    # What a description says, and what construction checks.
    assert topology.most_links == tuple(count.max() for count in per_level)
    assert lanes.max() <= topology.lanes_per_chip <= wired
    if topology.family != "custom":
        assert topology.chip_lanes == wired


def test_published_links_of_a_groq_chip_and_an_lpu():
    # ISCA22: 7 local and 4 global links.
    assert GroqTopology(n_chips=264).most_links == (7, 4, 0)
    assert GroqTopology(n_chips=10_440).most_links == (7, 2, 2)
    # SA26: 60 lanes in the tray, 30 to other trays, 4 to other racks, 1 to the FPGA: 95 of 96.
    lpx = LpxTopology(n_chips=2304)
    lanes = [links * each for links, each in zip(lpx.most_links, lpx.lanes_per_link, strict=True)]
    assert lanes == [60, 30, 4]
    # SA26: 750, 375 and 50 GB/s of a chip one way.
    rates = (lpx.local_bytes_per_s, lpx.node_link_bytes_per_s, lpx.rack_link_bytes_per_s)
    totals = [links * rate for links, rate in zip(lpx.most_links, rates, strict=True)]
    assert totals == [750e9, 375e9, 50e9]
    # NVB: trays of 8 chips; the lanes then suffice too.
    vendor = LpxTopology(n_chips=2304, tray_chips=8)
    assert (vendor.nodes_per_rack, vendor.rack_chips) == (32, 256)
    assert vendor.most_links == (7, 31, 2)
    assert vendor.lanes_per_chip == 7 * 4 + 31 * 2 + 2 * 2


def test_pairs_of_groq_nodes_share_their_links_evenly():
    # ISCA22: 32 global ports of a node.
    for n_nodes in (2, 3, 6, 9, 11, 33):
        topology = GroqTopology(n_chips=8 * n_nodes)
        graph = topology.graph
        between = graph.level == 1
        pairs = np.unique(
            np.stack([graph.src[between] // 8, graph.dst[between] // 8]), axis=1, return_counts=True
        )
        assert pairs[0].shape[1] == n_nodes * (n_nodes - 1)
        assert set(pairs[1]) == {32 // (n_nodes - 1)}


@pytest.mark.parametrize("n_chips", [576, 1296, 10_440])
def test_racks_of_groq_nodes_keep_their_ports(n_chips):
    topology = GroqTopology(n_chips=n_chips)
    racks = topology.graph.src // 72
    # ISCA22: 288 global ports of a rack, 144 inside it (double links), 144 to other racks.
    assert set(np.bincount(racks[topology.graph.level == 1])) == {144}
    outside = np.bincount(racks[topology.graph.level == 2])
    assert outside.max() <= 144
    if n_chips == 10_440:
        assert set(outside) == {144}


@pytest.mark.parametrize(
    ("topology", "pair", "hops"),
    [
        (GroqTopology(n_chips=8), (0, 7), 1),
        (GroqTopology(n_chips=264), (3, 260), 3),
        (GroqTopology(n_chips=576), (3, 575), 4),
        (LpxTopology(n_chips=256), (0, 255), 2),
        (LpxTopology(n_chips=768), (0, 767), 4),
    ],
)
def test_routes_use_links_and_are_short(topology, pair, hops):
    route = topology.route(*pair)
    assert len(route) <= hops
    assert (route[0].src, route[-1].dst) == pair
    for link, following in itertools.pairwise(route):
        assert link.dst == following.src
    for link in route:
        assert link in topology.links_between(link.src, link.dst)
    assert route[0].name.startswith(f"{route[0].src}>{route[0].dst}#")


@pytest.mark.parametrize("topology", MACHINES, ids=name_of)
def test_every_machine_is_connected_within_the_hops_it_says(topology):
    assert (topology.graph.hops_from(0) >= 0).all()
    sources = {0, 1, topology.node_chips - 1, topology.installed_chips // 2 + 1}
    farthest = max(topology.graph.hops_from(src).max() for src in sources)
    assert farthest <= levels_of(topology)[-1].most_hops
    for level in levels_of(topology):
        hops = topology.graph.hops_from(0)[: level.chips]
        assert hops.max() <= level.most_hops


@pytest.mark.parametrize(
    ("topology", "most", "reached"),
    [
        # ISCA22: 3 hops up to 264 chips, at most 5 beyond, of which one extract says 6. Which chips
        # inter-rack links end on is not public; as assumed here the largest machine needs 7.
        (GroqTopology(n_chips=264), 3, True),
        (GroqTopology(n_chips=576), 5, True),
        (GroqTopology(n_chips=1224), 5, True),
        (GroqTopology(n_chips=10_440), 7, True),
        # SA26: two hops inside a rack, then one per further rack of the line.
        (LpxTopology(n_chips=256), 2, True),
        (LpxTopology(n_chips=2304), 10, True),
        (LpxTopology(n_chips=2304, rack_chain="ring"), 6, True),
    ],
    ids=str,
)
def test_hops_of_published_machines(topology, most, reached):
    hops = [topology.graph.hops_from(src).max() for src in (0, topology.node_chips + 3)]
    assert max(hops) <= most
    assert (max(hops) == most) == reached
    assert levels_of(topology)[-1].most_hops == most


def plain_hops(topology, src):
    """Breadth first over `links_between` alone."""
    chips = range(topology.installed_chips)
    hops, frontier = {src: 0}, [src]
    while frontier:
        following = []
        for near in frontier:
            for far in chips:
                if far not in hops and topology.links_between(near, far):
                    hops[far] = hops[near] + 1
                    following.append(far)
        frontier = following
    return [hops[chip] for chip in chips]


@pytest.mark.parametrize(
    "topology",
    [GroqTopology(n_chips=40), LpxTopology(n_chips=64), ring(4), ring(5), MACHINES[-1]],
    ids=name_of,
)
def test_hops_equal_a_plain_breadth_first_search(topology):
    hops = plain_hops(topology, 5)
    assert topology.graph.hops_from(5).tolist() == hops
    assert [len(topology.route(5, dst)) for dst in range(topology.n_chips)] == hops[
        : topology.n_chips
    ]


def test_a_graph_without_a_way_says_so():
    pair = np.array([[0, 1], [1, 0], [0, 0]])
    graph = link_graph(3, [pair])
    assert graph.hops_from(0).tolist() == [0, 1, -1]
    assert graph.shortest(0, 2) is None
    assert link_graph(2, [pair]).hops_from(0).tolist() == [0, 1]


@pytest.mark.parametrize("chain", ["line", "ring"])
def test_published_lpx_reach(chain):
    """HC26, all seven points: from the middle of the line, or from anywhere on the ring.

    Tolerance: 2 % for the rounding of the slide. The numbers are those of shortest paths through
    all links, which `reach_s` does not look at.
    """
    published_us = {16: 0.35, 128: 0.75, 256: 1.15, 768: 1.60, 1280: 2.05, 1792: 2.50, 2304: 2.95}
    for n_chips, us in published_us.items():
        topology = LpxTopology(n_chips=n_chips, rack_chain=chain)
        assert topology.reach_s(n_chips) == pytest.approx(us * 1e-6, rel=0.02)
        racks = topology.n_racks
        middle = racks // 2 * 256
        over_racks = topology.graph.hops_from(middle)[np.arange(racks) * 256].max()
        inside_us = topology.reach_s(min(n_chips, 256)) * 1e6
        assert inside_us + 0.45 * over_racks == pytest.approx(us, rel=0.02)
    slow = dataclasses.replace(LpxTopology(n_chips=768), rack_hop_s=225e-9)
    assert slow.reach_s(768) != pytest.approx(published_us[768] * 1e-6, rel=0.02)


def test_groq_reach_counts_hops():
    topology = GroqTopology(n_chips=264)
    hops = [topology.reach_s(n) / 722e-9 for n in (1, 2, 8, 9, 264)]
    assert hops == pytest.approx([0, 1, 1, 3, 3])
    assert GroqTopology(n_chips=10_440).reach_s(10_440) == pytest.approx(5 * 722e-9)


def test_stage_bases_straddle_as_little_as_fits():
    lpx = LpxTopology(n_chips=512)
    assert lpx.stage_bases(3, 12).tolist() == [0, 16, 32]
    # 43 groups of 12: one per tray needs 43 trays, the machine has 32: rack edges are kept.
    bases = lpx.stage_bases(42, 12)
    assert not any(base // 256 != (base + 11) // 256 for base in bases)
    # 170 groups of 3 are packed only as far as needed.
    assert lpx.stage_bases(160, 3).tolist() == [16 * (i // 5) + 3 * (i % 5) for i in range(160)]
    assert lpx.stage_bases(170, 3).tolist() == [256 * (i // 85) + 3 * (i % 85) for i in range(170)]
    packed = GroqTopology(n_chips=100).stage_bases(33, 3)
    assert packed.tolist() == [3 * i for i in range(33)]


@pytest.mark.parametrize("topology", [GroqTopology(n_chips=576), LpxTopology(n_chips=768)])
def test_stage_bases_never_overlap_or_leave(topology):
    for group in (1, 2, 3, 5, 7, 8, 9, 12, 16, 36, 72, 100, 256, 576):
        for n_groups in {1, topology.n_chips // group}:
            bases = topology.stage_bases(n_groups, group)
            assert bases[0] == 0
            assert np.all(np.diff(bases) >= group)
            assert bases[-1] + group <= topology.n_chips


def test_too_many_groups_is_a_plan_error():
    with pytest.raises(PlanError, match=r"10 groups of 8 chips need 80 chips; .* 64$"):
        GroqTopology(n_chips=64).stage_bases(10, 8)
    with pytest.raises(PlanError, match="at least 1"):
        GroqTopology(n_chips=64).stage_bases(0, 8)
    with pytest.raises(PlanError, match="1 to 10440 chips, not 10441"):
        GroqTopology(n_chips=10_441)
    with pytest.raises(PlanError, match="chip 64"):
        GroqTopology(n_chips=64).route(0, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LpxTopology(n_chips=16, tray_chips=12), "whole number of trays of 12"),
        (lambda: LpxTopology(n_chips=16, rack_chips=200), "whole number of halves of 128"),
        (lambda: LpxTopology(n_chips=256, tray_chips=4), "needs 138 lanes .*; 95 are wired"),
        # The bug of once: all four lanes to each of two neighbouring racks.
        (lambda: LpxTopology(n_chips=768, rack_lanes=4), "needs 98 lanes .*8 for its racks"),
        (lambda: GroqTopology(n_chips=264, node_global_ports=64), "needs 60 lanes"),
        (lambda: GroqTopology(n_chips=320, linked_nodes=40), "not connected"),
        (lambda: GroqTopology(n_chips=576, rack_node_links=4), "needs 52 lanes"),
        (lambda: LpxTopology(n_chips=16, frame_bytes=300), "300 bytes cannot carry 320"),
    ],
)
def test_machines_that_cannot_be_wired_are_refused(make, message):
    with pytest.raises(PlanError, match=message):
        make()


def test_a_variant_follows_its_constants_and_leaks_nothing():
    base = LpxTopology(n_chips=512)
    base.graph, levels_of(base), base.node_ports, base.most_links
    change = Constant(name="tray_chips", value=8, unit="1", status="published", source="NVB")
    other = vary(base, change)
    assert (base.node_chips, other.node_chips) == (16, 8)
    assert (other.node_ports.peers, levels_of(other)[0].units, other.most_links[1]) == (31, 8, 31)
    assert len(other.graph.src) != len(base.graph.src)
    assert other == vary(base, change)
    faster = dataclasses.replace(base, lane_bytes_per_s=13e9)
    assert faster.local_bytes_per_s == 4 * 13e9
    assert faster.rack_link_bytes_per_s == levels_of(faster)[-1].link_bytes_per_s == 2 * 13e9
    by_name = {constant.name: constant for constant in constants_of(faster)}
    assert by_name["lane_bytes_per_s"].source == "set by the caller"


def test_constants_of_which_sources_disagree_say_between_what():
    of_lpx = {constant.name: constant for constant in constants_of(LpxTopology(n_chips=16))}
    assert of_lpx["tray_chips"].options == (16, 8)
    for name in ("lane_bytes_per_s", "half_rack_step_s", "frame_bytes"):
        assert of_lpx[name].is_uncertain
    for topology in (GroqTopology(n_chips=8), LpxTopology(n_chips=16)):
        for constant in constants_of(topology):
            assert constant.status != "assumed" or constant.is_uncertain


def test_routes_of_the_largest_machines_use_their_links():
    for topology in (GroqTopology(n_chips=10_440), LpxTopology(n_chips=16_384)):
        route = topology.route(3, topology.n_chips - 2)
        assert route[0].src == 3
        assert route[-1].dst == topology.n_chips - 2
        assert all(link in topology.links_between(link.src, link.dst) for link in route)


@pytest.mark.parametrize("topology", [GroqTopology(n_chips=8), LpxTopology(n_chips=16)])
def test_every_topology_number_has_a_source(topology):
    constants = constants_of(topology)
    numbers = {
        field.name
        for field in dataclasses.fields(topology)
        if isinstance(getattr(topology, field.name), int | float) and field.name != "n_chips"
    }
    assert numbers <= {constant.name for constant in constants}
    assert len(constants) > 8
    for constant in constants:
        assert constant.unit
        assert constant.status in ("published", "derived", "assumed")
        assert len(constant.source) > 10
