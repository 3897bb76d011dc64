"""A chip and its links as cost rules ask for them, for one group of chips or one per plan.

Knows where the groups of a plan lie and prices a collective at the worst-placed run of all of them.
Not modelled: two collectives at once; programs are in order, so there is one at a time in a group.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from ..chip import ChipSpec
from ..datapath.work import Length, Quantity
from ..errors import CostError
from ..system import System
from ..topology import Span, stack_spans
from .links import ALGORITHMS, schedule


@dataclass(frozen=True)
class Groups:
    """Where the groups of a plan lie: consecutive stages of `chips` contiguous chips each."""

    chips: int
    bases: Int[np.ndarray, " groups"]


@dataclass(frozen=True, kw_only=True)
class PlacedMachine:
    """The machine as one plan, or each of many plans, sees it."""

    system: System
    groups: tuple[Groups, ...]
    #: which of `groups` each plan uses; None for a single plan
    group_of_plan: Int[np.ndarray, " plans"] | None = None
    _spans: dict[tuple[int, int, int], Span] = field(default_factory=dict, repr=False)

    @property
    def chip(self) -> ChipSpec:
        """The chip that runs the program."""
        return self.system.chip

    def collective_cycles(
        self,
        kind: str,
        algorithm: str,
        n_chips: Length,
        stride: Length,
        payload_bytes: Quantity,
    ) -> tuple[Quantity, Quantity]:
        """Price a collective; `auto` takes the fastest legal algorithm, each plan on its own.

        Returns:
            Cycles until the first vector has arrived, and until the last one has.

        Raises:
            CostError: a named algorithm does not exist over the links of the run.
        """
        span = self._span(n_chips, stride)
        best_first: Quantity = np.inf
        best_last: Quantity = np.inf
        for name in ALGORITHMS if algorithm == "auto" else (algorithm,):
            steps = schedule(self.system.topology, self.chip.clock_hz, kind, name, span)
            single = np.asarray(n_chips) <= 1
            legal = steps.legal | single
            if algorithm != "auto" and not np.all(legal):
                raise CostError(
                    f"{kind}: algorithm {name!r} needs all chips of the run in one node of "
                    f"{self.system.topology.node_chips} chips."
                )
            last = np.where(legal, np.where(single, 0.0, steps.cycles(payload_bytes)), np.inf)
            first = np.where(single, 0.0, steps.first_cycles)
            best_first = np.where(last < best_last, first, best_first)
            best_last = np.minimum(last, best_last)
        if self.group_of_plan is None:
            return float(best_first), float(best_last)
        return best_first, best_last

    def _span(self, n_chips: Length, stride: Length) -> Span:
        if self.group_of_plan is None:
            return self._one_span(0, int(n_chips), int(stride))
        n, gap = (np.broadcast_to(x, self.group_of_plan.shape) for x in (n_chips, stride))
        keys = np.stack([self.group_of_plan, n, gap], axis=1)
        distinct, back = np.unique(keys, axis=0, return_inverse=True)
        spans = stack_spans([self._one_span(*(int(x) for x in key)) for key in distinct])
        return Span(
            **{name: np.asarray(value)[back.reshape(-1)] for name, value in vars(spans).items()}
        )

    def _one_span(self, group: int, n_chips: int, stride: int) -> Span:
        """Span of a run.

        One whose chips are apart touches what the chips between would, with fewer in each node.
        """
        key = (group, n_chips, stride)
        if key not in self._spans:
            placed = self.groups[group]
            run = min(n_chips * stride, placed.chips)
            whole = self.system.topology.span(placed.bases, run, placed.chips)
            self._spans[key] = Span(
                n_chips=n_chips,
                nodes=min(n_chips, int(whole.nodes)),
                fewest=max(1, min(n_chips, int(whole.fewest) // stride)),
                most=max(1, min(n_chips, -(-int(whole.most) // stride))),
                half_racks=whole.half_racks,
                racks=whole.racks,
            )
        return self._spans[key]


def one_group(system: System, n_chips: int) -> PlacedMachine:
    """Take the first `n_chips` chips of a system as one group.

    Raises:
        PlanError: if the system has fewer.
    """
    return PlacedMachine(
        system=system,
        groups=(Groups(n_chips, system.topology.stage_bases(1, n_chips)),),
    )
