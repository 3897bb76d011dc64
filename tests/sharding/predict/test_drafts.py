"""A draft model beside a model: its time and memory by hand, its place, and who is refused."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from legal_plans import legal_plans
from pipelines import cycles_per_batch

from lpu_jax.errors import LpuError, PlanError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.predict.energy import energy
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.rank.compare import Comparison, compare
from sharding.rank.sensitivity import sensitivity
from sharding.request import Request, decode_request
from sharding.scenario import Scenario

SMOLLM, FP16 = model("smollm2-135m"), POLICIES["fp16"]
#: The same tokens from fewer layers.
SMALL = replace(SMOLLM, name="smollm2-small", n_layers=6)
NODE, GROQ = system("groq-node"), system("groq-24")
CONTEXT, DRAFTS, ACCEPTANCE = 512, 3, 0.7
KEPT = 1 + ACCEPTANCE + ACCEPTANCE**2 + ACCEPTANCE**3
REQUEST = decode_request(context=CONTEXT, draft_tokens=DRAFTS, acceptance=ACCEPTANCE)


def _plan(stages: int, chips: int) -> Plan:
    return Plan(
        stages=stages,
        group_chips=chips,
        attention=AttentionShard(replica=chips),
        mlp=MlpShard(tensor=chips),
    )


FOUR = _plan(1, 4)


def _pair(machine: System = NODE, plan: Plan = FOUR, **given: Any) -> Comparison:
    asked = {"draft_model": SMALL, "draft_plan": FOUR, "plans": [plan]} | given
    return compare(SMOLLM, machine, REQUEST, **asked)


def _alone(cfg: Any, plan: Plan, request: Request, machine: System = NODE) -> Evaluation:
    return evaluate([plan], Scenario(cfg, machine, request, policy=FP16))


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_is_its_drafts_one_after_another_and_the_step_that_judges_them() -> None:
    (row,) = _pair().rows
    draft = float(_alone(SMALL, FOUR, Request(context=CONTEXT)).latency_s[0])
    verification = float(_alone(SMOLLM, FOUR, REQUEST).latency_s[0])
    # A vector of ids there and one back, each over one hop of the node: 722 ns, within its 2 %.
    hops_s = 2 * 722e-9
    assert row.draft is not None
    assert row.draft.draft_latency_s == pytest.approx(draft, rel=1e-12)
    assert row.draft.drafting_s == pytest.approx(DRAFTS * draft, rel=1e-12)
    assert row.draft.verification_s == pytest.approx(verification, rel=1e-12)
    assert row.draft.hand_over_s == pytest.approx(hops_s, rel=0.02)
    step = DRAFTS * draft + row.draft.hand_over_s + verification
    assert row.decode_latency_s == pytest.approx(step, rel=1e-12)
    assert row.tokens_per_step == pytest.approx(KEPT)
    assert row.tokens_per_s_per_user == pytest.approx(KEPT / step)
    assert row.decode_latency_lower_s <= row.decode_latency_s <= row.decode_latency_upper_s


@pytest.mark.slow
def test_a_draft_model_serves_one_micro_batch_at_a_time_like_one_more_stage() -> None:
    """Short stages of the model and long drafts, and the other way round."""
    for stages, draft_layers in ((4, 30), (2, 1)):
        cfg = replace(SMALL, n_layers=draft_layers)
        found = _pair(GROQ, _plan(stages, 4), draft_model=cfg).evaluation
        assert found.drafting is not None
        plain = _alone(SMOLLM, _plan(stages, 4), REQUEST, GROQ)
        slowest = float(plain.slowest_stage_cycles[0])
        drafting = float(found.drafting.cycles[0])
        # What is left of the whole way, in pieces that nothing waits for.
        rest = (float(found.latency_cycles[0]) - drafting - slowest) / 16
        line = [round(drafting), round(slowest), *([round(rest)] * 16)]
        in_flight = int(found.in_flight[0])
        assert in_flight == stages + 1
        # Rounded cycles.
        exact = float(cycles_per_batch(line, in_flight))
        assert found.cycles_per_batch[0] == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
def test_energy_counts_the_chips_of_both() -> None:
    found = _pair().evaluation
    power_w = NODE.chip.power_max_w
    assert power_w is not None
    alone = energy(found).upper_alone_j_per_token
    assert alone is not None
    assert alone[0] == pytest.approx(8 * power_w * float(found.latency_s[0]) / KEPT)
    lower = energy(found).lower_j_per_token
    draft = energy(_alone(SMALL, FOUR, Request(context=CONTEXT))).lower_j_per_token
    verification = energy(_alone(SMOLLM, FOUR, REQUEST)).lower_j_per_token
    assert lower is not None
    assert draft is not None
    assert verification is not None
    assert lower[0] == pytest.approx(DRAFTS * draft[0] / KEPT + verification[0])


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_memory_is_that_of_the_same_plan_alone() -> None:
    (row,) = _pair().rows
    alone = compare(SMALL, NODE, Request(context=CONTEXT), plans=[FOUR]).rows[0]
    own = compare(SMOLLM, NODE, REQUEST, plans=[FOUR]).rows[0]
    assert row.draft is not None
    assert row.draft.memory_bytes == alone.memory_bytes
    assert row.draft.sram_used_fraction == alone.sram_used_fraction
    assert row.memory_bytes == own.memory_bytes
    limits = (alone.reserve_limit_fraction, own.reserve_limit_fraction)
    assert row.reserve_limit_fraction == min(limits)


@pytest.mark.slow
def test_a_plan_whose_draft_model_does_not_fit_does_not_fit() -> None:
    """269 MB of weights on one chip of 230 MB; the model itself has room."""
    found = _pair(draft_model=SMOLLM, draft_plan=_plan(1, 1))
    (row,) = found.rows
    assert not row.fits
    assert row.reason == "does not fit: the draft model exceeds the SRAM of the chips left for it"
    assert row.draft is not None
    assert row.draft.short_bytes == row.short_bytes > 0
    assert "Memory map of smollm2-135m, 1x1" in found.table()
    assert found.rejected == {row.reason: 1}


# --- its place ----------------------------------------------------------------------------------


@cache
def _searched() -> Comparison:
    return compare(SMOLLM, GROQ, REQUEST, draft_model=SMALL, top=1000)


@pytest.mark.slow
def test_both_lie_on_chips_of_their_own() -> None:
    n_nodes, node = 3, 8
    for plan, draft in _plans_side_by_side(_searched().evaluation):
        last = int(GROQ.topology.stage_bases(plan.stages, plan.group_chips)[-1]) + plan.group_chips
        own = int(GROQ.topology.stage_bases(draft.stages, draft.group_chips)[-1])
        own += draft.group_chips
        in_the_rest = last % node and last % node + own <= node
        after_it = -(-last // node) * node + own <= n_nodes * node
        assert in_the_rest or after_it, (plan.name, draft.name)


def _plans_side_by_side(found: Evaluation) -> list[tuple[Plan, Plan]]:
    assert found.drafting is not None
    return list(zip(found.plans, found.drafting.evaluation.plans, strict=True))


@pytest.mark.slow
def test_each_plan_gets_the_fastest_draft_plan_that_fits_beside_it() -> None:
    step = Scenario(SMALL, GROQ, Request(context=CONTEXT), policy=FP16)
    every = legal_plans(replace(step, system=replace(GROQ, n_chips=8)), most=200)
    tried = evaluate(every, step)
    found = _searched().evaluation
    assert found.drafting is not None
    beside = found.drafting.evaluation
    for i, (plan, draft) in enumerate(_plans_side_by_side(found)):
        # No plan of as many chips as the one chosen is faster.
        chips = np.array([each.n_chips for each in every])
        as_small = tried.fits & (chips <= draft.n_chips)
        assert beside.latency_cycles[i] <= tried.latency_cycles[as_small].min(), plan.name
    rates = [row.tokens_per_s_per_user for row in _searched().rows]
    assert rates == sorted(rates, reverse=True)


def test_a_plan_that_leaves_no_chips_is_refused() -> None:
    with pytest.raises(PlanError, match=r"plan 1x8 .* leaves too few of the 8 chips of groq-node"):
        _pair(plan=_plan(1, 8))
    with pytest.raises(PlanError, match="which needs at least 8 in one piece"):
        _pair(GROQ, _plan(5, 4), draft_plan=_plan(1, 8))


@pytest.mark.slow
def test_without_a_draft_model_nothing_changes() -> None:
    (row,) = compare(SMOLLM, NODE, REQUEST, plans=[FOUR]).rows
    (pair,) = _pair().rows
    assert row.draft is None
    assert pair.draft is not None
    assert row.decode_latency_s == pair.draft.verification_s
    assert row.time_to_first_token_s == pair.time_to_first_token_s


@pytest.mark.slow
def test_machines_are_drawn_for_both() -> None:
    found = sensitivity(_pair(), 1, 0)
    assert found.nominal_latency_s == _pair().rows[0].decode_latency_s


def test_gpus_draft_too() -> None:
    found = _pair(system("h100x8"))
    assert found.rows[0].draft is not None
    assert "beside the plan's" in found.table()


# --- reports ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reports_have_its_plan_time_and_memory() -> None:
    found = _pair()
    text = found.table()
    assert "Drafts of smollm2-small, weights fp16, on chips beside the plan's" in text
    assert "smollm2-small makes them one after another" in text
    assert "not counted" not in text
    data = json.loads(found.to_json())
    assert data["draft_model"] == "smollm2-small"
    draft = data["rows"][0]["draft"]
    assert draft["plan"] == data["rows"][0]["plan"]
    assert (draft["name"], draft["chips"], draft["drafts"]) == (FOUR.name, 4, DRAFTS)
    assert set(draft["memory_bytes"]) == set(data["rows"][0]["memory_bytes"])
    assert len(found.to_dataframe()["draft.draft_latency_s"]) == 1


# --- who is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"draft_model": "llama-3.1-8b", "draft_plan": None},
            "draft model llama-3.1-8b has a vocabulary of 128256 tokens, smollm2-135m one of "
            "49152; drafts must be tokens of the model.",
        ),
        ({"draft_model": None}, "a draft plan was given without a draft model; give both."),
        ({"draft_model": "smollm3"}, "smollm3"),
        (
            {"draft_model": replace(SMALL, max_position=256)},
            "context is 512; smollm2-small has 256 positions at most.",
        ),
    ],
)
def test_bad_draft_models(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LpuError, match=sentence):
        _pair(**given)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(context=64), "draft model smollm2-small was given without draft tokens"),
        (
            decode_request(context=64, draft_tokens=0, acceptance=0.5),
            "draft tokens is 0; draft model smollm2-small needs at least 1 to draft.",
        ),
    ],
)
def test_a_draft_model_needs_something_to_draft(request_: Request, sentence: str) -> None:
    with pytest.raises(LpuError, match=sentence):
        compare(SMOLLM, NODE, request_, draft_model=SMALL)


def test_states_keep_what_is_drafted_so_that_drafts_are_refused() -> None:
    sentence = "qwen3-next-80b-a3b has recurrent layers, whose states would keep drafts"
    with pytest.raises(LpuError, match=sentence):
        compare("qwen3-next-80b-a3b", "lpx-4", REQUEST)
    small = replace(model("qwen3-next-80b-a3b"), vocab_size=SMOLLM.vocab_size)
    with pytest.raises(LpuError, match=sentence):
        compare(SMOLLM, NODE, REQUEST, draft_model=small)


def test_one_chip_has_no_room_for_two_models() -> None:
    with pytest.raises(LpuError, match="has one chip"):
        compare(SMOLLM, replace(NODE, n_chips=1), REQUEST, draft_model=SMALL)
