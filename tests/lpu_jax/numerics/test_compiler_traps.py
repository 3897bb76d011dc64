"""Canaries: what XLA does to plain arithmetic today, and why the code avoids it.

Each test asserts a behaviour as measured (JAX 0.8.0, 0.10.2 and 0.12.0, x86 with and without
AVX-512). Where it does not hold, the compiler has changed or the processor is another: that is no
bug of ours, so it is reported as an expected failure, with what to look at again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

pytestmark = [
    pytest.mark.canary,
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="behaviours of XLA's CPU backend"),
]

SIZE = 20_000
#: JAX 0.12 keeps constants apart, and contracts nothing across an optimization barrier.
IS_JAX_0_12 = jax.__version_info__ >= (0, 12)
WALLS = "lpu_jax.numerics.arithmetic: the select after each operation may no longer be needed"


def values(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def run(function: Callable[..., Any], *xs: Any) -> np.ndarray:
    return np.asarray(jax.jit(function)(*xs))


def share_wrong(got: np.ndarray, expected: np.ndarray) -> float:
    return float((got != expected).mean())


def unknown(p: jax.Array) -> jax.Array:
    """The wall that hangs on NaN."""
    return jnp.where(p == p, p, jnp.float32(jnp.nan))


# --- contraction and folding ----------------------------------------------------------------------


def test_a_product_and_a_sum_are_contracted() -> None:
    x, y, z = values(0), values(1), values(2)
    assert share_wrong(run(lambda x, y, z: x * y + z, x, y, z), x * y + z) > 0.05, WALLS


def test_reduced_precision_does_not_prevent_contraction() -> None:
    x, y, z = values(0), values(1), values(2)
    got = run(lambda x, y, z: lax.reduce_precision(x * y, 8, 23) + z, x, y, z)
    assert share_wrong(got, x * y + z) > 0.05, "reduce_precision could replace the selects"


def test_a_barrier_prevents_contraction_on_new_versions_only() -> None:
    x, y, z = values(0), values(1), values(2)
    got = run(lambda x, y, z: lax.optimization_barrier(x * y) + z, x, y, z)
    assert (share_wrong(got, x * y + z) == 0) == IS_JAX_0_12, "which versions have a barrier?"


def test_a_constant_is_folded_through_roundings_on_old_versions() -> None:
    x, constant = values(14), np.float32(1.5 * 2.0**23)
    got = run(lambda x: (x + constant) - constant, x)
    assert (share_wrong(got, (x + constant) - constant) == 0) == IS_JAX_0_12, WALLS


def test_a_wall_that_hangs_on_nan_falls_where_the_compiler_knows_of_none() -> None:
    n = np.random.default_rng(3).integers(-126, 128, SIZE).astype(np.int32)
    y = values(3) * np.float32(0.01)
    constant = np.float32(-2.12194440e-4)

    def function(n: jax.Array, y: jax.Array) -> jax.Array:
        return unknown(n.astype(jnp.float32) * constant) + y

    expected = n.astype(np.float32) * constant + y
    assert share_wrong(run(function, n, y), expected) > 0.05, (
        "the compiler no longer sees that a converted integer is a number; nothing has to change"
    )
    x = n.astype(np.float32)
    np.testing.assert_array_equal(run(function, x, y), expected)  # of an argument it knows nothing


def test_constants_are_merged_over_roundings_on_old_versions() -> None:
    x = values(4)
    first, second = np.float32(0.1), np.float32(3.3)
    got = run(lambda x: (x * first) * second, x)
    assert (share_wrong(got, (x * first) * second) == 0) == IS_JAX_0_12, WALLS


def test_a_constant_divisor_becomes_a_factor() -> None:
    x = values(5)
    wrong = [share_wrong(run(lambda x: x / d, x), x / d) for d in np.float32([3, 7, 10])]  # noqa: B023
    assert min(wrong) > 0.05, "arithmetic.X86.div need not hide its divisor"


def test_a_divisor_in_an_array_is_rounded_once() -> None:
    x, y = values(6), values(7)
    np.testing.assert_array_equal(
        run(lambda x, y: x / y, x, y), x / y, "division is wrong: arithmetic.X86 needs portable.div"
    )


# --- functions ------------------------------------------------------------------------------------


def test_roots_are_rounded_once() -> None:
    x = np.abs(values(8))
    np.testing.assert_array_equal(
        run(jnp.sqrt, x), np.sqrt(x), "roots are wrong: arithmetic.X86 needs portable.sqrt"
    )


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        pytest.param(jnp.exp, np.exp, id="exp"),
        pytest.param(jnp.log, np.log, id="log"),
        pytest.param(jnp.tanh, np.tanh, id="tanh"),
        pytest.param(jax.nn.sigmoid, lambda x: 1 / (1 + np.exp(-x)), id="sigmoid"),
        pytest.param(lax.rsqrt, lambda x: 1 / np.sqrt(x), id="rsqrt"),
    ],
)
def test_special_functions_are_not_correctly_rounded(
    function: Callable[[Any], Any], exact: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = np.abs(values(9)) + np.float32(0.01)
    expected = exact(x.astype(np.float64)).astype(np.float32)
    assert share_wrong(run(function, x), expected) > 0.01, (
        "XLA's function is exact here: compare it with ours, whose bits no option can move"
    )


# --- subnormals -----------------------------------------------------------------------------------


def test_subnormals_are_flushed_but_copied() -> None:
    one, tiny = np.ones(16, np.float32), np.full(16, 1e-40, np.float32)
    message = "arithmetic.X86 relies on both flushing modes: flush its operands and sums too"
    assert (run(lambda x, y: x * y, tiny, one) == 0).all(), message
    assert (run(lambda x, y: x + y, tiny, tiny) == 0).all(), message
    assert run(lambda x: x == 0, tiny).all(), message
    assert (run(jnp.sqrt, tiny) == 0).all(), message
    normal = np.full(16, 2.0**-126, np.float32)
    assert (run(lambda x, y: x * y, normal, one / 2) == 0).all(), message
    assert (run(lambda x, y: x - y, normal * np.float32(1.5), normal) == 0).all(), message
    copied = run(lambda x: jnp.where(x < 1, x, x).reshape(4, 4), tiny)
    assert (copied.view(np.uint32) == tiny.view(np.uint32).reshape(4, 4)).all()


def test_products_are_called_tiny_after_rounding() -> None:
    """2**-126 (1 - 2**-24) has 24 bits below 2**-126: zero, where IEEE 754 rounds it to 2**-126."""
    a, b = np.full(16, (1 - 2.0**-24) * 2.0**-63, np.float32), np.full(16, 2.0**-63, np.float32)
    assert (run(lambda a, b: a * b, a, b) == 0).all(), "arithmetic.X86.mul needs portable.mul"
    a, b = 9000013, 15637476  # their product is 2**47 (1 - 2**-26.97)
    assert 2**47 - 2**22 < a * b < 2**47
    a, b = np.full(16, a * 2.0**-86, np.float32), np.full(16, b * 2.0**-87, np.float32)
    assert (run(lambda a, b: a * b, a, b) == np.float32(2.0**-126)).all()


# --- conversions ----------------------------------------------------------------------------------


def test_float64_is_rounded_twice_on_its_way_to_float16() -> None:
    just_above_a_midpoint = np.full(16, 1 + 2.0**-11 + 2.0**-40)
    with jax.enable_x64(True):
        got = run(lambda x: x.astype(jnp.float16), just_above_a_midpoint)
    assert (got == 1).all(), "float64 to float16 is rounded once now (it should be 1 + 2**-10)"
    assert (just_above_a_midpoint.astype(np.float16) == np.float16(1 + 2.0**-10)).all()


def test_reduce_precision_loses_float16_subnormals() -> None:
    x = np.full(16, 2.0**-20, np.float32)  # a float16 subnormal
    got = run(lambda x: lax.reduce_precision(x, 5, 10), x)
    assert (got == 0).all(), "reduce_precision keeps float16 subnormals; rounding need not change"
    assert (x.astype(np.float16) == x).all()


def test_the_smallest_scale_is_lost_by_a_product() -> None:
    code = np.zeros(16, np.uint8).view(ml_dtypes.float8_e8m0fnu)  # 2**-127
    got = run(lambda s, x: s.astype(jnp.float32) * x, code, np.full(16, 4, np.float32))
    assert (got == 0).all(), "scales of 2**-127 survive products; integers still do for them"


def test_float_to_integer_saturates_and_truncates() -> None:
    x = np.array([300.0, -300.0, np.nan, 1.9, -1.9, np.inf, 5, 6], np.float32)
    got = run(lambda x: x.astype(jnp.int8), x)
    np.testing.assert_array_equal(got, [127, -128, 0, 1, -1, 127, 5, 6])


@pytest.mark.skipif(not hasattr(jnp, "float6_e2m3fn"), reason="this JAX has no float6")
def test_float6_cannot_be_converted() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError):
        run(lambda x: x.astype(jnp.float6_e2m3fn).astype(jnp.float32), values(15))


def test_fp8_overflow_is_nan() -> None:
    x = np.array([464.0, 465.0, np.inf, -1e4], np.float32)
    got = run(lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32), x)
    np.testing.assert_array_equal(got, [448, np.nan, np.nan, np.nan])


# --- reductions and dots --------------------------------------------------------------------------


def test_a_maximum_loses_nan_on_new_versions() -> None:
    x = values(4, 6 * 833).reshape(6, 833)
    x[2, 3] = np.nan
    lost = not np.isnan(run(lambda x: x.max(1), x)[2])
    assert lost == (jax.__version_info__ >= (0, 10)), "algorithms.max_last sets NaN by itself"


def test_a_float32_dot_depends_on_the_number_of_rows() -> None:
    x, w = values(10, 64 * 1024).reshape(64, 1024), values(11, 1024 * 256).reshape(1024, 256)
    dot = jax.jit(lambda x, w: jnp.dot(x, w, precision="highest"))
    assert share_wrong(np.asarray(dot(x[:1], w)), np.asarray(dot(x, w))[:1]) > 0.05, (
        "a plain dot gives a row the same bits in every batch: numerics.accumulate is still exact"
    )


def test_a_float16_dot_is_not_rounded_once() -> None:
    x, w = (values(s, 160 * 32).astype(np.float16) for s in (12, 13))
    x, w = x.reshape(32, 160), w.reshape(160, 32)
    got = run(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32), x, w)
    exact = (x.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)
    assert share_wrong(got, exact) > 0.3, "a plain dot is rounded once: it could serve the MXM"


def test_float64_silently_becomes_float32() -> None:
    assert jnp.asarray(np.float64(1.0)).dtype == jnp.float32, (
        "64-bit types are on by default: `jax.enable_x64` around lowerings may be superfluous"
    )
