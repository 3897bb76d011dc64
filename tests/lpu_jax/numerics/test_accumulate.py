"""Exact tile sums against Python integers; equality is bitwise everywhere, so no tolerance."""

from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from exact_sums import ADVERSARIAL, CASES, K_TILE, UNIT, N, as_type, oracle, plain_float64

from lpu_jax.errors import LpuError
from lpu_jax.numerics import accumulate, certificate, repair, scalar


@cache
def in_x64(**choices):
    """Open 64-bit mode around the meaning, as the lowering of a primitive does."""

    @jax.jit
    def call(x, w):
        with jax.enable_x64(True):
            return accumulate.matmul(x, w, **choices)

    return lambda x, w: np.asarray(call(jnp.asarray(x), jnp.asarray(w)))


matmul = in_x64()


MODES = [
    {},
    {"rounding": "rz"},
    {"k_tile": 320},
    {"carry": "exact"},
    {"carry": "exact", "rounding": "rz"},
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_fp16_equals_integer_oracle(case, mode):
    """All cases and modes together: 150,000 outputs, none wrong."""
    x, w = CASES[case]
    got = in_x64(**mode)(x, w)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), oracle(x, w, **mode).view(np.uint32))


def test_there_are_more_than_100_000_outputs():
    assert sum(x.shape[0] * w.shape[1] for x, w in CASES.values()) * len(MODES) > 100_000


@pytest.mark.slow
def test_the_engine_changes_no_bit():
    x, w = (v[..., :100] if i == 0 else v[:100, :5] for i, v in enumerate(CASES["log-uniform"]))
    np.testing.assert_array_equal(in_x64(engine="int8")(x[:4], w), oracle(x[:4], w))


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_plain_float64_would_fail(case):
    x, w = CASES[case]
    assert (plain_float64(x, w) != oracle(x, w)).any()


def test_the_oracles_tell_the_modes_apart():
    x, w = CASES["normal"]
    results = [oracle(x, w, **mode) for mode in MODES]
    for i, one in enumerate(results):
        assert all((one != other).any() for other in results[:i])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["normal", "log-uniform", "cancellation in the last tile"])
def test_blocks_of_matrices_keep_the_bits(case, monkeypatch):
    """Few matrices at once, an uneven last block, shared and separate activations."""
    x, w = CASES[case]
    both = np.stack([w, w[::-1], -w, w[:, ::-1], w * np.float16(0.5)])
    expected = np.stack([oracle(x, each) for each in both])
    monkeypatch.setattr(accumulate, "_BLOCK_BYTES", 2 * 8 * K_TILE * N)
    got = jax.jit(_grouped)(jnp.asarray(x), jnp.asarray(both))
    np.testing.assert_array_equal(got, expected)
    separate = np.stack([x] * len(both))
    np.testing.assert_array_equal(
        jax.jit(_grouped)(jnp.asarray(separate), jnp.asarray(both)), expected
    )


def _grouped(x, w):
    with jax.enable_x64(True):
        return accumulate.matmul(x, w)


def test_a_single_repaired_output_is_found():
    x, w = (v.copy() for v in CASES["normal"])
    x[:, 3:K_TILE], x[:, :3] = 0, 0
    x[7, :3], w[:3, 11] = [64, 2.0**-6, 2.0**-24], [64, 2.0**-6, 2.0**-24]
    expected = oracle(x, w)
    assert (plain_float64(x, w) != expected).sum() == 1
    np.testing.assert_array_equal(matmul(x, w), expected)


def test_smallest_double_rounding_vector():
    x = np.array([[64, 2.0**-6, 2.0**-24]], np.float16)
    above = np.nextafter(np.float32(4096), np.float32(np.inf))
    assert matmul(x, x.T.copy())[0, 0] == above
    assert scalar.dot_tile(x[0].tolist(), x[0].tolist()) == above
    assert plain_float64(x, x.T)[0, 0] == 4096


@pytest.mark.parametrize("top", range(1, 13))
def test_spans_on_both_sides_of_what_float64_holds(top):
    """A midpoint of fp32 and a bit 2**-48: float64 holds both up to top 2, as the certificate."""
    x = np.array([[2.0**top, 2.0 ** (top - 12), UNIT]], np.float16)
    w = np.tile(x.T, (1, 2)) * np.array([[1, 1], [1, 1], [1, -1]], np.float16)
    np.testing.assert_array_equal(matmul(x, w), oracle(x, w))
    assert (plain_float64(x, w) != oracle(x, w)).any() == (top > 2)


def test_scalar_dot_equals_integer_oracle():
    for case in ("normal", "bit patterns", "cancellation"):
        x, w = CASES[case]
        got = [[scalar.dot(a.tolist(), b.tolist(), K_TILE) for b in w.T[:4]] for a in x[:4]]
        np.testing.assert_array_equal(np.array(got, np.float32), oracle(x[:4], w[:, :4]))


@pytest.mark.slow
def test_norms_and_spans_against_integers():
    w = CASES["bit patterns"][1][:K_TILE]
    with jax.enable_x64(True):
        norm, span = certificate.norm_and_span(jnp.asarray(w), axis=0)
    integers = (w.astype(np.float64) / UNIT).astype(np.int64)
    expected = np.sqrt((w.astype(np.float64) ** 2).sum(0))
    lowest = np.where(integers == 0, 1 << 60, integers & -integers).min(0) * UNIT
    # 2**-22: two fp32 roundings; the proof's slack is four times larger.
    np.testing.assert_allclose(norm, expected, rtol=2.0**-22)
    np.testing.assert_allclose(span, expected / lowest, rtol=2.0**-22)


def test_infinities_and_nan_follow_ieee():
    x, w = (v.copy() for v in CASES["log-uniform"])
    x[0, 200], x[1, 5], x[2, 0], w[0, 3] = np.inf, np.nan, -np.inf, 0.0
    w[7, 4], w[300, 5] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = x.astype(float) @ w.astype(float)
    got, finite = matmul(x, w), np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite].astype(np.float32))
    x[~np.isfinite(x)], w[~np.isfinite(w)] = 0, 0
    np.testing.assert_array_equal(got[finite], oracle(x, w)[finite])
    assert np.isnan(scalar.dot([np.inf, 1.0], [0.0, 1.0], 1))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["normal", "cancellation"])
def test_rows_do_not_depend_on_the_batch(case):
    x, w = CASES[case]
    many = matmul(np.tile(x, (6, 1))[:64], w)
    np.testing.assert_array_equal(matmul(x[:1], w), many[:1])
    np.testing.assert_array_equal(matmul(x[:1], w[:, :1]), many[:1, :1])


@pytest.mark.slow
def test_appended_zeros_change_nothing():
    x, w = CASES["cancellation in the last tile"]
    longer = np.pad(x, ((0, 0), (0, 400))), np.pad(w, ((0, 400), (0, 0)))
    np.testing.assert_array_equal(matmul(*longer), matmul(x, w))


@pytest.mark.first(3)
@pytest.mark.parametrize(
    ("x_type", "w_type"),
    [pair for pair, kind in accumulate.PRODUCT_KINDS.items() if kind != "int8"],
)
@pytest.mark.parametrize("case", ["normal", "log-uniform"])
def test_every_pair_of_types_equals_integer_oracle(case, x_type, w_type):
    x, w = CASES[case]
    x, w = as_type(x[:8], x_type), as_type(w[:, :16], w_type)
    k_tile = accumulate.K_TILES[accumulate.product_kind(x_type, w_type)]
    got = matmul(x, w)
    np.testing.assert_array_equal(got.view("u4"), oracle(x, w, k_tile).view("u4"))


def test_int8_is_exact():
    rng = np.random.default_rng(1)
    x, w = (rng.integers(-128, 128, s, np.int8) for s in ((5, 1999), (1999, 7)))
    x[0], w[:, 0] = -128, -128
    got = matmul(x, w)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64))


def test_e4m3_sums_of_the_largest_length_are_exact():
    k = accumulate.MAX_K_E4M3
    x = np.full((1, k), 448, ml_dtypes.float8_e4m3fn)
    w = np.full((k, 1), 448, ml_dtypes.float8_e4m3fn)
    x[0, 0], w[0, 0] = 2.0**-9, 2.0**-9  # smallest product beside the largest sum
    expected = oracle(x, w, k, rounding="rz", carry="exact")
    np.testing.assert_array_equal(in_x64(carry="exact", rounding="rz")(x, w), expected)


@pytest.mark.parametrize(
    ("dtype", "limit", "choices"),
    [
        ("int8", accumulate.MAX_K_INT8, {}),
        ("float8_e4m3fn", accumulate.MAX_K_E4M3, {"carry": "exact"}),
        ("float16", repair.MAX_K_TILE, {"carry": "exact"}),
        ("float16", repair.MAX_K_TILE, {"k_tile": 2**21}),
    ],
)
def test_sums_too_long_to_be_exact_are_refused(dtype, limit, choices):
    x, w = jnp.zeros((1, limit + 1), dtype), jnp.zeros((limit + 1, 1), dtype)
    with pytest.raises(LpuError, match=f"a sum of {limit + 1} products .* up to {limit} are exact"):
        in_x64(**choices)(x, w)


def test_the_int8_limit_is_where_int32_ends():
    assert accumulate.MAX_K_INT8 * 128**2 < 2**31 <= (accumulate.MAX_K_INT8 + 1) * 128**2


@pytest.mark.parametrize(
    ("rounding", "carry", "message"),
    [
        ("rna", "fp32", "rounding='rna' .* one of rne, rz"),
        ("rne", "fp64", "carry='fp64' .* one of fp32, exact"),
    ],
)
def test_choices_that_do_not_exist_are_refused(rounding, carry, message):
    x = jnp.zeros((2, 2), jnp.float16)
    with pytest.raises(LpuError, match=message):
        in_x64(rounding=rounding, carry=carry)(x, x)


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_empty_operands_give_zeros(m, k, n, dtype):
    got = matmul(jnp.ones((m, k), dtype), jnp.ones((k, n), dtype))
    np.testing.assert_array_equal(got, np.zeros((m, n)))


def test_a_tile_has_rows():
    x = jnp.zeros((2, 2), jnp.float16)
    with pytest.raises(LpuError, match="k_tile=0 was given; it must be"):
        in_x64(k_tile=0)(x, x)


@pytest.mark.parametrize(
    ("x_type", "w_type"),
    [("float32", "float32"), ("int8", "float16"), ("int8", "float8_e5m2"), ("float16", "float32")],
)
def test_other_operands_are_refused(x_type, w_type):
    with pytest.raises(LpuError, match=f"operands {x_type} and {w_type} were given; allowed are"):
        matmul(jnp.zeros((2, 3), x_type), jnp.zeros((3, 2), w_type))


def test_bf16_is_refused_with_the_way_out():
    x = jnp.zeros((2, 2), jnp.bfloat16)
    with pytest.raises(LpuError, match="round it to float16"):
        matmul(x, x)


def test_without_64_bit_mode_nothing_is_computed():
    x = jnp.zeros((2, 2), jnp.float16)
    with pytest.raises(AssertionError, match="enable_x64"):
        accumulate.matmul(x, x)
