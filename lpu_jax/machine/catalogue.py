"""Machines by name, or from a TOML file: LPUs, GPUs, and both side by side."""

import functools
from pathlib import Path

from ..arguments import described
from ..errors import ConfigError, PlanError, UnknownNameError, unknown
from ..provenance import USER_FILE, Constant, vary
from . import gpu_systems, lpu_systems, mixed_systems
from .gpu import Accelerator
from .mixed import Machine, MixedSystem, Split
from .mixed_file import is_mixed, read_mixed_file
from .pool_link import LINKS
from .system import Fabric, System
from .system_file import read_system_file
from .toml_table import Table, load
from .tray_dram import TrayDram

#: Every series of systems, LPUs first.
SERIES = (*lpu_systems.SERIES, *gpu_systems.SERIES)
#: Every series of mixed systems.
MIXED_SERIES = mixed_systems.SERIES
#: How the name of a system ends whose caches lie in the DRAM beside its chips.
_IN_DRAM = "-dram"


def system(name_or_path: str | Path) -> System:
    """Find a system by name, or read it from a TOML file.

    Args:
        name_or_path: `"groq-node"`, `"groq-rack"`, `"groq-N"` with N chips, `"lpx-tray"`,
            `"lpx-rack"`, `"lpx-N"` with N racks, the same with caches in the DRAM beside the chips
            (`"lpx-N-dram"`), GPUs (`"h100x8"`, `"gb200-nvl72"`, `"vr-nvl72"`, or N of them:
            `"h100xN"`, `"gb200xN"`, `"vrxN"`), in any case; or a path that ends in `.toml`.

    Returns:
        The system.

    Raises:
        UnknownNameError: if the name is not one of ours or is one of a mixed system, or N is out of
            range.
        ConfigError: if the file cannot be read as a system.

    Example:
        >>> system("lpx-9").n_chips
        2304
    """
    table, text = _file_or_name(name_or_path)
    if table is not None:
        if is_mixed(table):
            raise ConfigError(
                f"{table.path} describes a mixed system; where one machine is needed, give one of "
                "its pools."
            )
        return _read(table)
    pools = mixed_systems.pools_in(text.partition(":")[0])
    if pools is not None:
        raise UnknownNameError(
            f"{text} is a mixed system, {pools[0]} beside {pools[1]}; where one machine is needed, "
            "give one of the two."
        )
    alone = text.removesuffix(_IN_DRAM)
    for series in SERIES:
        if text != alone and series.dram is None:
            continue
        try:
            links = series.links(alone)
        except PlanError as error:
            raise UnknownNameError(f"unknown system {text!r}: {error}") from None
        if links is not None:
            dram = None if text == alone else series.dram
            return _build(text, series.chip, links, dram)
    names = [name for series in SERIES for name in series.named]
    names += [series.numbered for series in (*SERIES, *MIXED_SERIES)]
    names += [f"{series.numbered}{_IN_DRAM}" for series in SERIES if series.dram is not None]
    raise unknown("system", str(name_or_path), names)


def any_system(name_or_path: str | Path) -> Machine:
    """Find a system or a mixed system by name, or read it from a TOML file.

    Args:
        name_or_path: what `system` takes; or a mixed system, `"vr-lpx-N"` (Vera Rubin NVL72 beside
            N racks of the Groq 3 LPX) or `"h100-lpx-N"` (eight H100), in any case; or the path of
            its file. Either may choose a split, such as `"vr-lpx-9:prefill-decode"`.

    Returns:
        The system, or the mixed system.

    Raises:
        UnknownNameError: if the name is not one of ours, nor the split, or N is out of range.
        ConfigError: if the file cannot be read as a system.

    Example:
        >>> any_system("vr-lpx-1").n_chips
        328
    """
    name, _, split = str(name_or_path).rpartition(":")
    if name and split.lower() in tuple(Split):
        found = any_system(name)
        if isinstance(found, MixedSystem):
            return found.split_as(Split(split.lower()))
        raise UnknownNameError(
            f"{name_or_path} asks for a split of {found.name}, which is one machine; only a mixed "
            "system has splits."
        )
    if name.endswith(".toml") or mixed_systems.pools_in(name.lower()) is not None:
        raise unknown("split", split, tuple(Split))
    table, text = _file_or_name(name_or_path)
    if table is not None:
        return read_mixed_file(table, system) if is_mixed(table) else _read(table)
    pools = mixed_systems.pools_in(text)
    return system(name_or_path) if pools is None else _mixed(text, *pools)


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


@functools.cache
def named_mixed_systems() -> tuple[MixedSystem, ...]:
    """List the named mixed systems.

    Returns:
        One for each name of the listing; others exist as well (`MixedSeries.numbered`).
    """
    found = (any_system(name) for series in MIXED_SERIES for name in series.names)
    return tuple(one for one in found if isinstance(one, MixedSystem))


def _file_or_name(given: object) -> tuple[Table | None, str]:
    """Load what is the path of a TOML file; anything else is a name, in lower case."""
    if not isinstance(given, str | Path):
        raise UnknownNameError(
            f"system is {described(given)}; it must be a name or the path of a TOML file."
        )
    text = str(given)
    return (load(Path(given)), "") if text.endswith(".toml") else (None, text.lower())


def _mixed(name: str, gpus: str, lpus: str) -> MixedSystem:
    beside = system(gpus)
    return MixedSystem(name=name, gpus=beside, lpus=system(lpus), link=LINKS[beside.chip.name])


def _read(table: Table) -> System:
    """Read a system from a TOML file."""
    machine = read_system_file(table)
    try:
        found = _build(machine.name, machine.chip, machine.topology, machine.dram)
    except PlanError as error:
        raise ConfigError(f"{table.path}: keys 'topology' and 'chip': {error}") from None
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


def _build(name: str, chip: Accelerator, topology: Fabric, dram: TrayDram | None = None) -> System:
    n_chips = topology.n_chips
    return System(name=name, chip=chip, topology=topology, n_chips=n_chips, dram=dram)
