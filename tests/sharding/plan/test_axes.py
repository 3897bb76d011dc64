"""The rows of plan axes and of kinds of block give what was once written out by hand."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.blocks import BLOCK_KINDS, CACHING_KINDS, Leaf, block_arguments, block_kinds
from models.config import GqaConfig
from models.layers.linear import Split
from models.params import Kind, block_params
from models.policy import FP16
from models.zoo import model
from sharding.axes import (
    LOGICAL,
    MESH_AXES,
    degrees,
    moving_axes,
    sizes,
    split_of,
)
from sharding.legal import attention_reason
from sharding.plan import AXES, AttentionShard, MlpShard, MoeShard, Plan
from sharding.rank.choose import promises_one_chip_bits
from sharding.request import Request

KIMI, LLAMA, QWEN = model("kimi-k2"), model("llama-3.1-8b"), model("qwen3-next-80b-a3b")
ATTENTION = ("replica", "data", "context", "tensor", "query")
HEADS = {
    "batch_local": ("data",),
    "kv_heads": ("tensor",),
    "heads": ("tensor", "query"),
    "q_per_kv": ("query",),
    "d_out": ("tensor", "query"),
    "once": ("tensor", "query"),
}
POSITIONS = {"kv_length": ("context",), "index_length": ("context", "tensor")}
PLAN = Plan(
    group_chips=12,
    attention=AttentionShard(tensor=2, context=3, replica=2),
    mlp=MlpShard(tensor=4, replica=3, split=Split.COLUMN),
    moe=MoeShard(expert=6, tensor=2),
)


def test_the_axes_of_every_kind() -> None:
    assert MESH_AXES == {
        "embed": ("replica", "tensor"),
        "attention": ATTENTION,
        "sliding": ATTENTION,
        "unrotated": ATTENTION,
        "recurrent": ATTENTION,
        "indexed": ATTENTION,
        "following": ATTENTION,
        "blocked": ATTENTION,
        "dense": ("replica", "tensor"),
        "moe": ("replica", "expert", "tensor"),
        "head": ("replica", "tensor"),
    }


def test_what_each_axis_shares_out() -> None:
    assert LOGICAL == {
        "embed": {"vocab": ("tensor",)},
        "attention": {**HEADS, **POSITIONS},
        "sliding": HEADS,
        "unrotated": {**HEADS, **POSITIONS},
        "recurrent": HEADS,
        "indexed": {**HEADS, **POSITIONS},
        "following": {**HEADS, **POSITIONS},
        "blocked": {**HEADS, **POSITIONS},
        "dense": {"mlp": ("tensor",), "d_out": ("tensor",)},
        "moe": {
            "experts": ("expert",),
            "expert_mlp": ("tensor",),
            "d_out": ("tensor",),
            "once": ("tensor",),
            "shared_mlp": ("expert", "tensor"),
            "shared_d_out": ("expert", "tensor"),
            "alone_d_out": ("expert", "tensor"),
            "latent": ("expert", "tensor"),
            "latent_d_out": ("expert", "tensor"),
        },
        "head": {"vocab": ("tensor",)},
    }


def test_letters_tell_the_axes_of_a_part_apart() -> None:
    for axes in AXES.values():
        assert len({axis.letter for axis in axes}) == len(axes)
        assert all(len(axis.letter) == 1 for axis in axes)
    names = {(axis.letter, axis.name) for axes in AXES.values() for axis in axes}
    assert len({letter for letter, _ in names}) == len(names)


def test_every_kind_has_a_row_and_the_cache_is_attentions() -> None:
    assert tuple(BLOCK_KINDS) == get_args(Kind)
    attend = {"attention", "sliding", "unrotated", "indexed", "following", "blocked"}
    assert attend | {"recurrent"} == CACHING_KINDS


@pytest.mark.parametrize(
    "name", ["kimi-k2", "llama-3.1-8b", "gpt-oss-20b", "glm-5.2", "minimax-m3"]
)
def test_the_inputs_of_a_kind_are_what_comes_and_goes(name: str) -> None:
    """Everything else a program takes is placed once: weights, tables, numbers of shares."""
    cfg, caches = model(name), {"keys", "latents", "key_rows"}
    for kind in block_kinds(cfg):
        one = sizes(cfg, kind, FP16, dict.fromkeys(MESH_AXES[kind], 1), Request())
        arguments = block_arguments(cfg, kind, FP16, Split.ROW, one)
        comes = {
            number
            for number, argument in enumerate(arguments)
            if (isinstance(argument, Leaf) and argument.kind == "state")
            or (isinstance(argument, dict) and not caches.isdisjoint(argument))
        }
        assert comes == set(BLOCK_KINDS[kind].inputs), kind


def test_degrees_are_those_of_the_part_in_its_order() -> None:
    assert degrees(PLAN, "embed", KIMI) == {"replica": 1, "tensor": 12}
    assert list(degrees(PLAN, "moe", KIMI).items()) == [
        *(("replica", 1), ("expert", 6), ("tensor", 2))
    ]
    wide = replace(PLAN, attention=AttentionShard(tensor=16, order=("tensor", "data", "replica")))
    assert list(degrees(wide, "attention", LLAMA).items()) == [  # 8 key/value heads
        *(("replica", 1), ("data", 1), ("context", 1), ("tensor", 8), ("query", 2))
    ]
    turned = AttentionShard(tensor=16, data=2, order=("tensor", "data", "replica"))
    assert list(degrees(replace(PLAN, attention=turned), "attention", LLAMA).items()) == [
        *(("replica", 1), ("context", 1), ("tensor", 8), ("query", 2), ("data", 2))
    ]


def test_splits_of_the_kinds() -> None:
    assert [split_of(PLAN, kind) for kind in BLOCK_KINDS] == [
        # embedding and head have no output projection
        *(Split.COLUMN, *(Split.ROW,) * 7, Split.COLUMN, Split.ROW, Split.COLUMN)
    ]


@pytest.mark.parametrize(
    ("change", "promises"),
    [
        ({}, False),  # the context is merged
        ({"attention": AttentionShard(tensor=2, replica=6)}, False),  # partial sums of rows
        ({"attention": AttentionShard(tensor=2, replica=6, split=Split.COLUMN)}, False),
        ({"attention": AttentionShard(replica=12)}, False),  # nor of experts
        ({"attention": AttentionShard(replica=12), "moe": MoeShard(expert=12)}, False),
        ({"attention": AttentionShard(replica=12), "moe": MoeShard(tensor=12)}, False),
        ({"attention": AttentionShard(replica=12), "moe": None}, True),  # one chip's rows
    ],
)
def test_bits_of_one_chip(change: dict[str, object], promises: bool) -> None:
    assert promises_one_chip_bits(replace(PLAN, **change)) is promises


def test_only_a_shared_out_context_has_a_program_of_its_own() -> None:
    for kind in BLOCK_KINDS:
        cfg = QWEN if kind == "recurrent" else KIMI
        found = moving_axes(kind, degrees(PLAN, kind, cfg))
        assert found == (("context",) if kind in CACHING_KINDS else ())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 160))
def test_more_ways_than_key_value_heads_cut_the_query_heads_of_each_evenly(
    n_kv_heads: int, q_per_kv: int, ways: int
) -> None:
    n_heads = n_kv_heads * q_per_kv
    cfg = replace(LLAMA, attention=GqaConfig(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=128))
    each = n_heads // ways  # query heads of a chip; all must read one key/value head
    shares = [range(chip * each, (chip + 1) * each) for chip in range(ways)]
    is_even = each * ways == n_heads and all(
        len({head // q_per_kv for head in share}) == 1 for share in shares
    )
    assert (attention_reason(cfg, ways) is None) == (ways <= n_kv_heads or is_even)


def test_a_recurrent_layer_is_split_over_its_own_heads() -> None:
    cfg = model("qwen3-next-80b-a3b")  # 2 key/value heads of 8; 16 recurrent key heads of 2
    for tensor, attention, recurrent in ((2, (2, 1), (2, 1)), (16, (2, 8), (16, 1))):
        plan = Plan(
            group_chips=tensor,
            attention=AttentionShard(tensor=tensor),
            mlp=MlpShard(tensor=tensor),
            moe=MoeShard(expert=tensor),
        )
        for kind, ways in (("attention", attention), ("recurrent", recurrent)):
            found = degrees(plan, kind, cfg)
            assert (found["tensor"], found["query"]) == ways
    net = replace(cfg.recurrent, n_key_heads=4, n_value_heads=8)
    narrow = replace(cfg, recurrent=net)
    assert attention_reason(narrow, 8) is None
    reason = attention_reason(narrow, 16)
    assert "16 is more ways than the 4 recurrent key heads" in reason.sentence


def test_the_parameters_of_a_block_are_described_once() -> None:
    assert block_params(KIMI, "moe") is block_params(replace(KIMI), "moe")
    with pytest.raises(TypeError):
        block_params(KIMI, "moe")["norm"] = block_params(KIMI, "dense")["norm"]  # type: ignore[index]
