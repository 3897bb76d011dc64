"""Time compiled calls against each other, in turns, so that a slow moment touches all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def shortest_s(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Shortest time of each call in seconds; the first round compiles and does not count.

    `clock=time.process_time` counts the work of all threads, whatever else the machine does.
    """
    best = dict.fromkeys(calls, float("inf"))
    for i in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            if i:
                best[name] = min(best[name], clock() - start)
    return best


def ratios(
    calls: Mapping[str, Callable[[], Any]],
    unit: str,
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Milliseconds of each call, and their ratios to the call named `unit`."""
    best = shortest_s(calls, repeats, clock)
    return {
        "ms": {name: round(1e3 * s, 3) for name, s in best.items()},
        f"times_{unit}": {name: round(s / best[unit], 2) for name, s in best.items()},
    }
