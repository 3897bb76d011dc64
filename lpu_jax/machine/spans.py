"""Runs of contiguous chips: where groups of them are put, and what they touch at worst.

A machine comes in here as the sizes of its units: node, half rack, rack. Not modelled: groups that
are not contiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import lcm

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
    for edges in _edges(units):
        bases = _on_edges(n_groups, group_chips, edges)
        if bases[-1] + group_chips <= units.machine:
            return bases
    return np.arange(n_groups, dtype=np.int64) * group_chips


def placed_mixed(
    group_chips: Int[np.ndarray, " groups"], units: Units
) -> Int[np.ndarray, " groups"]:
    """Place groups of different sizes one after another; see `Topology.group_bases`.

    Raises:
        PlanError: if the groups need more chips than there are.
    """
    total = int(group_chips.sum())
    if total > units.machine:
        raise PlanError(
            f"groups of {total} chips together were asked for; the machine has {units.machine}"
        )
    sizes = group_chips.tolist()
    for edges in _edges(units):
        bases = _in_units(sizes, edges)
        if bases[-1] + sizes[-1] <= units.machine:
            return bases
    return np.asarray(np.cumsum(group_chips) - group_chips)


def _edges(units: Units) -> list[tuple[int, ...]]:
    """List the units whose edges groups keep to: all, then fewer to save chips."""
    every = (units.node, units.half_rack, units.rack)
    return [tuple(sorted(set(kept))) for kept in (every, (units.node, units.rack), (units.rack,))]


def _on_edges(
    n_groups: int, group_chips: int, units: tuple[int, ...]
) -> Int[np.ndarray, " groups"]:
    """Put groups one after another, moving each on to a unit's edge rather than across it.

    A group no larger than a unit must lie inside one; a larger group starts at a unit's edge. The
    pattern repeats with the largest unit.
    """
    largest = units[-1]
    if group_chips >= largest:
        return np.arange(n_groups, dtype=np.int64) * (-(-group_chips // largest) * largest)
    pattern = _in_units([group_chips] * min(n_groups, largest // group_chips), units)
    inside = pattern[pattern + group_chips <= largest]
    unit, place = np.divmod(np.arange(n_groups), len(inside))
    return np.asarray(unit * largest + inside[place], np.int64)


def _in_units(group_chips: Sequence[int], units: tuple[int, ...]) -> Int[np.ndarray, " groups"]:
    """Put groups one after another from the edge of the largest unit on."""
    bases = np.empty(len(group_chips), np.int64)
    cursor = 0
    for index, chips in enumerate(group_chips):
        moved = True
        while moved:
            moved = False
            for unit in units:
                used = cursor % unit
                if used and used + chips > unit:
                    cursor += unit - used
                    moved = True
        bases[index] = cursor
        cursor += chips
    return bases


def period(units: Units) -> int:
    """Chips after which units repeat: what a run touches depends on where in it the run begins."""
    return lcm(units.node, units.half_rack, units.rack)


def copies(ends: Int[np.ndarray, " plans"], units: Units) -> Int[np.ndarray, " plans"]:
    """Count copies of what lies on the first chips; see `Topology.copies`."""
    found = np.zeros_like(ends)
    left = np.ones(ends.shape, bool)
    levels = (1, units.node, units.half_rack, units.rack, units.machine)
    for inner, outer in pairwise(levels):
        step = -(-ends // inner) * inner
        whole, rest = divmod(units.machine, outer)
        # The last copy of a unit needs no gap behind it.
        number = whole * ((outer - ends) // step + 1) + np.where(
            rest >= ends, (rest - ends) // step + 1, 0
        )
        found = np.where(left & (ends <= outer), number, found)
        left &= ends > outer
    return np.asarray(np.maximum(found, 1))


def worst_spans(
    bases: Sequence[Int[np.ndarray, " _groups"]],
    group: Int[np.ndarray, " runs"],
    group_chips: Int[np.ndarray, " runs"],
    n: Int[np.ndarray, " runs"],
    units: Units,
) -> Span:
    """Find what runs touch that cut groups evenly, at worst over all of them; an entry per kind.

    Args:
        bases: first chips of groups: one array for each placement.
        group: which of these placements each kind of run lies in.
        group_chips: chips of its groups.
        n: chips of the run; `group_chips` is a multiple.
        units: of the machine.

    Returns:
        The worst of each measure over all runs of each kind, as integer arrays.
    """
    repeat = period(units)
    # Those of `Placements` are ascending residues, and there are thousands of these.
    residues = [own if own[-1] < repeat else np.unique(own % repeat) for own in bases]
    n_residues = np.array([len(found) for found in residues])[group]
    offset = np.cumsum([0, *(len(found) for found in residues)])[group]
    n_runs = np.minimum(group_chips // n, repeat // np.gcd(n, repeat))
    count = n_residues * n_runs
    start = np.cumsum(count) - count
    index = np.arange(count.sum()) - np.repeat(start, count)
    of_base, of_run = np.divmod(index, np.repeat(n_runs, count))
    first = np.concatenate(residues)[np.repeat(offset, count) + of_base]
    length = np.repeat(n, count)
    touched = _touched(first + of_run * length, length, units)
    # Groups are stages: they work one after another.
    return Span(
        **{
            name: (np.minimum if name in _FEWEST else np.maximum).reduceat(values, start)
            for name, values in touched.items()
        },
        n_chips=n,
        alone=group_chips == n,
    )


def worst_span(first: Int[np.ndarray, " runs"], n: int, units: Units, *, alone: bool) -> Span:
    """Find what runs of `n` chips touch, at worst over all of them; see `Topology.span`.

    Raises:
        PlanError: if a run leaves the machine.
    """
    if n < 1 or first.size == 0 or first.min() < 0 or first.max() + n > units.machine:
        raise PlanError(f"runs of {n} chips reach beyond the machine's {units.machine} chips")
    touched = _touched(first, np.array(n), units)
    worst = {
        name: int(values.min() if name in _FEWEST else values.max())
        for name, values in touched.items()
    }
    return Span(n_chips=n, alone=alone, **worst)


#: Measures of a span that are worst where they are least.
_FEWEST = ("fewest", "fewest_in_rack")


def _touched(
    first: Int[np.ndarray, " runs"], n: Int[np.ndarray, "*runs"], units: Units
) -> dict[str, Int[np.ndarray, " runs"]]:
    """Measure what each run touches."""
    last = first + (n - 1)
    size, half, rack = units.node, units.half_rack, units.rack
    nodes = last // size - first // size + 1
    head = np.minimum(size - first % size, n)
    tail = np.minimum(last % size + 1, n)
    head_in_rack = np.minimum(rack - first % rack, n)
    tail_in_rack = np.minimum(last % rack + 1, n)
    return {
        "nodes": nodes,
        "fewest": np.minimum(head, tail),
        "most": np.where(nodes > 2, size, np.maximum(head, tail)),
        "half_racks": last // half - first // half + 1,
        "racks": last // rack - first // rack + 1,
        "fewest_in_rack": np.minimum(head_in_rack, tail_in_rack),
    }
