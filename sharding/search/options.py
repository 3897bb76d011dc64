"""Ways to split the parts of a group, timed where the group lies, and their combinations.

What cannot be part of a plan that is wanted is dropped before it is timed: its own bound and the
least of the other parts exceed the latency allowed, or their bytes the memory of all stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from ..plan import FFN_PARTS
from ..predict.placements import Placements
from ..space.cores import in_group
from ..space.shard_table import Column, ShardTable, joined
from .bounds import COSTS, Bounds, PartBounds, PartCosts, part_costs

Numbers = Float[np.ndarray, " rows"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Plans with as many stages and chips of a group, of which only some are wanted."""

    stages: int
    group_chips: int
    placement: int
    most_cycles: float  #: of a token's blocks
    most_period: float  #: between two micro-batches
    flight: int  #: which of the bounds' flights a plan needs at least


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ways to split a part in one group, the cores they come from, and what they take."""

    table: ShardTable
    core: Column
    costs: PartCosts

    def take(self, rows: Column) -> "Options":
        """Keep some ways."""
        return Options(
            table=self.table.take(rows), core=self.core[rows], costs=self.costs.take(rows)
        )

    def and_then(self, others: "Options") -> "Options":
        """Add others behind."""
        return Options(
            table=joined([self.table, others.table]),
            core=np.concatenate([self.core, others.core]),
            costs=self.costs.and_then(others.costs),
        )


def wanted_cores(part: PartBounds, item: Item, bound: Bounds, room: float) -> Column:
    """List the cores that may be part of a plan of an item that fits and is quick enough."""
    chips, f = item.group_chips, item.flight
    rows = np.flatnonzero(chips % part.n_chips == 0)
    memory = item.stages * bound.stage_bytes(chips, room, part.live_bytes[rows])
    cycles, held = part.all_cycles[rows], part.bytes_in_flight[f][rows]
    others = bound.all_bytes[f, chips] - bound.bytes_by_part[part.part][f, chips]
    rows_that_fit = held + others <= memory * _SLACK
    rest = bound.priced_cycles[f, :, chips] - bound.priced_by_part[part.part][f, :, chips]
    price = bound.price_per_byte[:, None]
    least = (cycles + price * (held - memory) + rest[:, None]).max(0)
    kept = rows_that_fit & (least <= item.most_cycles * _SLACK)
    # Some stage has its share of the blocks of a kind, rounded up.
    for kind, count in part.costs.counts.items():
        share = -(-count // item.stages)
        kept &= share * part.costs.cycles[kind][rows] <= item.most_period * _SLACK
    return np.asarray(rows[kept])


class Timer:
    """Times ways to split parts where they lie, each once for all branches that want it."""

    def __init__(
        self, bound: Bounds, room: float, placements: Placements, *, keeps_beaten: bool = False
    ) -> None:
        """Begin with nothing timed.

        Args:
            bound: of the plans of a pool.
            room: bytes that a chip has.
            placements: where groups lie.
            keeps_beaten: whether options that are no better than another count too, because it
                matters which blocks share a stage.
        """
        self.bound, self.room, self.placements = bound, room, placements
        self._choose = distinct if keeps_beaten else undominated
        self.n_timed = 0
        self._timed: dict[tuple[int, str], set[int]] = {}
        self._options: dict[tuple[int, str], Options] = {}

    def options(self, items: Sequence[Item]) -> list[dict[str, Options] | None]:
        """Time the wanted ways to split each part of some branches.

        Returns:
            For each branch the options of each part, or nothing if a part has none. Options that
            another one equals (or beats) in everything are dropped, if rows do not tell them apart.
        """
        wanted = [
            {
                part.part: wanted_cores(part, item, self.bound, self.room)
                for part in self.bound.parts
            }
            for item in items
        ]
        hopeful = [all(len(rows) for rows in own.values()) for own in wanted]
        for part in self.bound.parts:
            new: dict[int, set[int]] = {}
            for item, own, is_hopeful in zip(items, wanted, hopeful, strict=True):
                if is_hopeful:
                    known = self._timed.setdefault((item.placement, part.part), set())
                    new.setdefault(item.placement, set()).update(
                        set(own[part.part].tolist()) - known
                    )
            self._time(part, {place: rows for place, rows in new.items() if rows})
        return [
            {p.part: self._options[item.placement, p.part] for p in self.bound.parts}
            if is_hopeful
            else None
            for item, is_hopeful in zip(items, hopeful, strict=True)
        ]

    def has_none(self, item: Item) -> bool:
        """Whether no plan of a branch may fit, however slow."""
        return not all(len(self._that_fit(part, item)) for part in self.bound.parts)

    def _that_fit(self, part: PartBounds, item: Item) -> Column:
        """List the cores that may be part of a plan of an item that fits, however slow."""
        anyone = replace(item, most_cycles=np.inf, most_period=np.inf)
        return wanted_cores(part, anyone, self.bound, self.room)

    def has_all(self, item: Item) -> bool:
        """Whether all plans of a branch that may fit are combinations of what is timed by now."""
        slowest = 0.0
        for part in self.bound.parts:
            key = item.placement, part.part
            if not self._timed[key].issuperset(self._that_fit(part, item).tolist()):
                return False
            slowest += float(self._options[key].costs.all_cycles.max())
        return bool(slowest <= item.most_cycles)

    def _time(self, part: PartBounds, new: Mapping[int, set[int]]) -> None:
        """Time cores of a part in every order, at each placement."""
        if not new:
            return
        tables, cores, where = [], [], []
        for place, rows in new.items():
            chips = self.placements.groups[place].chips
            table, core = in_group(part.cores, chips, np.array(sorted(rows)))
            tables.append(table)
            cores.append(core)
            where.append(np.full(len(core), place))
            self._timed[place, part.part] |= rows
        table, core, placement = joined(tables), np.concatenate(cores), np.concatenate(where)
        self.n_timed += len(core)
        costs = part_costs(part.part, table, placement, self.placements, self.bound.scenario)
        every = Options(table=table, core=core, costs=costs)
        for place in new:
            found = every.take(np.flatnonzero(placement == place))
            if (known := self._options.get((place, part.part))) is not None:
                found = known.and_then(found)
            self._options[place, part.part] = found.take(self._choose(found, part, self.bound))


def undominated(options: Options, part: PartBounds, bound: Bounds) -> Column:
    """Keep the options that no other of the same form equals or beats in everything."""
    form, costs = _forms_and_costs(options, part, bound)
    kept = np.zeros(len(form), bool)
    order = np.lexsort((np.arange(len(form)), costs.sum(0), form))
    for rows in np.split(order, np.flatnonzero(np.diff(form[order])) + 1):
        kept[_front(costs[:, rows], rows)] = True
    return np.flatnonzero(kept)


def distinct(options: Options, part: PartBounds, bound: Bounds) -> Column:
    """Keep the first of the options of a form that are equal in everything."""
    form, costs = _forms_and_costs(options, part, bound)
    _, first = np.unique(np.vstack([form, costs]), axis=1, return_index=True)
    return np.sort(first)


def _forms_and_costs(
    options: Options, part: PartBounds, bound: Bounds
) -> tuple[Column, Float[np.ndarray, "costs options"]]:
    """Return what rows tell apart of each option, and all that it takes and holds."""
    form = options.core if part.part in told_apart(bound) else np.zeros(len(options.core), np.int64)
    costs = [values for name in COSTS for values in getattr(options.costs, name).values()]
    return form, np.stack(costs)


def _front(costs: Float[np.ndarray, "costs rows"], rows: Column) -> Int[np.ndarray, " kept"]:
    """Rows that no earlier one equals or beats in all costs; those with smaller sums are first."""
    front: list[int] = []
    for i in range(len(rows)):
        if not front or not np.any(np.all(costs[:, front] <= costs[:, i : i + 1], axis=0)):
            front.append(i)
    return rows[front]


def told_apart(bound: Bounds) -> tuple[str, ...]:
    """Parts whose degrees and splits make rows of a comparison different.

    They are attention and the part that holds most of the weights; of the others, and of orders of
    axes and stages, a row has what is best.
    """
    heavy = sorted(
        (part for part in bound.space if part.part in FFN_PARTS),
        key=lambda part: float(part.all_bytes.max(initial=0.0)),
    )
    attention = [part.part for part in bound.space if part.part == "attention"]
    return *attention, *(part.part for part in heavy[-1:])


@dataclass(frozen=True, kw_only=True)
class Combinations:
    """An option of every part, a row each."""

    rows: Mapping[str, Column]  #: of each part's options
    cycles: Numbers  #: of a token's blocks
    upto_cycles: float  #: all that take no longer are here

    def take(self, rows: Column) -> "Combinations":
        """Keep some."""
        return Combinations(
            rows={part: own[rows] for part, own in self.rows.items()},
            cycles=self.cycles[rows],
            upto_cycles=self.upto_cycles,
        )


#: Pairs of options that are looked at together.
_MOST_PAIRS = 1 << 20


def combined(
    options: Mapping[str, Options], item: Item, n_flying: int, room: float
) -> Combinations:
    """Combine options of all parts, without those that are too slow or hold too much.

    Where there are too many, only the quickest are combined.
    """
    cycles = {part: own.costs.all_cycles for part, own in options.items()}
    held = {part: own.costs.bytes_in_flight(np.array(n_flying)) for part, own in options.items()}
    quickest, most_cycles = sum(float(own.min()) for own in cycles.values()), item.most_cycles
    while True:
        found = _combined(cycles, held, most_cycles, item.stages * room)
        if found is not None:
            return found
        slowest = sum(float(own.max()) for own in cycles.values())
        most_cycles = quickest + (min(most_cycles, slowest) - quickest) / 2


def _combined(
    cycles_by_part: Mapping[str, Float[np.ndarray, " _options"]],
    held_by_part: Mapping[str, Float[np.ndarray, " _options"]],
    most_cycles: float,
    most_bytes: float,
) -> Combinations | None:
    """Combine options part by part; None if there are too many."""
    rest_cycles = sum(float(own.min()) for own in cycles_by_part.values())
    rest_bytes = sum(float(own.min()) for own in held_by_part.values())
    rows: dict[str, Column] = {}
    cycles, held = np.zeros(1), np.zeros(1)
    for part, more_cycles in cycles_by_part.items():
        more_held = held_by_part[part]
        rest_cycles -= float(more_cycles.min())
        rest_bytes -= float(more_held.min())
        least = float(cycles.min()) if len(cycles) else 0.0
        kept = np.flatnonzero(more_cycles + least + rest_cycles <= most_cycles * _SLACK)
        if len(kept) * len(cycles) > _MOST_PAIRS and len(kept) > 1:
            return None
        every_cycles = np.add.outer(cycles, more_cycles[kept])
        every_held = np.add.outer(held, more_held[kept])
        before, row = np.nonzero(
            (every_cycles + rest_cycles <= most_cycles * _SLACK)
            & (every_held + rest_bytes <= most_bytes * _SLACK)
        )
        rows = {name: old[before] for name, old in rows.items()} | {part: kept[row]}
        cycles, held = every_cycles[before, row], every_held[before, row]
    return Combinations(rows=rows, cycles=cycles, upto_cycles=most_cycles)


#: What rounding may add to a sum.
_SLACK = 1 + 1e-12
