"""Systems of GPUs by name: whole NVLink domains, or some of their GPUs.

They are priced by a roofline of published figures (`cost.roofline`) and hold no values: what the
emulator computes is the arithmetic of an LPU. Not modelled: more than one NVLink domain.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

from ..errors import LpuError, PlanError, UnknownNameError
from .gpu import GB200, GB200_DOMAIN, H100, H100_DOMAIN, RUBIN, RUBIN_DOMAIN, GpuSpec, NvlinkDomain
from .system import System

#: By the first part of a name: the GPU, its domain, and the name of the whole domain.
_FAMILIES: dict[str, tuple[GpuSpec, NvlinkDomain, str]] = {
    "h100": (H100, H100_DOMAIN, "h100x8"),
    "gb200": (GB200, GB200_DOMAIN, "gb200-nvl72"),
    "vr": (RUBIN, RUBIN_DOMAIN, "vr-nvl72"),
}
#: Names of whole domains, then patterns of parts of them.
NAMES = (*(whole for _, _, whole in _FAMILIES.values()), *(f"{key}xN" for key in _FAMILIES))


@dataclass(frozen=True, kw_only=True)
class GpuSystem(System):
    """GPUs of one NVLink domain.

    Code that only an LPU can serve (cost rules of its units, link schedules, values) is never given
    one: `cost.timing` takes the other way, and `require_lpu` refuses.
    """

    # Plans ask a GPU what they ask a chip (`gpu.Accelerator`), and its domain what they ask a
    # topology (`gpu.NvlinkDomain`); only the cost rules of an LPU, which never see one, ask more.
    chip: GpuSpec  # type: ignore[assignment]
    topology: NvlinkDomain  # type: ignore[assignment]

    has_link_schedules: ClassVar[bool] = False
    has_memory_to_spare: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Take any number of GPUs: the domain has checked it, and lanes are an LPU's."""

    @property
    def note(self) -> str:
        """What its numbers are."""
        return (
            "GPU roofline: published figures of the GPU over the same program, with assumed launch "
            "gaps, latencies and reached shares; not a simulation of a GPU. Its cycles are "
            "nanoseconds."
        )

    def require_lpu(self, what: str) -> None:
        """Refuse: there is no LPU.

        Raises:
            LpuError: always.
        """
        raise LpuError(
            f"{what}: {self.name} is a GPU roofline without values, and the emulator computes the "
            "arithmetic of an LPU; give an LPU system, such as groq-node."
        )


def gpu_system(name: str) -> GpuSystem | None:
    """Find GPUs by the name of a system.

    Args:
        name: a whole domain (`"h100x8"`, `"gb200-nvl72"`, `"vr-nvl72"`), or N of its GPUs
            (`"h100xN"`, `"gb200xN"`, `"vrxN"`).

    Returns:
        The system; None if the name is not of this form.

    Raises:
        UnknownNameError: the domain has fewer than N GPUs.

    Example:
        >>> gpu_system("gb200-nvl72").n_chips
        72
    """
    for key, (chip, domain, whole) in _FAMILIES.items():
        match = re.fullmatch(rf"{key}x([1-9][0-9]{{0,8}})", name)
        if match is None and name != whole:
            continue
        n_chips = int(match[1]) if match is not None else domain.domain_gpus
        try:
            topology = dataclasses.replace(domain, n_chips=n_chips)
        except PlanError as error:
            raise UnknownNameError(f"unknown system {name!r}: {error}") from None
        return GpuSystem(name=name, chip=chip, topology=topology, n_chips=n_chips)
    return None


def named_gpu_systems() -> tuple[GpuSystem, ...]:
    """List whole NVLink domains.

    Returns:
        One system per name; parts of each exist too, see `gpu_system`.
    """
    found = (gpu_system(whole) for _, _, whole in _FAMILIES.values())
    return tuple(system for system in found if system is not None)
