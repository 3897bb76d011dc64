"""Plans in TOML or JSON files, and as plain values: each mistake is one sentence with its place."""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lpu_jax.arguments import described
from lpu_jax.errors import PlanError, unknown
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from .plan import OPTIONAL_PARTS, PARTS, Plan, Pool, SlotRule
from .plan_name import begins_as_name


def plan_from_dict(data: Any, where: str = "plan") -> Plan:
    """Read a plan from plain values.

    Args:
        data: as `Plan.as_dict` writes it.
        where: named in errors, such as a file.

    Raises:
        PlanError: a key is unknown, missing or of the wrong type: the sentence names it.
    """
    if not isinstance(data, dict):
        raise PlanError(f"{where}: expected a table of plan fields, got {type(data).__name__}.")
    _known_keys(where, data, Plan)
    values = dict(data)
    for name in ("group_chips", "stages"):
        if name in values or name == "group_chips":
            _whole_number(where, name, values.get(name))
    for name, part in PARTS.items():
        given = values.get(name)
        if given is not None or name not in OPTIONAL_PARTS:
            values[name] = _read_part(where, name, given, part)
    if values.get("ffn") is not None:
        values["ffn"] = _read_pool(where, values["ffn"])
    if not isinstance(values.get("collective", "auto"), str):
        raise PlanError(f"{where}: key 'collective' must be a name, got {values['collective']!r}.")
    return Plan(**values)


#: Keys of a part that take a word, and their words.
_WORDS: Mapping[str, type[StrEnum]] = MappingProxyType(
    {"split": Split, "dispatch": Dispatch, "slot_rule": SlotRule}
)


def _read_pool(where: str, given: Any) -> Pool:
    if not isinstance(given, dict):
        raise PlanError(f"{where}: key 'ffn' must be a table of stages and chips, got {given!r}.")
    _known_keys(f"{where}, ffn", given, Pool)
    for name in ("group_chips", "stages"):
        if name in given or name == "group_chips":
            _whole_number(where, f"ffn.{name}", given.get(name))
    return Pool(**given)


def _read_part(where: str, name: str, given: Any, part: Any) -> Any:
    """Read the split of one kind of block."""
    if not isinstance(given, dict):
        raise PlanError(f"{where}: key {name!r} must be a table of degrees, got {given!r}.")
    _known_keys(f"{where}, {name}", given, part)
    values = dict(given)
    for key, degree in given.items():
        is_left_out = key in ("slots", "capacity") and degree is None
        if key not in (*_WORDS, "order", "overflow") and not is_left_out:
            _whole_number(where, f"{name}.{key}", degree)
    order = values.get("order", part.order)
    if not isinstance(order, list | tuple) or not all(isinstance(axis, str) for axis in order):
        raise PlanError(f"{where}: key '{name}.order' must be a list of axes, got {order!r}.")
    values["order"] = tuple(order)
    for key, words in _WORDS.items():
        if key in values and values[key] not in list(words):
            raise PlanError(
                f"{where}: key '{name}.{key}' must be one of {', '.join(words)}, got "
                f"{values[key]!r}."
            )
        if key in values:
            values[key] = words(values[key])
    return part(**values)


def _whole_number(where: str, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(
            f"{where}: key {key!r} must be a whole number of at least 1, got {value!r}."
        )


def _known_keys(where: str, data: dict[str, Any], owner: Any) -> None:
    known = [one.name for one in fields(owner)]
    for key in data:
        if key not in known:
            raise unknown(f"key in {where}", key, known)


def plan_of(text: str) -> Plan:
    """Return the plan of a name, or of a file; what could be both is the file, if it exists.

    Raises:
        PlanError: as `Plan.parse`, or as `read_plan`.
    """
    if begins_as_name(text) and not os.path.exists(text):
        return Plan.parse(text)
    return read_plan(text)


def read_plan(path: str | Path) -> Plan:
    """Read a plan from a TOML or JSON file.

    Raises:
        PlanError: the file cannot be read or is not a plan; one sentence names the file and the
            place.
    """
    if not isinstance(path, str | Path):
        raise PlanError(f"read_plan: path is {described(path)}; it must be the path of a file.")
    path = Path(path)
    # Not by methods of Path, which refuse some names.
    if os.path.exists(path) and not os.path.isfile(path):
        raise PlanError(f"plan file {path} cannot be read: it is not a regular file.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"plan file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise PlanError(f"plan file {path} cannot be read: it is not UTF-8 text.") from None
    except ValueError:
        raise PlanError(
            f"plan file {str(path)!r} cannot be read: no file can have this name."
        ) from None
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both readers' errors are ValueErrors
        raise PlanError(f"plan file {path} is malformed: {error}.") from None
    return plan_from_dict(data, f"plan file {path}")
