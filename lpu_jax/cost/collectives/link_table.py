"""The table of a link schedule: every transfer with its link, its vectors and its cycles.

`link_schedule` fills it, `link_check` proves it right, traces and plots read it. Not modelled: what
the values are; a transfer says which vectors it carries and from whom, not what is in them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ...datapath.axis import PIPELINED


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkUse:
    """How much every link is used, one entry per link that is used at all.

    Attributes:
        src: sending chip.
        dst: receiving chip.
        part: which of the parallel links between the two.
        level: 0 inside a node, 1 between nodes of a rack, 2 between racks.
        busy_cycles: cycles in which the link is occupied.
        wire_bytes: bytes on the link, frames included.
    """

    src: Int[np.ndarray, " links"]
    dst: Int[np.ndarray, " links"]
    part: Int[np.ndarray, " links"]
    level: Int[np.ndarray, " links"]
    busy_cycles: Float[np.ndarray, " links"]
    wire_bytes: Int[np.ndarray, " links"]

    def name(self, index: int) -> str:
        """Name a link as `ports.Link` does, such as `"3>11#1"`.

        Args:
            index: which entry.

        Returns:
            The link's name.
        """
        return link_name(self.src[index], self.dst[index], self.part[index])


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkSchedule:
    """All transfers of a collective, over all runs at once, ordered by step and link.

    The payload is cut into `n_pieces` equal pieces; piece `k` is its whole vectors from
    `k * n_vectors / n_pieces` to `(k + 1) * n_vectors / n_pieces`, rounded down, so pieces differ
    by one vector at most. In an all_to_all the cut is shifted for each chip, so that the remainders
    do not all go to the same chips.

    A pipelined schedule takes the payload in `n_slices` slices, each cut into the same pieces, of a
    vector each; the last slice may be shorter. Slice 0 has the first vector of every share, slice 1
    the second, and so on: pieces and vectors are numbered slice by slice, as they leave, not as
    they lie in memory.

    Attributes:
        kind: what is done; one of `kinds.LISTED_KINDS`.
        algorithm: how; one of `algorithms.table.ALGORITHMS`, pipelined or not.
        runs: the chips of each run. In a hand_over the first half sends and the second receives;
            send goes from the first chip to the last; broadcast starts at the first.
        payload_bytes: bytes of the full vector, as `links.Schedule.cycles` defines it.
        payload_vectors: the same in vectors.
        n_pieces: pieces into which it is cut.
        n_slices: slices that they make up; 1 if steps follow one another.
        clock_hz: clock in which cycles are counted.
        frame_payload_bytes: bytes of a vector.
        frame_bytes: bytes of a vector on a link.
        step_names: what happens in each step.
        step_end_cycle: when everything of a step, and of those before, has arrived.
        step: step of each transfer.
        run: its run.
        src: sending chip.
        dst: receiving chip.
        part: which of the parallel links between the two (`ports.Link.part`).
        level: 0 inside a node, 1 between nodes of a rack, 2 between racks.
        first_piece: first piece that it carries.
        piece_count: pieces that it carries.
        since_step: it carries what reached its sender in this step or later; -1 includes what the
            sender started with.
        origin: it carries only data of the chips from this position in the run on ...
        origin_count: ... so many of them.
        first_vector: first vector of the payload that it carries.
        vector_count: vectors that it carries.
        start_cycle: when the first vector enters the link.
        release_cycle: when the link is free again.
        arrival_cycle: when the last vector is in the receiver's memory.
    """

    kind: str
    algorithm: str
    runs: Int[np.ndarray, "runs chips"]
    payload_bytes: int
    payload_vectors: int
    n_pieces: int
    n_slices: int
    clock_hz: float
    frame_payload_bytes: int
    frame_bytes: int
    step_names: tuple[str, ...]
    step_end_cycle: Float[np.ndarray, " steps"]
    step: Int[np.ndarray, " transfers"]
    run: Int[np.ndarray, " transfers"]
    src: Int[np.ndarray, " transfers"]
    dst: Int[np.ndarray, " transfers"]
    part: Int[np.ndarray, " transfers"]
    level: Int[np.ndarray, " transfers"]
    first_piece: Int[np.ndarray, " transfers"]
    piece_count: Int[np.ndarray, " transfers"]
    since_step: Int[np.ndarray, " transfers"]
    origin: Int[np.ndarray, " transfers"]
    origin_count: Int[np.ndarray, " transfers"]
    first_vector: Int[np.ndarray, " transfers"]
    vector_count: Int[np.ndarray, " transfers"]
    start_cycle: Float[np.ndarray, " transfers"]
    release_cycle: Float[np.ndarray, " transfers"]
    arrival_cycle: Float[np.ndarray, " transfers"]

    def vectors_before(
        self, pieces: Int[np.ndarray, "..."], origin: Int[np.ndarray, "..."]
    ) -> Int[np.ndarray, "..."]:
        """Find the first vector of pieces.

        Args:
            pieces: numbers of pieces; `n_pieces` stands for the end.
            origin: position in the run of the chip whose data is cut.

        Returns:
            Numbers of vectors. Only an all_to_all cuts the data of each chip in its own way.
        """
        shift, shifts = (origin, self.runs.shape[1]) if self.kind == "all_to_all" else (0, 1)
        return piece_starts(
            pieces, self.n_pieces, self.payload_vectors, shift, shifts, self.n_slices
        )

    @property
    def is_pipelined(self) -> bool:
        """Whether steps overlap."""
        return self.algorithm.endswith(PIPELINED)

    @property
    def slice_pieces(self) -> int:
        """Pieces of a slice."""
        return self.n_pieces // self.n_slices

    @property
    def n_transfers(self) -> int:
        """Number of transfers."""
        return self.step.size

    @property
    def cycles(self) -> float:
        """When the last vector of all has arrived; 0 if nothing moves."""
        return float(self.step_end_cycle[-1]) if self.step_names else 0.0

    @property
    def hops(self) -> int:
        """Links that the last vector to arrive has crossed, directly or in a sum."""
        return len(self.step_names)

    @cached_property
    def first_cycles(self) -> float:
        """Cycles until a first vector has passed all steps: the sum of their longest latencies."""
        frame = (self.release_cycle - self.start_cycle) / self.vector_count
        latency = self.arrival_cycle - self.start_cycle - (self.vector_count - 1) * frame
        longest = np.zeros(self.hops)
        np.maximum.at(longest, self.step, latency)
        return float(longest.sum())

    @property
    def moved_bytes(self) -> int:
        """Payload bytes over all links, in whole vectors."""
        return int(self.vector_count.sum()) * self.frame_payload_bytes

    @property
    def wire_bytes(self) -> int:
        """Bytes over all links, frames included."""
        return int(self.vector_count.sum()) * self.frame_bytes

    @cached_property
    def _link_of(self) -> tuple[Int[np.ndarray, " links"], Int[np.ndarray, " transfers"]]:
        """One transfer of each link, and the link of each transfer."""
        key = link_keys(self.src, self.dst, self.part)
        _, sample, back = np.unique(key, return_index=True, return_inverse=True)
        return sample, back.reshape(-1)

    @cached_property
    def busiest_vectors(self) -> Int[np.ndarray, " steps"]:
        """Vectors on the busiest link of each step."""
        sample, link = self._link_of
        key = self.step * max(1, sample.size) + link
        groups, back = np.unique(key, return_inverse=True)
        vectors = np.bincount(back.reshape(-1), self.vector_count, groups.size).astype(np.int64)
        busiest = np.zeros(self.hops, np.int64)
        np.maximum.at(busiest, groups // max(1, sample.size), vectors)
        return busiest

    def link_busy(self) -> LinkUse:
        """Add up what every link carries.

        Returns:
            One entry per link that is used, ordered by sender, receiver and part.
        """
        sample, link = self._link_of
        vectors = np.bincount(link, self.vector_count, sample.size).astype(np.int64)
        held = self.release_cycle - self.start_cycle
        return LinkUse(
            src=self.src[sample],
            dst=self.dst[sample],
            part=self.part[sample],
            level=self.level[sample],
            busy_cycles=np.bincount(link, held, sample.size).astype(np.float64),
            wire_bytes=vectors * self.frame_bytes,
        )

    @property
    def busiest_link(self) -> tuple[str, float]:
        """Name and busy cycles of the link that is busy longest; the first of equals."""
        use = self.link_busy()
        if not use.src.size:
            return "", 0.0
        index = int(np.argmax(use.busy_cycles))
        return use.name(index), float(use.busy_cycles[index])

    def as_dict(self) -> dict[str, Any]:
        """Summarise for a report.

        Returns:
            Plain numbers and lists, without the transfers.
        """
        name, busy = self.busiest_link
        return {
            "kind": self.kind,
            "algorithm": self.algorithm,
            "runs": int(self.runs.shape[0]),
            "chips_per_run": int(self.runs.shape[1]),
            "payload_bytes": self.payload_bytes,
            "steps": [
                {"name": step, "end_cycle": float(end), "busiest_link_vectors": int(vectors)}
                for step, end, vectors in zip(
                    self.step_names, self.step_end_cycle, self.busiest_vectors, strict=True
                )
            ],
            "hops": self.hops,
            "cycles": self.cycles,
            "transfers": self.n_transfers,
            "links": int(self._link_of[0].size),
            "busiest_link": name,
            "busiest_link_cycles": busy,
            "moved_bytes": self.moved_bytes,
            "wire_bytes": self.wire_bytes,
        }


def link_name(src: int | np.integer, dst: int | np.integer, part: int | np.integer) -> str:
    """Name a link as `ports.Link` does.

    Args:
        src: sending chip.
        dst: receiving chip.
        part: which of the parallel links between the two.

    Returns:
        The name, such as `"3>11#1"`.
    """
    return f"{src}>{dst}#{part}"


def link_keys(
    src: Int[np.ndarray, " n"], dst: Int[np.ndarray, " n"], part: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Number links so that equal links have equal numbers.

    Args:
        src: sending chips.
        dst: receiving chips.
        part: which of the parallel links between the two.

    Returns:
        One number for each link, ordered by sender, receiver and part.
    """
    n_chips = int(max(src.max(initial=0), dst.max(initial=0))) + 1
    return np.asarray((src * n_chips + dst) * (int(part.max(initial=0)) + 1) + part)


def piece_starts(
    pieces: Int[np.ndarray, "..."],
    n_pieces: int,
    n_vectors: int,
    shift: int | Int[np.ndarray, "..."] = 0,
    n_shifts: int = 1,
    n_slices: int = 1,
) -> Int[np.ndarray, "..."]:
    """Find the first vector of pieces: `pieces * n_vectors / n_pieces + shift / n_shifts`.

    Of several slices each is cut so; all but the last have a vector for each of their pieces.

    Args:
        pieces: numbers of pieces; `n_pieces` stands for the end.
        n_pieces: pieces of the payload.
        n_vectors: vectors of the payload.
        shift: which of the equally shifted cuts; 0 for the plain one.
        n_shifts: how many there are.
        n_slices: slices of the payload, and of the pieces.

    Returns:
        Numbers of vectors, rounded down.
    """
    n_pieces //= n_slices
    of_slice, piece = np.divmod(pieces, n_pieces)
    begin = np.minimum(of_slice * (n_pieces if n_slices > 1 else n_vectors), n_vectors)
    within = np.minimum(n_vectors - begin, n_pieces) if n_slices > 1 else n_vectors
    over = n_pieces * n_shifts
    return np.asarray(begin + (piece * within * n_shifts + shift * n_pieces) // over)
