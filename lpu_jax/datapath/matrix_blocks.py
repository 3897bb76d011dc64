"""Matrices and rows in blocks along the contraction: which addresses and lanes a product begins at.

Layout that the compiler decides: no value changes, and nothing is moved.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Num

from ..arguments import Count, Positive, checked
from .primitive import free, primitive


def _row_blocks_meaning(x: Array, *, size: int) -> Array:
    n_blocks = -(-x.shape[-2] // size)
    missing = n_blocks * size - x.shape[-2]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
    return padded.reshape(*x.shape[:-2], n_blocks, size, x.shape[-1])


_row_blocks = primitive(
    "mem_row_blocks",
    abstract=lambda x, *, size: jax.ShapeDtypeStruct(
        (*x.shape[:-2], -(-x.shape[-2] // size), size, x.shape[-1]), x.dtype
    ),
    meaning=_row_blocks_meaning,
    cost=free,
)


@checked
def row_blocks(x: Num[Array, "*batch k n"], size: Positive) -> Num[Array, "*batch blocks {size} n"]:
    """Read the rows of matrices in runs of `size`; the last run is filled up with zeros.

    Free: a matrix is installed from where it lies. Fidelity: exact.
    """
    return _row_blocks(x, size=size)  # type: ignore[no-any-return]


def _column_blocks_meaning(x: Array, *, size: int) -> Array:
    rows = jnp.swapaxes(x, -1, -2)
    return jnp.moveaxis(jnp.swapaxes(_row_blocks_meaning(rows, size=size), -1, -2), -3, 0)


_column_blocks = primitive(
    "mem_column_blocks",
    abstract=lambda x, *, size: jax.ShapeDtypeStruct(
        (-(-x.shape[-1] // size), *x.shape[:-1], size), x.dtype
    ),
    meaning=_column_blocks_meaning,
    cost=free,
)


@checked
def column_blocks(x: Num[Array, "*rows k"], size: Positive) -> Num[Array, "blocks *rows {size}"]:
    """Read rows in runs of `size` columns; the last run is filled up with zeros.

    Free (assumed): the runs of a vector enter the array at the lanes where they lie, beside a tile
    that is installed at the same lanes. Fidelity: exact.
    """
    return _column_blocks(x, size=size)  # type: ignore[no-any-return]


def _block_addresses_meaning(rows: Array, *, n_blocks: int) -> Array:
    block = jnp.arange(n_blocks, dtype=jnp.int32)[:, None]
    return jnp.where(rows[None] < 0, -1, rows[None] * n_blocks + block)


_block_addresses = primitive(
    "mem_block_addresses",
    abstract=lambda rows, *, n_blocks: jax.ShapeDtypeStruct((n_blocks, rows.shape[0]), jnp.int32),
    meaning=_block_addresses_meaning,
    cost=free,
)


@checked
def block_addresses(rows: Int32[Array, " n"], n_blocks: Count) -> Int32[Array, "blocks n"]:
    """Find where the blocks of matrices lie: `row * n_blocks + block`; a negative row stays so.

    Free: the compiler adds the distance of a block to an address. Fidelity: exact.
    """
    return _block_addresses(rows, n_blocks=n_blocks)  # type: ignore[no-any-return]


_stacked_rows = primitive(
    "mem_stacked_rows",
    abstract=lambda x, y: jax.ShapeDtypeStruct((x.shape[0] + y.shape[0], x.shape[1]), x.dtype),
    meaning=lambda x, y: jnp.concatenate([x, y]),
    cost=free,
)


@checked
def stacked_rows(x: Float32[Array, "m n"], y: Float32[Array, "k n"]) -> Float32[Array, "rows n"]:
    """Read two matrices as one, the rows of the second behind those of the first.

    Free: rows are read from where they lie. Fidelity: exact.
    """
    return _stacked_rows(x, y)  # type: ignore[no-any-return]
