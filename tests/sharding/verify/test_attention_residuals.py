"""Checks of a model with attention residuals, whose reference mixes states too; its hand-overs."""

import dataclasses

import pytest
from small_machines import tiered
from tiny_models import checkpoint, oracle

from lpu_jax.machine.catalogue import system
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import policy_named
from models.weights.synthetic import SyntheticWeights
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.hand_overs import hidden_bytes
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.verify.chosen_layers import check
from sharding.verify.whole_model import check_whole

#: Sixteen-bit arithmetic of five tiny layers keeps about 60 dB of what float32 gives.
SQNR_DB = 50
TREE = Split.TREE
PLANS = (
    Plan(
        group_chips=2,
        attention=AttentionShard(tensor=2),
        mlp=MlpShard(tensor=2),
        moe=MoeShard(expert=2, dispatch=Dispatch.ALL_TO_ALL),
    ),
    Plan(
        group_chips=2,
        attention=AttentionShard(tensor=2, split=TREE),
        mlp=MlpShard(tensor=2, split=TREE),
        moe=MoeShard(expert=2, split=TREE),
    ),
)


def test_a_hand_over_carries_all_states() -> None:
    """By hand: the embedding and eight sums of 7,168 values in 16 bits, of two tokens each."""
    asked = Scenario(
        model("kimi-k3"), system("lpx-15"), Request(batch=3, tokens=2), policy=policy_named("fp16")
    )
    assert hidden_bytes(asked) == 3 * 2 * 9 * 7168 * 2


@pytest.mark.long
def test_every_block_stays_near_its_reference() -> None:
    opened = checkpoint("kimi_k3")
    # Caches come in whole vectors of positions, of which the tiny model has fewer.
    roomy = dataclasses.replace(opened.config, max_position=1024)
    tokens = oracle("kimi_k3")[0][0, :3].tolist()
    source = opened.with_config(roomy).weights
    for result in check_whole(source, tiered(2), PLANS, token_ids=tokens, policy="fp16"):
        assert min(block.sqnr_db for block in result.blocks) > SQNR_DB
        assert all(block.routing is None or not block.routing.flips for block in result.blocks)


@pytest.mark.long
@pytest.mark.parametrize(("layer", "kind"), [(1, "recurrent"), (3, "unrotated")])
def test_a_layer_of_each_kind_runs_at_full_width(layer: int, kind: str) -> None:
    """On sixteen chips, with released formats; four to six GB."""
    cfg = model("kimi-k3")
    plan = Plan(
        group_chips=16,
        attention=AttentionShard(tensor=16),
        mlp=MlpShard(tensor=16),
        moe=MoeShard(expert=16),
    )
    (result,) = check(
        cfg,
        "lpx-15",
        [plan],
        policy="released",
        source=SyntheticWeights(cfg),
        layers=[layer],
        tokens=1,
    )
    assert [block.kind for block in result.blocks] == [kind, "moe"]
    assert min(block.sqnr_db for block in result.blocks) > SQNR_DB
    assert result.routes_agree
