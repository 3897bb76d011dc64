"""Ways to split one part of a plan, as columns of numbers: a row each.

What `axes` says of one shard is said here of all rows at once. A `Shard` is made only of a row that
somebody looks at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, reduce
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from models.blocks import Kind
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from ..axes import MESH_AXES, shared_heads
from ..plan import AXES, PARTS, Shard

Column = Int[np.ndarray, " rows"]

SPLITS, DISPATCHES = tuple(Split), tuple(Dispatch)
#: Fields of a shard that a column does not hold: what a plan says of its slots.
_OF_SLOTS = ("slots", "capacity", "slot_rule", "overflow")


@cache
def orders_of(part: str) -> tuple[tuple[str, ...], ...]:
    """Orders of the mesh axes that a part may have, outermost first; the default one comes first.

    Partial sums of a mixture are added over experts and columns together: copies lie outside or
    inside of both.
    """
    default = PARTS[part].order
    found = [order for order in permutations(default) if part != "moe" or order[1] != "replica"]
    return tuple(sorted(found, key=lambda order: order != default))


@dataclass(frozen=True, kw_only=True)
class ShardTable:
    """Ways to split a part of a plan; a column has an entry per row."""

    part: str
    degrees: Mapping[str, Column]  #: chips along each axis
    order: Column  #: which of `orders_of(part)`
    split: Column  #: which of `SPLITS`
    dispatch: Column  #: which of `DISPATCHES`; 0 for parts without experts
    slots: Column  #: which of `slot_words`
    slot_words: tuple[Mapping[str, Any], ...] = ({},)  #: what plans say of slots, by field

    def __len__(self) -> int:
        return len(self.order)

    @staticmethod
    def of(shards: Sequence[Shard]) -> "ShardTable":
        """Hold shards of one part as rows."""
        part = shards[0].part
        words = [
            tuple((name, getattr(shard, name)) for name in _OF_SLOTS if hasattr(shard, name))
            for shard in shards
        ]
        number = {word: i for i, word in enumerate(dict.fromkeys(words))}
        orders = orders_of(part)
        dispatches = [getattr(shard, "dispatch", DISPATCHES[0]) for shard in shards]
        return ShardTable(
            part=part,
            degrees={
                axis.name: np.array([getattr(shard, axis.name) for shard in shards], np.int64)
                for axis in AXES[part]
            },
            order=np.array([orders.index(shard.order) for shard in shards]),
            split=np.array([SPLITS.index(shard.split) for shard in shards]),
            dispatch=np.array([DISPATCHES.index(dispatch) for dispatch in dispatches]),
            slots=np.array([number[word] for word in words]),
            slot_words=tuple(dict(word) for word in number),
        )

    @property
    def n_chips(self) -> Column:
        """Chips of the group that each row needs."""
        return reduce(np.multiply, self.degrees.values())

    @property
    def turned(self) -> Bool[np.ndarray, " rows"]:
        """Whether the columns of experts lie outside the experts in the mesh."""
        if self.part != "moe":
            return np.zeros(len(self), bool)
        outside = [order.index("tensor") < order.index("expert") for order in orders_of("moe")]
        return np.asarray(np.array(outside)[self.order])

    def take(self, rows: Column) -> "ShardTable":
        """Keep some rows, in that order."""
        columns = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if field.name in ("order", "split", "dispatch", "slots")
        }
        return ShardTable(
            part=self.part,
            degrees={name: ways[rows] for name, ways in self.degrees.items()},
            slot_words=self.slot_words,
            **columns,
        )

    def shard(self, row: int) -> Shard:
        """Make the shard of a row."""
        facts: dict[str, Any] = {name: int(ways[row]) for name, ways in self.degrees.items()}
        facts |= self.slot_words[self.slots[row]]
        if self.part == "moe":
            facts["dispatch"] = DISPATCHES[self.dispatch[row]]
        facts |= {"order": orders_of(self.part)[self.order[row]], "split": SPLITS[self.split[row]]}
        return PARTS[self.part](**facts)

    def mesh(self, kind: Kind, cfg: ModelConfig) -> tuple[dict[str, Column], dict[str, Column]]:
        """Lay the rows onto the chips of their groups.

        Returns:
            Chips along each mesh axis of the kind of block, and from one chip of it to the next.
        """
        ways = dict(self.degrees)
        inner = {axis.name: axis.inner.name for axis in AXES[self.part] if axis.inner is not None}
        for outer, own in inner.items():
            ways[outer], ways[own] = split_heads(cfg, kind, ways[outer])
        strides = {axis: np.ones(len(self), np.int64) for axis in ways}
        for number in np.unique(self.order):
            rows = self.order == number
            inside = np.ones(int(rows.sum()), np.int64)
            for axis in reversed(orders_of(self.part)[number]):
                for name in (inner.get(axis), axis):
                    if name is not None:
                        strides[name][rows] = inside
                        inside = inside * ways[name][rows]
        return (
            {axis: ways[axis] for axis in MESH_AXES[kind]},
            {axis: strides[axis] for axis in MESH_AXES[kind]},
        )


def split_heads(cfg: ModelConfig, kind: Kind, tensor: Column) -> tuple[Column, Column]:
    """Split tensor degrees as `axes.split_heads` does one."""
    heads = shared_heads(cfg, kind)
    if heads is None:
        return tensor, np.ones_like(tensor)
    outer = np.minimum(tensor, heads)
    return outer, tensor // outer


def joined(tables: Sequence[ShardTable]) -> ShardTable:
    """Put tables of one part, with the same words of slots, one after another."""
    first = tables[0]
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables])
        for field in fields(first)
        if field.name in ("order", "split", "dispatch", "slots")
    }
    degrees = {
        name: np.concatenate([table.degrees[name] for table in tables]) for name in first.degrees
    }
    return replace(first, degrees=degrees, **columns)
