"""Vector, switch and memory units against NumPy, alone and under vmap; the factory's rules."""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import schedule
from lpu_jax.datapath import expert_slots, masks, mem, selection, sxm, vxm
from lpu_jax.datapath.primitive import free, primitive
from lpu_jax.datapath.work import Unit
from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from lpu_jax.numerics import elementary

GROQ = one_group(system("groq-node"), 1)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cycles(function: Callable[..., Any], *args: Any) -> dict[Unit, float]:
    """Busy cycles by unit; a unit that does nothing is left out."""
    timing = schedule(read(jax.make_jaxpr(function)(*args), strict=True), GROQ)
    return {unit: float(busy) for unit, busy in timing.busy_cycles.items() if busy}


# --- vector unit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ((jnp.ones(3, jnp.int32), jnp.ones(3, jnp.int32)), r"x=int32\[3\] was given; it must"),
        ((jnp.ones(3, jnp.float16), 1.0), r"x=float16\[3\] .* a float32 array"),
        ((jnp.ones((2, 3)), jnp.ones(3)), r"shapes \(2, 3\), \(3,\) were given; they must have"),
        ((jnp.ones((2, 3)), jnp.ones((2, 2))), "with lengths that are equal or 1"),
        ((1.0, 2.0), "at least one operand must be an array"),
    ],
)
def test_operands_that_do_not_go_together_are_named(operands: Any, message: str) -> None:
    with pytest.raises(LpuError, match=message):
        vxm.add(*operands)


def test_numpy_numbers_are_numbers() -> None:
    x = jnp.asarray(values(3))
    np.testing.assert_array_equal(vxm.mul(x, np.float32(2)), vxm.mul(x, 2.0))


def test_numbers_and_single_rows_are_spread() -> None:
    x, row = values(4, 3), values(1, 3, seed=1)
    y = jnp.asarray(x)
    np.testing.assert_array_equal(vxm.mul(y, 2.0), x * np.float32(2))
    np.testing.assert_array_equal(vxm.div(127.0, jnp.abs(y)), np.float32(127) / np.abs(x))
    np.testing.assert_array_equal(vxm.add(y, jnp.asarray(row)), x + row)
    np.testing.assert_array_equal(vxm.select(y > 0, 1.0, y), np.where(x > 0, np.float32(1), x))
    np.testing.assert_array_equal(vxm.less_equal(y, 0.0), x <= 0)


def test_int8_is_rounded_to_even_and_saturates() -> None:
    x = jnp.asarray([0.5, 1.5, -2.5, 126.6, 200.0, -200.0, np.nan], jnp.float32)
    np.testing.assert_array_equal(vxm.to_int8(x), [0, 2, -2, 127, 127, -127, 0])


@pytest.mark.slow
def test_functions_are_those_of_the_numerics_and_chain_on_the_large_units() -> None:
    x = jnp.abs(jnp.asarray(values(4, 320)))
    for name in ("sqrt", "reciprocal", "rsqrt", "exp", "log", "tanh", "sigmoid", "silu", "gelu"):
        got = getattr(vxm, name)(x)
        np.testing.assert_array_equal(got, jax.jit(getattr(elementary, name))(x))
    busy = [cycles(function, x)[Unit.VXM] for function in (vxm.exp, vxm.gelu_tanh, vxm.softmax)]
    assert busy == sorted(busy)


def test_zeros_anywhere_in_a_list_of_terms_change_no_bit() -> None:
    terms = values(5, 2, 3)
    total = np.zeros((2, 3), np.float32)
    for term in terms:
        total = total + term
    spread = np.zeros((9, 2, 3), np.float32)
    spread[[0, 2, 3, 6, 8]] = terms
    np.testing.assert_array_equal(vxm.sum_leading(jnp.asarray(terms)), total)
    np.testing.assert_array_equal(vxm.sum_leading(jnp.asarray(spread)), total)


def test_a_query_sees_its_own_position_and_those_before() -> None:
    positions = jnp.asarray([0, 5], jnp.int32)
    scores = jnp.zeros((4, 6, 9), jnp.float32)  # 2 heads of 2 sequences; 2 queries x 3 new tokens
    seen = np.asarray(masks.causal_mask(scores, positions, 3)) == 0
    for group in range(4):
        for row in range(6):
            last = int(positions[group // 2]) + row % 3
            np.testing.assert_array_equal(seen[group, row], np.arange(9) <= last)


@pytest.mark.parametrize(
    ("window", "is_chunked"), [(None, False), (1, False), (3, False), (1, True), (3, True)]
)
def test_keys_from_another_position_are_masked_alike(window: int | None, is_chunked: bool) -> None:
    positions, first = np.asarray([4, 9]), np.asarray([0, 7])
    scores = jnp.zeros((4, 6, 9), jnp.float32)
    ends = jnp.asarray(positions), jnp.asarray(first)
    mask = masks.key_mask(scores, *ends, 3, window, is_chunked)
    for group in range(4):
        for row in range(6):
            query = positions[group // 2] + row % 3
            key = first[group // 2] + np.arange(9)
            seen = (key <= query) & (key > query - (window or 100))
            if window and is_chunked:
                seen = (key <= query) & (key // window == query // window)
            np.testing.assert_array_equal(np.asarray(mask)[group, row] == 0, seen)


def test_a_ring_keeps_the_last_positions_and_is_read_in_their_order() -> None:
    ring, window = jnp.zeros((2, 640, 1), jnp.int32), 200
    for start in range(0, 1000, 40):  # the second sequence is 7 positions ahead
        positions = jnp.asarray([start, start + 7], jnp.int32)
        new = jnp.arange(40)[None, :, None] + positions[:, None, None]
        ring = mem.append_ring(ring, new, positions, axis=1)
        first = mem.ring_start(positions, window=window, n_positions=640)
        assert not np.any(np.asarray(first) % 320)
        view = np.asarray(mem.ring_view(ring, first, axis=1))[..., 0]
        for b in range(2):
            begin, end = int(positions[b]) - window + 1, int(positions[b]) + 40
            begin = max(begin, 7 * b)  # what the second one never met
            expected = np.arange(begin, end)
            np.testing.assert_array_equal(view[b][expected - int(first[b])], expected)


@pytest.mark.parametrize(("window", "n_new"), [(1, 1), (128, 1), (128, 65), (321, 320), (2, 640)])
def test_the_shortest_ring_holds_all_windows_of_a_step(window: int, n_new: int) -> None:
    length = mem.ring_length(window, n_new, 10**6)
    needed = max(  # by trying every place of the first position in its vector
        -(-(place + window - 1 + n_new) // 320) * 320 for place in range(320)
    )
    assert length == needed
    assert mem.ring_length(window, n_new, 100) == 100


def test_a_run_of_positions_drops_what_others_hold() -> None:
    whole = np.full((2, 1, 9), -1.0, np.float32)
    new = values(2, 1, 4)
    positions = np.asarray([1, 4])
    for b in range(2):
        whole[b, :, positions[b] : positions[b] + 4] = new[b]
    for first in (0, 3, 6):
        run = jnp.full((2, 1, 3), -1.0)
        got = mem.append_run(
            run, jnp.asarray(new), jnp.asarray(positions), jnp.asarray([first]), axis=2
        )
        np.testing.assert_array_equal(got, whole[:, :, first : first + 3])


def test_the_largest_of_a_list_is_taken() -> None:
    x = values(3, 2, 4)
    np.testing.assert_array_equal(vxm.max_leading(jnp.asarray(x)), x.max(0))


def test_top_k_takes_the_first_of_equal_values() -> None:
    best, ids = selection.top_k(jnp.asarray([[1.0, 3.0, 3.0, 2.0]]), 3)
    np.testing.assert_array_equal(best, [[3, 3, 2]])
    np.testing.assert_array_equal(ids, [[1, 2, 3]])


def test_slots_list_the_local_experts_in_use_ascending() -> None:
    ids = jnp.asarray([[7, 4], [5, 7], [0, 1]], jnp.int32)
    slots = expert_slots.local_slots(ids, jnp.int32(4), n_local=4, n_slots=4)
    np.testing.assert_array_equal(slots, [4, 5, 7, -1])
    weights = jnp.asarray([[0.25, 0.75], [0.5, 0.125], [1.0, 2.0]], jnp.float32)
    gates = expert_slots.one_hot_gate(slots, ids, weights)
    expected = [[0.75, 0, 0], [0, 0.5, 0], [0.25, 0.125, 0], [0, 0, 0]]
    np.testing.assert_array_equal(gates, expected)


def test_groups_that_are_not_kept_are_minus_infinity() -> None:
    x = jnp.arange(12.0).reshape(2, 6)
    kept = selection.keep_groups(x, jnp.asarray([[0, 2], [1, 1]], jnp.int32), 3)
    inf = -np.inf
    np.testing.assert_array_equal(kept, [[0, 1, inf, inf, 4, 5], [inf, inf, 8, 9, inf, inf]])


def test_arg_max_is_global_and_skips_padding() -> None:
    x = jnp.asarray([[1.0, 5.0, 9.0], [2.0, 2.0, 9.0]])
    best, column = selection.arg_max(x, jnp.int32(30), 32)  # column 32 is padding
    np.testing.assert_array_equal(best, [[5], [2]])
    np.testing.assert_array_equal(column, [[31], [30]])
    labels = jnp.asarray([[7, 8, 9], [7, 8, 9]], jnp.int32)
    np.testing.assert_array_equal(selection.take_best(x, labels), [[9], [9]])


# --- switch unit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "lengths", "moves"),
    [
        ("t (n h) -> n t h", {"n": 4}, True),
        ("t (n h) -> t n h", {"n": 4}, False),
        ("(t one) d -> one t d", {"one": 1}, False),
        ("t d -> d t", {}, True),
    ],
)
def test_rearranging_is_einops_and_free_where_the_order_stays(
    pattern: str, lengths: dict[str, int], moves: bool
) -> None:
    x = values(6, 640)
    out = sxm.rearrange(jnp.asarray(x), pattern, **lengths)
    np.testing.assert_array_equal(out, einops.rearrange(x, pattern, **lengths))
    busy = cycles(lambda x: sxm.rearrange(x, pattern, **lengths), x)
    # float32 values are four byte-vectors each; two vectors move in a cycle.
    assert busy == ({Unit.SXM: 6 * 640 * 4 / 320 / 2} if moves else {})


def test_parts_are_cut_and_joined_and_whole_vectors_stay() -> None:
    x = jnp.asarray(values(2, 960))
    first, second = sxm.split(x, (320, 640))
    np.testing.assert_array_equal(sxm.join(first, second), x)
    assert cycles(lambda x: sxm.split(x, (320, 640)), x) == {}
    assert Unit.SXM in cycles(lambda x: sxm.split(x, (300, 660)), x)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_pairs_change_places(interleaved: bool) -> None:
    x = values(3, 8)
    expected = x.copy()
    if interleaved:
        expected[:, 0::2], expected[:, 1::2] = x[:, 1::2], x[:, 0::2]
    else:
        expected[:, :4], expected[:, 4:] = x[:, 4:], x[:, :4]
    np.testing.assert_array_equal(sxm.swap_pairs(jnp.asarray(x), interleaved=interleaved), expected)


# --- memory -------------------------------------------------------------------------------------


def test_rows_that_other_chips_hold_are_zeros() -> None:
    table = jnp.asarray(values(4, 3))
    out = mem.lookup(table, jnp.asarray([[5, 3], [8, 9]], jnp.int32), jnp.int32(5))
    np.testing.assert_array_equal(out, [[table[0], np.zeros(3)], [table[3], np.zeros(3)]])
    assert np.signbit(
        np.asarray(out)[:, 1]
    ).all()  # -0, which adds nothing to a row, not even a sign


def test_addresses_of_empty_slots_stay_negative() -> None:
    address = jnp.asarray([3, -1, 0], jnp.int32)
    out = mem.select_expert(address, jnp.asarray([2, -1, 1, 0], jnp.int32))
    np.testing.assert_array_equal(out, [0, -1, -1, 3])


@pytest.mark.parametrize("axis", [1, 2])
def test_new_entries_are_written_at_the_place_of_each_sequence(axis: int) -> None:
    cache = np.zeros((2, 6, 5), np.float32)
    shape = [2, 6, 5]
    shape[axis] = 2
    new = values(*shape)
    positions = [1, 3]
    expected = cache.copy()
    for b, at in enumerate(positions):
        place = [b, slice(None), slice(None)]
        place[axis] = slice(at, at + 2)
        expected[tuple(place)] = new[b]
    out = mem.append(jnp.asarray(cache), jnp.asarray(new), jnp.asarray(positions, jnp.int32), axis)
    np.testing.assert_array_equal(out, expected)


def test_rows_are_read_by_address() -> None:
    x = jnp.asarray(values(2, 4, 3))
    taken = mem.take_rows(x, jnp.asarray([3, 0], jnp.int32))
    np.testing.assert_array_equal(taken, np.stack([x[0, 3:4], x[1, 0:1]]))
    rows = mem.rows_from(x[0], jnp.asarray([2, 0], jnp.int32), 2)
    np.testing.assert_array_equal(rows, np.stack([x[0, 2:4], x[0, 0:2]]))
    np.testing.assert_array_equal(mem.take_share(x[0], jnp.int32(1), 2), x[0, 2:4])


# --- the factory --------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_operation_stays_itself_under_nested_vmaps_and_equals_a_loop() -> None:
    xs = jnp.asarray(values(2, 3, 4, 8))
    for function in (
        vxm.sum_lanes,
        vxm.exp,
        lambda x: selection.top_k(x, 3)[1],
        lambda x: sxm.swap_pairs(x, interleaved=True),
        lambda x: sxm.rearrange(x, "a b -> b a"),
    ):
        names = [e.primitive.name for e in jax.make_jaxpr(function)(xs[0, 0]).eqns]
        batched = jax.vmap(jax.vmap(function))
        assert [e.primitive.name for e in jax.make_jaxpr(batched)(xs).eqns] == names
        looped = np.stack([[function(x) for x in row] for row in xs])
        np.testing.assert_array_equal(batched(xs), looped)


def test_an_operation_without_a_cost_cannot_be_made() -> None:
    def make(**rules: Any) -> None:
        primitive("test_nothing", abstract=lambda x: x, meaning=lambda x: x, **rules)

    for rules in ({}, {"cost": free, "chain": lambda params: None}):
        with pytest.raises(TypeError, match="exactly one of `cost` and `chain`"):
            make(**rules)


def test_an_eager_call_compiles_once() -> None:
    lowered = []

    def meaning(x: jax.Array) -> jax.Array:
        lowered.append(x.shape)
        return x

    operation = primitive("test_counted", abstract=lambda x: x, meaning=meaning, cost=free)
    for _ in range(2):
        operation(jnp.ones((2, 3)))
    assert lowered == [(2, 3)]
