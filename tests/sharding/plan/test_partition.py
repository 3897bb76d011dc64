"""A plan on a mesh of JAX: the specs written by hand, and every device's share beside a chip's."""

import re
from dataclasses import replace
from math import prod
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import config
from placed_blocks import TINY_KIMI, TINY_LLAMA, TINY_OSS
from small_machines import NODE

from lpu_jax.errors import LpuError
from lpu_jax.mesh import run_virtual
from models.blocks import block_chain
from models.config import GqaConfig, ModelConfig
from models.params import block_params
from models.policy import POLICIES
from models.weights.synthetic import SyntheticWeights
from sharding import Plan, Request, mesh_axes, partition_specs
from sharding.run.load import place_block, store_block

FLOAT32 = POLICIES["float32"]
#: Biases, norms of heads and sinks in every place there is one.
TINY_BIASED = replace(
    TINY_OSS,
    name="biased",
    attention=GqaConfig(
        n_heads=4, n_kv_heads=2, head_dim=32, qkv_bias=True, o_bias=True, qk_norm=True, sinks=True
    ),
    rope=replace(TINY_LLAMA.rope, dim=32),
)
TENSOR, BOTH = P("tensor", None), ("tensor", "query")


def test_specs_written_by_hand() -> None:
    """As Megatron-LM splits a dense model: rows of what goes out, columns of what comes in."""
    plan = Plan.parse("1x8 a:4t·2r f:8t row")
    assert mesh_axes(plan, TINY_LLAMA) == {
        "embed": {"replica": 1, "tensor": 8},
        "attention": {"replica": 2, "data": 1, "context": 1, "tensor": 2, "query": 2},
        "dense": {"replica": 1, "tensor": 8},
        "head": {"replica": 1, "tensor": 8},
    }
    assert partition_specs(plan, TINY_LLAMA) == {
        "embed": {"table": TENSOR},
        "attention": {
            "norm": P(None),
            "q": P(None, "tensor", "query", None),
            "kv": P(None, "tensor", None, None),
            "o": P("tensor", "query", None, None),
        },
        "dense": {"norm": P(None), "gate_up": P(None, None, "tensor"), "down": TENSOR},
        "head": {"norm": P(None), "out": P(None, "tensor")},
    }
    columns = partition_specs(Plan.parse("1x8 a:4t>2r f:8t column"), TINY_LLAMA)
    assert columns["attention"]["o"] == P(None, None, None, BOTH)
    assert columns["dense"]["down"] == P(None, "tensor")


def test_specs_of_a_mixture_written_by_hand() -> None:
    found = partition_specs(Plan.parse("1x8 a:4t·2r f:8t m:4t>2e row"), TINY_KIMI)
    assert found["moe"] == {
        "norm": P(None),
        "router": P(None, None),
        "router_bias": P(None),
        "gate_up": P("expert", None, None, "tensor"),
        "down": P("expert", "tensor", None),
        # Over all chips, in the order of their numbers.
        "shared_gate_up": P(None, None, ("tensor", "expert")),
        "shared_down": P(("tensor", "expert"), None),
    }
    assert mesh_axes(Plan.parse("1x8 a:8r f:8r m:4t>2e"), TINY_KIMI)["moe"] == {
        "replica": 1, "tensor": 4, "expert": 2,
    }  # fmt: skip
    assert list(found["moe"]) == list(block_params(TINY_KIMI, "moe"))


def _held_by_chips(block: Any) -> dict[str, Any]:
    """Every chip's weights, in the order of the chips: each chip returns what it was given."""

    def program(hidden: Any, weights: dict[str, Any], *rest: Any, axes: Any) -> Any:
        del hidden, rest, axes
        return {name: weight[None] for name, weight in weights.items()}

    run = run_virtual(program, block.mesh, block.in_specs, P(tuple(dict(block.mesh.axes))))
    return dict(jax.tree.map(np.asarray, jax.jit(run)(*block.arguments)))


def _mesh(axes: dict[str, int]) -> Mesh:
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices("cpu")[: prod(axes.values())],
    )


def _whole_shares(values: np.ndarray, spec: P, axes: dict[str, int]) -> np.ndarray:
    """Fill up every dimension with zeros at its end, as `partition_specs` says."""
    missing = []
    for length, names in zip(values.shape, spec, strict=True):
        over = (names,) if isinstance(names, str) else names or ()
        missing.append((0, -length % prod(axes[name] for name in over)))
    return np.pad(values, missing)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("cfg", "name"),
    [
        (TINY_LLAMA, "1x8 a:4t·2r f:8t row"),
        (TINY_LLAMA, "1x8 a:4t>2d f:2t>4r column"),
        (TINY_LLAMA, "1x8 a:2t·4r f:8t tree/wide"),
        (TINY_KIMI, "1x8 a:4t·2r f:8t m:4e·2t tree/tree/wide"),
        (TINY_LLAMA, "1x7 a:7r f:7t row"),  # no length is a whole number of shares
        (TINY_KIMI, "1x8 a:4t·2c f:8t m:4e·2t row"),
        (TINY_KIMI, "1x8 a:4t>2d f:4t·2r m:2t>4e column/row/column"),
        (TINY_BIASED, "1x8 a:4t>2r f:8r m:4t>2e row all_to_all"),
        (TINY_BIASED, "1x8 a:2t·2d·2r f:8r m:2e·2t·2r column"),
    ],
)
def test_devices_hold_what_chips_hold(cfg: ModelConfig, name: str) -> None:
    plan, source = Plan.parse(name), SyntheticWeights(cfg)
    specs = partition_specs(plan, cfg)
    for kind, axes in mesh_axes(plan, cfg).items():
        layer = max(block.layer for block in block_chain(cfg) if block.kind == kind)
        stored = store_block(source, kind, layer, FLOAT32)
        chips = _held_by_chips(place_block(stored, NODE, plan, Request(batch=2)))
        mesh = _mesh(axes)
        chip_of = {device: chip for chip, device in enumerate(mesh.devices.flat)}
        for parameter, values in stored.weights.items():
            spec = specs[kind][parameter]
            placed = jax.device_put(_whole_shares(values, spec, axes), NamedSharding(mesh, spec))
            assert len(placed.addressable_shards) == plan.group_chips
            for shard in placed.addressable_shards:
                held, share = chips[parameter][chip_of[shard.device]], np.asarray(shard.data)
                # Split by columns, chips hold the zeros below a bias of one row too.
                is_short = "once" in block_params(cfg, kind)[parameter].axes
                assert share.shape == held.shape or is_short
                np.testing.assert_array_equal(held[tuple(map(slice, share.shape))], share)
                assert np.count_nonzero(held) == np.count_nonzero(share)
        assert set(specs[kind]) == set(stored.weights)
    assert set(specs) == {block.kind for block in block_chain(cfg)}


def test_jax_refuses_a_share_that_is_not_whole() -> None:
    plan = Plan.parse("1x7 a:7r f:7t row")
    spec = partition_specs(plan, TINY_LLAMA)["dense"]["down"]
    on = NamedSharding(_mesh(mesh_axes(plan, TINY_LLAMA)["dense"]), spec)
    with pytest.raises(ValueError, match="240"):
        jax.device_put(np.zeros((240, 192), np.float32), on)


@pytest.mark.parametrize(
    ("plan", "cfg", "sentence"),
    [
        (None, TINY_LLAMA, "mesh_axes: None was given as a plan; it must be a Plan"),
        ("1x8 a:8r f:8r", TINY_LLAMA, "mesh_axes: '1x8 a:8r f:8r' was given as a plan; it must"),
        (Plan.parse("1x8 a:8r f:8r"), TINY_KIMI, "kimi-k2 has MoE blocks; the plan must have a"),
        (Plan.parse("1x8 a:8r f:4r"), TINY_LLAMA, "mlp: tensor 1 x replica 4 = 4 chips, but a"),
        (Plan.parse("1x3 a:3t f:3r"), TINY_LLAMA, "attention: tensor 3 is more ways than the 2"),
        (Plan.parse("1x3 a:3r f:3t tree"), TINY_LLAMA, "mlp: split tree needs a power of two of"),
        (Plan.parse("1x8 a:8t f:8r m:8r"), TINY_KIMI, "attention: tensor 8 is more ways than the"),
        (Plan.parse("1x8 a:8r f:8r"), "lama-3.1-8b", "unknown model 'lama-3.1-8b'; nearest: "),
        (Plan.parse("1x8 a:8r f:8r"), None, "model is of type NoneType; it must be a name or a"),
    ],
)
def test_what_has_no_mesh(
    plan: Any, cfg: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users run
    for ask in (mesh_axes, partition_specs):
        with pytest.raises(LpuError, match=f"^{re.escape(sentence)}") as refused:
            ask(plan, cfg)
        assert "\n" not in str(refused.value)
