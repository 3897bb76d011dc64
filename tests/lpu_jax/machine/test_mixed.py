"""Mixed systems: names, files, what they are made of, draws, and every mistake in one sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import config

from lpu_jax.errors import ConfigError, LpuError, PlanError, UnknownNameError
from lpu_jax.machine.catalogue import any_system, named_mixed_systems, system
from lpu_jax.machine.describe import describe, describe_text
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.mixed_file import is_mixed
from lpu_jax.machine.pool_link import PoolLink
from lpu_jax.machine.time_range import time_range
from lpu_jax.machine.toml_table import load
from lpu_jax.machine.uncertainty import (
    draw_system,
    extremes,
    in_one_reading,
    uncertain_constants,
    value_of,
    variant,
)
from lpu_jax.provenance import constants_of

FOLDER = Path(__file__).parents[3] / "examples" / "systems"
EXAMPLES = [path for path in sorted(FOLDER.glob("*.toml")) if is_mixed(load(path))]


@pytest.fixture
def rubin() -> MixedSystem:
    found = any_system("vr-lpx-1")
    assert isinstance(found, MixedSystem)
    return found


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpus", "lpus", "port_bytes_per_s"),
    [
        ("vr-lpx-1", "vr-nvl72", "lpx-1", 200e9),
        ("VR-LPX-9", "vr-nvl72", "lpx-9", 200e9),
        ("h100-lpx-2", "h100x8", "lpx-2", 50e9),
    ],
)
def test_a_name_is_two_machines_and_the_network_of_the_gpus(
    name: str, gpus: str, lpus: str, port_bytes_per_s: float
) -> None:
    found = any_system(name)
    assert isinstance(found, MixedSystem)
    assert (found.name, found.gpus, found.lpus) == (name.lower(), system(gpus), system(lpus))
    assert found.link.gpu_port_bytes_per_s == port_bytes_per_s
    assert found.n_chips == found.gpus.n_chips + found.lpus.n_chips
    assert found.dram_bytes == found.lpus.n_chips // 8 * 256 * 10**9


def test_one_machine_is_still_one_machine() -> None:
    assert any_system("lpx-9") == system("lpx-9")
    assert any_system(FOLDER / "two-level.toml") == system(FOLDER / "two-level.toml")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vr-lpx-9", "vr-lpx-9 is a mixed system, vr-nvl72 beside lpx-9; where one machine is"),
        ("h100-lpx-1", "h100-lpx-1 is a mixed system, h100x8 beside lpx-1; where one machine is"),
        ("vr-lpx", "unknown system 'vr-lpx'; nearest: vr-lpx-N"),
    ],
)
def test_where_one_machine_is_needed_a_mixed_one_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(UnknownNameError, match=sentence):
        system(name)


@pytest.mark.parametrize("name", ["vr-lpx-0", "vr-lpx-65", "h100-lpx-x", "vr-lpx-" + "9" * 30, 3])
def test_other_names_are_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(UnknownNameError) as error:
        any_system(name)
    assert "\n" not in str(error.value)


def test_the_listing_is_made_of_names_that_work() -> None:
    for listed in named_mixed_systems():
        assert any_system(listed.name) == listed
        assert hash(listed) == hash(any_system(listed.name))


# --- what they are made of ------------------------------------------------------------------------


@pytest.mark.parametrize("machine", named_mixed_systems(), ids=lambda machine: machine.name)
def test_a_description_has_both_machines_and_every_number_of_the_network(
    machine: MixedSystem,
) -> None:
    data, text = describe(machine), describe_text(machine)
    json.dumps(data, allow_nan=False)
    assert data["pools"] == {"gpus": describe(machine.gpus), "lpus": describe(machine.lpus)}
    assert describe_text(machine.gpus) in text
    assert describe_text(machine.lpus) in text
    assert [row["name"] for row in data["link"]] == [c.name for c in constants_of(machine.link)]
    for constant in constants_of(machine.link):
        assert constant.name in text
        assert f"{constant.status}: {constant.source}" in text
    assert machine.note.startswith("GPU roofline: ")
    assert machine.note.endswith(f"{machine.lpus.name} has a static schedule.")


def test_constants_are_those_of_both_machines_and_of_the_network(rubin: MixedSystem) -> None:
    constants = {constant.name: constant for constant in rubin.constants()}
    parts = (rubin.gpus.constants(), rubin.lpus.constants(), constants_of(rubin.link))
    assert len(constants) == sum(map(len, parts))
    assert constants["link.latency_s"].is_assumed
    assert constants["gpus.chip.memory_bytes"].value == 288 * 10**9
    assert constants["lpus.topology.rack_chips"].value == 256


@pytest.mark.parametrize(
    ("field", "wrong", "error", "sentence"),
    [
        ("name", 3, ConfigError, "MixedSystem.name is 3; it must be a string"),
        ("link", None, ConfigError, "MixedSystem.link is None; it must be a PoolLink"),
        ("gpus", "vr-nvl72", ConfigError, "MixedSystem.gpus is 'vr-nvl72'; .* a System of GPUs"),
        ("lpus", None, ConfigError, "MixedSystem.lpus is None; it must be a System of LPUs"),
        ("gpus", "lpx-2", ConfigError, "MixedSystem.gpus is lpx-2, which is made of LPUs; a mixed"),
        ("lpus", "h100x8", ConfigError, "MixedSystem.lpus is h100x8, which is made of GPUs; a mix"),
        ("link", 7, PlanError, r"need 90 lanes of a chip \(60 .*\) and the network 7; groq3-lpu"),
    ],
)
def test_a_mixed_system_is_one_of_each(
    monkeypatch: pytest.MonkeyPatch,
    rubin: MixedSystem,
    field: str,
    wrong: Any,
    error: type[LpuError],
    sentence: str,
) -> None:
    if wrong in ("lpx-2", "h100x8"):
        wrong = system(wrong)
    if wrong == 7:
        wrong = dataclasses.replace(PoolLink(), lpu_lanes=wrong)
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(error, match=sentence):
        dataclasses.replace(rubin, **{field: wrong})


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", named_mixed_systems(), ids=lambda machine: machine.name)
def test_every_range_says_at_which_end_times_are_shorter(machine: MixedSystem) -> None:
    for name, constant in uncertain_constants(machine).items():
        assert constant.options or constant.faster_at in ("low", "high"), name


def test_uncertain_are_those_of_the_machines_and_of_the_network(rubin: MixedSystem) -> None:
    found = uncertain_constants(rubin)
    for pool, machine in rubin.pools.items():
        own = {f"{pool}.{name}": c for name, c in uncertain_constants(machine).items()}
        assert {name: c for name, c in found.items() if name.startswith(pool)} == own
    of_link = {name.removeprefix("link.") for name in found if name.startswith("link.")}
    assert of_link == {
        "fpga_port_bytes_per_s", "efficiency", "latency_s", "wire_format", "dram_bytes_per_s",
        "dram_latency_s",
    }  # fmt: skip


def test_a_draw_is_a_mixed_system_within_its_ranges(rubin: MixedSystem) -> None:
    rng = np.random.default_rng(2)
    ranges, seen = uncertain_constants(rubin), set()
    for _ in range(20):
        drawn = draw_system(rubin, rng)
        for name, constant in ranges.items():
            value = value_of(drawn, name)
            seen |= {name} if value != constant.value else set()
            if constant.options:
                assert value in constant.options
            else:
                assert constant.low <= value <= constant.high
        before, after = rubin.constants(), drawn.constants()
        assert [(c.name, c.source, c.low, c.options) for c in before] == [
            (c.name, c.source, c.low, c.options) for c in after
        ]
    assert seen == set(ranges)


def test_draws_depend_on_the_seed_alone_and_begin_with_the_gpus(rubin: MixedSystem) -> None:
    drawn = draw_system(rubin, np.random.default_rng(5))
    assert drawn == draw_system(rubin, np.random.default_rng(5))
    assert drawn != draw_system(rubin, np.random.default_rng(6))
    assert drawn.gpus == draw_system(rubin.gpus, np.random.default_rng(5))


def test_a_variant_changes_one_part(rubin: MixedSystem) -> None:
    values = {"link.latency_s": 2e-6, "lpus.chip.transit_cycles": 30}
    changed = variant(rubin, values)
    assert {name: value_of(changed, name) for name in values} == values
    assert changed.gpus == rubin.gpus
    assert variant(rubin, {}) == rubin


def test_an_end_is_that_of_the_whole_reading_in_its_pool(rubin: MixedSystem) -> None:
    stream, rows = "weight_stream_bytes_per_cycle", "array_load_rows_per_cycle"
    found = in_one_reading(uncertain_constants(rubin), f"lpus.chip.{stream}", 30_720)
    assert found == {f"lpus.chip.{stream}": 30_720, f"lpus.chip.{rows}": 16}


@pytest.mark.slow
def test_the_range_of_a_transfer_is_that_of_the_network(rubin: MixedSystem) -> None:
    """By hand: 1,000 values over 4 lanes, from 1 byte each at 97.7 % to 4 bytes at 76 %."""

    def times(machine: MixedSystem) -> np.ndarray:
        n_bytes = 1000 * machine.link.wire_value_bits // 8
        return np.array([machine.link.transfer_s(n_bytes, 4, 72)])

    shortest, longest = time_range(rubin, times)
    assert shortest == pytest.approx(1.5e-6 + 1000 / (0.977 * 50e9), rel=1e-12)
    assert longest == pytest.approx(10e-6 + 4000 / (0.76 * 50e9), rel=1e-12)
    for name, constant in uncertain_constants(rubin).items():
        for value in extremes(constant):
            assert shortest <= times(variant(rubin, {name: value})) <= longest


# --- files ----------------------------------------------------------------------------------------

POOLS = '[pool.gpus]\nsystem = "h100x8"\n[pool.lpus]\nsystem = "lpx-2"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_names_two_machines(tmp_path: Path) -> None:
    found = any_system(write(tmp_path, POOLS))
    assert found == dataclasses.replace(any_system("h100-lpx-2"), name="mine")


def test_what_a_file_says_of_the_network_comes_back(tmp_path: Path) -> None:
    given = {
        "lpu_lanes": 2, "lane": "200 Gb/s", "fpga_lpus": 4, "fpga_port": "400 Gb/s",
        "gpu_port_bytes_per_s": 100e9, "efficiency": 0.9, "latency": "2.5 us",
        "wire_format": "fp8", "dram": "64 GB", "dram_bytes_per_s": "50 GB/s", "dram_latency": 2e-6,
    }  # fmt: skip
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
    found = any_system(write(tmp_path, f'name = "own"\n{POOLS}[link]\n{text}'))
    assert isinstance(found, MixedSystem)
    assert found.name == "own"
    expected = PoolLink(
        lpu_lanes=2, lane_bytes_per_s=25e9, fpga_lpus=4, fpga_port_bytes_per_s=50e9,
        gpu_port_bytes_per_s=100e9, efficiency=0.9, latency_s=2.5e-6, wire_format="fp8",
        dram_bytes=64 * 10**9, dram_bytes_per_s=50e9, dram_latency_s=2e-6,
    )  # fmt: skip
    assert dataclasses.replace(found.link, replaced=()) == expected
    assert {c.source for c in constants_of(found.link)} == {"user file"}
    assert not [name for name in uncertain_constants(found) if name.startswith("link.")]


def test_a_file_may_name_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "half.toml").write_text('topology = "lpx"\nchips = 128\nchip = "groq3-lpu"\n')
    found = any_system(write(tmp_path, POOLS.replace("lpx-2", "half.toml")))
    assert isinstance(found, MixedSystem)
    assert (found.lpus.name, found.lpus.n_chips) == ("half", 128)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_mixed_systems(path: Path) -> None:
    found = any_system(path)
    assert isinstance(found, MixedSystem)
    assert (found.name, describe(found)["chips"]) == (path.stem, found.n_chips)
    assert "user file" in describe_text(found)


def test_there_is_an_example() -> None:
    assert EXAMPLES


def test_the_file_of_a_mixed_system_is_not_one_machine(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"mine\.toml describes a mixed system; where one machine"
    ):
        system(write(tmp_path, POOLS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[link]\nlatency = "3 us"\n', "key 'pool' is missing; expected a table"),
        ("pool = 3\n", "key 'pool' must be a table, got 3"),
        ('[pool.gpus]\nsystem = "h100x8"\n', "key 'pool.lpus' is missing; expected a table"),
        (f'{POOLS}[pool.third]\nsystem = "lpx-2"\n', "unknown key 'pool.third'; allowed: gpus, lp"),
        (f"speed = 1\n{POOLS}", "unknown key 'speed'; allowed: link, name, pool"),
        (f'name = ""\n{POOLS}', "'name' must be 1 to 200 printable characters"),
        (POOLS.replace("system", "machine"), "unknown key 'pool.gpus.machine'; allowed: system"),
        ("[pool.gpus]\n[pool.lpus]\n", "'pool.gpus.system' is missing; expected a string"),
        (POOLS.replace('"h100x8"', "8"), "'pool.gpus.system' must be a string, got 8"),
        (POOLS.replace("h100x8", "h100x9"), "'pool.gpus.system': unknown system 'h100x9': this"),
        (POOLS.replace("lpx-2", "lpy"), "'pool.lpus.system': unknown system 'lpy'; nearest"),
        (POOLS.replace("lpx-2", "vr-lpx-2"), "'pool.lpus.system': vr-lpx-2 is a mixed system"),
        (POOLS.replace("lpx-2", "mine.toml"), "'pool.lpus.system': .*mine.toml describes a mixed"),
        (POOLS.replace("lpx-2", "none.toml"), "'pool.lpus.system': .*none.toml: there is no such"),
        (POOLS.replace("h100x8", "lpx-1"), "'pool': MixedSystem.gpus is lpx-1, which is made of L"),
        (POOLS.replace("lpx-2", "vr-nvl72"), "'pool': MixedSystem.lpus is vr-nvl72, which is made"),
        (f"{POOLS}[link]\nlatncy = 3e-6\n", "'link.latncy': unknown link constant.*latency_s"),
        (f'{POOLS}[link]\nlatency = "3 um"\n', "'link.latency' has the unknown unit 'um'"),
        (f"{POOLS}[link]\nlatency = 3\n", "'link.latency' must be from 3e-09 to 0.003 s, got 3"),
        (f"{POOLS}[link]\nlatency = true\n", "'link.latency' must be a number in s"),
        (f"{POOLS}[link]\nlpu_lanes = 1.5\n", "'link.lpu_lanes' must be a whole number, got 1.5"),
        (f"{POOLS}[link]\nlpu_lanes = 9\n", "'pool': the links need 92 lanes .* the network 9"),
        (f"{POOLS}[link]\nefficiency = 2.0\n", "'link': PoolLink.efficiency is 2.0; .* at most 1"),
        (f'{POOLS}[link]\nwire_format = "fp4"\n', "'link.wire_format' must be 'fp8' or 'fp16' or"),
        (f"{POOLS}[link]\ndram = 1.5\n", "'link.dram' must be a whole number, got 1.5"),
        (f"{POOLS}[link]\nlane = 1e9\nlane_bytes_per_s = 1e9\n", "bytes_per_s' is given twice"),
    ],
)  # fmt: skip
def test_bad_files_say_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        any_system(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
