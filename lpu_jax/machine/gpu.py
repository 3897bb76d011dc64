"""GPUs as published figures: H100, GB200 and Vera Rubin, each inside one NVLink domain.

They answer "what would it be on GPUs" by a roofline (`cost.roofline`), so only its numbers are
here. Not modelled: caches, streaming multiprocessors and their occupancy, clocks that fall under
load, host CPUs, and any network beyond the NVLink domain.

Sources, by key: H100DS NVIDIA H100 datasheet, dense rates (half of those with sparsity). GB200DS
NVIDIA GB200 NVL72 datasheet, likewise, divided by 72. GTC26 NVIDIA keynotes on Vera Rubin NVL72,
preliminary. SEC secondary reports on Rubin. Assumed rows say what they rest on.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from ..errors import PlanError
from ..provenance import Constant, check_constants, const, vary
from .chip import ChipSpec
from .spans import Span

_NANOSECONDS = 1e9


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """One GPU in base units; the defaults are the H100 SXM.

    Change a number with `provenance.vary`, which keeps the source of each number true. An operand
    kind without a public rate multiplies at the 16-bit rate.
    """

    name: str
    title: str
    #: Whose tensor cores it has, by the name of their generation (`numerics.tensor_core_rules`).
    tensor_cores: str = "hopper"

    memory_bytes: int = const(80_000_000_000, "B", "published", "H100DS: 80 GB HBM3")
    #: Part of the memory that the runtime, communication buffers and fragments take.
    reserved_fraction: int | float = const(
        0.10,
        "1",
        "assumed",
        "common serving engines leave a tenth of the memory",
        0.05,
        0.20,
        faster_at="low",
    )
    memory_bytes_per_s: int | float = const(
        3.35e12, "B/s", "published", "H100DS: 3.35 TB/s", faster_at="high"
    )
    #: Share of the memory bandwidth that a kernel reaches.
    memory_efficiency: int | float = const(
        0.825,
        "1",
        "assumed",
        "streaming kernels usually reach three quarters to nine tenths",
        0.75,
        0.90,
        faster_at="high",
    )
    fp16_flop_per_s: int | float = const(
        989e12, "FLOP/s", "published", "H100DS: 989 TFLOP/s dense", faster_at="high"
    )
    fp8_flop_per_s: int | float | None = const(
        1_979e12, "FLOP/s", "published", "H100DS: 1,979 TFLOP/s dense", faster_at="high"
    )
    int8_op_per_s: int | float | None = const(
        1_979e12, "OP/s", "published", "H100DS: 1,979 TOP/s dense", faster_at="high"
    )
    #: Share of the arithmetic rate that a kernel reaches.
    arithmetic_efficiency: int | float = const(
        0.7,
        "1",
        "assumed",
        "large products usually reach six to eight tenths",
        0.6,
        0.8,
        faster_at="high",
    )
    #: From the end of one kernel to the start of the next, in a captured graph.
    launch_gap_s: int | float = const(
        3.5e-6,
        "s",
        "assumed",
        "kernel launch or graph node, commonly 2 to 5 us",
        2e-6,
        5e-6,
        faster_at="low",
    )
    #: Of the whole GPU with its memory, at most.
    power_w: int | float = const(700.0, "W", "published", "H100DS: up to 700 W", moves_plans=False)
    #: New tokens per sequence that a prefill step takes at most.
    prefill_chunk_tokens: int = const(
        8192, "1", "assumed", "as serving engines are commonly set up", 2048, 16_384,
        moves_plans=False,
    )  # fmt: skip

    #: What cycles count: nanoseconds, as a roofline has no clock, or the clock of LPUs beside.
    clock_hz: float = _NANOSECONDS
    #: Constants that differ from the class's own (`provenance.vary`).
    replaced: tuple[Constant, ...] = ()

    # What plans ask of an LPU chip too.

    memory_name: ClassVar[str] = "HBM"
    has_link_schedules: ClassVar[bool] = False
    has_memory_to_spare: ClassVar[bool] = True
    note: ClassVar[str] = (
        "GPU roofline: published figures of the GPU over the same program, with assumed launch "
        "gaps, latencies and reached shares; not a simulation of a GPU."
    )
    #: A roofline does not tell units apart.
    transit_cycles: ClassVar[float] = 0.0
    #: Not public for any GPU.
    power_average_w: ClassVar[None] = None
    #: Memory is not padded to vectors.
    vector_bytes: ClassVar[int] = 1
    #: Bits on a link of a 16-bit value.
    wire_value_bits: ClassVar[int] = 16

    def __post_init__(self) -> None:
        """Refuse numbers that no GPU has.

        Raises:
            ConfigError: says which.
        """
        check_constants(self)

    @property
    def power_max_w(self) -> int | float:
        """The most power it draws: the published power of a GPU."""
        return self.power_w

    def stored_columns(self, columns: Any) -> Any:
        """Columns that a row of a stored matrix takes: nothing is padded on a GPU."""
        return columns

    def stored_rows(self, rows: Any) -> Any:
        """Rows that a stored matrix takes: its own."""
        return rows

    def check_operand(self, operand: str) -> None:
        """Accept every operand kind: one without a rate of its own is widened to 16 bits."""

    def rate_of(self, operand: str) -> str:
        """Name the constant that limits products of an operand kind.

        Args:
            operand: `"fp16"`, `"fp8"` or `"int8"`.

        Returns:
            The field; that of 16 bits where the kind has no public rate.
        """
        own = {"fp8": "fp8_flop_per_s", "int8": "int8_op_per_s"}.get(operand, "fp16_flop_per_s")
        return own if getattr(self, own) is not None else "fp16_flop_per_s"


#: What plans may run on. Plans ask either kind of chip the same: `memory_bytes`, `memory_name` and
#: `reserved_fraction`, `stored_columns`, `stored_rows`, `vector_bytes`, `wire_value_bits`,
#: `check_operand`, `prefill_chunk_tokens`, its most and average power, `transit_cycles`, the clock
#: that cycles count, and what it can do: `has_link_schedules`, `has_memory_to_spare`, `note`.
Accelerator = ChipSpec | GpuSpec


@dataclass(frozen=True, kw_only=True)
class NvlinkDomain:
    """GPUs behind one NVLink switch: any of them reaches any other at the rate of its own port.

    Attributes:
        n_chips: GPUs that plans may use.
        replaced: constants that differ from the class's own (`provenance.vary`).
    """

    family: ClassVar[str] = "nvlink"

    n_chips: int
    replaced: tuple[Constant, ...] = ()

    domain_gpus: int = const(8, "1", "published", "H100DS: 8 GPUs of an HGX board")
    #: Into a GPU, and as much out of it.
    link_bytes_per_s: int | float = const(
        450e9, "B/s", "derived", "H100DS: NVLink 4, 900 GB/s both ways together, halved"
    )
    #: Share of the link rate that a collective reaches.
    link_efficiency: int | float = const(
        0.8, "1", "assumed", "no public figure for all sizes; large transfers reach most of it",
        0.6, 0.95, faster_at="high",
    )  # fmt: skip
    #: What a collective or a transfer takes beyond its bytes, its own launch included.
    collective_latency_s: int | float = const(
        7.5e-6, "s", "assumed", "small all-reduces inside an NVLink domain, commonly 5 to 10 us",
        5e-6, 10e-6, faster_at="low",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse more GPUs than the domain has, and numbers that no machine has."""
        check_constants(self)
        if not 1 <= self.n_chips <= self.domain_gpus:
            raise PlanError(
                f"this NVLink domain has 1 to {self.domain_gpus} GPUs, not {self.n_chips}"
            )

    @property
    def node_chips(self) -> int:
        """GPUs of the only level."""
        return self.n_chips

    @property
    def rack_chips(self) -> int:
        """The same: no level is above."""
        return self.n_chips

    @property
    def tiers(self) -> tuple[int, ...]:
        """GPUs of the only level, as `Topology.tiers`."""
        return (self.n_chips,)

    def span(
        self,
        bases: Int[np.ndarray, " groups"] | list[int],
        n_chips_in_run: int,
        group_chips: int | None = None,
    ) -> Span:
        """Find what runs of GPUs touch, as if all were one node; see `Topology.span`."""
        n = n_chips_in_run
        alone = group_chips == n if group_chips is not None else len(bases) == 1
        return Span(
            n_chips=n,
            nodes=1,
            fewest=n,
            most=n,
            half_racks=1,
            racks=1,
            fewest_in_rack=n,
            alone=alone,
        )

    def level_of(self, span: Span) -> str:
        """Name what runs of GPUs cross: the one switch, or nothing."""
        return "NVLink" if span.n_chips > 1 else "chip"

    def copies(
        self, ends: Int[np.ndarray, " plans"], within: int | None = None
    ) -> Int[np.ndarray, " plans"]:
        """Count how often what lies on the first GPUs fits on the machine, side by side."""
        n_chips = self.n_chips if within is None else within
        return np.asarray(n_chips // np.asarray(ends, np.int64))

    def stage_bases(
        self, n_groups: int, group_chips: int, within: int | None = None
    ) -> Int[np.ndarray, " groups"]:
        """Place consecutive groups of GPUs one after another.

        Args:
            n_groups: groups, in the order in which data passes through them.
            group_chips: GPUs of each group.
            within: how many of the first GPUs they may lie on; None: all.

        Returns:
            First GPU of each group, ascending.

        Raises:
            PlanError: if the groups need more GPUs than there are.
        """
        n_chips = self.n_chips if within is None else within
        if min(n_groups, group_chips) < 1 or n_groups * group_chips > n_chips:
            raise PlanError(
                f"{n_groups} groups of {group_chips} GPUs do not fit into {n_chips} GPUs"
            )
        return np.arange(n_groups, dtype=np.int64) * group_chips

    def group_bases(
        self, group_chips: Int[np.ndarray, " groups"], within: int | None = None
    ) -> Int[np.ndarray, " groups"]:
        """Place groups of different sizes one after another; see `Topology.group_bases`.

        Raises:
            PlanError: if the groups need more GPUs than there are.
        """
        n_chips, needed = self.n_chips if within is None else within, int(group_chips.sum())
        if needed > n_chips:
            raise PlanError(f"groups of {needed} GPUs together do not fit into {n_chips} GPUs")
        return np.asarray(np.cumsum(group_chips) - group_chips)


def _published(name: str, value: int | float, unit: str, source: str) -> Constant:
    return Constant(name=name, value=value, unit=unit, status="published", source=source)


H100 = GpuSpec(name="h100", title="NVIDIA H100 SXM")

GB200 = vary(
    H100,
    _published("memory_bytes", 186_000_000_000, "B", "GB200DS: 186 GB HBM3e"),
    _published("memory_bytes_per_s", 8e12, "B/s", "GB200DS: 8 TB/s"),
    _published("fp16_flop_per_s", 2_500e12, "FLOP/s", "GB200DS: 2,500 TFLOP/s dense"),
    _published("fp8_flop_per_s", 5_000e12, "FLOP/s", "GB200DS: 5,000 TFLOP/s dense"),
    Constant(
        name="int8_op_per_s",
        value=5_000e12,
        unit="OP/s",
        status="assumed",
        source="assumed at the fp8 rate, as on the H100; at least the 16-bit rate",
        low=2_500e12,
        high=5_000e12,
    ),
    _published("power_w", 1_200.0, "W", "GB200DS: up to 1,200 W"),
    name="gb200",
    title="NVIDIA GB200 (one Blackwell GPU)",
    tensor_cores="blackwell",
)

RUBIN = vary(
    H100,
    _published("memory_bytes", 288_000_000_000, "B", "GTC26: 288 GB HBM4"),
    Constant(
        name="memory_bytes_per_s",
        value=22e12,
        unit="B/s",
        status="published",
        source="GTC26: 22 TB/s, preliminary; 13 TB/s in announcements of 2025",
        low=13e12,
        high=22e12,
    ),
    Constant(
        name="fp16_flop_per_s",
        value=1.2e18 / 72 / 2,
        unit="FLOP/s",
        status="assumed",
        source="half the fp8 rate, as on H100 and GB200; SEC: 6.25 to 12.5 PFLOP/s",
        low=6.25e15,
        high=12.5e15,
    ),
    Constant(
        name="fp8_flop_per_s",
        value=1.2e18 / 72,
        unit="FLOP/s",
        status="derived",
        source="GTC26: 1.2 EFLOP/s fp8 of 72 GPUs (a training figure)",
    ),
    Constant(
        name="int8_op_per_s",
        value=None,
        unit="OP/s",
        status="assumed",
        source="no public figure: int8 operands multiply at the 16-bit rate",
    ),
    Constant(
        name="power_w",
        value=1_800.0,
        unit="W",
        status="assumed",
        source="SEC: about 1,800 W; SEC: racks of 190 to 230 kW, of which GPUs are a part",
        low=1_500.0,
        high=2_300.0,
    ),
    name="rubin",
    title="NVIDIA Vera Rubin (one Rubin GPU)",
    tensor_cores="rubin",
)


def _domain(link_bytes_per_s: float, source: str, gpus_source: str) -> NvlinkDomain:
    whole: NvlinkDomain = vary(
        NvlinkDomain(n_chips=1),
        _published("domain_gpus", 72, "1", gpus_source),
        Constant(
            name="link_bytes_per_s",
            value=link_bytes_per_s,
            unit="B/s",
            status="derived",
            source=f"{source} both ways together, halved",
        ),
    )
    return dataclasses.replace(whole, n_chips=whole.domain_gpus)


#: Whole domains.
H100_DOMAIN = NvlinkDomain(n_chips=8)
GB200_DOMAIN = _domain(900e9, "GB200DS: NVLink 5, 1.8 TB/s", "GB200DS: NVL72")
RUBIN_DOMAIN = _domain(1.8e12, "GTC26: NVLink 6, 3.6 TB/s", "GTC26: NVL72")
