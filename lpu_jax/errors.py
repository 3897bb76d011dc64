"""The mistakes a user can make, as exceptions with one clear sentence each.

Faults of the program itself are not modelled here: they stay `AssertionError`.
"""

import difflib
from collections.abc import Iterable

_NEAREST_SHOWN = 3
#: Characters of a name that a message repeats.
_MOST_SHOWN = 60


class LpuError(ValueError):
    """A user's mistake: the message says what was given and what is allowed."""


class UnknownNameError(LpuError):
    """A name that is not in any of our tables."""


class ConfigError(LpuError):
    """A configuration file or value that cannot be read as one."""


class PlanError(LpuError):
    """A way of splitting a model that does not exist on the machine."""


class WeightsError(LpuError):
    """A checkpoint that is broken, incomplete or of another model."""


class CostError(LpuError):
    """A question the cost model has no rule for."""


class MeshError(LpuError):
    """Named axes that cannot be laid onto the chips."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
    """Make the error for a name that is not in a table, with its nearest names.

    Args:
        kind: what the name should have been, such as `"system"`.
        given: the name as the user wrote it.
        known: the names that are allowed.

    Returns:
        An `UnknownNameError` ready to raise; it names the nearest entries, or all of them when
        none is near.

    Example:
        >>> print(unknown("chip", "groqchip", ["groqchip1", "groq3-lpu"]))
        unknown chip 'groqchip'; nearest: groqchip1, groq3-lpu
    """
    names = sorted(known)
    shown = repr(given if len(given) <= _MOST_SHOWN else f"{given[: _MOST_SHOWN - 3]}...")
    if near := nearest(given, names):
        return UnknownNameError(f"unknown {kind} {shown}; nearest: {', '.join(near)}")
    return UnknownNameError(f"unknown {kind} {shown}; known: {', '.join(names)}")


def nearest(given: str, known: Iterable[str]) -> list[str]:
    """Find the few known names that are most like one, in any case; none where none is near."""
    by_lower = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(given.lower(), by_lower, n=_NEAREST_SHOWN, cutoff=0.5)
    return [by_lower[name] for name in near]
