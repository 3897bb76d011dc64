"""Predictions of a text: against arithmetic by hand, and against Hugging Face's perplexity."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lpu_jax.errors import LpuError, PlanError
from lpu_jax.machine.catalogue import system
from models import zoo
from models.policy import POLICIES
from models.reference import Transformer, stream
from models.tokenizer_files import read_tokenizer
from models.weights.checkpoint import open_checkpoint
from models.weights.fetch import GEMMA_NAME, GGUF_NAME
from models.weights.synthetic import SyntheticWeights
from sharding.cli.main import main
from sharding.files import read_text
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.run.measures import compare_predictions
from sharding.verify.text import compare_text, text_dict, text_report

ROOT = Path(__file__).parents[3]
REAL = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / GGUF_NAME
NODE = system("groq-node")
SMOLLM2 = zoo.model("smollm2-135m")
TINY = replace(
    SMOLLM2,
    n_layers=1,
    d_model=48,
    d_ff=80,
    vocab_size=30,
    max_position=64,
    attention=replace(SMOLLM2.attention, n_heads=6, n_kv_heads=3, head_dim=8),
    rope=replace(SMOLLM2.rope, dim=8),
)
WEIGHTS = SyntheticWeights(TINY)
ONE = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
TWO = Plan(group_chips=2, attention=AttentionShard(tensor=1, replica=2), mlp=MlpShard(tensor=2))
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]

#: Written for this test.
TEXT = """\
The river below the old mill has two names. On the maps it is the Lesser Arn, but nobody in
the village has ever called it that. To them it is the Grey, because of the clay it carries in
spring, and because the first miller, whose portrait hangs in the school, was a man called Grey who
drowned in it. Every year in March the water rises over the lower field, and every year in April the
children walk along the bank to look for what it has left behind: bottles, a boot, the rib of a cow.
"""
#: Of transformers 5.23.0 with torch 2.13.0 in float32, on the same file, over TEXT.
PERPLEXITY = 42.15266


def row(*values):
    return np.array([values], np.float32)


def test_two_tokens_by_hand():
    """The reference says 1/2, 1/2; the chips say 3/4, 1/4; the first token comes."""
    sums = compare_predictions(row(0, 0), row(math.log(3), 0), np.array([0]))
    assert sums["predictions"] == 1
    assert sums["reference_loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert sums["loss"] == pytest.approx(math.log(4 / 3), rel=1e-7)
    # 1/2 ln(1/2 : 3/4) + 1/2 ln(1/2 : 1/4)
    assert sums["kl"] == pytest.approx(math.log(4 / 3) / 2, rel=1e-7)
    assert sums["agreements"] == 1  # of equal ones the first
    assert (sums["power"], sums["noise"]) == (0, pytest.approx(math.log(3) ** 2, rel=1e-7))


_LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


@given(reference=_LOGITS, chips=_LOGITS, shift=st.floats(-100, 100))
def test_divergence_is_that_of_the_distributions(reference, chips, shift):
    """Against sums of Python floats; a constant added to all logits changes nothing."""
    following = np.array([0, 4, 2])
    sums = compare_predictions(reference, chips, following)
    kl = loss = 0.0
    for p_row, q_row, token in zip(reference.tolist(), chips.tolist(), following, strict=True):
        p = [math.exp(x) / math.fsum(map(math.exp, p_row)) for x in p_row]
        q = [math.exp(x) / math.fsum(map(math.exp, q_row)) for x in q_row]
        kl += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        loss -= math.log(q[token])
    assert sums["kl"] == pytest.approx(kl, abs=1e-9)
    assert sums["kl"] >= -1e-12
    assert sums["loss"] == pytest.approx(loss, abs=1e-9)
    same = compare_predictions(reference, reference, following)
    assert (same["kl"], same["noise"], same["agreements"]) == (0, 0, 3)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_logits_that_overflowed_are_endless_noise_in_the_report(value, monkeypatch):
    """A result, not a failure; JSON has no number for it."""
    expected = np.ones((1, len(TOKENS), TINY.vocab_size), np.float32)
    logits = expected.copy()
    logits[0, 1, 2] = value
    monkeypatch.setattr("sharding.verify.text.stream", lambda *_: expected)
    monkeypatch.setattr("sharding.verify.text.forward", lambda *_, **__: logits)
    (found,) = compare_text(WEIGHTS, NODE, [ONE], TOKENS, policies=[POLICIES["fp16"]])
    assert found.sqnr_db == -math.inf
    assert found.as_dict()["sqnr_db"] is None
    assert "-inf" in text_report(TINY, NODE, [found])


def test_errors_of_stored_weights_are_told_from_those_of_the_chips(monkeypatch):
    """Every row: the reference says 1/2, 1/2; rounded weights 3/4, 1/4; the chips 9/10, 1/10."""

    def rows(share):
        logits = np.full((1, len(TOKENS), TINY.vocab_size), -np.inf, np.float32)
        logits[..., :2] = np.log([share, 1 - share])
        return np.where(np.isinf(logits), np.float32(-1e4), logits)

    monkeypatch.setattr(
        "sharding.verify.text.stream", lambda of, _: rows(0.5 if of is WEIGHTS else 0.75)
    )
    monkeypatch.setattr("sharding.verify.text.forward", lambda *_, **__: rows(0.9))
    (found,) = compare_text(WEIGHTS, NODE, [ONE], TOKENS, policies=[POLICIES["fp16"]])
    assert found.weights_kl_nats == pytest.approx(math.log(4 / 3) / 2, rel=1e-5)
    assert found.kl_nats == pytest.approx(-math.log(4 * 0.9 * 0.1) / 2, rel=1e-5)


@pytest.mark.slow
def test_a_whole_text_against_a_loop_over_its_tokens():
    """Float32 on one chip and on two; the windows are 3, 3 and 2 tokens: 5 predictions.

    Two float32 evaluations differ by about 1e-6 in a logit; a perplexity near 30 by 1e-4 at most.
    """
    results = compare_text(
        WEIGHTS,
        NODE,
        [ONE, TWO],
        TOKENS,
        policies=[POLICIES["float32"], POLICIES["int8"]],
        window=3,
    )
    model = Transformer(WEIGHTS)
    losses = []
    for ids in (TOKENS[:3], TOKENS[3:6], TOKENS[6:]):
        logits = np.asarray(model(jnp.asarray([ids], jnp.int32)), np.float64)[0]
        for position, token in enumerate(ids[1:]):
            p = np.exp(logits[position]) / np.exp(logits[position]).sum()
            losses.append(-np.log(p[token]))
    expected = math.exp(np.mean(losses))
    assert [result.plan for result in results] == [ONE, ONE, TWO, TWO]
    for result in results:
        assert (result.n_tokens, result.n_scored) == (8, 5)
        assert result.reference_perplexity == pytest.approx(expected, abs=1e-4)
    exact, int8, *_ = results
    assert exact.perplexity == pytest.approx(expected, abs=1e-4)
    assert exact.kl_nats < 1e-9
    assert (exact.weights_kl_nats, exact.top1_agreement) == (0, 1)
    assert exact.sqnr_db > 100
    # int8 rounds weights, and rows beside them
    assert 1e-7 < int8.weights_kl_nats < 1e-2
    assert 15 < int8.sqnr_db < 60
    made = text_dict(TINY, NODE, Path("story.txt"), results)
    assert json.loads(json.dumps(made))["results"][1]["kl_nats"] == int8.kl_nats
    report = text_report(TINY, NODE, results)
    assert f"{int8.perplexity:.3f}" in report
    assert "5 predictions of 8 tokens" in report


@pytest.mark.slow
@pytest.mark.parametrize(("n_tokens", "same"), [(40, True), (340, False)])
def test_any_text_is_predicted_under_a_context_plan(n_tokens, same):
    """Up to 320 tokens lie on the first of two chips; more are merged, and stay as near float32.

    A rounding more of a partial result costs less than 3 dB.
    """
    source = SyntheticWeights(replace(TINY, max_position=640))
    ids = [(7 * i * i + i) % 30 for i in range(n_tokens)]
    context = Plan(group_chips=2, attention=AttentionShard(context=2), mlp=MlpShard(replica=2))
    alone, shared = compare_text(source, NODE, [ONE, context], ids, policies=[POLICIES["fp16"]])
    assert (alone.perplexity == shared.perplexity) is same
    assert abs(alone.sqnr_db - shared.sqnr_db) < 3
    assert shared.sqnr_db > 40


@pytest.mark.parametrize(
    ("tokens", "window", "message"),
    [
        ([], None, "it has 0 tokens; at least 2 are needed"),
        ([1], None, "it has 1 tokens"),
        ([1, 30], None, "it has token 30; smollm2-135m has 0 to 29"),
        ([1, 2], 1, "a window of 1 tokens was asked for; smollm2-135m takes 2 to 64"),
        ([1, 2], 65, "a window of 65 tokens"),
    ],
)
def test_requests_that_cannot_be_scored_are_one_sentence(tokens, window, message):
    with pytest.raises(PlanError, match=message):
        compare_text(WEIGHTS, NODE, [ONE], tokens, policies=[POLICIES["fp16"]], window=window)


def test_text_files_that_are_none_are_one_sentence(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfyes")
    for name, message in (
        ("absent", "there is no such file"),
        (".", "it must be a regular file"),
        ("empty", "it is empty"),
        ("latin", "it must be UTF-8; byte 3 is not part of it"),
    ):
        with pytest.raises(LpuError, match=message):
            read_text(tmp_path / name, f"text {name}")
    assert read_text(tmp_path / "marked", "text marked") == "yes"  # without its byte order mark


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "absent.txt"], "text absent.txt: there is no such file."),
        (["--text", __file__], "--text needs trained weights: give --weights with a checkpoint."),
        (["--text", __file__, "--layers", "all"], "--text excludes --layers"),
        (["--policy", "fp16", "--policy", "int8"], "2 policies were given; one is allowed"),
    ],
)
def test_the_command_says_what_is_wrong(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", "smollm2-135m", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there; `make weights` fetches it")
def test_perplexity_of_the_real_model_is_hugging_faces(tmp_path):
    """Float32 sums in another order move the mean loss by less than 1e-6: 1e-4 is allowed.

    int8 costs more than its weights do, for rows are int8 too.
    """
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    options = ["--policy", "float32", "--policy", "int8", "--json", "-"]
    command = ["check", "smollm2-135m", "--weights", str(REAL), "--text", str(path), *options]
    run = [sys.executable, "-c", "from sharding.cli.main import main; main()", *command]
    made = json.loads(subprocess.run(run, capture_output=True, check=True, cwd=ROOT).stdout)
    exact, int8 = made["results"]
    assert exact["tokens"] == 119
    assert exact["reference_perplexity"] == pytest.approx(PERPLEXITY, abs=1e-4 * PERPLEXITY)
    assert exact["perplexity"] == pytest.approx(PERPLEXITY, abs=1e-4 * PERPLEXITY)
    assert exact["kl_nats"] < 1e-8
    assert 0.001 < int8["weights_kl_nats"] < 0.01 < int8["kl_nats"] < 0.1


#: Of transformers 5.24.0 with torch 2.14.1 in float32, whose Gemma 3 was given the tensors of the
#: file as the `gguf` package decodes them, norms less one, over TEXT.
GEMMA_PERPLEXITY = 37.378442
GEMMA = REAL.with_name(GEMMA_NAME)
ask_for_gemma = "`make weights FETCH_ARGS=gemma-3-270m` fetches it"


@pytest.mark.long
@pytest.mark.skipif(not GEMMA.is_file(), reason=f"{GEMMA} is not there; {ask_for_gemma}")
def test_perplexity_of_a_real_gemma_3_is_hugging_faces():
    """Windows, both rotations, norms and embedding of a file that llama.cpp's converter made."""
    checkpoint = open_checkpoint(GEMMA)
    config = checkpoint.config
    assert config.sliding_layers == tuple(i for i in range(18) if (i + 1) % 6)
    assert config.sliding_rope is not None
    assert (config.rope.theta, config.sliding_rope.theta) == (1e6, 1e4)
    tokens = read_tokenizer(checkpoint).encode(TEXT)
    assert len(tokens) == 119
    logits = np.asarray(stream(checkpoint.weights, jnp.asarray([tokens])))[0, :-1]
    logits = logits - logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(tokens) - 1), tokens[1:]]
    loss = np.log(np.exp(logits).sum(-1, dtype=np.float64)) - chosen
    assert math.exp(loss.mean()) == pytest.approx(GEMMA_PERPLEXITY, rel=1e-4)


def test_the_gap_between_two_engines_is_that_of_the_next_tokens(monkeypatch):
    """Of tokens 0 and 1, to which one engine gives 9/10 and 1/10, and the other 8/10 and 2/10."""
    tokens = [0, 0, 1, 0, 0]

    def rows(share):
        logits = np.full((1, len(tokens), TINY.vocab_size), -1e4, np.float32)
        logits[..., :2] = np.log([share, 1 - share])
        return logits

    share = {"fp16": 0.9, "bf16": 0.8}
    monkeypatch.setattr("sharding.verify.text.stream", lambda *_: rows(0.5))
    monkeypatch.setattr(
        "sharding.verify.text.forward", lambda *_, policy, **__: rows(share[policy.name])
    )
    policies = [POLICIES["fp16"], POLICIES["bf16"], POLICIES["fp16"]]
    first, other, same = compare_text(WEIGHTS, NODE, [ONE], tokens, policies=policies)
    apart = [math.log(9 / 8), math.log(2), math.log(9 / 8), math.log(9 / 8)]
    assert first.gap is None
    assert (other.gap.mean, other.gap.largest) == pytest.approx((sum(apart) / 4, max(apart)), 1e-5)
    assert other.gap.share == 1
    assert (same.gap.mean, same.gap.largest, same.gap.share) == (0, 0, 0)
    assert "gap" not in text_report(TINY, NODE, [first])
    assert "100.0%" in text_report(TINY, NODE, [first, other])
