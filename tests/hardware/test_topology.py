"""Levels, links, placement of groups: against published counts and against brute force."""

import itertools

import numpy as np
import pytest

from lpu_jax.errors import PlanError
from lpu_jax.machines import GroqTopology, LpxTopology
from lpu_jax.provenance import constants_of

MACHINES = [
    *(GroqTopology(n_chips=n) for n in (8, 16, 24, 32, 48, 56, 64, 72, 88, 136)),
    LpxTopology(n_chips=64),
]


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
    with pytest.raises(PlanError, match="leave the machine"):
        topology.span([250], 12)


@pytest.mark.parametrize("topology", MACHINES, ids=lambda t: f"{t.family}-{t.n_chips}")
def test_links_are_symmetric_and_within_the_ports(topology):
    chips = range(topology.n_nodes * topology.node_chips)
    size = topology.node_chips
    ports_of = dict.fromkeys(chips, 0)
    pairs = {}
    for src in chips:
        for dst in topology._peers(src):
            links = topology.links_between(src, dst)
            back = topology.links_between(dst, src)
            assert sorted(x.part for x in links) == sorted(x.part for x in back)
            assert links
            if src // size != dst // size:
                ports_of[src] += len(links)
                key = (src // size, dst // size)
                pairs[key] = pairs.get(key, 0) + len(links)
    per_chip = 4 if topology.family == "groq" else 15
    assert max(ports_of.values()) <= per_chip
    if topology.n_nodes > 1:
        expected = 32 // (topology.n_nodes - 1) if topology.family == "groq" else 16
        assert set(pairs.values()) == {expected}
        assert len(pairs) == topology.n_nodes * (topology.n_nodes - 1)


def test_racks_of_groq_nodes_keep_their_ports():
    for n_chips in (576, 1296):
        topology = GroqTopology(n_chips=n_chips)
        inside = outside = 0
        for chip in range(72):
            for peer in topology._peers(chip):
                count = len(topology.links_between(chip, peer))
                if peer // 72:
                    outside += count
                elif peer // 8 != chip // 8:
                    inside += count
        # ISCA22: 288 global ports of a rack, 144 inside it (double links), 144 to other racks.
        assert inside == 144
        assert 0 < outside <= 144


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


def test_groq_diameters_are_the_published_ones():
    # ISCA22: 3 hops up to 264 chips; at most 5 beyond (its wiring within a rack is assumed here).
    small = GroqTopology(n_chips=264)
    assert max(len(small.route(0, chip)) for chip in range(1, 264, 37)) == 3
    large = GroqTopology(n_chips=576)
    lengths = [len(large.route(src, dst)) for src in (0, 13) for dst in range(0, 576, 43)]
    assert max(lengths) <= 5


@pytest.mark.parametrize(
    ("n_chips", "published_s"), [(16, 0.35e-6), (128, 0.75e-6), (256, 1.15e-6), (2304, 2.95e-6)]
)
def test_published_lpx_reach(n_chips, published_s):
    # HC26; 2 % for the rounding of the slide.
    assert LpxTopology(n_chips=2304).reach_s(n_chips) == pytest.approx(published_s, rel=0.02)


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


@pytest.mark.parametrize("topology", [GroqTopology(n_chips=8), LpxTopology(n_chips=16)])
def test_every_topology_number_has_a_source(topology):
    constants = constants_of(topology)
    numbers = {
        name
        for name, value in vars(topology).items()
        if isinstance(value, int | float) and name != "n_chips"
    }
    assert numbers <= {constant.name for constant in constants}
    assert len(constants) > 8
    for constant in constants:
        assert constant.unit
        assert constant.status in ("published", "derived", "assumed")
        assert len(constant.source) > 10
