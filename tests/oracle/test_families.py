"""The sharded layers of every family against Hugging Face transformers, in plain float32.

The same files that transformers wrote are read by the product's own reader and run under the policy
`float32`, so that what is left is the model's meaning. Prefill takes all tokens at once; decoding
takes one after the other with a cache, and every position's logits are compared.
"""

import functools

import numpy as np
import pytest
from tiny_models import HF_BOUND, NAMES, checkpoint, difference, oracle

from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import FLOAT32
from sharding.forward import forward
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan

#: Room for the prompt in caches that two chips share out: neither is empty.
CONTEXT = 24

ONE_CHIP = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=MoeShard())
#: Heads, columns and experts over chips; partial sums are added.
ROWS = Plan(
    group_chips=2,
    attention=AttentionShard(tensor=2),
    mlp=MlpShard(tensor=2),
    moe=MoeShard(expert=2),
)
#: Results are gathered instead; experts are split both ways, query heads of one key head too.
COLUMNS = Plan(
    group_chips=4,
    attention=AttentionShard(tensor=4, split=Split.COLUMN),
    mlp=MlpShard(tensor=4, split=Split.COLUMN),
    moe=MoeShard(expert=2, tensor=2, split=Split.COLUMN),
)
#: Positions over chips; partial softmaxes are merged.
POSITIONS = Plan(
    group_chips=4,
    attention=AttentionShard(context=2, tensor=2),
    mlp=MlpShard(tensor=2, replica=2),
    moe=MoeShard(expert=4),
)
#: Sequences over chips, and rows that travel to their experts.
SEQUENCES = Plan(
    group_chips=4,
    attention=AttentionShard(data=2, replica=2),
    mlp=MlpShard(tensor=4),
    moe=MoeShard(expert=2, tensor=2, dispatch=Dispatch.ALL_TO_ALL),
)
#: Shares that do not come out even: experts, vocabulary, and two sequences on three chips.
UNEVEN = Plan(
    group_chips=3,
    attention=AttentionShard(data=3),
    mlp=MlpShard(tensor=3),
    moe=MoeShard(expert=3),
)
PLANS = {
    "one chip": ONE_CHIP,
    "rows": ROWS,
    "columns": COLUMNS,
    "positions": POSITIONS,
    "sequences": SEQUENCES,
    "uneven": UNEVEN,
}
#: Has two query heads only.
TOO_SMALL = {("llama_tied", "columns")}
STEPS = {"prefill": None, "decode": 1}


@functools.cache
def logits(name: str, plan: str, phase: str) -> np.ndarray:
    """What the chips of a plan compute for the prompt."""
    tokens, _ = oracle(name)
    weights = checkpoint(name).weights
    return forward(
        weights, tokens, PLANS[plan], FLOAT32, step=STEPS[phase], context=CONTEXT, tiers=(2,)
    )


@pytest.mark.slow
@pytest.mark.parametrize("phase", STEPS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_a_family_under_a_plan_equals_transformers(name, plan, phase):
    if (name, plan) in TOO_SMALL:
        pytest.skip("has fewer heads than the plan has chips")
    assert difference(logits(name, plan, phase), name) < HF_BOUND
