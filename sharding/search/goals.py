"""What plans are ranked by, as costs of columns: the least is best.

Costs are made of a token's latency and of the period between two micro-batches, both in cycles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

Numbers = Float[np.ndarray, " plans"]
Whole = Int[np.ndarray, " plans"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Stages, chips and copies of plans."""

    stages: Whole  #: of all pools; beside a network, and of what is on its way
    chips: Whole  #: of one copy
    copies: Whole  #: side by side; of bounds, at most

    @property
    def group_chips(self) -> Whole:
        """Chips of a stage of plans of one pool."""
        return np.asarray(self.chips // self.stages)

    def take(self, rows: Whole) -> "Shape":
        """Keep some."""
        return Shape(**{name: values[rows] for name, values in vars(self).items()})

    @staticmethod
    def joined(shapes: "Sequence[Shape]") -> "Shape":
        """Put shapes behind one another."""
        names = ("stages", "chips", "copies")
        return Shape(**{k: np.concatenate([getattr(own, k) for own in shapes]) for k in names})


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One objective, and what plans below a cost must keep to: what turns it into bounds.

    Attributes:
        cost: of plans, from latency, period and shape.
        latency_cycles: the largest latency of plans of a shape whose cost may be as given, if a
            period is no shorter than the latency shared among the stages.
        period_cycles: the largest period of such plans.
        needs_period: whether the cost rests on the period.
        flies: whether micro-batches in flight share the latency out; if not, a period is the
            slowest stage's.
    """

    cost: Callable[[Numbers, Numbers, Shape], Numbers]
    latency_cycles: Callable[[float, Shape], Numbers]
    period_cycles: Callable[[float, Shape], Numbers]
    needs_period: bool = True
    flies: bool = True


def per_sequence(goal: Goal, batch: int) -> Goal:
    """Count periods by the sequence, so that costs of several batch sizes can be compared."""
    return replace(
        goal,
        cost=lambda latency, period, shape: goal.cost(latency, period / batch, shape),
        latency_cycles=lambda cost, shape: goal.latency_cycles(cost * batch, shape),
        period_cycles=lambda cost, shape: goal.period_cycles(cost * batch, shape),
    )


def _most(number: float | Numbers, shape: Shape) -> Numbers:
    return np.broadcast_to(np.asarray(number, np.float64), shape.stages.shape)


def _unbound(cost: float, shape: Shape) -> Numbers:
    return _most(np.inf, shape)


#: Objectives of two axes: latency, and the goal of the other.
FRONTS: Mapping[str, str] = MappingProxyType(
    {
        "pareto": "throughput",
        "latency,throughput": "throughput",
        "latency,per-chip": "per-chip",
        "latency,chips": "chips",
    }
)
_CYCLES_PER_CHIP = 1e12
#: By the name of the objective.
GOALS: Mapping[str, Goal] = MappingProxyType(
    {
        "latency": Goal(
            cost=lambda latency, period, shape: latency,
            latency_cycles=_most,
            period_cycles=_unbound,
            needs_period=False,
        ),
        "throughput": Goal(
            cost=lambda latency, period, shape: period / shape.copies,
            latency_cycles=lambda cost, shape: _most(cost * shape.stages * shape.copies, shape),
            period_cycles=lambda cost, shape: _most(cost * shape.copies, shape),
        ),
        "per-chip": Goal(
            cost=lambda latency, period, shape: period * shape.chips,
            latency_cycles=lambda cost, shape: _most(cost * shape.stages / shape.chips, shape),
            period_cycles=lambda cost, shape: _most(cost / shape.chips, shape),
        ),
        # Of plans with as few chips the quickest: a latency is far below a chip's worth.
        "chips": Goal(
            cost=lambda latency, period, shape: shape.chips + latency / _CYCLES_PER_CHIP,
            latency_cycles=lambda cost, shape: (cost - shape.chips) * _CYCLES_PER_CHIP,
            period_cycles=_unbound,
            needs_period=False,
        ),
    }
)
