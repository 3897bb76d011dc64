"""How long something may take over all uncertain constants of a machine: the range of a time.

The shortest time has every constant with a range at the end that makes nothing slower
(`Constant.faster_at`), and of every list of alternatives the fastest; the longest time has the
opposite. Constants of one reading thereby lie at the same end. Not modelled: alternatives that are
only fast together; each is tried beside the ends of all ranges, and the best of each are combined.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..provenance import Constant
from .uncertainty import MachineT, extremes, uncertain_constants, variant

Times = Float[np.ndarray, " n"]
#: Times of one or more things on a machine; not a number where a thing is not possible there.
TimesOf = Callable[[MachineT], Times]


def time_range(system: MachineT, times_of: TimesOf[MachineT]) -> tuple[Times, Times]:
    """Find the shortest and the longest times that uncertain constants leave possible.

    Args:
        system: the machine; its own constants are within the range.
        times_of: the times on a machine, always of the same things in the same order.

    Returns:
        Shortest and longest times, each alone: they need not be reached on one machine.

    Fidelity:
        Exact where a time only grows with what makes a machine slower and alternatives act apart;
        the time at the system's own constants is always inside.
    """
    constants = uncertain_constants(system)
    nominal = times_of(system)
    if not constants:
        return nominal, nominal
    shortest = _at_the_ends(system, constants, times_of, "shortest")
    longest = _at_the_ends(system, constants, times_of, "longest")
    return np.fmin(nominal, shortest), np.fmax(nominal, longest)


def _at_the_ends(
    system: MachineT,
    constants: Mapping[str, Constant],
    times_of: TimesOf[MachineT],
    what: Literal["shortest", "longest"],
) -> Times:
    """Find the extreme times with all ranges at their ends, over the alternatives of the rest."""
    better, best_of = (np.less, np.fmin) if what == "shortest" else (np.greater, np.fmax)
    ends = {name: _end(c, what) for name, c in constants.items() if _is_ordered(c)}
    # A range of which it is not known at which end times are shorter is tried at both.
    lists = {
        name: c.options or (c.low, c.value, c.high)
        for name, c in constants.items()
        if not _is_ordered(c)
    }
    start = times_of(variant(system, ends))
    best = start
    # The number of each entry's best alternative in every list.
    chosen = np.empty((len(start), len(lists)), np.int64)
    for column, (name, values) in enumerate(lists.items()):
        chosen[:, column] = values.index(constants[name].value)
        best_alone = start
        for value in extremes(constants[name]):
            times = times_of(variant(system, ends | {name: value}))
            chosen[better(times, best_alone), column] = values.index(value)
            best_alone = best_of(best_alone, times)
        best = best_of(best, best_alone)
    for row in np.unique(chosen, axis=0):
        together = {name: lists[name][i] for name, i in zip(lists, row, strict=True)}
        times = times_of(variant(system, ends | together))
        best = np.where(np.all(chosen == row, axis=1), best_of(best, times), best)
    return np.asarray(best)


def _is_ordered(constant: Constant) -> bool:
    """Whether a constant has a range, and says at which end no time is longer."""
    return not constant.options and bool(constant.faster_at)


def _end(constant: Constant, what: Literal["shortest", "longest"]) -> Any:
    """The end of a range at which times are shortest, or longest."""
    at_low = (constant.faster_at == "low") == (what == "shortest")
    return constant.low if at_low else constant.high
