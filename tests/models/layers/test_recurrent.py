"""Recurrent blocks: decode is prefill, padding leaves no trace, columns and trees move no bit."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_NEMOTRON, TINY_NEXT, hidden, place, plan, sqnr_db
from slices import some_slow
from small_machines import tiered

from models.config import ModelConfig
from models.layers.linear import Split
from models.reference import reference_block
from models.weights.synthetic import SyntheticWeights
from sharding.plan import Plan
from sharding.request import Request
from sharding.run.execute import run_attention

BATCH, TOKENS = 2, 6
#: The block's change of the hidden state against float32 weights that are not rounded to float16.
SQNR_DB = 57.0
ONE = plan("attention", tensor=1)


#: Kimi Delta Attention: a decay of every channel.
CHANNELS = replace(
    TINY_NEXT, recurrent=replace(TINY_NEXT.recurrent, n_key_heads=4, channel_rank=20)
)
#: The same from one matrix each, with a bound of decays, and two value heads of each key head.
BOUNDED = replace(
    TINY_NEXT, recurrent=replace(TINY_NEXT.recurrent, is_full_rank=True, decay_bound=-0.8)
)


def run(
    the_plan: Plan = ONE,
    *,
    cfg: ModelConfig = TINY_NEXT,
    step: int = TOKENS,
    counts: Any = None,
    way: str = "virtual",
    policy: str = "fp16",
    batch: int = BATCH,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Give a block its tokens in steps of equal length; the hidden states and what it keeps."""
    request = Request(batch=batch, tokens=step, context=320)
    block = place(cfg, "recurrent", the_plan, request, policy=policy, system=tiered(2))
    x, cache, made = hidden(BATCH, TOKENS, cfg.d_model)[:batch], block.arguments[2], []
    for start in range(0, TOKENS, step):
        positions = np.full(batch, start, np.int32)
        given = x[:, start : start + step]
        y, cache = run_attention(cfg, block, given, cache, positions, counts, execution=way)
        made.append(np.asarray(y))
    return np.concatenate(made, axis=1), {name: np.asarray(kept) for name, kept in cache.items()}


@pytest.fixture(scope="module")
def prefilled() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return run()


@pytest.mark.slow
@pytest.mark.parametrize(("cfg", "layer"), [(TINY_NEXT, 2), (TINY_NEMOTRON, 0), (BOUNDED, 2)])
def test_a_block_is_that_of_the_reference(cfg: ModelConfig, layer: int) -> None:
    x = np.asarray(hidden(BATCH, TOKENS, cfg.d_model), np.float32)
    weights = SyntheticWeights(cfg).block("recurrent", layer)
    expected = np.asarray(reference_block(cfg, "recurrent", weights)(jnp.asarray(x)))
    assert sqnr_db(expected - x, run(cfg=cfg)[0].astype(np.float32) - x) > SQNR_DB


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
def test_decode_is_prefill(prefilled: Any, step: int) -> None:
    found, kept = run(step=step)
    np.testing.assert_array_equal(found, prefilled[0])
    for name, values in prefilled[1].items():
        np.testing.assert_array_equal(kept[name], values, name)


@pytest.mark.parametrize(
    ("ways", "split", "way"),
    some_slow(
        [
            # Key heads over two chips, then the value heads of each over two more.
            ({"tensor": 4}, Split.COLUMN, "virtual"),
            ({"data": 2, "tensor": 2}, Split.COLUMN, "devices"),
            # There are no positions to share out: copies.
            ({"context": 2, "tensor": 2}, Split.COLUMN, "virtual"),
            ({"data": 3}, Split.COLUMN, "virtual"),
        ],
        count=1,
    ),
)
def test_a_split_by_columns_moves_no_bit(
    prefilled: Any, ways: dict[str, int], split: Split, way: str
) -> None:
    found, kept = run(plan("attention", split, **ways), step=2, way=way)
    np.testing.assert_array_equal(found, prefilled[0])
    np.testing.assert_array_equal(kept["state"][:BATCH], prefilled[1]["state"])


@pytest.mark.parametrize(
    ("cfg", "ways"),
    some_slow(
        [
            # Results of a group are normalised together, though two chips share out its heads.
            (TINY_NEMOTRON, {"tensor": 4}),
            (TINY_NEMOTRON, {"data": 2, "tensor": 2}),
            (CHANNELS, {"tensor": 4}),
            (CHANNELS, {"data": 2, "tensor": 2}),
            (BOUNDED, {"tensor": 4}),
        ],
        count=1,
    ),
)
def test_other_rules_keep_the_bits_of_one_chip_at_prefill(
    cfg: ModelConfig, ways: dict[str, int]
) -> None:
    alone, states = run(cfg=cfg)
    found, kept = run(plan("attention", Split.COLUMN, **ways), cfg=cfg, step=1)
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(kept["state"], states["state"])


@pytest.mark.long
@pytest.mark.parametrize("split", [Split.TREE, Split.WIDE])
@pytest.mark.parametrize("cfg", [TINY_NEXT, TINY_NEMOTRON])
def test_trees_and_wide_sums_are_those_of_one_chip(split: Split, cfg: ModelConfig) -> None:
    alone, _ = run(plan("attention", split, tensor=1), cfg=cfg)
    for n in (2, 4):
        np.testing.assert_array_equal(run(plan("attention", split, tensor=n), cfg=cfg)[0], alone)


@pytest.mark.slow
def test_a_sequence_does_not_depend_on_its_companion(prefilled: Any) -> None:
    alone, kept = run(batch=1)
    np.testing.assert_array_equal(alone[0], prefilled[0][0])
    np.testing.assert_array_equal(kept["state"][0], prefilled[1]["state"][0])


@pytest.mark.slow
def test_tokens_that_do_not_count_leave_no_trace(prefilled: Any) -> None:
    n = 4  # of the first sequence; none of the second
    _, kept = run(counts=np.array([n, 0], np.int32))
    assert np.abs(prefilled[1]["state"][0] - kept["state"][0]).max() > 0
    block = place(TINY_NEXT, "recurrent", ONE, Request(batch=1, tokens=n, context=320))
    x = hidden(BATCH, TOKENS, TINY_NEXT.d_model)[:1, :n]
    zeros = np.zeros(1, np.int32)
    _, expected = run_attention(TINY_NEXT, block, x, block.arguments[2], zeros)
    for name, values in expected.items():
        np.testing.assert_array_equal(kept[name][0], np.asarray(values)[0], name)
        assert not kept[name][1].any()


@pytest.mark.slow
def test_a_cache_of_fp8_leaves_states_as_they_are(prefilled: Any) -> None:
    found, kept = run(policy="fp16+fp8-cache")
    np.testing.assert_array_equal(found, prefilled[0])
    assert kept["state"].dtype == np.float32
