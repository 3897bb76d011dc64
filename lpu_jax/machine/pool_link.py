"""The network between a pool of LPUs and a pool of GPUs.

One lane of each LPU ends in an FPGA (`tray_dram`), which turns it into Ethernet; Ethernet switches
lead to the network ports of the GPUs. Not modelled: traffic of others on the same switches, lost
packets, and what the lane's two uses, network and DRAM, take from each other.

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

from ..provenance import Constant, const, vary
from .tray_dram import Bytes, Chips, Numbers, TrayDram

#: Bits of one value of the hidden state, by wire format.
WIRE_BITS: Mapping[str, int] = MappingProxyType({"fp8": 8, "fp16": 16, "fp32": 32})


@dataclass(frozen=True, kw_only=True)
class PoolLink(TrayDram):
    """What joins LPUs and GPUs; the defaults are a Groq 3 LPX beside a Vera Rubin NVL72.

    All rates are one way; both ways work at once. Change a number with `provenance.vary`.
    """

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
