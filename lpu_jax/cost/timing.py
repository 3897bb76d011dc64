"""The one way into time, whatever the machine: a static schedule on LPUs, a roofline on GPUs.

What differs between them is decided here and nowhere else: callers give a program and a machine.
Knows no rule of either.
"""

import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from ..datapath.work import Length, Quantity
from ..machine.system import System
from ..provenance import Constant
from . import roofline, sources
from .collectives.links import hand_overs_between
from .placed_machine import BestPlaced, Groups, PlacedMachine
from .program import Program
from .roofline import GpuMachine
from .schedule import Timing, schedule

#: A machine as one plan, or each of many plans, sees it.
Placed = PlacedMachine | GpuMachine


def placed(
    system: System,
    groups: tuple[Groups, ...],
    group_of_plan: Int[np.ndarray, " plans"] | None = None,
) -> Placed:
    """View a system as plans do whose groups of chips lie as given.

    Args:
        system: LPUs or GPUs.
        groups: where the groups of plans lie.
        group_of_plan: which of them each plan uses; None for a single plan.
    """
    if system.gpus is not None:
        return GpuMachine(system=system, groups=groups, group_of_plan=group_of_plan)
    return PlacedMachine(system=system, groups=groups, group_of_plan=group_of_plan)


def best_placed(system: System, n_plans: int) -> Placed | BestPlaced:
    """View a system as no plan sees it better: every collective over the best run there is.

    Args:
        system: LPUs or GPUs.
        n_plans: rows of what is timed on it.
    """
    if system.gpus is not None:  # behind one switch all places are alike
        return placed(system, (Groups.first(system, 1),), np.zeros(n_plans, np.int64))
    return _best_placed(system)


@functools.lru_cache(maxsize=8)
def _best_placed(system: System) -> BestPlaced:
    """Keep prices of collectives: they are those of every model, policy and batch."""
    return BestPlaced(system=system)


def timing(
    program: Program,
    machine: Placed | BestPlaced,
    symbols: Mapping[str, Length] | None = None,
    arrivals: Mapping[int, Quantity] | None = None,
    *,
    limited: bool = True,
) -> Timing:
    """Time a program on one chip of a group.

    Args:
        program: from `program.read`.
        machine: from `placed`.
        symbols: a number, or an array with one number per plan, for each symbol of the program.
        arrivals: of LPUs, inputs that come from outside the chip; see `schedule`.
        limited: whether to find limits of the time too; those of a GPU cost nothing.

    Returns:
        Cycles of the chip's clock, with bounds; those of a GPU are nanoseconds, or as it says.
    """
    if isinstance(machine, GpuMachine):
        return roofline.roofline(program, machine, symbols)
    return schedule(program, machine, symbols, arrivals, limited=limited)


def constants_read(
    program: Program, machine: Placed, symbols: Mapping[str, Length] | None = None
) -> tuple[tuple[Constant, ...], ...]:
    """List the constants that each slot of a timing rests on, for one plan."""
    if isinstance(machine, GpuMachine):
        return roofline.constants_behind(program, machine)
    return sources.constants_read(program, machine, symbols)


def hand_over_cycles(
    system: System,
    group_chips: int | Int[np.ndarray, " pairs"],
    givers: Int[np.ndarray, " pairs"],
    takers: Int[np.ndarray, " pairs"],
    payload_bytes: float | int,
) -> Float[np.ndarray, " pairs"]:
    """Cycles of the hand-over of a vector from one group of chips to another.

    Args:
        system: LPUs or GPUs.
        group_chips: chips of each group: a number, or one per pair.
        givers: first chip of each group that sends.
        takers: first chip of the group that receives.
        payload_bytes: the vector, which every chip of the sending group holds.
    """
    if system.lpus is None:
        return np.full(len(givers), roofline.transfer_cycles(system, payload_bytes))
    chip, topology = system.lpus
    steps = hand_overs_between(topology, float(chip.clock_hz), group_chips, givers, takers)
    return np.asarray(steps.cycles(payload_bytes), np.float64)


def gather_cycles(system: System, groups: Groups, payload_bytes: float | int) -> float:
    """Cycles in which a vector, of which each chip of a group has a part, is whole at all of them.

    Args:
        system: LPUs or GPUs.
        groups: of one size; the slowest is priced.
        payload_bytes: the whole vector.
    """
    if groups.chips == 1:
        return 0.0
    if system.lpus is None:
        return roofline.transfer_cycles(system, payload_bytes)
    machine = PlacedMachine(system=system, groups=(groups,))
    found = machine.collective_cycles("all_gather", "auto", groups.chips, 1, payload_bytes)
    return float(found.last)


def least_gather_cycles(
    system: System, n_chips: Int[np.ndarray, " groups"], payload_bytes: float | int
) -> Float[np.ndarray, " groups"]:
    """Bound the same in groups of so many chips, wherever they lie.

    Args:
        system: LPUs or GPUs.
        n_chips: of each group.
        payload_bytes: the whole vector.
    """
    if system.lpus is None:
        found = np.full(len(n_chips), roofline.transfer_cycles(system, payload_bytes))
    else:
        machine = BestPlaced(system=system)
        passage = machine.collective_cycles(
            "all_gather", "auto", np.maximum(n_chips, 1), np.ones_like(n_chips), payload_bytes
        )
        found = np.asarray(passage.last, np.float64)
    return np.where(n_chips > 1, found, 0.0)


def spread_cycles(
    system: System, n_chips: Int[np.ndarray, " plans"], payload_bytes: float | int
) -> Float[np.ndarray, " plans"]:
    """Cycles in which a vector of any of a machine's first chips is at all of them.

    An all-reduce does it, which is an upper bound of a broadcast.

    Args:
        system: LPUs or GPUs.
        n_chips: how many of the first chips.
        payload_bytes: the vector.
    """
    if system.lpus is None:
        return np.full(len(n_chips), roofline.transfer_cycles(system, payload_bytes))
    distinct, back = np.unique(n_chips, return_inverse=True)
    groups = tuple(Groups.first(system, int(n)) for n in distinct)
    machine = PlacedMachine(system=system, groups=groups, group_of_plan=back.reshape(-1))
    passage = machine.collective_cycles(
        "all_reduce", "auto", np.asarray(n_chips), np.ones_like(n_chips), payload_bytes
    )
    return np.asarray(passage.last, np.float64)
