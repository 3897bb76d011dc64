"""Operands of tensor-core products that provoke every rule: spreads, ties, cancellation, specials.

One call makes matrices of codes for `D = A @ B + C`; each element of D is a block of its own.
NumPy only, so that the script that asks the oracle needs nothing else.
"""

from typing import Any

import numpy as np

#: Element formats: exponent bits, fraction bits, and whether the top codes are special.
WIDTHS = {
    "float16": (5, 10),
    "bfloat16": (8, 7),
    "float8_e4m3fn": (4, 3),
    "float8_e5m2": (5, 2),
    "e3m2": (3, 2),
    "e2m3": (2, 3),
    "e2m1": (2, 1),
}
#: (kind, generation, element of x, element of w); Rubin has Blackwell's rules.
CASES = (
    *(("fp16", g, "float16", "float16") for g in ("hopper", "blackwell")),
    *(("bf16", g, "bfloat16", "bfloat16") for g in ("hopper", "blackwell")),
    *(
        ("fp8", g, a, b)
        for g in ("hopper", "blackwell")
        for a, b in (
            ("float8_e4m3fn", "float8_e4m3fn"),
            ("float8_e5m2", "float8_e4m3fn"),
            ("float8_e5m2", "float8_e5m2"),
        )
    ),
    ("mxfp8", "blackwell", "float8_e4m3fn", "float8_e5m2"),
    ("mxfp8", "blackwell", "e2m3", "e3m2"),
    ("mxfp8", "blackwell", "float8_e4m3fn", "e2m1"),
    ("mxfp4", "blackwell", "e2m1", "e2m1"),
    ("nvfp4", "blackwell", "e2m1", "e2m1"),
)
STEPS = {"fp16": 16, "bf16": 16, "fp8": 32, "mxfp8": 32, "mxfp4": 64, "nvfp4": 64}
BLOCKS = {"mxfp8": 32, "mxfp4": 32, "nvfp4": 16}
CLASSES = (
    "bits",
    "finite",
    "near-one",
    "spread",
    "subnormal",
    "cancelling",
    "sparse",
    "largest",
    "ties",
    "specials",
    "overflowing",
    "powers",
)


def operands(
    case: tuple[str, str, str, str], name: str, m: int, n: int, k: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Make codes `a` `[m, k]` and `b` `[k, n]`, bits `c` `[m, n]`, and scales if there are any."""
    kind, _, of_a, of_b = case
    a, b = _codes(of_a, name, (m, k), rng), _codes(of_b, name, (n, k), rng)
    if name == "cancelling":
        a, b = _cancelling(of_a, a, b, rng)
    made = {"a": a, "b": b.T.copy(), "c": _sums(name, (m, n), rng)}
    if kind in BLOCKS:
        blocks = k // BLOCKS[kind]
        made["a_scales"] = _scales(kind, name, (m, blocks), rng)
        made["b_scales"] = _scales(kind, name, (n, blocks), rng).T.copy()
    return made


def _special_from(element: str) -> int:
    """Smallest magnitude code that is no number."""
    exponent, fraction = WIDTHS[element]
    if element == "float8_e4m3fn":
        return 127
    return (2**exponent - (element[0] != "e")) << fraction


def _codes(element: str, name: str, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    exponent, fraction = WIDTHS[element]
    bits = exponent + fraction
    special = _special_from(element)
    sign = rng.integers(0, 2, shape) << bits
    one = (2 ** (exponent - 1) - 1) << fraction
    low = rng.integers(0, 2**fraction, shape)
    finite = rng.integers(0, special, shape)
    match name:
        case "bits":
            code = rng.integers(0, 2**bits, shape)
        case "near-one" | "cancelling":
            code = one + (rng.integers(-2, 2, shape) << fraction) + low
        case "spread":
            code = np.where(rng.random(shape) < 0.5, finite, one + low)
        case "subnormal":
            code = np.where(rng.random(shape) < 0.7, low, finite >> 1)
        case "sparse":
            code = np.where(rng.random(shape) < 0.8, 0, finite)
        case "largest":
            code, sign = special - 1 - (low >> 2), sign * (rng.random((shape[0], 1)) < 0.5)
        case "ties":  # few bits, so that sums lie on and beside a unit of truncation
            reach = 2 ** min(exponent - 1, 4) - 2
            code = one + (rng.integers(-reach, reach + 1, shape) << fraction)
            code = code + np.where(rng.random(shape) < 0.3, 2**fraction - 1, 0)
        case "specials":
            code = np.where(rng.random(shape) < 0.02, rng.integers(0, 2**bits, shape), one + low)
            code = np.where(rng.random(shape) < 0.02, special, code)
        case "powers":
            code = rng.integers(0, 2**exponent - 1, shape) << fraction
        case _:
            code = finite
    code = np.clip(code, 0, 2**bits - 1) | sign
    return code.astype(np.uint16 if bits > 8 else np.uint8)


def _cancelling(element: str, a: Any, b: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Let every second product be the negative of the one before, but for a few last bits."""
    a, b = a.copy(), b.copy()
    nudge = (rng.random(a[:, 1::2].shape) < 0.1).astype(a.dtype)
    a[:, 1::2] = a[:, 0::2] ^ nudge ^ a.dtype.type(1 << sum(WIDTHS[element]))
    b[:, 1::2] = b[:, 0::2]
    return a, b


def _sums(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    """Make accumulators: zeros of both signs, near the products, of any bits, and specials."""
    sign = rng.integers(0, 2, shape) << 31
    field = rng.integers(0, 255, shape)
    near = rng.integers(100, 155, shape)
    low = rng.integers(0, 2**23, shape)
    choice = rng.integers(0, 8, shape)
    code = np.select(
        [choice < 2, choice < 5, choice < 6, choice < 7],
        [0, near << 23 | low, field << 23 | low, low],
        near << 23 | (low & 0x700000),
    )
    if name in ("overflowing", "largest"):
        code = np.where(choice > 4, 254 << 23 | low | 0x7F0000, code)
    if name in ("bits", "specials"):
        code = np.where(rng.random(shape) < 0.05, rng.integers(0x7F700000, 2**31, shape), code)
        code = np.where(rng.random(shape) < 0.02, 0x7F800000, code)
    return (code | sign).astype(np.uint32)


def _scales(kind: str, name: str, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    """Make codes of block scales: any, near 1, the largest, and NaN now and then."""
    if kind == "nvfp4":
        anything, near, largest = (
            rng.integers(0, 255, shape),
            rng.integers(0x30, 0x40, shape),
            rng.integers(0x70, 0x7F, shape),
        )
        anything = np.where((anything & 0x7F) == 0x7F, 0, anything)
        nan = 0x7F
    else:
        anything, near, largest = (
            rng.integers(0, 255, shape),
            rng.integers(117, 138, shape),
            rng.integers(230, 255, shape),
        )
        nan = 255
    made = {"bits": anything, "spread": anything, "powers": anything, "overflowing": largest}
    code = made.get(name, near)
    if name in ("bits", "specials"):
        code = np.where(rng.random(shape) < 0.02, nan, code)
    return code.astype(np.uint8)
