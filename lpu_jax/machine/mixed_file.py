"""Read a mixed system from a TOML file: two machines and the network between them.

The format is described in `docs/systems.md`. Not read: machines themselves; those are names, or
files of their own (`system_file`).
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError, LpuError
from ..provenance import vary
from .mixed import MixedSystem, Split
from .pool_link import LINKS, PoolLink
from .system import System
from .toml_table import Table, read_constants


def is_mixed(table: Table) -> bool:
    """Whether a file describes a mixed system, and not one machine."""
    return "pool" in table.values or "link" in table.values


def read_mixed_file(table: Table, find: Callable[[str | Path], System]) -> MixedSystem:
    """Read a mixed system.

    Args:
        table: the file (`toml_table.load`).
        find: finds a machine by name, or by the path of another file.

    Returns:
        The mixed system; constants that the file changes have the source "user file".

    Raises:
        ConfigError: if the file cannot be read as a mixed system: which key, what was given, what
            is allowed.
    """
    table.allow("name", "pool", "link")
    pools = table.table("pool")
    pools.allow(*MixedSystem.POOLS)
    gpus, lpus = (_read_pool(pools.table(pool), find) for pool in MixedSystem.POOLS)
    name, link = _read_name(table), _read_link(table, gpus)
    try:
        return MixedSystem(name=name, gpus=gpus, lpus=lpus, link=link)
    except LpuError as error:
        raise ConfigError(f"{table.path}: key 'pool': {error}") from None


def _read_name(table: Table) -> str:
    """Read the name, or take that of the file; only a split that is chosen ends it with its own."""
    name = table.name()
    if name.rpartition(":")[2] in tuple(Split):
        raise ConfigError(
            f"{table.path}: key 'name' is {name!r}; what it ends with names a split, which is "
            "chosen behind the path of the file."
        )
    return name


def _read_pool(pool: Table, find: Callable[[str | Path], System]) -> System:
    """Find the machine of a pool; a path is one from the folder of the file."""
    pool.allow("system")
    name = pool.take("system", str)
    try:
        return find(Path(pool.path).parent / name if name.endswith(".toml") else name)
    except LpuError as error:
        raise ConfigError(f"{pool.path}: key {pool.key('system')}: {error}") from None


def _read_link(table: Table, gpus: System) -> PoolLink:
    """Change the network that stands beside these GPUs."""
    # What is no GPU has no network; it is refused where the mixed system is made.
    link = LINKS.get(gpus.chip.name, PoolLink())
    if "link" not in table.values:
        return link
    constants = read_constants(table.table("link"), "link", link)
    try:
        changed: PoolLink = vary(link, *constants)
    except ConfigError as error:
        raise ConfigError(f"{table.path}: key 'link': {error}") from None
    return changed
