"""The sharded layers of every family against Hugging Face transformers, in plain float32.

The same files that transformers wrote are read by the product's own reader and run under the policy
`float32`, so that what is left is the model's meaning. Prefill takes all tokens at once; decoding
takes one after the other with a cache, and every position's logits are compared. Stages are left
out: they change no value, as `sharding.run.forward` says.
"""

import dataclasses

import numpy as np
import pytest
from slices import some_slow
from small_machines import tiered
from tiny_models import HF_BOUND, NAMES, checkpoint, difference, oracle

from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import FLOAT32
from models.weights.source import WeightSource
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.forward import forward

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
STEPS = {"prefill": None, "decode": 1}
#: Decoding repeats the programs of the blocks: enough where the cache is laid out differently.
DECODED = ("one chip", "columns", "positions")
#: Most of what families and plans have in one case.
TELLING = ("gpt_oss", "positions", "prefill")
#: Every family is among the slow tests under this plan, and these are where one chip decodes.
SHORT, DECODED_SLOWLY = ("rows", "prefill"), ("deepseek_v3",)


def cases() -> list[object]:
    """Every family under every plan; released formats, whose model is the same, under one."""
    chosen = []
    for name in NAMES:
        is_narrow = name.endswith(("bf16", "fp8", "int4", "mxfp4"))
        # The tied model has two query heads, fewer than the chips of `COLUMNS`.
        plans = (
            ["rows"] if is_narrow else [p for p in PLANS if (name, p) != ("llama_tied", "columns")]
        )
        for plan in plans:
            for phase in STEPS:
                if phase == "prefill" or plan in DECODED:
                    chosen.append(
                        pytest.param(name, plan, phase, marks=marks_of(name, plan, phase))
                    )
    return chosen


def marks_of(name: str, plan: str, phase: str) -> object:
    decodes = name in DECODED_SLOWLY and (plan, phase) == ("one chip", "decode")
    is_short = (plan, phase) == SHORT or (name, plan, phase) == TELLING or decodes
    return pytest.mark.slow if is_short else pytest.mark.long


def logits(weights: WeightSource, name: str, plan: str, phase: str) -> np.ndarray:
    """What the chips of a plan compute for the prompt."""
    tokens, _ = oracle(name)
    options = {"step": STEPS[phase], "context": CONTEXT, "policy": FLOAT32}
    return forward(weights, tiered(2), PLANS[plan], tokens, **options)


@pytest.mark.parametrize(("name", "plan", "phase"), cases())
def test_a_family_under_a_plan_equals_transformers(name, plan, phase):
    assert difference(logits(checkpoint(name).weights, name, plan, phase), name) < HF_BOUND


@pytest.mark.parametrize(
    ("name", "plan", "phase"),
    some_slow(
        [
            (name, plan, phase)
            for name in ("deepseek_v3", "bailing_hybrid")
            for plan in ("rows", "columns", "positions", "one chip")
            for phase in STEPS
        ],
        count=1,
    ),
)
def test_expanded_latent_attention_equals_transformers(name, plan, phase):
    absorbed = checkpoint(name)
    attention = dataclasses.replace(absorbed.config.attention, form="expanded")
    expanded = absorbed.with_config(dataclasses.replace(absorbed.config, attention=attention))
    assert difference(logits(expanded.weights, name, plan, phase), name) < HF_BOUND
