"""Open a model as it is released: a folder of safetensors files with its config.json, or GGUF.

All headers are checked against the configuration before anything is used; a tensor's values are
read when its block is asked for. Pickled weights (`.bin`, `.pt`, `.pth`) are never opened.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from lpu_jax.errors import WeightsError
from lpu_jax.quantities import format_given

from ..config import ModelConfig
from ..hf_config import from_hf
from ..tokenizer import TokenizerData
from .gguf import GgufModel, load_gguf
from .names import BESIDE_TEXT, TEXT_PREFIX
from .safetensors import FileTensor, SafetensorsFile, unique_keys
from .source import HfTensors, from_hf_tensors
from .tensor import checked_file, quoted

_CONFIG = "config.json"
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: No index of a released model comes near it.
_MOST_INDEX_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened model: its configuration, where its weights come from, and its tokenizer."""

    path: Path
    config: ModelConfig
    weights: HfTensors
    gguf: GgufModel | None = None  #: what a GGUF file holds; None for a folder
    chat_template: str | None = None  #: of a GGUF file, Jinja source
    #: Files of a folder that describe its tokenizer, by their names.
    tokenizer_files: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def tokenizer_data(self) -> TokenizerData | None:
        """The tokenizer of a GGUF file, read when it is asked for; None for a folder.

        Raises:
            WeightsError: it is damaged.
        """
        return None if self.gguf is None else self.gguf.tokenizer

    def with_config(self, model_cfg: ModelConfig) -> "Checkpoint":
        """Return the same files read otherwise: fewer layers, the other form of latent attention.

        Raises:
            WeightsError: the files do not hold such a model.
        """
        weights = self.weights.with_config(model_cfg)
        weights.check_all()
        return replace(self, config=model_cfg, weights=weights)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a released model.

    Args:
        path: a folder with a config.json and safetensors files (one, or several with or without an
            index) or with one GGUF file; a safetensors file or an index beside its config.json; or
            a GGUF file.

    Returns:
        Configuration, weights and the tokenizer, if there is one. No weight has been read.

    Raises:
        WeightsError: a file is missing, damaged or of a kind that is not read, or tensors are
            missing, repeated, of another model, or of another shape or type than the configuration
            says.
        ConfigError: the config.json cannot be understood.
    """
    if not isinstance(path, str | os.PathLike):
        raise WeightsError(f"checkpoint is of type {type(path).__name__}; it must be a path.")
    text = os.fspath(path)
    if text.isprintable() and os.path.isdir(text):  # False for a name that is too long
        return _open_folder(Path(text))
    file = checked_file(text)
    if file.suffix == ".gguf":
        return _open_gguf(file)
    if file.suffix == ".safetensors":
        return _open(file, file.parent, SafetensorsFile(file))
    if file.name.endswith(".safetensors.index.json"):
        return _open(file, file.parent, _read_index(file))
    if file.name == _CONFIG:
        return _open_folder(file.parent)
    raise WeightsError(f"{file}: weights must be a folder, safetensors or GGUF; {_kind(file)}.")


def _kind(file: Path) -> str:
    """Say why a file is not read."""
    if file.suffix in _PICKLES:
        return f"a {file.suffix} file may run code when it is read, so it never is"
    return f"this is a {file.suffix} file" if file.suffix else "this file has no suffix"


def _open_gguf(file: Path) -> Checkpoint:
    model = load_gguf(file)
    return Checkpoint(
        path=file,
        config=model.config,
        weights=model.weights,
        gguf=model,
        chat_template=model.chat_template,
    )


def _open_folder(folder: Path) -> Checkpoint:
    """Open a folder; Hugging Face's order: one file, else an index, else all files there are."""
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as problem:
        raise WeightsError(f"{folder}: cannot be read: {problem.strerror}.") from problem
    safetensors = [file for file in files if file.suffix == ".safetensors"]
    ggufs = [file for file in files if file.suffix == ".gguf"]
    if folder / _ONE_FILE in safetensors:
        return _open(folder, folder, SafetensorsFile(folder / _ONE_FILE))
    if folder / _INDEX in files:
        return _open(folder, folder, _read_index(folder / _INDEX))
    if safetensors:
        return _open(folder, folder, _read_all(safetensors))
    if len(ggufs) == 1:
        return _open_gguf(ggufs[0])
    if ggufs:
        raise WeightsError(
            f"{folder}: holds {len(ggufs)} GGUF files; give the path of one, such as {ggufs[0]}."
        )
    pickled = [file for file in files if file.suffix in _PICKLES]
    why = f"; {pickled[0].name} is not read: {_kind(pickled[0])}" if pickled else ""
    raise WeightsError(f"{folder}: holds neither safetensors nor GGUF files{why}.")


def _open(path: Path, folder: Path, tensors: Mapping[str, FileTensor]) -> Checkpoint:
    if not (folder / _CONFIG).exists():
        raise WeightsError(f"{folder}: safetensors files need a {_CONFIG} beside them.")
    model_cfg = from_hf(folder / _CONFIG)
    weights = from_hf_tensors(model_cfg, _of_text(tensors), where=str(path), may_be_cut=False)
    weights.check_all()
    weights.check_tied_head()
    files = {name: folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()}
    return Checkpoint(
        path=path,
        config=model_cfg,
        weights=weights,
        tokenizer_files=MappingProxyType(files),
    )


def _of_text(tensors: Mapping[str, FileTensor]) -> Mapping[str, FileTensor]:
    """Return the tensors of the language part of a multimodal model, under their usual names."""
    if not any(name.startswith(TEXT_PREFIX) for name in tensors):
        return tensors
    return {
        name.removeprefix(TEXT_PREFIX): tensor
        for name, tensor in tensors.items()
        if not name.startswith(BESIDE_TEXT)
    }


def _read_all(files: list[Path]) -> dict[str, FileTensor]:
    """Join the tensors of several files."""
    tensors: dict[str, FileTensor] = {}
    for file in files:
        for name, tensor in SafetensorsFile(file).items():
            if name in tensors:
                raise WeightsError(
                    f"{file}: tensor {quoted(name)} is in {tensors[name].path.name} too."
                )
            tensors[name] = tensor
    return tensors


def _read_index(index: Path) -> dict[str, FileTensor]:
    """Join the tensors of the files that an index names; both must tell the same."""
    file_of = _weight_map(index)
    names_of: dict[str, set[str]] = {}
    for name, file_name in file_of.items():
        names_of.setdefault(file_name, set()).add(name)
    files = [index.parent / file_name for file_name in sorted(names_of)]
    for file in files:
        if not os.path.exists(file):  # False for a name that is too long
            raise WeightsError(
                f"{index}: names {file.name}, which is missing (it holds "
                f"{len(names_of[file.name])} tensors)."
            )
    tensors = _read_all(files)
    for name, file_name in file_of.items():
        if name not in tensors or tensors[name].path.name != file_name:
            raise WeightsError(f"{index}: tensor {quoted(name)} is not in {file_name}.")
    for name, tensor in tensors.items():
        if name not in file_of:
            raise WeightsError(
                f"{index}: tensor {quoted(name)} is in {tensor.path.name} but not in the index."
            )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file name of every tensor that an index lists."""
    checked_file(index)
    if index.stat().st_size > _MOST_INDEX_BYTES:
        raise WeightsError(f"{index}: is too long for an index of tensors.")
    try:
        text = index.read_text(encoding="utf-8")
        values = json.loads(text, object_pairs_hook=unique_keys)
    except OSError as problem:
        raise WeightsError(f"{index}: cannot be read: {problem.strerror}.") from problem
    except (ValueError, RecursionError) as problem:
        raise WeightsError(f"{index}: not valid JSON: {str(problem)[:200]}.") from problem
    file_of = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(file_of, dict) or not file_of:
        raise WeightsError(f"{index}: must hold an object weight_map of tensors and their files.")
    for name, file_name in file_of.items():
        is_plain = isinstance(file_name, str) and file_name.isprintable()
        if not is_plain or Path(file_name).name != file_name:
            raise WeightsError(
                f"{index}: tensor {quoted(name)} must name a file of the same folder, got "
                f"{format_given(file_name)}."
            )
        if not file_name.endswith(".safetensors"):
            raise WeightsError(
                f"{index}: tensor {quoted(name)} must be in a .safetensors file, got "
                f"{format_given(file_name)}."
            )
    return file_of
