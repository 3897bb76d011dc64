"""SXM, the switch unit: moves values between lanes.

What it computes: rearrangements written as einops patterns, splits, joins and the rotary pair swap;
no value changes. What it costs: nothing where the order of values in memory does not change, else
vectors through the two hemispheres. Not modelled: which of shift, permute, distribute and transpose
the compiler would pick.
"""

import re
from functools import cache
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from ..arguments import Count, Counts, check_not_empty, checked, described
from ..errors import LpuError
from ..predicates import divides, exceeds, may_equal
from .primitive import free, primitive
from .work import Call, Hardware, Operand, Quantity, Unit, Work, choose

Axes = tuple[tuple[str, ...], ...]


_NAME = r"[a-zA-Z]\w*"
_SIDE = re.compile(rf"\s*((\(\s*({_NAME}\s*)*\)|\b{_NAME}\b)\s*)*")


@cache
def _sides(pattern: str) -> tuple[Axes, Axes]:
    """Split a pattern into the dimensions before and after: `"b (n h)"` -> `(("b",), ("n", "h"))`.

    Raises:
        LpuError: it is not a pattern.
    """
    sides = pattern.split("->")
    axes = [
        tuple(
            tuple(group.split()) if group or not name else (name,)
            for group, name in re.findall(r"\(([^)]*)\)|(\S+)", side)
        )
        for side in sides
        if _SIDE.fullmatch(side)
    ]
    names = [[name for dimension in side for name in dimension] for side in axes]
    if (
        len(sides) != 2
        or len(axes) != 2
        or sorted(names[0]) != sorted(names[1])
        or len(set(names[0])) != len(names[0])
    ):
        raise LpuError(
            f"sxm.rearrange: pattern={described(pattern)} was given; it must name the same axes, "
            "once each, on both sides of '->', such as 'b (n h) -> b n h'."
        )
    return axes[0], axes[1]


def _axis_lengths(pattern: str, shape: tuple[Any, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Find the length of every axis; one axis of each dimension may be left to be derived.

    Raises:
        LpuError: the lengths are not those of the shape, or too few are given.
    """
    lengths = dict(known)
    dimensions = _sides(pattern)[0]
    named = [name for names in dimensions for name in names]
    fits = len(dimensions) == len(shape) and set(known) <= set(named)
    for names, size in zip(dimensions, shape, strict=False):
        unknown = [name for name in names if name not in lengths]
        rest = _product(lengths.get(name, 1) for name in names)
        if len(unknown) == 1:
            fits = fits and divides(rest, size)
            lengths[unknown[0]] = size if len(names) == 1 else size // rest
        else:
            fits = fits and not unknown and may_equal(rest, size)
    if not fits:
        raise LpuError(
            f"sxm.rearrange: pattern={described(pattern)} with lengths "
            f"{', '.join(f'{name}={size}' for name, size in known.items()) or 'of no axis'} was "
            f"given for shape {shape}; it must have a dimension for each, with axes whose product "
            "is its length, of which one may be left out."
        )
    return lengths


def _rearranged(x: Any, *, pattern: str, lengths: tuple[tuple[str, Any], ...]) -> Any:
    size = dict(lengths)
    return jax.ShapeDtypeStruct(
        tuple(_product(size[name] for name in names) for names in _sides(pattern)[1]),
        x.dtype,
    )


def _product(lengths: Any) -> Any:
    """Multiply lengths that may be symbolic."""
    result: Any = 1
    for length in lengths:
        result = result * length
    return result


def move_cost(machine: Hardware, x: Operand, moved: Any = True) -> Work:
    """Send an operand once through the SXM, counted in byte-vectors.

    Where `moved` is false it stays and costs nothing.
    """
    chip = machine.chip
    byte_vectors = x.size_bytes / chip.vector_bytes
    busy = choose(moved, byte_vectors / chip.sxm_vectors_per_cycle, 0.0)
    return Work(
        unit=Unit.SXM,
        busy_cycles=busy,
        limits={"vectors": busy},
        latency_cycles=choose(moved, float(chip.sxm_transpose_cycles), 0.0),
        absent=np.logical_not(moved) if isinstance(moved, np.ndarray) else not moved,
    )


def _rearrange_cost(machine: Hardware, call: Call) -> Work:
    """Free if the axes longer than one keep their order, for each plan on its own."""
    lengths = dict(call.params["lengths"])
    left, right = (
        [name for names in side for name in names] for side in _sides(call.params["pattern"])
    )
    moved: Quantity | bool = False
    for i, early in enumerate(left):
        for late in left[i + 1 :]:
            if right.index(early) > right.index(late):
                moved = moved | ((lengths[early] > 1) & (lengths[late] > 1))
    return move_cost(machine, call.operands[0], moved)


_rearrange = primitive(
    "sxm_rearrange",
    abstract=_rearranged,
    meaning=lambda x, *, pattern, lengths: einops.rearrange(x, pattern, **dict(lengths)),
    cost=_rearrange_cost,
)


@checked
def rearrange(x: Num[Array, "..."], pattern: str, **lengths: Count) -> Num[Array, "..."]:
    """Rearrange axes by an einops pattern.

    A pure reshape is a reshape of the program: free. Anything else passes the SXM, unless all axes
    but one of those that change places have length one.

    Args:
        x: any array.
        pattern: as for `einops.rearrange`, without ellipsis.
        **lengths: lengths of axes, as for einops.

    Fidelity: exact.
    """
    sizes = _axis_lengths(pattern, x.shape, lengths)
    left, right = ([name for names in side for name in names] for side in _sides(pattern))
    if left == right:
        return x.reshape(_rearranged(x, pattern=pattern, lengths=tuple(sizes.items())).shape)
    return _rearrange(x, pattern=pattern, lengths=tuple(sorted(sizes.items())))  # type: ignore[no-any-return]


def _split_cost(machine: Hardware, call: Call) -> Work:
    """Shift parts after the first to lane 0, unless all boundaries fall between two vectors."""
    lanes = machine.chip.lanes
    edge: Any = 0
    moved: Quantity | bool = False
    for size in call.params["sizes"][:-1]:
        edge = edge + size
        moved = moved | (edge % lanes != 0)
    return move_cost(machine, call.operands[0], moved)


def _split_meaning(x: Array, *, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    edges = [sum(sizes[:i]) for i in range(1, len(sizes))]
    return tuple(jnp.split(x, edges, axis=-1))


_split = primitive(
    "sxm_split",
    abstract=lambda x, *, sizes: tuple(
        jax.ShapeDtypeStruct((*x.shape[:-1], size), x.dtype) for size in sizes
    ),
    meaning=_split_meaning,
    cost=_split_cost,
)


@checked
def split(x: Num[Array, "*rows n"], sizes: Counts) -> tuple[Array, ...]:
    """Cut the last axis into parts of the given sizes. Fidelity: exact."""
    if not may_equal(sum(sizes[1:], sizes[0]), x.shape[-1]):
        raise LpuError(
            f"sxm.split: sizes={sizes} were given for a last axis of {x.shape[-1]}; their sum must "
            "be its length."
        )
    return _split(x, sizes=sizes)  # type: ignore[no-any-return]


_keep_columns = primitive(
    "sxm_keep_columns",
    abstract=lambda x, *, n: jax.ShapeDtypeStruct((*x.shape[:-1], n), x.dtype),
    meaning=lambda x, *, n: x[..., :n],
    cost=free,
)


@checked
def keep_columns(x: Num[Array, "*rows n"], n: Count) -> Num[Array, "*rows kept"]:
    """Drop padding columns after the first `n`: they are not read. Free. Fidelity: exact."""
    if exceeds(n, x.shape[-1]):
        raise LpuError(
            f"sxm.keep_columns: n={n} was given for {x.shape[-1]} columns; it must be 1 to "
            f"{x.shape[-1]}."
        )
    return _keep_columns(x, n=n)  # type: ignore[no-any-return]


_join = primitive(
    "sxm_join",
    abstract=lambda *xs: jax.ShapeDtypeStruct(
        (*xs[0].shape[:-1], sum((x.shape[-1] for x in xs[1:]), xs[0].shape[-1])), xs[0].dtype
    ),
    meaning=lambda *xs: jnp.concatenate(xs, axis=-1),
    cost=lambda machine, call: move_cost(machine, call.results[0]),
)


@checked
def join(*parts: Num[Array, "*rows _"]) -> Num[Array, "..."]:
    """Put parts side by side along the last axis. Fidelity: exact."""
    if len({part.dtype for part in parts}) != 1:
        raise LpuError(
            f"sxm.join: {', '.join(map(described, parts)) or 'nothing'} was given; it must be at "
            "least one part, all of one type."
        )
    return _join(*parts)  # type: ignore[no-any-return]


def _swap_pairs_meaning(x: Array, *, interleaved: bool) -> Array:
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        return jnp.flip(pairs, -1).reshape(x.shape)
    return jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], axis=-1)


_swap_pairs = primitive(
    "sxm_swap_pairs",
    abstract=lambda x, *, interleaved: jax.ShapeDtypeStruct(x.shape, x.dtype),
    meaning=_swap_pairs_meaning,
    cost=lambda machine, call: move_cost(machine, call.operands[0]),
)


@checked
def swap_pairs(x: Num[Array, "*rows n"], *, interleaved: bool) -> Num[Array, "*rows n"]:
    """Exchange the two members of every rotary pair.

    Args:
        x: the last axis has an even length.
        interleaved: pairs are neighbours (2i, 2i + 1); else (i, i + n / 2).

    Fidelity: exact.
    """
    check_not_empty("sxm.swap_pairs", "x", x)
    if not divides(2, x.shape[-1]):
        raise LpuError(
            f"sxm.swap_pairs: a last axis of {x.shape[-1]} was given; its length must be even."
        )
    return _swap_pairs(x, interleaved=interleaved)  # type: ignore[no-any-return]
