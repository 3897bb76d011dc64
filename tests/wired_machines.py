"""Machines of every kind of wiring, shared by the tests of topologies and levels."""

from lpu_jax.machine.built_topologies import GroqTopology, LpxTopology
from lpu_jax.machine.custom_topology import LevelSpec, custom_topology
from lpu_jax.machine.topology import Topology

MACHINES = [
    *(GroqTopology(n_chips=n) for n in (8, 16, 24, 32, 48, 56, 64, 72, 88, 136, 264, 576, 1296)),
    GroqTopology(n_chips=64, spare_nodes=1),
    GroqTopology(n_chips=10_440),
    *(LpxTopology(n_chips=n) for n in (16, 64, 256, 300, 2304)),
    *(LpxTopology(n_chips=n, tray_chips=8) for n in (64, 2304)),
    custom_topology(
        [
            LevelSpec(name="board", units=4, links=2, lanes=1, link_bytes_per_s=1e9, hop_s=1e-6),
            LevelSpec(name="shelf", units=6, links=3, lanes=1, link_bytes_per_s=1e9, hop_s=2e-6),
            LevelSpec(name="hall", units=4, links=5, lanes=1, link_bytes_per_s=1e9, hop_s=3e-6),
        ],
        chip_lanes=16,
    ),
    custom_topology(
        [
            LevelSpec(name="board", units=4, links=1, lanes=1, link_bytes_per_s=1e9, hop_s=1e-6),
            LevelSpec(
                name="row", units=5, links=8, lanes=2, link_bytes_per_s=1e9, hop_s=2e-6,
                wiring="line",
            ),
        ],
        chip_lanes=11,
    ),
]  # fmt: skip


def name_of(topology: Topology) -> str:
    """Name a machine in the list of tests."""
    return f"{topology.family}-{topology.n_chips}-{topology.node_chips}"
