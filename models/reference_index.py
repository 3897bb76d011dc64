"""Sparse attention of the float32 reference: which keys an index chooses, as a mask.

Whole prompts, causally: no cache, no sharding, and attention to all keys but for the mask.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from .config import GqaConfig, MlaConfig, ModelConfig
from .reference_attention import GqaAttention, MlaAttention, rotate
from .reference_parts import Hidden, Params, RmsNorm, contract, param

#: Which keys each query attends to.
Seen = Bool[Array, "b t s"]


class Indexer(nnx.Module):
    """The lightning indexer: chooses the keys that each query attends to."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.q, self.k = param(params, "index_q"), param(params, "index_k")
        self.gain, self.bias = param(params, "index_k_norm"), param(params, "index_k_bias")
        self.weights = param(params, "index_weights")
        self.index, self.rope = model_cfg.index, model_cfg.rope

    def __call__(self, normed: Hidden, of_query: Float32[Array, "b t q"]) -> Seen:
        """Choose among the keys up to each query; of equal scores the first ones."""
        query = rotate(contract("btq,qnh->btnh", of_query, self.q[...]), self.rope)
        key = contract("btd,dh->bth", normed, self.k[...])
        key = jax.nn.standardize(key, epsilon=1e-6)
        key = key * self.gain[...][None, None] + self.bias[...][None, None]
        scores = jax.nn.relu(contract("btnh,bsh->bnts", query, rotate(key, self.rope)))
        of_heads = contract("btd,dn->btn", normed, self.weights[...]) * self.index.scale
        scores = contract("bnts,btn->bts", scores, of_heads)
        n = scores.shape[-1]
        is_past = jnp.tril(jnp.ones((n, n), bool))
        scores = jnp.where(is_past[None], scores, -jnp.inf)
        _, chosen = jax.lax.top_k(scores, min(self.index.top_k, n))
        return jax.nn.one_hot(chosen, n, dtype=bool).any(-2) & is_past[None]


class SparseAttention(MlaAttention):
    """Latent attention block to chosen keys: `x + attention(norm(x))`, and which keys those are."""

    def __init__(
        self, model_cfg: ModelConfig, mla: MlaConfig, params: Params, *, has_index: bool
    ) -> None:
        super().__init__(model_cfg, mla, params, rope=model_cfg.rope)
        self.indexer = Indexer(model_cfg, params) if has_index else None

    def __call__(  # type: ignore[override]
        self, x: Hidden, seen: Seen | None
    ) -> tuple[Hidden, Seen | None]:
        """Run the block on a whole prompt, causally.

        Args:
            x: hidden states.
            seen: the keys that the last layer with an index chose; one with its own ignores them.
        """
        normed = self.norm(x)
        of_query, latent, key_rope = self.narrow(normed)
        if self.indexer is not None:
            seen = self.indexer(normed, of_query)
        return x + self.mixed(of_query, latent, key_rope, seen), seen


class BlockedAttention(GqaAttention):
    """Grouped-query attention to chosen blocks of keys: `x + attention(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, gqa: GqaConfig, params: Params) -> None:
        super().__init__(model_cfg, gqa, params, window=None, rope=model_cfg.rope)
        self.index_q, self.index_k = param(params, "index_q"), param(params, "index_k")
        self.index_q_norm = RmsNorm(params, "index_q_norm", model_cfg.norm_eps)
        self.index_k_norm = RmsNorm(params, "index_k_norm", model_cfg.norm_eps)
        self.index = model_cfg.block_index

    def chosen(
        self, scores: Float32[Array, "b k g t s"], normed: Hidden
    ) -> Float32[Array, "b k g t s"]:
        """Leave the scores of the blocks that each head of keys chooses; of equal ones the first.

        Every position is as good as the best of its block; the token's own block, and those right
        before it, are better than all.
        """
        index, n = self.index, normed.shape[1]
        assert self.rope is not None
        query = self.index_q_norm(contract("btd,dki->btki", normed, self.index_q[...]))
        key = self.index_k_norm(contract("btd,di->bti", normed, self.index_k[...]))
        query, key = rotate(query, self.rope), rotate(key, self.rope)
        found = contract("btki,bsi->bkts", query, key)
        found = jnp.where(jnp.tril(jnp.ones((n, n), bool))[None, None], found, -jnp.inf)
        n_blocks = -(-n // index.block_size)
        behind = n_blocks * index.block_size - n
        found = jnp.pad(found, ((0, 0),) * 3 + ((0, behind),), constant_values=-jnp.inf)
        best = found.reshape(*found.shape[:3], n_blocks, index.block_size).max(-1)
        before = (jnp.arange(n) // index.block_size)[:, None] - jnp.arange(n_blocks)[None]
        is_near = (before >= 0) & (before < index.local_blocks)
        best = jnp.where(is_near[None, None], jnp.inf, best)
        _, blocks = jax.lax.top_k(best, min(index.top_blocks, n_blocks))
        kept = jax.nn.one_hot(blocks, n_blocks, dtype=bool).any(-2)
        seen = jnp.repeat(kept, index.block_size, axis=-1)[..., :n]
        return jnp.where(seen[:, :, None], scores, -jnp.inf)
