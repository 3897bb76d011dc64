"""Sparse attention: scores of an index, the best positions of a context, their entries of a cache.

What it computes: a weighted sum of rectified scores, and selections, in which no value changes.
What it costs: passes over all scores, and an access for each chosen position, never more or fewer
by what the scores are. Not modelled: selection while scores are still being made.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32, Num

from ..arguments import Count, Positive, check_not_empty, check_within, checked
from ..errors import LpuError
from ..numerics import elementary
from ..predicates import exceeds, shorter
from .mem import access_cost, row_accesses
from .primitive import primitive
from .selection import small_cost
from .vxm import lane_fold_cycles
from .work import (
    Call,
    Hardware,
    Quantity,
    Unit,
    Work,
    ceil_div,
    largest,
    product,
    smallest,
    vectors,
)

#: Bits of a threshold that one pass over the scores may settle, and bits of a score.
_BITS_OF_PASS, _BITS_OF_SCORE = (1, 2, 4), 32


def _index_scores_meaning(scores: Array, weights: Array) -> Array:
    above = elementary.maximum(scores, jnp.zeros_like(scores))
    weighed = elementary.mul(above, jnp.broadcast_to(weights, scores.shape))
    return elementary.sum_leading(jnp.moveaxis(weighed, 1, 0))


def _index_scores_cost(machine: Hardware, call: Call) -> Work:
    """Rectify, multiply and add every score as it comes in (assumed)."""
    chip = machine.chip
    total = vectors(call.operands[0], chip)
    limits = {
        "ALUs": 3 * total / chip.vxm_alus_per_lane,
        "streams in": total / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + 3 * chip.alu_cycles,
        result_is_last=True,
    )


_index_scores = primitive(
    "vxm_index_scores",
    abstract=lambda scores, weights: jax.ShapeDtypeStruct(
        (scores.shape[0], *scores.shape[2:]), scores.dtype
    ),
    meaning=_index_scores_meaning,
    cost=_index_scores_cost,
)


@checked
def index_scores(
    scores: Float32[Array, "b n t s"], weights: Float32[Array, "b n t 1"]
) -> Float32[Array, "b t s"]:
    """Add the scores of all heads that are above zero: `sum_n weights * max(scores, 0)`.

    Fidelity:
        Order-dependent, the order is fixed: one rounding of each product, then fp32 additions from
        +0 in ascending order of heads.

    Source:
        DeepSeek-V3.2 report, equation 1: the lightning indexer.
    """
    return _index_scores(scores, weights)  # type: ignore[no-any-return]


def _best_positions_meaning(scores: Array, *, k: int) -> Array:
    n = scores.shape[-1]
    # The two zeros are one score; `top_k` would order them.
    found, places = lax.top_k(jnp.where(scores == 0, 0.0, scores), k)
    places = jnp.sort(jnp.where(found == -jnp.inf, n, places.astype(jnp.int32)), axis=-1)
    return jnp.where(places == n, -1, places)


def _best_positions_cost(machine: Hardware, call: Call) -> Work:
    """Find the k-th score bit by bit, then write the places above it, in order (assumed).

    A pass counts the scores above each of some thresholds, which settles as many bits of the k-th
    as its thresholds can tell apart, in the cheapest way. A running sum of flags, by nine rotations
    of each vector, then gives every chosen position its place.
    """
    chip = machine.chip
    scores, (chosen,) = call.operands[0], call.results
    rows = product(scores.shape[:-1])
    total = rows * ceil_div(scores.shape[-1], chip.lanes)
    steps = math.ceil(math.log2(chip.lanes))

    def search(bits: int) -> Quantity:
        thresholds = 2**bits - 1
        compared = largest(
            2 * thresholds * total / chip.vxm_alus_per_lane, total / chip.vxm_stream_groups
        )
        counted = lane_fold_cycles(machine, rows * thresholds)
        entry = chip.vxm_entry_cycles + 2 * chip.alu_cycles
        return _BITS_OF_SCORE / bits * (compared + counted + entry)

    limits = {
        "thresholds": smallest(*(search(bits) for bits in _BITS_OF_PASS)),
        "places": total * steps / chip.sxm_vectors_per_cycle,
        "writes": chosen.size / chip.mem_accesses_per_cycle,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=sum(limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles,
        result_is_last=True,
    )


_best_positions = primitive(
    "vxm_best_positions",
    abstract=lambda scores, *, k: jax.ShapeDtypeStruct((*scores.shape[:-1], k), jnp.int32),
    meaning=_best_positions_meaning,
    cost=_best_positions_cost,
)


@checked
def best_positions(scores: Float32[Array, "*rows s"], k: Count) -> Int32[Array, "*rows {k}"]:
    """Find the positions of the `k` largest scores of each row, ascending.

    Of equal scores the first positions are taken; +0 and -0 are equal. A score of minus infinity
    is never chosen: where there are fewer others, -1 stands behind the last position.

    Fidelity: exact.
    """
    if exceeds(k, scores.shape[-1]):
        raise LpuError(
            f"sparse.best_positions: k={k} was given for rows of {scores.shape[-1]} scores; it "
            f"must be 1 to {scores.shape[-1]}."
        )
    return _best_positions(scores, k=k)  # type: ignore[no-any-return]


def _new_token(positions: Array, groups: int, rows: int, n_new: int) -> Array:
    """Return the position of the token of each row, `[groups, rows]`."""
    at = positions[:, None] + jnp.arange(rows, dtype=jnp.int32)[None, :] % n_new
    return jnp.repeat(at, groups // positions.shape[0], axis=0)


def _block_scores_meaning(
    scores: Array, positions: Array, *, n_new: int, block: int, n_local: int
) -> Array:
    groups, rows, s = scores.shape
    n_blocks = -(-s // block)
    behind = ((0, 0), (0, 0), (0, n_blocks * block - s))
    scores = jnp.pad(scores, behind, constant_values=-jnp.inf)
    best = scores.reshape(groups, rows, n_blocks, block).max(-1)
    own = (_new_token(positions, groups, rows, n_new) // block)[..., None]
    number = jnp.arange(n_blocks, dtype=jnp.int32)[None, None]
    return jnp.where((number <= own) & (number > own - n_local), jnp.inf, best)


def _block_scores_cost(machine: Hardware, call: Call) -> Work:
    """Fold the lanes of each block, of all blocks of a vector at once (assumed).

    A step rotates every vector and compares it with itself; then blocks near the token are raised.
    """
    chip = machine.chip
    scores = call.operands[0]
    total = product(scores.shape[:-1]) * ceil_div(scores.shape[-1], chip.lanes)
    steps = math.ceil(math.log2(call.params["block"]))
    made = vectors(call.results[0], chip)
    limits = {
        "ALUs": (steps * total + 3 * made) / chip.vxm_alus_per_lane,
        "rotations": steps * total / chip.sxm_vectors_per_cycle,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=sum(limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles,
        result_is_last=True,
    )


_block_scores = primitive(
    "vxm_block_scores",
    abstract=lambda scores, positions, *, n_new, block, n_local: jax.ShapeDtypeStruct(
        (*scores.shape[:-1], -(-scores.shape[-1] // block)), scores.dtype
    ),
    meaning=_block_scores_meaning,
    cost=_block_scores_cost,
)


@checked
def block_scores(
    scores: Float32[Array, "groups rows s"],
    positions: Int32[Array, " b"],
    n_new: Count,
    block: Positive,
    n_local: Positive,
) -> Float32[Array, "groups rows blocks"]:
    """Take the largest score of each block of positions; infinity in blocks near the token.

    Args:
        scores: `groups` is a multiple of the batch, sequence by sequence; row `r` of a group is
            new token `r % n_new`. Minus infinity where a token sees no key.
        positions: position of the first new token of each sequence.
        n_new: new tokens per sequence.
        block: positions of a block; the last one may have fewer.
        n_local: blocks that are near: the token's own and those before it.

    Fidelity: exact.

    Source:
        `MiniMaxM3VLIndexer` of Hugging Face transformers 5.24.
    """
    return _block_scores(  # type: ignore[no-any-return]
        scores, positions, n_new=n_new, block=block, n_local=n_local
    )


def _positions_of_blocks_meaning(
    blocks: Array, positions: Array, *, n_new: int, block: int
) -> Array:
    groups, rows, k = blocks.shape
    at = blocks[..., None] * block + jnp.arange(block, dtype=jnp.int32)[None, None, None]
    last = _new_token(positions, groups, rows, n_new)[..., None, None]
    seen = jnp.where((blocks[..., None] >= 0) & (at <= last), at, -1)
    return seen.reshape(groups, rows, k * block)


_positions_of_blocks = primitive(
    "vxm_positions_of_blocks",
    abstract=lambda blocks, positions, *, n_new, block: jax.ShapeDtypeStruct(
        (*blocks.shape[:-1], blocks.shape[-1] * block), jnp.int32
    ),
    meaning=_positions_of_blocks_meaning,
    # A product and a sum, two comparisons, both, a selection.
    cost=partial(small_cost, operations=6),
)


@checked
def positions_of_blocks(
    blocks: Int32[Array, "groups rows k"],
    positions: Int32[Array, " b"],
    n_new: Count,
    block: Positive,
) -> Int32[Array, "groups rows n"]:
    """List the positions of blocks up to the token's own, ascending, -1 behind the last.

    Args:
        blocks: numbers of blocks that begin at or before the token, ascending, -1 behind the last.
        positions: as for `block_scores`.
        n_new: likewise.
        block: likewise.

    Fidelity: exact. Takes the same time wherever the blocks lie.
    """
    return _positions_of_blocks(  # type: ignore[no-any-return]
        blocks, positions, n_new=n_new, block=block
    )


def _held_addresses_meaning(positions: Array, first: Array, *, n: int, n_kept: int) -> Array:
    places = positions - first.reshape((1,) * positions.ndim)
    is_held = (positions >= 0) & (places >= 0) & (places < n)
    # What is held is one run of ascending positions; a stable order puts it in front.
    order = jnp.argsort(~is_held, axis=-1, stable=True)[..., :n_kept]
    kept = jnp.take_along_axis(jnp.where(is_held, places, -1), order, axis=-1)
    return kept.astype(jnp.int32)


_held_addresses = primitive(
    "vxm_held_addresses",
    abstract=lambda positions, first, *, n, n_kept: jax.ShapeDtypeStruct(
        (*positions.shape[:-1], n_kept), jnp.int32
    ),
    meaning=_held_addresses_meaning,
    # A difference, two comparisons, both, a selection, and where the run begins.
    cost=partial(small_cost, operations=6),
)


@checked
def held_addresses(
    positions: Int32[Array, "*rows k"], first: Int32[Array, " 1"], n: Count
) -> Int32[Array, "*rows kept"]:
    """Find where a chip that holds a run of positions has those that were chosen.

    Args:
        positions: as `best_positions` gives them.
        first: the first position that the chip holds.
        n: how many it holds.

    Returns:
        Addresses from 0 to `n - 1`, ascending, -1 behind the last; as many as could be here.

    Fidelity: exact. Takes the same time wherever the positions lie.
    """
    n_kept = shorter(positions.shape[-1], n)
    return _held_addresses(positions, first, n=n, n_kept=n_kept)  # type: ignore[no-any-return]


_gather = primitive(
    "mem_gather",
    abstract=lambda cache, addresses: jax.ShapeDtypeStruct(
        (*addresses.shape, cache.shape[-1]), cache.dtype
    ),
    meaning=lambda cache, addresses: jax.vmap(
        lambda rows, at: jnp.take(rows, jnp.maximum(at, 0), axis=0, mode="clip")
    )(cache, addresses),
    cost=lambda machine, call: access_cost(
        machine, row_accesses(machine, call.results[0]), call.results[0]
    ),
)


@checked
def gather(cache: Num[Array, "b s c"], addresses: Int32[Array, "b t k"]) -> Num[Array, "b t k c"]:
    """Read entries of each sequence's cache by address; -1 reads the first one.

    Raises:
        LpuError: an address that the cache lacks, where addresses are known.

    Fidelity: exact. Takes an access for each address, whatever it is.
    """
    check_not_empty("sparse.gather", "cache", cache)
    check_within("sparse.gather", "addresses", addresses, -1, cache.shape[1] - 1, "the cache")
    return _gather(cache, addresses)  # type: ignore[no-any-return]
