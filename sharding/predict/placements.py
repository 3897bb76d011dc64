"""Where the groups of plans lie: plans whose groups touch the same units are one placement.

Only where a group begins within a rack matters to its collectives, so that most numbers of stages
of a group share a placement, and blocks are timed once for all of them.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from lpu_jax.cost.placed_machine import BestPlaced, Groups
from lpu_jax.cost.timing import Placed, best_placed, placed
from lpu_jax.machine.system import System


@dataclass
class Placements:
    """The distinct placements of a machine that were asked for, each with a number."""

    system: System
    groups: list[Groups] = field(default_factory=list)
    _number: dict[tuple[int, bytes], int] = field(default_factory=dict)
    _of_spans: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def number(self, group_chips: int, bases: Int[np.ndarray, " stages"]) -> int:
        """Number the placement of groups of so many chips that begin at these ones."""
        if self.system.lpus is None:  # behind one switch all places are alike
            bases = bases[:1]
        else:
            bases = np.unique(bases % self.system.lpus[1].period_chips)
        return self._numbered(Groups(group_chips, bases))

    def machine(self, placement: Int[np.ndarray, " rows"]) -> Placed:
        """View the machine as rows with these placements do."""
        used, own = np.unique(placement, return_inverse=True)
        groups = tuple(self.groups[i] for i in used.tolist())
        return placed(self.system, groups, own.reshape(-1))

    def _numbered(self, groups: Groups) -> int:
        key = groups.chips, groups.bases.tobytes()
        if key not in self._number:
            alike = groups.chips, self._touched(groups)
            if alike not in self._of_spans:
                self._of_spans[alike] = len(self.groups)
                self.groups.append(groups)
            self._number[key] = self._of_spans[alike]
        return self._number[key]

    def _touched(self, groups: Groups) -> bytes:
        """What runs of every length touch, on which alone their collectives depend."""
        if self.system.lpus is None:
            return b""
        chips = np.arange(1, groups.chips + 1)
        lengths = chips[groups.chips % chips == 0]
        spans = self.system.lpus[1].spans(
            [groups.bases],
            np.zeros_like(lengths),
            np.full_like(lengths, groups.chips),
            lengths,
        )
        return np.stack(list(vars(spans).values())).tobytes()


@dataclass
class BestPlacements:
    """Stands for every place of every group: no row sees a machine better."""

    system: System

    def machine(self, placement: Int[np.ndarray, " rows"]) -> Placed | BestPlaced:
        """View the machine as well placed as any."""
        return best_placed(self.system, len(placement))
