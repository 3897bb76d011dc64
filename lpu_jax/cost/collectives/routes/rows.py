"""Transfers as columns of integers, before they get their cycles, and how to join such tables.

The other modules here make `Rows`; `link_schedule` times them.
Not modelled: time.
"""

import functools
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Int

from ....machine.ports import PortMap

#: Phases of the schedules over levels, in order. Runs that need fewer leave some out, so that runs
#: inside a node and runs over several meet in the same steps.
SPREAD = 0
EXCHANGE = 1
FORWARD = 2
#: Racks in a line take one step for each distance: RACKS, RACKS + 1, ...
RACKS = 3
SPREAD_AGAIN = 1001
EXCHANGE_AGAIN = 1002
GATHER = 1003

#: A transfer that carries whatever its sender started with is counted from this phase on.
START = -1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Transfers, one per entry.

    Attributes:
        phase: order of the step.
        run: number of the run.
        src: sending chip.
        dst: receiving chip.
        part: which of the parallel links between the two.
        first: first piece of the payload that it carries.
        count: number of pieces.
        since: it carries what reached the sender in this phase or later; `START` includes what the
            sender started with.
        origin: it carries only data of the chips from this position in the run on ...
        origins: ... so many of them.
    """

    phase: Int[np.ndarray, " rows"]
    run: Int[np.ndarray, " rows"]
    src: Int[np.ndarray, " rows"]
    dst: Int[np.ndarray, " rows"]
    part: Int[np.ndarray, " rows"]
    first: Int[np.ndarray, " rows"]
    count: Int[np.ndarray, " rows"]
    since: Int[np.ndarray, " rows"]
    origin: Int[np.ndarray, " rows"]
    origins: Int[np.ndarray, " rows"]

    @staticmethod
    def none() -> "Rows":
        """Make a table without rows."""
        return Rows(**{field.name: np.zeros(0, np.int64) for field in fields(Rows)})

    def take(self, which: Int[np.ndarray, " some"] | Bool[np.ndarray, " rows"]) -> "Rows":
        """Select rows.

        Args:
            which: indices, or a mask.

        Returns:
            The rows selected.
        """
        return Rows(**{name: column[which] for name, column in vars(self).items()})

    def scaled(self, factor: int) -> "Rows":
        """Cut every piece into `factor` pieces.

        Args:
            factor: pieces for one.

        Returns:
            The same transfers in terms of the finer pieces.
        """
        return replace(self, first=self.first * factor, count=self.count * factor)

    def singly(self) -> "Rows":
        """Send every piece in a transfer of its own.

        Returns:
            Rows of a piece each, in the same order.
        """
        single = self.take(np.repeat(np.arange(self.run.size), self.count))
        before = np.repeat(np.cumsum(self.count) - self.count, self.count)
        offset = np.arange(single.run.size) - before
        return replace(single, first=single.first + offset, count=np.ones_like(offset))

    def repeated(self, n_slices: int, n_pieces: int) -> "Rows":
        """Take a payload of several slices the same way, slice by slice.

        Args:
            n_slices: slices of the payload.
            n_pieces: pieces of each.

        Returns:
            The same transfers for every slice; pieces are numbered slice by slice.
        """
        slices = np.repeat(np.arange(n_slices), self.run.size)
        rows = self.take(np.tile(np.arange(self.run.size), n_slices))
        return replace(rows, first=rows.first + slices * n_pieces)


_Column = int | np.integer | Int[np.ndarray, "..."]


def make_rows(
    n_chips: int,
    *,
    phase: _Column,
    run: _Column,
    src: _Column,
    dst: _Column,
    first: _Column,
    part: _Column = 0,
    count: _Column = 1,
    since: _Column = START,
    origin: _Column = 0,
    origins: _Column | None = None,
) -> Rows:
    """Make rows from columns that broadcast against each other; a chip sends nothing to itself.

    Args:
        n_chips: chips of a run: by default a transfer carries data of any of them.
        phase: as in `Rows`, and so are the others.
        run: see `Rows`.
        src: see `Rows`.
        dst: see `Rows`.
        first: see `Rows`.
        part: see `Rows`.
        count: see `Rows`.
        since: see `Rows`.
        origin: see `Rows`.
        origins: see `Rows`.

    Returns:
        Rows with flat columns, those with `src == dst` left out.
    """
    columns = np.broadcast_arrays(
        phase, run, src, dst, part, first, count, since, origin,
        n_chips if origins is None else origins,
    )  # fmt: skip
    moves = (columns[2] != columns[3]).reshape(-1)
    flat = (np.asarray(column, np.int64).reshape(-1)[moves] for column in columns)
    return Rows(**dict(zip((field.name for field in fields(Rows)), flat, strict=True)))


def join_rows(tables: list[Rows]) -> Rows:
    """Put tables of rows together.

    Args:
        tables: at least one.

    Returns:
        All rows, in the order given.
    """
    return Rows(
        **{
            field.name: np.concatenate([getattr(table, field.name) for table in tables])
            for field in fields(Rows)
        }
    )


def first_arrivals(rows: Rows, starters: Int[np.ndarray, "runs chips"]) -> Rows:
    """Drop copies of the payload that reach chips which have them already.

    Args:
        rows: transfers of copies, not of sums.
        starters: chips of each run that have the whole payload from the start.

    Returns:
        Single pieces, each sent to a chip once, as early as it was.
    """
    single = rows.singly()
    single = replace(single, since=np.full_like(single.since, START))
    n_chips = int(max(starters.max(initial=0), single.dst.max(initial=0))) + 1
    has = (np.arange(starters.shape[0])[:, None] * n_chips + starters).reshape(-1)
    single = single.take(~np.isin(single.run * n_chips + single.dst, has))
    single = single.take(np.argsort(single.phase, kind="stable"))
    _, back = unique_columns(single.run, single.dst, single.first)
    return single.take(np.unique(back, return_index=True)[1])


def unique_columns(
    *columns: Int[np.ndarray, " rows"],
) -> tuple[tuple[Int[np.ndarray, " kept"], ...], Int[np.ndarray, " rows"]]:
    """Find the distinct rows of a table of numbers that are not negative.

    Args:
        columns: the columns.

    Returns:
        The columns of the distinct rows, in ascending order, and for each row given its index among
        them.
    """
    key = np.zeros_like(columns[0])
    for column in columns:
        key = key * (int(column.max(initial=0)) + 1) + column
    _, sample, back = np.unique(key, return_index=True, return_inverse=True)
    return tuple(column[sample] for column in columns), back.reshape(-1)


def equal_pairs(
    left: Int[np.ndarray, " left"], right: Int[np.ndarray, " right"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Join two tables on a key.

    Args:
        left: keys of the left table.
        right: keys of the right table.

    Returns:
        Indices into the left and the right table of all pairs with equal keys.
    """
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    low = np.searchsorted(ordered, left, "left")
    n_found = np.searchsorted(ordered, left, "right") - low
    from_left = np.repeat(np.arange(left.size), n_found)
    before = np.cumsum(n_found) - n_found
    offset = np.arange(from_left.size) - np.repeat(before - low, n_found)
    return from_left, order[offset]


def mirror(rows: Rows, last_phase: int) -> Rows:
    """Run transfers backwards: an all-gather becomes a reduce-scatter.

    Args:
        rows: transfers that bring each piece from one chip to every chip once.
        last_phase: phase that becomes the first.

    Returns:
        Transfers that sum each piece on the way back; each carries all that its sender has of it.
    """
    return replace(
        rows,
        phase=last_phase - rows.phase,
        src=rows.dst,
        dst=rows.src,
        since=np.full_like(rows.since, START),
    )


@functools.lru_cache(maxsize=256)
def near_ends(ports: PortMap) -> Int[np.ndarray, "units units parts"]:
    """List the chips that carry the links of every pair of linked units.

    Args:
        ports: placement of the links on the chips of a unit.

    Returns:
        Position, in the first unit, of the chip that carries a part of the links to the second;
        -1 on the diagonal. The other end is the entry with the units exchanged.
    """
    n_units = ports.peers + 1
    table = np.full((n_units, n_units, ports.n_links), -1, np.int64)
    for own in range(n_units):
        for other in range(n_units):
            if own != other:
                table[own, other] = [
                    ports.ends(own, other, part)[0] for part in range(ports.n_links)
                ]
    table.setflags(write=False)
    return table
