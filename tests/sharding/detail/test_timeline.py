"""One token as a trace: valid events, one thing at a time on each track, ends at the latency."""

import json
from collections import defaultdict
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from lpu_jax.machine.catalogue import system
from models.blocks import block_chain
from models.policy import policy_named
from models.zoo import model
from sharding.detail.explain import collectives
from sharding.detail.scheduled import ScheduledPlan, schedule_plan
from sharding.detail.timeline import BLOCKS, LIVE, links_of_stage, plan_trace
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.request import Request
from sharding.scenario import Scenario

KIMI = Plan(
    stages=61,
    group_chips=32,
    attention=AttentionShard(tensor=16, replica=2),
    mlp=MlpShard(tensor=32),
    moe=MoeShard(expert=2, tensor=16),
)
LLAMA = Plan(stages=9, group_chips=64, attention=AttentionShard(tensor=64), mlp=MlpShard(tensor=64))
SMALL = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())


def scheduled(name: str, machine: str, weights: str, plan: Plan, context: int) -> ScheduledPlan:
    cfg = model(name)
    policy = policy_named(weights, cfg)
    return schedule_plan(
        plan, Scenario(cfg, system(machine), Request(context=context), policy=policy)
    )


CASES = {
    "kimi": ("kimi-k2", "lpx-9", "int4", KIMI, 8192),
    "llama": ("llama-2-70b", "groq-576", "int8", LLAMA, 4096),
    "one chip": ("smollm2-135m", "groq-node", "fp16", SMALL, 64),
}


Traced = tuple[ScheduledPlan, str, list[dict[str, Any]]]


@cache
def trace_of(case: str) -> Traced:
    plan = scheduled(*CASES[case])
    text = plan_trace(plan).to_json()
    return plan, text, json.loads(text)["traceEvents"]


@pytest.fixture(
    params=[
        pytest.param("kimi", marks=pytest.mark.slow),
        pytest.param("llama", marks=pytest.mark.slow),
        "one chip",
    ]
)
def traced(request: pytest.FixtureRequest) -> Traced:
    return trace_of(request.param)


def tracks(events: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    return {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }


def nanoseconds(microseconds: float) -> int:
    return round(1000 * microseconds)


@pytest.mark.slow
def test_every_event_is_one_of_the_format(traced: Traced) -> None:
    _, _, events = traced
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    named = tracks(events)
    for event in events:
        assert event["ph"] in ("X", "C", "M")
        assert event["pid"] in processes
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in named
            assert event["name"]
        if event["ph"] == "C":
            assert event["args"]["value"] >= 0


def test_no_track_does_two_things_at_once(traced: Traced) -> None:
    _, _, events = traced
    on_track = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            on_track[event["pid"], event["tid"]].append(event)
    for slices in on_track.values():
        slices.sort(key=lambda event: event["ts"])
        for one, other in pairwise(slices):
            end = nanoseconds(one["ts"]) + nanoseconds(one["dur"])
            assert end <= nanoseconds(other["ts"])


def test_the_last_end_is_the_latency_of_a_token(traced: Traced) -> None:
    plan, _, events = traced
    ends = [nanoseconds(e["ts"]) + nanoseconds(e["dur"]) for e in events if e["ph"] == "X"]
    latency_ns = plan.latency_cycles / plan.evaluation.clock_hz * 1e9
    assert max(ends) == pytest.approx(latency_ns, abs=1)  # rounded to nanoseconds


def test_every_block_is_shown_once_and_nothing_lies_between(traced: Traced) -> None:
    plan, _, events = traced
    names = tracks(events)
    blocks = sorted(
        (e for e in events if e["ph"] == "X" and names[e["pid"], e["tid"]] == BLOCKS),
        key=lambda event: event["ts"],
    )
    n_hand_overs = len(plan.hand_overs)
    assert len(blocks) == len(block_chain(plan.scenario.model)) + n_hand_overs
    assert len({event["name"] for event in blocks}) == len(blocks)
    for one, other in pairwise(blocks):
        gap = nanoseconds(other["ts"]) - nanoseconds(one["ts"]) - nanoseconds(one["dur"])
        assert 0 <= gap <= 1


def test_live_values_come_and_go(traced: Traced) -> None:
    plan, _, events = traced
    counted = [e["args"]["value"] for e in events if e["ph"] == "C" and e["name"] == f"SRAM {LIVE}"]
    assert counted[0] == counted[-1] == 0
    peak = max(float(kind.block.report().held.activations) for kind in plan.kinds.values())
    assert 0 < max(counted) <= peak


@pytest.mark.slow
def test_stages_are_processes_and_links_have_names() -> None:
    plan, _, events = trace_of("kimi")
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes[3] == "stage 3: layer 3 moe, layer 4 attention"
    assert len(processes) == 61
    links = [name for (pid, _), name in tracks(events).items() if pid == 4 and ">" in name]
    first = plan.stages[3].first_chip
    assert f"out {first}>{first + 1}#0" in links
    assert f"in {first + 15}>{first}#0" in links
    for name in links:
        way, _, link = name.partition(" ")
        src, dst = (int(chip) for chip in link.split("#")[0].split(">"))
        assert (src if way == "out" else dst) == first
        assert plan.scenario.system.topology.links_between(src, dst)


@pytest.mark.slow
def test_transfers_of_a_collective_lie_inside_it() -> None:
    plan, _, events = trace_of("llama")
    names = tracks(events)
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == 2]
    priced = [e for e in slices if names[2, e["tid"]] == "C2C"]
    moved = [e for e in slices if names[2, e["tid"]].startswith(("in ", "out "))]
    reduced = [e for e in moved if e["name"].startswith("all_reduce")]
    # all of them: each block of the stage has one, each of several steps over several links
    assert len(reduced) > 2 * len(plan.stages[1].blocks)
    for each in reduced:
        around = [p for p in priced if p["ts"] <= each["ts"] and each["ts"] <= p["ts"] + p["dur"]]
        assert around
        assert each["ts"] + each["dur"] <= around[0]["ts"] + around[0]["dur"] + 1e-3


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes() -> None:
    assert plan_trace(scheduled(*CASES["llama"])).to_json() == trace_of("llama")[1]


@pytest.mark.slow
def test_a_trillion_parameters_are_a_reasonable_file() -> None:
    assert 1e6 < len(trace_of("kimi")[1]) < 60e6


@pytest.mark.slow
def test_a_trace_says_what_it_shows_and_what_it_rests_on() -> None:
    about = json.loads(trace_of("kimi")[1])["otherData"]
    assert (about["model"], about["system"], about["plan"]) == ("kimi-k2", "lpx-9", KIMI.name)
    assert "transit_cycles" in about["assumed"]
    assert "roofline" not in about["time"]


def test_a_roofline_is_called_one_and_its_memory_by_its_name() -> None:
    gpus = Plan(group_chips=8, attention=AttentionShard(replica=8), mlp=MlpShard(tensor=8))
    text = plan_trace(scheduled("smollm2-135m", "h100x8", "fp16", gpus, 64)).to_json()
    made = json.loads(text)
    assert "GPU roofline" in made["otherData"]["time"]
    counters = {event["name"] for event in made["traceEvents"] if event["ph"] == "C"}
    assert {name.split()[0] for name in counters} == {"HBM"}


WIDE = Plan(
    stages=4,
    group_chips=144,
    attention=AttentionShard(tensor=8, replica=18),
    mlp=MlpShard(tensor=144),
)


@pytest.mark.parametrize(
    "case",
    [*CASES.values(), ("llama-2-70b", "groq-576", "int8", WIDE, 4096)],
    ids=[*CASES, "over racks"],
)
def test_links_take_what_collectives_are_priced_at(
    case: tuple[str, str, str, Plan, int],
) -> None:
    plan = scheduled(*case)
    for kind in plan.kinds.values():
        stage = next(s for s in plan.stages if any(b.kind == kind.kind for b in s.blocks))
        for use in collectives(plan, kind):
            links = links_of_stage(kind, stage, use)
            # A payload that does not divide evenly costs a frame a step more on some link.
            frames = len(links.step_names) * links.frame_bytes / 12.5e9 * 1.5e9
            assert links.cycles <= use.cycles + frames, (kind.kind, use)
            if use.exact:
                assert links.cycles == pytest.approx(use.cycles, abs=frames)
