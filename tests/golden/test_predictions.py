"""Predictions are pinned: a change is always deliberate, and the same on every JAX version."""

import json
from dataclasses import replace
from typing import Any

import pytest
from golden.pin import PINNED, constants_key, predict

from lpu_jax.machine.catalogue import system

CASES = json.loads(PINNED.read_text(encoding="utf-8"))


@pytest.mark.first(2)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['model']}-{c['system']}-{c['name']}")
def test_a_prediction_is_the_pinned_one(case: dict[str, Any]) -> None:
    constants = constants_key(system(case["system"]))
    assert constants == case["constants"], (
        f"the constants of {case['system']} have changed: run python tests/golden/pin.py and "
        "explain the new predictions"
    )
    assert predict(case) == case["predicted"]


def test_there_are_a_dozen_of_every_kind() -> None:
    assert len(CASES) >= 12
    assert len({case["model"] for case in CASES}) >= 5
    assert len({case["system"] for case in CASES}) >= 6
    assert {case["predicted"]["fits"] for case in CASES} == {True, False}


def test_the_key_knows_every_constant() -> None:
    node = system("groq-node")
    slower = replace(node, chip=replace(node.chip, mxm_latency_cycles=65))
    farther = replace(node, topology=replace(node.topology, local_hop_s=723e-9))
    assert len({constants_key(machine) for machine in (node, slower, farther)}) == 3


def test_another_plan_is_another_prediction() -> None:
    case = next(case for case in CASES if case["plan"]["stages"] > 2)
    other = {**case, "plan": {**case["plan"], "stages": case["plan"]["stages"] - 1}}
    assert predict(other) != case["predicted"]
