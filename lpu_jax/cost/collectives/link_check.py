"""Proves a link schedule right: it is checked, not trusted.

What is proven: every link exists; no link carries two frames at once; nothing leaves a chip before
it has arrived there; every transfer takes the vectors of its pieces and the cycles that its link
needs for them; and at the end every chip has what it should, each contribution exactly once. The
last is shown by replaying the schedule with sets of contributions in place of values; where that
would be too long, for an even sample of the payload (`Proof` says so).

Not modelled: the values themselves, and their rounding.
"""

import functools
import operator
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float, Int

from ...errors import CostError
from ...machine.topology import Topology
from .kinds import OWN_PIECES
from .link_table import LinkSchedule, link_keys, link_name

# Cycles; far below a frame, far above the rounding of cycles added up.
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was proven about a schedule.

    Attributes:
        transfers: transfers whose links, cycles and vectors were checked: all.
        links: links that they use; all exist, and none carries two frames at once.
        ranges: ranges of the payload, over all runs, that take ways of their own.
        followed: how many of them were followed from the first chip to the last.
    """

    transfers: int
    links: int
    ranges: int
    followed: int

    @property
    def complete(self) -> bool:
        """Whether every byte was followed."""
        return self.followed == self.ranges

    def text(self) -> str:
        """Say it in one sentence."""
        return (
            f"{self.transfers} transfers on {self.links} links exclude each other and keep their "
            f"order; {self.followed} of {self.ranges} ranges of the payload were followed and "
            "arrive, each contribution once"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `complete`."""
        return {**asdict(self), "complete": self.complete}


def check(schedule: LinkSchedule, topology: Topology, *, most_followed: int = 300_000) -> Proof:
    """Prove that a schedule is right, or refuse it.

    Args:
        schedule: the schedule.
        topology: the machine.
        most_followed: transfers of single ranges of the payload to replay at most; 0 for none. If
            there are more, an even sample of the ranges is replayed.

    Returns:
        What was proven.

    Raises:
        CostError: if something is wrong; names the first transfer at fault.
    """
    n_links = _check_links(schedule, topology)
    _check_cycles(schedule, topology)
    _check_exclusive(schedule)
    if schedule.is_pipelined:
        _check_order_of_vectors(schedule)
    else:
        _check_order(schedule)
    ranges = _ranges(schedule)
    total = int(sum(length for *_, length in ranges))
    every = max(1, -(-total // most_followed)) if most_followed > 0 else len(ranges) + 1
    chosen = ranges[every // 2 :: every] if most_followed > 0 else []
    by_run: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for run, low, high, _ in chosen:
        by_run[run].append((low, high))
    for run, parts in by_run.items():
        _follow(schedule, run, parts)
    return Proof(
        transfers=schedule.n_transfers, links=n_links, ranges=len(ranges), followed=len(chosen)
    )


def _fail(schedule: LinkSchedule, index: int | np.integer, what: str) -> NoReturn:
    """Refuse a schedule because of one transfer."""
    name = link_name(schedule.src[index], schedule.dst[index], schedule.part[index])
    step = int(schedule.step[index])
    raise CostError(
        f"{schedule.kind} {schedule.algorithm}: transfer {int(index)} on link {name} in step "
        f"{step} ({schedule.step_names[step]!r}) {what}"
    )


def _check_links(schedule: LinkSchedule, topology: Topology) -> int:
    """Look every link up among those of the machine; returns how many there are."""
    graph = topology.graph
    columns = (schedule.src, schedule.dst, schedule.part)
    beyond = (graph.n_chips, graph.n_chips, int(graph.part.max(initial=0)) + 1)
    outside = np.zeros(schedule.n_transfers, np.bool_)
    for column, limit in zip(columns, beyond, strict=True):
        outside |= (column < 0) | (column >= limit)
    for index in np.flatnonzero(outside):
        _fail(schedule, index, "takes a link that does not exist")
    known = np.ravel_multi_index((graph.src, graph.dst, graph.part), beyond)
    used, sample = np.unique(np.ravel_multi_index(columns, beyond), return_index=True)
    for index in np.sort(sample[~np.isin(used, known)]):
        _fail(schedule, index, "takes a link that does not exist")
    return int(used.size)


def _check_cycles(schedule: LinkSchedule, topology: Topology) -> None:
    """Compare vectors with pieces, and cycles with vectors."""
    first = schedule.vectors_before(schedule.first_piece, schedule.origin)
    after = schedule.vectors_before(schedule.first_piece + schedule.piece_count, schedule.origin)
    wrong = (first != schedule.first_vector) | (after - first != schedule.vector_count)
    for index in np.flatnonzero(wrong | (schedule.vector_count < 1)):
        _fail(
            schedule,
            index,
            f"carries {schedule.vector_count[index]} vectors from {schedule.first_vector[index]} "
            f"on; its pieces are {after[index] - first[index]} from {first[index]} on",
        )
    hop, frame = _link_times(schedule, topology)
    held = schedule.release_cycle - schedule.start_cycle
    late = schedule.arrival_cycle - schedule.start_cycle
    for index in np.flatnonzero(np.abs(held - schedule.vector_count * frame) > _TOLERANCE):
        _fail(schedule, index, f"holds its link for {held[index]:g} cycles, not for its vectors")
    expected = hop + (schedule.vector_count - 1) * frame
    for index in np.flatnonzero(np.abs(late - expected) > _TOLERANCE):
        _fail(schedule, index, f"arrives after {late[index]:g} cycles, not {expected[index]:g}")
    end = schedule.step_end_cycle[schedule.step]
    for index in np.flatnonzero(schedule.arrival_cycle > end + _TOLERANCE):
        _fail(schedule, index, f"arrives after the end of its step at cycle {end[index]:g}")
    for index in np.flatnonzero(schedule.release_cycle > end + _TOLERANCE):
        _fail(schedule, index, f"holds its link after the end of its step at cycle {end[index]:g}")


def _link_times(
    schedule: LinkSchedule, topology: Topology
) -> tuple[Float[np.ndarray, " transfers"], Float[np.ndarray, " transfers"]]:
    """Cycles of a first vector and of a frame, looked up apart from the schedule's own look-up.

    Links are alike that cross the same boundaries, so one of each sort is asked for its rate.
    """
    hop_s = (
        topology.local_hop_s,
        float(topology.node_hop_s(1)),
        float(topology.node_hop_s(2)),
        topology.rack_hop_s,
    )
    hop, frame = np.zeros((2, schedule.n_transfers))
    half_rack = topology.node_chips * topology.nodes_per_half_rack
    sort = np.zeros(schedule.n_transfers, np.int64)
    for crossed, unit in enumerate((topology.node_chips, half_rack, topology.rack_chips), 1):
        sort[schedule.src // unit != schedule.dst // unit] = crossed
    for crossed in np.unique(sort):
        alike = sort == crossed
        index = int(np.argmax(alike))
        link = topology.links_between(int(schedule.src[index]), int(schedule.dst[index]))[0]
        hop[alike] = hop_s[crossed] * schedule.clock_hz
        frame[alike] = topology.frame_bytes / link.bytes_per_s * schedule.clock_hz
    return hop, frame


def _check_exclusive(schedule: LinkSchedule) -> None:
    """Show that the intervals on each link are disjoint."""
    link = link_keys(schedule.src, schedule.dst, schedule.part)
    order = np.lexsort((schedule.start_cycle, link))
    start, release = schedule.start_cycle[order], schedule.release_cycle[order]
    clash = (link[order][1:] == link[order][:-1]) & (start[1:] < release[:-1] - _TOLERANCE)
    for index in np.flatnonzero(clash):
        _fail(
            schedule,
            order[index + 1],
            f"starts at cycle {start[index + 1]:g}, before the link is free at {release[index]:g}",
        )


def _check_order(schedule: LinkSchedule) -> None:
    """Show that a chip sends only after all that earlier steps sent it has arrived."""
    n_chips = int(max(schedule.src.max(initial=0), schedule.dst.max(initial=0))) + 1
    arrived = np.zeros((schedule.hops + 1, n_chips))
    np.maximum.at(arrived, (schedule.step + 1, schedule.dst), schedule.arrival_cycle)
    before = np.maximum.accumulate(arrived, axis=0)[schedule.step, schedule.src]
    for index in np.flatnonzero(schedule.start_cycle < before - _TOLERANCE):
        _fail(
            schedule,
            index,
            f"starts at cycle {schedule.start_cycle[index]:g}, before what it passes on has "
            f"arrived at {before[index]:g}",
        )


def _check_order_of_vectors(schedule: LinkSchedule) -> None:
    """Show that a vector leaves a chip only after all that earlier steps sent of it has arrived."""
    for index in np.flatnonzero(schedule.vector_count != 1):
        _fail(schedule, index, f"carries {schedule.vector_count[index]} vectors; pipelined, 1")
    # In an all_to_all vectors of equal number have as many contents as there are chips.
    whose = schedule.origin * (schedule.kind == "all_to_all")
    chips = np.concatenate([schedule.src, schedule.dst])
    columns = [np.tile(column, 2) for column in (schedule.run, schedule.first_piece, whose)]
    _, place = np.unique(np.stack([chips, *columns]), axis=1, return_inverse=True)
    here, there = np.split(place.reshape(-1), 2)
    arrived = np.zeros(place.size)
    for step in range(schedule.hops):
        now = np.flatnonzero(schedule.step == step)
        early = schedule.start_cycle[now] < arrived[here[now]] - _TOLERANCE
        for index in now[early]:
            _fail(
                schedule,
                index,
                f"starts at cycle {schedule.start_cycle[index]:g}, before its vector has arrived "
                f"at {arrived[here[index]]:g}",
            )
        np.maximum.at(arrived, there[now], schedule.arrival_cycle[now])


def _ranges(schedule: LinkSchedule) -> list[tuple[int, int, int, int]]:
    """Cut the payload of each run where any transfer starts or ends.

    Returns:
        Run, first piece, end, and how many transfers carry it, for each range.
    """
    if not schedule.payload_vectors or schedule.runs.shape[1] == 1:
        return []
    found = []
    order = np.argsort(schedule.run, kind="stable")
    limits = np.searchsorted(schedule.run[order], np.arange(schedule.runs.shape[0] + 1))
    owned = schedule.kind in OWN_PIECES
    chips = np.arange(schedule.runs.shape[1] + 1 if owned else 2)
    of_slice = chips * schedule.slice_pieces // chips[-1]
    edges = np.add.outer(np.arange(schedule.n_slices) * schedule.slice_pieces, of_slice).reshape(-1)
    for run in range(schedule.runs.shape[0]):
        mine = order[limits[run] : limits[run + 1]]
        first = schedule.first_piece[mine]
        last = first + schedule.piece_count[mine]
        cuts = np.unique(np.concatenate([first, last, edges]))
        lengths = np.zeros(cuts.size, np.int64)
        np.add.at(lengths, np.searchsorted(cuts, first), 1)
        np.add.at(lengths, np.searchsorted(cuts, last), -1)
        lengths = np.cumsum(lengths)
        found += [
            (run, low, high, length)
            for low, high, length in zip(
                cuts[:-1].tolist(), cuts[1:].tolist(), lengths[:-1].tolist(), strict=True
            )
        ]
    return found


def _follow(schedule: LinkSchedule, run: int, ranges: list[tuple[int, int]]) -> None:
    """Replay the transfers of some ranges of the payload of a run."""
    mine = np.flatnonzero(schedule.run == run)
    mine = mine[np.argsort(schedule.step[mine], kind="stable")]
    first = schedule.first_piece[mine]
    last = first + schedule.piece_count[mine]
    for low, high in ranges:
        _Replay(schedule, run, low, high).run_through(mine[(first <= low) & (last >= high)])


class _Replay:
    """One range of the payload on its way through one run.

    A set of contributions is a number with a bit for each chip of the run. A chip keeps every sum
    that reaches it; what it passes on is made of the largest of them, which must not overlap.
    """

    def __init__(self, schedule: LinkSchedule, run: int, low: int, high: int) -> None:
        self.schedule = schedule
        self.chips: list[int] = schedule.runs[run].tolist()
        self.low, self.high = low, high
        n = len(self.chips)
        self.owner = low % schedule.slice_pieces * n // schedule.slice_pieces
        edges = schedule.vectors_before(np.array([[low], [high]]), np.arange(n))
        # Contributions that have vectors in this range.
        some = np.broadcast_to(edges[1] > edges[0], (n,))
        self.some = sum(1 << place for place in np.flatnonzero(some).tolist())
        self.held: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for chip, contribution in self._at_start():
            self.held[chip].append((-1, contribution))

    def _at_start(self) -> list[tuple[int, int]]:
        kind, chips = self.schedule.kind, self.chips
        if kind == "all_gather":
            started = [(chips[self.owner], 1 << self.owner)]
        elif kind in ("send", "broadcast"):
            started = [(chips[0], 1)]
        elif kind == "hand_over":
            started = [(chip, 1) for chip in chips[: len(chips) // 2]]
        else:
            started = [(chip, 1 << place) for place, chip in enumerate(chips)]
        return [(chip, one & self.some) for chip, one in started if one & self.some]

    def _at_end(self) -> list[tuple[int, int]]:
        kind, chips = self.schedule.kind, self.chips
        if kind in ("reduce_scatter", "all_to_all"):
            wanted = [(chips[self.owner], (1 << len(chips)) - 1)]
        elif kind == "all_reduce":
            wanted = [(chip, (1 << len(chips)) - 1) for chip in chips]
        elif kind == "all_gather":
            wanted = [(chip, 1 << self.owner) for chip in chips]
        elif kind == "send":
            wanted = [(chips[-1], 1)]
        elif kind == "broadcast":
            wanted = [(chip, 1) for chip in chips]
        else:
            wanted = [(chip, 1) for chip in chips[len(chips) // 2 :]]
        return [(chip, all_ & self.some) for chip, all_ in wanted]

    def _content(self, chip: int, since: int, allowed: int) -> int:
        """Sum of what a chip has; -1 if some of it is in it twice."""
        sums = [one for step, one in self.held[chip] if step >= since and not one & ~allowed]
        total = 0
        for one in sorted(sums, key=int.bit_count, reverse=True):
            if not one & total:
                total |= one
            elif one & total != one:
                return -1
        return total

    def run_through(self, transfers: Int[np.ndarray, " transfers"]) -> None:
        """Follow the transfers, which are in the order of their steps."""
        schedule = self.schedule
        columns = (
            schedule.step, schedule.src, schedule.dst, schedule.since_step, schedule.origin,
            schedule.origin_count,
        )  # fmt: skip
        table = zip(*(column[transfers].tolist() for column in columns), strict=True)
        now = -1
        made: dict[tuple[int, int, int], int] = {}
        arriving: list[tuple[int, int, int]] = []
        for index, (step, src, dst, since, origin, n_origins) in zip(
            transfers.tolist(), table, strict=True
        ):
            if step != now:
                self._receive(now, arriving)
                now, made, arriving = step, {}, []
            allowed = ((1 << n_origins) - 1) << origin & self.some
            if not allowed:
                continue
            if (src, since, allowed) not in made:
                made[src, since, allowed] = self._content(src, since, allowed)
            content = made[src, since, allowed]
            if not content:
                _fail(schedule, index, f"passes on what chip {src} does not have")
            if content < 0:
                _fail(schedule, index, "carries a contribution twice")
            arriving.append((index, dst, content))
        self._receive(now, arriving)
        self._check_end()

    def _receive(self, step: int, arriving: list[tuple[int, int, int]]) -> None:
        """Note what has arrived; nothing may arrive that a chip has already."""
        for index, chip, content in arriving:
            has = functools.reduce(operator.or_, (one for _, one in self.held[chip]), 0)
            if not content & ~has:
                _fail(self.schedule, index, f"brings chip {chip} what it already has")
            self.held[chip].append((step, content))

    def _check_end(self) -> None:
        for chip, wanted in self._at_end():
            content = self._content(chip, -1, wanted)
            if content < 0:
                raise CostError(f"{self._range()} end on chip {chip} with a contribution twice")
            if content != wanted:
                missing = self.chips[(wanted & ~content).bit_length() - 1]
                raise CostError(
                    f"{self._range()} end on chip {chip} without the contribution of chip {missing}"
                )

    def _range(self) -> str:
        schedule = self.schedule
        edges = np.array([self.low, self.high])
        first, end = schedule.vectors_before(edges, np.zeros_like(edges)).tolist()
        return f"{schedule.kind} {schedule.algorithm}: of the payload, vectors {first}..{end - 1}"
