"""How arrays are split over mesh axes: specs checked, laid beside values, and split in two.

A spec stands for every array below it, as in JAX. Errors say where a spec or an array is and what
to write. Cutting of the arrays themselves is in `shares`.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ..arguments import described
from ..errors import MeshError
from ..predicates import narrows
from .chips import ChipMesh

Specs = Any  #: a PartitionSpec, or a tree of them that is a prefix of what they split


def is_spec(value: Any) -> bool:
    """Whether a value is a spec, and so a leaf of a tree of specs."""
    return isinstance(value, P)


def names_of(entry: Any) -> tuple[str, ...]:
    """Mesh axes that split one dimension, outermost first."""
    return () if entry is None else tuple(entry) if isinstance(entry, tuple | list) else (entry,)


def all_names(spec: P) -> tuple[str, ...]:
    """Mesh axes that a spec names."""
    return tuple(name for entry in spec for name in names_of(entry))


def renamed(spec: P, names: Mapping[str, tuple[str, ...]]) -> P:
    """Replace each axis of a spec by others, outermost first; by none, where a name is missing."""
    return P(
        *(
            tuple(new for name in names_of(entry) for new in names.get(name, ())) or None
            for entry in spec
        )
    )


_VIRTUAL = " (virtual)"  # no identifier ends so, and no axis of a mesh


def virtual_name(name: str) -> str:
    """Name the axis of the virtual chips that a device has of an axis of the mesh."""
    return name + _VIRTUAL


def mesh_name(name: str) -> str:
    """Name the axis of the mesh that an axis of devices or of virtual chips is part of."""
    return name.removesuffix(_VIRTUAL)


def check_specs(caller: str, which: str, specs: Specs, mesh: ChipMesh) -> None:
    """Refuse what is not a tree of specs over a mesh's axes.

    Args:
        caller: goes into the message.
        which: `in_specs` or `out_specs`.
        specs: a spec, or a tree of them.
        mesh: what they may name.

    Raises:
        MeshError: says where, and what may be written.
    """
    known = [name for name, _ in mesh.axes]
    for path, spec in jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)[0]:
        where = f"{caller}: {which}{jax.tree_util.keystr(path)}"
        if not is_spec(spec):
            raise MeshError(
                f"{where} must be a PartitionSpec, such as P('{known[0] if known else 'tensor'}'); "
                f"{spec!r} was given."
            )
        names = all_names(spec)
        for name in names:
            check_name(where, name, known)
        if len(set(names)) < len(names):
            raise MeshError(f"{where} is {spec}; an axis can split one dimension only.")


def check_name(where: str, name: Any, known: Sequence[str]) -> None:
    """Refuse a name that is not an axis of the mesh.

    Raises:
        MeshError: has the nearest name, or all.
    """
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {_listed(known)}."
        raise MeshError(f"{where} names {name!r}, which is not an axis of the mesh; {hint}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def beside(specs: Specs, values: Any, which: str, where: str) -> Iterator[tuple[P, Any, str]]:
    """Give each spec with what it splits, and where that is.

    Args:
        specs: a spec, or a tree of them.
        values: what is split.
        which: names the specs in messages.
        where: names the values in messages.

    Raises:
        MeshError: they have different structures.
    """
    if is_spec(specs):
        yield specs, values, where
        return
    given, due = _children(specs), _children(values)
    if given is None or due is None or given.keys() != due.keys():
        raise MeshError(
            f"{which} {_described(specs)} where {where} {_described(values)}; write a "
            "PartitionSpec for each array, or one for all."
        )
    for key, spec in given.items():
        yield from beside(spec, due[key], f"{which}{key}", f"{where}{key}")


def _children(tree: Any) -> dict[str, Any] | None:
    """What is one level below, by key; None for a leaf."""
    below = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    if any(not path for path, _ in below):
        return None
    return {jax.tree_util.keystr(path): child for path, child in below}


def _described(tree: Any) -> str:
    children = _children(tree)
    if tree is None or is_spec(tree):
        return f"is {tree}"
    if children is None:
        return "is one array" if hasattr(tree, "shape") else f"is {tree!r}"
    if isinstance(tree, tuple | list):
        return f"has {len(tree)} entr{'y' if len(tree) == 1 else 'ies'}"
    return f"has {', '.join(children) or 'no entries'}"


def per_leaf(specs: Specs, values: Any, which: str, where: str) -> list[P]:
    """Repeat each spec for every leaf below it; arguments are those of `beside`."""
    return [
        spec
        for spec, below, _ in beside(specs, values, which, where)
        for _ in jax.tree.leaves(below)
    ]


def check_array(where: str, leaf: Any, spec: P) -> None:
    """Refuse what is not an array, or has fewer dimensions than its spec.

    Raises:
        MeshError: says which.
    """
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise MeshError(f"{where} must be an array; {described(leaf)} was given.")
    if isinstance(leaf.dtype, np.dtype) and leaf.dtype.kind in "OSUMm":
        raise MeshError(f"{where} must be an array of numbers, not of {leaf.dtype}.")
    if isinstance(leaf, np.ndarray | np.generic) and narrows(leaf.dtype):
        raise MeshError(
            f"{where} is {described(leaf)}, which JAX would narrow silently; convert it, such as "
            f"to {leaf.dtype.name.replace('64', '32').replace('128', '64')}."
        )
    if len(spec) > len(leaf.shape):
        raise MeshError(
            f"{where} has {len(leaf.shape)} dimensions but its spec {spec} has {len(spec)} entries."
        )


def check_shares(where: str, leaf: Any, spec: P, sizes: Mapping[str, int]) -> None:
    """Refuse an array that its spec does not split into equal shares.

    Raises:
        MeshError: says which dimension.
    """
    for length, entry in zip(leaf.shape, spec, strict=False):
        ways = prod(sizes[name] for name in names_of(entry))
        if length % ways:
            raise MeshError(
                f"{where}: a dimension of {length} cannot be split {ways} ways over "
                f"{_listed(names_of(entry))}; pad it first."
            )
