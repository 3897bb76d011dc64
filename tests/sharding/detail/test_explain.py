"""An explanation adds up: its parts are the totals of `evaluate`, its shares all of the time."""

import json
import re
from dataclasses import replace

import pytest

from lpu_jax.errors import LpuError, PlanError
from lpu_jax.machine.catalogue import system
from lpu_jax.quantities import format_seconds
from models.blocks import block_chain
from models.policy import policy_named
from models.zoo import model
from sharding.detail.explain import explain
from sharding.detail.explanation import Explanation
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.evaluate import evaluate
from sharding.predict.latency_range import latency_ranges_s
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
#: model, system, weights, plan, request
CASES = {
    "kimi": ("kimi-k2", "lpx-9", "int4", KIMI, Request(context=8192)),
    "kimi, two tokens of three users": (
        "kimi-k2", "lpx-9", "int4", replace(KIMI, stages=62),
        Request(batch=3, tokens=2, context=4096),
    ),
    "llama": ("llama-2-70b", "groq-576", "int8", LLAMA, Request(context=4096)),
    "gpus": (
        "llama-3.1-8b", "h100x8", "fp16",
        Plan(group_chips=8, attention=AttentionShard(tensor=8), mlp=MlpShard(tensor=8)),
        Request(context=4096),
    ),
    # ids of many positions go back: more than one vector of a Groq 1 link
    "drafts": (
        "smollm2-135m", "groq-node", "fp16",
        Plan(stages=4, group_chips=2, attention=AttentionShard(replica=2), mlp=MlpShard(tensor=2)),
        Request(batch=16, tokens=16, context=64, acceptance=0.5),
    ),
    "one chip": ("smollm2-135m", "groq-node", "fp16", SMALL, Request(context=64)),
}  # fmt: skip


def explained(case: str) -> Explanation:
    name, machine, weights, plan, request = CASES[case]
    cfg = model(name)
    return explain(cfg, system(machine), plan, request, policy=policy_named(weights, cfg))


@pytest.fixture(scope="module")
def kimi() -> Explanation:
    return explained("kimi")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_totals_are_those_of_evaluate(case: str) -> None:
    name, machine, weights, plan, request = CASES[case]
    cfg = model(name)
    found = evaluate(
        [plan], Scenario(cfg, system(machine), request, policy=policy_named(weights, cfg))
    )
    ours = explained(case)
    assert ours.latency_cycles == found.latency_cycles[0]
    assert (ours.lower_cycles, ours.upper_cycles) == (found.lower_cycles[0], found.upper_cycles[0])
    assert ours.hand_over_cycles == found.hand_over_cycles[0]
    assert ours.memory_bytes["weights"] == found.weight_bytes[0]
    assert ours.memory_bytes["activations"] == found.activation_bytes[0]
    # each part, added up again (another order of addition)
    blocks = sum(block.count * block.cycles for block in ours.blocks)
    steps = sum(step.cycles for step in ours.hand_overs)
    assert steps == pytest.approx(ours.hand_over_cycles, rel=1e-12)
    assert blocks + steps + ours.host_cycles == pytest.approx(ours.latency_cycles, rel=1e-12)
    wire = sum(
        block.count * sum(c.payload_bytes for c in block.collectives) for block in ours.blocks
    )
    wire += sum(step.payload_bytes for step in ours.hand_overs[:-1])
    if case != "gpus":  # a roofline has no collectives to list
        assert wire == pytest.approx(found.wire_bytes[0], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shares_are_all_of_the_time(case: str) -> None:
    ours = explained(case)
    for block in ours.blocks:
        # a block ends with a whole cycle
        assert sum(use.share_of_block for use in block.operations) == pytest.approx(
            1, abs=1 / block.cycles
        )
    shares = sum(use.share_of_token for block in ours.blocks for use in block.operations)
    rest = (ours.hand_over_cycles + ours.host_cycles) / ours.latency_cycles
    n_blocks = sum(block.count for block in ours.blocks)
    assert shares + rest == pytest.approx(1, abs=n_blocks / ours.latency_cycles)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_stages_hold_every_block_once_on_chips_of_their_own(case: str) -> None:
    name, _, _, plan, _ = CASES[case]
    ours = explained(case)
    held = [block for stage in ours.stages for block in stage.blocks]
    chain = block_chain(model(name))
    assert len(held) == len(chain)
    assert held[0] == "embedding"
    assert held[-1] == "head"
    assert held[1:3] == ["layer 0 attention", f"layer 0 {chain[2].kind}"]
    chips = [chip for s in ours.stages for chip in range(s.first_chip, s.last_chip + 1)]
    assert len(set(chips)) == len(chips) == plan.n_chips
    longest = max(stage.cycles for stage in ours.stages)
    assert longest <= ours.latency_cycles


@pytest.mark.slow
def test_collectives_say_how_and_over_what(kimi: Explanation) -> None:
    attention = next(block for block in kimi.blocks if block.kind == "attention")
    (reduce,) = attention.collectives
    assert (reduce.kind, reduce.axes, reduce.chips, reduce.stride) == (
        "all_reduce", ("tensor",), 16, 1,
    )  # fmt: skip
    assert attention.operations[reduce.operation].row.unit == "C2C"
    assert reduce.payload_bytes == 7168 * 2
    assert 0 < reduce.busiest_link_cycles <= reduce.cycles
    moe = next(block for block in kimi.blocks if block.kind == "moe")
    assert moe.collectives[-1].axes == ("expert", "tensor")
    assert moe.collectives[-1].chips == 32


def test_axes_cross_the_levels_that_they_reach(kimi: Explanation) -> None:
    attention = next(block for block in kimi.blocks if block.kind == "attention")
    axes = {axis.axis: axis for axis in attention.axes}
    assert (axes["tensor"].chips, axes["tensor"].stride, axes["tensor"].level) == (16, 1, "tray")
    assert (axes["replica"].chips, axes["replica"].stride) == (2, 16)
    # two trays of eight in a half rack; stages 3 and 4 lie in different halves
    assert axes["replica"].level == "half rack"
    assert axes["data"].level == "chip"
    assert [step.level for step in kimi.hand_overs[:5]] == [
        "half rack", "half rack", "half rack", "rack", "half rack",
    ]  # fmt: skip
    assert kimi.hand_overs[7].level == "racks"  # 256 chips of a rack are eight stages
    assert kimi.hand_overs[-1].level == "racks"  # from the last stage back to the first


def test_memory_of_live_values_and_their_addresses(kimi: Explanation) -> None:
    for block in kimi.blocks:
        assert block.live_bytes <= block.allocated_bytes <= 1.25 * block.live_bytes
        assert block.live_bytes <= kimi.memory_bytes["activations"]
        assert block.live_bytes % 320 == 0


def test_it_is_plain_data(kimi: Explanation) -> None:
    plain = json.loads(json.dumps(kimi.as_dict()))
    assert plain["latency_cycles"] == kimi.latency_cycles
    row = plain["blocks"][1]["operations"][6]
    assert row["name"] == "matmul (a)"
    assert {"unit", "start_cycle", "busy_cycles", "end_cycle", "bound_by", "status"} <= set(row)
    assert row["share_of_block"] > 0.1
    assert all(c["status"] == "assumed" for c in plain["assumed"])
    assert plain["plan"] == json.loads(json.dumps(KIMI.as_dict()))


@pytest.mark.slow
def test_it_says_how_far_its_time_rests_on_constants(kimi: Explanation) -> None:
    cfg = model("kimi-k2")
    asked = Scenario(cfg, system("lpx-9"), Request(context=8192), policy=policy_named("int4", cfg))
    shortest_s, longest_s = kimi.latency_range_s
    assert latency_ranges_s([KIMI], asked).tolist() == [[shortest_s, longest_s]]
    assert shortest_s < kimi.latency_s < longest_s
    text = f"{format_seconds(shortest_s)}..{format_seconds(longest_s)}"
    assert f"favourable or unfavourable ends {text}." in kimi.text().replace("\n", " ")


def test_the_text_shows_every_part(kimi: Explanation) -> None:
    text = kimi.text()
    for part in (
        "Stages of 61x32", "1..59", "layer 1 moe, layer 2 attention", "Mesh axes, outermost first",
        "matmul (gate_up)", "array load", "link latency", "all_reduce", "hand-overs: ",
        "token ids back", "one step: ", "rest on assumed constants", "mxm_latency_cycles",
    ):  # fmt: skip
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 200


def test_merged_rows_of_the_text_add_up(kimi: Explanation) -> None:
    _, _, table = kimi.text().partition("attention x61")
    table = table.split("dense x1")[0]
    shares = [float(s) for s in re.findall(r"([\d.]+)% +[\d.]+% ", table.partition("──\n")[2])]
    assert 10 < len(shares) < 30
    # each is rounded to a tenth of a percent
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares) + 0.1)
    ends = [float(end) for end in re.findall(r"([\d.]+) +[\d.]+% +[\d.]+% ", table)]
    attention = next(block for block in kimi.blocks if block.kind == "attention")
    assert max(ends) == pytest.approx(kimi.microseconds(attention.cycles), abs=2e-3)


def test_a_plan_of_one_chip_has_no_links() -> None:
    ours = explained("one chip")
    assert all(not block.collectives for block in ours.blocks)
    assert "hand-overs: none" in ours.text()


def test_gpus_are_called_a_roofline() -> None:
    ours = explained("gpus")
    assert all(not block.collectives for block in ours.blocks)
    assert {axis.level for block in ours.blocks for axis in block.axes if axis.chips > 1} == {
        "NVLink"
    }
    assert "GPU roofline" in ours.text()


@pytest.mark.slow
def test_slots_that_overflow_are_in_the_parts_too() -> None:
    """Fewer slots than the 8 of one token: the parts still add up to the total."""
    name, machine, weights, plan, request = CASES["kimi"]
    assert plan.moe is not None
    asked = replace(plan, moe=replace(plan.moe, slots=6))
    cfg = model(name)
    ours = explain(cfg, system(machine), asked, request, policy=policy_named(weights, cfg))
    parts = sum(block.count * block.cycles for block in ours.blocks) + ours.hand_over_cycles
    assert parts + ours.host_cycles == pytest.approx(ours.latency_cycles, rel=1e-12)
    assert ours.latency_cycles != explained("kimi").latency_cycles


@pytest.mark.slow
def test_assumed_constants_are_those_that_this_plan_reads() -> None:
    """By hand: a chip alone uses no link; the reserve decides what fits, never a time."""
    cases = ("one chip", "drafts", "gpus")
    times = {case: {c.name for c in explained(case).assumed} for case in cases}
    for case in cases:
        found = explained(case)
        assert "reserved_fraction" not in times[case]
        assert [c.name for c in found.assumed_fit] == ["reserved_fraction"]
        assert "prefill_chunk_tokens" not in times[case]
        assert "host_overhead_s" in times[case]
        assert "Whether the plan fits rests on assumed constants: reserved_fraction." in " ".join(
            found.text().split()
        )
    assert {"transit_cycles", "mxm_latency_cycles"} <= times["one chip"]
    assert {"link_efficiency", "collective_latency_s", "memory_efficiency"} <= times["gpus"]
    alone = replace(CASES["gpus"][3], group_chips=1, attention=AttentionShard(), mlp=MlpShard())
    cfg, machine = model("llama-3.1-8b"), system("h100x8")
    one = explain(cfg, machine, alone, Request(context=4096), policy=policy_named("fp16", cfg))
    assert times["gpus"] - {c.name for c in one.assumed} == {
        "link_efficiency", "collective_latency_s",
    }  # fmt: skip


def test_a_merged_row_has_the_weakest_status_of_its_operations() -> None:
    ours = explained("one chip")
    block = ours.blocks[0]
    use = replace(block.operations[0], share_of_block=0.001)
    few = tuple(
        replace(use, row=replace(use.row, status=status))
        for status in ("published", "assumed", "derived")
    )
    text = replace(ours, blocks=(replace(block, operations=few),)).text()
    (row,) = (line for line in text.splitlines() if "3 operations" in line)
    assert row.split()[-1] == "assumed"


def test_impossible_plans_and_requests_are_one_sentence() -> None:
    cfg, machine = model("kimi-k2"), system("lpx-9")
    policy = policy_named("int4", cfg)
    with pytest.raises(PlanError, match="= 3200 chips were asked for; lpx-9 has 2304"):
        explain(cfg, machine, replace(KIMI, stages=100), Request(), policy=policy)
    with pytest.raises(LpuError, match="context is 0"):
        explain(cfg, machine, KIMI, Request(context=0), policy=policy)
