"""Masks of the vector unit: which keys a query may see, from positions that are known at run time.

What it computes: scores of keys that a query may not see become minus infinity. What it costs: a
chain of a comparison and a selection for each score. Not modelled: skipping of keys that no query
sees.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from ..arguments import Count, Positive, checked
from ..errors import LpuError
from ..predicates import divides, may_equal
from .alu import plain
from .primitive import primitive


def _causal_mask_meaning(scores: Array, positions: Array, *, query_stride: int) -> Array:
    rows = jnp.arange(scores.shape[-2], dtype=jnp.int32) % query_stride
    last = positions[:, None] + rows[None, :]  # [b, rows]
    keys = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    seen = keys[None, None, :] <= last[:, :, None]
    seen = jnp.repeat(seen, scores.shape[0] // positions.shape[0], axis=0)
    return jnp.where(seen, scores, -jnp.inf)


def _check_groups(caller: str, scores: Array, positions: Array) -> None:
    """Refuse groups of scores that are not a multiple of the sequences."""
    n_groups, n_sequences = scores.shape[0], positions.shape[0]
    if not divides(n_sequences, n_groups):
        raise LpuError(
            f"{caller}: {n_groups} groups of scores were given for {n_sequences} sequences; each "
            "must have as many groups as the others."
        )


_causal_mask = primitive(
    "vxm_causal_mask",
    abstract=lambda scores, positions, *, query_stride: jax.ShapeDtypeStruct(
        scores.shape, scores.dtype
    ),
    meaning=_causal_mask_meaning,
    chain=lambda params: plain(2, 2),
)


@checked
def causal_mask(
    scores: Float32[Array, "groups rows s"], positions: Int32[Array, " b"], n_new: Count
) -> Float32[Array, "groups rows s"]:
    """Set scores of keys that a query may not see to minus infinity.

    Args:
        scores: `groups` is a multiple of the batch, sequence by sequence; query `r` of a group is
            new token `r % n_new`.
        positions: position of the first new token of each sequence.
        n_new: new tokens per sequence.

    Fidelity: exact.
    """
    _check_groups("masks.causal_mask", scores, positions)
    return _causal_mask(scores, positions, query_stride=n_new)  # type: ignore[no-any-return]


def _key_mask_meaning(
    scores: Array,
    positions: Array,
    first: Array,
    *,
    query_stride: int,
    window: int | None,
    is_chunked: bool,
) -> Array:
    rows = jnp.arange(scores.shape[-2], dtype=jnp.int32) % query_stride
    last = (positions[:, None] + rows[None, :])[:, :, None]  # [b, rows, 1]
    keys = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    keys = (first[:, None] + keys[None, :])[:, None, :]  # [b, 1, s]
    seen = keys <= last
    if window is not None:
        seen = seen & (keys >= (last // window * window if is_chunked else last - window + 1))
    seen = jnp.repeat(seen, scores.shape[0] // positions.shape[0], axis=0)
    return jnp.where(seen, scores, -jnp.inf)


_key_mask = primitive(
    "vxm_key_mask",
    abstract=lambda scores, positions, first, **_: jax.ShapeDtypeStruct(scores.shape, scores.dtype),
    meaning=_key_mask_meaning,
    # Compare and select; a window has a second comparison, and both must hold.
    chain=lambda params: plain(2, 2) if params["window"] is None else plain(4, 3),
)


@checked
def key_mask(
    scores: Float32[Array, "groups rows s"],
    positions: Int32[Array, " b"],
    first: Int32[Array, " keys_from"],
    n_new: Count,
    window: Positive | None = None,
    is_chunked: bool = False,
) -> Float32[Array, "groups rows s"]:
    """Mask as `causal_mask` does where keys begin at a position other than 0.

    Args:
        scores: as for `causal_mask`.
        positions: as for `causal_mask`.
        first: position of the first key: of each sequence, or one for all.
        n_new: new tokens per sequence.
        window: keys that a query sees, its own included; None for all before it.
        is_chunked: it sees those from the last multiple of the window on instead.

    Fidelity: exact.
    """
    _check_groups("masks.key_mask", scores, positions)
    if first.shape[0] != 1 and not may_equal(first.shape, positions.shape):
        raise LpuError(
            f"masks.key_mask: first of length {first.shape[0]} was given for {positions.shape[0]} "
            "sequences; it must have one position for all, or one for each."
        )
    return _key_mask(  # type: ignore[no-any-return]
        scores, positions, first, query_stride=n_new, window=window, is_chunked=is_chunked
    )


_address_mask = primitive(
    "vxm_address_mask",
    abstract=lambda scores, addresses: jax.ShapeDtypeStruct(scores.shape, scores.dtype),
    meaning=lambda scores, addresses: jnp.where(addresses[:, None, :] >= 0, scores, -jnp.inf),
    chain=lambda params: plain(2, 2),
)


@checked
def address_mask(
    scores: Float32[Array, "groups rows k"], addresses: Int32[Array, "groups k"]
) -> Float32[Array, "groups rows k"]:
    """Set scores of keys at no address, which -1 stands for, to minus infinity.

    Fidelity: exact.
    """
    return _address_mask(scores, addresses)  # type: ignore[no-any-return]
