"""Wrong conventions of indices of sparse attention, and of models with one of blocks.

The rest are in `wrong_conventions`.
"""

import dataclasses

import numpy as np
from changes import in_array, in_model, in_part
from mistakes import Arrays, Mistake

from models.config import ModelConfig
from models.layers import blocked, indexed, norm
from models.reference_index import BlockedAttention, Indexer, SparseAttention

#: The rotated values of an index head of the tiny models.
_ROTARY = 8


def _index(**changes: int) -> object:
    def change(cfg: ModelConfig) -> ModelConfig:
        index = dataclasses.replace(cfg.attention.index, **changes)
        return dataclasses.replace(cfg, attention=dataclasses.replace(cfg.attention, index=index))

    return change


def _blocks(**changes: int) -> object:
    def change(cfg: ModelConfig) -> ModelConfig:
        index = dataclasses.replace(cfg.attention.block_index, **changes)
        attention = dataclasses.replace(cfg.attention, block_index=index)
        return dataclasses.replace(cfg, attention=attention)

    return change


def _dense(cfg: ModelConfig) -> ModelConfig:
    attention = dataclasses.replace(cfg.attention, index=None)
    return dataclasses.replace(cfg, attention=attention, following_layers=())


def _in_order(order: np.ndarray) -> object:
    """Reorder the rotated values of index queries and keys."""

    def change(arrays: Arrays) -> Arrays:
        names = ("index_q", "index_k", "index_k_norm", "index_k_bias")
        changed = {}
        for name in (name for name in names if name in arrays):
            turned, kept = np.split(arrays[name], [_ROTARY], axis=-1)
            changed[name] = np.concatenate((turned[..., order], kept), axis=-1)
        return arrays | changed

    return change


_NEIGHBOURS = np.arange(_ROTARY).reshape(2, -1).T.reshape(-1)
_HALVES = np.argsort(_NEIGHBOURS)

OF_INDICES: dict[str, Mistake] = {
    "index: all positions attended to": Mistake(model="deepseek_v32", config=_dense),
    "index: one position fewer": Mistake(model="deepseek_v32", config=_index(top_k=5)),
    "index: scores below zero count": Mistake(
        model="deepseek_v32", reference=(((Indexer, "__call__"), "jax.nn.relu(", "("),)
    ),
    "index: weights of heads without their signs": Mistake(
        model="deepseek_v32",
        reference=(
            (
                (Indexer, "__call__"),
                'contract("btd,dn->btn", normed, self.weights[...])',
                'jnp.abs(contract("btd,dn->btn", normed, self.weights[...]))',
            ),
        ),
        layers=(
            (
                indexed._scores,
                'linear(rows.normed, weights["index_weights"], policy=policy)',
                'vxm.absolute(linear(rows.normed, weights["index_weights"], policy=policy))',
            ),
        ),
    ),
    "index: halves of deepseek taken for neighbours": Mistake(
        model="deepseek_v32", arrays=_in_order(_HALVES)
    ),
    "index: neighbours of glm taken for halves": Mistake(
        model="glm_moe_dsa", arrays=_in_order(_NEIGHBOURS)
    ),
    "index: mean of keys not subtracted": Mistake(
        model="deepseek_v32",
        reference=(
            (
                (Indexer, "__call__"),
                "jax.nn.standardize(key, epsilon=1e-6)",
                "key * jax.lax.rsqrt(jnp.mean(key**2, -1, keepdims=True) + 1e-6)",
            ),
        ),
        layers=((norm.layer_norm, "vxm.sub(x, vxm.mul(vxm.sum_lanes(x), share))", "x"),),
    ),
    "index: bias of keys dropped": Mistake(
        model="glm_moe_dsa",
        arrays=lambda arrays: (
            arrays | {name: 0 * arrays[name] for name in ("index_k_bias",) if name in arrays}
        ),
    ),
    "index: queries not rotated": Mistake(
        model="glm_moe_dsa",
        reference=(
            (
                (Indexer, "__call__"),
                'rotate(contract("btq,qnh->btnh", of_query, self.q[...]), self.rope)',
                'contract("btq,qnh->btnh", of_query, self.q[...])',
            ),
        ),
        layers=(
            (
                indexed._scores,
                "narrowed(_rotated_first(q, rows, 1), policy)",
                "narrowed(q, policy)",
            ),
        ),
    ),
    "blocks: all positions attended to": Mistake(model="minimax_m3", config=_blocks(top_blocks=8)),
    "blocks: one block fewer": Mistake(model="minimax_m3", config=_blocks(top_blocks=1)),
    "blocks: of half the positions": Mistake(
        model="minimax_m3", config=_blocks(block_size=2, top_blocks=4)
    ),
    "blocks: one more at the token": Mistake(model="minimax_m3", config=_blocks(local_blocks=2)),
    "blocks: all heads choose as the first": Mistake(
        model="minimax_m3",
        arrays=in_array("index_q", lambda q: np.broadcast_to(q[:, :1], q.shape)),
    ),
    "blocks: heads of the index swapped": Mistake(
        model="minimax_m3", arrays=in_array("index_q", lambda q: q[:, ::-1])
    ),
    "blocks: the mean of a block counts": Mistake(
        model="minimax_m3",
        reference=(
            (
                (BlockedAttention, "chosen"),
                ".max(-1)",
                ".mean(-1, where=jnp.isfinite(found.reshape(*found.shape[:3], n_blocks, "
                "index.block_size)))",
            ),
        ),
    ),
    "blocks: queries not rotated": Mistake(
        model="minimax_m3",
        reference=(
            (
                (BlockedAttention, "chosen"),
                "query, key = rotate(query, self.rope), rotate(key, self.rope)",
                "key = rotate(key, self.rope)",
            ),
        ),
        layers=(
            (
                blocked._scores,
                "narrowed(_rotated(q, turn, cfg.rope), policy)",
                "narrowed(q, policy)",
            ),
        ),
    ),
    "blocks: index keys not normalised": Mistake(
        model="minimax_m3",
        reference=(
            (
                (BlockedAttention, "chosen"),
                'self.index_k_norm(contract("btd,di->bti", normed, self.index_k[...]))',
                'contract("btd,di->bti", normed, self.index_k[...])',
            ),
        ),
        layers=(
            (
                blocked._scores,
                'rms_norm(linear(y, weights["index_k"], policy=policy), weights["index_k_norm"], '
                "eps)",
                'linear(y, weights["index_k"], policy=policy)',
            ),
        ),
    ),
    "minimax_m3: dense layer not clamped": Mistake(
        model="minimax_m3", config=in_model(clamps_dense=False)
    ),
    "minimax_m3: no expert clamped": Mistake(
        model="minimax_m3", config=in_part("moe", swiglu_limit=7.0)
    ),
    "minimax_m3: scaling dropped": Mistake(
        model="minimax_m3", config=in_part("moe", routed_scaling=1.0)
    ),
    "minimax_m3: a quarter of heads turned": Mistake(
        model="minimax_m3", config=in_part("rope", dim=4)
    ),
    "index: layers that follow attend to all": Mistake(
        model="glm_moe_dsa",
        reference=(
            (
                (SparseAttention, "__call__"),
                "self.mixed(of_query, latent, key_rope, seen)",
                "self.mixed(of_query, latent, key_rope, seen if self.indexer else None)",
            ),
        ),
    ),
}
