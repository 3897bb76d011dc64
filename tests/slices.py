"""Many cases as several tests, of which a few run every time and the others are long ones."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def slow_then_long(seeds: range, short: int) -> list[Any]:
    """Share out the seeds of cases among tests.

    Args:
        seeds: of all cases.
        short: how many one test takes; only the first test is among the slow ones.
    """
    parts = [seeds[i : i + short] for i in range(0, len(seeds), short)]
    marks = [pytest.mark.slow] + [pytest.mark.long] * (len(parts) - 1)
    return [
        pytest.param(part, marks=mark, id=f"{part.start}-{part.stop - 1}")
        for part, mark in zip(parts, marks, strict=True)
    ]


def some_slow(cases: Sequence[Any], count: int) -> list[Any]:
    """Keep cases spread evenly among the slow tests; the others are long ones.

    Args:
        cases: values of one parameter, or tuples of values of several.
        count: how many are slow; the first one is among them.
    """
    kept = {i * len(cases) // count for i in range(count)}
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=pytest.mark.slow if i in kept else pytest.mark.long,
        )
        for i, case in enumerate(cases)
    ]


def pairs_first(*parameters: Sequence[Any]) -> list[Any]:
    """Combine all values of parameters; what is not needed for every pair to occur is long.

    Args:
        parameters: the values of each one, bare or made by `pytest.param`.
    """
    seen: set[frozenset[tuple[int, int]]] = set()
    cases = []
    for chosen in itertools.product(*(list(enumerate(values)) for values in parameters)):
        places = enumerate(place for place, _ in chosen)
        pairs = {frozenset(pair) for pair in itertools.combinations(places, 2)}
        params = [
            value if hasattr(value, "marks") else pytest.param(value, id=str(value))
            for _, value in chosen
        ]
        cases.append(
            pytest.param(
                *itertools.chain.from_iterable(param.values for param in params),
                marks=() if pairs - seen else pytest.mark.long,
                id="-".join(str(param.id) for param in params),
            )
        )
        seen |= pairs
    return cases
