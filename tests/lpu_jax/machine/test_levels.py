"""Levels as people are shown them, against counts by hand, on machines of every wiring."""

import pytest
from wired_machines import MACHINES, name_of

from lpu_jax.errors import PlanError
from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.machine.levels import levels_of, table


def test_level_of_names_the_outermost_level_that_runs_cross():
    lpx = LpxTopology(n_chips=2304)
    crossed = [lpx.level_of(lpx.span([0], n)) for n in (1, 2, 16, 17, 128, 129, 256, 257, 2304)]
    assert crossed == [
        "chip", "tray", "tray", "half rack", "half rack", "rack", "rack", "racks", "racks",
    ]  # fmt: skip
    assert lpx.level_of(lpx.span([15], 2)) == "half rack"
    groq = GroqTopology(n_chips=264)
    assert [groq.level_of(groq.span([0], n)) for n in (8, 9, 264)] == ["node", "nodes", "nodes"]
    racks = GroqTopology(n_chips=576)
    assert [racks.level_of(racks.span([0], n)) for n in (8, 72, 73)] == ["node", "rack", "racks"]


@pytest.mark.parametrize("topology", MACHINES, ids=name_of)
def test_levels_nest_and_their_links_add_up(topology):
    inner = "chip"
    chips = 1
    for level in levels_of(topology):
        assert level.unit == inner
        assert chips < level.chips <= chips * level.units
        assert level.as_dict()["name"] == level.name
        inner, chips = level.name, level.chips
    assert chips == topology.installed_chips
    assert sum(level.links_per_chip for level in levels_of(topology)) == sum(topology.most_links)
    text = table(levels_of(topology))
    assert len(text.splitlines()) == 1 + len(levels_of(topology))


def test_levels_of_an_lpx_rack_by_hand():
    tray, half, rack, racks = levels_of(LpxTopology(n_chips=2304))
    assert [tray.units, half.units, rack.units, racks.units] == [16, 8, 2, 9]
    assert [tray.chips, half.chips, rack.chips, racks.chips] == [16, 128, 256, 2304]
    # 7 trays of the own half, 8 of the other.
    assert [half.links_per_chip, rack.links_per_chip] == [7, 8]
    # 8 x 8 pairs of trays with 16 links each; each of 256 chips to the next rack.
    assert [half.links_per_pair, rack.links_per_pair, racks.links_per_pair] == [16, 1024, 256]
    assert [level.hop_s for level in (tray, half, rack, racks)] == pytest.approx(
        [350e-9, 400e-9, 800e-9, 450e-9]
    )


def test_the_spare_node_of_a_groq_rack_is_installed_and_linked():
    rack = GroqTopology(n_chips=64, spare_nodes=1)
    assert (rack.n_nodes, rack.installed_nodes, rack.installed_chips) == (8, 9, 72)
    assert [level.units for level in levels_of(rack)] == [8, 9]
    assert rack.graph.hops_from(0)[64:].min() > 0
    with pytest.raises(PlanError, match="chip 64"):
        rack.route(0, 64)
    with pytest.raises(PlanError, match="only modelled up to 33 nodes"):
        GroqTopology(n_chips=264, spare_nodes=1)
