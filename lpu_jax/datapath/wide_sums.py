"""Sums on the vector unit without rounding, in wide numbers (`numerics.wide`), and their end.

A wide number is `int32[..., 4, n]`: four words for each of a row's values. What it computes: whole
numbers, exactly; one rounding at the end. What it costs: additions word by word with carries, on
the ALUs for 32 bits (assumed: not public). Not modelled: a wider ALU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from ..arguments import checked
from ..numerics import wide
from .primitive import primitive
from .work import Call, Hardware, Quantity, Unit, Work, largest, vectors

#: ALU operations for each value (assumed): an addition is four words and their carries; a
#: conversion shifts into, or out of, two words by a distance of the value's own, and finds its sign
#: and its leading bit.
ADD_OPERATIONS, CONVERT_OPERATIONS = 8, 12


def _work(machine: Hardware, call: Call, n_operations: Quantity, depth: Quantity) -> Work:
    """Cost operations on vectors of words or values as they stream in and out."""
    chip = machine.chip
    limits = {
        "ALUs": n_operations / chip.vxm_alus_per_lane,
        "streams in": sum((vectors(x, chip) for x in call.operands), 0.0) / chip.vxm_stream_groups,
        "streams out": vectors(call.results[0], chip) / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * depth,
    )


def _sum_cost(machine: Hardware, call: Call) -> Work:
    x, (made,) = call.operands[0], call.results
    added = x.shape[0] * vectors(made, machine.chip) / wide.WORDS * ADD_OPERATIONS
    return _work(machine, call, added, x.shape[0] * ADD_OPERATIONS / 2)


def _sum_terms_cost(machine: Hardware, call: Call) -> Work:
    (x,) = call.operands
    operations = vectors(x, machine.chip) * (CONVERT_OPERATIONS + ADD_OPERATIONS)
    return _work(machine, call, operations, CONVERT_OPERATIONS + x.shape[0] * ADD_OPERATIONS / 2)


def _to_fp32_cost(machine: Hardware, call: Call) -> Work:
    operations = vectors(call.results[0], machine.chip) * CONVERT_OPERATIONS
    return _work(machine, call, operations, float(CONVERT_OPERATIONS))


_sum_leading = primitive(
    "vxm_sum_wide",
    abstract=lambda x: jax.ShapeDtypeStruct(x.shape[1:], jnp.int32),
    meaning=wide.sum_leading,
    cost=_sum_cost,
)
_add = primitive(
    "vxm_add_wide",
    abstract=lambda x, y: jax.ShapeDtypeStruct(x.shape, jnp.int32),
    meaning=lambda x, y: wide.sum_leading(jnp.stack([x, y])),
    cost=lambda machine, call: _work(
        machine,
        call,
        vectors(call.results[0], machine.chip) / wide.WORDS * ADD_OPERATIONS,
        float(ADD_OPERATIONS),
    ),
)
_sum_terms = primitive(
    "vxm_sum_terms_wide",
    abstract=lambda x: jax.ShapeDtypeStruct((*x.shape[1:-1], wide.WORDS, x.shape[-1]), jnp.int32),
    meaning=lambda x: wide.sum_leading(wide.from_fp32(x)),
    cost=_sum_terms_cost,
)
_to_fp32 = primitive(
    "vxm_wide_to_fp32",
    abstract=lambda x: jax.ShapeDtypeStruct((*x.shape[:-2], x.shape[-1]), jnp.float32),
    meaning=wide.to_fp32,
    cost=_to_fp32_cost,
    needs_x64=True,
)


@checked
def sum_leading(x: Int32[Array, "n *rows 4 columns"]) -> Int32[Array, "*rows 4 columns"]:
    """Add wide numbers along the leading axis. Fidelity: exact."""
    return _sum_leading(x)  # type: ignore[no-any-return]


@checked
def add(
    x: Int32[Array, "*rows 4 columns"], y: Int32[Array, "*rows 4 columns"]
) -> Int32[Array, "*rows 4 columns"]:
    """Add wide numbers. Fidelity: exact."""
    return _add(x, y)  # type: ignore[no-any-return]


@checked
def sum_terms(x: Float32[Array, "n *rows columns"]) -> Int32[Array, "*rows 4 columns"]:
    """Add fp32 numbers along the leading axis to a wide number.

    Fidelity:
        Exact for terms of 2**-49 and more; smaller ones are rounded (RNE) to a multiple of 2**-72,
        and those of 2**40 and more count as infinite.
    """
    return _sum_terms(x)  # type: ignore[no-any-return]


@checked
def to_fp32(x: Int32[Array, "*rows 4 columns"]) -> Float32[Array, "*rows columns"]:
    """Round wide numbers to fp32. Fidelity: one rounding (RNE)."""
    return _to_fp32(x)  # type: ignore[no-any-return]
