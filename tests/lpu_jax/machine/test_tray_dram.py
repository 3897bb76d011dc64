"""Systems whose caches lie in the DRAM beside LPUs: names, files, numbers, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lpu_jax.errors import ConfigError, PlanError, UnknownNameError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.describe import describe_text
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.pool_link import PoolLink
from lpu_jax.machine.tray_dram import TrayDram
from lpu_jax.machine.uncertainty import uncertain_constants


def test_an_lpu_has_an_eighth_of_its_fpga() -> None:
    """SA26: 256 GB for 8 LPUs; two channels of DDR5-4800 are 76.8 GB/s, below 8 x 12.5."""
    dram = dataclasses.replace(TrayDram(), dram_latency_s=1e-30)
    assert dram.bytes_per_lpu == 32e9
    assert dram.read_s(9.6e9) == pytest.approx(1.0, rel=1e-12)
    fast = dataclasses.replace(dram, dram_bytes_per_s=153.6e9)
    assert fast.read_s(12.5e9) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_array_equal(TrayDram().read_s(np.array([0.0, 0.0])), [0.0, 0.0])


@pytest.mark.parametrize("name", ["lpx-9", "lpx-tray", "LPX-rack"])
def test_the_name_of_a_system_says_that_caches_lie_there(name: str) -> None:
    whole, alone = system(f"{name}-dram"), system(name)
    assert whole == dataclasses.replace(alone, name=f"{name.lower()}-dram", dram=TrayDram())
    assert alone.dram is None
    assert "DRAM" in whole.note
    assert "DRAM" in describe_text(whole)
    more = set(uncertain_constants(whole)) - set(uncertain_constants(alone))
    assert more == {"dram.dram_bytes_per_s", "dram.dram_latency_s"}


@pytest.mark.parametrize("name", ["groq-node-dram", "vr-nvl72-dram", "lpx-9-dram-dram", "-dram"])
def test_other_chips_have_no_dram_beside_them(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown system '[^\n]*$"):
        system(name)


def test_a_system_of_gpus_has_none() -> None:
    with pytest.raises(PlanError, match="has no lanes to DRAM beside it"):
        dataclasses.replace(system("h100x8"), dram=TrayDram())


def test_beside_gpus_caches_of_lpus_are_in_sram() -> None:
    with pytest.raises(ConfigError, match="whose caches lie in DRAM; beside GPUs those of LPUs"):
        MixedSystem(name="m", gpus=system("h100x8"), lpus=system("lpx-1-dram"), link=PoolLink())


def test_its_constants_are_told_from_those_of_links() -> None:
    names = [constant.name for constant in system("lpx-9-dram").constants()]
    assert len(set(names)) == len(names)
    assert "dram.lane_bytes_per_s" in names


def test_its_lanes_are_counted() -> None:
    with pytest.raises(PlanError, match=r"need 94 lanes .* and the DRAM beside them 3; .* has 96"):
        dataclasses.replace(system("lpx-9"), dram=TrayDram(lpu_lanes=3))


def _file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'topology = "lpx"\nchips = 64\nchip = "groq3-lpu"\n{text}', encoding="utf-8")
    return path


def test_a_file_says_what_the_dram_is(tmp_path: Path) -> None:
    assert system(_file(tmp_path, "")).dram is None
    assert system(_file(tmp_path, "[dram]\n")).dram == TrayDram()
    text = '[dram]\ndram = "64 GB"\ndram_bytes_per_s = "40 GB/s"\nfpga_lpus = 4\n'
    found = system(_file(tmp_path, text)).dram
    assert found is not None
    assert dataclasses.replace(found, replaced=()) == TrayDram(
        dram_bytes=64 * 10**9, dram_bytes_per_s=40e9, fpga_lpus=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dram = 3\n", "key 'dram' must be a table, got 3"),
        ("[dram]\ndarm = 3\n", "'dram.darm': unknown dram constant"),
        ("[dram]\nfpga_lpus = 0.5\n", "'dram.fpga_lpus' must be a whole number, got 0.5"),
        ("[dram]\nlpu_lanes = 40\n", "the DRAM beside them 40"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        system(_file(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
