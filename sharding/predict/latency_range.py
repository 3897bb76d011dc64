"""The latency of plans over the assumed constants of their machine: the range beside the bounds.

Bounds say what a better or worse schedule could reach on the machine as it is described; the range
says what the described schedule, its stages cut where they are, takes on other machines that public
sources leave possible. A measured time outside it is a finding. Not modelled: as in
`lpu_jax.machine.time_range`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lpu_jax.errors import CostError
from lpu_jax.machine.mixed import Machine
from lpu_jax.machine.time_range import Times, time_range

from ..plan import Plan
from ..scenario import Scenario
from .drafts import latencies_s
from .evaluate import CutPlans, cut_plans


def latency_ranges_s(
    plans: Sequence[Plan], scenario: Scenario, beside: Sequence[Plan] = ()
) -> Float[np.ndarray, "plans 2"]:
    """Find the shortest and the longest latency of each plan over the uncertain constants.

    Args:
        plans: at least one, each legal on the machine of the scenario, whether it fits or not.
        scenario: the model, the machine, the request and the formats.
        beside: the draft model's plan of each; none without a draft model.

    Returns:
        Shortest and longest latency of each plan, in s; its latency lies between.

    Fidelity: as `machine.time_range.time_range`.
    """
    cut = cut_plans(plans, scenario)
    also = cut_plans(beside, scenario.draft_step) if beside else None

    def latency_s(machine: Machine) -> Times:
        return _latency_s(cut, scenario.on(machine), also)

    return np.stack(time_range(scenario.machine, latency_s), axis=1)


def _latency_s(cut: CutPlans, scenario: Scenario, beside: CutPlans | None) -> Times:
    """Evaluate plans; one that names a collective which its links do not have is not a number."""
    try:
        return latencies_s(cut, scenario, beside)
    except CostError:
        if len(cut.plans) == 1:
            return np.array([np.nan])
        return np.concatenate(
            [
                _latency_s(cut.one(i), scenario, beside.one(i) if beside else None)
                for i in range(len(cut.plans))
            ]
        )
