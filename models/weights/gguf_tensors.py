"""Tensors of GGUF files under their Hugging Face names, decoded when they are asked for.

How an architecture calls them is in `gguf_architectures`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from gguf import GGUFReader, ReaderTensor, dequantize

from lpu_jax.errors import WeightsError

from ..config import GqaConfig, ModelConfig
from .gguf_architectures import JOINED, SPLIT, WHOLE, Architecture
from .gguf_metadata import DAMAGE
from .tensor import ArrayTensor, Tensor, quoted

#: Names of tensors that are of no layer, and Hugging Face's.
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
#: Divisors of the frequencies of rotation.
DIVISORS = "rope_freqs.weight"


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


@dataclass(frozen=True, kw_only=True)
class _HeadsOfLatent:
    """What makes keys and values of a latent, of all heads in one matrix `[out, in]` as on the hub.

    The file has it in two tensors: of keys `[head, in, out]`, of values `[head, out, in]`.
    """

    keys: _GgufTensor
    values: _GgufTensor

    @property
    def where(self) -> str:
        return f"{self.keys.path} ({self.keys.stored.name} and {self.values.stored.name})"

    @property
    def shape(self) -> tuple[int, ...]:
        keys, values = self.keys.shape, self.values.shape
        return (keys[0] * (keys[2] + values[1]), keys[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self) -> np.ndarray:
        keys = self.keys.read().swapaxes(1, 2)
        return np.concatenate((keys, self.values.read()), axis=1).reshape(self.shape)

    def rows(self, start: int, stop: int) -> ArrayTensor:
        return ArrayTensor(where=self.where, array=self.read()[start:stop])


def hf_tensors(
    reader: GGUFReader, kind: Architecture, model_cfg: ModelConfig, path: Path
) -> dict[str, Tensor]:
    """Return the tensors of a file by their Hugging Face names, those of experts one by one.

    Raises:
        WeightsError: a tensor is missing or unknown, or one of experts is of a wrong shape.
    """
    gqa = model_cfg.attention
    permuted = {}
    if kind.is_permuted and isinstance(gqa, GqaConfig):
        permuted = {"attn_q.weight": gqa.n_heads, "attn_k.weight": gqa.n_kv_heads}
    names = kind.names()
    found: dict[str, Tensor] = {}
    by_name: dict[str, _GgufTensor] = {}
    for tensor in reader.tensors:
        layer, part = _place(tensor.name)
        whole = _GgufTensor(path=path, stored=tensor, n_heads=permuted.get(part))
        by_name[tensor.name] = whole
        if tensor.name in _GLOBAL_NAMES:
            found[_GLOBAL_NAMES[tensor.name]] = whole
        elif layer and part in names:
            found |= _of_layer(f"model.layers.{layer}.{names[part]}", whole)
        elif tensor.name != DIVISORS and not (layer and kind.is_latent and part in SPLIT):
            raise WeightsError(
                f"{path}: tensor {quoted(tensor.name)} is not part of a plain {kind.model_type} "
                "model."
            )
    _require_all(by_name, kind, model_cfg, path)
    return found | _heads_of_latents(by_name, path)


def _place(name: str) -> tuple[str, str]:
    """Return the number of the layer of a tensor, and its name in it; none for any other."""
    block, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    is_of_a_layer = block == "blk" and layer.isdecimal() and layer.isascii()
    return (layer, part) if is_of_a_layer else ("", "")


def _of_layer(name: str, whole: _GgufTensor) -> dict[str, Tensor]:
    """Name a tensor; `{}` stands for the number of an expert, of which it has a matrix each."""
    if "{}" not in name:
        return {name: whole}
    if len(whole.shape) != 3:
        raise WeightsError(
            f"{whole.path}: tensor {quoted(whole.stored.name)} must have a matrix for each expert, "
            f"got the shape {list(whole.shape)}."
        )
    return {name.format(expert): whole.entry(expert) for expert in range(whole.shape[0])}


def _heads_of_latents(by_name: Mapping[str, _GgufTensor], path: Path) -> dict[str, Tensor]:
    """Join keys and values of the heads of latent attention, where a file has them apart."""
    joined: dict[str, Tensor] = {}
    for layer in sorted({layer for layer, part in map(_place, by_name) if part in SPLIT}):
        if f"blk.{layer}.{WHOLE}" in by_name:
            raise WeightsError(
                f"{path}: layer {layer} must have {WHOLE} or {SPLIT[0]} and {SPLIT[1]}, got both."
            )
        pair = [f"blk.{layer}.{part}" for part in SPLIT]
        for name in pair:
            if name not in by_name:
                raise WeightsError(f"{path}: tensor {quoted(name)} is missing.")
        keys, values = (by_name[name] for name in pair)
        _check_pair(keys, values)
        joined[f"model.layers.{layer}.{JOINED}"] = _HeadsOfLatent(keys=keys, values=values)
    return joined


def _check_pair(keys: _GgufTensor, values: _GgufTensor) -> None:
    """Refuse matrices for keys and values that are not of the same heads and latent."""
    of_keys, of_values = keys.shape, values.shape
    is_pair = len(of_keys) == len(of_values) == 3
    if not is_pair or (of_keys[0], of_keys[1]) != (of_values[0], of_values[2]):
        raise WeightsError(
            f"{keys.path}: tensors {quoted(keys.stored.name)} and {quoted(values.stored.name)} "
            "must have shapes of heads, latent, keys and of heads, values, latent, got "
            f"{list(of_keys)} and {list(of_values)}."
        )


def _half_split_rows(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo GGUF's row order: within a head, (pair, which of the two) -> (which, pair)."""
    return rearrange(weight, "(n pair two) d -> (n two pair) d", n=n_heads, two=2)


def _require_all(
    by_name: Mapping[str, _GgufTensor], kind: Architecture, model_cfg: ModelConfig, path: Path
) -> None:
    """Refuse a file that lacks a tensor, by the name that its architecture gives it."""
    expected = ["token_embd.weight", "output_norm.weight"]
    for layer in range(model_cfg.n_layers):
        is_split = f"blk.{layer}.{WHOLE}" not in by_name
        expected += kind.expected(model_cfg, layer, is_split=is_split)
    missing = sorted(set(expected).difference(by_name))
    if missing:
        raise WeightsError(
            f"{path}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)."
        )


def divisors(reader: GGUFReader, path: Path) -> np.ndarray | None:
    """Read the divisors of the frequencies of rotation, if the file has them."""
    for tensor in reader.tensors:
        if tensor.name == DIVISORS:
            return _GgufTensor(path=path, stored=tensor, n_heads=None).read().astype(np.float64)
    return None
