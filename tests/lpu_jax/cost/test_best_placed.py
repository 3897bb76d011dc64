"""The best-placed machine is a bound: no run that a plan can have is priced lower.

Two laws are held up to machines: no place is better than the first chip, and no run gains from
chips farther apart than a node each. Every collective is priced over runs of every length and
stride, in every group and at every place that stages have, and compared with the bound.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from random_scenarios import of_lpus, random_topology
from slices import slow_then_long, some_slow
from small_machines import ring
from wired_machines import MACHINES, name_of

from lpu_jax.cost.collectives.kinds import PRICED_KINDS
from lpu_jax.cost.placed_machine import BestPlaced, Groups, PlacedMachine, one_group
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.machine.system import System
from lpu_jax.machine.topology import Topology

#: Less than a frame, frames that do not divide evenly, and the rows of large models.
PAYLOADS = (1, 320, 321, 1_000, 12_345, 229_376)
#: Both readings add the same terms, in other orders.
ROUNDING = 1e-9
_FIELDS = ("hops", "first", "last", "first_behind", "last_behind")


def every_run(machine: System, most: int | None = None) -> tuple[list[Groups], np.ndarray]:
    """List placements of stages, and the runs in them: number of the placement, chips, stride.

    Args:
        machine: LPUs.
        most: so many runs, drawn; None: all.
    """
    groups: dict[tuple[int, bytes], Groups] = {}
    for chips in range(1, machine.n_chips + 1):
        for stages in range(1, machine.n_chips // chips + 1):
            bases = machine.stage_bases(stages, chips) % machine.topology.period_chips
            groups.setdefault((chips, np.unique(bases).tobytes()), Groups(chips, np.unique(bases)))
    placements = list(groups.values())
    runs = [
        (number, n, block // n)
        for number, placed in enumerate(placements)
        for block in range(1, placed.chips + 1)
        if placed.chips % block == 0
        for n in range(1, block + 1)
        if block % n == 0
    ]
    if most is not None and len(runs) > most:
        runs = Random(0).sample(runs, most)
    return placements, np.array(runs)


def priced_below_the_bound(machine: System, most: int | None = None) -> list[str]:
    """Runs whose price is below that of the best-placed machine, in words."""
    groups, runs = every_run(machine, most)
    number, n, stride = runs.T
    placed = PlacedMachine(system=machine, groups=tuple(groups), group_of_plan=number)
    best, found = BestPlaced(system=machine), []
    for kind in PRICED_KINDS:
        for payload in PAYLOADS:
            asked = kind, "auto", n, stride, np.full(len(runs), float(payload))
            price, bound = placed.collective_cycles(*asked), best.collective_cycles(*asked)
            for field in _FIELDS:
                cycles = np.broadcast_to(getattr(price, field), n.shape)
                least = np.broadcast_to(getattr(bound, field), n.shape)
                # What need not wait for the last vector is behind it at minus infinity.
                size = np.where(np.isfinite(cycles), np.abs(cycles), 0.0)
                below = np.flatnonzero(cycles + ROUNDING * (1 + size) < least)
                found += [
                    f"{kind} of {payload} bytes, {n[i]} chips {stride[i]} apart, groups of "
                    f"{groups[number[i]].chips} from {groups[number[i]].bases.tolist()}: {field} "
                    f"{cycles[i]} < {least[i]}"
                    for i in below[:3].tolist()
                ]
    return found


def _lpus(topology: Topology) -> System:
    return of_lpus(topology, GROQCHIP1 if topology.family == "groq" else None)


WIRED = [_lpus(topology) for topology in MACHINES if topology.n_chips <= 576]
SMALL = [machine for machine in WIRED if machine.n_chips <= 72]
PARTS = [
    replace(system(name), n_chips=n_chips)
    for name, n_chips in (("groq-rack", 13), ("groq-576", 90), ("lpx-4", 300))
]


def _name(machine: System) -> str:
    return f"{machine.n_chips} of {name_of(machine.topology)}"


@pytest.mark.first(2)
@pytest.mark.parametrize("machine", [*SMALL, PARTS[0]], ids=_name)
def test_no_run_is_better_placed(machine: System) -> None:
    assert priced_below_the_bound(machine, most=400) == []


def test_no_run_is_better_placed_where_outer_links_are_the_faster_ones() -> None:
    rng = Random(0)
    for _ in range(4):
        machine = _lpus(random_topology(rng, most_chips=24))
        assert priced_below_the_bound(machine, most=400) == [], machine.topology


@pytest.mark.parametrize(
    "machine",
    some_slow([*PARTS, *WIRED, system("groq-300"), system("lpx-2"), _lpus(ring(3))], count=3),
    ids=_name,
)
def test_no_run_at_all_is_better_placed(machine: System) -> None:
    assert priced_below_the_bound(machine) == []


@pytest.mark.parametrize("seeds", slow_then_long(range(150), short=25))
def test_no_run_at_all_is_better_placed_on_machines_at_random(seeds: range) -> None:
    for seed in seeds:
        machine = _lpus(random_topology(Random(seed), most_chips=60))
        assert priced_below_the_bound(machine) == [], machine.topology


@pytest.mark.parametrize("name", ["groq-node", "lpx-tray"])
def test_the_bound_is_the_price_of_a_node_that_is_one_run(name: str) -> None:
    """A bound far below all prices would hold too, and would leave nothing out."""
    machine = system(name)
    for kind in PRICED_KINDS:
        asked = kind, "auto", machine.n_chips, 1, 12_345.0
        price = one_group(machine, machine.n_chips).collective_cycles(*asked)
        bound = BestPlaced(system=machine).collective_cycles(
            kind, "auto", np.array([machine.n_chips]), np.array([1]), np.array([12_345.0])
        )
        assert bound.last == pytest.approx(price.last, rel=ROUNDING)


def test_threads_that_share_a_machine_get_the_prices_of_one() -> None:
    """A switch of threads after every few instructions: prices are looked up while others grow."""
    shared, runs = BestPlaced(system=system("groq-24")), range(1, 25)

    def priced(machine: BestPlaced, payload: int) -> np.ndarray:
        n = np.array(runs)
        return machine.collective_cycles("all_reduce", "auto", n, 1, 320.0 * payload).last

    payloads = [*range(1, 41), *range(1, 41)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as workers:
            found = list(workers.map(lambda payload: priced(shared, payload), payloads))
    finally:
        sys.setswitchinterval(interval)
    for payload, cycles in zip(payloads, found, strict=True):
        np.testing.assert_array_equal(cycles, priced(BestPlaced(system=system("groq-24")), payload))
