"""Runs of contiguous chips: where groups of them are put, and what they touch at worst.

A machine comes in here as the sizes of its units: node, half rack, rack. Not modelled: groups that
are not contiguous.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int

from ..errors import PlanError
from .ports import Numbers


@dataclass(frozen=True, kw_only=True)
class Units:
    """Chips of a node, of a half rack, of a rack, and of the machine that plans may use."""

    node: int
    half_rack: int
    rack: int
    machine: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a run of contiguous chips touches, at worst; numbers, or arrays with one per plan.

    Attributes:
        n_chips: chips in the run.
        nodes: nodes it touches.
        fewest: fewest chips it has in any node it touches.
        most: most chips it has in any node it touches.
        half_racks: half racks it touches.
        racks: racks it touches.
        fewest_in_rack: fewest chips it has in any rack it touches.
        alone: whether no other run of its group goes at the same time.
    """

    n_chips: Numbers
    nodes: Numbers
    fewest: Numbers
    most: Numbers
    half_racks: Numbers
    racks: Numbers
    fewest_in_rack: Numbers
    alone: Numbers


def stack_spans(spans: list[Span]) -> Span:
    """Stack spans of single runs into one span of arrays.

    Args:
        spans: one span per plan.

    Returns:
        A span whose fields are integer arrays `[plans]`.
    """
    return Span(
        **{
            field.name: np.array([getattr(span, field.name) for span in spans], np.int64)
            for field in fields(Span)
        }
    )


def placed(n_groups: int, group_chips: int, units: Units) -> Int[np.ndarray, " groups"]:
    """Place consecutive groups; see `Topology.stage_bases`.

    Raises:
        PlanError: if the groups need more chips than there are.
    """
    if n_groups < 1 or group_chips < 1:
        raise PlanError(f"{n_groups} groups of {group_chips} chips: both must be at least 1")
    if n_groups * group_chips > units.machine:
        raise PlanError(
            f"{n_groups} groups of {group_chips} chips need {n_groups * group_chips} chips; "
            f"the machine has {units.machine}"
        )
    every = (units.node, units.half_rack, units.rack)
    for edges in (every, (units.node, units.rack), (units.rack,)):
        bases = _on_edges(n_groups, group_chips, tuple(sorted(set(edges))))
        if bases[-1] + group_chips <= units.machine:
            return bases
    return np.arange(n_groups, dtype=np.int64) * group_chips


def _on_edges(
    n_groups: int, group_chips: int, units: tuple[int, ...]
) -> Int[np.ndarray, " groups"]:
    """Put groups one after another, moving each on to a unit's edge rather than across it.

    A group no larger than a unit must lie inside one; a larger group starts at a unit's edge. The
    pattern repeats with the largest unit, but a plain loop over groups is fast enough: a machine
    has at most some ten thousand.
    """
    bases = np.empty(n_groups, np.int64)
    cursor = 0
    for index in range(n_groups):
        moved = True
        while moved:
            moved = False
            for unit in units:
                used = cursor % unit
                if used and used + group_chips > unit:
                    cursor += unit - used
                    moved = True
        bases[index] = cursor
        cursor += group_chips
    return bases


def worst_span(first: Int[np.ndarray, " runs"], n: int, units: Units, *, alone: bool) -> Span:
    """Find what runs of `n` chips touch, at worst over all of them; see `Topology.span`.

    Raises:
        PlanError: if a run leaves the machine.
    """
    if n < 1 or first.size == 0 or first.min() < 0 or first.max() + n > units.machine:
        raise PlanError(f"runs of {n} chips reach beyond the machine's {units.machine} chips")
    last = first + (n - 1)
    size, half, rack = units.node, units.half_rack, units.rack
    nodes = last // size - first // size + 1
    head = np.minimum(size - first % size, n)
    tail = np.minimum(last % size + 1, n)
    most = np.where(nodes > 2, size, np.maximum(head, tail))
    head_in_rack = np.minimum(rack - first % rack, n)
    tail_in_rack = np.minimum(last % rack + 1, n)
    return Span(
        n_chips=n,
        nodes=int(nodes.max()),
        fewest=int(np.minimum(head, tail).min()),
        most=int(most.max()),
        half_racks=int((last // half - first // half + 1).max()),
        racks=int((last // rack - first // rack + 1).max()),
        fewest_in_rack=int(np.minimum(head_in_rack, tail_in_rack).min()),
        alone=alone,
    )
