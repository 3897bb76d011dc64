"""Plans of two pools: attention on some chips of a machine, dense MLPs and experts on others.

A token crosses between the pools before and after each FFN: the hidden state goes over the
machine's own links, in the format of its hand-overs between stages. A stage is busy with its blocks
and with what it hands over; micro-batches alternate, as many as there are stages of both pools and
caches have room for. Each pool is cut by its own blocks, for the period of the slower one.

Attention's pool may be GPUs beside the machine. Then the network between them (`crossings`) is a
third resource: stages are not busy while bytes are on their way, here or between GPUs (assumed:
copies run beside kernels), and two more micro-batches find something to do, one on the way there
and one on the way back.

Not modelled: overlap of a hand-over with the blocks of the same micro-batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.placed_machine import Groups
from lpu_jax.machine.system import System
from models.blocks import BLOCK_KINDS, Kind, block_chain
from models.config import ModelConfig

from ..plan import FFN_PARTS, Pool
from ..scenario import Scenario
from ..space.plan_table import PlanTable
from .crossings import crossing_bytes, crossings_of
from .cuts import Chain, Cuts, stage_sums
from .hand_overs import TOKEN_BYTES, cycles_between, hidden_bytes
from .placement import dram_room_bytes, usable_bytes

Numbers = Float[np.ndarray, " plans"]
#: First chip and chips of every stage, those of the first pool before those of the second.
Places = tuple[Int[np.ndarray, " stages"], Int[np.ndarray, " stages"]]


def lay_out(pools: Sequence[Pool], *systems: System) -> tuple[Groups, ...]:
    """Place the stages of pools, those of one spread evenly among those of the other.

    Args:
        pools: of one plan.
        systems: the machine, with chips enough, or the machine of each pool.
    """
    if len(systems) > 1:
        return tuple(
            group
            for pool, system in zip(pools, systems, strict=True)
            for group in lay_out([pool], system)
        )
    (system,) = systems
    if len(pools) == 1:
        (pool,) = pools
        return (Groups(pool.group_chips, system.stage_bases(pool.stages, pool.group_chips)),)
    number = np.concatenate([np.full(pool.stages, i) for i, pool in enumerate(pools)])
    share = np.concatenate([np.arange(pool.stages) / pool.stages for pool in pools])
    order = np.lexsort((number, share))
    chips = np.array([pool.group_chips for pool in pools])
    bases = np.empty(len(order), np.int64)
    bases[order] = system.group_bases(chips[number][order])
    return tuple(Groups(pool.group_chips, bases[number == i]) for i, pool in enumerate(pools))


def copies_of(
    laid_out: Sequence[tuple[Groups, ...]], scenario: Scenario
) -> Int[np.ndarray, " plans"]:
    """Count how often plans have room side by side, by where their pools lie."""
    if not laid_out:
        return np.zeros(0, np.int64)
    ends = np.array(
        [[int(own.bases.max()) + own.chips for own in groups] for groups in laid_out], np.int64
    )
    if not scenario.crosses:
        return scenario.system.copies(ends.max(1))
    counts = [own.system.copies(ends[:, i]) for i, own in enumerate(scenario.pools)]
    return np.asarray(np.min(counts, axis=0))


def last_chip(pools: Sequence[Pool], system: System) -> int:
    """Return the chip after the last one of a plan."""
    return max(int(group.bases.max()) + group.chips for group in lay_out(pools, system))


def pool_of_block(cfg: ModelConfig) -> Int[np.ndarray, " blocks"]:
    """Return the pool that serves each block of the chain."""
    return np.array([int(BLOCK_KINDS[b.kind].part in FFN_PARTS) for b in block_chain(cfg)])


@dataclass(frozen=True, kw_only=True)
class HandOvers:
    """Hand-overs of a token through a plan, in order.

    What follows the last block of the chain is the way of the token ids back.
    """

    block: Int[np.ndarray, " steps"]  #: after which block of the chain
    giver: Int[np.ndarray, " steps"]  #: number of the stage
    taker: Int[np.ndarray, " steps"]
    cycles: Float[np.ndarray, " steps"]
    giver_cycles: Float[np.ndarray, " steps"]  #: in which the stage that gives is busy
    #: in which lanes into the network are busy, of the stage that gives and of the one that takes
    lane_cycles: Float[np.ndarray, "2 steps"]


def hand_overs(
    stage_of_block: Int[np.ndarray, " blocks"], groups: Sequence[Groups], scenario: Scenario
) -> HandOvers:
    """List and price what a plan's stages hand over; nothing where one stage holds all.

    Args:
        stage_of_block: the stage of each block of the chain.
        groups: where the stages of each pool lie.
        scenario: the model, the machine, the request and the formats.
    """
    (found,) = hand_overs_of_plans(stage_of_block[:, None], [groups], scenario)
    return found


def hand_overs_of_plans(
    stage_of_block: Int[np.ndarray, "blocks plans"],
    laid_out: Sequence[Sequence[Groups]],
    scenario: Scenario,
) -> list[HandOvers]:
    """List and price what the stages of plans hand over, all together; see `hand_overs`."""
    after = np.roll(stage_of_block, -1, axis=0)
    plan, block = np.nonzero((stage_of_block != after).T)
    giver, taker = stage_of_block[block, plan], after[block, plan]
    n_stages = [sum(len(group.bases) for group in groups) for groups in laid_out]
    start = np.cumsum([0, *n_stages])[:-1]
    places = [places_of(groups) for groups in laid_out]
    bases, chips = (np.concatenate([own[i] for own in places]) for i in (0, 1))
    ends = [(bases[start[plan] + stage], chips[start[plan] + stage]) for stage in (giver, taker)]
    request, is_back = scenario.request, block == len(stage_of_block) - 1
    ids = TOKEN_BYTES * request.batch * request.sampled_tokens
    # The last block is the head, and the first the embedding: both of attention's pool.
    system = scenario.pools[0].system
    payload = np.where(is_back, float(ids), hidden_bytes(scenario.pools[0]))
    lanes, crosses, cycles = np.zeros((2, len(block))), np.zeros(len(block), bool), None
    if scenario.crosses:
        crosses, cycles, lanes = _across(plan, giver, taker, laid_out, scenario)
    own = np.flatnonzero(~crosses)
    inside = _between(system, [(first[own], n[own]) for first, n in ends], payload[own])
    if cycles is None:
        cycles = inside
    else:
        cycles[own] = inside
    edges = np.searchsorted(plan, np.arange(len(laid_out) + 1))
    return [
        HandOvers(
            block=block[rows],
            giver=giver[rows],
            taker=taker[rows],
            cycles=cycles[rows],
            giver_cycles=cycles[rows] if not scenario.crosses else 0 * cycles[rows],
            lane_cycles=lanes[:, rows],
        )
        for rows in map(slice, edges[:-1].tolist(), edges[1:].tolist())
    ]


def _between(
    system: System, ends: Sequence[Places], payload_bytes: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps"]:
    """Price hand-overs inside a machine, each distinct one once."""
    cycles = np.empty(len(payload_bytes))
    for n_bytes in np.unique(payload_bytes):
        rows = np.flatnonzero(payload_bytes == n_bytes)
        columns = np.stack([column[rows] for end in ends for column in end])
        distinct, back = np.unique(columns, axis=1, return_inverse=True)
        first, n_first, second, n_second = distinct
        priced = cycles_between(system, (first, n_first), (second, n_second), float(n_bytes))
        cycles[rows] = priced[back.reshape(-1)]
    return cycles


def _across(
    plan: Int[np.ndarray, " steps"],
    giver: Int[np.ndarray, " steps"],
    taker: Int[np.ndarray, " steps"],
    laid_out: Sequence[Sequence[Groups]],
    scenario: Scenario,
) -> tuple[Bool[np.ndarray, " steps"], Float[np.ndarray, " steps"], Float[np.ndarray, "2 steps"]]:
    """Say which steps cross between machines; their cycles, and those of either end's lanes."""
    n_first = np.array([len(groups[0].bases) for groups in laid_out])[plan]
    crosses, to_lpus = (giver >= n_first) != (taker >= n_first), taker >= n_first
    found = [crossings_of(groups, scenario) for groups in laid_out]
    way = to_lpus.astype(np.int64)
    lpu_lanes, gpu_ports, cycles = (
        np.array([getattr(own, name) for own in found])[plan, way]
        for name in ("lpu_lanes", "gpu_ports", "cycles")
    )
    ends = np.where(to_lpus, gpu_ports, lpu_lanes)
    others = np.where(to_lpus, lpu_lanes, gpu_ports)
    return crosses, cycles, crosses * np.stack([ends, others])


@dataclass(frozen=True, kw_only=True)
class CutPools:
    """Plans of two pools, cut: an entry per plan."""

    cuts: Cuts  #: of the fullest chip of both pools
    hand_over_cycles: Numbers
    slowest_stage_cycles: Numbers
    live_bytes: Numbers  #: of the pool with the fullest chip
    fullest_pool: Int[np.ndarray, " plans"]  #: which that is
    handed_bytes: Numbers  #: of all hand-overs of the hidden state


def cut_pools(
    table: PlanTable,
    laid_out: Sequence[tuple[Groups, ...]],
    costs: Mapping[str, Mapping[Kind, Numbers]],
    live_bytes: Sequence[Numbers],
    scenario: Scenario,
    *,
    host_cycles: float,
) -> CutPools:
    """Cut both pools of plans into their stages.

    Args:
        table: the plans.
        laid_out: where the pools of each plan lie.
        costs: `cycles`, `weights`, `cache` and `dram_cache` of each kind of block.
        live_bytes: of live values and tables in each pool.
        scenario: the model, the machine, the request and the formats.
        host_cycles: host and sampling, part of the latency.
    """
    usable = [usable_bytes(own.system.chip) for own in scenario.pools]
    kinds = [block.kind for block in block_chain(scenario.model)]
    pool = pool_of_block(scenario.model)
    cycles = np.stack([costs["cycles"][kind] for kind in kinds])
    if not scenario.crosses:
        typical = _of_each(laid_out, lambda distinct: _typical_hops(distinct, scenario))
        between = len(kinds) * typical
    else:
        typical = np.zeros(len(table))  # no stage is busy while bytes are on their way
        between = _of_each(
            laid_out, lambda distinct: [_between_machines(own, scenario) for own in distinct]
        )
    latency = cycles.sum(0) + between + host_cycles
    busy_cycles = {kind: own + typical for kind, own in costs["cycles"].items()}
    chains = []
    for number, stages in enumerate((table.stages, table.ffn_stages)):
        own = [kind for kind, its in zip(kinds, pool, strict=True) if its == number]
        chains.append(
            Chain.of(
                [costs["weights"][kind] for kind in own],
                [costs["cache"][kind] for kind in own],
                [busy_cycles[kind] for kind in own],
                stages,
                room_bytes=usable[number] - live_bytes[number],
                latency_cycles=latency,
                hop_cycles=np.zeros(len(table)),
                most_in_flight=most_in_flight(table.n_stages, scenario),
                dram_cache=[costs["dram_cache"][kind] for kind in own],
                dram_room_bytes=dram_room_bytes(scenario.pools[number].system),
            )
        )
    period = np.max([chain.shortest_period for chain in chains], axis=0)
    cuts = [chain.cut(period) for chain in chains]
    stage_of_block = np.empty((len(kinds), len(table)), np.int64)
    stage_of_block[pool == 0] = cuts[0].stage_of_block
    stage_of_block[pool == 1] = cuts[1].stage_of_block + table.stages
    steps = hand_overs_of_plans(stage_of_block, laid_out, scenario)
    busy = [_busy(cycles[:, i], stage_of_block[:, i], steps[i]) for i in range(len(table))]
    share = [
        (own.fullest_bytes + live) / room
        for own, live, room in zip(cuts, live_bytes, usable, strict=True)
    ]
    full = np.argmax(share, axis=0)
    # As much more than the fullest chip has as any chip lacks.
    short = [
        own.least_bytes + live - room
        for own, live, room in zip(cuts, live_bytes, usable, strict=True)
    ]
    least = np.choose(full, usable) + np.max(short, axis=0)
    live = np.choose(full, list(live_bytes))
    return CutPools(
        cuts=Cuts(
            stage_of_block=stage_of_block,
            fullest_bytes=np.choose(full, [own.fullest_bytes for own in cuts]),
            fullest_stage_cache_bytes=np.choose(
                full, [own.fullest_stage_cache_bytes for own in cuts]
            ),
            least_bytes=least - live,
            slowest_cycles=stage_sums(cycles, stage_of_block).max(0),
            cached_batches=np.min([own.cached_batches for own in cuts], axis=0),
            dram_bytes=np.max([own.dram_bytes for own in cuts], axis=0),
        ),
        hand_over_cycles=np.array([float(step.cycles.sum()) for step in steps]),
        slowest_stage_cycles=np.array(busy),
        live_bytes=live,
        fullest_pool=full,
        handed_bytes=np.array([_handed_bytes(step, pool, scenario) for step in steps]),
    )


def _handed_bytes(
    steps: HandOvers, pool_of_block: Int[np.ndarray, " blocks"], scenario: Scenario
) -> float:
    """Bytes of the hidden state in all its hand-overs, in the format of the way of each."""
    last = len(pool_of_block) - 1
    block = steps.block[steps.block < last]  # what follows the last one are token ids
    n_across = np.sum(pool_of_block[block] != pool_of_block[block + 1])
    inside = hidden_bytes(scenario.pools[0])
    across = inside if not scenario.crosses else crossing_bytes(scenario)
    return float(across * n_across + inside * (len(block) - n_across))


def most_in_flight(
    n_stages: Int[np.ndarray, " plans"], scenario: Scenario
) -> Int[np.ndarray, " plans"]:
    """Count the micro-batches that find something to do: one a stage, and one each way across."""
    return n_stages if not scenario.crosses else n_stages + 2


def places_of(groups: Sequence[Groups]) -> Places:
    """Put the stages of all pools of a plan one after another."""
    return (
        np.concatenate([group.bases for group in groups]),
        np.concatenate([np.full(len(group.bases), group.chips) for group in groups]),
    )


def _of_each(
    laid_out: Sequence[tuple[Groups, ...]],
    of: Callable[[Sequence[tuple[Groups, ...]]], Sequence[float]],
) -> Numbers:
    """Find a number of each plan, once for plans that share their places."""
    distinct = list({id(groups): groups for groups in laid_out}.values())
    found = dict(zip(map(id, distinct), of(distinct), strict=True))
    return np.array([found[id(groups)] for groups in laid_out])


def _typical_hops(laid_out: Sequence[tuple[Groups, ...]], scenario: Scenario) -> Sequence[float]:
    """Cycles of the slower way between stages of two pools that lie side by side, of each plan."""
    n_pairs = np.array([max(len(group.bases) for group in groups) for groups in laid_out])
    ends = []
    for number in (0, 1):
        pools = [groups[number] for groups in laid_out]
        beside = [
            pool.bases[np.arange(n) * len(pool.bases) // n]
            for pool, n in zip(pools, n_pairs.tolist(), strict=True)
        ]
        ends.append((np.concatenate(beside), np.repeat([pool.chips for pool in pools], n_pairs)))
    slower = np.zeros(len(laid_out))
    for giver, taker in (ends, ends[::-1]):
        cycles = cycles_between(scenario.system, giver, taker, hidden_bytes(scenario))
        of_plan = np.split(cycles, np.cumsum(n_pairs)[:-1])
        slower = np.maximum(slower, [np.median(own) for own in of_plan])
    return slower.tolist()


def _between_machines(groups: tuple[Groups, ...], scenario: Scenario) -> float:
    """Cycles of a token's hand-overs on a mixed system, wherever its stages are cut.

    Each run of MLPs in the chain is crossed to and from, and ids go back from the last stage of the
    GPUs. An embedding with a stage of its own has one more.
    """
    n_visits = int(np.sum(np.diff(pool_of_block(scenario.model)) == 1))
    cycles = n_visits * float(crossings_of(groups, scenario).cycles.sum())
    gpus, n_stages = groups[0], len(groups[0].bases)
    if n_stages > 1:
        ids = TOKEN_BYTES * scenario.request.batch * scenario.request.sampled_tokens
        chips = np.array([gpus.chips])
        ends = (gpus.bases[-1:], chips), (gpus.bases[:1], chips)
        cycles += float(cycles_between(scenario.pools[0].system, *ends, ids)[0])
    return cycles


def _busy(
    cycles: Float[np.ndarray, " blocks"], stage_of_block: Int[np.ndarray, " blocks"], own: HandOvers
) -> float:
    """Cycles in which the slowest stage works on a token, or its lanes one way.

    A stage also works on what it hands over, but not beside another machine.
    """
    busy = np.bincount(stage_of_block, weights=cycles)
    n = len(busy)
    out = np.bincount(own.giver, weights=own.lane_cycles[0], minlength=n)
    into = np.bincount(own.taker, weights=own.lane_cycles[1], minlength=n)
    busy += np.bincount(own.giver, weights=own.giver_cycles, minlength=n)
    return float(max(busy.max(), out.max(), into.max()))
