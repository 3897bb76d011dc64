"""A system: which chip, linked how, how many of them; by name or from a TOML file.

GPUs by name come from `gpu_systems`. Not modelled: host memory and host links; machines that mix
kinds of chips.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import ConfigError, PlanError, UnknownNameError, unknown
from ..provenance import USER_FILE, Constant, const, constants_of, vary
from .chip import GROQ3_LPU, GROQCHIP1, ChipSpec
from .machines import GroqTopology, LpxTopology
from .system_file import read_machine
from .topology import Topology

_GROQ_NODE_CHIPS = 8
# GroqRack product: 8 of its 9 nodes compute, one is spare.
_GROQ_RACK_CHIPS = 64
_LPX_TRAY_CHIPS = 16
_LPX_RACK_CHIPS = 256


@dataclass(frozen=True, kw_only=True)
class System:
    """A machine: one kind of chip on one topology.

    Attributes:
        name: how it was asked for.
        chip: the chip.
        topology: its links.
        n_chips: chips that plans may use.
        replaced: constants that differ from the defaults (`provenance.vary`).
    """

    name: str
    chip: ChipSpec
    topology: Topology
    n_chips: int
    #: Host and sampling, once per step of a micro-batch, beside the chips.
    host_overhead_s: float = const(
        0.0, "s", "assumed", "no public figure; none is the least there can be", 0.0, 200e-6
    )
    replaced: tuple[Constant, ...] = ()

    #: Whether transfers are scheduled link by link; where not, they only have a price.
    has_link_schedules: ClassVar[bool] = True
    #: Whether a plan of fewer chips than there are can be the faster one: memory is no reason to
    #: take them all.
    has_memory_to_spare: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse links that the chip has no lanes for."""
        needed = self.topology.lanes_per_chip
        if needed > self.chip.c2c_lanes:
            raise PlanError(
                f"the links need {needed} lanes of a chip ({self.topology.lanes_in_words}); "
                f"{self.chip.name} has {self.chip.c2c_lanes}"
            )

    @property
    def memory_bytes(self) -> int:
        """Memory of all chips together, reserved part included: SRAM, or HBM of GPUs."""
        return self.chip.memory_bytes * self.n_chips

    @property
    def note(self) -> str:
        """What its numbers are, where they are no schedule of an LPU."""
        return ""

    def require_lpu(self, what: str) -> None:
        """Refuse what only an LPU can do; `what` is who asks.

        Raises:
            LpuError: it is a system of GPUs.
        """

    def constants(self) -> tuple[Constant, ...]:
        """List every number of chip, topology and host with its provenance.

        Returns:
            The constants of the chip, then those of the topology, then those of the host.
        """
        return constants_of(self.chip) + constants_of(self.topology) + constants_of(self)


def _build(name: str, spec: ChipSpec, topology: Topology) -> System:
    return System(name=name, chip=spec, topology=topology, n_chips=topology.n_chips)


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


def named_systems() -> tuple[System, ...]:
    """List the named systems.

    Returns:
        One system per name of the listing. `groq-N` (N chips) and `lpx-N` (N racks) exist for
        other N too.
    """
    return tuple(_named().values())


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
