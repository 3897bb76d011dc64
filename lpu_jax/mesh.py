"""The explicit chip mesh: one per-chip program on virtual chips, devices or both, or traced.

A per-chip program is `program(*shards, axes=axes)`; `axes` maps each mesh axis to the `Axis` that
collectives take. All four ways take global arrays and `PartitionSpec`s, and give the same bits.
This is the only module that looks at devices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .datapath.c2c import Axis
from .errors import MeshError

Program = Callable[..., Any]
Specs = Any  #: a PartitionSpec, or a tree of them that is a prefix of the arguments


@dataclass(frozen=True, kw_only=True)
class ChipMesh:
    """Named axes laid onto a run of chips, outermost first.

    Neighbours along the last axis are neighbouring chips.
    """

    axes: tuple[tuple[str, int], ...]
    #: chips of a node, a rack, ...: the order of summation across chips
    tiers: tuple[int, ...] = ()
    algorithm: str = "auto"

    @property
    def n_chips(self) -> int:
        """Chips of the mesh."""
        return prod(size for _, size in self.axes)

    def as_axes(self) -> dict[str, Axis]:
        """Describe each axis to a program; on an axis of one chip collectives do nothing."""
        return self._axes({name: ((name, size),) for name, size in self.axes})

    def _axes(self, carriers: Mapping[str, tuple[tuple[str, int], ...]]) -> dict[str, Axis]:
        """Describe axes that are carried by other axes: devices, and virtual chips on each."""
        return {
            name: Axis(
                names=tuple(carrier for carrier, count in carriers[name] if count > 1),
                size=size,
                tiers=self.tiers,
                algorithm=self.algorithm,
                stride=prod(inner for _, inner in self.axes[i + 1 :]),
            )
            for i, (name, size) in enumerate(self.axes)
        }


def run_virtual(
    program: Program, mesh: ChipMesh, in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Run on virtual chips: every axis is a `vmap` with its name.

    Only what a spec splits is held once per chip.

    Raises:
        ValueError: if an output whose spec names no axis differs between chips (its replication is
            not proven).
    """
    return _virtual(partial(program, axes=mesh.as_axes()), mesh.axes, in_specs, out_specs)


def run_devices(
    program: Program, mesh: ChipMesh, in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Run on real devices, one chip on each: `shard_map` over the first `mesh.n_chips` devices.

    Raises:
        MeshError: if there are fewer devices.
    """
    return jax.shard_map(
        partial(program, axes=mesh.as_axes()),
        mesh=_device_mesh(mesh.axes),
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )


def run_nested(
    program: Program, mesh: ChipMesh, devices: Mapping[str, int], in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Run several virtual chips on each of several devices.

    Args:
        program: the per-chip program.
        mesh: the chips.
        devices: for some axes, over how many devices their chips are spread (a divisor of the
            axis).
        in_specs: how each argument is split over the axes.
        out_specs: the same for the results.

    Raises:
        MeshError: if a number of devices does not divide its axis, or there are too few devices.
    """
    sizes = dict(mesh.axes)
    for name, count in devices.items():
        if name not in sizes or sizes[name] % count:
            raise MeshError(
                f"axis {name!r} of {sizes.get(name, 0)} chips cannot be spread over {count} "
                "devices: not a divisor."
            )
    outer = tuple((f"{name}_device", devices.get(name, 1)) for name, _ in mesh.axes)
    inner = tuple((f"{name}_virtual", size // devices.get(name, 1)) for name, size in mesh.axes)
    if any(a > 1 and b > 1 for i, (_, a) in enumerate(inner) for _, b in outer[i + 1 :]):
        raise MeshError(
            "devices must split the outermost axes first: a joint run of chips would not be in "
            "chip order."
        )
    axes = mesh._axes(
        {name: (o, i) for (name, _), o, i in zip(mesh.axes, outer, inner, strict=True)}
    )

    def split(spec: P, suffix: str) -> P:
        return P(
            *(
                None
                if entry is None
                else tuple(
                    f"{name}_{suffix}" for name in (entry if isinstance(entry, tuple) else (entry,))
                )
                for entry in spec
            )
        )

    def specs(tree: Specs, suffix: str) -> Specs:
        return jax.tree.map(lambda spec: split(spec, suffix), tree, is_leaf=_is_spec)

    local = _virtual(
        partial(program, axes=axes), inner, specs(in_specs, "virtual"), specs(out_specs, "virtual")
    )
    return jax.shard_map(
        local,
        mesh=_device_mesh(outer),
        in_specs=specs(in_specs, "device"),
        out_specs=specs(out_specs, "device"),
        check_vma=False,
    )


def put_on_devices(values: Any, mesh: ChipMesh, specs: Specs) -> Any:
    """Spread global arrays over real devices as `run_devices` takes them: no copy at the run.

    Args:
        values: tree of arrays.
        mesh: the chips.
        specs: how each array is split over the axes.

    Raises:
        MeshError: if there are fewer devices than chips.
    """
    devices = _device_mesh(mesh.axes)
    flat, tree = jax.tree.flatten(values)
    shardings = [NamedSharding(devices, spec) for spec in _per_leaf(specs, values)]
    return jax.tree.unflatten(tree, jax.device_put(flat, shardings))


def trace(
    program: Program, mesh: ChipMesh, in_specs: Specs, out_specs: Specs, *args: Any
) -> ClosedJaxpr:
    """Trace for a mesh of any size, without devices and without allocating.

    Arguments may be `ShapeDtypeStruct`s.
    """
    abstract = AbstractMesh(
        tuple(size for _, size in mesh.axes),
        tuple(name for name, _ in mesh.axes),
        axis_types=(AxisType.Auto,) * len(mesh.axes),
    )
    mapped = jax.shard_map(
        partial(program, axes=mesh.as_axes()),
        mesh=abstract,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )
    return jax.make_jaxpr(mapped)(*args)


def _is_spec(value: Any) -> bool:
    return isinstance(value, P)


def _device_mesh(axes: tuple[tuple[str, int], ...]) -> Mesh:
    needed = prod(size for _, size in axes)
    devices = jax.devices()
    if len(devices) < needed:
        raise MeshError(f"{needed} devices are needed but {len(devices)} are there.")
    return Mesh(
        np.array(devices[:needed]).reshape([size for _, size in axes]),
        tuple(name for name, _ in axes),
        axis_types=(AxisType.Auto,) * len(axes),
    )


# --- virtual chips --------------------------------------------------------------------------------


def _virtual(
    program: Program, axes: tuple[tuple[str, int], ...], in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Nest one `vmap` per axis around the program, the first axis outermost.

    `out_specs` names every result.
    """
    axes = tuple((name, size) for name, size in axes if size > 1)
    sizes = dict(axes)
    # A single chip is no axis.
    in_specs, out_specs = (
        jax.tree.map(lambda spec: _kept(spec, sizes), tree, is_leaf=_is_spec)
        for tree in (in_specs, out_specs)
    )

    def run(*args: Any) -> Any:
        arg_specs = _per_leaf(in_specs, args)
        flat, tree = jax.tree.flatten(args)
        shards = [_cut(leaf, spec, sizes) for leaf, spec in zip(flat, arg_specs, strict=True)]

        out_tree: list[Any] = []

        def chip(*leaves: Any) -> list[Any]:
            out = program(*jax.tree.unflatten(tree, leaves))
            leaves_out, structure = jax.tree.flatten(out)
            out_tree[:] = [structure, _per_leaf(out_specs, out)]
            return leaves_out

        mapped: Callable[..., Any] = chip
        for name, size in reversed(axes):
            if not any(name in _names(spec) for spec in arg_specs):
                # A replica axis: nothing is split over it, so one copy stands for all of them.
                continue
            mapped = _map_axis(mapped, name, size, arg_specs, out_specs)
        results = mapped(*shards)
        structure, result_specs = out_tree
        joined = [_join(r, spec, sizes) for r, spec in zip(results, result_specs, strict=True)]
        return jax.tree.unflatten(structure, joined)

    return run


def _map_axis(
    mapped: Callable[..., Any], name: str, size: int, arg_specs: list[P], out_specs: Specs
) -> Callable[..., Any]:
    in_axes = tuple(0 if name in _names(spec) else None for spec in arg_specs)

    def step(*leaves: Any) -> Any:
        # The result's structure is known once the program has run, so its axes are a prefix tree
        # built from the specs.
        split = jax.tree.leaves(out_specs, is_leaf=_is_spec)
        out_axes = [0 if name in _names(spec) else None for spec in split]
        return jax.vmap(mapped, in_axes=in_axes, out_axes=out_axes, axis_name=name, axis_size=size)(
            *leaves
        )

    return step


def _per_leaf(specs: Specs, values: Any) -> list[P]:
    """Repeat each spec for every leaf below it."""
    found: list[P] = []
    jax.tree.map(
        lambda spec, below: found.extend([spec] * len(jax.tree.leaves(below))),
        specs,
        values,
        is_leaf=_is_spec,
    )
    return found


def _kept(spec: P, sizes: Mapping[str, int]) -> P:
    """Drop the names of axes that are not mapped."""
    return P(
        *(
            tuple(n for n in (e if isinstance(e, tuple) else (e,)) if n in sizes) or None
            for e in spec
        )
    )


def _names(spec: P) -> tuple[str, ...]:
    """Mesh axes that a spec names."""
    return tuple(
        name
        for entry in spec
        if entry is not None
        for name in (entry if isinstance(entry, tuple) else (entry,))
    )


def _cut(x: jax.Array, spec: P, sizes: dict[str, int]) -> jax.Array:
    """Bring the chip axes of a global array to the front, in the order of the mesh."""
    shape: list[int] = []
    places: dict[str, int] = {}
    for dim, length in enumerate(x.shape):
        entry = spec[dim] if dim < len(spec) else None
        names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        ways = prod(sizes[name] for name in names)
        if length % ways:
            raise MeshError(f"a dimension of {length} cannot be split {ways} ways; pad it first.")
        for name in names:
            places[name] = len(shape)
            shape.append(sizes[name])
        shape.append(length // ways)
    order = [places[name] for name in sizes if name in places]
    rest = [i for i in range(len(shape)) if i not in order]
    return jnp.transpose(x.reshape(shape), (*order, *rest))


def _join(x: jax.Array, spec: P, sizes: Mapping[str, int]) -> jax.Array:
    """Undo `_cut`: put the chip axes back into their dimensions.

    They come first and in the order of the mesh.
    """
    chips = [name for name in sizes if name in _names(spec)]
    order: list[int] = []
    shape: list[int] = []
    for dim in range(x.ndim - len(chips)):
        entry = spec[dim] if dim < len(spec) else None
        names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        group = [chips.index(name) for name in names]
        order += [*group, len(chips) + dim]
        shape.append(prod(x.shape[i] for i in (*group, len(chips) + dim)))
    return jnp.transpose(x, order).reshape(shape)
