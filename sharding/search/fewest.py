"""The smallest part of a machine on which a model fits."""

from dataclasses import replace

from ..scenario import Scenario
from ..space.cores import EVERYTHING, Choices
from .drafts import chips_left
from .find import fits_somehow


def fewest_chips(scenario: Scenario, choices: Choices = EVERYTHING) -> int | None:
    """Find how many of a machine's first chips are enough for a plan and a draft model.

    More chips are never worse: a plan for fewer is one for more, so the number is found by
    bisection.

    Args:
        scenario: the model, the machine, the request, the formats and who drafts.
        choices: what plans may be.

    Returns:
        The number of chips; None if even the whole machine is too small.
    """
    left = chips_left(scenario)

    def is_enough(n_chips: int) -> bool:
        if not (own := left(n_chips)):
            return False
        part = replace(scenario.system, n_chips=own)
        return fits_somehow(replace(scenario, system=part), choices)

    low, high = 0, scenario.system.n_chips
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
