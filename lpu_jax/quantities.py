"""Print bytes, seconds, counts and a user's own values for people.

Inside the program quantities are plain numbers in base units (bytes, seconds, 1/s), named with
their unit; conversions happen here and only on the way out. Parsing is not offered.
"""

import math

_DECIMAL_BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_BINARY_BYTES = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
_COUNTS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
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
