"""Random triples of a tiny model, a plan and a policy: of every family, legal, and small.

Lengths come from short lists, so that triples share the shapes for which operations are compiled;
degrees and everything that is not a length are free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, get_args

import numpy as np
from small_machines import tiered

from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS
from lpu_jax.datapath.axis import PIPELINED
from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from models import zoo
from models.cache_formats import CacheFormat, WireFormat
from models.config import GqaConfig, MlaConfig, ModelConfig, MoeConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import POLICIES, Policy
from models.rope import RopeConfig
from sharding.legal import check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.request import Request
from sharding.scenario import Scenario, check_policy

#: A model of every family, and of every set of rules that a family has.
MODELS = (
    "llama-3.1-8b",
    "qwen3-32b",
    "qwen3-235b-a22b",
    "mixtral-8x7b",
    "deepseek-v3",
    "kimi-k2",
    "gpt-oss-20b",
    "glm-4.5",
    "ling-1t",
    "minimax-m2.5",
    "gemma-3-27b",
    "gemma-4-31b",
    "gemma-4-26b-a4b",
    "llama-4-maverick",
)
MOST_CHIPS = 8
_COLLECTIVES = (*ALGORITHMS, *(name + PIPELINED for name in ALGORITHMS))
#: Sequences and new tokens of every triple.
BATCH, TOKENS = 2, 2
#: Two K tiles of 160 rows, the second one partly filled.
_D_MODEL = 176
#: All chips in one node, or sums over two or three levels.
SYSTEMS = (system(f"groq-{MOST_CHIPS}"), tiered(4), tiered(2, 4))


@dataclass(frozen=True, kw_only=True)
class Triple:
    """What a seed stands for, and the circumstances that change no bit or are part of them."""

    seed: int
    cfg: ModelConfig
    plan: Plan
    policy: Policy
    system: System
    widen_once: bool

    @property
    def context(self) -> int:
        """Allocated positions: one run for each chip that shares them out."""
        return POSITIONS_STEP * self.plan.attention.context

    def __str__(self) -> str:
        """Name it in one line."""
        moe = "" if self.cfg.moe is None else f", {self.cfg.moe}"
        return (
            f"seed {self.seed}: {self.cfg.name} [{self.cfg.attention}{moe}, d_ff {self.cfg.d_ff}, "
            f"vocabulary {self.cfg.vocab_size}] | plan {self.plan.name} on {self.system.name} "
            f"{self.system.topology.tiers} | policy {self.policy.name}, cache {self.policy.cache}, "
            f"wire {self.policy.wire}"
        )


def triple(seed: int, rule: Split | None = None) -> Triple:
    """Draw a triple; the same for the same seed.

    Args:
        seed: of all that is random.
        rule: every part of the plan is split so, on several chips, and the policy is one of a few;
            None: all is free.
    """
    rng = np.random.default_rng(seed if rule is None else [seed, list(Split).index(rule)])
    node = SYSTEMS[0]
    # Drawn in turn, so that a few dozen triples have all of them.
    name = MODELS[seed % len(MODELS)]
    policies = [p for p in POLICIES.values() if p.base == "fp16"]
    if rule is not None:
        policies = [POLICIES[name] for name in ("fp16", "int8", "fp8", "int4")]
    cfg, policy = _legal(lambda: _model_and_policy(rng, name, node, policies))
    plan = _legal(lambda: _plan(rng, cfg, policy, node, rule))
    return Triple(
        seed=seed,
        cfg=cfg,
        plan=plan,
        policy=_in_words(policy, cfg, seed, rule),
        system=node if plan.collective == "ring" else _one(rng, *SYSTEMS),
        widen_once=bool(rng.integers(2)),
    )


def _in_words(policy: Policy, cfg: ModelConfig, seed: int, rule: Split | None) -> Policy:
    """Have the cache of every other triple, and the wire, in formats of their own.

    They are drawn apart, so that plans stay those of their seeds. Rows that travel may leave those
    that are everywhere by roundings to fp16 alone (`promises.DISPATCH_BOUND`); splits of a rule
    have a wire of their own.
    """
    rng = np.random.default_rng([seed, len(policy.name)])
    lossless: list[WireFormat] = ["base", "fp32", "exact"]
    return replace(
        policy,
        cache=_one(rng, "base", *get_args(CacheFormat)),
        wire="base" if rule else _one(rng, *(lossless if cfg.moe else get_args(WireFormat))),
    )


def _legal(draw: Callable[[], Any]) -> Any:
    """Draw until it is legal."""
    while True:
        try:
            return draw()
        except LpuError:
            continue


def _one(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _model_and_policy(
    rng: np.random.Generator, name: str, node: System, policies: Sequence[Policy]
) -> tuple[ModelConfig, Policy]:
    policy = _one(rng, *policies)
    cfg = _model(rng, name, policy)
    check_policy(policy, cfg, node)
    return cfg, policy


def _model(rng: np.random.Generator, name: str, policy: Policy) -> ModelConfig:
    """Shrink a named model to two layers, its rules untouched."""
    cfg = zoo.model(name)
    attention = _attention(rng, cfg.attention, policy)
    own: dict[str, Any] = {}
    if cfg.sliding_attention is not None:
        own["sliding_attention"] = _attention(rng, cfg.sliding_attention, policy)
    if cfg.sliding_rope is not None:
        sliding = own.get("sliding_attention", attention)
        own["sliding_rope"] = _rotation(cfg.sliding_rope, cfg.attention_of("sliding"), sliding)
    return replace(
        cfg,
        n_layers=2,
        d_model=_D_MODEL,
        d_ff=_one(rng, 48, 176),
        vocab_size=_one(rng, 40, 96),
        max_position=4096,
        tie_embeddings=bool(rng.integers(2)),
        attention=attention,
        rope=_rotation(cfg.rope, cfg.attention, attention),
        moe=None if cfg.moe is None else _mixture(rng, cfg.moe),
        sliding_layers=(0,) if cfg.sliding_layers else (),
        unrotated_layers=(1,) if cfg.unrotated_layers else (),
        **own,
    )


def _rotation(rope: RopeConfig, given: Any, drawn: Any) -> RopeConfig:
    """Turn as much of a head as the named model does: all, a half, or the fastest quarter."""
    if isinstance(drawn, MlaConfig):
        return replace(rope, dim=drawn.rope_head_dim)
    if rope.span is not None:
        return replace(rope, dim=drawn.head_dim // 4, span=drawn.head_dim)
    return replace(rope, dim=drawn.head_dim // (1 if rope.dim == given.head_dim else 2))


def _attention(rng: np.random.Generator, given: Any, policy: Policy) -> Any:
    width = 128 if policy.name == "fp8" else 32  # heads are whole blocks that share a scale
    if isinstance(given, MlaConfig):
        return replace(
            given,
            n_heads=_one(rng, 2, 3, 6),
            q_lora_rank=48,
            kv_lora_rank=48,
            nope_head_dim=32,
            rope_head_dim=16,
            v_head_dim=width,
            form=_one(rng, "absorbed", "expanded"),
        )
    assert isinstance(given, GqaConfig)
    kv = _one(rng, 1, 2, 3)
    return replace(
        given,
        n_heads=kv * _one(rng, 1, 2, 4),
        n_kv_heads=kv,
        head_dim=width,
        window=None if given.window is None else _one(rng, 2, 5),
        warming=None if given.warming is None else replace(given.warming, step=_one(rng, 3, 100)),
    )


def _mixture(rng: np.random.Generator, moe: MoeConfig) -> MoeConfig:
    groups = _one(rng, 1, 2) if moe.n_groups > 1 else 1
    return replace(
        moe,
        n_experts=_one(rng, 4, 6, 8),
        top_k=_one(rng, 1, 2),
        n_shared=_one(rng, 1, 2) if moe.n_shared else 0,
        d_expert=_one(rng, 32, 80),
        n_groups=groups,
        topk_groups=_one(rng, 1, groups),
        n_dense_layers=min(moe.n_dense_layers, 1),
    )


# --- plans ----------------------------------------------------------------------------------------


def _degrees(rng: np.random.Generator, n_chips: int, *axes: str) -> dict[str, int]:
    """Split chips over axes: each takes a divisor of what is left, the last one the rest.

    In half of the cases there are no replicas: they are the least of what can go wrong.
    """
    order = [str(axis) for axis in rng.permutation(axes)]
    ways, left = {}, n_chips
    if rng.integers(2):
        order.remove("replica")
        ways["replica"] = 1
    for axis in order[:-1]:
        ways[axis] = int(_one(rng, *(d for d in range(1, left + 1) if left % d == 0)))
        left //= ways[axis]
    return ways | {order[-1]: left}


def _order(rng: np.random.Generator, default: tuple[str, ...]) -> tuple[str, ...]:
    orders = [one for one in permutations(default) if len(one) != 3 or one[1] != "replica"]
    return default if rng.integers(2) else _one(rng, *orders)


def _plan(
    rng: np.random.Generator,
    cfg: ModelConfig,
    policy: Policy,
    node: System,
    rule: Split | None = None,
) -> Plan:
    n = int(_one(rng, 1, 2, 2, 3, 4, 4, 4, 5, 6, 6, 7, 8, 8, 8))
    if rule is None:  # As whole plans of one rule they promise most.
        rule = _one(rng, None, None, Split.COLUMN, _one(rng, Split.TREE, Split.WIDE))
    elif n == 1:
        n = 8

    def split() -> Split:
        return _one(rng, *Split) if rule is None else rule

    attention = _degrees(rng, n, "tensor", "data", "context", "replica")
    if rule is not None:
        attention |= {"context": 1, "replica": attention["replica"] * attention["context"]}
    plan = Plan(
        group_chips=n,
        attention=AttentionShard(
            **attention, split=split(), order=_order(rng, AttentionShard.order)
        ),
        mlp=MlpShard(
            **_degrees(rng, n, "tensor", "replica"),
            split=split(),
            order=_order(rng, MlpShard.order),
        ),
        moe=None
        if cfg.moe is None
        else MoeShard(
            **_degrees(rng, n, "expert", "tensor", "replica"),
            split=split(),
            dispatch=Dispatch.REPLICATED if rule is not None else _one(rng, *Dispatch),
            slots=_one(rng, None, None, 8, 24),
            order=_order(rng, MoeShard.order),
        ),
        collective=_one(rng, "auto", "auto", "auto", *_COLLECTIVES),
    )
    context = POSITIONS_STEP * plan.attention.context
    request = Request(batch=BATCH, tokens=TOKENS, context=context)
    check_plan(plan, Scenario(cfg, node, request, policy=policy))
    return plan
