"""Print bytes, seconds, counts and a user's own values for people, and read what they write.

Inside the program quantities are plain numbers in base units (bytes, seconds, 1/s), named with
their unit; conversions happen here and only on the way in and out. Not offered: arithmetic with
units.
"""

import math
import re
from fractions import Fraction

from .errors import ConfigError

_DECIMAL_BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_BINARY_BYTES = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
_COUNTS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_PREFIXES: dict[str, Fraction] = {
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "m": Fraction(1, 10**3), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9),
    "p": Fraction(1, 10**12),
}  # fmt: skip


def _spellings(unit: str, prefixes: str, base: Fraction = Fraction(1)) -> dict[str, Fraction]:
    """Spell a unit alone and with each of some prefixes."""
    return {unit: base} | {prefix + unit: _PREFIXES[prefix] * base for prefix in prefixes.split()}


_BYTES = _spellings("B", "k M G T Ki Mi Gi Ti")
_BITS = _spellings("b", "k M G T", Fraction(1, 8)) | _spellings("bit", "k M G T", Fraction(1, 8))
#: What may stand behind a number, by base unit.
_SPELLINGS: dict[str, dict[str, Fraction]] = {
    "B": _BYTES,
    "B/s": {f"{name}/s": factor for name, factor in (_BYTES | _BITS).items()},
    "B/cycle": {f"{name}/cycle": factor for name, factor in _BYTES.items()},
    "s": _spellings("s", "m u n p"),
    "Hz": _spellings("Hz", "k M G T"),
    "W": _spellings("W", "k"),
    "cycle": {"cycle": Fraction(1), "cycles": Fraction(1)},
}
_QUANTITY = re.compile(
    r"([+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,2})?) *(\D.*)?"
)
_SIGNIFICANT_DIGITS = 4
_SHOWN_CHARACTERS = 60


def _scaled(value: int | float, steps: tuple[tuple[str, float], ...], digits: int) -> str:
    """Write `value` in the largest step that keeps its rounded mantissa at 1 or more."""
    if not math.isfinite(value):
        return f"{value} {steps[-1][0]}".rstrip()
    if value == 0:
        return f"0 {steps[-1][0]}".rstrip()
    rounded = abs(float(f"{value:.{digits - 1}e}"))
    name, factor = next((step for step in steps if rounded >= step[1]), steps[-1])
    mantissa = value / factor
    integer_digits = len(str(int(abs(float(f"{mantissa:.{digits - 1}e}")))))
    text = f"{mantissa:.{max(0, digits - integer_digits)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {name}".rstrip()


def format_bytes(
    n_bytes: int | float, *, binary: bool = False, digits: int = _SIGNIFICANT_DIGITS
) -> str:
    """Write a number of bytes in MB, GB (powers of 1000) or MiB, GiB (powers of 1024).

    Args:
        n_bytes: bytes.
        binary: use powers of 1024.
        digits: significant digits.

    Returns:
        The text.

    Example:
        >>> format_bytes(230_686_720), format_bytes(230_686_720, binary=True)
        ('230.7 MB', '220 MiB')
    """
    return _scaled(n_bytes, _BINARY_BYTES if binary else _DECIMAL_BYTES, digits)


def format_seconds(seconds: int | float, *, digits: int = _SIGNIFICANT_DIGITS) -> str:
    """Write a time in s, ms, us or ns.

    Args:
        seconds: seconds.
        digits: significant digits.

    Returns:
        The text.

    Example:
        >>> format_seconds(722e-9), format_seconds(0.00333)
        ('722 ns', '3.33 ms')
    """
    return _scaled(seconds, _SECONDS, digits)


def format_count(count: int | float, *, digits: int = _SIGNIFICANT_DIGITS) -> str:
    """Write a count, such as a number of parameters, in k, M, G or T.

    Args:
        count: a pure number.
        digits: significant digits.

    Returns:
        The text.

    Example:
        >>> format_count(1_026_408_232_448), format_count(409_600)
        ('1.026 T', '409.6 k')
    """
    return _scaled(count, _COUNTS, digits)


def format_quantity(value: int | float, unit: str) -> str:
    """Write a constant of the machine in a readable step of its unit.

    Args:
        value: in base units.
        unit: the base unit, such as `"B/s"`; other units than bytes and seconds are not scaled.

    Returns:
        The text.

    Example:
        >>> format_quantity(12.5e9, "B/s"), format_quantity(4e-7, "s"), format_quantity(8, "1")
        ('12.5 GB/s', '400 ns', '8')
    """
    if unit == "s":
        return format_seconds(value)
    if unit in ("B", "B/s"):
        return format_bytes(value) + unit[1:]
    return f"{value:g}" if unit == "1" else f"{value:g} {unit}"


def format_given(value: object) -> str:
    """Write a value that a user gave, as it stands in an error: short, printable, on one line.

    Args:
        value: anything that a TOML or JSON file can hold.

    Returns:
        Its `repr`, cut to 60 characters.

    Example:
        >>> format_given("x" * 100)[-8:]
        'xxxxx...'
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, deep nesting
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def parse_quantity(text: str, unit: str) -> int | float:
    """Read a number with its unit, such as `"12.5 GB/s"`, in the base unit.

    Prefixes are k, M, G, T (powers of 1000), Ki, Mi, Gi, Ti (of 1024, bytes only) and m, u, n, p
    (seconds only). Rates may also be given in bits: `"100 Gb/s"`.

    Args:
        text: what the user wrote.
        unit: the base unit that is wanted: `"B"`, `"B/s"`, `"B/cycle"`, `"s"`, `"Hz"`, `"W"`,
            `"cycle"` or `"1"`.

    Returns:
        The exact value, as a whole number if it is one and counts (bytes, cycles, 1), else as the
        nearest float.

    Raises:
        ConfigError: if this is not a number with a unit of that kind; one clause, to follow
            the name of the value.

    Example:
        >>> parse_quantity("722 ns", "s"), parse_quantity("220 MiB", "B")
        (7.22e-07, 230686720)
    """
    known = _SPELLINGS.get(unit, {})
    match = _QUANTITY.fullmatch(text.strip().replace("\u00b5", "u").replace("\u03bc", "u"))
    allowed = f"a number and one of {', '.join(known)}" if known else "a number without a unit"
    if match is None or (match[2] is None) != (not known):
        raise ConfigError(f"must be {allowed}, got {format_given(text)}")
    if known and match[2] not in known:
        raise ConfigError(
            f"has the unknown unit {format_given(match[2])}; allowed: {', '.join(known)}"
        )
    value = Fraction(match[1]) * (known[match[2]] if known else 1)
    counts = unit in ("B", "B/cycle", "cycle", "1")
    return int(value) if counts and value.denominator == 1 else float(value)
