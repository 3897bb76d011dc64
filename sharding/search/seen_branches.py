"""What looking at branches of a pool has told: the quickest ways, and the least of all others."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Numbers = Float[np.ndarray, " branches"]
Whole = Int[np.ndarray, " branches"]

#: Ways of a branch that are told apart, by what tells rows of a comparison apart.
_N_WAYS = 4
#: Instead of a core, where any may be.
ANY_CORE = -1


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The quickest ways of some branches, each of another core, and last the least of all others.

    There is nothing beside them that was not seen already, in this branch or in another one.
    """

    cycles: Float[np.ndarray, "branches ways"]  #: of a token's blocks; infinite for none
    core: Int[np.ndarray, "branches ways"]


class SeenBranches:
    """The branches of a pool whose chips lie alike in all its pairs."""

    def __init__(self, least: Numbers, stages: Whole, group_chips: Whole) -> None:
        """Begin with what is known of each branch.

        Args:
            least: cycles of a token's blocks.
            stages: of each branch.
            group_chips: chips of a stage.
        """
        self._least = least.copy()
        self.is_noted = np.zeros(len(least), bool)
        self._cycles = np.full((len(least), _N_WAYS), np.inf)
        self._core = np.full((len(least), _N_WAYS), ANY_CORE)
        self._order = np.lexsort((stages, group_chips))
        self._place = np.argsort(self._order)
        chips = group_chips[self._order]
        #: Behind the last branch of as many chips, in that order.
        self._end = np.searchsorted(chips, chips, side="right")

    def least(self, branches: Whole) -> Numbers:
        """Bound what was not seen of branches."""
        return np.asarray(np.minimum(self._least[branches], self._cycles[branches, 0]))

    def ways(self, branches: Whole) -> Ways:
        """List the quickest ways of branches."""
        anything = np.full((len(branches), 1), ANY_CORE)
        return Ways(
            cycles=np.concatenate([self._cycles[branches], self._least[branches, None]], axis=1),
            core=np.concatenate([self._core[branches], anything], axis=1),
        )

    def add(
        self,
        branch: int,
        cycles: Float[np.ndarray, " ways"],
        cores: Int[np.ndarray, " ways"],
        upto_cycles: float,
    ) -> None:
        """Note all ways of a branch that take up to so many cycles, unless more was noted."""
        self.is_noted[branch] = True
        if upto_cycles <= self._least[branch]:
            return
        order = np.argsort(cycles, kind="stable")
        _, first = np.unique(cores[order], return_index=True)
        quickest = order[np.sort(first)]
        if len(quickest) > _N_WAYS:
            upto_cycles = min(upto_cycles, float(cycles[quickest[_N_WAYS]]))
            quickest = quickest[:_N_WAYS]
        self._least[branch] = upto_cycles
        self._cycles[branch], self._core[branch] = np.inf, ANY_CORE
        self._cycles[branch, : len(quickest)] = cycles[quickest]
        self._core[branch, : len(quickest)] = cores[quickest]

    def leave_longer(self, branch: int, upto_cycles: float) -> None:
        """Note that more stages of as many chips have nothing new that is as quick."""
        place = self._place[branch]
        longer = self._order[place + 1 : self._end[place]]
        self._least[longer] = np.maximum(self._least[longer], upto_cycles)
        ways = self._cycles[longer]
        self._cycles[longer] = np.where(ways < upto_cycles, np.inf, ways)
