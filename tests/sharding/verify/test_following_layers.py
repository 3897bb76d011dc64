"""Layers that attend where another does: checked with it, and resumed in between."""

import dataclasses

import numpy as np
import pytest
from small_machines import tiered
from tiny_models import checkpoint

from lpu_jax.errors import PlanError
from models.policy import FLOAT32
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.verify.chosen_layers import check_layers, default_layers
from sharding.verify.whole_model import check_whole

PLAN = Plan(
    group_chips=2,
    attention=AttentionShard(tensor=2),
    mlp=MlpShard(tensor=2),
    moe=MoeShard(expert=2),
)
#: More than a token of the tiny model attends to.
TOKENS = (3, 14, 15, 9, 26, 5, 35, 8)
#: In float32 only the order of sums differs from the reference.
SQNR_DB = 100


class Stopped(Exception):
    """The run is to be resumed."""


@pytest.mark.slow
def test_a_model_whose_layers_follow_is_checked_and_resumed(tmp_path):
    tiny, state = checkpoint("glm_moe_dsa"), tmp_path / "state"
    # Room for a chip's vector of positions.
    source = tiny.with_config(dataclasses.replace(tiny.config, max_position=1024)).weights

    def stop_before(what):
        def progress(done, total, step):
            if step == what:
                raise Stopped

        return progress

    asked = {"token_ids": TOKENS, "policy": FLOAT32}
    with pytest.raises(Stopped):
        check_whole(
            source, tiered(2), [PLAN], **asked, resume=state,
            progress=stop_before("following of layer 1"),
        )  # fmt: skip
    (resumed,) = check_whole(source, tiered(2), [PLAN], **asked, resume=state)
    (whole,) = check_whole(source, tiered(2), [PLAN], **asked)
    assert min(block.sqnr_db for block in whole.blocks) > SQNR_DB
    np.testing.assert_array_equal(resumed.logits, whole.logits)
    assert [block.kind for block in whole.blocks][::2] == ["indexed", "following"] * 2


def test_a_layer_is_checked_behind_the_one_it_follows():
    cfg = model("glm-5.2")
    assert default_layers(cfg) == (0, 2, 3)
    assert default_layers(model("glm-5")) == (0, 3)
    assert check_layers(cfg, [2, 3, 5]) == (2, 3, 5)
    for layers in ([3], [2, 6, 3]):
        with pytest.raises(PlanError, match=r"layer 3 was asked for; it attends where layer 2"):
            check_layers(cfg, layers)
