"""States to save: tiny blocks, made as they are asked for, and caches with content."""

from dataclasses import replace

import numpy as np
from placed_blocks import SIX_HEADS_KIMI, TINY_LLAMA

from models.policy import POLICIES, policy_named
from models.weights.synthetic import SyntheticWeights
from sharding.request import Request
from sharding.run.load import store_block
from sharding.run.saved import State
from sharding.run.unplaced import BlockState

#: Uneven in everything: words, experts and their width.
UNEVEN_KIMI = replace(
    SIX_HEADS_KIMI,
    vocab_size=100,
    moe=replace(SIX_HEADS_KIMI.moe, n_experts=23, d_expert=96),
)
DECODE = Request(batch=1, tokens=1, context=320)
FP16 = POLICIES["fp16"]
STORED = store_block(SyntheticWeights(TINY_LLAMA), "attention", 0, FP16)


def state_of(cfg, policy, blocks, **rest):
    return State(cfg=cfg, policy=policy_named(policy), blocks=blocks, **rest)


def stored_blocks(cfg=TINY_LLAMA, policy="fp16", layers=1):
    """Blocks of a model, made as they are asked for."""
    source = SyntheticWeights(cfg)
    for layer in range(layers):  # nothing of a block is kept here
        yield BlockState(layer=layer, stored=store_block(source, "dense", 0, POLICIES[policy]))


def filled_cache(loaded, seed):
    """Random caches, padding of the plan included."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=leaf.shape).astype(leaf.dtype)
        for name, leaf in loaded.arguments[2].items()
    }
