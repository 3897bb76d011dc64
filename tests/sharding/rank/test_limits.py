"""Limits of a comparison: what keeps to them, and which one is named where nothing does."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from jaxtyping import config

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from models.zoo import model
from sharding.rank.compare import Comparison, Objective, compare
from sharding.request import Request, decode_request

#: Few plans, and few chunks of a prompt.
SMALL = replace(model("smollm2-135m"), n_layers=2)
FOUR = system("groq-4")
FOUR = replace(FOUR, chip=replace(FOUR.chip, prefill_chunk_tokens=2))


@cache
def _compared(objective: Objective = "latency", **limits: float) -> Comparison:
    return compare(SMALL, FOUR, Request(context=64), objective=objective, top=3, **limits)


def _best() -> tuple[float, float]:
    """The fastest rate of one user, and the earliest first token among the rows."""
    rows = _compared().rows
    return rows[0].tokens_per_s_per_user, min(row.time_to_first_token_s for row in rows)


@pytest.mark.slow
def test_rows_keep_to_limits_that_some_plan_keeps() -> None:
    rate, first_s = _best()
    for limits in ({"min_rate": 0.9 * rate}, {"max_first_token_s": first_s}):
        found = _compared(**limits)
        assert found.excluded is None
        assert found.rows
        for row in found.rows:
            assert row.tokens_per_s_per_user >= limits.get("min_rate", 0)
            assert row.time_to_first_token_s <= limits.get("max_first_token_s", 1)


@pytest.mark.slow
def test_a_rate_that_none_has_is_named_with_the_nearest() -> None:
    rate, _ = _best()
    found = _compared(min_rate=2 * rate)
    fastest = _compared().rows[0].plan.name
    assert found.rows == ()
    assert found.excluded == (
        f"no plan gives {2 * rate:g} tokens/s to one user: the fastest that fits, {fastest}, gives "
        f"{rate:.0f}, 50.0% less."
    )
    assert f"No row: {found.excluded}" in re.sub(r"\s+", " ", found.table())
    data = found.as_dict()
    assert data["searched"]["excluded_by"] == found.excluded
    assert data["limits"] == {"min_rate": 2 * rate, "max_first_token_s": None}
    assert data["invariant"] == "off"


@pytest.mark.slow
def test_a_first_token_that_is_too_early_is_named() -> None:
    found = _compared(max_first_token_s=1e-7)
    assert found.rows == ()
    assert found.excluded is not None
    assert found.excluded.startswith("no plan has its first token in 100 ns: the earliest that fit")
    assert "Only plans with the first token in 100 ns." in found.table()


def test_a_promise_that_no_plan_can_give_is_refused() -> None:
    with pytest.raises(LpuError, match=r"invariant wide leaves no plan: moe: .* format nvfp4 has"):
        compare("kimi-k2", "lpx-9", policy="nvfp4", invariant="wide")


@pytest.mark.long
def test_of_two_limits_the_one_that_binds_is_named() -> None:
    (fast, *_), (early, *_) = _compared().rows, _compared("first-token").rows
    rate, first_s = 0.999 * fast.tokens_per_s_per_user, 1.001 * early.time_to_first_token_s
    assert early.tokens_per_s_per_user < rate
    assert fast.time_to_first_token_s > first_s
    # Each alone is kept.
    for limits in ({"min_rate": rate}, {"max_first_token_s": first_s}):
        assert _compared(**limits).rows
    cases = {
        (2 * rate, first_s): f"no plan gives {2 * rate:g} tokens/s to one user: the fastest that",
        (rate, 1e-7): "no plan has its first token in 100 ns: the earliest that fits",
        (rate, first_s): f"no plan found of {rate:g} tokens/s to one user has its first token in",
    }
    for (min_rate, most_s), begins in cases.items():
        found = _compared(min_rate=min_rate, max_first_token_s=most_s)
        assert found.rows == ()
        assert found.excluded is not None
        assert found.excluded.startswith(begins)


@pytest.mark.slow
def test_the_earliest_of_a_rate_is_found() -> None:
    """The plans that are earliest of all are too slow for one user."""
    rate = 0.999 * _compared().rows[0].tokens_per_s_per_user
    found = _compared("first-token", min_rate=rate)
    assert found.rows
    assert all(row.tokens_per_s_per_user >= rate for row in found.rows)


@pytest.mark.long
def test_limits_count_drafts() -> None:
    """What the objective likes best is too slow; another number of chips for the drafts is not."""

    def found(objective: Objective, **limits: float) -> Comparison:
        asked = decode_request(batch=32, context=64, draft_tokens=2, acceptance=0.5)
        return compare(
            SMALL, FOUR, asked, draft_model=SMALL, objective=objective, top=1, **limits
        )  # fmt: skip

    rate = 0.999 * found("latency").rows[0].tokens_per_s_per_user
    first_s = found("first-token").rows[0].time_to_first_token_s
    few = found("chips").rows[0]
    assert few.tokens_per_s_per_user < rate
    assert few.time_to_first_token_s > first_s
    for row in found("chips", min_rate=rate).rows + found("throughput", min_rate=rate).rows:
        assert row.tokens_per_s_per_user >= rate
    (early,) = found("chips", max_first_token_s=first_s).rows
    assert early.time_to_first_token_s == first_s
    none = found("chips", min_rate=2 * rate)
    assert none.rows == ()
    assert none.excluded is not None
    assert f"gives {rate / 0.999:.0f}, " in none.excluded


@pytest.mark.parametrize("limit", ["min_rate", "max_first_token_s"])
@pytest.mark.parametrize("given", [0, -1.0, float("nan"), float("inf"), True])
def test_limits_are_positive_numbers(
    limit: str, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such hook
    with pytest.raises(LpuError, match=f"{limit} is .*; it must be a number above 0"):
        _compared(**{limit: given})
