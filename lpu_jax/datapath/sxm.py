"""SXM, the switch unit: moves values between lanes.

What it computes: rearrangements written as einops patterns, splits, joins and the rotary pair swap;
no value changes. What it costs: nothing where the order of values in memory does not change, else
vectors through the two hemispheres. Not modelled: which of shift, permute, distribute and transpose
the compiler would pick.
"""

import re
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from .primitive import free, primitive
from .work import Machine, Operand, Quantity, Request, Unit, Work, choose

Axes = tuple[tuple[str, ...], ...]


def _parse(side: str) -> Axes:
    """Split one side of a pattern into dimensions: `"b (n h)"` -> `(("b",), ("n", "h"))`."""
    tokens = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return tuple(tuple(group.split()) if group or not name else (name,) for group, name in tokens)


def _axis_lengths(pattern: str, shape: tuple[Any, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Find the length of every axis; one axis of each dimension may be left to be derived."""
    lengths = dict(known)
    for names, size in zip(_parse(pattern.split("->")[0]), shape, strict=True):
        unknown = [name for name in names if name not in lengths]
        rest: Any = 1
        for name in names:
            rest = rest * lengths.get(name, 1)
        if len(unknown) == 1:
            lengths[unknown[0]] = size if len(names) == 1 else size // rest
    return lengths


def _rearranged(x: Any, *, pattern: str, lengths: tuple[tuple[str, Any], ...]) -> Any:
    size = dict(lengths)
    return jax.ShapeDtypeStruct(
        tuple(product_of(size[name] for name in names) for names in _parse(pattern.split("->")[1])),
        x.dtype,
    )


def product_of(lengths: Any) -> Any:
    """Multiply lengths that may be symbolic."""
    result: Any = 1
    for length in lengths:
        result = result * length
    return result


def move_cost(machine: Machine, x: Operand, moved: Any = True) -> Work:
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


def _rearrange_cost(machine: Machine, request: Request) -> Work:
    """Free if the axes longer than one keep their order, for each plan on its own."""
    lengths = dict(request.params["lengths"])
    left, right = (
        [name for names in _parse(side) for name in names]
        for side in request.params["pattern"].split("->")
    )
    moved: Quantity | bool = False
    for i, early in enumerate(left):
        for late in left[i + 1 :]:
            if right.index(early) > right.index(late):
                moved = moved | ((lengths[early] > 1) & (lengths[late] > 1))
    return move_cost(machine, request.operands[0], moved)


_rearrange = primitive(
    "sxm_rearrange",
    abstract=_rearranged,
    meaning=lambda x, *, pattern, lengths: einops.rearrange(
        x, pattern, **{name: length for name, length in lengths if name != "_"}
    ),
    cost=_rearrange_cost,
)


def rearrange(x: Num[Array, "..."], pattern: str, **lengths: Any) -> Num[Array, "..."]:
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
    left, right = (
        [name for names in _parse(side) for name in names] for side in pattern.split("->")
    )
    if left == right:
        return x.reshape(_rearranged(x, pattern=pattern, lengths=tuple(sizes.items())).shape)
    return _rearrange(x, pattern=pattern, lengths=tuple(sorted(sizes.items())))  # type: ignore[no-any-return]


def _split_cost(machine: Machine, request: Request) -> Work:
    """Shift parts after the first to lane 0, unless all boundaries fall between two vectors."""
    lanes = machine.chip.lanes
    edge: Any = 0
    moved: Quantity | bool = False
    for size in request.params["sizes"][:-1]:
        edge = edge + size
        moved = moved | (edge % lanes != 0)
    return move_cost(machine, request.operands[0], moved)


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


def split(x: Num[Array, "..."], sizes: tuple[Any, ...]) -> tuple[Array, ...]:
    """Cut the last axis into parts of the given sizes. Fidelity: exact."""
    return _split(x, sizes=sizes)  # type: ignore[no-any-return]


_keep_columns = primitive(
    "sxm_keep_columns",
    abstract=lambda x, *, n: jax.ShapeDtypeStruct((*x.shape[:-1], n), x.dtype),
    meaning=lambda x, *, n: x[..., :n],
    cost=free,
)


def keep_columns(x: Num[Array, "*rows n"], n: Any) -> Num[Array, "*rows kept"]:
    """Drop padding columns after the first `n`: they are not read. Free. Fidelity: exact."""
    return _keep_columns(x, n=n)  # type: ignore[no-any-return]


_join = primitive(
    "sxm_join",
    abstract=lambda *xs: jax.ShapeDtypeStruct(
        (*xs[0].shape[:-1], sum((x.shape[-1] for x in xs[1:]), xs[0].shape[-1])), xs[0].dtype
    ),
    meaning=lambda *xs: jnp.concatenate(xs, axis=-1),
    cost=lambda machine, request: move_cost(machine, request.results[0]),
)


def join(*parts: Num[Array, "..."]) -> Num[Array, "..."]:
    """Put parts side by side along the last axis. Fidelity: exact."""
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
    cost=lambda machine, request: move_cost(machine, request.operands[0]),
)


def swap_pairs(x: Num[Array, "*rows n"], *, interleaved: bool) -> Num[Array, "*rows n"]:
    """Exchange the two members of every rotary pair.

    Args:
        x: the last axis has an even length.
        interleaved: pairs are neighbours (2i, 2i + 1); else (i, i + n / 2).

    Fidelity: exact.
    """
    return _swap_pairs(x, interleaved=interleaved)  # type: ignore[no-any-return]
