"""The arithmetic for other backends gives x86's bits, on x86 and on a machine that promises less.

That machine is a NumPy interpreter of jaxprs which keeps subnormals, divides and takes roots with
errors of two ulp, and makes NaNs of either sign: what GPUs may do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.numerics import algorithms, arithmetic, portable
from lpu_jax.numerics.arithmetic import PORTABLE, X86

FUNCTIONS = (
    *("add", "sub", "mul", "div", "sqrt", "maximum", "less_equal", "reciprocal", "rsqrt", "exp"),
    *("log", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "sum_lanes", "max_last"),
    "minimum",
)
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "less_equal")
#: The same on every backend.
EVERYWHERE = ("add", "sub", "maximum", "minimum", "less_equal", "sum_lanes", "max_last")
STATIC = {"sum_lanes": {"lanes": 320, "max_unrolled": 8}}

SPECIAL = np.array(
    [
        *(0, np.inf, np.nan, 1, 2.0**-126, 1.1754942e-38, 1e-45, 3.4028235e38, 0.5, 3),
        *(1 - 2.0**-24, (1 - 2.0**-24) * 2.0**-125),  # half of it is not 2**-126
    ],
    np.float32,
)
SPECIAL = np.concatenate([SPECIAL, -SPECIAL])

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="x86 is the reference")


def on(unit: arithmetic.Arithmetic, name: str) -> Callable[..., Any]:
    """The function over one arithmetic, operands flushed first, as `on_backend` does."""
    if name in EVERYWHERE:
        module = algorithms if hasattr(algorithms, name) and name not in BINARY else arithmetic
        return partial(getattr(module, name), **STATIC.get(name, {}))
    if hasattr(algorithms, name):
        function = partial(getattr(algorithms, name), unit)
    else:
        function = getattr(unit, name)

    def run(*xs: Any) -> Any:
        return portable.one_nan(function(*(portable.flushed_operand(x) for x in xs)))

    return run


def arguments(name: str, size: int) -> list[np.ndarray]:
    """All pairs of special values; any bits; moderate values; values near 2**-63 and 2**-126."""
    rng = np.random.default_rng(FUNCTIONS.index(name))

    def one() -> np.ndarray:
        any_bits = rng.integers(0, 2**32, size, np.uint32).view(np.float32)
        moderate = rng.normal(0, 6, size).astype(np.float32)
        small = (rng.uniform(1, 2, size) * 2.0 ** rng.choice([-64, -63, -126], size)).astype("f4")
        return np.concatenate([any_bits, moderate, small])

    n_operands = 2 if name in BINARY else 1
    pairs = np.stack(np.meshgrid(SPECIAL, SPECIAL)).reshape(2, -1)
    xs = [np.concatenate([pairs[i], one()]) for i in range(n_operands)]
    if name in STATIC or name == "max_last":
        xs = [x[: x.size // 700 * 700].reshape(-1, 700) for x in xs]
        xs[0][1::2] = rng.normal(0, 2.0**-126, xs[0][1::2].shape)  # sums among the subnormals
    return xs


def bits(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x if x.dtype == bool else x.view(np.uint32)


# --- a machine that keeps subnormals and divides badly --------------------------------------------


def off_by_some_ulp(x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(x.size)
    steps = rng.integers(-2, 3, x.shape).astype(np.int32)
    settled = np.isfinite(x) & (np.abs(x) > 2.0**-100) & (np.abs(x) < 2.0**100)
    return np.where(settled, (x.view(np.int32) + steps).view(np.float32), x)


def select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.where(which, cases[1], cases[0])


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs,
    "div": lambda a, b: off_by_some_ulp(np.divide(a, b)),
    "sqrt": lambda x: off_by_some_ulp(-np.sqrt(-x) if (x < 0).all() else np.sqrt(x)),
    "floor": np.floor, "round": lambda x, **_: np.round(x),
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "shift_left": np.left_shift,
    "shift_right_logical": np.right_shift, "shift_right_arithmetic": np.right_shift,
    "select_n": select, "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "bitcast_convert_type": lambda x, new_dtype: x.view(new_dtype),
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "broadcast_in_dim": lambda x, shape, **_: np.broadcast_to(x, shape).copy(),
    "pad": lambda x, value, padding_config: np.pad(
        x, [(low, high) for low, high, _ in padding_config], constant_values=value),
    "slice": lambda x, start_indices, limit_indices, **_: x[
        tuple(slice(*ends) for ends in zip(start_indices, limit_indices, strict=True))].copy(),
    "dynamic_slice": lambda x, *starts, slice_sizes: x[tuple(
        slice(int(i), int(i) + n) for i, n in zip(starts, slice_sizes, strict=True))].copy(),
    "reduce_max": lambda x, axes, **_: x.max(axes), "reduce_or": lambda x, axes, **_: x.any(axes),
    "max": np.fmax,
    "iota": lambda dtype, shape, dimension, **_: np.broadcast_to(np.expand_dims(np.arange(
        shape[dimension], dtype=dtype), [i for i in range(len(shape)) if i != dimension]), shape),
}  # fmt: skip


def interpreted(closed: Any, *args: np.ndarray) -> list[np.ndarray]:
    """Evaluate a jaxpr in NumPy."""
    jaxpr, values = closed.jaxpr, {}

    def read(v: Any) -> np.ndarray:
        return np.asarray(v.val) if hasattr(v, "val") else values[v]

    values.update(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        operands, params = [read(v) for v in equation.invars], dict(equation.params)
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if inner is not None:
            results = interpreted(inner, *operands)
        else:
            name = equation.primitive.name
            if name in (
                "add",
                "sub",
                "mul",
                "div",
                "neg",
                "abs",
                "sqrt",
                "floor",
                "squeeze",
                "max",
            ):
                params = {k: v for k, v in params.items() if k == "dimensions"}
            result = np.asarray(OPERATIONS[name](*operands, **params))
            if result.dtype == np.float32 and name in ("add", "sub", "mul", "div", "sqrt"):
                # NaNs of another sign
                result = np.where(np.isnan(result), -np.float32(np.nan), result)
            results = [result]
        for v, result in zip(equation.outvars, results, strict=True):
            assert result.dtype == v.aval.dtype, equation
            values[v] = result
    return [read(v) for v in jaxpr.outvars]


def on_that_machine(
    name: str, xs: list[np.ndarray], unit: arithmetic.Arithmetic = PORTABLE
) -> np.ndarray:
    with np.errstate(all="ignore"):
        return interpreted(jax.make_jaxpr(on(unit, name))(*xs), *xs)[0]


@pytest.mark.first(5)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_the_same_bits_everywhere(name: str) -> None:
    xs = arguments(name, 20_000)
    expected = bits(jax.jit(on(X86, name))(*xs))
    np.testing.assert_array_equal(bits(jax.jit(on(PORTABLE, name))(*xs)), expected)
    np.testing.assert_array_equal(bits(on_that_machine(name, xs)), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_folded_with_subnormals_has_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that folds constants divides and takes roots right, but keeps subnormals."""
    monkeypatch.setitem(OPERATIONS, "div", np.divide)
    monkeypatch.setitem(OPERATIONS, "sqrt", np.sqrt)
    xs = arguments(name, 20_000)
    expected = bits(jax.jit(on(X86, name))(*xs))
    np.testing.assert_array_equal(bits(on_that_machine(name, xs, X86)), expected)


@pytest.mark.parametrize("name", ["div", "sqrt"])
def test_the_machine_promises_less(name: str) -> None:
    """Mutation: x86's arithmetic, which relies on the processor, gives other bits there."""
    xs = arguments(name, 20_000)
    expected = bits(jax.jit(on(X86, name))(*xs))
    assert (bits(on_that_machine(name, xs, X86)) != expected).any()


# --- quotients and roots --------------------------------------------------------------------------


def significands(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**23, 2**24, size)


@pytest.mark.parametrize("off", [-40, -7, -1, 0, 1, 7, 40])
def test_any_estimate_of_a_quotient_is_corrected(off: int) -> None:
    n, d = significands(100_000, 1), significands(100_000, 2)
    d[:300] = n[:300]  # quotient 1
    n[300:600] = 2**24 - 1
    d[300:600] = 2**23
    d[600:900] = 2**24 - 1
    n = np.where(n < d, 2 * n, n)
    exact, remainder = np.divmod(n << 24, d)
    operands = ((exact + off).astype(np.int32), n.astype(np.int32), d.astype(np.int32))
    got = jax.jit(portable.corrected_quotient)(*operands)
    np.testing.assert_array_equal(got[0], exact)
    np.testing.assert_array_equal(got[1], remainder)


@pytest.mark.parametrize("off", [-15, -4, -1, 0, 1, 4, 15])
def test_any_estimate_of_a_root_is_corrected(off: int) -> None:
    n = np.concatenate([significands(100_000, 3), 2 * significands(100_000, 4)])
    n[:2], n[-2:] = (2**23, 2**24 - 1), (2**24, 2**25 - 2)
    scaled = n << 25
    exact = np.sqrt(scaled.astype(np.float64)).astype(np.int64)
    exact -= exact * exact > scaled  # float64 may have rounded up to an integer
    exact += (exact + 1) ** 2 <= scaled
    operands = ((exact + off).astype(np.int32), n.astype(np.int32))
    got = jax.jit(portable.corrected_root)(*operands)
    np.testing.assert_array_equal(got[0], exact)
    np.testing.assert_array_equal(got[1], scaled - exact * exact)


def hard_quotients(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose quotient is within a thousandth of a last place of a midpoint, or exact."""
    rng = np.random.default_rng(5)
    d, q = significands(size, 6), 2 * significands(size, 7) + 1  # a midpoint: 25 bits, odd
    n = np.round(d * q / 2.0**24).astype(np.int64) + rng.integers(-1, 2, size)
    return n.astype(np.float32), d.astype(np.float32)


def test_hard_quotients_are_rounded_once() -> None:
    """float64 divided and then rounded is right: 53 bits are more than 2 * 24 + 2 (Figueroa)."""
    a, b = hard_quotients(300_000)
    expected = (a.astype(np.float64) / b).astype(np.float32)
    for unit in (X86, PORTABLE):
        np.testing.assert_array_equal(jax.jit(on(unit, "div"))(a, b), expected)


def test_all_roots_are_rounded_once() -> None:
    """Two binades hold every significand and both parities of the exponent; every 8th of them."""
    x = np.arange(0x3F800000, 0x40800000, 8, dtype=np.uint32).view(np.float32)
    expected = np.sqrt(x.astype(np.float64)).astype(np.float32)
    for unit in (X86, PORTABLE):
        np.testing.assert_array_equal(jax.jit(on(unit, "sqrt"))(x), expected)


@pytest.mark.slow
def test_ten_million_quotients_are_those_of_the_processor() -> None:
    rng = np.random.default_rng(8)
    native, portably = jax.jit(on(X86, "div")), jax.jit(on(PORTABLE, "div"))
    for _ in range(5):
        a, b = (rng.integers(0, 2**32, 2_000_000, np.uint32).view(np.float32) for _ in range(2))
        np.testing.assert_array_equal(bits(portably(a, b)), bits(native(a, b)))


# --- products at the edge of the normal numbers ---------------------------------------------------


def test_products_just_below_the_smallest_normal_number() -> None:
    """Rounded to 24 bits without regard to the exponent, then flushed."""
    a = significands(200_000, 9)
    rng = np.random.default_rng(10)
    b = np.clip(2**47 // a + rng.integers(-2, 3, a.size), 2**23, 2**24 - 1)
    product = a * b
    bit_length = np.where(product >= 2**47, 48, 47)  # two significands of 24 bits
    kept = product >> (bit_length - 24)
    lost, half = product - (kept << (bit_length - 24)), 1 << (bit_length - 25)
    kept += (lost > half) | ((lost == half) & (kept % 2 == 1))
    rounded = kept << (bit_length - 24)
    exact = np.where(rounded >= 2**47, rounded.astype(np.float64) * 2.0**-173, 0)
    x, y = (a * 2.0**-86).astype(np.float32), (b * 2.0**-87).astype(np.float32)
    expected = exact.astype(np.float32)
    hairline = (product * 2.0**-173 < 2.0**-126 - 2.0**-151) & (
        product * 2.0**-173 >= 2.0**-126 - 2.0**-150
    )
    assert hairline.sum() > 1000  # where a backend that keeps subnormals rounds up to 2**-126
    for unit in (X86, PORTABLE):
        np.testing.assert_array_equal(jax.jit(on(unit, "mul"))(x, y), expected)
    np.testing.assert_array_equal(on_that_machine("mul", [x, y]), expected)
    assert (x * y != expected).any()


@pytest.mark.slow
def test_subnormals_are_zeros_of_their_sign() -> None:
    tiny = jnp.array([1e-39, -1e-39, 1.1754942e-38, -1e-45], np.float32)
    zeros = jnp.array([0.0, -0.0, 0.0, -0.0], jnp.float32)
    one, normal = jnp.ones(4, jnp.float32), jnp.full(4, 2.0**-126, jnp.float32)
    for unit in (X86, PORTABLE):
        np.testing.assert_array_equal(bits(on(unit, "mul")(tiny, one)), bits(zeros))
        np.testing.assert_array_equal(bits(on(unit, "sub")(normal * 1.5, normal)), bits(one * 0))
        np.testing.assert_array_equal(on(unit, "div")(one, tiny), np.inf * np.array([1, -1, 1, -1]))
        np.testing.assert_array_equal(bits(on(unit, "sqrt")(tiny)), bits(zeros))
        assert np.asarray(on(unit, "less_equal")(tiny, zeros)).all()
