"""MLP blocks of the float32 reference: dense, and mixtures of experts with their routers.

Every held expert runs on every token and is weighted afterwards; no slots, no dispatch.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float32, Int

from lpu_jax.errors import ConfigError

from .config import ModelConfig, MoeConfig, Situ
from .hf_families import Activation
from .reference_parts import Hidden, Params, Result, RmsNorm, capped, contract, input_norm, param


def activated(
    both: Float32[Array, "b t n f"], activation: Activation, situ: Situ | None = None
) -> Float32[Array, "b t f"]:
    """Return `silu(gate) * up`, `gelu(gate) * up` with GELU in its tanh form, or `max(up, 0)²`.

    Of SiTU, whose numbers are given, gate and up have limits: see `Situ`.
    """
    if activation == "relu2":
        found: Array = jnp.square(jnp.maximum(both[:, :, 0], 0.0))
        return found
    gate, up = rearrange(both, "b t c f -> c b t f")
    if situ is not None:
        return capped(gate, situ.limit) * jax.nn.sigmoid(gate) * capped(up, situ.up_limit)
    bent = jax.nn.silu(gate) if activation == "silu" else jax.nn.gelu(gate, approximate=True)
    product: Array = bent * up
    return product


def of_experts(both: Float32[Array, "b t n f"], moe: MoeConfig) -> Float32[Array, "b t f"]:
    """Return that, or `(up + 1) * gate * sigmoid(alpha * gate)` of experts that are clamped."""
    if moe.swiglu_limit is None:
        return activated(both, moe.activation, moe.situ)
    gate, up = rearrange(both, "b t c f -> c b t f")
    gate = jnp.minimum(gate, moe.swiglu_limit)
    up = jnp.clip(up, -moe.swiglu_limit, moe.swiglu_limit)
    clamped: Array = (up + 1.0) * gate * jax.nn.sigmoid(moe.swiglu_alpha * gate)
    return clamped


class Mlp(nnx.Module):
    """Dense block: `x + mlp(norm(x))`."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.norm = input_norm(model_cfg, params)
        self.gate_up, self.down = (param(params, name) for name in ("gate_up", "down"))
        self.result = Result(model_cfg, params)
        self.activation, self.situ = model_cfg.activation, model_cfg.situ
        self.clamped = model_cfg.moe if model_cfg.clamps_dense else None

    def __call__(self, x: Hidden) -> Hidden:
        """Run the block on every token."""
        both = contract("btd,dcf->btcf", self.norm(x), self.gate_up[...])
        if self.clamped is None:
            hidden = activated(both, self.activation, self.situ)
        else:
            hidden = of_experts(both, self.clamped)
        return self.result(x, contract("btf,fd->btd", hidden, self.down[...]))


class Moe(nnx.Module):
    """Mixture-of-experts block: `x + shared(norm(x)) + routed(norm(x))`.

    Holds the experts `held`, stacked in that order. A token's choice that is not held adds
    nothing, so a caller holds what `route` returns, or all.
    """

    def __init__(
        self, model_cfg: ModelConfig, moe: MoeConfig, params: Params, held: tuple[int, ...]
    ) -> None:
        if len(held) != params["gate_up"].shape[0] or len(held) != params["down"].shape[0]:
            raise ConfigError(
                f"a moe block needs as many stacked experts as ids held ({len(held)}), got "
                f"{params['gate_up'].shape[0]} and {params['down'].shape[0]}."
            )
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.router, self.gate_up, self.down = (
            param(params, name) for name in ("router", "gate_up", "down")
        )
        if moe.router_offset:
            self.router_offset = param(params, "router_offset")
        if moe.correction_bias:
            self.router_bias = param(params, "router_bias")
        if moe.expert_bias:
            self.gate_up_bias = param(params, "gate_up_bias")
            self.down_bias = param(params, "down_bias")
        if moe.d_latent is not None:
            self.latent_in, self.latent_out = (
                param(params, name) for name in ("latent_in", "latent_out")
            )
        if moe.latent_norm:
            self.latent_norm = RmsNorm(params, "latent_norm", model_cfg.norm_eps)
        if moe.n_shared:
            self.shared_gate_up = param(params, "shared_gate_up")
            self.shared_down = param(params, "shared_down")
            if moe.gated_shared:
                self.shared_gate = param(params, "shared_gate")
        if moe.has_own_norms:
            self.expert_scale = param(params, "expert_scale")
            self.router_norm, self.expert_norm, self.shared_result_norm, self.expert_result_norm = (
                RmsNorm(params, name, model_cfg.norm_eps)
                for name in (
                    *("router_norm", "expert_norm"),
                    *("shared_result_norm", "expert_result_norm"),
                )
            )
        self.moe = moe
        self.held = held
        self.result = Result(model_cfg, params)

    def route(self, x: Hidden) -> tuple[Int[Array, "b t k"], Float32[Array, "b t k"]]:
        """Return the experts each token chooses, best first, and their weights.

        Source:
            DeepSeek-V3's `noaux_tc` gate: groups are ranked by the sum of their two best biased
            scores, experts by biased score; weights are the unbiased scores. Mixtral and
            Qwen3-MoE: softmax over all experts, the largest taken. gpt-oss: the largest logits,
            softmax over those alone. Llama 4: likewise, sigmoids.
        """
        return self._choose(self.of_router(x), None)

    def __call__(self, x: Hidden, forced_ids: Int[Array, "b t k"] | None = None) -> Hidden:
        """Run the block; `forced_ids` replaces the router's choice, not its weights."""
        return self.finished(x, self.routed(x, forced_ids))

    def routed(self, x: Hidden, forced_ids: Int[Array, "b t k"] | None = None) -> Hidden:
        """Add the weighted results of the experts held, as they are before any norm of the sum.

        Of experts in a narrower space the sum is there: `finished` takes it back.
        """
        ids, weights = self._choose(self.of_router(x), forced_ids)
        of_experts = self.expert_norm(x) if self.moe.has_own_norms else self.norm(x)
        return self._routed(of_experts, ids, weights)

    def finished(self, x: Hidden, routed: Hidden) -> Hidden:
        """Add the sum over all experts, and shared ones, to the hidden state before the block."""
        if self.moe.latent_norm:
            routed = self.latent_norm(routed)
        if self.moe.d_latent is not None:
            routed = contract("btc,cd->btd", routed, self.latent_out[...])
        if self.moe.has_own_norms:
            shared = self.shared_result_norm(self._shared(self.norm(x)))
            return self.result(x, self.expert_result_norm(routed) + shared)
        if self.moe.n_shared:
            routed = routed + self._shared(self.norm(x))
        return self.result(x, routed)

    def of_router(self, x: Hidden) -> Hidden:
        """Normalise what the router is given."""
        return self.router_norm(x) if self.moe.has_own_norms else self.norm(x)

    def _shared(self, normed: Hidden) -> Hidden:
        both = contract("btd,dcf->btcf", normed, self.shared_gate_up[...])
        shared = contract("btf,fd->btd", of_experts(both, self.moe), self.shared_down[...])
        if not self.moe.gated_shared:
            return shared
        return jax.nn.sigmoid(contract("btd,dc->btc", normed, self.shared_gate[...])) * shared

    def _routed(
        self, given: Hidden, ids: Int[Array, "b t k"], weights: Float32[Array, "b t k"]
    ) -> Hidden:
        """Add the weighted results of the experts held, in a latent space where there is one."""
        rows = given
        if self.moe.d_latent is not None:
            rows = contract("btd,dc->btc", given, self.latent_in[...])
        total = jnp.zeros_like(rows)
        for slot, expert_id in enumerate(self.held):
            weight = jnp.sum(jnp.where(ids == expert_id, weights, 0.0), axis=-1, keepdims=True)
            if self.moe.weighs_rows:
                total = total + self._expert(rows * weight, slot)
            else:
                total = total + weight * self._expert(rows, slot)
        return total

    def _expert(self, x: Hidden, slot: int) -> Hidden:
        moe = self.moe
        both = contract("btd,dcf->btcf", x, self.gate_up[slot])
        if moe.expert_bias:
            both = both + self.gate_up_bias[slot][None, None]
        out = contract("btf,fd->btd", of_experts(both, moe), self.down[slot])
        return out + self.down_bias[slot][None] if moe.expert_bias else out

    def _choose(
        self, normed: Hidden, forced_ids: Int[Array, "b t k"] | None
    ) -> tuple[Int[Array, "b t k"], Float32[Array, "b t k"]]:
        moe = self.moe
        scores = contract("btd,de->bte", normed, self.router[...])
        if moe.router_offset:
            scores = scores + self.router_offset[None, None]
        if moe.scoring == "sigmoid":
            scores = jax.nn.sigmoid(scores)
        elif moe.scoring == "softmax":
            scores = jax.nn.softmax(scores, axis=-1)
        ids = self._best(scores) if forced_ids is None else forced_ids
        weights = jnp.take_along_axis(scores, ids, axis=-1)
        if moe.scoring == "softmax_after_top_k":
            weights = jax.nn.softmax(weights, axis=-1)
        elif moe.scoring == "sigmoid_after_top_k":
            weights = jax.nn.sigmoid(weights)
        elif moe.normalise:
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
        if moe.has_own_norms:
            weights = weights * self.expert_scale[...][ids]
        return ids, weights * moe.routed_scaling

    def _best(self, scores: Float32[Array, "b t e"]) -> Int[Array, "b t k"]:
        moe = self.moe
        if moe.correction_bias:
            scores = scores + self.router_bias[None, None]
        if moe.n_groups > 1:
            grouped = rearrange(scores, "b t (group e) -> b t group e", group=moe.n_groups)
            group_scores = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1)
            best_groups = jax.lax.top_k(group_scores, moe.topk_groups)[1]
            is_kept = jnp.any(jax.nn.one_hot(best_groups, moe.n_groups, dtype=jnp.bool_), axis=-2)
            grouped = jnp.where(is_kept[..., None], grouped, -jnp.inf)
            scores = rearrange(grouped, "b t group e -> b t (group e)")
        return jax.lax.top_k(scores, moe.top_k)[1]
