"""Sums from residues against Python integers; equality is bitwise everywhere, so no tolerance."""

import math
from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_sums import CASES, K_TILE, UNIT, as_type, oracle, units

from lpu_jax.errors import LpuError
from lpu_jax.numerics import accumulate, repair, residues

#: 357 rows: in ragged tiles, in even tiles, in one sum; each program takes seconds to compile.
MODES = [
    {},
    {"k_tile": 119, "rounding": "rz"},
    {"carry": "exact", "rounding": "rz"},
]
LARGEST, SMALLEST = np.float16(65504), np.float16(UNIT)


def in_x64(function):
    """Open 64-bit mode around a meaning, as the lowering of a primitive does."""

    def call(*operands):
        with jax.enable_x64(True):
            return function(*operands)

    return call


def program(k_tile=K_TILE, rounding="rne", carry="fp32"):
    def call(x, w):
        return residues.tile_sums(
            x, w, k_tile=k_tile, rounding=rounding, exact_carry=carry == "exact"
        )

    return jax.jit(in_x64(call))


compiled = cache(program)


def sums(x, w, **mode):
    """One product of matrices; compiled once for each shape and mode."""
    return np.asarray(compiled(**mode)(x[None], w[None])[0])


def in_one_shape(x, w):
    """Pad with zeros, which change no sum, to the shape that most cases have."""
    k = CASES["normal"][0].shape[1]
    return np.pad(x, ((0, 0), (0, k - x.shape[1]))), np.pad(w, ((0, k - w.shape[0]), (0, 0)))


@pytest.fixture
def twelve_moduli(monkeypatch):
    """Enough for any tile; one branch instead of five compiles in a fifth of the time."""
    monkeypatch.setattr(residues, "_levels", lambda rows: (12,))


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_sums_equal_integer_oracle(case, mode):
    """All cases and modes together: 90,000 outputs, none wrong."""
    x, w = CASES[case]
    assert_same_bits(sums(*in_one_shape(x, w), **mode), oracle(x, w, **mode))


def test_there_are_more_than_90_000_outputs():
    assert sum(x.shape[0] * w.shape[1] for x, w in CASES.values()) * len(MODES) > 90_000


@pytest.mark.slow
def test_bits_equal_those_of_accumulate_with_narrower_weights(twelve_moduli):
    x, w = CASES["log-uniform"]
    w = as_type(w, "float8_e5m2")
    expected = jax.jit(in_x64(lambda x, w: accumulate.matmul(x, w, k_tile=K_TILE)))(x, w)
    assert_same_bits(np.asarray(program()(x[None], w[None])[0]), np.asarray(expected))


# --- how many moduli ------------------------------------------------------------------------------


def aligned(count, exponent):
    """Sums as large as Cauchy and Schwarz allow: `count` numbers and one unit that scales them."""
    x, w = in_one_shape(np.zeros((40, 1), np.float16), np.zeros((1, 64), np.float16))
    rng = np.random.default_rng(count * 40 + exponent)
    vector = np.ldexp(rng.integers(1024, 2048, count) * UNIT, exponent).astype(np.float16)
    x[:, : count + 1] = np.append(vector, SMALLEST) * rng.choice([-1, 1], (40, 1))
    w[: count + 1] = np.append(vector, SMALLEST)[:, None] * rng.choice([-1, 1], 64)
    return x.astype(np.float16), w.astype(np.float16), int((units(x[0]) ** 2).sum())


ALIGNED = [aligned(count, exponent) for exponent in range(30) for count in (1, 3, 11, 40, 159)]
FEW = np.s_[:2, :4]  # the others differ from these in sign only


def wrong(call, x, w):
    return (np.asarray(call(x[None], w[None])[0])[FEW] != oracle(x[FEW[0]], w[:, FEW[1]])).any()


def test_sums_as_large_as_their_bound_are_exact():
    shares = []
    for x, w, largest in ALIGNED:
        assert not wrong(compiled(), x, w)
        products = (math.prod(residues.MODULI[:level]) for level in residues._levels(K_TILE))
        shares.append(next(largest / p for p in products if largest < residues._SHARE * p))
    # Some reach close to the limit of the moduli that were chosen for them.
    assert max(shares) > 0.8 * residues._SHARE


@pytest.mark.slow
def test_a_limit_too_high_is_noticed(monkeypatch):
    monkeypatch.setattr(residues, "_SHARE", 4 * residues._SHARE)
    monkeypatch.setattr(residues, "_LEVELS", (6,))  # compiles faster
    call = program()
    assert any(wrong(call, x, w) for x, w, _ in ALIGNED)


def widest():
    """The largest numbers there are, beside the smallest, which keep them from being scaled."""
    x, w = (np.full(s, LARGEST) for s in ((40, K_TILE), (K_TILE, 64)))
    x[:, 7], w[9] = SMALLEST, SMALLEST
    x[1] *= -1
    return x, w


@pytest.mark.slow
def test_one_modulus_too_few_is_noticed(monkeypatch):
    x, w = widest()
    assert_same_bits(sums(*in_one_shape(x, w)), oracle(x, w))
    assert residues._levels(K_TILE)[-1] == 12
    monkeypatch.setattr(residues, "_levels", lambda rows: (11,))
    assert (np.asarray(program()(x[None], w[None])[0]) != oracle(x, w)).all()


@pytest.mark.slow
def test_long_sums_take_all_moduli(monkeypatch):
    monkeypatch.setattr(residues, "_LEVELS", ())  # compiles faster
    k = 13_000
    assert residues._levels(12_879) == (12,)
    assert residues._levels(k) == residues._levels(repair.MAX_K_TILE) == (13,)
    x, w = np.full((1, k), LARGEST), np.full((k, 2), LARGEST)
    x[0, 0], w[-1], w[:, 1] = SMALLEST, SMALLEST, -w[:, 1]
    got = np.asarray(program(carry="exact")(x[None], w[None])[0])
    assert_same_bits(got, oracle(x, w, carry="exact"))


@pytest.mark.slow
def test_blocks_of_rows_keep_the_bits(monkeypatch, twelve_moduli):
    """Sums over all rows, in blocks of which the last is shorter: 30,000 outputs."""
    monkeypatch.setattr(residues, "_CHUNK_ROWS", 100)
    call = program(carry="exact")
    for x, w in CASES.values():
        got = np.asarray(call(*(v[None] for v in in_one_shape(x, w)))[0])
        assert_same_bits(got, oracle(x, w, carry="exact"))


def test_moduli_are_coprime_and_int32_holds_their_sums():
    assert all(math.gcd(a, b) == 1 for a, b in combinations(residues.MODULI, 2))
    assert residues._CHUNK_ROWS * 128**2 + 255 < 2**31


@pytest.mark.parametrize("modulus", residues.MODULI)
def test_residues_equal_python_integers(modulus):
    largest = residues._LARGEST_UNITS
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.integers(-largest, largest, 4000), [largest, -largest, 0]])
    values = np.concatenate([values, np.arange(-1000, 1000), 2**20 * np.arange(-1000, 1000)])
    with jax.enable_x64(True):
        for factor in (1, modulus - 1):
            got = np.asarray(residues._residues(jnp.asarray(values), modulus, factor))
            assert ((got.astype(object) - values.astype(object) * factor) % modulus == 0).all()


# --- what is not finite, and shapes ---------------------------------------------------------------


@pytest.mark.parametrize("mode", [MODES[0], MODES[-1]], ids=str)
def test_infinities_and_nan_follow_ieee(mode):
    x, w = (v.copy() for v in CASES["log-uniform"])
    x[0, 200], x[1, 5], x[2, 0], w[0, 3] = np.inf, np.nan, -np.inf, 0.0
    w[7, 4], w[300, 5], w[9, 6] = np.inf, -np.inf, np.nan
    x[3, :300] = 0.0
    with np.errstate(invalid="ignore"):
        expected = x.astype(float) @ w.astype(float)
    got, finite = sums(x, w, **mode), np.isfinite(expected)
    assert {"-inf", "inf", "nan"} == {str(v) for v in np.unique(expected[~finite])}
    np.testing.assert_array_equal(got[~finite], expected[~finite].astype(np.float32))
    x[~np.isfinite(x)], w[~np.isfinite(w)] = 0, 0
    np.testing.assert_array_equal(got[finite], oracle(x, w, **mode)[finite])


@pytest.mark.slow
def test_batches_of_matrices_keep_the_bits(twelve_moduli):
    x, w = CASES["cancellation in the last tile"]
    both = np.stack([w, -w[::-1], w[:, ::-1]])
    expected = np.stack([oracle(x, each) for each in both])
    call = program()
    assert_same_bits(np.asarray(call(x[None], both)), expected)
    assert_same_bits(np.asarray(call(np.stack([x] * 3), both)), expected)


@pytest.mark.slow
def test_vmap_keeps_the_bits(monkeypatch):
    """The number of moduli is then each matrix's own: a large one takes 8, a small one 5."""
    monkeypatch.setattr(residues, "_levels", lambda rows: (5, 8))
    x = CASES["normal"][0][:, :K_TILE]
    small = np.ones((K_TILE, 4), np.float16)
    both = np.stack([small, small + np.float16(2.0**-10)])
    got = jax.vmap(program(), in_axes=(None, 0))(x[None], both[:, None])
    assert_same_bits(np.asarray(got[:, 0]), np.stack([oracle(x, w) for w in both]))


def test_sums_of_nothing_are_zero():
    assert np.asarray(program()(np.ones((1, 2, 0), "f2"), np.ones((3, 0, 4), "f2"))).tolist() == (
        np.zeros((3, 2, 4)).tolist()
    )
    assert program()(np.ones((1, 0, 5), "f2"), np.ones((1, 5, 4), "f2")).shape == (1, 0, 4)


@pytest.mark.parametrize("choices", [{"carry": "exact"}, {"k_tile": 2**21}], ids=str)
def test_sums_too_long_to_be_exact_are_refused(choices):
    limit = repair.MAX_K_TILE
    x, w = jnp.zeros((1, 1, limit + 1), "float16"), jnp.zeros((1, limit + 1, 1), "float16")
    with pytest.raises(LpuError, match=f"a sum of {limit + 1} products .* up to {limit} are exact"):
        program(**choices)(x, w)


def test_a_tile_has_rows():
    x = jnp.zeros((1, 2, 2), jnp.float16)
    with pytest.raises(LpuError, match="k_tile=0 was given; it must be"):
        program(k_tile=0)(x, x)


def test_without_64_bit_mode_nothing_is_computed():
    x = jnp.zeros((1, 2, 2), jnp.float16)
    with pytest.raises(AssertionError, match="enable_x64"):
        residues.tile_sums(x, x, k_tile=1, rounding="rne", exact_carry=False)
