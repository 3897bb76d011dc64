"""Tables of a user's TOML file, and the constants in them; every mistake is one sentence.

What the tables mean is up to `system_file` and `mixed_file`. Not read: other formats.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, unknown
from ..provenance import USER_FILE, Constant, constants_of
from ..quantities import format_given, parse_quantity
from .lpu_chips import GROQCHIP1

#: A constant in a user's file may be this many times the machine's own, or as many times less:
#: enough for any machine that could be built, and small enough to catch a wrong unit prefix.
_PLAUSIBLE_FACTOR = 1000
_LONGEST_NAME = 200
#: Types as they are called in errors.
IN_WORDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    dict: "a table",
    list: "an array of tables ([[topology.level]])",
}
#: The unit at the end of a constant's name; a user may leave it out.
_SUFFIXES = {
    "B": "_bytes",
    "B/s": "_bytes_per_s",
    "B/cycle": "_bytes_per_cycle",
    "s": "_s",
    "Hz": "_hz",
    "W": "_w",
    "cycle": "_cycles",
}


def load(path: Path) -> "Table":
    """Read a TOML file.

    Args:
        path: the file.

    Returns:
        Its outermost table.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    if not path.name.isprintable():
        raise ConfigError(f"{str(path)!r}: the name of a file must have printable characters only")
    try:
        return Table(str(path), "", tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None


@dataclass(frozen=True)
class Table:
    """A table of the file, and where it is, for errors."""

    path: str
    where: str
    values: Mapping[str, Any]

    def key(self, key: str) -> str:
        """Name a key as the user would, such as `'chip.clock_hz'`."""
        return repr(f"{self.where}.{key}" if self.where else key)

    def error(self, key: str, problem: str, given: object) -> ConfigError:
        """Make the error for a key."""
        return ConfigError(f"{self.path}: key {self.key(key)} {problem}, got {format_given(given)}")

    def allow(self, *allowed: str) -> None:
        """Refuse all other keys."""
        for key in self.values:
            if key not in allowed:
                whole = f"{self.where}.{key}" if self.where else key
                raise ConfigError(
                    f"{self.path}: unknown key {format_given(whole)}; "
                    f"allowed: {', '.join(sorted(allowed))}"
                )

    def take(self, key: str, kind: type) -> Any:
        """Take a key that must be there, of one type."""
        if key not in self.values:
            raise ConfigError(
                f"{self.path}: key {self.key(key)} is missing; expected {IN_WORDS[kind]}"
            )
        value = self.values[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"must be {IN_WORDS[kind]}", value)
        return value

    def table(self, key: str) -> "Table":
        """Take a table inside this one."""
        return Table(self.path, f"{self.where}.{key}" if self.where else key, self.take(key, dict))

    def name(self) -> str:
        """Take the key `name`, or the name of the file."""
        name: str = self.take("name", str) if "name" in self.values else Path(self.path).stem
        if not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
            raise self.error("name", f"must be 1 to {_LONGEST_NAME} printable characters", name)
        return name

    def quantity(self, key: str, unit: str) -> int | float:
        """Take a number in base units, or a string with a number and its unit."""
        value = self.values[key]
        if isinstance(value, str):
            try:
                return parse_quantity(value, unit)
            except ConfigError as error:
                raise ConfigError(f"{self.path}: key {self.key(key)} {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number{or_text(unit)}", value)
        return value


def or_text(unit: str) -> str:
    """Say what else a number in a unit may be written as, for errors."""
    return "" if unit == "1" else f" in {unit}, or a string with a number and its unit"


def read_constants(table: Table, where: str, spec: Any, *others: str) -> list[Constant]:
    """Read the constants of a specification that a table changes.

    A key is the constant's name; the unit at its end may be left out.

    Args:
        table: the table.
        where: what it is of, for errors, such as `"chip"`.
        spec: a dataclass instance with fields made by `const`.
        *others: keys that are not constants.

    Returns:
        The changed constants, assumed, with the source "user file".

    Raises:
        ConfigError: there is no such constant, or its value is none that it could have.
    """
    known = {constant.name: constant for constant in constants_of(spec)}
    settable = {name: name for name, constant in known.items() if constant.unit != "mode"}
    for name in list(settable):
        stem = name.removesuffix(_SUFFIXES.get(known[name].unit, ""))
        settable.setdefault(stem, name)
    changes: dict[str, Constant] = {}
    for key in table.values:
        if key in others:
            continue
        if key in known and key not in settable:
            raise ConfigError(
                f"{table.path}: key {table.key(key)} cannot be set from a file; numbers can."
            )
        if key not in settable:
            names = [name for name, constant in known.items() if constant.unit != "mode"]
            raise ConfigError(
                f"{table.path}: key {table.key(key)}: {unknown(f'{where} constant', key, names)}"
            )
        before = known[settable[key]]
        if before.name in changes:
            raise ConfigError(f"{table.path}: key {table.key(key)} is given twice")
        changes[before.name] = dataclasses.replace(
            before,
            value=_value(table, key, before),
            status="assumed",
            source=USER_FILE,
            low=None,
            high=None,
            options=(),
        )
    return list(changes.values())


def _value(table: Table, key: str, before: Constant) -> int | float | str:
    """Read a constant's value: one of its words, or a number."""
    if not isinstance(before.value, str):
        return _number(table, key, before)
    given = table.values[key]
    if given not in before.options:
        allowed = before.options or (before.value,)
        raise table.error(key, f"must be {' or '.join(map(repr, allowed))}", given)
    return str(given)


def _number(table: Table, key: str, before: Constant) -> int | float:
    """Read a constant's value and refuse one that is not a number of the kind it replaces."""
    value = table.quantity(key, before.unit)
    # A number that is not public for this chip is to be of the size of GroqChip1's.
    like = before.value if before.value is not None else getattr(GROQCHIP1, before.name)
    whole = isinstance(like, int) and before.unit in ("1", "B", "cycle", "1/cycle")
    if whole and not isinstance(value, int):
        raise table.error(key, "must be a whole number", table.values[key])
    if before.name == "reserved_fraction":
        if not 0 <= value < 1:
            raise table.error(key, "must be at least 0 and below 1", value)
        return value
    least: float = like / _PLAUSIBLE_FACTOR
    most: float = like * _PLAUSIBLE_FACTOR
    if like == 0 or before.low == 0:
        least, most = 0, _PLAUSIBLE_FACTOR * (before.high or like or 1)
    elif whole:
        least = max(1, math.ceil(least))
    if not least <= value <= most:
        unit = "" if before.unit == "1" else f" {before.unit}"
        raise table.error(key, f"must be from {least:g} to {most:g}{unit}", table.values[key])
    return value
