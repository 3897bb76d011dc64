"""The rule of a tensor core written out with `Fraction`s, one output at a time."""

from fractions import Fraction
from typing import Any

from tensor_core_blocks import BLOCKS, WIDTHS

from lpu_jax.numerics.tensor_core_rules import Rule

NAN, INF = 0x7FFFFFFF, 0x7F800000
Part = tuple[Fraction, int]  #: a value, and the exponent that it is aligned by


def part(code: int, element: str) -> Part | float:
    """Return the value of a code and its exponent, or infinity or NaN as a float."""
    exponent_bits, fraction_bits = WIDTHS[element]
    sign = -1 if code >> (exponent_bits + fraction_bits) else 1
    field, fraction = divmod(code & (2 ** (exponent_bits + fraction_bits) - 1), 2**fraction_bits)
    if element == "float8_e4m3fn":
        if (field, fraction) == (15, 7):
            return float("nan")
    elif not element.startswith("e") and field == 2**exponent_bits - 1:
        return float("nan") if fraction else sign * float("inf")
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = max(field, 1) - bias
    significand = Fraction(fraction, 2**fraction_bits) + (field > 0)
    return sign * significand * Fraction(2) ** exponent, exponent


def scale(code: int, kind: str) -> Part | float:
    """Return a block scale."""
    if kind == "nvfp4":
        return part(code & 127, "float8_e4m3fn")
    return float("nan") if code == 255 else (Fraction(2) ** (code - 127), code - 127)


def truncated(value: Fraction, unit: int) -> Fraction:
    """Cut a number to a multiple of `2**unit`, towards zero."""
    step = Fraction(2) ** unit
    return int(value / step) * step


def packed(value: Fraction, rule: Rule) -> int:
    """Return the bits of fp32, the number cut towards zero."""
    magnitude = abs(value)
    exponent = -126
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    magnitude = truncated(magnitude, exponent - rule.result_bits)
    if magnitude >= Fraction(2) ** 128:
        bits = INF
    else:
        whole = int(magnitude / Fraction(2) ** (exponent - 23))
        bits = whole + (exponent + 126 << 23)
    return bits | (0x80000000 if value < 0 and bits else 0)


def output(case: Any, rule: Rule, a: Any, b: Any, c: int, scales: Any = None) -> int:
    """Return the bits of one output: `a` and `b` are codes along K, `scales` those of blocks."""
    kind, _, of_a, of_b = case
    pairs = [(part(int(p), of_a), part(int(q), of_b)) for p, q in zip(a, b, strict=True)]
    if scales is not None:
        of_block = [tuple(scale(int(s), kind) for s in both) for both in zip(*scales, strict=True)]
        factors = [of_block[k // BLOCKS[kind]] for k in range(len(pairs))]
        pairs = [(*pair, *both) for pair, both in zip(pairs, factors, strict=True)]
    for step in runs(pairs, rule.step):
        c = added(step, c, rule)
    return c


def added(step: Any, c: int, rule: Rule) -> int:
    """Add the products of a step to the bits of a sum."""
    special = specials(step, c)
    if special is not None:
        return special
    sign, field, fraction = c >> 31, c >> 23 & 255, c & 0x7FFFFF
    exponent = max(field, 1) - 127
    significand = Fraction(fraction, 2**23) + (field > 0)
    value = (-1) ** sign * significand * Fraction(2) ** exponent
    terms = [(value, exponent if value else rule.zero_exponent)]
    for group in runs(step, rule.group):
        factors = [[f[0] for f in pair] for pair in group]
        if rule.group == 1:
            exponent = sum(f[1] for f in group[0])
        else:  # products of a group are added exactly, and aligned by their scales
            exponent = sum(f[1] for f in group[0][2:])
        products = [product(f) for f in factors]
        terms.append((sum(products), exponent if any(products) else rule.zero_exponent))
    unit = max(e for _, e in terms) - rule.alignment_bits
    return packed(sum((truncated(v, unit) for v, _ in terms), Fraction(0)), rule)


def runs(values: Any, size: int) -> Any:
    """Cut a list into runs."""
    return [values[i : i + size] for i in range(0, len(values), size)]


def product(factors: Any) -> Fraction:
    """Multiply fractions."""
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def specials(step: Any, c: int) -> int | None:
    """Return what infinities and NaN in a step make, or None if there are none."""
    total, is_special = 0.0, False
    if c & 0x7F800000 == INF:
        is_special = True
        total = float("nan") if c & 0x7FFFFF else float("-inf" if c >> 31 else "inf")
    for factors in step:
        if any(isinstance(f, float) for f in factors):
            is_special = True
            one = 1.0
            for f in factors:
                one *= f if isinstance(f, float) else float((f[0] > 0) - (f[0] < 0))
            total += one
    if not is_special:
        return None
    return NAN if total != total else INF | (0x80000000 if total < 0 else 0)
