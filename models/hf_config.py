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

from lpu_jax.errors import ConfigError

from .config import GqaConfig, MlaConfig, ModelConfig
from .hf_experts import read_experts
from .hf_families import FAMILIES, WRAPPERS, FamilyRules
from .hf_formats import read_released_format
from .hf_keys import MOST_LAYERS, Keys
from .rope import Llama3Scaling, RopeConfig, YarnScaling

#: Keys that a multimodal file may have beside its language part, about the whole of it, and those
#: about its other parts: towers, projectors, and where their tokens stand among those of the text.
_ABOUT_THE_WHOLE = ("tie_word_embeddings", "quantization_config", "torch_dtype", "dtype")
_ABOUT_OTHER_PARTS = re.compile(
    r"(vision|image|video|media|mm|projector)_\w+|\w+_token_(id|index)|ignore_index"
    r"|text_hidden_size|use_unified_vision_chunk"
)
#: Where NVIDIA ModelOpt puts what others put into `quantization_config`.
_MODELOPT = "hf_quant_config.json"


def from_hf(source: Mapping[str, Any] | str | os.PathLike[str]) -> ModelConfig:
    """Read a Hugging Face configuration.

    Args:
        source: the parsed `config.json`, or the path of one (or of its folder).

    Returns:
        The configuration. Its name is `_name_or_path` when the file has one, else the name of
        the file's folder or the model type.

    Raises:
        ConfigError: if the file cannot be read, its `model_type` is not in `FAMILIES`, a key is
            missing or of the wrong type, asks for what this program does not model, or is unknown
            and may set a size.
    """
    keys = _open(source)
    model_type = keys.text("model_type")
    if model_type not in FAMILIES:
        raise keys.complain("model_type", "one of " + ", ".join(FAMILIES))
    rules = FAMILIES[model_type]
    if rules.architecture not in (keys.texts("architectures") or (rules.architecture,)):
        raise keys.complain("architectures", f"[{rules.architecture!r}] for a {model_type!r} model")
    keys.must_be("hidden_act", "silu")
    keys.must_be("mlp_bias", False)
    keys.must_be("use_rmsnorm", True)
    n_layers = keys.integer("num_hidden_layers", most=MOST_LAYERS)
    window, sliding_layers = _read_windows(keys, rules, n_layers)
    attention: GqaConfig | MlaConfig
    if rules.is_latent:
        rope = _read_rope(keys, rules, keys.integer("qk_rope_head_dim"))
        attention = _read_mla(keys, rope)
    else:
        attention = _read_gqa(keys, rules, window)
        rope = _read_rope(keys, rules, attention.head_dim)
    moe = None if rules.experts is None else read_experts(keys, rules.experts, n_layers)
    bos_token_ids = keys.token_ids("bos_token_id")
    released_format, released_roles = read_released_format(keys, rules, n_layers, moe)
    model_cfg = ModelConfig(
        name=_name(keys, source, model_type),
        family=rules.family,
        n_layers=n_layers,
        d_model=keys.integer("hidden_size"),
        d_ff=keys.integer("intermediate_size"),
        vocab_size=keys.integer("vocab_size"),
        max_position=keys.integer("max_position_embeddings"),
        norm_eps=keys.number("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
        tie_embeddings=keys.boolean("tie_word_embeddings", default=False),
        attention=attention,
        rope=rope,
        moe=moe,
        sliding_layers=sliding_layers,
        n_prediction_layers=keys.integer(
            "num_nextn_predict_layers", "num_mtp_layers", default=0, least=0, most=MOST_LAYERS
        ),
        released_format=released_format,
        released_roles=released_roles,
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        eos_token_ids=keys.token_ids("eos_token_id"),
    )
    keys.finish()
    return model_cfg


def _open(source: Mapping[str, Any] | str | os.PathLike[str]) -> Keys:
    if isinstance(source, Mapping):
        return _unwrap(source, "config")
    path = Path(source)
    if not str(path).isprintable():
        raise ConfigError(f"{str(path)!r}: a path must have printable characters only.")
    path = path / "config.json" if os.path.isdir(path) else path  # False for too long a name
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
    if (path.parent / _MODELOPT).exists():
        values.setdefault("quantization_config", {"quant_method": "modelopt"})
    return _unwrap(values, str(path))


def _unwrap(values: Mapping[str, Any], where: str) -> Keys:
    """Descend into the language part of a multimodal configuration."""
    inner = values.get("text_config")
    if inner is None:
        return Keys(values, where)
    outer = Keys(values, where)
    if not isinstance(inner, Mapping):
        raise outer.complain("text_config", "an object")
    outer.must_be("model_type", *WRAPPERS)
    outer.read |= {key for key in values if _ABOUT_OTHER_PARTS.fullmatch(str(key))}
    outer.read.update(("text_config", *_ABOUT_THE_WHOLE))
    outer.finish()
    whole = {key: values[key] for key in _ABOUT_THE_WHOLE if outer.has(key)}
    return Keys({**whole, **inner}, f"{where}, text_config")


def _name(keys: Keys, source: Mapping[str, Any] | str | os.PathLike[str], model_type: str) -> str:
    if keys.values.get("_name_or_path"):
        return keys.text("_name_or_path")
    if isinstance(source, Mapping):
        return model_type
    path = Path(source).resolve()
    return path.parent.name if path.name == "config.json" else path.stem


def _read_windows(
    keys: Keys, rules: FamilyRules, n_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """Return how many keys a sliding layer sees, and which layers slide."""
    sliding = _listed_as_sliding(keys, n_layers)
    if rules.windows == "none":
        keys.must_be("sliding_window", None)
    window = keys.optional_integer("sliding_window")
    is_on = not rules.has_window_switch or keys.boolean("use_sliding_window", default=False)
    if rules.windows == "listed" and is_on and not keys.has("layer_types"):
        raise keys.complain("layer_types", f"a list of {n_layers} kinds, one for each layer")
    if window is None or not is_on or rules.windows != "listed":
        if sliding:
            raise keys.complain("layer_types", "full attention only, since no window is in use")
        if window is None or not is_on:
            return None, ()
        return window, tuple(range(n_layers))
    return (window, sliding) if sliding else (None, ())


def _listed_as_sliding(keys: Keys, n_layers: int) -> tuple[int, ...]:
    kinds = keys.texts("layer_types")
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise keys.complain("layer_types", 'a list of "full_attention" or "sliding_attention"')
    if kinds and len(kinds) != n_layers:
        raise keys.complain("layer_types", f"a list of {n_layers} kinds, one for each layer")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")


def _read_gqa(keys: Keys, rules: FamilyRules, window: int | None) -> GqaConfig:
    n_heads = keys.integer("num_attention_heads")
    head_dim = keys.integer("head_dim", default=max(1, keys.integer("hidden_size") // n_heads))
    if rules.biases == "none":
        keys.must_be("attention_bias", False)
    has_bias = keys.boolean("attention_bias", default=rules.biases_by_default)
    return GqaConfig(
        n_heads=n_heads,
        n_kv_heads=keys.integer("num_key_value_heads", default=n_heads),
        head_dim=head_dim,
        qkv_bias=has_bias,
        o_bias=has_bias and rules.biases == "all",
        qk_norm=keys.boolean("use_qk_norm") if rules.qk_norm == "file" else rules.qk_norm == "yes",
        sinks=rules.has_sinks,
        window=window,
    )


def _read_mla(keys: Keys, rope: RopeConfig) -> MlaConfig:
    n_heads = keys.integer("num_attention_heads")
    keys.must_be("num_key_value_heads", n_heads)
    keys.must_be("attention_bias", False)
    temperature = 1.0
    if isinstance(rope.scaling, YarnScaling) and rope.scaling.mscale_all_dim:
        temperature = rope.scaling.temperature(rope.scaling.mscale_all_dim)
    return MlaConfig(
        n_heads=n_heads,
        q_lora_rank=keys.integer("q_lora_rank"),
        kv_lora_rank=keys.integer("kv_lora_rank"),
        nope_head_dim=keys.integer("qk_nope_head_dim"),
        rope_head_dim=rope.dim,
        v_head_dim=keys.integer("v_head_dim"),
        rope_temperature=temperature,
    )


def _read_rope(keys: Keys, rules: FamilyRules, head_dim: int) -> RopeConfig:
    keys.must_be("rope_interleave", rules.is_interleaved)
    modern, hub = keys.mapping("rope_parameters"), keys.mapping("rope_scaling")
    if modern is not None and hub is not None and not _are_equal(modern, hub):
        raise keys.complain("rope_scaling", "absent beside 'rope_parameters', or equal to it")
    numbers = modern or hub
    theta = _holder("rope_theta", modern, keys).number("rope_theta", default=rules.rope_theta)
    keys.must_be("rope_theta", theta)
    dim = _rotated(keys, _holder("partial_rotary_factor", modern, keys), rules, head_dim)
    scaling: Llama3Scaling | YarnScaling | None = None
    if numbers is not None:
        scaling = _read_scaling(numbers)
        numbers.must_be("rope_theta", theta)
        numbers.finish()
    if isinstance(scaling, YarnScaling):
        keys.must_be("initial_context_length", scaling.original_max_position)
    return RopeConfig(theta=theta, dim=dim, interleaved=rules.is_interleaved, scaling=scaling)


def _are_equal(modern: Keys, hub: Keys) -> bool:
    """Whether both spellings scale alike: the old one has no keys of the rotation itself."""
    said, old = (
        {"rope_type" if key == "type" else key: v for key, v in part.values.items()}
        for part in (modern, hub)
    )
    of_rotation = {"rope_theta", "partial_rotary_factor"}
    return said == {key: said[key] for key in of_rotation & said.keys()} | old


def _holder(key: str, modern: Keys | None, keys: Keys) -> Keys:
    """Return where a file has a key of the rotation: the modern place, unless only the old has."""
    return keys if modern is None or (keys.has(key) and not modern.has(key)) else modern


def _rotated(keys: Keys, holder: Keys, rules: FamilyRules, head_dim: int) -> int:
    """Return how many values of a head are rotated."""
    if not rules.is_partial:
        for part in (keys, holder):
            part.must_be("partial_rotary_factor", 1.0)
        return head_dim
    if not holder.has("partial_rotary_factor") and keys.has("rotary_dim"):
        return keys.integer("rotary_dim")
    factor = holder.number("partial_rotary_factor")
    keys.must_be("partial_rotary_factor", factor)
    dim = int(head_dim * factor)  # Hugging Face cuts the product down to a whole number
    keys.must_be("rotary_dim", dim)
    return dim


def _read_scaling(rules: Keys) -> Llama3Scaling | YarnScaling | None:
    match rules.text("rope_type", "type"):
        case "default":
            return None
        case "llama3":
            return Llama3Scaling(
                factor=rules.number("factor"),
                low_freq_factor=rules.number("low_freq_factor"),
                high_freq_factor=rules.number("high_freq_factor"),
                original_max_position=rules.integer("original_max_position_embeddings"),
            )
        case "yarn":
            return YarnScaling(
                factor=rules.number("factor"),
                beta_fast=rules.number("beta_fast", default=32.0),
                beta_slow=rules.number("beta_slow", default=1.0),
                original_max_position=rules.integer("original_max_position_embeddings"),
                mscale=_unless_zero(rules, "mscale"),
                mscale_all_dim=_unless_zero(rules, "mscale_all_dim"),
                cos_sin_factor=rules.optional_number("attention_factor"),
                truncate=rules.boolean("truncate", default=True),
            )
        case _:
            spelling = "rope_type" if rules.has("rope_type") else "type"
            raise rules.complain(spelling, "one of default, llama3, yarn")


def _unless_zero(rules: Keys, key: str) -> float | None:
    """Read a number for which 0 says as much as null."""
    rules.read.add(key)
    return rules.number(key) if rules.values.get(key) else None
