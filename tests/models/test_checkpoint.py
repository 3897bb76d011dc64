"""Released models opened from folders, indices and single files, whole and in pieces."""

import json
import math
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors_bytes import entry, header_bytes, write_arrays

from lpu_jax.errors import ConfigError, WeightsError
from models.config import ModelConfig
from models.params import block_params
from models.weights.checkpoint import Checkpoint, open_checkpoint
from models.weights.names import file_tensors
from models.weights.safetensors import SafetensorsFile
from models.weights.source import WeightSource, from_hf_tensors
from models.zoo import model

TINY = Path(__file__).parent / "data" / "tiny"
INDEX = "model.safetensors.index.json"


def tensors_of(name: str) -> dict[str, np.ndarray]:
    file = SafetensorsFile(TINY / name / "model.safetensors")
    return {name: tensor.read() for name, tensor in file.items()}


def write_shards(folder: Path, name: str, n_shards: int = 3) -> dict[str, str]:
    """Write a tiny checkpoint in several files with an index; returns the index."""
    shutil.copy(TINY / name / "config.json", folder)
    file_of = {}
    shards = [{} for _ in range(n_shards)]
    for number, (tensor, array) in enumerate(tensors_of(name).items()):
        shards[number % n_shards][tensor] = array
        file_of[tensor] = f"model-{number % n_shards + 1:05}-of-{n_shards:05}.safetensors"
    for number, arrays in enumerate(shards):
        write_arrays(folder / f"model-{number + 1:05}-of-{n_shards:05}.safetensors", arrays)
    write_index(folder, file_of)
    return file_of


def write_index(folder: Path, file_of: object) -> None:
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": file_of})
    (folder / INDEX).write_text(text, encoding="utf-8")


def equal(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether a layer of both, with an expert, has the same values."""
    cfg = first.config
    last = cfg.n_layers - 1
    kinds = [("embed", 0), ("attention", 0), ("head", 0)]
    pairs = [
        (a.block(kind, layer), b.block(kind, layer))
        for kind, layer in kinds
        for a, b in ((first.weights, second.weights),)
    ]
    if cfg.moe is not None:
        pairs.append((first.weights.expert(last, 1), second.weights.expert(last, 1)))
    return cfg == second.config and all(
        np.array_equal(a[name], b[name]) for a, b in pairs for name in a
    )


def test_a_folder_a_file_and_an_index_are_the_same_model(tmp_path):
    whole = open_checkpoint(TINY / "mixtral")
    assert isinstance(whole.weights, WeightSource)
    named = whole.with_config(replace(whole.config, name="m"))
    folder = tmp_path / "mixtral"
    folder.mkdir()
    write_shards(folder, "mixtral")
    for path in (
        TINY / "mixtral" / "model.safetensors",
        TINY / "mixtral" / "config.json",
        folder,
        folder / INDEX,
    ):
        other = open_checkpoint(path)
        assert equal(named, other.with_config(replace(other.config, name="m")))


def test_files_without_an_index_are_joined(tmp_path):
    write_shards(tmp_path, "llama")
    (tmp_path / INDEX).unlink()
    other = open_checkpoint(tmp_path)
    assert equal(open_checkpoint(TINY / "llama").with_config(other.config), other)


def test_a_text_model_is_found_inside_a_multimodal_one(tmp_path):
    shutil.copy(TINY / "kimi_k2" / "config.json", tmp_path)
    inner = {f"language_model.{name}": array for name, array in tensors_of("kimi_k2").items()}
    beside = {
        "vision_tower.encoder.blocks.0.wqkv.weight": np.zeros((2, 2), np.float32),
        "mm_projector.proj.0.weight": np.zeros((2, 2), np.float32),
    }
    write_arrays(tmp_path / "model.safetensors", inner | beside)
    other = open_checkpoint(tmp_path)
    assert equal(open_checkpoint(TINY / "kimi_k2").with_config(other.config), other)


def test_tokenizer_files_are_named(tmp_path):
    write_shards(tmp_path, "llama")
    for name in ("tokenizer.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    files = open_checkpoint(tmp_path).tokenizer_files
    assert dict(files) == {
        name: tmp_path / name for name in ("tokenizer.json", "chat_template.jinja")
    }


def test_latent_attention_is_read_in_the_form_asked_for():
    absorbed = open_checkpoint(TINY / "deepseek_v3")
    attention = replace(absorbed.config.attention, form="expanded")
    expanded = absorbed.with_config(replace(absorbed.config, attention=attention))
    both = absorbed.weights.block("attention", 1)
    kv_b = expanded.weights.block("attention", 1)["kv_b"]  # [latent, heads, nope + v]
    nope = attention.nope_head_dim
    np.testing.assert_array_equal(kv_b[..., :nope], both["k_b"].transpose(2, 0, 1))
    np.testing.assert_array_equal(kv_b[..., nope:], both["v_b"].transpose(1, 0, 2))


def test_the_ends_are_read_for_some_tokens_alone():
    weights = open_checkpoint(TINY / "qwen3").weights
    tokens = np.array([5, 6, 7, 2, 2, 63])
    table = weights.of_tokens("embed", tokens)["table"]
    np.testing.assert_array_equal(table, weights.block("embed")["table"][tokens], strict=True)
    head = weights.of_tokens("head", tokens)
    np.testing.assert_array_equal(head["out"], weights.block("head")["out"][:, tokens], strict=True)
    np.testing.assert_array_equal(head["norm"], weights.block("head")["norm"])
    tied = open_checkpoint(TINY / "llama_tied").weights
    np.testing.assert_array_equal(
        tied.of_tokens("head", tokens)["out"], tied.block("embed")["table"][tokens].T
    )
    for wrong in ([-1], [64], []):
        with pytest.raises(WeightsError, match="tokens must be from 0 to 63"):
            weights.of_tokens("embed", np.array(wrong, np.int64))


def test_reading_block_by_block_costs_one_block(tmp_path):
    """Twelve layers: the peak stays below three times the largest block's float32 values."""
    shape = replace(open_checkpoint(TINY / "llama").config, n_layers=12, d_model=256, d_ff=512)
    cfg = json.loads((TINY / "llama" / "config.json").read_text(encoding="utf-8"))
    cfg |= {"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(cfg), encoding="utf-8")
    shapes = file_tensors(shape)
    file_of = {}
    for number in range(4):
        names = [name for position, name in enumerate(shapes) if position % 4 == number]
        file_name = f"part{number}.safetensors"
        file_of |= dict.fromkeys(names, file_name)
        arrays = {name: np.ones(shapes[name], ml_dtypes.bfloat16) for name in names}
        write_arrays(tmp_path / file_name, arrays)
    write_index(tmp_path, file_of)
    weights = open_checkpoint(tmp_path).weights
    block_bytes = [
        4 * sum(spec.n_values for spec in block_params(shape, kind).values())
        for kind in ("attention", "dense")
    ]
    all_bytes = 12 * sum(block_bytes)
    tracemalloc.start()
    for layer in range(12):
        for kind in ("attention", "dense"):
            weights.block(kind, layer)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 3 * max(block_bytes) < all_bytes / 4


def released_header(cfg: ModelConfig) -> tuple[dict[str, object], int]:
    """Header and bytes of Kimi-K2-Instruct: projections in fp8 blocks, the rest in bf16."""
    header, at = {}, 0
    for name, shape in file_tensors(cfg).items():
        is_projection = "_proj" in name
        parts = {name: ("F8_E4M3" if is_projection else "BF16", list(shape))}
        if is_projection:
            parts[f"{name}_scale_inv"] = ("F32", [-(-length // 128) for length in shape])
        for part, (dtype, lengths) in parts.items():
            end = at + math.prod(lengths) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
            header[part], at = entry(dtype, lengths, at, end), end
    return header, at


@pytest.mark.slow
def test_of_kimi_k2_one_expert_is_read_without_the_rest(tmp_path):
    """Four of its layers in one sparse file; the whole model's published size is 1029.2 GB."""
    assert released_header(model("kimi-k2"))[1] / 1e9 == pytest.approx(1029.2, abs=0.05)
    cfg = replace(model("kimi-k2"), n_layers=4)
    header, n_bytes = released_header(cfg)
    path = tmp_path / "model.safetensors"
    stored = header_bytes(header)
    with path.open("wb") as file:
        file.write(stored)
        file.truncate(len(stored) + n_bytes)
    weights = from_hf_tensors(cfg, SafetensorsFile(path))
    weights.check_all()
    tracemalloc.start()
    expert = weights.expert(3, 383)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    path.unlink()
    assert expert["gate_up"].shape == (7168, 2, 2048)
    assert not expert["down"].codes.view(np.uint8).any()
    assert peak_bytes < 3 * 3 * 7168 * 2048  # bytes of an expert's codes, and two copies on the way


# --- what is refused --------------------------------------------------------------------------


def refused(path: Path, match: str, kind: type[ValueError] = WeightsError) -> str:
    with pytest.raises(kind, match=match) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.endswith(".")
    return text


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, "llama")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, r"index\.json: names model-00002-of-00003\.safetensors, which is missing")


def test_a_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, "llama")
    shard = tmp_path / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    refused(tmp_path, r"model-00003-of-00003\.safetensors: cut short or damaged: tensor '")


def test_an_index_and_its_files_must_agree(tmp_path):
    file_of = write_shards(tmp_path, "llama")
    name, other = "model.norm.weight", "model-00001-of-00003.safetensors"
    wrong = next(f for f in sorted(set(file_of.values())) if f != file_of[name])
    write_index(tmp_path, file_of | {name: wrong})
    refused(tmp_path, rf"index\.json: tensor 'model\.norm\.weight' is not in {wrong}")
    write_index(tmp_path, file_of | {"model.extra.weight": other})
    refused(tmp_path, rf"tensor 'model\.extra\.weight' is not in {other}")
    write_index(tmp_path, {key: file for key, file in file_of.items() if key != name})
    refused(tmp_path, rf"'model\.norm\.weight' is in {file_of[name]} but not in the index")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    file_of = write_shards(tmp_path, "llama")
    name = "model.norm.weight"
    other = next(file for file in sorted(set(file_of.values())) if file != file_of[name])
    arrays = {key: tensors_of("llama")[key] for key, file in file_of.items() if file == other}
    write_arrays(tmp_path / other, arrays | {name: tensors_of("llama")[name]})
    refused(tmp_path, r"tensor 'model\.norm\.weight' is in model-0000\d-of-00003\.safetensors too")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object weight_map"),
        ('{"weight_map": {}}', "must hold an object weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' occurs twice"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "must name a file of the same folder"),
        ('{"weight_map": {"a": "/etc/x.safetensors"}}', "must name a file of the same folder"),
        ('{"weight_map": {"a": 3}}', "must name a file of the same folder, got 3"),
        ('{"weight_map": {"a": ""}}', r"must be in a \.safetensors file, got ''"),
        (f'{{"weight_map": {{"a": "{"x" * 300}.safetensors"}}}}', "names x+.safetensors, which is"),
        ('{"weight_map": {"a": "x.bin"}}', r"must be in a \.safetensors file, got 'x\.bin'"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, text, message):
    shutil.copy(TINY / "llama" / "config.json", tmp_path)
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    refused(tmp_path, rf"index\.json: .*{message}")


def test_pickled_weights_are_never_opened(tmp_path):
    shutil.copy(TINY / "llama" / "config.json", tmp_path)
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
        refused(tmp_path / name, "may run code when it is read, so it never is")
    refused(tmp_path, r"neither safetensors nor GGUF files; model\.pt is not read: a \.pt file")


def test_paths_that_hold_no_model_are_refused(tmp_path):
    refused(tmp_path, "holds neither safetensors nor GGUF files")
    refused(tmp_path / "absent", "there is no such file")
    refused(tmp_path / ("x" * 300), "File name too long")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    refused(tmp_path / "notes.txt", r"must be a folder, safetensors or GGUF; this is a \.txt file")
    write_arrays(tmp_path / "model.safetensors", tensors_of("llama"))
    refused(tmp_path, r"safetensors files need a config\.json beside them")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    refused(tmp_path, "not valid JSON", ConfigError)
    refused(Path("a\nb"), "printable characters only")


def change(folder: Path, **changed: np.ndarray | None) -> Path:
    """Write the llama checkpoint with some tensors changed, added or (None) left out."""
    shutil.copy(TINY / "llama" / "config.json", folder)
    arrays = tensors_of("llama") | {name.replace("__", "."): a for name, a in changed.items()}
    kept = {name: array for name, array in arrays.items() if array is not None}
    return write_arrays(folder / "model.safetensors", kept)


V_PROJ = "model__layers__1__self_attn__v_proj__weight"


def test_a_head_beside_a_tied_table_is_its_copy_or_refused(tmp_path):
    shutil.copy(TINY / "llama_tied" / "config.json", tmp_path)
    arrays = tensors_of("llama_tied")
    table = arrays["model.embed_tokens.weight"]
    write_arrays(tmp_path / "model.safetensors", arrays | {"lm_head.weight": table})
    np.testing.assert_array_equal(open_checkpoint(tmp_path).weights.block("head")["out"], table.T)
    other = table.copy()
    other[-1, -1] += 1
    write_arrays(tmp_path / "model.safetensors", arrays | {"lm_head.weight": other})
    refused(tmp_path, r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight', with which")


def test_missing_misshapen_and_foreign_tensors_are_refused_when_a_file_is_opened(tmp_path):
    shape = tensors_of("llama")[V_PROJ.replace("__", ".")].shape
    change(tmp_path, **{V_PROJ: None})
    refused(tmp_path, r"tensor 'model\.layers\.1\..*v_proj\.weight' is missing \(1 missing in all")
    change(tmp_path, **{V_PROJ: np.zeros(shape[::-1], np.float32)})
    text = refused(tmp_path, r"v_proj\.weight' must have shape")
    assert text.startswith(str(tmp_path / "model.safetensors"))
    change(tmp_path, **{V_PROJ: np.zeros(shape, np.int8)})
    refused(tmp_path, r"v_proj\.weight' must be float16, bfloat16, float32 or float64, got int8")
    change(tmp_path, model__layers__1__self_attn__k_norm__weight=np.zeros(8, np.float32))
    refused(tmp_path, r"k_norm\.weight' is not part of a llama model")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused_when_they_are_read(tmp_path, value):
    wrong = tensors_of("llama")[V_PROJ.replace("__", ".")].astype(np.float64)
    wrong[3, 5] = value
    file = change(tmp_path, **{V_PROJ: wrong})
    weights = open_checkpoint(tmp_path).weights
    weights.block("attention", 0)
    with pytest.raises(WeightsError, match=r"v_proj\.weight' holds NaN or infinity") as caught:
        weights.block("attention", 1)
    assert str(caught.value).startswith(f"{file}: tensor 'model.layers.1.")
