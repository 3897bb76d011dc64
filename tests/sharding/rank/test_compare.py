"""A comparison: what scripts read from it, how it ranks, and that its counts add up."""

import json
import math
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from legal_plans import legal_plans, shapes

from lpu_jax.errors import LpuError, PlanError, UnknownNameError
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.plan_file import plan_from_dict
from sharding.predict.evaluate import evaluate
from sharding.rank.choose import text_plan
from sharding.rank.compare import Comparison, Objective, compare, rank
from sharding.rank.comparison import memory_map
from sharding.report import render
from sharding.request import Request
from sharding.scenario import Scenario

SMALL = Request(batch=4, context=512)


@cache
def _small(objective: Objective = "latency", top: int = 10) -> Comparison:
    return compare("smollm2-135m", "groq-24", SMALL, objective=objective, top=top)


@cache
def _too_large() -> Comparison:
    return compare("llama-2-70b", "groq-64", Request(context=4096), policy="int8", top=5)


@pytest.mark.slow
def test_a_policy_is_as_good_as_its_name() -> None:
    """One of a single checkpoint has a name that is in no table."""
    plan = Plan(group_chips=8, attention=AttentionShard(replica=8), mlp=MlpShard(tensor=8))
    own = replace(POLICIES["fp16"], name="fp16-of-mine")
    cfg = replace(model("smollm2-135m"), n_layers=1)
    found, named = (
        compare(cfg, "groq-node", policy=held, plans=[plan]).rows[0] for held in (own, "fp16")
    )
    assert found == named
    row = text_plan(
        cfg, system("groq-node"), plan, Request(context=8), policy=own, command="generate"
    ).rows[0]
    assert row.plan == plan


#: Fields and types that scripts rely on.
ROW_TYPES = {
    "plan": dict,
    "name": str,
    "digest": str,
    "chips": int,
    "stages": int,
    "fits": bool,
    "reason": (str, type(None)),
    "short_bytes": float,
    "sram_used_fraction": float,
    "decode_latency_s": float,
    "decode_latency_lower_s": float,
    "decode_latency_upper_s": float,
    "decode_latency_range_s": list,
    "slots": (dict, type(None)),
    "prefill_elsewhere": (dict, type(None)),
    "tokens_per_s_per_user": float,
    "tokens_per_s_total": float,
    "tokens_per_s_per_chip": float,
    "tokens_per_step": float,
    "in_flight": int,
    "copies": int,
    "busiest_s": float,
    "users_in_flight": int,
    "total_bound_by": str,
    "reserve_limit_fraction": float,
    "hand_over_s": float,
    "host_s": float,
    "prefill_latency_s": float,
    "prefill_chunk_tokens": int,
    "prefill_chunk_bound_by": str,
    "time_to_first_token_s": float,
    "wire_bytes_per_token": float,
    "energy_j_per_token_lower": float,
    "energy_j_per_token_upper": float,
    "energy_j_per_token_upper_alone": float,
    "memory_bytes": dict,
    "draft": (dict, type(None)),
    "numerics": (dict, type(None)),
}


def _refuse(word: str) -> Any:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.slow
@pytest.mark.parametrize("found", [_small, _too_large])
def test_json_has_what_scripts_read(found: Any) -> None:
    comparison = found()
    data = json.loads(comparison.to_json(), parse_constant=_refuse)
    assert set(data) >= {"model", "system", "rows", "searched", "versions", "assumed", "objective"}
    assert set(data["searched"]) >= {"legal", "fitting", "rejected", "space", "excluded_by"}
    assert set(data["searched"]["space"]) >= {"plans", "branches", "no_room", "not_searched"}
    assert data["request"] == {
        "batch": comparison.scenario.request.batch,
        "tokens": 1,
        "context": comparison.scenario.request.context,
        "most_tokens": None,
        "acceptance": None,
        "prompt": comparison.scenario.request.context,
    }
    assert len(data["rows"]) == len(comparison.rows) > 0
    for row in data["rows"]:
        assert set(row) == set(ROW_TYPES)
        for name, kinds in ROW_TYPES.items():
            assert isinstance(row[name], kinds), (name, row[name])
            assert not isinstance(row[name], float) or math.isfinite(row[name])
        assert Plan.parse(row["name"]) == plan_from_dict(row["plan"])
        assert sha256(row["name"].encode()).hexdigest().startswith(row["digest"])
        pools = [pool for pool in (row["plan"], row["plan"]["ffn"]) if pool is not None]
        assert row["stages"] == sum(pool["stages"] for pool in pools)
        assert row["chips"] == sum(pool["stages"] * pool["group_chips"] for pool in pools)
        assert row["fits"] is (row["reason"] is None)
        low, high = row["decode_latency_lower_s"], row["decode_latency_upper_s"]
        assert 0 < low <= row["decode_latency_s"] <= high
        shortest, longest = row["decode_latency_range_s"]
        assert 0 < shortest < row["decode_latency_s"] < longest
    assert all(constant["source"] for constant in data["assumed"])
    assert {"jax", "numpy", "python", "lpu_jax"} <= set(data["versions"])


@pytest.mark.slow
def test_memory_parts_are_the_used_fraction() -> None:
    for row in (*_small().rows, *_too_large().rows):
        parts = dict(row.memory_bytes)
        sram = parts.pop("sram")
        assert sum(parts.values()) / sram == pytest.approx(row.sram_used_fraction, rel=1e-12)
        beyond = sum(parts.values()) - sram
        # What fits is cut for speed; cut by bytes alone, its fullest stage would hold less.
        assert row.short_bytes <= beyond + 1
        assert row.fits == (row.short_bytes <= 0) == (beyond <= 0)
        if not row.fits:
            assert row.short_bytes == pytest.approx(beyond, abs=1.0)


@pytest.mark.slow
def test_rows_are_ranked() -> None:
    per_user = [row.tokens_per_s_per_user for row in _small().rows]
    assert per_user == sorted(per_user, reverse=True)
    total = [row.tokens_per_s_total for row in _small("throughput").rows]
    assert total == sorted(total, reverse=True)
    assert max(total) >= max(row.tokens_per_s_total for row in _small().rows)


@pytest.mark.slow
def test_the_front_is_the_front() -> None:
    asked = _small().scenario
    found = evaluate(legal_plans(asked, shapes(asked)[::5], most=40), asked)
    front = rank(found, "pareto")
    user, total = found.tokens_per_s_per_user, found.tokens_per_s_total
    for i in front:
        beaten = (user >= user[i]) & (total >= total[i]) & ((user > user[i]) | (total > total[i]))
        assert not np.any(beaten & found.fits)
    for i in np.flatnonzero(found.fits):
        assert any(user[j] >= user[i] and total[j] >= total[i] for j in front)
    # Plans that differ in their stages alone are rows of their own.
    rows = _small("pareto").rows
    assert len(rows) > len({replace(row.plan, stages=1) for row in rows})
    # Some plan of the whole front equals or beats each of these.
    best = _small("pareto").evaluation
    for i in front:
        as_quick = best.tokens_per_s_per_user >= user[i]
        assert np.any(as_quick & (best.tokens_per_s_total >= total[i] * (1 - 1e-9)))


@pytest.mark.slow
def test_counts_of_given_plans_add_up() -> None:
    plans = legal_plans(_small().scenario, [(1, 1), (1, 8), (3, 8)], most=20)
    found = compare("smollm2-135m", "groq-24", SMALL, plans=plans)
    assert all(why.startswith("does not fit") for why in found.rejected)
    assert found.fitting + sum(found.rejected.values()) == found.legal == len(plans)
    assert 0 < found.fitting < found.legal
    assert found.searched is None
    assert f"{len(plans)} plans were given, {found.fitting} fit." in found.table()
    alone = compare("smollm2-135m", "groq-24", SMALL, plans=[found.rows[0].plan])
    assert "1 plan was given; it fits." in alone.table()


@pytest.mark.parametrize("found", [_small, _too_large])
def test_counts_of_a_search_add_up(found: Any) -> None:
    comparison = found()
    asked, searched = comparison.scenario, comparison.searched
    assert searched.counts.branches == len(shapes(asked))
    assert searched.counts.no_room + searched.counts.beyond <= searched.counts.branches
    assert comparison.rejected == searched.refused
    assert comparison.fitting == (0 if comparison.nearest else comparison.legal)


def test_the_nearest_lacks_least() -> None:
    comparison = _too_large()
    assert comparison.fitting == 0
    assert comparison.nearest == comparison.rows[0]
    asked = comparison.scenario
    found = evaluate(legal_plans(asked, shapes(asked)[::4], most=20), asked)
    assert comparison.rows[0].short_bytes <= found.short_bytes.min()
    shortfalls = [row.short_bytes for row in comparison.rows]
    assert shortfalls == sorted(shortfalls)
    assert all("exceed a chip's SRAM" in (row.reason or "") for row in comparison.rows)


@pytest.mark.slow
def test_no_searched_plan_has_stages_without_blocks() -> None:
    cfg, policy = model("smollm2-135m"), POLICIES["fp16"]
    for row in _small("throughput").rows:
        alone = evaluate([row.plan], Scenario(cfg, system("groq-24"), SMALL, policy=policy))
        assert alone.cuts.stage_of_block[-1, 0] + 1 == row.plan.stages
        assert alone.latency_s[0] == row.decode_latency_s


def test_the_table_is_whole() -> None:
    for comparison in (_small(), _too_large()):
        text = comparison.table()
        assert "…" not in text
        assert all(row.plan.name in text for row in comparison.rows)
        assert comparison.searched is not None
        assert f"Searched: {comparison.searched.plans:.4g} plans" in text
        assert f"{len(comparison.assumed)} of the " in text
        assert "numbers and rules of groq-" in text
    nearest = _too_large().nearest
    assert nearest is not None
    assert "No plan fits." in text
    assert f"Memory map of {nearest.plan.name}\n" in text
    assert "short of" in text


PLAN = Plan(
    stages=2,
    group_chips=8,
    attention=AttentionShard(tensor=3),
    mlp=MlpShard(tensor=8),
)


def test_given_plans_are_checked_and_kept() -> None:
    with pytest.raises(PlanError, match="attention: tensor 3 x data 1 x replica 1 = 3 chips"):
        compare("smollm2-135m", "groq-24", SMALL, plans=[PLAN])
    with pytest.raises(PlanError, match="no plan was given"):
        compare("smollm2-135m", "groq-24", SMALL, plans=[])
    good = replace(PLAN, attention=AttentionShard(data=4, replica=2))
    found = compare("smollm2-135m", "groq-24", SMALL, plans=[good, replace(good, stages=3)])
    assert {row.plan for row in found.rows} <= {good, replace(good, stages=3)}
    assert found.legal == 2


def test_bad_requests() -> None:
    with pytest.raises(UnknownNameError, match="unknown precision policy 'fp9'; nearest: fp8"):
        compare("smollm2-135m", "groq-24", policy="fp9")
    with pytest.raises(LpuError, match="context is 8193; smollm2-135m has 8192 positions"):
        compare("smollm2-135m", "groq-24", Request(context=8193))


@pytest.mark.slow
def test_a_trillion_parameters_and_64_sequences_stay_finite() -> None:
    found = compare("kimi-k2", "lpx-rack", Request(batch=64, context=16), policy="int4", top=3)
    for row in found.rows:
        numbers = [value for value in vars(row).values() if isinstance(value, float)]
        assert all(math.isfinite(number) for number in numbers)
        assert row.prefill_latency_s > row.decode_latency_s


def test_the_memory_map_says_what_is_missing_or_left() -> None:
    nearest, best = _too_large().nearest, _small().rows[0]
    assert nearest is not None
    for row, word, other in ((nearest, "short of", "spare"), (best, "spare", "short of")):
        text = render(memory_map(row))
        assert word in text
        assert other not in text


def test_a_format_that_stores_nothing_of_a_model_is_refused() -> None:
    with pytest.raises(LpuError, match=r"int4 is about expert weights, which llama-2-70b has none"):
        compare("llama-2-70b", "groq-576", policy="int4")


@pytest.mark.parametrize("top", [0, -3, True])
def test_rows_are_a_whole_number(top: object) -> None:
    with pytest.raises(LpuError, match="top is"):
        compare("smollm2-135m", "groq-8", top=top)


@pytest.mark.parametrize("batch", [1 << 30, True])
def test_a_request_is_of_whole_numbers_in_range(batch: object) -> None:
    with pytest.raises(LpuError, match="batch is"):
        compare("smollm2-135m", "groq-8", Request(batch=batch, context=4096))
