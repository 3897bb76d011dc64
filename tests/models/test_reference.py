"""The Flax reference against Hugging Face transformers, on tiny random models of each family.

The checkpoints and logits are made by `data/make_oracle.py`; which mistakes these logits would show
is `oracle/test_mutations.py`'s matter.
"""

import dataclasses
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import HF_BOUND, NAMES, checkpoint, difference, oracle

from lpu_jax.errors import ConfigError
from models.config import GqaConfig, MlaConfig, ModelConfig
from models.hf_families import TENSOR_NAMES
from models.reference import Moe, Transformer, reference_block, stream, with_experts
from models.rope import YarnScaling
from models.tokenizer import Tokenizer
from models.weights.gguf import load_gguf
from models.weights.source import HfTensors

ROOT = Path(__file__).parents[2]
GGUF = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def source(name: str) -> HfTensors:
    return checkpoint(name).weights


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name):
    tokens, _ = oracle(name)
    assert difference(stream(source(name), jnp.asarray(tokens)), name) < HF_BOUND


@pytest.mark.slow
def test_a_whole_model_equals_its_blocks_one_at_a_time():
    tokens = jnp.asarray(oracle("gpt_oss")[0])
    weights = source("gpt_oss")
    np.testing.assert_array_equal(Transformer(weights)(tokens), stream(weights, tokens))


@pytest.mark.slow
def test_the_expanded_form_of_latent_attention_is_the_same_model():
    absorbed = checkpoint("deepseek_v3")
    attention = dataclasses.replace(absorbed.config.attention, form="expanded")
    expanded = absorbed.with_config(dataclasses.replace(absorbed.config, attention=attention))
    tokens, _ = oracle("deepseek_v3")
    assert difference(stream(expanded.weights, jnp.asarray(tokens)), "deepseek_v3") < HF_BOUND


def test_the_tiny_models_have_what_their_families_bring():
    configs = {name: source(name).config for name in NAMES}
    grouped = [cfg.attention for cfg in configs.values() if isinstance(cfg.attention, GqaConfig)]
    for feature in ("qkv_bias", "o_bias", "qk_norm", "sinks", "window"):
        assert {bool(getattr(attention, feature)) for attention in grouped} == {True, False}
    scorings = {cfg.moe.scoring for cfg in configs.values() if cfg.moe is not None}
    assert scorings == {"sigmoid", "softmax", "softmax_after_top_k", "sigmoid_after_top_k"}
    assert isinstance(configs["kimi_k2"].attention, MlaConfig)
    assert isinstance(configs["kimi_k2"].rope.scaling, YarnScaling)
    assert configs["gpt_oss"].sliding_layers == (0,)
    assert configs["gpt_oss"].attention.window < oracle("gpt_oss")[0].shape[1]
    assert configs["glm4_moe"].rope.dim < configs["glm4_moe"].attention.head_dim
    assert configs["llama_tied"].tie_embeddings
    assert configs["mistral"].sliding_layers == (0, 1)
    assert configs["qwen2"].sliding_layers == (1,)
    assert configs["phi3"].rope.dim < configs["phi3"].attention.head_dim
    assert configs["smollm3"].unrotated_layers == (1,)
    granite = configs["granite"]
    assert 1.0 not in dataclasses.astuple(granite.multipliers)
    assert granite.attention.softmax_scale != granite.attention.head_dim**-0.5
    assert configs["deepseek_v3_plain_queries"].attention.q_lora_rank is None
    assert {cfg.family for cfg in configs.values()} == set(TENSOR_NAMES)


def hidden_states(model_cfg: ModelConfig) -> jnp.ndarray:
    values = np.random.default_rng(3).standard_normal((1, 5, model_cfg.d_model))
    return jnp.asarray(values, dtype=jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss"])
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
