"""Weight sources: one interface for real checkpoints and for random values.

A source hands out float32 NumPy arrays in the shapes of `models.params`, one block or one routed
expert at a time, so that a trillion-parameter model never has to exist at once. Rounding to a
storage format is not done here. Scaled formats (fp8 or int4 with separate scales) are not read.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from einops import rearrange

from lpu_jax.errors import WeightsError

from ..config import GqaConfig, MlaConfig, ModelConfig
from ..params import block_params

Arrays = dict[str, np.ndarray]

#: Buffers that old checkpoints store and every reader recomputes.
_RECOMPUTED = ("rotary_emb.inv_freq",)


@runtime_checkable
class WeightSource(Protocol):
    """Anything that can produce the parameters of a model.

    Rotary convention: query and key columns are in half-split pair order for the llama family
    and in interleaved pair order for deepseek (`config.rope.interleaved`).
    """

    @property
    def config(self) -> ModelConfig:
        """The model these weights belong to."""

    def block(self, kind: str, layer: int = 0) -> Arrays:
        """Return one block's parameters, float32, without its routed experts.

        Args:
            kind: "embed", "attention", "dense", "moe" or "head".
            layer: the layer from 0; ignored for "embed" and "head".
        """

    def expert(self, layer: int, expert_id: int) -> Arrays:
        """Return one routed expert: `gate_up` `[d, 2, fe]` and `down` `[fe, d]`, float32."""


def check_expert(model_cfg: ModelConfig, layer: int, expert_id: int) -> None:
    """Raise unless the model has this expert.

    Raises:
        WeightsError: if layer `layer` has no experts or fewer than `expert_id + 1`.
    """
    moe = model_cfg.moe
    if moe is None or not model_cfg.is_moe_layer(layer):
        raise WeightsError(f"{model_cfg.name}: layer {layer} has no routed experts.")
    if not 0 <= expert_id < moe.n_experts:
        raise WeightsError(
            f"{model_cfg.name}: expert must be 0 to {moe.n_experts - 1}, got {expert_id}."
        )


def check_block(model_cfg: ModelConfig, kind: str, layer: int) -> None:
    """Raise unless the model has a block of this kind at this layer.

    Raises:
        UnknownNameError: if `kind` is not a block kind.
        ConfigError: if the model has no such layer or no such kind.
        WeightsError: if layer `layer` has the other kind of MLP.
    """
    block_params(model_cfg, kind)
    if kind in ("embed", "head"):
        return
    is_moe = model_cfg.is_moe_layer(layer)
    if kind != "attention" and is_moe != (kind == "moe"):
        actual = "moe" if is_moe else "dense"
        raise WeightsError(f"{model_cfg.name}: layer {layer} has a {actual} block, not {kind}.")


class HfTensors:
    """A weight source over tensors under their Hugging Face names.

    The mapping may be lazy: a tensor is looked up when its block is asked for, never kept.
    """

    def __init__(self, model_cfg: ModelConfig, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = model_cfg
        self._tensors = tensors
        self._refuse_unknown_tensors()

    def block(self, kind: str, layer: int = 0) -> Arrays:
        """Return one block's parameters; see `WeightSource.block`.

        Raises:
            WeightsError: if a tensor is missing, has another shape, or is not floating point.
        """
        check_block(self.config, kind, layer)
        prefix = f"model.layers.{layer}."
        match kind:
            case "embed":
                return {"table": self._embedding()}
            case "attention":
                arrays = self._attention(prefix)
            case "dense":
                arrays = self._mlp(prefix + "mlp.", self.config.d_ff)
                arrays["norm"] = self._vector(prefix + "post_attention_layernorm.weight")
            case "moe":
                arrays = self._mixture(prefix)
                arrays["norm"] = self._vector(prefix + "post_attention_layernorm.weight")
            case _:
                arrays = {"norm": self._vector("model.norm.weight"), "out": self._head()}
        return arrays

    def expert(self, layer: int, expert_id: int) -> Arrays:
        """Return one routed expert; see `WeightSource.expert`.

        Raises:
            WeightsError: if the model has no such expert, or as in `block`.
        """
        check_expert(self.config, layer, expert_id)
        assert self.config.moe is not None  # check_expert refused such models
        prefix = f"model.layers.{layer}.mlp.experts.{expert_id}."
        return self._mlp(prefix, self.config.moe.d_expert)

    def _read(self, name: str, *shape: int) -> np.ndarray:
        """Return one tensor as float32, or say exactly what is wrong with it."""
        try:
            tensor = self._tensors[name]
        except KeyError:
            raise WeightsError(f"{self.config.name}: tensor {name!r} is missing.") from None
        if tensor.shape != shape:
            raise WeightsError(
                f"{self.config.name}: tensor {name!r} must have shape {shape}, got "
                f"{tuple(tensor.shape)}."
            )
        if tensor.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise WeightsError(
                f"{self.config.name}: tensor {name!r} must be float16, bfloat16, float32 or "
                f"float64, got {tensor.dtype.name}."
            )
        return np.asarray(tensor.astype(np.float32))

    def _vector(self, name: str) -> np.ndarray:
        return self._read(name, self.config.d_model)

    def _embedding(self) -> np.ndarray:
        model_cfg = self.config
        return self._read("model.embed_tokens.weight", model_cfg.vocab_size, model_cfg.d_model)

    def _head(self) -> np.ndarray:
        if self.config.tie_embeddings:
            return np.ascontiguousarray(self._embedding().T)
        shape = (self.config.vocab_size, self.config.d_model)
        return np.ascontiguousarray(self._read("lm_head.weight", *shape).T)

    def _attention(self, prefix: str) -> Arrays:
        attention = self.config.attention
        if isinstance(attention, MlaConfig):
            arrays = self._latent_attention(prefix + "self_attn.", attention)
        else:
            arrays = self._grouped_attention(prefix + "self_attn.", attention)
        arrays["norm"] = self._vector(prefix + "input_layernorm.weight")
        return arrays

    def _grouped_attention(self, prefix: str, gqa: GqaConfig) -> Arrays:
        d_model = self.config.d_model
        n_query, n_kv = gqa.n_heads * gqa.head_dim, gqa.n_kv_heads * gqa.head_dim
        q = self._read(prefix + "q_proj.weight", n_query, d_model)
        k = self._read(prefix + "k_proj.weight", n_kv, d_model)
        v = self._read(prefix + "v_proj.weight", n_kv, d_model)
        o = self._read(prefix + "o_proj.weight", d_model, n_query)
        heads = {"k": gqa.n_kv_heads, "g": gqa.q_per_kv}
        return {
            "q": _packed(q, "(k g h) d -> d k g h", **heads),
            "kv": _packed(np.stack((k, v)), "two (k h) d -> d k two h", k=gqa.n_kv_heads),
            "o": _packed(o, "d (k g h) -> k g h d", **heads),
        }

    def _latent_attention(self, prefix: str, mla: MlaConfig) -> Arrays:
        d_model, n_heads, latent = self.config.d_model, mla.n_heads, mla.kv_lora_rank
        nope, v_dim = mla.nope_head_dim, mla.v_head_dim
        q_a = self._read(prefix + "q_a_proj.weight", mla.q_lora_rank, d_model)
        kv_a_rows = latent + mla.rope_head_dim
        kv_a = self._read(prefix + "kv_a_proj_with_mqa.weight", kv_a_rows, d_model)
        q_b_rows = n_heads * mla.query_head_dim
        q_b = self._read(prefix + "q_b_proj.weight", q_b_rows, mla.q_lora_rank)
        kv_b = self._read(prefix + "kv_b_proj.weight", n_heads * (nope + v_dim), latent)
        kv_b = rearrange(kv_b, "(n e) c -> n e c", n=n_heads)
        o = self._read(prefix + "o_proj.weight", d_model, n_heads * v_dim)
        return {
            "a": _packed(np.concatenate((q_a, kv_a)), "columns d -> d columns"),
            "q_norm": self._read(prefix + "q_a_layernorm.weight", mla.q_lora_rank),
            "kv_norm": self._read(prefix + "kv_a_layernorm.weight", latent),
            "q_b": _packed(q_b, "(n e) q -> q n e", n=n_heads),
            "k_b": np.ascontiguousarray(kv_b[:, :nope]),
            "v_b": _packed(kv_b[:, nope:], "n v c -> n c v"),
            "o": _packed(o, "d (n v) -> n v d", n=n_heads),
        }

    def _mlp(self, prefix: str, width: int) -> Arrays:
        d_model = self.config.d_model
        gate = self._read(prefix + "gate_proj.weight", width, d_model)
        up = self._read(prefix + "up_proj.weight", width, d_model)
        down = self._read(prefix + "down_proj.weight", d_model, width)
        return {
            "gate_up": _packed(np.stack((gate, up)), "two f d -> d two f"),
            "down": _packed(down, "d f -> f d"),
        }

    def _mixture(self, prefix: str) -> Arrays:
        moe = self.config.moe
        assert moe is not None  # check_block refused models without experts
        gate = prefix + "mlp.gate."
        router = self._read(gate + "weight", moe.n_experts, self.config.d_model)
        arrays = {
            "router": _packed(router, "e d -> d e"),
            "router_bias": self._read(gate + "e_score_correction_bias", moe.n_experts),
        }
        if moe.n_shared:
            shared = self._mlp(prefix + "mlp.shared_experts.", moe.d_shared)
            arrays |= {f"shared_{name}": matrix for name, matrix in shared.items()}
        return arrays

    def _refuse_unknown_tensors(self) -> None:
        """Refuse tensors this program would skip silently (biases, scales, extra norms).

        Layers beyond `n_layers` are allowed: a model cut short, and DeepSeek's prediction layer.
        """
        for name in self._tensors:
            if not self._is_known(name):
                raise WeightsError(
                    f"{self.config.name}: tensor {name!r} is not part of a "
                    f"{self.config.family} model."
                )

    def _is_known(self, name: str) -> bool:
        if name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            return True
        head, _, rest = name.removeprefix("model.layers.").partition(".")
        if not name.startswith("model.layers.") or not head.isdecimal():
            return False
        if int(head) >= self.config.n_layers or rest.endswith(_RECOMPUTED):
            return True
        module = rest.removesuffix(".weight").removeprefix("self_attn.")
        if module in ("input_layernorm", "post_attention_layernorm"):
            return True
        if rest == "mlp.gate.e_score_correction_bias":
            return self.config.is_moe_layer(int(head))
        if not rest.endswith(".weight"):
            return False
        if rest.startswith("self_attn."):
            return module in _attention_modules(self.config)
        return module.startswith("mlp.")


def _attention_modules(model_cfg: ModelConfig) -> tuple[str, ...]:
    if isinstance(model_cfg.attention, MlaConfig):
        names = "q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj"
        return tuple(names.split())
    return ("q_proj", "k_proj", "v_proj", "o_proj")


def _packed(tensor: np.ndarray, pattern: str, **sizes: int) -> np.ndarray:
    """Return an einops rearrangement laid out in memory in its new order."""
    return np.ascontiguousarray(rearrange(tensor, pattern, **sizes))


def from_hf_tensors(model_cfg: ModelConfig, tensors: Mapping[str, np.ndarray]) -> HfTensors:
    """Return a weight source over tensors under their Hugging Face names.

    Args:
        model_cfg: the model; may have fewer layers than the tensors.
        tensors: name to array as in a checkpoint, a Linear weight being `[out, in]`; may be lazy.

    Raises:
        WeightsError: if a tensor belongs to a feature the model does not have.
    """
    return HfTensors(model_cfg, tensors)
