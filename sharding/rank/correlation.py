"""Rank correlation, and how much of it chance gives.

Not modelled: exact distributions for few samples.
"""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float | None:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Returns:
        From -1 to 1; None if either does not vary.
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


def chance_level(n_samples: int, n_constants: int) -> float:
    """Bound rank correlations that arise by chance.

    Args:
        n_samples: independent samples.
        n_constants: constants that are looked at together.

    Returns:
        What the largest of them exceeds in 5 % of cases if none has an influence.

    Fidelity: approximate: normal distribution of the coefficient, Bonferroni's bound.
    """
    z = NormalDist().inv_cdf(1 - 0.05 / 2 / n_constants)
    return min(1.0, z / math.sqrt(max(1, n_samples - 1)))


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)
