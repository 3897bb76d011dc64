"""Hypothesis strategies shared by the test directories."""

from hypothesis import strategies as st


def factorisations(n_chips: int, n_axes: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the ways to write a number of chips as an ordered product of axis sizes."""
    if n_axes == 1:
        return st.just((n_chips,))
    divisors = [size for size in range(1, n_chips + 1) if n_chips % size == 0]
    return st.sampled_from(divisors).flatmap(
        lambda first: factorisations(n_chips // first, n_axes - 1).map(lambda rest: (first, *rest))
    )
