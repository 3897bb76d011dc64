"""Checkpoints of NVIDIA ModelOpt: kept bit for bit, decoded as the definition of each form says.

The decode here is `ml_dtypes`' and NumPy's, of bytes taken apart in Python.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lpu_jax.errors import LpuError, WeightsError
from lpu_jax.numerics.quantized import QuantizedArray, check
from lpu_jax.numerics.schemes import FP8_COLUMN, NVFP4
from models.params import block_params, expert_params
from models.policy import policy_named
from models.weights.checkpoint import open_checkpoint
from models.weights.stored import dequantised, one_of_batch
from sharding.run.load import store_block, store_expert, stored_values

E4M3 = ml_dtypes.float8_e4m3fn
D_MODEL, D_EXPERT, N_EXPERTS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 32, 2, 4, 2, 16, 48
CONFIG = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": D_MODEL,
    "intermediate_size": 96,
    "moe_intermediate_size": D_EXPERT,
    "num_experts": N_EXPERTS,
    "num_experts_per_tok": 1,
    "norm_topk_prob": True,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
}
#: As ModelOpt writes them beside `config.json`: the second layer of patterns is a wildcard.
QUANTIZATION = {
    "producer": {"name": "modelopt", "version": "0.33.1"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.0.self_attn*", "model.layers.0.mlp.gate"],
    },
}
#: Values of the sixteen e2m1 codes, by the table of OCP Microscaling v1.0.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


PARTS = ("weight", "weight_scale", "weight_scale_2")


def nvfp4(generator: np.random.Generator, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Random bytes of a matrix `[rows, columns]`; scales are all codes of e4m3 above 0."""
    scale_codes = generator.integers(1, 0x7F, (rows, columns // 16), dtype=np.uint8)
    return {
        "weight": generator.integers(0, 256, (rows, columns // 2), dtype=np.uint8),
        "weight_scale": scale_codes.view(E4M3),
        "weight_scale_2": np.float32(generator.uniform(1e-4, 1e-3)),
        "input_scale": np.float32(generator.uniform(1e-4, 1e-3)),
    }


def values(parts: dict[str, np.ndarray]) -> np.ndarray:
    """Code times the scale of its group, in float64, times that of the matrix, rounded once."""
    rows, half = parts["weight"].shape
    codes = [
        [nibble for byte in row for nibble in (byte & 15, byte >> 4)]
        for row in parts["weight"].tolist()
    ]
    exact = np.repeat(parts["weight_scale"].astype(np.float64), 16, axis=1)
    exact *= E2M1[np.array(codes)].astype(np.float64).reshape(rows, 2 * half)
    return (exact * np.float64(parts["weight_scale_2"])).astype(np.float32)


def matrices() -> dict[str, tuple[int, int]]:
    shapes = {}
    for number in range(N_EXPERTS):
        expert = f"model.layers.0.mlp.experts.{number}."
        shapes[f"{expert}gate_proj"] = shapes[f"{expert}up_proj"] = (D_EXPERT, D_MODEL)
        shapes[f"{expert}down_proj"] = (D_MODEL, D_EXPERT)
    return shapes


def tensors() -> dict[str, np.ndarray]:
    """A checkpoint whose experts are narrow; gate and up share a scale, as in ModelOpt's."""
    generator = np.random.default_rng(5)
    found: dict[str, np.ndarray] = {}
    for name, shape in matrices().items():
        parts = nvfp4(generator, *shape)
        if name.endswith("up_proj"):
            twin = found[name.replace("up_proj", "gate_proj") + ".weight_scale_2"]
            parts["weight_scale_2"] = twin
        found |= {f"{name}.{part}": np.asarray(array) for part, array in parts.items()}
    plain = {
        "model.embed_tokens.weight": (VOCAB, D_MODEL),
        "lm_head.weight": (VOCAB, D_MODEL),
        "model.norm.weight": (D_MODEL,),
        "model.layers.0.input_layernorm.weight": (D_MODEL,),
        "model.layers.0.post_attention_layernorm.weight": (D_MODEL,),
        "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD_DIM, D_MODEL),
        "model.layers.0.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, D_MODEL),
        "model.layers.0.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, D_MODEL),
        "model.layers.0.self_attn.o_proj.weight": (D_MODEL, HEADS * HEAD_DIM),
        "model.layers.0.self_attn.q_norm.weight": (HEAD_DIM,),
        "model.layers.0.self_attn.k_norm.weight": (HEAD_DIM,),
        "model.layers.0.mlp.gate.weight": (N_EXPERTS, D_MODEL),
    }
    for name, shape in plain.items():
        found[name] = generator.standard_normal(shape).astype(ml_dtypes.bfloat16)
    for part in "kv":  # of a cache in fp8, which policies choose themselves
        found[f"model.layers.0.self_attn.{part}_proj.{part}_scale"] = np.array(0.5, np.float32)
    return found


def write(folder: Path, *, is_inside: bool = False, **changes: np.ndarray | None) -> Path:
    """Write a checkpoint; `changes` replace tensors by name, and None leaves one out."""
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = dict(CONFIG)
    if is_inside:
        spared = QUANTIZATION["quantization"]["exclude_modules"]
        config["quantization_config"] = {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "ignore": spared,
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}},
        }
    else:
        (folder / "hf_quant_config.json").write_text(json.dumps(QUANTIZATION))
    (folder / "config.json").write_text(json.dumps(config))
    stored = {name: array for name, array in (tensors() | changes).items() if array is not None}
    save_file(stored, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("modelopt") / "whole")


@pytest.mark.parametrize("is_inside", [False, True], ids=["beside", "inside"])
def test_codes_and_scales_are_kept_bit_for_bit(tmp_path, is_inside):
    checkpoint = open_checkpoint(write(tmp_path / "a", is_inside=is_inside))
    config, found = checkpoint.config, tensors()
    assert (config.released_format, config.released_roles) == ("nvfp4", ("expert",))
    policy = policy_named("released", config)
    for number in range(N_EXPERTS):
        prefix = f"model.layers.0.mlp.experts.{number}."
        stored = store_expert(checkpoint.weights, 0, number, policy)
        of_down = {part: found[f"{prefix}down_proj.{part}"] for part in PARTS}
        down = stored["down"]
        assert isinstance(down, QuantizedArray)
        assert down.scheme == NVFP4
        check(down)
        packed = of_down["weight"]
        np.testing.assert_array_equal(down.codes[0::2].T, packed & 15)
        np.testing.assert_array_equal(down.codes[1::2].T, packed >> 4)
        np.testing.assert_array_equal(
            down.scales.T.view(np.uint8), of_down["weight_scale"].view(np.uint8)
        )
        np.testing.assert_array_equal(down.tensor_scale, [[of_down["weight_scale_2"]]])
        both = stored["gate_up"]
        assert isinstance(both, QuantizedArray)
        for i, part in enumerate(("gate_proj", "up_proj")):
            np.testing.assert_array_equal(
                both.codes[0::2, i].T, found[f"{prefix}{part}.weight"] & 15
            )


def test_values_are_those_of_the_definition(whole):
    """Exactly: a code times its group's scale has 6 significant bits, and one rounding follows."""
    checkpoint, found = open_checkpoint(whole), tensors()
    policy = policy_named("released", checkpoint.config)
    names = ("gate_up", "down")
    for number in range(N_EXPERTS):
        prefix = f"model.layers.0.mlp.experts.{number}."
        expected = {
            name: values({part: found[f"{prefix}{name}.{part}"] for part in PARTS})
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        gate_up = np.stack((expected["gate_proj"].T, expected["up_proj"].T), axis=1)
        read = checkpoint.weights.expert(0, number)
        stored = store_expert(checkpoint.weights, 0, number, policy)
        for name, wanted in zip(names, (gate_up, expected["down_proj"].T), strict=True):
            np.testing.assert_array_equal(dequantised(read[name]), wanted)
        specs = expert_params(checkpoint.config.d_model, checkpoint.config.moe)
        down = stored_values(stored["down"], one_of_batch(specs["down"]))
        np.testing.assert_array_equal(down, expected["down_proj"].T)


def test_the_high_half_first_or_a_forgotten_scale_would_be_seen(whole):
    found = tensors()
    name = "model.layers.0.mlp.experts.0.down_proj"
    parts = {part: found[f"{name}.{part}"] for part in PARTS}
    right = dequantised(open_checkpoint(whole).weights.expert(0, 0)["down"]).T
    swapped = parts | {"weight": parts["weight"] >> 4 | parts["weight"] << 4}
    assert np.mean(values(swapped) != right) > 0.5
    assert np.mean(values(parts | {"weight_scale_2": np.float32(1)}) != right) > 0.5
    turned = parts | {"weight_scale": parts["weight_scale"][:, ::-1]}
    assert np.mean(values(turned) != right) > 0.5


def test_gate_and_up_of_different_scales_become_numbers(tmp_path):
    """One matrix of ours has one scale: nothing is lost, but the policy rounds once more."""
    name = "model.layers.0.mlp.experts.0.up_proj"
    path = write(tmp_path / "b", **{f"{name}.weight_scale_2": np.array(3e-3, np.float32)})
    gate_up = open_checkpoint(path).weights.expert(0, 0)["gate_up"]
    assert not isinstance(gate_up, QuantizedArray)
    parts = {part: tensors()[f"{name}.{part}"] for part in PARTS}
    expected = values(parts | {"weight_scale_2": np.float32(3e-3)})
    np.testing.assert_array_equal(gate_up[:, 1].T, expected)


DOWN = "model.layers.0.mlp.experts.0.down_proj"


@pytest.mark.parametrize(
    ("part", "array", "match"),
    [
        ("weight_scale", None, "is missing"),
        ("weight_scale_2", None, r"weight_scale_2' is missing"),
        ("weight_scale", np.ones((D_MODEL, 1), E4M3), "must have shape"),
        ("weight_scale", np.ones((D_MODEL, D_EXPERT // 16), np.float32), "must be float8_e4m3fn"),
        ("weight", np.zeros((D_MODEL, D_EXPERT), np.uint8), "must have shape"),
        ("weight", np.zeros((D_MODEL, D_EXPERT // 2), np.int8), "does not go with"),
        ("weight_scale_2", np.ones(2, np.float32), "must have shape"),
        ("weight_scale_2", np.array(1, ml_dtypes.bfloat16), "must be float32"),
        ("input_scale", np.ones(2, np.float32), "must have shape"),
        ("weight_scale_inv", np.ones((1, 1), np.float32), "does not go with"),
        ("bias", np.ones(D_MODEL, np.float32), "is not part of a qwen3_moe model"),
    ],
)
def test_tensors_that_contradict_each_other_are_named(tmp_path, part, array, match):
    with pytest.raises(WeightsError, match=match) as said:
        open_checkpoint(write(tmp_path / "c", **{f"{DOWN}.{part}": array}))
    assert "\n" not in str(said.value)


def test_a_scale_of_rows_beside_a_plain_matrix_is_refused(tmp_path):
    name = "model.layers.0.self_attn.q_proj.input_scale"
    path = write(tmp_path / "d", **{name: np.array(1, np.float32)})
    with pytest.raises(WeightsError, match=r"q_proj\.input_scale' does not go with"):
        open_checkpoint(path)


@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_2"])
def test_scales_that_are_not_numbers_are_refused(tmp_path, part):
    array = tensors()[f"{DOWN}.{part}"].copy()
    array[(0,) * array.ndim] = np.nan
    weights = open_checkpoint(write(tmp_path / "e", **{f"{DOWN}.{part}": array})).weights
    with pytest.raises(WeightsError, match=rf"down_proj\.{part}' holds NaN or infinity"):
        weights.expert(0, 0)


@settings(
    max_examples=20, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 1 << 20), st.integers(0, 255), st.sampled_from(("set", "cut", "drop")))
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path, whole, where, byte, what):
    """Damage to the header, as `test_bad_files` does it to other formats: never other numbers."""
    stored = bytearray((whole / "model.safetensors").read_bytes())
    at = where % (8 + int.from_bytes(stored[:8], "little"))
    match what:
        case "set":
            stored[at] = byte
        case "cut":
            del stored[at:]
        case "drop":
            del stored[at]
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "hf_quant_config.json"):
        (folder / name).write_bytes((whole / name).read_bytes())
    (folder / "model.safetensors").write_bytes(stored)
    expected = open_checkpoint(whole).weights.expert(0, 0)
    try:
        found = open_checkpoint(folder).weights.expert(0, 0)
    except LpuError as problem:
        said = str(problem)
    else:
        said = ""
        for name, weight in expected.items():
            np.testing.assert_array_equal(dequantised(found[name]), dequantised(weight))
    assert "\n" not in said


# --- FP8: e4m3 codes with a scale per matrix ------------------------------------------------------


def with_fp8() -> dict[str, np.ndarray]:
    """The checkpoint with all matrices of its layer in e4m3, each with a scale of its own."""
    generator = np.random.default_rng(6)
    found = tensors()
    attention = {f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"}
    for name in (*sorted(attention), *matrices()):
        rows, columns = matrices().get(name) or found[f"{name}.weight"].shape
        codes = generator.integers(0, 256, (rows, columns), dtype=np.uint8)
        codes[codes & 0x7F == 0x7F] = 0x7E  # NaN
        found |= {
            f"{name}.weight": codes.view(E4M3),
            f"{name}.weight_scale": np.array(generator.uniform(1e-4, 1e-2), np.float32),
            f"{name}.input_scale": np.array(0.01, np.float32),
        }
        found.pop(f"{name}.weight_scale_2", None)
    return found


@pytest.fixture(scope="module")
def fp8(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("modelopt") / "fp8"
    folder.mkdir()
    words = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(words))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(with_fp8(), folder / "model.safetensors")
    return folder


def test_fp8_codes_and_scales_are_kept_bit_for_bit(fp8):
    checkpoint, found = open_checkpoint(fp8), with_fp8()
    config = checkpoint.config
    assert (config.released_format, config.released_roles) == ("fp8-column", None)
    policy = policy_named("released", config)
    stored = store_expert(checkpoint.weights, 0, 1, policy)
    attention = store_block(checkpoint.weights, "attention", 0, policy).weights

    def same(weight: Any, name: str, codes: np.ndarray, scales: np.ndarray) -> None:
        """Compare a matrix `[out, in]` and the scales of its rows with the file's."""
        assert isinstance(weight, QuantizedArray)
        assert weight.scheme == FP8_COLUMN
        whole = found[f"{name}.weight"]
        np.testing.assert_array_equal(codes.view(np.uint8), whole.view(np.uint8))
        assert set(scales.ravel().tolist()) == {float(found[f"{name}.weight_scale"])}
        assert scales.size == whole.shape[0]

    expert = "model.layers.0.mlp.experts.1."
    both, down = stored["gate_up"], stored["down"]
    same(both, f"{expert}gate_proj", both.codes[:, 0].T, both.scales[:, 0])
    same(both, f"{expert}up_proj", both.codes[:, 1].T, both.scales[:, 1])
    same(down, f"{expert}down_proj", down.codes.T, down.scales)
    q, kv, o = (attention[name] for name in ("q", "kv", "o"))
    heads = "model.layers.0.self_attn."
    same(q, f"{heads}q_proj", q.codes.reshape(D_MODEL, -1).T, q.scales)
    same(o, f"{heads}o_proj", o.codes.reshape(-1, D_MODEL).T, o.scales)
    for i, part in enumerate("kv"):
        of_part = kv.codes[:, :, i].reshape(D_MODEL, -1).T
        same(kv, f"{heads}{part}_proj", of_part, kv.scales[:, :, i])


def test_fp8_values_are_those_of_the_definition(fp8):
    """Code times scale in float64, rounded once: also what the emulator makes of them."""
    checkpoint, found = open_checkpoint(fp8), with_fp8()
    policy = policy_named("released", checkpoint.config)
    specs = block_params(checkpoint.config, "attention")

    def values_of(name: str) -> np.ndarray:
        exact = found[f"{name}.weight"].astype(np.float64) * float(found[f"{name}.weight_scale"])
        return exact.astype(np.float32)

    expected = values_of("model.layers.0.self_attn.o_proj").T
    read = checkpoint.weights.block("attention", 0)["o"]
    np.testing.assert_array_equal(dequantised(read).reshape(expected.shape), expected)
    stored = store_block(checkpoint.weights, "attention", 0, policy).weights["o"]
    np.testing.assert_array_equal(
        stored_values(stored, specs["o"]).reshape(expected.shape), expected
    )
    plain = store_block(checkpoint.weights, "attention", 0, policy_named("float32")).weights["o"]
    np.testing.assert_array_equal(plain.reshape(expected.shape), expected)


def test_an_fp8_matrix_without_its_scale_is_refused(fp8, tmp_path):
    for name in ("config.json", "hf_quant_config.json"):
        (tmp_path / name).write_bytes((fp8 / name).read_bytes())
    found = with_fp8()
    del found[f"{DOWN}.weight_scale"]
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"down_proj\.weight_scale_inv' is missing"):
        open_checkpoint(tmp_path)
