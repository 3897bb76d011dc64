"""Read GGUF files of the llama architecture: configuration, tokenizer and weights.

Weights appear under their Hugging Face names, dequantised to float32 one tensor at a time, from
every type that the `gguf` package decodes (Q4_0, Q4_1, Q8_0, BF16, F16, F32 among them). Not read:
other architectures, Llama 3.1's `rope_freqs` table, biases, experts; each is refused.
"""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from gguf import GGUFEndian, GGUFReader, ReaderField, ReaderTensor, dequantize

from lpu_jax.errors import ConfigError, WeightsError
from lpu_jax.quantities import format_given

from ..config import GqaConfig, ModelConfig
from ..hf_keys import LEAST_NUMBER, MOST, MOST_LAYERS
from ..rope import RopeConfig
from ..tokenizer import TokenizerData
from .source import HfTensors, from_hf_tensors
from .tensor import ArrayTensor, checked_file, quoted

#: GGUF tensor names to Hugging Face's; those of a layer lie between `blk.{i}.` and `.weight`.
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

#: What the reader raises on a file that is cut short or damaged.
_DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, RecursionError)


class _Reader(GGUFReader):
    """A reader that stops at the end of the file, and names a tensor that appears twice.

    The library's own returns nothing beyond it and counts on, for ever if a damaged length says so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        for name, count in Counter(field.name for field in fields).items():
            if count > 1:
                raise WeightsError(f"{self._path}: tensor {quoted(name)} appears {count} times.")
        super()._build_tensors(start_offs, fields)

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *order: Any, **options: Any) -> Any:
        values = super()._get(offset, dtype, count, *order, **options)
        if values.size < count:
            raise ValueError
        return values


class _Metadata:
    """The key/value part of a GGUF file, with checked types."""

    def __init__(self, reader: GGUFReader, path: Path) -> None:
        self._reader = reader
        self.path = path

    def get(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        try:
            return None if field is None else field.contents()
        except _DAMAGE as problem:
            raise WeightsError(f"{self.path}: key {key!r} cannot be decoded.") from problem

    def require(self, key: str, kind: type, expected: str) -> Any:
        value = self.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            got = "it is missing" if value is None else f"got {format_given(value)}"
            raise WeightsError(f"{self.path}: key {key!r} must be {expected}; {got}.")
        return value

    def integer(self, key: str, default: int | None = None, most: int = MOST) -> int:
        if default is not None and self.get(key) is None:
            return default
        value: int = self.require(key, int, "a whole number")
        if not 1 <= value <= most:
            raise self.complain(key, f"a whole number from 1 to {most}", value)
        return value

    def token_id(self, key: str) -> int | None:
        value = self.get(key)
        if value is None or (isinstance(value, int) and 0 <= value <= MOST):
            return value
        raise self.complain(key, "a token number", value)

    def float32(self, key: str) -> float:
        """Return the shortest decimal of a stored float32: 1e-05, not 9.99999974e-06."""
        value = float(str(np.float32(self.require(key, float, "a number"))))
        if not LEAST_NUMBER <= value <= MOST:
            raise self.complain(key, f"a number from {LEAST_NUMBER} to {MOST}", value)
        return value

    def text(self, key: str) -> str:
        value = str(self.require(key, str, "a string"))
        if not value.isprintable():
            raise self.complain(key, "a string of printable characters", value)
        return value

    def optional_text(self, key: str) -> str | None:
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.complain(key, "a string", value)

    def texts(self, key: str, expected: str) -> tuple[str, ...]:
        values = self.require(key, list, expected)
        if not all(isinstance(value, str) for value in values):
            raise self.complain(key, expected, values)
        return tuple(values)

    def complain(self, key: str, expected: str, value: object) -> WeightsError:
        got = format_given(value)
        return WeightsError(f"{self.path}: key {key!r} must be {expected}; got {got}.")


@dataclass(frozen=True, kw_only=True)
class _GgufTensor:
    """A tensor of the file, dequantised to float32 at each reading."""

    path: Path
    stored: ReaderTensor
    n_heads: int | None  #: heads whose rows are permuted for interleaved rotation

    @property
    def where(self) -> str:
        return f"{self.path} ({self.stored.name})"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(length) for length in reversed(self.stored.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self) -> np.ndarray:
        kind = self.stored.tensor_type
        try:
            with np.errstate(all="ignore"):  # NaN and infinity are refused where values are used
                values = dequantize(self.stored.data, kind).astype(np.float32, copy=False)
            values = values.reshape(self.shape)
        except (NotImplementedError, *_DAMAGE) as problem:
            raise WeightsError(
                f"{self.path}: tensor {quoted(self.stored.name)} of type {kind.name} cannot be "
                "decoded."
            ) from problem
        return values if self.n_heads is None else _half_split_rows(values, self.n_heads)

    def rows(self, start: int, stop: int) -> "ArrayTensor | _GgufTensor":
        if self.n_heads is not None:
            return ArrayTensor(where=self.where, array=self.read()[start:stop])
        lengths = [*self.stored.shape[:-1], stop - start]  # outermost last
        some = self.stored._replace(
            data=self.stored.data[start:stop], shape=np.asarray(lengths, np.uint32)
        )
        return replace(self, stored=some)


def _tensors(reader: GGUFReader, gqa: GqaConfig, path: Path) -> dict[str, _GgufTensor]:
    """Return the tensors by their Hugging Face names."""
    permuted = {"attn_q": gqa.n_heads, "attn_k": gqa.n_kv_heads}
    return {
        _hf_name(tensor.name, path): _GgufTensor(
            path=path, stored=tensor, n_heads=permuted.get(tensor.name.split(".")[-2])
        )
        for tensor in reader.tensors
    }


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """An opened GGUF file: what it describes and where its weights come from."""

    config: ModelConfig
    weights: HfTensors
    tokenizer: TokenizerData
    chat_template: str | None = None  #: Jinja source, `tokenizer.chat_template`


def load_gguf(path: str | os.PathLike[str]) -> GgufModel:
    """Open a GGUF file of the llama architecture.

    Args:
        path: the file. It stays memory-mapped; a tensor is decoded when it is asked for.

    Returns:
        Its configuration, a weight source, and the data of its tokenizer.

    Raises:
        WeightsError: if it is not a GGUF file, is cut short or damaged, has another architecture,
            lacks a key or a tensor, or holds a tensor this program would ignore.

    Fidelity:
        Exact: a dequantised value is what the format defines, in float32. Query and key rows,
        which this format permutes for interleaved rotation, are put back into half-split order.
    """
    path = checked_file(path)
    try:
        reader = _Reader(path)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read: {problem.strerror}.") from problem
    except WeightsError:
        raise
    except _DAMAGE as problem:
        raise WeightsError(
            f"{path}: cut short or damaged: not a whole GGUF file ({path.stat().st_size} bytes)."
        ) from problem
    if reader.endianess != GGUFEndian.LITTLE:
        raise WeightsError(f"{path}: must be a little-endian GGUF file, got a big-endian one.")
    _refuse_overlaps(reader, path)
    metadata = _Metadata(reader, path)
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise WeightsError(f"{path}: architecture must be llama, got {architecture!r}.")
    names = [tensor.name for tensor in reader.tensors]
    try:
        model_cfg = _read_config(
            metadata,
            is_tied="output.weight" not in names,
            weight_type=_commonest_type(reader),
        )
    except ConfigError as problem:
        raise WeightsError(f"{path}: {problem}") from problem
    assert isinstance(model_cfg.attention, GqaConfig)  # _read_config builds no other
    tensors = _tensors(reader, model_cfg.attention, path)
    _require_tensors(names, model_cfg, path)
    weights = from_hf_tensors(model_cfg, tensors, where=str(path), may_be_cut=False)
    weights.check_all()
    return GgufModel(
        config=model_cfg,
        weights=weights,
        tokenizer=_read_tokenizer(metadata),
        chat_template=metadata.optional_text("tokenizer.chat_template"),
    )


def _refuse_overlaps(reader: GGUFReader, path: Path) -> None:
    """Refuse tensors that share bytes: one of their offsets is damaged."""
    end = 0
    for tensor in sorted(reader.tensors, key=lambda tensor: (tensor.data_offset, tensor.n_bytes)):
        if tensor.data_offset < end:
            raise WeightsError(
                f"{path}: cut short or damaged: tensor {quoted(tensor.name)} overlaps another."
            )
        end = tensor.data_offset + tensor.n_bytes


def _half_split_rows(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo GGUF's row order: within a head, (pair, which of the two) -> (which, pair)."""
    return rearrange(weight, "(n pair two) d -> (n two pair) d", n=n_heads, two=2)


def _hf_name(name: str, path: Path) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _LAYER_NAMES and layer.isdecimal():
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"
    raise WeightsError(f"{path}: tensor {quoted(name)} is not part of a plain llama model.")


def _require_tensors(names: list[str], model_cfg: ModelConfig, path: Path) -> None:
    expected = ["token_embd.weight", "output_norm.weight"]
    for layer in range(model_cfg.n_layers):
        expected += [f"blk.{layer}.{part}.weight" for part in _LAYER_NAMES]
    missing = sorted(set(expected).difference(names))
    if missing:
        raise WeightsError(
            f"{path}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)."
        )


def _commonest_type(reader: GGUFReader) -> str:
    """Return the storage type of most matrices, such as "q4_1"."""
    types = [tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1]
    return Counter(types).most_common(1)[0][0].lower() if types else "f32"


def _read_config(metadata: _Metadata, is_tied: bool, weight_type: str) -> ModelConfig:
    d_model = metadata.integer("llama.embedding_length")
    n_heads = metadata.integer("llama.attention.head_count")
    scaling = metadata.get("llama.rope.scaling.type")
    if scaling not in (None, "none"):
        raise WeightsError(
            f"{metadata.path}: rope scaling must be none, got {format_given(scaling)}."
        )
    head_dim = metadata.integer("llama.attention.key_length", default=max(1, d_model // n_heads))
    attention = GqaConfig(
        n_heads=n_heads,
        n_kv_heads=metadata.integer("llama.attention.head_count_kv", default=n_heads),
        head_dim=head_dim,
    )
    bos, eos = (metadata.token_id(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos"))
    return ModelConfig(
        name=metadata.path.stem,
        family="llama",
        n_layers=metadata.integer("llama.block_count", most=MOST_LAYERS),
        d_model=d_model,
        d_ff=metadata.integer("llama.feed_forward_length"),
        vocab_size=metadata.integer("llama.vocab_size"),
        max_position=metadata.integer("llama.context_length"),
        norm_eps=metadata.float32("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings=is_tied,
        attention=attention,
        rope=RopeConfig(
            theta=metadata.float32("llama.rope.freq_base"),
            dim=metadata.integer("llama.rope.dimension_count", default=head_dim),
            interleaved=False,
        ),
        released_format=weight_type,
        bos_token_id=bos,
        eos_token_ids=() if eos is None else (eos,),
    )


def _read_tokenizer(metadata: _Metadata) -> TokenizerData:
    prefix = "tokenizer.ggml."
    tokens = metadata.texts(prefix + "tokens", "a list of tokens")
    token_types = metadata.require(prefix + "token_type", list, "a list of token types")
    if len(tokens) != len(token_types):
        raise WeightsError(
            f"{metadata.path}: {prefix}token_type must have one entry per token "
            f"({len(tokens)}), got {len(token_types)}."
        )
    add_bos = metadata.get(prefix + "add_bos_token")
    return TokenizerData(
        model=metadata.text(prefix + "model"),
        pre_tokenizer=metadata.text(prefix + "pre"),
        tokens=tokens,
        token_types=tuple(token_types),
        merges=metadata.texts(prefix + "merges", "a list of merges"),
        bos_token_id=metadata.token_id(prefix + "bos_token_id"),
        eos_token_id=metadata.token_id(prefix + "eos_token_id"),
        add_bos=None if add_bos is None else bool(add_bos),
    )
