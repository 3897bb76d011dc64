"""Systems from files: what a file changes, machines of a user's own, and every mistake in one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lpu_jax.cost.collectives.link_check import check
from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.links import schedule
from lpu_jax.errors import ConfigError, PlanError
from lpu_jax.machine.built_topologies import LpxTopology
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.describe import describe, describe_text
from lpu_jax.machine.levels import levels_of
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.machine.mixed_file import is_mixed
from lpu_jax.machine.toml_table import load
from lpu_jax.provenance import constants_of
from sharding.rank.compare import compare


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_names_a_chip(tmp_path):
    path = write(tmp_path, 'topology = "lpx"\nchips = 40\nchip = "groq3-lpu"\n')
    found = system(path)
    assert (found.name, found.n_chips, found.chip.name) == ("mine", 40, "groq3-lpu")


def test_a_file_overrides_constants_and_says_so(tmp_path):
    path = write(
        tmp_path,
        'name = "big"\ntopology = "groq"\nchips = 16\n[chip]\nbase = "groqchip1"\n'
        "sram_bytes = 1000000000\nclock_hz = 1.0e9\nreserved_fraction = 0\n",
    )
    found = system(str(path))
    assert found.name == "big"
    assert found.memory_bytes == 16_000_000_000
    by_name = {constant.name: constant for constant in constants_of(found.chip)}
    assert (by_name["sram_bytes"].status, by_name["sram_bytes"].source) == ("assumed", "user file")
    assert by_name["lanes"].status == "published"


OWN = """
chip = "groqchip1"
[[topology.level]]
name = "board"
units = 4
links = 2
bandwidth = "100 Gb/s"
latency = "722 ns"
"""
SHELF = """
[[topology.level]]
name = "shelf"
units = 3
links = 4
bandwidth = 12.5e9
latency = 1e-6
"""
ROW = SHELF.replace("shelf", "row") + 'wiring = "line"\n'


def test_a_file_changes_a_topology_and_takes_units(tmp_path):
    path = write(
        tmp_path,
        'chips = 512\nhost_overhead = "50 us"\n'
        '[chip]\nbase = "groq3-lpu"\nclock = "1.2 GHz"\nsram = "512 MiB"\nsram_bytes_x = 1\n'
        '[topology]\nbase = "lpx"\ntray_chips = 8\nrack_hop = "300 ns"\nlocal_hop_s = 4e-7\n',
    )
    with pytest.raises(ConfigError, match=r"'chip.sram_bytes_x'.*nearest: sram_bytes"):
        system(path)
    path.write_text(path.read_text().replace("sram_bytes_x = 1\n", ""))
    found = system(path)
    assert (found.chip.clock_hz, found.chip.sram_bytes) == (1.2e9, 512 * 2**20)
    assert isinstance(found.chip.sram_bytes, int)
    topology = found.topology
    assert (topology.node_chips, topology.nodes_per_rack) == (8, 32)
    assert (topology.rack_hop_s, topology.local_hop_s) == (300e-9, 400e-9)
    assert found.host_overhead_s == 50e-6
    sources = {constant.name: constant.source for constant in found.constants()}
    for name in ("tray_chips", "rack_hop_s", "clock_hz", "host_overhead_s"):
        assert sources[name] == "user file"
    assert sources["node_step_s"].startswith("HC26")


def test_levels_of_a_users_own_by_hand(tmp_path):
    found = system(write(tmp_path, OWN + SHELF + ROW.replace("links = 4", "links = 24")))
    topology = found.topology
    assert found.n_chips == topology.n_chips == 4 * 3 * 3
    assert (topology.node_chips, topology.nodes_per_rack, topology.n_racks) == (4, 3, 3)
    # Two links between two chips work as one of twice the rate.
    assert topology.local_bytes_per_s == 2 * 12.5e9
    # 4 links to each of 2 boards over 4 chips; 24 to a neighbour over 12 chips, two neighbours.
    assert topology.most_links == (3, 2, 2)
    assert topology.lanes_per_chip == 4 * (3 * 2 + 2 + 2 * 2)
    assert topology.rack_link_bytes_per_s == 2 * 12.5e9
    assert [level.name for level in levels_of(topology)] == ["board", "shelf", "row"]
    # Own board, shelf (a link of its own for every chip), then a row on from the middle one.
    assert topology.reach_s(4) == pytest.approx(722e-9)
    assert topology.reach_s(12) == pytest.approx(1.722e-6)
    assert topology.reach_s(36) == pytest.approx(2.722e-6)
    assert topology.graph.hops_from(0).max() == levels_of(topology)[-1].most_hops == 4
    by_name = {constant.name: constant for constant in constants_of(topology)}
    assert by_name["middle_hop_s"].source == "user file, level shelf"


def test_racks_may_form_a_ring(tmp_path):
    text = 'chips = 1280\nchip = "groq3-lpu"\n[topology]\nbase = "lpx"\nrack_chain = "{}"\n'
    ring = system(write(tmp_path, text.format("ring"))).topology
    assert (ring.rack_wiring, ring.n_racks) == ("ring", 5)
    assert len(ring.route(0, 4 * 256)) == 1
    with pytest.raises(ConfigError, match=r"rack_chain' must be 'line' or 'ring', got 'rng'"):
        system(write(tmp_path, text.format("rng")))


def test_a_chain_of_racks_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="rack_chain is 'rng'; it must be 'line' or 'ring'"):
        LpxTopology(n_chips=512, rack_chain="rng")


def test_a_line_of_two_levels_and_racks_linked_all_to_all(tmp_path):
    line = system(write(tmp_path, OWN + ROW)).topology
    assert (line.n_racks, line.nodes_per_rack, line.n_chips) == (3, 1, 12)
    assert line.reach_s(12) == pytest.approx(722e-9 + 1e-6)
    assert line.level_of(line.span([0], 5)) == "row"
    equal = system(write(tmp_path, OWN + SHELF + SHELF.replace("shelf", "hall").replace("4", "3")))
    assert equal.topology.rack_wiring == "node"
    spread = system(write(tmp_path, OWN + SHELF + SHELF.replace("shelf", "hall")))
    assert spread.topology.rack_wiring == "rack"
    for topology in (line, equal.topology, spread.topology):
        assert (topology.graph.hops_from(0) >= 0).all()
        hops = max(topology.graph.hops_from(src).max() for src in range(topology.n_chips))
        assert hops <= levels_of(topology)[-1].most_hops


def test_some_chips_of_a_users_machine(tmp_path):
    assert system(write(tmp_path, "chips = 9" + OWN + SHELF)).n_chips == 9
    with pytest.raises(ConfigError, match="1 to 12 chips, not 13"):
        system(write(tmp_path, "chips = 13" + OWN + SHELF))


FOLDER = Path(__file__).parents[3] / "examples" / "systems"
#: Mixed systems are in `test_mixed`.
EXAMPLES = [path for path in sorted(FOLDER.glob("*.toml")) if not is_mixed(load(path))]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_systems(path):
    found = system(path)
    assert (found.topology.graph.hops_from(0) >= 0).all()
    assert describe(found)["chips"] == found.n_chips
    assert found.name in describe_text(found)


@pytest.mark.slow
def test_plans_are_compared_on_a_users_machine():
    """From the example file to a ranking, as on any other machine."""
    assert len(EXAMPLES) >= 3
    path = next(path for path in EXAMPLES if path.stem == "two-level")
    found = compare("llama-3.1-8b", system(path), policy="int8")
    assert found.fitting > 0
    best = found.as_dict()["rows"][0]
    assert best["fits"]
    assert 0 < best["decode_latency_lower_s"] <= best["decode_latency_s"]


@pytest.mark.parametrize("levels", [OWN + SHELF, OWN + ROW, OWN + SHELF + ROW * 2])
def test_collectives_run_on_a_users_machine(tmp_path, levels):
    """The closed form prices what an explicit schedule, proven link by link, takes."""
    text = levels.replace(ROW * 2, ROW.replace("links = 4", "links = 12"))
    found = system(write(tmp_path, text))
    topology, clock_hz = found.topology, found.chip.clock_hz
    n, payload_bytes = found.n_chips, found.n_chips * 320
    span = topology.span([0], n)
    closed = schedule(topology, clock_hz, "all_reduce", "flat3", span)
    explicit = link_schedule(
        topology, clock_hz, "all_reduce", "flat3", np.arange(n)[None], payload_bytes
    )
    check(explicit, topology)
    # Whole nodes and pieces of equal size: the same but for the order of additions.
    assert explicit.cycles == pytest.approx(float(closed.cycles(payload_bytes)), rel=1e-9)


def test_a_chip_without_the_lanes_for_its_links_is_refused(tmp_path):
    path = write(tmp_path, 'topology = "lpx"\nchips = 256\nchip = "groqchip1"\n')
    with pytest.raises(ConfigError, match=r"need 90 lanes .*60 for its tray.*groqchip1 has 64"):
        system(path)
    few = dataclasses.replace(GROQCHIP1, c2c_lanes=43)
    with pytest.raises(PlanError, match="44 lanes"):
        dataclasses.replace(system("groq-264"), chip=few)


GOOD = 'topology = "groq"\nchips = 8\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chips = ", "not valid TOML"),
        ('chips = 8\nchip = "groqchip1"\n', "'topology' is missing; expected 'groq', 'lpx' or"),
        ('topology = "ring"\nchips = 8\n', "'groq' or 'lpx', or a table, got 'ring'"),
        ('topology = "groq"\nchips = "8"\n', "'chips' must be an integer, got '8'"),
        ('topology = "groq"\nchips = true\n', "'chips' must be an integer, got True"),
        ('topology = "groq"\nchips = 0\nchip = "groqchip1"\n', "'chips' must be 1 to .*, got 0"),
        ('topology = "groq"\nchips = 10441\nchip = "groqchip1"\n', "'chips': .* not 10441"),
        (f'topology = "groq"\nchips = 0x{"f" * 5000}\n', "got a int too large to print"),
        ("chips = " + "9" * 5000, "not valid TOML"),
        ("chips = " + "[" * 5000, "not valid TOML: nested too deeply"),
        (GOOD + 'name = "a\\nb"\nchip = "groqchip1"\n', r"printable characters, got 'a\\nb'"),
        (GOOD + 'name = ""\nchip = "groqchip1"\n', "'name' must be 1 to 200 printable"),
        (GOOD + '"a\\u0007" = 1\nchip = "groqchip1"\n', r"unknown key 'a\\x07'"),
        (GOOD, "'chip' is missing"),
        (GOOD + 'chip = "h100"\n', "unknown chip 'h100'"),
        (GOOD + 'speed = 1\nchip = "groqchip1"\n', "unknown key 'speed'"),
        (GOOD + "[chip]\nclock_hz = 1e9\n", "'chip.base' is missing"),
        (GOOD + '[chip]\nbase = "groqchip1"\nclok_hz = 1e9\n', "nearest: clock_hz"),
        (
            GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = "fast"\n',
            "a number and one of Hz, kHz, MHz, GHz, THz, got 'fast'",
        ),
        (
            GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = -1.0\n',
            r"from 900000 to 9e\+11 Hz, got -1.0",
        ),
        (GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = nan\n', r"from 900000 to .*, got nan"),
        (GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = inf\n', r"from 900000 to .*, got inf"),
        (GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = 0.9\n', r"from 900000 to .*, got 0.9"),
        (GOOD + '[chip]\nbase = "groqchip1"\nmem_slices = 0\n', "from 1 to 88000, got 0"),
        (GOOD + '[chip]\nbase = "groqchip1"\nlanes = 640\n', "equal, .* got 320 and 640"),
        (
            GOOD + '[chip]\nbase = "groqchip1"\nvxm_alus_per_lane = 4\n',
            "at most 'chip.vxm_alus_per_lane', got 8 and 4",
        ),
        (GOOD + '[chip]\nbase = "groqchip1"\nlanes = 1.5\n', "a whole number, got 1.5"),
        (GOOD + '[chip]\nbase = "groqchip1"\nreserved_fraction = 1.0\n', "below 1, got 1.0"),
        (GOOD + '[chip]\nbase = "groqchip1"\nmxm_fp16 = 3\n', "'chip.mxm_fp16' cannot be set"),
    ],
)
def test_bad_files_say_file_key_and_value(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        system(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("links = 2", "links = 0"), "'board': links must be 1 to .* not connected, got 0"),
        (("links = 2", "links = 6"), r"need 72 lanes of a chip \(72 for its board\); it has 64"),
        (("links = 2", "links = 2.5"), "'topology.level 1.links' must be an integer, got 2.5"),
        (("links = 2\n", ""), "'topology.level 1.links' is missing; expected an integer"),
        (("units = 4", "units = 1"), "'board': units must be 2 to 65536 .*leave it out.*, got 1"),
        (("units = 4", "units = -4"), "units must be 2 to"),
        (("units = 4", "units = 70000"), "units must be 2 to 65536"),
        (('"100 Gb/s"', "0"), "'board': bandwidth must be above 0 and finite, .*got 0.0"),
        (('"100 Gb/s"', "nan"), "bandwidth must be above 0 and finite, .*got nan"),
        (('"100 Gb/s"', "inf"), "bandwidth must be above 0 and finite, .*got inf"),
        (('"100 Gb/s"', "-1e9"), "bandwidth must be above 0"),
        (('"100 Gb/s"', '"0 GB/s"'), "bandwidth must be above 0"),
        (('"100 Gb/s"', '"100 Gb"'), "level 1.bandwidth' has the unknown unit 'Gb'; allowed: B/s"),
        (('"100 Gb/s"', '"100 furlongs"'), "unknown unit 'furlongs'; allowed: B/s, kB/s"),
        (('"100 Gb/s"', '"fast"'), "must be a number and one of B/s.*, got 'fast'"),
        (('"100 Gb/s"', "true"), "must be a number in B/s, or a string .*, got True"),
        (('"100 Gb/s"', "1" + "0" * 400), "bandwidth' is too large"),
        (('bandwidth = "100 Gb/s"\n', ""), "level 1.bandwidth' is missing; expected a number in"),
        (('"722 ns"', '"722 nm"'), "unknown unit 'nm'; allowed: s, ms, us, ns, ps"),
        (('"722 ns"', "0"), "latency must be above 0 and finite, in seconds, got 0.0"),
        (('"board"', '""'), "name must be 1 to 40 printable characters"),
        (('"board"', "7"), "level 1.name' must be a string, got 7"),
        (("latency", "delay"), "unknown key 'topology.level 1.delay'; allowed: bandwidth, "),
        (("latency", 'wiring = "ring"\nlatency'), "wiring' must be 'all-to-all' or 'line', got"),
        (("latency", 'wiring = "line"\nlatency'), "wiring must be 'all-to-all' at the level of ch"),
        (("latency", "lanes = 0\nlatency"), "lanes must be at least 1, got 0"),
        (("[[topology.level]]", "[topology]\nlevel = 3\n[x]"), "unknown key 'x'"),
    ],
)
def test_bad_levels_say_file_key_and_value(tmp_path, change, message):
    assert change[0] in OWN
    with pytest.raises(ConfigError, match=message) as caught:
        system(write(tmp_path, OWN.replace(*change)))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN + SHELF.replace("shelf", "board"), "different names, got 'board', 'board'"),
        (OWN + ROW + SHELF, "'row': wiring must be 'all-to-all' unless it is the outermost"),
        (OWN + ROW.replace("links = 4", "links = 6"), "links must be a multiple of 4, .*got 6"),
        (OWN + SHELF * 3, "1 to 3 levels, not 4"),
        (OWN + SHELF.replace("units = 3", "units = 40000"), "160000 chips; at most 65536"),
        (OWN + SHELF.replace("links = 4", "links = 400"), "need 824 lanes .*800 for its shelf"),
        ('chip = "groqchip1"\n[topology]\nlevel = 3\n', r"array of tables \(\[\[topology.level"),
        ('chip = "groqchip1"\n[topology]\nlevel = [3]\n', r"array of tables"),
        ('chip = "groqchip1"\n[topology]\nlevel = []\n', "1 to 3 levels, not 0"),
        ('chip = "groqchip1"\n[topology]\n', "either 'base' .* or levels .*, got neither"),
        (
            'chip = "groqchip1"\n[topology]\nbase = "lpx"\nlevel = []\n',
            "either 'base' .* or levels",
        ),
        ('chip = "groqchip1"\n[topology]\nbase = "ring"\n', "'topology.base' must be 'groq' or 'l"),
        ('chip = "groqchip1"\n[topology]\nbase = "groq"\n', "'chips' is missing"),
        ("topology = 3\n", "'topology' must be 'groq' or 'lpx', or a table, got 3"),
        (
            'chips = 256\nchip = "groq3-lpu"\n[topology]\nbase = "lpx"\ntray_chips = 24\n',
            "'topology': half a rack of 128 chips is not a whole number of trays of 24",
        ),
        (
            'chips = 256\nchip = "groq3-lpu"\n[topology]\nbase = "lpx"\ntray_chips = 4\n',
            "needs 138 lanes .*; 95 are wired",
        ),
        (
            'chips = 8\nchip = "groqchip1"\n[topology]\nbase = "groq"\nrack_hop = "225 n"\n',
            "'topology.rack_hop' has the unknown unit 'n'; allowed: s, ms, us, ns, ps",
        ),
        (
            'chips = 8\nchip = "groqchip1"\n[topology]\nbase = "groq"\nrack_hop = 722\n',
            "'topology.rack_hop' must be from 7.22e-10 to 0.000722 s, got 722",
        ),
        (
            'chips = 8\nchip = "groqchip1"\n[topology]\nbase = "groq"\nrack_hop = 1e-6\n'
            "rack_hop_s = 1e-6\n",
            "'topology.rack_hop_s' is given twice",
        ),
        (
            'chips = 8\nchip = "groqchip1"\n[topology]\nbase = "groq"\nhops = 3\n',
            "'topology.hops': unknown topology constant 'hops'",
        ),
        ('chips = 8\nchip = "groqchip1"\ntopology = "groq"\nhost_overhead = -1\n', "0 to 1 s, got"),
        (
            'chips = 8\nchip = "groqchip1"\ntopology = "groq"\nhost_overhead = "1 h"\n',
            "'host_overhead' has the unknown unit 'h'",
        ),
    ],
)
def test_bad_topologies_are_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        system(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        system(tmp_path / "none.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        system(path)


def test_a_file_whose_name_cannot_be_printed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"bell\\x07\.toml'.* printable"):
        system(tmp_path / "bell\a.toml")
