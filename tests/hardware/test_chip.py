"""Chips, provenance, errors and printing: published peaks, and a source for every number."""

import dataclasses

import pytest

from lpu_jax.chip import GROQ3_LPU, GROQCHIP1, MxmMode, chip, named_chips
from lpu_jax.errors import LpuError, UnknownNameError, unknown
from lpu_jax.provenance import Constant, const, constants_of, vary
from lpu_jax.quantities import format_bytes, format_count, format_rate, format_seconds


def test_published_peaks_of_groqchip1_are_exact():
    # ISCA20 / ISCA22 section 5.2, by arithmetic on the array sizes.
    assert GROQCHIP1.mxm_modes["int8"].macs_per_cycle == 409_600
    assert GROQCHIP1.mxm_modes["fp16"].macs_per_cycle == 102_400
    assert GROQCHIP1.sram_bytes == 220 * 2**20
    assert set(GROQCHIP1.mxm_modes) == {"fp16", "int8"}


def test_published_weight_sweep_of_groqchip1():
    # Derived from ISCA20: 12.5 us; 1 % for its three printed digits.
    sweep_s = GROQCHIP1.sram_bytes / GROQCHIP1.weight_stream_bytes_per_cycle / GROQCHIP1.clock_hz
    assert sweep_s == pytest.approx(12.5e-6, rel=0.01)


def test_groq3_meets_its_printed_totals():
    assert set(GROQ3_LPU.mxm_modes) == {"fp16", "int8", "fp8"}
    # NVB: 315 PFLOPS FP8 and 40 PB/s per rack of 256; 5 % for its own rounding (38.4 = 32 trays).
    fp8_flop_per_s = 2 * GROQ3_LPU.mxm_modes["fp8"].macs_per_cycle * GROQ3_LPU.clock_hz
    assert 256 * fp8_flop_per_s == pytest.approx(315e15, rel=0.01)
    sram_bytes_per_s = GROQ3_LPU.sram_bytes_per_cycle * GROQ3_LPU.clock_hz
    assert 256 * sram_bytes_per_s == pytest.approx(40e15, rel=0.05)


def test_derived_numbers_agree_with_what_they_are_derived_from():
    spec = GROQCHIP1
    assert spec.streams_bytes_per_cycle == 64 * spec.lanes
    assert spec.sram_bytes_per_cycle == spec.mem_slices * 2 * spec.gather_bytes_per_read
    arrays = spec.mxm_modes["int8"].arrays
    assert (
        spec.weight_stream_bytes_per_cycle
        == arrays * spec.array_load_rows_per_cycle * spec.vector_bytes
    )
    # From GAPI's S16 layout: a full int8 round is installed in 20 cycles.
    round_bytes = arrays * spec.mxm_modes["int8"].tile_bytes
    assert round_bytes / spec.weight_stream_bytes_per_cycle == 20


@pytest.mark.parametrize("spec", named_chips(), ids=lambda spec: spec.name)
def test_every_number_of_every_chip_has_a_source(spec):
    constants = {constant.name: constant for constant in constants_of(spec)}
    texts = {"name", "title", "replaced"}
    assert set(constants) == {field.name for field in dataclasses.fields(spec)} - texts
    for name, constant in constants.items():
        assert constant.value == getattr(spec, name)
        assert constant.unit
        assert constant.status in ("published", "derived", "assumed")
        assert len(constant.source) > 8


def test_groq3_does_not_borrow_the_sources_of_groqchip1():
    for constant in constants_of(GROQ3_LPU):
        if constant.status != "assumed":
            assert "NVB" in constant.source, constant
    lanes = next(c for c in constants_of(GROQ3_LPU) if c.name == "lanes")
    assert "not public" in lanes.source


def test_a_changed_number_loses_its_source():
    changed = dataclasses.replace(GROQCHIP1, clock_hz=1e9)
    clock = next(c for c in constants_of(changed) if c.name == "clock_hz")
    assert (clock.status, clock.source) == ("assumed", "set by the caller")
    assert hash(changed) != hash(GROQCHIP1)


def test_vary_refuses_a_constant_that_is_not_there():
    wrong = Constant(name="clock", value=1.0, unit="Hz", status="assumed", source="a test")
    with pytest.raises(ValueError, match="no constant 'clock'"):
        vary(GROQCHIP1, wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "B", "guessed", "x"), "guessed"),
        ((1, "", "assumed", "x"), "unit and a source"),
        ((1, "B", "assumed", ""), "unit and a source"),
        ((1, "B", "assumed", "x", 2, 3), "outside 2..3"),
        ((1, "B", "assumed", "x", 0, None), "both ends"),
    ],
)
def test_a_constant_without_provenance_cannot_be_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        const(*arguments)


def test_unknown_names_show_the_nearest():
    assert chip("groqchip1") is GROQCHIP1
    with pytest.raises(UnknownNameError, match="'groq-chip1'; nearest: groqchip1"):
        chip("groq-chip1")
    with pytest.raises(UnknownNameError, match=r"'fp8'.*fp16"):
        GROQCHIP1.mxm_mode("fp8")
    assert GROQ3_LPU.mxm_mode("fp8") == MxmMode(k_tile=320, columns=320, arrays=4, operand_bytes=1)
    assert isinstance(unknown("thing", "zzz", ["a", "b"]), LpuError)
    assert str(unknown("thing", "zzz", ["b", "a"])).endswith("known: a, b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(230_686_720), "230.7 MB"),
        (format_bytes(230_686_720, binary=True), "220 MiB"),
        (format_bytes(1.152e12), "1.152 TB"),
        (format_bytes(999_999), "1 MB"),
        (format_bytes(0), "0 B"),
        (format_seconds(722e-9), "722 ns"),
        (format_seconds(2.166e-6), "2.166 us"),
        (format_seconds(0.0125), "12.5 ms"),
        (format_seconds(float("inf")), "inf ns"),
        (format_count(1_026_408_232_448), "1.026 T"),
        (format_count(288), "288"),
        (format_rate(25e9, "B"), "25 GB/s"),
        (format_rate(1234.5, "tokens", digits=3), "1.23 k tokens/s"),
    ],
)
def test_quantities_print_in_readable_steps(text, expected):
    assert text == expected
