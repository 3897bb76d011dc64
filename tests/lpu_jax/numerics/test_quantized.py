"""Quantised arrays against NumPy, ml_dtypes and exact fractions; MX elements: `test_blocks`."""

import functools
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lpu_jax.errors import LpuError
from lpu_jax.numerics import quantized, scalar
from lpu_jax.numerics.formats import FP16
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import (
    FP8_BLOCK128,
    INT4_GROUP32,
    INT8_COLUMN,
    MXFP4,
    NVFP4,
    SCHEMES,
    block_floating_point,
)

#: Block of each scheme whose scales are `amax / largest code`, and that largest code.
FLOAT_SCALED = {
    "int4": (32, 1, 7),
    "fp8": (128, 128, 448),
    "int8": (None, 1, 127),
    "int8_row": (1, None, 127),
    "int8_tensor": (None, None, 127),
}
quantize = jax.jit(quantized.quantize, static_argnums=(1, 2))
widen, dequantize = jax.jit(quantized.widen), jax.jit(quantized.dequantize)


@functools.cache
def weights(shape=(256, 96), seed=0):
    """Weights; most tests use one shape, so that a scheme compiles once."""
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(0.02)
    w[..., :32, 0] = 0  # a block of zeros
    return w


def blocks_of(shape, name):
    """Slices of every block of a matrix."""
    rows, columns, _ = FLOAT_SCALED[name]
    rows, columns = rows or shape[0], columns or shape[1]
    return [
        (slice(i, i + rows), slice(j, j + columns))
        for i in range(0, shape[0], rows)
        for j in range(0, shape[1], columns)
    ]


def scale_at(scales, block, name):
    """The scale of a block in the array of scales."""
    rows, columns, _ = FLOAT_SCALED[name]
    return scales[block[0].start // rows if rows else 0, block[1].start if columns else 0]


@pytest.mark.parametrize("name", FLOAT_SCALED)
def test_quantize_follows_its_definition(name):
    """Block by block, in fp32 with ml_dtypes."""
    w = weights((2, 300, 200))
    q = quantize(jnp.asarray(w), name)
    quantized.check(q)
    largest = np.float32(FLOAT_SCALED[name][2])
    for i in range(w.shape[0]):
        codes, scales = np.asarray(q.codes[i]), np.asarray(q.scales[i])
        for block in blocks_of(w.shape[1:], name):
            scale = np.abs(w[i][block]).max() / largest
            if name == "int4":
                scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
            assert scale_at(scales, block, name) == scale
            ratio = w[i][block] / scale if scale else w[i][block] * 0
            if name == "fp8":
                expected = np.clip(ratio, -448, 448).astype(ml_dtypes.float8_e4m3fn)
            else:
                expected = np.clip(np.rint(ratio), -largest, largest)
            np.testing.assert_array_equal(np.float32(codes[block]), np.float32(expected))


# --- NVFP4 ------------------------------------------------------------------------------------


def nvfp4(w, smallest_scale=0.0):
    """Codes' values, block scales and tensor scale of rows in blocks of 16, in fp32."""
    tensor_scale = np.abs(w).max() / np.float32(448 * 6)
    v = (w / tensor_scale).reshape(len(w), -1, 16)
    scales = np.clip(np.abs(v).max(-1) / np.float32(6), smallest_scale, 448)
    scales = scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)[..., None]
    ratio = np.divide(v, scales, out=np.zeros_like(v), where=scales != 0)
    values = np.clip(ratio, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return values.reshape(w.shape), scales[..., 0], tensor_scale


def wide_rows():
    """Rows of many magnitudes: some blocks get subnormal scales, some the scale 0.

    The tensor scale is 3 and eight rows hold multiples of 3/4, so that quotients tie.
    """
    rng = np.random.default_rng(3)
    w = rng.normal(size=(128, 256)) * 2.0 ** rng.integers(-24, 1, (128, 16)).repeat(16, 1)
    w[:8] = rng.integers(-24, 25, (8, 256)) * 0.75
    w[5, 16:48], w[:8, ::16], w[100, 0] = 0, 18, 3 * 448 * 6
    return w.astype(np.float32)


def test_nvfp4_follows_its_definition():
    w = wide_rows()
    q = quantize(jnp.asarray(w), NVFP4, -1)
    quantized.check(q)
    values, scales, tensor_scale = nvfp4(w)
    np.testing.assert_array_equal(q.tensor_scale, [[tensor_scale]])
    np.testing.assert_array_equal(np.float32(q.scales), scales)
    assert (scales == 0).any()
    assert ((scales > 0) & (scales < 2**-6)).any()
    product = values * scales.repeat(16, -1)  # exact: 2 by 4 bits
    np.testing.assert_array_equal(widen(q), product)
    np.testing.assert_array_equal(dequantize(q), product * tensor_scale)


def test_the_oracle_of_nvfp4_can_fail():
    w = wide_rows()
    values, scales, _ = nvfp4(w)
    clamped = nvfp4(w, smallest_scale=2.0**-6)  # torchao's lower end
    assert (clamped[1] != scales).any()
    assert (clamped[0] != values).any()


def test_nvfp4_leaves_the_tensor_scale_to_the_result():
    w = weights((64, 24))
    q = quantize(jnp.asarray(np.stack([w, w * 8, w * 0])), NVFP4)
    scale = np.asarray(quantized.output_scale(q))
    assert scale.shape == (3, 1, 1)
    np.testing.assert_array_equal(np.asarray(widen(q)).astype(np.float32) * scale, dequantize(q))
    np.testing.assert_array_equal(scale[1] / scale[0], [[8]])
    assert not np.asarray(dequantize(q))[2].any()


def test_nan_and_infinity_take_an_nvfp4_matrix_with_them():
    w = np.stack([weights((32, 8))] * 3)
    w[0, 3, 2], w[1, 20, 5] = np.nan, np.inf
    values = np.asarray(dequantize(quantize(jnp.asarray(w), NVFP4)))
    np.testing.assert_array_equal(np.isnan(values).all((1, 2)), [True, True, False])
    assert np.isfinite(values[2]).all()


# --- values -----------------------------------------------------------------------------------


@pytest.mark.first(2)
@pytest.mark.parametrize("name", SCHEMES)
def test_widen_rounds_the_exact_product_once(name):
    scheme = SCHEMES[name]
    k, n = 140, 12
    w = np.zeros((256, 96), np.float32)
    w[:k, :n] = weights((k, n))
    q = quantize(jnp.asarray(w), scheme)
    codes, scales = np.asarray(q.codes), None
    if scheme.scale_format is not None:
        scales = np.asarray(q.scales)
        spread = scales.repeat(256 // len(scales), 0)
        scales = np.broadcast_to(spread, w.shape)
    want = []
    for index in np.ndindex(k, n):
        code = codes[index]
        if codes.dtype == np.uint8:
            value = scalar.decode(int(code), scheme.format)
        else:
            value = Fraction(float(code)) or float(code)
        if scales is None:
            scale = Fraction(1)
        elif scheme.has_power_of_two_scales:
            scale = Fraction(2) ** (int(scales[index]) - 127 + scheme.code_exponent)
        else:
            scale = Fraction(float(scales[index]))
        exact = value if isinstance(value, float) else value * scale or 0.0
        want.append(scalar.encode(exact, FP16, overflow="ieee"))
    np.testing.assert_array_equal(np.asarray(widen(q))[:k, :n].view(np.uint16).ravel(), want)


def test_widen_does_not_round_twice():
    """Codes of 3 whose products lie next to fp16 ties, closer than fp32 can tell."""
    ties = (2 * np.arange(1024, dtype=np.int64) + 1) << 14  # times 2**-25: 1 / 2**11 apart
    ties += 1 << 25
    scales = np.float32((ties + 1) // 3 * 2.0**-25)
    q = QuantizedArray(
        codes=jnp.full((1, 1024), 3, jnp.int8), scales=jnp.asarray(scales[None]), scheme=INT8_COLUMN
    )
    exact = [scalar.encode(3 * Fraction(float(s)), FP16) for s in scales]
    twice = np.float16(np.float32(3) * scales).view(np.uint16)
    assert (twice != exact).mean() > 0.1  # one tie in six goes the wrong way
    np.testing.assert_array_equal(np.asarray(widen(q)).view(np.uint16)[0], exact)


@pytest.mark.parametrize(
    ("name", "exact"), [("int4", True), ("fp8", False), ("int8", False), ("fp16", True)]
)
def test_dequantize_is_exact_where_it_says_so(name, exact):
    q = quantize(jnp.asarray(weights()), name)
    product = np.asarray(q.codes).astype(np.float64)
    if name != "fp16":
        rows = 256 // q.scales.shape[0]
        product = product * np.asarray(q.scales).astype(np.float64).repeat(rows, axis=0)
    got = np.asarray(dequantize(q))
    np.testing.assert_array_equal(got, product.astype(np.float32))
    assert (got.astype(np.float64) == product).all() == exact


# Largest error in units of the block's largest magnitude: half a step of the grid (int), half an
# ulp of e4m3 at its top (fp8, 16/448), of fp16 (from 2**-14 up) or of bf16; int4 has 2**-8 more
# because its scale is rounded to bf16.
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("int4", 0.5 / 7 + 2.0**-8),
        ("fp8", 16 / 448),
        ("int8", 0.5 / 127),
        ("fp16", 2.0**-11),
        ("bf16", 2.0**-8),
    ],
)
def test_error_stays_within_half_a_step(name, bound):
    w = weights(seed=5)
    error = np.abs(np.asarray(dequantize(quantize(jnp.asarray(w), name))) - w)
    amax = np.maximum(np.abs(w), 2.0**-14)
    if name == "int4":
        amax = np.repeat(amax.reshape(8, 32, 96).max(1), 32, axis=0)
    elif name == "fp8":
        amax = np.repeat(amax.reshape(2, 128, 96).max((1, 2), keepdims=True)[:, 0], 128, axis=0)
    elif name == "int8":
        amax = amax.max(0)[None, :]
    assert (error <= bound * 1.0001 * amax).all()


@pytest.mark.parametrize("name", ["int4", "int8", "int8_row", "int8_tensor", "fp8", "nvfp4"])
def test_quantising_again_changes_nothing(name):
    """Without subnormal nvfp4 scales: there 6 may be no block's largest code."""
    q = quantize(jnp.asarray(weights(seed=8)), name)
    again = quantize(dequantize(q), name)
    for leaf, other in zip(jax.tree.leaves(q), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))


@pytest.mark.parametrize("name", ["int4", "int8", "mxint8", "msfp12"])
def test_integers_never_use_their_lowest_code(name):
    w = weights(seed=6)[:, :48]
    codes = np.asarray(quantize(jnp.asarray(np.concatenate([w, -w], 1)), name).codes)
    assert codes.min() == -SCHEMES[name].format.max_code
    np.testing.assert_array_equal(codes[:, :48], -codes[:, 48:])


def test_tiny_and_zero_weights_become_zero_under_float_scales():
    w = np.full((256, 96), 1e-42, np.float32)
    w[:, 1] = 5e-31  # normal, but below the stated 2**-100
    for name in ("int4", "fp8", "int8", "nvfp4"):
        q = quantize(jnp.asarray(w), name)
        assert not np.asarray(q.scales).astype(np.float32).any()
        assert not np.asarray(dequantize(q)).any()


# --- bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "n_bytes"),
    [
        ("fp16", (3, 5), 30),
        ("int8", (2, 100, 7), 2 * (700 + 7 * 4)),
        ("int8_row", (100, 7), 700 + 100 * 4),
        ("int8_tensor", (3, 100, 7), 3 * (700 + 4)),
        ("fp8", (7168, 2048), 7168 * 2048 + 56 * 16 * 4),
        ("fp8", (130, 129), 130 * 129 + 4 * 4),
        ("int4", (384, 7168, 2048), 384 * 7168 * 2048 * 9 // 16),
        ("int4", (33, 3), 50 + 2 * 3 * 2),
        ("mxfp8_e5m2", (64, 3), 64 * 3 + 2 * 3),
        ("mxfp6_e2m3", (33, 3), 75 + 2 * 3),
        ("mxfp4", (128, 2880, 5760), 128 * 2880 * 5760 * 17 // 32),
        ("nvfp4", (2, 32, 5), 2 * (80 + 2 * 5 + 4)),
        ("msfp12", (16, 2), 16 + 2),
    ],
)
def test_stored_bytes_are_counted_exactly(name, shape, n_bytes):
    scheme = SCHEMES[name]
    assert scheme.stored_bytes(shape) == n_bytes
    *lead, k, n = shape
    assert scheme.stored_bytes((*lead, n, k), -1) == n_bytes


def test_stored_bytes_take_arrays_of_shapes():
    k, n = np.array([33, 64, 4096]), np.array([3, 5, 128])
    each = [INT4_GROUP32.stored_bytes((int(a), int(b))) for a, b in zip(k, n, strict=True)]
    np.testing.assert_array_equal(INT4_GROUP32.stored_bytes((k, n)), each)


def test_bits_per_value():
    bits = {name: scheme.bits_per_value for name, scheme in SCHEMES.items()}
    assert bits == {
        **{"fp16": 16, "bf16": 16, "int8": 8, "int8_row": 8, "int8_tensor": 8, "int4": 4.5},
        **{"fp8": 8 + 32 / 128**2, "mxfp8_e4m3": 8.25, "mxfp8_e5m2": 8.25, "mxint8": 8.25},
        **{"mxfp6_e3m2": 6.25, "mxfp6_e2m3": 6.25, "mxfp4": 4.25, "nvfp4": 4.5},
        **{"msfp12": 4.5, "msfp16": 8.5, "fp8_column": 8},
    }


# --- a pytree ---------------------------------------------------------------------------------

TREES = ("int4", "fp8", "int8", "int8_tensor", "fp16", "mxfp8_e4m3", "mxfp4", "nvfp4", "msfp12")


@pytest.mark.parametrize("name", TREES)
def test_columns_split_freely(name):
    q = quantize(jnp.asarray(weights()), name)
    part = jax.tree.map(lambda leaf: leaf if leaf.shape[-1] == 1 else leaf[..., 37:90], q)
    assert part.scheme == SCHEMES[name]
    quantized.check(part)
    np.testing.assert_array_equal(widen(part), np.asarray(widen(q))[:, 37:90])
    shapes = jax.eval_shape(lambda a: a, q)
    assert shapes.shape == (256, 96)
    assert shapes.stored_bytes == q.stored_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_leading_axes_map_and_scan(name):
    """jit, vmap, scan and a plain loop give the same bits."""
    w = jnp.asarray(weights((3, 64, 24)))
    q = quantize(w, name)
    each = [quantize(w[i], name) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    mapped = jax.jit(jax.vmap(lambda one: quantized.quantize(one, name)))(w)
    for other in (stacked, mapped):
        for a, b in zip(jax.tree.leaves(q), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    expected = np.stack([dequantize(one) for one in each])
    _, scanned = jax.lax.scan(lambda carry, one: (carry, quantized.dequantize(one)), 0, q)
    unmapped = jax.jit(jax.vmap(quantized.dequantize))(q)
    for values in (dequantize(q), scanned, unmapped):
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("name", ["int8", "int4", "fp8", "mxfp8_e4m3", "nvfp4", "int8_tensor"])
def test_devices_hold_shares_of_codes_and_scales(name):
    """Rows over 2 devices (whole blocks), columns over 4: the bits of one device."""
    q = quantize(jnp.asarray(weights()), name)
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4), ("rows", "columns"))
    specs = quantized.partition(q, P("rows", "columns"))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    placed = jax.device_put(q, shardings)
    assert placed.codes.addressable_shards[0].data.shape == (128, 24)
    if q.scales.shape[0] > 1:
        assert placed.scales.addressable_shards[0].data.shape == (q.scales.shape[0] // 2, 24)
    share = jax.tree.map(lambda leaf: leaf.addressable_shards[5].data, placed)
    quantized.check(share)
    values = np.asarray(dequantize(q))
    np.testing.assert_array_equal(dequantize(placed), values)
    np.testing.assert_array_equal(dequantize(share), values[128:, 24:48])


def test_output_scales_are_what_the_operands_leave_out():
    q = quantize(jnp.asarray(weights()), "int8")
    assert quantized.output_scale(q) is None
    column = np.asarray(quantized.output_scale(q, of_codes=True))
    np.testing.assert_array_equal(np.asarray(q.codes).astype(np.float32) * column, dequantize(q))
    with pytest.raises(LpuError, match=r"output_scale: codes of scheme int8_row .* bare"):
        quantized.output_scale(quantize(q.codes.astype(jnp.float32), "int8_row"), of_codes=True)


# --- mistakes ---------------------------------------------------------------------------------


def test_arrays_that_disagree_are_refused():
    codes, scales = jnp.zeros((64, 3), jnp.int8), jnp.zeros((3, 3), jnp.bfloat16)
    wrong = QuantizedArray(codes=codes, scales=scales, scheme=INT4_GROUP32)
    with pytest.raises(LpuError, match=r"must have shape \(2, 3\), but have \(3, 3\)"):
        quantized.check(wrong)
    with pytest.raises(LpuError, match=r"must be float8_e4m3fn, but are int8 \(64, 3\)"):
        quantized.check(replace(wrong, scheme=FP8_BLOCK128))
    with pytest.raises(LpuError, match="scales of scheme int4 must be bfloat16, but are float32"):
        quantized.check(replace(wrong, scales=jnp.zeros((2, 3), jnp.float32)))
    q = jax.eval_shape(lambda w: quantized.quantize(w, NVFP4), jnp.zeros((32, 3), jnp.float32))
    with pytest.raises(LpuError, match=r"tensor scale .* must have shape \(1, 1\), but have None"):
        quantized.check(replace(q, tensor_scale=None))
    with pytest.raises(LpuError, match=r"quantize: shape \(4, 4\) and axis 0 were given"):
        quantized.quantize(jnp.zeros((4, 4), jnp.float32), MXFP4, 0)
    with pytest.raises(LpuError, match="random key"):
        quantized.quantize(jnp.zeros((4, 4), jnp.float32), MXFP4, rounding="sr")


def test_two_schemes_of_one_name_stay_apart():
    x = jnp.asarray(weights((64, 8)))
    narrow, wide = (
        block_floating_point(16, 2, name="mine"),
        block_floating_point(16, 6, name="mine"),
    )
    a, b = quantize(x, narrow), quantize(x, wide)
    assert np.abs(np.asarray(a.codes)).max() == 3
    assert np.abs(np.asarray(b.codes)).max() == 63
    assert jax.tree.structure(a) != jax.tree.structure(b)
