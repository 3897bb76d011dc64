"""Text from weights on emulated chips: the real small model, and a tiny random one."""

import os
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.errors import LpuError, PlanError, WeightsError
from lpu_jax.machine.catalogue import system
from models import zoo
from models.chat import chat_prompt
from models.policy import POLICIES
from models.reference import Transformer
from models.sampling import Draws, Sampling, draw
from models.tokenizer import Tokenizer, TokenizerData
from models.weights.fetch import GGUF_NAME
from models.weights.gguf import load_gguf
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.rank.choose import text_plan
from sharding.request import Request
from sharding.run import generate as generating
from sharding.run.decoding import Decoder, Prediction
from sharding.run.generate import generate, generation_text
from sharding.run.measures import sqnr_db

SHORT = Request(context=9)
ROOT = Path(__file__).parents[3]
REAL = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / GGUF_NAME
NODE = system("groq-node")

#: Bytes of the GPT-2 alphabet that stand for themselves: one token each, no merges.
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz.,!?")
DATA = TokenizerData(
    model="gpt2",
    pre_tokenizer="smollm",
    tokens=LETTERS,
    token_types=(1,) * len(LETTERS),
    merges=(),
)
TOKENIZER = Tokenizer(DATA)
SMOLLM2 = zoo.model("smollm2-135m")
TINY = replace(
    SMOLLM2,
    n_layers=2,
    d_model=48,
    d_ff=80,
    vocab_size=len(LETTERS),
    attention=replace(SMOLLM2.attention, n_heads=6, n_kv_heads=3, head_dim=8),
    rope=replace(SMOLLM2.rope, dim=8),
    eos_token_ids=(),
)
WEIGHTS = SyntheticWeights(TINY)
EIGHT = Plan(group_chips=8, attention=AttentionShard(tensor=2, replica=4), mlp=MlpShard(tensor=8))
#: Two shares of sequences: three prompts leave one of four places empty.
BY_DATA = replace(EIGHT, attention=AttentionShard(tensor=2, data=2, replica=2))
#: Positions on three chips.
BY_CONTEXT = Plan(group_chips=3, attention=AttentionShard(context=3), mlp=MlpShard(replica=3))
ONE = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
#: Of different lengths, one beyond a bucket of 32 (spaces are no letters), the last one twice.
PROMPTS = [TOKENIZER.encode(text) for text in ("hello", "the quick brown fox. " * 3, "a", "a")]
N_NEW = 4


def run(prompts, plan=ONE, **options):
    options = {"max_new_tokens": N_NEW, "reference": False} | options
    return generate(WEIGHTS, NODE, plan, TOKENIZER, prompts, **options).continuations


@pytest.fixture(scope="module")
def tiny():
    return run(PROMPTS[:1], EIGHT, reference=True)[0]


@pytest.mark.slow
def test_logits_are_those_of_the_float32_model(tiny):
    """Measured about 60 dB; the reference has unrounded weights: fp16 weights are in it too."""
    prompt = jnp.asarray([PROMPTS[0]], jnp.int32)
    expected = np.asarray(Transformer(WEIGHTS)(prompt))[0, -1].astype(np.float64)
    noise = np.sum((expected - tiny.logits) ** 2)
    sqnr = 10 * np.log10(np.sum(expected**2) / noise)
    assert sqnr > 50, sqnr
    # the reference there ran over the answer too: its sums may differ in the last bits
    assert tiny.sqnr_db == pytest.approx(sqnr, abs=0.01)


@pytest.mark.slow
def test_each_token_is_the_references_choice_after_the_ones_before(tiny):
    """Decoding reads the cache of a padded prompt; the reference sees the whole text each time."""
    model = Transformer(WEIGHTS)
    text = list(PROMPTS[0])
    for token in tiny.tokens:
        assert token == int(model(jnp.asarray([text], jnp.int32))[0, -1].argmax())
        text.append(token)
    assert tiny.argmax_agreement == 1.0
    assert len(tiny.tokens) == N_NEW
    assert tiny.ended == "length"
    assert tiny.text == "".join(LETTERS[token] for token in tiny.tokens)


@pytest.mark.long
@pytest.mark.parametrize(
    ("plan", "policy"),
    [
        pytest.param(ONE, "fp16", id="one chip"),
        pytest.param(BY_DATA, "int8", id="by data"),
    ],
)
def test_a_sequence_does_not_depend_on_its_companions(plan, policy):
    """Bit for bit: all logits of all steps, at other lengths, places, buckets and padding.

    int8 scales its rows by their largest value: a scale over several sequences would be seen.
    """

    def steps(prompts):
        decoder = Decoder(WEIGHTS, NODE, plan, prompts, policy=POLICIES[policy], n_new=N_NEW)
        made = [decoder.prefill()]
        for _ in range(N_NEW - 1):
            made.append(decoder.advance([int(token) for token in made[-1].tokens]))
        return np.stack([one.logits for one in made])

    together = steps(PROMPTS)
    np.testing.assert_array_equal(together[:, 0], steps(PROMPTS[:1])[:, 0])
    np.testing.assert_array_equal(together[:, 2], steps(PROMPTS[2:3])[:, 0])
    np.testing.assert_array_equal(together[:, 2], together[:, 3])
    np.testing.assert_array_equal(together[:, ::-1], steps(PROMPTS[::-1]))


@pytest.mark.long
def test_drawn_text_depends_on_seed_and_prompt_alone():
    hot = Sampling(temperature=20.0, seed=3)  # hot: all tokens are about equally likely
    together = run(PROMPTS, sampling=hot)
    for row in (0, 2):
        assert run([PROMPTS[row]], sampling=hot)[0].tokens == together[row].tokens
    assert together[3].tokens != together[2].tokens  # an equal prompt is another sample
    moved = run(PROMPTS[::-1], sampling=hot)
    assert [moved[3].tokens, moved[2].tokens] == [together[0].tokens, together[1].tokens]
    other = run(PROMPTS[:1], sampling=replace(hot, seed=4))
    assert other[0].tokens != together[0].tokens
    # the first token is what a draw from the first logits gives
    first = draw(together[0].logits, hot, Draws(3, PROMPTS[0]), len(PROMPTS[0]))
    assert together[0].tokens[0] == first


@pytest.mark.slow
def test_a_context_plan_says_what_one_chip_says():
    """All positions of short prompts lie on the first of three chips: the same bits."""
    (wide,) = text_plan(
        TINY,
        NODE,
        BY_CONTEXT,
        Request(batch=2, context=9),
        policy=POLICIES["fp16"],
        command="generate",
    ).rows
    assert wide.fits
    assert wide.plan == BY_CONTEXT
    alone, shared = run(PROMPTS[:1]), run(PROMPTS[:1], BY_CONTEXT)
    assert [one.tokens for one in shared] == [one.tokens for one in alone]
    np.testing.assert_array_equal(shared[0].logits, alone[0].logits)


@pytest.mark.long
def test_a_context_plan_continues_a_prompt_of_two_chips():
    """330 tokens, of which 10 lie on the second chip; measured 60 dB to one chip: 50 allowed."""
    prompt = [[(7 * i * i + i) % len(LETTERS) for i in range(330)]]
    (alone,), (shared,) = (run(prompt, plan, max_new_tokens=1) for plan in (ONE, BY_CONTEXT))
    assert not np.array_equal(shared.logits, alone.logits)
    assert sqnr_db(alone.logits, shared.logits) > 50


def test_a_context_that_the_model_cannot_have_is_refused():
    small = replace(TINY, max_position=640)
    with pytest.raises(PlanError, match="context 3 is more ways than a context of 640 has runs"):
        text_plan(small, NODE, BY_CONTEXT, SHORT, policy=POLICIES["fp16"], command="generate")


def test_a_machine_without_values_is_refused_by_the_commands_name():
    with pytest.raises(LpuError, match=r"^generate: h100x8 is a GPU roofline"):
        text_plan(TINY, system("h100x8"), None, SHORT, policy=POLICIES["fp16"], command="generate")


@pytest.mark.slow
def test_the_cache_has_an_end():
    decoder = Decoder(WEIGHTS, NODE, ONE, PROMPTS[:1], policy=POLICIES["fp16"], n_new=1)
    decoder.prefill()
    with pytest.raises(PlanError, match="token 99 was given"):
        decoder.advance([99])
    decoder.positions = np.array([320], np.int32)
    with pytest.raises(PlanError, match="the cache has 320 positions, and a sequence has filled"):
        decoder.advance([1])


# --- the loop around the chips, with chips that say what is written here ----------------------


@pytest.fixture
def scripted(monkeypatch):
    """Replace the chips: each sequence prefers the tokens of its script, one after the other."""

    def install(*scripts):
        told = []

        class Script:
            def __init__(self, source, system, plan, prompts, **options):
                self.step = 0

            def prefill(self):
                tokens = np.array([script[self.step] for script in scripts])
                self.step += 1
                return Prediction(tokens=tokens, logits=np.zeros((len(scripts), 34), np.float32))

            def advance(self, tokens, *, kept):
                told.append((list(tokens), list(kept)))
                return self.prefill()

        monkeypatch.setattr(generating, "Decoder", Script)
        return told

    return install


def test_a_sequence_that_has_ended_leaves_the_others_alone(scripted):
    told = scripted([1, 9, 2, 2], [3, 4, 5, 6])
    pieces = []
    first, second = run([[0], [0]], stop_tokens=[9], on_text=lambda *piece: pieces.append(piece))
    assert (first.tokens, first.ended) == ((1, 9), "stop")
    assert (second.tokens, second.ended) == ((3, 4, 5, 6), "length")
    assert (first.text, second.text) == ("bj", "defg")
    assert pieces == [(0, "b"), (1, "d"), (0, "j"), (1, "e"), (1, "f"), (1, "g")]
    # what has ended is fed its last token, and does not grow
    assert told == [([1, 3], [True, True]), ([9, 4], [False, True]), ([9, 5], [False, True])]


def test_equal_prompts_of_a_batch_are_different_samples(scripted):
    """Logits are all equal, so that only the random numbers decide; alone it is the first."""
    even = Sampling(temperature=1.0, top_k=20, seed=3)
    scripted([0] * N_NEW, [0] * N_NEW, [0] * N_NEW)
    first, other, second = run([[0], [1], [0]], sampling=even)
    assert len({first.tokens, other.tokens, second.tokens}) == 3
    scripted([0] * N_NEW)
    assert run([[0]], sampling=even)[0].tokens == first.tokens


def test_the_program_stops_when_all_have_ended(scripted):
    told = scripted([1, 9, 2, 2], [9, 9, 9, 9])
    assert [one.tokens for one in run([[0], [0]], stop_tokens=[9])] == [(1, 9), (9,)]
    assert len(told) == 1


def test_tokens_that_end_a_turn_stop_by_default(scripted):
    ends = Tokenizer(replace(DATA, eos_token_id=9))
    scripted([1, 9, 2, 2])
    made = generate(WEIGHTS, NODE, ONE, ends, [[0]], max_new_tokens=4, reference=False)
    assert made.continuations[0].tokens == (1, 9)
    assert made.as_dict()["continuations"][0]["ended"] == "stop"


def test_text_comes_in_whole_characters(scripted):
    """The first letter's two bytes are tokens of their own; the second's last one never comes."""
    letters = ("Ã", "©", "x")  # GPT-2's letters for the bytes C3 and A9
    data = replace(DATA, tokens=letters, token_types=(1,) * 3)
    scripted([2, 0, 1, 0])
    pieces = []
    made = generate(
        WEIGHTS,
        NODE,
        ONE,
        Tokenizer(data),
        [[2]],
        max_new_tokens=4,
        reference=False,
        on_text=lambda _, piece: pieces.append(piece),
    )
    assert pieces == ["x", "é", "\ufffd"]
    assert made.continuations[0].text == "xé\ufffd"


@pytest.mark.parametrize(
    ("prompts", "n_new", "message"),
    [
        ([], 1, "no prompt was given"),
        ([[]], 1, "the prompt is empty"),
        ([[1], []], 1, "prompt 2 is empty"),
        ([[1]], 0, "0 new tokens were asked for"),
        ([[0]], 9000, "the prompt and new tokens need 9001 positions; smollm2-135m has 8192"),
        ([[1], [30]], 1, "token 30 was given; smollm2-135m has 0 to 29"),
        ([[-1]], 1, "token -1 was given"),
    ],
)
def test_mistakes_are_one_sentence(prompts, n_new, message):
    with pytest.raises(PlanError, match=message):
        run(prompts, max_new_tokens=n_new)


def test_a_tokenizer_of_another_model_is_refused():
    small = SyntheticWeights(replace(TINY, vocab_size=29))
    with pytest.raises(WeightsError, match="the tokenizer has 30 tokens; smollm2-135m has only 29"):
        generate(small, NODE, ONE, TOKENIZER, PROMPTS)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there; `make weights` fetches it")
def test_the_real_model_knows_the_capital_of_france():
    """Measured 42.7 dB on the first logits, against weights that are not rounded to fp16.

    Asked as a chat it answers in a sentence and ends its turn by itself.
    """
    model = load_gguf(REAL)
    tokenizer = Tokenizer(model.tokenizer, chat_template=model.chat_template)
    bare = "The capital of France is"
    chat = chat_prompt(tokenizer.chat_template, "What is the capital of France?")
    prompts = [tokenizer.encode(bare), tokenizer.encode(chat, begin=False)]
    made = generate(model.weights, NODE, EIGHT, tokenizer, prompts, max_new_tokens=12)
    first, second = made.continuations
    assert first.text.startswith(" Paris")
    assert second.text == "The capital of France is Paris."
    assert second.ended == "stop"
    assert first.argmax_agreement == second.argmax_agreement == 1.0
    assert first.sqnr_db is not None
    assert first.sqnr_db > 35
    text = generation_text([bare, ""], made, EIGHT, NODE)
    assert "12 + 8 tokens, greedy, on 8 virtual chips of groq-node" in text
