"""A chip and its links as cost rules ask for them, for one group of chips or one per plan.

Knows where the groups of a plan lie and prices a collective at the worst-placed run of all of them.
Not modelled: two collectives at once; programs are in order, so there is one at a time in a group.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from ..datapath.axis import PIPELINED, steps_of
from ..datapath.work import Length, Passage, Quantity
from ..errors import CostError
from ..machine.chip import ChipSpec
from ..machine.spans import Span, stack_spans
from ..machine.system import System
from ..machine.topology import Topology
from .collectives.algorithms.table import ALGORITHMS, AUTO, EVERYWHERE
from .collectives.closed_form.priced import Schedule
from .collectives.closed_form.setting import Setting, setting
from .collectives.links import legal_in, schedule_in


@dataclass(frozen=True)
class Groups:
    """Where the groups of a plan lie: consecutive stages of `chips` contiguous chips each."""

    chips: int
    bases: Int[np.ndarray, " groups"]

    @staticmethod
    def first(system: System, n_chips: int) -> "Groups":
        """Take the first `n_chips` chips of a system as one group.

        Raises:
            PlanError: if the system has fewer.
        """
        return Groups(n_chips, system.topology.stage_bases(1, n_chips))


@dataclass(frozen=True, kw_only=True)
class PlacedMachine:
    """The machine as one plan, or each of many plans, sees it."""

    system: System
    groups: tuple[Groups, ...]
    #: which of `groups` each plan uses; None for a single plan
    group_of_plan: Int[np.ndarray, " plans"] | None = None
    _spans: dict[tuple[int, int, int], Span] = field(default_factory=dict, repr=False)
    _settings: dict[tuple[Any, ...], Setting] = field(default_factory=dict, repr=False)

    @property
    def chip(self) -> ChipSpec:
        """The chip that runs the program."""
        return self._lpus[0]

    @property
    def topology(self) -> Topology:
        """Its links."""
        return self._lpus[1]

    @property
    def _lpus(self) -> tuple[ChipSpec, Topology]:
        found = self.system.lpus
        assert found is not None  # `timing.placed` sees GPUs as another machine
        return found

    def collective_cycles(
        self,
        kind: str,
        algorithm: str,
        n_chips: Length,
        stride: Length,
        payload_bytes: Quantity,
    ) -> Passage:
        """Price a collective; `auto` takes the fastest legal algorithm, each plan on its own.

        Pipelined forms are never slower, so `auto` takes them.

        An algorithm that does not exist for a kind of collective leaves that kind to `auto`.

        Returns:
            Cycles until results are there; of one algorithm, the one whose last result is first.

        Raises:
            CostError: a named algorithm does not exist over the links of the run, or a run has no
                chip.
        """
        best: dict[str, Quantity] = {}
        for steps in self._schedules(kind, algorithm, n_chips, stride):
            found = vars(steps.passage(payload_bytes))
            faster = found["last"] < best.get("last", np.inf)
            best = {name: np.where(faster, found[name], best.get(name, np.inf)) for name in found}
        if self.group_of_plan is None:
            best = {name: float(cycles) for name, cycles in best.items()}
        return Passage(**best)

    def chosen(
        self, kind: str, algorithm: str, n_chips: int, stride: int, payload_bytes: int | float
    ) -> tuple[str, Schedule]:
        """Find the schedule that `collective_cycles` prices, for a single plan.

        Args:
            kind: one of `kinds.PRICED_KINDS`.
            algorithm: one of `algorithms.table.ALGORITHMS`, pipelined or not, or `auto`.
            n_chips: chips of the run.
            stride: chips from one to the next.
            payload_bytes: as for `Schedule.cycles`.

        Returns:
            The algorithm's name and its schedule; for a run of one chip a schedule without time.
            Where steps that overlap gain nothing, `auto` means those that do not.

        Raises:
            CostError: as for `collective_cycles`, or if this is the machine of many plans.
        """
        if self.group_of_plan is not None:
            raise CostError("chosen: a machine of many plans was given; a single plan is needed.")
        every = self._schedules(kind, algorithm, n_chips, stride)
        best = min(every, key=lambda steps: float(steps.cycles(payload_bytes)))
        if not _is_asked_for(algorithm, kind):
            where = self._setting(n_chips, stride)
            plain = schedule_in(where, kind, steps_of(best.algorithm))
            if plain.cycles(payload_bytes) <= best.cycles(payload_bytes):
                best = plain
        return best.algorithm, best

    def runs(self, n_chips: int, stride: int, stage: int) -> Int[np.ndarray, "runs chips"]:
        """List all runs of a mesh axis in a stage, for a single plan.

        Args:
            n_chips: chips of the axis.
            stride: chips from one chip of a run to the next.
            stage: number of the stage.

        Returns:
            The chips of each run, ascending; runs in the order of their first chips' blocks.

        Raises:
            CostError: if the stage's chips cannot be cut into such runs, there is no such stage,
                or this is the machine of many plans.
        """
        if self.group_of_plan is not None:
            raise CostError("runs: a machine of many plans was given; a single plan is needed.")
        (placed,) = self.groups
        if not 0 <= stage < len(placed.bases):
            raise CostError(f"runs: stage {stage} is not in 0..{len(placed.bases) - 1}.")
        block = n_chips * stride
        if n_chips < 1 or stride < 1 or placed.chips % block:
            raise CostError(
                f"runs: a stage of {placed.chips} chips cannot be cut into runs of {n_chips} "
                f"chips, each {stride} from the next."
            )
        first = np.add.outer(np.arange(0, placed.chips, block), np.arange(stride)).reshape(-1)
        every = placed.bases[stage] + np.add.outer(first, stride * np.arange(n_chips))
        return np.asarray(every, np.int64)

    def _schedules(
        self, kind: str, algorithm: str, n_chips: Length, stride: Length
    ) -> Iterable[Schedule]:
        """Yield the candidates that are legal for some plan.

        Raises:
            CostError: a named algorithm is not legal for every plan.
        """
        where = self._setting(n_chips, stride)
        if _is_asked_for(algorithm, kind):
            legal = legal_in(where, kind, algorithm)
            if not np.all(legal):
                raise CostError(self._why_not(where, kind, algorithm, legal))
            yield schedule_in(where, kind, algorithm)
            return
        for name in AUTO:
            legal = legal_in(where, kind, name)
            if np.any(legal & ALGORITHMS[name].differs(where)):
                yield schedule_in(where, kind, name + PIPELINED)

    def _why_not(self, where: Setting, kind: str, algorithm: str, legal: Any) -> str:
        """Say why an algorithm does not exist over the links of a run, and what does."""
        run, needs = where.run, ALGORITHMS[steps_of(algorithm)].needs
        assert needs is not None  # it exists for every run
        index = int(np.argmin(np.atleast_1d(legal)))
        n, nodes, racks = (
            int(np.broadcast_to(x, np.shape(legal)).reshape(-1)[index])
            for x in (run.n, run.nodes, run.racks)
        )
        return (
            f"{kind}: algorithm {algorithm!r} needs {needs(self.topology)}; a run of {n} "
            f"chips lies over {nodes} node(s) of {racks} rack(s). {EVERYWHERE.name!r} exists for "
            "every run, and 'auto' takes the fastest."
        )

    def _setting(self, n_chips: Length, stride: Length) -> Setting:
        n, gap = np.asarray(n_chips), np.asarray(stride)
        key = (n.shape, n.tobytes(), gap.shape, gap.tobytes())
        if key not in self._settings:
            if np.any(n < 1) or np.any(gap < 1):
                raise CostError(
                    f"a collective over an axis of {int(n.min())} chips, each {int(gap.min())} "
                    "from the next: both must be at least 1."
                )
            topology, clock = self.topology, self.chip.clock_hz
            self._settings[key] = setting(topology, clock, self._span(n, gap), gap)
        return self._settings[key]

    def _span(self, n_chips: Any, stride: Any) -> Span:
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
        """Span of a run; one whose chips are apart touches what the chips between them do."""
        key = (group, n_chips, stride)
        if key not in self._spans:
            placed = self.groups[group]
            block = min(n_chips * stride, placed.chips)
            whole = self.topology.span(placed.bases, block, placed.chips)
            self._spans[key] = replace(whole, n_chips=n_chips)
        return self._spans[key]


def _is_asked_for(algorithm: str, kind: str) -> bool:
    """Whether a kind is done by this algorithm, and not by what `auto` takes.

    One that nobody knows is refused where it is used.
    """
    name = steps_of(algorithm)
    return name != "auto" and (name not in ALGORITHMS or kind in ALGORITHMS[name].kinds)


def one_group(system: System, n_chips: int) -> PlacedMachine:
    """View an LPU system as one group on its first `n_chips` chips.

    Raises:
        LpuError: it is a GPU system.
        PlanError: if the system has fewer.
    """
    system.require_lpu("one_group")
    return PlacedMachine(system=system, groups=(Groups.first(system, n_chips),))
