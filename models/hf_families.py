"""What a Hugging Face model type fixes without saying so in its `config.json`.

One row per model type, read off the code that the type names. Holds no size. Not here: types with
linear, sparse or recurrent layers, which this program does not model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .config import Family, Scoring


@dataclass(frozen=True, kw_only=True)
class ExpertRules:
    """The rules of a mixture of experts that the type fixes."""

    scoring: Scoring
    #: Key of the width of an expert.
    width: Literal["moe_intermediate_size", "intermediate_size"] = "moe_intermediate_size"
    #: Weights are divided by their sum, whatever the file says; else the file must say.
    is_normalised: bool = False
    #: Chosen by scores plus a bias ("noaux_tc"), in groups, beside shared experts, scaled, after
    #: some dense layers: the file must say each of the numbers.
    is_deepseek_like: bool = False
    has_biases: bool = False  #: router and experts have biases
    is_clamped: bool = False  #: the SwiGLU of experts is clamped as in gpt-oss


@dataclass(frozen=True, kw_only=True)
class FamilyRules:
    """The rules of a model type."""

    family: Family
    architecture: str  #: the class that the rules are read off; a file must not name another
    is_latent: bool = False
    is_interleaved: bool = False  #: rotation turns neighbours, not halves
    is_partial: bool = False  #: the file says which part of a head is rotated
    rope_theta: float | None = None  #: where the file, older than the key, does not say
    #: Which projections have biases if `attention_bias` is true: none may, all but the output's, or
    #: all four; and what holds where the file does not say.
    biases: Literal["none", "qkv", "all"] = "none"
    biases_by_default: bool = False
    #: Whether queries and keys of a head are normalised; "file": as `use_qk_norm` says.
    qk_norm: Literal["no", "yes", "file"] = "no"
    has_sinks: bool = False
    #: Which layers see `sliding_window` keys only: none may, all do, or those in `layer_types`.
    windows: Literal["none", "all", "listed"] = "none"
    has_window_switch: bool = False  #: windows are used only if `use_sliding_window` is true
    experts: ExpertRules | None = None


_DEEPSEEK = FamilyRules(
    family="deepseek",
    architecture="DeepseekV3ForCausalLM",
    is_latent=True,
    is_interleaved=True,
    experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True),
)
#: Source: models/modeling_bailing_moe_v2.py of github.com/inclusionAI/Ling-V2.
_BAILING = FamilyRules(
    family="bailing_moe",
    architecture="BailingMoeV2ForCausalLM",
    is_partial=True,
    qk_norm="file",
    experts=ExpertRules(scoring="sigmoid", is_normalised=True, is_deepseek_like=True),
)

#: By `model_type`. Source, where not said: the classes of Hugging Face transformers 5.23.
FAMILIES: Mapping[str, FamilyRules] = MappingProxyType(
    {
        "llama": FamilyRules(
            family="llama", architecture="LlamaForCausalLM", rope_theta=10_000.0, biases="all"
        ),
        "qwen3": FamilyRules(
            family="qwen3",
            architecture="Qwen3ForCausalLM",
            biases="all",
            qk_norm="yes",
            windows="listed",
            has_window_switch=True,
        ),
        "qwen3_moe": FamilyRules(
            family="qwen3_moe",
            architecture="Qwen3MoeForCausalLM",
            biases="all",
            qk_norm="yes",
            windows="all",
            has_window_switch=True,
            experts=ExpertRules(scoring="softmax"),
        ),
        "mixtral": FamilyRules(
            family="mixtral",
            architecture="MixtralForCausalLM",
            windows="all",
            experts=ExpertRules(scoring="softmax", width="intermediate_size", is_normalised=True),
        ),
        "deepseek_v3": _DEEPSEEK,
        "kimi_k2": _DEEPSEEK,
        "gpt_oss": FamilyRules(
            family="gpt_oss",
            architecture="GptOssForCausalLM",
            biases="all",
            biases_by_default=True,
            has_sinks=True,
            windows="listed",
            experts=ExpertRules(
                scoring="softmax_after_top_k",
                width="intermediate_size",
                is_normalised=True,
                has_biases=True,
                is_clamped=True,
            ),
        ),
        "glm4_moe": FamilyRules(
            family="glm4_moe",
            architecture="Glm4MoeForCausalLM",
            is_partial=True,
            biases="qkv",
            qk_norm="file",
            experts=ExpertRules(scoring="sigmoid", is_deepseek_like=True),
        ),
        "bailing_moe": _BAILING,
        "bailing_moe_v2": _BAILING,
    }
)

#: Model types that wrap a model of the table above in `text_config`, beside a vision tower.
WRAPPERS = ("kimi_k25",)
