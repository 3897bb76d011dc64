"""What is noted after a block, and how a decoder counts: with numbers that are written here."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lpu_jax.machine.catalogue import system
from models import zoo
from models.policy import POLICIES
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.run import decoding
from sharding.run.decoding import Decoder
from sharding.run.measures import decibels
from sharding.verify.emulate import Run

ONE = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
SMOLLM2 = zoo.model("smollm2-135m")
TINY = replace(
    SMOLLM2,
    n_layers=1,
    d_model=16,
    d_ff=16,
    vocab_size=40,
    attention=replace(SMOLLM2.attention, n_heads=2, n_kv_heads=1, head_dim=8),
    rope=replace(SMOLLM2.rope, dim=8),
)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20),
        (1.0, 1000.0, -30),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (1.0, math.inf, -math.inf),
        (1.0, math.nan, -math.inf),
    ],
)
def test_decibels(signal, noise, expected):
    assert decibels(signal, noise) == pytest.approx(expected, rel=1e-12)


def test_errors_are_those_of_the_state_and_of_what_a_block_added():
    """A state of 100 that was off by 1 gets 3, of which 2.5 arrives: off by 1.5 afterwards."""
    run = Run(plan=ONE, hidden=np.full((2, 4), 101.0), reference=np.full((2, 4), 100, np.float32))
    run.advance("dense", 0, np.full((2, 4), 103.5), np.full((2, 4), 103, np.float32))
    (check,) = run.checks
    assert check.sqnr_db == pytest.approx(20 * math.log10(103 / 0.5), rel=1e-9)
    assert check.change_sqnr_db == pytest.approx(20 * math.log10(3 / 0.5), rel=1e-6)
    assert check.max_abs_err == 0.5
    run.advance("dense", 1, np.full((2, 4), 103.5), np.full((2, 4), 104, np.float32))
    assert run.checks[1].change_sqnr_db == 0  # what was added is all noise
    assert run.checks[1].sqnr_db == pytest.approx(20 * math.log10(104 / 0.5), rel=1e-9)


def test_a_decoder_reads_the_last_token_of_each_prompt_and_counts_those_that_grow(monkeypatch):
    """Chips that copy: hidden states are token numbers, and the head says the row it is given."""
    begun, counted = [], []

    def run_block(cfg, block, execution):
        if block.kind == "embed":
            ids = np.asarray(block.arguments[0])
            return np.repeat(ids[..., None], cfg.d_model, -1).astype(np.float16)
        hidden = np.asarray(block.arguments[0])
        if block.kind != "head":
            return hidden
        best = hidden[np.arange(len(hidden)), block.arguments[2], 0].astype(np.int32)
        return best[:, None], np.zeros((len(hidden), cfg.vocab_size), np.float32)

    def run_attention(cfg, block, hidden, cache, positions, counts, relay, execution):
        begun.append(np.asarray(positions).tolist())
        counted.append(np.asarray(counts).tolist())
        return hidden, cache

    monkeypatch.setattr(decoding, "run_block", run_block)
    monkeypatch.setattr(decoding, "run_attention", run_attention)
    prompts = [[5], [7, 8, 9], list(range(33))]  # the longest is beyond a bucket of 32
    node, policy = system("groq-node"), POLICIES["fp16"]
    decoder = Decoder(SyntheticWeights(TINY), node, ONE, prompts, policy=policy, n_new=3)
    assert decoder.prefill().tokens.tolist() == [5, 9, 32]
    assert decoder.advance([11, 12, 13]).tokens.tolist() == [11, 12, 13]
    decoder.advance([14, 15, 16], kept=[True, False, True])
    decoder.advance([17, 18, 19], kept=[False, False, True])
    assert begun == [[0, 0, 0], [1, 3, 33], [2, 4, 34], [3, 4, 35]]
    assert counted == [[1, 3, 33], [1, 1, 1], [1, 0, 1], [0, 0, 1]]
    assert decoder.positions.tolist() == [3, 4, 36]
