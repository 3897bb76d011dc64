"""Plans with the earliest first token of a prompt.

For each length of a chunk the plans are searched whose bound is least: the first chunk's way, and
the time of the slowest stage for each further one but the last. The first token of all that are
found is timed: the best of each form, then whatever may be earlier than the earliest of these. What
is left has a bound above the last of a search, or above the earliest; while a bound is below that,
more plans are searched for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..plan import Plan
from ..predict.evaluate import evaluate
from ..predict.serving import chunk_lengths, prefill
from ..scenario import Scenario
from ..space.cores import EVERYTHING, Choices
from ..space.plan_table import PlanTable
from .find import Searched, found_by
from .goals import Goal, Numbers, Shape
from .records import Best, BestPlans

#: New tokens of a chunk that is often best.
_OFTEN_BEST = 64
#: How often the plans searched for are doubled.
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """Plans by their first token, earliest first."""

    plans: PlanTable
    searched: Searched  #: of the first of the searches
    is_proven: bool  #: no other plan of the space has an earlier first token than the first


def find_first_tokens(
    scenario: Scenario, prompt_tokens: int, top: int, *, choices: Choices = EVERYTHING
) -> FirstTokens | None:
    """Find the plans that fit whose first token is earliest; None if none fits.

    Args:
        scenario: of the decode steps.
        prompt_tokens: tokens of each sequence's prompt.
        top: how many plans are wanted.
        choices: what plans may be.
    """
    clock_hz = float(scenario.system.chip.clock_hz)
    found: dict[Plan, float] = {}  # first token of each that fits, in s
    searched: Searched | None = None

    def search(make: type[Best], wanted: int, rank: int) -> float:
        """Search for plans that may beat the one of a rank; return below what all are known."""
        nonlocal searched
        least_left_s = np.inf
        for chunk in _useful(chunk_lengths(scenario), prompt_tokens):
            times = sorted(found.values())
            last_s = times[rank - 1] if len(times) >= rank else np.inf
            record = make(_goal((prompt_tokens - 1) // chunk), wanted, last_s * clock_hz)
            plans, covered = found_by(record, _step(scenario, chunk), choices)
            found.update(
                _timed([p for p in plans or () if p not in found], scenario, prompt_tokens)
            )
            least_left_s = min(least_left_s, record.threshold / clock_hz)
            searched = searched or covered
        return least_left_s

    wanted = max(2 * top, 8)
    search(Best, wanted, top)
    if not found:
        return None
    of_forms, earliest_s = set(found), min(found.values())
    # Of plans of one form the earliest need not be the one with the least bound.
    for _ in range(_ROUNDS):
        least_left_s = search(BestPlans, wanted, 1)
        is_proven = min(found.values()) <= least_left_s
        if is_proven:
            break
        wanted *= 2
    assert searched is not None
    # What is no earlier differs from them in what no row of a comparison shows.
    best = [plan for plan, first_s in found.items() if plan in of_forms or first_s < earliest_s]
    best = sorted(best, key=lambda plan: found[plan])[:top]
    return FirstTokens(plans=PlanTable.of(best), searched=searched, is_proven=is_proven)


def _timed(plans: Sequence[Plan], scenario: Scenario, prompt_tokens: int) -> dict[Plan, float]:
    """Time the first token of the plans that fit, in s."""
    if not plans:
        return {}
    found = evaluate(plans, scenario)
    kept = found.plans.take(np.flatnonzero(found.fits).tolist())
    if not len(kept):
        return {}
    times = prefill(kept, np.ones(len(kept), bool), scenario, prompt_tokens).latency_s
    return dict(zip(kept, times.tolist(), strict=True))


def _useful(lengths: tuple[int, ...], prompt_tokens: int) -> tuple[int, ...]:
    """Leave out chunks that are longer than the shortest one that takes the whole prompt.

    Those that are often best come first, so that the others have something to beat.
    """
    whole = min((n for n in lengths if n >= prompt_tokens), default=lengths[-1])
    useful = [n for n in lengths if n <= whole]
    return tuple(sorted(useful, key=lambda n: abs(math.log2(n / _OFTEN_BEST))))


def _step(scenario: Scenario, tokens: int) -> Scenario:
    """A step of prefill; rings of sliding layers hold the longest chunk."""
    longest = max(chunk_lengths(scenario)[-1], scenario.request.longest_step)
    asked = replace(scenario.request, tokens=tokens, most_tokens=longest, acceptance=None)
    return replace(scenario, request=asked, draft=None)


def _goal(n_before: int) -> Goal:
    """Bound the first token of a prompt with so many chunks before its last."""
    n_more = max(n_before - 1, 0)

    def cost(latency: Numbers, period: Numbers, shape: Shape) -> Numbers:
        # A period may have no bound.
        return np.asarray(latency + n_more * period if n_more else latency)

    def latency_cycles(most: float, shape: Shape) -> Numbers:
        return np.asarray(most / (1 + n_more / shape.stages))

    def period_cycles(most: float, shape: Shape) -> Numbers:
        return np.full(len(shape.stages), most / n_more if n_more else np.inf)

    return Goal(
        cost=cost,
        latency_cycles=latency_cycles,
        period_cycles=period_cycles,
        needs_period=n_more > 0,
        flies=False,
    )
