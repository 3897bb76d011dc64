"""Pipelined collectives: priced against listed, proven, by hand, and beside those with barriers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.cost.collectives import links
from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS, AUTO
from lpu_jax.cost.collectives.kinds import OWN_PIECES, PRICED_KINDS
from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.placed_machine import one_group
from lpu_jax.datapath.axis import ALGORITHM_NAMES, PIPELINED, check_algorithm, steps_of
from lpu_jax.errors import CostError, UnknownNameError
from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.custom_topology import LevelSpec, custom_topology

CLOCK_HZ = 0.9e9
VECTOR = 320
# 328 bytes at 12.5 GB/s, in cycles; 722 ns in cycles.
FRAME = 328 / 12.5e9 * CLOCK_HZ
HOP = 722e-9 * CLOCK_HZ
# Sums of cycles in another order.
ROUNDING = 1e-9
#: Vectors times chips of a run; a schedule of more takes long to list.
MOST_LISTED = 60_000

GROQ = {n: GroqTopology(n_chips=n) for n in (8, 16, 24, 40, 72, 88, 576)}
LPX = LpxTopology(n_chips=768)


def custom(*levels, wiring="line"):
    """Levels as (units, links) of 12.5 GB/s, with hops of 1, 2 and 3 us."""
    specs = [
        LevelSpec(
            name=f"level {i}", units=units, links=n_links, lanes=1, link_bytes_per_s=12.5e9,
            hop_s=(i + 1) * 1e-6, wiring=wiring if i == 2 else "all-to-all",
        )
        for i, (units, n_links) in enumerate(levels)
    ]  # fmt: skip
    return custom_topology(specs, chip_lanes=10_000)


#: First chip, chips and stride of runs, and of the group that they fill.
CASES = [
    (GROQ[8], [(0, 8, 1, 8), (0, 4, 1, 8), (0, 2, 4, 8), (0, 3, 1, 3)]),
    (GROQ[16], [(0, 16, 1, 16), (0, 8, 2, 16), (0, 2, 8, 16), (3, 6, 1, 12)]),
    (GROQ[24], [(0, 24, 1, 24), (0, 3, 8, 24), (3, 20, 1, 20)]),
    (GROQ[40], [(0, 40, 1, 40), (0, 5, 8, 40), (0, 16, 1, 32)]),
    (GROQ[88], [(0, 88, 1, 88), (68, 8, 1, 8), (64, 16, 1, 16)]),
    (GROQ[576], [(3, 6, 2, 24), (68, 24, 1, 24), (0, 2, 72, 144)]),
    (LPX, [(0, 32, 1, 64), (0, 16, 16, 256), (16, 48, 1, 96), (252, 8, 1, 8), (0, 2, 256, 512)]),
    (custom((4, 1), (6, 2), (4, 24)), [(0, 24, 1, 24), (20, 8, 1, 8), (0, 48, 1, 48)]),
    (custom((4, 1), (2, 8), (3, 16)), [(0, 8, 1, 8), (0, 24, 1, 24)]),
    (custom((2, 1), (3, 2), (3, 1), wiring="all-to-all"), [(0, 18, 1, 18), (3, 6, 1, 6)]),
]


def runs_of(case):
    first, n, stride, group = case
    starts = np.add.outer(np.arange(0, group, n * stride), np.arange(stride)).reshape(-1)
    return first + starts[:, None] + stride * np.arange(n)


def priced(topology, kind, algorithm, case):
    first, n, stride, group = case
    span = topology.span([first], n * stride, group)
    return links.schedule(topology, CLOCK_HZ, kind, algorithm, replace(span, n_chips=n), stride)


def listed(topology, kind, algorithm, case, n_vectors):
    runs = runs_of(case)
    return link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, n_vectors * VECTOR)


def legal(topology, case):
    """Kinds and algorithms that exist for runs, with the pieces into which they cut."""
    for kind in PRICED_KINDS:
        for algorithm in ALGORITHMS:
            if np.all(priced(topology, kind, algorithm, case).legal):
                pieces = listed(topology, kind, algorithm, case, 1).n_pieces
                if 3 * pieces * runs_of(case).size <= MOST_LISTED:
                    yield kind, algorithm, pieces


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("topology", "cases"), CASES, ids=lambda value: getattr(value, "family", None)
)
def test_listed_vector_by_vector_it_takes_what_it_is_priced_or_less(topology, cases):
    n_exact = 0
    for case in cases:
        for kind, algorithm, pieces in legal(topology, case):
            closed = priced(topology, kind, algorithm + PIPELINED, case)
            assert float(closed.slice_vectors) % pieces == 0, (kind, algorithm, case)
            for n_vectors in (pieces, 3 * pieces):
                limit = float(closed.cycles(n_vectors * VECTOR))
                found = listed(topology, kind, algorithm + PIPELINED, case, n_vectors)
                assert found.cycles <= limit * (1 + ROUNDING), (kind, algorithm, case)
                if np.all(closed.exact):
                    n_exact += 1
                    assert found.cycles == pytest.approx(limit, rel=ROUNDING), (kind, algorithm)
    # Runs inside a node, and over nodes where no link takes two vectors of a slice.
    assert n_exact > 0 or all(runs_of(case)[0, -1] >= topology.node_chips for case in cases)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("topology", "cases"), CASES, ids=lambda value: getattr(value, "family", None)
)
def test_every_vector_is_followed_and_overlap_is_never_slower(topology, cases):
    for case in cases:
        for kind, algorithm, pieces in legal(topology, case):
            if pieces * runs_of(case).size > MOST_LISTED / 20:
                continue
            # The last slice is not a whole one.
            n_vectors = 2 * pieces + pieces // 3
            if kind in OWN_PIECES:
                n_vectors = -(-n_vectors // case[1]) * case[1]
            found = listed(topology, kind, algorithm + PIPELINED, case, n_vectors)
            assert check(found, topology).complete
            plain = listed(topology, kind, algorithm, case, n_vectors)
            assert found.cycles <= plain.cycles * (1 + ROUNDING), (kind, algorithm, case)
            assert found.moved_bytes == plain.moved_bytes
            assert found.busiest_link[1] <= found.cycles
            payload = n_vectors * VECTOR
            pipelined, barriers = (
                float(priced(topology, kind, algorithm + option, case).cycles(payload))
                for option in (PIPELINED, "")
            )
            assert pipelined <= barriers, (kind, algorithm, case)


@pytest.mark.parametrize(("n_vectors", "expected"), [
    # Ten vectors on each link are gone before the first sum is made: two hops and nine frames.
    (80, 2 * HOP + 9 * FRAME),
    # A hundred are not: the link is never idle, and the last vector takes a hop.
    (800, 199 * FRAME + HOP),
])  # fmt: skip
def test_reduce_scatter_and_all_gather_overlap_in_a_node(n_vectors, expected):
    case = (0, 8, 1, 8)
    closed = priced(GROQ[8], "all_reduce", "direct+pipelined", case)
    assert float(closed.cycles(n_vectors * VECTOR)) == pytest.approx(expected)
    found = listed(GROQ[8], "all_reduce", "direct+pipelined", case, n_vectors)
    assert found.cycles == pytest.approx(expected)
    before = float(priced(GROQ[8], "all_reduce", "direct", case).cycles(n_vectors * VECTOR))
    per_link = n_vectors / 8
    assert before == pytest.approx(2 * (HOP + (per_link - 1) * FRAME))


def test_levels_work_at_the_same_time():
    # Over nodes a long vector takes little more than its busiest level, not the sum of levels.
    case, payload = (0, 32, 1, 32), 6400 * VECTOR
    plain = priced(LPX, "all_reduce", "hier4", case)
    steps = [float(step.share) * 6400 * float(step.cycles_per_vector) for step in plain.steps]
    assert float(plain.cycles(payload)) > sum(steps)
    overlapped = float(priced(LPX, "all_reduce", "hier4+pipelined", case).cycles(payload))
    assert overlapped < 1.1 * max(steps[0] + steps[3], steps[1] + steps[2]) + sum(
        float(step.latency_cycles) for step in plain.steps
    )


@given(
    case=st.sampled_from([(i, j) for i, (_, cases) in enumerate(CASES) for j in range(len(cases))]),
    kind=st.sampled_from(PRICED_KINDS),
    algorithm=st.sampled_from(tuple(ALGORITHMS)),
    payload=st.integers(1, 10**7),
    more=st.integers(1, 10**6),
)
def test_more_bytes_are_never_faster_and_scaling_holds(case, kind, algorithm, payload, more):
    topology, cases = CASES[case[0]]
    closed = priced(topology, kind, algorithm + PIPELINED, cases[case[1]])
    if not np.all(closed.legal):
        return
    once, later = closed.cycles(payload), closed.cycles(payload + more)
    # The wait for a link and the wait for a vector are sums of the same cycles in another order.
    assert once <= later * (1 + ROUNDING)
    assert closed.first_cycles <= once * (1 + ROUNDING)
    # A link that never rests is busy until the last vector has left it.
    frames = sum(step.times * step.cycles_per_vector for step in closed.steps)
    assert closed.busiest_link_cycles(payload) <= once + frames
    # At twice the clock links take as many seconds: twice the cycles.
    first, n, stride, group = cases[case[1]]
    span = replace(topology.span([first], n * stride, group), n_chips=n)
    twice = links.schedule(topology, 2 * CLOCK_HZ, kind, algorithm + PIPELINED, span, stride)
    assert float(twice.cycles(payload)) == pytest.approx(2 * float(once), rel=ROUNDING)


# --- the proof can fail ---------------------------------------------------------------------------


@pytest.fixture
def made():
    return listed(GROQ[16], "all_reduce", "flat3+pipelined", (0, 16, 1, 16), 64)


def moved(schedule, index, cycles):
    """The schedule with one transfer made earlier or later."""
    columns = {}
    for name in ("start_cycle", "release_cycle", "arrival_cycle"):
        columns[name] = getattr(schedule, name).copy()
        columns[name][index] += cycles
    return replace(schedule, **columns)


def test_a_vector_that_leaves_before_it_arrived_is_noticed(made):
    first = int(np.flatnonzero(made.step == 1)[0])
    assert check(made, GROQ[16]).complete
    with pytest.raises(CostError, match="before its vector has arrived"):
        check(moved(made, first, -1), GROQ[16])


def test_two_steps_on_a_link_at_once_are_noticed():
    made = listed(GROQ[8], "all_reduce", "direct+pipelined", (0, 8, 1, 8), 800)
    last = int(np.flatnonzero(made.step == 1)[0])
    assert made.start_cycle[last] > HOP + FRAME  # it waits for its link, not for its vector
    with pytest.raises(CostError, match="before the link is free"):
        check(moved(made, last, -FRAME), GROQ[8])


def test_a_lost_vector_is_noticed(made):
    names = [
        name
        for name, column in vars(made).items()
        if isinstance(column, np.ndarray) and column.shape == made.step.shape
    ]
    kept = np.arange(made.n_transfers) != made.n_transfers // 2
    with pytest.raises(CostError, match=r"without the contribution|does not have"):
        check(replace(made, **{name: getattr(made, name)[kept] for name in names}), GROQ[16])


def test_a_transfer_of_two_vectors_is_no_vector_by_vector(made):
    barriers = listed(GROQ[16], "all_reduce", "flat3", (0, 16, 1, 16), 64)
    with pytest.raises(CostError, match="vectors; pipelined, 1"):
        check(replace(barriers, algorithm="flat3+pipelined"), GROQ[16])


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("groq-node", 8), ("lpx-rack", 256)])
def test_auto_takes_the_fastest_of_all_forms(name, n):
    machine = one_group(system(name), n)
    for n_vectors in (1, 51, 6528):
        payload = n_vectors * VECTOR
        forms = [
            algorithm + option
            for algorithm in AUTO
            if np.all(priced(machine.topology, "all_reduce", algorithm, (0, n, 1, n)).legal)
            for option in ("", PIPELINED)
        ]
        every = {
            form: machine.collective_cycles("all_reduce", form, n, 1, payload).last
            for form in forms
        }
        found = machine.collective_cycles("all_reduce", "auto", n, 1, payload)
        assert found.last == min(every.values())
        chosen, steps = machine.chosen("all_reduce", "auto", n, 1, payload)
        assert every[chosen] == min(every.values()) == float(steps.cycles(payload))
        # What gains nothing is not called pipelined.
        assert chosen == steps_of(chosen) or every[chosen] < every[steps_of(chosen)]


def test_names_are_those_of_algorithms_with_the_option_behind():
    for name in ALGORITHM_NAMES:
        check_algorithm(name)
        if name != "auto":
            check_algorithm(name + PIPELINED)
            assert steps_of(name + PIPELINED) == steps_of(name) == name
    for wrong in (
        "auto+pipelined",
        "+pipelined",
        "direct+pipelined+pipelined",
        "direct +pipelined",
        "pipelined",
    ):
        with pytest.raises(UnknownNameError, match="unknown collective"):
            check_algorithm(wrong)


# --- behind a producer ----------------------------------------------------------------------------


def one_link(n_vectors, spacing, *, pipelined):
    """First and last result of a reduce-scatter and an all-gather on links that are all alike.

    The k-th vector of every share is made at cycle `k * spacing`.
    """
    sent = []
    for k in range(n_vectors):
        sent.append(max(k * spacing, sent[-1] + FRAME if sent else 0.0))
    summed = [cycle + HOP for cycle in sent]
    back = []
    for k in range(n_vectors):
        ready = summed[k] if pipelined else summed[-1]
        back.append(max(ready, (back or sent)[-1] + FRAME))
    return back[0] + HOP, back[-1] + HOP


@pytest.mark.parametrize("option", ["", PIPELINED])
@pytest.mark.parametrize("n_vectors", [1, 10, 100])
@pytest.mark.parametrize("spacing", [0.0, 5.0, FRAME, 40.0, 200.0, 1000.0])
def test_behind_a_slow_producer_results_come_as_vector_by_vector(option, n_vectors, spacing):
    closed = priced(GROQ[8], "all_reduce", "direct" + option, (0, 8, 1, 8))
    passage = closed.passage(8 * n_vectors * VECTOR)
    made = (n_vectors - 1) * spacing
    first, last = one_link(n_vectors, spacing, pipelined=bool(option))
    assert max(passage.last, made + passage.last_behind) == pytest.approx(last)
    # Said to be there no earlier than it is, and with a producer that keeps up exactly then.
    said = max(passage.first, made + passage.first_behind)
    assert said >= first * (1 - ROUNDING)
    if spacing <= FRAME:
        assert said == pytest.approx(first)


@pytest.mark.first(2)
@pytest.mark.parametrize("option", ["", PIPELINED])
@pytest.mark.parametrize("kind", PRICED_KINDS)
def test_results_keep_their_order_for_every_algorithm(kind, option):
    for topology, cases in CASES:
        for case in cases:
            for algorithm in ALGORITHMS:
                closed = priced(topology, kind, algorithm + option, case)
                if not np.all(closed.legal):
                    continue
                for n_vectors in (1, 51, 6528):
                    found = closed.passage(n_vectors * VECTOR)
                    slack = 1 - ROUNDING
                    assert found.hops * slack <= min(found.first, found.last_behind)
                    assert found.first * slack <= found.last
                    assert found.first_behind * slack <= found.last_behind
                    assert found.last_behind * slack <= found.last
