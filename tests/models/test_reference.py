"""The Flax reference against Hugging Face transformers, on tiny random models of each family.

The checkpoints and logits are made by `data/make_oracle.py`.
"""

import dataclasses
import functools
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lpu_jax.errors import ConfigError, WeightsError
from models.config import ModelConfig
from models.hf_config import from_hf
from models.reference import Moe, Transformer, reference_block, with_experts
from models.rope import YarnScaling
from models.tokenizer import Tokenizer
from models.weights.gguf import load_gguf
from models.weights.source import HfTensors, from_hf_tensors

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]
GGUF = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = ("llama", "llama_tied", "deepseek_v3", "kimi_k2")

# Two float32 evaluations in different orders differ by up to 3e-6 here (logits reach 4); the
# weakest wrong convention, the eps of the latent norms, differs by more than this bound.
HF_BOUND = 2e-5


@functools.cache
def source(name: str) -> HfTensors:
    return from_hf_tensors(from_hf(DATA / f"{name}.json"), load_file(DATA / f"{name}.safetensors"))


@functools.cache
def oracle(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / f"{name}_logits.npz") as saved:
        return saved["tokens"].astype(np.int32), saved["logits"]


def worst_difference(weights: HfTensors, name: str) -> float:
    tokens, expected = oracle(name)
    logits = Transformer(weights)(jnp.asarray(tokens))
    return float(np.abs(np.asarray(logits) - expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name):
    assert worst_difference(source(name), name) < HF_BOUND


def with_rope(model_cfg: ModelConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(model_cfg, rope=dataclasses.replace(model_cfg.rope, **changes))


def with_attention(model_cfg: ModelConfig, **changes: object) -> ModelConfig:
    attention = dataclasses.replace(model_cfg.attention, **changes)
    return dataclasses.replace(model_cfg, attention=attention)


def with_moe(model_cfg: ModelConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(model_cfg, moe=dataclasses.replace(model_cfg.moe, **changes))


MUTATIONS = {
    "llama rope pairs": ("llama", lambda cfg: with_rope(cfg, interleaved=True)),
    "llama rope scaling": ("llama", lambda cfg: with_rope(cfg, scaling=None)),
    "llama norm eps": ("llama", lambda cfg: dataclasses.replace(cfg, norm_eps=1e-3)),
    "latent rope pairs": ("deepseek_v3", lambda cfg: with_rope(cfg, interleaved=False)),
    "latent norm eps": ("deepseek_v3", lambda cfg: with_attention(cfg, latent_norm_eps=1e-5)),
    "softmax temperature": ("kimi_k2", lambda cfg: with_attention(cfg, rope_temperature=1.0)),
    "group limit": ("deepseek_v3", lambda cfg: with_moe(cfg, topk_groups=4)),
    "renormalisation": ("deepseek_v3", lambda cfg: with_moe(cfg, normalise=False)),
    "routed scaling": ("kimi_k2", lambda cfg: with_moe(cfg, routed_scaling=2.5)),
    "yarn scaling": ("deepseek_v3", lambda cfg: with_rope(cfg, scaling=None)),
}


@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
def test_the_oracle_sees_a_wrong_convention(mutation):
    name, change = MUTATIONS[mutation]
    right = source(name)
    wrong = HfTensors(change(right.config), load_file(DATA / f"{name}.safetensors"))
    assert worst_difference(wrong, name) > HF_BOUND


def test_the_yarn_case_is_really_scaled():
    assert isinstance(source("kimi_k2").config.rope.scaling, YarnScaling)


def hidden_states(model_cfg: ModelConfig) -> jnp.ndarray:
    values = np.random.default_rng(3).standard_normal((1, 5, model_cfg.d_model))
    return jnp.asarray(values, dtype=jnp.float32)


@pytest.mark.parametrize("name", ["deepseek_v3", "kimi_k2"])
def test_holding_only_the_chosen_experts_changes_nothing(name):
    weights = source(name)
    x = hidden_states(weights.config)[:, :1]
    everyone = tuple(range(weights.config.moe.n_experts))
    whole = reference_block(weights.config, "moe", with_experts(weights, 1, everyone))
    assert isinstance(whole, Moe)
    ids, _ = whole.route(x)
    held = tuple(sorted(np.asarray(ids).ravel().tolist()))
    assert len(held) < len(everyone)
    part = reference_block(weights.config, "moe", with_experts(weights, 1, held), held)
    np.testing.assert_array_equal(part(x), whole(x))
    np.testing.assert_array_equal(whole(x, forced_ids=ids), whole(x))


def test_forced_routing_uses_the_unbiased_scores_of_the_forced_experts():
    weights = source("kimi_k2")
    arrays = {name: a.astype(np.float64) for name, a in with_experts(weights, 1, (0, 1)).items()}
    x = hidden_states(weights.config)
    block = reference_block(weights.config, "moe", with_experts(weights, 1, (0, 1)), (0, 1))
    ids = jnp.broadcast_to(jnp.asarray([[[1, 0]]]), (1, 5, 2))
    x64 = np.asarray(x, dtype=np.float64)
    normed = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + weights.config.norm_eps)
    normed = normed * arrays["norm"]

    def swiglu(gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        gate, up = normed @ gate_up[:, 0], normed @ gate_up[:, 1]
        return gate / (1 + np.exp(-gate)) * up @ down

    scores = 1 / (1 + np.exp(-normed @ arrays["router"]))[..., :2]
    shares = weights.config.moe.routed_scaling * scores / scores.sum(-1, keepdims=True)
    expected = x64 + swiglu(arrays["shared_gate_up"], arrays["shared_down"])
    for slot in (0, 1):
        expert = swiglu(arrays["gate_up"][slot], arrays["down"][slot])
        expected = expected + shares[..., slot : slot + 1] * expert
    # float32 against float64 on values of order 1.
    np.testing.assert_allclose(block(x, forced_ids=ids), expected, atol=HF_BOUND)


def test_a_block_short_of_a_parameter_is_refused():
    weights = source("llama")
    arrays = weights.block("dense", 0)
    del arrays["down"]
    with pytest.raises(ConfigError, match="dense block needs parameter 'down'; it is missing"):
        reference_block(weights.config, "dense", arrays)
    mixture = with_experts(source("kimi_k2"), 1, (0, 1))
    with pytest.raises(ConfigError, match=r"as many stacked experts as ids held \(3\), got 2"):
        reference_block(source("kimi_k2").config, "moe", mixture, (0, 1, 2))


def test_bad_tensors_are_refused_by_name():
    tensors = dict(load_file(DATA / "llama.safetensors"))
    model_cfg = source("llama").config
    q_proj = "model.layers.1.self_attn.q_proj.weight"
    down = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(WeightsError, match=r"q_proj\.bias' is not part of a llama model"):
        from_hf_tensors(model_cfg, tensors | {q_proj.replace("weight", "bias"): np.zeros(32)})
    wrong_shape = from_hf_tensors(model_cfg, tensors | {q_proj: tensors[q_proj][1:]})
    with pytest.raises(WeightsError, match=r"q_proj.weight' must have shape \(32, 32\), got \(31,"):
        wrong_shape.block("attention", 1)
    narrow = from_hf_tensors(model_cfg, tensors | {down: tensors[down].astype(np.int8)})
    with pytest.raises(WeightsError, match=r"must be float16, .* got int8"):
        narrow.block("dense", 0)
    del tensors[down]
    with pytest.raises(WeightsError, match=r"mlp\.down_proj\.weight' is missing"):
        from_hf_tensors(model_cfg, tensors).block("dense", 0)


@pytest.mark.slow
@pytest.mark.skipif(not GGUF.is_file(), reason=f"{GGUF} is not there; `make weights` fetches it")
def test_trained_weights_know_a_capital():
    model = load_gguf(GGUF)
    tokenizer = Tokenizer(model.tokenizer)
    tokens = tokenizer.encode("The capital of France is")
    transformer = Transformer(model.weights)
    for _ in range(2):
        logits = transformer(jnp.asarray([tokens], dtype=jnp.int32))
        tokens.append(int(logits[0, -1].argmax()))
    assert tokenizer.decode(tokens) == "The capital of France is Paris."
