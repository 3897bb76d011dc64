"""What a check is asked for: layers and tokens in words, a model and its weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lpu_jax.errors import LpuError, WeightsError
from models.weights.synthetic import SyntheticWeights
from models.zoo import model
from sharding.verify.named_inputs import layers_named, open_model, token_ids_named

KIMI = model("kimi-k2")
TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
}


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", tuple(range(61))),
        ("2", (0, 1)),
        ("61", tuple(range(61))),
        ("3-5", (3, 4, 5)),
        ("60-60", (60,)),
        ("0,7", (0, 7)),
        ("5-6,0", (5, 6, 0)),
    ],
)
def test_layers_in_words(text: str, layers: tuple[int, ...]) -> None:
    assert layers_named(text, KIMI) == layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "layers '' were asked for; allowed are all"),
        ("-1", "allowed are all"),
        ("1-2-3", "allowed are all"),
        ("one", "layers 'one' were asked for"),
        ("0", "0 layers were asked for; kimi-k2 has 61"),
        ("62", "62 layers were asked for; kimi-k2 has 61"),
        ("60-61", "layers 60-61 were asked for; kimi-k2 has 0 to 60"),
        ("0,61", "layers 61 were asked for"),
        ("5-3", "layers 5-3 were asked for"),
    ],
)
def test_layers_that_are_not_there_are_refused(text: str, message: str) -> None:
    with pytest.raises(LpuError, match=message):
        layers_named(text, KIMI)


def test_token_ids_are_numbers_with_commas() -> None:
    assert token_ids_named("1, 2,30") == (1, 2, 30)
    for text in ("", "1,,2", "-1", "1.5", "a"):
        with pytest.raises(LpuError, match="must be numbers separated by commas"):
            token_ids_named(text)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_name_has_synthetic_weights_of_the_seed() -> None:
    opened = open_model("kimi-k2", None, 5)
    assert isinstance(opened.source, SyntheticWeights)
    assert (opened.config, opened.source.seed) == (KIMI, 5)
    assert opened.weights_name != open_model("kimi-k2", "synthetic", 6).weights_name


def test_a_checkpoint_has_its_own_weights(checkpoint: Path) -> None:
    own = open_model(str(checkpoint))
    assert not isinstance(own.source, SyntheticWeights)
    given = open_model(str(checkpoint / "config.json"), str(checkpoint))
    assert given.weights_name == own.weights_name
    assert own.source.block("embed")["table"].shape == (16, 8)
    random = open_model(str(checkpoint), "synthetic")
    assert isinstance(random.source, SyntheticWeights)
    assert random.config == own.config


def test_other_bytes_are_other_weights(checkpoint: Path) -> None:
    before = open_model(str(checkpoint)).weights_name
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    assert open_model(str(checkpoint)).weights_name != before


def test_weights_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text(json.dumps(TINY | {"intermediate_size": 24}))
    with pytest.raises(WeightsError, match=r"belong to another model .* d_ff is 12, not 24"):
        open_model(str(other), str(checkpoint))
    with pytest.raises(WeightsError, match="there is no such file"):
        open_model("kimi-k2", str(tmp_path / "absent"))
