"""Time and memory of one kind of block in many plans, and how plans that share numbers share them.

Nothing is evaluated here (`evaluate`).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Int

from lpu_jax.cost.schedule import Timing

from .placement import BlockBytes


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One kind of block in every plan."""

    timing: Timing
    held: BlockBytes
    wire_bytes: Any  #: payload of its collectives


def _map(function: Any, *reports: BlockReport) -> BlockReport:
    """Apply a function to every number of block reports; schedules keep their totals only."""

    def of(read: Any) -> Any:
        return function(*(read(report) for report in reports))

    return BlockReport(
        timing=Timing(
            cycles=of(lambda r: r.timing.cycles),
            lower_cycles=of(lambda r: r.timing.lower_cycles),
            upper_cycles=of(lambda r: r.timing.upper_cycles),
            busy_cycles={
                unit: of(lambda r, unit=unit: r.timing.busy_cycles[unit])
                for unit in reports[0].timing.busy_cycles
            },
            slots=(),
        ),
        held=BlockBytes(
            **{
                field.name: of(lambda r, name=field.name: getattr(r.held, name))
                for field in fields(BlockBytes)
            }
        ),
        wire_bytes=of(lambda r: r.wire_bytes),
    )


def take(report: BlockReport, rows: Int[np.ndarray, " plans"], n_rows: int) -> BlockReport:
    """Give each plan the numbers of its row."""
    return _map(lambda x: np.broadcast_to(np.asarray(x, np.float64), (n_rows,))[rows], report)


def merge(parts: list[tuple[Int[np.ndarray, "..."], BlockReport]], n_plans: int) -> BlockReport:
    """Put the plans of all variants back into their order."""
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
    assert len(order) == n_plans
    return _map(lambda *xs: np.concatenate(xs)[order], *(report for _, report in parts))
