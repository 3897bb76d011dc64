"""The three default plans of a check, what they promise, and how the report says it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import checkpoint

from lpu_jax.errors import PlanError
from lpu_jax.machine.catalogue import system
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.legal import check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard
from sharding.plan_file import plan_from_dict
from sharding.rank.choose import default_plans, promises_one_chip_bits, split_by
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.verify.chosen_layers import BlockCheck, CheckResult
from sharding.verify.one_chip_bits import as_promised, check_dict, check_text

KIMI, LPX, INT4 = model("kimi-k2"), system("lpx-rack"), POLICIES["int4"]


@pytest.fixture(scope="module")
def plans() -> list:
    return default_plans(KIMI, LPX, policy=INT4)


def test_default_plans_are_two_by_columns_and_one_by_rows(plans: list) -> None:
    assert [promises_one_chip_bits(plan) for plan in plans] == [True, True, False]
    first, second, third = plans
    assert first.attention.tensor != second.attention.tensor
    assert first.moe.expert != second.moe.expert
    # the third differs from the first in nothing but the rounding points
    assert split_by(third, Split.COLUMN) == first
    for plan in plans:
        check_plan(plan, Scenario(KIMI, LPX, Request(context=4096), policy=INT4))


def test_a_machine_with_one_split_has_no_default_plans() -> None:
    with pytest.raises(PlanError, match="groq-1 has no plan that splits every block"):
        default_plans(model("llama-3.1-8b"), system("groq-1"), policy=POLICIES["fp16"])


def test_a_plan_alone_is_promised_not_certified(plans: list) -> None:
    text = check_text(KIMI, LPX, [_result(plans[0], "aaaa")], policy=INT4)
    assert "promised" in text
    assert "certified" not in text


def test_one_chip_promises_its_own_bits(plans: list) -> None:
    alone = split_by(
        replace(
            plans[0],
            attention=AttentionShard(replica=32),
            mlp=MlpShard(replica=32),
            moe=MoeShard(replica=32),
        ),
        Split.ROW,
    )
    assert promises_one_chip_bits(alone)


def test_json_says_which_plan_and_whether_the_promise_was_kept(plans: list) -> None:
    found = check_dict(KIMI, LPX, [_result(plan, "aaaa") for plan in plans], policy=INT4)
    assert found["as_promised"] is True
    assert [row["name"] for row in found["results"]] == [plan.name for plan in plans]
    assert plan_from_dict(json.loads(json.dumps(found))["results"][0]["plan"]) == plans[0]


def test_one_row_split_part_ends_the_promise(plans: list) -> None:
    for part in ("attention", "mlp", "moe"):
        shard = replace(getattr(plans[0], part), split=Split.ROW)
        assert not promises_one_chip_bits(replace(plans[0], **{part: shard}))


def _result(plan: object, bits: str) -> CheckResult:
    block = BlockCheck(kind="dense", layer=0, sqnr_db=60.0, change_sqnr_db=59.0, max_abs_err=0.01)
    return CheckResult(
        plan=plan,
        sqnr_db=60.0,
        max_abs_err=0.01,
        fidelity="faithful",
        blocks=(block,),
        routes_agree=True,
        router_margin=0.5,
        rounding_moved=() if promises_one_chip_bits(plan) else ("dense MLP output: here",),
        output_hash=bits * 16,
        output=np.zeros((2, 4), np.float16),
    )


@pytest.mark.slow
def test_default_plans_of_a_model_without_dense_layers() -> None:
    """Its plans have no dense block to split."""
    cfg = checkpoint("qwen3_moe").config
    first, second, row = default_plans(cfg, system("groq-node"), policy=POLICIES["fp16"])
    assert promises_one_chip_bits(first)
    assert promises_one_chip_bits(second)
    assert first.moe.expert != second.moe.expert
    assert row == split_by(first, Split.ROW)
    assert min(plan.attention.tensor for plan in (first, second)) > 1


def test_promise_is_kept_by_equal_bits_of_column_plans(plans: list) -> None:
    kept = [_result(plan, bits) for plan, bits in zip(plans, ("aaaa", "aaaa", "bbbb"), strict=True)]
    broken = [
        _result(plan, bits) for plan, bits in zip(plans, ("aaaa", "bbbb", "bbbb"), strict=True)
    ]
    assert as_promised(kept)
    assert not as_promised(broken)
    text = check_text(KIMI, LPX, kept, policy=INT4)
    assert text.count("certified") == 2
    assert text.count("(A)") == 2
    assert "plan 3: dense MLP output: here" in text
    assert "same bits" in text
    assert "FAILED" in check_text(KIMI, LPX, broken, policy=INT4)
