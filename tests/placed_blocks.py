"""Tiny blocks with random weights, placed on the chips of a plan and run in every way there is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_machines import NODE

from lpu_jax.machine.system import System
from lpu_jax.mesh import run_devices, run_nested, run_virtual
from models import zoo
from models.blocks import Kind, block_program
from models.config import GqaConfig, MlaConfig, ModelConfig, MoeConfig, RecurrentConfig
from models.layers.linear import Split
from models.policy import policy_named
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.request import Request
from sharding.run.load import LoadedBlock, load_block

_LLAMA, _KIMI = zoo.model("llama-3.1-8b"), zoo.model("kimi-k2")

#: Two K tiles of the float16 matrix unit, the second one partly filled; a grouped cache.
TINY_LLAMA = dataclasses.replace(
    _LLAMA,
    n_layers=1,
    d_model=192,
    d_ff=240,
    vocab_size=128,
    attention=GqaConfig(n_heads=4, n_kv_heads=2, head_dim=32),
    rope=dataclasses.replace(_LLAMA.rope, dim=32),
)
#: A latent cache and experts of one layer, 2 of 3 groups, a shared expert.
TINY_KIMI = dataclasses.replace(
    _KIMI,
    n_layers=2,
    d_model=96,
    d_ff=160,
    vocab_size=128,
    attention=MlaConfig(
        n_heads=4,
        q_lora_rank=64,
        kv_lora_rank=64,
        nope_head_dim=32,
        rope_head_dim=16,
        v_head_dim=32,
    ),
    rope=dataclasses.replace(_KIMI.rope, dim=16),
    moe=MoeConfig(
        n_experts=12,
        top_k=3,
        n_shared=1,
        d_expert=64,
        n_groups=3,
        topk_groups=2,
        routed_scaling=2.5,
        n_dense_layers=1,
    ),
)
#: As gpt-oss: offset router, softmax over the chosen, biases everywhere, no shared expert.
TINY_OSS = dataclasses.replace(
    TINY_KIMI,
    n_layers=1,
    moe=MoeConfig(
        n_experts=12,
        top_k=3,
        n_shared=0,
        d_expert=64,
        scoring="softmax_after_top_k",
        correction_bias=False,
        router_offset=True,
        expert_bias=True,
        swiglu_limit=0.5,
    ),
)
#: Two recurrent layers around one of gated attention, and a gated shared expert; key heads have two
#: value heads each.
TINY_NEXT = dataclasses.replace(
    zoo.model("qwen3-next-80b-a3b"),
    n_layers=3,
    d_model=96,
    d_ff=64,
    vocab_size=128,
    attention=GqaConfig(n_heads=4, n_kv_heads=2, head_dim=32, qk_norm=True, gated=True),
    rope=dataclasses.replace(_LLAMA.rope, dim=8),
    moe=MoeConfig(
        n_experts=6,
        top_k=2,
        n_shared=1,
        d_expert=32,
        scoring="softmax",
        correction_bias=False,
        gated_shared=True,
    ),
    recurrent=RecurrentConfig(n_key_heads=2, n_value_heads=4, key_dim=16, value_dim=24, taps=4),
    recurrent_layers=(0, 2),
)
#: One block a layer: Mamba2, whose two groups have two heads each, experts in a narrower space, and
#: attention without rotation. Steps are long enough for the limit to be met by some.
TINY_NEMOTRON = dataclasses.replace(
    zoo.model("nemotron-3-ultra-550b-a55b"),
    n_layers=4,
    d_model=96,
    d_ff=64,
    vocab_size=128,
    attention=GqaConfig(n_heads=4, n_kv_heads=2, head_dim=32),
    rope=dataclasses.replace(_LLAMA.rope, dim=32),
    moe=MoeConfig(
        n_experts=6,
        top_k=2,
        n_shared=2,
        d_expert=32,
        d_latent=48,
        routed_scaling=2.5,
        activation="relu2",
    ),
    recurrent=RecurrentConfig(
        n_key_heads=2,
        n_value_heads=4,
        key_dim=16,
        value_dim=24,
        taps=4,
        rule="mamba2",
        least_step=0.5,
    ),
    single_blocks=("recurrent", "moe", "unrotated", "dense"),
)
#: Six heads, which no power of two divides, and 24 experts.
SIX_HEADS_KIMI = dataclasses.replace(
    _KIMI,
    n_layers=2,
    d_model=64,
    d_ff=160,
    attention=dataclasses.replace(
        _KIMI.attention,
        n_heads=6,
        q_lora_rank=32,
        kv_lora_rank=32,
        nope_head_dim=32,
        rope_head_dim=32,
        v_head_dim=32,
    ),
    rope=dataclasses.replace(_KIMI.rope, dim=32),
    moe=dataclasses.replace(_KIMI.moe, n_experts=24, d_expert=64),
)


def plan(kind: Kind, split: Split = Split.COLUMN, **ways: int) -> Plan:
    """A plan of one group that splits one kind of block; the others are replicated."""
    n = int(np.prod(list(ways.values())))
    given = {"split": split, **ways}
    return Plan(
        group_chips=n,
        attention=AttentionShard(**given) if kind == "attention" else AttentionShard(replica=n),
        mlp=MlpShard(**given) if kind == "dense" else MlpShard(replica=n),
        moe=MoeShard(**given) if kind == "moe" else MoeShard(replica=n),
    )


def place(
    cfg: ModelConfig,
    kind: Kind,
    the_plan: Plan,
    request: Request,
    *,
    policy: str = "fp16",
    system: System = NODE,
) -> LoadedBlock:
    """Load a block of the last layer that has one, with random weights of seed 0."""
    source = SyntheticWeights(cfg)
    layers = [i for i in range(cfg.n_layers) if kind in cfg.layer_kinds(i)]
    layer = layers[-1] if layers else 0  # the embedding and the head are of none
    return load_block(source, system, the_plan, kind, layer, request, policy=policy_named(policy))


def runner(
    cfg: ModelConfig,
    block: LoadedBlock,
    way: str = "virtual",
    devices: Mapping[str, int] | None = None,
) -> Callable[..., Any]:
    """The block's program, compiled for one way of running."""
    program = block_program(
        cfg,
        block.kind,
        block.policy,
        block.split,
        experts=block.experts,
        dispatch=block.dispatch,
    )
    specs = (block.in_specs, block.out_specs)
    match way:
        case "virtual":
            return jax.jit(run_virtual(program, block.mesh, *specs))
        case "devices":
            return jax.jit(run_devices(program, block.mesh, *specs))
        case _:
            return jax.jit(run_nested(program, block.mesh, devices or {}, *specs))


def hidden(batch: int, tokens: int, d_model: int, seed: int = 0) -> jax.Array:
    """A hidden state whose rows differ in scale."""
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.integers(-2, 3, (batch, tokens, 1)))
    return jnp.asarray(rng.normal(size=(batch, tokens, d_model)) * scale, jnp.float16)


def sqnr_db(expected: Any, got: Any) -> float:
    """Signal to quantisation noise of an array, in decibels."""
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2)))
