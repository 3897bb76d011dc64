"""Exact tile sums against Python integers; equality is bitwise everywhere, so no tolerance."""

from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax.errors import LpuError
from lpu_jax.numerics import accumulate, quantized, scalar

K_TILE = 160
M, N, K = 12, 20, 357  # ragged: tiles of 160, 160 and 37 rows
UNIT = 2.0**-24  # every fp16 number is a multiple of it


@cache
def in_x64(function, **static):
    """Open 64-bit mode around a meaning, as the lowering of a primitive does."""

    @jax.jit
    def call(*args):
        with jax.enable_x64(True):
            return function(*args, **static)

    return lambda *args: np.asarray(call(*map(jnp.asarray, args)))


matmul_fp16 = in_x64(accumulate.matmul_fp16)


def oracle(x, w, k_tile=K_TILE):
    """Integer dot products per tile, each rounded to fp32 from the integer; fp32 additions."""
    total = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for start in range(0, x.shape[1], k_tile):
        x_units, w_units = (
            (v.astype(np.float64) / UNIT).astype(np.int64).astype(object)
            for v in (x[:, start : start + k_tile], w[start : start + k_tile])
        )
        total += np.vectorize(round_units, otypes=[np.float32])(x_units.dot(w_units))
    return total


def round_units(units):
    """Round `units * 2**-48` to fp32 (RNE); in range of normal fp32 numbers, so bits suffice."""
    magnitude = abs(units)
    extra = max(magnitude.bit_length() - 24, 0)
    kept, rest = divmod(magnitude, 1 << extra)
    kept += 2 * rest > 1 << extra or (2 * rest == 1 << extra and kept & 1)
    return np.copysign(np.ldexp(float(kept), extra - 48), units) if units else 0.0


def plain_float64(x, w, k_tile=K_TILE):
    """Do what one would write first: a float64 product per tile, rounded to fp32."""
    total = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for start in range(0, x.shape[1], k_tile):
        tile = x[:, start : start + k_tile].astype(float) @ w[start : start + k_tile].astype(float)
        total += tile.astype(np.float32)
    return total


def random_bits(rng, shape):
    bits = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    return np.where(bits >> 10 & 31 == 31, bits ^ np.uint16(0x4000), bits).view(np.float16)


def cancelling(rng, size):
    """Large products that cancel in pairs, and a residue that a float64 sum loses."""
    x, w = np.zeros((M, K), np.float16), np.zeros((K, N), np.float16)
    half = size // 2
    x[:, :half], w[:half] = rng.uniform(100, 6e4, (M, half)), rng.uniform(100, 6e4, (half, N))
    x[:, half:size], w[half:size] = -x[:, :half], w[:half]
    residue = [half - 1, size - 1]
    x[:, residue] = UNIT * rng.integers(1, 999, (M, 2))
    w[residue] = UNIT * rng.integers(1, 999, (2, N))
    return x, w


def midpoints(rng):
    """Sums that are an fp32 midpoint plus or minus one unit of 2**-48."""
    x, w = np.zeros((M, K), np.float16), np.zeros((K, N), np.float16)
    x[:, :3], w[:3] = [64, 2.0**-6, UNIT], np.array([[64], [2.0**-6], [UNIT]])
    w[2] *= rng.choice([-1, 1], N)
    return x, w


def cases():
    rng = np.random.default_rng(0)
    m, n, k = M, N, K
    normal = rng.normal(size=(m, k)).astype(np.float16)
    weights = (rng.normal(size=(k, n)) * 0.02).astype(np.float16)
    log_uniform = [
        (np.exp2(rng.uniform(-24, 15.9, s)) * rng.choice([-1, 1], s)).astype(np.float16)
        for s in ((m, k), (k, n))
    ]
    subnormal = [
        rng.integers(-1023, 1024, s).astype(np.float16) * np.float16(UNIT) for s in ((m, k), (k, n))
    ]
    last = [v.copy() for v in (normal, weights)]  # small sums first, a cancelling tile at the end
    last[0][:, :320] *= np.float16(2.0**-10)
    cancel = cancelling(rng, K - 321)
    last[0][:, 321:], last[1][321:] = cancel[0][:, : K - 321], cancel[1][: K - 321]
    return {
        "normal": (normal, weights),
        "large": (normal * np.float16(300), weights * np.float16(3000)),
        "log-uniform": log_uniform,
        "bit patterns": (random_bits(rng, (m, k)), random_bits(rng, (k, n))),
        "subnormal": subnormal,
        "cancellation": cancelling(rng, K_TILE),
        "midpoint": midpoints(rng),
        "cancellation in the last tile": last,
        "largest": (np.full((m, k), 65504, np.float16), np.full((k, n), -65504, np.float16)),
        "zeros": (np.zeros((m, k), np.float16), -np.zeros((k, n), np.float16)),
        "one row of weights": (normal[:, :1], weights[:1]),
        "one product of zero and a negative": (np.zeros((m, 1), np.float16), -abs(weights[:1])),
    }


CASES = cases()
ADVERSARIAL = ["cancellation", "midpoint", "cancellation in the last tile"]


@pytest.mark.parametrize("case", CASES)
def test_fp16_equals_integer_oracle(case):
    x, w = CASES[case]
    got = matmul_fp16(x, w)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), oracle(x, w).view(np.uint32))


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_plain_float64_would_fail(case):
    x, w = CASES[case]
    assert (plain_float64(x, w) != oracle(x, w)).any()


@pytest.mark.parametrize("case", [*ADVERSARIAL, "log-uniform", "large"])
@pytest.mark.parametrize("cap", [0, 3])
def test_repairing_all_at_once_gives_the_same(case, cap):
    x, w = CASES[case]
    got = in_x64(accumulate.matmul_fp16, repair_cap=cap)(x, w)
    np.testing.assert_array_equal(got, oracle(x, w))


def test_a_single_repaired_output_is_found():
    x, w = (v.copy() for v in CASES["normal"])
    x[:, 3:K_TILE], x[:, :3] = 0, 0
    x[7, :3], w[:3, 11] = [64, 2.0**-6, 2.0**-24], [64, 2.0**-6, 2.0**-24]
    expected = oracle(x, w)
    assert (plain_float64(x, w) != expected).sum() == 1
    np.testing.assert_array_equal(matmul_fp16(x, w), expected)


def test_smallest_double_rounding_vector():
    x = np.array([[64, 2.0**-6, 2.0**-24]], np.float16)
    above = np.nextafter(np.float32(4096), np.float32(np.inf))
    assert matmul_fp16(x, x.T.copy())[0, 0] == above
    assert scalar.dot_tile(x[0].tolist(), x[0].tolist()) == above
    assert plain_float64(x, x.T)[0, 0] == 4096


def test_scalar_dot_equals_integer_oracle():
    for case in ("normal", "bit patterns", "cancellation"):
        x, w = CASES[case]
        got = [[scalar.dot(a.tolist(), b.tolist(), K_TILE) for b in w.T[:4]] for a in x[:4]]
        np.testing.assert_array_equal(np.array(got, np.float32), oracle(x[:4], w[:, :4]))


def test_ready_made_certificate_changes_nothing():
    certify = jax.jit(lambda w: _certificate(w))
    for case in ("normal", "large", "log-uniform", "cancellation in the last tile"):
        x, w = CASES[case]
        certificate = certify(jnp.asarray(w))
        assert certificate.norm.shape == (-(-w.shape[0] // K_TILE), w.shape[1])
        got = jax.jit(_with_certificate)(jnp.asarray(x), jnp.asarray(w), certificate)
        np.testing.assert_array_equal(got, oracle(x, w))


def _certificate(w):
    with jax.enable_x64(True):
        return accumulate.weight_certificate(w)


def _with_certificate(x, w, certificate):
    with jax.enable_x64(True):
        return accumulate.matmul_fp16(x, w, certificate=certificate)


def test_certificate_against_fractions():
    w = CASES["bit patterns"][1][:K_TILE]
    certificate = _certificate(jnp.asarray(w))
    units = (w.astype(np.float64) / UNIT).astype(np.int64)
    norm = np.sqrt((w.astype(np.float64) ** 2).sum(0))
    lowest = np.where(units == 0, 1 << 60, units & -units).min(0) * UNIT
    # 2**-22: two fp32 roundings; the proof's slack is four times larger.
    np.testing.assert_allclose(certificate.norm[0], norm, rtol=2.0**-22)
    np.testing.assert_allclose(certificate.span[0], norm / lowest, rtol=2.0**-22)


def test_infinities_and_nan_follow_ieee():
    x, w = (v.copy() for v in CASES["log-uniform"])
    x[0, 200], x[1, 5], x[2, 0], w[0, 3] = np.inf, np.nan, -np.inf, 0.0
    w[7, 4], w[300, 5] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = x.astype(float) @ w.astype(float)
    got, finite = matmul_fp16(x, w), np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite].astype(np.float32))
    x[~np.isfinite(x)], w[~np.isfinite(w)] = 0, 0
    np.testing.assert_array_equal(got[finite], oracle(x, w)[finite])
    assert np.isnan(scalar.dot([np.inf, 1.0], [0.0, 1.0], 1))


@pytest.mark.parametrize("case", ["normal", "cancellation"])
def test_rows_do_not_depend_on_the_batch(case):
    x, w = CASES[case]
    many = matmul_fp16(np.tile(x, (6, 1))[:64], w)
    np.testing.assert_array_equal(matmul_fp16(x[:1], w), many[:1])
    np.testing.assert_array_equal(matmul_fp16(x[:1], w[:, :1]), many[:1, :1])


def test_appended_zeros_change_nothing():
    x, w = CASES["cancellation in the last tile"]
    longer = np.pad(x, ((0, 0), (0, 400))), np.pad(w, ((0, 400), (0, 0)))
    np.testing.assert_array_equal(matmul_fp16(*longer), matmul_fp16(x, w))


def test_loops_over_matrices_keep_the_bits():
    pairs = [CASES[c] for c in ("normal", "large", "log-uniform", "bit patterns")]
    x, w = (np.stack(v) for v in zip(*pairs, strict=True))

    def loop(x, w):
        return jax.lax.map(lambda pair: accumulate.matmul(*pair), (x, w))

    expected = np.stack([oracle(*pair) for pair in pairs])
    np.testing.assert_array_equal(in_x64(loop)(x, w), expected)


def test_int8_is_exact():
    rng = np.random.default_rng(1)
    x, w = (rng.integers(-128, 128, s, np.int8) for s in ((5, 1999), (1999, 7)))
    x[0], w[:, 0] = -128, -128
    got = in_x64(accumulate.matmul)(x, w)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64))


def test_int8_refuses_what_could_wrap():
    limit = accumulate.MAX_K_INT8
    assert limit * 128**2 < 2**31 <= (limit + 1) * 128**2
    x, w = jnp.zeros((1, limit + 1), jnp.int8), jnp.zeros((limit + 1, 1), jnp.int8)
    with pytest.raises(LpuError, match=f"{limit + 1} can wrap int32; the exact limit is {limit}"):
        in_x64(accumulate.matmul_int8)(x, w)


def test_e4m3_equals_scalar_oracle():
    rng = np.random.default_rng(2)
    codes = [rng.choice(np.r_[0:0x7F, 0x80:0xFF], s).astype(np.uint8) for s in ((6, 700), (700, 5))]
    x, w = (c.view(ml_dtypes.float8_e4m3fn) for c in codes)
    expected = [
        [scalar.dot(a.astype(float).tolist(), b.astype(float).tolist(), 320) for b in w.T]
        for a in x
    ]
    np.testing.assert_array_equal(in_x64(accumulate.matmul)(x, w), np.array(expected, np.float32))
    np.testing.assert_array_equal(
        in_x64(accumulate.matmul_e4m3)(*codes), np.array(expected, np.float32)
    )


def test_int4_weights_widened_to_fp16():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(M, K)).astype(np.float16)
    weights = jnp.asarray(rng.normal(size=(K, N)), jnp.float32)
    w = np.asarray(jax.jit(lambda v: quantized.widen(quantized.quantize(v, "int4")))(weights))
    np.testing.assert_array_equal(matmul_fp16(x, w), oracle(x, w))


def test_other_operands_are_refused():
    x = jnp.zeros((2, 3), jnp.float16)
    with pytest.raises(LpuError, match="float16 and int8 were given; both must be one of float16"):
        in_x64(accumulate.matmul)(x, jnp.zeros((3, 2), jnp.int8))


def test_without_64_bit_mode_nothing_is_computed():
    x = jnp.zeros((2, 2), jnp.float16)
    with pytest.raises(AssertionError, match="enable_x64"):
        accumulate.matmul(x, x)
