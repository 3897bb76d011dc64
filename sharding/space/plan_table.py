"""Plans as columns of numbers: thousands in a few arrays, a `Plan` only where one is looked at."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np

from ..plan import PARTS, Plan, Pool, VocabShard
from .shard_table import Column, ShardTable


@dataclass(frozen=True, kw_only=True)
class PlanTable(Sequence[Plan]):
    """Plans of one model; a column has an entry per plan."""

    stages: Column
    group_chips: Column
    ffn_stages: Column  #: of the pool of FFNs; 0 where there is none
    ffn_chips: Column  #: of a stage of it
    shards: Mapping[str, ShardTable]  #: ways to split each part that the plans have
    rows: Mapping[str, Column]  #: which of them each plan takes
    collective: Column  #: which of `collectives`
    collectives: tuple[str, ...] = ("auto",)

    @staticmethod
    def of(plans: Sequence[Plan]) -> "PlanTable":
        """Hold plans as columns; those of a table are it."""
        if isinstance(plans, PlanTable):
            return plans
        shards, rows = {}, {}
        for part in PARTS:
            every = [getattr(plan, part) for plan in plans]
            if part == VocabShard.part:
                every = [
                    VocabShard(tensor=plan.group_chips) if own is None else own
                    for plan, own in zip(plans, every, strict=True)
                ]
            if any(shard is None for shard in every):
                continue  # no block of their model has it
            number = {shard: i for i, shard in enumerate(dict.fromkeys(every))}
            shards[part] = ShardTable.of(list(number))
            rows[part] = np.array([number[shard] for shard in every])
        names = tuple(dict.fromkeys(plan.collective for plan in plans))
        return PlanTable(
            stages=np.array([plan.stages for plan in plans], np.int64),
            group_chips=np.array([plan.group_chips for plan in plans], np.int64),
            ffn_stages=np.array([plan.ffn.stages if plan.ffn else 0 for plan in plans], np.int64),
            ffn_chips=np.array(
                [plan.ffn.group_chips if plan.ffn else 0 for plan in plans], np.int64
            ),
            shards=shards,
            rows=rows,
            collective=np.array([names.index(plan.collective) for plan in plans]),
            collectives=names,
        )

    def __len__(self) -> int:
        return len(self.stages)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Plan: ...

    @overload
    def __getitem__(self, index: slice) -> list[Plan]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Plan | list[Plan]:
        """Make one plan, or those of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"plan {index} is not one of {len(self)}")
        chips = int(self.group_chips[index])
        ffn = None
        if self.ffn_stages[index]:
            ffn = Pool(stages=int(self.ffn_stages[index]), group_chips=int(self.ffn_chips[index]))
        parts: dict[str, Any] = {
            part: table.shard(int(self.rows[part][index])) for part, table in self.shards.items()
        }
        # A model of mixtures alone has no dense MLP; a plan names it all the same.
        own = chips if ffn is None else ffn.group_chips
        parts.setdefault("mlp", PARTS["mlp"](replica=own))  # type: ignore[call-arg]
        return Plan(
            stages=int(self.stages[index]),
            group_chips=chips,
            ffn=ffn,
            collective=self.collectives[self.collective[index]],
            **parts,
        )

    @property
    def n_chips(self) -> Column:
        """Chips of all stages of each plan."""
        return np.asarray(self.stages * self.group_chips + self.ffn_stages * self.ffn_chips)

    @property
    def n_stages(self) -> Column:
        """Stages of all pools of each plan."""
        return np.asarray(self.stages + self.ffn_stages)

    def take(self, rows: Iterable[SupportsIndex]) -> "PlanTable":
        """Keep some plans, in that order."""
        kept = np.array([operator.index(row) for row in rows], np.int64)
        return PlanTable(
            stages=self.stages[kept],
            group_chips=self.group_chips[kept],
            ffn_stages=self.ffn_stages[kept],
            ffn_chips=self.ffn_chips[kept],
            shards=self.shards,
            rows={part: row[kept] for part, row in self.rows.items()},
            collective=self.collective[kept],
            collectives=self.collectives,
        )
