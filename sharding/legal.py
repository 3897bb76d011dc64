"""Which plans exist for a model and a machine; every rejection has a reason in one sentence.

Legality is about shapes only: whether a legal plan fits is `placement`'s question, how fast it is
`evaluate`'s.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import PlanError
from models.blocks import BLOCK_KINDS, CACHING_KINDS, block_chain, block_kinds
from models.config import GqaConfig, MlaConfig, ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import Policy

from .axes import axis_lengths, granules, shard_of
from .plan import MoeShard, Plan, PlanAxis, Shard
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
    cfg = scenario.model
    served = [plan.pool_of(BLOCK_KINDS[block.kind].part) for block in block_chain(cfg)]
    for number, pool in enumerate(plan.pools):
        if pool.stages > served.count(number):
            whose = cfg.name if plan.ffn is None else f"pool {number + 1} of {cfg.name}"
            raise PlanError(
                f"{pool.stages} stages were asked for; {whose} has {served.count(number)} blocks."
            )
    _check_machines(plan, scenario)
    if plan.moe is not None and cfg.moe is None:
        raise PlanError(f"{cfg.name} has no MoE blocks; the plan must not have a part 'moe'.")
    check_parts(plan, cfg)
    shards = dict.fromkeys(shard_of(plan, kind) for kind in block_kinds(cfg))
    on = [(shard, scenario.pools[plan.pool_of(shard.part)]) for shard in shards]
    for reason in (why for shard, own in on for why in reasons(shard, own)):
        if reason is not None:
            raise PlanError(reason.sentence)


def _check_machines(plan: Plan, scenario: Scenario) -> None:
    """Refuse a plan whose pools are not those of the machines, or have too few chips there.

    Raises:
        PlanError: what was given and what is allowed.
    """
    together = [(plan.pools, scenario.system)]
    if scenario.crosses:
        if plan.ffn is None:
            raise PlanError(
                f"the plan has one pool; on {scenario.machine.name} it must have two: attention on "
                "the GPUs, dense MLPs and experts on the LPUs."
            )
        machines = [own.system for own in scenario.pools]
        together = [((pool,), own) for pool, own in zip(plan.pools, machines, strict=True)]
    for pools, system in together:
        n_chips = sum(pool.n_chips for pool in pools)
        if n_chips > system.n_chips:
            asked = " + ".join(f"stages {own.stages} x group {own.group_chips}" for own in pools)
            raise PlanError(
                f"{asked} = {n_chips} chips were asked for; {system.name} has {system.n_chips}."
            )


def check_parts(plan: Plan, cfg: ModelConfig) -> None:
    """Refuse a plan that lacks a part for a model's blocks, or whose parts are of other groups.

    Raises:
        PlanError: which part, what was given and what is allowed.
    """
    if plan.moe is None and cfg.moe is not None:
        raise PlanError(f"{cfg.name} has MoE blocks; the plan must have a part 'moe'.")
    for name, shard in plan.parts.items():
        group_chips = plan.pools[plan.pool_of(name)].group_chips
        if shard.n_chips != group_chips:
            ways = shard.degrees
            parts = " x ".join(f"{axis} {ways[axis]}" for axis in ways if axis in shard.named_axes)
            raise PlanError(
                f"{name}: {parts} = {shard.n_chips} chips, but a group has "
                f"{group_chips}; off by {abs(shard.n_chips - group_chips)}."
            )


def reasons(shard: Shard, scenario: Scenario) -> Iterator[Reason | None]:
    """Why a part of a plan is illegal; None for each rule it obeys."""
    for axis in shard.axes:
        yield axis_rule(shard.part, axis, scenario)(getattr(shard, axis.name))
        if shard.split is Split.TREE:
            yield tree_reason(shard.part, axis, getattr(shard, axis.name))
    if shard.split is Split.WIDE:
        yield wide_reason(shard.part, scenario.policy)
    if isinstance(shard, MoeShard):
        yield from _moe_reasons(shard, scenario)


def axis_rule(part: str, axis: PlanAxis, scenario: Scenario) -> Callable[[int], Reason | None]:
    """Return what says why an axis of a part of a plan cannot have so many chips; None if it can.

    An axis without a rule of its own has as many chips as its first logical axis has pieces.
    """
    cfg, request = scenario.model, scenario.request
    match part, axis.name:
        case "attention", "tensor":
            return partial(attention_reason, cfg)
        case "attention", "data":
            return lambda ways: data_reason(ways, request.batch)
        case "attention", "context":
            return lambda ways: context_reason(ways, request.context)
        case "moe", "expert":
            return partial(_experts_reason, cfg)
    for kind in block_kinds(cfg):
        if BLOCK_KINDS[kind].part == part and axis.splits:
            length = axis_lengths(cfg, kind)[axis.splits[0]]
            piece = granules(cfg, kind, scenario.policy).get(axis.splits[0], 1)
            return lambda ways: columns_reason(part, axis.name, ways, length, piece)
    return lambda ways: None


def most_ways(part: str, axis: PlanAxis, scenario: Scenario) -> int:
    """Return the largest degree that an axis of a part of a plan can have, or a larger number."""
    cfg, request = scenario.model, scenario.request
    match part, axis.name:
        case "attention", "tensor":
            return max(cfg.attention_of(kind).n_heads for kind in CACHING_KINDS)
        case "attention", "data":
            return request.batch
        case "attention", "context":
            return most_context(request.context)
    kinds = [kind for kind in block_kinds(cfg) if BLOCK_KINDS[kind].part == part]
    return max(axis_lengths(cfg, kind)[axis.splits[0]] for kind in kinds)


def tree_reason(part: str, axis: PlanAxis, ways: int) -> Reason | None:
    """Why sums over an axis are not those of a binary tree; None if they are, or none are made."""
    if not axis.sums or not ways & ways - 1:
        return None
    return Reason(
        "tree: no power of two",
        f"{part}: split tree needs a power of two of chips along {axis.name}, which has {ways}.",
    )


def wide_reason(part: str, policy: Policy) -> Reason | None:
    """Why sums of a part cannot be added in wide numbers; None if they can."""
    scheme = policy.weights.get("expert")
    if part != "moe" or scheme is None or not scheme.is_two_level:
        return None
    return Reason(
        "moe: wide sums of experts with a scale of a matrix",
        f"moe: split wide adds experts before they are scaled; weights format {scheme.name} "
        "has a scale of each whole matrix, so another split is needed.",
    )


def attention_reason(cfg: ModelConfig, tensor: int) -> Reason | None:
    """Why attention, or what stands in its place, cannot be split over `tensor` chips.

    None if it can. Sliding and recurrent layers may have heads of their own: all must be split.
    """
    kinds = [kind for kind in block_kinds(cfg) if kind in CACHING_KINDS]
    found = [
        _states_reason(cfg, tensor)
        if BLOCK_KINDS[kind].is_recurrent
        else _heads_reason(cfg.name, cfg.attention_of(kind), tensor)
        for kind in kinds
    ]
    return next(filter(None, found), None)


def _states_reason(cfg: ModelConfig, tensor: int) -> Reason | None:
    net = cfg.recurrent
    assert net is not None  # a recurrent layer has one
    inside = tensor // net.n_key_heads
    if tensor > net.n_key_heads and (tensor % net.n_key_heads or net.value_heads_per_key % inside):
        return Reason(
            "attention: more ways than heads, or heads not divisible",
            f"attention: tensor {tensor} is more ways than the {net.n_key_heads} recurrent key "
            f"heads of {cfg.name} and not {net.n_key_heads} times a divisor of the "
            f"{net.value_heads_per_key} value heads of each.",
        )
    return None


def _heads_reason(name: str, attention: GqaConfig | MlaConfig, tensor: int) -> Reason | None:
    if isinstance(attention, GqaConfig):
        kv = attention.n_kv_heads
        if tensor <= kv or (tensor % kv == 0 and attention.q_per_kv % (tensor // kv) == 0):
            return None
        return Reason(
            "attention: more ways than heads, or heads not divisible",
            f"attention: tensor {tensor} is more ways than the {kv} key/value heads of {name} "
            f"and not {kv} times a divisor of the {attention.q_per_kv} query heads of each.",
        )
    if tensor <= attention.n_heads:
        return None
    return Reason(
        "attention: more ways than heads, or heads not divisible",
        f"attention: tensor {tensor} is more ways than the {attention.n_heads} heads of {name}.",
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
    if shard.dispatch is Dispatch.ALL_TO_ALL and shard.split is not Split.ROW:
        why = {
            Split.COLUMN: "a column split gathers the results of all experts on all chips",
            Split.TREE: "rows that travel are added by their owners, in no tree",
            Split.WIDE: "rows that travel come back rounded",
        }
        yield Reason(
            f"moe: all-to-all dispatch with a {shard.split} split",
            f"moe: dispatch all_to_all needs split row; {why[shard.split]}.",
        )
    expert, tensor = shard.order.index("expert"), shard.order.index("tensor")
    if shard.split is Split.TREE and expert > tensor and min(shard.expert, shard.tensor) > 1:
        yield Reason(
            "moe: tree with tensor outside expert",
            f"moe: split tree needs expert outside tensor, but the order of axes is "
            f"{', '.join(shard.order)}.",
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
