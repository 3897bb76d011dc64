"""What was asked, as plain values, and hashes of it: equal ones ask for the same numbers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lpu_jax
import models


def plain(value: object) -> Any:
    """Write a value as JSON can hold it, dataclasses with the names of their types."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = {one.name: plain(getattr(value, one.name)) for one in fields(value)}
        return {"type": type(value).__name__} | inside
    if isinstance(value, Mapping):
        return {str(key): plain(inside) for key, inside in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inside) for inside in value]
    assert value is None or isinstance(value, str | int | float), type(value)
    return value


def digest_of(value: object) -> str:
    """Hash plain values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Hash the sources of the three packages: another line of theirs may be another number."""
    found = hashlib.sha256()
    for root in (_folder(lpu_jax), _folder(models), Path(__file__).parents[1]):
        for path in sorted(root.rglob("*.py")):
            found.update(f"{path.relative_to(root.parent).as_posix()}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _folder(package: Any) -> Path:
    return Path(package.__file__).parent
