"""A forward pass from tokens to logits: the same bits as with the model whole in memory."""

import hashlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_KIMI, TINY_NEMOTRON

from lpu_jax.errors import LpuError, PlanError
from lpu_jax.machine.catalogue import system
from models.layers.linear import Split
from models.policy import POLICIES, policy_named
from models.reference import Transformer
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.rank import choose
from sharding.run.forward import forward
from sharding.run.measures import sqnr_db
from sharding.verify import embedding_and_head
from sharding.verify.chosen_layers import check_plans
from sharding.verify.embedding_and_head import embed_tokens, run_head
from sharding.verify.whole_model import agreement, check_whole, random_tokens
from sharding.verify.whole_model_report import whole_dict, whole_text

NODE = system("groq-node")
FP16, FLOAT32 = POLICIES["fp16"], POLICIES["float32"]
SOURCE = SyntheticWeights(TINY_KIMI, 3)
IDS = (7, 120, 7)
ONE_CHIP = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=MoeShard())


def split(how):
    return Plan(
        group_chips=4,
        attention=AttentionShard(tensor=2, replica=2, split=how),
        mlp=MlpShard(tensor=4, split=how),
        moe=MoeShard(expert=2, tensor=2, split=how),
    )


@pytest.fixture(scope="module")
def exact():
    """One chip in plain float32: quick, and equal to the reference but for orders of sums."""
    return check_whole(SOURCE, NODE, [ONE_CHIP], policy=FLOAT32, token_ids=IDS)[0]


@pytest.mark.slow
def test_float32_on_one_chip_is_the_reference_model(exact):
    """Ours whole in memory, and built without the check: 2e-5 as for Hugging Face's logits."""
    expected = np.asarray(Transformer(SOURCE)(jnp.asarray([IDS], jnp.int32)))[0]
    np.testing.assert_allclose(exact.logits, expected, rtol=0, atol=2e-5)
    assert exact.next_tokens == exact.reference_next_tokens == tuple(expected.argmax(-1).tolist())
    assert exact.kl_nats < 1e-10
    assert exact.top1_agreement == 1
    assert exact.logits_sqnr_db > 100
    assert exact.fidelity == "fast"
    assert [(block.kind, block.layer) for block in exact.blocks] == [
        ("attention", 0),
        ("dense", 0),
        ("attention", 1),
        ("moe", 1),
    ]
    assert exact.choices == 3 * TINY_KIMI.moe.top_k
    assert exact.flips == 0


@pytest.mark.slow
def test_the_report_says_what_was_run(exact):
    found = json.loads(json.dumps(whole_dict(TINY_KIMI, NODE, [exact], policy=FLOAT32)))
    assert found["fidelity"] == "fast"
    assert found["token_ids"] == list(IDS)
    assert found["layers"] == [0, 1]
    (row,) = found["results"]
    assert row["output_hash"] == hashlib.sha256(exact.logits.tobytes()).hexdigest()
    assert row["blocks"][3]["routing"]["choices"] == 9
    assert row["blocks"][0]["routing"] is None
    assert found["note"] is None
    text = whole_text(TINY_KIMI, NODE, [exact], policy=FLOAT32, note="No plan fits; it lacks much.")
    assert "3 tokens decoded through embedding, 2 of 2 layers and head; fast numerics" in text
    assert "0 of 9 choices of experts flip" in text
    assert "No plan fits; it lacks much." in text


@pytest.mark.slow
def test_layers_of_one_block_have_a_row_each():
    source = SyntheticWeights(TINY_NEMOTRON, 3)
    (found,) = check_whole(source, NODE, [ONE_CHIP], policy=FLOAT32, token_ids=IDS)
    assert [block.kind for block in found.blocks] == list(TINY_NEMOTRON.single_blocks)
    assert found.kl_nats < 1e-10
    text = whole_text(TINY_NEMOTRON, NODE, [found], policy=FLOAT32)
    rows = [line.split()[:2] for line in text.splitlines()]
    for layer, kind in enumerate(TINY_NEMOTRON.single_blocks):
        assert [str(layer), kind] in rows


@pytest.mark.long
def test_streaming_gives_the_bits_of_the_model_whole_in_memory():
    """Two plans in one go, each against all experts, the whole table and the whole head."""
    plans = [split(Split.COLUMN), split(Split.ROW)]
    results = check_whole(SOURCE, NODE, plans, policy=FP16, token_ids=IDS)
    for result in results:
        expected = forward(SOURCE, NODE, result.plan, np.asarray([IDS]), policy=FP16, step=1)[0]
        np.testing.assert_array_equal(result.logits.view(np.uint32), expected.view(np.uint32))
        # measured: 59.7 and 61.5 dB, 3e-7 and 4e-7 nats
        assert 50 < result.logits_sqnr_db < 75
        assert 0 < result.kl_nats < 1e-5
        assert result.fidelity == "faithful"
    assert results[0].rounding_moved == ()
    assert results[0].output_hash != results[1].output_hash


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "least_db"),
    [
        pytest.param("int8", 34, marks=pytest.mark.long),
        pytest.param("nvfp4", 45, marks=pytest.mark.long),
        ("mxfp4", 45),
        ("int4", 45),
    ],
)
def test_narrow_stores_hold_compact_experts(policy, least_db):
    """Formats that keep codes, scales or two levels: the bits of a store with all experts."""
    wide = replace(TINY_KIMI, d_model=128, moe=replace(TINY_KIMI.moe, d_expert=64), n_layers=2)
    source = SyntheticWeights(wide, 1)
    fast = replace(POLICIES[policy], fidelity="fast")
    (result,) = check_whole(source, NODE, [ONE_CHIP], policy=fast, token_ids=(1, 2), layers=(1,))
    # The reference holds the same stored values, but rows that multiply int8 are rounded to int8:
    # with a largest value of some 3.2 spreads that is 10 log10(12 * 127^2 / 3.2^2) = 43 dB for each
    # of the products in a chain; 38 dB measured.
    assert least_db < result.logits_sqnr_db < 90


@pytest.mark.slow
def test_tokens_pass_a_mixture_in_parts_alike(monkeypatch, exact):
    monkeypatch.setattr("sharding.verify.emulate._STORE_BYTES", 1)  # one token at a time
    (result,) = check_whole(SOURCE, NODE, [ONE_CHIP], policy=FLOAT32, token_ids=IDS)
    parts, whole = result.blocks[3].routing, exact.blocks[3].routing
    assert (parts.choices, parts.flips) == (whole.choices, whole.flips)
    # The margin is a float64 product, and logits float32 ones, of other numbers of rows.
    assert parts.margin == pytest.approx(whole.margin, rel=1e-12)
    np.testing.assert_allclose(result.logits, exact.logits, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_head_in_pieces_gives_the_bits_of_the_whole(monkeypatch):
    """128 columns in pieces of 48, the last of which is padded, on chips that share unevenly."""
    plan = replace(ONE_CHIP, group_chips=3, attention=AttentionShard(replica=3))
    plan = replace(plan, mlp=MlpShard(replica=3), moe=MoeShard(replica=3))
    run = embed_tokens(SOURCE, NODE, plan, IDS, policy=FP16)
    ((reference, logits),) = run_head(SOURCE, NODE, [run], policy=FP16)
    monkeypatch.setattr(embedding_and_head, "_COLUMNS", 48)
    ((in_pieces, same),) = run_head(SOURCE, NODE, [run], policy=FP16)
    np.testing.assert_array_equal(same.view(np.uint32), logits.view(np.uint32))
    np.testing.assert_allclose(in_pieces, reference, rtol=1e-6, atol=1e-6)
    assert 50 < sqnr_db(reference, logits) < 80


@pytest.mark.parametrize("n_chips", [1, 3, 8])
def test_embedded_tokens_are_rows_of_the_table(n_chips):
    """Rows of one chip, of several, of the last one; a token twice; exact in fp16 and float32."""
    plan = Plan(
        group_chips=n_chips,
        attention=AttentionShard(replica=n_chips),
        mlp=MlpShard(replica=n_chips),
        moe=MoeShard(replica=n_chips),
    )
    ids = (127, 0, 16, 15, 127, 43, 42, 1)
    run = embed_tokens(SOURCE, NODE, plan, ids, policy=FP16)
    expected = SOURCE.block("embed")["table"][list(ids)].astype(np.float16)
    np.testing.assert_array_equal(run.hidden, expected)
    np.testing.assert_array_equal(run.reference, expected.astype(np.float32))


class _WithoutParts:
    """A source that gives whole blocks only, as one of somebody else's may."""

    def __init__(self, source):
        self.config, self.block, self.expert = source.config, source.block, source.expert


def test_sources_without_parts_give_the_same(monkeypatch):
    monkeypatch.setattr(embedding_and_head, "_COLUMNS", 48)
    run = embed_tokens(SOURCE, NODE, ONE_CHIP, IDS, policy=FLOAT32)
    plain = embed_tokens(_WithoutParts(SOURCE), NODE, ONE_CHIP, IDS, policy=FLOAT32)
    np.testing.assert_array_equal(plain.hidden, run.hidden)
    ((_, logits),) = run_head(SOURCE, NODE, [run], policy=FLOAT32)
    ((_, same),) = run_head(_WithoutParts(SOURCE), NODE, [run], policy=FLOAT32)
    np.testing.assert_allclose(same, logits, rtol=0, atol=1e-5)


def test_divergence_and_agreement_by_hand():
    """Reference (1/2, 1/2) and (1/5, 4/5); emulated (1/4, 3/4) and the same."""
    expected = np.log(np.array([[0.5, 0.5], [0.2, 0.8]], np.float32))
    logits = np.log(np.array([[0.25, 0.75], [0.2, 0.8]], np.float32)) + np.float32(3)
    found = agreement(expected, logits)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # of the first token
    assert found["kl_nats"] == pytest.approx(kl / 2, rel=1e-5)
    assert found["top1_agreement"] == 0.5  # of equal logits the first counts
    assert found["next_tokens"] == (1, 1)
    assert found["reference_next_tokens"] == (0, 1)


def test_overflow_is_endless_noise_and_no_agreement():
    expected = np.array([[1.0, 2.0], [3.0, 1.0]], np.float32)
    logits = np.array([[1.0, 2.0], [np.inf, np.nan]], np.float32)
    assert sqnr_db(expected, logits) == -math.inf
    assert sqnr_db(expected, np.array([[1.0, np.inf], [3.0, 1.0]])) == -math.inf
    found = agreement(expected, logits)
    assert math.isnan(found["kl_nats"])  # never zero
    assert found["top1_agreement"] == 0.5


def test_equal_logits_do_not_diverge():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    found = agreement(logits, logits.copy())
    assert found["kl_nats"] == 0
    assert found["top1_agreement"] == 1
    assert found["logits_sqnr_db"] == math.inf


def test_random_tokens_are_pinned_and_grow_at_the_end():
    """Raw bits of PCG64DXSM: results name a seed."""
    assert random_tokens(TINY_KIMI, 5, 0)[:3] == random_tokens(TINY_KIMI, 3, 0)
    draws = np.random.PCG64DXSM(9).random_raw(40)
    expected = tuple(int(draw) % TINY_KIMI.vocab_size for draw in draws)
    assert random_tokens(TINY_KIMI, 40, 9) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_ids": ()}, "0 tokens were asked for; 1 to 320 are possible"),
        ({"token_ids": (1,) * 321}, "321 tokens were asked for"),
        ({"token_ids": (5, 128)}, "token 128 was given; kimi-k2 has 0 to 127"),
        ({"token_ids": (-1,)}, "token -1 was given"),
        ({"layers": ()}, "no layers were asked for"),
        ({"layers": (0, 2)}, "layer 2 was asked for; kimi-k2 has 0 to 1"),
        ({"routing": "loose"}, "unknown routing 'loose'"),
    ],
)
def test_mistakes_are_one_sentence(wrong, message):
    arguments = {"token_ids": (1,)} | wrong
    with pytest.raises(LpuError, match=message):
        check_whole(SOURCE, NODE, [ONE_CHIP], policy=FP16, **arguments)


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(PlanError, match="moe"):
        check_whole(SOURCE, NODE, [replace(ONE_CHIP, moe=None)], policy=FP16, token_ids=(1,))


@pytest.fixture
def asked(monkeypatch):
    """What `compare` is asked; it answers with a plan that does not fit."""
    told = []

    def compare(cfg, machine, request, *, policy, top):
        told.append((policy, request.context))
        row = SimpleNamespace(plan=ONE_CHIP, fits=False, reason="is large")
        return SimpleNamespace(rows=(row,))

    monkeypatch.setattr(choose, "compare", compare)
    return told


def test_the_default_plan_is_asked_of_compare(asked):
    """A policy that no chip runs takes as much room as fp16; the context holds every token."""
    for policy in (FLOAT32, POLICIES["int4"]):
        plan, note = choose.fastest_plan(TINY_KIMI, NODE, policy=policy)
        assert plan == ONE_CHIP
        assert note == "No plan fits; the nearest is run: it is large."
    assert asked == [(FP16, 320), (POLICIES["int4"], 320)]


def test_a_released_policy_of_other_roles_is_asked_for_itself(asked):
    """Its name is in no table: it is of this one checkpoint."""
    cfg = replace(TINY_KIMI, released_format="int4", released_roles=("expert", "shared"))
    policy = policy_named("released", cfg)
    assert policy.name not in POLICIES
    choose.fastest_plan(cfg, NODE, policy=policy)
    assert asked == [(policy, 320)]


@pytest.mark.slow
def test_a_model_too_small_for_the_machine_is_run_on_fewer_chips():
    """4 experts of 8 columns cannot be split over more than 32 chips of 2,304."""
    lpx = system("lpx-9")
    small = replace(TINY_KIMI.moe, n_experts=4, d_expert=8, n_groups=1, topk_groups=1)
    cfg = replace(TINY_KIMI, moe=small)
    plan, note = choose.fastest_plan(cfg, lpx, policy=FP16)
    check_plans(cfg, lpx, [plan], policy=FP16)
    assert plan.moe is not None
    assert plan.moe.expert * plan.moe.tensor <= 32
    assert note == ""
