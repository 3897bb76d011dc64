"""Machines by name, or from a TOML file: LPUs and GPUs alike."""

import functools
import re
from pathlib import Path

from ..errors import ConfigError, PlanError, UnknownNameError, unknown
from ..provenance import USER_FILE, Constant, vary
from .built_topologies import GroqTopology, LpxTopology
from .chip import GROQ3_LPU, GROQCHIP1, ChipSpec
from .system import System
from .system_file import read_machine
from .topology import Topology


def system(name_or_path: str | Path) -> System:
    """Find a system by name, or read it from a TOML file.

    Args:
        name_or_path: `"groq-node"`, `"groq-rack"`, `"groq-N"` with N chips, `"lpx-tray"`,
            `"lpx-rack"`, `"lpx-N"` with N racks, GPUs (`"h100x8"`, `"gb200-nvl72"`, `"vr-nvl72"`),
            or a path that ends in `.toml`.

    Returns:
        The system.

    Raises:
        UnknownNameError: if the name is none of ours, or N is out of range.
        ConfigError: if the file cannot be read as a system.

    Example:
        >>> system("lpx-9").n_chips
        2304
    """
    from . import gpu_systems  # its systems are Systems

    text = str(name_or_path)
    if text.endswith(".toml"):
        return _read(Path(text))
    named = _named()
    if text in named:
        return named[text]
    if (gpus := gpu_systems.gpu_system(text)) is not None:
        return gpus
    match = re.fullmatch(r"(groq|lpx)-([1-9][0-9]{0,8})", text)
    if match is None:
        raise unknown("system", text, [*named, "groq-N", "lpx-N", *gpu_systems.NAMES])
    family, number = match[1], int(match[2])
    try:
        if family == "groq":
            return _build(text, GROQCHIP1, GroqTopology(n_chips=number))
        return _build(text, GROQ3_LPU, LpxTopology(n_chips=number * _LPX_RACK_CHIPS))
    except PlanError as error:
        raise UnknownNameError(f"unknown system {text!r}: {error}") from None


def named_systems() -> tuple[System, ...]:
    """List the named systems.

    Returns:
        One system per name of the listing. `groq-N` (N chips) and `lpx-N` (N racks) exist for
        other N too.
    """
    return tuple(_named().values())


@functools.cache
def _named() -> dict[str, System]:
    """The systems of the listing; `groq-N` and `lpx-N` exist for every N in range."""
    rack: GroqTopology = vary(
        GroqTopology(n_chips=_GROQ_RACK_CHIPS),
        Constant(
            name="spare_nodes",
            value=1,
            unit="1",
            status="published",
            source="GRB: 8+1 nodes, 64 of 72 chips active",
        ),
    )
    found = {
        "groq-node": _build("groq-node", GROQCHIP1, GroqTopology(n_chips=_GROQ_NODE_CHIPS)),
        "groq-rack": _build("groq-rack", GROQCHIP1, rack),
    }
    for n_chips in (264, 576, 10_440):
        name = f"groq-{n_chips}"
        found[name] = _build(name, GROQCHIP1, GroqTopology(n_chips=n_chips))
    lpx = {"lpx-tray": _LPX_TRAY_CHIPS, "lpx-rack": _LPX_RACK_CHIPS}
    lpx |= {f"lpx-{racks}": racks * _LPX_RACK_CHIPS for racks in (2, 4, 9)}
    for name, n_chips in lpx.items():
        found[name] = _build(name, GROQ3_LPU, LpxTopology(n_chips=n_chips))
    return found


def _read(path: Path) -> System:
    """Read a system from a TOML file."""
    machine = read_machine(path)
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


def _build(name: str, spec: ChipSpec, topology: Topology) -> System:
    return System(name=name, chip=spec, topology=topology, n_chips=topology.n_chips)


_GROQ_NODE_CHIPS = 8


# GroqRack product: 8 of its 9 nodes compute, one is spare.
_GROQ_RACK_CHIPS = 64


_LPX_TRAY_CHIPS = 16


_LPX_RACK_CHIPS = 256
