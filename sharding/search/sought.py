"""What is searched for, and in which space: one value for all parts of a search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..predict.placement import usable_bytes
from ..scenario import Scenario
from ..space.cores import EVERYTHING, Choices
from .bounds import LeastCosts
from .held import HeldCores
from .records import Record


@dataclass(frozen=True, kw_only=True)
class Sought:
    """A search: what plans are judged on, which are wanted, and what they are made of.

    Attributes:
        scenario: the model, the machine, the request and the formats.
        record: which plans are wanted, beside those that it has.
        space: the legal cores of every part.
        least: what these take where nothing can be better.
        choices: what plans may be.
        most_cycles: latency of a token, at most.
    """

    scenario: Scenario
    record: Record
    space: Sequence[HeldCores]
    least: LeastCosts
    choices: Choices = EVERYTHING
    most_cycles: float = np.inf

    @property
    def n_chips(self) -> int:
        """Chips that plans may use, of the machine of FFNs."""
        return self.scenario.system.n_chips

    @property
    def room(self) -> tuple[float, float]:
        """Memory of a chip of each pool without the reserve, in bytes."""
        first, second = (usable_bytes(own.system.chip) for own in self.scenario.pools)
        return first, second
