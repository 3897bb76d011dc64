"""The main ways through the planner, with the shapes checked of all arrays that they make.

Nothing else is claimed: what is wrong here is a `TypeCheckError`.
"""

from dataclasses import replace
from typing import Any

import pytest
from placed_blocks import TINY_KIMI, TINY_LLAMA, TINY_OSS
from slices import some_slow

from lpu_jax.machine.catalogue import any_system, system
from lpu_jax.machine.mixed import MixedSystem
from models.config import ModelConfig
from models.policy import POLICIES
from models.zoo import model
from sharding.detail.explain import explain
from sharding.plan import Plan
from sharding.predict.evaluate import evaluate
from sharding.predict.serving import prefill
from sharding.rank.compare import compare
from sharding.rank.curve import curve
from sharding.rank.fewest import on_fewest_chips
from sharding.rank.sensitivity import sensitivity
from sharding.rank.sweep import sweep
from sharding.request import Request
from sharding.scenario import Scenario

pytestmark = pytest.mark.shapes


def test_shapes_are_checked_here() -> None:
    from jaxtyping import config

    assert not config.jaxtyping_disable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "machine"),
    [
        pytest.param(TINY_LLAMA, "groq-3", id="grouped"),
        pytest.param(TINY_LLAMA, "h100x2", id="grouped on GPUs", marks=pytest.mark.long),
        pytest.param(TINY_OSS, "lpx-1", id="mixture", marks=pytest.mark.long),
        pytest.param(TINY_KIMI, "groq-3", id="latent", marks=pytest.mark.long),
    ],
)
def test_comparing(cfg: ModelConfig, machine: str) -> None:
    part = replace(system(machine), n_chips=min(system(machine).n_chips, 4))
    for objective in ("latency", "pareto"):
        asked = Request(batch=2, context=128)
        assert compare(cfg, part, asked, objective=objective, top=2).rows  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "asked",
    some_slow(
        [
            {"objective": "first-token", "prompt": 32},
            {"objective": "chips"},
            {"objective": "energy"},
            {"invariant": "certified"},
            {"draft_model": TINY_LLAMA},
            {"invariant": "tree"},
            {"min_rate": 1.0, "max_first_token_s": 10.0},
            {"policy": "int8"},
        ],
        count=2,
    ),
    ids=lambda asked: "-".join(asked),
)
def test_comparing_with_options(asked: dict[str, Any]) -> None:
    request = Request(batch=1, context=128)
    if "draft_model" in asked:
        request = Request(batch=1, context=128, tokens=3, acceptance=0.5)
    assert compare(TINY_LLAMA, "groq-3", request, **asked) is not None


@pytest.mark.slow
def test_what_does_not_fit() -> None:
    found = compare(model("llama-2-70b"), "groq-12", Request(context=128), top=2)
    assert found.nearest is not None


@pytest.mark.parametrize("objective", some_slow(["latency", "throughput"], count=1))
def test_comparing_beside_gpus(objective: Any) -> None:
    whole = any_system("h100-lpx-1")
    assert isinstance(whole, MixedSystem)
    gpus, lpus = system("h100x2"), replace(whole.lpus, n_chips=3)
    machine = replace(whole, gpus=gpus, lpus=lpus)
    asked = Request(batch=2, context=128)
    assert compare(TINY_LLAMA, machine, asked, objective=objective, top=2).rows
    few = replace(lpus, chip=replace(lpus.chip, sram_bytes=1000))  # type: ignore[call-arg]
    found = compare(TINY_LLAMA, replace(machine, lpus=few), asked, objective=objective)
    assert found.nearest is not None


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["2x2 a:2t f:2t row", "1x2 a:2t + 1x3 f:3t row"])
def test_one_plan(plan: str) -> None:
    cfg: ModelConfig = TINY_LLAMA
    asked = Scenario(cfg, system("groq-12"), Request(batch=2, context=128), policy=POLICIES["fp16"])
    own = Plan.parse(plan)
    found = evaluate([own], asked)
    assert prefill([own], found.fits, asked, 64).latency_s[0] > 0
    assert explain(cfg, "groq-12", own, asked.request).latency_s > 0


@pytest.mark.long
def test_several_scenarios_and_their_ranges() -> None:
    one = compare(TINY_LLAMA, "groq-3", Request(context=128), top=1)
    assert sensitivity(one, 5).influences
    assert curve(TINY_LLAMA, "groq-3", Request(context=128), batches=[1, 2]).points
    assert on_fewest_chips(TINY_LLAMA, "groq-3", Request(context=128)).n_chips >= 1
    found = sweep(
        TINY_LLAMA, "groq-3", Request(context=128), policies=["fp16", "int8"], batches=[1, 2]
    )
    assert found.rows
