"""Read a machine from a TOML file: chip, topology, chips; every mistake is one sentence.

The format is described in `docs/systems.md`. Not read: anything about models or plans.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, PlanError, UnknownNameError, unknown
from ..provenance import USER_FILE, Constant, constants_of, vary
from ..quantities import format_given, parse_quantity
from .chip import ChipSpec
from .custom_topology import MOST_CHIPS, WIRINGS, LevelSpec, custom_topology
from .lpu_chips import GROQCHIP1
from .lpu_systems import TOPOLOGIES, chip
from .topology import Topology

#: A constant in a user's file may be this many times the machine's own, or as many times less:
#: enough for any machine that could be built, and small enough to catch a wrong unit prefix.
_PLAUSIBLE_FACTOR = 1000
_LONGEST_NAME = 200
_BASES = " or ".join(map(repr, TOPOLOGIES))
_IN_WORDS: dict[type, str] = {
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
#: Keys of a level: field, base unit (None: not a quantity), and whether it must be given.
_LEVEL_KEYS: dict[str, tuple[str, type | str, bool]] = {
    "name": ("name", str, True),
    "units": ("units", int, True),
    "links": ("links", int, True),
    "lanes": ("lanes", int, False),
    "wiring": ("wiring", str, False),
    "bandwidth": ("link_bytes_per_s", "B/s", True),
    "latency": ("hop_s", "s", True),
}

SpecT = TypeVar("SpecT", bound=Any)


@dataclass(frozen=True, kw_only=True)
class SystemFile:
    """What a file describes.

    Attributes:
        name: the file's key `name`, or the name of the file.
        chip: the chip.
        topology: its links.
        host_overhead_s: what the host takes for each step; None if the file does not say.
    """

    name: str
    chip: ChipSpec
    topology: Topology
    host_overhead_s: float | None


def read_system_file(path: Path) -> SystemFile:
    """Read a machine from a TOML file.

    Args:
        path: the file.

    Returns:
        The machine; constants that the file changes have the source "user file".

    Raises:
        ConfigError: if the file cannot be read as a machine: which key, what was given, what is
            allowed.
    """
    table = _Table(str(path), "", _load(path))
    table.allow("name", "topology", "chips", "chip", "host_overhead", "host_overhead_s")
    family = _read_family(table)
    n_chips = _read_chips(table, family)
    name = table.take("name", str) if "name" in table.values else path.stem
    if not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
        raise table.error("name", f"must be 1 to {_LONGEST_NAME} printable characters", name)
    spec = _read_chip(table)
    return SystemFile(
        name=name,
        chip=spec,
        topology=_read_topology(table, family, n_chips, spec),
        host_overhead_s=_read_overhead(table),
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.name.isprintable():
        raise ConfigError(f"{str(path)!r}: the name of a file must have printable characters only")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None


@dataclass(frozen=True)
class _Table:
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
                f"{self.path}: key {self.key(key)} is missing; expected {_IN_WORDS[kind]}"
            )
        value = self.values[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"must be {_IN_WORDS[kind]}", value)
        return value

    def table(self, key: str) -> "_Table":
        """Take a table inside this one."""
        return _Table(self.path, f"{self.where}.{key}" if self.where else key, self.take(key, dict))

    def quantity(self, key: str, unit: str) -> int | float:
        """Take a number in base units, or a string with a number and its unit."""
        value = self.values[key]
        if isinstance(value, str):
            try:
                return parse_quantity(value, unit)
            except ConfigError as error:
                raise ConfigError(f"{self.path}: key {self.key(key)} {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number{_or_text(unit)}", value)
        return value


def _or_text(unit: str) -> str:
    return "" if unit == "1" else f" in {unit}, or a string with a number and its unit"


def _read_chip(table: _Table) -> ChipSpec:
    """Read the key `chip`: a name, or a table with `base` and the constants that differ."""
    if "chip" not in table.values:
        raise ConfigError(f"{table.path}: key 'chip' is missing; expected a chip's name or a table")
    if isinstance(table.values["chip"], str):
        base, changes = table.values["chip"], None
    else:
        changes = table.table("chip")
        base = changes.take("base", str)
    try:
        spec = chip(base)
    except UnknownNameError as error:
        raise ConfigError(f"{table.path}: key 'chip': {error}") from None
    constants = _constants(changes, "chip", spec, "base") if changes else []
    if not constants:
        return spec
    name = f"{spec.name} ({Path(table.path).name})"
    changed: ChipSpec = dataclasses.replace(vary(spec, *constants), name=name)
    _check_together(table.path, changed)
    return changed


def _check_together(path: str, spec: ChipSpec) -> None:
    """Refuse constants that contradict one another."""
    if spec.vector_bytes != spec.lanes:
        raise ConfigError(
            f"{path}: keys 'chip.vector_bytes' and 'chip.lanes' must be equal, because a vector is "
            f"one byte on every lane, got {spec.vector_bytes} and {spec.lanes}"
        )
    for constant in constants_of(spec):
        if not constant.at_most or constant.value is None:
            continue
        most = getattr(spec, constant.at_most)
        if most is None or constant.value > most:
            raise ConfigError(
                f"{path}: key 'chip.{constant.name}' must be at most 'chip.{constant.at_most}', "
                f"got {constant.value} and {'none' if most is None else most}"
            )


def _read_overhead(table: _Table) -> float | None:
    for key in ("host_overhead", "host_overhead_s"):
        if key in table.values:
            value = float(table.quantity(key, "s"))
            if not 0 <= value <= 1:
                raise table.error(key, "must be from 0 to 1 s", table.values[key])
            return value
    return None


def _read_family(table: _Table) -> str | None:
    """Read which machine the topology is of; None if it lists levels of its own."""
    if "topology" not in table.values:
        raise ConfigError(
            f"{table.path}: key 'topology' is missing; expected {', '.join(map(repr, TOPOLOGIES))} "
            "or a table"
        )
    given, key = table.values["topology"], "topology"
    if isinstance(given, dict):
        table, key = table.table("topology"), "base"
        if ("base" in given) == ("level" in given):
            raise ConfigError(
                f"{table.path}: key 'topology' must have either 'base' ({_BASES}) or levels "
                f"([[topology.level]]), got {', '.join(map(format_given, given)) or 'neither'}"
            )
        if "level" in given:
            return None
        given = given["base"]
    if not isinstance(given, str) or given not in TOPOLOGIES:
        also = ", or a table" if key == "topology" else ""
        raise table.error(key, f"must be {_BASES}{also}", given)
    return given


def _read_chips(table: _Table, family: str | None) -> int | None:
    """Read how many chips plans may use; None: all that the levels hold."""
    if family is None and "chips" not in table.values:
        return None
    n_chips: int = table.take("chips", int)
    if not 1 <= n_chips <= MOST_CHIPS:
        raise table.error("chips", f"must be 1 to {MOST_CHIPS}", n_chips)
    return n_chips


def _read_topology(
    table: _Table, family: str | None, n_chips: int | None, spec: ChipSpec
) -> Topology:
    """Build the topology: of a family, perhaps with changed constants, or from levels."""
    try:
        if family is None:
            return _read_levels(table.table("topology"), n_chips, spec)
        assert n_chips is not None
        whole = TOPOLOGIES[family]
        if isinstance(table.values["topology"], str):
            return whole(n_chips=n_chips)
        smallest = whole(n_chips=1)
        constants = _constants(table.table("topology"), "topology", smallest, "base")
        changed: Topology = vary(smallest, *constants, n_chips=n_chips)
    except PlanError as error:
        key = "'chips'" if isinstance(table.values["topology"], str) else "'topology'"
        raise ConfigError(f"{table.path}: key {key}: {error}") from None
    return changed


def _read_levels(table: _Table, n_chips: int | None, spec: ChipSpec) -> Topology:
    """Read a topology of the user's own."""
    table.allow("level")
    levels = []
    for index, values in enumerate(table.take("level", list), start=1):
        if not isinstance(values, dict):
            raise table.error("level", f"must be {_IN_WORDS[list]}", values)
        levels.append(_read_level(_Table(table.path, f"topology.level {index}", values), spec))
    return custom_topology(levels, n_chips, chip_lanes=spec.c2c_lanes, source=USER_FILE)


def _read_level(table: _Table, spec: ChipSpec) -> LevelSpec:
    table.allow(*_LEVEL_KEYS)
    fields: dict[str, Any] = {"lanes": spec.c2c_link_lanes}
    for key, (field, kind, needed) in _LEVEL_KEYS.items():
        if key not in table.values and not needed:
            continue
        if isinstance(kind, type):
            fields[field] = table.take(key, kind)
        elif key in table.values:
            fields[field] = _float(table, key, kind)
        else:
            raise ConfigError(
                f"{table.path}: key {table.key(key)} is missing; expected a number{_or_text(kind)}"
            )
    if fields.get("wiring", WIRINGS[0]) not in WIRINGS:
        raise table.error("wiring", f"must be {' or '.join(map(repr, WIRINGS))}", fields["wiring"])
    try:
        return LevelSpec(**fields)
    except PlanError as error:
        raise ConfigError(f"{table.path}: {table.where}: {error}") from None


def _float(table: _Table, key: str, unit: str) -> float:
    value = table.quantity(key, unit)
    try:
        return float(value)
    except OverflowError:
        raise table.error(key, "is too large", value) from None


def _constants(table: _Table, where: str, spec: SpecT, *others: str) -> list[Constant]:
    """Read the constants of a specification that a table changes.

    A key is the constant's name; the unit at its end may be left out.
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


def _value(table: _Table, key: str, before: Constant) -> int | float | str:
    """Read a constant's value: one of its words, or a number."""
    if not isinstance(before.value, str):
        return _number(table, key, before)
    given = table.values[key]
    if given not in before.options:
        allowed = before.options or (before.value,)
        raise table.error(key, f"must be {' or '.join(map(repr, allowed))}", given)
    return str(given)


def _number(table: _Table, key: str, before: Constant) -> int | float:
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
