"""Closed-form collectives against explicit link lists, replayed transfer by transfer."""

from collections import defaultdict

import numpy as np
import pytest

from lpu_jax.cost.links import ALGORITHMS, KINDS, hand_overs, schedule
from lpu_jax.cost.transfers import check, link_transfers
from lpu_jax.errors import CostError, UnknownNameError
from lpu_jax.machines import GroqTopology, LpxTopology
from lpu_jax.topology import stack_spans

CLOCK_HZ = 1e9

# Machines whose links per node pair divide the chips of a node, or the other way round.
EVEN_GROQ_CHIPS = (16, 24, 40, 72)
UNEVEN_GROQ_CHIPS = (32, 48, 56, 88)


def closed_shares(topology, kind, algorithm, first, n):
    span = topology.span([first], n)
    steps = schedule(topology, CLOCK_HZ, kind, algorithm, span).steps
    return [float(step.share) for step in steps if step.share > 0]


def explicit_shares(topology, kind, algorithm, first, n):
    transfers = link_transfers(topology, kind, algorithm, range(first, first + n))
    return [float(share) for share in check(transfers, topology).values()]


def replay_all_reduce(transfers, chips):
    """Replay; return, per chip and atom, a disjoint cover of contributions it can add up.

    A chip may send a sum only if it holds disjoint summands of exactly that sum, from earlier
    steps.
    """
    n_atoms = 1 + max(transfer.atom for transfer in transfers)
    held = defaultdict(set)
    for chip in chips:
        for atom in range(n_atoms):
            held[chip, atom].add(frozenset([chip]))
    for step in sorted({transfer.step for transfer in transfers}):
        arrivals = []
        for transfer in transfers:
            if transfer.step != step:
                continue
            have = held[transfer.src, transfer.atom]
            assert cover(have, transfer.sources) == transfer.sources, transfer
            arrivals.append(transfer)
        for transfer in arrivals:
            held[transfer.dst, transfer.atom].add(transfer.sources)
    return {
        (chip, atom): cover(held[chip, atom], frozenset(chips))
        for chip in chips
        for atom in range(n_atoms)
    }


def cover(have, wanted):
    """Join disjoint sets of `have` within `wanted`, largest first."""
    joined = frozenset()
    for summand in sorted(have, key=lambda sources: (-len(sources), sorted(sources))):
        if summand <= wanted and not summand & joined:
            joined |= summand
    return joined


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["direct", "one_shot", "hierarchical"])
@pytest.mark.parametrize("n", range(2, 9))
def test_inside_a_node_closed_form_equals_explicit(kind, algorithm, n):
    for topology in (GroqTopology(n_chips=64), LpxTopology(n_chips=256)):
        assert closed_shares(topology, kind, algorithm, 0, n) == pytest.approx(
            explicit_shares(topology, kind, algorithm, 0, n)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_chips", EVEN_GROQ_CHIPS)
def test_whole_groq_nodes_closed_form_equals_explicit(kind, n_chips):
    topology = GroqTopology(n_chips=n_chips)
    for n in sorted({16, min(24, n_chips), min(64, n_chips), n_chips}):
        closed = closed_shares(topology, kind, "hierarchical", 0, n)
        explicit = explicit_shares(topology, kind, "hierarchical", 0, n)
        assert len(closed) == len(explicit)
        # With fewer nodes than the machine has, a chip may have links to fewer of them.
        exact = n == n_chips and kind in ("all_reduce", "send")
        if exact:
            assert closed == pytest.approx(explicit)
        assert np.all(np.array(explicit) <= np.array(closed) + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [32, 48])
def test_whole_lpx_trays_closed_form_equals_explicit(kind, n):
    topology = LpxTopology(n_chips=256)
    closed = closed_shares(topology, kind, "hierarchical", 0, n)
    assert closed == pytest.approx(explicit_shares(topology, kind, "hierarchical", 0, n))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "topology",
    [
        *(GroqTopology(n_chips=n) for n in (64, 72, *UNEVEN_GROQ_CHIPS)),
        LpxTopology(n_chips=256),
    ],
    ids=lambda topology: f"{topology.family}-{topology.n_chips}",
)
def test_straddling_runs_at_once_stay_below_the_closed_form(kind, topology):
    for group, n in ((12, 6), (20, 10), (30, 10), (30, 30)):
        base = 3
        if base + group > topology.n_chips:
            continue
        runs = range(base, base + group, n)
        transfers = [
            transfer
            for first in runs
            for transfer in link_transfers(topology, kind, "hierarchical", range(first, first + n))
        ]
        explicit = check(transfers, topology)
        span = topology.span([base], n, group)
        steps = schedule(topology, CLOCK_HZ, kind, "hierarchical", span).steps
        closed = defaultdict(float)
        for step in steps:
            closed[step.name] = max(closed[step.name], float(step.share))
        for name, share in explicit.items():
            limit = closed["spread in node"] if name == "send in node" else closed[name]
            assert share <= limit + 1e-12, (name, group, n)


@pytest.mark.parametrize("n", [2, 3, 8, 11, 16, 24, 37, 64])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize(
    "topology",
    [GroqTopology(n_chips=69), GroqTopology(n_chips=88), LpxTopology(n_chips=512)],
    ids=["groq-69", "groq-88", "lpx-2"],
)
def test_all_reduce_adds_every_chip_once_on_every_chip(topology, first, n):
    chips = range(first, first + n)
    transfers = link_transfers(topology, "all_reduce", "hierarchical", chips)
    check(transfers, topology)
    for sums in replay_all_reduce(transfers, chips).values():
        assert sums == frozenset(chips)


@pytest.mark.parametrize(
    ("topology", "first", "n"),
    [
        (GroqTopology(n_chips=576), 60, 20),
        (GroqTopology(n_chips=576), 64, 16),
        (GroqTopology(n_chips=576), 70, 5),
        (GroqTopology(n_chips=1296), 66, 12),
        (LpxTopology(n_chips=768), 250, 12),
        (LpxTopology(n_chips=768), 240, 32),
    ],
)
def test_all_reduce_over_racks_delivers_and_is_bounded(topology, first, n):
    chips = range(first, first + n)
    transfers = link_transfers(topology, "all_reduce", "hierarchical", chips)
    explicit = list(check(transfers, topology).values())
    closed = closed_shares(topology, "all_reduce", "hierarchical", first, n)
    assert len(closed) == len(explicit)
    assert np.all(np.array(explicit) <= np.array(closed) + 1e-12)
    for sums in replay_all_reduce(transfers, chips).values():
        assert sums == frozenset(chips)


def test_all_reduce_over_three_racks_in_a_line():
    topology = LpxTopology(n_chips=768)
    chips = range(248, 520)
    transfers = link_transfers(topology, "all_reduce", "hierarchical", chips)
    explicit = list(check(transfers, topology).values())
    closed = closed_shares(topology, "all_reduce", "hierarchical", 248, 272)
    assert np.all(np.array(explicit) <= np.array(closed) + 1e-12)
    # The line forwards one more partial sum at each end; the middle boundary carries both.
    assert explicit[2] == pytest.approx(2 / 16)
    sample = [x for x in transfers if x.name != "gather in node" and x.atom == 3]
    assert {x.sources for x in sample if x.name == "exchange between racks"} == {
        frozenset(range(248, 256)),
        frozenset(range(256, 512)),
        frozenset(range(512, 520)),
    }


def test_replay_notices_a_lost_transfer_and_a_double_count():
    topology, chips = GroqTopology(n_chips=16), range(16)
    transfers = link_transfers(topology, "all_reduce", "hierarchical", chips)
    last = transfers[-1]
    assert last.name == "gather in node"
    lost = replay_all_reduce(transfers[:-1], chips)
    assert any(sums != frozenset(chips) for sums in lost.values())
    early = [x for x in transfers if x.name != "spread in node"]
    with pytest.raises(AssertionError):
        replay_all_reduce(early, chips)


def test_check_refuses_a_link_that_is_not_there():
    topology = GroqTopology(n_chips=64)
    transfers = link_transfers(topology, "all_reduce", "direct", range(8))
    with pytest.raises(CostError, match="no such link"):
        check(transfers, LpxTopology(n_chips=256))


def test_every_chip_gathers_every_piece():
    topology, chips = GroqTopology(n_chips=40), range(2, 33)
    transfers = link_transfers(topology, "all_gather", "hierarchical", chips)
    seen = defaultdict(set)
    for transfer in transfers:
        seen[transfer.dst, transfer.atom] |= transfer.sources
    n_atoms = 1 + max(transfer.atom for transfer in transfers)
    for chip in chips:
        for atom in range(n_atoms):
            assert seen[chip, atom] | {chip} == set(chips)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_bytes_are_never_faster_and_one_chip_is_free(kind, algorithm):
    topology = LpxTopology(n_chips=768)
    spans = stack_spans([topology.span([3], n) for n in (1, 2, 5, 13, 40, 250, 600)])
    result = schedule(topology, CLOCK_HZ, kind, algorithm, spans)
    cycles = np.array([result.cycles(payload) for payload in (1, 320, 321, 14_336, 1_000_000)])
    assert np.all(np.diff(cycles, axis=0) >= 0)
    assert np.all(cycles[:, 0] == 0)
    assert np.all(cycles[0, 1:] > 0)
    assert result.hops[0] == 0
    assert result.link_bytes(14_336)[0] == 0
    assert np.all(result.busiest_link_cycles(14_336) <= result.cycles(14_336) + 1e6 / 50e9 * 328)
    in_node = np.array([True, True, True, True, False, False, False])
    expected = np.full(7, True) if algorithm == "hierarchical" else in_node
    np.testing.assert_array_equal(result.legal, expected)


def test_stacked_spans_give_the_same_as_single_ones():
    topology = GroqTopology(n_chips=576)
    spans = [topology.span([0, 8], n) for n in (1, 2, 8, 9, 60, 100, 200)]
    together = schedule(topology, CLOCK_HZ, "all_reduce", "hierarchical", stack_spans(spans))
    for index, span in enumerate(spans):
        alone = schedule(topology, CLOCK_HZ, "all_reduce", "hierarchical", span)
        assert together.cycles(14_336)[index] == alone.cycles(14_336)
        assert together.hops[index] == alone.hops


def test_link_bytes_equal_the_explicit_traffic():
    topology = GroqTopology(n_chips=64)
    for kind, algorithm in (("all_reduce", "one_shot"), ("all_reduce", "direct")):
        transfers = link_transfers(topology, kind, algorithm, range(8))
        result = schedule(topology, CLOCK_HZ, kind, algorithm, topology.span([0], 8))
        # 80 vectors divide by 8, so no frame is padded.
        total = float(sum(transfer.share for transfer in transfers)) * 80 * 328
        assert result.link_bytes(80 * 320) * 8 == pytest.approx(total)


def test_link_bytes_bound_the_explicit_traffic_between_nodes():
    for topology in (GroqTopology(n_chips=40), LpxTopology(n_chips=256)):
        for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            transfers = link_transfers(topology, kind, "hierarchical", range(32))
            result = schedule(topology, CLOCK_HZ, kind, "hierarchical", topology.span([0], 32))
            n_vectors = 64 * 64
            total = float(sum(transfer.share for transfer in transfers)) * n_vectors * 328
            assert total <= result.link_bytes(n_vectors * 320) * 32 <= 4 * total


def test_one_shot_is_one_hop_and_wins_for_one_vector():
    topology = GroqTopology(n_chips=8)
    span = topology.span([0], 8)
    one_shot = schedule(topology, CLOCK_HZ, "all_reduce", "one_shot", span)
    direct = schedule(topology, CLOCK_HZ, "all_reduce", "direct", span)
    assert (one_shot.hops, direct.hops) == (1, 2)
    assert one_shot.cycles(320) < direct.cycles(320)
    assert one_shot.cycles(1_000_000) > direct.cycles(1_000_000)


def test_hand_over_inside_a_node_and_between_nodes():
    topology = GroqTopology(n_chips=64)
    inside = hand_overs(topology, 0.9e9, 4, np.array([0, 4]))
    between = hand_overs(topology, 0.9e9, 8, np.array([0, 8]))
    partial = hand_overs(topology, 0.9e9, 4, np.array([4, 8]))
    assert (inside.hops[0], between.hops[0], partial.hops[0]) == (2, 2, 3)
    # One node to one node of eight: 4 links, each with a quarter, then each gateway to its mates.
    vectors = 40
    frame = 328 / 12.5e9 * 0.9e9
    expected = 2 * 722e-9 * 0.9e9 + 2 * (vectors / 4 - 1) * frame
    assert between.cycles(vectors * 320)[0] == pytest.approx(expected)


def test_there_is_one_hand_over_for_each_pair_of_consecutive_groups():
    topology = LpxTopology(n_chips=2304)
    bases = topology.stage_bases(61, 36)
    every = hand_overs(topology, 1.5e9, 36, bases).cycles(14_336)
    assert every.shape == (60,)
    pair = hand_overs(topology, 1.5e9, 36, bases[7:9]).cycles(14_336)
    assert pair[0] == every[7]
    assert hand_overs(topology, 1.5e9, 36, bases[:1]).cycles(14_336).size == 0


def test_unknown_names_say_what_is_known():
    topology = GroqTopology(n_chips=8)
    span = topology.span([0], 8)
    with pytest.raises(UnknownNameError, match="all_reduce"):
        schedule(topology, CLOCK_HZ, "allreduce", "direct", span)
    with pytest.raises(UnknownNameError, match="hierarchical"):
        schedule(topology, CLOCK_HZ, "all_reduce", "hierarchic", span)
    with pytest.raises(CostError, match="positive"):
        schedule(topology, 0.0, "all_reduce", "direct", span)


# Published figures; the tolerance of 2 % is for the rounding in which they were printed.
PRINTED = 0.02


def test_published_all_reduce_of_256_groqchips():
    # ISCA22: three hops of 722 ns.
    topology = GroqTopology(n_chips=256)
    result = schedule(topology, 0.9e9, "all_reduce", "hierarchical", topology.span([0], 256))
    assert result.hops == 3
    assert result.cycles(320) / 0.9e9 == pytest.approx(2166e-9, rel=PRINTED)


def test_published_hop():
    topology = GroqTopology(n_chips=8)
    send = schedule(topology, 0.9e9, "send", "direct", topology.span([0], 8))
    assert send.cycles(320) == pytest.approx(650, rel=PRINTED)
    # ISCA22: 328 B at 12.5 GB/s are 23.6 cycles.
    assert send.cycles(640) - send.cycles(320) == pytest.approx(23.6, rel=PRINTED)
