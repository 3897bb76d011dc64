"""How full chips get, against every routing there is, and against routings drawn at random."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, combinations_with_replacement, product
from math import comb

import numpy as np
import pytest

from sharding.slots.statistics import (
    Routing,
    busiest_tail,
    least_beyond,
    longest_list_tail,
    mean_of,
    worst_slots,
)


def slots_of(counts: dict[int, int], chip: int, n_local: int, capacity: int) -> int:
    """Slots that a chip needs: each expert takes as many as its rows fill."""
    own = range(chip * n_local, (chip + 1) * n_local)
    return sum(-(-counts.get(expert, 0) // capacity) for expert in own)


@pytest.mark.parametrize(
    ("rows", "top_k", "n_experts", "n_local"),
    [(1, 2, 5, 3), (2, 2, 5, 3), (3, 2, 4, 2), (4, 1, 4, 4), (4, 2, 3, 1), (3, 3, 6, 2)],
)
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_the_worst_case_is_that_of_the_worst_routing(
    rows: int, top_k: int, n_experts: int, n_local: int, capacity: int
) -> None:
    worst = 0
    choices = list(combinations(range(n_experts), top_k))
    for chosen in combinations_with_replacement(choices, rows):
        counts = Counter(expert for row in chosen for expert in row)
        for chip in range(-(-n_experts // n_local)):
            worst = max(worst, slots_of(counts, chip, n_local, capacity))
    routing = Routing(rows=rows, top_k=top_k, n_experts=n_experts)
    assert worst_slots(routing, n_local, capacity) == worst


def independent_counts(
    rows: int, chances: tuple[Fraction, ...]
) -> Iterator[tuple[Fraction, dict[int, int]]]:
    """Every number of rows of every expert, with its probability as a fraction."""
    for counts in product(range(rows + 1), repeat=len(chances)):
        p = Fraction(1)
        for n, q in zip(counts, chances, strict=True):
            p *= comb(rows, n) * q**n * (1 - q) ** (rows - n)
        yield p, dict(enumerate(counts))


@pytest.mark.parametrize("shares", [None, (1.0, 2.0, 0.0, 1.0, 4.0)])
@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_the_tail_is_the_sum_over_all_counts(
    shares: tuple[float, ...] | None, capacity: int
) -> None:
    rows, top_k, n_experts, n_local = 3, 2, 5, 2
    weights = [Fraction(share) for share in shares or (1,) * n_experts]
    chances = tuple(top_k * weight / sum(weights) for weight in weights)
    routing = Routing(rows=rows, top_k=top_k, n_experts=n_experts, shares=shares)
    tail = busiest_tail(routing, n_local, capacity)
    worst = worst_slots(routing, n_local, capacity)
    for slots in range(worst):
        exact = sum(
            p
            for p, counts in independent_counts(rows, chances)
            if any(slots_of(counts, chip, n_local, capacity) > slots for chip in range(3))
        )
        # Sums over an FFT of at most 32 entries.
        assert tail[slots] == pytest.approx(float(exact), abs=1e-12)
    assert np.all(np.diff(tail) <= 0)
    assert tail[worst] == 0


@pytest.mark.parametrize(("top_k", "n_experts", "n_local"), [(2, 5, 2), (3, 6, 3), (4, 9, 4)])
def test_one_row_is_counted_exactly(top_k: int, n_experts: int, n_local: int) -> None:
    tail = busiest_tail(Routing(rows=1, top_k=top_k, n_experts=n_experts), n_local, 1)
    busiest = [
        max(Counter(expert // n_local for expert in chosen).values())
        for chosen in combinations(range(n_experts), top_k)
    ]
    for slots, chance in enumerate(tail.tolist()):
        assert chance == pytest.approx(np.mean([n > slots for n in busiest]), abs=1e-15)


def drawn(rows: int, n_local: int, capacity: int, n_draws: int = 2000) -> np.ndarray:
    """Slots of the busiest chip where each row chooses 8 of 384 experts, none of them twice."""
    rng, found = np.random.default_rng(0), []
    for _ in range(n_draws):
        ids = np.argsort(rng.random((rows, 384)), axis=1)[:, :8]
        slots = -(-np.bincount(ids.reshape(-1), minlength=384) // capacity)
        found.append(np.add.reduceat(slots, range(0, 384, n_local)).max())
    return np.asarray(found)


@pytest.mark.parametrize(
    ("rows", "n_local", "capacity"), [(1, 11, 1), (1, 384, 1), (16, 12, 2), (64, 192, 4)]
)
def test_random_routings_need_what_is_said(rows: int, n_local: int, capacity: int) -> None:
    tail = busiest_tail(Routing(rows=rows, top_k=8, n_experts=384), n_local, capacity)
    slots = drawn(rows, n_local, capacity)
    # Three standard errors of 2,000 draws, and experts of a row that are not quite independent.
    assert mean_of(tail) == pytest.approx(slots.mean(), rel=0.03)
    for chance in (0.5, 0.1, 0.02):
        number = least_beyond(tail, chance)
        assert (slots > number).mean() <= chance * 1.1 + 3 * np.sqrt(chance / slots.size)


def test_the_busiest_of_36_chips() -> None:
    # 384 experts, 8 of them a token, 11 on a chip: 1.6 on average, 3 at the 99th percentile.
    tail = busiest_tail(Routing(rows=1, top_k=8, n_experts=384), 11, 1)
    assert mean_of(tail) == pytest.approx(1.6, abs=0.05)
    assert least_beyond(tail, 0.01) == 3


@pytest.mark.slow
def test_lists_are_as_long_as_random_routings_make_them() -> None:
    routing = Routing(rows=256, top_k=8, n_experts=384)
    tail = longest_list_tail(routing, 8, 48, 32)
    rng, found = np.random.default_rng(0), []
    for _ in range(1000):
        chips = np.argsort(rng.random((8, 32, 384)), axis=-1)[..., :8] // 48
        used = (chips[..., None] == np.arange(8)).any(2)  # share, row, chip
        found.append(used.sum(1).max())
    lengths = np.asarray(found)
    assert mean_of(tail) == pytest.approx(lengths.mean(), rel=0.02)
    assert (lengths > least_beyond(tail, 0.05)).mean() <= 0.08


def test_hot_experts_need_more_slots() -> None:
    even = Routing(rows=32, top_k=2, n_experts=16)
    hot = Routing(rows=32, top_k=2, n_experts=16, shares=(9.0, *(1.0,) * 15))
    assert mean_of(busiest_tail(hot, 4, 2)) > mean_of(busiest_tail(even, 4, 2)) + 2
