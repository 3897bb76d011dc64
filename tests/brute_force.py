"""Every plan of a small scenario, by trial, and which of them are best: what a search must find.

On a mixed system each pool's ways are those of its own machine, and plans of one pool are none.

Written from the rules of the space, and from nothing of `sharding.space` and `sharding.search`:
degrees are tried one by one, `legal.check_plan` judges them, every plan is a `Plan` and evaluated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from math import prod
from typing import Any

import numpy as np

from lpu_jax.errors import PlanError
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from sharding.legal import check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan, Pool, Shard, VocabShard
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.serving import prefill
from sharding.scenario import Scenario

#: The search knows periods to one part in 10^9, and so do the costs of two plans differ.
CLOSE = 3e-9
#: By what one plan is the best; the front of two of them is `EveryPlan.front`.
OBJECTIVES = ("latency", "throughput", "per-chip", "chips")

#: Plans that are evaluated at once.
_AT_ONCE = 1 << 14
_AXES: dict[type[Shard], tuple[str, ...]] = {
    AttentionShard: ("tensor", "data", "context", "replica"),
    MlpShard: ("tensor", "replica"),
    MoeShard: ("expert", "tensor", "replica"),
    VocabShard: ("tensor", "replica"),
}


def costs_of(found: Evaluation) -> dict[str, Any]:
    """What plans cost by each objective: the least is best."""
    chips = np.array([sum(pool.n_chips for pool in plan.pools) for plan in found.plans])
    return {
        "latency": found.latency_s,
        "throughput": 1 / found.tokens_per_s_total,
        "per-chip": chips / found.tokens_per_s_of_copy,
        # Of plans on as few chips the quickest: no token takes a second.
        "chips": chips + found.latency_s,
    }


@dataclass(frozen=True)
class EveryPlan:
    """The plans of a scenario's space, and what each is worth."""

    scenario: Scenario
    splits: tuple[Split, ...] = (Split.ROW, Split.COLUMN)  #: of output projections
    moves: bool = True  #: positions may be shared out, and rows may travel
    pools: bool = True  #: dense MLPs and experts may lie on chips of their own

    @cached_property
    def _ways(self) -> list[tuple[int, list[list[Shard | None]]]]:
        """Chips of a group, and all ways to split each part over them."""
        return [(n, self._all_ways(n)) for n in range(1, self.scenario.system.n_chips + 1)]

    def _stages(self, chips: int) -> range:
        """Numbers of stages of so many chips: blocks are embedding, two a layer, and head."""
        n_blocks = 2 + 2 * self.scenario.model.n_layers
        return range(1, min(n_blocks, self.scenario.system.n_chips // chips) + 1)

    @property
    def n_plans_of_one_pool(self) -> int:
        """How many of them have one pool."""
        if self.scenario.mixed is not None:
            return 0
        return sum(len(self._stages(n)) * prod(map(len, ways)) for n, ways in self._ways)

    @property
    def n_plans(self) -> int:
        """How many plans there are."""
        if not self.pools:
            return self.n_plans_of_one_pool
        return self.n_plans_of_one_pool + sum(
            len(mine) * len(its) * prod(map(len, ways[::3])) * prod(map(len, others[1:3]))
            for mine, its, ways, others in self._pairs()
        )

    def _pairs(self) -> Iterator[tuple[list[Pool], list[Pool], list[Any], list[Any]]]:
        """Pools of either kind with so many chips to a stage, and the ways to split these.

        Embedding and head are two blocks of attention's pool; each layer has one in either.
        """
        n_layers, n_chips = self.scenario.model.n_layers, self.scenario.system.n_chips
        if self.scenario.mixed is not None:
            yield from self._pairs_of_machines()
            return
        for (chips, ways), (ffn_chips, others) in product(self._ways, self._ways):
            for stages in range(1, n_layers + 3):
                left = (n_chips - stages * chips) // ffn_chips
                its = [Pool(stages=n, group_chips=ffn_chips) for n in range(1, n_layers + 1)]
                if its[: max(left, 0)]:
                    mine = [Pool(stages=stages, group_chips=chips)]
                    yield mine, its[: max(left, 0)], ways, others

    def _pairs_of_machines(self) -> Iterator[tuple[list[Pool], list[Pool], list[Any], list[Any]]]:
        """The same of a mixed system: no pool takes chips from the other."""
        n_layers = self.scenario.model.n_layers
        gpus, lpus = (replace(self, scenario=own) for own in self.scenario.pools)
        for (chips, ways), (ffn_chips, others) in product(gpus._ways, lpus._ways):
            most = min(n_layers, lpus.scenario.system.n_chips // ffn_chips)
            its = [Pool(stages=n, group_chips=ffn_chips) for n in range(1, most + 1)]
            for stages in range(1, min(n_layers + 2, gpus.scenario.system.n_chips // chips) + 1):
                yield [Pool(stages=stages, group_chips=chips)], its, ways, others

    @cached_property
    def plans(self) -> list[Plan]:
        """All plans of the space, each once."""
        names = ("attention", "mlp", "moe", "vocab")
        found = [
            Plan(stages=stages, group_chips=chips, **dict(zip(names, parts, strict=True)))
            for chips, ways in (self._ways if self.scenario.mixed is None else ())
            for stages in self._stages(chips)
            for parts in product(*ways)
        ]
        for (own,), its, ways, others in self._pairs() if self.pools else ():
            found += [
                Plan(
                    stages=own.stages,
                    group_chips=own.group_chips,
                    ffn=ffn,
                    **dict(zip(names, (attention, mlp, moe, vocab), strict=True)),
                )
                for ffn in its
                for attention, vocab in product(*ways[::3])
                for mlp, moe in product(*others[1:3])
            ]
        return found

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Fit, latency and costs of every plan."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(self.plans), _AT_ONCE):
            got = evaluate(self.plans[start : start + _AT_ONCE], self.scenario)
            found.append({"fits": got.fits, "latency_s": got.latency_s, **costs_of(got)})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def kept(self, most_latency_s: float = np.inf) -> Any:
        """Numbers of the plans that fit and keep to a limit."""
        return np.flatnonzero(self.columns["fits"] & (self.columns["latency_s"] <= most_latency_s))

    def ranked(self, objective: str, most_latency_s: float = np.inf) -> list[float]:
        """Costs of the best plan of each form, the least first.

        A form is the degrees and splits of attention and of the experts, or of the MLP where there
        are none.
        """
        best: dict[Any, float] = {}
        for i in self.kept(most_latency_s).tolist():
            form, cost = form_of(self.plans[i]), float(self.columns[objective][i])
            best[form] = min(best.get(form, np.inf), cost)
        return sorted(best.values())

    def front(self, most_latency_s: float = np.inf) -> list[tuple[float, float]]:
        """Latency and seconds a token of plans that none equals or beats in both."""
        kept = self.kept(most_latency_s)
        return front_of(self.columns["latency_s"][kept], self.columns["throughput"][kept])

    def earliest_first_token_s(self, prompt_tokens: int) -> float:
        """The earliest first token of the plans that fit; infinite if none does."""
        plans = [self.plans[i] for i in self.kept().tolist()]
        if not plans:
            return np.inf
        found = prefill(plans, np.ones(len(plans), bool), self.scenario, prompt_tokens)
        return float(found.latency_s.min())

    def _all_ways(self, chips: int) -> list[list[Shard | None]]:
        """All ways to split each part over a group, by trial."""
        moe = self.scenario.model.moe
        copies: dict[str, Shard | None] = {
            "attention": AttentionShard(replica=chips),
            "mlp": MlpShard(replica=chips),
            "moe": None if moe is None else MoeShard(replica=chips),
            "vocab": VocabShard(replica=chips),
        }
        has_mlp = moe is None or moe.n_dense_layers > 0
        return [
            self._ways_of(AttentionShard, chips, copies),
            self._ways_of(MlpShard, chips, copies) if has_mlp else [copies["mlp"]],
            [None] if moe is None else self._ways_of(MoeShard, chips, copies),
            self._ways_of(VocabShard, chips, copies),
        ]

    def _ways_of(
        self, part: type[Shard], chips: int, copies: dict[str, Shard | None]
    ) -> list[Shard | None]:
        """All ways to split one part while others are copies; those that differ in nothing once."""
        axes, found = _AXES[part], {}
        splits = self.splits if part is not VocabShard else (Split.COLUMN,)
        rows = self.scenario.request.batch * self.scenario.request.tokens
        for ways in product(range(1, chips + 1), repeat=len(axes)):
            degrees: dict[str, Any] = dict(zip(axes, ways, strict=True))
            if prod(ways) != chips or (not self.moves and degrees.get("context", 1) > 1):
                continue
            for order, split, dispatch in product(permutations(axes), splits, Dispatch):
                words: dict[str, Any] = {"dispatch": dispatch} if part is MoeShard else {}
                if dispatch is Dispatch.ALL_TO_ALL and not (
                    # The rule of the space: rows travel where there is one for every chip.
                    self.moves and 1 < degrees.get("expert", 1) <= rows
                ):
                    continue
                try:
                    shard = part(order=order, split=split, **degrees, **words)  # type: ignore[call-arg]
                    given: dict[str, Any] = {**copies, part.part: shard}
                    check_plan(Plan(group_chips=chips, **given), self.scenario)
                except PlanError:
                    continue
                active = tuple(axis for axis in order if degrees[axis] > 1)
                found.setdefault((ways, active, shard.split, dispatch), shard)
        return list(found.values())


def form_of(plan: Plan) -> tuple[Any, ...]:
    """What makes plans different rows: degrees, but for copies, splits, and the number of pools."""
    heavy = plan.moe or plan.mlp
    return (
        plan.ffn is not None,
        *(
            (tuple(n for axis, n in part.degrees.items() if axis != "replica"), part.split)
            for part in (plan.attention, heavy)
        ),
        plan.moe and plan.moe.dispatch,
    )


def front_of(latency: Any, cost: Any) -> list[tuple[float, float]]:
    """The front of points; of those that are equal within rounding, one."""
    front: list[tuple[float, float]] = []
    for i in np.lexsort((cost, latency)).tolist():
        if not front or cost[i] < front[-1][1] * (1 - CLOSE):
            if front and latency[i] <= front[-1][0] * (1 + CLOSE):
                front.pop()
            front.append((float(latency[i]), float(cost[i])))
    return front
