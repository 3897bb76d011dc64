"""Attention blocks of every family with random weights, run in steps on the chips of a plan."""

from dataclasses import replace
from typing import Any

import numpy as np
from placed_blocks import TINY_KIMI, TINY_LLAMA, hidden, place, plan, runner
from small_machines import NODE, tiered

from models.blocks import Kind
from models.config import GqaConfig, MlaConfig, ModelConfig
from sharding.plan import Plan
from sharding.request import Request
from sharding.run.load import LoadedBlock

BATCH = 2
SMALL = replace(
    TINY_LLAMA,
    d_model=64,
    attention=GqaConfig(n_heads=4, n_kv_heads=2, head_dim=16),
    rope=replace(TINY_LLAMA.rope, dim=16),
)
assert isinstance(SMALL.attention, GqaConfig)
assert isinstance(TINY_KIMI.attention, MlaConfig)


def with_features(rotary: int = 16, **features: Any) -> ModelConfig:
    sliding = (0,) if "window" in features else ()
    return replace(
        SMALL,
        attention=replace(SMALL.attention, **features),
        rope=replace(SMALL.rope, dim=rotary),
        sliding_layers=sliding,
    )


EVERYTHING: dict[str, Any] = {
    "qkv_bias": True,
    "o_bias": True,
    "qk_norm": True,
    "sinks": True,
    "rotary": 8,
}
FULL = with_features(**EVERYTHING)
SLIDING = with_features(**EVERYTHING, window=5)
EXPANDED = replace(TINY_KIMI, attention=replace(TINY_KIMI.attention, form="expanded"))
ONE_CHIP = plan("attention", tensor=1)


def run(
    cfg: ModelConfig,
    the_plan: Plan = ONE_CHIP,
    *,
    tokens: int = 8,
    steps: tuple[int, ...] | None = None,
    context: int = 64,
    policy: str = "float32",
    kind: Kind = "attention",
    batch: int = BATCH,
    way: str = "virtual",
    most_tokens: int | None = None,
    x: np.ndarray | None = None,
) -> np.ndarray:
    """The hidden state behind a block that meets the tokens in steps of the given lengths."""
    x = np.asarray(hidden(batch, tokens, cfg.d_model)) if x is None else x
    position, made, cache = 0, [], None
    for step in steps or (tokens,):
        request = Request(batch=batch, tokens=step, context=context, most_tokens=most_tokens)
        machine = NODE if the_plan.n_chips <= NODE.n_chips else tiered(16)
        block = place(cfg, kind, the_plan, request, policy=policy, system=machine)
        _, weights, empty, tables, _, *numbers = block.arguments
        y, cache = compiled(cfg, block, way)(
            x[:, position : position + step].astype(block.policy.dtype),
            weights,
            empty if cache is None else cache,
            tables,
            np.full(batch, position, np.int32),
            *numbers,
        )
        made.append(np.asarray(y))
        position += step
    return np.concatenate(made, axis=1)


_KNOWN: dict[Any, Any] = {}


def compiled(cfg: ModelConfig, block: LoadedBlock, way: str) -> Any:
    """Compile each program once."""
    key = (cfg, block.kind, block.policy, block.split, block.mesh, way)
    return _KNOWN.setdefault(key, runner(cfg, block, way))
