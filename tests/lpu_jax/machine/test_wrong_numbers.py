"""Numbers and parts that no machine has are refused where a machine is made.

The hook that checks annotations in tests is off: users have none.
"""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import config

from lpu_jax.errors import ConfigError, LpuError
from lpu_jax.machine.catalogue import named_systems, system
from lpu_jax.provenance import constants_of

MACHINES = {machine.name: machine for machine in named_systems()}
PARTS = [
    (name, part) for name in ("groq-node", "lpx-9", "h100x8") for part in ("chip", "topology", "")
]


@pytest.fixture(autouse=True)
def _as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("machine", "part"), PARTS)
@pytest.mark.parametrize("wrong", ["x", [], math.nan, -1, True, object()])
def test_no_constant_is_anything(machine: str, part: str, wrong: Any) -> None:
    spec = getattr(MACHINES[machine], part) if part else MACHINES[machine]
    numbers = [c for c in constants_of(spec) if isinstance(c.value, int | float)]
    assert numbers
    for constant in numbers:
        with pytest.raises(LpuError, match=rf"\.{constant.name} is .*; it must be a "):
            dataclasses.replace(spec, **{constant.name: wrong})


@pytest.mark.parametrize(
    ("field", "wrong", "sentence"),
    [
        ("name", None, "System.name is None; it must be a string"),
        ("chip", "groqchip1", "System.chip is 'groqchip1'; it must be a ChipSpec or a GpuSpec"),
        ("topology", None, "System.topology is None; it must be a Topology or an NvlinkDomain"),
        ("n_chips", 9, "System.n_chips is 9; it must be a whole number from 1 to the 8 chips"),
        ("n_chips", 2.5, "System.n_chips is 2.5"),
        ("host_overhead_s", -1e-6, "System.host_overhead_s is -1e-06; it must be a number of at"),
    ],
)
def test_a_system_is_made_of_its_parts(field: str, wrong: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        dataclasses.replace(system("groq-node"), **{field: wrong})


@given(st.sampled_from(sorted(MACHINES)), st.data())
def test_what_a_range_allows_is_a_machine(name: str, data: st.DataObject) -> None:
    """Ends of ranges are numbers of a machine, also where they are 0."""
    chip = MACHINES[name].chip
    ranged = [c for c in constants_of(chip) if c.low is not None and not c.at_most]
    constant = data.draw(st.sampled_from(ranged))
    for end in (constant.low, constant.high):
        made = dataclasses.replace(chip, **{constant.name: end})
        assert getattr(made, constant.name) == end
