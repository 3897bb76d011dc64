"""What a user says of a chip, its watts and what an hour of it costs, and what follows of rates.

Counted are the chips of a plan, its draft model's too, all the time; chips that it leaves unused
are not. What the watts and the cost include (host, cooling, network, power of the hall) is the
user's to decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.predicates import is_number

_SECONDS_PER_HOUR = 3600
_MILLION = 1e6
#: Figures from which finite numbers follow, in any currency.
_LEAST, _MOST = 1e-12, 1e12

#: A number for every system, or one by a system's name.
Figure = float | Mapping[str, float] | None


@dataclass(frozen=True, kw_only=True)
class ChipFigures:
    """Figures of a chip; None: not given."""

    chip_watts: float | None = None
    chip_hour_cost: float | None = None  #: in any currency

    def __post_init__(self) -> None:
        """Refuse figures that are no positive numbers.

        Raises:
            LpuError: says which.
        """
        for name, given in vars(self).items():
            if given is not None and not (is_number(given) and _LEAST <= given <= _MOST):
                raise LpuError(
                    f"{name} is {described(given)}; it must be a number above 0, at least "
                    f"{_LEAST:g} and at most {_MOST:g}."
                )

    def tokens_per_s_per_mw(self, tokens_per_s_per_chip: float) -> float | None:
        """Return the rate of as many chips as a megawatt feeds."""
        if self.chip_watts is None:
            return None
        return tokens_per_s_per_chip / self.chip_watts * _MILLION

    def cost_per_million_tokens(self, tokens_per_s_per_chip: float) -> float | None:
        """Return what the chips cost while they make a million tokens."""
        if self.chip_hour_cost is None:
            return None
        return self.chip_hour_cost / _SECONDS_PER_HOUR / tokens_per_s_per_chip * _MILLION

    def as_dict(self) -> dict[str, float]:
        """The figures that were given."""
        return {name: float(value) for name, value in vars(self).items() if value is not None}

    @property
    def in_words(self) -> str:
        """What was given and what is counted, in a sentence; empty if nothing was."""
        told = []
        if self.chip_watts is not None:
            told.append(f"{self.chip_watts:g} W a chip")
        if self.chip_hour_cost is not None:
            told.append(f"{self.chip_hour_cost:g} for an hour of a chip")
        given = " and ".join(told)
        return (
            given and f"given: {given}, for the chips of a plan; those it leaves are not counted."
        )


NO_FIGURES = ChipFigures()
#: Their names.
FIGURES = tuple(vars(NO_FIGURES))


def figures_by_system(
    systems: Sequence[str], chip_watts: Figure, chip_hour_cost: Figure
) -> dict[str, ChipFigures]:
    """Give each system its figures: one number is that of all, a mapping has them by name.

    Raises:
        LpuError: a figure is no positive number, or of a system that is not among them.
    """
    for name, given in (("chip_watts", chip_watts), ("chip_hour_cost", chip_hour_cost)):
        if isinstance(given, Mapping):
            for system in given:
                if system not in systems:
                    raise LpuError(
                        f"{name} was given for {described(system)}; systems are "
                        f"{', '.join(systems)}."
                    )
    return {
        system: ChipFigures(
            chip_watts=_of(chip_watts, system), chip_hour_cost=_of(chip_hour_cost, system)
        )
        for system in systems
    }


def _of(given: Figure, system: str) -> float | None:
    return given.get(system) if isinstance(given, Mapping) else given
