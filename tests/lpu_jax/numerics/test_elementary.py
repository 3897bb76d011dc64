"""VXM arithmetic: bits under every way of running, sums in their order, operation counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lpu_jax.numerics import elementary

UNARY = (
    *("exp", "sigmoid", "silu", "rsqrt", "sqrt", "reciprocal", "log", "tanh", "gelu"),
    "gelu_tanh",
)


def bits(x):
    return np.asarray(x).view(np.uint32)


def arguments(name, size):
    rng = np.random.default_rng(0)
    if name in ("rsqrt", "sqrt", "log"):
        return np.exp(rng.uniform(-80, 80, size)).astype(np.float32)
    small = np.linspace(-0.4, 0.4, size // 2)
    return np.concatenate([np.linspace(-87.33, 88.72, size - small.size), small]).astype("f4")


@pytest.mark.slow
@pytest.mark.parametrize("name", UNARY)
def test_bits_do_not_depend_on_how_it_runs(name):
    function = getattr(elementary, name)
    x = jnp.asarray(arguments(name, 64 * 37).reshape(64, 37))
    expected = bits(function(x))  # eager: one operation at a time
    np.testing.assert_array_equal(bits(jax.jit(jax.vmap(function))(x)), expected)
    np.testing.assert_array_equal(bits(jax.jit(function)(x[:1])), expected[:1])

    def rows(x):
        return jax.lax.scan(lambda none, row: (none, function(row)), None, x)[1]

    mesh = jax.make_mesh((8,), ("chips",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=P("chips"), out_specs=P("chips")))
    np.testing.assert_array_equal(bits(split(x)), expected)


def chain(x, y, gain):
    """Products into additions, a constant divisor, and constants that a compiler would merge."""
    h = elementary.add(elementary.mul(x, y), gain)
    h = elementary.sub(elementary.mul(h, h), elementary.mul(x, gain))
    h = elementary.mul(elementary.mul(h, jnp.full_like(h, 0.1)), jnp.full_like(h, 3.3))
    h = elementary.add(elementary.add(h, jnp.full_like(h, 1e3)), jnp.full_like(h, -1e3))
    h = elementary.div(elementary.div(h, jnp.full_like(h, 3.0)), y)
    total = elementary.sum_lanes(elementary.mul(h, h))
    scale = elementary.rsqrt(elementary.add(total, jnp.full_like(total, 1e-5)))
    return elementary.add(elementary.silu(elementary.mul(h, scale[:, None] + 0 * h)), gain)


def unguarded(x, y, gain):
    return x * y + gain


@pytest.mark.slow
def test_chain_in_one_jit_equals_single_operations():
    rng = np.random.default_rng(1)
    x, y, gain = (jnp.asarray(rng.normal(size=(64, 333)), jnp.float32) for _ in range(3))
    expected = bits(chain(x, y, gain))
    np.testing.assert_array_equal(bits(jax.jit(chain)(x, y, gain)), expected)
    one = jax.jit(chain)(x[5:6], y[5:6], gain[5:6])
    np.testing.assert_array_equal(bits(one), expected[5:6])


@pytest.mark.canary
def test_without_guards_the_compiler_contracts():
    """Where this fails, the guards may have become unnecessary; measure before removal."""
    if jax.default_backend() != "cpu":
        pytest.skip("contraction is measured on CPU only")
    rng = np.random.default_rng(1)
    x, y, gain = (jnp.asarray(rng.normal(size=(64, 333)), jnp.float32) for _ in range(3))
    assert (bits(jax.jit(unguarded)(x, y, gain)) != bits(unguarded(x, y, gain))).any()


@pytest.mark.parametrize("divisor", [3.0, 7.0, 10.0, 448.0])
def test_division_by_a_constant_is_rounded_once(divisor):
    x = np.random.default_rng(2).normal(size=20_000).astype(np.float32)
    divide = jax.jit(lambda v: elementary.div(v, jnp.full_like(v, divisor)))
    np.testing.assert_array_equal(divide(jnp.asarray(x)), x / np.float32(divisor))


def tree_sum(x):
    """Sum one row in the stated order, in NumPy fp32."""
    x = np.pad(x, (0, -x.size % 320)).reshape(-1, 320)
    total = x[0].copy()
    for vector in x[1:]:
        total += vector
    total = np.pad(total, (0, 192))
    while total.size > 1:
        total = total[: total.size // 2] + total[total.size // 2 :]
    return total[0]


@pytest.mark.first(1)
@pytest.mark.parametrize("n", [1, 64, 320, 333, 2560, 7168])
def test_sum_lanes_follows_the_stated_tree(n):
    x = np.random.default_rng(n).normal(size=(5, n)).astype(np.float32)
    expected = np.array([tree_sum(row) for row in x])
    summed = jax.jit(elementary.sum_lanes)
    np.testing.assert_array_equal(bits(summed(jnp.asarray(x))), bits(expected))
    np.testing.assert_array_equal(bits(summed(jnp.asarray(x[:1]))), bits(expected[:1]))
    longer = jnp.asarray(np.pad(x, ((0, 0), (0, 700))))
    np.testing.assert_array_equal(bits(summed(longer)), bits(expected))
    by_column = jax.jit(lambda v: elementary.sum_lanes(v, 0))(jnp.asarray(x.T))
    np.testing.assert_array_equal(bits(by_column), bits(expected))
    if n > 320:  # another order gives other bits, so the comparison can fail
        assert (x.sum(1, dtype=np.float32) != expected).any()


def test_sum_of_products_is_not_contracted():
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=(8, 3000)).astype(np.float32) for _ in range(2))
    got = jax.jit(lambda a, b: elementary.sum_lanes(a * b))(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_array_equal(bits(got), bits(np.array([tree_sum(row) for row in x * y])))


def test_max_lanes():
    x = np.random.default_rng(4).normal(size=(6, 500)).astype(np.float32)
    x[1], x[2, 3], x[3] = -np.inf, np.nan, -np.abs(x[3])
    x[4], x[4, 7] = -0.0, 0.0
    got = np.asarray(jax.jit(elementary.max_lanes)(jnp.asarray(x)))
    np.testing.assert_array_equal(got, x.max(1))
    assert not np.signbit(got[4])
    padded = np.pad(x, ((0, 0), (0, 333)), constant_values=-np.inf)
    np.testing.assert_array_equal(bits(elementary.max_lanes(jnp.asarray(padded))), bits(got))
    np.testing.assert_array_equal(elementary.max_lanes(jnp.asarray(x.T), 0), got)


@pytest.mark.parametrize("n", [np.arange(-126, 128), np.arange(1, 200)])
def test_products_of_converted_integers_are_not_contracted(n):
    """The compiler knows that these are numbers: a wall that hangs on NaN would fall here."""
    x = n.astype(np.int32)
    y = np.random.default_rng(5).normal(size=n.size).astype(np.float32) * np.float32(0.01)
    constant = np.float32(-2.12194440e-4)

    def function(x, y):
        wide = x.astype(jnp.float32)
        return elementary.add(elementary.mul(wide, jnp.full_like(y, constant)), y)

    np.testing.assert_array_equal(jax.jit(function)(x, y), n.astype(np.float32) * constant + y)


def test_maximum_and_comparison():
    x = jnp.asarray([0.0, -0.0, np.nan, 1.0, -np.inf, 1e-40, -1e-40, 2.0], jnp.float32)
    y = jnp.asarray([-0.0, 0.0, 1.0, np.nan, np.inf, -1.0, -0.0, -3.0], jnp.float32)
    expected = np.float32([0, 0, np.nan, np.nan, np.inf, 0, -0.0, 2])
    np.testing.assert_array_equal(bits(elementary.maximum(x, y)), bits(expected))
    np.testing.assert_array_equal(bits(elementary.maximum(y, x)), bits(expected))
    below = [True, True, False, False, True, False, True, False]
    np.testing.assert_array_equal(elementary.less_equal(x, y), below)


def test_sum_leading():
    x = np.random.default_rng(6).normal(size=(9, 50)).astype(np.float32)
    total = np.zeros(50, np.float32)
    for part in x:
        total = total + part
    np.testing.assert_array_equal(bits(jax.jit(elementary.sum_leading)(x)), bits(total))
    products = jax.jit(lambda x, y: elementary.sum_leading(x * y))(x, x)
    total = np.zeros(50, np.float32)
    for part in x:
        total = total + part * part
    np.testing.assert_array_equal(bits(products), bits(total))
