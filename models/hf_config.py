"""Read a Hugging Face `config.json` of any type listed in `hf_families.FAMILIES`.

Refuses what it does not know: any unread key whose value could set a size or switch a part on is
an error, because guessing miscounts the model. Both spellings are read, the hub's (`rope_theta`,
`rope_scaling`, `torch_dtype`) and that of transformers 5 (`rope_parameters`, `dtype`). Of a
multimodal file only the language part is read. Prediction layers are counted, not described.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpu_jax.errors import ConfigError, nearest
from lpu_jax.quantities import format_given

from .config import GqaConfig, LayerKind, MlaConfig, ModelConfig, MoeConfig, Multipliers, Situ
from .hf_experts import read_experts
from .hf_families import FAMILIES, TYPES_INSIDE, WRAPPERS
from .hf_formats import read_released_format
from .hf_index import read_index
from .hf_keys import MOST_LAYERS, Keys
from .hf_latent import read_mla
from .hf_layers import (
    read_cap,
    read_chunks,
    read_global_heads,
    read_scale,
    read_unrotated,
    read_warming,
)
from .hf_mimo import read_mimo_heads, read_mimo_windows
from .hf_minimax import read_blocks
from .hf_recurrence import read_recurrence, read_single_blocks
from .hf_rope import read_rope, rotation_parts
from .hf_rules import ExpertRules, FamilyRules
from .hf_step import read_step_heads, read_step_rotations, read_step_windows

#: Keys that a multimodal file may have beside its language part, about the whole of it, and those
#: about its other parts: towers, projectors, and where their tokens stand among those of the text.
_ABOUT_THE_WHOLE = (
    *("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype"),
    *("bos_token_id", "eos_token_id"),
)
_ABOUT_OTHER_PARTS = re.compile(
    r"(vision|image|img|video|audio|media|mm|multimodal|projector)_\w+|\w+_token_(id|index)"
    r"|ignore_index|text_hidden_size|merged_hidden_size|use_unified_vision_chunk|process_image_mode"
)
#: A model's name on the hub, alone or behind its owner's; a path is none.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
#: What files call activations.
_ACTIVATIONS = {
    "silu": "silu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu2": "relu2",
    "situ": "situ",
}
#: Spellings of what is added under the root of norms.
_EPSILON = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon", "layernorm_epsilon")
#: Where NVIDIA ModelOpt puts what others put into `quantization_config`.
_MODELOPT = "hf_quant_config.json"


def from_hf(source: Mapping[str, Any] | str | os.PathLike[str]) -> ModelConfig:
    """Read a Hugging Face configuration.

    Args:
        source: the parsed `config.json`, or the path of one (or of its folder).

    Returns:
        The configuration. Its name is `_name_or_path` when that is a name on the hub, else the
        name of the file's folder or the model type.

    Raises:
        ConfigError: if the file cannot be read, its `model_type` is not in `FAMILIES`, a key is
            missing or of the wrong type, asks for what this program does not model, or is unknown
            and may set a size.
    """
    keys = _open(source)
    model_type = keys.text("model_type")
    if model_type == "kimi_linear" and keys.has("attn_res_block_size"):
        model_type = "kimi_k3_text"  # whose files say the type of their predecessor
    if model_type not in FAMILIES:
        raise keys.complain("model_type", _known_types(model_type))
    rules = FAMILIES[model_type]
    keys.defaults = rules.defaults
    known = {rules.architecture, *rules.other_architectures}
    if known.isdisjoint(keys.texts("architectures") or known):
        raise keys.complain("architectures", f"[{rules.architecture!r}] for a {model_type!r} model")
    for key in ("hidden_act", "hidden_activation", "mlp_hidden_act"):
        clamped = ("swigluoai",) if rules.is_minimax_m3 else ()
        keys.must_be(key, _ACTIVATIONS[rules.activation], *clamped)
    if rules.is_kimi_k3:
        keys.must_say("hidden_act", _ACTIVATIONS[rules.activation])
    keys.must_be("mlp_bias", False)
    keys.must_be("use_rmsnorm", True)
    single_blocks = read_single_blocks(keys) if rules.has_single_blocks else ()
    n_layers = keys.integer(
        "num_hidden_layers", default=len(single_blocks) or None, most=MOST_LAYERS
    )
    recurrent, recurrent_layers = read_recurrence(keys, rules, n_layers)
    keys.must_be("attn_type_list", [1] * n_layers)  # others are linear
    unrotated = read_unrotated(keys, rules, n_layers, recurrent_layers)
    if rules.is_llama4:
        window, sliding_layers = read_chunks(keys, n_layers, unrotated)
    elif rules.is_mimo_v2:
        listed = _listed_as_sliding(keys, rules, n_layers)
        window, sliding_layers = read_mimo_windows(keys, n_layers, listed)
    elif rules.is_step:
        window, sliding_layers = read_step_windows(keys, n_layers)
    else:
        window, sliding_layers = _read_windows(keys, rules, n_layers)
    if rules.turns_sliding_alone and keys.optional_integer("sliding_window") is not None:
        unrotated = tuple(layer for layer in range(n_layers) if layer not in sliding_layers)
    attention: GqaConfig | MlaConfig
    local: GqaConfig | None = None
    sliding_rope = None
    blocked_layers: tuple[int, ...] = ()
    index, following_layers = read_index(keys, rules, n_layers)
    if rules.is_latent:
        rope = read_rope(keys, rules, keys.integer("qk_rope_head_dim"))
        attention = read_mla(keys, rules, rope, index)
    else:
        attention = _read_gqa(keys, rules, window)
        local = attention
        if rules.has_global_heads:
            attention = read_global_heads(keys, local, n_layers, sliding_layers)
        if rules.is_mimo_v2:
            attention, local = read_mimo_heads(keys, local)
        if rules.is_minimax_m3:
            attention, blocked_layers = read_blocks(keys, local, n_layers)
            local = attention
        if rules.is_step:
            attention, local = read_step_heads(keys, local, n_layers, sliding_layers)
        if rules.has_local_rotation:
            if rules.is_step:
                full, sliding = read_step_rotations(keys, rules, n_layers, sliding_layers)
            else:
                full, sliding = rotation_parts(keys, rules)
            rope = read_rope(full, rules, attention.head_dim)
            sliding_rope = read_rope(sliding, rules, local.head_dim)
        else:
            rope = read_rope(keys, rules, attention.head_dim)
    situ = _read_situ(keys, rules)
    moe = _read_mixture(keys, rules, n_layers, single_blocks, situ)
    bos_token_ids = keys.token_ids("bos_token_id")
    indexed_layers = blocked_layers or tuple(
        i for i in range(n_layers) if rules.has_index and i not in following_layers
    )
    released_format, released_roles = read_released_format(
        keys, rules, n_layers, moe, recurrent_layers, single_blocks, indexed_layers
    )
    model_cfg = ModelConfig(
        name=_name(keys, source, model_type),
        family=rules.family,
        n_layers=n_layers,
        d_model=keys.integer("hidden_size"),
        d_ff=_read_dense_width(keys, rules, moe),
        vocab_size=keys.integer("vocab_size"),
        max_position=keys.integer(*_positions_of(rules)),
        norm_eps=keys.number(*_EPSILON),
        tie_embeddings=keys.boolean("tie_word_embeddings", default=False),
        attention=attention,
        rope=rope,
        moe=moe,
        sliding_layers=sliding_layers,
        sliding_attention=local if sliding_layers and local != attention else None,
        sliding_rope=sliding_rope if sliding_layers else None,
        unrotated_layers=unrotated,
        recurrent=recurrent,
        recurrent_layers=recurrent_layers,
        single_blocks=single_blocks,
        following_layers=following_layers,
        blocked_layers=blocked_layers,
        multipliers=_read_multipliers(keys, rules),
        activation=rules.activation,
        situ=situ,
        residual_block=keys.integer("attn_res_block_size") if rules.is_kimi_k3 else None,
        clamps_dense=rules.is_minimax_m3,
        norms_inputs=rules.norms_inputs,
        norms_results=rules.is_gemma or rules.norms_results,
        scales_layers=rules.has_global_heads,
        logit_cap=read_cap(keys, rules, "logits"),
        n_prediction_layers=_read_prediction_layers(keys, rules),
        released_format=released_format,
        released_roles=released_roles,
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        eos_token_ids=keys.token_ids("eos_token_id"),
    )
    keys.finish()
    return model_cfg


def _read_situ(keys: Keys, rules: FamilyRules) -> Situ | None:
    """Return the numbers of the activation SiTU, of a type that has it."""
    if rules.activation != "situ":
        return None
    return Situ(
        limit=keys.number("activation_situ_beta"),
        up_limit=keys.optional_number("activation_situ_linear_beta"),
    )


def _read_mixture(
    keys: Keys,
    rules: FamilyRules,
    n_layers: int,
    single_blocks: tuple[LayerKind, ...],
    situ: Situ | None,
) -> MoeConfig | None:
    """Return the experts; a file may describe some of which its layers have none."""
    has_none = bool(single_blocks) and "moe" not in single_blocks
    if rules.experts is None or not _has_experts(keys, rules.experts):
        return None
    if has_none and not keys.has("n_routed_experts"):
        return None
    moe = read_experts(keys, rules.experts, n_layers, rules.activation, situ)
    return None if has_none else moe


def _known_types(model_type: str) -> str:
    """Name the types that are read: those most like another one, or what lists all."""
    near = nearest(model_type, FAMILIES)
    if not near:
        return "one of the types that `lpu models --types` lists"
    return f"one of {', '.join(near)} (the nearest of {len(FAMILIES)})"


def _read_prediction_layers(keys: Keys, rules: FamilyRules) -> int:
    """Return how many layers the files have beyond those of the model: they predict tokens ahead.

    `use_mtp` may switch them off; of several layers per prediction this program knows nothing.
    """
    keys.must_be("mtp_transformer_layers", 1)
    keys.read.update(("mtp_layers_block_type", "mtp_hybrid_override_pattern"))  # their blocks
    spellings: tuple[str, ...] = (
        "num_nextn_predict_layers",
        "num_mtp_layers",
        "num_mtp_modules",
        "mtp_num_hidden_layers",
    )
    if rules.is_minimax_m3 and keys.has(spellings[0]):
        keys.read.add("num_mtp_modules")  # a copy of its file counts otherwise by it
        spellings = spellings[:1]
    n_layers = keys.integer(*spellings, default=0, least=0, most=MOST_LAYERS)
    return n_layers if keys.boolean("use_mtp", default=True) else 0


def parts_left_out(source: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the keys of what a configuration describes beside its text, such as `vision_config`.

    Args:
        source: as in `from_hf`.

    Raises:
        ConfigError: if the file cannot be read.
    """
    values, _ = _parsed(source)
    if "text_config" not in values:
        return ()
    return tuple(
        key
        for key, value in values.items()
        if isinstance(value, Mapping) and _ABOUT_OTHER_PARTS.fullmatch(key)
    )


def _open(source: Mapping[str, Any] | str | os.PathLike[str]) -> Keys:
    return _unwrap(*_parsed(source))


def _parsed(source: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[Mapping[str, Any], str]:
    """Return the values of a configuration, and what messages call it."""
    if isinstance(source, Mapping):
        return source, "config"
    path = Path(source)
    if not str(path).isprintable():
        raise ConfigError(f"{str(path)!r}: a path must have printable characters only.")
    path = path / "config.json" if os.path.isdir(path) else path  # False for too long a name
    values = _read_object(path)
    beside = path.parent / _MODELOPT
    if beside.exists() and "quantization_config" not in values:
        narrow = _read_object(beside).get("quantization")
        if not isinstance(narrow, dict):
            raise ConfigError(f"{beside}: key 'quantization' must be an object.")
        values["quantization_config"] = narrow | {"quant_method": "modelopt"}
    return values, str(path)


def _read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{path}: must be the JSON of a config.json, but it is not UTF-8 text."
        ) from problem
    except ValueError as problem:
        raise ConfigError(f"{path}: not valid JSON: {problem}.") from problem
    except RecursionError as problem:
        raise ConfigError(f"{path}: not valid JSON: nested too deeply.") from problem
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(values).__name__}.")
    return values


def _unwrap(values: Mapping[str, Any], where: str) -> Keys:
    """Descend into the language part of a multimodal configuration."""
    inner = values.get("text_config")
    if inner is None:
        return Keys(values, where)
    outer = Keys(values, where)
    if not isinstance(inner, Mapping):
        raise outer.complain("text_config", "an object")
    wrapper, inside = outer.text("model_type", default=WRAPPERS[0]), inner.get("model_type")
    if wrapper not in WRAPPERS:
        raise ConfigError(
            f"{where}: a text part of type {format_given(inside)} in a model of type {wrapper!r} "
            f"is not supported; supported are models of type {', '.join(WRAPPERS)}, and text "
            "models alone, whose types `lpu models --types` lists."
        )
    outer.read |= {key for key in values if _ABOUT_OTHER_PARTS.fullmatch(str(key))}
    outer.read.update(("text_config", *_ABOUT_THE_WHOLE))
    outer.finish()
    whole = {key: values[key] for key in _ABOUT_THE_WHOLE if outer.has(key)}
    if wrapper in TYPES_INSIDE:
        whole["model_type"] = TYPES_INSIDE[wrapper]
    return Keys({**whole, **inner}, f"{where}, text_config")


def _name(keys: Keys, source: Mapping[str, Any] | str | os.PathLike[str], model_type: str) -> str:
    said = keys.text("_name_or_path", default="")
    if _HUB_NAME.fullmatch(said):
        return said
    if isinstance(source, Mapping):
        return model_type
    path = Path(source).resolve()
    if path.name == "config.json":
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _read_windows(
    keys: Keys, rules: FamilyRules, n_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """Return how many keys a sliding layer sees, and which layers slide."""
    if rules.windows == "none":
        keys.must_be("use_sliding_window", False)
        if not rules.has_window_switch:
            keys.must_be("sliding_window", None)
        keys.read.add("sliding_window")  # of a window that is not used; some files say 0
    window = None if rules.windows == "none" else keys.optional_integer("sliding_window")
    is_on = not rules.has_window_switch or keys.boolean("use_sliding_window", default=False)
    listed = _listed_as_sliding(keys, rules, n_layers)
    if window is None or not is_on:
        if listed:
            raise keys.complain("layer_types", "full attention only, since no window is in use")
        return None, ()
    everyone, pattern = tuple(range(n_layers)), "sliding_window_pattern"
    match rules.windows:
        case "even":
            usual = everyone[::2]
        case "most" if listed is not None and isinstance(keys.values.get(pattern), str):
            usual = _spelled_windows(keys, pattern, listed, n_layers)
        case "most":
            every = keys.integer(pattern, f"_{pattern}", default=6)
            usual = tuple(layer for layer in everyone if (layer + 1) % every)
        case "late":
            usual = everyone[keys.integer("max_window_layers", least=0) :]
        case _:
            usual = everyone
    sliding = usual if listed is None else listed
    if rules.windows == "all" and sliding != everyone:
        raise keys.complain("layer_types", "sliding attention only, as this type of model has it")
    return (window, sliding) if sliding else (None, ())


def _spelled_windows(
    keys: Keys, name: str, listed: tuple[int, ...], n_layers: int
) -> tuple[int, ...]:
    """Let letters repeat the list of layers that slide, as EXAONE 4's do; its class reads none."""
    letters = keys.values[name]
    keys.read.add(name)
    spelled = tuple(i for i in range(n_layers) if letters and letters[i % len(letters)] == "L")
    if not set(letters) <= {"L", "G"} or spelled != listed:
        raise keys.complain(name, 'the layers of layer_types, "L" for those that slide, else "G"')
    return listed


def _has_experts(keys: Keys, rules: ExpertRules) -> bool:
    """Whether a model of a type with experts has them: Gemma 4 says so."""
    return not rules.has_own_norms or keys.boolean("enable_moe_block", default=False)


def _read_dense_width(keys: Keys, rules: FamilyRules, moe: MoeConfig | None) -> int:
    """Return the width of dense layers; that of an expert where the type has none."""
    if rules.is_llama4:
        return keys.integer("intermediate_size_mlp")
    if rules.is_minimax_m3:
        return keys.integer("dense_intermediate_size")
    if moe is None or not rules.are_all_layers_mixtures:
        return keys.integer("intermediate_size")
    if moe.n_dense_layers:
        raise keys.complain("mlp_only_layers", "empty, as all layers of this type are mixtures")
    return keys.integer("intermediate_size", default=moe.d_expert)


def _positions_of(rules: FamilyRules) -> tuple[str, ...]:
    """Return the spellings of the key of positions; elsewhere the other is that of a tokenizer."""
    spellings = ("max_position_embeddings", "model_max_length")
    return spellings if rules.is_kimi_linear or rules.is_bailing_hybrid else spellings[:1]


def _read_multipliers(keys: Keys, rules: FamilyRules) -> Multipliers:
    if rules.is_gemma:
        return Multipliers(embedding=keys.integer("hidden_size") ** 0.5)
    if not rules.has_multipliers:
        return Multipliers()
    return Multipliers(
        embedding=keys.number("embedding_multiplier"),
        residual=keys.number("residual_multiplier"),
        logits=keys.number("logits_scaling"),
    )


def _listed_as_sliding(keys: Keys, rules: FamilyRules, n_layers: int) -> tuple[int, ...] | None:
    """Return the sliding layers of `layer_types`; None where the file has no such list."""
    kinds = keys.texts("layer_types")
    # None of these slides.
    none = rules.has_recurrent_layers or rules.has_single_blocks or rules.has_index
    if none or rules.is_minimax_m3:
        return None
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise keys.complain("layer_types", 'a list of "full_attention" or "sliding_attention"')
    if kinds and len(kinds) != n_layers:
        raise keys.complain("layer_types", f"a list of {n_layers} kinds, one for each layer")
    sliding = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    return sliding if kinds else None


def _read_gqa(keys: Keys, rules: FamilyRules, window: int | None) -> GqaConfig:
    n_heads = keys.integer("num_attention_heads")
    has_bias = _read_biases(keys, rules)
    attention = GqaConfig(
        n_heads=n_heads,
        n_kv_heads=keys.integer("num_key_value_heads", "num_attention_groups", default=n_heads),
        head_dim=_read_head_dim(keys, n_heads),
        qkv_bias=has_bias,
        o_bias=has_bias and rules.biases == "all",
        qk_norm=keys.boolean("use_qk_norm") if rules.qk_norm == "file" else rules.qk_norm != "no",
        is_qk_norm_joint=rules.qk_norm == "joint",
        sinks=rules.has_sinks,
        window=window,
        scale=read_scale(keys, rules),
        norms_values=rules.has_global_heads,
        cap=read_cap(keys, rules, "scores"),
        gated=rules.has_recurrent_layers,
        is_chunked=rules.is_llama4 and window is not None,
        norms_rotated=rules.is_llama4 and keys.boolean("use_qk_norm"),
        warming=read_warming(keys) if rules.is_llama4 else None,
    )
    for key in ("use_qk_norm", "qk_norm"):
        keys.must_be(key, attention.qk_norm or attention.norms_rotated)
    if attention.is_qk_norm_joint:
        keys.must_be("qk_norm_type", "per_layer")
    for key in ("qkv_bias", "use_qkv_bias"):
        keys.must_be(key, attention.qkv_bias)
    keys.must_be("use_bias", attention.o_bias)
    return attention


def _read_biases(keys: Keys, rules: FamilyRules) -> bool:
    """Return whether the projections that may have biases have them."""
    if rules.are_biases_fixed or rules.biases == "none":
        keys.must_be("attention_bias", rules.are_biases_fixed)
        return rules.are_biases_fixed
    return keys.boolean("attention_bias", default=False)


def _read_head_dim(keys: Keys, n_heads: int) -> int:
    """Return the width of a head: its own key's, or an equal share of the model's width."""
    width = keys.integer("hidden_size")
    head_dim = keys.optional_integer("head_dim", "attention_head_dim")
    if head_dim is not None:
        return head_dim
    if width % n_heads:
        raise keys.complain(
            "hidden_size", f"a multiple of num_attention_heads ({n_heads}) without a head_dim"
        )
    return width // n_heads
