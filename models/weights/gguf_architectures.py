"""What GGUF files of each architecture call the tensors of a layer.

What their metadata say is in `gguf_config`. Not read: mixtures of the llama architecture, layers
of deepseek2 that predict further tokens, which llama.cpp's converter leaves out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..config import ModelConfig


def _weights(modules: Mapping[str, str]) -> dict[str, str]:
    """Give tensors and modules the suffix of a matrix or a norm."""
    return {f"{name}.weight": f"{module}.weight" for name, module in modules.items()}


_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GROUPED = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_DENSE = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_LATENT = {
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
}
_LATENT_QUERIES = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
}

#: What makes keys and values of a latent: one matrix for each head, of keys transposed; or, in
#: files of before April 2025, both of all heads in one, as on the hub.
SPLIT = ("attn_k_b.weight", "attn_v_b.weight")
WHOLE = "attn_kv_b.weight"
JOINED = "self_attn.kv_b_proj.weight"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a GGUF architecture names the tensors of a layer, and what it fixes.

    Names are those behind `blk.{i}.`, of a Hugging Face checkpoint those behind `model.layers.{i}.`

    Attributes:
        model_type: of the same network in a Hugging Face configuration.
        layer: names to Hugging Face's, in every layer.
        dense: the same, in layers with a dense MLP.
        sparse: the same, in layers with experts, of what is not one matrix for each of them.
        experts: the same, of tensors that hold one matrix for each expert.
        queries: the same, of queries with a latent, where an architecture has a latent of keys and
            values; without one they have the matrix `attn_q`.
        is_permuted: rows of queries and keys stand in the order of neighbouring pairs.
        are_norms_whole: weights of norms are what multiplies, where those of Hugging Face are their
            distance from one.
    """

    model_type: str
    layer: Mapping[str, str]
    dense: Mapping[str, str] = field(default_factory=dict)
    sparse: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    is_permuted: bool = False
    are_norms_whole: bool = False

    @property
    def is_latent(self) -> bool:
        """Whether keys and values come from a latent."""
        return bool(self.queries)

    def names(self) -> Mapping[str, str]:
        """Return what tensors of a layer may be called, and their Hugging Face names."""
        names = {**self.layer, **self.dense, **self.sparse, **self.experts, **self.queries}
        if self.is_latent:
            names |= _weights({"attn_q": _GROUPED["attn_q"]}) | {WHOLE: JOINED}
        return names

    def expected(self, model_cfg: ModelConfig, layer: int, *, is_split: bool) -> list[str]:
        """Return the names of the tensors that a layer of a model must have.

        Args:
            model_cfg: the model.
            layer: its number.
            is_split: keys and values come from the latent by matrices of their own.
        """
        is_sparse = model_cfg.moe is not None and model_cfg.moe.is_in_layer(layer)
        mlp = {**self.sparse, **self.experts} if is_sparse else self.dense
        names = [*self.layer, *mlp]
        if self.is_latent:
            has_latent = getattr(model_cfg.attention, "q_lora_rank", None) is not None
            names += [*self.queries] if has_latent else ["attn_q.weight"]
            names += SPLIT if is_split else (WHOLE,)
        return [f"blk.{layer}.{name}" for name in names]


_PLAIN_LAYER = _weights(_NORMS | _GROUPED)

#: By `general.architecture`. Source: llama.cpp, `conversion/` and `src/models/`, as stored in
#: 2025 and 2026.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture(
            model_type="llama", layer=_PLAIN_LAYER, dense=_weights(_DENSE), is_permuted=True
        ),
        "qwen2": Architecture(
            model_type="qwen2",
            layer=_PLAIN_LAYER
            | {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
            dense=_weights(_DENSE),
        ),
        "qwen3": Architecture(
            model_type="qwen3", layer=_PLAIN_LAYER | _weights(_QK_NORM), dense=_weights(_DENSE)
        ),
        "qwen3moe": Architecture(
            model_type="qwen3_moe",
            layer=_PLAIN_LAYER | _weights(_QK_NORM),
            sparse=_weights({"ffn_gate_inp": "mlp.gate"}),
            experts=_weights(_EXPERTS),
        ),
        "gemma3": Architecture(
            model_type="gemma3_text",
            layer=_weights(
                _GROUPED
                | _QK_NORM
                | {
                    "attn_norm": "input_layernorm",
                    "post_attention_norm": "post_attention_layernorm",
                    "ffn_norm": "pre_feedforward_layernorm",
                    "post_ffw_norm": "post_feedforward_layernorm",
                }
            ),
            dense=_weights(_DENSE),
            are_norms_whole=True,
        ),
        "deepseek2": Architecture(
            model_type="deepseek_v3",
            layer=_weights(_NORMS | _LATENT),
            dense=_weights(_DENSE),
            sparse=_weights({"ffn_gate_inp": "mlp.gate"} | _SHARED)
            | {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
            experts=_weights(_EXPERTS),
            queries=_weights(_LATENT_QUERIES),
        ),
    }
)
