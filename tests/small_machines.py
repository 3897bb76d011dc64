"""Machines whose nodes and racks are so small that sums over a few chips cross them."""

from lpu_jax.machine.built_topologies import LpxTopology
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.custom_topology import CustomTopology
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.machine.system import System

#: Eight chips in one node: they are summed one after another.
NODE = system("groq-node")
_MOST_CHIPS = 4096


def ring(n_racks: int) -> LpxTopology:
    """Small LPX racks of four trays of four chips, the last rack linked to the first."""
    return LpxTopology(
        n_chips=16 * n_racks, tray_chips=4, half_rack_chips=8, rack_chips=16, rack_chain="ring"
    )


def tiered(node_chips: int, rack_chips: int | None = None) -> System:
    """A machine of 4,096 chips or a few less.

    Args:
        node_chips: chips of a node.
        rack_chips: chips of a rack; None: all.
    """
    rack_chips = _MOST_CHIPS // node_chips * node_chips if rack_chips is None else rack_chips
    topology = CustomTopology(
        n_chips=_MOST_CHIPS // rack_chips * rack_chips,
        inner_units=node_chips,
        middle_units=rack_chips // node_chips,
        outer_units=_MOST_CHIPS // rack_chips,
    )
    return System(name="tiered", chip=GROQCHIP1, topology=topology, n_chips=topology.n_chips)
