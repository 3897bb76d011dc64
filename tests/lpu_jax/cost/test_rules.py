"""Rules of the chip that public sources leave open: what each alternative costs, by hand."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.cost.placed_machine import PlacedMachine, one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import Timing, schedule
from lpu_jax.datapath import mxm, vxm
from lpu_jax.datapath.mxm import rounds_cost
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.machine.uncertainty import variant

TRANSIT, MXM_LATENCY = 22, 64


def machine(**rules: object) -> PlacedMachine:
    values = {f"chip.{name}": value for name, value in rules.items()}
    return one_group(variant(system("groq-node"), values), 8)


def shape(*lengths: int, dtype: str = "float16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))


def two_products(m: int, k: int, n: int, v: int, where: PlacedMachine) -> Timing:
    def program(x: jax.Array, w: jax.Array, u: jax.Array) -> jax.Array:
        return mxm.matmul(vxm.to_fp16(mxm.matmul(x, w)), u)

    traced = jax.make_jaxpr(program)(shape(m, k), shape(k, n), shape(n, v))
    return schedule(read(traced, strict=True), where)


def test_weights_that_are_a_block_ahead_stream_behind_what_came_before() -> None:
    """Two rounds of 10 cycles, then eight: a row waits for the product before, not for weights.

    [1 x 320] [320 x 640]: 2 x 2 tiles on two arrays are 2 rounds. The second product has 4 x 4 / 2.
    Ahead, all 100 cycles of weights stream without a pause; one round ahead, the second product
    begins to install its other rounds when its row is there.
    """
    ahead = two_products(1, 320, 640, 1280, machine(weight_prefetch="block"))
    first, *_, second = [slot for slot in ahead.slots if slot.work.stationary is not None]
    assert (first.work.busy_cycles, second.work.busy_cycles) == (2, 8)
    assert (first.work.install_cycles, second.work.install_cycles) == (20, 80)
    assert first.last == TRANSIT + 2 + MXM_LATENCY  # 20 cycles of weights came during the transit
    # A row is on its way for 22 cycles, is multiplied, rounded to fp16 on the VXM, and comes back.
    rounded = ahead.slots[1]
    assert second.start == rounded.first + TRANSIT
    # Its last vector comes later than its first; then seven rounds are left, and no weights.
    assert second.last == max(rounded.last + TRANSIT + 7, 100 + 1) + MXM_LATENCY
    behind = two_products(1, 320, 640, 1280, machine())
    # Half of the first product's columns leave after one round either way; its second round waits
    # for 10 cycles of weights, and so do 7 of the second product's 8.
    assert behind.slots[-1].start == second.start
    assert behind.cycles == ahead.cycles + (10 + 1) - 2 + (7 * 10 + 1) - 8


@given(
    m=st.integers(1, 40),
    k=st.integers(1, 1000),
    n=st.integers(1, 1000),
    v=st.integers(1, 2000),
)
def test_streaming_ahead_is_never_slower_and_keeps_its_bounds(
    m: int, k: int, n: int, v: int
) -> None:
    behind = two_products(m, k, n, v, machine())
    ahead = two_products(m, k, n, v, machine(weight_prefetch="block"))
    assert ahead.cycles <= behind.cycles
    for timing in (ahead, behind):
        assert timing.lower_cycles <= timing.cycles <= timing.upper_cycles


def test_whole_tiles_are_streamed_and_held() -> None:
    """A head of 128 columns: 100 rows of 160 values, two to a vector, or one tile of 160 x 320."""

    def moved_bytes(where: PlacedMachine) -> float:
        work = rounds_cost(where, kind="fp16", groups=1, m=1, k=100, n=128, weight_bits=16)
        return float(work.moved_bytes)

    assert moved_bytes(machine()) == 100 * 160 * 2
    assert moved_bytes(machine(padding="tiles")) == 160 * 320 * 2
    tiled = machine(padding="tiles").chip
    assert (tiled.stored_rows(161), tiled.stored_columns(64.0)) == (320, 320)
    assert (GROQCHIP1.stored_rows(161), GROQCHIP1.stored_columns(64.0)) == (161, 64)


def test_widening_before_the_stream_is_seen_where_the_stream_is_narrow() -> None:
    """4-bit weights of a whole round: 10 cycles to load, 2.5 to stream, or 20 on half a stream."""

    def install(**rules: object) -> float:
        where = machine(weight_stream_bytes_per_cycle=10_240, **rules)
        work = rounds_cost(where, kind="fp16", groups=1, m=1, k=160, n=640, weight_bits=4)
        return float(work.install_cycles)

    assert install() == 10
    assert install(widening="memory") == 2 * 160 * 320 * 2 / 10_240 == 20


@pytest.mark.parametrize(("bits", "vectors"), [(8, 1), (16, 2), (32, 4)])
def test_16_bit_values_cross_links_in_the_bits_of_the_wire(bits: int, vectors: int) -> None:
    """A row of 320 values to 7 peers in one shot: 650 cycles for the first vector, 23.6 more."""
    from lpu_jax.datapath.c2c import _sent_bytes
    from lpu_jax.datapath.work import Operand

    where = machine(wire_value_bits=bits)
    sent = _sent_bytes(Operand(shape=(1, 320), dtype="float16"), None, where.chip)
    assert sent == vectors * 320
    last = where.collective_cycles("all_reduce", "one_shot", 8, 1, sent).last
    cycles_per_vector = 328 / 12.5e9 * 0.9e9
    assert float(last) == pytest.approx(722e-9 * 0.9e9 + (vectors - 1) * cycles_per_vector, abs=1)
    # Statistics of a softmax are fp32 whatever the wire.
    statistics = Operand(shape=(1, 320), dtype="float32")
    assert _sent_bytes(statistics, None, where.chip) == 4 * 320
