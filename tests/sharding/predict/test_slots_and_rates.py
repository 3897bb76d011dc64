"""Rules that were once broken: each of these was wrong before it was written down here."""

from dataclasses import replace

import pytest

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.legal import Search, check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.evaluate import evaluate
from sharding.rank.compare import compare
from sharding.request import Request
from sharding.scenario import Scenario

KIMI, LPX, INT4 = model("kimi-k2"), system("lpx-9"), POLICIES["int4"]


def _plan(slots: int | None) -> Plan:
    return Plan(
        stages=62,
        group_chips=36,
        attention=AttentionShard(tensor=36, split=Split.ROW),
        mlp=MlpShard(tensor=36, split=Split.ROW),
        moe=MoeShard(expert=36, split=Split.ROW, slots=slots),
    )


def test_slots_of_a_decode_step_do_not_bind_prefill() -> None:
    request = Request(tokens=64, context=8192)
    bound, free = evaluate(
        [_plan(8), _plan(None)], Scenario(KIMI, LPX, request, policy=INT4)
    ).latency_cycles
    assert bound == free


def test_more_slots_than_the_worst_case_take_longer() -> None:
    worst, all_local = evaluate(
        [_plan(8), _plan(11)], Scenario(KIMI, LPX, Request(), policy=INT4)
    ).latency_cycles
    assert all_local > worst


def test_a_format_that_stores_nothing_of_a_model_is_refused() -> None:
    with pytest.raises(LpuError, match=r"int4 is about expert weights, which llama-2-70b has none"):
        compare("llama-2-70b", "groq-576", policy="int4")


def test_one_chip_sends_nothing() -> None:
    small = model("smollm2-135m")
    plan = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
    found = evaluate([plan], Scenario(small, system("groq-8"), Request(), policy=POLICIES["fp16"]))
    assert found.wire_bytes[0] == 0


@pytest.mark.parametrize("top", [0, -3, True])
def test_rows_are_a_whole_number(top: object) -> None:
    with pytest.raises(LpuError, match="top is"):
        compare("smollm2-135m", "groq-8", top=top)


@pytest.mark.parametrize("batch", [1 << 30, True])
def test_a_request_is_of_whole_numbers_in_range(batch: object) -> None:
    with pytest.raises(LpuError, match="batch is"):
        compare("smollm2-135m", "groq-8", Request(batch=batch, context=4096))


def test_no_searched_plan_has_more_chips_in_a_group_than_words() -> None:
    tiny = replace(model("smollm2-135m"), vocab_size=3)
    fp16, groq = POLICIES["fp16"], system("groq-8")
    plans = list(Search(Scenario(tiny, groq, Request(), policy=fp16)).plans())
    assert plans
    for plan in plans:
        check_plan(plan, Scenario(tiny, groq, Request(), policy=fp16))
