"""Text from weights on emulated chips: the real small model, and a tiny random one."""

import os
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.errors import PlanError
from lpu_jax.system import system
from models import zoo
from models.reference import Transformer
from models.tokenizer import Tokenizer, TokenizerData
from models.weights.fetch import GGUF_NAME
from models.weights.gguf import load_gguf
from models.weights.synthetic import SyntheticWeights
from sharding.generate import generate
from sharding.plan import AttentionShard, MlpShard, Plan

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / GGUF_NAME
NODE = system("groq-node")

#: Bytes of the GPT-2 alphabet that stand for themselves: one token each, no merges.
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz.,!?")
TOKENIZER = Tokenizer(
    TokenizerData(
        model="gpt2",
        pre_tokenizer="smollm",
        tokens=LETTERS,
        token_types=(1,) * len(LETTERS),
        merges=(),
    )
)
TINY = replace(
    zoo.model("smollm2-135m"),
    n_layers=2,
    d_model=48,
    d_ff=80,
    vocab_size=len(LETTERS),
    attention=replace(zoo.model("smollm2-135m").attention, n_heads=6, n_kv_heads=3, head_dim=8),
    rope=replace(zoo.model("smollm2-135m").rope, dim=8),
    eos_token_ids=(),
)
EIGHT = Plan(group_chips=8, attention=AttentionShard(tensor=2, replica=4), mlp=MlpShard(tensor=8))
N_NEW = 4


@pytest.fixture(scope="module")
def tiny():
    return generate(SyntheticWeights(TINY), TOKENIZER, "hello", NODE, EIGHT, max_new_tokens=N_NEW)


@pytest.mark.slow
def test_logits_are_those_of_the_float32_model(tiny):
    """Measured 59.6 dB; the reference holds unrounded weights, so fp16 weights are in it too."""
    prompt = jnp.asarray([TOKENIZER.encode("hello")], jnp.int32)
    expected = np.asarray(Transformer(SyntheticWeights(TINY))(prompt))[0, -1].astype(np.float64)
    noise = np.sum((expected - tiny.logits) ** 2)
    sqnr = 10 * np.log10(np.sum(expected**2) / noise)
    assert sqnr > 50, sqnr
    # the reference there ran over the answer too: its sums may differ in the last bits
    assert tiny.sqnr_db == pytest.approx(sqnr, abs=0.01)


@pytest.mark.slow
def test_each_token_is_the_references_choice_after_the_ones_before(tiny):
    """Decoding reads the cache of a padded prompt; the reference sees the whole text each time."""
    model = Transformer(SyntheticWeights(TINY))
    text = TOKENIZER.encode("hello")
    for token in tiny.tokens:
        assert token == int(model(jnp.asarray([text], jnp.int32))[0, -1].argmax())
        text.append(token)
    assert tiny.argmax_agreement == 1.0
    assert len(tiny.tokens) == N_NEW
    assert tiny.text == "".join(LETTERS[token] for token in tiny.tokens)
    assert len(tiny.decode_s) == N_NEW - 1


@pytest.mark.slow
def test_text_stops_behind_an_end_token(tiny):
    pieces = []
    found = generate(
        SyntheticWeights(TINY),
        TOKENIZER,
        "hello",
        NODE,
        EIGHT,
        stop_tokens=tiny.tokens[:1],
        reference=False,
        on_token=pieces.append,
    )
    assert found.tokens == tiny.tokens[:1]
    assert found.sqnr_db is None
    assert pieces == [tiny.text[0]]
    np.testing.assert_array_equal(found.logits, tiny.logits)


def test_mistakes_are_one_sentence():
    source = SyntheticWeights(TINY)
    with pytest.raises(PlanError, match="the prompt is empty"):
        generate(source, TOKENIZER, "", NODE, EIGHT)
    with pytest.raises(PlanError, match="0 new tokens were asked for"):
        generate(source, TOKENIZER, "a", NODE, EIGHT, max_new_tokens=0)
    with pytest.raises(PlanError, match="need 9001 positions; smollm2-135m has 8192"):
        generate(source, TOKENIZER, "a", NODE, EIGHT, max_new_tokens=9000)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there; `make weights` fetches it")
def test_the_real_model_knows_the_capital_of_france():
    """Measured 42.7 dB on the first logits, against weights that are not rounded to fp16."""
    model = load_gguf(REAL)
    tokenizer = Tokenizer(model.tokenizer)
    prompt = "The capital of France is"
    found = generate(model.weights, tokenizer, prompt, NODE, EIGHT, max_new_tokens=2)
    assert found.text.startswith(" Paris")
    assert found.argmax_agreement == 1.0
    assert found.sqnr_db is not None
    assert found.sqnr_db > 35
