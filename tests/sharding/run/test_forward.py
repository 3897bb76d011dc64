"""Whole models on the chips of a plan, block by block."""

import gc
import weakref
from typing import Any

import jax
import numpy as np
import pytest
from small_machines import NODE
from tiny_models import HF_BOUND, checkpoint, oracle

from lpu_jax.errors import PlanError
from models.policy import FLOAT32, FP16
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.run.forward import forward

ONE_CHIP = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
PLAN = Plan(group_chips=2, attention=AttentionShard(tensor=2), mlp=MlpShard(tensor=2))


class Watched:
    """A weight source that notes what is still alive whenever it is asked."""

    def __init__(self, name: str) -> None:
        self.right = checkpoint(name).weights
        self.config = self.right.config
        self.asked: list[tuple[str, int]] = []
        self.handed_out: list[weakref.ref[np.ndarray]] = []
        self.alive: list[int] = []
        self.device_bytes: list[int] = []

    def block(self, kind: str, layer: int = 0) -> dict[str, Any]:
        gc.collect()
        self.alive.append(sum(array() is not None for array in self.handed_out))
        self.device_bytes.append(sum(array.nbytes for array in jax.live_arrays()))
        self.asked.append((kind, layer))
        # Copies: the source's own arrays may be views of a file.
        arrays = {name: np.array(array) for name, array in self.right.block(kind, layer).items()}
        self.handed_out = [weakref.ref(array) for array in arrays.values()]
        return arrays

    def expert(self, layer: int, expert_id: int) -> dict[str, Any]:
        raise AssertionError("a dense model has no experts")


@pytest.mark.slow
def test_pools_have_the_bits_of_one_chip():
    """Attention on groups of two, MLPs on groups of three: what crosses is what chips hold."""
    weights, (tokens, _) = checkpoint("llama").weights, oracle("llama")
    alone, apart, by_rows = (
        forward(weights, NODE, Plan.parse(name), tokens, policy=FP16).view(np.uint32)
        for name in ("1x1 a:1 f:1", "1x2 a:2t + 2x3 f:3t column", "1x2 a:2t + 2x3 f:3t row")
    )
    assert np.array_equal(apart, alone)
    assert not np.array_equal(by_rows, alone)


@pytest.mark.slow
def test_one_block_is_in_memory_at_a_time():
    source, told = Watched("llama"), []
    tokens, _ = oracle("llama")
    forward(source, NODE, PLAN, tokens, policy=FLOAT32, progress=lambda *step: told.append(step))
    chain = [("attention", 0), ("dense", 0), ("attention", 1), ("dense", 1)]
    assert source.asked == [("embed", 0), *chain, ("head", 1)]
    steps = ["embed of layer 0", *(f"{kind} of layer {layer}" for kind, layer in chain), "head"]
    assert told == [(done, len(steps), what) for done, what in enumerate(steps)]
    assert source.alive == [0] * len(source.asked)
    # Between blocks the hidden state stays, and a copy of it before the head; a block more would
    # be twice as much.
    hidden_bytes = 4 * tokens.size * source.config.d_model
    grown = np.asarray(source.device_bytes[1:]) - source.device_bytes[0]
    assert max(grown) <= 2 * hidden_bytes


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 100])
def test_steps_of_any_length_give_what_one_prefill_gives(step):
    # The last step of 7 is padded by one token.
    tokens, expected = oracle("llama_tied")
    logits = forward(
        checkpoint("llama_tied").weights, NODE, ONE_CHIP, tokens, policy=FLOAT32, step=step
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=HF_BOUND)


@pytest.mark.long
def test_steps_and_companions_change_no_bit():
    # Faithful numerics: what is decoded has the bits of what is prefilled, whatever tokens come
    # behind and whatever sequences lie beside.
    tokens, _ = oracle("llama")
    source = checkpoint("llama").weights
    whole = forward(source, NODE, PLAN, tokens, policy=FP16)
    for step in (1, 7):
        np.testing.assert_array_equal(
            forward(source, NODE, PLAN, tokens, policy=FP16, step=step), whole
        )
    alone = forward(source, NODE, PLAN, tokens[1:, :9], policy=FP16)
    np.testing.assert_array_equal(alone, whole[1:, :9])


@pytest.mark.parametrize(
    ("tokens", "options", "complaint"),
    [
        ([[]], {}, "no tokens were given"),
        ([[1, 64]], {}, r"token 64 was given; llama has 0 to 63"),
        ([[1, -1]], {}, r"token -1 was given"),
        ([[1] * 257], {}, r"257 tokens were given; llama has 256 positions"),
        ([[1, 2]], {"step": 0}, "steps of 0 tokens"),
        ([[1, 2, 3]], {"context": 2}, "3 positions are needed and 320 at most; 2 were asked for"),
        (
            [[1, 2, 3]],
            {"step": 2, "context": 3},
            "4 positions are needed and 320 at most; 3 were asked for",
        ),
    ],
)
def test_bad_input_is_one_sentence(tokens, options, complaint):
    ids = np.asarray(tokens, np.int64)
    with pytest.raises(PlanError, match=complaint):
        forward(checkpoint("llama").weights, NODE, ONE_CHIP, ids, policy=FLOAT32, **options)
