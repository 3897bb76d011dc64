"""Every parameter of a model as data: shape, logical axes, role and initial spread.

The one list that the layers, the weight sources, the placement and the parameter count share.
Holds no values and no formats: which role is stored in which format is the precision policy's job.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import Literal, get_args

from lpu_jax.errors import ConfigError, unknown

from .config import GqaConfig, MlaConfig, ModelConfig, MoeConfig, RecurrentConfig
from .depth import NORM, QUERY, STATES
from .hf_families import up_matrices
from .param_spec import ParamSpec, bias, matrix, norm

#: Kinds of block, in the order a token meets them; what each is `blocks.BLOCK_KINDS` says.
#: "sliding" is attention over the last keys only, "unrotated" one without rotation; the latter has
#: the parameters of "attention", the former those of `ModelConfig.sliding_attention` if it has one.
#: "recurrent" stands in the place of attention. "indexed" attends to positions that an index of its
#: own finds, "following" to those of the last indexed one, "blocked" to blocks of positions.
Kind = Literal[
    "embed", "attention", "sliding", "unrotated", "recurrent", "indexed", "following",
    "blocked", "dense", "moe", "head",
]  # fmt: skip

#: Logical axes of the columns of output projections: "alone" where no other sum of the block has as
#: many.
OUTPUT_AXES = frozenset({"d_out", "shared_d_out", "alone_d_out"})

#: Norms of what router and experts are given, and of what shared experts and experts give.
_OWN_NORMS = ("router_norm", "expert_norm", "shared_result_norm", "expert_result_norm")


def block_params(model_cfg: ModelConfig, kind: str) -> Mapping[str, ParamSpec]:
    """Return the parameters of one block, by name.

    Args:
        model_cfg: the model.
        kind: one of `Kind`.

    Returns:
        Name to specification, in the order a token meets them. A tied model's `head.out` is its
        transposed embedding table.

    Raises:
        UnknownNameError: if `kind` is not a block kind.
        ConfigError: if the model has no block of this kind.
    """
    if kind not in get_args(Kind):
        raise unknown("block kind", kind, get_args(Kind))
    return _params_of(model_cfg, kind)


@cache
def _params_of(model_cfg: ModelConfig, kind: str) -> Mapping[str, ParamSpec]:
    """Describe the parameters of a block once; whoever asks shares the answer."""
    return MappingProxyType(_PARAMS[kind](model_cfg) | _of_depth(model_cfg, kind))


def _of_depth(model_cfg: ModelConfig, kind: str) -> dict[str, ParamSpec]:
    """Describe what weighs the states that a block reads, in a model with attention residuals.

    The query is a vector, kept in fp32 as norms are.
    """
    if model_cfg.residual_block is None or kind == "embed":
        return {}
    d_model = model_cfg.d_model
    query = replace(bias("attention", (d_model, None)), std=d_model**-0.5)
    params = {NORM: norm(d_model), QUERY: query}
    if kind != "head":
        params[STATES] = replace(norm(2), is_number=True)
    return params


def _embed(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    return {"table": _embedding(model_cfg)}


def _head(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    d_model = model_cfg.d_model
    out = matrix("head", d_model, (model_cfg.vocab_size, "vocab"))
    return {"norm": norm(d_model), "out": out}


def _attention(model_cfg: ModelConfig, kind: Kind = "attention") -> dict[str, ParamSpec]:
    attention = model_cfg.attention_of(kind)
    if isinstance(attention, MlaConfig):
        return _latent_attention(model_cfg.d_model, attention)
    params = _grouped_attention(model_cfg.d_model, attention)
    return _of_input(model_cfg) | params | _of_result(model_cfg)


def _of_input(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Describe the norm of what a block is given, where the model has one."""
    return {"norm": norm(model_cfg.d_model)} if model_cfg.norms_inputs else {}


def _of_result(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Describe the norm of what a block adds, where the model has one."""
    return {"result_norm": norm(model_cfg.d_model)} if model_cfg.norms_results else {}


def _of_layer(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Describe that norm, and what scales the hidden state behind a layer's last block."""
    scale = {"layer_scale": norm(1)} if model_cfg.scales_layers else {}
    return _of_result(model_cfg) | scale


def _embedding(model_cfg: ModelConfig) -> ParamSpec:
    # A look-up sums nothing, so its values start at 1; a tied table must also serve as the head.
    std = model_cfg.d_model**-0.5 if model_cfg.tie_embeddings else 1.0
    return ParamSpec(
        shape=(model_cfg.vocab_size, model_cfg.d_model),
        axes=("vocab", None),
        rows=1,
        role="embedding",
        std=std,
    )


def _grouped_attention(d_model: int, gqa: GqaConfig) -> dict[str, ParamSpec]:
    kv_heads, per_kv = (gqa.n_kv_heads, "kv_heads"), (gqa.q_per_kv, "q_per_kv")
    head_dim, both = gqa.head_dim, 1 if gqa.are_values_keys else 2
    params = {
        "q": matrix("attention", d_model, kv_heads, per_kv, head_dim),
        "kv": matrix("attention", d_model, kv_heads, both, head_dim),
    }
    if gqa.value_dim is not None:  # keys and values of a head lie side by side
        params["kv"] = matrix("attention", d_model, kv_heads, head_dim + gqa.value_dim)
    if gqa.gated:
        params["gate"] = matrix("attention", d_model, kv_heads, per_kv, head_dim)
    if gqa.head_gated:
        params["head_gate"] = matrix("router", d_model, kv_heads, per_kv)  # narrow, as routers are
    if gqa.qkv_bias:
        params["q_bias"] = bias("attention", kv_heads, per_kv, (head_dim, None))
        columns = params["kv"].shape[2:]
        params["kv_bias"] = bias("attention", kv_heads, *((n, None) for n in columns))
    if gqa.is_qk_norm_joint:
        params["q_norm"] = norm(kv_heads, per_kv, (head_dim, None))
        params["k_norm"] = norm(kv_heads, (head_dim, None))
    elif gqa.qk_norm:
        params |= {"q_norm": norm(head_dim), "k_norm": norm(head_dim)}
    if gqa.sinks:
        params["sinks"] = bias("attention", kv_heads, per_kv)
    values = gqa.value_width
    params["o"] = matrix("attention", kv_heads, per_kv, values, (d_model, "d_out"), rows=3)
    if gqa.o_bias:
        params["o_bias"] = bias("attention", (1, "once"), (d_model, "d_out"))
    return params


def _recurrent(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    if model_cfg.recurrent is None:
        raise ConfigError(f"{model_cfg.name} has no recurrent block: all its layers attend.")
    return _recurrence(model_cfg.d_model, model_cfg.recurrent)


def _recurrence(d_model: int, net: RecurrentConfig) -> dict[str, ParamSpec]:
    """Describe a recurrence; its key heads are split as the key/value heads of attention are.

    Of `qk` come queries and keys, of `vz` values and gates, of `ba` rates and decays: narrow, and
    what the whole state is multiplied by, so that formats spare them as they spare routers. With
    decays of channels, these and gates come through `fg_a`, or decays alone through `f_a` or by
    `f`. Mamba2 has no decays of their own, and its rates are columns of the matrix that makes all
    the rest, which formats take as one.
    """
    heads, per_key, value_dim = *_heads(net), net.value_dim
    convolved = replace(bias("attention", heads), std=net.taps**-0.5)
    qk = (net.taps, 2, net.n_key_heads, net.key_dim)
    v = (net.taps, net.n_key_heads, net.value_heads_per_key, value_dim)
    by_channel: tuple[tuple[int, str | None], ...] = ()
    if net.has_channel_decays:
        by_channel = ((net.key_dim, None),)
    out_norm, of_mamba2 = norm(value_dim), {}
    if net.rule == "mamba2":
        out_norm = norm(heads, per_key, value_dim)
        of_mamba2 = {
            "qk_taps_bias": bias("attention", (2, None), heads, (net.key_dim, None)),
            "v_taps_bias": bias("attention", heads, per_key, (value_dim, None)),
            "skip": replace(bias("norm", heads, per_key), std=0.0),
        }
    return {
        "norm": norm(d_model),
        "qk": matrix("attention", d_model, 2, heads, net.key_dim),
        **_of_gates(d_model, net),
        "qk_taps": replace(convolved, shape=qk, axes=(None, None, "kv_heads", None)),
        "v_taps": replace(convolved, shape=v, axes=(None, "kv_heads", "q_per_kv", None)),
        # How fast a head forgets: positive, as norms are.
        "fading": replace(bias("norm", heads, per_key), std=0.0),
        "fading_bias": bias("attention", heads, per_key, *by_channel),
        **of_mamba2,
        "out_norm": out_norm,
        "o": matrix("attention", heads, per_key, value_dim, (d_model, "d_out"), rows=3),
    }


def _heads(net: RecurrentConfig) -> tuple[tuple[int, str], tuple[int, str]]:
    """Return the dimensions of key heads, and of the value heads of each."""
    return (net.n_key_heads, "kv_heads"), (net.value_heads_per_key, "q_per_kv")


def _of_gates(d_model: int, net: RecurrentConfig) -> dict[str, ParamSpec]:
    """Describe what makes the values of a recurrence, its gates, rates and decays."""
    heads, per_key = _heads(net)
    vz = matrix("attention", d_model, 2, heads, per_key, net.value_dim)
    if net.rule == "mamba2":
        return {"vz": vz, "b": matrix("attention", d_model, heads, per_key)}
    if net.is_full_rank:
        return {
            "vz": vz,
            "f": matrix("attention", d_model, heads, per_key, net.key_dim),
            "b": matrix("router", d_model, heads, per_key),
        }
    rank = net.channel_rank
    if rank is None:
        return {"vz": vz, "ba": matrix("router", d_model, 2, heads, per_key)}
    if net.is_gate_full:
        return {
            "vz": vz,
            "f_a": matrix("attention", d_model, rank),
            "f_b": matrix("attention", rank, heads, per_key, net.key_dim),
            "b": matrix("router", d_model, heads, per_key),
        }
    return {
        "v": matrix("attention", d_model, heads, per_key, net.value_dim),
        "fg_a": matrix("attention", d_model, 2, rank),
        "f_b": matrix("attention", rank, heads, per_key, net.key_dim),
        "g_b": matrix("attention", rank, heads, per_key, net.value_dim),
        "b": matrix("router", d_model, heads, per_key),
    }


def _latent_attention(d_model: int, mla: MlaConfig) -> dict[str, ParamSpec]:
    heads, latent = (mla.n_heads, "heads"), mla.kv_lora_rank
    if mla.form == "expanded":
        # One matrix makes keys without position and values of every head from the latent.
        of_latent = {"kv_b": matrix("attention", latent, heads, mla.nope_head_dim + mla.v_head_dim)}
    else:
        # k_b takes a query into the latent space, v_b takes the latent out of it.
        of_latent = {
            "k_b": matrix("attention", heads, mla.nope_head_dim, latent, batch=1),
            "v_b": matrix("attention", heads, latent, mla.v_head_dim, batch=1),
        }
    of_queries, d_query, narrow = {}, d_model, latent + mla.rope_head_dim
    if mla.q_lora_rank is not None:
        of_queries = {"q_norm": norm(mla.q_lora_rank)}
        d_query, narrow = mla.q_lora_rank, mla.q_lora_rank + narrow
    of_gate = {"gate": matrix("attention", d_model, heads)} if mla.gated else {}
    if mla.gates_values:
        of_gate = {"gate": matrix("attention", d_model, heads, mla.v_head_dim)}
    return {
        "norm": norm(d_model),
        "a": matrix("attention", d_model, narrow),
        **of_queries,
        "kv_norm": norm(latent),
        "q_b": matrix("attention", d_query, heads, mla.query_head_dim),
        **of_latent,
        **of_gate,
        "o": matrix("attention", heads, mla.v_head_dim, (d_model, "d_out"), rows=2),
    }


def _indexed(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Describe latent attention with its index, which no axis splits.

    The projection of the heads' weights is narrow and decides like a router, whose role it has.
    """
    of_latents, d_model = _following(model_cfg), model_cfg.d_model
    mla = model_cfg.attention
    assert isinstance(mla, MlaConfig)
    assert mla.index is not None
    assert mla.q_lora_rank is not None
    n, h = mla.index.n_heads, mla.index.head_dim
    return {
        **of_latents,
        "index_q": matrix("attention", mla.q_lora_rank, n, h),
        "index_k": matrix("attention", d_model, h),
        "index_k_norm": norm(h),
        "index_k_bias": bias("norm", (h, None)),
        "index_weights": matrix("router", d_model, n),
    }


def _following(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    mla = model_cfg.attention
    if not isinstance(mla, MlaConfig) or mla.index is None:
        raise ConfigError(f"{model_cfg.name} has no index: its layers attend to all positions.")
    return _latent_attention(model_cfg.d_model, mla)


def _blocked(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    """Describe grouped attention with its index of blocks: a query for each head of keys."""
    gqa, d_model = model_cfg.attention, model_cfg.d_model
    if not isinstance(gqa, GqaConfig) or gqa.block_index is None:
        raise ConfigError(f"{model_cfg.name} has no index of blocks.")
    h = gqa.block_index.head_dim
    return {
        **_attention(model_cfg),
        "index_q": matrix("attention", d_model, (gqa.n_kv_heads, "kv_heads"), h),
        "index_k": matrix("attention", d_model, h),
        "index_q_norm": norm(h),
        "index_k_norm": norm(h),
    }


def _dense(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    d_model, d_ff = model_cfg.d_model, model_cfg.d_ff
    return {
        **_of_input(model_cfg),
        "gate_up": matrix("dense", d_model, up_matrices(model_cfg.activation), (d_ff, "mlp")),
        "down": matrix("dense", (d_ff, "mlp"), (d_model, "d_out")),
        **_of_layer(model_cfg),
    }


def _mixture(model_cfg: ModelConfig) -> dict[str, ParamSpec]:
    d_model, moe = model_cfg.d_model, model_cfg.moe
    if moe is None:
        raise ConfigError(f"{model_cfg.name} has no moe block: all its layers are dense.")
    params = {"norm": norm(d_model), "router": matrix("router", d_model, moe.n_experts)}
    if moe.has_own_norms:
        params |= {name: norm(d_model) for name in _OWN_NORMS}
        params["expert_scale"] = norm(moe.n_experts)
    if moe.router_offset:
        params["router_offset"] = bias("router", (moe.n_experts, None))
    if moe.correction_bias:
        # Small against the router's scores (0 to 1), large enough to change which are chosen.
        params["router_bias"] = replace(bias("router", (moe.n_experts, None)), std=0.05)
    if moe.d_latent is not None:
        # Every row passes them, as it passes the shared expert.
        params["latent_in"] = matrix("shared", d_model, (moe.d_latent, "latent"))
        if moe.latent_norm:
            params["latent_norm"] = norm(moe.d_latent)
        params["latent_out"] = matrix("shared", moe.d_latent, (d_model, "latent_d_out"))
    params |= expert_params(d_model, moe)
    if moe.n_shared:
        shared = (moe.d_shared, "shared_mlp")
        if moe.gated_shared:
            params["shared_gate"] = matrix("router", d_model, 1)
        params["shared_gate_up"] = matrix("shared", d_model, up_matrices(moe.activation), shared)
        is_alone = moe.d_latent is not None
        columns = "alone_d_out" if is_alone else "shared_d_out"
        params["shared_down"] = matrix("shared", shared, (d_model, columns))
    return params | _of_layer(model_cfg)


def expert_params(d_model: int, moe: MoeConfig) -> dict[str, ParamSpec]:
    """Return the parameters of a "moe" block that exist once per routed expert.

    The first dimension of each counts experts.
    """
    experts, width = (moe.n_experts, "experts"), (moe.d_expert, "expert_mlp")
    d_row, n_up = d_model if moe.d_latent is None else moe.d_latent, up_matrices(moe.activation)
    params = {"gate_up": matrix("expert", experts, d_row, n_up, width, batch=1)}
    if moe.expert_bias:
        params["gate_up_bias"] = bias("expert", experts, (n_up, None), width, batch=1)
    params["down"] = matrix("expert", experts, width, (d_row, "d_out"), batch=1)
    if moe.expert_bias:
        params["down_bias"] = bias("expert", experts, (1, "once"), (d_row, "d_out"), batch=1)
    return params


_PARAMS: Mapping[str, Callable[[ModelConfig], dict[str, ParamSpec]]] = {
    "embed": _embed,
    "attention": _attention,
    "sliding": partial(_attention, kind="sliding"),
    "unrotated": _attention,
    "recurrent": _recurrent,
    "indexed": _indexed,
    "following": _following,
    "blocked": _blocked,
    "dense": _dense,
    "moe": _mixture,
    "head": _head,
}


def model_params(model_cfg: ModelConfig) -> tuple[tuple[int, ParamSpec], ...]:
    """Return every parameter of a model with how many layers have one like it.

    A tied embedding table is left out: it is the head's.
    """
    counts: dict[str, int] = {"embed": 0 if model_cfg.tie_embeddings else 1, "head": 1}
    counts.update(model_cfg.kind_counts)
    return tuple(
        (count, spec)
        for kind, count in counts.items()
        if count
        for spec in block_params(model_cfg, kind).values()
    )


def n_parameters(model_cfg: ModelConfig) -> int:
    """Return the parameter count, biases included, multi-token prediction excluded.

    A tied embedding table counts once, as the head.
    """
    return sum(count * spec.n_values for count, spec in model_params(model_cfg))


def n_active(model_cfg: ModelConfig, include_embedding: bool = False) -> int:
    """Return the parameters one token uses: of the routed experts, `top_k` of each layer.

    Args:
        model_cfg: the model.
        include_embedding: count the input embedding too. A tied table is counted once, as the
            head, either way.

    Returns:
        The count.
    """
    idle = 0 if model_cfg.moe is None else model_cfg.moe.n_experts - model_cfg.moe.top_k
    total = n_parameters(model_cfg)
    for count, spec in model_params(model_cfg):
        if spec.role == "expert":
            total -= count * spec.n_values // spec.shape[0] * idle
        elif spec.role == "embedding" and not include_embedding:
            total -= count * spec.n_values
    return total
