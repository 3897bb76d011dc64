"""Ways of the hidden state between a pool of GPUs and one of LPUs, over the network between them.

Two ways are tried, and the quicker one is taken. Either the chips of the receiving group each get
the whole vector over their own lanes, which the network copies for them, while those that send it
share it out. Or its parts are spread over all lanes of both groups, and an all-gather over the
receiving group's own links brings them together. The lanes are busy while bytes pass, and free
while these are on their way.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.cost.placed_machine import Groups
from lpu_jax.cost.timing import gather_cycles, least_gather_cycles
from lpu_jax.machine.system import System

from ..scenario import Scenario

Whole = Int[np.ndarray, " ways"]
Numbers = Float[np.ndarray, " ways"]
#: By the chips of a group, from 0; the pools have different machines.
ByChips = Float[np.ndarray, " _chips"]


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """What ways across take, an entry per way, in cycles of the LPUs."""

    cycles: Numbers
    lpu_lanes: Numbers  #: in which the lanes of the LPUs are busy
    gpu_ports: Numbers  #: in which the ports of the GPUs are busy


def crossings_of(groups: Sequence[Groups], scenario: Scenario) -> Crossings:
    """Price both ways between the groups of two pools, where they lie.

    Args:
        groups: of the GPUs, and of the LPUs.
        scenario: with a mixed system.

    Returns:
        The way to the GPUs, and the way to the LPUs.

    Fidelity: approximate; the network's rates and latency are partly assumed
        (`machine.pool_link`).
    """
    n_bytes = crossing_bytes(scenario)
    gather = [
        _gather(own.system, group.chips, _places(group, own.system), n_bytes)
        for own, group in zip(scenario.pools, groups, strict=True)
    ]
    gpus, lpus = (np.full(2, group.chips) for group in groups)
    return _crossings(gpus, lpus, np.array([False, True]), np.array(gather), scenario)


def least_crossing_cycles(
    gpus: Whole, lpus: Whole, least_gather: Sequence[ByChips], scenario: Scenario
) -> tuple[Numbers, Numbers]:
    """Bound ways from GPUs to LPUs and back, wherever the groups lie.

    Args:
        gpus: chips of each group of GPUs.
        lpus: chips of each group of LPUs.
        least_gather: in a group of GPUs, and of LPUs, by its chips (`least_gathers`).
        scenario: with a mixed system.
    """
    there = _crossings(gpus, lpus, np.array(True), least_gather[1][lpus], scenario)
    back = _crossings(gpus, lpus, np.array(False), least_gather[0][gpus], scenario)
    return there.cycles, back.cycles


def least_gathers(scenario: Scenario) -> tuple[ByChips, ByChips]:
    """Bound an all-gather of the hidden state in a group of each pool, by its chips from 0."""
    n_bytes = crossing_bytes(scenario)
    gpus, lpus = (
        least_gather_cycles(own.system, np.arange(own.system.n_chips + 1), n_bytes)
        for own in scenario.pools
    )
    return gpus, lpus


def crossing_bytes(scenario: Scenario) -> float:
    """Bytes of the hidden state of a step on the network."""
    assert scenario.mixed is not None  # without one there is nothing to cross
    request, bits = scenario.request, scenario.mixed.link.wire_value_bits
    return request.batch * request.tokens * scenario.model.hidden_width * bits / 8


def _crossings(
    gpus: Whole,
    lpus: Whole,
    to_lpus: Bool[np.ndarray, "*#ways"],
    gather: Numbers,
    scenario: Scenario,
) -> Crossings:
    """Price ways across by chips of both groups, and an all-gather in the one that receives."""
    assert scenario.mixed is not None
    link, clock_hz = scenario.mixed.link, float(scenario.system.chip.clock_hz)
    n_bytes, one = crossing_bytes(scenario), np.ones_like(lpus)
    takers = np.where(to_lpus, one, lpus), np.where(to_lpus, gpus, one)
    whole = (link.transfer_s(n_bytes, *takers) - link.latency_s) * clock_hz
    parts = (link.transfer_s(n_bytes, lpus, gpus) - link.latency_s) * clock_hz
    is_whole = whole <= parts + gather
    lanes = np.where(is_whole & to_lpus, one, lpus), np.where(is_whole & ~to_lpus, one, gpus)
    return Crossings(
        cycles=link.latency_s * clock_hz + np.minimum(whole, parts + gather),
        lpu_lanes=n_bytes / link.lpus_bytes_per_s(lanes[0]) * clock_hz,
        gpu_ports=n_bytes / link.gpus_bytes_per_s(lanes[1]) * clock_hz,
    )


def _places(group: Groups, system: System) -> tuple[int, ...]:
    """Where groups begin, as far as it matters."""
    if system.lpus is None:
        return (0,)
    return tuple(np.unique(group.bases % system.lpus[1].period_chips).tolist())


@functools.lru_cache(maxsize=1 << 12)
def _gather(system: System, n_chips: int, bases: tuple[int, ...], n_bytes: float) -> float:
    return gather_cycles(system, Groups(n_chips, np.array(bases)), n_bytes)
