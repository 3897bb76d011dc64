"""When the transfers of a pipelined collective start: as soon as their vectors are there.

Every transfer is one vector. It starts when all that earlier steps bring of its vector has arrived
and its link is free; on a link, an earlier step goes before a later one, and an earlier slice
before a later one. Knows nothing of the closed form (`closed_form.flow`) that it is compared with.
Not modelled: steps that take turns on a link.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from .routes.rows import Rows, unique_columns


def starts_as_vectors_arrive(
    rows: Rows,
    step: Int[np.ndarray, " rows"],
    link: Int[np.ndarray, " rows"],
    hop: Float[np.ndarray, " rows"],
    frame: Float[np.ndarray, " rows"],
    kind: str,
) -> Float[np.ndarray, " rows"]:
    """Start every transfer as early as its vector and its link allow.

    Args:
        rows: transfers of a vector each, ordered by step, link and slice.
        step: number of the step of each.
        link: number of its link.
        hop: cycles of a vector on that link.
        frame: cycles for which it occupies the link.
        kind: one of `kinds.LISTED_KINDS`.

    Returns:
        The cycle in which each vector enters its link.
    """
    here, there = _places(rows, kind)
    arrived = np.zeros(int(max(here.max(initial=-1), there.max(initial=-1))) + 1)
    link = np.unique(link, return_inverse=True)[1].reshape(-1)
    free = np.zeros(int(link.max(initial=-1)) + 1)
    start = np.zeros(step.size)
    limits = np.searchsorted(step, np.arange(int(step.max(initial=-1)) + 2))
    for low, high in pairwise(limits.tolist()):
        now = slice(low, high)
        ready = arrived[here[now]]
        for turn in _turns(link[now]):
            start[low + turn] = np.maximum(ready[turn], free[link[low + turn]])
            free[link[low + turn]] = start[low + turn] + frame[low + turn]
        np.maximum.at(arrived, there[now], start[now] + hop[now])
    return start


def _places(rows: Rows, kind: str) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Number the places that a vector leaves and reaches: a chip and a piece of a run.

    Only what moves in an all_to_all is of one chip each; all else is summed, or the same.
    """
    origin = rows.origin if kind == "all_to_all" else np.zeros_like(rows.origin)
    run, piece, whose = (np.tile(column, 2) for column in (rows.run, rows.first, origin))
    _, number = unique_columns(run, piece, whose, np.concatenate([rows.src, rows.dst]))
    return number[: rows.run.size], number[rows.run.size :]


def _turns(link: Int[np.ndarray, " rows"]) -> list[Int[np.ndarray, " turn"]]:
    """List the first transfer of every link, then the second, and so on; rows ascend by link."""
    opens = np.ones(link.size, np.bool_)
    opens[1:] = link[1:] != link[:-1]
    head = np.maximum.accumulate(np.where(opens, np.arange(link.size), 0))
    place = np.arange(link.size) - head
    order = np.argsort(place, kind="stable")
    cuts = np.searchsorted(place[order], np.arange(1, int(place.max(initial=-1)) + 1))
    return np.split(order, cuts)
