"""Wrong conventions are seen: each moves the logits far beyond the bound that right ones keep.

`EXPECTED` is the table of what was measured: the largest change of a logit, with the reference in
float32 and one convention wrong, on the tiny model whose convention it is (logits reach 3 to 4).
Right implementations stay within the bound of 2e-5 of transformers; the weakest mistake here is 50
times beyond it.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from mistakes import Mutant, edit
from slices import some_slow
from small_machines import NODE
from tiny_models import HF_BOUND, checkpoint, difference, oracle
from wrong_conventions import MISTAKES

from models.policy import FLOAT32
from models.reference import stream
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.execute import _compiled
from sharding.run.forward import forward

#: Every mistake moves a logit by at least so many bounds.
FACTOR = 50
#: Models whose mistakes are tried in every run; the others in slow ones, as each compiles anew.
QUICK = ("llama", "gpt_oss")
ONE_CHIP = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=MoeShard())

EXPECTED = {
    "rope: neighbours turned instead of halves": 1.62e00,
    "rope: halves turned instead of neighbours": 3.00e00,
    "rope: turned backwards": 1.57e00,
    "rope: llama3 scaling ignored": 3.85e-01,
    "rope: yarn ignored": 2.20e00,
    "rope: yarn with another beta": 4.82e-01,
    "rope: yarn pairs truncated": 3.34e-01,
    "rope: yarn factor of cos and sin dropped": 1.23e00,
    "rope: whole head turned, not its half": 2.45e00,
    "rope: whole head turned, not what phi3 says": 2.54e00,
    "rope: whole head turned, not the half of minimax": 1.46e00,
    "rope: linear scaling ignored": 1.30e00,
    "rope: sliding layers turned as the others": 3.10e00,
    "rope: every pair of global heads turned": 2.35e-01,
    "rope: pairs of global heads within their first part": 1.53e00,
    "rope: every layer turned": 1.44e00,
    "rope: layers marked with 1 not turned": 2.36e00,
    "attention: m squared dropped from the scale": 2.09e00,
    "attention: m instead of m squared": 1.81e00,
    "attention: eps of the model in latent norms": 1.97e-02,
    "attention: keys and values of heads swapped": 4.39e00,
    "attention: query heads grouped the other way": 2.95e00,
    "attention: q and k norms dropped": 1.57e00,
    "attention: q and k normalised after rotation": 9.36e-01,
    "attention: heads of minimax normalised one by one": 1.42e00,
    "attention: scores not capped": 8.68e-01,
    "attention: query_pre_attn_scalar taken for the width of a head": 7.64e-01,
    "attention: values not normalised": 2.99e00,
    "attention: scores of gemma4 multiplied": 2.40e00,
    "attention: q, k and v biases dropped": 1.94e00,
    "attention: output bias dropped": 8.36e-01,
    "attention: sinks dropped": 1.69e00,
    "attention: window one longer": 2.12e00,
    "attention: window one shorter": 2.48e00,
    "attention: window on the other layers": 3.26e00,
    "attention: no window": 3.07e00,
    "attention: no window of mistral": 3.68e00,
    "attention: window on the second layer alone": 4.14e00,
    "attention: window before max_window_layers too": 3.14e00,
    "attention: window of qwen2 switched off": 1.89e00,
    "attention: biases of qwen2 dropped": 3.63e00,
    "attention: the next token is seen": 2.45e00,
    "attention: multiplier taken for the root of a head": 6.45e-01,
    "attention: gate dropped": 2.62e00,
    "attention: queries and gates in halves, not by head": 3.40e00,
    "recurrence: projections in order, not by key head": 4.68e00,
    "recurrence: values and gates swapped": 4.78e00,
    "recurrence: rates and decays swapped": 4.14e00,
    "recurrence: bias of decays dropped": 2.85e-01,
    "recurrence: logarithm taken for the fading": 4.33e00,
    "recurrence: norm of results counts from one": 2.90e00,
    "recurrence: taps reversed": 4.55e00,
    "recurrence: taps one token late": 4.14e00,
    "recurrence: keys not of length one": 3.78e00,
    "recurrence: queries not divided by the root of a head": 5.17e-01,
    "recurrence: state not faded before it is corrected": 7.26e-01,
    "recurrence: state not corrected": 2.56e00,
    "recurrence: read before it is written": 3.31e00,
    "recurrence: gate before the norm": 3.57e00,
    "recurrence: sigmoid for silu in the gate": 4.07e00,
    "recurrence: one decay for all channels": 7.98e-01,
    "recurrence: low ranks of decays and gates swapped": 1.99e00,
    "recurrence: silu for sigmoid in the gate": 3.60e00,
    "rope: latent attention turned though its model says no": 1.82e00,
    "router: softmax instead of sigmoid": 1.65e00,
    "router: sigmoid instead of softmax": 5.15e-01,
    "router: softmax before the choice": 2.71e-01,
    "router: softmax weights not renormalised": 3.94e-01,
    "router: sigmoid weights not renormalised": 1.17e00,
    "router: correction of minimax ignored": 5.34e-01,
    "router: correction ignored": 1.01e00,
    "router: correction in the weights too": 1.62e-01,
    "router: own bias dropped": 2.00e-01,
    "router: groups not limited": 1.11e00,
    "router: groups ranked by their best expert": 1.20e00,
    "router: scaling dropped": 9.21e-01,
    "router: one expert fewer": 6.60e-01,
    "experts: gate and up swapped": 2.26e00,
    "experts: columns taken for halves": 1.33e00,
    "experts: halves taken to alternate": 1.88e00,
    "experts: not clamped": 1.73e00,
    "experts: plain SwiGLU": 2.04e00,
    "experts: alpha of one": 3.13e-01,
    "experts: up without the one": 1.02e00,
    "experts: gate clamped from below too": 1.10e-01,
    "experts: biases dropped": 5.96e-01,
    "experts: no shared expert": 1.39e00,
    "experts: shared expert not gated": 2.72e00,
    "experts: shared expert scaled too": 1.43e00,
    "dense: fused gate and up swapped": 2.72e00,
    "dense: fused columns taken to alternate": 3.36e00,
    "norm: eps of 1e-6 for 1e-5": 1.20e-03,
    "norm: weights count from one": 5.96e00,
    "norm: weights do not count from one": 3.05e00,
    "embedding: multiplier dropped": 4.39e00,
    "residual: multiplier dropped": 3.56e00,
    "head: logits multiplied, not divided": 3.07e00,
    "norm: results not normalised": 2.60e00,
    "residual: layers not scaled": 1.38e00,
    "norm: one not added to weights": 3.14e00,
    "dense: silu instead of gelu": 1.69e00,
    "embedding: root of the width dropped": 3.21e00,
    "head: logits not capped": 2.01e00,
    "head: norm dropped": 8.89e-01,
    "recurrence: B and C swapped": 5.27e-01,
    "recurrence: gates and values of mamba2 swapped": 3.39e00,
    "recurrence: values not multiplied by their step": 1.09e-01,
    "recurrence: steps not kept from their limit": 6.41e-02,
    "recurrence: bias of steps dropped": 7.27e-03,
    "recurrence: biases of convolutions dropped": 3.58e00,
    "recurrence: skip of values dropped": 4.00e00,
    "recurrence: results corrected as by the delta rule": 6.84e-02,
    "recurrence: gate of mamba2 behind the norm": 2.03e00,
    "recurrence: heads of mamba2 normalised one by one": 1.88e00,
    "recurrence: all heads of mamba2 normalised together": 1.58e00,
    "rope: attention of nemotron turned": 9.21e-01,
    "experts: latent rows taken for scaled ones": 3.15e00,
    "experts: not squared": 2.95e00,
    "experts: scaling of nemotron dropped": 1.08e00,
    "experts: shared one of nemotron left out": 5.07e00,
    "dense: squares of what is below zero too": 3.09e00,
    "ling3: decays without a bound": 3.89e00,
    "ling3: another bound of decays": 1.03e00,
    "ling3: fading outside of the sigmoid": 4.32e00,
    "ling3: decays and gates swapped": 2.89e00,
    "ling3: heads of latent attention not gated": 1.98e00,
    "ling3: halves turned instead of neighbours": 8.72e-01,
    "kimi k3: what layers add is added up": 2.51e00,
    "kimi k3: one block of all layers": 2.08e00,
    "kimi k3: an empty sum is read": 1.54e-01,
    "kimi k3: states are not normalised as keys": 2.19e00,
    "kimi k3: weights of keys dropped": 2.45e00,
    "kimi k3: up projections without a limit": 2.04e00,
    "kimi k3: SiLU instead of SiTU": 2.53e00,
    "kimi k3: sums over experts not normalised": 2.17e00,
    "kimi k3: decays without a bound": 1.96e00,
    "kimi k3: values of latent attention not gated": 1.59e00,
    "kimi k3: eps of other classes in latent norms": 6.10e-01,
    "llama4: chunks taken for windows": 3.86e00,
    "llama4: chunk one longer": 4.15e00,
    "llama4: every layer sees all keys": 3.38e00,
    "llama4: queries and keys not normalised": 1.02e00,
    "llama4: queries do not grow": 3.08e-01,
    "llama4: halves turned instead of neighbours": 1.41e00,
    "llama4: slow pairs not slowed": 3.73e-01,
    "llama4: the last layer turned too": 5.47e-01,
    "llama4: results weighed instead of rows": 1.37e-01,
    "llama4: softmax of all scores": 2.46e-01,
    "llama4: no shared expert": 8.41e-01,
    "llama4: gate after up": 1.20e00,
    "gemma4: router given what experts are": 2.78e00,
    "gemma4: experts given what the dense MLP is": 2.53e00,
    "gemma4: results added before they are normalised": 2.26e00,
    "gemma4: weights of experts not scaled": 1.34e00,
    "gemma4: root of the width kept in the router's norm": 1.09e00,
    "gemma4: silu instead of gelu in experts": 1.97e00,
    "mimo: values not scaled": 1.16e00,
    "mimo: sinks dropped": 1.03e00,
    "mimo: window without the query's own key": 1.02e00,
    "mimo: sliding layers turned as the others": 2.66e-01,
    "mimo: values before keys": 4.21e00,
    "mimo: correction ignored": 5.65e-01,
    "step: gates of heads dropped": 2.69e00,
    "step: gates of heads grouped the other way": 3.17e00,
    "step: sliding layers turned as the others": 2.10e00,
    "step: whole heads turned": 3.42e00,
    "step: slow pairs not slowed": 1.17e00,
    "step: window one longer": 2.46e00,
    "step: correction ignored": 1.61e00,
    "step: scaling dropped": 1.59e00,
    "step: no shared expert": 2.09e00,
    "step: gate after up": 2.89e00,
    "qwen2_moe: softmax weights normalised": 1.16e00,
    "qwen2_moe: shared expert not gated": 1.91e00,
    "mimo: biases dropped": 1.10e00,
    "glm4: halves turned instead of neighbours": 2.95e00,
    "glm4: results not normalised": 3.49e00,
    "glm4: norms behind and before an MLP swapped": 2.70e00,
    "olmo2: results not normalised": 4.45e00,
    "olmo2: norms of heads dropped": 3.38e00,
    "olmo3: sliding layers scaled as the others": 1.71e00,
    "olmo3: the other layer slides": 3.87e00,
    "exaone4: every layer turned": 4.67e-01,
    "exaone4: results not normalised": 3.74e00,
    "exaone4: norms of heads dropped": 4.82e00,
    "index: all positions attended to": 4.79e00,
    "index: one position fewer": 4.14e00,
    "index: scores below zero count": 5.45e00,
    "index: weights of heads without their signs": 5.00e00,
    "index: halves of deepseek taken for neighbours": 4.62e00,
    "index: neighbours of glm taken for halves": 3.37e00,
    "index: mean of keys not subtracted": 3.36e00,
    "index: bias of keys dropped": 3.21e00,
    "index: queries not rotated": 2.89e00,
    "blocks: all positions attended to": 2.29e00,
    "blocks: one block fewer": 3.50e00,
    "blocks: of half the positions": 2.25e00,
    "blocks: one more at the token": 2.96e00,
    "blocks: all heads choose as the first": 1.88e00,
    "blocks: heads of the index swapped": 2.24e00,
    "blocks: the mean of a block counts": 3.49e00,
    "blocks: queries not rotated": 2.58e00,
    "blocks: index keys not normalised": 3.72e00,
    "minimax_m3: dense layer not clamped": 4.13e00,
    "minimax_m3: no expert clamped": 3.76e00,
    "minimax_m3: scaling dropped": 7.96e-01,
    "minimax_m3: a quarter of heads turned": 3.24e00,
    "index: layers that follow attend to all": 1.78e00,
}


def test_every_mistake_is_in_the_table():
    assert list(EXPECTED) == list(MISTAKES)
    assert len(MISTAKES) >= 20


@pytest.mark.first(4)
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=() if mistake.model in QUICK else pytest.mark.slow)
        for what, mistake in MISTAKES.items()
    ],
)
def test_a_mistake_in_the_reference_is_seen(what, monkeypatch):
    mistake = MISTAKES[what]
    edit(monkeypatch, mistake.reference)
    mutant = Mutant(checkpoint(mistake.model).weights, mistake)
    moved = difference(stream(mutant, jnp.asarray(oracle(mistake.model)[0])), mistake.model)
    assert moved > FACTOR * HF_BOUND
    # Within the rounding of the table and what another processor's float32 may change.
    assert moved == pytest.approx(EXPECTED[what], rel=0.02)


@pytest.mark.parametrize(
    "what", some_slow([what for what in MISTAKES if MISTAKES[what].is_in_layers], count=2)
)
def test_a_mistake_in_the_layers_is_seen_and_is_the_same(what, monkeypatch):
    mistake = MISTAKES[what]
    tokens, _ = oracle(mistake.model)
    mutant = Mutant(checkpoint(mistake.model).weights, mistake)
    if mistake.layers:
        _compiled.cache_clear()  # programs of the right code
    edit(monkeypatch, mistake.layers)
    # The reference has no keys behind the last token, which a mistake could let it see.
    logits = forward(mutant, NODE, ONE_CHIP, tokens, policy=FLOAT32, context=tokens.shape[1])
    if mistake.layers:
        _compiled.cache_clear()
    assert difference(logits, mistake.model) > FACTOR * HF_BOUND
    edit(monkeypatch, mistake.reference)
    same = np.asarray(stream(mutant, jnp.asarray(tokens)))
    np.testing.assert_allclose(logits, same, rtol=0, atol=HF_BOUND)
