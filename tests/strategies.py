"""Hypothesis strategies shared by the test directories: bit patterns, shapes, splits.

Numbers are drawn as bit patterns, not as values, so that subnormals, infinities and NaN payloads
are as likely as the formats make them.
"""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def bit_patterns(
    dtype: type[np.generic], shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]]
) -> st.SearchStrategy[np.ndarray]:
    """Draw arrays of a one-, two- or four-byte dtype whose bits are all equally likely."""
    unsigned = _UNSIGNED[np.dtype(dtype).itemsize]
    return hnp.arrays(unsigned, shape, elements=hnp.from_dtype(np.dtype(unsigned))).map(
        lambda bits: bits.view(dtype)
    )


def finite_patterns(
    dtype: type[np.generic], shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]]
) -> st.SearchStrategy[np.ndarray]:
    """Draw like `bit_patterns`, with every infinity and NaN replaced by zero of its sign."""

    def only_finite(values: np.ndarray) -> np.ndarray:
        wide = values.astype(np.float64)
        signed_zero = np.copysign(np.zeros_like(wide), wide).astype(dtype)
        return np.where(np.isfinite(wide), values, signed_zero)

    return bit_patterns(dtype, shape).map(only_finite)


def matmul_shapes(
    max_rows: int = 4, max_contraction: int = 700, max_columns: int = 4
) -> st.SearchStrategy[tuple[int, int, int]]:
    """Draw (m, k, n); the contraction reaches past two K tiles of 320 and is rarely a multiple."""
    return st.tuples(
        st.integers(1, max_rows), st.integers(1, max_contraction), st.integers(1, max_columns)
    )


def factorisations(n_chips: int, n_axes: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the ways to write a number of chips as an ordered product of axis sizes."""
    if n_axes == 1:
        return st.just((n_chips,))
    divisors = [size for size in range(1, n_chips + 1) if n_chips % size == 0]
    return st.sampled_from(divisors).flatmap(
        lambda first: factorisations(n_chips // first, n_axes - 1).map(lambda rest: (first, *rest))
    )
