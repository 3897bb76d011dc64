"""Sparse latent attention: what it is where all is chosen, and that no split moves a choice or bit.

The contexts are longer than one chip's run of positions, so that every chip has index keys, and
several times as long as what is chosen.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from placed_blocks import TINY_KIMI, hidden, place, plan, sqnr_db
from slices import some_slow
from small_machines import tiered

from lpu_jax.errors import ConfigError, PlanError
from models.blocks import Kind
from models.config import ModelConfig
from models.index_config import IndexConfig
from models.layers.linear import Split
from models.policy import FP16
from models.weights.synthetic import SyntheticWeights
from sharding.plan import Plan
from sharding.request import Request
from sharding.run.execute import Relay, run_attention
from sharding.run.load import place_block, store_block
from sharding.run.unplaced import block_state, restored_block

BATCH, HELD, TOKENS, CONTEXT, TOP_K = 2, 700, 3, 960, 40
ONE = plan("attention", tensor=1)
SYSTEM = tiered(2)


def sparse(top_k: int) -> ModelConfig:
    """Two layers, of which the second follows the first."""
    index = IndexConfig(n_heads=6, head_dim=32, top_k=top_k)
    attention = replace(TINY_KIMI.attention, index=index)
    return replace(TINY_KIMI, attention=attention, following_layers=(1,), name="tiny sparse")


def dense(cfg: ModelConfig) -> ModelConfig:
    attention = replace(cfg.attention, index=None)
    return replace(cfg, attention=attention, following_layers=(), name="tiny dense")


CFG = sparse(TOP_K)


class Alike(SyntheticWeights):
    """Random weights that do not depend on the kind of a block's attention."""

    def block(self, kind: str, layer: int = 0) -> Any:
        wanted = super().block(kind, layer)
        everything = SyntheticWeights(replace(CFG, following_layers=())).block("indexed", layer)
        return {name: everything[name] for name in wanted}


class Chips:
    """A block on the chips of a plan, whose caches hold random entries of `HELD` positions."""

    def __init__(
        self, the_plan: Plan, cfg: ModelConfig = CFG, layer: int = 0, context: int = CONTEXT
    ) -> None:
        kind: Kind = cfg.layer_kinds(layer)[0]
        self.stored = store_block(Alike(cfg), kind, layer, FP16)
        self.cfg, self.plan, self.context = cfg, the_plan, context
        self.cache: Any = None

    def place(self, n_tokens: int) -> Any:
        request = Request(batch=BATCH, tokens=n_tokens, context=self.context)
        block = place_block(self.stored, SYSTEM, self.plan, request)
        if self.cache is None:
            self.cache = filled(block.arguments[2])
        return block

    def run(
        self, x: Any, relay: Relay | None = None, start: int = HELD, way: str = "virtual"
    ) -> np.ndarray:
        block, positions = self.place(x.shape[1]), np.full(len(x), start, np.int32)
        y, self.cache = run_attention(
            self.cfg, block, x, self.cache, positions, relay=relay, execution=way
        )
        return np.asarray(y)


def filled(empty: Any) -> dict[str, np.ndarray]:
    """Entries of the positions before the new tokens, the same ones in any layout."""
    rng, axis = np.random.default_rng(3), {"latents": 1, "index_keys": 2, "keys": 2, "values": 1}
    width = CFG.attention.cached_values_per_token
    latents = rng.normal(size=(BATCH, HELD, width)).astype(np.float16)
    keys = rng.normal(size=(BATCH, CFG.index.head_dim, HELD)).astype(np.float16)
    entries = {
        "latents": latents,
        "index_keys": keys,
        "keys": latents.swapaxes(1, 2),
        "values": latents[..., : CFG.attention.kv_lora_rank],
    }
    made = {}
    for name, values in empty.items():
        missing = np.array(values.shape) - entries[name].shape
        assert missing[axis[name]] == missing.sum() >= 0
        made[name] = np.pad(entries[name], [(0, n) for n in missing])
    return made


X = np.asarray(hidden(BATCH, TOKENS, CFG.d_model))


def told(the_plan: Plan, way: str = "virtual") -> tuple[np.ndarray, np.ndarray]:
    """Results of the new tokens, and where they attend."""
    relay = Relay()
    return Chips(the_plan).run(X, relay, way=way), np.asarray(relay.positions)


@pytest.fixture(scope="module")
def alone() -> tuple[np.ndarray, np.ndarray]:
    return told(ONE)


@pytest.mark.slow
def test_a_token_attends_to_as_many_positions_as_it_may(alone: Any) -> None:
    chosen = alone[1]
    assert chosen.shape == (BATCH, TOKENS, TOP_K)
    assert (np.diff(chosen, axis=-1) > 0).all()
    assert (chosen >= 0).all()
    assert (chosen <= HELD + np.arange(TOKENS)[:, None]).all()
    # Some lie on each of three chips that share the positions out.
    assert all(set(row // 320) == {0, 1, 2} for row in chosen.reshape(-1, TOP_K))


@pytest.mark.parametrize(
    ("ways", "way"),
    some_slow(
        [
            ({"tensor": 3}, "virtual"),
            ({"data": 2, "tensor": 2}, "devices"),
            ({"tensor": 4}, "nested"),
        ],
        count=1,
    ),
)
def test_chips_that_share_the_index_out_choose_as_one_does(
    alone: Any, ways: dict[str, int], way: str
) -> None:
    made, chosen = told(plan("attention", Split.COLUMN, **ways), way)
    np.testing.assert_array_equal(chosen, alone[1])
    np.testing.assert_array_equal(made, alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("ways", [{"context": 3}, {"context": 2, "tensor": 2}])
@pytest.mark.parametrize("order", [("context", "tensor"), ("tensor", "context")])
def test_chips_that_share_positions_out_choose_alike_and_merge(
    alone: Any, ways: dict[str, int], order: tuple[str, ...]
) -> None:
    split = plan("attention", Split.COLUMN, **ways)
    attention = replace(split.attention, order=("replica", "data", *order))
    made, chosen = told(replace(split, attention=attention))
    np.testing.assert_array_equal(chosen, alone[1])
    assert sqnr_db(alone[0] - X, made - X) > 55


@pytest.mark.slow
def test_decode_is_prefill_and_a_longer_cache_moves_no_bit(alone: Any) -> None:
    chips = Chips(ONE, context=1280)
    made = [chips.run(X[:, t : t + 1], start=HELD + t) for t in range(TOKENS)]
    np.testing.assert_array_equal(np.concatenate(made, axis=1), alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [CONTEXT, HELD + TOKENS])
def test_where_all_is_chosen_the_bits_are_those_of_attention_to_all(top_k: int) -> None:
    cfg = sparse(top_k)
    found, expected = (Chips(ONE, own).run(X) for own in (cfg, dense(cfg)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_what_is_left_out_matters(alone: Any) -> None:
    assert np.abs(Chips(ONE, dense(CFG)).run(X) - alone[0]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("ways", [{"tensor": 3}, {"context": 3}])
def test_of_equal_scores_the_first_positions_are_taken(ways: dict[str, int]) -> None:
    """Weights of heads that are zero make all scores so."""
    chips, relay = Chips(plan("attention", Split.COLUMN, **ways)), Relay()
    chips.stored.weights["index_weights"] = 0 * chips.stored.weights["index_weights"]
    chips.run(X, relay)
    first = np.broadcast_to(np.arange(TOP_K), (BATCH, TOKENS, TOP_K))
    np.testing.assert_array_equal(np.asarray(relay.positions), first)


@pytest.mark.slow
def test_a_layer_that_follows_attends_where_it_is_told() -> None:
    relay = Relay()
    expected = Chips(ONE, replace(CFG, following_layers=()), layer=1).run(X, relay)
    np.testing.assert_array_equal(Chips(ONE, layer=1).run(X, relay), expected)
    first = np.broadcast_to(np.arange(TOP_K, dtype=np.int32), np.shape(relay.positions))
    assert np.abs(Chips(ONE, layer=1).run(X, Relay(first)) - expected).max() > 0


def test_a_layer_that_follows_must_be_told() -> None:
    with pytest.raises(PlanError, match="where it attends is not known; run the last indexed"):
        Chips(ONE, layer=1).run(X)


@pytest.mark.slow
def test_a_cache_moves_to_the_chips_of_another_plan(alone: Any) -> None:
    chips, positions = Chips(plan("attention", tensor=3)), np.full(BATCH, HELD, np.int32)
    block = chips.place(TOKENS)
    state = block_state(CFG, block, 0, cache=chips.cache, positions=positions)
    assert {name: values.shape for name, values in state.cache.items()} == {
        "latents": (BATCH, HELD, 64 + 16),
        "index_keys": (BATCH, 32, HELD),
    }
    other = restored_block(state, SYSTEM, ONE, block.request, positions)
    y, _ = run_attention(CFG, other, X, other.arguments[2], positions)
    np.testing.assert_array_equal(np.asarray(y), alone[0])


def test_what_a_model_with_an_index_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="must have a latent of queries and be absorbed"):
        CFG.with_latent_form("expanded")
    with pytest.raises(ConfigError, match="layer 0 must have an index"):
        replace(CFG, following_layers=(0, 1))
    with pytest.raises(ConfigError, match="no layer has an index, so none can follow"):
        replace(TINY_KIMI, following_layers=(1,))
    with pytest.raises(ConfigError, match="latent attention with rotation; 1 has another"):
        replace(CFG, following_layers=(), unrotated_layers=(1,))
    with pytest.raises(ConfigError, match=r"following_layers must be ascending layers from 0 to 1"):
        replace(CFG, following_layers=(2,))
    assert place(CFG, "following", ONE, Request(context=320)).kind == "following"
