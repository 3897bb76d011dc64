"""VXM special functions: error in ulp against mpmath and float64, special values, and in layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special

from lpu_jax.datapath import vxm
from lpu_jax.numerics import elementary
from models.layers.norm import rms_norm
from models.layers.rotary import rotate

#: Bounds in ulp, those of the docstrings: maxima over every fp32 argument of the range, rounded up.
BOUNDS = {
    "exp": [(-np.inf, np.inf, 0.90)],
    "log": [(0.0, np.inf, 0.83)],
    "tanh": [(-np.inf, np.inf, 1.32)],
    "sigmoid": [(-87.33, np.inf, 2.41)],
    "silu": [(-87.33, np.inf, 3.32)],
    "gelu": [(-np.inf, np.inf, 6.0)],
    "gelu_tanh": [(-10.0, -5, 215.0), (-5, -3, 36.0), (-3, -1, 16.0), (-1, np.inf, 3.2)],
    "rsqrt": [(0.0, np.inf, 1.5)],
    "reciprocal": [(-np.inf, np.inf, 0.5)],
    "sqrt": [(0.0, np.inf, 0.5)],
}
C0, C1 = 2 * np.sqrt(2 / np.pi), 2 * np.sqrt(2 / np.pi) * 0.044715
#: In float64, whose own error is a millionth of an fp32 ulp.
IN_FLOAT64: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x * np.exp(special.log_ndtr(x)),
    "gelu_tanh": lambda x: x * special.expit(x * (C0 + C1 * x * x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sqrt": np.sqrt,
}
IN_MPMATH = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: (
        x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
    ),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sqrt": mpmath.sqrt,
}
SMALLEST, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)


def bits(x: Any) -> np.ndarray:
    return np.asarray(x).view(np.uint32)


def error_ulp(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Error in units of the last place of the exact result, where that is a normal number."""
    exponent = np.frexp(exact)[1] - 1
    return np.abs(got.astype(np.float64) - exact) * np.exp2(23.0 - exponent)


def run(name: str, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(getattr(elementary, name))(jnp.asarray(x)))


def is_normal(exact: np.ndarray) -> np.ndarray:
    return (np.abs(exact) >= SMALLEST) & (np.abs(exact) <= LARGEST)


def check(name: str, x: np.ndarray) -> float:
    """Assert the bounds on normal results, and zeros or infinities where results are not normal."""
    got, x = run(name, x), x.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = IN_FLOAT64[name](x)
        normal = is_normal(exact)
        worst = 0.0
        for low, high, bound in BOUNDS[name]:
            inside = normal & (x >= low) & (x <= high)
            error = error_ulp(got[inside], exact[inside])
            if error.size:
                at = error.argmax()
                assert error[at] <= bound, (name, x[inside][at], error[at])
                worst = max(worst, error[at])
        inside = ~normal & (x >= BOUNDS[name][0][0])
        got, exact = got[inside].astype(np.float64), exact[inside]
    # At the very edge the approximation may still be, or already be, the last normal number.
    tiny = np.abs(exact) < SMALLEST
    assert (np.abs(got[tiny]) <= SMALLEST * (1 + 2**-20)).all()
    huge = np.abs(exact) > LARGEST
    assert (np.abs(got[huge]) >= LARGEST).all()
    assert (np.sign(got[huge]) == np.sign(exact[huge])).all()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    return worst


def sweep(step: int) -> np.ndarray:
    """Every `step`-th normal fp32 number and zero, of both signs."""
    positive = np.arange(0x0080_0000, 0x7F80_0000, step, dtype=np.uint32)
    return np.concatenate([[0], positive, positive | 0x8000_0000]).astype(np.uint32).view("f4")


def dense(name: str, size: int) -> np.ndarray:
    """Evenly spread over where the function changes."""
    low, high = {"log": (0.5, 2.0), "tanh": (-9.1, 9.1), "gelu": (-13.2, 6.0)}.get(name, (-88, 89))
    low, high = (-10.0, 6.0) if name == "gelu_tanh" else (low, high)
    return np.linspace(low, high, size).astype(np.float32)


@pytest.mark.first(2)
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_hold(name: str) -> None:
    worst = max(check(name, sweep(5003)), check(name, dense(name, 500_000)))
    assert worst > 0.49  # not a comparison of a thing with itself


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_hold_on_every_hundredth_number(name: str) -> None:
    for part in np.array_split(sweep(101), 16):
        check(name, part)


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_the_reference_is_right(name: str) -> None:
    """float64 against mpmath, in fp32 ulp; `1 + tanh` loses 128 bits in the tail."""
    x = np.concatenate([sweep(2**22 + 12345), dense(name, 150)])
    x = x[np.abs(x) < 1e8].astype(np.float64)
    with np.errstate(all="ignore"):
        approximate = IN_FLOAT64[name](x)
    inside = is_normal(approximate) & (x >= BOUNDS[name][0][0])
    assert inside.sum() > 50
    with mpmath.workprec(250):
        exact = np.array([float(IN_MPMATH[name](mpmath.mpf(v))) for v in x[inside]])
    # An exponential magnifies the last bit of float64's argument by up to 88 (tails of gelu).
    assert error_ulp(approximate[inside], exact).max() < 1e-5


def test_an_error_of_the_seventh_digit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation of the oracle: a factor that a wrong coefficient would have."""
    off = IN_FLOAT64["tanh"]
    monkeypatch.setitem(IN_FLOAT64, "tanh", lambda x: off(x) * (1 + 2e-7))
    with pytest.raises(AssertionError):
        check("tanh", dense("tanh", 100_000))


INF, NAN = np.inf, np.nan
SPECIAL_VALUES = {
    "exp": [(INF, INF), (-INF, 0), (NAN, NAN), (0, 1), (-0.0, 1), (1e-40, 1), (3e38, INF),
            (88.73, INF), (-87.34, 0)],
    "log": [(INF, INF), (-INF, NAN), (NAN, NAN), (0, -INF), (-0.0, -INF), (1e-40, -INF),
            (-1e-40, -INF), (-1, NAN), (1, 0)],
    "tanh": [(INF, 1), (-INF, -1), (NAN, NAN), (0, 0), (-0.0, -0.0), (1e-40, 0), (-50, -1)],
    "sigmoid": [(INF, 1), (-INF, 0), (NAN, NAN), (0, 0.5), (200, 1), (-200, 0)],
    "silu": [(INF, INF), (-INF, NAN), (NAN, NAN), (0, 0), (-0.0, -0.0), (200, 200), (-200, -0.0)],
    "gelu": [(INF, INF), (-INF, NAN), (NAN, NAN), (0, 0), (-0.0, -0.0), (200, 200), (-200, -0.0),
             (2.0**-126, 0), (2.0**-125, 2.0**-126), (-(2.0**-126), -0.0), (3e38, 3e38)],
    "gelu_tanh": [(INF, INF), (-INF, NAN), (NAN, NAN), (0, 0), (-0.0, -0.0), (200, 200),
                  (-200, -0.0), (3e38, 3e38), (-3e38, -0.0)],
    "rsqrt": [(INF, 0), (-INF, NAN), (NAN, NAN), (0, INF), (-0.0, -INF), (-1, NAN), (4, 0.5),
              (1e-40, INF)],
    "sqrt": [(INF, INF), (-INF, NAN), (NAN, NAN), (0, 0), (-0.0, -0.0), (-1, NAN), (1e-40, 0)],
    "reciprocal": [(INF, 0), (-INF, -0.0), (NAN, NAN), (0, INF), (-0.0, -INF), (1e-40, INF),
                   (3e38, 0)],
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL_VALUES)
def test_special_values(name: str) -> None:
    x, expected = np.array(SPECIAL_VALUES[name], np.float32).T
    np.testing.assert_array_equal(bits(run(name, x)), bits(expected))  # zeros keep their sign


def test_exp_ends_where_its_results_leave_the_normal_numbers() -> None:
    largest, smallest = np.float32(88.72283), np.float32(-87.33654)
    beyond = np.nextafter([largest, smallest], np.float32([np.inf, -np.inf]))
    got = run("exp", np.array([largest, beyond[0], smallest, beyond[1]], np.float32))
    assert np.isfinite(got[0])
    assert got[1] == np.inf
    assert got[2] >= SMALLEST
    assert got[3] == 0
    with np.errstate(over="ignore"):
        assert np.float32(np.exp(np.float64(beyond[0]))) == np.inf
    assert np.exp(np.float64(beyond[1])) < SMALLEST


# --- composed -------------------------------------------------------------------------------------


def values(*shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(0, scale, shape).astype(np.float32)


def test_softmax_is_within_its_roundings() -> None:
    """Relative, in units of 2**-23: exp 0.9, the difference before it `distance / 2`, division 0.5.

    The sum has its terms' errors, weighted by the terms, and half a unit for each of its additions:
    3 vectors and 9 folds.
    """
    x = values(40, 700, scale=3.0)
    got = np.asarray(jax.jit(vxm.softmax)(jnp.asarray(x)))
    wide = x.astype(np.float64)
    distance = wide.max(-1, keepdims=True) - wide
    exact = np.exp(-distance)
    exact /= exact.sum(-1, keepdims=True)
    of_sum = 0.9 + (exact * distance).sum(-1, keepdims=True) / 2 + 12 / 2
    error = np.abs(got - exact) / exact * 2.0**23
    assert (error <= 0.9 + distance / 2 + 0.5 + of_sum).all()
    assert error.max() > 1


@pytest.mark.slow
def test_softmax_special_rows() -> None:
    x = values(6, 330)
    x[1, 5:], x[2], x[3, 7], x[4, 7] = -np.inf, -np.inf, np.nan, np.inf
    got = np.asarray(vxm.softmax(jnp.asarray(x)))
    assert np.isnan(got[2:5]).all()
    assert (got[1, 5:] == 0).all()
    assert np.abs(got[[0, 1, 5]].sum(-1) - 1).max() < 1e-5
    longer = jnp.asarray(np.pad(x, ((0, 0), (0, 500)), constant_values=-np.inf))
    np.testing.assert_array_equal(bits(vxm.softmax(longer)[:, :330]), bits(got))
    assert {str(e.primitive) for e in jax.make_jaxpr(vxm.softmax)(x).eqns} >= {"vxm_exp", "vxm_div"}


def test_rms_norm_is_within_its_roundings() -> None:
    """Relative, in units of 2**-23, at most half for each rounding.

    The root halves the errors of squares, 17 additions, mean and epsilon; then 1.5 and 1.
    """
    x, weight = values(16, 2560, scale=4.0), values(2560)
    got = np.asarray(rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-5), np.float64)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
    error = np.abs(got - exact) / np.abs(exact) * 2.0**23
    assert error.max() <= 0.5 * (1 + 17 + 2 + 1) / 2 + 1.5 + 1
    assert error.max() > 1


def test_rotation_is_within_its_roundings() -> None:
    """Two products and a sum of half an ulp each, of the larger products where they cancel."""
    x, angles = values(64, 128), np.random.default_rng(1).uniform(0, 1e5, (64, 64))
    cos = np.concatenate([np.cos(angles)] * 2, axis=1).astype(np.float32)
    sin = np.concatenate([-np.sin(angles), np.sin(angles)], axis=1).astype(np.float32)
    got = rotate(jnp.asarray(x), jnp.asarray(cos), jnp.asarray(sin), interleaved=False)
    swapped = np.concatenate([x[:, 64:], x[:, :64]], axis=1)
    first, second = x.astype(np.float64) * cos, swapped.astype(np.float64) * sin
    bound = (np.abs(first) + np.abs(second)) * 2.0**-24 + np.abs(first + second) * 2.0**-23
    assert (np.abs(np.asarray(got) - (first + second)) <= bound).all()
    assert (np.asarray(got) != (first + second).astype(np.float32)).any()
