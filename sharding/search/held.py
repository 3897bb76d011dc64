"""What the ways to split a part hold on a chip: which cores can fit at all, before any is timed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from models.blocks import BLOCK_KINDS, Kind, block_chain

from ..plan import FFN_PARTS
from ..predict.kinds import stored_bytes
from ..predict.placement import usable_bytes
from ..predict.pools import pool_of_block
from ..scenario import Scenario
from ..space.cores import Choices, cores, n_orders, parts_of
from ..space.shard_table import Column, ShardTable

Numbers = Float[np.ndarray, " cores"]


@dataclass(frozen=True, kw_only=True)
class HeldCores:
    """The legal cores of a part, and the bytes of all its blocks."""

    part: str
    cores: ShardTable
    n_chips: Column
    all_bytes: Numbers  #: one micro-batch in flight
    largest_bytes: Numbers  #: of the largest block
    refused: Mapping[str, int]  #: degrees that are not legal, by rule


def held_cores(scenario: Scenario, choices: Choices) -> list[HeldCores]:
    """List the cores of each part of a plan with what they hold.

    Args:
        scenario: the model, the machine, the request and the formats.
        choices: what plans may be.
    """
    return [_held(part, scenario.pools[part in FFN_PARTS], choices) for part in parts_of(scenario)]


def _held(part: str, scenario: Scenario, choices: Choices) -> HeldCores:
    table, refused = cores(part, scenario, scenario.system.n_chips, choices)
    held, largest = np.zeros((2, len(table)))
    for kind, count in blocks_of(part, scenario).items():
        weights, cache = stored_bytes(kind, table, scenario)
        held = held + count * (weights + cache)
        largest = np.maximum(largest, weights + cache)
    return HeldCores(
        part=part,
        cores=table,
        n_chips=table.n_chips,
        all_bytes=held,
        largest_bytes=largest,
        refused=refused,
    )


def blocks_of(part: str, scenario: Scenario) -> dict[Kind, int]:
    """Count the blocks of the chain of each kind that a part splits."""
    every = Counter(block.kind for block in block_chain(scenario.model))
    return {kind: n for kind, n in every.items() if BLOCK_KINDS[kind].part == part}


def rows_that_may_fit(parts: Sequence[HeldCores], scenario: Scenario) -> list[Column]:
    """List the cores that fit some group together with the least that the other parts hold."""
    n_chips, chain = scenario.system.n_chips, block_chain(scenario.model)
    chips = np.arange(1, n_chips + 1)
    memory = np.minimum(n_chips // chips, len(chain)) * usable_bytes(scenario.system.chip)
    least = [least_by_group(p.all_bytes[None], p.n_chips, n_chips)[0][1:] for p in parts]
    kept = []
    for i, part in enumerate(parts):
        others = np.sum([*least[:i], *least[i + 1 :]], axis=0)
        left = np.append(-np.inf, memory - others)
        most = np.array([left[n::n].max() for n in range(1, n_chips + 1)])
        kept.append(np.flatnonzero(part.all_bytes <= most[part.n_chips - 1]))
    return kept


def machine_may_hold(parts: Sequence[HeldCores], scenario: Scenario) -> bool:
    """Whether all chips of a machine together hold the least of every part, in any pools."""
    least = [float((part.all_bytes * part.n_chips).min(initial=np.inf)) for part in parts]
    return sum(least) <= scenario.system.n_chips * usable_bytes(scenario.system.chip)


def least_by_group(
    values: Float[np.ndarray, "prices cores"], n_chips: Column, most_chips: int
) -> Float[np.ndarray, "prices chips"]:
    """Take the least of the cores that fit a group, whose chips are a multiple of theirs.

    Args:
        values: of each core, at each price.
        n_chips: chips of each core.
        most_chips: of a group.

    Returns:
        An entry for every number of chips of a group; infinite for none, and where no core fits.
    """
    found = np.full((len(values), most_chips + 1), np.inf)
    if not len(n_chips):
        return found
    order = np.argsort(n_chips, kind="stable")
    sizes, start = np.unique(n_chips[order], return_index=True)
    least_of_size = np.minimum.reduceat(values[:, order], start, axis=1)
    for i, size in enumerate(sizes.tolist()):
        multiples = found[:, size::size]
        np.minimum(multiples, least_of_size[:, i : i + 1], out=multiples)
    return found


@dataclass(frozen=True, kw_only=True)
class SpaceSize:
    """How many plans a space has: every way to split every part, in every order of its axes."""

    one_pool: float
    two_pools: float


def space_size(parts: Sequence[HeldCores], scenario: Scenario, choices: Choices) -> SpaceSize:
    """Count the plans of a space.

    Args:
        parts: the legal cores of every part.
        scenario: the model, the machine, the request and the formats.
        choices: what plans may be.
    """
    n_chips, n_blocks = scenario.system.n_chips, len(block_chain(scenario.model))
    alone, pairs = np.zeros(1), 0.0
    if not scenario.crosses:
        alone = _plans_by_chips(parts, n_chips, min(choices.most_stages or n_blocks, n_blocks))
    if choices.pools:
        pool = pool_of_block(scenario.model)
        first, second = (
            _plans_by_chips(
                [part for part in parts if (part.part in FFN_PARTS) == number],
                scenario.pools[number].system.n_chips,
                int(np.sum(pool == number)),
            )
            for number in (0, 1)
        )
        if scenario.crosses:
            pairs = float(first.sum() * second.sum())
        else:  # of all chips, what the first pool leaves is enough for the second
            pairs = float(np.sum(first[1:n_chips] * np.cumsum(second)[n_chips - 1 : 0 : -1]))
    return SpaceSize(one_pool=float(alone.sum()), two_pools=pairs)


def _plans_by_chips(
    parts: Sequence[HeldCores], n_chips: int, most_stages: int
) -> Float[np.ndarray, " chips"]:
    """Count what serves some parts on exactly so many chips."""
    ways = np.ones(n_chips + 1)
    for part in parts:
        alone, copied = n_orders(part.cores, 1), n_orders(part.cores, 2)
        own = np.bincount(part.n_chips, weights=alone, minlength=n_chips + 1)
        smaller = np.bincount(part.n_chips, weights=copied, minlength=n_chips + 1)
        for n in np.flatnonzero(smaller).tolist():
            own[2 * n :: n] += smaller[n]
        ways *= own
    found = np.zeros(n_chips + 1)
    for stages in range(1, min(most_stages, n_chips) + 1):
        found[stages::stages] += ways[1 : n_chips // stages + 1]
    return found
