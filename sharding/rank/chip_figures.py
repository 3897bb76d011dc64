"""What a user says of a chip, its watts and what an hour of it costs, and what follows of rates.

Counted are the chips of a plan, its draft model's too, all the time; chips that it leaves unused
are not. What the watts and the cost include (host, cooling, network, power of the hall) is the
user's to decide. Of a mixed system each pool has figures of its own, by the name of its machine;
where GPUs only take prompts in, the chips that decode are the LPUs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import Machine, MixedSystem
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
        """What was given, in a few words; empty if nothing was."""
        told = []
        if self.chip_watts is not None:
            told.append(f"{self.chip_watts:g} W a chip")
        if self.chip_hour_cost is not None:
            told.append(f"{self.chip_hour_cost:g} for an hour of a chip")
        return " and ".join(told)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of the chips of a machine."""

    #: by the name of the machine; of a mixed system by those of its GPUs and of its LPUs
    by_machine: Mapping[str, ChipFigures]

    def over(self, chips: Sequence[int]) -> ChipFigures:
        """Average over the chips of a plan; what some of them lack is not known of all.

        Args:
            chips: how many there are of each machine, in order.
        """
        counted = [(n, own) for n, own in zip(chips, self.by_machine.values(), strict=True) if n]
        if len(counted) == 1:
            return counted[0][1]

        def mean(name: str) -> float | None:
            values = [getattr(own, name) for _, own in counted]
            if None in values:
                return None
            return float(np.average(values, weights=[n for n, _ in counted]))

        return ChipFigures(**{name: mean(name) for name in _NAMES})

    def as_dict(self) -> dict[str, float]:
        """The figures that were given; those of pools are named `gpus.chip_watts` and so on."""
        if len(self.by_machine) == 1:
            (own,) = self.by_machine.values()
            return own.as_dict()
        return {
            f"{pool}.{name}": value
            for pool, own in zip(MixedSystem.POOLS, self.by_machine.values(), strict=True)
            for name, value in own.as_dict().items()
        }

    @property
    def in_words(self) -> str:
        """What was given and what is counted, in a sentence; empty if nothing was."""
        told = {name: own.in_words for name, own in self.by_machine.items()}
        if not any(told.values()):
            return ""
        each = [f"{words} of {name}" for name, words in told.items() if words]
        words = ", ".join(each) if len(set(told.values())) > 1 else next(iter(told.values()))
        return f"given: {words}, for the chips of a plan; those it leaves are not counted."


_NAMES = tuple(vars(ChipFigures()))
#: What they are called in rows.
FIGURES = (*_NAMES, *(f"{pool}.{name}" for pool in MixedSystem.POOLS for name in _NAMES))


def figures_by_system(
    machines: Sequence[Machine], chip_watts: Figure, chip_hour_cost: Figure
) -> dict[str, Figures]:
    """Give each system its figures: one number is that of all, a mapping has them by name.

    Names are those of the systems, and of the machines of mixed ones.

    Raises:
        LpuError: a figure is no positive number, or of a system that is not among them.
    """
    named = {machine.name: _names_of(machine) for machine in machines}
    known = dict.fromkeys(
        name for names in named.values() for own in names.values() for name in own
    )
    for name, given in (("chip_watts", chip_watts), ("chip_hour_cost", chip_hour_cost)):
        for system in given if isinstance(given, Mapping) else ():
            if system not in known:
                raise LpuError(
                    f"{name} was given for {described(system)}; systems are {', '.join(known)}."
                )
    return {
        machine: Figures(
            by_machine={
                part: ChipFigures(
                    chip_watts=_of(chip_watts, own), chip_hour_cost=_of(chip_hour_cost, own)
                )
                for part, own in names.items()
            }
        )
        for machine, names in named.items()
    }


def _names_of(machine: Machine) -> dict[str, tuple[str, ...]]:
    """List by which names each machine of a system may be given its figures, its own first."""
    if not isinstance(machine, MixedSystem):
        return {machine.name: (machine.name,)}
    both = dict.fromkeys((machine.name, machine.name.removesuffix(f":{machine.split}")))
    return {part.name: (part.name, *both) for part in machine.pools.values()}


def _of(given: Figure, names: Sequence[str]) -> float | None:
    if not isinstance(given, Mapping):
        return given
    return next((given[name] for name in names if name in given), None)
