"""The explicit chip mesh: one per-chip program on virtual chips, devices or both, or traced.

A per-chip program is `program(*shards, axes=axes)`; `axes` maps each mesh axis to the `Axis` that
collectives take. All ways take global arrays and `PartitionSpec`s, mean the same and give the same
bits.
"""

from .chips import Axes as Axes
from .chips import ChipMesh as ChipMesh
from .chips import check_mesh as check_mesh
from .chips import tiers_of as tiers_of
from .run import put_on_devices as put_on_devices
from .run import run_devices as run_devices
from .run import run_nested as run_nested
from .run import run_virtual as run_virtual
from .run import trace as trace
from .spread import most_devices as most_devices

__all__ = [
    "Axes",
    "ChipMesh",
    "check_mesh",
    "most_devices",
    "put_on_devices",
    "run_devices",
    "run_nested",
    "run_virtual",
    "tiers_of",
    "trace",
]
