"""Legal plans by the list: all that a small machine has, or some of a large one's.

They are put together from the ways to split each part, which `tests/sharding/space/test_cores.py`
holds up to every combination of degrees.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from models.blocks import block_chain
from sharding.plan import Plan
from sharding.scenario import Scenario
from sharding.space.cores import EVERYTHING, Choices, cores, in_group, parts_of
from sharding.space.plan_table import PlanTable
from sharding.space.shard_table import ShardTable


def shapes(scenario: Scenario) -> list[tuple[int, int]]:
    """List all stages and chips of a group for which a machine has chips."""
    n_chips, n_blocks = scenario.system.n_chips, len(block_chain(scenario.model))
    return [
        (stages, chips)
        for stages in range(1, min(n_blocks, n_chips) + 1)
        for chips in range(1, n_chips // stages + 1)
    ]


def shards(
    part: str, group_chips: int, scenario: Scenario, choices: Choices = EVERYTHING
) -> ShardTable:
    """List all ways to split a part over the chips of a group."""
    table, _ = cores(part, scenario, group_chips, choices)
    filling, _ = in_group(table, group_chips, np.flatnonzero(group_chips % table.n_chips == 0))
    return filling


def legal_plans(
    scenario: Scenario,
    some: Sequence[tuple[int, int]] | None = None,
    *,
    most: int | None = None,
    choices: Choices = EVERYTHING,
) -> list[Plan]:
    """List legal plans.

    Args:
        scenario: the model, the machine, the request and the formats.
        some: stages and chips of a group; None: all of `shapes`.
        most: so many of each, drawn; None: all.
        choices: what they may be.
    """
    found: list[Plan] = []
    for stages, chips in shapes(scenario) if some is None else some:
        options = {part: shards(part, chips, scenario, choices) for part in parts_of(scenario)}
        lengths = [len(table) for table in options.values()]
        number = np.arange(prod(lengths)) if most is None else _drawn(prod(lengths), most, chips)
        found += PlanTable(
            stages=np.full(len(number), stages),
            group_chips=np.full(len(number), chips),
            ffn_stages=np.zeros(len(number), np.int64),
            ffn_chips=np.zeros(len(number), np.int64),
            shards=options,
            rows=dict(zip(options, np.unravel_index(number, lengths), strict=True)),
            collective=np.zeros(len(number), np.int64),
        )
    return found


def _drawn(n: int, most: int, seed: int) -> np.ndarray:
    """Draw some of n numbers, without repetition."""
    return (
        np.arange(n) if n <= most else np.unique(np.random.default_rng(seed).integers(n, size=most))
    )
