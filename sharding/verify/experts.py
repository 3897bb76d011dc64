"""The experts of a mixture that are in use, made one by one and stored together.

Not here: which experts these are (`routing`), and what runs on them (`emulate`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

#: Experts that are made ahead of their use: one for each of two processor cores, and one in hand.
_EXPERTS_AHEAD = 3

Made = TypeVar("Made")


class ExpertStore:
    """Experts one after another, in as many rows as can be needed; the last ones may stay zero."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows, self.n_filled = n_rows, 0
        self.leaves: list[np.ndarray] = []
        self.tree: Any = None

    def add(self, expert: dict[str, Any]) -> None:
        """Append an expert; all have the same names, shapes and formats."""
        leaves, self.tree = jax.tree.flatten(expert)
        if not self.leaves:
            self.leaves = [np.zeros((self.n_rows, *leaf.shape), leaf.dtype) for leaf in leaves]
        for rows, leaf in zip(self.leaves, leaves, strict=True):
            rows[self.n_filled] = leaf
        self.n_filled += 1

    def handed_over(self) -> dict[str, Any]:
        """Give the store to JAX; one copy of an array is in memory at a time."""
        arrays = []
        while self.leaves:
            arrays.append(jnp.asarray(self.leaves.pop(0)))
        store: dict[str, Any] = jax.tree.unflatten(self.tree, arrays)
        return store


def made_ahead(
    make: Callable[[int], Made], numbers: Sequence[int], workers: Executor
) -> Iterator[Made]:
    """Make things in order with several workers, only a few ahead of what is asked for."""
    waiting: Iterable[int] = iter(numbers)
    coming = [workers.submit(make, number) for number in islice(waiting, _EXPERTS_AHEAD)]
    while coming:
        made = coming.pop(0).result()
        coming += [workers.submit(make, number) for number in islice(waiting, 1)]
        yield made
