"""Which plans exist: every refusal says why."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import pytest

from lpu_jax.errors import LpuError, PlanError
from lpu_jax.machine.catalogue import system
from models.config import GqaConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.legal import check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan, SlotRule
from sharding.request import Request, check_request
from sharding.scenario import Scenario, check_policy
from sharding.slots.sizes import Step, slot_plans

INT4 = POLICIES["int4"]
FP16 = POLICIES["fp16"]
KIMI, LPX = model("kimi-k2"), system("lpx-9")
LLAMA, RACKS = model("llama-2-70b"), system("groq-576")
ONE_TOKEN = Request(batch=1, context=64)

GOOD = Plan(
    stages=61,
    group_chips=32,
    attention=AttentionShard(tensor=16, replica=2),
    mlp=MlpShard(tensor=32),
    moe=MoeShard(expert=2, tensor=16),
)
GOOD_LLAMA = Plan(
    stages=24,
    group_chips=24,
    attention=AttentionShard(tensor=8, replica=3),
    mlp=MlpShard(tensor=24),
)


def test_a_good_plan_is_accepted() -> None:
    check_plan(GOOD, Scenario(KIMI, LPX, ONE_TOKEN, policy=INT4))
    check_plan(GOOD_LLAMA, Scenario(LLAMA, RACKS, ONE_TOKEN, policy=FP16))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stages": 125, "group_chips": 1}, "125 stages were asked for; kimi-k2 has 124 blocks"),
        ({"stages": 73}, "stages 73 x group 32 = 2336 chips were asked for; lpx-9 has 2304"),
        ({"moe": None}, "kimi-k2 has MoE blocks; the plan must have a part 'moe'"),
        (
            {"attention": AttentionShard(tensor=16)},
            "attention: tensor 16 x data 1 x replica 1 = 16 chips, but a group has 32; off by 16",
        ),
        ({"mlp": MlpShard(tensor=33)}, "mlp: tensor 33 x replica 1 = 33 .* has 32; off by 1"),
        (
            {"moe": MoeShard(expert=4, tensor=16)},
            "moe: expert 4 x tensor 16 x replica 1 = 64 chips, but a group has 32; off by 32",
        ),
        (
            {"attention": AttentionShard(tensor=16, data=2)},
            "attention: data 2 does not divide the batch of 1",
        ),
        (
            {"attention": AttentionShard(tensor=2, context=16)},
            "attention: context 16 is more ways than a context of 64 has runs of 320 positions, 1",
        ),
        (
            {"moe": MoeShard(expert=2, tensor=16, capacity=2)},
            "capacity 2 is more than the 1 rows of a step",
        ),
        (
            {
                "moe": MoeShard(
                    expert=2, tensor=16, split=Split.COLUMN, dispatch=Dispatch.ALL_TO_ALL
                )
            },
            "moe: dispatch all_to_all needs split row; a column split gathers the results",
        ),
    ],
)
def test_refusals(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence) as caught:
        check_plan(replace(GOOD, **change), Scenario(KIMI, LPX, ONE_TOKEN, policy=INT4))
    assert "\n" not in str(caught.value)


def _group_of(chips: int, **change: Any) -> Plan:
    plan = Plan(
        stages=1,
        group_chips=chips,
        attention=AttentionShard(replica=chips),
        mlp=MlpShard(replica=chips),
        moe=MoeShard(replica=chips),
    )
    return replace(plan, **change)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (
            _group_of(65, attention=AttentionShard(tensor=65)),
            "attention: tensor 65 is more ways than the 64 heads of kimi-k2",
        ),
        (
            _group_of(385, moe=MoeShard(expert=385)),
            "moe: expert 385 is more ways than the 384 experts of kimi-k2",
        ),
        # int4 codes share a scale between 32 rows of `down`: 2048 columns are 64 pieces
        (
            _group_of(65, moe=MoeShard(tensor=65)),
            "moe: tensor 65 is more ways than its 2048 columns in pieces of 32",
        ),
    ],
)
def test_more_ways_than_there_are_parts(plan: Plan, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        check_plan(plan, Scenario(KIMI, LPX, ONE_TOKEN, policy=INT4))


def test_dense_models() -> None:
    with pytest.raises(PlanError, match=r"llama-2-70b has no MoE blocks; .* must not have a part"):
        check_plan(
            replace(GOOD_LLAMA, moe=MoeShard(expert=24)),
            Scenario(LLAMA, RACKS, ONE_TOKEN, policy=FP16),
        )
    uneven = replace(GOOD_LLAMA, attention=AttentionShard(tensor=24))
    sentence = "tensor 24 is more ways than the 8 key/value heads .* divisor of the 8 query heads"
    with pytest.raises(PlanError, match=sentence):
        check_plan(uneven, Scenario(LLAMA, RACKS, ONE_TOKEN, policy=FP16))
    narrow = replace(LLAMA, d_ff=20)
    with pytest.raises(PlanError, match="mlp: tensor 24 is more ways than its 20 columns"):
        check_plan(GOOD_LLAMA, Scenario(narrow, RACKS, ONE_TOKEN, policy=FP16))
    with pytest.raises(PlanError, match="vocab: tensor 24 is more ways than its 20 columns"):
        check_plan(
            GOOD_LLAMA, Scenario(replace(LLAMA, vocab_size=20), RACKS, ONE_TOKEN, policy=FP16)
        )


@pytest.mark.parametrize("name", ["batch", "tokens", "context"])
def test_requests_below_one(name: str) -> None:
    with pytest.raises(LpuError, match=f"{name} is 0; it must be at least 1"):
        check_request(replace(ONE_TOKEN, **{name: 0}), LLAMA)


def test_context_beyond_the_positions() -> None:
    check_request(Request(context=4096), LLAMA)
    with pytest.raises(LpuError, match="context is 4097; llama-2-70b has 4096 positions at most"):
        check_request(Request(context=4097), LLAMA)


def test_formats_that_the_shapes_cannot_take() -> None:
    # fp8 shares a scale between 128 rows of `o`; SmolLM2's heads are 64 wide
    with pytest.raises(LpuError, match=r"fp8 shares a scale between 128 rows.* head width 64"):
        check_policy(POLICIES["fp8"], model("smollm2-135m"), LPX)


# --- heads and slots, dealt out one by one --------------------------------------------------------


def _heads_can_be_dealt(n_kv_heads: int, per_kv: int, ways: int) -> bool:
    """Deal heads to chips one by one, as the axis lays them out.

    Up to one key/value head a chip they are dealt as evenly as they go, with all their query heads.
    Beyond that every chip gets equally many query heads, in order, and all of one key/value head.
    """
    if ways <= n_kv_heads:
        return True
    queries = list(range(n_kv_heads * per_kv))
    if len(queries) % ways:
        return False
    share = len(queries) // ways
    dealt = [queries[i : i + share] for i in range(0, len(queries), share)]
    return all(len({query // per_kv for query in own}) == 1 for own in dealt)


@pytest.mark.parametrize(
    ("n_kv_heads", "per_kv"), list(product((1, 2, 3, 4, 6), (1, 2, 3, 4, 6, 8)))
)
def test_heads_are_split_just_where_they_can_be_dealt(n_kv_heads: int, per_kv: int) -> None:
    grouped = GqaConfig(n_heads=n_kv_heads * per_kv, n_kv_heads=n_kv_heads, head_dim=64)
    cfg = replace(model("smollm2-135m"), attention=grouped)
    for ways in range(1, n_kv_heads * per_kv + 4):
        plan = Plan(
            stages=1,
            group_chips=ways,
            attention=AttentionShard(tensor=ways),
            mlp=MlpShard(replica=ways),
        )
        if _heads_can_be_dealt(n_kv_heads, per_kv, ways):
            check_plan(plan, Scenario(cfg, RACKS, ONE_TOKEN, policy=FP16))
            continue
        sentence = f"tensor {ways} is more ways than the {n_kv_heads} key/value heads"
        with pytest.raises(PlanError, match=sentence):
            check_plan(plan, Scenario(cfg, RACKS, ONE_TOKEN, policy=FP16))


def _most_experts_on_a_chip(n_experts: int, top_k: int, ways: int, rows: int) -> int:
    """Try every choice of experts by every row; experts lie on chips in runs of equal length."""
    on_a_chip = -(-n_experts // ways)
    choices = list(combinations(range(n_experts), top_k))
    worst = 0
    for chosen in combinations_with_replacement(choices, rows):
        used = {expert for row in chosen for expert in row}
        worst = max(worst, *Counter(expert // on_a_chip for expert in used).values())
    return worst


@pytest.mark.parametrize(
    ("n_experts", "top_k", "ways", "batch", "tokens"),
    [
        (5, 2, 1, 1, 1),
        (5, 2, 2, 1, 1),  # 3 experts on the first chip: two rows can use them all, one cannot
        (5, 2, 2, 1, 2),
        (5, 2, 2, 2, 1),
        (6, 1, 2, 2, 1),
        (6, 1, 2, 1, 3),
        (6, 3, 3, 1, 1),
        (6, 1, 1, 2, 2),
        (4, 1, 4, 2, 1),
    ],
)
def test_the_slots_of_the_worst_case_are_those_that_some_routing_needs(
    n_experts: int, top_k: int, ways: int, batch: int, tokens: int
) -> None:
    assert KIMI.moe is not None
    small = replace(KIMI.moe, n_experts=n_experts, top_k=top_k, n_groups=1, topk_groups=1)
    cfg = replace(KIMI, moe=small)
    request = Request(batch=batch, tokens=tokens, context=64)
    worst = _most_experts_on_a_chip(n_experts, top_k, ways, batch * tokens)
    moe = MoeShard(expert=ways, slot_rule=SlotRule.WORST)
    sized = slot_plans(moe, Scenario(cfg, LPX, request, policy=FP16))[-1]
    assert sized.steps == (Step(slots=worst, sent=-(-batch * tokens // ways), probability=1.0),)
