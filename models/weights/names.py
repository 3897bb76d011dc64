"""What Hugging Face checkpoints call their tensors, per family, and which shape each must have.

Names only: how numbers are packed in tensors is the job of `forms`, their order in memory that of
`source`. Vision towers and prediction layers are known, so as to be left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..config import Family, GqaConfig, MlaConfig, ModelConfig, MoeConfig

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Names:
    """Tensor names of a family; those of a layer follow `layer`, in which `{}` is its number.

    Matrices are named without the `.weight` and `.bias` that follow. A matrix is `[out, in]`.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."

    attention_norm: str = "input_layernorm"
    #: Query, key and value matrices; a family that stores them as one names only that.
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    sinks: str = "self_attn.sinks"
    output: str = "self_attn.o_proj"

    q_a: str = "self_attn.q_a_proj"
    q_a_norm: str = "self_attn.q_a_layernorm"
    q_b: str = "self_attn.q_b_proj"
    kv_a: str = "self_attn.kv_a_proj_with_mqa"
    kv_a_norm: str = "self_attn.kv_a_layernorm"
    kv_b: str = "self_attn.kv_b_proj"

    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp."
    router: str = "mlp.gate"
    correction_bias: str = "mlp.gate.e_score_correction_bias"
    #: `{}` is the expert's number. Without it all experts of a layer lie in two tensors
    #: `[experts, in, out]`, and gate and up columns alternate.
    expert: str = "mlp.experts.{}."
    fused_gate_up_down: tuple[str, str] = ("gate_up_proj", "down_proj")
    shared: str = "mlp.shared_experts."
    #: Gate, up and down matrices of a dense MLP and of shared experts, and of a routed expert.
    gate_up_down: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    expert_gate_up_down: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")

    @property
    def has_fused_experts(self) -> bool:
        """Whether one tensor holds all experts of a layer."""
        return "{}" not in self.expert


_PLAIN = Names()

#: Source: tensor names of the classes in Hugging Face transformers and of the released files; for
#: Ling (`bailing_moe`), which transformers lacks, `modeling_bailing_moe_v2.py` of inclusionAI's
#: Ring-V2 and the converters of llama.cpp (second-hand).
NAMES: Mapping[Family, Names] = MappingProxyType(
    {
        "llama": _PLAIN,
        "qwen3": _PLAIN,
        "qwen3_moe": _PLAIN,
        "deepseek": _PLAIN,
        "glm4_moe": _PLAIN,
        "mixtral": replace(
            _PLAIN,
            router="block_sparse_moe.gate",
            expert="block_sparse_moe.experts.{}.",
            expert_gate_up_down=("w1", "w3", "w2"),
        ),
        "gpt_oss": replace(_PLAIN, router="mlp.router", expert="mlp.experts."),
        "bailing_moe": replace(
            _PLAIN,
            embedding="model.word_embeddings",
            qkv=("attention.query_key_value",),
            q_norm="attention.query_layernorm",
            k_norm="attention.key_layernorm",
            output="attention.dense",
            correction_bias="mlp.gate.expert_bias",
        ),
    }
)

#: Text models inside multimodal checkpoints (Kimi K2.5), and the parts beside them. Second-hand:
#: from the loaders of vLLM and SGLang for these files.
TEXT_PREFIX = "language_model."
BESIDE_TEXT = ("vision_tower.", "mm_projector.")

#: Buffers that old checkpoints store and every reader recomputes.
_RECOMPUTED = "rotary_emb.inv_freq"
#: Of the number of a layer that a model could have.
_MOST_DIGITS = 9


def file_tensors(model_cfg: ModelConfig) -> Mapping[str, Shape]:
    """Return the name and the unpacked shape of every tensor that a model's files must hold.

    A quantised tensor counts under the name of its matrix. A tied head is not among them.
    """
    names = NAMES[model_cfg.family]
    table = (model_cfg.vocab_size, model_cfg.d_model)
    tensors: dict[str, Shape] = {
        f"{names.embedding}.weight": table,
        f"{names.final_norm}.weight": (model_cfg.d_model,),
    }
    if not model_cfg.tie_embeddings:
        tensors[f"{names.head}.weight"] = table
    for layer in range(model_cfg.n_layers):
        prefix = names.layer.format(layer)
        tensors |= {prefix + name: shape for name, shape in _layer(model_cfg, names, layer)}
    return tensors


def is_left_out(model_cfg: ModelConfig, name: str, *, may_be_cut: bool = False) -> bool:
    """Whether a tensor may be in the files although the model does not use it.

    Layers that predict further tokens, which are numbered on from `n_layers`; the copy of a tied
    head; and buffers that follow from the configuration.

    Args:
        model_cfg: the model.
        name: of the tensor.
        may_be_cut: the model may have fewer layers than the files.
    """
    names = NAMES[model_cfg.family]
    if name == f"{names.head}.weight" and model_cfg.tie_embeddings:
        return True
    if name.endswith(_RECOMPUTED):
        return True
    before, _ = names.layer.split("{}")
    number, _, _ = name.removeprefix(before).partition(".")
    is_of_a_layer = name.startswith(before) and number.isdecimal() and number.isascii()
    if not is_of_a_layer or len(number) > _MOST_DIGITS:
        return False
    beyond = int(number) - model_cfg.n_layers
    return beyond >= 0 and (may_be_cut or beyond < model_cfg.n_prediction_layers)


def _layer(model_cfg: ModelConfig, names: Names, layer: int) -> Iterator[tuple[str, Shape]]:
    d_model, attention = model_cfg.d_model, model_cfg.attention
    yield f"{names.attention_norm}.weight", (d_model,)
    yield f"{names.mlp_norm}.weight", (d_model,)
    if isinstance(attention, MlaConfig):
        yield from _latent(d_model, names, attention)
    else:
        yield from _grouped(d_model, names, attention)
    if not model_cfg.is_moe_layer(layer):
        yield from _mlp(d_model, model_cfg.d_ff, names.mlp, names.gate_up_down)
        return
    assert model_cfg.moe is not None  # is_moe_layer says so
    yield from _mixture(d_model, names, model_cfg.moe)


def _grouped(d_model: int, names: Names, gqa: GqaConfig) -> Iterator[tuple[str, Shape]]:
    n_query, n_kv = gqa.n_heads * gqa.head_dim, gqa.n_kv_heads * gqa.head_dim
    rows = (n_query, n_kv, n_kv) if len(names.qkv) > 1 else (n_query + 2 * n_kv,)
    for name, length in zip(names.qkv, rows, strict=True):
        yield f"{name}.weight", (length, d_model)
        if gqa.qkv_bias:
            yield f"{name}.bias", (length,)
    if gqa.qk_norm:
        yield f"{names.q_norm}.weight", (gqa.head_dim,)
        yield f"{names.k_norm}.weight", (gqa.head_dim,)
    if gqa.sinks:
        yield names.sinks, (gqa.n_heads,)
    yield f"{names.output}.weight", (d_model, n_query)
    if gqa.o_bias:
        yield f"{names.output}.bias", (d_model,)


def _latent(d_model: int, names: Names, mla: MlaConfig) -> Iterator[tuple[str, Shape]]:
    latent = mla.kv_lora_rank
    yield f"{names.q_a}.weight", (mla.q_lora_rank, d_model)
    yield f"{names.q_a_norm}.weight", (mla.q_lora_rank,)
    yield f"{names.q_b}.weight", (mla.n_heads * mla.query_head_dim, mla.q_lora_rank)
    yield f"{names.kv_a}.weight", (latent + mla.rope_head_dim, d_model)
    yield f"{names.kv_a_norm}.weight", (latent,)
    yield f"{names.kv_b}.weight", (mla.n_heads * (mla.nope_head_dim + mla.v_head_dim), latent)
    yield f"{names.output}.weight", (d_model, mla.n_heads * mla.v_head_dim)


def _mlp(
    d_model: int, width: int, prefix: str, gate_up_down: tuple[str, str, str]
) -> Iterator[tuple[str, Shape]]:
    gate, up, down = gate_up_down
    yield f"{prefix}{gate}.weight", (width, d_model)
    yield f"{prefix}{up}.weight", (width, d_model)
    yield f"{prefix}{down}.weight", (d_model, width)


def _mixture(d_model: int, names: Names, moe: MoeConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{names.router}.weight", (moe.n_experts, d_model)
    if moe.router_offset:
        yield f"{names.router}.bias", (moe.n_experts,)
    if moe.correction_bias:
        yield names.correction_bias, (moe.n_experts,)
    if moe.n_shared:
        yield from _mlp(d_model, moe.d_shared, names.shared, names.gate_up_down)
    if names.has_fused_experts:
        yield from _fused_experts(d_model, names, moe)
        return
    for number in range(moe.n_experts):
        prefix = names.expert.format(number)
        yield from _mlp(d_model, moe.d_expert, prefix, names.expert_gate_up_down)


def _fused_experts(d_model: int, names: Names, moe: MoeConfig) -> Iterator[tuple[str, Shape]]:
    gate_up, down = (names.expert + part for part in names.fused_gate_up_down)
    yield gate_up, (moe.n_experts, d_model, 2 * moe.d_expert)
    yield down, (moe.n_experts, moe.d_expert, d_model)
    if moe.expert_bias:
        yield f"{gate_up}_bias", (moe.n_experts, 2 * moe.d_expert)
        yield f"{down}_bias", (moe.n_experts, d_model)
