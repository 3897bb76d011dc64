"""Which tensors a Hugging Face checkpoint of a model must hold, and which shape each must have.

What a family calls them is in `tensor_names`; how numbers are packed in tensors is the job of
`forms`, their order in memory that of `source`. Vision towers and prediction layers are known, so
as to be left out.
"""

from collections.abc import Iterator, Mapping

from ..config import GqaConfig, LayerKind, MlaConfig, ModelConfig, MoeConfig, RecurrentConfig
from ..hf_families import TENSOR_NAMES, up_matrices
from ..tensor_names import TensorNames

Shape = tuple[int, ...]


#: Text models inside multimodal checkpoints (Kimi K2.5, Gemma 3), and the parts beside them; for
#: Kimi second-hand: from the loaders of vLLM and SGLang for these files.
TEXT_PREFIX = "language_model."
BESIDE_TEXT = ("vision_tower.", "mm_projector.", "multi_modal_projector.")

#: Buffers that old checkpoints store and every reader recomputes.
_RECOMPUTED = "rotary_emb.inv_freq"
#: Of the number of a layer that a model could have.
_MOST_DIGITS = 9


def file_tensors(model_cfg: ModelConfig) -> Mapping[str, Shape]:
    """Return the name and the unpacked shape of every tensor that a model's files must hold.

    A quantised tensor counts under the name of its matrix. A tied head is not among them.
    """
    names = TENSOR_NAMES[model_cfg.family]
    table = (model_cfg.vocab_size, model_cfg.d_model)
    tensors: dict[str, Shape] = {
        f"{names.embedding}.weight": table,
        f"{names.final_norm}.weight": (model_cfg.d_model,),
    }
    if not model_cfg.tie_embeddings:
        tensors[f"{names.head}.weight"] = table
    tensors |= dict(_depth(model_cfg, names.final_depth))
    for layer in range(model_cfg.n_layers):
        prefix = names.layer.format(layer)
        tensors |= {prefix + name: shape for name, shape in _layer(model_cfg, names, layer)}
    return tensors


def is_left_out(model_cfg: ModelConfig, name: str, *, may_be_cut: bool = False) -> bool:
    """Whether a tensor may be in the files although the model does not use it.

    Layers that predict further tokens, which are numbered on from `n_layers`; the copy of a tied
    head; buffers that follow from the configuration; and towers for pictures.

    Args:
        model_cfg: the model.
        name: of the tensor.
        may_be_cut: the model may have fewer layers than the files.
    """
    names = TENSOR_NAMES[model_cfg.family]
    if name == f"{names.head}.weight" and model_cfg.tie_embeddings:
        return True
    if name.endswith(_RECOMPUTED) or name.startswith(names.beside):
        return True
    before, _ = names.layer.split("{}")
    number, _, _ = name.removeprefix(before).partition(".")
    is_of_a_layer = name.startswith(before) and number.isdecimal() and number.isascii()
    if not is_of_a_layer or len(number) > _MOST_DIGITS:
        return False
    beyond = int(number) - model_cfg.n_layers
    return beyond >= 0 and (may_be_cut or beyond < model_cfg.n_prediction_layers)


def _layer(model_cfg: ModelConfig, names: TensorNames, layer: int) -> Iterator[tuple[str, Shape]]:
    for kind in model_cfg.layer_kinds(layer):
        yield from _block(model_cfg, names, kind)
    if model_cfg.scales_layers:
        yield names.layer_scale, (1,)


def _depth(model_cfg: ModelConfig, prefix: str) -> Iterator[tuple[str, Shape]]:
    """List what weighs the states that a block is given, in a model with attention residuals."""
    if model_cfg.residual_block is not None:
        yield f"{prefix}norm.weight", (model_cfg.d_model,)
        yield f"{prefix}proj.weight", (1, model_cfg.d_model)


def _block(
    model_cfg: ModelConfig, names: TensorNames, kind: LayerKind
) -> Iterator[tuple[str, Shape]]:
    d_model, attention = model_cfg.d_model, model_cfg.attention_of(kind)
    is_mlp = kind in ("dense", "moe")
    yield from _depth(model_cfg, names.mlp_depth if is_mlp else names.attention_depth)
    if model_cfg.norms_inputs:
        yield f"{names.mlp_norm if is_mlp else names.attention_norm}.weight", (d_model,)
    if model_cfg.norms_results:
        norm = names.mlp_result_norm if is_mlp else names.attention_result_norm
        yield f"{norm}.weight", (d_model,)
    if kind == "recurrent":
        assert model_cfg.recurrent is not None  # the configuration says so
        yield from _recurrent(d_model, names, model_cfg.recurrent)
    elif kind == "dense":
        before = up_matrices(model_cfg.activation) * model_cfg.d_ff
        yield from _mlp(d_model, before, model_cfg.d_ff, names.mlp, names.gate_up_down)
    elif kind == "moe":
        assert model_cfg.moe is not None  # the configuration says so
        yield from _mixture(d_model, names, model_cfg.moe)
    elif isinstance(attention, MlaConfig):
        yield from _latent(d_model, names, attention)
        if kind == "indexed":
            yield from _index(model_cfg, names, attention)
    else:
        yield from _grouped(d_model, names, attention)
        if kind == "blocked":
            yield from _block_index(model_cfg, names, attention)


def _grouped(d_model: int, names: TensorNames, gqa: GqaConfig) -> Iterator[tuple[str, Shape]]:
    n_query, n_kv = gqa.n_heads * gqa.head_dim, gqa.n_kv_heads * gqa.head_dim
    n_values = gqa.n_kv_heads * gqa.value_width
    # A gate lies beside each query head.
    of_queries = 2 * n_query if gqa.gated else n_query
    rows = (of_queries, n_kv, n_values) if len(names.qkv) > 1 else (n_query + n_kv + n_values,)
    parts = list(zip(names.qkv, rows, strict=True))
    for name, length in parts[:2] if gqa.are_values_keys else parts:
        yield f"{name}.weight", (length, d_model)
        if gqa.qkv_bias:
            yield f"{name}.bias", (length,)
    if gqa.qk_norm:
        yield f"{names.q_norm}.weight", (n_query if gqa.is_qk_norm_joint else gqa.head_dim,)
        yield f"{names.k_norm}.weight", (n_kv if gqa.is_qk_norm_joint else gqa.head_dim,)
    if gqa.sinks:
        yield names.sinks, (gqa.n_heads,)
    if gqa.head_gated:
        yield f"{names.head_gate}.weight", (gqa.n_heads, d_model)
    yield f"{names.output}.weight", (d_model, gqa.n_heads * gqa.value_width)
    if gqa.o_bias:
        yield f"{names.output}.bias", (d_model,)


def _recurrent(
    d_model: int, names: TensorNames, net: RecurrentConfig
) -> Iterator[tuple[str, Shape]]:
    values, per_head = net.n_value_heads * net.value_dim, net.n_value_heads
    rank, keys = net.channel_rank, net.n_key_heads * net.key_dim
    rows: tuple[int, ...] = (net.convolved_values + values, 2 * per_head)
    if net.rule == "mamba2":
        rows = (values + net.convolved_values + per_head,)
    elif len(names.recurrent) > len(rows):
        rows = (net.convolved_values, values, per_head, per_head)
    if rank is not None:
        decays = per_head * net.key_dim
        gates = (values,) if net.is_gate_full else (rank, values)
        rows = (keys, keys, values, rank, decays, *gates, per_head)
    if net.is_full_rank:
        rows = (keys, keys, values, per_head * net.key_dim, values, per_head)
    for name, length in zip(names.recurrent, rows, strict=True):
        is_second = rank is not None and "_b_" in name
        yield f"{name}.weight", (length, rank if is_second and rank else d_model)
    parts = (net.convolved_values,) if len(names.recurrent_taps) == 1 else (keys, keys, values)
    for name, length in zip(names.recurrent_taps, parts, strict=True):
        yield f"{name}.weight", (length, 1, net.taps)
    yield (
        names.recurrent_fading,
        (per_head,) if rank is None or net.is_gate_full else (1, 1, per_head, 1),
    )
    n_biases = per_head * net.key_dim if net.has_channel_decays else per_head
    yield names.recurrent_fading_bias, (n_biases,)
    width = net.value_dim
    if net.rule == "mamba2":
        width = values
        yield f"{names.recurrent_taps[0]}.bias", (net.convolved_values,)
        yield names.recurrent_skip, (per_head,)
    yield f"{names.recurrent_norm}.weight", (width,)
    yield f"{names.recurrent_output}.weight", (d_model, values)


def _latent(d_model: int, names: TensorNames, mla: MlaConfig) -> Iterator[tuple[str, Shape]]:
    latent = mla.kv_lora_rank
    n_query = mla.n_heads * mla.query_head_dim
    if mla.q_lora_rank is None:
        yield f"{names.q}.weight", (n_query, d_model)
    else:
        yield f"{names.q_a}.weight", (mla.q_lora_rank, d_model)
        yield f"{names.q_a_norm}.weight", (mla.q_lora_rank,)
        yield f"{names.q_b}.weight", (n_query, mla.q_lora_rank)
    yield f"{names.kv_a}.weight", (latent + mla.rope_head_dim, d_model)
    yield f"{names.kv_a_norm}.weight", (latent,)
    yield f"{names.kv_b}.weight", (mla.n_heads * (mla.nope_head_dim + mla.v_head_dim), latent)
    if mla.gated or mla.gates_values:
        n_gates = mla.n_heads * (mla.v_head_dim if mla.gates_values else 1)
        yield f"{names.latent_gate}.weight", (n_gates, d_model)
    yield f"{names.output}.weight", (d_model, mla.n_heads * mla.v_head_dim)


def _index(
    model_cfg: ModelConfig, names: TensorNames, mla: MlaConfig
) -> Iterator[tuple[str, Shape]]:
    index, d_model = model_cfg.index, model_cfg.d_model
    yield f"{names.index_q}.weight", (index.n_heads * index.head_dim, mla.q_lora_rank or 0)
    yield f"{names.index_k}.weight", (index.head_dim, d_model)
    yield f"{names.index_k_norm}.weight", (index.head_dim,)
    yield f"{names.index_k_norm}.bias", (index.head_dim,)
    yield f"{names.index_weights}.weight", (index.n_heads, d_model)


def _block_index(
    model_cfg: ModelConfig, names: TensorNames, gqa: GqaConfig
) -> Iterator[tuple[str, Shape]]:
    width = model_cfg.block_index.head_dim
    yield f"{names.index_q}.weight", (gqa.n_kv_heads * width, model_cfg.d_model)
    yield f"{names.index_k}.weight", (width, model_cfg.d_model)
    yield f"{names.index_q_norm}.weight", (width,)
    yield f"{names.index_k_norm}.weight", (width,)


def _mlp(
    d_model: int, before: int, width: int, prefix: str, gate_up_down: tuple[str, ...]
) -> Iterator[tuple[str, Shape]]:
    """List the matrices of an MLP, of which so many rows lie before the activation."""
    *gate_up, down = gate_up_down
    for name in gate_up:
        yield f"{prefix}{name}.weight", (before // len(gate_up), d_model)
    yield f"{prefix}{down}.weight", (d_model, width)


def _mixture(d_model: int, names: TensorNames, moe: MoeConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{names.router}.weight", (moe.n_experts, d_model)
    if moe.router_offset:
        yield f"{names.router}.bias", (moe.n_experts,)
    if moe.correction_bias:
        yield names.correction_bias, (moe.n_experts,)
    n_up, d_row = up_matrices(moe.activation), d_model
    if moe.d_latent is not None:
        d_row = moe.d_latent
        yield f"{names.latent_in}.weight", (d_row, d_model)
        if moe.latent_norm:
            yield f"{names.latent_norm}.weight", (d_row,)
        yield f"{names.latent_out}.weight", (d_model, d_row)
    if moe.has_own_norms:
        for name in (names.expert_norm, names.shared_result_norm, names.expert_result_norm):
            yield f"{name}.weight", (d_model,)
        yield names.router_norm, (d_model,)
        yield names.expert_scale, (moe.n_experts,)
    if moe.n_shared:
        before = n_up * moe.d_shared
        yield from _mlp(d_model, before, moe.d_shared, names.shared, names.gate_up_down)
        if moe.gated_shared:
            yield f"{names.shared_gate}.weight", (1, d_model)
    if names.has_fused_experts:
        yield from _fused_experts(d_model, names, moe)
        return
    for number in range(moe.n_experts):
        prefix = names.expert.format(number)
        before, parts = n_up * moe.d_expert, names.expert_gate_up_down
        yield from _mlp(d_row, before, moe.d_expert, prefix, parts)


def _fused_experts(d_model: int, names: TensorNames, moe: MoeConfig) -> Iterator[tuple[str, Shape]]:
    *gate_up, down = (names.expert + part for part in names.fused_gate_up_down)
    before = 2 * moe.d_expert // len(gate_up)
    for name, k, n in (
        *((name, d_model, before) for name in gate_up),
        (down, moe.d_expert, d_model),
    ):
        yield name, (moe.n_experts, *((n, k) if names.are_fused_turned else (k, n)))
    if moe.expert_bias:
        yield f"{gate_up[0]}_bias", (moe.n_experts, 2 * moe.d_expert)
        yield f"{down}_bias", (moe.n_experts, d_model)
