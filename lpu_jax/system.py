"""A system: which chip, linked how, how many of them; by name or from a TOML file.

Not modelled: host memory and host links; other kinds of accelerator beside the LPU.
"""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chip import GROQ3_LPU, GROQCHIP1, ChipSpec, chip
from .errors import ConfigError, PlanError, UnknownNameError, unknown
from .machines import GroqTopology, LpxTopology
from .provenance import Constant, constants_of, vary
from .quantities import format_given
from .topology import Topology

_GROQ_NODE_CHIPS = 8
# GroqRack product: 8 of its 9 nodes compute, one is spare.
_GROQ_RACK_CHIPS = 64
_LPX_RACK_CHIPS = 256
#: A constant in a user's file may be this many times the chip's own, or as many times less: enough
#: for any chip that could be built, and small enough to catch a wrong unit prefix of a clock.
_PLAUSIBLE_FACTOR = 1000
_LONGEST_NAME = 200
_TOPOLOGIES: dict[str, type[GroqTopology] | type[LpxTopology]] = {
    "groq": GroqTopology,
    "lpx": LpxTopology,
}


@dataclass(frozen=True, kw_only=True)
class System:
    """A machine: one kind of chip on one topology.

    Attributes:
        name: how it was asked for.
        chip: the chip.
        topology: its links.
        n_chips: chips that plans may use.
    """

    name: str
    chip: ChipSpec
    topology: Topology
    n_chips: int

    @property
    def sram_bytes(self) -> int:
        """SRAM of all chips together, reserved part included."""
        return self.chip.sram_bytes * self.n_chips

    def constants(self) -> tuple[Constant, ...]:
        """List every number of chip and topology with its provenance.

        Returns:
            The constants of the chip, then those of the topology.
        """
        return constants_of(self.chip) + constants_of(self.topology)


def _build(name: str, spec: ChipSpec, family: str, n_chips: int) -> System:
    topology = _TOPOLOGIES[family](n_chips=n_chips)
    return System(name=name, chip=spec, topology=topology, n_chips=n_chips)


def _named() -> dict[str, tuple[ChipSpec, str, int]]:
    """The systems of the listing; `groq-N` and `lpx-N` exist for every N in range."""
    return {
        "groq-node": (GROQCHIP1, "groq", _GROQ_NODE_CHIPS),
        "groq-rack": (GROQCHIP1, "groq", _GROQ_RACK_CHIPS),
        "groq-264": (GROQCHIP1, "groq", 264),
        "groq-576": (GROQCHIP1, "groq", 576),
        "lpx-rack": (GROQ3_LPU, "lpx", _LPX_RACK_CHIPS),
        "lpx-2": (GROQ3_LPU, "lpx", 2 * _LPX_RACK_CHIPS),
        "lpx-4": (GROQ3_LPU, "lpx", 4 * _LPX_RACK_CHIPS),
        "lpx-9": (GROQ3_LPU, "lpx", 9 * _LPX_RACK_CHIPS),
    }


def named_systems() -> tuple[System, ...]:
    """List the named systems.

    Returns:
        One system per name of the listing. `groq-N` (N chips) and `lpx-N` (N racks) exist for
        other N too.
    """
    return tuple(_build(name, *parts) for name, parts in _named().items())


def system(name_or_path: str | Path) -> System:
    """Find a system by name, or read it from a TOML file.

    Args:
        name_or_path: `"groq-node"`, `"groq-rack"`, `"groq-N"` with N chips, `"lpx-rack"`,
            `"lpx-N"` with N racks, or a path that ends in `.toml`.

    Returns:
        The system.

    Raises:
        UnknownNameError: if the name is none of ours, or N is out of range.
        ConfigError: if the file cannot be read as a system.

    Example:
        >>> system("lpx-9").n_chips
        2304
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _read(Path(text))
    named = _named()
    if text in named:
        return _build(text, *named[text])
    match = re.fullmatch(r"(groq|lpx)-([1-9][0-9]{0,8})", text)
    if match is None:
        raise unknown("system", text, [*named, "groq-N", "lpx-N"])
    family, number = match[1], int(match[2])
    try:
        if family == "groq":
            return _build(text, GROQCHIP1, family, number)
        return _build(text, GROQ3_LPU, family, number * _LPX_RACK_CHIPS)
    except PlanError as error:
        raise UnknownNameError(f"unknown system {text!r}: {error}") from None


def _read(path: Path) -> System:
    """Read a system from a TOML file."""
    if not path.name.isprintable():
        raise ConfigError(f"{str(path)!r}: the name of a file must have printable characters only")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None
    allowed = {"name", "topology", "chips", "chip"}
    for key in table:
        if key not in allowed:
            raise ConfigError(
                f"{path}: unknown key {format_given(key)}; allowed: {', '.join(sorted(allowed))}"
            )
    family = _field(path, table, "topology", str)
    if family not in _TOPOLOGIES:
        raise ConfigError(
            f"{path}: key 'topology' must be 'groq' or 'lpx', got {format_given(family)}"
        )
    n_chips = _field(path, table, "chips", int)
    most_chips = max(topology.max_chips for topology in _TOPOLOGIES.values())
    if not 1 <= n_chips <= most_chips:
        raise ConfigError(
            f"{path}: key 'chips' must be 1 to {most_chips}, got {format_given(n_chips)}"
        )
    name = _field(path, table, "name", str) if "name" in table else path.stem
    if not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
        raise ConfigError(
            f"{path}: key 'name' must be 1 to {_LONGEST_NAME} printable characters, "
            f"got {format_given(name)}"
        )
    spec = _read_chip(path, table)
    try:
        return _build(name, spec, family, n_chips)
    except PlanError as error:
        raise ConfigError(f"{path}: key 'chips': {error}") from None


def _field(path: Path, table: dict[str, Any], key: str, kind: type) -> Any:
    """Take one key of a table and check its type."""
    names = {str: "a string", int: "an integer", dict: "a table"}
    if key not in table:
        raise ConfigError(f"{path}: key {key!r} is missing; expected {names[kind]}")
    value = table[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{path}: key {key!r} must be {names[kind]}, got {format_given(value)}")
    return value


def _read_chip(path: Path, table: dict[str, Any]) -> ChipSpec:
    """Read the key `chip`: a name, or a table with `base` and the constants that differ."""
    if isinstance(table.get("chip"), str):
        base, changes = table["chip"], {}
    else:
        changes = dict(_field(path, table, "chip", dict))
        base = _field(path, changes, "base", str)
        del changes["base"]
    try:
        spec = chip(base)
    except UnknownNameError as error:
        raise ConfigError(f"{path}: key 'chip': {error}") from None
    if not changes:
        return spec
    known = {constant.name: constant for constant in constants_of(spec)}
    settable = {name for name, constant in known.items() if constant.unit != "mode"}
    replaced = []
    for key, value in changes.items():
        if key not in settable:
            raise ConfigError(
                f"{path}: key 'chip.{key}': {unknown('chip constant', key, settable)}"
            )
        _check_number(path, key, value, known[key].value)
        replaced.append(
            Constant(
                name=key, value=value, unit=known[key].unit, status="assumed", source="user file"
            )
        )
    name = f"{spec.name} ({path.name})"
    changed: ChipSpec = dataclasses.replace(vary(spec, *replaced), name=name)
    _check_together(path, changed)
    return changed


def _check_together(path: Path, spec: ChipSpec) -> None:
    """Refuse constants that contradict one another."""
    if spec.vector_bytes != spec.lanes:
        raise ConfigError(
            f"{path}: keys 'chip.vector_bytes' and 'chip.lanes' must be equal, because a vector is "
            f"one byte on every lane, got {spec.vector_bytes} and {spec.lanes}"
        )
    if spec.vxm_large_alus_per_lane > spec.vxm_alus_per_lane:
        raise ConfigError(
            f"{path}: key 'chip.vxm_large_alus_per_lane' must be at most "
            f"'chip.vxm_alus_per_lane', got {spec.vxm_large_alus_per_lane} and "
            f"{spec.vxm_alus_per_lane}"
        )


def _check_number(path: Path, key: str, value: Any, like: int | float) -> None:
    """Refuse a constant that is no number of the kind it replaces."""
    whole = isinstance(like, int) and not key.endswith("bytes_per_cycle")
    expected = "a whole number" if whole else "a number"
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigError(f"{path}: key 'chip.{key}' must be {expected}, got {format_given(value)}")
    if key == "reserved_fraction":
        if not 0 <= value < 1:
            raise ConfigError(
                f"{path}: key 'chip.{key}' must be at least 0 and below 1, "
                f"got {format_given(value)}"
            )
        return
    least, most = like / _PLAUSIBLE_FACTOR, like * _PLAUSIBLE_FACTOR
    if not least <= value <= most:
        least = max(1, math.ceil(least)) if whole else least
        raise ConfigError(
            f"{path}: key 'chip.{key}' must be from {least:g} to {most:g}, "
            f"got {format_given(value)}"
        )
