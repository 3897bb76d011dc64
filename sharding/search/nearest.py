"""Plans that lack the least memory: each part split as it holds least, where no plan fits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from models.blocks import Kind, block_chain

from ..plan import FFN_PARTS
from ..predict.cuts import Chain
from ..predict.kinds import stored_bytes
from ..predict.pools import pool_of_block
from ..scenario import Scenario
from ..space.cores import EVERYTHING, Choices
from ..space.plan_table import PlanTable
from ..space.shard_table import ShardTable
from .best_first import shapes
from .held import HeldCores, blocks_of, held_cores, least_by_group

Numbers = Float[np.ndarray, " branches"]
Whole = Int[np.ndarray, " branches"]
#: Of pools of several lengths.
_Numbers = Float[np.ndarray, " _pool"]
_Whole = Int[np.ndarray, " _pool"]


def nearest_plans(scenario: Scenario, top: int, choices: Choices = EVERYTHING) -> PlanTable:
    """List plans of one pool that lack the least, and of two if these may be, leanest first.

    Stages and groups are those that can come nearest.

    Args:
        scenario: the model, the machine, the request and the formats.
        top: how many of either, of different groups; on a mixed system, of each pool.
        choices: what plans may be.
    """
    parts, n_chips = held_cores(scenario, choices), scenario.system.n_chips
    if scenario.crosses:
        return _table(_leanest_beside(parts, scenario, top), parts)
    kinds = [block.kind for block in block_chain(scenario.model)]
    stages, chips = shapes(n_chips, min(choices.most_stages or len(kinds), len(kinds)))
    every = _bytes_by_group(parts, scenario)
    fullest = _fullest(kinds, every, stages, chips)
    rows = _leanest_of_each(fullest, chips)[:top]
    alone = _table([(stages[rows], chips[rows])], parts)
    if not choices.pools or n_chips == 1:
        return alone
    pool, pools = pool_of_block(scenario.model), []
    for number in (0, 1):
        served = [kind for kind, own in zip(kinds, pool, strict=True) if own == number]
        own_stages, own_chips = shapes(n_chips - 1, len(served))
        own_fullest = _fullest(served, every, own_stages, own_chips)
        pools.append((own_stages, own_chips, own_fullest))
    fuller, pairs = _leanest_pairs(pools, n_chips, top)
    plans = [*alone, *_table(pairs, parts)]
    order = np.argsort(np.append(fullest[rows], fuller), kind="stable")
    return PlanTable.of([plans[i] for i in order]) if plans else alone


def _bytes_by_group(
    parts: Sequence[HeldCores], scenario: Scenario
) -> Mapping[Kind, Float[np.ndarray, " chips"]]:
    """Bytes of a block of each kind, by the chips of a group, at least."""
    found = {}
    for part in parts:
        for kind in blocks_of(part.part, scenario):
            weights, cache = stored_bytes(kind, part.cores, scenario)
            held = np.broadcast_to(weights + cache, (1, len(part.cores)))
            found[kind] = least_by_group(held, part.n_chips, scenario.system.n_chips)[0]
    return found


def _fullest(
    kinds: Sequence[Kind],
    held: Mapping[Kind, Float[np.ndarray, " chips"]],
    stages: Whole,
    chips: Whole,
) -> Numbers:
    """Bytes of the fullest chip of branches that hold the least; infinite where no core fits."""
    exists = np.all([np.isfinite(held[kind][chips]) for kind in dict.fromkeys(kinds)], axis=0)
    rows, nothing = np.flatnonzero(exists), np.zeros(int(exists.sum()))
    found = np.full(len(stages), np.inf)
    if len(rows):
        own = [held[kind][chips[rows]] for kind in kinds]
        blocks = Chain.of(
            own,
            [0.0] * len(kinds),
            own,
            stages[rows],
            room_bytes=0.0,
            latency_cycles=nothing,
            hop_cycles=nothing,
        )
        found[rows] = blocks.least_bytes
    return found


def _leanest_of_each(fullest: Numbers, chips: Whole) -> Int[np.ndarray, " groups"]:
    """List the leanest branch of each number of chips of a group, leanest first."""
    order = np.lexsort((chips, fullest))
    order = order[np.isfinite(fullest[order])]
    _, first = np.unique(chips[order], return_index=True)
    return np.asarray(order[np.sort(first)])


def _leanest_pairs(
    pools: Sequence[tuple[_Whole, _Whole, _Numbers]], n_chips: int, top: int
) -> tuple[_Numbers, list[tuple[_Whole, _Whole]]]:
    """Share out the chips between two pools as the fuller one holds least.

    Returns:
        What the fuller one holds; stages, and chips of one, of each pool.
    """
    leanest = []
    for stages, chips, fullest in pools:
        order = np.lexsort((fullest, stages * chips))
        # The leanest of all that need no more chips.
        best = np.minimum.accumulate(fullest[order])
        leader = np.maximum.accumulate(np.where(fullest[order] <= best, np.arange(len(order)), 0))
        last = np.searchsorted((stages * chips)[order], np.arange(1, n_chips), side="right") - 1
        leanest.append(order[leader[last]])
    first, second = leanest[0], leanest[1][::-1]
    fuller = np.maximum(pools[0][2][first], pools[1][2][second])
    rows = np.argsort(fuller, kind="stable")
    rows = rows[np.isfinite(fuller[rows])]
    pairs = list(dict.fromkeys(zip(first[rows].tolist(), second[rows].tolist(), strict=True)))
    chosen = np.array(pairs[:top], np.int64).reshape(-1, 2)
    held = np.max([own[2][chosen[:, i]] for i, own in enumerate(pools)], axis=0)
    return held, [
        (stages[chosen[:, i]], chips[chosen[:, i]]) for i, (stages, chips, _) in enumerate(pools)
    ]


def _leanest_beside(
    parts: Sequence[HeldCores], scenario: Scenario, top: int
) -> list[tuple[_Whole, _Whole]]:
    """Take the leanest branch of a machine beside leanest ones of the other.

    Returns:
        Stages, and chips of one, of each pool.
    """
    kinds, pool = [b.kind for b in block_chain(scenario.model)], pool_of_block(scenario.model)
    leanest = []
    for number, own in enumerate(scenario.pools):
        served = [kind for kind, its in zip(kinds, pool, strict=True) if its == number]
        held = _bytes_by_group([p for p in parts if (p.part in FFN_PARTS) == number], own)
        stages, chips = shapes(own.system.n_chips, len(served))
        rows = _leanest_of_each(_fullest(served, held, stages, chips), chips)[:top]
        leanest.append((stages[rows], chips[rows]))
    n_first, n_second = (len(chips) for _, chips in leanest)
    first = np.append(np.arange(n_first), np.zeros(n_second - 1, np.int64))
    second = np.append(np.zeros(n_first - 1, np.int64), np.arange(n_second))
    return [
        (stages[rows], chips[rows])
        for (stages, chips), rows in zip(leanest, (first, second), strict=True)
    ]


def _table(pools: Sequence[tuple[_Whole, _Whole]], parts: Sequence[HeldCores]) -> PlanTable:
    """Split each part as it holds least in plans of one pool or two."""
    (stages, chips), (ffn_stages, ffn_chips) = pools[0], pools[-1]
    n, is_two = len(stages), len(pools) > 1
    tables: dict[str, ShardTable] = {}
    for part in parts:
        groups = ffn_chips if part.part in FFN_PARTS else chips
        rows = []
        for group in groups.tolist():
            fitting = np.flatnonzero(group % part.n_chips == 0)
            rows.append(fitting[np.lexsort((part.n_chips[fitting], part.all_bytes[fitting]))[0]])
        own = part.cores.take(np.array(rows, np.int64))
        tables[part.part] = replace(own, degrees={**own.degrees, "replica": groups // own.n_chips})
    return PlanTable(
        stages=stages,
        group_chips=chips,
        ffn_stages=ffn_stages * is_two,
        ffn_chips=ffn_chips * is_two,
        shards=tables,
        rows={part: np.arange(n) for part in tables},
        collective=np.zeros(n, np.int64),
    )
