"""How an objective orders plans: rates as columns, of one scenario or of several.

A front keeps what nothing else equals or beats on its two axes; all else is one order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from ..predict.evaluate import Numbers
from ..search.goals import FRONTS
from .front import on_front

Objective = Literal[
    "latency",
    "throughput",
    "per-chip",
    "chips",
    "energy",
    "first-token",
    "pareto",
    "latency,throughput",
    "latency,per-chip",
    "latency,chips",
]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What plans are ordered by, one entry per plan."""

    per_user: Numbers  #: tokens/s of one sequence
    total: Numbers  #: of all copies
    per_chip: Numbers
    chips: Int[np.ndarray, " plans"]  #: of one copy
    first_token_s: Numbers  #: NaN: not asked for
    energy_j: Numbers  #: of a token, upper bound; NaN: not public, or not asked for


#: Two columns by the objective: the larger is better, and the second decides between equals.
_ORDERS: Mapping[str, Callable[[Rates], tuple[Numbers, Numbers]]] = {
    "latency": lambda rates: (rates.per_user, -rates.chips),
    "throughput": lambda rates: (rates.total, rates.per_user),
    "per-chip": lambda rates: (rates.per_chip, rates.per_user),
    "chips": lambda rates: (-rates.chips, rates.per_user),
    "energy": lambda rates: (-rates.energy_j, rates.per_user),
    "first-token": lambda rates: (-rates.first_token_s, rates.per_user),
}


def best_first(rates: Rates, objective: Objective) -> list[int]:
    """Order plans by an objective, best first; equal ones keep their order.

    Args:
        rates: of plans that fit.
        objective: if it is a front, other plans are left out.

    Returns:
        The numbers of the plans.
    """
    first, second = _ORDERS["latency" if objective in FRONTS else objective](rates)
    order = np.lexsort((-second, -first))
    if objective in FRONTS:
        other, _ = _ORDERS[FRONTS[objective]](rates)
        order = order[on_front(rates.per_user[order], np.asarray(other[order], np.float64))]
    return [int(i) for i in order]
