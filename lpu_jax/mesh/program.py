"""A per-chip program with its specs, one call of it, and the proof of what all chips hold alike.

Everything that a user can get wrong is refused here, once for all ways of running.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from ..datapath.primitive import free, primitive
from ..errors import MeshError
from .chips import ChipMesh, check_mesh
from .specs import (
    Specs,
    all_names,
    beside,
    check_array,
    check_shares,
    check_specs,
    is_spec,
    mesh_name,
    per_leaf,
    virtual_name,
)

Program = Callable[..., Any]

#: How JAX says that it knows no axis of a name; the second where nothing is traced.
_JAX_COLLECTIVE = re.compile(
    r"unbound axis name: (\w+)|Evaluation rule for '(\w+)' not implemented"
)


@dataclass(frozen=True, kw_only=True)
class ShardedProgram:
    """A per-chip program and how its arguments and results are split; checked."""

    caller: str
    program: Program
    mesh: ChipMesh
    in_specs: Specs
    out_specs: Specs

    def call(self, args: tuple[Any, ...]) -> "Call":
        """Check the arguments of a call."""
        try:
            inspect.signature(self.program).bind(*args, axes={})
        except TypeError as error:
            raise MeshError(
                f"{self.caller}: the program cannot take {len(args)} arrays and axes=: {error}."
            ) from None
        leaves, tree = jax.tree.flatten(args)
        specs = argument_specs(self.caller, "args", self.in_specs, args, dict(self.mesh.axes))
        return Call(sharded=self, tree=tree, leaves=leaves, in_specs=specs)


def checked_program(
    caller: str, program: Any, mesh: Any, in_specs: Specs, out_specs: Specs
) -> ShardedProgram:
    """Check a program, its mesh and its specs; `caller` goes into messages.

    Raises:
        MeshError: says what to write.
    """
    check_mesh(caller, mesh)
    if not callable(program):
        raise MeshError(f"{caller}: the program must be a function; {program!r} was given.")
    if not _takes_axes(program):
        raise MeshError(
            f"{caller}: the program must take the axes of the mesh; write "
            "`def program(x, *, axes)`."
        )
    check_specs(caller, "in_specs", in_specs, mesh)
    check_specs(caller, "out_specs", out_specs, mesh)
    return ShardedProgram(
        caller=caller, program=program, mesh=mesh, in_specs=in_specs, out_specs=out_specs
    )


def _takes_axes(program: Program) -> bool:
    try:
        parameters = inspect.signature(program).parameters
    except (TypeError, ValueError):
        return False  # a callable of C
    kinds = {parameter.kind for parameter in parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds or (
        "axes" in parameters and parameters["axes"].kind is not inspect.Parameter.POSITIONAL_ONLY
    )


def argument_specs(
    caller: str, where: str, specs: Specs, values: Any, sizes: Mapping[str, int]
) -> list[P]:
    """Give the spec of each leaf of arguments; refuse those that it does not split."""
    which = "specs" if where == "values" else "in_specs"
    found = per_leaf(specs, values, f"{caller}: {which}", where)
    paths = jax.tree_util.tree_flatten_with_path(values)[0]
    for spec, (path, leaf) in zip(found, paths, strict=True):
        at = f"{caller}: {where}{jax.tree_util.keystr(path)}"
        check_array(at, leaf, spec)
        check_shares(at, leaf, spec, sizes)
    return found


@dataclass(kw_only=True)
class Call:
    """One call: arguments as leaves with a spec each, results as groups, one for each spec."""

    sharded: ShardedProgram
    tree: Any
    leaves: list[Any]
    in_specs: list[P]
    structure: Any = field(default=None)  #: of the results, once the program has run

    @property
    def out_specs(self) -> list[P]:
        """The spec of each group of results."""
        return jax.tree.leaves(self.sharded.out_specs, is_leaf=is_spec)

    def chip(self, axes: Mapping[str, Any], *, proving: bool) -> Callable[..., list[list[Any]]]:
        """The program of one chip over leaves and groups.

        Args:
            axes: what it is given.
            proving: refuse results that differ between chips along an axis their spec leaves out.
        """
        sharded = self.sharded

        def program(*leaves: Any) -> list[list[Any]]:
            try:
                out = sharded.program(*jax.tree.unflatten(self.tree, leaves), axes=axes)
            except (NameError, NotImplementedError) as error:
                used = _JAX_COLLECTIVE.search(str(error))
                if used is None:
                    raise
                raise MeshError(
                    f"{sharded.caller}: the program has a collective of JAX itself "
                    f"({used[1] or used[2]}), which sees no chips; take one of "
                    "lpu_jax.datapath.c2c, with axes['name'] of the mesh."
                ) from None
            self.structure = jax.tree.structure(out)
            which, where = f"{sharded.caller}: out_specs", "the result"
            return [
                [
                    self._result(leaf, spec, f"{at}{jax.tree_util.keystr(path)}", proving)
                    for path, leaf in jax.tree_util.tree_flatten_with_path(below)[0]
                ]
                for spec, below, at in beside(sharded.out_specs, out, which, where)
            ]

        return program

    def _result(self, leaf: Any, spec: P, where: str, proving: bool) -> Any:
        at = f"{self.sharded.caller}: {where}"
        check_array(at, leaf, spec)
        named = all_names(spec)
        left_out = tuple(
            name for name, size in self.sharded.mesh.axes if size > 1 and name not in named
        )
        if not proving or not left_out:
            return leaf
        axes = tuple(map(virtual_name, left_out))
        return _same_on_chips(leaf, axes=axes, where=at, spec=str(spec))

    def results(self, groups: list[list[Any]]) -> Any:
        """Put groups of results back into what the program returns."""
        return jax.tree.unflatten(self.structure, [leaf for group in groups for leaf in group])


def _same_rule(
    prim: Any, axis_data: Any, operands: Any, dims: Any, *, axes: Any, where: str, spec: str
) -> tuple[Any, Any]:
    """Refuse an operand with shares along one of `axes`; without any of them left, vanish."""
    (x,), (dim,) = operands, dims
    if axis_data.name in axes and dim is not None:
        raise MeshError(
            f"{where} differs between the chips of axis {mesh_name(axis_data.name)!r}, which its "
            f"spec {spec} "
            "does not name: name the axis where its shares lie, or make it the same on all chips "
            "with c2c.all_reduce or c2c.all_gather."
        )
    left = tuple(name for name in axes if name != axis_data.name)
    if not left:
        return [x], [dim]
    return prim.bind(x, axes=left, where=where, spec=spec), [dim]


#: Marks a result that its spec calls the same on all chips of some axes; computes nothing.
_same_on_chips = primitive(
    "same_on_chips",
    abstract=lambda x, **_: jax.ShapeDtypeStruct(x.shape, x.dtype),
    meaning=lambda x, **_: x,
    cost=free,
    named_axis_rule=_same_rule,
)
