"""Systems of GPUs by name: whole NVLink domains, or some of their GPUs.

They are priced by a roofline of published figures (`cost.roofline`) and hold no values: what the
emulator computes is the arithmetic of an LPU. Not modelled: more than one NVLink domain.
"""

import dataclasses

from .gpu import GB200, GB200_DOMAIN, H100, H100_DOMAIN, RUBIN, RUBIN_DOMAIN, GpuSpec, NvlinkDomain
from .series import Series


def _series(gpu: GpuSpec, domain: NvlinkDomain, whole: str, numbered: str) -> Series:
    return Series(
        chip=gpu,
        named={whole: domain},
        numbered=numbered,
        unit="GPUs",
        of_size=lambda n_chips: dataclasses.replace(domain, n_chips=n_chips),
    )


SERIES = (
    _series(H100, H100_DOMAIN, "h100x8", "h100xN"),
    _series(GB200, GB200_DOMAIN, "gb200-nvl72", "gb200xN"),
    _series(RUBIN, RUBIN_DOMAIN, "vr-nvl72", "vrxN"),
)
