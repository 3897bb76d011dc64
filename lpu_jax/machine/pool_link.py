"""The network between a pool of LPUs and a pool of GPUs, and the DRAM beside the LPUs on its way.

One lane of each LPU ends in an FPGA, which turns it into Ethernet and has DRAM of its own; Ethernet
switches lead to the network ports of the GPUs. Not modelled: traffic of others on the same
switches, lost packets, and what the lane's two uses, network and DRAM, take from each other.

Sources, by key. SA26 SemiAnalysis, "Nvidia - The Inference Kingdom Expands", 2026 (an analyst). NVB
NVIDIA technical blog "Inside NVIDIA Groq 3 LPX", 2026. HC26 Hot Chips 2026, Arsovski and Raghavan.
WN25 Wheeler's Network, "Decoding Nvidia's Rubin Networking Math", 2025 (an analyst). DGXUG NVIDIA
DGX H100 user guide, table of network modules. CX7 NVIDIA ConnectX-7, 400 Gb/s. MLP61 MLPerf
inference v6.1, description of a GB200 NVL72 system. PT98 github.com/linux-rdma/perftest, pull
request 98: messages between GPU memories over 100 Gb/s adapters. ROCE header lengths of RoCE v2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int, Num

from ..provenance import Constant, check_constants, const, vary

#: Bits of one value of the hidden state, by wire format.
WIRE_BITS: Mapping[str, int] = MappingProxyType({"fp8": 8, "fp16": 16, "fp32": 32})

#: Counts of chips, or bytes, of one or of many plans: they broadcast against each other.
Chips = int | Int[np.ndarray, "*#plans"]
Bytes = int | float | Num[np.ndarray, "*#plans"]
Numbers = Float[np.ndarray, "*plans"]
Counts = Int[np.ndarray, "*plans"]


@dataclass(frozen=True, kw_only=True)
class PoolLink:
    """What joins LPUs and GPUs; the defaults are a Groq 3 LPX beside a Vera Rubin NVL72.

    All rates are one way; both ways work at once. Change a number with `provenance.vary`.
    """

    #: Lanes of an LPU that lead to its FPGA.
    lpu_lanes: int = const(
        1, "1", "published", "SA26: 1x100G per LPU to the FPGA", faster_at="high"
    )
    #: Of one lane.
    lane_bytes_per_s: int | float = const(
        12.5e9, "B/s", "published", "SA26: 1x100G per LPU to the FPGA", faster_at="high"
    )
    #: LPUs that share an FPGA.
    fpga_lpus: int = const(8, "1", "published", "SA26: 8 LPUs per FPGA", faster_at="low")
    #: From an FPGA into the network.
    fpga_port_bytes_per_s: int | float = const(
        100e9,
        "B/s",
        "assumed",
        "not public: as much as the lanes of its LPUs bring, 8x100G, or one port of 400G",
        50e9,
        100e9,
        faster_at="high",
    )
    #: From a GPU into the network.
    gpu_port_bytes_per_s: int | float = const(
        200e9,
        "B/s",
        "published",
        "WN25: two ConnectX-9 of 800 Gb/s for each Rubin GPU",
        faster_at="high",
    )
    #: Share of these rates that is payload.
    efficiency: int | float = const(
        0.95,
        "1",
        "assumed",
        "PT98: 95.4 of 100 Gb/s for long messages; ROCE: 98 bytes of headers to 320 or 4,096 of "
        "payload",
        0.76,
        0.977,
        faster_at="high",
    )
    #: From SRAM of an LPU to HBM of a GPU, or back, beyond the bytes.
    latency_s: int | float = const(
        3e-6,
        "s",
        "assumed",
        "not public; the sum of a lane's hop (HC26: 0.35 us), the FPGA (0.2 to 1 us), one to three "
        "Ethernet switches (0.4 to 1 us each) and a network port of the GPU (0.5 to 1 us; PT98: "
        "1.8 us for two); up to as much again where a host posts the message",
        1.5e-6,
        10e-6,
        faster_at="low",
    )
    #: In which the hidden state crosses; it moves times, not values, which are those of fp16.
    wire_format: str = const(
        "fp16",
        "format",
        "assumed",
        "not public: 1 to 4 bytes a value, as on the links of an LPU",
        options=tuple(WIRE_BITS),
    )
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
        """Refuse numbers that no network has.

        Raises:
            ConfigError: says which.
        """
        check_constants(self)

    @property
    def wire_value_bits(self) -> int:
        """Bits of one value of the hidden state on the network."""
        return WIRE_BITS[self.wire_format]

    def transfer_s(self, n_bytes: Bytes, lpus: Chips, gpus: Chips) -> Numbers:
        """Time a transfer from LPUs to GPUs, or back.

        `latency_s + n_bytes / min(rate of the LPUs, rate of the GPUs)`: each byte crosses once,
        spread over the lanes of all LPUs and the ports of all GPUs that take part. To bring all of
        them to every chip is left to the links of the pool that receives.

        Args:
            n_bytes: payload, in all; what 0 bytes take is the latency.
            lpus: LPUs that take part, side by side from the first one of an FPGA.
            gpus: GPUs that take part.

        Returns:
            Seconds, until the last byte has arrived.

        Fidelity:
            Approximate: bytes are spread evenly and nothing else is on the way. A kernel that waits
            for them has a launch gap of its own, which is not in here.
        """
        rate = np.minimum(self.lpus_bytes_per_s(lpus), self.gpus_bytes_per_s(gpus))
        return np.asarray(self.latency_s + n_bytes / rate)

    def lpus_bytes_per_s(self, lpus: Chips) -> Numbers:
        """Find how much payload LPUs bring into the network, one way.

        Args:
            lpus: how many, side by side from the first one of an FPGA.

        Returns:
            Bytes a second: of their lanes, or of the ports of their FPGAs if those are slower.
        """
        ports = self.fpgas(lpus) * self.fpga_port_bytes_per_s
        return np.asarray(self.efficiency * np.minimum(self._lanes(lpus), ports))

    def gpus_bytes_per_s(self, gpus: Chips) -> Numbers:
        """Find how much payload GPUs bring into the network, one way, by their ports."""
        return np.asarray(self.efficiency * self.gpu_port_bytes_per_s * gpus)

    def dram_transfer_s(self, n_bytes: Bytes, lpus: Chips) -> Numbers:
        """Time what LPUs read from the DRAM of their FPGAs, or write there.

        Args:
            n_bytes: in all, spread evenly over the LPUs.
            lpus: how many, side by side from the first one of an FPGA.

        Returns:
            Seconds, by the lanes or by the DRAM, whichever is slower.

        Fidelity:
            Approximate: frames of the lane are not counted, nor what the network takes of it.
        """
        rate = np.minimum(self._lanes(lpus), self.fpgas(lpus) * self.dram_bytes_per_s)
        return np.asarray(self.dram_latency_s + n_bytes / rate)

    def dram_bytes_of(self, lpus: Chips) -> Counts:
        """Count the bytes of DRAM beside LPUs: all those of every FPGA that serves one of them."""
        return np.asarray(self.fpgas(lpus) * self.dram_bytes)

    def fpgas(self, lpus: Chips) -> Counts:
        """Count the FPGAs that serve so many LPUs side by side."""
        return np.asarray(-(-np.asarray(lpus, np.int64) // self.fpga_lpus))

    def _lanes(self, lpus: Chips) -> Numbers:
        return np.asarray(self.lpu_lanes * self.lane_bytes_per_s * lpus)


def _beside(status: str, source: str) -> PoolLink:
    """Join the same racks with GPUs that have one port of 400 Gb/s each."""
    port = Constant(
        name="gpu_port_bytes_per_s", value=50e9, unit="B/s", status=status, source=source
    )
    link: PoolLink = vary(PoolLink(), port)
    return link


#: The network of racks of the Groq 3 LPX beside each GPU, by name of the GPU.
LINKS: Mapping[str, PoolLink] = MappingProxyType(
    {
        "h100": _beside("published", "DGXUG, CX7: one ConnectX-7 of 400 Gb/s for each GPU"),
        "gb200": _beside("derived", "MLP61, CX7: four ConnectX-7 of 400 Gb/s for four GPUs"),
        "rubin": PoolLink(),
    }
)
