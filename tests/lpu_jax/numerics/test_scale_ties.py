"""Ties between powers of two: e8m0 has no even significand, so nearest even takes the larger."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax.numerics import rounding, scalar
from lpu_jax.numerics.formats import E8M0

EXPONENTS = np.arange(-126, 127)
TIES = np.ldexp(np.float32(1.5), EXPONENTS)


def test_ties_of_scales_are_rounded_up() -> None:
    codes = np.asarray(rounding.encode(jnp.asarray(TIES), E8M0, rounding="rne"))
    np.testing.assert_array_equal(codes, EXPONENTS + 1 + 127)
    assert codes.tolist() == [scalar.encode(float(x), E8M0) for x in TIES]
    below = jnp.asarray(np.nextafter(TIES, np.float32(0)))
    np.testing.assert_array_equal(rounding.encode(below, E8M0, rounding="rne"), EXPONENTS + 127)


@pytest.mark.skipif(
    tuple(map(int, ml_dtypes.__version__.split(".")[:2])) < (0, 6),
    reason="older ml_dtypes takes the even code",
)
def test_ties_of_scales_are_those_of_ml_dtypes() -> None:
    codes = np.asarray(rounding.encode(jnp.asarray(TIES), E8M0, rounding="rne"))
    np.testing.assert_array_equal(codes, TIES.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
