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

from gguf import GGUFEndian, GGUFReader, ReaderField

from lpu_jax.errors import ConfigError, WeightsError

from ..config import ModelConfig
from ..hf_config import from_hf
from ..tokenizer import SENTENCEPIECE, TokenizerData
from .gguf_architectures import ARCHITECTURES
from .gguf_config import config_keys
from .gguf_metadata import DAMAGE, Metadata
from .gguf_tensors import divisors, hf_tensors
from .source import HfTensors, from_hf_tensors
from .tensor import checked_file, quoted


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
    metadata.must_be("split.count", 0, 1)
    is_tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    keys = config_keys(architecture, metadata, is_tied=is_tied, divisors=divisors(reader, path))
    metadata.finish()
    try:
        model_cfg = from_hf(keys)
    except ConfigError as problem:
        raise WeightsError(f"{path}: {problem}") from problem
    model_cfg = replace(model_cfg, name=path.stem, released_format=_commonest_type(reader))
    tensors = hf_tensors(reader, kind, model_cfg, path)
    weights = from_hf_tensors(
        model_cfg,
        tensors,
        where=str(path),
        may_be_cut=False,
        are_norms_whole=kind.are_norms_whole,
    )
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
