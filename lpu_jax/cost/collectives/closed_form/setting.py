"""Where a collective runs, ready for formulas: a machine, its rates in cycles, and the runs."""

from dataclasses import dataclass

import numpy as np

from ....errors import CostError
from ....machine.ports import Numbers
from ....machine.spans import Span
from ....machine.topology import Topology
from .runs import Run, run_of
from .steps import Rates, link_rates


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs of chips on a machine, ready for schedules of any kind and algorithm."""

    topology: Topology
    rates: Rates
    run: Run


def setting(topology: Topology, clock_hz: int | float, span: Span, stride: Numbers = 1) -> Setting:
    """Prepare the schedules over some runs; arguments are those of `links.schedule`.

    Raises:
        CostError: if the clock is not positive, or a run has no chip.
    """
    if not clock_hz > 0:
        raise CostError(f"schedule: clock_hz={clock_hz} must be positive")
    if np.any(np.asarray(span.n_chips) < 1) or np.any(np.asarray(stride) < 1):
        raise CostError("schedule: a run needs at least one chip, and a stride of at least one.")
    return Setting(
        topology=topology,
        rates=link_rates(topology, clock_hz, np.asarray(span.half_racks)),
        run=run_of(topology, span, stride),
    )
