"""What every weight file offers: tensors that tell shape and type at once and values on demand.

Neither names nor meanings of tensors: see `names` and `forms`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lpu_jax.errors import WeightsError

_SHOWN_CHARACTERS = 120


@runtime_checkable
class Tensor(Protocol):
    """A tensor of a weight file, not read yet."""

    @property
    def where(self) -> str:
        """The file or model that messages name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Array type of its values."""

    def read(self) -> np.ndarray:
        """Return the values; each call reads them again."""

    def rows(self, start: int, stop: int) -> "Tensor":
        """Return some entries of the first dimension, not read yet."""


@dataclass(frozen=True, kw_only=True)
class ArrayTensor:
    """An array in memory as a `Tensor`."""

    where: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Array type of its values."""
        return self.array.dtype

    def read(self) -> np.ndarray:
        """Return the array itself."""
        return self.array

    def rows(self, start: int, stop: int) -> "ArrayTensor":
        """Return some entries of the first dimension."""
        return ArrayTensor(where=self.where, array=self.array[start:stop])


def unpacked(stored: UInt8[np.ndarray, "*rows bytes"]) -> UInt8[np.ndarray, "*rows values"]:
    """Take two 4-bit codes out of each byte, the low half first."""
    halves = np.stack((stored & 15, stored >> 4), axis=-1)
    return halves.reshape(*stored.shape[:-1], -1)


def quoted(name: str) -> str:
    """Write the name of a tensor as it stands in messages: printable, on one line, not endless."""
    text = repr(name[:_SHOWN_CHARACTERS])
    return text if len(name) <= _SHOWN_CHARACTERS else f"{text[:-1]}...'"


def checked_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that exists.

    Raises:
        WeightsError: it is absent, a folder or otherwise not a regular file, or has a name that
            cannot be printed.
    """
    text = os.fspath(path)
    if not text.isprintable():
        raise WeightsError(f"{text!r}: a path must have printable characters only.")
    file = Path(text)
    try:
        if file.is_dir():
            raise WeightsError(f"{text}: cannot be read: it is a folder.")
        if not file.exists():
            raise WeightsError(f"{text}: cannot be read: there is no such file.")
        if not file.is_file():
            raise WeightsError(f"{text}: cannot be read: it is not a regular file.")
    except OSError as problem:  # a name that is too long, a folder that may not be entered
        raise WeightsError(f"{text}: cannot be read: {problem.strerror}.") from problem
    return file
