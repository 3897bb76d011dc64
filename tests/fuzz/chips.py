"""Chips one by one: a program of one chip in a thread of its own, collectives at a barrier.

A way of running that shares nothing with `lpu_jax.mesh` or with the meanings of `c2c`: arrays are
cut and joined by hand, and what crosses chips is added by NumPy in the order that the documentation
states. Operations run one at a time, each compiled once for its shape, whatever plan it belongs to
(`few_shapes`): a chip's shapes do not know how many chips there are.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import prod
from threading import Barrier, Lock, local
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from lpu_jax.datapath import c2c
from lpu_jax.datapath.axis import Axis
from lpu_jax.mesh import ChipMesh

from .few_shapes import few_shapes

Coordinates = dict[str, int]


def run_one_by_one(
    program: Callable[..., Any], mesh: ChipMesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Run a per-chip program on global arrays; replicated results must be equal on all chips."""

    def run(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        specs = _per_leaf(in_specs, args)
        # Chips of an axis over which nothing is split hold copies: one of them is run.
        used = {name for spec in specs for name in _names(spec)}
        sizes = {name: n if name in used else 1 for name, n in mesh.axes}
        chips = [dict(zip(sizes, at, strict=True)) for at in product(*map(range, sizes.values()))]
        meeting = _Meeting(chips)

        def chip(number: int) -> Any:
            meeting.this.number = number
            meeting.turn.acquire()
            shards = [
                _share(np.asarray(leaf), spec, sizes, chips[number])
                for leaf, spec in zip(leaves, specs, strict=True)
            ]
            try:
                out = program(*jax.tree.unflatten(tree, shards), axes=mesh.as_axes())
                return jax.tree.map(np.asarray, out)
            except BaseException:
                meeting.barrier.abort()
                raise
            finally:
                meeting.turn.release()

        with _met(meeting), ThreadPoolExecutor(len(chips)) as pool:
            futures = [pool.submit(chip, number) for number in range(len(chips))]
        results = _results(futures)
        structure = jax.tree.structure(results[0])
        joined = [
            _joined([jax.tree.leaves(result)[i] for result in results], spec, sizes, chips)
            for i, spec in enumerate(_per_leaf(out_specs, results[0]))
        ]
        return jax.tree.unflatten(structure, joined)

    return run


def _results(futures: Sequence[Any]) -> list[Any]:
    """Raise what a chip raised, rather than that others waited for it in vain."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if type(error).__name__ != "BrokenBarrierError":
            raise error
    return [future.result() for future in futures]


# --- what crosses chips ---------------------------------------------------------------------------


@dataclass
class _Meeting:
    """Where the chips of a mesh meet, by their coordinates."""

    chips: list[Coordinates]
    this: local = field(default_factory=local)

    def __post_init__(self) -> None:
        self.barrier = Barrier(len(self.chips))
        #: one chip at a time: what it compiles, the others find
        self.turn = Lock()
        self.table: list[Any] = [None] * len(self.chips)

    def parts(self, x: Any, names: tuple[str, ...]) -> tuple[list[np.ndarray], int]:
        """What the chips of a run hold, in its order, and which of them this one is."""
        mine = self.chips[self.this.number]
        self.table[self.this.number] = np.asarray(x)
        self._wait()
        run = [
            (tuple(chip[name] for name in names), part)
            for chip, part in zip(self.chips, self.table, strict=True)
            if all(chip[name] == at for name, at in mine.items() if name not in names)
        ]
        self._wait()
        run.sort(key=lambda one: one[0])
        own = [at for at, _ in run].index(tuple(mine[name] for name in names))
        return [part for _, part in run], own

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


@contextmanager
def _met(meeting: _Meeting) -> Iterator[None]:
    """Let every collective of a program meet there."""

    def bind(_: Any, caller: str, x: Any, axis: Axis, **params: Any) -> Any:
        parts, own = meeting.parts(x, axis.names)
        assert len(parts) == axis.size
        return _MEANINGS[caller](parts, own, axis, **params)

    with mock.patch.object(c2c, "_bind", bind), few_shapes():
        yield


def _all_reduce(
    parts: list[np.ndarray], own: int, axis: Axis, dim: int = -1, sums: str = "chips"
) -> np.ndarray:
    if len(parts) == 1:
        return parts[own]
    if axis.algorithm == "ring":
        return _ring(parts, dim)
    levels = [tier // axis.stride for tier in axis.tiers if tier // axis.stride > 1]
    done = 1
    for level in levels:
        if len(parts) > level // done:
            parts = [
                _added(parts[i : i + level // done]) if i + 1 < len(parts) else parts[i]
                for i in range(0, len(parts), level // done)
            ]
            done = level
    return _added(parts)


def _added(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Add in fp32 in ascending order; one rounding to the type that crosses the wire."""
    if len(parts) == 1:
        return parts[0]
    total = np.float32(-0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts:
            total = total + part.astype(np.float32)
        return np.asarray(total).astype(parts[0].dtype)


def _ring(parts: list[np.ndarray], dim: int) -> np.ndarray:
    """Share i starts at chip i + 1 and is rounded at each hop."""
    n, length = len(parts), parts[0].shape[dim]
    bounds = [min(i * -(-length // n), length) for i in range(n + 1)]
    shares = []
    for i in range(n):
        cut = [np.take(part, range(bounds[i], bounds[i + 1]), axis=dim) for part in parts]
        total = cut[(i + 1) % n]
        for hop in range(2, n + 1):
            total = _added([total, cut[(i + hop) % n]])
        shares.append(total)
    return np.concatenate(shares, axis=dim)


def _all_gather(
    parts: list[np.ndarray], own: int, axis: Axis, dim: int, keep: int | None
) -> np.ndarray:
    whole = np.concatenate(parts, axis=dim)
    return whole if keep is None else np.take(whole, range(keep), axis=dim)


def _reduce_scatter(
    parts: list[np.ndarray], own: int, axis: Axis, dim: int, sums: str
) -> np.ndarray:
    return np.split(_all_reduce(parts, own, axis, dim), len(parts), axis=dim)[own]


def _all_to_all(parts: list[np.ndarray], own: int, axis: Axis, dim: int) -> np.ndarray:
    return np.concatenate([np.split(part, len(parts), axis=dim)[own] for part in parts], axis=dim)


def _tree_all_reduce(parts: list[np.ndarray], own: int, axis: Axis, sums: str = "") -> np.ndarray:
    """Add pairs of neighbours, then pairs of these; a zero is positive."""
    if len(parts) == 1:
        return parts[own]
    level = [part + np.float32(0) for part in parts]
    with np.errstate(over="ignore", invalid="ignore"):
        while len(level) > 1:
            level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _tree_reduce_scatter(
    parts: list[np.ndarray], own: int, axis: Axis, dim: int, sums: str
) -> np.ndarray:
    return np.split(_tree_all_reduce(parts, own, axis), len(parts), axis=dim)[own]


def _whole_all_reduce(parts: list[np.ndarray], own: int, axis: Axis, sums: str) -> np.ndarray:
    return np.sum(parts, axis=0, dtype=np.int64).astype(np.int32)


def _wide_all_reduce(parts: list[np.ndarray], own: int, axis: Axis, sums: str) -> np.ndarray:
    """Add numbers of 125 bits as Python integers; the three bits above stay set."""
    if len(parts) == 1:
        return parts[own]
    bits = np.stack(parts).view(np.uint32)
    flags = np.bitwise_or.reduce(bits[..., 3, :] >> 29 << 29)
    words = bits.astype(object)
    total = sum(words[..., i, :] * 2 ** (32 * i) for i in range(4)).sum(0) % 2**125
    split = [(total // 2 ** (32 * i) % 2**32).astype(np.uint32) for i in range(4)]
    split[3] |= flags
    return np.stack(split, axis=-2).view(np.int32)


_MEANINGS: dict[str, Callable[..., np.ndarray]] = {
    "c2c.all_reduce": _all_reduce,
    "c2c.tree_all_reduce": _tree_all_reduce,
    "c2c.tree_reduce_scatter": _tree_reduce_scatter,
    "c2c.whole_all_reduce": _whole_all_reduce,
    "c2c.wide_all_reduce": _wide_all_reduce,
    "c2c.all_gather": _all_gather,
    "c2c.reduce_scatter": _reduce_scatter,
    "c2c.all_to_all": _all_to_all,
}


# --- global arrays and shares ---------------------------------------------------------------------


def _per_leaf(specs: Any, values: Any) -> list[P]:
    """The spec of every leaf: specs are a tree that the values' tree continues."""
    if isinstance(specs, P):
        return [specs] * len(jax.tree.leaves(values))
    below = jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, P)).flatten_up_to(values)
    flat = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    return [spec for spec, tree in zip(flat, below, strict=True) for _ in jax.tree.leaves(tree)]


def _entries(spec: P, n_dims: int) -> list[tuple[str, ...]]:
    given = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]
    return given + [()] * (n_dims - len(given))


def _names(spec: P) -> tuple[str, ...]:
    return tuple(name for entry in _entries(spec, len(spec)) for name in entry)


def _place(names: tuple[str, ...], sizes: dict[str, int], chip: Coordinates) -> int:
    """The number of a chip's share of a dimension that these axes split, the first outermost."""
    number = 0
    for name in names:
        number = number * sizes[name] + chip[name]
    return number


def _slices(
    shape: Sequence[int], spec: P, sizes: dict[str, int], chip: Coordinates
) -> tuple[slice, ...]:
    cut = []
    for length, names in zip(shape, _entries(spec, len(shape)), strict=True):
        share = length // prod(sizes[name] for name in names)
        first = share * _place(names, sizes, chip)
        cut.append(slice(first, first + share))
    return tuple(cut)


def _share(x: np.ndarray, spec: P, sizes: dict[str, int], chip: Coordinates) -> np.ndarray:
    return x[_slices(x.shape, spec, sizes, chip)]


def _joined(
    parts: list[np.ndarray], spec: P, sizes: dict[str, int], chips: list[Coordinates]
) -> np.ndarray:
    shape = [
        length * prod(sizes[name] for name in names)
        for length, names in zip(parts[0].shape, _entries(spec, parts[0].ndim), strict=True)
    ]
    whole = np.empty(shape, parts[0].dtype)
    for chip, part in zip(chips, parts, strict=True):
        whole[_slices(shape, spec, sizes, chip)] = part
    for chip, part in zip(chips, parts, strict=True):
        held = whole[_slices(shape, spec, sizes, chip)]
        if held.tobytes() != part.tobytes():
            raise AssertionError(f"chips differ in a result that they should share: {chip}")
    return whole
