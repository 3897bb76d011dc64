"""Collectives written out: every transfer with its link and the cycles in which it holds it.

`links` prices collectives in closed form; this module lists the same algorithms transfer by
transfer, for all runs of a mesh axis at once, so that links which runs share are seen to be shared.
The two do not use each other; tests compare the two. Steps follow one another with a
barrier: a step starts when everything of the step before has arrived. Pipelined, every vector has a
transfer of its own, which starts when all of the vector that earlier steps bring has arrived
(`overlap`). Transfers that share a link follow one another on it. `link_check` proves a schedule
right.

Not modelled: routes over a third node, link errors, and time for additions, which overlap with
arrival.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from ...datapath.axis import steps_of
from ...errors import CostError, unknown
from ...machine.topology import Topology
from .algorithms.table import ALGORITHMS
from .kinds import LISTED_KINDS
from .link_table import LinkSchedule, link_keys, piece_starts
from .overlap import starts_as_vectors_arrive
from .routes.rows import Rows


def link_levels(
    topology: Topology, src: Int[np.ndarray, " n"], dst: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Find the level that links cross.

    Args:
        topology: the machine.
        src: sending chips.
        dst: receiving chips.

    Returns:
        0 inside a node, 1 between nodes of a rack, 2 between racks.
    """
    size, rack_chips = topology.node_chips, topology.rack_chips
    crossed = [src // unit != dst // unit for unit in (size, rack_chips)]
    return np.asarray(np.sum(crossed, axis=0, dtype=np.int64))


def link_cycles(
    topology: Topology,
    clock_hz: int | float,
    src: Int[np.ndarray, " n"],
    dst: Int[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Look up how long links take.

    Args:
        topology: the machine.
        clock_hz: clock in which cycles are counted.
        src: sending chips.
        dst: receiving chips.

    Returns:
        Cycles of a first vector, and between vectors, of each link.
    """
    half = topology.node_chips * topology.nodes_per_half_rack
    level = link_levels(topology, src, dst)
    kind = np.where((level == 1) & (src // half != dst // half), 3, level)
    node = topology.node_link_bytes_per_s
    rates = (topology.local_bytes_per_s, node, topology.rack_link_bytes_per_s, node)
    hop_s = (
        topology.local_hop_s,
        float(topology.node_hop_s(1)),
        topology.rack_hop_s,
        float(topology.node_hop_s(2)),
    )
    frame_s = [topology.frame_s(rate) for rate in rates]
    return np.array(hop_s)[kind] * clock_hz, np.array(frame_s)[kind] * clock_hz


def link_schedule(
    topology: Topology,
    clock_hz: int | float,
    kind: str,
    algorithm: str,
    runs: Int[np.ndarray, "runs chips"],
    payload_bytes: int,
) -> LinkSchedule:
    """List every transfer of a collective over all runs of a mesh axis, with links and cycles.

    Args:
        topology: the machine's links.
        clock_hz: clock in which cycles are counted.
        kind: one of `LISTED_KINDS`. A hand_over moves a vector that every chip of one group holds
            to every chip of another: a run is the chips of the first group, then those of the
            second.
        algorithm: one of `ALGORITHMS`, or `+pipelined` behind one; the links that it needs must
            exist.
        runs: chips of each run, ascending; contiguous or a constant stride apart or neither.
        payload_bytes: bytes of the full vector of a chip (all_gather: the gathered output;
            reduce_scatter: the input; all_to_all: what one chip holds).

    Returns:
        The schedule; without transfers for runs of one chip or an empty payload.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
        CostError: if the runs are not runs of chips of the machine, or the algorithm does not exist
            for this kind or over the links of the runs.

    Fidelity:
        Exact for the algorithms as defined; compared with machines nowhere.

    Source:
        Scheduled links, frames and the three-hop all-reduce: ISCA22. Which chip owns which link is
        assumed (`ports`).
    """
    if kind not in LISTED_KINDS:
        raise unknown("collective", kind, LISTED_KINDS)
    if steps_of(algorithm) not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if not (math.isfinite(clock_hz) and clock_hz > 0):
        raise CostError(f"link_schedule: clock_hz={clock_hz} must be positive and finite")
    if payload_bytes < 0:
        raise CostError(f"link_schedule: payload_bytes={payload_bytes} must not be negative")
    _check_runs(topology, kind, runs)
    n_vectors = -(-payload_bytes // topology.frame_payload_bytes)
    runs = np.asarray(runs, np.int64)
    n_slices = 1
    if runs.shape[1] == 1 or n_vectors == 0 or runs.size == 0:
        rows, n_pieces = Rows.none(), 1
    else:
        rows, n_pieces = _route(topology, kind, steps_of(algorithm), runs)
        if algorithm != steps_of(algorithm):
            n_slices = -(-n_vectors // n_pieces)
            rows = rows.singly().repeated(n_slices, n_pieces)
    return _timed(
        topology, clock_hz, kind, algorithm, runs, payload_bytes, rows, n_pieces, n_slices
    )


def _route(
    topology: Topology, kind: str, algorithm: str, runs: Int[np.ndarray, "runs chips"]
) -> tuple[Rows, int]:
    """List who sends which pieces to whom, if the algorithm exists for the kind."""
    row = ALGORITHMS[algorithm]
    listed = (*row.kinds, *row.also_listed)
    if kind not in listed:
        *first, last = listed
        kinds = f"{', '.join(first)} and {last}" if first else last
        raise CostError(f"{algorithm} is not an algorithm for {kind}; it does {kinds}")
    return row.route(topology, kind, runs)


def _check_runs(topology: Topology, kind: str, runs: Int[np.ndarray, "runs chips"]) -> None:
    """Refuse what is not a set of runs of the machine."""
    if not runs.shape[1]:
        raise CostError("link_schedule: a run needs at least one chip")
    if runs.size and (runs.min() < 0 or runs.max() >= topology.n_chips):
        raise CostError(f"link_schedule: runs reach beyond the machine's {topology.n_chips} chips")
    halves = [runs]
    if kind == "hand_over":
        if runs.shape[1] % 2:
            raise CostError(
                f"link_schedule: a hand_over is between two groups of equal size, "
                f"not over {runs.shape[1]} chips"
            )
        middle = runs.shape[1] // 2
        halves = [runs[:, :middle], runs[:, middle:]]
        if np.any(np.diff(np.sort(runs, axis=1), axis=1) == 0):
            raise CostError("link_schedule: the two groups of a hand_over share a chip")
    if any(np.any(np.diff(half, axis=1) <= 0) for half in halves):
        raise CostError("link_schedule: the chips of each run must ascend")


def _merged(
    rows: Rows, step: Int[np.ndarray, " rows"], link: Int[np.ndarray, " rows"]
) -> tuple[Rows, Int[np.ndarray, " merged"], Int[np.ndarray, " merged"]]:
    """Send pieces that follow one another on a link, and are alike else, in one transfer."""
    opens = np.ones(step.size, np.bool_)
    opens[1:] = (
        (step[1:] != step[:-1])
        | (link[1:] != link[:-1])
        | (rows.run[1:] != rows.run[:-1])
        | (rows.origin[1:] != rows.origin[:-1])
        | (rows.origins[1:] != rows.origins[:-1])
        | (rows.since[1:] != rows.since[:-1])
        | (rows.first[1:] != (rows.first + rows.count)[:-1])
    )
    begin = np.flatnonzero(opens)
    count = np.add.reduceat(rows.count, begin) if begin.size else rows.count
    return replace(rows.take(begin), count=count), step[begin], link[begin]


def _timed(
    topology: Topology,
    clock_hz: int | float,
    kind: str,
    algorithm: str,
    runs: Int[np.ndarray, "runs chips"],
    payload_bytes: int,
    rows: Rows,
    slice_pieces: int,
    n_slices: int,
) -> LinkSchedule:
    """Give every transfer its vectors and its cycles."""
    is_pipelined, n_pieces = algorithm != steps_of(algorithm), slice_pieces * n_slices
    n_vectors = -(-payload_bytes // topology.frame_payload_bytes)
    phases, step = np.unique(rows.phase, return_inverse=True)
    link = link_keys(rows.src, rows.dst, rows.part)
    order = np.lexsort((rows.first, rows.origin, rows.run, rows.first // slice_pieces, link, step))
    rows, step, link = rows.take(order), step[order], link[order]
    if not is_pipelined:
        rows, step, link = _merged(rows, step, link)
    # In an all_to_all each chip's cut is shifted, so that remainders go to all chips alike.
    shift, shifts = (rows.origin, runs.shape[1]) if kind == "all_to_all" else (0, 1)
    first, after = (
        piece_starts(pieces, n_pieces, n_vectors, shift, shifts, n_slices)
        for pieces in (rows.first, rows.first + rows.count)
    )
    vectors = after - first
    some = vectors > 0
    rows, step, link, first, vectors = (
        rows.take(some), step[some], link[some], first[some], vectors[some]
    )  # fmt: skip
    hop, frame = link_cycles(topology, clock_hz, rows.src, rows.dst)
    used, step = np.unique(step, return_inverse=True)  # a step without vectors is none
    if is_pipelined:
        start = starts_as_vectors_arrive(rows, step, link, hop, frame, kind)
    else:
        start = _starts_after_steps(step, link, vectors, hop, frame)
    release = start + vectors * frame
    arrival = start + hop + (vectors - 1) * frame
    ends = np.zeros(used.size)
    np.maximum.at(ends, step, np.maximum(arrival, release))
    return LinkSchedule(
        kind=kind,
        algorithm=algorithm,
        runs=runs,
        payload_bytes=payload_bytes,
        payload_vectors=n_vectors,
        n_pieces=n_pieces,
        n_slices=n_slices,
        clock_hz=float(clock_hz),
        frame_payload_bytes=topology.frame_payload_bytes,
        frame_bytes=topology.frame_bytes,
        step_names=ALGORITHMS[steps_of(algorithm)].step_names(kind, phases[used].tolist()),
        step_end_cycle=np.maximum.accumulate(ends),
        step=step,
        run=rows.run,
        src=rows.src,
        dst=rows.dst,
        part=rows.part,
        level=link_levels(topology, rows.src, rows.dst),
        first_piece=rows.first,
        piece_count=rows.count,
        since_step=np.where(rows.since < 0, -1, np.searchsorted(phases[used], rows.since)),
        origin=rows.origin,
        origin_count=rows.origins,
        first_vector=first,
        vector_count=vectors,
        start_cycle=start,
        release_cycle=release,
        arrival_cycle=arrival,
    )


def _starts_after_steps(
    step: Int[np.ndarray, " rows"],
    link: Int[np.ndarray, " rows"],
    vectors: Int[np.ndarray, " rows"],
    hop: Float[np.ndarray, " rows"],
    frame: Float[np.ndarray, " rows"],
) -> Float[np.ndarray, " rows"]:
    """Start transfers one after another on each link, each step after all of the one before.

    Rows are in order of step and link.
    """
    opens = np.ones(link.size, np.bool_)
    opens[1:] = (link[1:] != link[:-1]) | (step[1:] != step[:-1])
    head = np.maximum.accumulate(np.where(opens, np.arange(link.size), 0))
    before = np.cumsum(vectors) - vectors
    start = (before - before[head]) * frame
    length = np.zeros(int(step.max(initial=-1)) + 1)
    # A link whose hop is shorter than a frame is free only after its last vector has arrived.
    done = np.maximum(start + hop + (vectors - 1) * frame, start + vectors * frame)
    np.maximum.at(length, step, done)
    return np.asarray((np.cumsum(length) - length)[step] + start)
