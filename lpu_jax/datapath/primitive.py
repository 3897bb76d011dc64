"""The factory of datapath operations: one call makes a JAX primitive with every rule it needs.

A primitive that lacks a rule cannot be made. A batching rule binds the same primitive again with
one more entry in its static `levels`, so that an operation stays visible, with its parameters,
under any nesting of `vmap`. Units with a better rule of their own (MXM, C2C) pass it. Derivatives
are not defined: the emulator runs inference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from ..numerics.compiler import check_options
from .alu import AluChain
from .work import Call, Hardware, Unit, Work

CostRule = Callable[[Hardware, Call], Work]
Shapes = Callable[..., Any]
#: For each level of batching, outermost first: which operands carry its leading dimension.
Levels = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What the cost reading knows of a primitive: exactly one of `cost` and `chain`."""

    name: str
    cost: CostRule | None
    chain: Callable[[dict[str, Any]], AluChain] | None


DEFINITIONS: dict[Primitive, Definition] = {}


def free(machine: Hardware, call: Call) -> Work:
    """Cost rule of addressing and layout that the compiler decides: no unit, no time."""
    del machine, call
    return Work(unit=Unit.FREE)


def _peel(avals: Sequence[Any], levels: Levels) -> tuple[tuple[Any, ...], list[Any]]:
    """Split the leading dimensions of all levels off the operands."""
    lead: list[Any] = []
    shapes = [list(aval.shape) for aval in avals]
    for flags in levels:
        sizes = [shape.pop(0) for shape, flag in zip(shapes, flags, strict=True) if flag]
        lead.append(sizes[0])
    core = [
        jax.ShapeDtypeStruct(tuple(shape), aval.dtype)
        for shape, aval in zip(shapes, avals, strict=True)
    ]
    return tuple(lead), core


def primitive(
    name: str,
    *,
    abstract: Shapes,
    meaning: Callable[..., Any],
    cost: CostRule | None = None,
    chain: Callable[[dict[str, Any]], AluChain] | None = None,
    batching_rule: Callable[..., Any] | None = None,
    named_axis_rule: Callable[..., Any] | None = None,
    needs_x64: bool = False,
) -> Callable[..., Any]:
    """Make a datapath operation and return the function that binds it.

    Args:
        name: as it appears in jaxprs and reports.
        abstract: `(*operands, **params) -> ShapeDtypeStruct`, or a tuple of them; keeps symbolic
            dimensions.
        meaning: `(*operands, **params) -> array(s)`, the lowering, as traceable JAX.
        cost: rule from shapes to `Work`; or
        chain: rule from parameters to `AluChain`, for element-wise VXM operations.
        batching_rule: `(operands, dims, **params)`; left out, a leading dimension is added to
            `levels`.
        named_axis_rule: `(axis_data, operands, dims, **params)` for collectives, instead of
            `batching_rule`.
        needs_x64: the meaning uses 64-bit types; they are enabled around it and nowhere else.

    Raises:
        TypeError: if the operation does not have exactly one of `cost` and `chain`.
    """
    if (cost is not None) + (chain is not None) != 1:
        raise TypeError(f"{name}: exactly one of `cost` and `chain` must be given")
    own_batching = batching_rule is not None or named_axis_rule is not None
    prim = Primitive(name)
    probe = abstract_results(abstract)
    prim.multiple_results = True

    def abstract_rule(*avals: Any, levels: Levels = (), **params: Any) -> list[ShapedArray]:
        lead, core = _peel(avals, levels)
        return [ShapedArray((*lead, *out.shape), out.dtype) for out in probe(*core, **params)]

    def lowering(*args: Any, levels: Levels = (), **params: Any) -> list[Any]:
        check_options()
        function = partial(meaning, **params)
        for flags in reversed(levels):
            function = jax.vmap(function, in_axes=tuple(0 if flag else None for flag in flags))
        if needs_x64:
            with jax.enable_x64(True):
                out = function(*args)
        else:
            out = function(*args)
        return list(out) if isinstance(out, tuple | list) else [out]

    @cache  # jit knows a function by its identity: without this, every eager call would compile
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(partial(lowering, **dict(params)))

    prim.def_abstract_eval(abstract_rule)
    mlir.register_lowering(prim, mlir.lower_fun(lowering, multiple_results=True))
    prim.def_impl(lambda *args, **params: compiled(tuple(sorted(params.items())))(*args))
    if named_axis_rule is not None:
        batching.fancy_primitive_batchers[prim] = partial(named_axis_rule, prim)
    elif batching_rule is not None:
        batching.primitive_batchers[prim] = partial(batching_rule, prim)
    else:
        batching.primitive_batchers[prim] = partial(add_level, prim)
    DEFINITIONS[prim] = Definition(name=name, cost=cost, chain=chain)

    def bind(*operands: Any, **params: Any) -> Any:
        extra = {} if own_batching else {"levels": ()}
        out = prim.bind(*operands, **params, **extra)
        return out[0] if len(out) == 1 else tuple(out)

    return bind


def abstract_results(abstract: Shapes) -> Callable[..., list[Any]]:
    """Wrap an abstract rule so that it always returns a list of results."""

    def results(*core: Any, **params: Any) -> list[Any]:
        out = abstract(*core, **params)
        return list(out) if isinstance(out, tuple | list) else [out]

    return results


def add_level(
    prim: Primitive, operands: Sequence[Any], dims: Sequence[Any], *, levels: Levels, **params: Any
) -> tuple[Any, Any]:
    """Batch most operations: move the batch dimension in front and note it in `levels`."""
    flags = tuple(dim is not None for dim in dims)
    moved = [
        jnp.moveaxis(operand, dim, 0) if flag else operand
        for operand, dim, flag in zip(operands, dims, flags, strict=True)
    ]
    out = prim.bind(*moved, levels=(flags, *levels), **params)
    return out, [0] * len(out)
