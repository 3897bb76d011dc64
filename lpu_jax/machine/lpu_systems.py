"""Systems of LPUs by name: GroqChip1 nodes and racks, and racks of the Groq 3 LPX."""

from collections.abc import Mapping
from types import MappingProxyType

from ..errors import unknown
from ..provenance import Constant, vary
from .built_topologies import GroqTopology, LpxTopology
from .chip import ChipSpec
from .lpu_chips import GROQ3_LPU, GROQCHIP1
from .series import Series
from .topology import Topology
from .tray_dram import TrayDram

_NODE_CHIPS = 8
# GroqRack product: 8 of its 9 nodes compute, one is spare.
_RACK_CHIPS = 64
_TRAY_CHIPS = 16
_LPX_RACK_CHIPS = 256


def _groq_rack() -> GroqTopology:
    rack: GroqTopology = vary(
        GroqTopology(n_chips=_RACK_CHIPS),
        Constant(
            name="spare_nodes",
            value=1,
            unit="1",
            status="published",
            source="GRB: 8+1 nodes, 64 of 72 chips active",
        ),
    )
    return rack


def _lpx_racks(n_racks: int) -> LpxTopology:
    return LpxTopology(n_chips=n_racks * _LPX_RACK_CHIPS)


GROQ = Series(
    chip=GROQCHIP1,
    named={
        "groq-node": GroqTopology(n_chips=_NODE_CHIPS),
        "groq-rack": _groq_rack(),
        **{f"groq-{n_chips}": GroqTopology(n_chips=n_chips) for n_chips in (264, 576, 10_440)},
    },
    numbered="groq-N",
    unit="chips",
    of_size=lambda n_chips: GroqTopology(n_chips=n_chips),
)

LPX = Series(
    chip=GROQ3_LPU,
    named={
        "lpx-tray": LpxTopology(n_chips=_TRAY_CHIPS),
        "lpx-rack": _lpx_racks(1),
        **{f"lpx-{n_racks}": _lpx_racks(n_racks) for n_racks in (2, 4, 9)},
    },
    numbered="lpx-N",
    unit="racks",
    of_size=_lpx_racks,
    dram=TrayDram(),
)

SERIES = (GROQ, LPX)

#: By name: the chips, and the machines, that a user's file can begin with.
CHIPS: Mapping[str, ChipSpec] = MappingProxyType(
    {series.chip.name: series.chip for series in SERIES if isinstance(series.chip, ChipSpec)}
)
TOPOLOGIES: Mapping[str, type[Topology]] = MappingProxyType(
    {
        links.family: type(links)
        for series in SERIES
        for links in series.named.values()
        if isinstance(links, Topology)
    }
)


def chip(name: str) -> ChipSpec:
    """Look up a named chip.

    Args:
        name: `"groqchip1"` or `"groq3-lpu"`.

    Returns:
        Its specification.

    Raises:
        UnknownNameError: if there is no such chip.
    """
    if name not in CHIPS:
        raise unknown("chip", name, CHIPS)
    return CHIPS[name]
