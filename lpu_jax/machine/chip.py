"""One LPU chip as numbers, every number with its source; the chips themselves are in `lpu_chips`.

What a functional unit computes, and the formula of what it costs, is in `datapath`; links between
chips are in `topology`. Not modelled: yield (spare superlanes), the instruction set.

Sources, by key (most rows were read in extracts, not in the papers themselves):
ISCA20 Abts et al., "Think Fast: A Tensor Streaming Processor", ISCA 2020. ISCA22 Abts et al., "A
Software-defined Tensor Streaming Multiprocessor", ISCA 2022. WS20 D. Abts, ML-HW workshop slides,
2020. GAPI user code of the Groq API by third parties. GF groq/groqflow on GitHub. GPB GroqChip
Product Brief v1.7. NVB NVIDIA technical blog "Inside NVIDIA Groq 3 LPX", 2026.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ..arguments import described
from ..errors import ConfigError, unknown
from ..provenance import Constant, check_constants, const

#: Data chooses addresses alone; or also one of a few blocks that were scheduled in advance.
BRANCHING = ("none", "bounded")

#: One reading decides how fast weights reach the arrays: what brings them and what takes them.
_WEIGHT_PATH = "weight path"
_SPECIAL = (
    "ISCA20 Table I, second-hand: an instruction of the vector unit; a few passes of its ALUs, "
    "how many is not public"
)


@dataclass(frozen=True, kw_only=True)
class MxmMode:
    """How the matrix unit works on one kind of operand.

    Attributes:
        k_tile: length of the contraction one array sums in a cycle.
        columns: outputs of one array in a cycle.
        arrays: arrays that work at once.
    """

    k_tile: int
    columns: int
    arrays: int

    def __str__(self) -> str:
        return f"{self.arrays} of {self.k_tile}x{self.columns}"

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates of the whole chip in one cycle."""
        return self.k_tile * self.columns * self.arrays


@dataclass(frozen=True, kw_only=True)
class ChipSpec:
    """One chip in base units; the defaults are GroqChip1 (TSP v1).

    Change a number with `provenance.vary`, which keeps the source of each number true.
    """

    name: str
    title: str

    #: Clock of every functional unit.
    clock_hz: int | float = const(
        0.9e9, "Hz", "published", "ISCA20, GF: nominal 900 MHz", faster_at="high"
    )
    #: Byte-wide data paths side by side.
    lanes: int = const(320, "1", "published", "ISCA20: 20 superlanes x 16 lanes")
    #: One byte on every lane.
    vector_bytes: int = const(320, "B", "published", "ISCA20: maximum vector length 320")
    #: On-chip memory; there is no other.
    sram_bytes: int = const(
        88 * 20 * 2 * 4096 * 16, "B", "derived", "ISCA20: 88 slices of 2.5 MiB = 220 MiB"
    )
    #: Part of the SRAM that instructions and spare addresses take.
    reserved_fraction: int | float = const(
        0.05,
        "1",
        "assumed",
        "no public figure for instructions in SRAM",
        0.0,
        0.10,
        faster_at="low",
    )
    #: Widest flow of weights into the matrix arrays.
    weight_stream_bytes_per_cycle: int | float = const(
        20_480,
        "B/cycle",
        "derived",
        "GAPI S16 weight layout: 16 streams per array, 4 arrays. ISCA20, second-hand: operands "
        "come on 32 streams of 320 lanes: half of it, or as much in each hemisphere",
        10_240,
        20_480,
        faster_at="high",
        reading=_WEIGHT_PATH,
    )
    mxm_fp16: MxmMode | None = const(
        MxmMode(k_tile=160, columns=320, arrays=2),
        "mode",
        "published",
        "ISCA22 section 5.2: two [1x160]x[160x320] sub-operations per cycle",
    )
    mxm_int8: MxmMode | None = const(
        MxmMode(k_tile=320, columns=320, arrays=4),
        "mode",
        "published",
        "ISCA22 section 5.2: four [1x320]x[320x320] sub-operations per cycle",
    )
    mxm_fp8: MxmMode | None = const(
        None, "mode", "published", "WS20, GAPI: inputs are INT8, UINT8 and FP16"
    )
    #: Tile rows an array takes in one cycle while a tile is installed.
    array_load_rows_per_cycle: int = const(
        16,
        "1/cycle",
        "derived",
        "GAPI: weights arrive on 16 streams, one row of 320 B each",
        faster_at="high",
        reading=_WEIGHT_PATH,
    )
    #: From the first activation in to the first result out.
    mxm_latency_cycles: int = const(
        64, "cycle", "assumed", "no public figure", 20, 160, faster_at="low"
    )
    vxm_alus_per_lane: int = const(
        16, "1", "published", "ISCA20, GAPI: 4x4 ALUs per lane", faster_at="high"
    )
    #: ALUs that can do the special functions.
    vxm_large_alus_per_lane: int = const(
        8,
        "1",
        "published",
        "GAPI: alu % 8 in {0, 5, 2, 7}",
        at_most="vxm_alus_per_lane",
        faster_at="high",
    )
    #: Passes through a large ALU that a special function takes.
    exp_alu_passes: int = const(2, "1", "assumed", _SPECIAL, 1, 8, faster_at="low")
    tanh_alu_passes: int = const(2, "1", "assumed", _SPECIAL, 1, 8, faster_at="low")
    rsqrt_alu_passes: int = const(2, "1", "assumed", _SPECIAL, 1, 8, faster_at="low")
    log_alu_passes: int = const(
        2, "1", "assumed", "not in the list of ISCA20 Table I that we know; taken as exp", 1, 16,
        moves_plans=False,
    )  # fmt: skip
    #: 32-bit stream groups into the VXM, and as many out of it.
    vxm_stream_groups: int = const(
        8, "1", "published", "GAPI: SG4[0..7] in each direction", faster_at="high"
    )
    vxm_entry_cycles: int = const(
        5, "cycle", "published", "GAPI: entry 4 and 1 read", faster_at="low"
    )
    alu_cycles: int = const(
        3, "cycle", "published", "GAPI: one ALU operation takes 3 cycles", faster_at="low"
    )
    #: Crossing from one functional unit to the next.
    transit_cycles: int = const(
        22,
        "cycle",
        "assumed",
        "GAPI examples: 22 to a first read, 50 for MEM-VXM-SXM",
        10,
        50,
        faster_at="low",
    )
    #: One per hemisphere.
    sxm_vectors_per_cycle: int = const(
        2,
        "1/cycle",
        "derived",
        "ISCA20 floorplan: one SXM in each of two hemispheres",
        faster_at="high",
    )
    sxm_transpose_cycles: int = const(
        4, "cycle", "published", "GAPI: transpose 4 cycles", faster_at="low"
    )
    #: One rotation of lanes followed by the addition of its result.
    lane_rotate_cycles: int = const(
        9,
        "cycle",
        "assumed",
        "GAPI: 4 cycles to cross the SXM, VXM entry 5; no figure for both. At least 4 and an "
        "addition of 3; at most in and out of the SXM 8, 11 each way, entry 5, addition 3",
        7,
        38,
        faster_at="low",
    )
    mem_slices: int = const(
        88, "1", "published", "ISCA20: 44 slices in each hemisphere", faster_at="low"
    )
    mem_slices_per_hop: int = const(
        4, "1", "published", "GAPI: 44 slices take 11 cycles", faster_at="high"
    )
    #: Reads and writes of one vector at addresses known only at run time.
    mem_accesses_per_cycle: int = const(
        2,
        "1/cycle",
        "assumed",
        "no public figure; one in each of two hemispheres",
        1,
        4,
        faster_at="high",
    )
    #: Slices that one such address reaches: it travels past them on a stream.
    mem_slices_per_address: int = const(
        16, "1", "assumed", "ISCA20: a gather takes addresses from a stream, which passes 44 "
        "slices; what they read leaves on the 32 streams of a direction, half of them for one "
        "operand", 1, 32, faster_at="high",
    )  # fmt: skip
    #: Whether data can choose between blocks that were scheduled in advance.
    branching: str = const(
        "none", "rule", "published", "ISCA20: every cycle is scheduled; data chooses addresses"
    )
    #: Lanes to other chips, all links together.
    c2c_lanes: int = const(64, "1", "published", "ISCA20, ISCA22: 16 links of 4 lanes")
    c2c_link_lanes: int = const(4, "1", "published", "ISCA20, ISCA22: 4 lanes per link")

    # Rules that public sources leave open, each with its alternatives.

    #: How far ahead weights are installed: the next round of the matrix unit, or a whole block.
    weight_prefetch: str = const(
        "round",
        "rule",
        "assumed",
        "not public; two weight buffers are an open cycle model's, a stream that runs ahead of the "
        "arrays by a whole block hides more of a collective",
        options=("round", "block"),
    )
    #: What a matrix fills, in memory and on the weight stream: the vectors that hold its columns,
    #: or whole tiles of the 16-bit mode.
    padding: str = const(
        "vectors",
        "rule",
        "assumed",
        "not public; an array takes whole tiles, what lies beside a matrix need not be streamed",
        options=("vectors", "tiles"),
    )
    #: Where storage narrower than the operand is widened: at the array, or before the stream.
    widening: str = const(
        "array",
        "rule",
        "assumed",
        "not public; formats of Groq's blog of 2025-08-01 are storage, the arrays multiply others",
        options=("array", "memory"),
    )
    #: Bits on a link of a 16-bit value: of the hidden state, a partial sum. Values are those of 16.
    wire_value_bits: int = const(
        16, "bit", "assumed", "not public: 1 to 4 bytes a value", 8, 32, faster_at="low"
    )

    #: Most power the chip draws; None where it is not public: no energy is computed then.
    power_max_w: int | float | None = const(
        300.0, "W", "published", "GPB, second-hand: 300 W at most (215 W TDP)", moves_plans=False
    )
    #: Power under an average load.
    power_average_w: int | float | None = const(
        185.0, "W", "published", "GPB, second-hand: 185 W on average", at_most="power_max_w",
        moves_plans=False,
    )  # fmt: skip

    #: New tokens per sequence that a prefill step takes at most.
    prefill_chunk_tokens: int = const(
        128, "1", "assumed", "no public figure; longer chunks leave less SRAM for weights", 32, 512,
        moves_plans=False,
    )  # fmt: skip

    #: Constants whose value or provenance differs from the defaults above.
    replaced: tuple[Constant, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no chip has.

        Raises:
            ConfigError: says which.
        """
        check_constants(self)
        if self.branching not in BRANCHING:
            raise ConfigError(
                f"ChipSpec.branching is {described(self.branching)}; it must be "
                f"{' or '.join(map(repr, BRANCHING))}."
            )

    # What plans ask of any chip (`gpu.Accelerator`).

    memory_name: ClassVar[str] = "SRAM"
    #: Whether transfers are scheduled link by link; where not, they only have a price.
    has_link_schedules: ClassVar[bool] = True
    #: Whether a plan of fewer chips than there are can be the faster one: memory is no reason to
    #: take them all.
    has_memory_to_spare: ClassVar[bool] = False
    #: What its numbers are, where they are not a schedule of an LPU.
    note: ClassVar[str] = ""

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        return self.sram_bytes

    def special_passes(self, name: str) -> int:
        """Passes through a large ALU that a special function takes.

        Args:
            name: `"exp"`, `"tanh"`, `"rsqrt"` or `"log"`.
        """
        passes: int = getattr(self, f"{name}_alu_passes")
        return passes

    def stored_columns(self, columns: Any) -> Any:
        """Columns that a row of a stored matrix takes, padding included.

        A row fills whole vectors; rows of up to half a vector share one, as many as it holds whole,
        unless `padding` is whole tiles. So matrices lie in memory, and so they stream into the
        matrix unit.

        Args:
            columns: of the matrix; a number, or an array with one number per plan.
        """
        sharing = self.lanes / np.maximum(self.lanes // np.maximum(columns, 1), 1)
        alone = np.ceil(columns / self.lanes) * self.lanes
        shares = (columns <= self.lanes) & (self.padding == "vectors")
        padded = np.where(shares, sharing, alone)
        return padded if isinstance(columns, np.ndarray) else float(padded)

    def stored_rows(self, rows: Any) -> Any:
        """Rows that a stored matrix takes: its own, or those of whole tiles (`padding`).

        Args:
            rows: of the matrix; a number, or an array with one number per plan.
        """
        if self.padding == "vectors":
            return rows
        height = self.mxm_mode("fp16").k_tile
        return np.ceil(rows / height) * height

    def check_operand(self, operand: str) -> None:
        """Refuse an operand kind that its matrix unit does not take.

        Raises:
            UnknownNameError: it does not.
        """
        self.mxm_mode(operand)

    @property
    def mxm_modes(self) -> Mapping[str, MxmMode]:
        """The matrix unit's modes by kind of operand: `"fp16"`, `"int8"`, `"fp8"`."""
        modes = {"fp16": self.mxm_fp16, "int8": self.mxm_int8, "fp8": self.mxm_fp8}
        return MappingProxyType({kind: mode for kind, mode in modes.items() if mode is not None})

    def mxm_mode(self, operand: str) -> MxmMode:
        """Look up the matrix unit's mode for one kind of operand.

        Args:
            operand: `"fp16"`, `"int8"` or `"fp8"`.

        Returns:
            The mode.

        Raises:
            UnknownNameError: if this chip's matrix unit does not take that operand.
        """
        modes = self.mxm_modes
        if operand not in modes:
            raise unknown(f"MXM operand on {self.name}", operand, modes)
        return modes[operand]
