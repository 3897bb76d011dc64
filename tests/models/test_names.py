"""Tensor names and layouts of every family, against checkpoints that other programs wrote.

The tiny checkpoints are written by Hugging Face transformers under the names of released files;
Ling's, for which it has no class, by a script under the names of its published code.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lpu_jax.errors import WeightsError
from models.config import GqaConfig
from models.params import block_params, expert_params
from models.weights.checkpoint import _of_text, open_checkpoint
from models.weights.forms import owner
from models.weights.names import file_tensors, is_left_out
from models.weights.safetensors import SafetensorsFile
from models.weights.source import from_hf_tensors
from models.weights.stored import dequantised
from models.zoo import model

TINY = Path(__file__).parent / "data" / "tiny"
FOLDERS = sorted(folder.name for folder in TINY.iterdir() if folder.is_dir())
FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "mimo": "mimo",
    "glm4": "glm4",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "exaone4": "exaone4",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "granite": "granite",
    "mixtral": "mixtral",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "deepseek_v3": "deepseek",
    "kimi_k2": "deepseek",
    "gpt_oss": "gpt_oss",
    "glm4_moe": "glm4_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma4": "gemma4",
    "gemma4_moe": "gemma4",
    "llama4": "llama4",
    "mimo_v2_flash": "mimo_v2_flash",
    "step3p7": "step3p7",
    "minimax_m2": "minimax_m2",
    "minimax_m3": "minimax_m3",
    "nemotron_h": "nemotron_h",
    "nemotron_h_moe": "nemotron_h",
    "bailing_hybrid": "bailing_hybrid",
    "kimi_k3": "kimi_k3",
    "ling": "bailing_moe",
}


def test_every_family_has_a_checkpoint():
    assert {name: open_checkpoint(TINY / name).config.family for name in FAMILIES} == FAMILIES


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_table_names_exactly_the_tensors_of_the_file(folder):
    file = _of_text(SafetensorsFile(TINY / folder / "model.safetensors"))
    model_cfg = open_checkpoint(TINY / folder).config
    expected = file_tensors(model_cfg)
    used = {name for name in file if not is_left_out(model_cfg, name)}
    assert {owner(name) for name in used} == set(expected)
    for name in used & set(expected):
        assert file[name].shape == expected[name]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_parameter_of_every_block_is_there(folder):
    weights = open_checkpoint(TINY / folder).weights
    cfg = weights.config
    blocks = [("embed", 0), ("head", 0)]
    for layer in range(cfg.n_layers):
        blocks.extend((kind, layer) for kind in cfg.layer_kinds(layer))
    of_experts = expert_params(cfg.d_model, cfg.moe) if cfg.moe else {}
    for kind, layer in blocks:
        specs = block_params(cfg, kind)
        found = weights.block(kind, layer)
        if kind == "moe":
            expert = weights.expert(layer, cfg.moe.n_experts - 1)
            assert {name: weight.shape for name, weight in expert.items()} == {
                name: spec.shape[1:] for name, spec in of_experts.items()
            }
            specs = {name: spec for name, spec in specs.items() if name not in of_experts}
        assert {name: weight.shape for name, weight in found.items()} == {
            name: spec.shape for name, spec in specs.items()
        }
        values = {name: dequantised(weight) for name, weight in found.items()}
        for name, value in values.items():
            assert value.dtype == (np.int32 if specs[name].is_number else np.float32)
        assert all(value.flags.c_contiguous for value in values.values())


def heads_of(folder: str) -> tuple[GqaConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Attention of the last layer: as a source gives it, and the file's tensors of it."""
    checkpoint = open_checkpoint(TINY / folder)
    layer = checkpoint.config.n_layers - 1
    file = SafetensorsFile(TINY / folder / "model.safetensors")
    prefix = f"model.layers.{layer}."
    tensors = {
        name.removeprefix(prefix): tensor.read().astype(np.float32)
        for name, tensor in file.items()
        if name.startswith(prefix)
    }
    return checkpoint.config.attention, checkpoint.weights.block("attention", layer), tensors


@pytest.mark.parametrize("folder", ["llama", "qwen3", "mixtral", "glm4_moe", "gpt_oss"])
def test_head_by_head_the_rows_of_the_file(folder):
    gqa, found, tensors = heads_of(folder)
    parts = {name: tensors[f"self_attn.{name}_proj.weight"] for name in "qkvo"}
    for head in range(gqa.n_heads):
        kv_head, member = divmod(head, gqa.q_per_kv)
        rows = slice(head * gqa.head_dim, (head + 1) * gqa.head_dim)
        np.testing.assert_array_equal(found["q"][:, kv_head, member], parts["q"][rows].T)
        np.testing.assert_array_equal(found["o"][kv_head, member], parts["o"][:, rows].T)
        if gqa.qkv_bias:
            bias = tensors["self_attn.q_proj.bias"][rows]
            np.testing.assert_array_equal(found["q_bias"][kv_head, member], bias)
        if gqa.sinks:
            assert found["sinks"][kv_head, member] == tensors["self_attn.sinks"][head]
    for kv_head in range(gqa.n_kv_heads):
        rows = slice(kv_head * gqa.head_dim, (kv_head + 1) * gqa.head_dim)
        for number, part in enumerate("kv"):
            np.testing.assert_array_equal(found["kv"][:, kv_head, number], parts[part][rows].T)
            if gqa.qkv_bias:
                bias = tensors[f"self_attn.{part}_proj.bias"][rows]
                np.testing.assert_array_equal(found["kv_bias"][kv_head, number], bias)


def test_ling_stores_queries_then_keys_then_values_in_one_matrix():
    gqa, found, tensors = heads_of("ling")
    stored = tensors["attention.query_key_value.weight"]
    h, n_q, n_kv = gqa.head_dim, gqa.n_heads, gqa.n_kv_heads
    for head in range(n_q):
        rows = stored[head * h : (head + 1) * h]
        np.testing.assert_array_equal(
            found["q"][:, head // gqa.q_per_kv, head % gqa.q_per_kv], rows.T
        )
    for head in range(n_kv):
        keys = stored[(n_q + head) * h : (n_q + head + 1) * h]
        values = stored[(n_q + n_kv + head) * h : (n_q + n_kv + head + 1) * h]
        np.testing.assert_array_equal(found["kv"][:, head, 0], keys.T)
        np.testing.assert_array_equal(found["kv"][:, head, 1], values.T)


def test_mixtral_numbers_gate_up_and_down_one_three_and_two():
    weights = open_checkpoint(TINY / "mixtral").weights
    file = SafetensorsFile(TINY / "mixtral" / "model.safetensors")
    w1, w2, w3 = (
        file[f"model.layers.0.block_sparse_moe.experts.1.w{number}.weight"].read()
        for number in (1, 2, 3)
    )
    expert = weights.expert(0, 1)
    np.testing.assert_array_equal(expert["gate_up"], np.stack((w1.T, w3.T), axis=1))
    np.testing.assert_array_equal(expert["down"], w2.T)


def llama_tensors() -> dict[str, np.ndarray]:
    file = SafetensorsFile(TINY / "llama" / "model.safetensors")
    return {name: tensor.read() for name, tensor in file.items()}


#: Tensors of the layer with which DeepSeek-V3 predicts a further token: its own, and the first of
#: those that it has like any layer. GLM-4.5 names its own alike, at layer 92.
PREDICTING = """
model.layers.61.embed_tokens.weight model.layers.61.enorm.weight model.layers.61.hnorm.weight
model.layers.61.eh_proj.weight model.layers.61.shared_head.norm.weight
model.layers.61.shared_head.head.weight model.layers.61.input_layernorm.weight
"""


def test_layers_that_predict_further_tokens_are_left_out():
    deepseek, kimi, glm = map(model, ("deepseek-v3", "kimi-k2", "glm-4.6"))
    for name in PREDICTING.split():
        assert is_left_out(deepseek, name)
        assert not is_left_out(deepseek, name.replace("61", "60"))
        assert not is_left_out(deepseek, name.replace("61", "62"))
        assert not is_left_out(kimi, name)  # released without, as its file says
        assert is_left_out(glm, name.replace("61", "92"))


def copied(folder: str, target: Path, **changes: object) -> Path:
    """Copy a tiny checkpoint with other keys of its config.json."""
    fields = json.loads((TINY / folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(fields | changes))
    shutil.copy(TINY / folder / "model.safetensors", target)
    return target


def test_a_file_of_more_layers_than_its_configuration_says_is_refused(tmp_path):
    whole = open_checkpoint(TINY / "llama")
    assert whole.config.n_layers == 2
    with pytest.raises(WeightsError, match=r"layers\.1\..* is not part of a llama model of 1"):
        open_checkpoint(copied("llama", tmp_path, num_hidden_layers=1))
    short = replace(whole.config, n_layers=1)  # what the caller asks for is another matter
    assert whole.with_config(short).config.n_layers == 1
    from_hf_tensors(short, llama_tensors()).check_all()
    with pytest.raises(WeightsError, match="is not part of a llama model of 1 layers and 0 that"):
        from_hf_tensors(short, llama_tensors(), may_be_cut=False)


def test_a_file_may_hold_as_many_predicting_layers_as_its_configuration_says(tmp_path):
    whole = open_checkpoint(TINY / "deepseek_v3").config
    rest = {"num_hidden_layers": whole.n_layers - 1, "num_nextn_predict_layers": 1}
    opened = open_checkpoint(copied("deepseek_v3", tmp_path, **rest))
    assert (opened.config.n_layers, opened.config.n_prediction_layers) == (whole.n_layers - 1, 1)
    with pytest.raises(WeightsError, match="is not part of a deepseek model"):
        open_checkpoint(copied("deepseek_v3", tmp_path, **rest | {"num_nextn_predict_layers": 0}))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.gate_proj.weight_zero_point",
        "model.layers.-1.self_attn.q_proj.weight",
        "model.layers.\u00b2.self_attn.q_proj.weight",
        "transformer.wte.weight",
        "",
    ],
)
def test_a_tensor_of_another_model_is_refused_by_name(name):
    cfg = open_checkpoint(TINY / "llama").config
    with pytest.raises(WeightsError, match="is not part of a llama model") as caught:
        from_hf_tensors(cfg, llama_tensors() | {name: np.zeros(1, np.float32)})
    assert repr(name) in str(caught.value)


def test_a_copy_of_a_tied_head_is_left_out():
    tied = open_checkpoint(TINY / "llama_tied")
    file = SafetensorsFile(TINY / "llama_tied" / "model.safetensors")
    tensors = {name: tensor.read() for name, tensor in file.items()}
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    from_hf_tensors(tied.config, tensors | copy).check_all()


def test_recomputed_buffers_of_old_files_are_left_out():
    cfg = open_checkpoint(TINY / "llama").config
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    from_hf_tensors(cfg, llama_tensors() | buffer)


def test_kimi_k2_needs_as_many_tensors_as_it_has_matrices_and_vectors():
    """61 layers of 7 attention tensors and 2 norms; 60 mixtures of 384 experts; the ends."""
    n_attention = 61 * (7 + 2)
    n_mixtures = 60 * (2 + 3 + 3 * 384)  # router and its bias, shared expert, routed experts
    assert len(file_tensors(model("kimi-k2"))) == n_attention + n_mixtures + 3 + 3
