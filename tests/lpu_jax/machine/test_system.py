"""Systems by name, what they are made of, and the sentences a user gets for a name that is none."""

import json

import pytest

from lpu_jax.errors import PlanError, UnknownNameError
from lpu_jax.machine.catalogue import SERIES, named_systems, system
from lpu_jax.machine.describe import describe, describe_text
from lpu_jax.machine.system import System


@pytest.mark.parametrize(
    ("name", "n_chips", "chip"),
    [
        ("groq-node", 8, "groqchip1"),
        ("groq-rack", 64, "groqchip1"),
        ("groq-576", 576, "groqchip1"),
        ("groq-1", 1, "groqchip1"),
        ("groq-264", 264, "groqchip1"),
        ("groq-10440", 10_440, "groqchip1"),
        ("lpx-tray", 16, "groq3-lpu"),
        ("lpx-rack", 256, "groq3-lpu"),
        ("lpx-1", 256, "groq3-lpu"),
        ("lpx-9", 2304, "groq3-lpu"),
        ("lpx-12", 3072, "groq3-lpu"),
    ],
)
def test_names_give_chips(name, n_chips, chip):
    found = system(name)
    assert (found.name, found.n_chips, found.chip.name) == (name, n_chips, chip)
    assert found.topology.n_chips == n_chips


def test_a_chip_is_linked_by_links_of_its_own_kind():
    lpus, gpus = system("groq-node"), system("h100x8")
    for chip, links in ((lpus.chip, gpus.topology), (gpus.chip, lpus.topology)):
        with pytest.raises(PlanError, match=f"{chip.name} cannot be linked as '{links.family}'"):
            System(name="mixed", chip=chip, topology=links, n_chips=8)
    assert (lpus.lpus, lpus.gpus) == ((lpus.chip, lpus.topology), None)


def test_no_name_is_of_two_series():
    names = [name for series in SERIES for name in (*series.named, series.numbered)]
    assert len(names) == len(set(names))
    for series in SERIES:
        found = system(series.numbered.replace("N", "2"))
        assert found.chip == series.chip
        assert found.n_chips > 1


def test_memory_of_published_systems():
    # NVB: 128 GB per rack; HC26: 1,152 GB in 9 racks; GroqRack brief: 14 GB active.
    assert system("lpx-rack").memory_bytes == 128_000_000_000
    assert system("lpx-9").memory_bytes == 1_152_000_000_000
    assert system("groq-rack").memory_bytes == 64 * 220 * 2**20


def test_the_listing_is_made_of_names_that_work():
    for listed in named_systems():
        assert system(listed.name) == listed
        assert len(listed.constants()) > (30 if listed.lpus else 15)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lpx-rak", "nearest: lpx-rack"),
        ("groq", "nearest: groq"),
        ("tpu", "known: "),
        ("groq-10441", "1 to 10440 chips, not 10441"),
        ("groq-0", "unknown system"),
        ("lpx-999", "unknown system 'lpx-999'"),
    ],
)
def test_unknown_systems_are_named(name, message):
    with pytest.raises(UnknownNameError, match=message):
        system(name)


def test_every_named_system_is_described():
    for listed in named_systems():
        data, text = describe(listed), describe_text(listed)
        json.dumps(data, allow_nan=False)
        assert data["chips"] == listed.n_chips
        for level in data["levels"]:
            assert level["name"] in text
    rack = describe(system("groq-rack"))
    assert (rack["installed_chips"], rack["spare_chips"], rack["chips"]) == (72, 8, 64)
    assert "8 + 1 nodes: 72 chips are installed, 8 of them spare" in describe_text(
        system("groq-rack")
    )
