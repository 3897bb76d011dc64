"""Damaged files: the same tensors, or one clear sentence; never another exception, never a hang.

None of the formats has a checksum: a flipped bit inside a number is another number. Damage to what
describes the numbers must never change which of them are read.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpu_jax.errors import LpuError
from models.weights.checkpoint import open_checkpoint
from models.weights.safetensors import SafetensorsFile
from models.weights.stored import dequantised

TINY = Path(__file__).parent / "data" / "tiny"
FAST = settings(
    max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Damage = tuple[str, int, int]
#: What is done, where (of the part in question), and with which byte or over how many bytes.
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "drop", "repeat")),
        st.integers(0, 1 << 20),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged(whole: bytes, part: range, damages: list[Damage]) -> bytes:
    """Damage some of the bytes numbered by `part`."""
    stored = bytearray(whole)
    for what, where, how in damages:
        at = part[where % len(part)]
        match what:
            case "flip":
                stored[at : at + 1] = bytes(byte ^ 1 << how % 8 for byte in stored[at : at + 1])
            case "set":
                stored[at : at + 1] = bytes([how])
            case "cut":
                del stored[at:]
            case "drop":
                del stored[at : at + how]
            case "repeat":
                stored[at:at] = stored[at : at + how]
    return bytes(stored)


def values_of(path: Path) -> dict[str, np.ndarray]:
    """Some parameters of every kind of block."""
    weights = open_checkpoint(path).weights
    cfg = weights.config
    last = cfg.n_layers - 1
    kind = "moe" if cfg.is_moe_layer(last) else "dense"
    found = {
        f"{kind}.{name}": dequantised(weight)
        for kind, layer in (("embed", 0), ("attention", last), (kind, last), ("head", 0))
        for name, weight in weights.block(kind, layer).items()
    }
    if cfg.moe is not None:
        expert = weights.expert(last, 0)
        found |= {f"expert.{name}": dequantised(weight) for name, weight in expert.items()}
    return found


def check(path: Path, expected: dict[str, np.ndarray] | None) -> None:
    """Read a damaged file; where only a description was damaged, values must not differ."""
    try:
        found = values_of(path)
    except LpuError as problem:
        message = str(problem)
        assert message.isprintable()
        assert len(message) < 500
        assert path.name in message or str(path.parent) in message
    else:
        if expected is not None:
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["llama", "gpt_oss_mxfp4", "deepseek_v3_fp8", "kimi_k2_int4"])
@FAST
@given(damages=DAMAGES)
def test_a_damaged_header_of_safetensors(tmp_path, name, damages):
    whole = (TINY / name / "model.safetensors").read_bytes()
    header = range(8 + int.from_bytes(whole[:8], "little"))
    shutil.copy(TINY / name / "config.json", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(whole, header, damages))
    try:
        names = dict(SafetensorsFile(path))
    except LpuError:
        names = {}
    original = SafetensorsFile(TINY / name / "model.safetensors")
    # Two names may have changed places, or a type into another of its size: values differ then.
    is_same = {key: (t.dtype_name, t.first_byte, t.shape) for key, t in names.items()} == {
        key: (t.dtype_name, t.first_byte, t.shape) for key, t in original.items()
    }
    check(path, values_of(TINY / name) if is_same else None)


@pytest.mark.parametrize("name", ["llama", "gpt_oss_mxfp4", "deepseek_v3_fp8", "kimi_k2_int4"])
@settings(FAST, max_examples=10)
@given(damages=DAMAGES)
def test_damaged_numbers_of_safetensors(tmp_path, name, damages):
    whole = (TINY / name / "model.safetensors").read_bytes()
    numbers = range(8 + int.from_bytes(whole[:8], "little"), len(whole))
    shutil.copy(TINY / name / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damaged(whole, numbers, damages))
    check(tmp_path / "model.safetensors", None)


@pytest.mark.slow
@settings(FAST, max_examples=30)
@given(damages=DAMAGES)
def test_a_damaged_index(tmp_path, damages):
    folder = TINY / "llama"
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path / "model-1.safetensors")
    file_of = dict.fromkeys(SafetensorsFile(folder / "model.safetensors"), "model-1.safetensors")
    whole = json.dumps({"metadata": {}, "weight_map": file_of}).encode()
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(damaged(whole, range(len(whole)), damages))
    check(index, values_of(folder))


def write_gguf(path: Path) -> Path:
    """A llama of one layer, its matrices in Q8_0."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{number}" for number in range(40)])
    writer.add_token_types([1] * 40)
    writer.add_token_merges(["a b"])
    shapes = {"token_embd": (40, 32), "output_norm": (32,), "blk.0.attn_norm": (32,)}
    shapes |= {"blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32)}
    shapes |= {"blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_up": (64, 32)}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_down": (32, 64)}
    storage = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        values = generator.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            packed = gguf.quants.quantize(values, storage)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


@FAST
@given(damages=DAMAGES)
def test_a_damaged_gguf_file(tmp_path, whole_gguf, damages):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(whole_gguf, range(len(whole_gguf)), damages))
    check(path, None)


@settings(FAST, max_examples=30)
@given(st.integers(0, 1 << 20))
def test_a_gguf_file_that_is_cut_is_always_refused(tmp_path, whole_gguf, where):
    path = tmp_path / "cut.gguf"
    # The last bytes are padding that no tensor needs.
    path.write_bytes(whole_gguf[: where % (len(whole_gguf) - 32)])
    with pytest.raises(LpuError, match=r"cut\.gguf: cut short or damaged: not a whole GGUF file"):
        open_checkpoint(path)
