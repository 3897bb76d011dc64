"""Run a per-chip program on virtual chips, on devices, or on both nested; or trace it.

One meaning for all: every chip runs the program on its shares, and the results of the chips lie
side by side along the axes that their spec names. Along all other axes a result must be the same on
every chip, which is proven before anything runs: no operation on its way may have seen shares. An
axis that splits no argument is an axis like any other; what all its chips hold is held once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .chips import ChipMesh, check_mesh
from .program import Program, ShardedProgram, argument_specs, checked_program
from .shares import cut, join, relaid
from .specs import Specs, all_names, check_specs, renamed, virtual_name
from .spread import Spread

Sizes = Mapping[str, int]


def run_virtual(
    program: Program, mesh: ChipMesh, in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Run on virtual chips: every axis is a `vmap` with its name.

    Only what a spec splits is held once per chip.

    Args:
        program: called as `program(*shares, axes=axes)`, once for each chip.
        mesh: the chips.
        in_specs: how each argument is split over the axes.
        out_specs: the same for the results.

    Raises:
        MeshError: what is given is not a program, mesh or spec; when called, an argument does not
            split evenly, or a result is not proven to be the same on chips along an axis that its
            spec does not name.
    """
    return partial(_virtual, checked_program("run_virtual", program, mesh, in_specs, out_specs))


def run_devices(
    program: Program, mesh: ChipMesh, in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Run on real devices, one chip on each: `shard_map` over the first `mesh.n_chips` devices.

    Arguments that already lie on devices must lie on those of this mesh: `put_on_devices`.

    Args:
        program: as for `run_virtual`.
        mesh: the chips.
        in_specs: how each argument is split over the axes.
        out_specs: the same for the results.

    Raises:
        MeshError: as for `run_virtual`, or there are fewer devices.
    """
    sharded = checked_program("run_devices", program, mesh, in_specs, out_specs)
    spread = Spread.over(mesh, dict(mesh.axes), "run_devices")
    return partial(_on_devices, sharded, spread, spread.device_mesh())


def run_nested(
    program: Program, mesh: ChipMesh, devices: Mapping[str, int], in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """Run several virtual chips on each of several devices.

    Args:
        program: as for `run_virtual`.
        mesh: the chips.
        devices: for some axes, over how many devices their chips are spread (a divisor of the
            axis); see `most_devices`.
        in_specs: how each argument is split over the axes.
        out_specs: the same for the results.

    Raises:
        MeshError: as for `run_virtual`; or a number of devices does not divide its axis, an inner
            axis is spread before an outer one, or there are too few devices.
    """
    sharded = checked_program("run_nested", program, mesh, in_specs, out_specs)
    spread = Spread.over(mesh, devices, "run_nested")
    return partial(_on_devices, sharded, spread, spread.device_mesh())


def trace(
    program: Program, mesh: ChipMesh, in_specs: Specs, out_specs: Specs, *args: Any
) -> ClosedJaxpr:
    """Trace for a mesh of any size, without devices and without allocating.

    Args:
        program: as for `run_virtual`.
        mesh: the chips.
        in_specs: how each argument is split over the axes.
        out_specs: the same for the results; None: of them nothing is asked, nor proven.
        *args: global arrays, or `ShapeDtypeStruct`s.

    Raises:
        MeshError: as for `run_virtual`.
    """
    is_asked = out_specs is not None
    sharded = checked_program("trace", program, mesh, in_specs, out_specs if is_asked else P())
    spread = Spread.over(mesh, dict(mesh.axes), "trace")
    abstract = AbstractMesh(
        tuple(spread.devices.values()),
        tuple(spread.devices),
        axis_types=(AxisType.Auto,) * len(spread.devices),
    )
    sharded.call(args)  # refuses what `make_jaxpr` would refuse in other words
    run = partial(_on_devices, sharded, spread, abstract, proving=is_asked)
    return jax.make_jaxpr(run)(*args)


def put_on_devices(
    values: Any, mesh: ChipMesh, specs: Specs, devices: Mapping[str, int] | None = None
) -> Any:
    """Spread global arrays over real devices as `run_devices` takes them: no copy at the run.

    Args:
        values: tree of arrays.
        mesh: the chips.
        specs: how each array is split over the axes.
        devices: as for `run_nested`; None: one for each chip.

    Raises:
        MeshError: there are too few devices, or an array does not split evenly.
    """
    caller = "put_on_devices"
    check_mesh(caller, mesh)
    check_specs(caller, "specs", specs, mesh)
    spread = Spread.over(mesh, dict(mesh.axes) if devices is None else devices, caller)
    on = spread.device_mesh()
    flat, tree = jax.tree.flatten(values)
    leaf_specs = argument_specs(caller, "values", specs, values, dict(mesh.axes))
    shardings = [NamedSharding(on, spread.on_devices(spec)) for spec in leaf_specs]
    return jax.tree.unflatten(tree, jax.device_put(flat, shardings))


# --- virtual chips --------------------------------------------------------------------------------


def _virtual(sharded: ShardedProgram, *args: Any) -> Any:
    """Run on virtual chips alone; this is also what proves a program for the other ways."""
    call = sharded.call(args)
    spread = Spread.over(sharded.mesh, {}, sharded.caller)
    chip = call.chip(sharded.mesh.as_axes(spread.carriers), proving=True)
    groups = _local(spread, chip, call.in_specs, call.out_specs)(*call.leaves)
    return call.results(groups)


def _local(
    spread: Spread, chip: Callable[..., list[list[Any]]], in_specs: list[P], out_specs: list[P]
) -> Callable[..., list[list[Any]]]:
    """Run the virtual chips that one device has."""
    # Under names of their own: a collective of JAX, which would see a device's chips only, finds no
    # axis of the mesh.
    virtual = {virtual_name(name): size for name, size in spread.virtual.items()}
    shares = [[spread.on_each(spec) for spec in specs] for specs in (in_specs, out_specs)]
    return _mapped(chip, virtual, *shares)


def _mapped(
    chip: Callable[..., list[list[Any]]], axes: Sizes, in_specs: list[P], out_specs: list[P]
) -> Callable[..., list[list[Any]]]:
    """Nest one `vmap` per axis around a program, the first axis outermost."""
    sizes = {name: size for name, size in axes.items() if size > 1}  # a single chip is no axis
    kept = {name: (name,) for name in sizes}
    in_specs, out_specs = (
        [renamed(spec, kept) for spec in specs] for specs in (in_specs, out_specs)
    )

    def run(*leaves: Any) -> list[list[Any]]:
        shares = [cut(leaf, spec, sizes) for leaf, spec in zip(leaves, in_specs, strict=True)]
        mapped = chip
        for name, size in reversed(sizes.items()):
            in_axes, out_axes = (
                [0 if name in all_names(spec) else None for spec in specs]
                for specs in (in_specs, out_specs)
            )
            mapped = jax.vmap(
                mapped,
                in_axes=tuple(in_axes),
                out_axes=out_axes,
                axis_name=name,
                axis_size=size,
            )
        return [
            [join(leaf, spec, sizes) for leaf in group]
            for group, spec in zip(mapped(*shares), out_specs, strict=True)
        ]

    return run


# --- devices, each with virtual chips -------------------------------------------------------------


def _on_devices(
    sharded: ShardedProgram,
    spread: Spread,
    device_mesh: Mesh | AbstractMesh,
    *args: Any,
    proving: bool = True,
) -> Any:
    """Prove a program on virtual chips, then run it on devices with virtual chips on each."""
    call = sharded.call(args)
    if proving:
        jax.eval_shape(partial(_virtual, sharded), *args)
    chip = call.chip(sharded.mesh.as_axes(spread.carriers), proving=False)
    mapped = jax.shard_map(
        _local(spread, chip, call.in_specs, call.out_specs),
        mesh=device_mesh,
        in_specs=tuple(spread.on_devices(spec) for spec in call.in_specs),
        out_specs=[spread.on_devices(spec) for spec in call.out_specs],
        check_vma=False,
    )
    leaves = [
        relaid(leaf, spread.in_chip_order(spec), spread.devices_first(spec), spread.sizes)
        for leaf, spec in zip(call.leaves, call.in_specs, strict=True)
    ]
    groups = [
        [
            relaid(leaf, spread.devices_first(spec), spread.in_chip_order(spec), spread.sizes)
            for leaf in group
        ]
        for group, spec in zip(mapped(*leaves), call.out_specs, strict=True)
    ]
    return call.results(groups)
