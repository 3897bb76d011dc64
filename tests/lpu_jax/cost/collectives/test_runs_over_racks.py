"""Runs over racks: how many share a link, by hand and counted over links listed one by one.

The closed form says it with the mask of each run (`closed_form.runs`); here the transfers of all
runs of a group are listed, and the runs on each link are counted. A step's `streams` are the runs
on its busiest link, or a run twice if it crosses the link twice; its `share` is what they carry.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lpu_jax.cost.collectives.kinds import PRICED_KINDS
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.links import schedule
from lpu_jax.errors import CostError
from lpu_jax.machine.built_topologies import GroqTopology
from lpu_jax.machine.custom_topology import LevelSpec, custom_topology

CLOCK_HZ = 1e9
VECTOR = 320
REL = 1e-9  # rounding of shares such as 1/3


def machine(*levels):
    """Nodes of 4 chips; a level is units, links of each pair, and its wiring."""
    specs = [
        LevelSpec(
            name=f"level {i}", units=units, links=links, lanes=1, link_bytes_per_s=1e9, hop_s=1e-6,
            wiring=wiring,
        )
        for i, (units, links, wiring) in enumerate(levels)
    ]  # fmt: skip
    return custom_topology(specs, chip_lanes=60)


NODE = (4, 1, "all-to-all")
#: Four racks of three nodes in a line. Two links join two nodes: half the chips are gateways.
GATEWAYS = machine(NODE, (3, 2, "all-to-all"), (4, 12, "line"))
#: The same with a link from every chip to its counterpart.
PAIRS = machine(NODE, (3, 4, "all-to-all"), (4, 12, "line"))
#: Three racks, nodes of equal place linked; and four racks, linked by chips anywhere in them.
BY_NODE = machine(NODE, (3, 2, "all-to-all"), (3, 6, "all-to-all"))
BY_RACK = machine(NODE, (3, 4, "all-to-all"), (4, 4, "all-to-all"))
assert [t.rack_wiring for t in (GATEWAYS, PAIRS, BY_NODE, BY_RACK)] == [
    "line", "line", "node", "rack",
]  # fmt: skip


def closed_form(topology, kind, first, n, stride, blocks):
    """The closed form over all runs of a group of chips."""
    group = n * stride * blocks
    span = dataclasses.replace(topology.span([first], n * stride, group), n_chips=n)
    return schedule(topology, CLOCK_HZ, kind, "flat3", span, stride)


def closed_steps(topology, kind, first, n, stride, blocks):
    """Name, share and streams of each step, those that are repeated several times."""
    steps = closed_form(topology, kind, first, n, stride, blocks).steps
    return [
        (step.name, float(step.share), float(step.streams))
        for step in steps
        if step.share > 0
        for _ in range(int(np.max(step.times)))
    ]


def listed_steps(topology, kind, first, n, stride, blocks):
    """Name of each step, the share of its busiest link, and the most runs that share a link."""
    starts = np.arange(first, first + n * stride * blocks, n * stride)
    runs = np.add.outer(np.add.outer(starts, np.arange(stride)).reshape(-1), stride * np.arange(n))
    # Divides by every number of pieces that runs are cut into here.
    n_vectors = 2 * n * topology.node_chips * topology.node_ports.n_links
    n_vectors *= topology.rack_ports.n_links
    listed = link_schedule(topology, CLOCK_HZ, kind, "flat3", runs, n_vectors * VECTOR)
    columns = (listed.step, listed.src, listed.dst, listed.part, listed.run)
    on_link = np.unique(np.stack(columns), axis=1)[:4]
    link, n_runs = np.unique(on_link, axis=1, return_counts=True)
    most = [int(n_runs[link[0] == step].max()) for step in range(listed.hops)]
    shares = listed.busiest_vectors / n_vectors
    return list(zip(listed.step_names, shares.tolist(), most, strict=True))


def matched(closed, listed):
    """Pair steps by name; None for steps in which runs at these places have nothing to do."""
    rest = list(listed)
    pairs = [(step, rest.pop(0) if rest and rest[0][0] == step[0] else None) for step in closed]
    assert not rest
    return pairs


# --- by hand --------------------------------------------------------------------------------------

_ = None  # the closed form bounds it, and is not exact
BY_HAND = [
    # Spread, between nodes, collect, between racks (a step for each rack but one), gather.
    # Two runs of 12 from chip 6 on: they meet in the node of chips 16 to 19 and nowhere else.
    (GATEWAYS, (6, 12, 1, 2), (1, 2, 2, 1, 1)),
    # Alone there is nobody to meet, and who fills nodes shares none.
    (GATEWAYS, (6, 12, 1, 1), (1, 1, 1, 1, 1)),
    (GATEWAYS, (0, 24, 1, 2), (1, 1, _, 1, 1)),
    # Interleaved runs have chips in the same nodes.
    (GATEWAYS, (0, 12, 2, 1), (1, 2, 2, 2, 1)),
    (GATEWAYS, (0, 6, 4, 1), (1, 4, 4, 4, 1)),
    # Interleaved, and blocks of them that meet in a node: 2 times 2.
    (GATEWAYS, (2, 8, 2, 2), (1, 4, 4, 2, 1)),
    # Five runs, of which a node of 4 chips has at most four.
    (GATEWAYS, (0, 8, 5, 1), (1, 4, _, 5, 5, _, _)),
    (GATEWAYS, (7, 12, 3, 1), (1, 3, 3, 3, 3, 3, 1)),
    # Spread, between nodes, between racks, gather: every chip has its own links.
    (PAIRS, (6, 12, 1, 2), (1, 2, 1, 1)),
    (PAIRS, (6, 12, 1, 1), (1, 1, 1, 1)),
    (PAIRS, (0, 24, 1, 2), (1, 1, 1, 1)),
    (PAIRS, (0, 12, 2, 1), (1, 2, 2, 1)),
    (PAIRS, (0, 6, 4, 1), (1, 4, 4, 1)),
    (PAIRS, (2, 8, 2, 2), (1, 4, 2, 1)),
    # A stride of 6 divides the rack of 12 chips: the runs are at equal places in every rack, and 4
    # of the 6 have chips in a node. At a stride of whole racks they are no less regular.
    (PAIRS, (0, 6, 6, 1), (1, _, 4, 4, 1)),
    (PAIRS, (0, 4, 12, 1), (1, _, 4, 4, 4, 1)),
    (PAIRS, (0, 2, 24, 1), (1, _, 4, 4, 4, 1)),
    # One of 5 or 8 does not divide it: runs change places from rack to rack. Over three racks each
    # link has data of two racks, of 4 runs each, or of as many runs as there are.
    (PAIRS, (0, 4, 8, 1), (1, 4, 8, _, 1)),
    (PAIRS, (0, 8, 5, 1), (1, 4, 5, 5, _, 1)),
    (PAIRS, (0, 4, 5, 1), (1, 4, 4, 1)),
    # Spread, between nodes, collect, between racks, gather. Chips forward for runs next to theirs.
    (BY_NODE, (6, 12, 1, 2), (_, 2, 2, 1, _)),
    (BY_NODE, (6, 12, 1, 1), (1, 1, 1, 1, 1)),
    (BY_NODE, (0, 12, 2, 1), (_, 2, 2, 2, _)),
    (BY_NODE, (0, 6, 4, 1), (_, 4, 4, 4, _)),
    # Behind the racks: reduce in the node, between nodes, gather. All 12 runs use all rack links.
    (BY_RACK, (6, 12, 1, 2), (_, 2, 2, 1, _, 2, _)),
    (BY_RACK, (12, 24, 1, 1), (1, 1, 1, 1, 1, 1, 1)),
    (BY_RACK, (0, 16, 1, 2), (_, _, 2, 1, _, _, _)),
    (BY_RACK, (0, 12, 2, 1), (_, 2, 2, 2, 2, 2, _)),
    (BY_RACK, (0, 6, 4, 1), (_, 4, 4, 4, 4, 4, _)),
    (BY_RACK, (0, 4, 6, 1), (_, _, 6, 6, 6, _, _)),
    (BY_RACK, (0, 2, 12, 1), (_, _, _, 12, _, _, _)),
    # Runs inside a rack use no other's local links, and nobody forwards for them.
    *((topology, (0, 6, 1, 2), (1, 1, 1)) for topology in (GATEWAYS, PAIRS, BY_NODE, BY_RACK)),
    *((topology, (0, 6, 2, 1), (1, 2, 1)) for topology in (GATEWAYS, PAIRS, BY_NODE, BY_RACK)),
]


@pytest.mark.parametrize(("topology", "case", "n_runs"), BY_HAND)
def test_runs_that_share_a_link_by_hand(topology, case, n_runs):
    closed = closed_steps(topology, "all_reduce", *case)
    listed = listed_steps(topology, "all_reduce", *case)
    for expected, (found, counted) in zip(n_runs, matched(closed, listed), strict=True):
        name, _share, streams = found
        if expected is not _:
            assert streams == expected, name
            assert counted is None or counted[2] == expected, name


@pytest.mark.parametrize(
    ("here", "there", "twice"), [(8, 8, True), (9, 8, True), (16, 16, False), (16, 72, False)]
)
def test_a_run_with_one_node_in_a_rack_forwards_twice(here, there, twice):
    # 74 racks: one link joins two of them, and ends where the run may have no chip. A single node
    # of the run then forwards to the chip with the link and for it; two nodes share that out.
    topology = GroqTopology(n_chips=74 * 72)
    case = (72 - here, here + there, 1, 1)
    closed, listed = (f(topology, "all_reduce", *case) for f in (closed_steps, listed_steps))
    assert [s for _, _, s in closed] == ([2, 1, 2, 1, 2, 1, 2] if twice else [1] * 7)
    exact = (0, 1, 3, 4, 5) if twice else range(7)
    for step in exact:
        assert closed[step][0] == listed[step][0]
        assert closed[step][1] == pytest.approx(listed[step][1], rel=REL)


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_that_lacks_one_chip_does_not_fill_its_nodes(first):
    topology = GroqTopology(n_chips=16)
    closed = schedule(topology, CLOCK_HZ, "all_reduce", "hier5", topology.span([first], 15))
    assert not closed.legal
    with pytest.raises(CostError, match="several nodes of a rack"):
        link_schedule(
            topology, CLOCK_HZ, "all_reduce", "hier5", first + np.arange(15)[None], VECTOR
        )


# --- counted --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    topology=st.sampled_from([GATEWAYS, PAIRS, BY_NODE, BY_RACK]),
    kind=st.sampled_from(PRICED_KINDS),
    first=st.integers(0, 15),
    n=st.sampled_from([2, 3, 4, 5, 6, 8, 9, 12, 16, 24]),
    stride=st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, 8, 12]),
    blocks=st.integers(1, 3),
)
# Runs inside a rack, at other places in each node.
@example(topology=GATEWAYS, kind="all_gather", first=0, n=4, stride=3, blocks=1)
# Runs that collect on one gateway, more than a node has chips; and that gather before the racks.
@example(topology=GATEWAYS, kind="all_reduce", first=0, n=2, stride=20, blocks=1)
@example(topology=PAIRS, kind="all_gather", first=3, n=3, stride=6, blocks=2)
def test_no_step_carries_more_than_it_is_priced_at(topology, kind, first, n, stride, blocks):
    assume(kind != "all_to_all" or n < 10)
    assume(first + n * stride * blocks <= topology.n_chips)
    assume(topology.span([first], n * stride, n * stride * blocks).nodes > 1)
    case = (kind, first, n, stride, blocks)
    closed, listed = closed_steps(topology, *case), listed_steps(topology, *case)
    if kind == "reduce_scatter":  # the mirror image of an all_gather: its steps run backwards
        assert max(share for _, share, _ in listed) <= max(share for _, share, _ in closed)
        return
    exact = bool(closed_form(topology, *case).exact)
    for (name, priced, _), counted in matched(closed, listed):
        assert counted is not None or not exact, (name, case)
        assert counted is None or counted[1] <= priced * (1 + REL), (name, case)
        assert not exact or counted[1] == pytest.approx(priced, rel=REL), (name, case)
