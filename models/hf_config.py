"""Read a Hugging Face `config.json` of the llama, deepseek_v3 or kimi_k2 type.

Refuses what it does not know: any unread key whose value could bear a size or switch a part on is
an error, because guessing miscounts the model. Both spellings of the rope keys are read: the hub's
(`rope_theta`, `rope_scaling`) and that of transformers 5 (`rope_parameters`).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lpu_jax.errors import ConfigError
from lpu_jax.quantities import format_given

from .config import GqaConfig, MlaConfig, ModelConfig, MoeConfig
from .rope import Llama3Scaling, RopeConfig, YarnScaling

FAMILIES: Mapping[str, Literal["llama", "deepseek"]] = {
    "llama": "llama",
    "deepseek_v3": "deepseek",
    "kimi_k2": "deepseek",
}

#: Keys that say nothing about the network: bookkeeping, training, text generation defaults; and, in
#: the last line, the prediction layers we leave out and sizes that follow from others.
_HARMLESS = """
_name_or_path architectures auto_map transformers_version torch_dtype dtype model_type
initializer_range attention_dropout aux_loss_alpha seq_aux pretraining_tp ep_size use_cache
pad_token_id sep_token_id decoder_start_token_id id2label label2id return_dict max_length
min_length num_beams num_beam_groups num_return_sequences temperature top_k top_p typical_p
repetition_penalty length_penalty diversity_penalty output_attentions output_hidden_states
is_encoder_decoder
num_nextn_predict_layers head_dim qk_head_dim num_key_value_heads
"""
_HARMLESS_KEYS = frozenset(_HARMLESS.split())

_ROPE_HUB_KEYS = ("rope_theta", "rope_scaling")

#: Limits of what a file may say. No size of a network comes near them; beyond them, arithmetic on
#: bytes would leave 64 bits, or a list of layers would fill the memory of this computer.
MOST = 2**40
MOST_LAYERS = 10_000
LEAST_NUMBER = 1e-20


class _Keys:
    """A dictionary that remembers what was read from it and words its own complaints."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.read: set[str] = set()

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def complain(self, key: str, expected: str) -> ConfigError:
        got = f"got {format_given(self.values[key])}" if key in self.values else "it is missing"
        return ConfigError(f"{self.where}: key {key!r} must be {expected}; {got}.")

    def integer(
        self, key: str, default: int | None = None, least: int = 1, most: int = MOST
    ) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.complain(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._take(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not LEAST_NUMBER <= value <= MOST:
            raise self.complain(key, f"a number from {LEAST_NUMBER} to {MOST}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def boolean(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.complain(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or not value.isprintable():
            raise self.complain(key, "a text of printable characters")
        return value

    def mapping(self, key: str) -> "_Keys | None":
        value = self._take(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.complain(key, "an object or null")
        return _Keys(value, f"{self.where}, {key}")

    def must_be(self, key: str, allowed: object) -> None:
        """Accept a key that is absent, null, or has the only value this program models."""
        self.read.add(key)
        if self.has(key) and self.values[key] != allowed:
            raise self.complain(key, f"{json.dumps(allowed)}, the only value supported")

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self._take(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MOST
            for item in ids
        ):
            raise self.complain(key, "a token number or a list of them")
        return tuple(ids)

    def finish(self) -> None:
        """Refuse any unread key that could bear a size or switch something on."""
        for key, value in self.values.items():
            unread = key not in self.read and key not in _HARMLESS_KEYS
            if unread and value and not isinstance(value, str):
                raise ConfigError(
                    f"{self.where}: key {format_given(key)} = {format_given(value)} is not known "
                    f"to this program and may bear a size; remove it only if the network does not "
                    f"use it."
                )

    def _take(self, key: str, default: object) -> Any:
        self.read.add(key)
        value = self.values.get(key)
        return default if value is None else value


def from_hf(source: Mapping[str, Any] | str | os.PathLike[str]) -> ModelConfig:
    """Read a Hugging Face configuration.

    Args:
        source: the parsed `config.json`, or the path of one (or of its folder).

    Returns:
        The configuration. Its name is `_name_or_path` when the file has one, else the name of
        the file's folder or the model type.

    Raises:
        ConfigError: if the file cannot be read, its `model_type` is not llama, deepseek_v3 or
            kimi_k2, a key is missing or of the wrong type, or an unknown key may bear a size.
    """
    keys = _open(source)
    model_type = keys.text("model_type")
    if model_type not in FAMILIES:
        raise keys.complain("model_type", "one of " + ", ".join(FAMILIES))
    family = FAMILIES[model_type]
    keys.must_be("hidden_act", "silu")
    keys.must_be("attention_bias", False)
    keys.must_be("mlp_bias", False)
    keys.must_be("sliding_window", None)
    attention: GqaConfig | MlaConfig
    if family == "llama":
        attention = _read_gqa(keys)
        rope = _read_rope(keys, attention.head_dim, interleaved=False)
    else:
        rope = _read_rope(keys, keys.integer("qk_rope_head_dim"), interleaved=True)
        attention = _read_mla(keys, rope)
    bos_token_ids = keys.token_ids("bos_token_id")
    model_cfg = ModelConfig(
        name=_name(keys, source, model_type),
        family=family,
        n_layers=keys.integer("num_hidden_layers", most=MOST_LAYERS),
        d_model=keys.integer("hidden_size"),
        d_ff=keys.integer("intermediate_size"),
        vocab_size=keys.integer("vocab_size"),
        max_position=keys.integer("max_position_embeddings"),
        norm_eps=keys.number("rms_norm_eps"),
        tie_embeddings=keys.boolean("tie_word_embeddings", False),
        attention=attention,
        rope=rope,
        moe=_read_moe(keys) if family == "deepseek" else None,
        released_format=_released_format(keys),
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        eos_token_ids=keys.token_ids("eos_token_id"),
    )
    keys.finish()
    return model_cfg


def _open(source: Mapping[str, Any] | str | os.PathLike[str]) -> _Keys:
    if isinstance(source, Mapping):
        return _unwrap(source, "config")
    path = Path(source)
    if not str(path).isprintable():
        raise ConfigError(f"{str(path)!r}: a path must have printable characters only.")
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror}.") from problem
    except ValueError as problem:
        raise ConfigError(f"{path}: not valid JSON: {problem}.") from problem
    except RecursionError as problem:
        raise ConfigError(f"{path}: not valid JSON: nested too deeply.") from problem
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(values).__name__}.")
    return _unwrap(values, str(path))


def _unwrap(values: Mapping[str, Any], where: str) -> _Keys:
    """Descend into the language part of a multimodal configuration."""
    inner = values.get("text_config")
    if inner is None:
        return _Keys(values, where)
    if not isinstance(inner, Mapping):
        raise _Keys(values, where).complain("text_config", "an object")
    top_level_tie = values.get("tie_word_embeddings", False)
    return _Keys({"tie_word_embeddings": top_level_tie, **inner}, f"{where}, text_config")


def _name(keys: _Keys, source: Mapping[str, Any] | str | os.PathLike[str], model_type: str) -> str:
    if keys.values.get("_name_or_path"):
        return keys.text("_name_or_path")
    if isinstance(source, Mapping):
        return model_type
    path = Path(source).resolve()
    return path.parent.name if path.name == "config.json" else path.stem


def _read_gqa(keys: _Keys) -> GqaConfig:
    n_heads = keys.integer("num_attention_heads")
    head_dim = keys.integer("head_dim", max(1, keys.integer("hidden_size") // n_heads))
    n_kv_heads = keys.integer("num_key_value_heads", n_heads)
    return GqaConfig(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)


def _read_mla(keys: _Keys, rope: RopeConfig) -> MlaConfig:
    n_heads = keys.integer("num_attention_heads")
    keys.must_be("num_key_value_heads", n_heads)
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


def _read_moe(keys: _Keys) -> MoeConfig:
    keys.must_be("scoring_func", "sigmoid")
    keys.must_be("topk_method", "noaux_tc")
    keys.must_be("moe_layer_freq", 1)
    return MoeConfig(
        n_experts=keys.integer("n_routed_experts"),
        top_k=keys.integer("num_experts_per_tok"),
        n_shared=keys.integer("n_shared_experts", 0, least=0),
        d_expert=keys.integer("moe_intermediate_size"),
        n_groups=keys.integer("n_group", 1),
        topk_groups=keys.integer("topk_group", 1),
        routed_scaling=keys.number("routed_scaling_factor", 1.0),
        normalise=keys.boolean("norm_topk_prob", True),
        n_dense_layers=keys.integer("first_k_dense_replace", 0, least=0),
    )


def _read_rope(keys: _Keys, dim: int, interleaved: bool) -> RopeConfig:
    keys.must_be("rope_interleave", interleaved)
    keys.must_be("partial_rotary_factor", 1.0)
    modern = keys.mapping("rope_parameters")
    rules = modern or keys.mapping("rope_scaling")
    theta = (modern or keys).number("rope_theta")
    keys.read.update(_ROPE_HUB_KEYS)
    scaling: Llama3Scaling | YarnScaling | None = None
    if rules is not None:
        scaling = _read_scaling(rules)
        rules.must_be("rope_theta", theta)
        rules.finish()
    return RopeConfig(theta=theta, dim=dim, interleaved=interleaved, scaling=scaling)


def _read_scaling(rules: _Keys) -> Llama3Scaling | YarnScaling | None:
    spelling = "rope_type" if rules.has("rope_type") else "type"
    rules.read.update(("rope_type", "type"))
    match rules.text(spelling):
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
                beta_fast=rules.number("beta_fast", 32.0),
                beta_slow=rules.number("beta_slow", 1.0),
                original_max_position=rules.integer("original_max_position_embeddings"),
                mscale=rules.optional_number("mscale"),
                mscale_all_dim=rules.optional_number("mscale_all_dim"),
                truncate=rules.boolean("truncate", True),
            )
        case _:
            raise rules.complain(spelling, "one of default, llama3, yarn")


def _released_format(keys: _Keys) -> str:
    """Return "bf16", "fp16", "fp8", "int4", or the file's own word for anything else."""
    quantisation = keys.mapping("quantization_config")
    if quantisation is None:
        dtype = keys.text("torch_dtype", keys.text("dtype", "bfloat16"))
        return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(dtype, dtype)
    method = quantisation.text("quant_method")
    if method == "compressed-tensors":
        groups = quantisation.values.get("config_groups")
        first: object = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
        weights = first.get("weights") if isinstance(first, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("type") == "int":
            bits = _Keys(weights, f"{quantisation.where}, weights").integer("num_bits", most=16)
            return f"int{bits}"
    return method
