"""A run of chips as a program names it, and the algorithm of its collectives.

Values (`c2c`) and time (`lpu_jax.cost.collectives`) both read an `Axis`. Not modelled: which chips
they are; a mesh lays the names onto them.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from jax import lax

from ..arguments import Count, check_fields, checked
from ..errors import MeshError, unknown

#: Names of link schedules; `lpu_jax.cost.collectives.algorithms` says what each does. They are here
#: because an axis carries one, and everything that has an axis lies above.
ALGORITHM_NAMES = ("auto", "one_shot", "direct", "ring", "flat3", "hier4", "hier5", "two_step")
#: Behind the name of an algorithm: its steps overlap, vector by vector. The order of summation, and
#: so every bit, is that of the algorithm.
PIPELINED = "+pipelined"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A run of neighbouring chips that a collective spans.

    The names are mesh axes, outermost first; their product is the run. `tiers` are the chips of a
    node, of a rack, and so on: they fix the order of summation. `algorithm` fixes the link
    schedule, behind a `+pipelined` one whose steps overlap; `auto` takes the fastest legal one of
    those that sum in that order; `c2c.OWN_ORDERS` has the others.

    Raises:
        LpuError: a field of another type, or a tier that is no multiple of the one before.
        UnknownNameError: there is no such algorithm.
    """

    names: tuple[str, ...]
    #: chips; an int, or a symbolic dimension while a block is traced for every plan at once
    size: Count
    tiers: tuple[int, ...]  #: of the machine (`Topology.tiers`); none: all chips are in one node
    algorithm: str = "auto"
    stride: Count = 1  #: chips from one chip of the run to the next

    def __post_init__(self) -> None:
        check_fields(self)
        check_algorithm(self.algorithm)
        if len(set(self.names)) < len(self.names) or "" in self.names:
            raise MeshError(
                f"Axis: names={self.names} was given; they must differ, and none be empty."
            )
        if any(outer < inner or outer % inner for inner, outer in pairwise((1, *self.tiers))):
            raise MeshError(
                f"Axis: tiers={self.tiers} was given; each must be a multiple of the one before, "
                "such as (8, 64): the chips of a node and of a rack."
            )

    @property
    def shown(self) -> str:
        """Its name as the mesh has it: what carries it has a word behind its name."""
        return "/".join(dict.fromkeys(name.partition(" ")[0] for name in self.names))

    def check(self, caller: str) -> None:
        """Verify that the running mesh has the axis with this size.

        Raises:
            MeshError: if it does not.
        """
        if not isinstance(self.size, int) or not self.names:
            return
        try:
            found = prod(lax.axis_size(name) for name in self.names)
        except NameError:
            raise MeshError(
                f"{caller}: axis {self.shown} is not an axis of the running mesh."
            ) from None
        if found != self.size:
            raise MeshError(
                f"{caller}: axis {self.shown} has {found} chips in the running mesh but "
                f"{self.size} in the plan."
            )


@checked
def steps_of(algorithm: str) -> str:
    """Name the algorithm whose steps, and whose order of summation, a pipelined one has."""
    return algorithm.removesuffix(PIPELINED)


def check_algorithm(name: str) -> None:
    """Refuse a link schedule that does not exist.

    Raises:
        UnknownNameError: the sentence has the nearest names.
    """
    known = (*ALGORITHM_NAMES, *(name + PIPELINED for name in ALGORITHM_NAMES if name != "auto"))
    if name not in known:
        raise unknown("collective", str(name), known)
