"""VXM functions: accuracy against mpmath, bits under every way of running, operation counts."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lpu_jax.numerics import elementary

#: Bounds in ulp, those of the docstrings (measured there on millions of arguments).
ULP = {"exp": 0.90, "sigmoid": 2.4, "silu": 3.2, "rsqrt": 1.5}
REFERENCE = {
    "exp": mpmath.exp,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
}
UNARY = ("exp", "sigmoid", "silu", "rsqrt", "sqrt")


def bits(x):
    return np.asarray(x).view(np.uint32)


def arguments(name, size):
    rng = np.random.default_rng(0)
    if name in ("rsqrt", "sqrt"):
        return np.exp(rng.uniform(-80, 80, size)).astype(np.float32)
    low, high = (-83.0, 88.7) if name == "silu" else (-87.33, 88.72)
    small = np.linspace(-0.4, 0.4, size // 2)
    return np.concatenate([np.linspace(low, high, size - small.size), small]).astype(np.float32)


def error_ulp(got, exact):
    exponent = np.floor(np.log2(np.abs(exact)))
    return np.abs(got.astype(np.float64) - exact) / np.exp2(exponent - 23)


@pytest.mark.parametrize("name", ULP)
def test_accuracy_against_mpmath(name):
    x = arguments(name, 4000)
    x = x[x != 0]
    got = np.asarray(jax.jit(getattr(elementary, name))(jnp.asarray(x)))
    with mpmath.workprec(80):
        exact = np.array([float(REFERENCE[name](mpmath.mpf(float(v)))) for v in x])
    worst = error_ulp(got, exact)
    assert worst.max() <= ULP[name], (x[worst.argmax()], worst.max())
    assert worst.max() > 0.45  # not a comparison of a thing with itself


def test_accuracy_on_a_dense_sweep():
    """float64 as the reference: its own error is a millionth of an fp32 ulp."""
    x = arguments("exp", 1_000_000)
    got = np.asarray(jax.jit(elementary.exp)(jnp.asarray(x)))
    assert error_ulp(got, np.exp(x.astype(np.float64))).max() <= ULP["exp"]


def test_exp_at_its_edges():
    largest, smallest = np.float32(88.72283), np.float32(-87.33654)
    beyond = np.nextafter([largest, smallest], np.float32([np.inf, -np.inf]))
    x = np.array(
        [largest, beyond[0], smallest, beyond[1], np.inf, -np.inf, np.nan, 0, -0.0, 1e-40, 3e38],
        np.float32,
    )
    got = np.asarray(jax.jit(elementary.exp)(jnp.asarray(x)))
    np.testing.assert_array_equal(
        got[[1, 3, 4, 5, 6, 7, 8, 9, 10]],
        np.float32([np.inf, 0, np.inf, 0, np.nan, 1, 1, 1, np.inf]),
    )
    assert np.isfinite(got[0])
    assert got[2] >= 2.0**-126
    # The thresholds are right: the neighbours' exponentials leave the range of normal numbers.
    with np.errstate(over="ignore"):
        assert np.float32(np.exp(np.float64(beyond[0]))) == np.inf
    assert np.exp(np.float64(beyond[1])) < 2.0**-126


def test_special_values():
    x = jnp.asarray([np.inf, -np.inf, np.nan, 200.0, -200.0, 0.0], jnp.float32)
    np.testing.assert_array_equal(elementary.sigmoid(x), np.float32([1, 0, np.nan, 1, 0, 0.5]))
    np.testing.assert_array_equal(
        elementary.silu(x), np.float32([np.inf, *[np.nan] * 2, 200, 0, 0])
    )
    x = jnp.asarray([np.inf, 0.0, np.nan, -1.0, 4.0], jnp.float32)
    np.testing.assert_array_equal(elementary.rsqrt(x), np.float32([0, np.inf, *[np.nan] * 2, 0.5]))


@pytest.mark.parametrize("name", UNARY)
def test_bits_do_not_depend_on_how_it_runs(name):
    function = getattr(elementary, name)
    x = jnp.asarray(arguments(name, 64 * 37).reshape(64, 37))
    expected = bits(function(x))  # eager: one operation at a time
    np.testing.assert_array_equal(bits(jax.jit(function)(x)), expected)
    np.testing.assert_array_equal(bits(jax.jit(jax.vmap(function))(x)), expected)
    np.testing.assert_array_equal(bits(jax.jit(function)(x[:1])), expected[:1])


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


def test_chain_in_one_jit_equals_single_operations():
    rng = np.random.default_rng(1)
    x, y, gain = (jnp.asarray(rng.normal(size=(64, 333)), jnp.float32) for _ in range(3))
    expected = bits(chain(x, y, gain))
    np.testing.assert_array_equal(bits(jax.jit(chain)(x, y, gain)), expected)
    one = jax.jit(chain)(x[5:6], y[5:6], gain[5:6])
    np.testing.assert_array_equal(bits(one), expected[5:6])


def test_without_guards_the_compiler_contracts():
    """Canary: where this fails, the guards may have become unnecessary; measure before removal."""
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


#: Equations that are wires, not operations.
FREE = {"bitcast_convert_type", "broadcast_in_dim"}


def count(jaxpr, depths):
    """Return operations of a jaxpr and the depths of its outputs, given those of its inputs."""
    depth = dict(zip(jaxpr.invars, depths, strict=True))
    operations = 0
    for equation in jaxpr.eqns:
        inputs = [0 if hasattr(v, "val") else depth.get(v, 0) for v in equation.invars]
        inner = [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]
        if inner:
            more, outputs = count(inner[0], inputs)
        else:
            more = 0 if equation.primitive.name in FREE else 1
            outputs = [max(inputs) + more if inputs else 0] * len(equation.outvars)
        operations += more
        depth.update(zip(equation.outvars, outputs, strict=True))
    return operations, [0 if hasattr(v, "val") else depth.get(v, 0) for v in jaxpr.outvars]


@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "div", "sqrt", "rsqrt", "exp", "sigmoid", "silu"]
)
def test_costs_are_those_of_the_algorithms(name, monkeypatch):
    monkeypatch.setattr(elementary, "guarded", lambda p: p)
    monkeypatch.setattr(elementary, "_opaque", lambda constant, like: constant)
    n_operands = 2 if name in ("add", "sub", "mul", "div") else 1
    x = jnp.ones(3, jnp.float32)
    jaxpr = jax.make_jaxpr(getattr(elementary, name))(*[x] * n_operands).jaxpr
    operations, (depth,) = count(jaxpr, [0] * n_operands)
    cost = elementary.ALU_OPERATIONS[name]
    assert (cost.operations, cost.depth) == (operations, depth)
