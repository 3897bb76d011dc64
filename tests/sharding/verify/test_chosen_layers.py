"""The error that a plan makes: equal bits where it promises them, an honest figure elsewhere."""

import hashlib
import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import SIX_HEADS_KIMI

from lpu_jax.errors import PlanError
from lpu_jax.machine.catalogue import system
from models import zoo
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import POLICIES, policy_named
from models.reference import reference_block, with_experts
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.measures import sqnr_db
from sharding.verify.chosen_layers import (
    check,
    check_n_tokens,
    default_layers,
    rounding_moved,
)
from sharding.verify.routing import router_margin

NODE = system("groq-node")
FP16 = POLICIES["fp16"]
TOKENS = 3


def plan(attention, mlp, moe, split, n_chips=8):
    split = Split(split)
    return Plan(
        group_chips=n_chips,
        attention=AttentionShard(split=split, **attention),
        mlp=MlpShard(split=split, **mlp),
        moe=MoeShard(split=split, **moe),
    )


PLANS = (
    plan({"tensor": 4, "replica": 2}, {"tensor": 8}, {"expert": 8}, "column"),
    plan({"tensor": 3, "data": 2}, {"tensor": 6}, {"expert": 3, "tensor": 2}, "column", 6),
    plan({"tensor": 4, "replica": 2}, {"tensor": 8}, {"expert": 8}, "row"),
)


@pytest.fixture(scope="module")
def results():
    """The layer with experts alone: attention, then the mixture."""
    return check(SIX_HEADS_KIMI, NODE, PLANS, policy=FP16, layers=(1,), tokens=TOKENS, seed=1)


@pytest.mark.long
def test_column_plans_of_any_shape_give_the_same_bits(results):
    first, second, row = results
    assert first.output_hash == second.output_hash
    np.testing.assert_array_equal(first.output.view(np.uint16), second.output.view(np.uint16))
    assert row.output_hash != first.output_hash
    assert first.rounding_moved == second.rounding_moved == ()


@pytest.mark.slow
def test_a_row_plan_says_where_it_moved_rounding(results):
    attention, experts = results[2].rounding_moved
    assert attention == (
        "attention output: partial sums over 4 chips are rounded to fp16 and added in chip order "
        "(row split)"
    )
    assert experts.startswith("sum over experts and shared expert's output: partial sums over 8")


def test_longer_runs_than_a_node_are_added_in_tiers():
    wide = plan({"tensor": 1}, {"tensor": 100}, {"expert": 100}, "row", 100)
    (dense,) = rounding_moved(
        SIX_HEADS_KIMI, system("groq-576"), wide, ["dense", "dense"], n_tokens=1
    )
    assert "inside each run of 8 chips" in dense
    assert "across racks of 72" in dense
    assert rounding_moved(SIX_HEADS_KIMI, system("groq-576"), wide, ["attention"], n_tokens=1) == ()


@pytest.mark.parametrize(
    ("wire", "said"),
    [("bf16", "rounded to bf16 and added in chip"), ("exact", "rounded to fp32 and added exactly")],
)
def test_partial_sums_are_said_to_cross_in_the_format_of_the_wire(wire, said):
    wide = plan({"tensor": 1}, {"tensor": 4}, {"expert": 4}, "row", 4)
    (dense,) = rounding_moved(
        SIX_HEADS_KIMI,
        NODE,
        wide,
        ["dense"],
        policy=policy_named(f"fp16+{wire}-wire"),
        n_tokens=1,
    )
    assert said in dense


@pytest.mark.slow
def test_the_error_is_that_of_fp16_activations(results):
    """Measured here: 65.3 to 65.6 dB of the state, 62.1 dB or more of what a block adds.

    The bounds leave 10 dB for other random values.
    """
    for result in results:
        assert result.fidelity == "faithful"
        assert 55 < result.sqnr_db < 80
        assert [block.kind for block in result.blocks] == ["attention", "moe"]
        assert all(50 < block.change_sqnr_db < 80 for block in result.blocks)
        assert 0 < result.max_abs_err < 0.05


@pytest.mark.slow
def test_the_output_is_that_of_the_whole_model_in_float32(results):
    """The reference of the check, redone here on the source's own weights with all experts.

    50 dB: fp16 roundings of weights and activations cost less, anything wrong costs more.
    """
    source = SyntheticWeights(SIX_HEADS_KIMI, 1)
    generator = np.random.default_rng([1, 64])
    hidden = generator.standard_normal((TOKENS, 64), dtype=np.float32).astype(np.float16)
    hidden = jnp.asarray(hidden.astype(np.float32)[None])
    attention = reference_block(SIX_HEADS_KIMI, "attention", source.block("attention", 1))
    mixture = reference_block(SIX_HEADS_KIMI, "moe", with_experts(source, 1, tuple(range(24))))
    expected = np.asarray(mixture(attention(hidden)))[0]
    for result in results:
        assert sqnr_db(expected, result.output) > 50
        assert result.routes_agree


@pytest.mark.slow
def test_results_are_plain_json(results):
    for result in results:
        values = json.loads(json.dumps(result.as_dict()))
        assert values["output_hash"] == hashlib.sha256(result.output.tobytes()).hexdigest()
        assert len(values["blocks"]) == 2
        assert values["router_margin"] >= 0


def test_sqnr_is_signal_over_noise():
    signal = np.array([3.0, 4.0])
    assert sqnr_db(signal, np.array([3.0, 4.5])) == pytest.approx(20.0)  # 25 / 0.25
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db(np.zeros(2), signal) == -math.inf


@pytest.mark.parametrize("groups", [1, 4])
def test_margin_is_the_smallest_score_distance_that_changes_a_choice(groups):
    """Moving every score by less than half the margin must keep the choice; by brute force."""
    moe = replace(
        zoo.model("deepseek-v3").moe,
        n_experts=16,
        top_k=4,
        n_groups=groups,
        topk_groups=max(groups // 2, 1),
    )
    rng = np.random.default_rng(groups)
    normed, router = rng.normal(size=(5, 8)), rng.normal(size=(8, 16)).astype(np.float32)
    bias = np.zeros(16, np.float32)
    scores = 1 / (1 + np.exp(-(normed @ router.astype(np.float64))))
    margin = router_margin(normed, {"router": router, "router_bias": bias}, moe)

    def chosen(row):
        grouped = row.reshape(groups, -1)
        rank = sorted(range(groups), key=lambda g: -sum(sorted(grouped[g])[-2:]))
        kept = [
            g * (16 // groups) + i for g in rank[: moe.topk_groups] for i in range(16 // groups)
        ]
        return set(sorted(kept, key=lambda e: -row[e])[:4])

    assert margin > 0
    for row in scores:
        for _ in range(50):
            # a group's score is a sum of two, so it moves at most twice as far
            moved = row + rng.uniform(-0.249, 0.249, 16) * margin
            assert chosen(moved) == chosen(row)


def test_default_layers_are_one_of_each_kind():
    assert default_layers(zoo.model("kimi-k2")) == (0, 1)
    assert default_layers(zoo.model("deepseek-v3")) == (0, 3)
    assert default_layers(replace(zoo.model("kimi-k2"), n_layers=1)) == (0,)


def test_mistakes_are_one_sentence():
    with pytest.raises(PlanError, match="0 tokens were asked for; 1 to 320 are possible"):
        check(SIX_HEADS_KIMI, NODE, PLANS[:1], policy=FP16, tokens=0)
    with pytest.raises(PlanError, match="no layers were asked for"):
        check(SIX_HEADS_KIMI, NODE, PLANS[:1], policy=FP16, layers=())


def test_more_tokens_than_the_smallest_cache_has_room_for_are_refused() -> None:
    """A vector of 320 positions for every chip that shares them out, as the model has them."""
    cfg = replace(zoo.model("smollm2-135m"), max_position=700)
    two, three = (
        Plan(group_chips=n, attention=AttentionShard(context=n), mlp=MlpShard(replica=n))
        for n in (2, 3)
    )
    for plans, most in (((), 320), ((two, three), 640), ((three,), 700)):
        check_n_tokens(most, cfg, plans)
        with pytest.raises(PlanError, match=f"{most + 1} tokens were asked for; 1 to {most} are"):
            check_n_tokens(most + 1, cfg, plans)


@pytest.mark.parametrize(
    ("n_tokens", "said"),
    [
        (320, "only the first of 3 chips holds positions of so few tokens"),
        (321, "each of the first 2 chips rounds its result to fp16"),
        (641, "each of 3 chips rounds its result to fp16; all are merged by log-sum-exp"),
    ],
)
def test_the_merge_of_a_context_is_told_for_these_tokens(n_tokens: int, said: str) -> None:
    shared = Plan(group_chips=3, attention=AttentionShard(context=3), mlp=MlpShard(replica=3))
    cfg = zoo.model("smollm2-135m")
    (told,) = rounding_moved(cfg, NODE, shared, ["attention"], n_tokens=n_tokens)
    assert said in told


def test_an_exchange_of_rows_is_told() -> None:
    moe = {"expert": 4, "dispatch": Dispatch.ALL_TO_ALL}
    exchange = plan({"replica": 4}, {"replica": 4}, moe, "row", 4)
    (told,) = rounding_moved(SIX_HEADS_KIMI, NODE, exchange, ["moe"], n_tokens=1)
    assert told.startswith(
        "sum over experts: each of 4 chips of the expert axis rounds its part of"
    )
    alone = plan({"replica": 4}, {"replica": 4}, {"replica": 4, **moe, "expert": 1}, "row", 4)
    assert rounding_moved(SIX_HEADS_KIMI, NODE, alone, ["moe"], n_tokens=1) == ()


@pytest.mark.slow
def test_a_token_on_the_second_chip_can_be_checked() -> None:
    """The last of 321 tokens; 50 dB, as fp16 roundings cost less and anything wrong costs more."""
    cfg = replace(zoo.model("smollm2-135m"), d_model=64, d_ff=64, vocab_size=64, n_layers=1)
    shared = Plan(group_chips=2, attention=AttentionShard(context=2), mlp=MlpShard(replica=2))
    fast = replace(FP16, fidelity="fast")
    (result,) = check(cfg, NODE, (shared,), policy=fast, tokens=321)
    assert result.output.shape == (321, 64)
    assert "each of 2 chips" in result.rounding_moved[0]
    assert result.sqnr_db > 50


@pytest.mark.long
def test_positions_that_are_shared_out_can_be_checked() -> None:
    """A chip without a position yet adds nothing, so that few tokens give the bits of one chip."""
    cfg = zoo.model("smollm2-135m")
    cfg = replace(cfg, d_model=64, d_ff=64, vocab_size=64, n_layers=1)
    shared = Plan(group_chips=2, attention=AttentionShard(context=2), mlp=MlpShard(replica=2))
    alone = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
    first, second = check(cfg, NODE, (shared, alone), policy=FP16, tokens=2)
    assert first.output_hash == second.output_hash
    assert "softmax over the context" in first.rounding_moved[0]
