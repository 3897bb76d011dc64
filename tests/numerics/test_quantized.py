"""Quantised weights against NumPy in float64 and against exact fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax.errors import LpuError, UnknownNameError
from lpu_jax.numerics import quantized, scalar
from lpu_jax.numerics.formats import FP16
from lpu_jax.numerics.quantized import SCHEMES, QuantizedArray

NARROW = ("int4", "fp8", "int8")
quantize = jax.jit(quantized.quantize, static_argnums=1)
widen, dequantize = jax.jit(quantized.widen), jax.jit(quantized.dequantize)


def weights(shape=(2, 300, 200), seed=0):
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(0.02)
    w[..., :32, 0] = 0  # a group of zeros
    return w


def expected(w, scheme):
    """Codes and scales of one matrix, group by group, straight from the definition."""
    k, n = w.shape
    rows, columns = {"int4": (32, 1), "fp8": (128, 128), "int8": (k, 1)}[scheme]
    largest = np.float32({"int4": 7, "fp8": 448, "int8": 127}[scheme])
    codes, scales = np.zeros((k, n), np.float32), np.zeros((-(-k // rows), n), np.float32)
    for i in range(0, k, rows):
        for j in range(0, n, columns):
            block = w[i : i + rows, j : j + columns]
            scale = np.abs(block).max() / largest
            if scheme == "int4":
                scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
            scales[i // rows, j : j + columns] = scale
            ratio = block / scale if scale else block * 0
            if scheme == "fp8":
                ratio = np.clip(ratio, -448, 448).astype(ml_dtypes.float8_e4m3fn)
            codes[i : i + rows, j : j + columns] = (
                ratio if scheme == "fp8" else np.clip(np.rint(ratio), -largest, largest)
            )
    return codes, scales


@pytest.mark.parametrize("scheme", NARROW)
def test_quantize_follows_its_definition(scheme):
    w = weights()
    q = quantize(jnp.asarray(w), scheme)
    quantized.check(q)
    for i in range(w.shape[0]):
        codes, scales = expected(w[i], scheme)
        np.testing.assert_array_equal(np.asarray(q.codes[i]).astype(np.float32), codes)
        np.testing.assert_array_equal(q.scales[i], scales)


@pytest.mark.parametrize("scheme", NARROW)
def test_widen_rounds_the_exact_product_once(scheme):
    q = quantize(jnp.asarray(weights((140, 12))), scheme)
    rows = {"int4": 32, "fp8": 128, "int8": 140}[scheme]
    codes = np.asarray(q.codes).astype(np.float64)
    scales = np.repeat(np.asarray(q.scales, np.float64), rows, axis=0)[:140]
    want = [
        scalar.encode(Fraction(c) * Fraction(s) or c * s, FP16, "ieee")
        for c, s in zip(codes.ravel(), scales.ravel(), strict=True)
    ]
    np.testing.assert_array_equal(np.asarray(widen(q)).view(np.uint16).ravel(), want)


@pytest.mark.parametrize(
    ("scheme", "exact"), [("int4", True), ("fp8", False), ("int8", False), ("fp16", True)]
)
def test_dequantize_is_exact_where_it_says_so(scheme, exact):
    w = weights((256, 16))
    q = quantize(jnp.asarray(w), scheme)
    codes = np.asarray(q.codes).astype(np.float64)
    product = codes
    if scheme != "fp16":
        group = 256 // q.scales.shape[0]
        product = codes * np.repeat(np.asarray(q.scales, np.float64), group, axis=0)
    got = np.asarray(dequantize(q))
    np.testing.assert_array_equal(got, product.astype(np.float32))
    assert (got.astype(np.float64) == product).all() == exact


# Largest error in units of the group's largest magnitude: half a step of the grid (int), half an
# ulp of e4m3 at its top (fp8, 16/448) or of fp16 (from 2**-14 up); int4 has 2**-8 more because
# its scale is rounded to bf16.
@pytest.mark.parametrize(
    ("scheme", "bound"),
    [("int4", 0.5 / 7 + 2.0**-8), ("fp8", 16 / 448), ("int8", 0.5 / 127), ("fp16", 2.0**-11)],
)
def test_error_stays_within_half_a_step(scheme, bound):
    w = weights((128, 128), seed=5)
    error = np.abs(np.asarray(dequantize(quantize(jnp.asarray(w), scheme))) - w)
    amax = np.maximum(np.abs(w), 2.0**-14)
    if scheme == "int4":
        amax = np.repeat(amax.reshape(4, 32, 128).max(1), 32, axis=0)
    elif scheme != "fp16":
        amax = amax.max() if scheme == "fp8" else amax.max(0)[None, :]
    assert (error <= bound * 1.0001 * amax).all()


def test_int4_never_uses_its_lowest_code():
    w = weights((320, 64), seed=6)
    codes = np.asarray(quantize(jnp.asarray(np.concatenate([w, -w], 1)), "int4").codes)
    assert codes.min() == -7
    np.testing.assert_array_equal(codes[:, :64], -codes[:, 64:])


def test_tiny_and_zero_weights_become_zero():
    w = np.full((64, 4), 1e-42, np.float32)
    w[:, 1] = 5e-31  # normal, but below the stated 2**-100
    for scheme in NARROW:
        q = quantize(jnp.asarray(w), scheme)
        assert not np.asarray(q.scales).any()
        assert not np.asarray(widen(q)).any()


@pytest.mark.parametrize(
    ("scheme", "shape", "n_bytes"),
    [
        ("fp16", (3, 5), 30),
        ("int8", (2, 100, 7), 2 * (700 + 7 * 4)),
        ("fp8", (7168, 2048), 7168 * 2048 + 56 * 16 * 4),
        ("fp8", (130, 129), 130 * 129 + 4 * 4),
        ("int4", (384, 7168, 2048), 384 * 7168 * 2048 * 9 // 16),
        ("int4", (33, 3), 50 + 2 * 3 * 2),
    ],
)
def test_stored_bytes_are_counted_exactly(scheme, shape, n_bytes):
    assert SCHEMES[scheme].stored_bytes(shape) == n_bytes


def test_stored_bytes_take_arrays_of_shapes():
    k, n = np.array([33, 64, 4096]), np.array([3, 5, 128])
    scheme = SCHEMES["int4"]
    each = [scheme.stored_bytes((int(a), int(b))) for a, b in zip(k, n, strict=True)]
    np.testing.assert_array_equal(scheme.stored_bytes((k, n)), each)


def test_bits_per_value():
    bits = {name: scheme.bits_per_value for name, scheme in SCHEMES.items()}
    assert bits == {"fp16": 16, "int8": 8, "fp8": 8 + 32 / 128**2, "int4": 4.5}


def test_is_a_pytree_whose_columns_split_freely():
    w = jnp.asarray(weights((300, 200)))
    for scheme in (*NARROW, "fp16"):
        q = quantize(w, scheme)
        half = jax.tree.map(lambda leaf: leaf[..., 37:90], q)
        assert half.scheme == scheme
        quantized.check(half)
        np.testing.assert_array_equal(widen(half), np.asarray(widen(q))[:, 37:90])
        shapes = jax.eval_shape(lambda a: a, q)
        assert shapes.shape == (300, 200)
        assert shapes.stored_bytes == q.stored_bytes


def test_wrong_arrays_and_names_are_refused():
    codes, scales = jnp.zeros((64, 3), jnp.int8), jnp.zeros((3, 3), jnp.float32)
    with pytest.raises(LpuError, match=r"must have shape \(2, 3\), but have \(3, 3\)"):
        quantized.check(QuantizedArray(codes=codes, scales=scales, scheme="int4"))
    with pytest.raises(LpuError, match=r"must be float8_e4m3fn .* but are int8 \(64, 3\)"):
        quantized.check(QuantizedArray(codes=codes, scales=scales, scheme="fp8"))
    with pytest.raises(UnknownNameError, match="int4"):
        quantized.quantize(jnp.zeros((2, 2), jnp.float32), "int3")
