"""Named axes laid onto the chips of a machine.

Holds no values and looks at no devices: how programs run on a mesh is in `run`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from ..datapath.axis import Axis, check_algorithm
from ..errors import MeshError, unknown
from ..machine.gpu import NvlinkDomain
from ..machine.topology import Topology
from ..predicates import is_whole


class Axes(dict[str, Axis]):
    """The axes of a mesh by name, outermost first, as a program is given them."""

    def __missing__(self, name: Any) -> Axis:
        """Refuse an axis that the mesh does not have.

        Raises:
            UnknownNameError: always; the sentence has the nearest names.
        """
        raise unknown("mesh axis", str(name), self)


@dataclass(frozen=True, kw_only=True)
class ChipMesh:
    """Named axes laid onto a run of chips, outermost first.

    Neighbours along the last axis are neighbouring chips. Meshes are equal if programs have the
    same bits and the same algorithms on them.

    Raises:
        MeshError: axes that are not pairs of a name and a number of chips, a name that occurs
            twice, or a machine that has fewer chips.
        UnknownNameError: there is no such algorithm.
    """

    axes: tuple[tuple[str, int], ...]
    #: the machine that the chips are part of, such as `system("groq-node").topology`
    topology: Topology | NvlinkDomain = field(compare=False, repr=False)
    algorithm: str = "auto"
    #: chips of its node, rack, ... as far as the mesh has more: the order of sums across chips
    tiers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what is not a mesh, and take the order of summation from the machine."""
        if not isinstance(self.topology, Topology | NvlinkDomain):
            raise MeshError(
                "ChipMesh: topology must be that of a system, such as "
                f"system('groq-node').topology; {_named(self.topology)} was given."
            )
        if not (isinstance(self.axes, tuple) and all(map(_is_axis, self.axes))):
            raise MeshError(
                "ChipMesh: axes must be a tuple of names, each with its number of chips, such as "
                f"(('tensor', 4),); {self.axes!r} was given."
            )
        axes = tuple((name, int(size)) for name, size in self.axes)
        object.__setattr__(self, "axes", axes)
        names = [name for name, _ in axes]
        if len(set(names)) < len(names):
            raise MeshError(f"ChipMesh: the axes {', '.join(names)} must have different names.")
        if self.n_chips > self.topology.n_chips:
            raise MeshError(
                f"ChipMesh: the axes have {self.n_chips} chips; the machine has "
                f"{self.topology.n_chips}."
            )
        if not isinstance(self.algorithm, str):
            raise MeshError(
                f"ChipMesh: algorithm must be the name of one; {_named(self.algorithm)} was given."
            )
        check_algorithm(self.algorithm)
        object.__setattr__(self, "tiers", tiers_of(self.topology, self.n_chips))

    @property
    def n_chips(self) -> int:
        """Chips of the mesh."""
        return prod(size for _, size in self.axes)

    def as_axes(
        self, carriers: Mapping[str, tuple[tuple[str, int], ...]] | None = None
    ) -> dict[str, Axis]:
        """Describe each axis to a program; on an axis of one chip collectives do nothing.

        Args:
            carriers: for each axis, what carries its chips, outermost first, each with its size:
                devices, and virtual chips on each. None: one running axis of the same name.
        """
        carried = carriers or {name: ((name, size),) for name, size in self.axes}
        return Axes(
            {
                name: Axis(
                    names=tuple(carrier for carrier, count in carried[name] if count > 1),
                    size=size,
                    tiers=self.tiers,
                    algorithm=self.algorithm,
                    stride=prod(inner for _, inner in self.axes[i + 1 :]),
                )
                for i, (name, size) in enumerate(self.axes)
            }
        )


def tiers_of(topology: Topology | NvlinkDomain, n_chips: int) -> tuple[int, ...]:
    """Chips of a node, a rack, ... that the first `n_chips` chips of a machine do not fit into.

    Sums are made inside each of these first; with none, all chips are in one node.
    """
    return tuple(tier for tier in topology.tiers if tier < n_chips)


def check_mesh(caller: str, mesh: Any) -> None:
    """Refuse what is not a `ChipMesh`; `caller` goes into the message.

    Raises:
        MeshError: says how to write it as one.
    """
    if isinstance(mesh, ChipMesh):
        return
    how = "ChipMesh(axes=(('tensor', 4),), topology=system('groq-node').topology)"
    if isinstance(mesh, Mesh | AbstractMesh):
        how = f"ChipMesh(axes={tuple(mesh.shape.items())}, topology=system('groq-node').topology)"
    raise MeshError(f"{caller}: mesh must be a ChipMesh, such as {how}; {_named(mesh)} was given.")


def _is_axis(pair: Any) -> bool:
    if not (isinstance(pair, tuple) and len(pair) == 2):
        return False
    name, size = pair
    return isinstance(name, str) and name.isidentifier() and is_whole(size) and int(size) >= 1


def _named(value: Any) -> str:
    """Name a value's type for a message."""
    return f"an object of type {type(value).__name__}"
