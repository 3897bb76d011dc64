"""What an operation asks of the machine: the unit it occupies and for how long.

Cost rules return these records; the scheduler reads them. Quantities are cycles of the chip's
clock, as floats or as NumPy arrays with one entry per plan. This module knows no operation and no
schedule.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..machine.chip import ChipSpec

#: One number, or one number per plan.
Quantity = float | int | NDArray[Any]
#: A dimension of an array: one length, or one length per plan.
Length = int | NDArray[Any]


#: Bits of one value by dtype name; weights in narrower storage carry their own number.
BITS = {
    "bool": 8,
    "int8": 8,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float16": 16,
    "bfloat16": 16,
    "int32": 32,
    "float32": 32,
}


class Unit(StrEnum):
    """A functional unit that executes one operation at a time, in program order."""

    FREE = "free"  #: layout and addressing decided by the compiler: no unit, no time
    MXM = "MXM"  #: matrix unit
    VXM = "VXM"  #: vector unit
    SXM = "SXM"  #: switch unit: moves data between lanes
    MEM = "MEM"  #: memory slices
    C2C = "C2C"  #: chip-to-chip links


@dataclass(frozen=True, kw_only=True)
class Operand:
    """Shape and storage of one operand or result, as cost rules see it."""

    shape: tuple[Length, ...]
    dtype: str

    @property
    def bits(self) -> int:
        """Bits per value."""
        return BITS.get(self.dtype) or 8 * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> Quantity:
        """Number of values."""
        return product(self.shape)

    @property
    def size_bytes(self) -> Quantity:
        """Stored bytes without padding."""
        return self.size * self.bits / 8


@dataclass(frozen=True, kw_only=True)
class Passage:
    """When the results of a collective are there, in cycles, one number or one per plan.

    Counted from the first vector of an operand that is there at once, and, behind it, from the last
    vector of one that comes slowly: a result is there at the later of the two.
    """

    hops: Quantity  #: of a vector that nothing holds up
    first: Quantity  #: until the first result
    last: Quantity  #: until the last one
    first_behind: Quantity  #: the same from the last vector on; `-inf` if it need not wait for that
    last_behind: Quantity

    def as_work(
        self,
        *,
        moved_bytes: Quantity = 0.0,
        absent: bool | NDArray[np.bool_] = False,
    ) -> "Work":
        """Say it as the work of the links."""
        return Work(
            unit=Unit.C2C,
            busy_cycles=self.last - self.hops,
            latency_cycles=self.hops,
            lead_cycles=self.first - self.hops,
            lead_behind_cycles=self.first_behind - self.hops,
            rest_cycles=self.last_behind - self.hops,
            limits={"link rate": self.last - self.hops},
            moved_bytes=moved_bytes,
            absent=absent,
        )


@runtime_checkable
class Hardware(Protocol):
    """The machine a cost rule may ask: a chip, and the links that a collective runs over."""

    @property
    def chip(self) -> ChipSpec:
        """The chip that runs the program."""
        ...

    def collective_cycles(
        self,
        kind: str,
        algorithm: str,
        n_chips: Length,
        stride: Length,
        payload_bytes: Quantity,
    ) -> Passage:
        """When the results of a collective are there.

        The run has `n_chips`, each `stride` chips from the next.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation put to its cost rule."""

    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One operation on one unit.

    `busy_cycles` is how long the unit takes vectors, `latency_cycles` how long the first vector
    needs through it.
    """

    unit: Unit
    busy_cycles: Quantity = 0.0
    latency_cycles: Quantity = 0.0
    #: operands that must be complete before the start; the others are taken vector by vector
    waits_for: tuple[int, ...] = ()
    #: from the start until the first result is on its way through the unit
    lead_cycles: Quantity = 0.0
    #: the same from the arrival of the last operand vector; `-inf` if it need not wait for that
    lead_behind_cycles: Quantity = -math.inf
    #: what is left to do when the last operand vector arrives
    rest_cycles: Quantity = 0.0
    #: the first result vector appears only with the last (reductions)
    result_is_last: bool = False
    #: MXM: cycles to install the first round of weights, or all of them where they are installed a
    #: whole block ahead (`ChipSpec.weight_prefetch`), and cycles of the last round of rows
    install_cycles: Quantity = 0.0
    drain_cycles: Quantity = 0.0
    #: MXM: the operand that is installed
    stationary: int | None = None
    #: there is nothing to do (a collective of one chip, a layout that already is so): the operand
    #: is the result, and no unit is entered
    absent: bool | NDArray[np.bool_] = False
    #: bytes read from memory or sent over links
    moved_bytes: Quantity = 0.0
    #: what may be the reason for `busy_cycles`: each name with the cycles it would take alone
    limits: Mapping[str, Quantity] = field(default_factory=dict)


def product(lengths: tuple[Length, ...]) -> Quantity:
    """Multiply dimensions, each a length or one length per plan."""
    result: Quantity = 1.0
    for length in lengths:
        result = result * length
    return result


def ceil_div(length: Quantity, divisor: Quantity) -> Quantity:
    """Divide rounding up."""
    return ceil(length / divisor)


def ceil(value: Quantity) -> Quantity:
    """Round up, one number or one per plan."""
    return np.ceil(value) if isinstance(value, np.ndarray) else float(math.ceil(value))


def largest(*values: Quantity) -> Quantity:
    """Take the largest of numbers or of arrays with one number per plan."""
    result = values[0]
    for value in values[1:]:
        result = (
            np.maximum(result, value)
            if isinstance(result, np.ndarray) or isinstance(value, np.ndarray)
            else max(result, value)
        )
    return result


def smallest(*values: Quantity) -> Quantity:
    """Take the smallest of numbers or of arrays with one number per plan."""
    return -largest(*(-value for value in values))


def choose(condition: Any, yes: Quantity, no: Quantity) -> Quantity:
    """Take `yes` where a condition holds, for one plan or for each of many."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


def vectors(operand: Operand, chip: ChipSpec) -> Quantity:
    """Count the lane-wide vectors of an operand: `ceil(values / lanes)`, densely packed."""
    return ceil_div(operand.size, chip.lanes)
