"""The LPU chips: GroqChip1, and the Groq 3 LPU, which is like it where no source says otherwise.

Sources, by key: see `chip`.
"""

from ..provenance import Constant, vary
from .chip import BRANCHING, ChipSpec, MxmMode

_NOT_PUBLIC = "not public for this chip; assumed the same as on GroqChip1"
_NOT_PUBLIC_RANGE = f"{_NOT_PUBLIC}, range half to twice where none was stated"

GROQCHIP1 = ChipSpec(name="groqchip1", title="GroqChip1 (TSP v1)")


def _assumed_mode(operand: str, mode: MxmMode, source: str, *others: MxmMode) -> Constant:
    return Constant(
        name=f"mxm_{operand}",
        value=mode,
        unit="mode",
        status="assumed",
        source=source,
        options=(mode, *others),
    )


_SIXTEEN_BIT_MODE = MxmMode(k_tile=160, columns=320, arrays=2)
_EIGHT_BIT_MODE = MxmMode(k_tile=320, columns=320, arrays=4)

GROQ3_LPU = vary(
    GROQCHIP1,
    Constant(
        name="clock_hz",
        value=1.5e9,
        unit="Hz",
        status="derived",
        source="NVB: 315 PFLOPS FP8 / 256 chips, if a cycle still does 409,600 8-bit MACs; other "
        "printed figures (1.2, 1.23 PFLOPS per chip) give 1.46 to 1.51 GHz",
        low=1.46e9,
        high=1.51e9,
    ),
    Constant(
        name="vector_bytes", value=320, unit="B", status="published", source="NVB: 320-byte vectors"
    ),
    Constant(
        name="sram_bytes", value=500_000_000, unit="B", status="published", source="NVB: 500 MB"
    ),
    Constant(
        name="weight_stream_bytes_per_cycle",
        value=100_000,
        unit="B/cycle",
        status="assumed",
        source="width not public; assumed that of the SRAM (NVB: 150 TB/s over the derived clock)",
        low=30_720,
        high=100_000,
    ),
    _assumed_mode(
        "fp16",
        _SIXTEEN_BIT_MODE,
        f"{_NOT_PUBLIC}; else half the 8-bit rate, as on most accelerators: arrays used singly, or "
        "in pairs of full height",
        MxmMode(k_tile=160, columns=320, arrays=4),
        MxmMode(k_tile=320, columns=320, arrays=2),
    ),
    _assumed_mode(
        "int8",
        _EIGHT_BIT_MODE,
        f"{_NOT_PUBLIC}; else half that rate, since the headline figure is of FP8",
        MxmMode(k_tile=320, columns=320, arrays=2),
    ),
    _assumed_mode(
        "fp8",
        _EIGHT_BIT_MODE,
        "NVB prints FP8 PFLOPS; assumed at GroqChip1's int8 tile and rate; else the same rate from "
        "tiles of half the height, or of twice the height",
        MxmMode(k_tile=160, columns=320, arrays=8),
        MxmMode(k_tile=640, columns=320, arrays=2),
    ),
    Constant(
        name="lanes",
        value=320,
        unit="1",
        status="derived",
        source="NVB: 320-byte vectors, one byte on every lane",
    ),
    Constant(
        name="array_load_rows_per_cycle",
        value=78,
        unit="1/cycle",
        status="assumed",
        source="notes on the Hot Chips 2026 talk, second-hand: 315 PFLOPS are fed by the SRAM's "
        "40 PB/s, so the arrays take what the weight stream brings: 100,000 B over 4 arrays of "
        "320 B rows; at least as on GroqChip1",
        low=16,
        high=78,
    ),
    Constant(
        name="c2c_lanes", value=96, unit="1", status="published", source="NVB: 96 links of 112 Gb/s"
    ),
    Constant(
        name="c2c_link_lanes",
        value=1,
        unit="1",
        status="published",
        source="NVB: 96 links of one 112 Gb/s lane each",
    ),
    Constant(
        name="mem_slices",
        value=88,
        unit="1",
        status="assumed",
        source=f"{_NOT_PUBLIC}; 500 MB in slices of GroqChip1's size would be 190",
        low=44,
        high=190,
    ),
    Constant(
        name="branching",
        value="none",
        unit="rule",
        status="assumed",
        source="notes on the Hot Chips 2026 talk, second-hand: blocks that were scheduled in "
        "advance are chosen by data within preset time; whether a step then takes less is not said",
        options=BRANCHING,
    ),
    *(
        Constant(
            name=name,
            value=None,
            unit="W",
            status="published",
            source="NVB gives no power of a chip or a rack: not public",
            at_most=at_most,
        )
        for name, at_most in (("power_max_w", ""), ("power_average_w", "power_max_w"))
    ),
    unchanged=_NOT_PUBLIC_RANGE,
    ranges={
        "vxm_alus_per_lane": (8, 32),
        "vxm_large_alus_per_lane": (4, 16),
        "vxm_stream_groups": (4, 16),
        "vxm_entry_cycles": (3, 10),
        "alu_cycles": (2, 6),
        "sxm_vectors_per_cycle": (1, 4),
        "sxm_transpose_cycles": (2, 8),
        "mem_slices_per_hop": (2, 8),
    },
    name="groq3-lpu",
    title="NVIDIA Groq 3 LPU (LP30)",
)
