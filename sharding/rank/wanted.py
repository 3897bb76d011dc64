"""Which plans of a scenario are wanted: an objective, limits, promises of bits, how many."""

from dataclasses import dataclass

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError, unknown
from lpu_jax.predicates import is_whole

from ..legal import wide_reason
from ..predict.energy import cannot_order
from ..scenario import Scenario, check_formats, check_policy
from ..search.find import INVARIANT
from .limits import Limits
from .ranking import OBJECTIVES, Objective


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of the plans of a scenario."""

    objective: Objective
    top: int  #: rows that are kept
    invariant: str  #: which bits plans must give
    limits: Limits

    def __post_init__(self) -> None:
        """Refuse words that mean nothing, or a number of rows that cannot be kept.

        Raises:
            LpuError: says which.
        """
        if self.objective not in OBJECTIVES:
            raise unknown("objective", str(self.objective), OBJECTIVES)
        if self.invariant not in INVARIANT:
            raise unknown("invariant", str(self.invariant), INVARIANT)
        check_count("top", self.top)


def check_count(name: str, number: object) -> None:
    """Refuse what is no number of things.

    Raises:
        LpuError: it is no whole number of at least 1.
    """
    if not is_whole(number) or number < 1:
        raise LpuError(f"{name} is {described(number)}; it must be a whole number of at least 1.")


def check_min_chips(given: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        LpuError: says what was given.
    """
    if not isinstance(given, bool):
        raise LpuError(f"min_chips is {described(given)}; it must be True or False.")


def check_asked(asked: Scenario, wanted: Wanted) -> None:
    """Refuse a scenario that no plan can serve, or that does not tell what is wanted.

    Raises:
        LpuError: formats that the model or the chip cannot take, or energy where no power is
            public.
    """
    if wanted.objective == "energy" and (why := cannot_order(asked.machine)) is not None:
        raise LpuError(f"objective energy: {why}")
    if wanted.invariant == "wide" and asked.model.moe is not None:
        reason = wide_reason("moe", asked.policy)
        if reason is not None:
            raise LpuError(f"invariant wide leaves no plan: {reason.sentence}")
    check_policy(asked.policy, asked.model, asked.system)
    if asked.draft is not None:
        check_formats(asked.draft.policy, asked.draft.model, asked.system)
