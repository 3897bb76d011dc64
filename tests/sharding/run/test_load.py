"""Weights placed on the chips of a plan: padding, formats, tables, the compact expert store."""

from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from placed_blocks import SIX_HEADS_KIMI
from small_machines import tiered

from lpu_jax.errors import MeshError, PlanError
from lpu_jax.numerics.quantized import QuantizedArray
from models import zoo
from models.layers.linear import Split
from models.params import block_params
from models.policy import POLICIES
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.request import Request
from sharding.run.execute import run_block, with_inputs
from sharding.run.load import (
    load_block,
    place_block,
    store_block,
    store_expert,
    store_weight,
    widened,
)

#: Uneven in everything: words, experts and their width.
TINY = replace(
    SIX_HEADS_KIMI,
    vocab_size=100,
    moe=replace(SIX_HEADS_KIMI.moe, n_experts=23, d_expert=96),
)
MACHINE = tiered(64)
SOURCE = SyntheticWeights(TINY)
DECODE = Request(batch=1, tokens=1, context=320)
INT4, FP16 = POLICIES["int4"], POLICIES["fp16"]


def plan(split="row"):
    """Eight chips on which no tiny size divides evenly."""
    split = Split(split)
    return Plan(
        group_chips=8,
        attention=AttentionShard(tensor=4, data=2, split=split),
        mlp=MlpShard(tensor=8, split=split),
        moe=MoeShard(expert=4, tensor=2, split=split),
    )


@pytest.mark.parametrize("split", ["row", "column"])
@pytest.mark.parametrize(
    ("kind", "layer"), [("embed", 0), ("attention", 0), ("dense", 0), ("moe", 1), ("head", 0)]
)
def test_every_weight_keeps_its_values_and_gains_only_zeros(kind, layer, split):
    loaded = load_block(SOURCE, MACHINE, plan(split), kind, layer, DECODE, policy=FP16)
    expected = SOURCE.block(kind, layer)
    if kind == "moe":
        experts = [SOURCE.expert(layer, i) for i in range(23)]
        expected |= {name: np.stack([e[name] for e in experts]) for name in experts[0]}
    assert set(loaded.arguments[1]) == set(expected)
    for name, values in expected.items():
        placed = np.asarray(loaded.arguments[1][name])
        inside = tuple(slice(length) for length in values.shape)
        # RNE to fp16 by NumPy, the independent rounding; vectors stay float32
        stored = values if values.ndim == 1 else values.astype(np.float16)
        np.testing.assert_array_equal(placed[inside], stored)
        assert np.count_nonzero(placed) == np.count_nonzero(stored)


def test_every_dimension_divides_over_its_chips():
    for kind, layer in (("embed", 0), ("attention", 0), ("dense", 0), ("moe", 1), ("head", 0)):
        loaded = load_block(SOURCE, MACHINE, plan(), kind, layer, DECODE, policy=INT4)
        chips = dict(loaded.mesh.axes)
        leaves = jax.tree.leaves(loaded.arguments)
        specs = jax.tree.leaves(loaded.in_specs)
        assert len(leaves) == len(specs)
        for leaf, spec in zip(leaves, specs, strict=True):
            for length, entry in zip(leaf.shape, spec, strict=False):
                names = (entry,) if isinstance(entry, str) else entry or ()
                assert length % np.prod([chips[name] for name in names], dtype=int) == 0


def test_int4_groups_are_those_of_the_whole_matrix():
    values = SOURCE.expert(1, 5)["down"]  # [96, 64]: three groups of 32 rows
    stored = store_expert(SOURCE, 1, 5, INT4)["down"]
    groups = values.reshape(3, 32, 64)
    # the scheme's definition in NumPy: bf16 scale from the largest magnitude, codes -7..7, RNE
    scales = (np.abs(groups).max(1) / np.float32(7)).astype(ml_dtypes.bfloat16).astype(np.float32)
    codes = np.clip(np.rint(groups / scales[:, None]), -7, 7).astype(np.int8)
    np.testing.assert_array_equal(stored.scales, scales)
    np.testing.assert_array_equal(stored.codes, codes.reshape(96, 64))


def test_scales_of_structured_weights_follow_their_heads():
    cfg = replace(TINY, attention=replace(TINY.attention, v_head_dim=128))
    spec = block_params(cfg, "attention")["o"]  # [heads, 128, d], blocks of 128 x 128 in fp8
    values = SyntheticWeights(cfg).block("attention")["o"]
    stored = store_weight(values, spec, POLICIES["fp8"])
    assert stored.scales.shape == (6, 1, 64)
    largest = np.abs(values).max((1, 2)) / np.float32(448)
    np.testing.assert_array_equal(stored.scales[:, 0, 0], largest)


def test_groups_of_rows_may_not_cross_heads():
    source = SyntheticWeights(replace(zoo.model("smollm2-135m"), n_layers=1))
    with pytest.raises(PlanError, match=r"fp8 shares scales over 128 rows.*64 rows"):
        store_block(source, "attention", 0, POLICIES["fp8"])


def test_widened_int4_is_code_times_scale():
    spec = block_params(TINY, "moe")["down"]
    stored = store_expert(SOURCE, 1, 5, INT4)["down"]
    exact = stored.codes.astype(np.float64) * np.repeat(stored.scales, 32, 0).astype(np.float64)
    one = replace(spec, shape=spec.shape[1:], axes=spec.axes[1:], batch=0)
    np.testing.assert_array_equal(widened(stored, one), exact.astype(np.float16))


def test_int8_matrices_that_multiply_int8_rows_keep_their_codes():
    spec = block_params(TINY, "dense")["gate_up"]
    stored = store_weight(SOURCE.block("dense", 0)["gate_up"], spec, POLICIES["int8"])
    assert widened(stored, spec) is stored


@pytest.mark.parametrize("held", [None, (3, 4, 17, 22)])
def test_tables_name_the_store_row_of_every_expert_a_chip_holds(held):
    loaded = load_block(SOURCE, MACHINE, plan(), "moe", 1, DECODE, policy=INT4, held_experts=held)
    table = loaded.arguments[2]
    store = loaded.arguments[1]["gate_up"].codes
    np.testing.assert_array_equal(table["first_expert"], [0, 6, 12, 18])  # 23 experts, 6 a chip
    for chip in range(4):
        for expert in range(23):
            here = chip * 6 <= expert < chip * 6 + 6
            if held is None:
                row = expert - chip * 6 if here else -1
            else:
                row = held.index(expert) if here and expert in held else -1
            assert table["address"][chip, expert] == row
    assert store.shape[0] == (24 if held is None else 4)
    assert loaded.experts is not None
    assert loaded.experts.n_local == 6
    assert loaded.experts.slots == 6  # no more than the eight experts that one token asks for


@pytest.mark.slow
@pytest.mark.parametrize("split", ["row", "column"])
def test_compact_store_gives_the_bits_of_the_full_store(split):
    """Bitwise: the same experts at other addresses, widened before instead of at the array."""
    hidden = np.random.default_rng(3).normal(size=(1, 1, 64)).astype(np.float16)
    full = load_block(SOURCE, tiered(3), plan(split), "moe", 1, DECODE, policy=INT4)
    expected = run_block(TINY, with_inputs(full, hidden))
    needed = _experts_of(hidden)
    stored = store_block(SOURCE, "moe", 1, INT4, held_experts=needed)
    compact = place_block(stored, tiered(3), plan(split), DECODE, widen_once=True)
    assert not isinstance(compact.arguments[1]["down"], QuantizedArray)
    found = run_block(TINY, with_inputs(compact, hidden))
    np.testing.assert_array_equal(
        np.asarray(found).view(np.uint16), np.asarray(expected).view(np.uint16)
    )
    assert np.abs(np.asarray(found) - hidden).max() > 0.1


def _experts_of(hidden):
    """Experts of one token in float64, independent of the layers."""
    weights = {name: value.astype(np.float64) for name, value in SOURCE.block("moe", 1).items()}
    x = hidden.reshape(-1).astype(np.float64)
    normed = x / np.sqrt(np.mean(x**2) + TINY.norm_eps) * weights["norm"]
    scores = 1 / (1 + np.exp(-(normed @ weights["router"]))) + weights["router_bias"]
    return np.argsort(-scores)[:8].tolist()


@pytest.mark.slow
def test_devices_give_the_bits_of_virtual_chips():
    source = SyntheticWeights(replace(zoo.model("smollm2-135m"), n_layers=1, d_model=96, d_ff=100))
    hidden = np.random.default_rng(4).normal(size=(1, 2, 96)).astype(np.float16)
    three = Plan(group_chips=3, attention=AttentionShard(replica=3), mlp=MlpShard(tensor=3))
    request = Request(batch=1, tokens=2, context=320)
    block = with_inputs(
        load_block(source, MACHINE, three, "dense", 0, request, policy=FP16), hidden
    )
    virtual, devices = (
        np.asarray(run_block(source.config, block, execution=execution))
        for execution in ("virtual", "devices")
    )
    np.testing.assert_array_equal(virtual.view(np.uint16), devices.view(np.uint16))


def test_mistakes_are_one_sentence():
    no_experts = replace(plan(), moe=None)
    with pytest.raises(PlanError, match="does not say how mixture-of-experts blocks are split"):
        load_block(SOURCE, MACHINE, no_experts, "moe", 1, DECODE, policy=FP16)
    block = load_block(SOURCE, MACHINE, plan(), "dense", 0, DECODE, policy=FP16)
    with pytest.raises(ValueError, match="unknown execution 'gpu'"):
        run_block(TINY, block, execution="gpu")
    with pytest.raises(PlanError, match=r"shape \(1, 2, 64\) was given, not \(1, 1, 64\)"):
        with_inputs(block, np.zeros((1, 2, 64), np.float16))
    wide = replace(plan(), group_chips=9, mlp=MlpShard(tensor=9))
    with pytest.raises(MeshError, match="9 devices are needed"):
        run_block(
            TINY,
            load_block(SOURCE, MACHINE, wide, "dense", 0, DECODE, policy=FP16),
            execution="devices",
        )
