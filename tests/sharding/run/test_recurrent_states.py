"""States of recurrent layers while text is made: padded prompts, ended sequences, saved states."""

from dataclasses import replace

import numpy as np
import pytest
from placed_blocks import TINY_NEXT, hidden, plan
from saved_states import state_of
from small_machines import NODE, tiered

from models.blocks import block_chain
from models.policy import FP16
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.request import Request
from sharding.run.decoding import Decoder
from sharding.run.execute import run_attention
from sharding.run.forward import forward
from sharding.run.load import load_block
from sharding.run.saved import restore_state, save_state
from sharding.run.unplaced import block_state

#: One recurrent layer before the one that attends: its tables come from a later block.
CFG = replace(TINY_NEXT, n_layers=2, recurrent_layers=(0,), moe=None)
WEIGHTS = SyntheticWeights(CFG)
ONE = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
PROMPTS = [[1, 2, 3, 4, 5], [6, 7], [8]]
N_NEW = 3


@pytest.mark.long
def test_padded_prompts_and_ended_sequences_leave_states_as_whole_texts_do() -> None:
    """Bit for bit: what a decoder says, and a forward pass over each whole text, without padding.

    The second sequence stands still for a step, as one that has ended, and then goes on.
    """
    decoder = Decoder(WEIGHTS, NODE, ONE, PROMPTS, policy=FP16, n_new=N_NEW)
    texts, given = [list(prompt) for prompt in PROMPTS], [[9, 10, 11], [12, 13, 14], [15, 16, 17]]
    made = [decoder.prefill().logits]
    for tokens, kept in zip(given, ([True] * 3, [True, False, True], [True] * 3), strict=True):
        made.append(decoder.advance(tokens, kept=kept).logits)
        for text, token, grows in zip(texts, tokens, kept, strict=True):
            text += [token] if grows else []
    longest = max(map(len, texts))
    padded = np.array([text + [0] * (longest - len(text)) for text in texts], np.int32)
    whole = forward(WEIGHTS, NODE, ONE, padded, policy=FP16)
    for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        np.testing.assert_array_equal(made[0][i], whole[i, len(prompt) - 1], f"prompt {i}")
        np.testing.assert_array_equal(made[-1][i], whole[i, len(text) - 1], f"text {i}")


@pytest.mark.long
def test_a_state_goes_on_under_another_plan_with_the_same_bits(tmp_path) -> None:
    first, second = plan("attention", data=3), plan("attention", tensor=4)
    request, machine = Request(batch=3, tokens=1, context=320), tiered(2)
    block = load_block(WEIGHTS, machine, first, "recurrent", 0, request, policy=FP16)
    cache, positions = block.arguments[2], np.zeros(3, np.int32)
    for step in range(3):
        given = hidden(3, 1, CFG.d_model, seed=step)
        out, cache = run_attention(CFG, block, given, cache, positions)
        positions = positions + 1
    taken = block_state(CFG, block, 0, cache=cache, positions=positions)
    out = np.asarray(out)
    saved = state_of(CFG, "fp16", [taken], plan=first, positions=positions, hidden=out)
    save_state(tmp_path, saved)
    expected, _ = run_attention(CFG, block, out, cache, positions)

    restored = restore_state(tmp_path, CFG, machine, second, request, policy=FP16)
    ((_, other),) = restored.blocks
    assert {name: values.shape[0] for name, values in other.arguments[2].items()} == {
        "state": 3,
        "qk_inputs": 3,
        "v_inputs": 3,
    }
    found, _ = run_attention(CFG, other, out, other.arguments[2], restored.positions)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    fresh = load_block(WEIGHTS, machine, second, "recurrent", 0, request, policy=FP16)
    begun, _ = run_attention(CFG, fresh, out, fresh.arguments[2], restored.positions)
    assert np.abs(np.asarray(begun) - np.asarray(found)).max() > 0.01


def test_the_chain_has_a_recurrent_block_where_a_layer_does_not_attend() -> None:
    kinds = [block.kind for block in block_chain(TINY_NEXT)]
    layers = [kind for kind in kinds if kind not in ("embed", "moe", "head")]
    assert layers == ["recurrent", "attention", "recurrent"]
