"""Caches whose vectors have scales: what attention reads of them, equal bits, and their bytes.

The codes of a vector are compared bit by bit in `test_block_scales`. Here the oracle rounds what a
cache would hold, in float64, and programs of other splits and steps must give the same bits.
"""

from dataclasses import replace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from attention_oracle import Values, attention
from attention_runs import EXPANDED, SLIDING, SMALL, run
from placed_blocks import TINY_KIMI, TINY_LLAMA, hidden, plan, sqnr_db
from slices import some_slow

from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQ3_LPU
from lpu_jax.machine.tray_dram import TrayDram
from models.blocks import Kind, block_arguments, is_leaf
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import policy_named
from models.weights.synthetic import SyntheticWeights
from models.zoo import model
from sharding.axes import MESH_AXES, sizes
from sharding.plan import Plan
from sharding.predict.placement import held_bytes
from sharding.request import Request
from sharding.run.execute import run_attention
from sharding.run.load import load_block
from sharding.run.unplaced import block_state, restored_block

FORMATS = ("fp8-head", "mxfp8", "nvfp4")


def rounded(x: Values, name: str) -> Values:
    """Round vectors along the last axis as the format does, all blocks whole."""
    block = {"fp8-head": x.shape[-1], "mxfp8": 32, "nvfp4": 16}[name]
    parts = x.astype(np.float32).reshape(*x.shape[:-1], -1, block)
    amax = np.abs(parts).max(-1, keepdims=True)
    if name == "mxfp8":
        scale = np.exp2(np.floor(np.log2(amax)) - 8)
        codes = np.clip(parts / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    elif name == "fp8-head":
        scale = amax / np.float32(448)
        codes = (parts / scale).astype(ml_dtypes.float8_e4m3fn)
    else:
        scale = (amax / np.float32(6)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        codes = np.clip(parts / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return (codes.astype(np.float64) * scale).reshape(x.shape)


@pytest.mark.parametrize("name", some_slow(FORMATS, count=1))
def test_vectors_are_rounded_once_and_nothing_else(name: str) -> None:
    """Heads of 32 values: whole blocks of every format."""
    cfg = TINY_LLAMA
    x = np.asarray(hidden(2, 8, cfg.d_model), np.float64)
    weights = SyntheticWeights(cfg).block("attention", 0)
    found = np.asarray(run(cfg, policy=f"fp16+{name}-cache"), np.float64) - x
    oracle, exact = (
        attention(cfg, weights, x, None, kept) for kept in (lambda v: rounded(v, name), np.array)
    )
    # What is left against the oracle that rounds too is float16, and the few values that it moves
    # across a tie of the codes: 10 dB at least.
    assert sqnr_db(oracle, found) > sqnr_db(exact, found) + 10
    assert sqnr_db(exact, found) > (25 if name != "nvfp4" else 12)


@pytest.mark.slow
def test_a_scale_of_all_tensors_is_divided_by_and_multiplied_with() -> None:
    """Values above 448 / 1024 saturate: far from exact, and 10 dB nearer to the oracle's."""
    small = run(TINY_LLAMA, policy="fp16+fp8x0.0009765625-cache", tokens=4)
    x = np.asarray(hidden(2, 4, TINY_LLAMA.d_model), np.float64)
    weights = SyntheticWeights(TINY_LLAMA).block("attention", 0)

    def kept(v: Values) -> Values:
        codes = np.clip(v * 1024, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        return codes.astype(np.float64) / 1024

    oracle, exact = (attention(TINY_LLAMA, weights, x, None, r) for r in (kept, np.array))
    found = np.asarray(small, np.float64) - x
    assert sqnr_db(oracle, found) > sqnr_db(exact, found) + 10


#: Steps of several lengths, a longer cache, chips that share out sequences, heads, and both.
CASES: list[tuple[str, ModelConfig, Kind]] = [
    ("fp8-head", SMALL, "attention"),
    ("mxfp8", SLIDING, "sliding"),
    ("nvfp4", TINY_KIMI, "attention"),
    ("fp8-head", TINY_KIMI, "attention"),
    ("mxfp8", EXPANDED, "attention"),
    ("nvfp4", SMALL, "attention"),
]


@pytest.mark.parametrize(("name", "cfg", "kind"), some_slow(CASES, count=1))
def test_it_decodes_under_a_split_as_one_chip_prefills(
    name: str, cfg: ModelConfig, kind: Kind
) -> None:
    policy = f"fp16+{name}-cache"
    whole = run(cfg, policy=policy, kind=kind, tokens=4)
    split = plan("attention", Split.COLUMN, data=2, tensor=2)
    stepped = run(cfg, split, policy=policy, kind=kind, tokens=4, steps=(1, 2, 1), context=384)
    np.testing.assert_array_equal(stepped, whole)
    assert np.any(whole != run(cfg, policy="fp16", kind=kind, tokens=4))


@pytest.mark.long
def test_chips_that_share_out_the_positions_hold_the_codes_of_one() -> None:
    """All keys that are seen lie on the first chip, so that no rounding of a merge moves."""
    policy = "fp16+mxfp8-cache"
    whole = run(TINY_LLAMA, policy=policy, tokens=3, context=640)
    split = plan("attention", Split.COLUMN, context=2)
    np.testing.assert_array_equal(
        run(TINY_LLAMA, split, policy=policy, tokens=3, context=640), whole
    )


@pytest.mark.long
def test_devices_give_the_bits_of_virtual_chips() -> None:
    policy, split = "fp16+nvfp4-cache+bf16-wire", plan("attention", Split.ROW, data=2, tensor=4)
    found = [run(SMALL, split, policy=policy, tokens=2, way=way) for way in ("virtual", "devices")]
    np.testing.assert_array_equal(*found)


# --- bytes --------------------------------------------------------------------------------------


def cache_bytes(name: str, policy: str, context: int, dram: TrayDram | None = None) -> Any:
    cfg = model(name)
    asked = Request(context=context)
    ways = dict.fromkeys(MESH_AXES["attention"], 1)
    held = policy_named(policy)
    local = sizes(cfg, "attention", held, ways, asked)
    arguments = block_arguments(cfg, "attention", held, Split.ROW, local)
    assert all(leaf.kind != "scales" for leaf in jax.tree.leaves(arguments[2], is_leaf=is_leaf))
    return held_bytes(arguments, GROQ3_LPU, dram)


#: Bytes of a position of a layer by hand. Llama 3.1 8B: 8 heads of keys and of values, 128 values
#: each. Kimi K2: a latent of 512 and a key of 64 as one vector, and the latent once more.
BY_HAND = {
    ("llama-3.1-8b", "fp8-head"): 16 * (128 + 4),
    ("llama-3.1-8b", "mxfp8"): 16 * (128 + 4),
    ("llama-3.1-8b", "nvfp4"): 16 * (64 + 8),
    ("kimi-k2", "fp8-head"): (576 + 4) + (512 + 4),
    ("kimi-k2", "mxfp8"): (576 + 18) + (512 + 16),
    ("kimi-k2", "nvfp4"): (288 + 36) + (256 + 32),
}


@pytest.mark.parametrize(("name", "cache"), BY_HAND)
def test_codes_and_scales_are_counted(name: str, cache: str) -> None:
    expected = 1280 * BY_HAND[name, cache]
    beside = cache_bytes(name, f"fp16+{cache}-cache", 1280, TrayDram())
    assert beside["dram"] == pytest.approx(expected, rel=1e-12)
    assert beside["cache"] == 0
    # Whole vectors of positions, but rows of values are padded to those of 320 lanes.
    assert cache_bytes(name, f"fp16+{cache}-cache", 1280)["cache"] >= expected


def test_the_states_of_a_recurrent_layer_stay_as_they_are() -> None:
    cfg = model("qwen3-next-80b-a3b")
    ways = dict.fromkeys(MESH_AXES["recurrent"], 1)

    def held(policy: str) -> float:
        own = policy_named(policy)
        local = sizes(cfg, "recurrent", own, ways, Request(context=4096))
        found = held_bytes(
            block_arguments(cfg, "recurrent", own, Split.ROW, local), GROQ3_LPU, None
        )
        return float(found["cache"])

    assert held("fp16+nvfp4-cache") == held("fp16") > 0


@pytest.mark.long
def test_a_cache_with_scales_is_saved_and_placed_again() -> None:
    """Codes and scales go off one plan and onto another; a later token reads the same bits."""
    policy, request = policy_named("fp16+nvfp4-cache"), Request(batch=2, tokens=1, context=320)
    node, source = system("groq-node"), SyntheticWeights(TINY_LLAMA)
    first: Plan = plan("attention", Split.COLUMN, data=2)
    second: Plan = plan("attention", Split.COLUMN, tensor=2)
    block = load_block(source, node, first, "attention", 0, request, policy=policy)
    x, positions = hidden(2, 1, TINY_LLAMA.d_model), np.zeros(2, np.int32)
    out, cache = run_attention(TINY_LLAMA, block, x, block.arguments[2], positions)
    state = block_state(TINY_LLAMA, block, 0, cache=cache, positions=positions + 1)
    assert state.cache is not None
    assert {"keys", "keys.scales", "values", "values.scales"} == set(state.cache)
    other = restored_block(state, node, second, replace(request, context=640), positions + 1)
    results = [
        np.asarray(run_attention(TINY_LLAMA, loaded, out, kept, positions + 1)[0])
        for loaded, kept in ((block, cache), (other, other.arguments[2]))
    ]
    np.testing.assert_array_equal(*results)
