"""What people write as quantities, against the same numbers in base units."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.errors import ConfigError
from lpu_jax.quantities import format_bytes, format_seconds, parse_quantity


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("12.5 GB/s", "B/s", 12.5e9),
        ("12.5GB/s", "B/s", 12.5e9),
        ("100 Gb/s", "B/s", 12.5e9),
        ("100 Gbit/s", "B/s", 12.5e9),
        ("1 TiB/s", "B/s", 2.0**40),
        ("  722  ns ", "s", 722e-9),
        ("0.35 us", "s", 350e-9),
        ("0.35 µs", "s", 350e-9),
        ("1e-3 ms", "s", 1e-6),
        ("900 MHz", "Hz", 0.9e9),
        (".9 GHz", "Hz", 0.9e9),
        ("220 MiB", "B", 230_686_720),
        ("0.5 GB", "B", 500_000_000),
        ("20.48 kB/cycle", "B/cycle", 20_480),
        ("64 cycles", "cycle", 64),
        ("300 W", "W", 300.0),
        ("16", "1", 16),
        ("-3", "1", -3),
        ("0.25", "1", 0.25),
    ],
)
def test_quantities_are_read_in_base_units(text, unit, value):
    read = parse_quantity(text, unit)
    assert read == value
    # Counts are whole numbers; times and rates are floats.
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("12.5 GB", "B/s", "unknown unit 'GB'; allowed: B/s, kB/s"),
        ("12.5 gb/s", "B/s", "unknown unit 'gb/s'"),
        ("3 Kib/s", "B/s", "unknown unit 'Kib/s'"),
        ("722", "s", "a number and one of s, ms, us, ns, ps, got '722'"),
        ("ns", "s", "got 'ns'"),
        ("", "s", "got ''"),
        ("nan s", "s", "got 'nan s'"),
        ("inf s", "s", "got 'inf s'"),
        ("1e999 s", "s", "unknown unit|got"),
        ("9" * 5000 + " s", "s", "got '9"),
        ("1 2 s", "s", "unknown unit"),
        ("0x10 s", "s", "unknown unit"),
        ("16 B", "1", "a number without a unit, got '16 B'"),
        ("1\nns", "s", "unknown unit|got"),
    ],
)
def test_what_is_no_quantity_is_named(text, unit, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_quantity(text, unit)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.integers(0, 10**9), st.sampled_from(["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]))
def test_bytes_are_exact(count, prefix):
    """Against powers written out, in whole numbers."""
    power = ["", "k", "M", "G", "T"].index(prefix[:1].replace("K", "k"))
    factor = (1024 if prefix.endswith("i") else 1000) ** power
    assert parse_quantity(f"{count} {prefix}B", "B") == count * factor


@given(st.floats(1e-9, 1e9))
def test_times_are_the_nearest_float(seconds):
    text = f"{seconds:.17g}"
    assert parse_quantity(f"{text} s", "s") == seconds
    nanoseconds = parse_quantity(f"{text} ns", "s")
    exact = Fraction(text) / 10**9
    assert nanoseconds == float(exact)


@given(st.floats(1e-9, 1e12))
def test_what_is_printed_is_read_back(value):
    # Four digits are printed, so the relative error is at most half of the last: 5e-4.
    assert math.isclose(parse_quantity(format_bytes(value), "B"), value, rel_tol=5e-4, abs_tol=1)
    assert math.isclose(
        parse_quantity(format_seconds(value), "s"), value, rel_tol=5e-4, abs_tol=1e-10
    )
