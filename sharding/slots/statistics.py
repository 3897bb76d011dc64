"""How full the chips of a mixture get: probabilities over the routing of a step.

Rows choose experts independently of each other; how many rows choose an expert is binomial. The
experts of a row, and the chips, are taken as independent too, though a row chooses a fixed number
of them: where few chips hold many experts, an overflow is said to be several times as probable as
it is, and the mean of the busiest chip is a little off. One row is counted exactly. Not modelled:
rows of a sequence that choose alike; a histogram of the user's says which experts are chosen more
often.
"""

from dataclasses import dataclass
from functools import lru_cache, reduce
from math import comb

import numpy as np
from jaxtyping import Float

#: A table of counts ends so many standard deviations, and so many rows, from the mean: what is
#: left out has a probability below 1e-30.
_DEVIATIONS, _ROWS = 12, 40


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Rows that each choose `top_k` of `n_experts` experts."""

    rows: int
    top_k: int
    n_experts: int
    #: how often each expert is chosen, in any unit; None: all alike
    shares: tuple[float, ...] | None = None

    @property
    def probabilities(self) -> Float[np.ndarray, " experts"]:
        """Probability that a row chooses each expert."""
        shares = np.ones(self.n_experts) if self.shares is None else np.asarray(self.shares)
        return np.asarray(np.minimum(self.top_k * shares / shares.sum(), 1.0))


@lru_cache(maxsize=4096)
def busiest_tail(routing: Routing, n_local: int, capacity: int) -> Float[np.ndarray, " slots"]:
    """Probability that a step needs more slots on some chip, for 0, 1, ... slots of each.

    Args:
        routing: the rows.
        n_local: experts of a chip; the last chip may have fewer.
        capacity: rows of a slot; an expert takes as many slots as its rows fill.

    Returns:
        It falls from the first entry to the last; beyond it the probability is 0.
    """
    worst = worst_slots(routing, n_local, capacity)
    if routing.rows == 1 and routing.shares is None:
        return _tail_of_one_row(routing, n_local, worst)
    chances = routing.probabilities
    if routing.shares is None:
        one = _slots_of_expert(routing.rows, float(chances[0]), capacity)
        whole, rest = divmod(routing.n_experts, n_local)
        powers = [(n_local, whole), (rest, 1 if rest else 0)]
        tails = [(_tail([one], worst, power), times) for power, times in powers if times]
    else:
        shares = [_slots_of_expert(routing.rows, float(q), capacity) for q in chances]
        tails = [
            (_tail(shares[first : first + n_local], worst), 1)
            for first in range(0, routing.n_experts, n_local)
        ]
    return _any_of(tails)


@lru_cache(maxsize=4096)
def longest_list_tail(
    routing: Routing, n_chips: int, n_local: int, n_own: int
) -> Float[np.ndarray, " places"]:
    """Probability that some chip has more rows for another, for 0, 1, ... places of each list.

    Args:
        routing: the rows, shared out evenly to the chips.
        n_chips: chips over which experts and rows are shared out.
        n_local: experts of a chip.
        n_own: rows of a chip's share.
    """
    if routing.shares is None:
        left = comb(routing.n_experts - n_local, routing.top_k)
        chances = [1 - left / comb(routing.n_experts, routing.top_k)]
        times = n_chips**2
    else:
        missed = np.log1p(-np.minimum(routing.probabilities, 1 - 1e-15))
        firsts = range(0, routing.n_experts, n_local)
        chances = [-np.expm1(missed[first : first + n_local].sum()) for first in firsts]
        times = n_chips
    tails = [(_tail([_counts(n_own, float(q))], n_own), times) for q in chances]
    return _any_of(tails)


def worst_slots(routing: Routing, n_local: int, capacity: int) -> int:
    """Slots that a chip needs at worst, whatever the routing.

    Rows choose as many experts of the chip as there are; each begins a slot with one row, and
    every `capacity` rows more begin another.
    """
    pairs = routing.rows * min(routing.top_k, n_local)
    begun = min(n_local, pairs)
    return min(n_local * -(-routing.rows // capacity), begun + (pairs - begun) // capacity)


def mean_of(tail: Float[np.ndarray, " n"]) -> float:
    """Mean of a whole number, from the probabilities that it exceeds 0, 1, ..."""
    return float(tail.sum())


def least_beyond(tail: Float[np.ndarray, " n"], probability: float) -> int:
    """The least number that is exceeded with a probability of at most that."""
    return int(np.searchsorted(-tail, -probability))


def _counts(rows: int, chance: float) -> Float[np.ndarray, " counts"]:
    """Probabilities of 0, 1, ... of `rows` choosing an expert: the binomial distribution."""
    if chance <= 0 or chance >= 1:
        certain = np.zeros(rows + 1 if chance >= 1 else 1)
        certain[-1] = 1.0
        return certain
    mean, deviation = rows * chance, np.sqrt(rows * chance * (1 - chance))
    most = min(rows, int(mean + _DEVIATIONS * deviation) + _ROWS)
    # Each from the one before it: p(i + 1) / p(i) = (rows - i) / (i + 1) * chance / (1 - chance).
    i = np.arange(most)
    steps = np.log((rows - i) / (i + 1)) + np.log(chance) - np.log1p(-chance)
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    found = np.exp(logs - logs.max())
    return np.asarray(found / found.sum())


def _tail_of_one_row(routing: Routing, n_local: int, worst: int) -> Float[np.ndarray, " slots"]:
    """Count the choices of one row, all alike, that take more than 0, 1, ... experts of a chip."""
    whole, rest = divmod(routing.n_experts, n_local)
    held = [n_local] * whole + [rest] * (rest > 0)
    everything, tail = comb(routing.n_experts, routing.top_k), []
    for most in range(worst + 1):
        ways = [1] + [0] * routing.top_k  # to choose 0, 1, ... experts, at most so many of a chip
        for n in held:
            ways = [
                sum(comb(n, taken) * ways[k - taken] for taken in range(min(most, k) + 1))
                for k in range(routing.top_k + 1)
            ]
        tail.append(1 - ways[-1] / everything)
    return np.asarray(tail)


def _slots_of_expert(rows: int, chance: float, capacity: int) -> Float[np.ndarray, " slots"]:
    """Probabilities that an expert takes 0, 1, ... slots."""
    counts = _counts(rows, chance)
    return np.bincount(-(-np.arange(counts.size) // capacity), weights=counts)


def _tail(
    parts: list[Float[np.ndarray, " _"]], worst: int, times: int = 1
) -> Float[np.ndarray, " n"]:
    """Probability that a sum exceeds 0, 1, ..., up to its worst case.

    Args:
        parts: distributions of the independent parts.
        worst: what the sum never exceeds.
        times: how often each part occurs.
    """
    size = 1 + times * sum(part.size - 1 for part in parts)
    padded = 1 << (size - 1).bit_length()
    spectrum = reduce(np.multiply, (np.fft.rfft(part, padded) for part in parts))
    found = np.maximum(np.fft.irfft(spectrum**times, padded)[:size], 0.0)
    beyond = np.cumsum(found[::-1])[::-1]
    tail = np.append(beyond[1:], 0.0)[: worst + 1]
    tail[worst:] = 0.0
    return np.asarray(np.minimum(tail, 1.0))


def _any_of(tails: list[tuple[Float[np.ndarray, " _"], int]]) -> Float[np.ndarray, " n"]:
    """Probability that any of several independent numbers exceeds 0, 1, ..."""
    longest = max(tail.size for tail, _ in tails)
    none = np.zeros(longest)
    with np.errstate(divide="ignore"):
        for tail, times in tails:
            none[: tail.size] += times * np.log1p(-tail)
    return np.asarray(np.abs(np.expm1(none)))
