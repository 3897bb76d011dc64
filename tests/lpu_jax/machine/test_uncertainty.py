"""Draws from ranges: within them, whole numbers whole, as the rule spreads them, by seed."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.machine.catalogue import named_systems, system
from lpu_jax.machine.chip import ChipSpec
from lpu_jax.machine.lpu_chips import GROQ3_LPU, GROQCHIP1
from lpu_jax.machine.uncertainty import (
    draw,
    extremes,
    in_one_reading,
    plausible,
    uncertain,
    uncertain_constants,
    with_values,
)
from lpu_jax.provenance import Constant, constants_of

UNIT = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)


def assumed(value, low, high, **others):
    return Constant(
        name="x", value=value, unit="1", status="assumed", source="a test", low=low, high=high,
        **others,
    )  # fmt: skip


@given(u=UNIT)
def test_values_lie_in_the_range_of_every_constant(u):
    for constant in (*uncertain(GROQCHIP1), *uncertain(GROQ3_LPU)):
        value = plausible(constant, u)
        if constant.options:
            assert value in constant.options
        else:
            assert constant.low <= value <= constant.high
            assert isinstance(value, int) or not isinstance(constant.low, int)


@given(u=UNIT, v=UNIT)
def test_a_larger_number_gives_no_smaller_value(u, v):
    for constant in (assumed(22, 10, 50), assumed(0.05, 0.0, 0.1), assumed(3.0, 2.5, 4.0)):
        low, high = sorted((plausible(constant, u), plausible(constant, v)))
        assert (plausible(constant, min(u, v)), plausible(constant, max(u, v))) == (low, high)


def test_wide_ranges_are_spread_by_their_logarithm_and_narrow_ones_evenly():
    """Halfway is the geometric mean beyond a factor of 2, else, and from zero, the middle."""
    assert plausible(assumed(30.0, 10.0, 90.0), 0.5) == pytest.approx(30.0)
    assert plausible(assumed(12.0, 10.0, 20.0), 0.5) == pytest.approx(15.0)
    assert plausible(assumed(0.05, 0.0, 0.1), 0.5) == pytest.approx(0.05)
    assert plausible(assumed(30.0, 10.0, 90.0), 0.0) == 10.0
    assert plausible(assumed(30.0, 10.0, 90.0), math.nextafter(1, 0)) == pytest.approx(90.0)


@pytest.mark.slow
def test_whole_numbers_are_all_drawn_ends_included():
    """By hand: 10..12 evenly is a third each; 1..4 by logarithm is log(1 + 1/n) / log 5."""
    u = np.arange(30_000) / 30_000
    even = np.bincount([plausible(assumed(11, 10, 12), x) for x in u])[10:]
    assert even == pytest.approx([10_000] * 3, abs=2)
    spread = np.bincount([plausible(assumed(2, 1, 4), x) for x in u])[1:]
    expected = [30_000 * math.log(1 + 1 / n) / math.log(5) for n in (1, 2, 3, 4)]
    assert spread == pytest.approx(expected, abs=2)


def test_options_are_equally_likely():
    constant = dataclasses.replace(assumed("b", None, None, options=("a", "b", "c")))
    assert [plausible(constant, u) for u in (0.0, 0.34, 0.67, 0.999)] == ["a", "b", "c", "c"]
    assert extremes(constant) == ("a", "c")
    assert extremes(assumed(16, 16, 78)) == (78,)


@pytest.mark.first(2)
@pytest.mark.parametrize("machine", named_systems(), ids=lambda machine: machine.name)
def test_a_draw_is_a_machine_with_the_same_ranges(machine):
    for spec in (machine.chip, machine.topology):
        rng = np.random.default_rng(3)
        for _ in range(20):
            drawn = draw(spec, rng)
            before, after = constants_of(spec), constants_of(drawn)
            for old, new in zip(before, after, strict=True):
                assert dataclasses.replace(new, value=old.value) == old
                assert new.value == old.value or old.is_uncertain
                assert new.value == getattr(drawn, new.name)


def test_draws_depend_on_the_seed_alone():
    def numbers(seed):
        rng = np.random.default_rng(seed)
        return [constants_of(draw(GROQ3_LPU, rng)) for _ in range(3)]

    assert numbers(7) == numbers(7)
    assert numbers(7) != numbers(8)
    assert numbers(7)[0] != numbers(7)[1]


@pytest.mark.slow
def test_some_alus_are_never_more_than_all():
    rng = np.random.default_rng(0)
    drawn = [draw(GROQ3_LPU, rng) for _ in range(300)]
    assert all(spec.vxm_large_alus_per_lane <= spec.vxm_alus_per_lane for spec in drawn)
    # Both are drawn from ranges that overlap, so some had to be lowered.
    assert any(spec.vxm_large_alus_per_lane == spec.vxm_alus_per_lane for spec in drawn)


def test_constants_of_one_reading_lie_at_the_same_place_of_their_ranges():
    """Both ranges span more than a factor of 2, so places are those of logarithms.

    Tolerance: rows are whole, at least 16 of them.
    """
    rng = np.random.default_rng(1)
    for _ in range(50):
        drawn = draw(GROQ3_LPU, rng)
        stream = drawn.weight_stream_bytes_per_cycle
        place = math.log(stream / 30_720) / math.log(100_001 / 30_720)
        rows = 16 * (79 / 16) ** place
        assert drawn.array_load_rows_per_cycle == pytest.approx(rows, abs=1.01)


def test_an_end_is_that_of_the_whole_reading():
    constants = uncertain_constants(system("lpx-rack"))
    stream, rows = "chip.weight_stream_bytes_per_cycle", "chip.array_load_rows_per_cycle"
    assert in_one_reading(constants, stream, 30_720) == {stream: 30_720, rows: 16}
    assert in_one_reading(constants, "chip.transit_cycles", 10) == {"chip.transit_cycles": 10}


def test_a_variant_keeps_what_was_not_changed():
    changed = with_values(GROQCHIP1, {"transit_cycles": 30})
    assert changed.transit_cycles == 30
    assert dataclasses.replace(changed, transit_cycles=22, replaced=()) == GROQCHIP1
    assert with_values(GROQCHIP1, {}) is GROQCHIP1
    with pytest.raises(ValueError, match=r"51 outside 10\.\.50"):
        with_values(GROQCHIP1, {"transit_cycles": 51})


def test_what_a_person_set_stays():
    mine = dataclasses.replace(ChipSpec(name="mine", title="mine"), transit_cycles=99)
    assert "transit_cycles" not in {constant.name for constant in uncertain(mine)}
    assert draw(mine, np.random.default_rng(0)).transit_cycles == 99
