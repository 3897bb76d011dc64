"""Read safetensors files: the whole header is checked first, a tensor's bytes are read when asked.

Every number format of released weights is read, those of 8 and 4 bits included. Not read: 6-bit
and complex numbers, which no released language model stores. Nothing is written or unpickled.

Source: the format's description in the README of huggingface/safetensors, which asks for contiguous
tensors without holes and for unique names.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from lpu_jax.errors import WeightsError
from lpu_jax.quantities import format_given

from .tensor import checked_file, quoted, unpacked

#: Array types by the format's names. F4 packs two numbers into a byte, the earlier one into its low
#: half; its shape counts numbers.
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "F4": np.dtype(ml_dtypes.float4_e2m1fn),
        "I64": np.dtype(np.int64),
        "I32": np.dtype(np.int32),
        "I16": np.dtype(np.int16),
        "I8": np.dtype(np.int8),
        "U64": np.dtype(np.uint64),
        "U32": np.dtype(np.uint32),
        "U16": np.dtype(np.uint16),
        "U8": np.dtype(np.uint8),
        "BOOL": np.dtype(np.bool_),
    }
)
_BITS = {name: 4 if name == "F4" else 8 * dtype.itemsize for name, dtype in DTYPES.items()}

#: The reference implementation's limit.
_MOST_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
#: NumPy's limits for an array.
_MOST_DIMENSIONS = 64
_MOST_VALUES = 2**60


@dataclass(frozen=True, kw_only=True)
class FileTensor:
    """A tensor of a safetensors file; see `models.weights.tensor.Tensor`."""

    path: Path
    name: str
    dtype_name: str
    shape: tuple[int, ...]
    first_byte: int  #: counted from the start of the file

    @property
    def where(self) -> str:
        """The file, for messages."""
        return str(self.path)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Array type of its values."""
        return DTYPES[self.dtype_name]

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _BITS[self.dtype_name] // 8

    def read(self) -> np.ndarray:
        """Read the values from the file.

        Raises:
            WeightsError: the file is gone, or shorter than when it was opened.
        """
        try:
            stored = np.fromfile(self.path, np.uint8, self.n_bytes, offset=self.first_byte)
        except OSError as problem:
            raise WeightsError(f"{self.path}: cannot be read: {problem.strerror}.") from problem
        if stored.size != self.n_bytes:
            raise WeightsError(
                f"{self.path}: cut short in tensor {quoted(self.name)} since it was opened."
            )
        if self.dtype_name == "F4":
            stored = unpacked(stored)
        values: np.ndarray = stored.view(self.dtype).reshape(self.shape)
        return values

    def rows(self, start: int, stop: int) -> "FileTensor":
        """Return some entries of the first dimension, not read yet."""
        row_bytes, rest = divmod(self.n_bytes, self.shape[0])
        if rest or not 0 <= start <= stop <= self.shape[0]:
            raise WeightsError(
                f"{self.path}: tensor {quoted(self.name)} of shape {self.shape} and type "
                f"{self.dtype_name} has no rows {start} to {stop} of whole bytes."
            )
        return replace(
            self,
            shape=(stop - start, *self.shape[1:]),
            first_byte=self.first_byte + start * row_bytes,
        )


class SafetensorsFile(Mapping[str, FileTensor]):
    """The tensors of one file by name.

    Raises:
        WeightsError: the file cannot be read, is cut short or damaged, has a tensor twice, of an
            unknown type, or with bytes that do not fit its shape or overlap another's. Nothing but
            the header has been read then.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_file(path)
        header, first_byte, n_bytes = _read_header(self.path)
        metadata = header.pop("__metadata__", None)
        if metadata is not None and not isinstance(metadata, dict):
            raise WeightsError(
                f"{self.path}: __metadata__ must be an object, got {format_given(metadata)}."
            )
        spans: list[tuple[int, int, str]] = []
        self._tensors: dict[str, FileTensor] = {}
        for name, entry in header.items():
            tensor, end = _checked_entry(self.path, name, entry, first_byte)
            spans.append((tensor.first_byte, end, name))
            self._tensors[name] = tensor
        _check_spans(self.path, spans, first_byte, n_bytes)

    def __getitem__(self, name: str) -> FileTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, for `json.loads(object_pairs_hook=...)`, without repeated keys.

    Raises:
        ValueError: a key occurs twice.
    """
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{quoted(key)} occurs twice")
        values[key] = value
    return values


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the parsed header, the first byte after it, and the length of the file."""
    try:
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            most = min(_MOST_HEADER_BYTES, n_bytes - _LENGTH_BYTES)
            if not 2 <= length <= most:
                raise WeightsError(
                    f"{path}: cut short or damaged: a header of {length} bytes does not fit a file "
                    f"of {n_bytes} bytes."
                )
            text = file.read(length)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read: {problem.strerror}.") from problem
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as problem:
        reason = str(problem)[:200]
        raise WeightsError(
            f"{path}: cut short or damaged: its header is not valid JSON: {reason}."
        ) from problem
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: cut short or damaged: its header is not a JSON object.")
    return header, _LENGTH_BYTES + length, n_bytes


def _checked_entry(path: Path, name: str, entry: object, first_byte: int) -> tuple[FileTensor, int]:
    """Return a tensor and the byte after its last."""
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        raise _damaged(path, name, f"is described by {format_given(entry)}")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        allowed = ", ".join(DTYPES)
        raise WeightsError(
            f"{path}: tensor {quoted(name)} has type {format_given(dtype_name)}; types that "
            f"are read are {allowed}."
        )
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS or _is_huge(shape):
        raise _damaged(path, name, f"has shape {format_given(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, name, f"has data_offsets {format_given(offsets)}")
    bits = math.prod(shape) * _BITS[dtype_name]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _damaged(
            path, name, f"has shape {shape} of {dtype_name} in {offsets[1] - offsets[0]} bytes"
        )
    tensor = FileTensor(
        path=path,
        name=name,
        dtype_name=dtype_name,
        shape=tuple(shape),
        first_byte=first_byte + offsets[0],
    )
    return tensor, first_byte + offsets[1]


def _are_counts(values: object) -> bool:
    """Whether this is a list of whole numbers that could be lengths or offsets."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_VALUES
        for value in values
    )


def _is_huge(shape: list[int]) -> bool:
    """Whether an array of this shape would be too large, were it not for lengths of zero."""
    return math.prod(max(1, length) for length in shape) > _MOST_VALUES


def _check_spans(
    path: Path, spans: list[tuple[int, int, str]], first_byte: int, n_bytes: int
) -> None:
    """Refuse tensors that overlap, leave a hole, or do not end where the file does."""
    at = first_byte
    for start, end, name in sorted(spans):
        if start != at:
            fault = "overlaps the one before it" if start < at else "leaves a hole before it"
            raise _damaged(path, name, fault)
        if end > n_bytes:
            raise _damaged(path, name, f"ends {end - n_bytes} bytes after the end of the file")
        at = end
    if at != n_bytes:
        raise WeightsError(
            f"{path}: cut short or damaged: its tensors end at byte {at} of {n_bytes}."
        )


def _damaged(path: Path, name: str, fault: str) -> WeightsError:
    return WeightsError(f"{path}: cut short or damaged: tensor {quoted(name)} {fault}.")
