"""Which plans exist for a model and a machine; every rejection has a reason in one sentence.

Legality is about shapes only: whether a legal plan fits is `placement`'s question, how fast it is
`evaluate`'s.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import LpuError, PlanError
from lpu_jax.machine.system import System
from models.blocks import block_chain, block_kinds
from models.config import GqaConfig, ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.params import block_params
from models.policy import Policy

from .axes import granules
from .plan import AttentionShard, MlpShard, MoeShard, Plan
from .request import Request


@dataclass(frozen=True)
class Reason:
    """Why a split does not exist: the rule it breaks, and the sentence for a user."""

    rule: str
    sentence: str


def check_policy(policy: Policy, cfg: ModelConfig, system: System) -> None:
    """Refuse a weights format that the model's shapes or the chip cannot take.

    Raises:
        LpuError: heads are cut by groups that share a scale, the chip has no such operands, or the
            format stores nothing of this model otherwise than fp16 does.
    """
    if policy.base != "fp16":
        raise LpuError(
            f"weights format {policy.name} is for checking only: no chip multiplies {policy.base}."
        )
    roles = {spec.role for kind in block_kinds(cfg) for spec in block_params(cfg, kind).values()}
    if policy.roles and not roles & policy.roles:
        raise LpuError(
            f"weights format {policy.name} is about {' and '.join(sorted(policy.roles))} weights, "
            f"which {cfg.name} has none of; use another format, such as fp16."
        )
    if any(scheme.multiplies_bare for scheme in policy.weights.values()):
        system.chip.check_operand("int8")
    for spec in block_params(cfg, "attention").values():
        scheme = policy.scheme(spec)
        if scheme is None or spec.rows < 2:
            continue
        width = spec.shape[spec.batch + spec.rows - 1]
        if width % scheme.row_granule:
            raise LpuError(
                f"weights format {policy.name} shares a scale between {scheme.row_granule} rows, "
                f"which does not divide the head width {width} of {cfg.name}."
            )


def check_plan(
    plan: Plan, cfg: ModelConfig, system: System, policy: Policy, request: Request
) -> None:
    """Refuse a plan that does not exist.

    Raises:
        PlanError: which part, what was given and what is allowed.
    """
    n_blocks = len(block_chain(cfg))
    if plan.stages > n_blocks:
        raise PlanError(f"{plan.stages} stages were asked for; {cfg.name} has {n_blocks} blocks.")
    if plan.n_chips > system.n_chips:
        raise PlanError(
            f"{plan.stages} stages of {plan.group_chips} chips need {plan.n_chips} chips; "
            f"{system.name} has {system.n_chips}."
        )
    if (plan.moe is None) != (cfg.moe is None):
        raise PlanError(
            f"{cfg.name} has {'no ' if cfg.moe is None else ''}MoE blocks; the plan must "
            f"{'not ' if cfg.moe is None else ''}have a part 'moe'."
        )
    for name, shard in (("attention", plan.attention), ("mlp", plan.mlp), ("moe", plan.moe)):
        if shard is not None and shard.n_chips != plan.group_chips:
            parts = " x ".join(
                f"{axis} {getattr(shard, axis)}"
                for axis in ("expert", "tensor", "data", "context", "replica")
                if getattr(shard, axis, 1) > 1 or (hasattr(shard, axis) and axis != "context")
            )
            raise PlanError(
                f"{name}: {parts} = {shard.n_chips} chips, but a group has "
                f"{plan.group_chips}; off by {abs(shard.n_chips - plan.group_chips)}."
            )
    for reason in (
        attention_reason(cfg, plan.attention.tensor),
        data_reason(plan.attention.data, request.batch),
        context_reason(plan.attention.context, request.context),
        columns_reason(
            "mlp", cfg.d_ff, plan.mlp.tensor, granules(cfg, "dense", policy).get("mlp", 1)
        )
        if cfg.n_moe_layers < cfg.n_layers
        else None,
        columns_reason("vocabulary", cfg.vocab_size, plan.group_chips, 1),
        *(moe_reasons(cfg, plan.moe, policy, request) if plan.moe else ()),
    ):
        if reason is not None:
            raise PlanError(reason.sentence)


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
    """Chips that can share out so many positions: each holds whole vectors of them."""
    return -(-positions // POSITIONS_STEP)


def columns_reason(what: str, columns: int, ways: int, piece: int) -> Reason | None:
    """Why columns cannot be split; None if they can. Pieces of columns share scales."""
    if ways <= -(-columns // piece):
        return None
    pieces = f"{columns} columns" + (f" in pieces of {piece}" if piece > 1 else "")
    return Reason(
        f"{what}: more ways than columns", f"{what}: tensor {ways} is more ways than its {pieces}."
    )


def moe_reasons(
    cfg: ModelConfig, shard: MoeShard, policy: Policy, request: Request
) -> Iterator[Reason | None]:
    """Why a MoE block cannot be split so; None for each rule it keeps."""
    moe = cfg.moe
    assert moe is not None
    pieces = granules(cfg, "moe", policy)
    if shard.expert > moe.n_experts:
        yield Reason(
            "moe: more ways than experts",
            f"moe: expert {shard.expert} is more ways than the {moe.n_experts} experts of "
            f"{cfg.name}.",
        )
    if shard.dispatch is Dispatch.ALL_TO_ALL and shard.split is Split.COLUMN:
        yield Reason(
            "moe: all-to-all dispatch with a column split",
            "moe: dispatch all_to_all needs split row; a column split gathers the results of all "
            "experts on all chips.",
        )
    yield columns_reason("moe", moe.d_expert, shard.tensor, pieces.get("expert_mlp", 1))
    if shard.slots is not None:
        local = -(-moe.n_experts // shard.expert)
        worst = min(local, request.batch * request.tokens * moe.top_k)
        if shard.slots < worst:
            yield Reason(
                "moe: too few slots",
                f"moe: slots {shard.slots} could leave experts out; the worst case is {worst} "
                f"slots of {local} experts on a chip.",
            )


def divisors(number: int) -> list[int]:
    """Divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass
class Search:
    """Legal plans of a model on a machine, and how many ways were refused for which reason."""

    cfg: ModelConfig
    system: System
    policy: Policy
    request: Request
    most_stages: int | None = None  #: None: as many as the model has blocks
    most_group_chips: int | None = None  #: None: as many as the machine has
    refused: Counter[str] = field(default_factory=Counter)

    def groups(self) -> list[tuple[int, int]]:
        """Stages and chips of a group: per number of stages, all chips, whole nodes, or 2^n.

        Where there is memory to spare also every smaller power of two.
        """
        n_blocks = len(block_chain(self.cfg))
        node = self.system.topology.node_chips
        found = set()
        most_stages = n_blocks if self.most_stages is None else self.most_stages
        n_chips = self.system.n_chips
        most_chips = n_chips if self.most_group_chips is None else self.most_group_chips
        for stages in range(1, min(most_stages, n_blocks, n_chips) + 1):
            # More chips than columns of the output matrix cannot form a group.
            most = min(n_chips // stages, self.cfg.vocab_size, most_chips)
            found |= {
                (stages, chips)
                for chips in (most, most // node * node, 1 << (most.bit_length() - 1))
            }
            if self.system.has_memory_to_spare:  # fewer chips may be faster
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
                f"{self.system.name} has no legal plan for {self.cfg.name} ({reasons}); give "
                "--plan or another system."
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
        groups then have as many chips as can be, a power of two.
        """
        search = replace(self, refused=Counter())
        while next(replace(search, refused=Counter())._legal(), None) is None:
            most = search.most_group_chips or self.system.n_chips
            assert most > 1  # one chip need not split anything
            search = replace(search, most_group_chips=1 << ((most - 1).bit_length() - 1))
        return search

    def _keep(self, reason: Reason | None) -> bool:
        if reason is not None:
            self.refused[reason.rule] += 1
        return reason is None

    def _attention(self, chips: int, split: Split) -> list[AttentionShard]:
        found = []
        for tensor in divisors(chips):
            if not self._keep(attention_reason(self.cfg, tensor)):
                continue
            # Sequences are split as far as the batch allows: a replica would hold its weights and
            # cache again.
            data = max(d for d in divisors(chips // tensor) if self.request.batch % d == 0)
            left = chips // tensor // data
            # What is left holds copies, or shares out the positions as far as they go.
            most = max(n for n in divisors(left) if n <= most_context(self.request.context))
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
        if self.cfg.n_moe_layers == self.cfg.n_layers:
            return [MlpShard(replica=chips, split=split)]
        piece = granules(self.cfg, "dense", self.policy).get("mlp", 1)
        for tensor in reversed(divisors(chips)):
            if self._keep(columns_reason("mlp", self.cfg.d_ff, tensor, piece)):
                return [MlpShard(tensor=tensor, replica=chips // tensor, split=split)]
        raise AssertionError("one way always exists")

    def _moe(self, chips: int, split: Split) -> list[MoeShard | None]:
        if self.cfg.moe is None:
            return [None]
        found: list[MoeShard | None] = []
        for expert in divisors(chips):
            shard = MoeShard(expert=expert, tensor=chips // expert, split=split)
            reasons = moe_reasons(self.cfg, shard, self.policy, self.request)
            if all(self._keep(reason) for reason in reasons):
                found.append(shard)
        return found


def one_stage_plans(
    cfg: ModelConfig, system: System, policy: Policy, request: Request
) -> list[Plan]:
    """All legal plans of one stage over most chips of a machine, heads split as far as can be."""
    found = list(Search(cfg, system, policy, request, most_stages=1).within_reach().plans())
    n_chips = max((plan.group_chips for plan in found), default=1)
    plans = [plan for plan in found if plan.group_chips == n_chips]
    most = max((plan.attention.tensor for plan in plans), default=1)
    return [plan for plan in plans if plan.attention.tensor == most]
