"""Leaves of a tree: a matter of the model alone, whole pieces, and little padding."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import zoo
from models.blocks import block_kinds
from models.config import GqaConfig, ModelConfig
from models.leaves import (
    MOST_LEAVES,
    MOST_PADDING,
    Leaves,
    axis_lengths,
    expert_leaves,
    experts_of_chip,
    granules,
    leaves,
    rows_of_leaf,
)
from models.policy import POLICIES

KIMI, LLAMA, GPT = (zoo.model(name) for name in ("kimi-k2", "llama-3.1-8b", "gpt-oss-120b"))


@pytest.mark.parametrize(
    ("name", "kind", "policy", "axis", "count", "length"),
    [
        ("kimi-k2", "attention", "int4", "heads", 64, 1),
        ("kimi-k2", "dense", "int4", "mlp", 64, 288),
        ("kimi-k2", "moe", "int4", "expert_mlp", 64, 32),  # of one scale each
        ("kimi-k2", "moe", "fp8", "expert_mlp", 16, 128),
        ("kimi-k2", "moe", "int4", "experts", 128, 3),  # 384 = 128 * 3
        ("deepseek-v3", "attention", "fp8", "heads", 64, 2),
        ("llama-3.1-8b", "attention", "fp16", "kv_heads", 8, 1),
        ("llama-3.1-8b", "attention", "fp16", "q_per_kv", 4, 1),
        ("llama-3.1-8b", "dense", "fp16", "mlp", 64, 224),
        ("smollm2-135m", "attention", "fp16", "kv_heads", 1, 3),  # a fourth would be a third more
        ("smollm2-135m", "attention", "fp16", "q_per_kv", 1, 3),
        ("gpt-oss-120b", "moe", "mxfp4", "expert_mlp", 32, 96),  # 90 pieces of 32, and 6 of zeros
    ],
)
def test_leaves_of_models(
    name: str, kind: str, policy: str, axis: str, count: int, length: int
) -> None:
    found = leaves(zoo.model(name), kind, POLICIES[policy])
    assert found[axis] == Leaves(count=count, length=length)


@pytest.mark.parametrize("cfg", [KIMI, LLAMA, GPT], ids=lambda cfg: cfg.name)
@pytest.mark.parametrize("policy", ["fp16", "int4", "fp8", "mxfp4"])
def test_leaves_are_whole_pieces_of_little_padding(cfg: ModelConfig, policy: str) -> None:
    for kind in block_kinds(cfg):
        lengths, pieces = (
            axis_lengths(cfg, kind),
            granules(cfg, kind, POLICIES[policy]),
        )
        for axis, leaf in leaves(cfg, kind, POLICIES[policy]).items():
            piece = pieces.get(axis, 1)
            whole = -(-lengths[axis] // piece) * piece
            assert leaf.count & leaf.count - 1 == 0
            assert leaf.length % piece == 0
            assert whole <= leaf.count * leaf.length <= whole * (1 + MOST_PADDING)
            assert axis == "experts" or leaf.count <= MOST_LEAVES


@given(st.integers(1, 1000), st.integers(0, 10))
def test_every_power_of_two_of_chips_holds_whole_leaves(n_experts: int, power: int) -> None:
    cut, ways = expert_leaves(n_experts), 2**power
    held = experts_of_chip(n_experts, ways, in_tree=True)
    assert held == cut.of_chip(ways)
    assert held % cut.length == 0
    assert held * ways >= n_experts
    # Leaves end where chips do: a chip's are a subtree.
    assert held * ways == cut.length * max(cut.count, ways)
    assert experts_of_chip(n_experts, ways, in_tree=False) <= held


def test_rows_of_a_leaf_are_those_of_all_its_dimensions() -> None:
    fp16 = POLICIES["fp16"]
    assert rows_of_leaf(LLAMA, "attention", fp16, "o") == 128  # one query head
    assert rows_of_leaf(KIMI, "attention", fp16, "o") == 128
    assert rows_of_leaf(KIMI, "moe", fp16, "down") == 32
    assert rows_of_leaf(KIMI, "moe", fp16, "shared_down") == 32
    # Heads of several key/value heads do not follow each other: they stay one leaf.
    assert isinstance(LLAMA.attention, GqaConfig)
    odd = replace(LLAMA, attention=replace(LLAMA.attention, n_heads=24, n_kv_heads=6))
    assert leaves(odd, "attention", fp16)["kv_heads"] == Leaves(count=2, length=3)
    assert rows_of_leaf(odd, "attention", fp16, "o") == 3 * 4 * 128
