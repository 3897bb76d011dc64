"""Serving figures: drafts against enumeration, pipelines against a simulation, chunks by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from legal_plans import legal_plans
from pipelines import cycles_per_batch, makespan

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.predict import serving
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.serving import Prefill, chunk_lengths, prefill
from sharding.rank.compare import Comparison, compare
from sharding.rank.comparison import Objective
from sharding.rank.sensitivity import sensitivity
from sharding.request import Request, decode_request, expected_tokens
from sharding.scenario import Scenario
from sharding.search.find import find_plans

SMOLLM, FP16 = model("smollm2-135m"), POLICIES["fp16"]
GROQ = system("groq-24")
PLAN = Plan(stages=4, group_chips=4, attention=AttentionShard(replica=4), mlp=MlpShard(tensor=4))
CONTEXT = 512


@cache
def _evaluated(request: Request, machine: System = GROQ) -> Evaluation:
    return evaluate([PLAN], Scenario(SMOLLM, machine, request, policy=FP16))


def _request(**given: Any) -> Request:
    return decode_request(**{"context": CONTEXT} | given)


# --- drafts -------------------------------------------------------------------------------------


def _enumerated(draft_tokens: int, acceptance: Fraction) -> Fraction:
    """Every way the drafts can be judged, with its probability and the tokens it keeps."""
    total = Fraction(0)
    for accepted in product((True, False), repeat=draft_tokens):
        probability = Fraction(1)
        for one in accepted:
            probability *= acceptance if one else 1 - acceptance
        first_refused = accepted.index(False) if False in accepted else draft_tokens
        total += probability * (first_refused + 1)
    return total


@pytest.mark.parametrize("draft_tokens", [0, 1, 2, 5, 8])
@pytest.mark.parametrize(
    "acceptance", [Fraction(0), Fraction(1, 3), Fraction(7, 10), Fraction(999, 1000), Fraction(1)]
)
def test_expected_tokens_are_the_mean_of_all_outcomes(
    draft_tokens: int, acceptance: Fraction
) -> None:
    exact = float(_enumerated(draft_tokens, acceptance))
    # a few roundings of float64
    assert expected_tokens(draft_tokens, float(acceptance)) == pytest.approx(exact, rel=1e-12)


def test_expected_tokens_are_what_a_simulation_keeps() -> None:
    draft_tokens, acceptance, steps = 4, 0.8, 100_000
    accepted = np.random.default_rng(0).random((steps, draft_tokens)) < acceptance
    kept = 1 + np.cumprod(accepted, axis=1).sum(axis=1)
    # five standard errors
    margin = 5 * kept.std() / math.sqrt(steps)
    assert expected_tokens(draft_tokens, acceptance) == pytest.approx(kept.mean(), abs=margin)


@given(st.integers(0, 64), st.floats(0, 1), st.floats(0, 1))
def test_more_accepted_drafts_keep_more_tokens(draft_tokens: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    at_low, at_high = expected_tokens(draft_tokens, low), expected_tokens(draft_tokens, high)
    assert 1 <= at_low <= at_high <= draft_tokens + 1
    # The sum, term by term.
    terms = math.fsum(high**i for i in range(draft_tokens + 1))
    assert at_high == pytest.approx(terms, rel=1e-12)


def test_the_time_of_a_step_is_that_of_its_tokens_and_the_rates_are_of_those_kept() -> None:
    plain = _evaluated(Request(tokens=5, context=CONTEXT))
    for acceptance in (0.0, 0.6, 1.0):
        found = _evaluated(_request(draft_tokens=4, acceptance=acceptance))
        kept = sum(acceptance**i for i in range(5))
        # Blocks are those of five tokens; only the head has more rows, so it is slower.
        for kind in ("embed", "attention", "dense"):
            same = found.blocks[kind].timing.cycles == plain.blocks[kind].timing.cycles
            assert np.all(same), kind
        assert found.latency_cycles[0] > plain.latency_cycles[0]
        assert found.tokens_per_s_per_user[0] == pytest.approx(kept / found.latency_s[0])
        batch_s = max(found.slowest_stage_cycles[0], found.latency_cycles[0] / found.in_flight[0])
        assert found.tokens_per_s_total[0] == pytest.approx(kept * found.clock_hz / batch_s)


def test_the_head_judges_every_draft() -> None:
    drafts = _evaluated(_request(batch=2, draft_tokens=3, acceptance=0.5)).blocks["head"]
    as_sequences = _evaluated(_request(batch=8)).blocks["head"]
    chunk = _evaluated(Request(batch=2, tokens=4, context=CONTEXT)).blocks["head"]
    assert drafts.timing.cycles == as_sequences.timing.cycles
    assert drafts.timing.cycles > chunk.timing.cycles


def test_no_draft_is_plain_decoding() -> None:
    plain, none = _evaluated(_request()), _evaluated(_request(draft_tokens=0, acceptance=0.3))
    assert none.latency_s == plain.latency_s
    assert none.tokens_per_s_total == plain.tokens_per_s_total


def _compared(*, top: int = 3, **given: Any) -> Comparison:
    return compare("smollm2-135m", "groq-24", _request(**given), top=top)


@pytest.mark.slow
def test_rows_are_ranked_by_the_rates_of_kept_tokens() -> None:
    found = _compared(draft_tokens=7, acceptance=0.9)
    rates = [row.tokens_per_s_per_user for row in found.rows]
    assert rates == sorted(rates, reverse=True)
    for row in found.rows:
        assert row.tokens_per_step == pytest.approx(sum(0.9**i for i in range(8)))
        assert row.tokens_per_s_per_user * row.decode_latency_s == pytest.approx(
            row.tokens_per_step
        )
    text = found.table()
    assert "7 drafts a step" in text
    assert "keep 5.695 tokens a step" in text
    assert "draft model's own time is not counted" in text
    assert found.as_dict()["request"]["acceptance"] == 0.9


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"draft_tokens": 2}, "draft tokens was given without acceptance"),
        ({"acceptance": 0.5}, "acceptance was given without draft tokens"),
        ({"draft_tokens": -1, "acceptance": 0.5}, "draft tokens is -1; it must be at least 0"),
        ({"draft_tokens": 512, "acceptance": 0.5}, "below the context of 512"),
        ({"draft_tokens": True, "acceptance": 0.5}, "draft tokens is True"),
        ({"draft_tokens": 2, "acceptance": -0.1}, "acceptance is -0.1; it must be a number from"),
        ({"draft_tokens": 2, "acceptance": 1.1}, "acceptance is 1.1"),
        ({"draft_tokens": 2, "acceptance": math.nan}, "acceptance is nan"),
    ],
)
def test_bad_drafts(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LpuError, match=sentence):
        _request(**given)


# --- prefill ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [1, 100, CONTEXT])
def test_prefill_takes_the_fastest_chunk_that_fits(prompt: int) -> None:
    slow_host = replace(GROQ, host_overhead_s=30e-6)
    request = _request(batch=4)
    fits = np.array([True])
    found = prefill([PLAN], fits, Scenario(SMOLLM, slow_host, request, policy=FP16), prompt)
    lengths = (1, 2, 4, 8, 16, 32, 64, 128)
    # Every chunk attends to the allocated context.
    steps = {n: _evaluated(replace(request, tokens=n)) for n in lengths}
    times = {}
    for chunk in lengths:
        last = prompt % chunk or chunk
        # Longer steps take longer here, so that the shortest that holds the last chunk is best.
        rest = steps[min(n for n in lengths if n >= last)]
        cycles = rest.latency_cycles[0]
        if prompt > chunk:
            before = (prompt - last) // chunk
            cycles = steps[chunk].latency_cycles[0] + rest.slowest_stage_cycles[0]
            cycles += (before - 1) * steps[chunk].slowest_stage_cycles[0]
        times[chunk] = float(cycles) / rest.clock_hz
    assert found.chunk_tokens[0] == min(times, key=lambda chunk: times[chunk])
    assert found.latency_s[0] == pytest.approx(min(times.values()), rel=1e-12)
    assert found.time_to_first_token_s[0] == pytest.approx(min(times.values()) + 30e-6, rel=1e-12)
    assert not found.is_memory_bound[0]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 1)), min_size=1, max_size=6),
    st.integers(1, 9),
)
def test_chunks_through_stages_take_what_a_simulation_takes(
    stages: list[tuple[int, float]], before: int
) -> None:
    """Equal chunks, then one that is shorter in every stage, as `prefill` adds them up."""
    whole = [cycles for cycles, _ in stages]
    last = [max(1, int(cycles * share)) for cycles, share in stages]
    counted = sum(whole) + (before - 1) * max(whole) + max(last)
    exact = makespan([whole] * before + [last])
    assert exact <= counted <= exact + max(last)
    assert makespan([whole] * (before + 1)) == sum(whole) + before * max(whole)


@pytest.mark.slow
def test_prefill_leaves_out_faster_chunks_that_do_not_fit() -> None:
    """SRAM between what chunks of 16 and of 32 tokens need; the larger ones would be faster."""
    request = _request(batch=4)
    steps = {n: _evaluated(replace(request, tokens=n)) for n in (16, 32)}
    needed = sum(float(step.least_bytes[0]) for step in steps.values()) / 2
    sram_bytes = math.ceil(needed / (1 - GROQ.chip.reserved_fraction))
    tight = replace(GROQ, chip=replace(GROQ.chip, sram_bytes=sram_bytes))

    def taken_in(machine: System, fits: bool) -> Prefill:
        scenario = Scenario(SMOLLM, machine, request, policy=FP16)
        return prefill([PLAN], np.array([fits]), scenario, CONTEXT)

    def chunk(machine: System, fits: bool) -> int:
        return int(taken_in(machine, fits).chunk_tokens[0])

    free = chunk(GROQ, fits=True)
    assert free >= 32
    assert chunk(tight, fits=True) == 16
    assert taken_in(tight, fits=True).is_memory_bound[0]
    short = replace(GROQ, chip=replace(GROQ.chip, prefill_chunk_tokens=8))
    assert chunk(short, fits=True) == 8
    assert chunk(tight, fits=False) == free  # one that fits no token at all is not held back


#: A dense model, one with rings of sliding layers and experts, and one on GPUs.
SERVED = [
    ("smollm2-135m", "groq-24", "fp16"),
    ("gpt-oss-20b", "lpx-rack", "mxfp4"),
    ("smollm2-135m", "h100x8", "fp16"),
]
#: Short chunks have all their edges within a few prompts.
MOST_CHUNK, MOST_PROMPT = 8, 320


@cache
def _served(case: tuple[str, str, str]) -> tuple[list[Plan], Scenario]:
    """Some plans that fit, and what they are asked."""
    machine = system(case[1])
    machine = replace(machine, chip=replace(machine.chip, prefill_chunk_tokens=MOST_CHUNK))
    request = Request(context=MOST_PROMPT)
    asked = Scenario(model(case[0]), machine, request, policy=POLICIES[case[2]])
    shapes = [(1, 8), (2, 4), (5, 1), (12, 2)]
    within = [(n, chips) for n, chips in shapes if n * chips <= machine.n_chips]
    best, _ = find_plans(asked, "throughput", 3)
    assert best is not None
    found = evaluate([*best, *legal_plans(asked, within, most=3)], asked)
    return [found.plans[i] for i in np.flatnonzero(found.fits)], asked


@cache
def _step(case: tuple[str, str, str], request: Request) -> Evaluation:
    plans, asked = _served(case)
    return evaluate(plans, replace(asked, request=request))


def _first_tokens_s(
    case: tuple[str, str, str], prompt: int, chunks: Sequence[int] | None = None
) -> np.ndarray:
    """First token of each plan; steps are evaluated once."""
    plans, asked = _served(case)
    with patch.object(serving, "evaluate", lambda _, scenario: _step(case, scenario.request)):
        found = prefill(plans, np.ones(len(plans), bool), asked, prompt, chunks)
    return found.time_to_first_token_s


@pytest.mark.slow
@pytest.mark.parametrize("case", SERVED, ids=lambda case: f"{case[0]}-{case[1]}")
@given(one=st.integers(1, MOST_PROMPT), off=st.integers(0, 2 * MOST_CHUNK))
def test_a_longer_prompt_never_has_an_earlier_first_token(
    case: tuple[str, str, str], one: int, off: int
) -> None:
    """Neither under any fixed plan nor under the best."""
    earlier, later = (
        _first_tokens_s(case, prompt) for prompt in (one, min(one + off, MOST_PROMPT))
    )
    # Sums of the same float64 terms in another number.
    assert np.all(earlier <= later * (1 + 1e-12))
    assert earlier.min() <= later.min() * (1 + 1e-12)


@given(
    st.integers(1, MOST_PROMPT),
    st.sets(st.integers(1, MOST_CHUNK), max_size=3),
    st.sets(st.integers(1, MOST_CHUNK), max_size=3),
)
def test_more_chunks_to_choose_from_are_never_worse(
    prompt: int, some: set[int], more: set[int]
) -> None:
    few, many = (
        _first_tokens_s(SERVED[0], prompt, sorted({1, *chunks})) for chunks in (some, some | more)
    )
    assert np.all(many <= few)


def test_chunks_do_not_depend_on_the_prompt() -> None:
    asked = Scenario(SMOLLM, GROQ, _request(), policy=FP16)
    assert chunk_lengths(asked) == (1, 2, 4, 8, 16, 32, 64, 128)
    short = replace(asked, request=Request(context=100))
    assert chunk_lengths(short) == (1, 2, 4, 8, 16, 32, 64, 100)


def test_a_prompt_of_one_token_is_a_step() -> None:
    asked = Scenario(SMOLLM, GROQ, _request(), policy=FP16)
    found = prefill([PLAN], np.array([True]), asked, 1)
    assert found.time_to_first_token_s[0] == _evaluated(_request()).latency_s[0]


@pytest.mark.long
def test_plans_are_ranked_by_the_first_token_when_asked() -> None:
    def compared(objective: Objective) -> Comparison:
        return compare("smollm2-135m", "groq-24", Request(context=4096), objective=objective, top=5)

    by_first, by_rate = compared("first-token"), compared("latency")
    times = [row.time_to_first_token_s for row in by_first.rows]
    assert times == sorted(times)
    # The best of each shape is not that of the other ranking: none there is earlier.
    assert times[0] <= min(row.time_to_first_token_s for row in by_rate.rows)
    assert times[0] < by_rate.rows[0].time_to_first_token_s
    assert "plans are ranked by it" in by_first.table()
    assert "plans are ranked by latency, not by it" in by_rate.table()
    with pytest.raises(LpuError, match="the objective is first-token; samples are ranked by"):
        sensitivity(by_first, 1)


@pytest.mark.parametrize("prompt", [0, -4, 513, True])
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(LpuError, match="prompt is"):
        compare("smollm2-135m", "groq-24", Request(context=CONTEXT), plans=[PLAN], prompt=prompt)


# --- in flight ----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 6))
def test_rates_are_those_of_a_simulated_pipeline(stages: list[int], in_flight: int) -> None:
    made = replace(
        _evaluated(_request(batch=3)),
        latency_cycles=np.array([float(sum(stages))]),
        slowest_stage_cycles=np.array([float(max(stages))]),
        in_flight=np.array([in_flight]),
    )
    cycles = cycles_per_batch(stages, in_flight)
    # Float64 against fractions.
    assert made.cycles_per_batch[0] == pytest.approx(float(cycles), rel=1e-12)
    assert made.tokens_per_s_total[0] == pytest.approx(3 * made.clock_hz / float(cycles))
    assert made.is_stage_bound[0] == (cycles == max(stages))


@pytest.mark.slow
def test_users_in_flight_are_micro_batches_of_sequences() -> None:
    for row in _compared(batch=3, top=4).rows:
        assert row.users_in_flight == 3 * row.in_flight * row.copies
        per_user, total = row.tokens_per_s_per_user, row.tokens_per_s_total
        assert total <= row.users_in_flight * per_user * (1 + 1e-12)
        is_full = total == pytest.approx(row.users_in_flight * per_user, rel=1e-12)
        bound = "users in flight" if is_full else "slowest stage"
        assert row.total_bound_by == bound or row.in_flight == 1


def test_a_plan_stops_fitting_at_the_reserve_that_is_reported() -> None:
    limit = float(_evaluated(_request()).largest_reserve_fraction[0])
    assert 0 < limit < 1
    for change, fits in ((-1e-6, True), (1e-6, False)):
        chip = replace(GROQ.chip, reserved_fraction=limit + change)
        found = _evaluated(_request(), replace(GROQ, chip=chip))
        assert found.fits[0] == fits


@pytest.mark.slow
def test_the_host_is_part_of_the_latency_and_no_stage() -> None:
    quick, slow = (
        _evaluated(_request()),
        _evaluated(_request(), replace(GROQ, host_overhead_s=5e-5)),
    )
    for name in ("latency_cycles", "lower_cycles", "upper_cycles"):
        added = getattr(slow, name) - getattr(quick, name)
        assert added == pytest.approx(5e-5 * quick.clock_hz, rel=1e-9)
    assert slow.slowest_stage_cycles == quick.slowest_stage_cycles
    (constant,) = (c for c in GROQ.constants() if c.name == "host_overhead_s")
    assert (constant.value, constant.low, constant.high) == (0.0, 0.0, 200e-6)
    (row,) = compare(
        "smollm2-135m",
        replace(GROQ, host_overhead_s=5e-5),
        Request(context=CONTEXT),
        plans=[PLAN],
        prompt=4,
    ).rows
    assert row.host_s == pytest.approx(5e-5)
    assert row.time_to_first_token_s == pytest.approx(row.prefill_latency_s + 5e-5)
