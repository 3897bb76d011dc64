"""Hard inputs for conversions between number formats, and answers that are not ours.

Three oracles: ml_dtypes (nearest even, from fp32 sources only: from others it rounds twice),
gfloat, and a float64 NumPy one in which every step but the rounding is exact. All are compared by
value, with the sign of zero; NaN equals NaN.
"""

import functools

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
from gfloat.types import Domain

from lpu_jax.numerics import scalar
from lpu_jax.numerics.formats import FORMATS, Format

#: The type of ml_dtypes (or NumPy) for each of our formats.
NARROW = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
#: Every format whose codes can all be listed.
SMALL_FORMATS = [fmt for fmt in FORMATS.values() if fmt.bits <= 16]
MODES = {
    "rne": gfloat.RoundMode.TiesToEven,
    "rz": gfloat.RoundMode.TowardZero,
    "rna": gfloat.RoundMode.TiesToAway,
    # In exact arithmetic our rule: up if fraction + random / 2**32 >= 1.
    "sr": gfloat.RoundMode.StochasticFastest,
}
#: Random bit patterns among the hard values of a format, at least.
N_RANDOM = 1_000_000
N_NEAR = 100_000
#: All of them: the same for each format, so that one shape is compiled for.
N_HARD = 1_650_000


@functools.cache
def code_values(fmt: Format) -> np.ndarray:
    """Return the float64 value of every code, from ml_dtypes where it has the format."""
    codes = np.arange(1 << fmt.bits, dtype=np.uint32)
    if fmt.name in NARROW:
        narrow = np.dtype(NARROW[fmt.name])
        container = np.dtype(f"u{narrow.itemsize}")
        with np.errstate(invalid="ignore"):  # signalling NaN
            return codes.astype(container).view(narrow).astype(np.float32).astype(np.float64)
    return np.array([float(scalar.decode(int(code), fmt)) for code in codes])


@functools.cache
def hard_values(fmt: Format) -> np.ndarray:
    """Return fp32 values that are hard to round to a format.

    A million random bit patterns, values in the format's range, every fp16 and bf16
    number, every value of the format, every midpoint of neighbours (also with the first value
    that is too large), and the two fp32 neighbours of each of these.
    """
    rng = np.random.default_rng(0)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = fmt.smallest_exponent - 3, np.log2(fmt.max_value) + 2
        near = np.exp2(rng.uniform(max(low, -149), high, N_NEAR))
        near = (near * rng.choice([-1, 1], near.size)).astype(np.float32)
        every = [code_values(FORMATS[name]).astype(np.float32) for name in ("fp16", "bf16")]
        # The codes of fp32 are too many, and random bit patterns are its values already.
        values = code_values(fmt) if fmt.bits <= 16 else np.ldexp(1.0, np.arange(-149, 127))
        values = np.unique(values[np.isfinite(values)])
        beyond = 2 * values[-1] - values[-2]
        values = np.append(values, [beyond, -beyond] if fmt.is_signed else beyond)
        values.sort()
        middles = (values[1:] + values[:-1]) / 2
        edges = np.concatenate([values, middles]).astype(np.float32)
        around = [np.nextafter(edges, np.float32(sign * np.inf)) for sign in (-1, 1)]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45], np.float32)
    chosen = np.concatenate([near, *every, edges, *around, special])
    n_random = N_HARD - chosen.size
    assert n_random >= N_RANDOM
    random = rng.integers(0, 1 << 32, n_random, dtype=np.uint32).view(np.float32)
    return np.concatenate([random, chosen])


def by_ml_dtypes(x: np.ndarray, fmt: Format) -> np.ndarray:
    """Return `x` rounded by ml_dtypes: nearest even, "ieee" overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(NARROW[fmt.name]).astype(np.float32).astype(np.float64)


def by_numpy(x, fmt: Format, rounding="rne", overflow="ieee", exponent=0, random=None):
    """Return `x * 2**-exponent` rounded, in float64.

    Scaling by a power of two is exact in float64, whose range holds that of fp32 many times over.
    """
    with np.errstate(invalid="ignore"):  # signalling NaN
        value = np.ldexp(x.astype(np.float64), -np.asarray(exponent))
    finite = np.where(np.isfinite(value), np.abs(value), 0.0)
    leading = np.frexp(finite)[1] - 1
    step = np.maximum(leading - fmt.mantissa_bits, fmt.smallest_exponent)
    if fmt.is_integer:
        step = np.zeros_like(step)
    scaled = np.ldexp(finite, -step)
    whole = np.floor(scaled)
    if rounding == "rne":
        whole = np.rint(scaled)
    elif rounding == "rna":
        whole += scaled - whole >= 0.5
    elif rounding == "sr":
        whole += np.floor(np.ldexp(scaled - whole, 32)) + random >= 2.0**32
    result = np.ldexp(whole, step)
    too_large = np.isinf(value)
    largest = np.full_like(result, fmt.max_value)
    if fmt.is_integer and not fmt.is_symmetric:
        largest += value < 0
    if rounding != "rz":
        too_large |= result > largest
    result = np.minimum(result, largest)
    beyond = largest
    if overflow == "ieee" and (fmt.inf_code or fmt.nan_code):
        beyond = np.inf if fmt.inf_code else np.nan
    result = np.where(too_large, beyond, result)
    nan = np.nan if fmt.nan_code else 0.0
    if not fmt.is_signed:
        result = np.maximum(result, 2.0**fmt.smallest_exponent)
        return np.where(np.isnan(value) | (value <= 0), nan, result)
    signed = np.copysign(result, value)
    if fmt.is_integer:
        signed += 0.0  # no negative zero
    return np.where(np.isnan(value), nan, signed)


def _gfloat_format(fmt: Format) -> gfloat.FormatInfo:
    """Return gfloat's description of a format; the two it lacks are built by hand."""
    known = gfloat.formats
    named = {
        "fp32": known.format_info_binary32,
        "fp16": known.format_info_binary16,
        "bf16": known.format_info_bfloat16,
        "e4m3fn": known.format_info_ocp_e4m3,
    }
    if fmt.name in named:
        return named[fmt.name]
    if fmt.name not in {"e4m3", "e3m4"}:
        return getattr(known, f"format_info_ocp_{fmt.name}")
    return gfloat.FormatInfo(
        fmt.name,
        k=8,
        precision=fmt.mantissa_bits + 1,
        bias=2 ** (fmt.exponent_bits - 1) - 1,
        has_nz=True,
        domain=Domain.Extended,
        num_high_nans=2**fmt.mantissa_bits - 1,
        has_subnormals=True,
        is_signed=True,
        is_twos_complement=False,
    )


GFLOAT_FORMATS = [FORMATS[name] for name in NARROW]


def is_in_gfloat(x: np.ndarray, fmt: Format, rounding: str) -> np.ndarray:
    """Tell which values gfloat's rules treat as ours do.

    It has no NaN in fp4 and fp6. In e8m0 it has neither a zero nor negative values nor a smallest
    value, and breaks ties by the code's last bit, where IEEE 754 (and ml_dtypes) takes the larger
    number if a significand has but one bit.
    """
    inside = ~np.isnan(x) if fmt.nan_code is None else np.ones_like(x, bool)
    if not fmt.is_signed:
        with np.errstate(invalid="ignore"):  # signalling NaN, where there is no AVX-512
            is_tie = np.frexp(x)[0] == 0.75
        inside &= (x >= 2.0**-127) & ~(is_tie & (rounding == "rne"))
    return inside


def by_gfloat(x: np.ndarray, fmt: Format, rounding="rne", overflow="ieee", random=None):
    """Return `x` rounded by gfloat."""
    bits = {} if random is None else {"srbits": random.astype(np.int64), "srnumbits": 32}
    saturates = overflow == "saturate" or fmt.nan_code is None
    with np.errstate(invalid="ignore"):
        return gfloat.round_ndarray(
            _gfloat_format(fmt), x.astype(np.float64), MODES[rounding], sat=saturates, **bits
        )


def assert_same_values(got: np.ndarray, expected: np.ndarray, x: np.ndarray) -> None:
    """Raise unless values agree, signs of zeros included; show the first that does not."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    same = (got == expected) & (np.signbit(got) == np.signbit(expected))
    same |= np.isnan(got) & np.isnan(expected)
    wrong = np.flatnonzero(~same)
    if wrong.size:
        i = wrong[0]
        raise AssertionError(
            f"{wrong.size} of {same.size} differ; the first: {x.reshape(-1)[i]!r} became "
            f"{got.reshape(-1)[i]!r}, expected {expected.reshape(-1)[i]!r}"
        )
