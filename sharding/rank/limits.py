"""Limits that plans must keep to, and what is said where none does."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.predicates import is_number
from lpu_jax.quantities import format_seconds

from ..predict.evaluate import Evaluation
from ..request import Request
from .first_token import first_tokens

_LIMITS = ("min_rate", "max_first_token_s")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a user asks of every plan."""

    min_rate: float | None  #: tokens/s of one user
    max_first_token_s: float | None
    prompt: int  #: tokens of the prompt

    def __post_init__(self) -> None:
        """Refuse limits that are no positive numbers.

        Raises:
            LpuError: says which.
        """
        for name in _LIMITS:
            given = getattr(self, name)
            if given is not None and (not is_number(given) or not 0 < given < np.inf):
                raise LpuError(f"{name} is {described(given)}; it must be a number above 0.")

    def in_words(self, invariant: str) -> str:
        """Say what plans keep to, bits included, in a sentence; empty if it is nothing."""
        asked = [] if invariant == "off" else [f"the bits of --invariant {invariant}"]
        if self.min_rate is not None:
            asked.append(f"at least {self.min_rate:g} tokens/s to one user")
        if self.max_first_token_s is not None:
            asked.append(f"the first token in {format_seconds(self.max_first_token_s)}")
        return f"Only plans with {' and '.join(asked)}." if asked else ""

    def as_dict(self) -> dict[str, float | None]:
        """The limits as plain values; None: there is none."""
        return {name: getattr(self, name) for name in _LIMITS}

    def most_latency_s(self, request: Request) -> float:
        """Return the time that a step may take."""
        return np.inf if self.min_rate is None else request.kept_tokens / self._least_rate

    @property
    def alone(self) -> "dict[str, Limits]":
        """Each limit by itself, by the objective whose best plan keeps to it if any plan does."""
        each = {
            "first-token": replace(self, min_rate=None),
            "latency": replace(self, max_first_token_s=None),
        }
        given = (self.max_first_token_s, self.min_rate)
        return {by: one for (by, one), limit in zip(each.items(), given, strict=True) if limit}

    def kept(self, evaluation: Evaluation) -> Bool[np.ndarray, " plans"]:
        """Say which plans keep to the limits, whether they fit or not."""
        kept = self._is_quick(evaluation)
        if self.max_first_token_s is not None:
            kept &= self._first_token_s(evaluation) <= self.max_first_token_s
        return kept

    def excluded(self, evaluation: Evaluation, order: list[int]) -> str:
        """Say which limit leaves no plan, by how much, and what the nearest is.

        Args:
            evaluation: of plans, some of which fit.
            order: those that fit.
        """
        rates, is_quick = evaluation.tokens_per_s_per_user[order], self._is_quick(evaluation)[order]
        if self.min_rate is not None and not is_quick.any():
            best = float(rates.max())
            return (
                f"no plan gives {self.min_rate:g} tokens/s to one user: the fastest that fits, "
                f"{evaluation.plans[order[int(rates.argmax())]].name}, gives {best:.0f}, "
                f"{1 - best / self.min_rate:.1%} less."
            )
        times = np.where(is_quick, self._first_token_s(evaluation)[order], np.inf)
        assert self.max_first_token_s is not None
        best, plan = float(times.min()), evaluation.plans[order[int(times.argmin())]]
        which = "" if self.min_rate is None else f" found of {self.min_rate:g} tokens/s to one user"
        return (
            f"no plan{which} has its first token in {format_seconds(self.max_first_token_s)}: the "
            f"earliest that fits, {plan.name}, has it after "
            f"{format_seconds(best)}, {best / self.max_first_token_s - 1:.1%} later."
        )

    def _is_quick(self, evaluation: Evaluation) -> Bool[np.ndarray, " plans"]:
        return np.asarray(evaluation.tokens_per_s_per_user >= self._least_rate)

    @property
    def _least_rate(self) -> float:
        """The rate, less what rounding takes from it."""
        return 0.0 if self.min_rate is None else self.min_rate * (1 - 1e-9)

    def _first_token_s(self, evaluation: Evaluation) -> Float[np.ndarray, " plans"]:
        found = first_tokens(evaluation.plans, evaluation.fits, evaluation.scenario, self.prompt)
        return found.time_to_first_token_s
