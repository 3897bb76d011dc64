"""Cases and Python-integer oracles for exact sums of products of fp16 numbers."""

import ml_dtypes
import numpy as np

K_TILE = 160
M, N, K = 40, 64, 357  # ragged: tiles of 160, 160 and 37 rows
UNIT = 2.0**-24  # every fp16 number is a multiple of it


def units(values):
    """Numbers of fp16 or narrower as Python integers of 2**-24, in an object array."""
    return (values.astype(np.float64) / UNIT).astype(np.int64).astype(object)


def oracle(x, w, k_tile=K_TILE, rounding="rne", carry="fp32"):
    """Integer dot products per tile, each rounded to fp32 from the integer; fp32 additions."""
    rounded = np.vectorize({"rne": round_units, "rz": truncate_units}[rounding], otypes=["f4"])
    if carry == "exact":
        return rounded(units(x).dot(units(w)))
    total = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for start in range(0, x.shape[1], k_tile):
        rows = slice(start, start + k_tile)
        total += rounded(units(x[:, rows]).dot(units(w[rows])))
    return total


def round_units(total):
    """Round `total * 2**-48` to fp32 (RNE); in range of normal fp32 numbers, so bits suffice."""
    magnitude = abs(total)
    extra = max(magnitude.bit_length() - 24, 0)
    kept, rest = divmod(magnitude, 1 << extra)
    kept += 2 * rest > 1 << extra or (2 * rest == 1 << extra and kept & 1)
    return np.copysign(np.ldexp(float(kept), extra - 48), total) if total else 0.0


def truncate_units(total):
    """Round `total * 2**-48` towards zero."""
    extra = max(abs(total).bit_length() - 24, 0)
    return np.copysign(np.ldexp(float(abs(total) >> extra), extra - 48), total) if total else 0.0


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


def as_type(values, name):
    """Values of fp16 data in a narrower type, finite."""
    if name == "int8":
        return np.clip(np.rint(values.astype(np.float32) * 40), -128, 127).astype(np.int8)
    kind = np.dtype(name) if name == "float16" else np.dtype(getattr(ml_dtypes, name))
    largest = 448.0 if name == "float8_e4m3fn" else 57344.0
    return np.clip(values.astype(np.float32), -largest, largest).astype(kind)
