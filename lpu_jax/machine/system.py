"""A system: which chip, linked how, how many of them.

Names are in `catalogue`; machines of two kinds of chips in `mixed`. Not modelled: host memory and
host links.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Int

from ..arguments import described
from ..errors import ConfigError, LpuError, PlanError
from ..predicates import is_whole
from ..provenance import Constant, check_constants, const, constants_of
from .chip import ChipSpec
from .gpu import Accelerator, GpuSpec, NvlinkDomain
from .topology import Topology
from .tray_dram import TrayDram

#: How chips are linked: plans ask either kind for `span`, `level_of`, `stage_bases`, `node_chips`.
Fabric = Topology | NvlinkDomain


@final
@dataclass(frozen=True, kw_only=True)
class System:
    """A machine: one kind of chip on links of its own kind.

    What an LPU can do and a GPU cannot is asked of the chip (`gpu.Accelerator`).

    Attributes:
        name: how it was asked for.
        chip: the chip.
        topology: its links.
        n_chips: chips that plans may use.
        dram: DRAM beside the chips of LPUs, where caches of keys and values then lie; None: all
            is in the chips' own memory.
        replaced: constants that differ from the defaults (`provenance.vary`).
    """

    name: str
    chip: Accelerator
    topology: Fabric
    n_chips: int
    dram: TrayDram | None = None
    #: Host and sampling, once per step of a micro-batch, beside the chips.
    host_overhead_s: float = const(
        0.0,
        "s",
        "assumed",
        "no public figure; none is the least there can be",
        0.0,
        200e-6,
        faster_at="low",
    )
    replaced: tuple[Constant, ...] = ()

    def __post_init__(self) -> None:
        """Refuse links that are not of the chip's kind, or that it has no lanes for.

        Raises:
            PlanError: says what does not go together.
            ConfigError: a field of another type, or a number that no machine has.
        """
        self._check_fields()
        if self.lpus is None and self.gpus is None:
            raise PlanError(f"{self.chip.name} cannot be linked as {self.topology.family!r}")
        if self.lpus is None:
            if self.dram is not None:
                raise PlanError(f"{self.chip.name} has no lanes to DRAM beside it; LPUs have")
            return  # lanes are an LPU's
        chip, links = self.lpus
        beside = 0 if self.dram is None else self.dram.lpu_lanes
        if links.lanes_per_chip + beside > chip.c2c_lanes:
            also = f" and the DRAM beside them {beside}" if beside else ""
            raise PlanError(
                f"the links need {links.lanes_per_chip} lanes of a chip ({links.lanes_in_words})"
                f"{also}; {chip.name} has {chip.c2c_lanes}"
            )

    def _check_fields(self) -> None:
        kinds = {
            "name": (str, "a string"),
            "chip": (ChipSpec | GpuSpec, "a ChipSpec or a GpuSpec"),
            "topology": (Topology | NvlinkDomain, "a Topology or an NvlinkDomain"),
            "dram": (TrayDram | None, "a TrayDram or None"),
        }
        for name, (kind, allowed) in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(
                    f"System.{name} is {described(getattr(self, name))}; it must be {allowed}."
                )
        if not (is_whole(self.n_chips) and 1 <= self.n_chips <= self.topology.n_chips):
            raise ConfigError(
                f"System.n_chips is {described(self.n_chips)}; it must be a whole number from 1 to "
                f"the {self.topology.n_chips} chips that are linked."
            )
        check_constants(self)

    @property
    def lpus(self) -> tuple[ChipSpec, Topology] | None:
        """Chip and links if they are an LPU's, which have units and schedules; else None."""
        if isinstance(self.chip, ChipSpec) and isinstance(self.topology, Topology):
            return self.chip, self.topology
        return None

    @property
    def gpus(self) -> tuple[GpuSpec, NvlinkDomain] | None:
        """The same if they are GPUs, which have a roofline; else None."""
        if isinstance(self.chip, GpuSpec) and isinstance(self.topology, NvlinkDomain):
            return self.chip, self.topology
        return None

    def stage_bases(self, n_groups: int, group_chips: int) -> Int[np.ndarray, " groups"]:
        """Place groups on the chips that plans may use; see `Topology.stage_bases`."""
        return self.topology.stage_bases(n_groups, group_chips, self.n_chips)

    def group_bases(self, group_chips: Int[np.ndarray, " groups"]) -> Int[np.ndarray, " groups"]:
        """Place groups of several sizes on the same chips; see `Topology.group_bases`."""
        return self.topology.group_bases(group_chips, self.n_chips)

    def copies(self, ends: Int[np.ndarray, " plans"]) -> Int[np.ndarray, " plans"]:
        """Count copies side by side on the chips that plans may use; see `Topology.copies`."""
        return self.topology.copies(ends, self.n_chips)

    @property
    def memory_bytes(self) -> int:
        """Memory of all chips together, reserved part included: SRAM, or HBM of GPUs."""
        return self.chip.memory_bytes * self.n_chips

    @property
    def memory_name(self) -> str:
        """What its memory is called."""
        return self.chip.memory_name

    @property
    def title(self) -> str:
        """How many of which chip."""
        return f"{self.n_chips} x {self.chip.title}"

    @property
    def note(self) -> str:
        """What its numbers are, where they are not a schedule of an LPU, or where caches lie."""
        if self.gpus is not None:
            return f"{self.chip.note} Its cycles are nanoseconds."
        if self.dram is None:
            return self.chip.note
        return "Caches of keys and values lie in the DRAM beside the LPUs; all else is in SRAM."

    def require_lpu(self, caller: str) -> None:
        """Raise unless this is an LPU system; `caller` goes into the message.

        Raises:
            LpuError: it is a GPU system.
        """
        if self.lpus is None:
            raise LpuError(
                f"{caller}: {self.name} is a GPU roofline without values, and the emulator "
                "computes the arithmetic of an LPU; give an LPU system, such as groq-node."
            )

    @property
    def parts(self) -> Mapping[str, Any]:
        """What has its constants, by name; DRAM if caches lie there, the system for the host's."""
        dram = {} if self.dram is None else {"dram": self.dram}
        return {"chip": self.chip, "topology": self.topology, **dram, "system": self}

    def with_parts(self, change: Callable[[str, Any], Any]) -> "System":
        """Replace each part by what `change` makes of its name and of it, the system last."""
        own = {part: change(part, spec) for part, spec in self.parts.items() if part != "system"}
        changed: System = change("system", dataclasses.replace(self, **own))
        return changed

    def constants(self) -> tuple[Constant, ...]:
        """List every number of chip, topology and host with its provenance.

        Returns:
            The constants of the chip, those of the topology, of DRAM beside it (by names that begin
            with `dram.`), and of the host.
        """
        listed = {part: constants_of(spec) for part, spec in self.parts.items()}
        if "dram" in listed:
            named = (dataclasses.replace(c, name=f"dram.{c.name}") for c in listed["dram"])
            listed["dram"] = tuple(named)
        return sum(listed.values(), ())
