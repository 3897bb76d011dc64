"""Families whose layers exchange or normalise more than others: columns over chips move no bit."""

import numpy as np
import pytest
from small_machines import tiered
from tiny_models import checkpoint, oracle

from models.layers.linear import Split
from models.policy import FP16
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.forward import forward

COLUMN = Split.COLUMN


def columns(tensor: int) -> Plan:
    """Attention over more chips than there are heads of keys, or unevenly, or on one."""
    return Plan(
        group_chips=tensor,
        attention=AttentionShard(tensor=tensor, split=COLUMN),
        mlp=MlpShard(tensor=tensor, split=COLUMN),
        moe=MoeShard(tensor=tensor, split=COLUMN),
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["minimax_m2", "gemma4", "bailing_hybrid", "kimi_k3", "step3p7"])
def test_no_number_of_chips_moves_a_bit(name):
    tokens, weights = oracle(name)[0], checkpoint(name).weights
    one, two, four = (
        forward(weights, tiered(2), columns(n), tokens, policy=FP16, context=24) for n in (1, 2, 4)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, four)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gemma4_moe", "kimi_k3", "llama4"])
@pytest.mark.parametrize("split", [Split.TREE, Split.WIDE, Split.COLUMN])
def test_no_split_of_experts_moves_a_bit(name, split):
    tokens, weights = oracle(name)[0], checkpoint(name).weights

    def over(tensor: int, expert: int) -> np.ndarray:
        plan = Plan(
            group_chips=tensor * expert,
            attention=AttentionShard(tensor=tensor * expert, split=split),
            mlp=MlpShard(tensor=tensor * expert, split=split),
            moe=MoeShard(tensor=tensor, expert=expert, split=split),
        )
        return forward(weights, tiered(2), plan, tokens, policy=FP16, context=24)

    one = over(1, 1)
    np.testing.assert_array_equal(one, over(2, 1))
    np.testing.assert_array_equal(one, over(2, 2))


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["gemma3", "gemma4", "llama4", "bailing_hybrid", "kimi_k3", "step3p7"]
)
def test_decoding_gives_the_bits_of_prefill(name):
    tokens, weights = oracle(name)[0], checkpoint(name).weights
    options = {"policy": FP16, "context": 24}
    at_once = forward(weights, tiered(2), columns(1), tokens, **options)
    one_by_one = forward(weights, tiered(2), columns(1), tokens, step=1, **options)
    np.testing.assert_array_equal(at_once, one_by_one)
