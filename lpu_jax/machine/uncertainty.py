"""What a machine's numbers could be instead: variants drawn from ranges and alternatives.

A constant that has a range or options (`provenance`) is uncertain. One uniform number in [0, 1) is
turned into one plausible value of it, in the order of the fields; constants that one reading of a
source decides together share their number, so that they lie at the same place of their ranges.
Not modelled: other correlations, beyond one constant being the largest value of another; every
value of a range is taken to be as plausible as the rule says.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from ..provenance import Constant, constants_of, vary
from .mixed import Machine, MixedSystem
from .system import System

#: Ranges of positive numbers that span more than this factor are drawn by their logarithm: a range
#: such as 20 to 160 says "a factor", not "give or take".
LOGARITHMIC_FROM = 2.0

SpecT = TypeVar("SpecT", bound=Any)
MachineT = TypeVar("MachineT", System, MixedSystem, Machine)


def uncertain(spec: Any) -> tuple[Constant, ...]:
    """List the constants of a specification that could have other values, in field order.

    Args:
        spec: a chip or a topology.

    Returns:
        Those with a range or with options.
    """
    return tuple(constant for constant in constants_of(spec) if constant.is_uncertain)


def plausible(constant: Constant, u: float) -> Any:
    """Turn a uniform number into a value of an uncertain constant.

    Options are equally likely. A range with a positive lower end that spans more than a factor of
    2 is uniform in the logarithm; any other range is uniform. Whole numbers stay whole, both ends
    included.

    Args:
        constant: one that has a range or options.
        u: from 0 (included) to 1 (excluded).

    Returns:
        A value from `low` to `high`, or one of the options; it never falls as `u` rises.
    """
    if constant.options:
        return constant.options[int(u * len(constant.options))]
    low, high = constant.low, constant.high
    assert low is not None
    assert high is not None
    whole = all(isinstance(number, int) for number in (constant.value, low, high))
    top = high + 1 if whole else high
    value: float
    if low > 0 and high > LOGARITHMIC_FROM * low:
        value = low * math.exp(u * math.log(top / low))
    else:
        value = low + u * (top - low)
    return min(math.floor(value), high) if whole else min(value, high)


def extremes(constant: Constant) -> tuple[Any, ...]:
    """List the values that a constant takes when it alone goes as far as it can.

    Args:
        constant: one that has a range or options.

    Returns:
        The ends of its range, or its options, without the value it has.
    """
    values = constant.options or (constant.low, constant.high)
    return tuple(value for value in dict.fromkeys(values) if value != constant.value)


def with_values(spec: SpecT, values: Mapping[str, Any]) -> SpecT:
    """Make a variant in which some constants have other values and keep their ranges.

    A constant that cannot exceed another (`Constant.at_most`) is lowered to it.

    Args:
        spec: a chip or a topology.
        values: new values by the name of the constant.

    Returns:
        The variant; `spec` is not touched.

    Raises:
        ValueError: if a value lies outside the range or options of its constant.
    """
    constants = {constant.name: constant for constant in constants_of(spec)}
    now = {name: constant.value for name, constant in constants.items()} | dict(values)
    for name, constant in constants.items():
        most = now.get(constant.at_most)
        if most is not None and now[name] is not None:
            now[name] = min(now[name], most)
    changes = [
        dataclasses.replace(constant, value=now[name])
        for name, constant in constants.items()
        if now[name] != constant.value
    ]
    return vary(spec, *changes) if changes else spec


def draw(spec: SpecT, rng: np.random.Generator) -> SpecT:
    """Draw every uncertain constant of a specification that plans can depend on.

    Args:
        spec: a chip or a topology.
        rng: gives one uniform number for each of them, or for each reading, in field order.

    Returns:
        A variant with the same constants, each within its range; the others as they were.

    Example:
        >>> from lpu_jax.machine.lpu_chips import GROQCHIP1
        >>> 20 <= draw(GROQCHIP1, np.random.default_rng(0)).mxm_latency_cycles <= 160
        True
    """
    return with_values(spec, drawn_values(spec, rng))


def drawn_values(spec: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Draw what is uncertain about a specification and moves plans, by name, as `draw` does."""
    numbers: dict[str, float] = {}
    values = {}
    for constant in uncertain(spec):
        if constant.moves_plans:
            key = constant.reading or constant.name
            if key not in numbers:
                numbers[key] = rng.random()
            values[constant.name] = plausible(constant, numbers[key])
    return values


def in_one_reading(constants: Mapping[str, Constant], name: str, value: Any) -> dict[str, Any]:
    """Give a constant an extreme value, and the same end to those of the same reading.

    Args:
        constants: those that are uncertain, by full name.
        name: one of them.
        value: one of its `extremes`.

    Returns:
        The values for `variant`.
    """
    constant = constants[name]
    if not constant.reading or constant.options:
        return {name: value}
    end = "low" if value == constant.low else "high"
    part = name.rpartition(".")[0]
    return {
        other: getattr(c, end)
        for other, c in constants.items()
        if c.reading == constant.reading and other.rpartition(".")[0] == part
    }


def uncertain_constants(machine: Machine) -> dict[str, Constant]:
    """List a machine's uncertain constants that plans can depend on.

    Returns:
        By full name, such as `chip.transit_cycles`, or `lpus.chip.transit_cycles` of a mixed one.
    """
    return {
        f"{part}.{constant.name}": constant
        for part, spec in machine.parts.items()
        for constant in uncertain(spec)
        if constant.moves_plans
    }


def value_of(machine: Machine, name: str) -> Any:
    """Return the value of a machine's constant by its full name."""
    part, _, field = name.rpartition(".")
    return getattr(machine.parts[part], field)


def variant(machine: MachineT, values: Mapping[str, Any]) -> MachineT:
    """Give some constants of a machine, by full name, other values.

    Args:
        machine: the machine.
        values: new values, such as `{"chip.transit_cycles": 30}`.
    """
    of_part: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        of_part.setdefault(part, {})[field] = value
    return machine.with_parts(lambda part, spec: with_values(spec, of_part.get(part, {})))


def draw_system(machine: MachineT, rng: np.random.Generator) -> MachineT:
    """Draw every uncertain constant of a machine, part by part, in the order of its parts."""
    return machine.with_parts(lambda _, spec: draw(spec, rng))
