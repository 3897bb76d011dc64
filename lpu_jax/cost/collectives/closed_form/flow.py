"""When vectors pass the steps of a collective: slice by slice, each step as soon as the one before.

A slice is what passes the steps together. A step takes a slice when all of it has arrived and its
links are free of the slice before; on links that several steps use, the earlier step goes first.
Without slices a step waits for all of the one before. All recursions are of maxima and sums, so a
payload that comes slowly is the later of two cases: it has all been there from the start, or only
its last vector counts. Not modelled: steps that take turns on a link.
"""

from collections.abc import Sequence

import numpy as np

from ....machine.ports import Numbers
from .steps import LEVELS, Step

NEVER = -np.inf  #: a cycle before all others


def passed(
    steps: Sequence[Step],
    vectors: Sequence[Numbers],
    slices: Sequence[Numbers] | None,
    first: Numbers,
    last: Numbers,
) -> tuple[Numbers, Numbers]:
    """Find when the results of a collective are there.

    Args:
        steps: its steps.
        vectors: for each step the vectors on its busiest link.
        slices: the same of one slice; None if each step waits for all of the one before.
        first: cycle at which the first vector is there; `NEVER` if that holds nothing up. Of
            several cases an array, whose dimension comes before those of the steps.
        last: the same of the last vector.

    Returns:
        Cycles at which the first and the last vector of the result are there.
    """
    ready: Numbers = np.asarray(first)  # a first slice is there
    # A first vector is, and the last one.
    begun: Numbers = np.asarray(first)
    ended: Numbers = np.maximum(first, last)
    free: list[Numbers] = [np.float64(NEVER) for _ in LEVELS]
    entered: Numbers = np.bool_(False)
    for step, n, n_slice in zip(steps, vectors, slices or vectors, strict=True):
        on, frame = np.asarray(step.share) > 0, step.cycles_per_vector
        through = step.latency_cycles + (n_slice - 1.0) * frame
        start = np.maximum(ready, free[step.level])
        # The payload comes vector by vector; what another step brings may come all at once.
        left = np.where(entered, n_slice - 1.0, 0.0)
        final = np.maximum(start + (n - 1.0) * frame, ended + left * frame)
        # The same links again: each time after the slice has arrived, and the links are free.
        again = np.asarray(step.times) - 1.0
        turn = np.maximum(n * frame, through)
        before = final + np.maximum(again - 1.0, 0.0) * turn + frame
        start = np.where(again > 0, np.maximum(start + again * through, before), start)
        final = final + again * turn
        ready = np.where(on, start + through, ready)
        begun = np.where(on, start + step.latency_cycles, begun)
        ended = np.where(on, final + step.latency_cycles, ended)
        if slices is None:
            ready = ended
        free[step.level] = np.where(on, final + frame, free[step.level])
        entered = entered | on
    return begun, ended
