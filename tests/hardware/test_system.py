"""Systems by name and from files, and the sentences a user gets for a bad one."""

import pytest

from lpu_jax.errors import ConfigError, UnknownNameError
from lpu_jax.provenance import constants_of
from lpu_jax.system import named_systems, system


@pytest.mark.parametrize(
    ("name", "n_chips", "chip"),
    [
        ("groq-node", 8, "groqchip1"),
        ("groq-rack", 64, "groqchip1"),
        ("groq-576", 576, "groqchip1"),
        ("groq-1", 1, "groqchip1"),
        ("groq-10440", 10_440, "groqchip1"),
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


def test_memory_of_published_systems():
    # NVB: 128 GB per rack; HC26: 1,152 GB in 9 racks; GroqRack brief: 14 GB active.
    assert system("lpx-rack").sram_bytes == 128_000_000_000
    assert system("lpx-9").sram_bytes == 1_152_000_000_000
    assert system("groq-rack").sram_bytes == 64 * 220 * 2**20


def test_the_listing_is_made_of_names_that_work():
    for listed in named_systems():
        assert system(listed.name) == listed
        assert len(listed.constants()) > 30


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
    assert found.sram_bytes == 16_000_000_000
    by_name = {constant.name: constant for constant in constants_of(found.chip)}
    assert (by_name["sram_bytes"].status, by_name["sram_bytes"].source) == ("assumed", "user file")
    assert by_name["lanes"].status == "published"


GOOD = 'topology = "groq"\nchips = 8\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chips = ", "not valid TOML"),
        ('chips = 8\nchip = "groqchip1"\n', "'topology' is missing; expected a string"),
        ('topology = "ring"\nchips = 8\n', "'groq' or 'lpx', got 'ring'"),
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
        (GOOD + "[chip]\nclock_hz = 1e9\n", "'base' is missing"),
        (GOOD + '[chip]\nbase = "groqchip1"\nclok_hz = 1e9\n', "nearest: clock_hz"),
        (GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = "fast"\n', "a number, got 'fast'"),
        (
            GOOD + '[chip]\nbase = "groqchip1"\nclock_hz = -1.0\n',
            r"from 900000 to 9e\+11, got -1.0",
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
        (GOOD + '[chip]\nbase = "groqchip1"\nmxm_fp16 = 3\n', "unknown chip constant 'mxm_fp16'"),
    ],
)
def test_bad_files_say_file_key_and_value(tmp_path, text, message):
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
