"""How the chips of a mesh are spread over devices, several virtual chips on each."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from ..arguments import described
from ..errors import MeshError
from ..predicates import is_whole
from .chips import ChipMesh, check_mesh
from .specs import check_name, names_of, renamed, virtual_name


def most_devices(mesh: ChipMesh, n_devices: int | None = None) -> dict[str, int]:
    """Spread the chips of a mesh over as many devices as possible, for `run_nested`.

    Args:
        mesh: the chips.
        n_devices: devices that may be used; None: all that JAX has.

    Returns:
        For each axis, over how many devices its chips are spread: outer axes first.

    Raises:
        MeshError: it is no mesh, or `n_devices` is not a whole number of at least 1.
    """
    check_mesh("most_devices", mesh)
    if n_devices is not None and not (is_whole(n_devices) and n_devices >= 1):
        raise MeshError(
            f"most_devices: n_devices={described(n_devices)} was given; it must be a whole number "
            "of at least 1."
        )
    left = len(jax.devices()) if n_devices is None else n_devices
    spread = {}
    for name, size in mesh.axes:
        spread[name] = max(n for n in range(1, size + 1) if size % n == 0 and n <= left)
        left = left // spread[name] if spread[name] == size else 1
    return spread


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the chips of each axis are spread: over devices, and virtual chips on each of them."""

    caller: str
    #: by axis, in the order of the mesh; device axes have the names of the mesh's
    devices: Mapping[str, int]
    virtual: Mapping[str, int]  #: by axis

    @classmethod
    def over(cls, mesh: ChipMesh, devices: Any, caller: str) -> "Spread":
        """Check a spread of the axes of a mesh over devices."""
        if not isinstance(devices, Mapping):
            raise MeshError(
                f"{caller}: devices must be a dict of axes with the number of devices of each; "
                f"{devices!r} was given."
            )
        sizes = dict(mesh.axes)
        for name, count in devices.items():
            check_name(f"{caller}: devices", name, list(sizes))
            if not is_whole(count) or count < 1 or sizes[name] % count:
                raise MeshError(
                    f"{caller}: axis {name!r} of {sizes[name]} chips cannot be spread over "
                    f"{count!r} devices; it must be a divisor of {sizes[name]}."
                )
        on = {name: int(devices.get(name, 1)) for name in sizes}
        virtual = {name: size // on[name] for name, size in mesh.axes}
        names = list(sizes)
        for i, name in enumerate(names):
            inner = [other for other in names[i + 1 :] if on[other] > 1]
            if virtual[name] > 1 and inner:
                raise MeshError(
                    f"{caller}: axis {inner[0]!r} is spread over devices inside {name!r}, which "
                    "has several chips on each; devices must split the outermost axes first."
                )
        return cls(caller=caller, devices=on, virtual=virtual)

    def device_mesh(self) -> Mesh:
        """The first devices that JAX has, in the order of the chips."""
        needed, found = prod(self.devices.values()), jax.devices()
        if len(found) < needed:
            raise MeshError(
                f"{self.caller}: {needed} devices are needed but {len(found)} are available."
            )
        return Mesh(
            np.array(found[:needed]).reshape(list(self.devices.values())),
            tuple(self.devices),
            axis_types=(AxisType.Auto,) * len(self.devices),
        )

    @property
    def carriers(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """What carries the chips of each axis, outermost first, with its size."""
        return {
            name: ((name, count), (virtual_name(name), self.virtual[name]))
            for name, count in self.devices.items()
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Chips of each carrier."""
        return dict(carrier for pair in self.carriers.values() for carrier in pair)

    def on_devices(self, spec: P) -> P:
        """How an array is split over devices."""
        return renamed(spec, {name: (name,) for name in self.devices})

    def on_each(self, spec: P) -> P:
        """How a device's share is split over its virtual chips."""
        return renamed(spec, {name: (virtual_name(name),) for name in self.devices})

    def in_chip_order(self, spec: P) -> P:
        """The carriers of each dimension in the order in which chips hold its shares."""
        return renamed(
            spec,
            {
                name: tuple(carrier for carrier, count in pair if count > 1)
                for name, pair in self.carriers.items()
            },
        )

    def devices_first(self, spec: P) -> P:
        """The same carriers in the order in which devices, then virtual chips on each, hold them.

        They differ where several axes split a dimension, and an inner one is spread over devices.
        """
        return P(
            *(
                tuple(sorted(names_of(entry), key=lambda name: name not in self.devices)) or None
                for entry in self.in_chip_order(spec)
            )
        )
