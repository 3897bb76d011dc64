"""A chip and its links as cost rules ask for them, for one group of chips or one per plan.

Knows where the groups of a plan lie and prices a collective at the worst-placed run of all of them.
Not modelled: two collectives at once; programs are in order, so there is one at a time in a group.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..datapath.axis import PIPELINED, steps_of
from ..datapath.work import Length, Passage, Quantity
from ..errors import CostError
from ..machine.chip import ChipSpec
from ..machine.spans import Span
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
        return Groups(n_chips, system.stage_bases(1, n_chips))


@dataclass(frozen=True, kw_only=True)
class PlacedMachine:
    """The machine as one plan, or each of many plans, sees it."""

    system: System
    groups: tuple[Groups, ...]
    #: which of `groups` each plan uses; None for a single plan
    group_of_plan: Int[np.ndarray, " plans"] | None = None
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
        """What runs touch; those whose chips are apart touch what the chips between them do."""
        bases = [placed.bases for placed in self.groups]
        chips = np.array([placed.chips for placed in self.groups])
        of_plan = np.int64(0) if self.group_of_plan is None else self.group_of_plan
        # One number for each placement, chips and stride: sorting numbers is quick.
        base = int(chips.max()) + 1
        keys = (of_plan * base + np.minimum(n_chips, base - 1)) * base + np.minimum(
            stride, base - 1
        )
        distinct, back = np.unique(keys, return_inverse=True)
        placement, rest = np.divmod(distinct, base * base)
        n, gap = np.divmod(rest, base)
        back = back.reshape(np.shape(keys))
        whole = self.topology.spans(
            bases, placement, chips[placement], np.minimum(n * gap, chips[placement])
        )
        touched = vars(whole) | {"n_chips": n}
        return Span(**{name: np.asarray(value)[back] for name, value in touched.items()})


@dataclass(frozen=True, kw_only=True)
class BestPlaced:
    """The machine as no plan can see it better: each collective over the best-placed run there is.

    A run of n chips begins at the first chip and is alone in its group; of its strides, up to a
    node's chips, and of its algorithms whatever is best counts, for each number of a `Passage` by
    itself: what is last first may be first last. Two laws make this a lower bound for every order
    of axes and every place of a group, and tests hold them up to machines: no place is better than
    the first chip, and no run gains from chips farther apart than a node each. The bound of an
    all_to_all over racks may be below its price in one, so it is priced across an edge of a rack
    too.
    """

    system: System
    _prices: dict[tuple[str, str], "_Prices"] = field(default_factory=dict, repr=False)

    @property
    def chip(self) -> ChipSpec:
        """The chip that runs the program."""
        return one_group(self.system, 1).chip

    def collective_cycles(
        self,
        kind: str,
        algorithm: str,
        n_chips: Length,
        stride: Length,
        payload_bytes: Quantity,
    ) -> Passage:
        """Price a collective as `PlacedMachine` does, over the stride that is best."""
        # A link carries whole frames: payloads of as many frames have one price.
        frame_bytes = one_group(self.system, 1).topology.frame_payload_bytes
        frames = np.ceil(np.asarray(payload_bytes) / frame_bytes).astype(np.int64)
        key = np.int64(frames) * (self.system.n_chips + 1) + n_chips
        known = self._prices.setdefault((kind, algorithm), _Prices())
        with known.lock:  # threads that search share this machine
            missing = np.unique(known.without(np.asarray(key)))
            if len(missing):
                of_frames, n = np.divmod(missing, self.system.n_chips + 1)
                payloads = of_frames * float(frame_bytes)
                known.add(missing, self._priced(kind, algorithm, n, payloads))
            found = known.cycles[:, np.searchsorted(known.keys, key)]
        return Passage(**dict(zip(_OF_PASSAGE, found, strict=True)))

    def _priced(
        self,
        kind: str,
        algorithm: str,
        n: Int[np.ndarray, " runs"],
        payload_bytes: Float[np.ndarray, " runs"],
    ) -> Float[np.ndarray, "5 runs"]:
        """Price runs of so many chips with payloads, each over every stride up to a node."""
        topology = one_group(self.system, 1).topology
        n_strides = np.minimum(self.system.n_chips // n, topology.node_chips)
        start = np.cumsum(n_strides) - n_strides
        run = np.repeat(np.arange(len(n)), n_strides)
        stride = np.arange(len(run)) - start[run] + 1
        sizes, group = np.unique(n[run] * stride, return_inverse=True)
        firsts = [np.zeros_like(sizes)]
        if kind == "all_to_all" and topology.n_racks > 1:
            firsts.append(np.maximum(topology.rack_chips - (sizes + 1) // 2, 0))
        least = np.full((len(_OF_PASSAGE), len(run)), np.inf)
        for first in firsts:
            groups = zip(sizes.tolist(), first.reshape(-1, 1), strict=True)
            placed = PlacedMachine(
                system=self.system,
                groups=tuple(Groups(size, bases) for size, bases in groups),
                group_of_plan=group.reshape(-1),
            )
            for steps in placed._schedules(kind, algorithm, n[run], stride):
                found = vars(steps.passage(payload_bytes[run]))
                every = np.stack([np.broadcast_to(found[name], run.shape) for name in _OF_PASSAGE])
                least = np.minimum(least, np.where(steps.legal, every, np.inf))
        return np.minimum.reduceat(least, start, axis=1)


_OF_PASSAGE = tuple(one.name for one in fields(Passage))


@dataclass
class _Prices:
    """Passages of one kind of collective, by a number for chips and frames, ascending."""

    keys: Int[np.ndarray, " known"] = field(default_factory=lambda: np.zeros(0, np.int64))
    cycles: Float[np.ndarray, "5 known"] = field(
        default_factory=lambda: np.zeros((len(_OF_PASSAGE), 0))
    )
    lock: Lock = field(default_factory=Lock)

    def without(self, keys: Int[np.ndarray, "*rows"]) -> Int[np.ndarray, " new"]:
        """Keep those of some numbers that have no passage yet."""
        keys = keys.reshape(-1)
        if not len(self.keys):
            return keys
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.asarray(keys[self.keys[place] != keys])

    def add(self, keys: Int[np.ndarray, " new"], cycles: Float[np.ndarray, "5 new"]) -> None:
        """Remember more."""
        every = np.concatenate([self.keys, keys])
        order = np.argsort(every)
        self.keys = every[order]
        self.cycles = np.concatenate([self.cycles, cycles], axis=1)[:, order]


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
