"""Biases, head norms, sinks, partial rotation, windows, splits of the context, expanded latents.

Values are compared with NumPy float64 (`attention_oracle`) under the policy `float32`, where only
fp32 rounding is left: 2e-6 on results of about 1. Equal bits are asked for where nothing may move.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from attention_oracle import Values, attention
from attention_runs import (
    BATCH,
    EXPANDED,
    FULL,
    SLIDING,
    SMALL,
    run,
    with_features,
)
from placed_blocks import TINY_KIMI, hidden, place, plan, sqnr_db

from models.blocks import Kind
from models.config import ModelConfig
from models.layers.linear import Split
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, Plan
from sharding.request import Request

FP32 = 2e-6


def expected(cfg: ModelConfig, tokens: int = 8, kind: Kind = "attention") -> np.ndarray:
    """The same by the oracle."""
    x = np.asarray(hidden(BATCH, tokens, cfg.d_model), np.float64)
    window = cfg.attention.window if kind == "sliding" else None  # type: ignore[union-attr]
    return x + attention(cfg, SyntheticWeights(cfg).block(kind, cfg.n_layers - 1), x, window)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "kind"),
    [
        pytest.param(with_features(qkv_bias=True), "attention", id="biases of q, k and v"),
        pytest.param(with_features(o_bias=True), "attention", id="bias of the output"),
        pytest.param(with_features(qk_norm=True), "attention", id="norms of heads"),
        pytest.param(with_features(sinks=True), "attention", id="sinks"),
        pytest.param(with_features(rotary=8), "attention", id="half of a head rotated"),
        pytest.param(with_features(window=3), "sliding", id="window"),
        pytest.param(SLIDING, "sliding", id="everything"),
        pytest.param(EXPANDED, "attention", id="expanded latent"),
    ],
)
def test_every_feature_is_that_of_the_formula(cfg: ModelConfig, kind: Kind) -> None:
    np.testing.assert_allclose(run(cfg, kind=kind), expected(cfg, kind=kind), atol=FP32, rtol=0)


def e4m3(x: Values) -> Values:
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cfg",
    [
        pytest.param(SMALL, id="grouped"),
        pytest.param(TINY_KIMI, id="latent"),
        pytest.param(EXPANDED, id="expanded latent"),
    ],
)
def test_an_fp8_cache_rounds_keys_and_values_once_and_nothing_else(cfg: ModelConfig) -> None:
    x = np.asarray(hidden(BATCH, 8, cfg.d_model), np.float64)
    weights = SyntheticWeights(cfg).block("attention", cfg.n_layers - 1)
    found = np.asarray(run(cfg, policy="fp16+fp8-cache"), np.float64) - x
    rounded, exact = (attention(cfg, weights, x, None, kept) for kept in (e4m3, lambda v: v))
    # e4m3 leaves about 31 dB. What is left against the oracle that rounds too is float16, and the
    # few values that it moves across a tie of e4m3: 10 dB at least.
    assert sqnr_db(rounded, found) > sqnr_db(exact, found) + 10
    assert sqnr_db(exact, found) > 25


@pytest.mark.long
@pytest.mark.parametrize("cfg", [SMALL, TINY_KIMI])
def test_an_fp8_cache_decodes_as_it_prefills(cfg: ModelConfig) -> None:
    whole = run(cfg, policy="fp16+fp8-cache", tokens=4)
    split = plan("attention", Split.COLUMN, data=2, tensor=2)
    stepped = run(cfg, split, policy="fp16+fp8-cache", tokens=4, steps=(1, 1, 1, 1), context=384)
    np.testing.assert_array_equal(stepped, whole)


@pytest.mark.slow
@pytest.mark.parametrize("split", [Split.ROW, Split.COLUMN])
def test_a_split_of_heads_holds_every_bias_once(split: Split) -> None:
    # Eight chips: two sequences, two key/value heads, two query heads of each.
    sharded = run(FULL, plan("attention", split, data=2, tensor=4))
    np.testing.assert_allclose(sharded, expected(FULL), atol=FP32, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize(("cfg", "kind"), [(FULL, "attention"), (SLIDING, "sliding")])
def test_a_column_split_decodes_as_one_chip_prefills(cfg: ModelConfig, kind: Kind) -> None:
    whole = run(cfg, policy="fp16", kind=kind, tokens=4)
    split = plan("attention", Split.COLUMN, data=2, tensor=4)
    steps = run(
        cfg, split, policy="fp16", kind=kind, tokens=4, steps=(1, 1, 2), context=384, most_tokens=2
    )
    np.testing.assert_array_equal(steps, whole)


@pytest.mark.slow
def test_a_ring_that_wraps_gives_the_bits_of_one_that_does_not() -> None:
    # 840 positions through a ring of 640: the window of the last steps lies across its end.
    tokens, steps = 840, (120,) * 7
    once = run(SLIDING, tokens=tokens, context=1000, policy="fp16", kind="sliding")
    rung = run(SLIDING, tokens=tokens, steps=steps, context=4000, policy="fp16", kind="sliding")
    np.testing.assert_array_equal(rung, once)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 64]
)
def test_a_window_is_exact_at_the_edges_of_a_vector(step: int) -> None:
    # Small steps around position 320 and around 640, where the ring begins again.
    cfg = with_features(window=3, sinks=True)
    some = (step,) * max(1, 20 // step)
    steps = (310, *some, 630 - 310 - sum(some), *some)
    got = run(cfg, tokens=sum(steps), steps=steps, context=1024, kind="sliding", most_tokens=310)
    np.testing.assert_allclose(got, expected(cfg, sum(steps), "sliding"), atol=FP32, rtol=0)


CONTEXT_TWO = plan("attention", Split.COLUMN, context=2)
CONTEXT_MANY = plan("attention", Split.ROW, data=2, context=3, tensor=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "the_plan"),
    [
        pytest.param(FULL, plan("attention", context=3), id="grouped, sinks"),
        pytest.param(FULL, CONTEXT_MANY, id="grouped, beside other axes", marks=pytest.mark.long),
        pytest.param(TINY_KIMI, CONTEXT_MANY, id="latent", marks=pytest.mark.long),
        pytest.param(EXPANDED, CONTEXT_MANY, id="expanded latent"),
        pytest.param(
            FULL,
            replace(
                CONTEXT_MANY,
                attention=replace(
                    CONTEXT_MANY.attention, order=("context", "data", "replica", "tensor")
                ),
            ),
            id="context outermost",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_split_context_is_merged(cfg: ModelConfig, the_plan: Plan) -> None:
    # 350 of 960 positions: the first chip holds 320, the second 30, the third none that is seen.
    tokens = 350
    got = run(cfg, the_plan, tokens=tokens, context=960, steps=(300, 50))
    np.testing.assert_allclose(got, expected(cfg, tokens), atol=FP32, rtol=0)


@pytest.mark.long
def test_chips_without_a_key_change_no_bit() -> None:
    """Eight tokens lie on the first chip; what the other chips add is exactly zero."""
    two, three = (
        run(FULL, plan("attention", Split.COLUMN, context=n), policy="fp16", context=960)
        for n in (2, 3)
    )
    np.testing.assert_array_equal(two, three)
    assert np.isfinite(two).all()


@pytest.mark.long
def test_a_split_context_rounds_little() -> None:
    whole = run(FULL, policy="fp16", tokens=350, context=640)
    split = run(FULL, CONTEXT_TWO, policy="fp16", tokens=350, context=640)
    x = np.asarray(hidden(BATCH, 350, FULL.d_model), np.float64)
    assert not np.array_equal(whole, split)  # partial results are rounded on their way
    assert sqnr_db(whole - x, split - x) > 60.0


@pytest.mark.long
def test_a_sliding_layer_copies_its_ring_over_the_context() -> None:
    one = run(SLIDING, policy="fp16", kind="sliding")
    np.testing.assert_array_equal(
        run(SLIDING, CONTEXT_TWO, policy="fp16", kind="sliding", context=640), one
    )


@pytest.mark.slow
def test_expanded_is_absorbed_with_other_roundings() -> None:
    """The same weights in both forms: `kv_b` is `k_b` and `v_b` side by side."""
    params = SyntheticWeights(TINY_KIMI).block("attention", 1)
    both = np.concatenate(
        [params["k_b"].transpose(2, 0, 1), params["v_b"].transpose(1, 0, 2)], axis=-1
    )
    x = np.asarray(hidden(BATCH, 8, TINY_KIMI.d_model), np.float64)
    absorbed = attention(TINY_KIMI, params, x, None)
    others = {name: values for name, values in params.items() if name not in ("k_b", "v_b")}
    expanded = attention(EXPANDED, others | {"kv_b": both}, x, None)
    np.testing.assert_allclose(absorbed, expanded, atol=1e-12)  # the oracle's own two forms
    np.testing.assert_allclose(run(TINY_KIMI), x + absorbed, atol=FP32, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("split", list(Split))
def test_an_expanded_cache_is_split_over_heads(split: Split) -> None:
    one = run(EXPANDED, policy="fp16", tokens=4)
    sharded = plan("attention", split, data=2, tensor=4)
    steps = run(EXPANDED, sharded, policy="fp16", tokens=4, steps=(1, 1, 1, 1), context=384)
    if split is Split.COLUMN:
        np.testing.assert_array_equal(steps, one)
    else:
        np.testing.assert_allclose(steps, one, atol=0.02)
    request = Request(batch=BATCH, context=384)
    cache = place(EXPANDED, "attention", sharded, request).arguments[2]
    assert cache["keys"].shape == (BATCH, 4, 48, 384)


@pytest.mark.long
@pytest.mark.parametrize(
    ("cfg", "kind", "the_plan"),
    [
        (cfg, kind, plan("attention", Split.ROW, context=2, tensor=4))
        for cfg, kind in (
            (TINY_KIMI, "attention"),
            (FULL, "attention"),
            (SLIDING, "sliding"),
        )
    ],
)
def test_devices_give_the_bits_of_virtual_chips(
    cfg: ModelConfig, kind: Kind, the_plan: Plan
) -> None:
    one, other = (
        run(cfg, the_plan, policy="fp16", kind=kind, context=640, way=w)
        for w in ("virtual", "devices")
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.long
@pytest.mark.parametrize(("cfg", "kind"), [(SLIDING, "sliding"), (FULL, "attention")])
def test_a_sequence_does_not_depend_on_the_batch(cfg: ModelConfig, kind: Kind) -> None:
    many = run(cfg, policy="fp16", kind=kind, batch=64, tokens=2)
    first = np.asarray(hidden(64, 2, cfg.d_model))[:1]
    one = run(cfg, policy="fp16", kind=kind, batch=1, tokens=2, x=first)
    np.testing.assert_array_equal(one, many[:1])


def test_an_order_without_context_has_it_outside_tensor() -> None:
    shard = AttentionShard(tensor=2, context=2, replica=2, order=("tensor", "replica", "data"))
    assert shard.order == ("data", "context", "tensor", "replica")
