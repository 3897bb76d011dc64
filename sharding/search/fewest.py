"""The smallest part of a machine on which a model fits."""

from collections.abc import Callable
from dataclasses import replace

from lpu_jax.machine.mixed import Machine, MixedSystem, Split
from lpu_jax.machine.system import System

from ..scenario import Scenario
from ..space.cores import EVERYTHING, Choices
from .drafts import chips_left
from .find import fits_somehow


def smallest_part(scenario: Scenario, choices: Choices = EVERYTHING) -> Machine | None:
    """Find the smallest part of a scenario's machine on which some plan fits.

    More chips are never worse: a plan for fewer is one for more, so numbers are found by bisection.
    Of a mixed system it has the fewest LPUs, and of GPUs the fewest beside these; those that only
    take prompts in hold the model and its cache too.

    Args:
        scenario: the model, the machine, the request, the formats and who drafts.
        choices: what plans may be.

    Returns:
        The first chips of the machine, or of both its machines, as few as are enough; None: not
        even all of them are.
    """
    mixed = scenario.mixed
    if mixed is None:
        return _part_of(scenario, scenario.system, choices)
    match mixed.split:
        case Split.ATTENTION_FFN:
            return _both_pools(scenario, mixed, choices)
        case Split.PREFILL_DECODE:
            prompts = replace(scenario, system=mixed.gpus, mixed=None, expert_shares=None)
            gpus = _part_of(prompts, mixed.gpus, choices)
            lpus = _part_of(replace(scenario, mixed=None), mixed.lpus, choices)
        case Split.DRAFT_VERIFY:
            alone = replace(scenario, mixed=None, draft=None)
            gpus = _part_of(alone, mixed.gpus, choices)
            lpus = _part_of(scenario.draft_step, mixed.lpus, choices)
    return None if gpus is None or lpus is None else _parts(mixed, gpus, lpus)


def _part_of(scenario: Scenario, system: System, choices: Choices) -> System | None:
    """Find the fewest first chips of a system that are enough for a plan and a draft model."""
    left = chips_left(scenario)

    def is_enough(n_chips: int) -> bool:
        if not (own := left(n_chips)):
            return False
        return fits_somehow(replace(scenario, system=replace(system, n_chips=own)), choices)

    return _first_of(system, _fewest(system.n_chips, is_enough))


def _both_pools(scenario: Scenario, mixed: MixedSystem, choices: Choices) -> MixedSystem | None:
    """Find the fewest LPUs for the FFNs, and the fewest GPUs for attention beside them."""

    def fit(gpus: System | None, lpus: System | None) -> bool:
        assert gpus is not None
        assert lpus is not None
        return fits_somehow(scenario.on(_parts(mixed, gpus, lpus)), choices)

    few = _fewest(mixed.lpus.n_chips, lambda n: fit(mixed.gpus, _first_of(mixed.lpus, n)))
    lpus = _first_of(mixed.lpus, few)
    if lpus is None:
        return None
    few = _fewest(mixed.gpus.n_chips, lambda n: fit(_first_of(mixed.gpus, n), lpus))
    gpus = _first_of(mixed.gpus, few)
    assert gpus is not None  # all of them were enough
    return _parts(mixed, gpus, lpus)


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int | None:
    """Bisect for the least number that is enough; None: not even the most is."""
    low, high = 0, most
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _first_of(system: System, n_chips: int | None) -> System | None:
    """Take a system's first chips."""
    if n_chips is None:
        return None
    return replace(system, n_chips=n_chips, name=f"{n_chips} of {system.name}")


def _parts(mixed: MixedSystem, gpus: System, lpus: System) -> MixedSystem:
    """Take parts of both machines for the same split."""
    name = f"{gpus.name} and {lpus.name}:{mixed.split}"
    return replace(mixed, name=name, gpus=gpus, lpus=lpus)
