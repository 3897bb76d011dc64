"""The key/value part of a GGUF file: right types, sane limits, and nothing overlooked.

Knows which keys say nothing about a network, but no architecture.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from lpu_jax.errors import WeightsError
from lpu_jax.quantities import format_given

from ..hf_keys import LEAST_NUMBER, MOST

#: What the reader raises on a file that is cut short or damaged.
DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, RecursionError)
#: Beginnings of keys that say nothing about the network: who made the file, how its matrices were
#: quantised (each tensor has its own type), and the tokenizer, which is read where text is.
_HARMLESS = ("GGUF.", "general.", "quantize.", "mradermacher.", "tokenizer.")
#: Numbers for which a key of the network says that something is not used.
_OFF: tuple[Any, ...] = (None, False, 0, 0.0, "", "none", [])


class Metadata:
    """The key/value part of a GGUF file, with checked types; it remembers what was read."""

    def __init__(self, reader: GGUFReader, path: Path) -> None:
        self._reader = reader
        self.path = path
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """Return a value as it stands; None where there is none.

        Raises:
            WeightsError: it is damaged.
        """
        self._read.add(key)
        field = self._reader.fields.get(key)
        try:
            return None if field is None else field.contents()
        except DAMAGE as problem:
            raise WeightsError(f"{self.path}: key {key!r} cannot be decoded.") from problem

    def require(self, key: str, kind: type, expected: str) -> Any:
        """Return a value of a type."""
        value = self.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            got = "it is missing" if value is None else f"got {format_given(value)}"
            raise WeightsError(f"{self.path}: key {key!r} must be {expected}; {got}.")
        return value

    def integer(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """Return a whole number of at least 1."""
        if default is not None and self.get(key) is None:
            return default
        value: int = self.require(key, int, "a whole number")
        if not 1 <= value <= most:
            raise self.complain(key, f"a whole number from 1 to {most}", value)
        return value

    def token_id(self, key: str) -> int | None:
        """Return a token number, or None where there is none."""
        value = self.get(key)
        if value is None or (isinstance(value, int) and 0 <= value <= MOST):
            return value
        raise self.complain(key, "a token number", value)

    def float32(self, key: str, default: float | None = None) -> float:
        """Return the shortest decimal of a stored float32: 1e-05, not 9.99999974e-06."""
        if default is not None and self.get(key) is None:
            return default
        value = float(str(np.float32(self.require(key, float, "a number"))))
        if not LEAST_NUMBER <= value <= MOST:
            raise self.complain(key, f"a number from {LEAST_NUMBER} to {MOST}", value)
        return value

    def text(self, key: str) -> str:
        """Return a string of printable characters."""
        value = str(self.require(key, str, "a string"))
        if not value.isprintable():
            raise self.complain(key, "a string of printable characters", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string, or None where there is none."""
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.complain(key, "a string", value)

    def texts(self, key: str, expected: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self.require(key, list, expected)
        if not all(isinstance(value, str) for value in values):
            raise self.complain(key, expected, values)
        return tuple(values)

    def numbers(self, key: str, expected: str) -> tuple[float, ...]:
        """Return a list of numbers."""
        values = self.require(key, list, expected)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise self.complain(key, expected, values)
        return tuple(map(float, values))

    def must_be(self, key: str, *allowed: Any) -> None:
        """Accept a key that is absent, or has a value that this program models."""
        value = self.get(key)
        if value is not None and value not in allowed:
            words = " or ".join(map(format_given, allowed))
            raise self.complain(key, f"{words}, which is all that is supported", value)

    def complain(self, key: str, expected: str, value: object) -> WeightsError:
        """Word the error that `key` is not as `expected`."""
        got = format_given(value)
        return WeightsError(f"{self.path}: key {key!r} must be {expected}; got {got}.")

    def finish(self) -> None:
        """Refuse any unread key that may change the network.

        Raises:
            WeightsError: such a key, with a value that switches something on.
        """
        for key in self._reader.fields:
            if key in self._read or key.startswith(_HARMLESS):
                continue
            value = self.get(key)
            if not any(value == off and type(value) is type(off) for off in _OFF):
                raise WeightsError(
                    f"{self.path}: key {format_given(key)} = {format_given(value)} is not known to "
                    "this program and may change the network."
                )
