"""Schedules written out link by link: against the closed form, by hand, and as properties."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.cost.collectives import links
from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS
from lpu_jax.cost.collectives.kinds import LISTED_KINDS, PRICED_KINDS
from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.errors import CostError, UnknownNameError
from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.provenance import constants_of

CLOCK_HZ = 0.9e9
VECTOR = 320
# 328 bytes at 12.5 GB/s, in cycles; 722 ns in cycles.
FRAME = 328 / 12.5e9 * CLOCK_HZ
HOP = 722e-9 * CLOCK_HZ

GROQ = {n: GroqTopology(n_chips=n) for n in (8, 16, 24, 40, 48, 72, 88, 256, 576, 1512)}
LPX = LpxTopology(n_chips=768)


def cut(first, n, stride=1, group=None):
    """All runs of `n` chips, `stride` apart, of a group."""
    group = group or n * stride
    starts = np.add.outer(np.arange(0, group, n * stride), np.arange(stride)).reshape(-1)
    return first + starts[:, None] + stride * np.arange(n)


def closed_form(topology, kind, algorithm, first, n, stride=1, group=None):
    span = topology.span([first], n * stride, group or n * stride)
    return links.schedule(topology, CLOCK_HZ, kind, algorithm, replace(span, n_chips=n), stride)


def name_of(value):
    return f"{value.family}-{value.n_chips}" if hasattr(value, "family") else None


def both(topology, kind, algorithm, first, n, stride=1, group=None):
    """The closed form and the schedule of a payload that every cut divides; None if not legal."""
    closed = closed_form(topology, kind, algorithm, first, n, stride, group)
    runs = cut(first, n, stride, group)
    try:
        pieces = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, VECTOR).n_pieces
    except CostError:
        assert not np.all(closed.legal), (kind, algorithm, first, n, stride)
        return None
    assert np.all(closed.legal), (kind, algorithm, first, n, stride)
    payload = 3 * pieces * VECTOR
    return closed, link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, payload), payload


# Runs that lie inside nodes or fill them; where all runs see the same links the two must agree.
FILLING = [
    (GROQ[8], [(0, 8, 1, 8), (0, 4, 1, 8), (0, 2, 4, 8), (0, 3, 1, 3)]),
    (GROQ[16], [(0, 16, 1, 16), (8, 8, 1, 8), (0, 8, 2, 16), (0, 2, 8, 16)]),
    (GROQ[24], [(0, 24, 1, 24), (0, 3, 8, 24)]),
    (GROQ[40], [(0, 40, 1, 40), (0, 5, 8, 40), (0, 16, 1, 32)]),
    (GROQ[72], [(0, 72, 1, 72), (0, 9, 8, 72), (0, 24, 1, 72)]),
    (LPX, [(0, 32, 1, 64), (0, 256, 1, 256), (0, 16, 16, 256), (16, 48, 1, 96), (0, 16, 4, 64)]),
]


@pytest.mark.first(1)
@pytest.mark.parametrize(("topology", "cases"), FILLING, ids=name_of)
def test_filled_nodes_take_exactly_as_long_as_the_closed_form(topology, cases):
    n_exact = 0
    for case in cases:
        for kind in PRICED_KINDS:
            for algorithm in ALGORITHMS:
                found = both(topology, kind, algorithm, *case)
                if found is None:
                    continue
                closed, explicit, payload = found
                limit = float(closed.cycles(payload)) * (1 + 1e-9)
                assert explicit.cycles <= limit, (kind, algorithm, case)
                if not np.all(closed.exact):
                    continue
                n_exact += 1
                assert explicit.cycles == pytest.approx(limit, rel=1e-8), (kind, algorithm, case)
                assert explicit.hops == int(closed.hops), (kind, algorithm, case)
                vectors = payload / VECTOR
                steps = [step for step in closed.steps if np.any(step.share > 0)]
                if algorithm != "ring":
                    assert explicit.step_names == tuple(step.name for step in steps)
                    shares = [float(step.share) * vectors for step in steps]
                    assert explicit.busiest_vectors == pytest.approx(shares), (kind, algorithm)
    assert n_exact >= 2 * len(cases)


@pytest.mark.first(4)
@pytest.mark.parametrize("kind", PRICED_KINDS)
@pytest.mark.parametrize(
    "topology", [GROQ[48], GROQ[72], GROQ[88], GROQ[576], GROQ[1512], LPX], ids=name_of
)
def test_other_runs_stay_below_the_closed_form(topology, kind):
    per_rack = topology.rack_chips
    cases = [(3, 6, 1, 18), (3, 20, 1, 20), (4, 12, 1, 24), (0, 24, 1, 48), (3, 6, 2, 24)]
    if topology.n_racks > 1:
        edge = per_rack - 4
        cases += [(edge, 8, 1, 8), (edge, 24, 1, 24), (0, 2, per_rack, 2 * per_rack)]
    for case in cases:
        for algorithm in ALGORITHMS:
            found = both(topology, kind, algorithm, *case)
            if found is not None:
                closed, explicit, payload = found
                limit = float(closed.cycles(payload))
                assert explicit.cycles <= limit * (1 + 1e-9), (algorithm, case)


@given(
    kind=st.sampled_from(PRICED_KINDS),
    algorithm=st.sampled_from(tuple(ALGORITHMS)),
    case=st.sampled_from(
        [(i, j) for i, (_, cases) in enumerate(FILLING) for j in range(len(cases))]
    ),
    n_vectors=st.integers(1, 3000),
)
def test_a_payload_that_no_cut_divides_differs_by_less_than_a_frame_per_transfer(
    kind, algorithm, case, n_vectors
):
    topology, cases = FILLING[case[0]]
    closed = closed_form(topology, kind, algorithm, *cases[case[1]])
    if not (np.all(closed.legal) and np.all(closed.exact)):
        return
    payload = n_vectors * VECTOR
    runs = cut(*cases[case[1]])
    explicit = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, payload)
    key = list(zip(explicit.step, explicit.src, explicit.dst, explicit.part, strict=True))
    most_transfers = max(Counter(key).values())
    slack = explicit.hops * most_transfers * FRAME
    assert abs(explicit.cycles - float(closed.cycles(payload))) < slack


@pytest.mark.parametrize("algorithm", ["one_shot", "direct", "ring"])
def test_by_hand_inside_a_node(algorithm):
    # Eight chips, 80 vectors: whole vectors at once, 10 each in two steps, 10 each in 14 steps.
    schedule = link_schedule(GROQ[8], CLOCK_HZ, "all_reduce", algorithm, cut(0, 8), 80 * VECTOR)
    steps, vectors = {"one_shot": (1, 80), "direct": (2, 10), "ring": (14, 10)}[algorithm]
    assert schedule.cycles == pytest.approx(steps * (HOP + (vectors - 1) * FRAME))
    assert schedule.first_cycles == pytest.approx(steps * HOP)
    n_links = 8 if algorithm == "ring" else 56
    assert schedule.wire_bytes == steps * n_links * vectors * 328
    assert schedule.link_busy().src.size == n_links
    assert schedule.busiest_link == ("0>1#0", pytest.approx(steps * vectors * FRAME))


def test_published_all_reduce_of_256_groqchips():
    # ISCA22 prints three hops, 2.1 us, for a vector; 2 % for the rounding of the printed hop.
    schedule = link_schedule(GROQ[256], CLOCK_HZ, "all_reduce", "flat3", cut(0, 256), VECTOR)
    assert schedule.hops == 3
    assert schedule.cycles / CLOCK_HZ == pytest.approx(2166e-9, rel=0.02)


def test_runs_that_share_links_wait_for_each_other():
    # Two nodes have 32 links; eight runs of one chip in each node share all of them, so that each
    # link carries eight times 1/32 of 64 vectors.
    schedule = link_schedule(GROQ[16], CLOCK_HZ, "all_reduce", "flat3", cut(0, 2, 8), 64 * VECTOR)
    exchange = schedule.step_names.index("exchange between nodes")
    assert schedule.busiest_vectors[exchange] == 8 * 64 // 32
    alone = link_schedule(GROQ[16], CLOCK_HZ, "all_reduce", "flat3", cut(0, 2, 8)[:1], 64 * VECTOR)
    assert alone.busiest_vectors[exchange] == 64 // 32
    on_link = (schedule.step == exchange) & (schedule.src == 0) & (schedule.part == 0)
    order = np.argsort(schedule.start_cycle[on_link])
    start = schedule.start_cycle[on_link][order]
    np.testing.assert_allclose(start[1:], schedule.release_cycle[on_link][order][:-1])
    assert sorted(schedule.run[on_link]) == list(range(8))


@pytest.mark.first(1)
@pytest.mark.parametrize(("topology", "n"), [(GROQ[8], 8), (GROQ[72], 72), (LPX, 64)], ids=name_of)
@given(n_vectors=st.integers(1, 500))
def test_link_bytes_are_what_the_algorithm_moves(topology, n, n_vectors):
    # With all gateways in the run, each vector reaches every chip once, or leaves it once.
    for kind in ("all_gather", "reduce_scatter"):
        for algorithm in ALGORITHMS:
            try:
                schedule = link_schedule(
                    topology, CLOCK_HZ, kind, algorithm, cut(0, n), n_vectors * VECTOR
                )
            except CostError:
                continue
            assert schedule.moved_bytes == (n - 1) * n_vectors * VECTOR
    if n <= 8:
        for algorithm, times in (("direct", 2), ("ring", 2), ("one_shot", n)):
            schedule = link_schedule(
                topology, CLOCK_HZ, "all_reduce", algorithm, cut(0, n), n_vectors * VECTOR
            )
            assert schedule.moved_bytes == times * (n - 1) * n_vectors * VECTOR


@given(
    kind=st.sampled_from(LISTED_KINDS),
    algorithm=st.sampled_from(tuple(ALGORITHMS)),
    topology=st.sampled_from([GROQ[16], GROQ[48], LPX]),
    first=st.sampled_from([0, 3]),
    n=st.sampled_from([4, 8, 12]),
    payload=st.integers(1, 200_000),
    more=st.integers(0, 200_000),
)
def test_more_bytes_are_never_faster(kind, algorithm, topology, first, n, payload, more):
    runs = cut(first, n)
    try:
        less = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, payload)
    except CostError:
        return
    later = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, payload + more)
    # Which piece gets a remainder moves with the payload; shared links then trade single frames.
    assert later.cycles >= less.cycles - less.hops * n * FRAME
    assert later.payload_vectors >= less.payload_vectors
    twice = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, 2 * less.n_pieces * VECTOR)
    once = link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, less.n_pieces * VECTOR)
    assert twice.cycles > once.cycles
    np.testing.assert_array_equal(twice.busiest_vectors, 2 * once.busiest_vectors)
    np.testing.assert_allclose(twice.link_busy().busy_cycles, 2 * once.link_busy().busy_cycles)


@pytest.mark.parametrize("topology", [GROQ[16], LPX], ids=name_of)
def test_twice_the_clock_and_rates_and_half_the_latencies_halve_the_time(topology):
    factor = {"s": 0.5, "B/s": 2.0}
    fast = replace(
        topology,
        **{
            constant.name: constant.value * factor[constant.unit]
            for constant in constants_of(topology)
            if constant.unit in factor
        },
    )
    assert fast.local_bytes_per_s == 2 * topology.local_bytes_per_s
    assert fast.rack_hop_s == topology.rack_hop_s / 2
    for kind in LISTED_KINDS:
        slow = link_schedule(topology, CLOCK_HZ, kind, "flat3", cut(0, 16), 12_345)
        quick = link_schedule(fast, 2 * CLOCK_HZ, kind, "flat3", cut(0, 16), 12_345)
        assert quick.cycles == pytest.approx(slow.cycles)


@pytest.mark.parametrize("kind", LISTED_KINDS)
def test_equal_chips_may_be_exchanged(kind):
    cases = [
        (LPX, 32, (16, 64, 96, 256, 256 + 32), "flat3"),
        (LPX, 6, (16, 160, 512), "direct"),
        (GROQ[40], 16, (8, 16, 24), "flat3"),
        (GROQ[576], 16, (72, 144), "flat3"),
    ]
    for topology, n, shifts, algorithm in cases:
        here = link_schedule(topology, CLOCK_HZ, kind, algorithm, cut(0, n), 7_777)
        for shift in shifts:
            there = link_schedule(topology, CLOCK_HZ, kind, algorithm, cut(shift, n), 7_777)
            assert there.cycles == pytest.approx(here.cycles), (n, shift)
            assert there.wire_bytes == here.wire_bytes
            np.testing.assert_array_equal(there.busiest_vectors, here.busiest_vectors)
    # Runs are listed in any order.
    runs = cut(0, 4, 2, 16)
    forth = link_schedule(GROQ[16], CLOCK_HZ, kind, "flat3", runs, 7_777)
    back = link_schedule(GROQ[16], CLOCK_HZ, kind, "flat3", runs[::-1], 7_777)
    assert back.cycles == pytest.approx(forth.cycles)
    np.testing.assert_allclose(back.link_busy().busy_cycles, forth.link_busy().busy_cycles)


@pytest.mark.parametrize("kind", LISTED_KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_chip_and_no_bytes_take_no_time(kind, algorithm):
    runs = np.arange(8)[:, None]
    if kind == "hand_over":
        runs = np.stack([np.arange(4), np.arange(4, 8)], axis=1)
    single = (
        link_schedule(GROQ[8], CLOCK_HZ, kind, algorithm, runs[:, :1], 4096)
        if (kind != "hand_over")
        else link_schedule(GROQ[8], CLOCK_HZ, kind, algorithm, runs, 0)
    )
    assert (single.n_transfers, single.cycles, single.hops, single.wire_bytes) == (0, 0.0, 0, 0)
    assert single.busiest_link == ("", 0.0)
    assert check(single, GROQ[8]).complete


def test_hand_overs_stay_below_the_closed_form_and_equal_it_between_whole_nodes():
    for topology in (GROQ[72], GROQ[576], LPX):
        for group in (1, 4, 5, 8, 16, 20, 32):
            bases = topology.stage_bases(min(6, topology.n_chips // group), group)
            closed = links.hand_overs(topology, CLOCK_HZ, group, bases)
            chips = bases[:, None] + np.arange(group)
            pairs = np.concatenate([chips[:-1], chips[1:]], axis=1)
            for index, pair in enumerate(pairs):
                pieces = link_schedule(
                    topology, CLOCK_HZ, "hand_over", "flat3", pair[None], VECTOR
                ).n_pieces
                payload = 2 * pieces * VECTOR
                explicit = link_schedule(
                    topology, CLOCK_HZ, "hand_over", "flat3", pair[None], payload
                )
                check(explicit, topology)
                limit = closed.cycles(payload)[index]
                assert explicit.cycles <= limit * (1 + 1e-9), (topology.family, group, index)
                near = pair[0] // topology.rack_chips == pair[-1] // topology.rack_chips
                if group in (8, 16, 32) and near and group % topology.node_chips == 0:
                    assert explicit.cycles == pytest.approx(limit)


def test_the_largest_machine_is_listed_and_checked():
    topology = GroqTopology(n_chips=10_440)
    runs = cut(0, 10_440)
    schedule = link_schedule(topology, CLOCK_HZ, "all_reduce", "flat3", runs, 16_384)
    proof = check(schedule, topology, most_followed=0)
    assert schedule.hops == 7
    assert (proof.transfers, proof.followed) == (schedule.n_transfers, 0)
    assert schedule.n_transfers > 300_000
    assert not proof.complete


def test_names_of_links_are_those_of_the_topology():
    schedule = link_schedule(GROQ[24], CLOCK_HZ, "all_reduce", "hier5", cut(0, 24), 10_000)
    use = schedule.link_busy()
    for index in range(use.src.size):
        found = GROQ[24].links_between(int(use.src[index]), int(use.dst[index]))
        assert use.name(index) in {link.name for link in found}
    assert use.wire_bytes.sum() == schedule.wire_bytes
    busy = defaultdict_sum(schedule)
    assert dict(zip(map(use.name, range(use.src.size)), use.busy_cycles, strict=True)) == (
        pytest.approx(busy)
    )
    summary = schedule.as_dict()
    assert summary["links"] == use.src.size
    assert [step["name"] for step in summary["steps"]] == list(schedule.step_names)


def defaultdict_sum(schedule):
    busy = Counter()
    for src, dst, part, start, release in zip(
        schedule.src, schedule.dst, schedule.part, schedule.start_cycle, schedule.release_cycle,
        strict=True,
    ):  # fmt: skip
        busy[f"{src}>{dst}#{part}"] += release - start
    return busy


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("positive", {"clock_hz": 0.0}),
        ("positive", {"clock_hz": float("nan")}),
        ("negative", {"payload_bytes": -1}),
        ("reach beyond the machine", {"runs": cut(12, 8)}),
        ("reach beyond the machine", {"runs": cut(-1, 8)}),
        ("ascend", {"runs": cut(0, 8)[:, ::-1]}),
        ("at least one chip", {"runs": np.zeros((1, 0), np.int64)}),
        ("one node of 8", {"algorithm": "direct", "runs": cut(4, 8)}),
        ("one node of 8", {"algorithm": "ring", "runs": cut(4, 8)}),
        ("ring is not an algorithm for send", {"algorithm": "ring", "kind": "send"}),
        ("one_shot is not an algorithm", {"algorithm": "one_shot", "kind": "all_gather"}),
        ("same positions", {"algorithm": "hier4", "runs": cut(4, 8)}),
        (
            "link from every chip",
            {"topology": GROQ[72], "algorithm": "hier4", "runs": cut(0, 16)},
        ),
        ("fill their nodes", {"algorithm": "hier5", "runs": cut(0, 8, 2)}),
        ("equal size", {"kind": "hand_over", "runs": cut(0, 7)}),
        ("share a chip", {"kind": "hand_over", "runs": np.array([[0, 1, 1, 2]])}),
    ],
)
def test_bad_input_is_refused_in_a_sentence(message, change):
    given_ = {
        "topology": GROQ[16],
        "clock_hz": CLOCK_HZ,
        "kind": "all_reduce",
        "algorithm": "flat3",
        "runs": cut(0, 8),
        "payload_bytes": 4096,
    }
    with pytest.raises(CostError, match=message):
        link_schedule(**{**given_, **change})


def test_unknown_names_and_endless_lists_are_refused():
    with pytest.raises(UnknownNameError, match="all_reduce"):
        link_schedule(GROQ[16], CLOCK_HZ, "allreduce", "flat3", cut(0, 8), 1)
    with pytest.raises(UnknownNameError, match="flat3"):
        link_schedule(GROQ[16], CLOCK_HZ, "all_reduce", "hierarchical", cut(0, 8), 1)
    topology = GroqTopology(n_chips=10_440)
    with pytest.raises(CostError, match="messages"):
        link_schedule(topology, CLOCK_HZ, "all_to_all", "flat3", cut(0, 10_440), 1)
