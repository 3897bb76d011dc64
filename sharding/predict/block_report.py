"""Time and memory of one kind of block in many plans, and how plans that share numbers share them.

Nothing is evaluated here (`evaluate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lpu_jax.cost.schedule import Limits, Timing
from models.blocks import Kind

from .placement import BlockBytes


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One kind of block in every plan."""

    timing: Timing
    held: BlockBytes
    wire_bytes: Any  #: payload of its collectives
    worst_cycles: Any  #: of a mixture that needs all slots it ever can


def _map(function: Any, *reports: BlockReport) -> BlockReport:
    """Apply a function to every number of block reports; schedules keep their totals only."""

    def of(read: Any) -> Any:
        return function(*(read(report) for report in reports))

    limits = None
    if all(report.timing.limits is not None for report in reports):
        limits = Limits(
            lower_cycles=of(lambda r: r.timing.lower_cycles),
            upper_cycles=of(lambda r: r.timing.upper_cycles),
            busy_cycles={
                unit: of(lambda r, unit=unit: r.timing.busy_cycles[unit])
                for unit in reports[0].timing.busy_cycles
            },
        )
    return BlockReport(
        timing=Timing(cycles=of(lambda r: r.timing.cycles), slots=(), limits=limits),
        held=BlockBytes(
            **{
                field.name: of(lambda r, name=field.name: getattr(r.held, name))
                for field in fields(BlockBytes)
            }
        ),
        wire_bytes=of(lambda r: r.wire_bytes),
        worst_cycles=of(lambda r: r.worst_cycles),
    )


def take(report: BlockReport, rows: Int[np.ndarray, " plans"], n_rows: int) -> BlockReport:
    """Give each plan the numbers of its row."""
    return _map(lambda x: np.broadcast_to(np.asarray(x, np.float64), (n_rows,))[rows], report)


def merge(parts: list[tuple[Int[np.ndarray, "..."], BlockReport]], n_plans: int) -> BlockReport:
    """Put the plans of all variants back into their order."""
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
    assert len(order) == n_plans
    return _map(lambda *xs: np.concatenate(xs)[order], *(report for _, report in parts))


def mean_over_steps(
    report: BlockReport,
    plan_of_step: Int[np.ndarray, " steps"],
    probability: Float[np.ndarray, " steps"],
    n_plans: int,
) -> BlockReport:
    """Turn the ways in which a step may run into means, one entry per plan.

    Args:
        report: an entry per way; those of a plan follow each other, the last at worst.
        plan_of_step: the plan of each way, ascending.
        probability: of each way; those of a plan add up to 1.
        n_plans: plans; each has at least one way.

    Returns:
        Mean times and payloads; of memory the most that any way needs.
    """

    def mean(values: Any) -> Float[np.ndarray, " plans"]:
        shown = np.broadcast_to(np.asarray(values, np.float64), plan_of_step.shape)
        return np.bincount(plan_of_step, weights=shown * probability, minlength=n_plans)

    first = np.searchsorted(plan_of_step, np.arange(n_plans))
    last = np.searchsorted(plan_of_step, np.arange(n_plans), side="right") - 1

    def most(values: Any) -> Float[np.ndarray, " plans"]:
        shown = np.broadcast_to(np.asarray(values, np.float64), plan_of_step.shape)
        return np.maximum.reduceat(shown, first)

    worst = np.broadcast_to(np.asarray(report.worst_cycles, np.float64), plan_of_step.shape)
    means = _map(mean, report)
    return replace(means, held=_map(most, report).held, worst_cycles=worst[last])


def live_bytes(blocks: Mapping[Kind, BlockReport], n_plans: int) -> Float[np.ndarray, " plans"]:
    """Bytes of a chip for values in use and for tables, whatever its stage holds.

    A stage may hold blocks of every kind; blocks of one kind share their tables.
    """
    activations = np.max(
        [np.broadcast_to(block.held.activations, n_plans) for block in blocks.values()], axis=0
    )
    tables = np.sum(
        [np.broadcast_to(block.held.tables, n_plans) for block in blocks.values()], axis=0
    )
    return np.asarray(activations + tables)
