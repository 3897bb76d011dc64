"""Packed 4-bit codes and gpt-oss weights against a conversion by table and `ldexp`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.errors import LpuError
from lpu_jax.numerics import packing, quantized
from lpu_jax.numerics.schemes import MXFP4, NVFP4

quantize = jax.jit(quantized.quantize, static_argnums=1)
dequantize, widen = jax.jit(quantized.dequantize), jax.jit(quantized.widen)
from_gpt_oss, to_gpt_oss = jax.jit(packing.from_gpt_oss), jax.jit(packing.to_gpt_oss)

#: Values by code, as the published conversion lists them.
FP4_VALUES = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def by_table(blocks, scales, low_first=True):
    """`[e, n, g, 16]` bytes and `[e, n, g]` scales to weights `[e, k, n]`."""
    exponents = scales.astype(np.int32) - 127
    low, high = FP4_VALUES[blocks & 0xF], FP4_VALUES[blocks >> 4]
    out = np.empty((*blocks.shape[:-1], 32), np.float32)
    out[..., 0::2], out[..., 1::2] = (low, high) if low_first else (high, low)
    out = np.ldexp(out, exponents[..., None])
    return out.reshape(*scales.shape[:-1], -1).swapaxes(-1, -2)


def checkpoint(e=2, n=6, groups=5):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (e, n, groups, 16), np.uint8)
    return blocks, rng.integers(117, 127, (e, n, groups), np.uint8)


def test_gpt_oss_weights_are_code_times_power():
    blocks, scales = checkpoint()
    q = from_gpt_oss(jnp.asarray(blocks), jnp.asarray(scales))
    quantized.check(q)
    assert q.shape == (2, 160, 6)
    assert q.stored_bytes == blocks.nbytes + scales.nbytes
    expected = by_table(blocks, scales)
    np.testing.assert_array_equal(dequantize(q), expected)
    np.testing.assert_array_equal(np.signbit(dequantize(q)), np.signbit(expected))
    np.testing.assert_array_equal(widen(q), expected)  # 2 bits from 2**-11 on: fp16 numbers
    assert (expected != by_table(blocks, scales, low_first=False)).any()


def test_gpt_oss_layout_round_trips():
    blocks, scales = checkpoint()
    q = from_gpt_oss(jnp.asarray(blocks), jnp.asarray(scales))
    for found, given in zip(to_gpt_oss(q), (blocks, scales), strict=True):
        np.testing.assert_array_equal(found, given)
    w = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    ours = quantize(jnp.asarray(w), MXFP4.with_rule("up"))
    back = from_gpt_oss(*to_gpt_oss(ours))
    np.testing.assert_array_equal(dequantize(back), dequantize(ours))


def test_packed_codes_come_out_as_they_went_in():
    codes = jnp.asarray(np.random.default_rng(2).integers(0, 16, (3, 10), np.uint8))
    both = jax.jit(packing.packed)(codes)
    assert both.shape == (3, 5)
    np.testing.assert_array_equal(
        both[:, 0], np.asarray(codes)[:, 0] + 16 * np.asarray(codes)[:, 1]
    )
    np.testing.assert_array_equal(jax.jit(packing.unpacked)(both), codes)


def test_arrays_of_another_layout_are_refused():
    blocks, scales = map(jnp.asarray, checkpoint())
    with pytest.raises(LpuError, match=r"blocks \(2, 6, 5, 8\) and scales \(2, 6, 5\) were given"):
        from_gpt_oss(blocks[..., :8], scales)
    with pytest.raises(LpuError, match=r"blocks .* and scales \(2, 6, 4\) were given"):
        from_gpt_oss(blocks, scales[..., :4])
    with pytest.raises(LpuError, match="3 codes were given; two fit a byte"):
        packing.packed(jnp.zeros((2, 3), jnp.uint8))
    w = jnp.zeros((64, 2), jnp.float32)
    with pytest.raises(LpuError, match=r"\(64, 2\) of scheme nvfp4 along axis -2 was given"):
        to_gpt_oss(quantize(w, NVFP4))
    with pytest.raises(LpuError, match="a multiple of 32 rows"):
        to_gpt_oss(quantize(w[:40], MXFP4))
