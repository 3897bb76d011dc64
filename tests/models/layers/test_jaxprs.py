"""Layers hold datapath operations and free layout only, for one chip or for thousands."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from slices import pairs_first

from lpu_jax import mesh
from lpu_jax.cost.program import Program, read
from lpu_jax.datapath import vxm
from lpu_jax.errors import CostError, LpuError
from lpu_jax.machine.catalogue import system
from models import zoo
from models.blocks import Kind, block_arguments, block_kinds, block_program
from models.config import ModelConfig
from models.layers.linear import Split
from models.layers.moe import ExpertSizes
from models.policy import POLICIES
from sharding import axes
from sharding.request import Request

KIMI, LLAMA = zoo.model("kimi-k2"), zoo.model("llama-3.1-405b")
NEXT = zoo.model("qwen3-next-80b-a3b")
ULTRA = zoo.model("nemotron-3-ultra-550b-a55b")
#: Over 2,048 chips: experts and their columns; heads and sequences; columns and copies.
WAYS: dict[Kind, dict[str, int]] = {
    "embed": {"tensor": 2048},
    "attention": {"replica": 4, "data": 64, "context": 1, "tensor": 8, "query": 1},
    "sliding": {"replica": 4, "data": 64, "context": 1, "tensor": 8, "query": 1},
    "unrotated": {"replica": 4, "data": 64, "context": 1, "tensor": 8, "query": 1},
    "indexed": {"replica": 4, "data": 32, "context": 2, "tensor": 8, "query": 1},
    "following": {"replica": 4, "data": 32, "context": 2, "tensor": 8, "query": 1},
    "blocked": {"replica": 4, "data": 32, "context": 2, "tensor": 4, "query": 2},
    "recurrent": {"replica": 4, "data": 32, "context": 1, "tensor": 8, "query": 2},
    "dense": {"replica": 16, "tensor": 128},
    "moe": {"replica": 1, "expert": 384, "tensor": 8},
    "head": {"tensor": 2048},
}
BLOCKS = [
    pytest.param(cfg, kind, id=f"{cfg.name}-{kind}")
    for cfg in (KIMI, LLAMA)
    for kind in block_kinds(cfg)
]
BLOCKS += [
    pytest.param(zoo.model("gpt-oss-120b"), "attention", id="gpt-oss-120b-attention"),
    pytest.param(zoo.model("gpt-oss-120b"), "sliding", id="gpt-oss-120b-sliding"),
    pytest.param(zoo.model("minimax-m2.5"), "attention", id="minimax-m2.5-attention"),
    pytest.param(zoo.model("gemma-3-27b"), "sliding", id="gemma-3-27b-sliding"),
    pytest.param(zoo.model("gemma-4-31b"), "attention", id="gemma-4-31b-attention"),
    pytest.param(zoo.model("gemma-4-31b"), "dense", id="gemma-4-31b-dense"),
    pytest.param(zoo.model("gemma-4-31b"), "head", id="gemma-4-31b-head"),
    pytest.param(zoo.model("gemma-4-26b-a4b"), "moe", id="gemma-4-26b-a4b-moe"),
    *(
        pytest.param(zoo.model("llama-4-maverick"), kind, id=f"llama-4-maverick-{kind}")
        for kind in ("sliding", "unrotated", "moe")
    ),
    pytest.param(KIMI.with_latent_form("expanded"), "attention", id="kimi-k2-expanded"),
    pytest.param(zoo.model("kimi-linear-48b-a3b"), "recurrent", id="kimi-linear-recurrent"),
    *(pytest.param(ULTRA, kind, id=f"{ULTRA.name}-{kind}") for kind in ("recurrent", "moe")),
    pytest.param(zoo.model("nemotron-h-56b"), "dense", id="nemotron-h-56b-dense"),
    pytest.param(zoo.model("kimi-linear-48b-a3b"), "unrotated", id="kimi-linear-unrotated"),
    pytest.param(zoo.model("ling-3.0-flash"), "recurrent", id="ling-3-recurrent"),
    *(
        pytest.param(zoo.model("kimi-k3"), kind, id=f"kimi-k3-{kind}")
        for kind in block_kinds(zoo.model("kimi-k3"))
    ),
    pytest.param(zoo.model("deepseek-v3.2"), "indexed", id="deepseek-v3.2-indexed"),
    pytest.param(zoo.model("glm-5.2"), "following", id="glm-5.2-following"),
    *(
        pytest.param(zoo.model("minimax-m3"), kind, id=f"minimax-m3-{kind}")
        for kind in ("blocked", "dense", "moe")
    ),
    *(pytest.param(NEXT, kind, id=f"{NEXT.name}-{kind}") for kind in ("recurrent", "moe")),
]


def traced(
    cfg: ModelConfig,
    kind: Kind,
    policy: str,
    split: Split,
    wrap: Callable[[Any], Any] = lambda program: program,
    capacity: int | None = None,
) -> Any:
    """Trace a block over thousands of chips; nothing is allocated."""
    ways = WAYS[kind]
    if kind == "moe" and split is Split.TREE:
        ways = ways | {"expert": 256}  # a power of two, of which 128 have experts
    request = Request(batch=128, context=8192)
    sizes = axes.sizes(cfg, kind, POLICIES[policy], ways, request, split)
    arguments = block_arguments(cfg, kind, POLICIES[policy], split, sizes)
    experts = ExpertSizes(n_local=sizes.local.get("experts"), slots=1, capacity=capacity)
    program = block_program(cfg, kind, POLICIES[policy], split, experts=experts)
    return mesh.trace(
        wrap(program),
        axes.chip_mesh(ways, system("lpx-12"), "auto"),
        axes.partition_specs(kind, arguments, list(ways)),
        axes.result_specs(kind, arguments, list(ways)),
        *axes.global_shapes(arguments, sizes),
    )


@pytest.mark.first(8)
@pytest.mark.parametrize(
    ("cfg", "kind", "split", "policy"), pairs_first(BLOCKS, list(Split), list(POLICIES))
)
def test_every_block_over_thousands_of_chips_is_a_program(
    cfg: ModelConfig, kind: Kind, split: Split, policy: str
) -> None:
    if (kind, split, policy) == ("moe", Split.WIDE, "nvfp4"):
        with pytest.raises(LpuError, match="weights format nvfp4 has a scale of a whole matrix"):
            traced(cfg, kind, policy, split)
        return
    program = read(traced(cfg, kind, policy, split), strict=True)
    assert isinstance(program, Program)
    assert program.ordinary == ()
    assert program.operations


@pytest.mark.first(3)
@pytest.mark.parametrize(("cfg", "kind"), BLOCKS)
def test_tracing_twice_gives_the_same_program(cfg: ModelConfig, kind: Kind) -> None:
    first, second = (traced(cfg, kind, "fp16", Split.ROW) for _ in range(2))
    assert str(first) == str(second)


def test_the_collectives_are_those_of_the_split() -> None:
    row = read(traced(KIMI, "moe", "int4", Split.ROW), strict=True).names
    column = read(traced(KIMI, "moe", "int4", Split.COLUMN), strict=True).names
    # routed and shared partial sums are added on the chip and cross the links once
    assert [n for n in row if n.startswith("c2c")] == ["c2c_all_reduce"]
    # gathered rows move no collective
    for split, names in ((Split.ROW, row), (Split.COLUMN, column)):
        gathered = read(traced(KIMI, "moe", "int4", split, capacity=2), strict=True).names
        assert [n for n in gathered if n.startswith("c2c")] == [
            n for n in names if n.startswith("c2c")
        ]
    # hidden values, every expert's results, the shared expert's values and results
    assert [n for n in column if n.startswith("c2c")] == ["c2c_all_gather"] * 4
    for capacity in (None, 2):
        wide = read(traced(KIMI, "moe", "int4", Split.WIDE, capacity=capacity), strict=True).names
        assert [n for n in wide if n.startswith("c2c")] == ["c2c_all_reduce"]
        tree = read(traced(KIMI, "moe", "int4", Split.TREE, capacity=capacity), strict=True).names
        # columns of experts and of the shared expert, both sums over experts, and the result
        in_tree = ["c2c_reduce_scatter", "c2c_all_reduce", "c2c_all_gather"]
        assert [n for n in tree if n.startswith("c2c")] == in_tree


@pytest.mark.parametrize("name", ["sin", "tanh", "sort"])
def test_a_layer_with_another_operation_is_refused_by_name(name: str) -> None:
    def with_another(program: Any, x: jax.Array, *args: Any, axes: Any) -> jax.Array:
        y = vxm.to_fp32(program(x, *args, axes=axes))
        return getattr(jnp, name)(y)

    jaxpr = traced(KIMI, "dense", "fp16", Split.ROW, lambda p: partial(with_another, p))
    with pytest.raises(CostError, match=f"^{name}: not a datapath operation or free layout"):
        read(jaxpr, strict=True)


def test_a_compiled_block_is_not_traced_again_for_the_same_shapes() -> None:
    traces = []

    @jax.jit
    def block(x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return vxm.exp(vxm.mul(x, x))

    for value in (1.0, 2.0):
        block(jnp.full((2, 3), value, jnp.float32))
    assert traces == [(2, 3)]
