"""The range of a time over uncertain constants: ends and alternatives worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lpu_jax.machine.catalogue import named_systems, system
from lpu_jax.machine.system import System
from lpu_jax.machine.time_range import time_range
from lpu_jax.machine.uncertainty import uncertain_constants
from lpu_jax.provenance import Constant, vary


@pytest.mark.parametrize("machine", named_systems(), ids=lambda machine: machine.name)
def test_every_range_says_at_which_end_times_are_shorter(machine: System) -> None:
    for name, constant in uncertain_constants(machine).items():
        assert constant.options or constant.faster_at in ("low", "high"), name


def test_ends_of_ranges_and_the_best_of_each_list() -> None:
    """Transit 10..50 and stream 30,720..100,000; trays of 8 help the first thing, harm the other.

    By hand: 10 + 1 and 50 + 100,000 / 30,720 = 53.3 for the range; an alternative takes part with
    its factor.
    """

    def times(machine: System) -> np.ndarray:
        chip, links = machine.chip, machine.topology
        ranged = chip.transit_cycles + 100_000 / chip.weight_stream_bytes_per_cycle
        tray = {16: (1.0, 1.0), 8: (0.5, 3.0)}[links.tray_chips]
        ring = 0.9 if links.rack_chain == "ring" else 1.0
        return ranged * np.array(tray) * ring

    shortest, longest = time_range(system("lpx-9"), times)
    slow = 50 + 100_000 / 30_720
    assert shortest == pytest.approx([11 * 0.5 * 0.9, 11 * 0.9], rel=1e-12)
    assert longest == pytest.approx([slow, slow * 3.0], rel=1e-12)


def test_what_is_not_possible_on_a_variant_is_left_out() -> None:
    def times(machine: System) -> np.ndarray:
        return np.array([1.0 if machine.topology.tray_chips == 16 else np.nan])

    assert time_range(system("lpx-rack"), times) == (np.array([1.0]), np.array([1.0]))


def test_a_machine_without_uncertain_constants_has_one_time() -> None:
    import dataclasses

    from lpu_jax.machine.uncertainty import uncertain
    from lpu_jax.provenance import CALLER, vary

    def certain(spec):
        given = (
            dataclasses.replace(c, source=CALLER, low=None, high=None, options=())
            for c in uncertain(spec)
        )
        return vary(spec, *given)

    machine = system("groq-node")
    machine = dataclasses.replace(
        certain(machine), chip=certain(machine.chip), topology=certain(machine.topology)
    )
    assert time_range(machine, lambda one: np.array([7.0])) == (np.array([7.0]), np.array([7.0]))


def test_a_range_of_a_users_own_is_tried_at_both_ends() -> None:
    """Nothing says whether more memory is faster: a range of it has two ends all the same."""
    node = system("groq-node")
    memory = Constant(
        name="sram_bytes",
        value=node.chip.sram_bytes,
        unit="B",
        status="assumed",
        source="a file of the user's",
        low=node.chip.sram_bytes // 2,
        high=node.chip.sram_bytes * 2,
    )
    roomy = replace(node, chip=vary(node.chip, memory))

    def times(machine: System) -> np.ndarray:
        return np.array([machine.chip.sram_bytes / node.chip.sram_bytes])

    assert time_range(roomy, times) == (np.array([0.5]), np.array([2.0]))
