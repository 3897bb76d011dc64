"""C2C, the chip-to-chip links: collectives with a stated order of summation.

What it computes: values cross chips in the type of the operand (the wire format); sums are made in
fp32 in ascending chip order, inside each node first where the run of chips is longer than a node,
and rounded to the wire format per level. A few algorithms have orders of their own. Sums by a tree,
and of whole and wide numbers, have the same bits whatever the algorithm. What it costs: the link
schedule of the algorithm over the run of chips (`lpu_jax.cost.collectives`); one choice of
algorithm fixes both. Not modelled: runs that begin in the middle of a node are summed as
if they began at its first chip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float16, Float32, Int32

from ..arguments import Count, check_not_empty, checked, described
from ..errors import CostError, LpuError, MeshError
from ..machine.chip import ChipSpec
from ..numerics.schemes import MXFP8_E4M3
from ..predicates import divides, exceeds
from .axis import Axis, steps_of
from .chip_sums import OWN_ORDERS as OWN_ORDERS
from .chip_sums import Sums, WireFormat, cut, laid_out, share_totals, total
from .primitive import primitive
from .work import Call, Hardware, Operand, Quantity, Work

#: Bits of a value in fp32 on the links.
WIRE_BITS: Mapping[WireFormat, float] = MappingProxyType(
    {"bf16": 16, "fp8": MXFP8_E4M3.bits_per_value}
)
#: What chips add: other types have no room for sums.
Addends = Float16[Array, "..."] | BFloat16[Array, "..."] | Float32[Array, "..."]


@checked
def joined(*axes: Axis) -> Axis:
    """Join axes, outermost first, into the run of chips they make together.

    Raises:
        MeshError: there are no axes, they are of different meshes, or not outermost first.
    """
    _check_joined(axes)
    size: Any = 1
    for axis in axes:
        size = size * axis.size
    names = tuple(name for axis in axes for name in axis.names)
    return Axis(
        names=names,
        size=size,
        tiers=axes[0].tiers,
        algorithm=axes[0].algorithm,
        stride=axes[-1].stride,
    )


def _check_joined(axes: Sequence[Axis]) -> None:
    """Refuse what is not a run of chips; symbolic sizes come from a plan that was checked."""
    if not axes or not all(isinstance(axis, Axis) for axis in axes):
        given = ", ".join(repr(axis) for axis in axes) or "none"
        raise MeshError(f"c2c.joined: axes of the mesh are needed, outermost first, not {given}.")
    if len({(axis.tiers, axis.algorithm) for axis in axes}) > 1:
        raise MeshError("c2c.joined: the axes are of different meshes.")
    several = [
        a for a in axes if isinstance(a.size, int) and isinstance(a.stride, int) and a.size > 1
    ]
    for outer, inner in pairwise(several):
        if outer.stride <= inner.stride:
            raise MeshError(
                f"c2c.joined: axis {outer.shown!r} does not lie outside axis "
                f"{inner.shown!r} in the mesh; give each axis once, outermost first."
            )


def _bind(bind: Any, caller: str, x: Array, axis: Axis, **params: Any) -> Array:
    axis.check(caller)
    check_not_empty(caller, "x", x)
    # A single chip in a concrete plan keeps the operation in its program, so that every plan has
    # the same program.
    out: Array = bind(
        x,
        names=axis.names,
        stacked=(),
        size=axis.size,
        tiers=_own_tiers(axis),
        algorithm=axis.algorithm,
        stride=axis.stride,
        **params,
    )
    return out


def _own_tiers(axis: Axis) -> tuple[int, ...]:
    """How many chips of the run lie in a node, a rack, ...: fewer where other chips lie between."""
    if not isinstance(axis.stride, int):
        return axis.tiers
    return tuple(tier // axis.stride for tier in axis.tiers if tier // axis.stride > 1)


@checked
def all_reduce(x: Addends, axis: Axis, *, wire: WireFormat | None = None) -> Addends:
    """Add the partial sums of all chips of `axis`; every chip gets the sum, in the operand's type.

    Args:
        x: the partial sums.
        axis: the chips.
        wire: the format of the values of `x`, in fp32, on the links (`wires.all_reduce`); None: the
            operand's type.

    Fidelity:
        Order-dependent, the order is fixed: fp32 additions by ascending chip number within each
        level, rounded to the operand's type after each level; every algorithm but those of
        `OWN_ORDERS` gives these bits. One chip returns its operand.

    Raises:
        CostError: the algorithm has an order of its own and the run is longer than a node.
    """
    _check_order(axis, "c2c.all_reduce")
    return _bind(_all_reduce, "c2c.all_reduce", x, axis, sums="chips", **_in_wire(x, wire))


@checked
def tree_all_reduce(x: Float32[Array, "..."], axis: Axis) -> Float32[Array, "..."]:
    """Add the partial sums of all chips of `axis` by a binary tree; every chip gets the sum.

    They cross the links in fp32, in the steps of an all-reduce. A `ring`, which has an order of its
    own, leaves it to `auto`.

    Fidelity:
        Order-dependent, the order is fixed: fp32 additions of chips 2 i and 2 i + 1, then of their
        sums, and so on, whatever nodes they are in: that of `tree_sums.sum_tree` over what is one
        chip's. One chip returns its operand.

    Raises:
        MeshError: the number of chips is no power of two.
    """
    _check_tree(axis, "c2c.tree_all_reduce")
    return _bind(_all_reduce, "c2c.tree_all_reduce", x, _in_tree(axis), sums="tree")


@checked
def whole_all_reduce(x: Int32[Array, "..."], axis: Axis) -> Int32[Array, "..."]:
    """Add whole numbers of all chips of `axis`; every chip gets the sum.

    Fidelity: exact, in any order, where the sum is a number of int32.
    """
    return _bind(_all_reduce, "c2c.whole_all_reduce", x, axis, sums="whole")


@checked
def wide_all_reduce(x: Int32[Array, "*rows 4 n"], axis: Axis) -> Int32[Array, "*rows 4 n"]:
    """Add wide numbers (`numerics.wide`) of all chips of `axis`; every chip gets the sum.

    They cross the links in 16 bytes each, in the steps of an all-reduce.

    Fidelity: exact, in any order.
    """
    return _bind(_all_reduce, "c2c.wide_all_reduce", x, axis, sums="wide")


@checked
def all_gather(x: Array, axis: Axis, *, dim: int, keep: Count | None = None) -> Array:
    """Put the chips' shares side by side along `dim` (negative) and keep the first `keep` places.

    Fidelity: exact.
    """
    dim = _negative("c2c.all_gather", x, dim)
    if exceeds(keep, x.shape[dim] * axis.size):
        raise LpuError(
            f"c2c.all_gather: keep={keep} was given for {axis.size} shares of {x.shape[dim]}; it "
            "must be at most their sum."
        )
    return _bind(_all_gather, "c2c.all_gather", x, axis, dim=dim, keep=keep)


@checked
def reduce_scatter(x: Addends, axis: Axis, *, dim: int, wire: WireFormat | None = None) -> Addends:
    """Add partial sums as `all_reduce` does and leave each chip its share along `dim` (negative).

    Fidelity: order-dependent, the order is fixed, as for `all_reduce`; a `ring` sums the
    shares along `dim`.

    Raises:
        CostError: the algorithm has an order of its own and the run is longer than a node.
    """
    _check_order(axis, "c2c.reduce_scatter")
    dim = _shared("c2c.reduce_scatter", x, axis, dim)
    how = {"sums": "chips", **_in_wire(x, wire)}
    return _bind(_reduce_scatter, "c2c.reduce_scatter", x, axis, dim=dim, **how)


@checked
def tree_reduce_scatter(x: Float32[Array, "..."], axis: Axis, *, dim: int) -> Float32[Array, "..."]:
    """Add partial sums as `tree_all_reduce` does; leave each chip its share along `dim` (negative).

    Fidelity: order-dependent, the order is fixed, as for `tree_all_reduce`.

    Raises:
        MeshError: the number of chips is no power of two.
    """
    _check_tree(axis, "c2c.tree_reduce_scatter")
    dim = _shared("c2c.tree_reduce_scatter", x, axis, dim)
    axis = _in_tree(axis)
    return _bind(_reduce_scatter, "c2c.tree_reduce_scatter", x, axis, dim=dim, sums="tree")


@checked
def all_to_all(x: Array, axis: Axis, *, dim: int) -> Array:
    """Send the i-th share along `dim` to chip i and put what arrives in chip order.

    Fidelity: exact.
    """
    dim = _shared("c2c.all_to_all", x, axis, dim)
    return _bind(_all_to_all, "c2c.all_to_all", x, axis, dim=dim)


def _in_wire(x: Array, wire: WireFormat | None) -> dict[str, Any]:
    """Say in which format values of fp32 cross; nothing is said of the operand's own type.

    Raises:
        LpuError: an operand of another type.
    """
    if wire is not None and x.dtype != jnp.float32:
        raise LpuError(f"c2c: wire={wire!r} was given for {described(x)}; it must be float32.")
    return {} if wire is None else {"wire": wire}


def _check_order(axis: Axis, caller: str) -> None:
    """Refuse an order of its own beyond a node; sizes yet unknown are checked when priced."""
    if steps_of(axis.algorithm) not in OWN_ORDERS or not axis.tiers:
        return
    if isinstance(axis.size, int) and isinstance(axis.stride, int):
        most = max(1, axis.tiers[0] // axis.stride)
        if axis.size > most:
            raise CostError(
                f"{caller}: algorithm {axis.algorithm!r} needs all chips of a run in one node of "
                f"{axis.tiers[0]} chips, at most {most} of them {axis.stride} apart; the run has "
                f"{axis.size}."
            )


def _check_tree(axis: Axis, caller: str) -> None:
    """Refuse a number of chips whose sums are not those of a binary tree."""
    if isinstance(axis.size, int) and axis.size & axis.size - 1:
        raise MeshError(
            f"{caller}: axis {axis.shown} has {axis.size} chips; a binary tree needs a power of "
            "two."
        )


def _in_tree(axis: Axis) -> Axis:
    """Leave to `auto` what an algorithm with an order of its own cannot do."""
    return replace(axis, algorithm="auto") if steps_of(axis.algorithm) in OWN_ORDERS else axis


def _negative(caller: str, x: Array, dim: int) -> int:
    """Return the negative number of a dimension."""
    if not -x.ndim <= dim < x.ndim:
        raise LpuError(
            f"{caller}: dim={dim} was given for an array of shape {x.shape}; it must be the number "
            "of one of its dimensions."
        )
    return dim if dim < 0 else dim - x.ndim


def _shared(caller: str, x: Array, axis: Axis, dim: int) -> int:
    """Return the negative number of a dimension that is cut into one share per chip."""
    if not divides(axis.size, x.shape[_negative(caller, x, dim)]):
        raise LpuError(
            f"{caller}: dim={dim} of shape {x.shape} was given for {axis.size} chips; its length "
            "must be a multiple of that."
        )
    return _negative(caller, x, dim)


# --- meanings -------------------------------------------------------------------------------------


def _parts(x: Array, names: tuple[str, ...], stacked: tuple[int, ...], size: int) -> Array:
    """Collect what all chips hold: `[n, ...]`, in chip order.

    Raises:
        MeshError: the chips are not there: an axis without names serves to trace a program only.
    """
    x = x.reshape(-1, *x.shape[len(stacked) :])
    if names:
        x = lax.all_gather(x, names, axis=0)
    x = x.reshape(-1, *x.shape[1 + bool(names) :])
    if x.shape[0] != size:
        raise MeshError(
            f"c2c: a collective over {size} chips runs on {x.shape[0]}; it needs an Axis whose "
            "names are those of the running mesh, such as axes['tensor'] of its program."
        )
    return x


def _own_share(shares: Array, names: tuple[str, ...], stacked: tuple[int, ...]) -> Array:
    """Take from the results of all chips `[n, ...]` those of this device: `[*stacked, ...]`."""
    shares = shares.reshape(-1, *stacked, *shares.shape[1:])
    return lax.dynamic_index_in_dim(shares, lax.axis_index(names), 0, False) if names else shares[0]


def _all_reduce_meaning(
    x: Array,
    *,
    names: Any,
    stacked: Any,
    size: int,
    tiers: Any,
    algorithm: str,
    sums: Sums,
    wire: WireFormat | None = None,
    **_: Any,
) -> Array:
    parts = _parts(x, names, stacked, size)
    return total(parts, sums=sums, tiers=tiers, algorithm=algorithm, wire=wire)


def _all_gather_meaning(
    x: Array, *, names: Any, stacked: Any, size: int, dim: int, keep: int | None, **_: Any
) -> Array:
    out = laid_out(_parts(x, names, stacked, size), dim)
    return out if keep is None else lax.slice_in_dim(out, 0, keep, axis=out.ndim + dim)


def _reduce_scatter_meaning(
    x: Array,
    *,
    names: Any,
    stacked: Any,
    size: int,
    tiers: Any,
    dim: int,
    algorithm: str,
    sums: Sums,
    wire: WireFormat | None = None,
    **_: Any,
) -> Array:
    parts = _parts(x, names, stacked, size)
    shares = share_totals(parts, sums=sums, tiers=tiers, algorithm=algorithm, dim=dim, wire=wire)
    return _own_share(shares, names, stacked)


def _all_to_all_meaning(
    x: Array, *, names: Any, stacked: Any, size: int, dim: int, **_: Any
) -> Array:
    sent = cut(_parts(x, names, stacked, size), size, dim)  # [to, from, ...]
    received = jax.vmap(lambda parts: laid_out(parts, dim))(sent)
    return _own_share(received, names, stacked)


# --- shapes, batching, cost -----------------------------------------------------------------------


def _scaled(
    x: Any, stacked: tuple[int, ...], dim: int | None, factor: Any, keep_stack: bool
) -> Any:
    """Shape of a result: stacked chips are kept or joined, dimension `dim` is set by `factor`."""
    shape = list(x.shape if keep_stack else x.shape[len(stacked) :])
    if dim is not None:
        shape[dim] = factor(shape[dim])
    return jax.ShapeDtypeStruct(tuple(shape), x.dtype)


def _all_reduce_shape(x: Any, *, stacked: Any, **_: Any) -> Any:
    return _scaled(x, stacked, None, None, keep_stack=False)


def _all_gather_shape(x: Any, *, stacked: Any, size: Any, dim: int, keep: Any, **_: Any) -> Any:
    return _scaled(x, stacked, dim, lambda n: n * size if keep is None else keep, keep_stack=False)


def _reduce_scatter_shape(x: Any, *, stacked: Any, size: Any, dim: int, **_: Any) -> Any:
    return _scaled(x, stacked, dim, lambda n: n // size, keep_stack=True)


def _all_to_all_shape(x: Any, *, stacked: Any, **_: Any) -> Any:
    return _scaled(x, stacked, None, None, keep_stack=True)


def _named_axis_rule(
    replicated: bool,
    prim: Any,
    axis_data: Any,
    operands: Sequence[Array],
    dims: Sequence[Any],
    *,
    names: tuple[str, ...],
    stacked: tuple[int, ...],
    **params: Any,
) -> tuple[Any, Any]:
    """Collect the chips of a virtual axis in front; any other batch axis stays behind them."""
    (x,), (dim,) = operands, dims
    if axis_data.name not in names:
        if dim is None:
            return prim.bind(x, names=names, stacked=stacked, **params), [dim]
        x = jnp.moveaxis(x, dim, len(stacked))
        out = prim.bind(x, names=names, stacked=stacked, **params)
        return out, [0 if replicated else len(stacked)]
    if axis_data.name != names[-1]:
        raise MeshError(
            f"virtual axis {axis_data.name!r} must be the innermost of {names}: nest virtual axes "
            "inside device axes."
        )
    x = (
        jnp.broadcast_to(x[None], (axis_data.size, *x.shape))
        if dim is None
        else jnp.moveaxis(x, dim, 0)
    )
    out = prim.bind(x, names=names[:-1], stacked=(axis_data.size, *stacked), **params)
    return out, [None if replicated else 0]


def _sent_bytes(operand: Operand, wire: WireFormat | None, chip: ChipSpec) -> Quantity:
    """Bytes of an operand on the links: 16-bit values take what the chip sends them in."""
    bits: float = operand.bits if wire is None else WIRE_BITS[wire]
    bits = chip.wire_value_bits if bits == 16 else bits
    return operand.size * bits / 8


def _collective(kind: str, shape: Any, meaning: Any, *, replicated: bool) -> Any:
    def cost(machine: Hardware, call: Call) -> Work:
        params = call.params
        # the full vector: what each chip holds before a reduction, or after a gather
        whole_bytes = _sent_bytes(call.operands[0], params.get("wire"), machine.chip)
        if kind == "all_gather":
            whole_bytes = whole_bytes * params["size"]
        passage = machine.collective_cycles(
            kind, params["algorithm"], params["size"], params["stride"], whole_bytes
        )
        return passage.as_work(
            moved_bytes=whole_bytes * (params["size"] > 1), absent=params["size"] <= 1
        )

    def rule(*args: Any, **params: Any) -> tuple[Any, Any]:
        return _named_axis_rule(replicated, *args, **params)

    return primitive(
        f"c2c_{kind}", abstract=shape, meaning=meaning, cost=cost, named_axis_rule=rule
    )


_all_reduce = _collective("all_reduce", _all_reduce_shape, _all_reduce_meaning, replicated=True)
_all_gather = _collective("all_gather", _all_gather_shape, _all_gather_meaning, replicated=True)
_reduce_scatter = _collective(
    "reduce_scatter", _reduce_scatter_shape, _reduce_scatter_meaning, replicated=False
)
_all_to_all = _collective("all_to_all", _all_to_all_shape, _all_to_all_meaning, replicated=False)
