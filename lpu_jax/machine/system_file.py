"""Read a machine from a TOML file: chip, topology, chips; every mistake is one sentence.

The format is described in `docs/systems.md`. Not read: anything about models or plans.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PlanError, UnknownNameError
from ..provenance import USER_FILE, constants_of, vary
from ..quantities import format_given
from .chip import ChipSpec
from .custom_topology import MOST_CHIPS, WIRINGS, LevelSpec, custom_topology
from .lpu_systems import TOPOLOGIES, chip
from .toml_table import IN_WORDS, Table, or_text, read_constants
from .topology import Topology
from .tray_dram import TrayDram

_BASES = " or ".join(map(repr, TOPOLOGIES))
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


@dataclass(frozen=True, kw_only=True)
class SystemFile:
    """What a file describes.

    Attributes:
        name: the file's key `name`, or the name of the file.
        chip: the chip.
        topology: its links.
        dram: DRAM beside the chips, where caches lie; None if the file has no such table.
        host_overhead_s: what the host takes for each step; None if the file does not say.
    """

    name: str
    chip: ChipSpec
    topology: Topology
    dram: TrayDram | None
    host_overhead_s: float | None


def read_system_file(table: Table) -> SystemFile:
    """Read a machine from a TOML file.

    Args:
        table: the file (`toml_table.load`).

    Returns:
        The machine; constants that the file changes have the source "user file".

    Raises:
        ConfigError: if the file cannot be read as a machine: which key, what was given, what is
            allowed.
    """
    table.allow("name", "topology", "chips", "chip", "dram", "host_overhead", "host_overhead_s")
    family = _read_family(table)
    n_chips = _read_chips(table, family)
    name, spec = table.name(), _read_chip(table)
    return SystemFile(
        name=name,
        chip=spec,
        topology=_read_topology(table, family, n_chips, spec),
        dram=_read_dram(table),
        host_overhead_s=_read_overhead(table),
    )


def _read_chip(table: Table) -> ChipSpec:
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
    constants = read_constants(changes, "chip", spec, "base") if changes else []
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


def _read_dram(table: Table) -> TrayDram | None:
    """Read the table `dram`: the constants that differ, perhaps none."""
    if "dram" not in table.values:
        return None
    constants = read_constants(table.table("dram"), "dram", TrayDram())
    changed: TrayDram = vary(TrayDram(), *constants) if constants else TrayDram()
    return changed


def _read_overhead(table: Table) -> float | None:
    for key in ("host_overhead", "host_overhead_s"):
        if key in table.values:
            value = float(table.quantity(key, "s"))
            if not 0 <= value <= 1:
                raise table.error(key, "must be from 0 to 1 s", table.values[key])
            return value
    return None


def _read_family(table: Table) -> str | None:
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


def _read_chips(table: Table, family: str | None) -> int | None:
    """Read how many chips plans may use; None: all that the levels hold."""
    if family is None and "chips" not in table.values:
        return None
    n_chips: int = table.take("chips", int)
    if not 1 <= n_chips <= MOST_CHIPS:
        raise table.error("chips", f"must be 1 to {MOST_CHIPS}", n_chips)
    return n_chips


def _read_topology(
    table: Table, family: str | None, n_chips: int | None, spec: ChipSpec
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
        constants = read_constants(table.table("topology"), "topology", smallest, "base")
        changed: Topology = vary(smallest, *constants, n_chips=n_chips)
    except PlanError as error:
        key = "'chips'" if isinstance(table.values["topology"], str) else "'topology'"
        raise ConfigError(f"{table.path}: key {key}: {error}") from None
    return changed


def _read_levels(table: Table, n_chips: int | None, spec: ChipSpec) -> Topology:
    """Read a topology of the user's own."""
    table.allow("level")
    levels = []
    for index, values in enumerate(table.take("level", list), start=1):
        if not isinstance(values, dict):
            raise table.error("level", f"must be {IN_WORDS[list]}", values)
        levels.append(_read_level(Table(table.path, f"topology.level {index}", values), spec))
    return custom_topology(levels, n_chips, chip_lanes=spec.c2c_lanes, source=USER_FILE)


def _read_level(table: Table, spec: ChipSpec) -> LevelSpec:
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
                f"{table.path}: key {table.key(key)} is missing; expected a number{or_text(kind)}"
            )
    if fields.get("wiring", WIRINGS[0]) not in WIRINGS:
        raise table.error("wiring", f"must be {' or '.join(map(repr, WIRINGS))}", fields["wiring"])
    try:
        return LevelSpec(**fields)
    except PlanError as error:
        raise ConfigError(f"{table.path}: {table.where}: {error}") from None


def _float(table: Table, key: str, unit: str) -> float:
    value = table.quantity(key, unit)
    try:
        return float(value)
    except OverflowError:
        raise table.error(key, "is too large", value) from None
