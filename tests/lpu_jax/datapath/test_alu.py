"""The table of ALU operations: each formula is written out, is the function, and is as long."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from lpu_jax.datapath.alu import ALU, Path, plain, through
from lpu_jax.machine.lpu_chips import GROQCHIP1


class Counter:
    """Computes in float64 and notes what each instruction takes."""

    def __init__(self) -> None:
        self.plain = self.large = 0
        self.special: list[str] = []

    def op(self, value: float, *inputs: "Value", large: bool = False, special: str = "") -> "Value":
        if special:
            self.special.append(special)
        else:
            self.plain += 1
            self.large += large
        ways = {way for each in inputs for way in each.ways} or {(0, ())}
        more: Path = (0, (special,)) if special else (1, ())
        longer = {(d + more[0], tuple(sorted((*names, *more[1])))) for d, names in ways}
        return Value(value, self, longer)


class Value:
    def __init__(self, value: float, on: Counter, ways: set[Path] | None = None) -> None:
        self.value, self.on, self.ways = value, on, ways or {(0, ())}

    def times(self, other: "Value | float") -> "Value":
        b = other if isinstance(other, Value) else Value(other, self.on)
        return self.on.op(self.value * b.value, self, b)

    def fma(self, b: "Value | float", c: "Value | float") -> "Value":
        b, c = (v if isinstance(v, Value) else Value(v, self.on) for v in (b, c))
        return self.on.op(self.value * b.value + c.value, self, b, c, large=True)

    def absolute(self) -> "Value":
        return self.on.op(abs(self.value), self)

    def signed_as(self, other: "Value") -> "Value":
        return self.on.op(math.copysign(self.value, other.value), self, other)

    def special(self, name: str) -> "Value":
        found = {"exp": math.exp, "tanh": math.tanh, "log": math.log}
        value = self.value**-0.5 if name == "rsqrt" else found[name](self.value)
        return self.on.op(value, self, special=name)


def _reciprocal(x: Value) -> Value:
    root = x.absolute().special("rsqrt")
    return root.times(root).signed_as(x)


def _silu(x: Value) -> Value:
    half = x.times(0.5)
    return half.fma(half.special("tanh"), half)


def _gelu_tanh(x: Value) -> Value:
    c = math.sqrt(2 / math.pi)
    inner = x.times(x).fma(0.044715 * c, c).times(x)
    half = x.times(0.5)
    return half.fma(inner.special("tanh"), half)


def _gelu(x: Value) -> Value:
    z = x.times(math.sqrt(0.5))
    root = z.absolute().fma(0.3275911, 1.0).special("rsqrt")
    t = root.times(root)
    series = t.fma(-1.061405429, 1.453152027)  # all coefficients with the other sign
    for coefficient in (-1.421413741, 0.284496736, -0.254829592):
        series = series.fma(t, coefficient)
    bell = x.times(x).times(-0.5).special("exp")
    half = x.times(0.5)
    return half.fma(series.times(t).fma(bell, 1.0).signed_as(x), half)


FORMULAS: dict[str, Callable[[Value], Value]] = {
    "sqrt": lambda x: x.special("rsqrt").times(x),
    "reciprocal": _reciprocal,
    "div": lambda x: Value(3.0, x.on).times(_reciprocal(x)),
    "sigmoid": lambda x: x.times(0.5).special("tanh").fma(0.5, 0.5),
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
}
FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "reciprocal": lambda x: 1 / x,
    "div": lambda x: 3 / x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_the_function_and_as_long_as_its_row(name: str) -> None:
    """Tolerance: the error of Abramowitz and Stegun 7.1.26 is 1.5e-7, times half of 4."""
    for number in np.linspace(0.1, 4.0, 20) * (1 if name == "sqrt" else -1):
        on = Counter()
        got = FORMULAS[name](Value(float(number), on))
        assert got.value == pytest.approx(FUNCTIONS[name](float(number)), abs=4e-7)
    row = ALU[name]
    assert (on.plain, on.large, sorted(on.special)) == (
        row.operations,
        row.large,
        sorted(row.special),
    )
    for passes in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8)):
        cycles = dict(zip(("exp", "tanh", "rsqrt"), passes, strict=True))
        longest = [
            max(depth + sum(cycles[s] for s in names) for depth, names in ways)
            for ways in (got.ways, row.paths)
        ]
        assert longest[0] == longest[1]


def test_basic_operations_are_one_and_special_functions_are_the_chips() -> None:
    for name in ("add", "sub", "mul", "max", "min", "select", "compare", "convert", "fma"):
        assert (ALU[name].operations, ALU[name].paths, ALU[name].special) == (1, ((1, ()),), ())
    for name in ("exp", "tanh", "rsqrt", "log"):
        assert (ALU[name].operations, ALU[name].special) == (0, (name,))
        assert GROQCHIP1.special_passes(name) >= 1


def test_ways_that_are_never_the_longest_are_dropped() -> None:
    before = through([(0, ())], ALU["gelu"])
    assert set(before) == {(5, ("exp",)), (12, ("rsqrt",))}
    assert through([*before, (4, ("exp",)), (12, ())], plain(2, 1)) == (
        (6, ("exp",)),
        (13, ("rsqrt",)),
    )
    assert through([(1, ("exp",)), (1, ("exp", "exp"))], plain(1, 1)) == ((2, ("exp", "exp")),)
