"""Joules per token: by hand from published power, between bounds, and absent where unknown."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from legal_plans import legal_plans, shapes

from lpu_jax.errors import ConfigError
from lpu_jax.machine.catalogue import any_system, system
from lpu_jax.machine.lpu_chips import GROQ3_LPU
from lpu_jax.machine.mixed import MixedSystem, Split
from lpu_jax.machine.pool_link import PoolLink
from lpu_jax.machine.system import System
from lpu_jax.provenance import constants_of
from models.blocks import block_chain
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.predict.energy import (
    busy_cycles,
    cannot_order,
    energy,
    knows_energy,
    unknown_reason,
)
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.rank.compare import compare
from sharding.request import Request, decode_request
from sharding.scenario import Scenario

SMOLLM, FP16 = model("smollm2-135m"), POLICIES["fp16"]
NODE, RACK = system("groq-node"), system("groq-24")
#: GPB: watts of a GroqChip1.
MOST_W, AVERAGE_W = 300.0, 185.0


def _with_chip(found: Evaluation, chip: Any) -> Evaluation:
    """The same times on a chip of other power."""
    system = replace(found.scenario.system, chip=chip)
    return replace(found, scenario=replace(found.scenario, system=system))


@cache
def _some_plans(request: Request, machine: System = RACK) -> Evaluation:
    scenario = Scenario(SMOLLM, machine, request, policy=FP16)
    return evaluate(legal_plans(scenario, shapes(scenario)[::7], most=20), scenario)


def test_eight_chips_times_their_power_times_a_token() -> None:
    plan = Plan(
        stages=1, group_chips=8, attention=AttentionShard(replica=8), mlp=MlpShard(tensor=8)
    )
    found = evaluate([plan], Scenario(SMOLLM, NODE, Request(context=512), policy=FP16))
    joules = energy(found)
    token_s = float(found.latency_s[0])
    # One stage: one token at a time, so that alone or not is the same.
    upper, alone = joules.upper_j_per_token, joules.upper_alone_j_per_token
    assert upper is not None
    assert alone is not None
    assert upper[0] == pytest.approx(8 * MOST_W * token_s, rel=1e-12)
    assert alone[0] == upper[0]
    # Every unit's busy cycles, block by block, from the schedules themselves.
    busy = 0.0
    for block in block_chain(SMOLLM):
        units = found.blocks[block.kind].timing.busy_cycles
        busy += max(float(np.asarray(cycles).reshape(-1)[0]) for cycles in units.values())
    assert joules.lower_j_per_token is not None
    assert joules.lower_j_per_token[0] == pytest.approx(8 * AVERAGE_W * busy / 0.9e9, rel=1e-12)
    # A fifth of a millisecond at most: joules, not kilojoules.
    assert 0.01 < joules.lower_j_per_token[0] < upper[0] < 8 * 300 * 2e-4


@pytest.mark.parametrize(
    "request_",
    [
        Request(context=512),
        Request(batch=4, context=64),
        decode_request(batch=2, context=64, draft_tokens=3, acceptance=0.6),
    ],
    ids=["one", "four", "drafts"],
)
@pytest.mark.parametrize("host_s", [0.0, 1e-4])
def test_lower_is_below_upper_is_below_alone(request_: Request, host_s: float) -> None:
    machine = replace(RACK, host_overhead_s=host_s)
    found = _some_plans(request_, machine)
    joules = energy(found)
    lower, upper = joules.lower_j_per_token, joules.upper_j_per_token
    alone = joules.upper_alone_j_per_token
    assert lower is not None
    assert upper is not None
    assert alone is not None
    assert np.all(lower > 0)
    assert np.all(lower < upper)
    assert np.all(upper <= alone * (1 + 1e-12))
    # Chips of all copies times power over the rate of the system.
    chips = found.copies * [plan.n_chips for plan in found.plans]
    np.testing.assert_allclose(upper * found.tokens_per_s_total, chips * MOST_W, rtol=1e-12)
    # No chip is busy for longer than the token takes.
    assert np.all(busy_cycles(found) <= found.latency_cycles)


@pytest.mark.slow
def test_a_plan_alone_has_the_energy_that_it_has_among_others() -> None:
    request = Request(batch=2, tokens=4, context=64)
    found = _some_plans(request)
    among = energy(found).lower_j_per_token
    assert among is not None
    for i in range(0, len(found.plans), 5):
        own = evaluate([found.plans[i]], Scenario(SMOLLM, RACK, request, policy=FP16))
        alone = energy(own).lower_j_per_token
        assert alone is not None
        assert alone[0] == among[i]  # to the last bit


@pytest.mark.slow
@given(st.floats(0.1, 10))
def test_energy_scales_with_power_and_with_the_clock(factor: float) -> None:
    found = _some_plans(Request(context=512))
    chip = RACK.chip
    stronger = replace(chip, power_max_w=MOST_W * factor, power_average_w=AVERAGE_W * factor)
    faster = replace(found, clock_hz=found.clock_hz * factor)
    plain, powered = energy(found), energy(_with_chip(found, stronger))
    quick = energy(faster)
    for name in ("lower_j_per_token", "upper_j_per_token", "upper_alone_j_per_token"):
        np.testing.assert_allclose(
            getattr(powered, name), factor * getattr(plain, name), rtol=1e-12
        )
        np.testing.assert_allclose(getattr(quick, name), getattr(plain, name) / factor, rtol=1e-12)


def test_drafts_that_are_accepted_save_energy_and_others_waste_it() -> None:
    def lower(acceptance: float) -> np.ndarray:
        request = decode_request(context=64, draft_tokens=3, acceptance=acceptance)
        bound = energy(_some_plans(request)).lower_j_per_token
        assert bound is not None
        return bound

    # The same work for one token or for four.
    np.testing.assert_allclose(lower(0.0), 4 * lower(1.0), rtol=1e-12)
    plain = energy(_some_plans(Request(context=64))).lower_j_per_token
    assert plain is not None
    assert np.all(lower(0.0) > plain)


@pytest.mark.slow
def test_a_power_that_is_not_public_is_no_number() -> None:
    for constant in constants_of(GROQ3_LPU):
        if constant.unit == "W":
            assert constant.value is None
            assert "not public" in constant.source
    found = compare("smollm2-135m", "lpx-rack", Request(context=2), top=1)
    (row,) = found.rows
    assert row.energy_j_per_token_lower is None
    assert row.energy_j_per_token_upper is None
    data = found.as_dict()
    assert data["energy"]["reason"] == (
        "No energy: the power of NVIDIA Groq 3 LPU (LP30) is not public."
    )
    assert data["rows"][0]["energy_j_per_token_upper"] is None
    assert "J/token" not in found.table()
    assert "No energy: the power of" in found.table()


def test_a_gpu_has_an_upper_bound_only() -> None:
    gpus = system("h100x8")
    joules = energy(_some_plans(Request(context=64), gpus))
    assert joules.lower_j_per_token is None
    assert joules.upper_j_per_token is not None
    assert unknown_reason(gpus) == (
        "No lower bound of energy: the average power of NVIDIA H100 SXM is not public."
    )


def _with_power(tmp_path: Path, given: str) -> System:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'topology = "lpx"\nchips = 16\n[chip]\nbase = "groq3-lpu"\n{given}\n', encoding="utf-8"
    )
    return system(path)


@pytest.mark.slow
def test_a_user_may_give_the_power(tmp_path: Path) -> None:
    machine = _with_power(tmp_path, "power_max_w = 600")
    (row,) = compare("smollm2-135m", machine, Request(context=2), top=1).rows
    assert row.energy_j_per_token_lower is None
    assert row.energy_j_per_token_upper == pytest.approx(
        600 * row.copies * row.plan.n_chips / row.tokens_per_s_total
    )
    (constant,) = (c for c in machine.constants() if c.name == "power_max_w")
    assert (constant.status, constant.source) == ("assumed", "user file")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("power_max_w = 300\npower_average_w = 301", "must be at most 'chip.power_max_w'"),
        ("power_average_w = 200", "must be at most 'chip.power_max_w'"),
        ("power_max_w = 0", "'chip.power_max_w' must be"),
        ("power_max_w = -5.0", "'chip.power_max_w' must be"),
    ],
)
def test_impossible_powers(tmp_path: Path, given: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _with_power(tmp_path, given)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vr-lpx-1", "No energy: the power of NVIDIA Groq 3 LPU (LP30) is not public."),
        ("vr-lpx-1:prefill-decode", "No energy: the power of NVIDIA Groq 3 LPU (LP30) is not"),
    ],
)
def test_of_two_machines_the_chip_whose_power_is_not_public_is_named(
    name: str, reason: str
) -> None:
    machine = any_system(name)
    assert (unknown_reason(machine) or "").startswith(reason)
    assert not knows_energy(machine)


def test_chips_of_two_machines_draw_their_own_power() -> None:
    mixed = MixedSystem(name="both", gpus=system("h100x2"), lpus=NODE, link=PoolLink())
    plan = Plan.parse("1x2 a:2r + 1x4 f:4t row")
    asked = Scenario(SMOLLM, NODE, Request(batch=4, context=64), policy=FP16).on(mixed)
    found = evaluate([plan], asked)
    joules = energy(found)
    assert joules.lower_j_per_token is None
    assert joules.upper_j_per_token is not None
    # H100DS: up to 700 W. Two GPUs and four LPUs, for the period of four sequences.
    all_w = 2 * 700.0 + 4 * MOST_W
    upper = all_w / float(found.tokens_per_s_of_copy[0])
    assert joules.upper_j_per_token[0] == pytest.approx(upper, rel=1e-12)
    assert joules.upper_alone_j_per_token is not None
    alone = all_w * float(found.latency_s[0]) / 4
    assert joules.upper_alone_j_per_token[0] == pytest.approx(alone, rel=1e-12)
    assert "average power of NVIDIA H100" in (unknown_reason(mixed) or "")
    assert knows_energy(mixed)
    assert "draw different power" in (cannot_order(mixed) or "")


def test_where_gpus_only_take_prompts_in_the_energy_is_that_of_the_lpus() -> None:
    mixed = MixedSystem(
        name="both", gpus=system("h100x2"), lpus=NODE, link=PoolLink(), split=Split.PREFILL_DECODE
    )
    plan = Plan(group_chips=8, attention=AttentionShard(replica=8), mlp=MlpShard(tensor=8))
    alone = Scenario(SMOLLM, NODE, Request(context=64), policy=FP16)
    ours, theirs = (energy(evaluate([plan], asked)) for asked in (alone.on(mixed), alone))
    assert ours == theirs
    assert cannot_order(mixed) is None


def test_drafts_on_lpus_are_counted_with_the_gpus_that_judge_them() -> None:
    mixed = MixedSystem(
        name="both", gpus=system("h100x2"), lpus=NODE, link=PoolLink(), split=Split.DRAFT_VERIFY
    )
    request = decode_request(context=64, draft_tokens=2, acceptance=0.5)
    found = compare("smollm2-135m", mixed, request, draft_model="smollm2-135m", top=1)
    (row,) = found.rows
    assert row.draft is not None
    assert row.energy_j_per_token_upper is not None
    all_w = 700.0 * row.plan.n_chips + MOST_W * row.draft.plan.n_chips
    rate = row.tokens_per_s_per_chip * row.n_chips
    assert row.energy_j_per_token_upper == pytest.approx(all_w / rate, rel=1e-12)
