"""Attention blocks: decode is prefill, a longer cache and a column split change no bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_KIMI, TINY_LLAMA, hidden, place, plan, runner, sqnr_db
from small_machines import tiered

from models.config import ModelConfig
from models.layers.linear import Split
from models.reference import reference_block
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard
from sharding.request import Request
from sharding.run.load import LoadedBlock

BATCH, TOKENS = 2, 4
#: The block's change of the hidden state against float32 weights that are not rounded to float16.
SQNR_DB = 58.0


def prefill(cfg: ModelConfig, policy: str = "fp16") -> np.ndarray:
    """All tokens at once, on one chip."""
    request = Request(batch=BATCH, tokens=TOKENS, context=64)
    block = place(cfg, "attention", plan("attention", tensor=1), request, policy=policy)
    x = hidden(BATCH, TOKENS, cfg.d_model)
    return np.asarray(runner(cfg, block)(x, *block.arguments[1:])[0])


def decode(block: LoadedBlock, cfg: ModelConfig, way: str, steps: int = TOKENS) -> np.ndarray:
    """One token after another through the cache."""
    run = runner(cfg, block, way, {"data": 2, "tensor": 2})
    _, weights, cache, tables, _, share = block.arguments
    x, made = hidden(BATCH, TOKENS, cfg.d_model), []
    for t in range(steps):
        positions = jnp.full((BATCH,), t, jnp.int32)
        y, cache = run(x[:, t : t + 1], weights, cache, tables, positions, share)
        made.append(y)
    return np.concatenate(made, axis=1)


def split_block(
    cfg: ModelConfig,
    split: Split,
    context: int,
    policy: str = "fp16",
    order: tuple[str, ...] = AttentionShard.order,
) -> LoadedBlock:
    """Eight chips: two sequences, two key/value heads (or latent heads), two halves of each."""
    request = Request(batch=BATCH, tokens=1, context=context)
    the_plan = plan("attention", split, data=2, tensor=4)
    the_plan = replace(the_plan, attention=replace(the_plan.attention, order=order))
    return place(cfg, "attention", the_plan, request, policy=policy, system=tiered(2))


@pytest.fixture(scope="module")
def grouped_prefill() -> np.ndarray:
    return prefill(TINY_LLAMA)


@pytest.mark.slow
def test_decode_on_eight_chips_with_a_longer_cache_equals_prefill_on_one(
    grouped_prefill: np.ndarray,
) -> None:
    # Column split, one sequence on each half of the chips, context 384 instead of 64: no bit moves.
    decoded = decode(split_block(TINY_LLAMA, Split.COLUMN, 384), TINY_LLAMA, "virtual")
    np.testing.assert_array_equal(decoded, grouped_prefill)


@pytest.mark.slow
def test_the_order_of_axes_moves_no_bit_of_a_column_split(grouped_prefill: np.ndarray) -> None:
    block = split_block(TINY_LLAMA, Split.COLUMN, 64, order=("tensor", "data", "replica"))
    names = [name for name, _ in block.mesh.axes]
    assert names == ["replica", "context", "tensor", "query", "data"]
    np.testing.assert_array_equal(decode(block, TINY_LLAMA, "virtual"), grouped_prefill)


@pytest.mark.slow
def test_grouped_attention_is_close_to_float32(grouped_prefill: np.ndarray) -> None:
    _check_close(TINY_LLAMA, grouped_prefill)


def _check_close(cfg: ModelConfig, got: np.ndarray) -> None:
    x = hidden(BATCH, TOKENS, cfg.d_model)[:, : got.shape[1]]
    params = SyntheticWeights(cfg).block("attention", cfg.n_layers - 1)
    expected = reference_block(cfg, "attention", params)(x.astype("float32"))
    change = np.asarray(got, np.float32) - np.asarray(x, np.float32)
    assert sqnr_db(np.asarray(expected) - np.asarray(x, np.float32), change) > SQNR_DB


@pytest.mark.long
def test_latent_attention_is_close_to_float32() -> None:
    _check_close(TINY_KIMI, prefill(TINY_KIMI))


@pytest.mark.long
@pytest.mark.parametrize(
    ("cfg", "way"),
    [(cfg, way) for cfg in (TINY_KIMI, TINY_LLAMA) for way in ("devices", "nested")],
)
def test_devices_give_the_bits_of_virtual_chips(cfg: ModelConfig, way: str) -> None:
    block = split_block(cfg, Split.ROW, 64)
    np.testing.assert_array_equal(decode(block, cfg, "virtual", 2), decode(block, cfg, way, 2))


@pytest.mark.slow
@pytest.mark.parametrize("context", [64, pytest.param(384, marks=pytest.mark.long)])
def test_latent_attention_decodes_as_it_prefills(context: int) -> None:
    decoded = decode(split_block(TINY_KIMI, Split.COLUMN, context), TINY_KIMI, "virtual")
    np.testing.assert_array_equal(decoded, prefill(TINY_KIMI))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "policy"),
    [
        pytest.param(TINY_LLAMA, "groq-truepoint", id="grouped, exact carry"),
        pytest.param(TINY_KIMI, "nvfp4", id="latent, scales of matrices", marks=pytest.mark.long),
    ],
)
def test_a_policy_moves_no_bit_between_decode_and_prefill(cfg: ModelConfig, policy: str) -> None:
    decoded = decode(split_block(cfg, Split.COLUMN, 384, policy), cfg, "virtual")
    np.testing.assert_array_equal(decoded, prefill(cfg, policy))


@pytest.mark.long
def test_a_sequence_does_not_depend_on_the_batch() -> None:
    def first(batch: int) -> jax.Array:
        request = Request(batch=batch, tokens=1, context=64)
        block = place(TINY_LLAMA, "attention", plan("attention", tensor=1), request)
        x = hidden(64, 1, TINY_LLAMA.d_model)[:batch]
        return runner(TINY_LLAMA, block)(x, *block.arguments[1:])[0][:1]

    np.testing.assert_array_equal(first(1), first(64))
