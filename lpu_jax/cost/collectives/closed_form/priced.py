"""What a collective takes: the time, the links and the bytes of its steps together.

Steps follow one another, or overlap slice by slice (`flow`). Not modelled: as in `links`.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....datapath.work import Passage
from ....machine.ports import Numbers
from .flow import NEVER, passed
from .steps import LEVELS, OF_STEPS, Step

#: Numbers of a schedule that plans have of their own, beside those of its steps.
_PER_PLAN = ("n_chips", "legal", "exact", "pieces", "slice_vectors")
# Keeps 49 * (1 / 49) from being rounded up to two vectors.
_CEIL_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps of one collective; every number may be an array with one entry per plan.

    Attributes:
        kind: one of `kinds.PRICED_KINDS`, or `"hand_over"`.
        algorithm: one of `algorithms.table.ALGORITHMS`, pipelined or not.
        n_chips: chips of the run.
        legal: whether every link exists.
        exact: whether the time is that of the steps written out link by link, where vectors divide
            evenly; else it is an upper bound.
        pieces: pieces of the payload, one of each chip or for each, that are whole vectors.
        slice_vectors: vectors of the payload that pass the steps of a pipelined algorithm together;
            None if each step waits for all of the one before.
        steps: the steps, in order.
        frame_payload_bytes: bytes of one vector.
        frame_bytes: bytes of one vector on a link.
    """

    kind: str
    algorithm: str
    n_chips: Numbers
    legal: Numbers
    exact: Numbers
    pieces: Numbers
    slice_vectors: Numbers | None
    steps: tuple[Step, ...]
    frame_payload_bytes: int
    frame_bytes: int

    def distinct(self) -> "Schedule":
        """Keep one plan of those whose numbers are all the same; numbers must be of many plans."""
        own = tuple(name for name in _PER_PLAN if getattr(self, name) is not None)
        numbers = [getattr(self, name) for name in own]
        numbers += [getattr(step, name) for step in self.steps for name in OF_STEPS]
        table = np.stack(np.broadcast_arrays(*numbers), dtype=np.float64)
        is_varied = np.ptp(table, axis=1) > 0
        is_varied[0] = True  # there is always a column to sort by
        varied = table[is_varied]
        order = np.lexsort(varied)
        is_new = np.any(np.diff(varied[:, order], prepend=np.nan) != 0, axis=0)
        rows = np.sort(order[is_new])

        def kept(of: Any, names: tuple[str, ...]) -> dict[str, Numbers]:
            shape = table.shape[1:]
            return {name: np.broadcast_to(getattr(of, name), shape)[rows] for name in names}

        steps = tuple(replace(step, **kept(step, OF_STEPS)) for step in self.steps)
        return replace(self, **kept(self, own), steps=steps)

    def _vectors(self, payload_bytes: Numbers, step: Step) -> Numbers:
        """Vectors that a link carries; at least one for each stream, since no frame is cut."""
        return self._on_link(np.ceil(np.asarray(payload_bytes) / self.frame_payload_bytes), step)

    def _on_link(self, vectors: Numbers, step: Step) -> Numbers:
        whole = self.pieces * np.ceil(vectors / self.pieces)
        each = np.ceil(whole * step.share / step.streams - _CEIL_SLACK)
        return step.streams * np.maximum(1.0, each)

    def _passed(
        self, payload_bytes: Numbers, first: Numbers, last: Numbers
    ) -> tuple[Numbers, Numbers]:
        vectors = np.ceil(np.asarray(payload_bytes) / self.frame_payload_bytes)
        every = [self._on_link(vectors, step) for step in self.steps]
        slices = None
        if self.slice_vectors is not None:
            of_slice = np.minimum(vectors, self.slice_vectors)
            slices = [self._on_link(of_slice, step) for step in self.steps]
        return passed(self.steps, every, slices, first, last)

    @property
    def goes_by_vector(self) -> Numbers:
        """Whether a slice is one vector at most on every link, where runs share none."""
        if self.slice_vectors is None:
            return np.False_
        single: Numbers = np.True_
        for step in self.steps:
            single = single & (self._on_link(self.slice_vectors, step) <= 1)
        return single

    @property
    def hops(self) -> Numbers:
        """Links that the last vector to arrive has crossed."""
        total = sum((step.hops * step.times for step in self.steps), np.float64(0.0))
        return np.asarray(total).astype(np.int64)

    @property
    def first_cycles(self) -> Numbers:
        """Cycles until the first vector is through: the sum of the latencies."""
        return sum((step.times * step.latency_cycles for step in self.steps), np.float64(0.0))

    def cycles(self, payload_bytes: Numbers) -> Numbers:
        """Time from start to last vector.

        Where steps follow one another it is the sum of `latency + (ceil(vectors * share) - 1) *
        cycles_per_vector` over the steps; where they overlap, see `flow`.

        Args:
            payload_bytes: bytes of the full vector of a chip (all_gather: the gathered output;
                reduce_scatter: the input; all_to_all: what one chip holds).

        Returns:
            Cycles, not rounded; 0 for a run of one chip, infinite where a link does not exist.
        """
        _, last = self._passed(payload_bytes, 0.0, NEVER)
        return np.where(self.legal, last, np.inf)

    def passage(self, payload_bytes: Numbers) -> Passage:
        """When results are there, for an operand that is there at once and for one that is slow.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            Cycles, not rounded; the last result never comes where a link does not exist.
        """
        plans = np.broadcast_shapes(np.shape(payload_bytes), np.shape(self.legal))
        at_once = np.array([0.0, NEVER]).reshape(2, *(1 for _ in plans))
        first, last = self._passed(payload_bytes, at_once, at_once[::-1])
        return Passage(
            hops=self.first_cycles,
            first=first[0],
            last=np.where(self.legal, last[0], np.inf),
            first_behind=first[1],
            last_behind=last[1],
        )

    def busiest_link_cycles(self, payload_bytes: Numbers) -> Numbers:
        """Bound the time for which any one link is occupied.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            Cycles: the sum over the steps on links of a level of the busiest link of each, of the
            level where that is most.
        """
        busy: list[Numbers] = [np.float64(0.0) for _ in LEVELS]
        for step in self.steps:
            vectors = np.where(step.share > 0, self._vectors(payload_bytes, step), 0.0)
            busy[step.level] = busy[step.level] + vectors * step.times * step.cycles_per_vector
        return functools.reduce(np.maximum, busy)

    def link_bytes(self, payload_bytes: Numbers) -> Numbers:
        """Bytes that each chip of the run puts on links, frames included, on average.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            Bytes; times the chips of the run it is the whole traffic, an upper bound where the
            vectors do not divide evenly or the schedule is not exact.
        """
        return sum(
            (
                step.times * step.fan_out * self._vectors(payload_bytes, step) * self.frame_bytes
                for step in self.steps
            ),
            np.float64(0.0),
        )

    def as_dict(self, payload_bytes: int | float) -> dict[str, Any]:
        """Give a single plan's schedule as plain values, steps that take place only.

        Args:
            payload_bytes: as for `cycles`.

        Returns:
            What reports print: hops, cycles, busiest link, bytes, and the same for each step.
        """
        n_chips = float(self.n_chips)
        return {
            "kind": self.kind,
            "algorithm": self.algorithm,
            "n_chips": int(n_chips),
            "exact": bool(self.exact),
            "hops": int(self.hops),
            "cycles": float(self.cycles(payload_bytes)),
            "busiest_link_cycles": float(self.busiest_link_cycles(payload_bytes)),
            "link_bytes": float(self.link_bytes(payload_bytes)) * n_chips,
            "steps": [
                {
                    "name": step.name,
                    "times": int(step.times),
                    "hops": int(step.hops),
                    "latency_cycles": float(step.latency_cycles),
                    "share": float(step.share),
                    "vectors_per_link": int(self._vectors(payload_bytes, step)),
                    "cycles_per_vector": float(step.cycles_per_vector),
                    "links": float(step.fan_out) * n_chips,
                }
                for step in self.steps
                if step.share > 0
            ],
        }
