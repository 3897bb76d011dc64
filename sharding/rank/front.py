"""The front between two rates: what nothing else equals or exceeds in both."""

import math

import numpy as np
from jaxtyping import Bool, Float


def on_front(
    first: Float[np.ndarray, " points"], second: Float[np.ndarray, " points"]
) -> Bool[np.ndarray, " points"]:
    """Mark the points that no other equals or exceeds in both rates; of equal points the first.

    Args:
        first: a rate of each point.
        second: another rate of each point.

    Returns:
        One mark per point.
    """
    front = np.zeros(len(first), bool)
    best = -math.inf
    for i in np.lexsort((-second, -first)):  # stable: of equal points the first comes first
        if second[i] > best:
            front[i] = True
            best = second[i]
    return front
