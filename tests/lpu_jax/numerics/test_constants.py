"""What a compiler knows beforehand changes no bit: constants give what run-time operands give.

XLA folds operations on constants as IEEE 754 says, with subnormals, and rewrites operations with
one constant operand. The chip's rule flushes; run-time operands meet the processor, which does too.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slices import some_slow

from lpu_jax.datapath import expert_slots, masks, mxm, selection, vxm
from lpu_jax.numerics import rounding
from lpu_jax.numerics.formats import FORMATS
from lpu_jax.numerics.quantized import quantize
from lpu_jax.numerics.schemes import SCHEMES

Operation = tuple[Callable[..., Any], tuple[np.ndarray, ...]]

#: Just below 2**-126, which rounding to 24 bits does not reach and rounding with subnormals does.
BELOW = (1 - 2.0**-24) * 2.0**-63
#: Special numbers, subnormals, and arguments around the ends of the functions.
SPECIAL = np.array(
    [
        *(0, np.inf, np.nan, 1, 0.5, 3, 1 - 2.0**-24, 3.4028235e38, 87.34, 88.73, 10.1),
        *(2.0**-126, 1.5 * 2.0**-126, 1e-45, 2.0**-140, 1.1754942e-38),
        *(BELOW, 2.0**-63, 2 * BELOW * 2.0**-63),
    ],
    np.float32,
)
SPECIAL = np.concatenate([SPECIAL, -SPECIAL])

#: Each with the value that the rule gives, by hand: subnormals are zeros of their sign, results
#: are rounded to 24 bits and flushed, and the sum of two zeros is -0 only if both are.
BY_HAND = [
    (vxm.sqrt, (2.0**-140,), 0.0),
    (vxm.log, (2.0**-140,), -np.inf),
    (vxm.less_equal, (2.0**-140, 0.0), True),
    (vxm.less_equal, (0.0, -(2.0**-140)), True),
    (vxm.add, (2.0**-126, 2.0**-140), 2.0**-126),
    (vxm.add, (-0.0, 0.0), 0.0),
    (vxm.add, (0.0, -0.0), 0.0),
    (vxm.add, (-0.0, -0.0), -0.0),
    (vxm.sub, (1.5 * 2.0**-126, 2.0**-126), 0.0),
    (vxm.mul, (2.0**-140, 2.0**30), 0.0),
    (vxm.mul, (-BELOW, 2.0**-63), -0.0),
    (vxm.div, (2.0**-126, -2.0), -0.0),
    (vxm.div, (1.0, 2.0**-140), np.inf),
    (vxm.maximum, (-1.0, -(2.0**-140)), -0.0),
    (vxm.minimum, (1.0, 2.0**-140), 0.0),
    (vxm.fma, (2.0**-140, 2.0**30, -0.0), 0.0),
    (vxm.silu, (2 * BELOW * 2.0**-63,), 0.0),
    (vxm.tanh, (-(2.0**-140),), -0.0),
    (vxm.sum_lanes, (2.0**-140,), 0.0),
    (vxm.sum_leading, (-(2.0**-140),), 0.0),
]


def filled(value: float) -> jax.Array:
    return jnp.full((1, 1), value, jnp.float32)


def test_constants_follow_the_rule() -> None:
    """All in one program without operands, as a user's own constants would be."""
    results = jax.jit(lambda: [f(*map(filled, numbers)) for f, numbers, _ in BY_HAND])()
    for (function, numbers, expected), result in zip(BY_HAND, results, strict=True):
        got = np.asarray(result).reshape(())
        assert got == expected, (function.__name__, numbers)
        assert np.signbit(got) == np.signbit(expected), (function.__name__, numbers)


def test_a_row_divided_by_its_constant_sum_is_rounded_once() -> None:
    """XLA multiplies by the reciprocal where it has the sum before the quotient."""
    x = np.random.default_rng(0).uniform(1, 2, (12, 20)).astype(np.float32)
    expected = x / np.exp2(np.arange(12, dtype=np.float32) % 3 * 0.4 + 1)[:, None]
    divisors = jnp.asarray(x[:, :1] / expected[:, :1])

    def divided(x: jax.Array) -> jax.Array:
        return vxm.div(vxm.maximum(x, 1.0), vxm.maximum(divisors, 1.0))

    constants = jax.jit(lambda: divided(jnp.asarray(x)))()
    np.testing.assert_array_equal(constants, x / np.asarray(divisors))
    np.testing.assert_array_equal(jax.jit(divided)(x), x / np.asarray(divisors))


# --- every operation, in bits ---------------------------------------------------------------------

UNARY = (
    *("exp", "log", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "rsqrt", "sqrt"),
    *("reciprocal", "absolute", "to_fp16", "to_fp8", "to_int8"),
)
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "less_equal")
REDUCTIONS = ("sum_lanes", "max_lanes", "sum_leading", "max_leading", "softmax")


def numbers(rng: np.random.Generator, size: int) -> np.ndarray:
    """Any bits, subnormals and numbers near them, moderate numbers."""
    any_bits = rng.integers(0, 2**32, size, np.uint32).view(np.float32)
    others = np.concatenate([rng.normal(size=size) * 2.0**-126, rng.normal(0, 6, size)])
    return np.concatenate([any_bits, others.astype(np.float32)])


def operations() -> dict[str, Operation]:
    rng = np.random.default_rng(0)
    x = np.concatenate([SPECIAL, numbers(rng, 100)])
    a, b = (v.reshape(-1) for v in np.meshgrid(SPECIAL, SPECIAL))
    a, b = np.concatenate([a, numbers(rng, 200)]), np.concatenate([b, numbers(rng, 200)[::-1]])
    finite = x[np.isfinite(x)][-240:].reshape(12, 20)
    tiny = (rng.normal(size=(12, 20)) * 2.0**-126).astype(np.float32)
    found: dict[str, Operation] = {name: (getattr(vxm, name), (x,)) for name in UNARY}
    found |= {name: (getattr(vxm, name), (a, b)) for name in BINARY}
    found["fma"] = (vxm.fma, (a, b, np.resize(x, a.size)))
    found["select"] = (lambda a, b: vxm.select(vxm.less_equal(a, b), a, b), (a, b))
    for kind, rows in (("finite", finite), ("tiny", tiny), ("one", tiny[:1]), ("wide", tiny.T)):
        found |= {f"{name} {kind}": (getattr(vxm, name), (rows,)) for name in REDUCTIONS}
        ids = np.tile(np.arange(rows.shape[1], dtype=np.int32), (rows.shape[0], 1))
        found |= {
            f"top_k {kind}": (lambda x: selection.top_k(x, 5), (rows,)),
            f"arg_max {kind}": (lambda x: selection.arg_max(x, jnp.int32(0), 9), (rows,)),
            f"gate {kind}": (
                lambda x, ids=ids: expert_slots.one_hot_gate(*map(jnp.asarray, (ids[0], ids)), x),
                (rows,),
            ),
            f"mask {kind}": (
                lambda x: masks.causal_mask(x[None], jnp.zeros(1, jnp.int32), x.shape[0]),
                (rows,),
            ),
        }
    for name, fmt in FORMATS.items():
        found[f"encode {name}"] = (lambda x, fmt=fmt: rounding.encode(x, fmt), (x,))
        codes = np.arange(256, dtype=np.int32)
        found[f"decode {name}"] = (lambda c, fmt=fmt: rounding.decode(c, fmt), (codes,))
    scale = np.exp2([0.0, -101.0, -126.0])[:, None, None]
    w = (rng.normal(size=(3, 64, 8)) * scale).astype(np.float32)
    for name, scheme in SCHEMES.items():
        stored = lambda w, scheme=scheme: jax.tree.leaves(quantize(w, scheme))  # noqa: E731
        found[f"quantize {name}"] = (stored, (w,))
    halves = (rng.normal(size=(4, 330)) * 2.0**-12).astype(np.float16)
    for carry in ("fp32", "exact"):
        product = lambda x, w, carry=carry: mxm.matmul(x, w, carry=carry)  # noqa: E731
        found[f"matmul {carry}"] = (product, (halves, halves.T.copy()))
    return found


OPERATIONS = operations()


def bits(results: Any) -> list[np.ndarray]:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(results)]
    return [v if v.dtype == bool else v.view(f"u{v.dtype.itemsize}") for v in arrays]


def with_constants(name: str, is_constant: tuple[bool, ...]) -> list[np.ndarray]:
    """Run an operation in a program that takes only some of its operands."""
    function, operands = OPERATIONS[name]

    def program(*given: Any) -> Any:
        rest = iter(given)
        return function(
            *(
                jnp.asarray(x) if c else next(rest)
                for x, c in zip(operands, is_constant, strict=True)
            )
        )

    return bits(jax.jit(program)(*itertools.compress(operands, [not c for c in is_constant])))


@pytest.mark.parametrize("name", some_slow(list(OPERATIONS), count=4))
def test_constants_change_no_bit(name: str) -> None:
    function, operands = OPERATIONS[name]
    expected = with_constants(name, (False,) * len(operands))
    eager = bits(function(*map(jnp.asarray, operands)))
    np.testing.assert_equal(eager, expected, "eager")
    for is_constant in itertools.product((False, True), repeat=len(operands)):
        np.testing.assert_equal(with_constants(name, is_constant), expected, str(is_constant))


@pytest.mark.parametrize("name", some_slow([*UNARY, *BINARY, "fma"], count=4))
def test_one_number_for_all_changes_no_bit(name: str) -> None:
    """XLA has rules of its own for arrays of one number, and for zeros and ones most of all."""
    function = getattr(vxm, name)
    n_operands = 1 if name in UNARY else 3 if name == "fma" else 2
    xs = [np.roll(SPECIAL, 7 * i) for i in range(n_operands)]
    for place in range(n_operands):

        def given(c: Any, place: int = place) -> list[Any]:
            return [jnp.full_like(x, c) if i == place else x for i, x in enumerate(xs)]

        def known(*xs: Any, place: int = place) -> list[Any]:
            rows = [jnp.full_like(SPECIAL, c) for c in SPECIAL]
            return [function(*xs[:place], row, *xs[place:]) for row in rows]

        rest = [x for i, x in enumerate(xs) if i != place]
        run = jax.jit(function)
        expected = [bits(run(*given(c))) for c in SPECIAL]
        np.testing.assert_equal([bits(r) for r in jax.jit(known)(*rest)], expected, str(place))
