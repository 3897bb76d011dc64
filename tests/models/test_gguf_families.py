"""GGUF files of Gemma 3 and DeepSeek-V3, written from tiny checkpoints as llama.cpp does.

The checkpoints themselves, which are compared with transformers elsewhere, are the oracle.
"""

import dataclasses
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_families import (
    GEMMA3_PARTS,
    OF_ALL,
    deepseek2_tensors,
    gemma3_keys,
    gemma3_source,
    place,
    write,
    write_deepseek2,
    write_gemma3,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny_models import HF_BOUND, TINY, difference, oracle

from lpu_jax.errors import LpuError, WeightsError
from models.hf_config import from_hf
from models.reference import stream
from models.weights.gguf import GgufModel, load_gguf
from models.weights.gguf_config import config_keys
from models.weights.gguf_metadata import Metadata
from models.weights.source import from_hf_tensors


def logits(source: Any, name: str) -> np.ndarray:
    return np.asarray(stream(source, jnp.asarray(oracle(name)[0])))


def assert_same_blocks(found: GgufModel, expected: Any) -> None:
    """Compare all arrays of all layers, bit for bit."""
    config = expected.config
    for layer in range(config.n_layers):
        for kind in config.layer_kinds(layer):
            wanted = expected.block(kind, layer)
            for name, array in found.weights.block(kind, layer).items():
                np.testing.assert_array_equal(array, wanted[name], err_msg=f"{layer} {name}")
    for kind in ("embed", "head"):
        for name, array in found.weights.block(kind, 0).items():
            np.testing.assert_array_equal(array, expected.block(kind, 0)[name], err_msg=name)


def test_gemma3_is_the_same_model(tmp_path):
    found, (expected, _) = load_gguf(write_gemma3(tmp_path / "gemma.gguf")), gemma3_source()
    assert found.config == dataclasses.replace(
        expected.config, name="gemma", released_format="f32", released_roles=None
    )
    assert_same_blocks(found, expected)


@pytest.mark.slow
def test_gemma3_has_the_same_logits_and_wrong_norms_are_seen(tmp_path):
    expected = logits(gemma3_source()[0], "gemma3")
    right = load_gguf(write_gemma3(tmp_path / "right.gguf")).weights
    np.testing.assert_array_equal(logits(right, "gemma3"), expected)
    for wrong in (
        {"shift": 0.0},
        {"keys": {"rope.freq_base_swa": 1e6}},
        {"keys": {"attention.sliding_window_pattern": 2}},
        {"keys": {"rope.scaling.factor": None}},
    ):
        source = load_gguf(write_gemma3(tmp_path / "wrong.gguf", **wrong)).weights
        assert np.max(np.abs(logits(source, "gemma3") - expected)) > 50 * HF_BOUND, wrong


def test_gemma3_has_the_defaults_of_llama_cpp(tmp_path):
    """A full layer of each six, the bases 10,000, no scaling; without a window none slides."""
    bare = ("sliding_window_pattern", "key_length", "value_length", "head_count_kv")
    keys: dict[str, Any] = {f"attention.{key}": None for key in bare}
    keys |= {"rope.freq_base": None, "rope.scaling.type": None, "rope.scaling.factor": None}
    _, texts = gemma3_source()
    width = 32 // 4  # of a head: a share of the model's width

    def cut(name: str, values: np.ndarray) -> np.ndarray:
        if "_norm.weight" in name and "self_attn" in name:
            return values[:width]
        if "self_attn" in name:
            rows = 4 * width
            return values[:, :rows] if "o_proj" in name else np.resize(values, (rows, 32))
        return values

    tensors = {}
    for name, values in texts.items():
        layer, module = place(name)
        target = OF_ALL.get(name) or f"blk.{layer}.{GEMMA3_PARTS[module]}.weight"
        tensors[target] = cut(name, values)
    base = gemma3_keys(gemma3_source()[0].config) | keys
    config = load_gguf(write(tmp_path / "bare.gguf", "gemma3", base, tensors)).config
    assert config.sliding_layers == (0, 1, 2)
    assert (config.attention.n_kv_heads, config.attention.head_dim) == (4, width)
    assert config.rope.theta == config.sliding_rope.theta == 10_000.0
    assert config.rope.scaling is None
    full = load_gguf(write_gemma3(tmp_path / "full.gguf", {"attention.sliding_window": 0})).config
    assert full.sliding_layers == ()
    assert full.attention.window is None


def test_the_27b_model_scales_queries_by_its_width(tmp_path):
    """llama.cpp knows it by 62 layers; 5376 / 32 is Google's `query_pre_attn_scalar` of 168."""
    config = gemma3_source()[0].config
    keys = gemma3_keys(config) | {
        "block_count": 62,
        "embedding_length": 5376,
        "attention.head_count": 32,
        "attention.head_count_kv": 16,
        "attention.key_length": 128,
        "attention.value_length": 128,
    }
    path = write(tmp_path / "big.gguf", "gemma3", keys, {})
    metadata = Metadata(gguf.GGUFReader(path), path)
    found = from_hf(config_keys("gemma3", metadata, is_tied=True, divisors=None))
    assert found.attention.scale == pytest.approx(168**-0.5, rel=1e-15)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("attention.value_length", 8),
        ("attention.scale", 0.5),
        ("attention.causal", False),
        ("rope.dimension_count", 8),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.attn_factor", 0.5),
        ("rope.scale_linear", 4.0),
        ("expert_count", 4),
        ("pooling_type", 1),
    ],
)
def test_a_key_of_gemma3_that_is_not_modelled_is_refused(tmp_path, key, value):
    path = write_gemma3(tmp_path / "odd.gguf", {key: value})
    with pytest.raises(WeightsError, match=rf"odd\.gguf: key 'gemma3\.{key}'") as said:
        load_gguf(path)
    assert "\n" not in str(said.value)


# --- DeepSeek-V3 and Kimi K2 ----------------------------------------------------------------------


@pytest.mark.parametrize("is_split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("folder", ["deepseek_v3", "deepseek_v3_plain_queries", "kimi_k2"])
def test_deepseek2_is_the_same_model(tmp_path, folder, is_split):
    found = load_gguf(write_deepseek2(tmp_path / "deep.gguf", folder, is_split=is_split))
    config = from_hf(TINY / folder)
    assert found.config == dataclasses.replace(
        config, name="deep", released_format="f32", released_roles=None, n_prediction_layers=0
    )
    stored = load_file(TINY / folder / "model.safetensors")
    expected = from_hf_tensors(config, stored)
    assert_same_blocks(found, expected)
    for expert in range(config.moe.n_experts):
        wanted = expected.expert(config.n_layers - 1, expert)
        for name, array in found.weights.expert(config.n_layers - 1, expert).items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.slow
def test_deepseek2_has_the_logits_of_transformers_and_mistakes_are_seen(tmp_path):
    config = from_hf(TINY / "deepseek_v3")
    right = load_gguf(write_deepseek2(tmp_path / "right.gguf")).weights
    assert difference(logits(right, "deepseek_v3"), "deepseek_v3") < HF_BOUND
    mla = config.attention
    both = deepseek2_tensors("deepseek_v3", config, True)
    turned = both["blk.1.attn_k_b.weight"]
    pairs = both["blk.1.attn_q_b.weight"].reshape(mla.n_heads, mla.query_head_dim, -1).copy()
    rotated = pairs[:, mla.nope_head_dim :]
    pairs[:, mla.nope_head_dim :] = (
        rotated.reshape(mla.n_heads, 2, -1, rotated.shape[-1]).swapaxes(1, 2).reshape(rotated.shape)
    )
    mistakes: dict[str, dict[str, Any]] = {
        "log multiplier not divided by a tenth": {
            "keys": {"rope.scaling.yarn_log_multiplier": 0.01}
        },
        "groups ignored": {"keys": {"expert_group_count": 1, "expert_group_used_count": 1}},
        "rotated rows permuted": {"tensors": {"blk.1.attn_q_b.weight": pairs.reshape(-1, 24)}},
        "keys not transposed": {
            "tensors": {"blk.1.attn_k_b.weight": turned.swapaxes(1, 2).reshape(turned.shape)}
        },
        "weights not divided by their sum": {"keys": {"expert_weights_norm": None}},
    }
    for name, wrong in mistakes.items():
        source = load_gguf(write_deepseek2(tmp_path / "wrong.gguf", **wrong)).weights
        assert difference(logits(source, "deepseek_v3"), "deepseek_v3") > 50 * HF_BOUND, name


def test_deepseek2_has_the_defaults_of_llama_cpp(tmp_path):
    """No groups, no scale, weights as they are, betas of 32 and 1, the context as the original."""
    absent = (
        *("expert_group_count", "expert_group_used_count", "expert_weights_scale"),
        *("expert_weights_norm", "rope.freq_base", "rope.scaling.yarn_beta_fast"),
        *("rope.scaling.yarn_beta_slow", "rope.scaling.original_context_length"),
    )
    path = write_deepseek2(tmp_path / "bare.gguf", keys=dict.fromkeys(absent))
    config = load_gguf(path).config
    assert (config.moe.n_groups, config.moe.topk_groups) == (1, 1)
    assert (config.moe.routed_scaling, config.moe.normalise) == (1.0, False)
    yarn = config.rope.scaling
    assert (config.rope.theta, yarn.beta_fast, yarn.beta_slow) == (10_000.0, 32.0, 1.0)
    assert yarn.original_max_position == config.max_position
    plain = {"rope.scaling.type": "none", "rope.scaling.factor": None}
    path = write_deepseek2(tmp_path / "plain.gguf", keys=plain)
    assert load_gguf(path).config.rope.scaling is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_gating_func", 1),
        ("expert_gating_func", None),
        ("attention.head_count_kv", 4),
        ("attention.key_length", 16),
        ("attention.value_length", 12),
        ("attention.key_length_mla", 8),
        ("rope.scaling.yarn_log_multiplier", None),
        ("rope.scaling.yarn_attn_factor", 0.5),
        ("rope.scaling.yarn_ext_factor", 0.5),
        ("rope.scaling.type", "longrope"),
        ("attention.temperature_scale", 0.1),
        ("attention.causal", False),
        ("nextn_predict_layers", 1),
        ("expert_count", 0),
        ("expert_shared_count", 0),
    ],
)
def test_a_key_of_deepseek2_that_is_not_modelled_is_refused(tmp_path, key, value):
    path = write_deepseek2(tmp_path / "odd.gguf", keys={key: value})
    with pytest.raises(WeightsError, match=rf"odd\.gguf: key 'deepseek2\.{key}'") as said:
        load_gguf(path)
    assert "\n" not in str(said.value)


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path):
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(WeightsError, match=match):
            load_gguf(write_deepseek2(tmp_path / "odd.gguf", tensors=changes))

    refused(r"'blk\.1\.exp_probs_b\.bias' is missing", **{"blk.1.exp_probs_b.bias": None})
    refused(r"'blk\.0\.attn_v_b\.weight' is missing", **{"blk.0.attn_v_b.weight": None})
    refused(r"'blk\.0\.attn_k_b\.weight' is missing", **{"blk.0.attn_k_b.weight": None})
    whole = np.zeros((80, 16), np.float32)
    refused(r"layer 0 must have attn_kv_b\.weight or", **{"blk.0.attn_kv_b.weight": whole})
    heads = np.zeros((4, 12, 8), np.float32)
    refused(r"must have shapes of heads, latent, keys", **{"blk.0.attn_v_b.weight": heads})
    flat = np.zeros((48, 16), np.float32)
    refused(r"must have shapes of heads, latent, keys", **{"blk.0.attn_v_b.weight": flat})
    table = np.ones(4, np.float32)
    refused(r"'rope_freqs\.weight' does not go with", **{"rope_freqs.weight": table})
    gate = np.zeros((4, 32), np.float32)
    refused(r"'blk\.0\.attn_gate\.weight' is not part", **{"blk.0.attn_gate.weight": gate})
    keys = np.zeros((4, 16, 8), np.float32)  # half a pair, of a layer that there is not
    refused(r"'blk\.9\.attn_v_b\.weight' is missing", **{"blk.9.attn_k_b.weight": keys})
    values = np.zeros((4, 12, 16), np.float32)
    path = tmp_path / "both.gguf"
    write_deepseek2(path, is_split=False, tensors={"blk.0.attn_v_b.weight": values})
    with pytest.raises(WeightsError, match=r"layer 0 must have attn_kv_b\.weight or"):
        load_gguf(path)


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[write_gemma3, write_deepseek2])
def whole(request, tmp_path_factory) -> bytes:
    return request.param(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


@settings(
    max_examples=15, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=st.integers(0, 1 << 20),
    byte=st.integers(0, 255),
    what=st.sampled_from(("set", "drop", "repeat")),
)
def test_damage_is_read_or_refused(tmp_path, whole, where, byte, what):
    """Before the numbers of the tensors, which have no checksum: any byte, never another error."""
    stored = bytearray(whole)
    at = where % (whole.index(b"token_embd.weight") + 4096)
    size = 1 + byte % 8
    changed = {"set": bytes([byte]), "drop": b"", "repeat": 2 * stored[at : at + size]}[what]
    stored[at : at + (1 if what == "set" else size)] = changed
    path = tmp_path / "damaged.gguf"
    path.write_bytes(stored)
    try:
        found = load_gguf(path)
        for layer in range(found.config.n_layers):
            for kind in found.config.layer_kinds(layer):
                found.weights.block(kind, layer)
        said = ""
    except LpuError as problem:
        said = str(problem)
    assert "\n" not in said
