"""Memory over the schedule: live ranges by hand, the peak by brute force, addresses disjoint."""

from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.cost.memory import LiveRange, allocate, live_ranges, peak_bytes, profile
from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import Program, read
from lpu_jax.cost.schedule import Timing, schedule
from lpu_jax.datapath import c2c, mem, mxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.machine.catalogue import system

GROQ = one_group(system("groq-node"), 1)
VECTOR = GROQ.chip.vector_bytes


def shape(*lengths: int, dtype: str = "float16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))


def traced(function: Any, *shapes: jax.ShapeDtypeStruct) -> tuple[Program, Timing]:
    program = read(jax.make_jaxpr(function)(*shapes), strict=True)
    return program, schedule(program, GROQ)


def ranges_of(function: Any, *shapes: jax.ShapeDtypeStruct) -> tuple[LiveRange, ...]:
    return live_ranges(*traced(function, *shapes), {}, VECTOR)


def test_a_value_lives_from_its_first_vector_to_the_end_of_its_last_reader() -> None:
    def program(x: Any, w: Any, v: Any) -> Any:
        return mxm.matmul(vxm.to_fp16(mxm.matmul(x, w)), v)

    shapes = shape(4, 160), shape(160, 320), shape(320, 640)
    _, timing = traced(program, *shapes)
    product, narrowed, result = timing.slots
    ranges = ranges_of(program, *shapes)
    assert [live.start for live in ranges] == [product.first, narrowed.first, result.first]
    assert [live.end for live in ranges] == [narrowed.last, result.last, timing.cycles]
    assert [live.size_bytes for live in ranges] == [4 * 320 * 4, 4 * 320 * 2, 4 * 640 * 4]
    # the second product reads its fp16 operand while its fp32 result comes out
    assert peak_bytes(ranges) == 4 * 320 * 2 + 4 * 640 * 4


def test_memory_is_given_out_in_whole_vectors() -> None:
    (live,) = ranges_of(lambda x: vxm.mul(x, 2.0), shape(1, 81, dtype="float32"))
    assert live.size_bytes == 2 * 320  # 324 bytes


def test_a_value_that_is_read_again_late_stays() -> None:
    def program(x: Any, w: Any) -> Any:
        early = vxm.mul(x, 2.0)
        late = vxm.sum_lanes(vxm.mul(early, early))
        return vxm.mul(early, late), w

    _, timing = traced(program, shape(8, 640, dtype="float32"), shape(4, 4))
    assert ranges_of(program, shape(8, 640, dtype="float32"), shape(4, 4))[0].end == (
        timing.slots[-1].last
    )


def test_what_nobody_reads_is_written_all_the_same() -> None:
    def program(x: Any, w: Any) -> Any:
        unread = mxm.matmul(x, w)
        del unread
        return vxm.to_fp32(x)

    shapes = shape(64, 160), shape(160, 640)
    _, timing = traced(program, *shapes)
    unread = ranges_of(program, *shapes)[0]
    assert (unread.start, unread.end) == (timing.slots[0].first, timing.slots[0].last)


def test_a_collective_of_one_chip_only_names_its_operand_again() -> None:
    def program(x: Any, *, n: Any) -> Any:
        alone = Axis(names=(), size=n, tiers=(), stride=1)
        return vxm.sum_lanes(vxm.to_fp32(c2c.all_reduce(vxm.to_fp16(x), alone)))

    x = shape(4, 640, dtype="float32")
    one = ranges_of(lambda x: program(x, n=1), x)
    assert [live.name for live in one] == ["vxm_to_fp16", "vxm_to_fp32", "vxm_sum_lanes"]
    assert one[0].end >= one[1].start  # read under its second name


def test_a_cache_that_grows_in_place_takes_no_room() -> None:
    def program(cache: Any, new: Any, positions: Any) -> Any:
        return mem.append(cache, new, positions, axis=1)

    arguments = shape(1, 64, 320), shape(1, 1, 320), shape(1, dtype="int32")
    assert ranges_of(program, *arguments) == ()
    assert peak_bytes(()) == 0.0


def test_copies_of_a_mapped_operation_each_take_room() -> None:
    mapped = ranges_of(
        jax.vmap(lambda x: vxm.sum_lanes(vxm.mul(x, x))), shape(7, 3, 640, dtype="float32")
    )
    whole = ranges_of(lambda x: vxm.sum_lanes(vxm.mul(x, x)), shape(21, 640, dtype="float32"))
    assert [live.size_bytes for live in mapped] == [live.size_bytes for live in whole]


# --- any ranges at all ----------------------------------------------------------------------------

_range = st.builds(
    lambda size, start, length: LiveRange(
        name="value", size_bytes=size * VECTOR, start=start, end=start + length
    ),
    st.integers(0, 50),
    st.integers(0, 40),
    st.integers(1, 30),
)


def brute_force(ranges: list[LiveRange]) -> list[float]:
    """Bytes alive in each cycle."""
    alive = [0.0] * 80
    for live in ranges:
        for cycle in range(int(live.start), int(live.end)):
            alive[cycle] += live.size_bytes
    return alive


@given(st.lists(_range, min_size=1, max_size=12))
def test_the_peak_is_that_of_every_cycle(ranges: list[LiveRange]) -> None:
    every = brute_force(ranges)
    peak = peak_bytes(ranges)
    assert peak == max(every)
    sizes = [live.size_bytes for live in ranges]
    assert max(sizes) <= peak <= sum(sizes)
    steps = dict(profile(ranges))
    now = 0.0
    for cycle, alive in enumerate(every):
        now = steps.get(float(cycle), now)
        assert now == alive


@given(st.lists(st.lists(_range, min_size=5, max_size=5), min_size=1, max_size=6))
def test_many_plans_at_once_have_the_peaks_of_each(plans: list[list[LiveRange]]) -> None:
    stacked = [
        LiveRange(
            name="value",
            size_bytes=np.array([live.size_bytes for live in column], np.float64),
            start=np.array([live.start for live in column], np.float64),
            end=np.array([live.end for live in column], np.float64),
        )
        for column in zip(*plans, strict=True)
    ]
    assert list(np.asarray(peak_bytes(stacked))) == [peak_bytes(plan) for plan in plans]


@given(st.lists(_range, min_size=1, max_size=12))
def test_no_two_values_share_a_byte_at_the_same_time(ranges: list[LiveRange]) -> None:
    made = allocate(ranges)
    assert sorted(id(each.live) for each in made.placed) == sorted(id(live) for live in ranges)
    for one, other in combinations(made.placed, 2):
        in_time = one.live.start < other.live.end and other.live.start < one.live.end
        in_space = (
            one.address < other.address + other.live.size_bytes
            and other.address < one.address + one.live.size_bytes
        )
        assert not (in_time and in_space)
    assert made.peak_bytes <= made.top_bytes <= sum(live.size_bytes for live in ranges)
    assert all(each.address % VECTOR == 0 and each.address >= 0 for each in made.placed)


def test_values_that_follow_each_other_share_an_address() -> None:
    def live(size: int, start: int, end: int) -> LiveRange:
        return LiveRange(name="value", size_bytes=size * VECTOR, start=start, end=end)

    made = allocate([live(2, 0, 10), live(1, 5, 20), live(2, 10, 20)])
    assert [each.address for each in made.placed] == [0, 2 * VECTOR, 0]
    assert made.top_bytes == made.peak_bytes == 3 * VECTOR
    assert made.as_dict()["values"][2]["address"] == 0


@pytest.mark.parametrize("rows", [1, 64])
def test_a_real_program_fits_its_peak(rows: int) -> None:
    def program(x: Any, w: Any, v: Any) -> Any:
        hidden = vxm.to_fp32(mxm.matmul(x, w))
        gate = vxm.mul(hidden, vxm.sum_lanes(hidden))
        return mxm.matmul(vxm.to_fp16(gate), v)

    ranges = ranges_of(program, shape(rows, 640), shape(640, 960), shape(960, 640))
    made = allocate(ranges)
    assert made.peak_bytes <= made.top_bytes <= 1.5 * made.peak_bytes
