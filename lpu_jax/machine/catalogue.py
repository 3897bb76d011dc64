"""Machines by name, or from a TOML file: LPUs and GPUs alike."""

import functools
from pathlib import Path

from ..arguments import described
from ..errors import ConfigError, PlanError, UnknownNameError, unknown
from ..provenance import USER_FILE, Constant, vary
from . import gpu_systems, lpu_systems
from .gpu import Accelerator
from .system import Fabric, System
from .system_file import read_system_file

#: Every series of systems, LPUs first.
SERIES = (*lpu_systems.SERIES, *gpu_systems.SERIES)


def system(name_or_path: str | Path) -> System:
    """Find a system by name, or read it from a TOML file.

    Args:
        name_or_path: `"groq-node"`, `"groq-rack"`, `"groq-N"` with N chips, `"lpx-tray"`,
            `"lpx-rack"`, `"lpx-N"` with N racks, GPUs (`"h100x8"`, `"gb200-nvl72"`, `"vr-nvl72"`,
            or N of them: `"h100xN"`, `"gb200xN"`, `"vrxN"`), in any case; or a path that ends in
            `.toml`.

    Returns:
        The system.

    Raises:
        UnknownNameError: if the name is not one of ours, or N is out of range.
        ConfigError: if the file cannot be read as a system.

    Example:
        >>> system("lpx-9").n_chips
        2304
    """
    if not isinstance(name_or_path, str | Path):
        raise UnknownNameError(
            f"system is {described(name_or_path)}; it must be a name or the path of a TOML file."
        )
    if str(name_or_path).endswith(".toml"):
        return _read(Path(name_or_path))
    text = str(name_or_path).lower()
    for series in SERIES:
        try:
            links = series.links(text)
        except PlanError as error:
            raise UnknownNameError(f"unknown system {text!r}: {error}") from None
        if links is not None:
            return _build(text, series.chip, links)
    names = [name for series in SERIES for name in series.named]
    raise unknown("system", str(name_or_path), [*names, *(series.numbered for series in SERIES)])


@functools.cache
def named_systems() -> tuple[System, ...]:
    """List the named systems, LPUs first.

    Returns:
        One system per name of the listing; others exist as well (`Series.numbered`).
    """
    return tuple(
        _build(name, series.chip, links)
        for series in SERIES
        for name, links in series.named.items()
    )


def _read(path: Path) -> System:
    """Read a system from a TOML file."""
    machine = read_system_file(path)
    try:
        found = _build(machine.name, machine.chip, machine.topology)
    except PlanError as error:
        raise ConfigError(f"{path}: keys 'topology' and 'chip': {error}") from None
    if machine.host_overhead_s is None:
        return found
    changed: System = vary(
        found,
        Constant(
            name="host_overhead_s",
            value=machine.host_overhead_s,
            unit="s",
            status="assumed",
            source=USER_FILE,
        ),
    )
    return changed


def _build(name: str, chip: Accelerator, topology: Fabric) -> System:
    return System(name=name, chip=chip, topology=topology, n_chips=topology.n_chips)
