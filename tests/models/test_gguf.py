"""Reading GGUF files: a small one made here with the format's own writer, and the real one."""

import dataclasses
import math
import os
import re
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf_files import CHAT_TEMPLATE, CONFIG, PARTS, TENSORS, write_gguf
from safetensors.numpy import load_file

from lpu_jax.errors import WeightsError
from models import zoo
from models.config import ModelConfig
from models.hf_config import from_hf
from models.rope import Llama3Scaling
from models.tokenizer import Tokenizer, TokenizerData
from models.tokenizer_files import read_tokenizer
from models.weights.checkpoint import open_checkpoint
from models.weights.fetch import GGUF_NAME
from models.weights.gguf import load_gguf
from models.weights.source import from_hf_tensors

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / GGUF_NAME
needs_real_file = pytest.mark.skipif(
    not REAL.is_file(), reason=f"{REAL} is not there; `make weights` fetches it"
)


def q8(values: np.ndarray) -> np.ndarray:
    """Round rows to Q8_0 and back: blocks of 32, a float16 scale, the block's largest is 127."""
    blocks = values.reshape(-1, 32).astype(np.float32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = blocks * inverse
    codes = np.trunc(np.abs(scaled) + np.float32(0.5)) * np.sign(scaled)
    return (codes * scale.astype(np.float16).astype(np.float32)).reshape(values.shape)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def test_config_comes_from_the_metadata(tiny):
    model_cfg = load_gguf(tiny).config
    assert model_cfg.attention == CONFIG.attention
    assert model_cfg.rope == CONFIG.rope
    assert model_cfg.norm_eps == CONFIG.norm_eps
    assert model_cfg.tie_embeddings
    assert model_cfg.released_format == "q8_0"


def test_weights_equal_the_rounded_checkpoint_in_every_tensor(tiny):
    """Independent rounding here, GGUF's writer and our reader there: equal to the last bit."""
    rounded = {
        name: q8(tensor) if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else tensor
        for name, tensor in TENSORS.items()
    }
    expected = from_hf_tensors(CONFIG, rounded)
    loaded = load_gguf(tiny).weights
    for kind in ("embed", "attention", "dense", "head"):
        wanted = expected.block(kind, 0)
        for name, array in loaded.block(kind, 0).items():
            np.testing.assert_array_equal(array, wanted[name], strict=True, err_msg=name)


def test_q4_1_is_decoded_by_its_definition(tmp_path):
    """A block of 32 is a float16 scale and minimum, then codes: low nibbles, then high ones."""
    name = "model.layers.0.mlp.up_proj.weight"
    rows = TENSORS[name].shape[0]
    packed = gguf.quants.quantize(TENSORS[name], gguf.GGMLQuantizationType.Q4_1)
    scale, minimum = packed[:, :4].copy().view(np.float16).astype(np.float32).T
    codes = np.concatenate((packed[:, 4:] & 15, packed[:, 4:] >> 4), axis=1)
    expected = codes * scale.reshape(rows, 1) + minimum.reshape(rows, 1)
    loaded = load_gguf(write_gguf(tmp_path / "narrow.gguf", format_name="Q4_1"))
    assert loaded.config.released_format == "q4_1"
    gate_up = loaded.weights.block("dense", 0)["gate_up"]
    np.testing.assert_array_equal(gate_up[:, 1], expected.T)


@pytest.mark.parametrize("format_name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_every_type_keeps_the_values_its_definition_allows(tmp_path, format_name):
    name = "model.layers.0.mlp.up_proj.weight"
    values = TENSORS[name]
    loaded = load_gguf(write_gguf(tmp_path / "typed.gguf", format_name=format_name))
    found = loaded.weights.block("dense", 0)["gate_up"][:, 1].T
    match format_name:
        case "F32":
            expected = values
        case "F16" | "BF16":
            narrow = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}[format_name]
            expected = values.astype(narrow).astype(np.float32)
        case "Q4_0":
            expected = q4_0(values)
        case "Q8_0":
            expected = q8(values)
        case _:  # half a step, 1/15 of a block's range, and half as much for its float16 numbers
            spread = np.ptp(values.reshape(-1, 32), axis=1).max()
            np.testing.assert_allclose(found, values, rtol=0, atol=0.75 * spread / 15)
            return
    np.testing.assert_array_equal(found, expected)


def q4_0(values: np.ndarray) -> np.ndarray:
    """Round rows to Q4_0 and back: the number of largest magnitude is -8 times a float16 scale."""
    blocks = values.reshape(-1, 32).astype(np.float32)
    at = np.abs(blocks).argmax(1)[:, None]
    scale = np.take_along_axis(blocks, at, 1) / np.float32(-8)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.trunc(blocks * inverse + np.float32(8.5)), 0, 15) - 8
    return (codes * scale.astype(np.float16).astype(np.float32)).reshape(values.shape)


def test_the_chat_template_is_passed_on(tiny):
    assert load_gguf(tiny).chat_template == CHAT_TEMPLATE
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.chat_template == CHAT_TEMPLATE
    assert checkpoint.tokenizer_data is not None
    assert len(checkpoint.tokenizer_data.tokens) == CONFIG.vocab_size


def test_a_folder_with_one_gguf_file_is_that_file(tiny):
    found = open_checkpoint(tiny.parent).weights.block("embed")["table"]
    np.testing.assert_array_equal(found, open_checkpoint(tiny).weights.block("embed")["table"])
    write_gguf(tiny.parent / "second.gguf")
    with pytest.raises(WeightsError, match="holds 2 GGUF files; give the path of one, such as"):
        open_checkpoint(tiny.parent)


def test_rows_of_the_table_are_decoded_alone(tiny):
    weights = load_gguf(tiny).weights
    tokens = np.array([3, 4, 60])
    table = weights.of_tokens("embed", tokens)["table"]
    np.testing.assert_array_equal(table, weights.block("embed")["table"][tokens], strict=True)


def test_numbers_of_the_other_byte_order_are_refused(tmp_path):
    path = write_gguf(tmp_path / "big.gguf", format_name="F32", big_endian=True)
    with pytest.raises(WeightsError, match=r"big\.gguf: must be a little-endian GGUF file"):
        load_gguf(path)


def test_a_tensor_that_is_there_twice_is_named(tiny):
    whole = tiny.read_bytes()
    name, twin = b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"  # equally long: nothing moves
    assert whole.count(name) == whole.count(twin) == 1
    tiny.write_bytes(whole.replace(name, twin))
    with pytest.raises(WeightsError, match=r"tensor 'blk\.0\.attn_k\.weight' appears 2 times"):
        load_gguf(tiny)


def test_tensors_that_share_bytes_are_refused(tiny):
    whole = bytearray(tiny.read_bytes())
    info = whole.index(b"blk.0.ffn_norm.weight") + len(b"blk.0.ffn_norm.weight")
    at = info + 4 + 8 + 4  # one dimension, its length, the type; then the offset
    assert int.from_bytes(whole[at : at + 8], "little") > 0
    whole[at : at + 8] = bytes(8)
    tiny.write_bytes(whole)
    with pytest.raises(WeightsError, match=r"tensor '.*' overlaps another"):
        load_gguf(tiny)


def test_weights_of_nan_are_refused_by_name(tiny):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny).tensors}
    whole = bytearray(tiny.read_bytes())
    at = int(tensors["blk.0.ffn_down.weight"].data_offset)
    kind = tensors["blk.0.ffn_down.weight"].tensor_type.name
    nan = np.array(np.nan, {"F32": np.float32, "Q8_0": np.float16}[kind]).tobytes()
    whole[at : at + len(nan)] = nan
    tiny.write_bytes(whole)
    weights = load_gguf(tiny).weights
    with pytest.raises(WeightsError, match=r"tiny\.gguf \(blk\.0\.ffn_down\.weight\): .* NaN"):
        weights.block("dense", 0)


def test_other_architectures_are_refused(tmp_path):
    path = write_gguf(tmp_path / "bert.gguf", architecture="bert")
    with pytest.raises(
        WeightsError, match=r"bert\.gguf: architecture must be one of llama, .*, got 'bert'"
    ):
        load_gguf(path)


def test_files_that_are_not_gguf_are_refused(tmp_path):
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(WeightsError, match=r"noise\.gguf: cut short or damaged: not a whole GGUF"):
        load_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="not a whole GGUF file"):
        load_gguf(path)
    with pytest.raises(WeightsError, match=r"absent\.gguf: cannot be read"):
        load_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 0.99])
def test_truncated_files_are_refused(tiny, share):
    whole = tiny.read_bytes()
    tiny.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match="not a whole GGUF file") as caught:
        load_gguf(tiny)
    n_bytes = tiny.stat().st_size
    assert str(caught.value) == (
        f"{tiny}: cut short or damaged: not a whole GGUF file ({n_bytes} bytes)."
    )


def test_a_damaged_length_does_not_count_for_ever(tiny):
    whole = bytearray(tiny.read_bytes())
    key = b"tokenizer.ggml.token_type"
    # After the key: the type "array" and the type of an item, 4 bytes each, then the length.
    length = whole.index(key) + len(key) + 8
    assert int.from_bytes(whole[length : length + 8], "little") == CONFIG.vocab_size
    whole[length + 6] = 1
    tiny.write_bytes(whole)
    with pytest.raises(WeightsError, match=r"tiny\.gguf: cut short or damaged"):
        load_gguf(tiny)


def test_a_missing_tensor_is_named(tmp_path):
    left_out = "model.layers.0.mlp.up_proj.weight"
    path = write_gguf(tmp_path / "short.gguf", leave_out=left_out)
    with pytest.raises(WeightsError, match=r"tensor 'blk\.0\.ffn_up\.weight' is missing"):
        load_gguf(path)


def test_a_tensor_we_would_ignore_is_named(tmp_path):
    bias = {"blk.0.attn_q.bias": np.zeros(16, np.float32)}
    path = write_gguf(tmp_path / "biased.gguf", **bias)
    with pytest.raises(WeightsError, match=r"'blk\.0\.attn_q\.bias' is not part of a plain llama"):
        load_gguf(path)


def test_unknown_tokenizers_are_refused():
    data = TokenizerData(
        model="gpt2", pre_tokenizer="default", tokens=(), token_types=(), merges=()
    )
    with pytest.raises(
        WeightsError, match=r"must be llama, or gpt2 with the smollm or .*; got gpt2 with default"
    ):
        Tokenizer(data)


def test_a_tokenizer_is_read_where_text_is(tmp_path):
    """Weights and sizes of a file are of use without it."""
    path = write_gguf(tmp_path / "odd.gguf", keys={"tokenizer.ggml.pre": "of-tomorrow"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.vocab_size == CONFIG.vocab_size
    with pytest.raises(WeightsError, match="got gpt2 with of-tomorrow"):
        read_tokenizer(checkpoint)


# --- keys of the metadata: read, known to say nothing, or refused ---------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # Where no type is named, llama.cpp divides positions by the factor.
        ("rope.scaling.factor", 4.0),
        ("rope.scale_linear", 4.0),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.attn_factor", 0.5),
        ("rope.dimension_count", 4),
        ("attention.value_length", 16),
        ("attention.causal", False),
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("attention.clamp_kqv", 8.0),
        ("attention.sliding_window", 512),
        ("logit_scale", 0.5),
        ("of_tomorrow", "yes"),
    ],
)
def test_a_key_that_changes_the_network_is_refused_by_name(tmp_path, key, value):
    path = write_gguf(tmp_path / "changed.gguf", keys={key: value})
    with pytest.raises(
        WeightsError, match=rf"changed\.gguf: key 'llama\.{re.escape(key)}'"
    ) as said:
        load_gguf(path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"vocab_size": None},
        {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scaling.finetuned": False},
        {"rope.dimension_count": CONFIG.attention.head_dim, "expert_count": 0},
        {"attention.value_length": CONFIG.attention.head_dim, "attention.causal": True},
        {"attention.clamp_kqv": 0.0, "use_parallel_residual": False, "tensor_data_layout": ""},
    ],
)
def test_keys_that_say_what_holds_anyway_change_nothing(tmp_path, keys):
    found = load_gguf(write_gguf(tmp_path / "same.gguf", keys=keys)).config
    assert found == dataclasses.replace(
        CONFIG, name="same", released_format="q8_0", bos_token_id=None, eos_token_ids=()
    )


def test_without_a_base_it_is_that_of_llama(tmp_path):
    path = write_gguf(tmp_path / "bare.gguf", keys={"rope.freq_base": None})
    assert load_gguf(path).config.rope.theta == 10_000.0


def test_a_part_of_several_files_is_refused(tmp_path):
    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"key 'split\.count' must be 0 or 1, .*; got 3"):
        load_gguf(path)


# --- rotation of Llama 3.1: a table of divisors ---------------------------------------------------


def llama3_divisors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """Divisors as llama.cpp's converter writes them (`LlamaModel.generate_extra_tensors`)."""
    low, high, original = 1.0, 4.0, 8192
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_table_of_llama_3_1_is_its_rule(tmp_path, factor):
    keys = {"rope.freq_base": 500_000.0}
    table = llama3_divisors(500_000.0, CONFIG.attention.head_dim, factor)
    path = write_gguf(tmp_path / "long.gguf", keys=keys, **{"rope_freqs.weight": table})
    assert load_gguf(path).config.rope.scaling == Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    )


def test_another_table_is_refused(tmp_path):
    table = llama3_divisors(500_000.0, CONFIG.attention.head_dim, 8.0) * np.float32(1.01)
    keys = {"rope.freq_base": 500_000.0}
    path = write_gguf(tmp_path / "odd.gguf", keys=keys, **{"rope_freqs.weight": table})
    with pytest.raises(WeightsError, match=r"'rope_freqs\.weight' must be the table of Llama 3\.1"):
        load_gguf(path)


# --- other architectures: the checkpoints of the tests, written as llama.cpp's converter does -----

QWEN3_PARTS = PARTS | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
EXPERT_PARTS = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
}


def write_qwen3(path: Path, folder: str, architecture: str) -> ModelConfig:
    """Write a tiny checkpoint as GGUF in float32; experts of a layer lie in one tensor."""
    cfg, tensors = (
        from_hf(DATA / "tiny" / folder),
        load_file(DATA / "tiny" / folder / "model.safetensors"),
    )
    writer = gguf.GGUFWriter(path, architecture)
    gqa = cfg.attention
    writer.add_block_count(cfg.n_layers)
    writer.add_context_length(cfg.max_position)
    writer.add_embedding_length(cfg.d_model)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(gqa.n_heads)
    writer.add_head_count_kv(gqa.n_kv_heads)
    writer.add_key_length(gqa.head_dim)
    writer.add_value_length(gqa.head_dim)
    writer.add_rope_freq_base(cfg.rope.theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    if cfg.moe is not None:
        writer.add_expert_count(cfg.moe.n_experts)
        writer.add_expert_used_count(cfg.moe.top_k)
        writer.add_expert_feed_forward_length(cfg.moe.d_expert)
    for name, target in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ):
        if f"{name}.weight" in tensors:
            writer.add_tensor(f"{target}.weight", tensors[f"{name}.weight"].astype(np.float32))
    for layer in range(cfg.n_layers):
        prefix = f"model.layers.{layer}."
        for part, target in {**QWEN3_PARTS, "mlp.gate": "ffn_gate_inp"}.items():
            if (key := f"{prefix}{part}.weight") in tensors:
                writer.add_tensor(f"blk.{layer}.{target}.weight", tensors[key].astype(np.float32))
            if (key := f"{prefix}{part}.bias") in tensors:
                writer.add_tensor(f"blk.{layer}.{target}.bias", tensors[key].astype(np.float32))
        for part, target in EXPERT_PARTS.items() if cfg.moe else ():
            experts = [
                tensors[f"{prefix}mlp.experts.{i}.{part}.weight"] for i in range(cfg.moe.n_experts)
            ]
            writer.add_tensor(f"blk.{layer}.{target}.weight", np.stack(experts).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return cfg


@pytest.mark.parametrize(
    ("folder", "architecture"),
    [("qwen2", "qwen2"), ("qwen3", "qwen3"), ("qwen3_moe", "qwen3moe")],
)
def test_another_architecture_is_the_same_model(tmp_path, folder, architecture):
    cfg = write_qwen3(tmp_path / "other.gguf", folder, architecture)
    # The format has no key for Qwen2's windows, and llama.cpp none of them.
    cfg = dataclasses.replace(
        cfg, attention=dataclasses.replace(cfg.attention, window=None), sliding_layers=()
    )
    found = load_gguf(tmp_path / "other.gguf")
    assert found.config == dataclasses.replace(
        cfg, name="other", released_format="f32", bos_token_id=None, eos_token_ids=(),
        released_roles=found.config.released_roles,
    )  # fmt: skip
    expected = open_checkpoint(DATA / "tiny" / folder).weights
    kinds = ("embed", "attention", "moe" if cfg.moe else "dense", "head")
    for kind in kinds:
        wanted = expected.block(kind, 0)
        for name, array in found.weights.block(kind, 0).items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    if cfg.moe:
        wanted = expected.expert(1, 1)
        for name, array in found.weights.expert(1, 1).items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.slow
@needs_real_file
def test_the_real_file_is_the_named_model():
    model_cfg = load_gguf(REAL).config
    assert model_cfg.released_format == "q4_1"
    for field in ("n_layers", "d_model", "d_ff", "vocab_size", "norm_eps", "attention", "rope"):
        assert getattr(model_cfg, field) == getattr(zoo.model("smollm2-135m"), field)


# As transformers 5.23.0 encodes them with the tokenizer it builds from the same file.
ENCODED = {
    "The capital of France is": "504 3575 282 4649 314",
    "In 2024, x += 1;\n\treturn 3.14": "788 216 34 32 34 36 28 1792 4519 216 33 43 198 197 5406 "
    "216 35 30 33 36",
    "naïve café — 東京 🙂": "3546 46494 37366 1841 17097 247 126 16736 122 47526",
    "<|im_start|>user\nhi  there 1234's<|im_end|>": "1 4093 198 6004 216 665 216 33 34 35 36 506 2",
}


@pytest.mark.slow
@needs_real_file
def test_the_real_tokenizer_agrees_with_transformers():
    tokenizer = Tokenizer(load_gguf(REAL).tokenizer)
    for text, numbers in ENCODED.items():
        ids = [int(number) for number in numbers.split()]
        assert tokenizer.encode(text) == ids
        if not text.startswith("<"):  # control tokens are left out of decoded text
            assert tokenizer.decode(ids) == text
