"""A system: which chip, linked how, how many of them; by name or from a TOML file.

GPUs by name come from `gpu_systems`. Not modelled: host memory and host links; machines that mix
kinds of chips.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import PlanError
from ..provenance import Constant, const, constants_of
from .chip import ChipSpec
from .topology import Topology


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
