"""Block-sparse attention: what it is where all is chosen, and that no split moves a choice or bit.

The contexts are longer than one chip's run of positions, whose length is no multiple of a block's,
and several times as long as what is chosen.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from placed_blocks import hidden, plan, sqnr_db
from slices import some_slow
from small_machines import tiered

from lpu_jax.errors import ConfigError
from models import zoo
from models.config import BlockIndexConfig, GqaConfig, ModelConfig, MoeConfig
from models.layers.linear import Split
from models.policy import FP16
from models.weights.synthetic import SyntheticWeights
from sharding.plan import Plan
from sharding.request import Request
from sharding.run.execute import run_attention
from sharding.run.load import place_block, store_block
from sharding.run.unplaced import block_state, restored_block

BATCH, HELD, TOKENS, CONTEXT, BLOCK, TOP = 2, 700, 3, 960, 48, 3
ONE = plan("attention", tensor=1)
SYSTEM = tiered(2)


def sparse(top_blocks: int) -> ModelConfig:
    """One layer, of two heads of keys with two queries each."""
    index = BlockIndexConfig(head_dim=32, block_size=BLOCK, top_blocks=top_blocks, local_blocks=1)
    named = zoo.model("minimax-m3")
    return replace(
        named,
        name="tiny blocks",
        n_layers=1,
        d_model=96,
        d_ff=160,
        vocab_size=128,
        attention=GqaConfig(n_heads=4, n_kv_heads=2, head_dim=32, qk_norm=True, block_index=index),
        rope=replace(named.rope, dim=16),
        moe=MoeConfig(n_experts=4, top_k=2, n_shared=1, d_expert=32, swiglu_limit=7.0),
        blocked_layers=(0,),
    )


def dense(cfg: ModelConfig) -> ModelConfig:
    attention = replace(cfg.attention, block_index=None)
    return replace(cfg, attention=attention, blocked_layers=(), name="tiny dense")


CFG = sparse(TOP)


class Alike(SyntheticWeights):
    """Random weights that do not depend on the kind of a block's attention."""

    def block(self, kind: str, layer: int = 0) -> Any:
        wanted = super().block(kind, layer)
        everything = SyntheticWeights(CFG).block("blocked", layer)
        return {name: everything[name] for name in wanted}


class Chips:
    """A block on the chips of a plan, whose caches hold random entries of `HELD` positions."""

    def __init__(self, the_plan: Plan, cfg: ModelConfig = CFG, context: int = CONTEXT) -> None:
        self.stored = store_block(Alike(cfg), cfg.layer_kinds(0)[0], 0, FP16)
        self.cfg, self.plan, self.context = cfg, the_plan, context
        self.cache: Any = None

    def place(self, n_tokens: int) -> Any:
        request = Request(batch=BATCH, tokens=n_tokens, context=self.context)
        block = place_block(self.stored, SYSTEM, self.plan, request)
        if self.cache is None:
            self.cache = filled(block.arguments[2])
        return block

    def run(self, x: Any, start: int = HELD, way: str = "virtual") -> np.ndarray:
        block, positions = self.place(x.shape[1]), np.full(len(x), start, np.int32)
        y, self.cache = run_attention(self.cfg, block, x, self.cache, positions, execution=way)
        return np.asarray(y)


def filled(empty: Any) -> dict[str, np.ndarray]:
    """Entries of the positions before the new tokens, the same ones in any layout."""
    rng = np.random.default_rng(3)
    keys, values = rng.normal(size=(2, BATCH, 2, HELD, 32)).astype(np.float16)
    entries = {
        "key_rows": keys,
        "value_rows": values,
        "index_keys": rng.normal(size=(BATCH, 32, HELD)).astype(np.float16),
        "keys": keys.swapaxes(2, 3),
        "values": values,
    }
    made = {}
    for name, zeros in empty.items():
        missing = np.array(zeros.shape) - entries[name].shape
        assert (missing >= 0).all()
        made[name] = np.pad(entries[name], [(0, n) for n in missing])
    return made


X = np.asarray(hidden(BATCH, TOKENS, CFG.d_model))


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    return Chips(ONE).run(X)


@pytest.mark.parametrize(
    ("ways", "way"),
    some_slow(
        [
            ({"tensor": 2}, "virtual"),
            ({"tensor": 4}, "virtual"),
            ({"data": 2, "tensor": 2}, "devices"),
            ({"tensor": 4}, "nested"),
        ],
        count=1,
    ),
)
def test_chips_that_share_heads_out_choose_as_one_does(
    alone: np.ndarray, ways: dict[str, int], way: str
) -> None:
    made = Chips(plan("attention", Split.COLUMN, **ways)).run(X, way=way)
    np.testing.assert_array_equal(made, alone)


@pytest.mark.long
@pytest.mark.parametrize("ways", [{"context": 3}, {"context": 2, "tensor": 2}])
def test_chips_that_share_positions_out_choose_alike_and_merge(
    alone: np.ndarray, ways: dict[str, int]
) -> None:
    made = Chips(plan("attention", Split.COLUMN, **ways)).run(X)
    # Another choice, of a block more or less, is far off.
    assert sqnr_db(alone - X, made - X) > 55
    other = Chips(ONE, sparse(TOP + 1)).run(X)
    assert sqnr_db(alone - X, other - X) < 25


@pytest.mark.slow
def test_decode_is_prefill_and_a_longer_cache_moves_no_bit(alone: np.ndarray) -> None:
    chips = Chips(ONE, context=1280)
    made = [chips.run(X[:, t : t + 1], start=HELD + t) for t in range(TOKENS)]
    np.testing.assert_array_equal(np.concatenate(made, axis=1), alone)


@pytest.mark.long
def test_where_all_is_chosen_the_bits_are_those_of_attention_to_all() -> None:
    cfg = sparse(CONTEXT // BLOCK)
    found, expected = (Chips(ONE, own).run(X) for own in (cfg, dense(cfg)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ways", some_slow([{"tensor": 2}, {"context": 3}], count=1))
def test_of_equal_scores_the_first_blocks_are_taken(ways: dict[str, int]) -> None:
    """Index queries that are zero make all scores so: the token's own block, and the first two."""
    chips = Chips(plan("attention", Split.COLUMN, **ways))
    chips.stored.weights["index_q"] = 0 * chips.stored.weights["index_q"]
    expected = chips.run(X)
    hidden_from_view = Chips(plan("attention", Split.COLUMN, **ways))
    hidden_from_view.stored.weights["index_q"] = 0 * chips.stored.weights["index_q"]
    hidden_from_view.place(TOKENS)
    own = HELD // BLOCK * BLOCK
    for name in ("key_rows", "value_rows"):
        hidden_from_view.cache[name][:, :, 2 * BLOCK : own] = 7
    np.testing.assert_array_equal(hidden_from_view.run(X), expected)


@pytest.mark.slow
def test_a_cache_moves_to_the_chips_of_another_plan(alone: np.ndarray) -> None:
    chips, positions = Chips(plan("attention", tensor=2)), np.full(BATCH, HELD, np.int32)
    block = chips.place(TOKENS)
    state = block_state(CFG, block, 0, cache=chips.cache, positions=positions)
    assert {name: values.shape for name, values in state.cache.items()} == {
        "key_rows": (BATCH, 2, HELD, 32),
        "value_rows": (BATCH, 2, HELD, 32),
        "index_keys": (BATCH, 32, HELD),
    }
    other = restored_block(state, SYSTEM, ONE, block.request, positions)
    y, _ = run_attention(CFG, other, X, other.arguments[2], positions)
    np.testing.assert_array_equal(np.asarray(y), alone)


def test_what_a_model_with_blocks_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers that attend to blocks need an index"):
        replace(CFG, blocked_layers=())
    with pytest.raises(ConfigError, match="layers that attend to blocks need an index"):
        replace(dense(CFG), blocked_layers=(0,))
    with pytest.raises(ConfigError, match=r"nor without rotation, got \[0\]"):
        replace(CFG, unrotated_layers=(0,))
    narrow = replace(CFG.attention.block_index, head_dim=8)
    with pytest.raises(ConfigError, match=r"rope\.dim must be at most the width of an index head"):
        replace(CFG, attention=replace(CFG.attention, block_index=narrow))
    with pytest.raises(ConfigError, match="must have no sinks, no gates"):
        replace(CFG.attention, sinks=True)
    with pytest.raises(ConfigError, match="clamps_dense needs experts that are clamped"):
        replace(CFG, moe=replace(CFG.moe, swiglu_limit=None))
    with pytest.raises(ConfigError, match=r"local_blocks must be at most top_blocks, 3, got 4"):
        replace(CFG.attention.block_index, local_blocks=4)
