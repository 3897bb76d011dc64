"""Which plans exist for a model and a machine; every rejection has a reason in one sentence.

Legality is about shapes only: whether a legal plan fits is `placement`'s question, how fast it is
`evaluate`'s.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import PlanError
from models.blocks import BLOCK_KINDS, block_chain, block_kinds
from models.config import GqaConfig, ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from .axes import axis_lengths, granules
from .plan import AttentionShard, MlpShard, MoeShard, Plan, PlanAxis, Shard
from .scenario import Scenario


@dataclass(frozen=True)
class Reason:
    """Why a split does not exist: the rule it breaks, and the sentence for a user."""

    rule: str
    sentence: str


def check_plan(plan: Plan, scenario: Scenario) -> None:
    """Refuse a plan that does not exist.

    Raises:
        PlanError: which part, what was given and what is allowed.
    """
    cfg, system = scenario.model, scenario.system
    n_blocks = len(block_chain(cfg))
    if plan.stages > n_blocks:
        raise PlanError(f"{plan.stages} stages were asked for; {cfg.name} has {n_blocks} blocks.")
    if plan.n_chips > system.n_chips:
        raise PlanError(
            f"stages {plan.stages} x group {plan.group_chips} = {plan.n_chips} chips were asked "
            f"for; {system.name} has {system.n_chips}."
        )
    if plan.moe is not None and cfg.moe is None:
        raise PlanError(f"{cfg.name} has no MoE blocks; the plan must not have a part 'moe'.")
    check_parts(plan, cfg)
    for reason in (
        columns_reason("vocabulary", "tensor", plan.group_chips, cfg.vocab_size, 1),
        *(why for shard in plan.parts.values() for why in reasons(shard, scenario)),
    ):
        if reason is not None:
            raise PlanError(reason.sentence)


def check_parts(plan: Plan, cfg: ModelConfig) -> None:
    """Refuse a plan that lacks a part for a model's blocks, or whose parts are of other groups.

    Raises:
        PlanError: which part, what was given and what is allowed.
    """
    if plan.moe is None and cfg.moe is not None:
        raise PlanError(f"{cfg.name} has MoE blocks; the plan must have a part 'moe'.")
    for name, shard in plan.parts.items():
        if shard.n_chips != plan.group_chips:
            ways = shard.degrees
            parts = " x ".join(f"{axis} {ways[axis]}" for axis in ways if axis in shard.named_axes)
            raise PlanError(
                f"{name}: {parts} = {shard.n_chips} chips, but a group has "
                f"{plan.group_chips}; off by {abs(shard.n_chips - plan.group_chips)}."
            )


def reasons(shard: Shard, scenario: Scenario) -> Iterator[Reason | None]:
    """Why a part of a plan is illegal; None for each rule it obeys."""
    for axis in shard.axes:
        yield axis_reason(shard.part, axis, getattr(shard, axis.name), scenario)
    if isinstance(shard, MoeShard):
        yield from _moe_reasons(shard, scenario)


def axis_reason(
    part: str,
    axis: PlanAxis,
    ways: int,
    scenario: Scenario,
) -> Reason | None:
    """Why an axis of a part of a plan cannot have that many chips; None if it can.

    An axis without a rule of its own has as many chips as its first logical axis has pieces.
    """
    cfg, request = scenario.model, scenario.request
    match part, axis.name:
        case "attention", "tensor":
            return attention_reason(cfg, ways)
        case "attention", "data":
            return data_reason(ways, request.batch)
        case "attention", "context":
            return context_reason(ways, request.context)
        case "moe", "expert":
            return _experts_reason(cfg, ways)
    for kind in block_kinds(cfg):
        if BLOCK_KINDS[kind].part == part and axis.splits:
            length = axis_lengths(cfg, kind)[axis.splits[0]]
            piece = granules(cfg, kind, scenario.policy).get(axis.splits[0], 1)
            return columns_reason(part, axis.name, ways, length, piece)
    return None


def attention_reason(cfg: ModelConfig, tensor: int) -> Reason | None:
    """Why attention cannot be split over `tensor` chips; None if it can."""
    attention = cfg.attention
    if isinstance(attention, GqaConfig):
        kv = attention.n_kv_heads
        if tensor <= kv or (tensor % kv == 0 and attention.q_per_kv % (tensor // kv) == 0):
            return None
        return Reason(
            "attention: more ways than heads, or heads not divisible",
            f"attention: tensor {tensor} is more ways than the {kv} key/value heads of {cfg.name} "
            f"and not {kv} times a divisor of the {attention.q_per_kv} query heads of each.",
        )
    if tensor <= attention.n_heads:
        return None
    return Reason(
        "attention: more ways than heads, or heads not divisible",
        f"attention: tensor {tensor} is more ways than the {attention.n_heads} heads of "
        f"{cfg.name}.",
    )


def data_reason(data: int, batch: int) -> Reason | None:
    """Why sequences cannot be split over `data` chips; None if they can."""
    if batch % data == 0:
        return None
    return Reason(
        "attention: data does not divide the batch",
        f"attention: data {data} does not divide the batch of {batch}.",
    )


def context_reason(context: int, positions: int) -> Reason | None:
    """Why positions cannot be shared out to `context` chips; None if they can."""
    runs = most_context(positions)
    if context <= runs:
        return None
    return Reason(
        "attention: context is more ways than runs of positions",
        f"attention: context {context} is more ways than a context of {positions} has runs of "
        f"{POSITIONS_STEP} positions, {runs}.",
    )


def most_context(positions: int) -> int:
    """Chips that can share out that many positions: each holds whole vectors of them."""
    return -(-positions // POSITIONS_STEP)


def columns_reason(part: str, axis: str, ways: int, columns: int, piece: int) -> Reason | None:
    """Why columns cannot be split; None if they can. Pieces of columns share scales."""
    if ways <= -(-columns // piece):
        return None
    pieces = f"{columns} columns" + (f" in pieces of {piece}" if piece > 1 else "")
    return Reason(
        f"{part}: more ways than columns", f"{part}: {axis} {ways} is more ways than its {pieces}."
    )


def _experts_reason(cfg: ModelConfig, expert: int) -> Reason | None:
    """Why experts cannot be shared out to `expert` chips; None if they can."""
    assert cfg.moe is not None
    if expert <= cfg.moe.n_experts:
        return None
    return Reason(
        "moe: more ways than experts",
        f"moe: expert {expert} is more ways than the {cfg.moe.n_experts} experts of {cfg.name}.",
    )


def _moe_reasons(shard: MoeShard, scenario: Scenario) -> Iterator[Reason | None]:
    """Why a MoE block cannot exchange rows, or have such slots."""
    if shard.dispatch is Dispatch.ALL_TO_ALL and shard.split is Split.COLUMN:
        yield Reason(
            "moe: all-to-all dispatch with a column split",
            "moe: dispatch all_to_all needs split row; a column split gathers the results of all "
            "experts on all chips.",
        )
    rows = scenario.request.batch * scenario.request.tokens
    if shard.capacity is not None and shard.capacity > rows:
        yield Reason(
            "moe: more capacity than rows",
            f"moe: capacity {shard.capacity} is more than the {rows} rows of a step.",
        )
    if not scenario.system.lpus and (shard.slots, shard.capacity) != (None, None):
        yield Reason(
            "moe: slots on GPUs",
            "moe: slots or a capacity were given; GPUs have none, they work on the rows that come.",
        )


def divisors(number: int) -> list[int]:
    """Divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass
class Search:
    """Legal plans of a model on a machine, and how many ways were refused for which reason."""

    scenario: Scenario
    most_stages: int | None = None  #: None: as many as the model has blocks
    most_group_chips: int | None = None  #: None: as many as the machine has
    refused: Counter[str] = field(default_factory=Counter)

    def groups(self) -> list[tuple[int, int]]:
        """Stages and chips of a group: per number of stages, all chips, whole nodes, or 2^n.

        Where there is memory to spare also every smaller power of two.
        """
        n_blocks = len(block_chain(self.scenario.model))
        node = self.scenario.system.topology.node_chips
        found = set()
        most_stages = n_blocks if self.most_stages is None else self.most_stages
        n_chips = self.scenario.system.n_chips
        most_chips = n_chips if self.most_group_chips is None else self.most_group_chips
        for stages in range(1, min(most_stages, n_blocks, n_chips) + 1):
            # More chips than columns of the output matrix cannot form a group.
            most = min(n_chips // stages, self.scenario.model.vocab_size, most_chips)
            found |= {
                (stages, chips)
                for chips in (most, most // node * node, 1 << (most.bit_length() - 1))
            }
            if self.scenario.system.chip.has_memory_to_spare:  # fewer chips may be faster
                found |= {(stages, 1 << power) for power in range(most.bit_length())}
        return sorted((stages, chips) for stages, chips in found if chips >= 1)

    def plans(self) -> Iterator[Plan]:
        """All legal plans with one split rule for attention and dense MLPs, and one for experts.

        Raises:
            PlanError: there is none.
        """
        found = False
        for plan in self._legal():
            found = True
            yield plan
        if not found:
            reasons = "; ".join(self.refused)
            raise PlanError(
                f"{self.scenario.system.name} has no legal plan for {self.scenario.model.name} "
                f"({reasons}); give --plan or another system."
            )

    def _legal(self) -> Iterator[Plan]:
        for stages, chips in self.groups():
            attention = {split: self._attention(chips, split) for split in Split}
            mlp = {split: self._mlp(chips, split) for split in Split}
            moe = {split: self._moe(chips, split) for split in Split}
            found = dict.fromkeys(  # what is not split is the same for both splits
                shards
                for split, moe_split in product(Split, Split)
                for shards in product(attention[split], mlp[split], moe[moe_split])
            )
            for shards in found:
                yield Plan(
                    stages=stages,
                    group_chips=chips,
                    attention=shards[0],
                    mlp=shards[1],
                    moe=shards[2],
                )

    def within_reach(self) -> "Search":
        """Return this search or, if it finds nothing, one over groups that the model can fill.

        A model that is too small to be split over the groups of a machine leaves most chips idle:
        groups then have as many chips as possible, a power of two.
        """
        search = replace(self, refused=Counter())
        while next(replace(search, refused=Counter())._legal(), None) is None:
            most = search.most_group_chips or self.scenario.system.n_chips
            assert most > 1  # one chip need not split anything
            search = replace(search, most_group_chips=1 << ((most - 1).bit_length() - 1))
        return search

    def _keep(self, reason: Reason | None) -> bool:
        if reason is not None:
            self.refused[reason.rule] += 1
        return reason is None

    def _is_kept(self, shard: Shard) -> bool:
        return all(map(self._keep, reasons(shard, self.scenario)))

    def _attention(self, chips: int, split: Split) -> list[AttentionShard]:
        found = []
        for tensor in divisors(chips):
            if not self._keep(attention_reason(self.scenario.model, tensor)):
                continue
            # Sequences are split as far as the batch allows: a replica would hold its weights and
            # cache again.
            data = max(d for d in divisors(chips // tensor) if self.scenario.request.batch % d == 0)
            left = chips // tensor // data
            # What is left holds copies, or shares out the positions as far as they go.
            most = max(
                n for n in divisors(left) if n <= most_context(self.scenario.request.context)
            )
            for context in sorted({1, most}):
                shard = AttentionShard(
                    tensor=tensor,
                    data=data,
                    context=context,
                    replica=left // context,
                    split=split,
                )
                found.append(shard)
        return found

    def _mlp(self, chips: int, split: Split) -> list[MlpShard]:
        if self.scenario.model.n_moe_layers == self.scenario.model.n_layers:
            return [MlpShard(replica=chips, split=split)]
        for tensor in reversed(divisors(chips)):
            shard = MlpShard(tensor=tensor, replica=chips // tensor, split=split)
            if self._is_kept(shard):
                return [shard]
        raise AssertionError("one way always exists")

    def _moe(self, chips: int, split: Split) -> list[MoeShard | None]:
        if self.scenario.model.moe is None:
            return [None]
        found: list[MoeShard | None] = []
        rows = self.scenario.request.batch * self.scenario.request.tokens
        for expert in divisors(chips):
            shard = MoeShard(expert=expert, tensor=chips // expert, split=split)
            if not self._is_kept(shard):
                continue
            found.append(shard)
            # Rows travel where there is one for every chip; partial sums come back to them.
            if split is Split.ROW and 1 < expert <= rows:
                found.append(replace(shard, dispatch=Dispatch.ALL_TO_ALL))
        return found


def one_stage_plans(scenario: Scenario) -> list[Plan]:
    """All legal plans of one stage on as many chips as possible, heads split as far as possible."""
    found = list(Search(scenario, most_stages=1).within_reach().plans())
    n_chips = max((plan.group_chips for plan in found), default=1)
    plans = [plan for plan in found if plan.group_chips == n_chips]
    most = max((plan.attention.tensor for plan in plans), default=1)
    return [plan for plan in plans if plan.attention.tensor == most]
