"""Cheaper collectives never make a program slower: what bounds of time rest on.

Programs are random graphs of operations on every unit, with everything that an operation may ask
of the schedule; each number of a passage is made cheaper on its own. Blocks of models are in
`tests/sharding/search/test_bounds.py`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpu_jax.cost.program import Operation, Program
from lpu_jax.cost.schedule import schedule
from lpu_jax.datapath.work import Passage, Unit, Work
from lpu_jax.machine.chip import ChipSpec
from lpu_jax.machine.lpu_chips import GROQ3_LPU, GROQCHIP1

_OF_PASSAGE = tuple(one.name for one in fields(Passage))
#: What each number of a passage is multiplied by; the mixture may be no collective that exists.
Factors = dict[str, float]
#: What an operation asks for: arguments of `Work`, or a passage.
Asked = dict[str, Any] | Passage
_N_INPUTS = 3


@dataclass(frozen=True)
class OneChip:
    """A machine whose operations know what their collectives take."""

    chip: ChipSpec

    def collective_cycles(self, kind: str, algorithm: str, *asked: Any) -> Passage:
        raise AssertionError(f"{kind} by {algorithm}: its rule knows the passage")


@st.composite
def passages(draw: st.DrawFn) -> Passage:
    hops = draw(st.integers(1, 300))
    first = hops + draw(st.integers(0, 50))
    waits = draw(st.booleans())
    return Passage(
        hops=float(hops),
        first=float(first),
        last=float(first + draw(st.integers(0, 400))),
        first_behind=float(draw(st.integers(0, 60))) if waits else -math.inf,
        last_behind=float(draw(st.integers(0, 100))),
    )


@st.composite
def works(draw: st.DrawFn, n_reads: int) -> dict[str, Any]:
    """What an operation other than a collective asks of its unit, as arguments of `Work`.

    Shape checks draw random numbers where they look into a tuple; a strategy must not.
    """
    unit = draw(st.sampled_from([Unit.MXM, Unit.VXM, Unit.SXM, Unit.MEM, Unit.FREE]))
    busy = float(draw(st.integers(1, 300)))
    waits = draw(st.lists(st.integers(0, n_reads - 1), max_size=n_reads, unique=True))
    installs = unit is Unit.MXM and n_reads > 1
    return {
        "unit": unit,
        "busy_cycles": busy,
        "latency_cycles": float(draw(st.integers(0, 40))),
        "waits_for": tuple(waits),
        "lead_cycles": float(draw(st.integers(0, 20))),
        "rest_cycles": float(draw(st.integers(0, 20))),
        "result_is_last": draw(st.booleans()),
        "install_cycles": float(draw(st.integers(0, 200))) if installs else 0.0,
        "drain_cycles": busy / 2 if installs else 0.0,
        "stationary": n_reads - 1 if installs else None,
        "absent": draw(st.sampled_from([False, False, False, True])),
        "moved_bytes": 0.0,
    }


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[Asked]]:
    """What each operation reads, by number of the value, and what it asks for."""
    reads: list[tuple[int, ...]] = []
    asks: list[Asked] = []
    for i in range(draw(st.integers(1, 12))):
        every = st.integers(0, _N_INPUTS + i - 1)
        reads.append(tuple(draw(st.lists(every, min_size=1, max_size=3, unique=True))))
        n_reads = len(reads[-1])
        asks.append(draw(st.one_of(works(n_reads), passages(), passages())))
    return reads, asks


def _program(reads: list[tuple[int, ...]], asks: list[Asked], given: Factors) -> Program:
    """Make a program whose collectives are cheaper by some factors."""

    def rule(ask: Asked) -> Any:
        if isinstance(ask, dict):
            work = Work(**ask)
            return lambda machine, call: work
        # What did not wait for the last vector of its operand does not wait now.
        numbers = {name: getattr(ask, name) for name in _OF_PASSAGE}
        cheaper = {n: x * given[n] if math.isfinite(x) else x for n, x in numbers.items()}
        return lambda machine, call: Passage(**cheaper).as_work()

    return Program(
        operations=tuple(
            Operation(
                name="operation",
                reads=own,
                makes=(_N_INPUTS + i,),
                operands=(),
                results=(),
                params={},
                rule=rule(ask),
            )
            for i, (own, ask) in enumerate(zip(reads, asks, strict=True))
        ),
        inputs=tuple(range(_N_INPUTS)),
        outputs=(),
    )


@pytest.mark.slow
@given(
    programs(),
    st.fixed_dictionaries({name: st.floats(0.0, 1.0) for name in _OF_PASSAGE}),
    st.sampled_from([GROQCHIP1, GROQ3_LPU]),
)
@settings(max_examples=300)
def test_no_program_is_slower_with_cheaper_collectives(
    given: tuple[list[tuple[int, ...]], list[Asked]], cheaper: Factors, chip: ChipSpec
) -> None:
    stated = dict.fromkeys(_OF_PASSAGE, 1.0)
    before = schedule(_program(*given, stated), OneChip(chip))
    after = schedule(_program(*given, cheaper), OneChip(chip))
    assert after.cycles <= before.cycles
    for now, then in zip(after.slots, before.slots, strict=True):
        assert now.last <= then.last * (1 + 1e-12)
