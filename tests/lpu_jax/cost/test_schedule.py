"""The static schedule: small programs by hand, published figures of the matrix unit, bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import Program, read
from lpu_jax.cost.schedule import Timing, schedule
from lpu_jax.datapath import c2c, mxm, sxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.work import Unit
from lpu_jax.machine.catalogue import system

GROQ = one_group(system("groq-node"), 1)
CHIP = GROQ.chip
TRANSIT = 22
MXM_LATENCY = 64


def shape(*lengths: int, dtype: str = "float16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))


def program(function, *shapes: jax.ShapeDtypeStruct) -> Program:
    return read(jax.make_jaxpr(function)(*shapes), strict=True)


def timing(function, *shapes: jax.ShapeDtypeStruct) -> Timing:
    return schedule(program(function, *shapes), GROQ)


def test_the_constants_of_the_hand_calculations() -> None:
    assert (CHIP.transit_cycles, CHIP.mxm_latency_cycles) == (TRANSIT, MXM_LATENCY)


def test_one_matmul_takes_its_rounds() -> None:
    # 4 x 3 tiles of [160 x 320] on two arrays: 6 rounds. A round brings 500 * 700 * 2 / 6 bytes,
    # 5.7 cycles of the weight stream, but an array loads its 160 rows in 10. Seven rows are fewer.
    out = timing(mxm.matmul, shape(7, 500), shape(500, 700))
    busy = 5 * 10 + 7
    assert out.busy_cycles[Unit.MXM] == busy
    assert out.cycles == TRANSIT + busy + MXM_LATENCY  # installed while the rows are on their way
    assert out.upper_cycles == TRANSIT + busy + MXM_LATENCY + 10
    assert out.lower_cycles == out.cycles


def test_rows_hide_the_installation_of_weights() -> None:
    out = timing(mxm.matmul, shape(30, 500), shape(500, 700))
    assert out.busy_cycles[Unit.MXM] == 6 * 30


@pytest.mark.parametrize("m", [1, 30])
def test_the_next_weights_are_installed_during_the_last_round(m: int) -> None:
    def two(x: jax.Array, w: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mxm.matmul(x, w), mxm.matmul(x, v)

    first, second = timing(two, shape(m, 500), shape(500, 700), shape(500, 700)).slots
    last_round = first.start + first.work.busy_cycles - m
    assert second.start == last_round + max(10, m)  # ten cycles to install, m rows to hide them


def test_int8_streams_four_tiles_in_twenty_cycles() -> None:
    # 2 x 4 tiles of [320 x 320] on four arrays: two rounds of 409,600 B over 20,480 B per cycle.
    out = timing(mxm.matmul, shape(1, 640, dtype="int8"), shape(640, 1280, dtype="int8"))
    assert out.busy_cycles[Unit.MXM] == 20 + 1


def test_a_chain_streams_behind_its_producer_and_a_reduction_waits() -> None:
    def normed(x: jax.Array) -> jax.Array:
        return vxm.mul(x, vxm.sum_lanes(x))

    # 64 rows of 10 vectors. The sum reads 640 vectors from 8 streams (80 cycles, the 16 ALUs need
    # 36) and folds lanes; both halves of the program use the VXM, so nothing overlaps.
    out = timing(normed, shape(64, 3200, dtype="float32"))
    sums, products = out.slots
    assert sums.start == TRANSIT
    assert products.start == sums.last + TRANSIT
    # A sum is on a stream for as long as the row it multiplies: 2 x 640 vectors on eight streams.
    assert products.work.busy_cycles == 2 * 640 / 8
    assert products.last == products.start + products.work.busy_cycles + 5 + 3


def test_a_consumer_on_another_unit_starts_with_the_first_vector() -> None:
    def scaled(x: jax.Array, w: jax.Array) -> jax.Array:
        return vxm.mul(mxm.matmul(x, w), 2.0)

    out = timing(scaled, shape(64, 160), shape(160, 640))
    matmul, product = out.slots
    assert product.start == matmul.first + TRANSIT
    assert product.start < matmul.last


@pytest.mark.parametrize(("m", "turn"), [(1, 10), (30, 30)])
def test_the_first_columns_leave_when_their_tiles_are_summed(m: int, turn: int) -> None:
    # Four tiles of the contraction on two arrays: the first 320 columns are final in the second
    # round of six, and their first row leaves as it passes.
    (matmul,) = timing(mxm.matmul, shape(m, 500), shape(500, 700)).slots
    assert matmul.first == matmul.start + turn + MXM_LATENCY
    assert matmul.last == matmul.start + 5 * turn + m + MXM_LATENCY
    # A contraction that the arrays hold at once: in the first round, however many columns.
    (wide,) = timing(mxm.matmul, shape(m, 320), shape(320, 9600)).slots
    assert wide.first == wide.start + MXM_LATENCY


def test_a_collective_starts_with_the_first_columns_and_its_steps_overlap() -> None:
    cycles = {}
    for option in ("", "+pipelined"):
        axis = Axis(names=(), size=8, tiers=(), algorithm="direct" + option)

        def summed(x: jax.Array, w: jax.Array, axis: Axis = axis) -> jax.Array:
            return c2c.all_reduce(vxm.to_fp16(mxm.matmul(x, w)), axis)

        traced = program(summed, shape(4, 1024), shape(1024, 8192))
        out = schedule(traced, one_group(system("groq-node"), 8))
        matmul, chain, collective = out.slots
        assert chain.start == matmul.first + TRANSIT
        assert collective.start == chain.first + TRANSIT < matmul.last
        assert out.lower_cycles <= out.cycles <= out.upper_cycles
        cycles[option] = float(out.cycles) - float(chain.last) - TRANSIT
    # 4 x 8,192 values of two bytes are 205 vectors, 26 for each chip. With a barrier the sums go
    # back when the last one is made: two hops of 650 cycles and 25 frames of 23.6.
    hop, frame = 722e-9 * CHIP.clock_hz, 328 / 12.5e9 * CHIP.clock_hz
    assert cycles[""] == pytest.approx(2 * hop + 25 * frame, abs=1)  # whole cycles
    # Else the last sum goes back as soon as it is made.
    assert cycles["+pipelined"] == pytest.approx(2 * hop, abs=1)


def test_a_matmul_waits_for_a_weight_that_is_computed() -> None:
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return mxm.matmul(x, vxm.to_fp16(w))

    out = timing(product, shape(1, 160), shape(160, 320, dtype="float32"))
    conversion, matmul = out.slots
    assert matmul.start >= conversion.last + TRANSIT + 10  # ten cycles to install it


# --- published figures --------------------------------------------------------------------------


def test_peak_rates_of_the_matrix_unit() -> None:
    # Abts et al., ISCA 2022: 409,600 int8 and 102,400 fp16 multiply-accumulates in a cycle.
    assert CHIP.mxm_mode("int8").macs_per_cycle == 409_600
    assert CHIP.mxm_mode("fp16").macs_per_cycle == 102_400


@pytest.mark.parametrize("n", range(1376, 3501, 59))
def test_large_matmuls_keep_the_matrix_unit_busy(n: int) -> None:
    # Abts et al., ISCA 2022, figure 13: at least 80 % of the peak for [2304 x 4096] x [4096 x N].
    out = timing(mxm.matmul, shape(2304, 4096), shape(4096, n))
    utilisation = 2304 * 4096 * n / (float(out.cycles) * 102_400)
    assert 0.80 <= utilisation <= 1.0


def test_a_sweep_over_all_weights_takes_12_5_us() -> None:
    # 220 MiB at 20,480 B per cycle of 0.9 GHz: 12.5 us. 2,252 tiles are all that fit in the SRAM.
    k, n = 4 * 320, 563 * 320
    assert k * n == pytest.approx(CHIP.sram_bytes, rel=1e-3)
    out = timing(mxm.matmul, shape(1, k, dtype="int8"), shape(k, n, dtype="int8"))
    assert float(out.cycles) / CHIP.clock_hz == pytest.approx(12.5e-6, rel=0.01)


# --- bounds -------------------------------------------------------------------------------------


def test_bounds_of_programs_of_one_unit_and_of_none() -> None:
    nothing = schedule(Program(operations=(), inputs=(), outputs=()), GROQ)
    assert (nothing.lower_cycles, nothing.cycles, nothing.upper_cycles) == (0, 0, 0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        m, k, n = (int(size) for size in rng.integers(1, 900, 3))

        def layers(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
            hidden = vxm.to_fp16(vxm.silu(mxm.matmul(x, w)))
            return vxm.sum_lanes(mxm.matmul(hidden, v))

        out = timing(layers, shape(m, k), shape(k, n), shape(n, k))
        assert 0 < out.lower_cycles <= out.cycles <= out.upper_cycles
        for unit, busy in out.busy_cycles.items():
            assert busy <= out.cycles, unit


def test_a_collective_of_one_chip_takes_nothing() -> None:
    alone = Axis(names=(), size=1, tiers=())

    def without(x: jax.Array, w: jax.Array) -> jax.Array:
        return mxm.matmul(x, w)

    def with_collectives(x: jax.Array, w: jax.Array) -> jax.Array:
        return c2c.all_gather(c2c.all_reduce(mxm.matmul(x, w), alone), alone, dim=-1)

    shapes = shape(7, 500), shape(500, 700)
    plain, joined = timing(without, *shapes), timing(with_collectives, *shapes)
    for name in ("cycles", "lower_cycles", "upper_cycles", "busy_cycles"):
        assert getattr(plain, name) == getattr(joined, name)


def test_a_layout_that_is_already_so_takes_nothing() -> None:
    def moved(x: jax.Array, w: jax.Array) -> jax.Array:
        return sxm.rearrange(mxm.matmul(x, w), "(b t) (k h) -> b k t h", b=1, k=7)

    shapes = shape(1, 500), shape(500, 700)  # b and t are one: nothing changes places
    assert timing(moved, *shapes).cycles == timing(mxm.matmul, *shapes).cycles
    longer = shape(3, 500), shape(500, 700)
    assert timing(moved, *longer).cycles > timing(mxm.matmul, *longer).cycles
