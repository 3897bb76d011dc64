"""Global arrays and the shares of chips: cut along mesh axes, and joined again.

Works on what a spec has been checked for: see `specs`.
"""

from collections.abc import Mapping
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from .specs import all_names, names_of


def cut(x: jax.Array, spec: P, sizes: Mapping[str, int]) -> jax.Array:
    """Bring the chip axes of a global array to the front, in the order of the mesh."""
    shape: list[int] = []
    places: dict[str, int] = {}
    for dim, length in enumerate(x.shape):
        names = names_of(spec[dim]) if dim < len(spec) else ()
        for name in names:
            places[name] = len(shape)
            shape.append(sizes[name])
        shape.append(length // prod(sizes[name] for name in names))
    order = [places[name] for name in sizes if name in places]
    rest = [i for i in range(len(shape)) if i not in order]
    return jnp.transpose(x.reshape(shape), (*order, *rest))


def join(x: jax.Array, spec: P, sizes: Mapping[str, int]) -> jax.Array:
    """Undo `cut`: put the chip axes, which come first, back into their dimensions."""
    chips = [name for name in sizes if name in all_names(spec)]
    order: list[int] = []
    shape: list[int] = []
    for dim in range(x.ndim - len(chips)):
        group = [chips.index(name) for name in (names_of(spec[dim]) if dim < len(spec) else ())]
        order += [*group, len(chips) + dim]
        shape.append(prod(x.shape[i] for i in (*group, len(chips) + dim)))
    return jnp.transpose(x, order).reshape(shape)


def relaid(x: jax.Array, before: P, after: P, sizes: Mapping[str, int]) -> jax.Array:
    """Change the order in which the axes of each dimension cut a global array.

    Args:
        x: the array, its dimensions cut as `before` says.
        before: axes of each dimension, outermost first.
        after: the same axes of each dimension in the order they shall have.
        sizes: chips of each axis.
    """
    return x if before == after else join(cut(x, before, sizes), after, sizes)
