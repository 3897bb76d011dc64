"""Lower bounds of every plan with so many chips in a group: what pruning rests on.

Each core is timed on the best-placed machine, where no order of axes and no place of a group can do
better (`BestPlacements`); bytes of weights, caches and tables are exact, those of live values are
of the largest one alone. A group of G chips holds cores whose chips divide G, so that the least of
every divisor is a bound for the group. The bound of a plan that must fit is Lagrange's: time and,
at some price, bytes are bounded together, less the price of all the memory that there is; every
price gives a bound, and the largest of them is taken.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.collectives.closed_form.priced import Schedule
from lpu_jax.cost.collectives.links import hand_overs_between
from lpu_jax.cost.timing import hand_over_cycles
from lpu_jax.machine.system import System
from models.blocks import Kind, block_chain

from ..plan import FFN_PARTS
from ..predict.block_report import BlockReport
from ..predict.cuts import Chain
from ..predict.hand_overs import TOKEN_BYTES, hidden_bytes
from ..predict.kinds import evaluate_kind
from ..predict.placement import Live, usable_bytes
from ..predict.placements import BestPlacements, Placements
from ..scenario import Scenario
from ..space.shard_table import Column, ShardTable
from .held import HeldCores, blocks_of, least_by_group, rows_that_may_fit

#: Prices of a byte that are tried, in powers of two around the time of a byte of the whole model.
_PRICES = np.arange(-10, 9)
#: Sizes of groups whose hand-overs are listed at once.
_SIZES_AT_ONCE = 64
#: Micro-batches in flight for which bounds are made; between two of them the lower one's is taken.
_FLIGHTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Numbers = Float[np.ndarray, " rows"]
Whole = Int[np.ndarray, " plans"]


#: What a way to split a part takes, by name.
COSTS = ("cycles", "weights", "cache", "activations", "tables", "dram_cache")


@dataclass(frozen=True, kw_only=True)
class PartCosts:
    """Time and bytes of ways to split a part: an entry per way; of blocks, one per kind."""

    cycles: Mapping[Kind, Numbers]
    weights: Mapping[Kind, Numbers]
    cache: Mapping[Kind, Numbers]
    activations: Mapping[Kind, Numbers]
    tables: Mapping[Kind, Numbers]
    dram_cache: Mapping[Kind, Numbers]
    counts: Mapping[Kind, int]  #: blocks of the chain

    @staticmethod
    def of(reports: Mapping[Kind, BlockReport], counts: Mapping[Kind, int], n: int) -> "PartCosts":
        """Read reports of blocks."""

        def column(read: Any) -> dict[Kind, Numbers]:
            return {
                kind: np.broadcast_to(np.asarray(read(report), np.float64), (n,))
                for kind, report in reports.items()
            }

        return PartCosts(
            cycles=column(lambda r: r.timing.cycles),
            weights=column(lambda r: r.held.weights),
            cache=column(lambda r: r.held.cache),
            activations=column(lambda r: r.held.activations),
            tables=column(lambda r: r.held.tables),
            dram_cache=column(lambda r: r.held.dram_cache),
            counts={kind: counts[kind] for kind in reports},
        )

    @staticmethod
    def none(counts: Mapping[Kind, int]) -> "PartCosts":
        """Costs of no way."""
        nothing = dict.fromkeys(counts, np.zeros(0))
        return PartCosts(counts=counts, **dict.fromkeys(COSTS, nothing))

    @property
    def all_cycles(self) -> Numbers:
        """Time of all blocks of the part."""
        return np.asarray(sum(n * self.cycles[kind] for kind, n in self.counts.items()))

    @property
    def all_bytes(self) -> Numbers:
        """Weights and caches of all blocks, one micro-batch in flight."""
        return self.bytes_in_flight(np.array(1))

    def bytes_in_flight(
        self, flights: Int[np.ndarray, "*flights"]
    ) -> Float[np.ndarray, "*flights rows"]:
        """Weights of all blocks, and their caches for so many micro-batches in flight."""
        weights = sum(n * self.weights[kind] for kind, n in self.counts.items())
        cache = sum(n * self.cache[kind] for kind, n in self.counts.items())
        return np.asarray(weights + np.asarray(flights)[..., None] * cache)

    @property
    def largest_bytes(self) -> Numbers:
        """Weights and cache of the largest block."""
        return np.asarray(np.max([self.weights[k] + self.cache[k] for k in self.counts], axis=0))

    @property
    def live_bytes(self) -> Numbers:
        """Values in use in one block at a time."""
        return np.asarray(np.max(list(self.activations.values()), axis=0))

    def take(self, rows: Column) -> "PartCosts":
        """Keep some ways."""
        columns = {
            name: {kind: values[rows] for kind, values in getattr(self, name).items()}
            for name in COSTS
        }
        return PartCosts(counts=self.counts, **columns)

    def and_then(self, others: "PartCosts") -> "PartCosts":
        """Add others behind."""
        columns = {
            name: {
                kind: np.concatenate([values, getattr(others, name)[kind]])
                for kind, values in getattr(self, name).items()
            }
            for name in COSTS
        }
        return PartCosts(counts=self.counts, **columns)


def part_costs(
    part: str,
    table: ShardTable,
    placement: Column,
    placements: Placements | BestPlacements,
    scenario: Scenario,
    live: Live = Live.MEASURED,
) -> PartCosts:
    """Time and measure the blocks of a part under every way of a table."""
    counts = blocks_of(part, scenario)
    if not len(table):
        return PartCosts.none(counts)
    reports = {
        kind: evaluate_kind(
            kind,
            table,
            np.arange(len(table)),
            placement,
            placements,
            scenario,
            live=live,
            limited=False,
        )[0]
        for kind in counts
    }
    return PartCosts.of(reports, counts, len(table))


@dataclass(frozen=True, kw_only=True)
class PartBounds:
    """The cores of a part of a plan, and the least that each takes."""

    part: str
    cores: ShardTable
    n_chips: Column
    costs: PartCosts
    all_cycles: Numbers
    live_bytes: Numbers
    bytes_in_flight: Float[np.ndarray, "flights cores"]

    @staticmethod
    def of(part: HeldCores, rows: Column, costs: PartCosts, flights: Whole) -> "PartBounds":
        """Bound some of the cores of a part."""
        return PartBounds(
            part=part.part,
            cores=part.cores.take(rows),
            n_chips=part.n_chips[rows],
            costs=costs,
            all_cycles=costs.all_cycles,
            live_bytes=costs.live_bytes,
            bytes_in_flight=costs.bytes_in_flight(flights),
        )


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What plans take at least, by the chips of a group and the micro-batches in flight.

    Arrays begin with an entry for each of `flights`, and end with one for each number of chips.
    """

    scenario: Scenario
    space: tuple[HeldCores, ...]  #: all legal cores
    parts: tuple[PartBounds, ...]  #: those that may fit
    flights: Int[np.ndarray, " flights"]  #: micro-batches in flight that are told apart, ascending
    price_per_byte: Numbers  #: cycles
    #: cycles of a token's blocks, with all their bytes at each price
    priced_cycles: Float[np.ndarray, "flights prices chips"]
    #: the same of each part, for what the others leave it
    priced_by_part: Mapping[str, Float[np.ndarray, "flights prices chips"]] = field(repr=False)
    bytes_by_part: Mapping[str, Float[np.ndarray, "flights chips"]] = field(repr=False)
    all_bytes: Float[np.ndarray, "flights chips"]  #: weights and caches of all blocks
    largest_bytes: Float[np.ndarray, " chips"]  #: of the largest block, one in flight
    live_bytes: Float[np.ndarray, " chips"]  #: of values in use in a chip
    table_bytes: Float[np.ndarray, " chips"]  #: of all kinds of block
    #: of each kind of block
    kind_cycles: Mapping[Kind, Float[np.ndarray, " chips"]] = field(repr=False)
    kind_weights: Mapping[Kind, Float[np.ndarray, " chips"]] = field(repr=False)
    kind_cache: Mapping[Kind, Float[np.ndarray, " chips"]] = field(repr=False)

    def blocks_cycles(self, flight: int, stages: Whole, chips: Whole, room: float) -> Numbers:
        """Bound the time of a token's blocks for plans that fit.

        Args:
            flight: which of the flights.
            stages: stages of each plan.
            chips: chips of a group.
            room: bytes that a chip has.

        Returns:
            Cycles; infinite where so many in flight have no room.
        """
        memory = stages * self.stage_bytes(chips, room)
        least = self.priced_cycles[flight][:, chips]
        found = (least - self.price_per_byte[:, None] * memory).max(0)
        return np.asarray(np.where(self.all_bytes[flight][chips] <= memory, found, np.inf))

    def stage_bytes(
        self, chips: Whole | int, room: float, live_bytes: Numbers | float = 0.0
    ) -> Float[np.ndarray, "*plans"]:
        """Bound what a chip has for weights and caches.

        Args:
            chips: of a group.
            room: bytes that a chip has.
            live_bytes: of values in use, at least.
        """
        live = np.maximum(self.live_bytes[chips], live_bytes)
        return np.asarray(room - live - self.table_bytes[chips])

    def holds(self, stages: Whole, chips: Whole, room: float) -> Bool[np.ndarray, " plans"]:
        """Say which plans may have room for all blocks."""
        most = self.stage_bytes(chips, room)
        has_room = self.all_bytes[0][chips] <= stages * most
        return np.asarray(has_room & (self.largest_bytes[chips] <= most))

    def chain(
        self,
        kinds: Sequence[Kind],
        stages: Whole,
        chips: Whole,
        *,
        room: float,
        hop_cycles: Numbers | float = 0.0,
        after_cycles: Sequence[float] | None = None,
        latency_cycles: Numbers | None = None,
        most_in_flight: int | None = None,
    ) -> Chain:
        """Take blocks as a chain to be cut, each kind of which takes and holds its least.

        What a plan's own chain needs is no less: it fits only if this one does, and its period is
        no shorter.

        Args:
            kinds: of the blocks, in order.
            stages: stages of each plan.
            chips: chips of a group; some core of every part has room in it (`holds`).
            room: bytes that a chip has.
            hop_cycles: of the slowest hand-over between stages, at least.
            after_cycles: in which a stage is busy after each block; None: none.
            latency_cycles: of a token, at least; None: a period is the slowest stage's.
            most_in_flight: micro-batches that find something to do; None: one for each stage.
        """
        nothing = np.zeros(len(stages))
        after = after_cycles or [0.0] * len(kinds)
        weights, cache, cycles = (
            {kind: least[kind][chips] for kind in dict.fromkeys(kinds)}
            for least in (self.kind_weights, self.kind_cache, self.kind_cycles)
        )
        busy = {(kind, more): cycles[kind] + more for kind, more in zip(kinds, after, strict=True)}
        return Chain.of(
            [weights[kind] for kind in kinds],
            [cache[kind] for kind in kinds],
            [busy[block] for block in zip(kinds, after, strict=True)],
            stages,
            room_bytes=self.stage_bytes(chips, room),
            latency_cycles=nothing if latency_cycles is None else latency_cycles,
            hop_cycles=nothing + hop_cycles,
            most_in_flight=None if most_in_flight is None else np.full(len(stages), most_in_flight),
        )


class LeastCosts:
    """What cores take where nothing can be better, each timed once."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._placements = [BestPlacements(own.system) for own in scenario.pools]
        self._known: dict[str, tuple[Column, PartCosts]] = {}

    def of(self, part: HeldCores, rows: Column) -> PartCosts:
        """Time some of the cores of a part.

        Args:
            part: the same at every call, for a name.
            rows: which of its cores, ascending.
        """
        nothing = np.zeros(0, np.int64), PartCosts.none(blocks_of(part.part, self._scenario))
        known, costs = self._known.get(part.part, nothing)
        new = np.setdiff1d(rows, known)
        if len(new):
            table, nowhere = part.cores.take(new), np.zeros(len(new), np.int64)
            pool = int(part.part in FFN_PARTS)
            own, placements = self._scenario.pools[pool], self._placements[pool]
            more = part_costs(part.part, table, nowhere, placements, own, Live.LEAST)
            every = np.concatenate([known, new])
            order = np.argsort(every)
            known, costs = every[order], costs.and_then(more).take(order)
            self._known[part.part] = known, costs
        return costs.take(np.searchsorted(known, rows))


def bounds(
    scenario: Scenario, space: Sequence[HeldCores], least: LeastCosts, *, many_in_flight: bool
) -> Bounds:
    """Bound every plan of a scenario, or every pool of one that serves some parts of its model.

    Args:
        scenario: the model, the machine, the request and the formats.
        space: the legal cores of the parts.
        least: what these take where nothing can be better.
        many_in_flight: whether to tell plans apart by their micro-batches in flight.
    """
    n_chips, n_blocks = scenario.system.n_chips, len(block_chain(scenario.model))
    flights = np.array([f for f in _FLIGHTS if f <= n_blocks] if many_in_flight else [1])
    room, parts = usable_bytes(scenario.system.chip), []
    for held, rows in zip(space, rows_that_may_fit(space, scenario), strict=True):
        costs = least.of(held, rows)
        beside = costs.live_bytes + sum(costs.tables.values())
        holds = np.flatnonzero(costs.largest_bytes + beside <= room)
        parts.append(PartBounds.of(held, rows[holds], costs.take(holds), flights))
    typical = sum(float(np.median(part.all_cycles)) for part in parts if len(part.n_chips))
    bytes_then = sum(float(np.median(p.bytes_in_flight[0])) for p in parts if len(p.n_chips))
    prices = np.array([0.0, *(typical / max(bytes_then, 1.0) * np.exp2(_PRICES))])
    priced, by_part = {}, {}
    for part in parts:
        own = part.bytes_in_flight
        whole = part.all_cycles + prices[:, None] * own[:, None]
        flat = whole.reshape(len(flights) * len(prices), len(part.n_chips))
        by_group = least_by_group(flat, part.n_chips, n_chips)
        priced[part.part] = by_group.reshape(len(flights), len(prices), -1)
        by_part[part.part] = least_by_group(own, part.n_chips, n_chips)

    def least_of(values: Numbers, part: PartBounds) -> Float[np.ndarray, " chips"]:
        return np.asarray(least_by_group(values[None], part.n_chips, n_chips)[0])

    def least_of_kinds(name: str) -> dict[Kind, Float[np.ndarray, " chips"]]:
        return {
            kind: least_of(values, part)
            for part in parts
            for kind, values in getattr(part.costs, name).items()
        }

    live, tables = (list(least_of_kinds(name).values()) for name in ("activations", "tables"))
    return Bounds(
        scenario=scenario,
        space=tuple(space),
        parts=tuple(parts),
        flights=flights,
        price_per_byte=prices,
        priced_cycles=np.sum(list(priced.values()), axis=0),
        priced_by_part=priced,
        bytes_by_part=by_part,
        all_bytes=np.sum(list(by_part.values()), axis=0),
        largest_bytes=np.max([least_of(p.costs.largest_bytes, p) for p in parts], axis=0),
        live_bytes=np.max(live, axis=0, where=np.isfinite(live), initial=0.0),
        table_bytes=np.sum(tables, axis=0, where=np.isfinite(tables)),
        kind_cycles=least_of_kinds("cycles"),
        kind_weights=least_of_kinds("weights"),
        kind_cache=least_of_kinds("cache"),
    )


def least_hop_cycles(scenario: Scenario) -> tuple[float, float]:
    """Bound a hand-over between two stages, and the way of the token ids back: one hop each.

    On GPUs every hand-over takes the same, and this is it.
    """
    system, request = scenario.system, scenario.request
    if system.lpus is None:
        first, second = np.array([0]), np.array([1])
        back = TOKEN_BYTES * request.batch * request.sampled_tokens
        return (
            float(hand_over_cycles(system, 1, first, second, hidden_bytes(scenario))[0]),
            float(hand_over_cycles(system, 1, second, first, back)[0]),
        )
    chip, topology = system.lpus
    hop_s = min(topology.local_hop_s, topology.node_step_s, topology.rack_hop_s)
    return float(hop_s * chip.clock_hz), float(hop_s * chip.clock_hz)


def least_hand_over_cycles(scenario: Scenario, most_chips: int) -> Float[np.ndarray, " chips"]:
    """Bound the hand-over of the hidden state between two groups of as many chips.

    Groups lie best at the beginning of the machine, in neighbouring nodes, half-racks or racks;
    tests hold others up to this.

    Args:
        scenario: the model, the machine, the request and the formats.
        most_chips: of a group, at most half of the machine's.

    Returns:
        An entry for every number of chips of a group; infinite for none.
    """
    system, payload = scenario.system, hidden_bytes(scenario)
    n = np.arange(1, most_chips + 1)
    found = np.full(most_chips + 1, np.inf)
    if system.lpus is None:
        found[1:] = hand_over_cycles(system, n, np.zeros_like(n), n, payload)
        return found
    for every in _hand_overs_anywhere(system, most_chips):
        np.minimum.at(found, every.n_chips.astype(np.int64), every.cycles(payload))
    return found


@functools.lru_cache(maxsize=8)
def _hand_overs_anywhere(system: System, most_chips: int) -> tuple[Schedule, ...]:
    """List hand-overs between groups of as many chips that are best placed, each way once."""
    sizes = np.arange(1, most_chips + 1)
    chunks = range(0, most_chips, _SIZES_AT_ONCE)
    return tuple(_hand_overs(system, sizes[first : first + _SIZES_AT_ONCE]) for first in chunks)


def _hand_overs(system: System, group_chips: Whole) -> Schedule:
    """List the same for some sizes of groups."""
    assert system.lpus is not None
    chip, topology = system.lpus
    size = topology.node_chips
    units = (size * topology.nodes_per_half_rack, topology.rack_chips)
    n, first, gap = (
        x.reshape(-1)
        for x in np.meshgrid(group_chips, np.arange(size), np.arange(size + len(units)))
    )
    second = first + n + gap
    for i, unit in enumerate(units):
        next_unit = -(-(first + n) // unit) * unit
        second = np.where(gap == size + i, next_unit, second)
    exists = second + n <= system.n_chips
    n, first, second = (np.tile(x[exists], 2) for x in (n, first, second))
    back = np.arange(len(n)) >= len(n) // 2
    givers, takers = np.where(back, second, first), np.where(back, first, second)
    return hand_overs_between(topology, float(chip.clock_hz), n, givers, takers).distinct()


def least_crossing_cycles(
    least: Float[np.ndarray, " chips"], givers: Whole, takers: Whole
) -> Numbers:
    """Bound hand-overs between groups of different sizes, as `hand_overs.cycles_between`.

    Args:
        least: from `least_hand_over_cycles`.
        givers: chips of each group that sends.
        takers: chips of each that receives.
    """
    have = np.minimum(givers, takers)
    cycles = least[have]
    while np.any(lacking := have < takers):
        more = np.where(lacking, np.minimum(have, takers - have), 0)
        cycles = cycles + np.where(lacking, least[more], 0.0)
        have = have + more
    return np.asarray(cycles)
