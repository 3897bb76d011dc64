"""The matrix unit: bits against exact fractions, and every form of batching against a loop.

int8 products carry most of the batching cases: they are exact, so any mistake in addressing shows,
and they compile ten times faster than the certified float16 product.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.datapath import mxm
from lpu_jax.errors import LpuError
from lpu_jax.numerics import accumulate, scalar
from lpu_jax.numerics.quantized import QuantizedArray, quantize, widen

M, K, N, GROUPS = 2, 96, 3, 4
#: One leading axis of a nested vmap: for each operand, whether it is mapped.
Mapped = tuple[bool, ...]


def int8_array(*shape: int) -> jax.Array:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    return jnp.asarray(rng.integers(-128, 128, shape), jnp.int8)


def fp16_array(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.integers(-6, 7, shape))
    return jnp.asarray(rng.normal(size=shape) * scale, jnp.float16)


@functools.cache
def stored(scheme: str, *shape: int) -> QuantizedArray:
    return jax.jit(quantize, static_argnums=1)(fp16_array(*shape).astype(jnp.float32), scheme)


# --- one product --------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n_tiles"), [(96, 1), (330, 3)])
def test_float16_equals_exact_fractions(k: int, n_tiles: int) -> None:
    assert -(-k // accumulate.K_TILES["fp16"]) == n_tiles
    x, w = fp16_array(M, k, seed=1), fp16_array(k, N, seed=2)
    expected = [[scalar.dot(row.tolist(), column.tolist(), 160) for column in w.T] for row in x]
    np.testing.assert_array_equal(mxm.matmul(x, w), np.float32(expected))


@pytest.mark.slow
def test_a_tile_is_rounded_once_and_tiles_are_added_in_float32() -> None:
    # 1024^2 + 160 halves lose every half in a float32 running sum, but not in one exact tile.
    x = jnp.ones((1, 320), jnp.float16).at[0, 0].set(1024).at[0, 160].set(2**-5)
    w = jnp.ones((320, 1), jnp.float16).at[0, 0].set(16384)
    first = 2**24 + 159.0  # exact; a tie of float32 that rounds to even: 16777376
    expected = np.float32(np.float32(first) + np.float32(159 + 2**-5))
    np.testing.assert_array_equal(mxm.matmul(x, w), [[expected]])


def test_int8_and_float8_equal_integers_and_fractions() -> None:
    x, w = int8_array(M, K), int8_array(K, N)
    np.testing.assert_array_equal(mxm.matmul(x, w), np.int64(x) @ np.int64(w))
    x8, w8 = (a.astype(jnp.float8_e4m3fn) for a in (fp16_array(M, K), fp16_array(K, N)))
    rows, columns = np.float64(x8).tolist(), np.float64(w8).T.tolist()
    expected = [[scalar.dot(row, column, 320) for column in columns] for row in rows]
    np.testing.assert_array_equal(mxm.matmul(x8, w8), np.float32(expected))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4", "fp8", "int8"])
def test_a_quantised_weight_is_widened_and_keeps_its_stored_bits(scheme: str) -> None:
    x = fp16_array(M, K)
    w = stored(scheme, K, N)
    np.testing.assert_array_equal(mxm.matmul(x, w), mxm.matmul(x, jax.jit(widen)(w)))
    (equation,) = _matmuls(jax.make_jaxpr(mxm.matmul)(x, w))
    assert equation.params["weight_bits"] == w.bits_per_value
    assert w.bits_per_value < 16


def test_int8_activations_multiply_int8_codes_without_widening() -> None:
    w = stored("int8", K, N)
    x = int8_array(M, K)
    np.testing.assert_array_equal(mxm.matmul(x, w), np.int64(x) @ np.int64(w.codes))


# --- batching -----------------------------------------------------------------------------------


def _matmuls(jaxpr: Any) -> list[Any]:
    return [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "mxm_matmul"]


def one_by_one(function: Callable[..., Any], mapped: list[Mapped], *operands: Any) -> np.ndarray:
    """What nested vmaps mean: a Python loop over each leading axis."""
    if not mapped:
        return np.asarray(function(*operands))
    flags, *inner = mapped
    size = next(o.shape[0] for o, flag in zip(operands, flags, strict=True) if flag)
    chosen = [
        [o[i] if flag else o for o, flag in zip(operands, flags, strict=True)] for i in range(size)
    ]
    return np.stack([one_by_one(function, inner, *each) for each in chosen])


def check_batching(
    function: Callable[..., Any], mapped: list[Mapped], *shapes: tuple[int, ...], make: Any
) -> None:
    """Nested vmaps equal the loop, bit for bit, and stay one MXM operation."""
    operands = []
    for position, shape in enumerate(shapes):
        lead = [2 + depth for depth, flags in enumerate(mapped) if flags[position]]
        operands.append(make(*lead, *shape))
    batched = function
    for flags in reversed(mapped):
        batched = jax.vmap(batched, in_axes=tuple(0 if flag else None for flag in flags))
    assert len(_matmuls(jax.make_jaxpr(batched)(*operands))) == 1
    expected = one_by_one(function, mapped, *operands)
    np.testing.assert_array_equal(jax.jit(batched)(*operands), expected)


ONE_AXIS = [(True, False), (False, True), (True, True)]
FORMS = {
    "plain": ((M, K), (K, N)),
    "shared rows": ((M, K), (GROUPS, K, N)),
    "grouped": ((GROUPS, M, K), (GROUPS, K, N)),
}


@pytest.mark.first(7)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "mapped", [[a] for a in ONE_AXIS] + [[a, b] for a, b in itertools.permutations(ONE_AXIS, 2)]
)
def test_vmaps_equal_a_loop(form: str, mapped: list[Mapped]) -> None:
    check_batching(mxm.matmul, mapped, *FORMS[form], make=int8_array)


@pytest.mark.parametrize("mapped", [[(True, False)], [(False, True)]])
def test_a_vmap_of_float16_equals_a_loop(mapped: list[Mapped]) -> None:
    check_batching(mxm.matmul, mapped, *FORMS["plain"], make=fp16_array)


@pytest.mark.first(4)
@pytest.mark.parametrize("x_shape", [(M, K), (3, M, K)])
@pytest.mark.parametrize("flags", [f for f in itertools.product((True, False), repeat=3) if any(f)])
def test_vmaps_of_an_addressed_store_equal_a_loop(x_shape: tuple[int, ...], flags: Mapped) -> None:
    def make(*shape: int) -> jax.Array:
        # The addresses are the operand whose last dimension is 3 and that has no K.
        if K in shape:
            return int8_array(*shape)
        return jnp.asarray(np.resize([2, -1, 0, 3, -1, 1], shape), jnp.int32)

    def addressed(x: jax.Array, w: jax.Array, rows: jax.Array) -> jax.Array:
        return mxm.matmul(x, w, rows=rows)

    check_batching(addressed, [flags], x_shape, (GROUPS, K, N), (3,), make=make)


def test_an_address_reads_its_matrix_and_a_negative_one_gives_zeros() -> None:
    x, store = int8_array(M, K), int8_array(GROUPS, K, N)
    out = mxm.matmul(x, store, rows=jnp.asarray([2, -1, 0, 2], jnp.int32))
    expected = [np.int64(x) @ np.int64(store[i]) for i in (2, 0, 2)]
    np.testing.assert_array_equal(out, [expected[0], np.zeros((M, N)), *expected[1:]])


@pytest.mark.slow
def test_a_quantised_store_is_addressed_in_its_stored_form() -> None:
    x = fp16_array(M, K)
    store = stored("int4", GROUPS, K, N)
    rows = jnp.asarray([3, -1], jnp.int32)
    expected = mxm.matmul(x, jax.jit(widen)(store)[3])
    out = mxm.matmul(x, store, rows=rows)
    np.testing.assert_array_equal(out, np.stack([expected, np.zeros_like(expected)]))


@pytest.mark.slow
def test_the_result_of_a_row_does_not_depend_on_the_others() -> None:
    x, w = fp16_array(16, K), fp16_array(K, N, seed=3)
    alone = jnp.concatenate([mxm.matmul(x[i : i + 1], w) for i in range(4)])
    np.testing.assert_array_equal(mxm.matmul(x, w)[:4], alone)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ((2, 4), (5, 3), "x has 4 columns but w has 5 rows"),
        ((2, 2, 4), (4, 3), r"shapes \(2, 2, 4\) and \(4, 3\) were given"),
        ((4,), (4, 3), r"shapes \(4,\) and \(4, 3\) were given"),
    ],
)
def test_shapes_that_do_not_fit_are_named(x: Any, w: Any, message: str) -> None:
    with pytest.raises(LpuError, match=message):
        mxm.matmul(jnp.zeros(x, jnp.float16), jnp.zeros(w, jnp.float16))


@pytest.mark.parametrize(
    ("x", "w"), [("float32", "float32"), ("bfloat16", "float16"), ("int8", "float16")]
)
def test_types_the_unit_does_not_take_are_named(x: str, w: str) -> None:
    with pytest.raises(LpuError, match=f"operands {x} and {w} were given; allowed are"):
        mxm.matmul(jnp.zeros((2, 4), x), jnp.zeros((4, 3), w))


@pytest.mark.slow
def test_codes_with_a_scale_per_group_are_never_multiplied_bare() -> None:
    # int4 codes have the type of int8 activations, but their scales could not be applied later.
    with pytest.raises(LpuError, match="operands int8 and float16"):
        mxm.matmul(jnp.zeros((M, K), jnp.int8), stored("int4", K, N))
    x = fp16_array(M, K).astype(jnp.float8_e4m3fn)
    w = stored("fp8", K, N)
    np.testing.assert_array_equal(mxm.matmul(x, w), mxm.matmul(x, jax.jit(widen)(w)))


@pytest.mark.slow
def test_rounding_and_carry_reach_the_unit_and_cost_nothing() -> None:
    x, w = fp16_array(M, 330, seed=1), fp16_array(330, N, seed=2)
    results = [mxm.matmul(x, w), mxm.matmul(x, w, rounding="rz"), mxm.matmul(x, w, carry="exact")]
    assert len({np.asarray(r).tobytes() for r in results}) == 3
    exact = [[scalar.dot_tile(row.tolist(), column.tolist()) for column in w.T] for row in x]
    np.testing.assert_array_equal(results[2], np.float32(exact))


def test_blocks_that_do_not_run_along_the_contraction_are_refused() -> None:
    w = jax.jit(functools.partial(quantize, scheme="int8", axis=-1))(
        fp16_array(K, N).astype(jnp.float32)
    )
    with pytest.raises(LpuError, match="scales along axis -1 were given"):
        mxm.matmul(int8_array(M, K), w)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ((M, K), (K, N), r"rows were given with w of shape \(96, 3\); it must be a store"),
        ((GROUPS, M, K), (GROUPS, K, N), "x has 4 matrices but w has 2"),
    ],
)
def test_addresses_that_do_not_fit_are_named(x: Any, w: Any, message: str) -> None:
    rows = jnp.zeros(2, jnp.int32)
    with pytest.raises(LpuError, match=message):
        mxm.matmul(int8_array(*x), int8_array(*w), rows=rows)


def test_as_many_activations_as_matrices() -> None:
    with pytest.raises(LpuError, match="x has 2 matrices but w has 4"):
        mxm.matmul(int8_array(2, M, K), int8_array(GROUPS, K, N))
