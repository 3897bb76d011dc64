"""The DRAM beside LPUs: one lane of each ends in an FPGA, which has DRAM of its own.

A system with it (`System.dram`) has its caches of keys and values there and everything else in
SRAM. All LPUs of an FPGA are taken to read at once, so that each has an equal share of it. Not
modelled: frames of the lane, refresh, and what new keys and values take the other way.

Sources, by key. SA26 SemiAnalysis, "Nvidia - The Inference Kingdom Expands", 2026 (an analyst). NVB
NVIDIA technical blog "Inside NVIDIA Groq 3 LPX", 2026. HC26 Hot Chips 2026, Arsovski and Raghavan.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

from ..provenance import Constant, check_constants, const

#: Counts of chips, or bytes, of one or of many plans: they broadcast against each other.
Chips = int | Int[np.ndarray, "*#plans"]
Bytes = int | float | Num[np.ndarray, "*#plans"]
Numbers = Float[np.ndarray, "*plans"]
Counts = Int[np.ndarray, "*plans"]


@dataclass(frozen=True, kw_only=True)
class TrayDram:
    """FPGAs with DRAM beside LPUs; the defaults are those of a Groq 3 LPX.

    Change a number with `provenance.vary`.
    """

    #: Lanes of an LPU that lead to its FPGA.
    lpu_lanes: int = const(
        1, "1", "published", "SA26: 1x100G per LPU to the FPGA", faster_at="high"
    )
    #: Of one lane, one way.
    lane_bytes_per_s: int | float = const(
        12.5e9, "B/s", "published", "SA26: 1x100G per LPU to the FPGA", faster_at="high"
    )
    #: LPUs that share an FPGA.
    fpga_lpus: int = const(8, "1", "published", "SA26: 8 LPUs per FPGA", faster_at="low")
    #: DRAM of one FPGA, of use for cached keys and values.
    dram_bytes: int = const(
        256_000_000_000,
        "B",
        "published",
        "SA26: up to 256 GB DDR5 per FPGA; NVB: the same for 8 LPUs, and in a rack all of it",
        faster_at="high",
    )
    #: Of the DRAM of one FPGA, all its LPUs together.
    dram_bytes_per_s: int | float = const(
        76.8e9,
        "B/s",
        "assumed",
        "not public: two channels of DDR5-4800 (38.4 GB/s each); one to four",
        38.4e9,
        153.6e9,
        faster_at="high",
    )
    #: From DRAM to SRAM of an LPU, or back, beyond the bytes.
    dram_latency_s: int | float = const(
        1e-6,
        "s",
        "assumed",
        "not public; the sum of a lane's hop (HC26: 0.35 us), the FPGA (0.1 to 1 us) and DDR5 "
        "(about 0.1 us)",
        0.5e-6,
        2e-6,
        faster_at="low",
    )

    #: Constants that differ from the class's own (`provenance.vary`).
    replaced: tuple[Constant, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no machine has.

        Raises:
            ConfigError: says which.
        """
        check_constants(self)

    def dram_transfer_s(self, n_bytes: Bytes, lpus: Chips) -> Numbers:
        """Time what LPUs read from the DRAM of their FPGAs, or write there.

        Args:
            n_bytes: in all, spread evenly over the LPUs.
            lpus: how many, side by side from the first one of an FPGA.

        Returns:
            Seconds, by the lanes or by the DRAM, whichever is slower.

        Fidelity:
            Approximate: frames of the lane are not counted, nor what a network takes of it.
        """
        rate = np.minimum(self._lanes(lpus), self.fpgas(lpus) * self.dram_bytes_per_s)
        return np.asarray(self.dram_latency_s + n_bytes / rate)

    def read_s(self, n_bytes: Bytes) -> Numbers:
        """Time what one LPU reads while all others of its FPGA read as much; nothing takes none.

        Args:
            n_bytes: of this LPU.
        """
        seconds = self.dram_transfer_s(np.asarray(n_bytes) * self.fpga_lpus, self.fpga_lpus)
        return np.asarray(np.where(np.asarray(n_bytes) > 0, seconds, 0.0))

    @property
    def bytes_per_lpu(self) -> float:
        """DRAM that an LPU has: an equal share of that of its FPGA."""
        return self.dram_bytes / self.fpga_lpus

    def dram_bytes_of(self, lpus: Chips) -> Counts:
        """Count the bytes of DRAM beside LPUs: all those of every FPGA that serves one of them."""
        return np.asarray(self.fpgas(lpus) * self.dram_bytes)

    def fpgas(self, lpus: Chips) -> Counts:
        """Count the FPGAs that serve so many LPUs side by side."""
        return np.asarray(-(-np.asarray(lpus, np.int64) // self.fpga_lpus))

    def _lanes(self, lpus: Chips) -> Numbers:
        return np.asarray(self.lpu_lanes * self.lane_bytes_per_s * lpus)
