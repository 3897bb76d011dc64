"""Many random cases as several tests: the first few are slow ones, the others long ones."""

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
