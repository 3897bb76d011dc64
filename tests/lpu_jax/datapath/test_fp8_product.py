"""Products of float8 rows and float8 blocks against NumPy: exact sums, one rounding, in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.datapath.scaled import fp8_product
from lpu_jax.errors import LpuError
from lpu_jax.numerics.quantized import QuantizedArray, quantize
from lpu_jax.numerics.schemes import FP8_BLOCK128, INT8_COLUMN, MXFP8_E4M3, SCHEMES


def expected(x: np.ndarray, w: QuantizedArray) -> np.ndarray:
    """Block by block: products and sums in float64, which is exact for 128 of them; then float32.

    An e4m3 product is a multiple of 2**-18 below 2**18; so is a sum of 128 of them below 2**25.
    """
    codes, scales = np.asarray(w.codes, np.float64), np.asarray(w.scales, np.float32)
    total = np.zeros((x.shape[0], codes.shape[1]), np.float32)
    for block, scale in enumerate(scales):
        rows = slice(128 * block, 128 * (block + 1))
        total += (x[:, rows].astype(np.float64) @ codes[rows]).astype(np.float32) * scale
    return total


def operands(k: int, n: int, n_matrices: int, seed: int) -> tuple[jax.Array, QuantizedArray]:
    rng = np.random.default_rng(seed)
    spread = np.exp2(rng.integers(-6, 6, (n_matrices, k, n)))
    w = quantize(
        jnp.asarray(rng.normal(size=(n_matrices, k, n)) * spread, jnp.float32), FP8_BLOCK128
    )
    return jnp.asarray(rng.normal(size=(5, k)) * 8, jnp.float8_e4m3fn), w


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 128, 300])
def test_blocks_are_summed_exactly_scaled_and_added_in_order(k: int) -> None:
    one_matrix, a_store = (jax.jit(fp8_product) for _ in range(2))
    rows = [2, -1, 0, 2]
    for seed in range(3):
        x, w = operands(k, 5, 3, seed)
        found = a_store(x, w, rows=jnp.asarray(rows, jnp.int32))
        one = [jax.tree.map(lambda leaf, i=i: leaf[i], w) for i in range(3)]
        for slot, row in enumerate(rows):
            want = expected(np.asarray(x), one[row]) if row >= 0 else np.zeros((5, 5), np.float32)
            np.testing.assert_array_equal(found[slot], want)
        np.testing.assert_array_equal(one_matrix(x, one[1]), expected(np.asarray(x), one[1]))


@pytest.mark.slow
def test_rows_of_each_matrix_and_chips() -> None:
    x, w = operands(300, 6, 4, 0)
    rows = jnp.asarray([3, 1], jnp.int32)
    each = jnp.stack([x, x[::-1]])
    found = fp8_product(each, w, rows=rows)
    for slot, row in enumerate(rows.tolist()):
        one = jax.tree.map(lambda leaf, i=row: leaf[i], w)
        np.testing.assert_array_equal(found[slot], expected(np.asarray(each[slot]), one))
    chips = jax.vmap(lambda x, rows: fp8_product(x, w, rows=rows))(each, jnp.stack([rows, rows]))
    np.testing.assert_array_equal(chips[1], fp8_product(each[1], w, rows=rows))


@pytest.mark.slow
def test_only_long_blocks_of_float8_multiply_in_blocks() -> None:
    held = [name for name, scheme in SCHEMES.items() if scheme.multiplies_in_blocks]
    assert held == ["fp8"]
    rng = np.random.default_rng(0)
    x = jnp.ones((2, 64), jnp.float8_e4m3fn)
    for scheme in (INT8_COLUMN, MXFP8_E4M3):
        w = quantize(jnp.asarray(rng.normal(size=(64, 4)), jnp.float32), scheme)
        with pytest.raises(LpuError, match=f"w of scheme {scheme.name} was given"):
            fp8_product(x, w)


@pytest.mark.slow
def test_a_store_needs_addresses_and_a_matrix_has_none() -> None:
    x, w = operands(128, 4, 2, 0)
    with pytest.raises(LpuError, match=r"a store .* needs addresses"):
        fp8_product(x, w)
    one = jax.tree.map(lambda leaf: leaf[0], w)
    with pytest.raises(LpuError, match="one matrix has none"):
        fp8_product(x, one, rows=jnp.zeros(1, jnp.int32))
