"""Text made by models whose kinds of layer have tables of their own, against transformers.

A decoder keeps one copy of the tables for all layers; each kind of layer must read its own.
"""

import numpy as np
import pytest
from small_machines import NODE
from tiny_models import HF_BOUND, checkpoint, oracle

from models.policy import FLOAT32
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.decoding import Decoder

ONE = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=MoeShard())
#: Tokens of the prompt; the rest of the oracle's text is given token by token.
N_PROMPT = 17


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "llama4"])
def test_a_decoder_says_what_transformers_does(name: str) -> None:
    tokens, logits = oracle(name)
    prompts = tokens[:, :N_PROMPT].tolist()
    n_new = tokens.shape[1] - N_PROMPT
    decoder = Decoder(checkpoint(name).weights, NODE, ONE, prompts, policy=FLOAT32, n_new=n_new)
    found = [decoder.prefill().logits]
    found += [
        decoder.advance(tokens[:, i].tolist()).logits for i in range(N_PROMPT, len(tokens[0]))
    ]
    expected = np.moveaxis(logits[:, N_PROMPT - 1 :], 1, 0)
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=HF_BOUND)
