"""What both ways of making exact tile sums share: matrix products, and rows of the last tile."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Num

from ..errors import LpuError


def product(x: Num[Array, "gx m k"], w: Num[Array, "g k n"], to: DTypeLike) -> Num[Array, "g m n"]:
    """Multiply matrices of one type; exact whenever every partial sum fits the type `to`.

    Args:
        x: one matrix for all of `w`, or one for each.
        w: matrices.
        to: type of the sums.
    """
    highest = lax.Precision.HIGHEST  # no TF32 on a GPU
    if w.shape[0] == 1:
        return lax.dot(x[0], w[0], precision=highest, preferred_element_type=to)[None]
    x = jnp.broadcast_to(x, (w.shape[0], *x.shape[1:]))
    batched = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(x, w, batched, precision=highest, preferred_element_type=to)


def only_new(
    x: Num[Array, "gx m rows"], w: Num[Array, "g rows n"], is_new: Bool[Array, " rows"]
) -> tuple[Num[Array, "gx m rows"], Num[Array, "g rows n"]]:
    """Replace rows that an earlier tile had by zeros, where a last tile was moved back to fit.

    In both operands: an infinity times zero would be NaN.
    """
    x = jnp.where(is_new[None, None, :], x, jnp.zeros((), x.dtype))
    return x, jnp.where(is_new[None, :, None], w, jnp.zeros((), w.dtype))


def check_length(k: int, limit: int, x: Array, w: Array) -> None:
    """Raise if a sum of `k` products is longer than what is proven exact.

    Raises:
        LpuError: with the length that was asked for and the longest.
    """
    if k > limit:
        raise LpuError(
            f"mxm.matmul: a sum of {k} products of {x.dtype.name} and {w.dtype.name} was asked for "
            f"without rounding; up to {limit} are exact."
        )
