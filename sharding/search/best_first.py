"""Branch and bound: branches in the order of what they cost at least, until none can be wanted.

A branch is looked at up to some latency first and comes again while more of it may be wanted: the
search ends when what is left cannot be.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from .goals import Shape
from .records import Record

#: Branches that are looked at together: first few, so that a good plan is soon known, then more.
_FIRST, _MOST = 16, 1024
#: Branches whose bounds are looked at together where nothing is wanted.
_MOST_UNWANTED = 1 << 15
#: A branch is looked at up to so much more than its bound before it has to wait its turn again; to
#: the square of that the next time, and so on: where little fits, most looks find nothing.
_STRETCH = 1.08
#: More than any plan takes beyond its bound; squares go on for ever.
_MOST_STRETCH = 1e9
#: The same once as many plans are known as are wanted, unless it is said.
_LONG_STRETCH = 1.3
#: What rounding may take from a quotient.
_LESS = 1 - 1e-9

Numbers = Float[np.ndarray, " branches"]
Whole = Int[np.ndarray, " branches"]


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Plans of one shape each that may hold the model, with the least that they cost."""

    shape: Shape
    latency: Numbers
    period: Numbers
    most_in_flight: Whole  #: micro-batches whose caches may have room, at most


def shapes(n_chips: int, most_stages: int) -> tuple[Whole, Whole]:
    """List numbers of stages and of chips of a group, of which no more than a machine's are needed.

    Args:
        n_chips: of the machine.
        most_stages: of a plan.
    """
    numbers = range(1, min(most_stages, n_chips) + 1)
    stages = np.concatenate([np.full(n_chips // s, s) for s in numbers])
    return stages, np.concatenate([np.arange(1, n_chips // s + 1) for s in numbers])


#: Keeps the best plans of some branches up to latencies; returns up to which they were seen.
LookAt = Callable[[Whole, Numbers], Numbers]
#: Bounds the latency of what was not seen of some branches, by what looking at others has told;
#: infinite where there is nothing.
Raised = Callable[[Whole], Numbers]


def look_at_best_first(
    branches: Branches,
    record: Record,
    most_cycles: float,
    look_at: LookAt,
    known_stretch: float = _LONG_STRETCH,
    raised: Raised | None = None,
) -> int:
    """Look at branches until what is left cannot be wanted.

    Args:
        branches: with their bounds.
        record: which plans are wanted.
        most_cycles: latency of a token, at most.
        look_at: keeps the best plans of branches.
        known_stretch: up to which multiple of its bound a branch is looked at, once as many plans
            are known as are wanted.
        raised: bounds of the latency, if looking at branches tells something of others.

    Returns:
        How many branches were left, at some latency, because nothing of them could be wanted.
    """
    queue = _Queue(record.order(branches.latency, branches.period, branches.shape), branches)
    at_once, beyond = _FIRST, 0
    stretches = np.full(len(branches.latency), _STRETCH)
    while len(queue):
        rows, seen, last = queue.take(at_once)
        if raised is not None:
            seen = np.maximum(seen, raised(rows))
        wanted = _may_be_wanted(branches, record, rows, seen) & (seen <= most_cycles)
        wanted &= np.isfinite(seen)
        beyond += int(np.sum(~wanted))
        rows, seen = rows[wanted], seen[wanted]
        if not len(rows):
            at_once = min(2 * at_once, _MOST_UNWANTED)  # what follows is as hopeless
            continue
        order = _order_beyond(branches, record, rows, seen)
        # What is known to cost more by now waits for its turn, and so does what is too much.
        later = (
            _rounded(order) > max(last, queue.first)
            if raised is not None
            else np.zeros(len(rows), bool)
        )
        later |= np.cumsum(~later) > _MOST
        queue.add(order[later], rows[later], seen[later])
        rows, seen = rows[~later], seen[~later]
        at_once = min(2 * at_once, _MOST)
        if not len(rows):
            continue
        limit = _latency_limit(branches, record, rows, most_cycles)
        stretch: float | Numbers = known_stretch
        if np.any(np.isinf(limit)):
            stretch = stretches[rows]
            stretches[rows] = np.minimum(stretch**2, _MOST_STRETCH)
        seen = look_at(rows, np.minimum(stretch * seen, limit))
        left = seen < limit
        again = _order_beyond(branches, record, rows, seen)
        queue.add(again[left], rows[left], seen[left])
    return beyond


class _Queue:
    """Branches by when to look at them, each with the latency up to which it was seen.

    Of those that are due together, but for rounding, the quickest is first, then the smallest.
    """

    def __init__(self, order: Numbers, branches: Branches) -> None:
        """Begin with all of them."""
        shape, due = branches.shape, _rounded(order)
        self._rows = np.lexsort((shape.stages, shape.chips, _rounded(branches.latency), due))
        self._due, self._seen = due[self._rows], branches.latency[self._rows]
        self._rank = np.argsort(self._rows)
        self._at = 0
        self._again: list[tuple[float, int, float]] = []

    def __len__(self) -> int:
        return len(self._rows) - self._at + len(self._again)

    @property
    def first(self) -> float:
        """When the next one is due; infinite without one."""
        new = float(self._due[self._at]) if self._at < len(self._rows) else np.inf
        return min(new, self._again[0][0]) if self._again else new

    def take(self, n: int) -> tuple[Whole, Numbers, float]:
        """Take the first: which, up to which latency each was seen, and the last one's turn."""
        ranks = np.arange(self._at, min(self._at + n, len(self._rows)))
        again = [heapq.heappop(self._again) for _ in range(min(n, len(self._again)))]
        due = np.concatenate([[first for first, *_ in again], self._due[ranks]])
        rank = np.concatenate([np.array([i for _, i, _ in again], np.int64), ranks])
        seen = np.concatenate([[done for *_, done in again], self._seen[ranks]])
        chosen = np.lexsort((rank, due))[:n]
        is_chosen = np.zeros(len(due), bool)
        is_chosen[chosen] = True
        self._at += int(is_chosen[len(again) :].sum())
        for entry, is_taken in zip(again, is_chosen.tolist(), strict=False):
            if not is_taken:
                heapq.heappush(self._again, entry)
        return self._rows[rank[chosen]], seen[chosen], float(due[chosen[-1]])

    def add(self, order: Numbers, rows: Whole, seen: Numbers) -> None:
        """Put some back."""
        entries = _rounded(order).tolist(), self._rank[rows].tolist(), seen.tolist()
        for entry in zip(*entries, strict=True):
            heapq.heappush(self._again, entry)


def _rounded(values: Numbers) -> Numbers:
    """Round to seven digits: sums in another order are the same."""
    return values.astype(np.float32).astype(np.float64)


def least_in_flight(record: Record, latency: Numbers, shape: Shape) -> Numbers:
    """Count the micro-batches that wanted plans have in flight at least."""
    if not record.goal.flies:
        return np.ones(len(latency))
    needed = latency / record.period_limit(latency, shape) * _LESS
    return np.asarray(np.maximum(np.ceil(needed), 1))


def _may_be_wanted(
    branches: Branches, record: Record, rows: Whole, latency: Numbers
) -> Bool[np.ndarray, " branches"]:
    """Say which branches may have wanted plans that take longer than some latency."""
    shape = branches.shape.take(rows)
    period = np.maximum(branches.period[rows], latency / shape.stages)
    return record.wants(latency, period, shape)


def _order_beyond(branches: Branches, record: Record, rows: Whole, latency: Numbers) -> Numbers:
    """When to look at the plans of branches that take longer than some latency."""
    shape = branches.shape.take(rows)
    period = np.maximum(branches.period[rows], latency / shape.stages)
    return record.order(latency, period, shape)


def _latency_limit(branches: Branches, record: Record, rows: Whole, most_cycles: float) -> Numbers:
    """Bound the latency of plans of branches that may be wanted."""
    shape = branches.shape.take(rows)
    limit = np.asarray(np.minimum(record.latency_limit(shape), most_cycles))
    if not record.goal.needs_period or not record.goal.flies:
        return limit
    # No plan has a longer period than one at the least latency may have.
    period = record.period_limit(np.zeros(len(limit)), shape)
    flying = np.minimum(branches.most_in_flight[rows], shape.stages)
    return np.asarray(np.minimum(limit, np.where(np.isinf(period), np.inf, flying * period)))
