"""Every legal way to split a part of a plan, copies apart: the axes of the search's space.

A core is a row without copies and in the default order of axes. In a group of so many chips it is
copied as often as it fits; the group's chips must be a multiple of the core's.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, reduce

import numpy as np
from jaxtyping import Bool, Int

from models.blocks import BLOCK_KINDS, block_kinds
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from ..legal import axis_rule, most_ways, tree_reason, wide_reason
from ..plan import AXES, PARTS
from ..scenario import Scenario
from .shard_table import DISPATCHES, SPLITS, Column, ShardTable, orders_of

COPIES = "replica"  #: the axis that splits nothing


def parts_of(scenario: Scenario) -> tuple[str, ...]:
    """Parts of a plan that the model's blocks have, in the order of a plan's name."""
    present = {BLOCK_KINDS[kind].part for kind in block_kinds(scenario.model)}
    return tuple(part for part in PARTS if part in present)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What plans of a space may choose beside degrees."""

    splits: tuple[Split, ...] = (Split.ROW, Split.COLUMN)  #: of output projections
    moves: bool = True  #: axes that round whatever the split, and rows that travel
    splits_all: bool = False  #: every output projection is shared out
    most_stages: int | None = None  #: of one pool; None: as many as the model has blocks
    pools: bool = True  #: dense MLPs and experts may have a pool of their own


EVERYTHING = Choices()


def cores(
    part: str, scenario: Scenario, most_chips: int, choices: Choices
) -> tuple[ShardTable, Mapping[str, int]]:
    """List the legal cores of a part.

    Args:
        part: of a plan.
        scenario: the model, the machine, the request and the formats.
        most_chips: of a core.
        choices: what they may be.

    Returns:
        The cores, and how many degrees were refused, by rule.
    """
    refused: Counter[str] = Counter()
    axes = [axis.name for axis in AXES[part] if axis.name != COPIES]
    found = [np.ones(1, np.int64)] * len(axes)
    chips = np.ones(1, np.int64)
    for axis in AXES[part]:
        if axis.name == COPIES:
            continue
        ways = []
        rule, most = (
            axis_rule(part, axis, scenario),
            min(most_chips, most_ways(part, axis, scenario)),
        )
        for n in range(1, (1 if axis.moves and not choices.moves else most) + 1):
            reason = rule(n)
            if reason is None:
                ways.append(n)
            else:
                refused[reason.rule] += 1
        outer, inner = (x.reshape(-1) for x in np.meshgrid(np.arange(len(chips)), ways))
        fits = chips[outer] * inner <= most_chips
        outer, inner = outer[fits], inner[fits]
        found = [column[outer] for column in found]
        found[axes.index(axis.name)] = inner
        chips = chips[outer] * inner
    degrees = dict(zip(axes, found, strict=True)) | {COPIES: np.ones_like(chips)}
    return _with_choices(part, degrees, scenario, choices), refused


def _with_choices(
    part: str, degrees: dict[str, Column], scenario: Scenario, choices: Choices
) -> ShardTable:
    """Add the choices that are not degrees: the split of the output, and how rows are dispatched.

    What one chip holds whole has no split. Rows travel where there is one for every chip, and come
    back as partial sums.
    """
    n = len(next(iter(degrees.values())))
    summed = [degrees[axis.name] for axis in AXES[part] if axis.sums]
    is_split = reduce(np.multiply, summed, np.ones(n, np.int64)) > 1
    is_wanted = is_split | (not choices.splits_all or not summed)
    may_be_plain = not summed or not all(choice.rules_one_chip for choice in choices.splits)
    rows = scenario.request.batch * scenario.request.tokens
    kept, split, dispatch = [], [], []
    for choice in SPLITS:
        plain = (choice is Split.COLUMN and may_be_plain) & ~is_split & is_wanted
        named = choice in choices.splits and bool(summed)
        ruled = is_split if not choice.rules_one_chip else is_wanted
        chosen = np.flatnonzero(plain | (named & ruled & _can(choice, part, degrees, scenario)))
        travels = [Dispatch.REPLICATED]
        if part == "moe" and choice is Split.ROW and choices.moves:
            travels.append(Dispatch.ALL_TO_ALL)
        for way in travels:
            own = chosen
            if way is Dispatch.ALL_TO_ALL:
                expert = degrees["expert"][chosen]
                own = chosen[(expert > 1) & (expert <= rows)]
            kept.append(own)
            split.append(np.full(len(own), SPLITS.index(choice)))
            dispatch.append(np.full(len(own), DISPATCHES.index(way)))
    row = np.concatenate(kept)
    return ShardTable(
        part=part,
        degrees={name: ways[row] for name, ways in degrees.items()},
        order=np.zeros(len(row), np.int64),
        split=np.concatenate(split),
        dispatch=np.concatenate(dispatch),
        slots=np.zeros(len(row), np.int64),
    )


def _can(
    split: Split, part: str, degrees: Mapping[str, Column], scenario: Scenario
) -> Bool[np.ndarray, " rows"]:
    """Say which degrees a split may have."""
    can = np.ones(len(next(iter(degrees.values()))), bool)
    if split is Split.WIDE and wide_reason(part, scenario.policy) is not None:
        return ~can
    for axis in AXES[part] if split is Split.TREE else ():
        ways, back = np.unique(degrees[axis.name], return_inverse=True)
        own = [tree_reason(part, axis, n) is None for n in ways.tolist()]
        can &= np.array(own)[back]
    return can


@cache
def _orders_by_axes(part: str, split: int) -> tuple[tuple[int, ...], ...]:
    """Orders that differ, for each set of axes with chips: a bit per axis of the default order."""
    default = PARTS[part].order
    columns_then_experts = ("tensor", "expert")
    found = []
    for bits in range(1 << len(default)):
        active = [axis for i, axis in enumerate(default) if bits >> i & 1]
        seen: dict[tuple[str, ...], int] = {}
        for number, order in enumerate(orders_of(part)):
            named = tuple(axis for axis in order if axis in active)
            turned = tuple(a for a in named if a in columns_then_experts) == columns_then_experts
            if not (turned and SPLITS[split] is Split.TREE):  # a tree adds experts last
                seen.setdefault(named, number)
        found.append(tuple(seen.values()))
    return tuple(found)


def n_orders(table: ShardTable, copies: int) -> Column:
    """Count the orders of axes that differ if each row is copied so often."""
    active = active_axes(table, copies)
    count = np.array(
        [[len(orders) for orders in _orders_by_axes(table.part, i)] for i in range(len(SPLITS))]
    )
    return np.asarray(count[table.split, active])


def active_axes(table: ShardTable, copies: Column | int) -> Int[np.ndarray, " rows"]:
    """Which axes have chips if each row is copied so often: a bit per axis of the default order."""
    ways = dict(table.degrees) | {COPIES: np.broadcast_to(copies, len(table))}
    default = PARTS[table.part].order
    return sum(
        ((ways[axis] > 1).astype(np.int64) << i for i, axis in enumerate(default)),
        np.zeros(len(table), np.int64),
    )


def in_group(
    table: ShardTable, group_chips: int, rows: Column
) -> tuple[ShardTable, Int[np.ndarray, " ways"]]:
    """Copy cores until they fill a group, in every order of their axes.

    Args:
        table: cores.
        group_chips: a multiple of the chips of each.
        rows: which of the cores.

    Returns:
        The ways to split the group, and the core of each.
    """
    own = table.take(rows)
    own = replace(own, degrees={**own.degrees, COPIES: group_chips // own.n_chips})
    active = active_axes(own, own.degrees[COPIES])
    kept, order = [], []
    for split in np.unique(own.split).tolist():
        for bits, orders in enumerate(_orders_by_axes(table.part, split)):
            chosen: Bool[np.ndarray, " rows"] = (active == bits) & (own.split == split)
            for number in orders if chosen.any() else ():
                kept.append(np.flatnonzero(chosen))
                order.append(np.full(int(chosen.sum()), number))
    row, numbers = np.concatenate(kept), np.concatenate(order)
    by_core = np.lexsort((numbers, row))
    row, numbers = row[by_core], numbers[by_core]
    return replace(own.take(row), order=numbers), rows[row]
