"""Into which pieces a tree split cuts what is added: a matter of the model and its formats alone.

A plan with `Split.TREE` adds the rows of an output projection, and experts, by a binary tree over
leaves of equal length. Their number is a power of two; a chip holds whole leaves, and those behind
the last piece are zeros, so that every power of two of chips makes the same additions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from .config import ModelConfig
from .params import block_params
from .policy import Policy

#: Leaves of a contraction at most: more of them would fill less of each K tile where a chip holds
#: several, and chips beyond them hold none.
MOST_LEAVES = 64
#: Zeros among all rows of the leaves at most, as a part of those that are not.
MOST_PADDING = 1 / 8


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """The leaves of a logical axis."""

    count: int  #: a power of two
    length: int  #: of one, in units of the axis

    def of_chip(self, ways: Any) -> Any:
        """Length of the axis on one of `ways` chips: whole leaves, at least one."""
        return self.length * -(-self.count // ways)


def axis_lengths(cfg: ModelConfig, kind: str) -> dict[str, int]:
    """Whole lengths of the logical axes of a kind of block."""
    lengths: dict[str, int] = {}
    for spec in block_params(cfg, kind).values():
        for axis, length in zip(spec.axes, spec.shape, strict=True):
            if axis is not None:
                lengths[axis] = length
    return lengths


def granules(cfg: ModelConfig, kind: str, policy: Policy) -> dict[str, int]:
    """Smallest pieces of the logical axes: rows that share a scale stay on one chip."""
    pieces: dict[str, int] = {}
    for spec in block_params(cfg, kind).values():
        scheme = policy.scheme(spec)
        last_row = spec.axes[spec.batch + spec.rows - 1] if spec.rows else None
        if scheme is not None and scheme.row_granule > 1 and last_row is not None:
            pieces[last_row] = scheme.row_granule
    return pieces


@cache
def leaves(cfg: ModelConfig, kind: str, policy: Policy) -> Mapping[str, Leaves]:
    """Return the leaves of each logical axis of a kind of block that is added over.

    Query heads of one key/value head have leaves of their own where each leaf of the key/value
    heads is one of them.
    """
    lengths, pieces = axis_lengths(cfg, kind), granules(cfg, kind, policy)
    found: dict[str, Leaves] = {
        axis: _cut(lengths[axis], pieces.get(axis, 1), MOST_LEAVES)
        for axis in ("kv_heads", "heads", "mlp", "expert_mlp", "shared_mlp")
        if axis in lengths
    }
    if "experts" in lengths:
        found["experts"] = expert_leaves(lengths["experts"])
    if "q_per_kv" in lengths:
        each, outer = lengths["q_per_kv"], found["kv_heads"]
        most = MOST_LEAVES // outer.count if outer.length == 1 else 1
        count = min(each & -each, most)  # the largest power of two that divides them
        found["q_per_kv"] = Leaves(count=count, length=each // count)
    return MappingProxyType(found)


def expert_leaves(n_experts: int) -> Leaves:
    """Return the leaves of the sum over experts: as many as may be, for they cost nothing."""
    return _cut(n_experts, 1, n_experts)


def experts_of_chip(n_experts: int, ways: int, *, in_tree: bool) -> int:
    """Return the experts of one of `ways` chips, padding included."""
    return expert_leaves(n_experts).of_chip(ways) if in_tree else -(-n_experts // ways)


def _cut(length: int, piece: int, most: int) -> Leaves:
    """Cut an axis into as many leaves of whole pieces as the padding allows."""
    n_pieces = -(-length // piece)
    counts = (1 << power for power in range(max(1, most).bit_length() - 1, -1, -1))
    for count in counts:
        of_leaf = -(-n_pieces // count)
        if of_leaf * count <= n_pieces * (1 + MOST_PADDING):
            return Leaves(count=count, length=of_leaf * piece)
    raise AssertionError("one leaf needs no padding")


@cache
def rows_of_leaf(cfg: ModelConfig, kind: str, policy: Policy, name: str) -> int:
    """Return the rows of a leaf of a matrix, such as `down`."""
    spec, cut = block_params(cfg, kind)[name], leaves(cfg, kind, policy)
    rows = slice(spec.batch, spec.batch + spec.rows)
    total = 1
    for axis, length in zip(spec.axes[rows], spec.shape[rows], strict=True):
        total *= cut[axis].length if axis is not None and axis in cut else length
    return total
