"""All-to-all dispatch: each chip routes a share of the rows and sends them where their experts lie.

Time is static: every chip sends every other a list of so many places, and empty places travel too.
As many places as a share has rows leave none out: as many bytes as gathering all rows on all chips.
Shorter lists are the plan's choice, with a probability that they overflow.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from jaxtyping import Array, Float, Float32, Int32, Num

from lpu_jax.datapath import c2c, expert_slots, mem, vxm, wires
from lpu_jax.datapath.axis import Axis

from ..config import ModelConfig
from ..policy import Policy
from .expert_rows import joined_results, normed_rows, rounded, shared_alone
from .experts import ExpertSizes, in_slots, local_experts, sum_of_experts
from .latent_experts import into_latent, out_of_latent
from .linear import Split, add_residual, linear, narrowed, operand_rows, summed, with_result
from .mlp import shared_activations
from .router import route, router_logits


class Dispatch(StrEnum):
    """How rows reach the chips of their experts."""

    #: every chip has every row; results are added over all chips
    REPLICATED = "replicated"
    #: each chip routes its share of the rows; rows and results are exchanged over the expert axis
    ALL_TO_ALL = "all_to_all"


def exchanged_mixture(
    x: Float[Array, "b t d"],
    weights: Mapping[str, Any],
    placement: Mapping[str, Array],
    *,
    cfg: ModelConfig,
    policy: Policy,
    split: Split,
    sizes: ExpertSizes,
    axes: Mapping[str, Axis],
) -> Float[Array, "b t d"]:
    """Mixture-of-experts block in which each chip of the expert axis routes its share of the rows.

    Args:
        x: hidden state, replicated in the group.
        weights: as for `moe.mixture`.
        placement: as for `moe.mixture`, and `share` `[1]`: the chip's number on the expert axis.
        cfg: the model.
        policy: formats, and how products are made.
        split: `ROW`; a column split has no partial sums to send back.
        sizes: slots, rows of each, and places of the lists.
        axes: `expert` and `tensor`.

    Returns:
        The new hidden state, replicated.

    Fidelity:
        Order-dependent, the order is fixed. The chips of a row's experts add their results by
        ascending expert id in fp32, round them to the format of the wire, add those of the tensor
        axis in chip order (`linear.summed`) and send them back. The row's owner adds what came back
        in ascending order of the expert axis in fp32, then the shared expert's result, then the
        hidden state, and rounds once. The shared expert's partial sums are rounded to the format
        of the wire and added in chip order over the expert axis (`c2c.reduce_scatter`; with `ring`
        by `c2c.all_reduce`, so that no row's place in the batch decides its order), then over the
        tensor axis; without rounding over both at once. With a latent, sums over experts are
        rounded and gathered, and taken back on all chips (`latent_experts`). The choice of experts
        is that of `moe.mixture`.
    """
    moe = cfg.moe
    assert moe is not None
    b, t, d = x.shape
    m, among = b * t, axes["expert"]
    n_own = -(-m // among.size)  # rows of a share, the last ones padded
    share, rows = placement["share"].reshape(()), x.reshape(m, d)

    def whole_shares(values: Num[Array, "m d"]) -> Num[Array, "n d"]:
        return mem.pad_rows(values, among.size * n_own)

    def own(values: Num[Array, "m d"]) -> Num[Array, "m_own d"]:
        return mem.take_share(whole_shares(values), share, n_own)

    x_own, gate_up = vxm.to_fp32(own(rows)), weights.get("shared_gate_up")
    across = c2c.joined(*(axis for name, axis in axes.items() if name in ("expert", "tensor")))
    how: dict[str, Any] = {"cfg": cfg, "policy": policy, "across": across}
    is_latent = moe.d_latent is not None
    if gate_up is None and not is_latent:
        router_y, expert_y, _ = normed_rows(x_own, weights, cfg)
    else:  # every chip holds a piece of what every row passes, so it takes all rows
        router_all, expert_all, y = normed_rows(vxm.to_fp32(rows), weights, cfg)
        router_y = own(router_all)
        expert_y = router_y if router_all is expert_all else own(expert_all)
    router_rows, expert_rows = rounded((router_y, expert_y), policy, "router", "expert")
    logits = router_logits(router_rows, weights, policy=policy)
    if is_latent:
        expert_rows = own(into_latent(operand_rows(y, policy, "shared"), weights, **how))
    if gate_up is not None:  # needs no route: the matrix unit is busy while experts are chosen
        shared = linear(operand_rows(y, policy, "shared"), gate_up, policy=policy)
    ids, gate_weights = route(logits, weights, moe)
    sent, places = expert_slots.rows_by_chip(
        ids,
        share,
        n_rows=m,
        n_chips=among.size,
        n_local=sizes.n_local,
        n_places=n_own if sizes.sent is None else sizes.sent,
    )
    arrived = (
        _exchanged(expert_rows, sent, among),
        _exchanged(ids, sent, among, missing=-1),
        _exchanged(gate_weights, sent, among),
    )
    h = None
    if gate_up is not None:  # while rows are on their way
        gate_rows = operand_rows(y, policy, "router") if "shared_gate" in weights else None
        h = shared_activations(shared, gate_rows, weights, policy, moe)
    if is_latent:
        beside = None if h is None else shared_alone(h, weights, **how, split=split)
    elif h is not None:
        partial_sums = linear(h, weights["shared_down"], policy=policy)
        shared_out = _shared_sums(partial_sums, own, whole_shares, axes, across, policy)
    held = in_slots(*arrived, placement, moe=moe, sizes=sizes)
    parts = local_experts(held, weights, moe=moe, policy=policy, split=split, axes=axes)
    total = sum_of_experts(parts, arrived[1], placement["first_expert"].reshape(()), sizes)
    results = summed(total, axes["tensor"], policy)
    returned = mem.lookup(c2c.all_to_all(results, among, dim=-2), places)
    total = vxm.sum_leading(vxm.to_fp32(returned))
    if is_latent:
        total = c2c.all_gather(narrowed(total, policy), among, dim=-2, keep=m)
        out = out_of_latent(total, beside, weights, **how)
        return add_residual(x, out.reshape(b, t, d), cfg, policy, weights)
    if gate_up is not None:
        total = joined_results(total, shared_out, weights, cfg)
    out = with_result(x_own, total, cfg, policy, weights)
    return c2c.all_gather(out, among, dim=-2, keep=m).reshape(b, t, d)


def _shared_sums(
    y: Float32[Array, "m d"],
    own: Callable[[Array], Array],
    whole_shares: Callable[[Array], Array],
    axes: Mapping[str, Axis],
    across: Axis,
    policy: Policy,
) -> Float32[Array, "m_own d"]:
    """Add the shared expert's partial sums over both axes, for the rows of a chip's share."""
    among, tensor = axes["expert"], axes["tensor"]
    if policy.wire == "exact":  # wide numbers have no reduce-scatter
        everywhere = wires.all_reduce(y, across, wire="exact")
        return vxm.to_fp32(narrowed(own(everywhere), policy))
    if policy.wire == "base":
        rounded = narrowed(y, policy)
        if among.algorithm == "ring":  # whose order for a share is that of the share's owner
            own_sums = own(c2c.all_reduce(rounded, among))
        else:
            own_sums = c2c.reduce_scatter(whole_shares(rounded), among, dim=-2)
        return vxm.to_fp32(c2c.all_reduce(own_sums, tensor))
    if among.algorithm == "ring":
        own_sums = own(wires.all_reduce(y, among, wire=policy.wire))
    else:
        own_sums = wires.reduce_scatter(whole_shares(y), among, dim=-2, wire=policy.wire)
    return vxm.to_fp32(summed(own_sums, tensor, policy))


def _exchanged(
    values: Num[Array, "m d"], sent: Int32[Array, "chips places"], among: Axis, missing: int = 0
) -> Num[Array, "n d"]:
    """Send every chip the rows on its list, and lay what arrives end to end by ascending chip."""
    packed = mem.lookup(values, sent, missing=missing)
    return c2c.all_to_all(packed.reshape(-1, values.shape[-1]), among, dim=-2)
