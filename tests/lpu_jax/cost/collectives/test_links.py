"""Closed-form collectives against hand arithmetic and against links listed one by one."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from priced_and_listed import CLOCK_HZ, closed, explicit
from small_machines import ring

from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS, AUTO
from lpu_jax.cost.collectives.kinds import PRICED_KINDS
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.links import hand_overs, schedule
from lpu_jax.cost.placed_machine import Groups, PlacedMachine
from lpu_jax.datapath.axis import PIPELINED, steps_of
from lpu_jax.errors import CostError, UnknownNameError
from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.machine.lpu_chips import GROQ3_LPU, GROQCHIP1
from lpu_jax.machine.spans import Span
from lpu_jax.machine.system import System
from lpu_jax.provenance import constants_of

EVERY = [(kind, algorithm) for algorithm, row in ALGORITHMS.items() for kind in row.kinds]
LPX = LpxTopology(n_chips=256)
# Links per pair of nodes: 32, 16, 10, 8, 6, 4 (racks up to 9 nodes), 3, 2, 1; beyond 33 nodes 2.
NODES = (2, 3, 4, 5, 6, 9, 11, 12, 20)
MACHINES = (
    *(GroqTopology(n_chips=8 * nodes) for nodes in NODES),
    GroqTopology(n_chips=69),
    GroqTopology(n_chips=576),
    LPX,
    LpxTopology(n_chips=768),
    ring(4),
    ring(5),
)


@functools.cache
def machine_of(topology, group, first=0, stages=1):
    """A machine with stages one after another, wherever they lie."""
    spec = GROQ3_LPU if topology.family == "lpx" else GROQCHIP1
    named = System(name="test", chip=spec, topology=topology, n_chips=topology.n_chips)
    bases = first + group * np.arange(stages)
    return PlacedMachine(system=named, groups=(Groups(group, bases),))


# --- by hand --------------------------------------------------------------------------------------


def test_a_groq_node_by_hand():
    # 16 vectors over 8 chips; a hop is 722 ns, a frame 328 B at 12.5 GB/s.
    hop, frame = 722.0, 328 / 12.5
    by_hand = {
        ("all_reduce", "one_shot"): hop + 15 * frame,
        ("all_reduce", "direct"): 2 * (hop + frame),
        ("all_reduce", "ring"): 14 * (hop + frame),
        ("all_gather", "direct"): hop + frame,
        ("all_gather", "ring"): 7 * (hop + frame),
        ("reduce_scatter", "ring"): 7 * (hop + frame),
        ("all_to_all", "direct"): hop + frame,
        ("send", "direct"): hop + 15 * frame,
    }
    hops = {"one_shot": 1, "direct": 2, "ring": 14}
    for (kind, algorithm), cycles in by_hand.items():
        result = closed(GroqTopology(n_chips=8), kind, algorithm, 8)
        assert result.cycles(16 * 320) == pytest.approx(cycles)
        assert result.exact
        if kind == "all_reduce":
            assert result.hops == hops[algorithm]


def test_four_trays_by_hand():
    # 16 chips a tray, each with a link to its counterpart; 640 vectors over 64 chips.
    local, far = 350.0, 400.0
    frame, far_frame = 328 / 50, 328 / 25
    by_hand = {
        # a share for each chip: 40 vectors in the tray, 10 between trays
        "hier4": 2 * (local + 39 * frame) + 2 * (far + 9 * far_frame),
        "hier5": 2 * (local + 39 * frame) + 2 * (far + 9 * far_frame),
        "two_step": local + 639 * frame + far + 639 * far_frame,
        "flat3": 2 * (local + 39 * frame) + far + 39 * far_frame,
    }
    hops = {"hier4": 4, "hier5": 4, "two_step": 2, "flat3": 3}
    for algorithm, cycles in by_hand.items():
        result = closed(LPX, "all_reduce", algorithm, 64)
        assert result.cycles(640 * 320) == pytest.approx(cycles)
        assert (result.hops, bool(result.exact)) == (hops[algorithm], True)
    gather = closed(LPX, "all_gather", "two_step", 64)
    assert gather.cycles(640 * 320) == pytest.approx(far + 9 * far_frame + local + 39 * frame)
    exchange = closed(LPX, "all_to_all", "two_step", 64)
    assert exchange.cycles(640 * 320) == pytest.approx(local + 39 * frame + far + 159 * far_frame)


def test_two_level_reduction_of_nine_groq_nodes_by_hand():
    # 4 links for each pair of nodes, so 36 blocks; two chips own the links of a part, 4 each. In a
    # local step a chip gets 4 blocks, and the one of a pair on which the own block lands a fifth.
    topology = GroqTopology(n_chips=72)
    hop, frame = 722.0, 328 / 12.5
    result = closed(topology, "all_reduce", "hier5", 72)
    assert [float(step.share) * 36 for step in result.steps] == pytest.approx([5, 1, 1, 1, 5])
    assert result.cycles(360 * 320) == pytest.approx(5 * hop + (2 * 49 + 3 * 9) * frame)
    assert result.hops == 5


# --- against explicit schedules -------------------------------------------------------------------


@pytest.mark.first(30)
@pytest.mark.parametrize(("kind", "algorithm"), EVERY)
@pytest.mark.parametrize("topology", MACHINES, ids=lambda t: f"{t.family}-{t.n_chips}")
def test_where_it_says_exact_it_is_the_explicit_time(topology, kind, algorithm):
    size = topology.node_chips
    lengths = {2, 5, size, 2 * size, 3 * size, min(topology.rack_chips, topology.n_chips)}
    compared = 0
    for n in sorted(n for n in lengths if n <= min(128, topology.n_chips)):
        result = closed(topology, kind, algorithm, n)
        if not result.exact:
            continue
        # Divides by every number of parts above, so that all links carry their exact shares.
        n_vectors = 2 * n * n * topology.node_ports.n_links
        found = explicit(topology, kind, algorithm, n, n_vectors * 320)
        assert result.cycles(n_vectors * 320) == pytest.approx(found.cycles)
        assert result.hops == found.hops
        assert result.first_cycles == pytest.approx(found.first_cycles)
        busiest = [
            float(step.share) * n_vectors
            for step in result.steps
            for _ in range(int(step.times))
            if step.share > 0
        ]
        assert busiest == pytest.approx(found.busiest_vectors.tolist())
        assert result.link_bytes(n_vectors * 320) * n == pytest.approx(found.wire_bytes)
        compared += 1
    assert compared or algorithm in ("hier4", "hier5", "two_step") or kind == "send"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    topology=st.sampled_from(MACHINES),
    named=st.sampled_from(EVERY),
    n=st.sampled_from([2, 3, 4, 5, 8, 12, 16, 24, 32]),
    stride=st.sampled_from([1, 1, 1, 2, 3, 4, 8, 16, 32]),
    blocks=st.integers(1, 2),
    first=st.sampled_from([0, 0, 3, 8, 16, 30]),
    stages=st.integers(1, 2),
    divides=st.booleans(),
    few=st.sampled_from([1, 2, 45, 1000]),
)
@example(  # runs of one chip in each second node: their gateways are the same chip
    topology=MACHINES[5], named=("all_gather", "flat3"), n=4, stride=16, blocks=1, first=0,
    stages=1, divides=True, few=1,
)  # fmt: skip
def test_all_runs_at_once_are_never_slower_than_priced(
    topology, named, n, stride, blocks, first, stages, divides, few
):
    kind, algorithm = named
    n_vectors = 2 * n * n * topology.node_ports.n_links * 15 if divides else few
    group = n * stride * blocks
    assume(first + group * stages <= topology.n_chips)
    machine = machine_of(topology, group, first, stages)
    try:
        priced = machine.collective_cycles(kind, algorithm, n, stride, n_vectors * 320).last
    except CostError:  # no such links: take the algorithm that exists everywhere
        algorithm = "flat3"
        priced = machine.collective_cycles(kind, algorithm, n, stride, n_vectors * 320).last
    # Stages take turns, so the links are those of one stage at a time; the worst-placed is priced.
    listed = [
        link_schedule(
            topology, machine.chip.clock_hz, kind, algorithm, machine.runs(n, stride, stage),
            n_vectors * 320,
        )
        for stage in range(stages)
    ]  # fmt: skip
    found = max(listed, key=lambda schedule: schedule.cycles)
    _, chosen = machine.chosen(kind, algorithm, n, stride, n_vectors * 320)
    # Where vectors do not divide, each transfer on a link may carry one of the longer pieces.
    frame = max(float(step.cycles_per_vector) for step in chosen.steps)
    key = np.stack([found.step, found.src, found.dst, found.part])
    transfers = np.unique(key, axis=1, return_counts=True)[1]
    rounding = 0.0 if divides else frame * len(chosen.steps) * transfers.max()
    assert found.cycles <= priced + rounding + 1e-6
    if chosen.exact and divides:
        assert found.cycles == pytest.approx(priced)


ALONE = {n: GroqTopology(n_chips=n) for n in (576, 1224, 3000, 10_440)}


@given(st.data())
@settings(max_examples=12)
def test_runs_over_racks_that_are_alone_are_never_slower_than_priced(data):
    topology = ALONE[data.draw(st.sampled_from(sorted(ALONE)))]
    kind = data.draw(st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "send"]))
    stride = data.draw(st.sampled_from([1, 1, 2, 8]))
    block = stride * data.draw(st.integers(10, 240 // stride))
    first = data.draw(st.integers(0, min(topology.n_chips, 1000) - block).map(lambda b: b // 8 * 8))
    span = dataclasses.replace(topology.span([first], block, block), n_chips=block // stride)
    assert span.alone
    # Every piece of the cut is whole vectors.
    cut = topology.node_ports.n_links * topology.rack_ports.n_links
    payload = 320 * (2 * cut if kind in ("all_reduce", "send") else block // stride)
    priced = float(schedule(topology, CLOCK_HZ, kind, "flat3", span, stride).cycles(payload))
    runs = first + np.arange(block).reshape(-1, stride).T
    listed = link_schedule(topology, CLOCK_HZ, kind, "flat3", runs, payload).cycles
    assert listed <= priced * (1 + 1e-9)
    if kind == "all_reduce" and stride == 1 and block % 72 == first % 72 == 0 and span.racks > 1:
        assert listed == pytest.approx(priced)


@pytest.mark.parametrize("algorithm", ["hier4", "two_step"])
@pytest.mark.parametrize(("n", "stride"), [(16, 16), (4, 64), (32, 2), (8, 32), (16, 4)])
def test_runs_at_equal_positions_use_links_of_their_own(algorithm, n, stride):
    per_node = max(1, 16 // stride)
    result = closed(LPX, "all_reduce", algorithm, n, stride=stride)
    assert result.legal
    assert result.exact
    # The same as if the other runs were not there: a machine with smaller trays.
    local, far = 350.0, 800.0 if n * stride > 128 else 400.0
    frame, far_frame = 328 / 50, 328 / 25
    n_vectors = 3 * n * n
    if algorithm == "two_step":
        in_node = local + (n_vectors - 1) * frame
        expected = far + (n_vectors - 1) * far_frame
    else:
        in_node = 2 * (local + (n_vectors / per_node - 1) * frame)
        expected = 2 * (far + (n_vectors / n - 1) * far_frame)
    expected += in_node if per_node > 1 else 0.0
    assert result.cycles(n_vectors * 320) == pytest.approx(expected)
    # Three trays in 16 interleaved runs: their positions differ from tray to tray.
    odd = closed(LPX, "all_reduce", algorithm, 16, stride=3)
    assert not odd.legal
    assert np.isinf(odd.cycles(320))


def test_strided_runs_share_the_links_between_nodes():
    # Two nodes with 32 links; each of 8 runs has one chip in each node and sends 1/32 on a link.
    topology = GroqTopology(n_chips=16)
    one = closed(topology, "all_reduce", "flat3", 16)
    many = closed(topology, "all_reduce", "flat3", 2, stride=8)
    shares = [[float(step.share) * 32 for step in x.steps if step.share > 0] for x in (one, many)]
    assert shares == [pytest.approx([4, 1, 4]), pytest.approx([4, 8, 4])]


def test_gateways_of_runs_over_every_second_node_are_the_same_chip():
    # Two chips own the links of a part, one those to even and one those to odd ranks: nodes 0, 2,
    # 4 and 6 see each other at ranks of one kind only, so one chip has three links, not two.
    topology = GroqTopology(n_chips=72)
    priced = closed(topology, "all_gather", "flat3", 4, stride=16)
    found = explicit(topology, "all_gather", "flat3", 4, 4800 * 320, stride=16)
    last = float(priced.steps[-1].share) * 4800
    assert last == pytest.approx(3 * 4800 / 4 / 4)
    assert found.busiest_vectors[-1] == last


def test_what_each_chip_has_is_whole_vectors():
    # 45 vectors of 64 chips are one for each, so four trays of 16 send 4 to each mate, not 45 / 16.
    frame, far_frame = 328 / 50, 328 / 25
    for kind in ("all_gather", "reduce_scatter"):
        result = closed(LPX, kind, "two_step", 64)
        assert result.cycles(45 * 320) == pytest.approx(350 + 3 * frame + 400)
    exchange = closed(LPX, "all_to_all", "two_step", 64)
    assert exchange.cycles(45 * 320) == pytest.approx(350 + 3 * frame + 400 + 15 * far_frame)


# --- properties -----------------------------------------------------------------------------------

RUN = {
    "topology": st.sampled_from(MACHINES),
    "kind": st.sampled_from(PRICED_KINDS),
    "n": st.integers(2, 300),
    "first": st.integers(0, 40),
}


def legal_schedules(topology, kind, n, first):
    assume(first + n <= topology.n_chips)
    forms = [name + option for name in ALGORITHMS for option in ("", PIPELINED)]
    every = [closed(topology, kind, form, n, first=first) for form in forms]
    return {result.algorithm: result for result in every if result.legal}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(**RUN, payload=st.integers(1, 10**6), more=st.integers(0, 10**6))
def test_more_bytes_are_never_faster(topology, kind, n, first, payload, more):
    for result in legal_schedules(topology, kind, n, first).values():
        assert 0 < result.cycles(payload) <= result.cycles(payload + more)
        assert result.busiest_link_cycles(payload) <= result.busiest_link_cycles(payload + more)
        assert result.link_bytes(payload) <= result.link_bytes(payload + more)
        frames = sum(step.times * step.cycles_per_vector for step in result.steps)
        assert result.busiest_link_cycles(payload) <= result.cycles(payload) + frames


@settings(max_examples=25, deadline=None, derandomize=True)
@given(**RUN, payload=st.integers(1, 10**6))
def test_a_ring_is_never_faster_than_direct_and_auto_takes_the_fastest(
    topology, kind, n, first, payload
):
    legal = legal_schedules(topology, kind, n, first)
    machine = machine_of(topology, n, first)
    clock = machine.chip.clock_hz
    seconds = {name: float(result.cycles(payload)) / CLOCK_HZ for name, result in legal.items()}
    for option in ("", PIPELINED):
        if "ring" + option in seconds:
            assert seconds.pop("ring" + option) >= seconds["direct" + option] * (1 - 1e-12)
    auto = machine.collective_cycles(kind, "auto", n, 1, payload).last
    assert auto / clock == pytest.approx(min(seconds.values()))
    name, chosen = machine.chosen(kind, "auto", n, 1, payload)
    assert steps_of(name) in AUTO
    assert steps_of(name) != "ring"
    assert float(chosen.cycles(payload)) == auto


FACTORS = {"B/s": 2.0, "s": 0.5}


@functools.cache
def twice_as_fast(topology):
    """The same machine with every rate doubled and every latency halved."""
    changed = {
        constant.name: FACTORS[constant.unit] * constant.value
        for constant in constants_of(topology)
        if constant.unit in FACTORS
    }
    assert changed
    return dataclasses.replace(topology, **changed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(**RUN, payload=st.integers(1, 10**6))
def test_twice_the_clock_and_rates_and_half_the_latencies_halve_the_time(
    topology, kind, n, first, payload
):
    faster = twice_as_fast(topology)
    for algorithm, slow in legal_schedules(topology, kind, n, first).items():
        span = faster.span([first], n)
        fast = schedule(faster, 2 * CLOCK_HZ, kind, algorithm, span)
        seconds = slow.cycles(payload) / CLOCK_HZ
        assert fast.cycles(payload) / (2 * CLOCK_HZ) == pytest.approx(seconds / 2)


@pytest.mark.parametrize(("kind", "algorithm"), EVERY)
def test_legality_and_one_chip_for_many_plans_at_once(kind, algorithm):
    topology = LpxTopology(n_chips=768)
    lengths = (1, 2, 5, 13, 32, 48, 40, 250, 600)
    alone = [vars(topology.span([0], n)) for n in lengths]
    spans = Span(**{name: np.array([one[name] for one in alone]) for name in alone[0]})
    result = schedule(topology, CLOCK_HZ, kind, algorithm, spans)
    fills = np.isin(lengths, (1, 32, 48))
    legal = {"flat3": np.full(9, True), "hier4": fills, "hier5": fills, "two_step": fills}
    np.testing.assert_array_equal(
        result.legal, legal.get(algorithm, np.isin(lengths, (1, 2, 5, 13)))
    )
    cycles = result.cycles(14_336)
    assert np.all(np.isinf(cycles[~result.legal]))
    assert cycles[0] == result.hops[0] == result.link_bytes(14_336)[0] == 0
    assert np.all(cycles[1:] > 0)
    for index, n in enumerate(lengths):
        alone = schedule(topology, CLOCK_HZ, kind, algorithm, topology.span([0], n))
        assert alone.cycles(14_336) == cycles[index]
        assert alone.exact == result.exact[index]


# --- names and reports ---------------------------------------------------------------------------


def test_unknown_names_say_what_is_known():
    topology = GroqTopology(n_chips=8)
    span = topology.span([0], 8)
    with pytest.raises(UnknownNameError, match="all_reduce"):
        schedule(topology, CLOCK_HZ, "allreduce", "direct", span)
    with pytest.raises(UnknownNameError, match="flat3"):
        schedule(topology, CLOCK_HZ, "all_reduce", "flat", span)
    with pytest.raises(UnknownNameError, match="hier4"):
        machine_of(topology, 8).collective_cycles("all_reduce", "hier44", 8, 1, 320)
    with pytest.raises(CostError, match="positive"):
        schedule(topology, 0.0, "all_reduce", "direct", span)
    with pytest.raises(CostError, match="at least one chip"):
        schedule(topology, CLOCK_HZ, "all_reduce", "direct", span, 0)


def test_a_report_of_steps_adds_up():
    result = closed(GroqTopology(n_chips=72), "all_reduce", "hier5", 72)
    table = result.as_dict(360 * 320)
    assert [step["name"] for step in table["steps"]][2] == "exchange in node"
    total = sum(
        step["times"]
        * (step["latency_cycles"] + (step["vectors_per_link"] - 1) * step["cycles_per_vector"])
        for step in table["steps"]
    )
    assert table["cycles"] == pytest.approx(total)
    assert table["hops"] == sum(step["times"] * step["hops"] for step in table["steps"]) == 5
    carried = sum(step["links"] * step["vectors_per_link"] for step in table["steps"])
    assert table["link_bytes"] == pytest.approx(carried * 328)
    assert table["exact"] is True


# --- hand-overs -----------------------------------------------------------------------------------


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


# --- published figures: the tolerance of 2 % is for the rounding in which they were printed -------

PRINTED = 0.02


def test_published_all_reduce_of_256_groqchips():
    # ISCA22: three hops of 722 ns.
    topology = GroqTopology(n_chips=256)
    for algorithm in ("flat3", "auto"):
        passage = machine_of(topology, 256).collective_cycles("all_reduce", algorithm, 256, 1, 320)
        cycles = passage.last
        assert cycles / 0.9e9 == pytest.approx(2166e-9, rel=PRINTED)
    assert closed(topology, "all_reduce", "flat3", 256).hops == 3


def test_published_hop():
    topology = GroqTopology(n_chips=8)
    send = schedule(topology, 0.9e9, "send", "direct", topology.span([0], 8))
    assert send.cycles(320) == pytest.approx(650, rel=PRINTED)
    # ISCA22: 328 B at 12.5 GB/s are 23.6 cycles.
    assert send.cycles(640) - send.cycles(320) == pytest.approx(23.6, rel=PRINTED)
