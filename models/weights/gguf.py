"""Read GGUF files: configuration, tokenizer and weights.

Weights appear under their Hugging Face names, dequantised to float32 one tensor at a time, from
every type that the `gguf` package decodes (Q4_0, Q4_1, Q8_0, BF16, F16, F32 among them). What is
read of each architecture is in `gguf_architectures`; the rest is refused.
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

from ..config import GqaConfig, ModelConfig
from ..hf_config import from_hf
from ..tokenizer import SENTENCEPIECE, TokenizerData
from .gguf_architectures import ARCHITECTURES, Architecture, config_keys
from .gguf_metadata import DAMAGE, Metadata
from .source import HfTensors, from_hf_tensors
from .tensor import ArrayTensor, checked_file, quoted

#: GGUF tensor names to Hugging Face's; those of a layer are the architecture's.
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
#: Divisors of the frequencies of rotation.
_DIVISORS = "rope_freqs.weight"


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
        except (NotImplementedError, *DAMAGE) as problem:
            raise WeightsError(
                f"{self.path}: tensor {quoted(self.stored.name)} of type {kind.name} cannot be "
                "decoded."
            ) from problem
        return values if self.n_heads is None else _half_split_rows(values, self.n_heads)

    def entry(self, number: int) -> "_GgufTensor":
        """Return one entry of the outermost dimension."""
        one = self.stored._replace(data=self.stored.data[number], shape=self.stored.shape[:-1])
        return replace(self, stored=one)

    def rows(self, start: int, stop: int) -> "ArrayTensor | _GgufTensor":
        if self.n_heads is not None:
            return ArrayTensor(where=self.where, array=self.read()[start:stop])
        lengths = [*self.stored.shape[:-1], stop - start]  # outermost last
        some = self.stored._replace(
            data=self.stored.data[start:stop], shape=np.asarray(lengths, np.uint32)
        )
        return replace(self, stored=some)


def _tensors(
    reader: GGUFReader, kind: Architecture, gqa: GqaConfig, path: Path
) -> dict[str, _GgufTensor]:
    """Return the tensors by their Hugging Face names, those of experts one by one."""
    permuted = {"attn_q": gqa.n_heads, "attn_k": gqa.n_kv_heads} if kind.is_permuted else {}
    found = {}
    for tensor in reader.tensors:
        if tensor.name == _DIVISORS:
            continue
        part = tensor.name.split(".")[-2] if "." in tensor.name else ""
        whole = _GgufTensor(path=path, stored=tensor, n_heads=permuted.get(part))
        name = _hf_name(tensor.name, kind, path)
        if "{}" not in name:
            found[name] = whole
            continue
        if len(tensor.shape) != 3:
            raise WeightsError(
                f"{path}: tensor {quoted(tensor.name)} must have a matrix for each expert, got the "
                f"shape {list(whole.shape)}."
            )
        for expert in range(whole.shape[0]):
            found[name.format(expert)] = whole.entry(expert)
    return found


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """An opened GGUF file: what it describes and where its weights come from."""

    config: ModelConfig
    weights: HfTensors
    metadata: Metadata
    chat_template: str | None = None  #: Jinja source, `tokenizer.chat_template`

    @property
    def tokenizer(self) -> TokenizerData:
        """Its tokenizer, read when it is asked for: sizes and weights are of use without it.

        Raises:
            WeightsError: a key is missing or damaged.
        """
        return _read_tokenizer(self.metadata)


def load_gguf(path: str | os.PathLike[str]) -> GgufModel:
    """Open a GGUF file of an architecture in `ARCHITECTURES`.

    Args:
        path: the file. It stays memory-mapped; a tensor is decoded when it is asked for.

    Returns:
        Its configuration, a weight source, and its tokenizer.

    Raises:
        WeightsError: if it is not a GGUF file, is cut short or damaged, has another architecture,
            lacks a key or a tensor, or holds a key or a tensor that this program would ignore.

    Fidelity:
        Exact: a dequantised value is what the format defines, in float32. Query and key rows,
        which files of the llama architecture permute for interleaved rotation, are put back into
        half-split order.
    """
    path = checked_file(path)
    try:
        reader = _Reader(path)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read: {problem.strerror}.") from problem
    except WeightsError:
        raise
    except DAMAGE as problem:
        raise WeightsError(
            f"{path}: cut short or damaged: not a whole GGUF file ({path.stat().st_size} bytes)."
        ) from problem
    if reader.endianess != GGUFEndian.LITTLE:
        raise WeightsError(f"{path}: must be a little-endian GGUF file, got a big-endian one.")
    _refuse_overlaps(reader, path)
    metadata = Metadata(reader, path)
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise WeightsError(f"{path}: architecture must be one of {allowed}, got {architecture!r}.")
    kind = ARCHITECTURES[architecture]
    names = [tensor.name for tensor in reader.tensors]
    metadata.must_be("split.count", 0, 1)
    is_tied = "output.weight" not in names
    keys = config_keys(architecture, metadata, is_tied=is_tied, divisors=_divisors(reader, path))
    metadata.finish()
    try:
        model_cfg = from_hf(keys)
    except ConfigError as problem:
        raise WeightsError(f"{path}: {problem}") from problem
    model_cfg = replace(model_cfg, name=path.stem, released_format=_commonest_type(reader))
    assert isinstance(model_cfg.attention, GqaConfig)  # of these architectures
    tensors = _tensors(reader, kind, model_cfg.attention, path)
    _require_tensors(names, kind, model_cfg, path)
    weights = from_hf_tensors(model_cfg, tensors, where=str(path), may_be_cut=False)
    weights.check_all()
    return GgufModel(
        config=model_cfg,
        weights=weights,
        metadata=metadata,
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


def _hf_name(name: str, kind: Architecture, path: Path) -> str:
    """Return the Hugging Face name of a tensor; `{}` stands for the number of an expert."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if layer.isdecimal():
            module = kind.layer.get(part) or kind.experts.get(part)
            if module is not None:
                return f"model.layers.{layer}.{module}.weight"
        case ["blk", layer, part, "bias"] if layer.isdecimal() and part in kind.biases:
            return f"model.layers.{layer}.{kind.layer[part]}.bias"
    raise WeightsError(
        f"{path}: tensor {quoted(name)} is not part of a plain {kind.model_type} model."
    )


def _divisors(reader: GGUFReader, path: Path) -> np.ndarray | None:
    """Read the divisors of the frequencies of rotation, if the file has them."""
    for tensor in reader.tensors:
        if tensor.name == _DIVISORS:
            return _GgufTensor(path=path, stored=tensor, n_heads=None).read().astype(np.float64)
    return None


def _require_tensors(
    names: list[str], kind: Architecture, model_cfg: ModelConfig, path: Path
) -> None:
    expected = ["token_embd.weight", "output_norm.weight"]
    for layer in range(model_cfg.n_layers):
        expected += [f"blk.{layer}.{part}.weight" for part in (*kind.layer, *kind.experts)]
        expected += [f"blk.{layer}.{part}.bias" for part in kind.biases]
    missing = sorted(set(expected).difference(names))
    if missing:
        raise WeightsError(
            f"{path}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)."
        )


def _commonest_type(reader: GGUFReader) -> str:
    """Return the storage type of most matrices, such as "q4_1"."""
    types = [tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1]
    return Counter(types).most_common(1)[0][0].lower() if types else "f32"


def _read_tokenizer(metadata: Metadata) -> TokenizerData:
    prefix = "tokenizer.ggml."
    tokens = metadata.texts(prefix + "tokens", "a list of tokens")
    token_types = metadata.require(prefix + "token_type", list, "a list of token types")
    model = metadata.text(prefix + "model")
    by_score = model == SENTENCEPIECE
    scores = metadata.numbers(prefix + "scores", "a list of scores") if by_score else ()
    for name, values in (("token_type", token_types), ("scores", scores)):
        if len(values) != len(tokens) and (name != "scores" or by_score):
            raise WeightsError(
                f"{metadata.path}: {prefix}{name} must have one entry per token "
                f"({len(tokens)}), got {len(values)}."
            )
    add_bos, add_space = (
        metadata.get(f"{prefix}add_{what}") for what in ("bos_token", "space_prefix")
    )
    return TokenizerData(
        model=model,
        pre_tokenizer="" if by_score else metadata.text(prefix + "pre"),
        tokens=tokens,
        token_types=tuple(token_types),
        merges=() if by_score else metadata.texts(prefix + "merges", "a list of merges"),
        scores=scores,
        bos_token_id=metadata.token_id(prefix + "bos_token_id"),
        eos_token_id=metadata.token_id(prefix + "eos_token_id"),
        add_bos=None if add_bos is None else bool(add_bos),
        adds_space=add_space is None or bool(add_space),
    )
