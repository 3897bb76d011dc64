"""What chips hold, against bytes computed by hand.

A vector has 320 lanes in the sums below.
"""

from typing import Any

import jax
import numpy as np
import pytest

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.schedule import schedule
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQ3_LPU, GROQCHIP1
from lpu_jax.machine.tray_dram import TrayDram
from models.blocks import Kind, block_arguments, block_chain, is_leaf
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.axes import MESH_AXES, sizes, strides
from sharding.detail.explain import explain
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.placement import block_bytes, held_bytes, padded_bytes, usable_bytes
from sharding.predict.symbolic import symbol_values, trace_block
from sharding.request import Request

KIMI, LLAMA = model("kimi-k2"), model("llama-2-70b")
NEXT = model("qwen3-next-80b-a3b")
#: Each chip has one of eight key/value heads.
HEADS = AttentionShard(tensor=8)
PLANS = {
    "llama-3.1-70b": Plan(group_chips=8, attention=HEADS, mlp=MlpShard(tensor=8)),
    "gpt-oss-120b": Plan(
        group_chips=8, attention=HEADS, mlp=MlpShard(tensor=8), moe=MoeShard(expert=8)
    ),
}


def _arguments(
    cfg: ModelConfig,
    kind: Kind,
    policy: str,
    request: Request = Request(context=4096),  # noqa: B008  (frozen)
    **ways: int,
) -> tuple[Any, ...]:
    every = {axis: ways.get(axis, 1) for axis in MESH_AXES[kind]}
    named = POLICIES[policy]
    return block_arguments(cfg, kind, named, Split.ROW, sizes(cfg, kind, named, every, request))


def _stored(argument: Any) -> float:
    """Padded bytes of a weight, scales included."""
    leaves = jax.tree.leaves(argument, is_leaf=is_leaf)
    return float(sum(padded_bytes(leaf, GROQ3_LPU) for leaf in leaves if leaf.kind == "weights"))


def test_int4_experts_of_kimi() -> None:
    weights = _arguments(KIMI, "moe", "int4", expert=2, tensor=16)[1]
    # 192 experts; 7168 rows; 2 x 128 columns -> a vector of 320; bf16 scales per 32 rows
    assert _stored(weights["gate_up"]) == 192 * 7168 * 320 * 4.5 / 8
    # 128 rows; 7168 -> 23 vectors
    assert _stored(weights["down"]) == 192 * 128 * 7360 * 4.5 / 8


def test_uneven_experts_are_rounded_up() -> None:
    weights = _arguments(KIMI, "moe", "int4", expert=36)[1]
    assert weights["gate_up"].codes.shape[0] == 11  # 384 over 36: ten on most chips, 11 on some
    # 4096 -> 13 vectors, 7168 -> 23
    assert _stored(weights["gate_up"]) == 11 * 7168 * 4160 * 4.5 / 8
    assert _stored(weights["down"]) == 11 * 2048 * 7360 * 4.5 / 8


def test_columns_are_dealt_in_pieces_that_share_scales() -> None:
    weights = _arguments(KIMI, "moe", "int4", tensor=12)[1]
    # 2048 columns are 64 pieces of 32 rows of `down`; 64 over 12: six on the fullest chip
    assert weights["down"].codes.shape == (384, 192, 7168)


def test_int8_matrices_have_scales_per_column() -> None:
    down = _arguments(LLAMA, "dense", "int8", tensor=24)[1]["down"]
    # 28672 over 24: 1195 rows; 8192 -> 26 vectors; fp32 scales
    assert _stored(down) == 1195 * 8320 + 8320 * 4


def test_grouped_query_cache() -> None:
    cache = _arguments(LLAMA, "attention", "fp16", Request(batch=2, context=4096), tensor=8)[2]
    # one of 8 heads, two sequences: keys [128, 4096] -> 13 vectors a row; of the values [4096, 128]
    # two rows share a vector
    assert padded_bytes(cache["keys"], GROQCHIP1) == 2 * 128 * 4160 * 2
    assert padded_bytes(cache["values"], GROQCHIP1) == 2 * 4096 * 160 * 2


def test_latent_cache_lies_in_both_layouts() -> None:
    cache = _arguments(KIMI, "attention", "int4", Request(context=8192), tensor=16)[2]
    # keys [512 + 64, 8192] -> 26 vectors a row, values [8192, 512] -> two
    assert padded_bytes(cache["keys"], GROQ3_LPU) == 576 * 8320 * 2
    assert padded_bytes(cache["values"], GROQ3_LPU) == 8192 * 640 * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most", "head_dim"), [("llama-3.1-70b", 1.2, 128), ("gpt-oss-120b", 1.5, 64)]
)
def test_a_cache_is_little_more_than_its_values(name: str, most: float, head_dim: int) -> None:
    """What the values of a model need is counted from its heads."""
    cfg, context = model(name), 8000
    found = explain(cfg, "lpx-rack", PLANS[name], Request(context=context), policy="mxfp4")
    (block,) = (block for block in found.blocks if block.kind == "attention")
    assert block.cached_bytes == 2 * 2 * context * head_dim
    assert 1 <= block.cache_bytes / block.cached_bytes < most
    times = block.cache_bytes / block.cached_bytes
    assert f"({times:.2f} times its values)" in found.text()


@pytest.mark.parametrize("columns", [1, 5, 64, 107, 128, 160, 161, 319, 320, 321, 512, 7168])
def test_rows_fill_vectors_or_share_one(columns: int) -> None:
    """Rows are laid out one after another; none that is no wider than a vector is cut."""
    vectors, room = 0, 0
    for _ in range(6 * 320):
        if room < columns:
            more = -(-columns // 320)
            vectors, room = vectors + more, (320 if columns <= 320 else 0)
        room -= min(columns, room)
    stored = GROQCHIP1.stored_columns(columns)
    assert 6 * stored == vectors
    assert stored >= columns
    assert GROQCHIP1.stored_columns(np.array([columns, 320])).tolist() == [stored, 320]


# Released sizes: Kimi K2 Thinking int4 594 GB, Kimi K2 Instruct fp8 1029 GB. Llama 2 by hand: one
# byte for all of 68.98e9 parameters, two for the embedding's 32000 x 8192. 0.5 %: scales, norms.
TOTALS = [
    ("kimi-k2", "int4", 594e9),
    ("kimi-k2", "fp8", 1029e9),
    ("llama-2-70b", "int8", 68.98e9 + 32000 * 8192),
]


@pytest.mark.parametrize(("name", "policy", "total"), TOTALS)
def test_stored_bytes_of_a_whole_model(name: str, policy: str, total: float) -> None:
    cfg = model(name)
    by_kind = {
        block.kind: sum(
            float(np.prod(leaf.shape)) * leaf.bits / 8
            for leaf in jax.tree.leaves(_arguments(cfg, block.kind, policy), is_leaf=is_leaf)
            if leaf.kind == "weights"
        )
        for block in block_chain(cfg)
    }
    assert sum(by_kind[block.kind] for block in block_chain(cfg)) == pytest.approx(total, rel=5e-3)


def test_shares_of_all_chips_are_the_whole_and_its_padding() -> None:
    whole = _arguments(KIMI, "moe", "int4", tensor=1)[1]
    share = _arguments(KIMI, "moe", "int4", expert=12, tensor=8)[1]
    assert 96 * _stored(share["gate_up"]) >= _stored(whole["gate_up"])
    assert 96 * np.prod(share["gate_up"].codes.shape) == np.prod(whole["gate_up"].codes.shape)


def test_a_cache_that_grows_in_place_is_not_counted_twice() -> None:
    def held(context: int) -> Any:
        request = Request(context=context)
        ways = dict.fromkeys(MESH_AXES["attention"], 1)
        policy = POLICIES["fp16"]
        local = sizes(LLAMA, "attention", policy, ways, request)
        program = trace_block(LLAMA, "attention", POLICIES["fp16"], Split.ROW, "auto").program
        arguments = block_arguments(LLAMA, "attention", policy, Split.ROW, local)
        symbols = symbol_values(local, ways, strides(ways), {})
        timing = schedule(program, one_group(system("groq-node"), 1), symbols)
        return block_bytes(arguments, program, timing, symbols, GROQCHIP1, None)

    short, long = held(2048), held(4096)
    assert long.cache > 1.9 * short.cache
    # 64 heads, one token: fp32 scores, mask and weights grow, the cache itself does not come again
    assert long.activations - short.activations <= 4 * 64 * 2048 * 4
    assert long.weights == short.weights


def test_a_state_is_constant_in_context_and_belongs_to_its_sequence_and_heads() -> None:
    def held(dram: TrayDram | None = None, **asked: Any) -> dict[str, Any]:
        request = Request(context=asked.pop("context", 4096), batch=asked.pop("batch", 1))
        arguments = _arguments(NEXT, "recurrent", "fp16", request, **asked)
        return held_bytes(arguments, GROQ3_LPU, dram)

    # 32 states of 128 x 128 in fp32, and three inputs of 2 x 16 + 32 heads of 128 in fp16.
    whole = 32 * 128 * 128 * 4 + 3 * (2 * 16 + 32) * 128 * 2
    assert held()["cache"] == pytest.approx(whole, rel=1e-3)  # whole vectors of 320
    assert held(context=262144) == held()
    assert held(batch=8)["cache"] == pytest.approx(8 * whole, rel=1e-3)
    assert held(batch=8, data=8)["cache"] == held()["cache"]
    # One head: 51.2 vectors of states, 2.4 of queries and keys, 1.2 of values.
    assert held(tensor=16, query=2)["cache"] == 52 * 320 * 4 + (3 + 2) * 320 * 2
    # It is written whole with every token, so that it is in the chip where caches are not.
    beside = held(TrayDram(dram_bytes=10**12))
    assert (beside["cache"], beside["dram"]) == (held()["cache"], 0)


def test_a_state_that_is_written_over_is_not_counted_twice() -> None:
    request, policy = Request(batch=64), POLICIES["fp16"]
    ways = dict.fromkeys(MESH_AXES["recurrent"], 1)
    local = sizes(NEXT, "recurrent", policy, ways, request)
    program = trace_block(NEXT, "recurrent", policy, Split.ROW, "auto").program
    arguments = block_arguments(NEXT, "recurrent", policy, Split.ROW, local)
    symbols = symbol_values(local, ways, strides(ways), {})
    timing = schedule(program, one_group(system("groq-node"), 1), symbols)
    found = block_bytes(arguments, program, timing, symbols, GROQCHIP1, None)
    assert found.cached == 64 * (32 * 128 * 128 * 4 + 3 * (2 * 16 + 32) * 128 * 2)
    assert found.activations < found.cached / 8


def test_usable_bytes_leave_the_reserve() -> None:
    assert usable_bytes(GROQ3_LPU) == 500e6 * 0.95
