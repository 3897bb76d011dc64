"""`lpu_jax.cost.time`: any JAX function, with rows, bounds and the assumptions that took part."""

import dataclasses
import inspect
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lpu_jax import cost
from lpu_jax.cost import Report
from lpu_jax.datapath import c2c, mxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.errors import CostError, MeshError, PlanError, UnknownNameError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.mesh import ChipMesh
from models import zoo
from models.layers.linear import Split
from models.layers.mlp import dense_mlp
from models.policy import FP16

X = jax.ShapeDtypeStruct((16, 640), jnp.float16)
W = jax.ShapeDtypeStruct((640, 1280), jnp.float16)
LLAMA = zoo.model("llama-3.1-8b")


def users_function(x: jax.Array, w: jax.Array) -> jax.Array:
    y = jnp.exp(x @ w) * jnp.float16(0.5)
    return y / y.sum(-1, keepdims=True)


def test_a_users_function_is_timed_row_by_row() -> None:
    out = cost.time(users_function, X, W, system="groq-node")
    names = [row.name for row in out.operations]
    assert names[0] == "dot_general"
    assert any("exp" in name for name in names)
    assert "reduce_sum" in names
    assert {row.unit for row in out.operations} == {"MXM", "VXM"}
    # 4 x 4 tiles of [160 x 320] on two arrays, 16 rows each
    assert out.operations[0].busy_cycles == 8 * 16
    assert out.lower_cycles <= out.cycles <= out.upper_cycles
    assert out.seconds == out.cycles / 0.9e9
    assert out.operations[-1].end_cycle == pytest.approx(out.cycles, abs=1)


def test_arrays_and_their_shapes_take_the_same_time() -> None:
    arrays = (jnp.ones(X.shape, X.dtype), jnp.ones(W.shape, W.dtype))
    assert cost.time(users_function, *arrays, system="groq-node") == cost.time(
        users_function, X, W, system="groq-node"
    )


def test_rules_of_ordinary_primitives_are_listed_as_assumed() -> None:
    out = cost.time(users_function, X, W, system="groq-node")
    assert {"dot_general", "exp", "mul", "div", "reduce_sum"} <= set(out.assumed_rules)
    own = cost.time(mxm.matmul, X, W, system="groq-node")
    assert own.assumed_rules == ()
    assert own.cycles == cost.time(jnp.matmul, X, W, system="groq-node").cycles


def test_only_assumed_constants_that_were_read_are_listed() -> None:
    matmul = {c.name for c in cost.time(mxm.matmul, X, W, system="groq-node").assumed}
    wide = jax.ShapeDtypeStruct(X.shape, jnp.float32)
    product = {c.name for c in cost.time(vxm.mul, wide, wide, system="groq-node").assumed}
    rules = {"weight_prefetch", "padding", "widening"}
    assert matmul == {"transit_cycles", "mxm_latency_cycles"} | rules
    assert product == {"transit_cycles"}
    lpx = {c.name for c in cost.time(mxm.matmul, X, W, system="lpx-rack").assumed}
    assert {"weight_stream_bytes_per_cycle", "mxm_fp16"} <= lpx
    assert not {"mxm_int8", "mxm_fp8", "vxm_alus_per_lane"} & lpx


def test_a_new_operation_in_a_layer_adds_time_and_a_row() -> None:
    mlp = partial(dense_mlp, cfg=LLAMA, policy=FP16, split=Split.ROW)

    def with_another(x: jax.Array, w: dict[str, Any], *, axes: dict[str, Axis]) -> jax.Array:
        out = mlp(x, w, axes=axes)
        again = mxm.matmul(out.reshape(-1, LLAMA.d_model), w["gate_up"].reshape(LLAMA.d_model, -1))
        return vxm.to_fp16(again)

    d, f = LLAMA.d_model, LLAMA.d_ff
    shapes = {
        "norm": jax.ShapeDtypeStruct((d,), jnp.float32),
        "gate_up": jax.ShapeDtypeStruct((d, 2, f), jnp.float16),
        "down": jax.ShapeDtypeStruct((f, d), jnp.float16),
    }
    specs = {"norm": P(), "gate_up": P(None, None, "tensor"), "down": P("tensor", None)}
    x = jax.ShapeDtypeStruct((1, 1, d), jnp.float16)
    mesh = ChipMesh(axes=(("tensor", 8),), topology=system("groq-node").topology)
    run = partial(cost.time, system="groq-node", mesh=mesh, in_specs=(P(), specs))
    before = run(mlp, x, shapes, out_specs=P())
    after = run(with_another, x, shapes, out_specs=P(None, "tensor"))
    assert [r.name for r in after.operations].count("mxm_matmul") == 3
    rounds = -(-(d // 160) * -(-(2 * f // 8) // 320) // 2)
    assert after.cycles >= before.cycles + (rounds - 1) * 10
    assert before.n_chips == 8
    assert before.assumed_rules == after.assumed_rules == ()


def of_576(n_chips: int) -> ChipMesh:
    return ChipMesh(axes=(("x", n_chips),), topology=system("groq-576").topology)


def test_links_are_timed_over_the_chips_of_the_mesh() -> None:
    def program(x: jax.Array, *, axes: dict[str, Axis]) -> jax.Array:
        return c2c.all_reduce(x, axes["x"])

    x = jax.ShapeDtypeStruct((1, 160), jnp.float16)  # one vector of 320 bytes
    one, pair, rack = (cost.time(program, x, system="groq-576", mesh=of_576(n)) for n in (1, 2, 64))
    hop_cycles = 722e-9 * 0.9e9
    assert one.operations[0].end_cycle == one.operations[0].start_cycle
    assert pair.operations[0].unit == "C2C"
    assert pair.cycles == pytest.approx(22 + hop_cycles, abs=1)
    assert rack.cycles > pair.cycles


def test_a_report_is_plain_data_and_readable_text() -> None:
    out = cost.time(users_function, X, W, system=system("lpx-rack"))
    plain = json.loads(json.dumps(out.as_dict()))
    assert plain["cycles"] == out.cycles
    assert plain["seconds"] == out.seconds
    assert [row["name"] for row in plain["operations"]] == [row.name for row in out.operations]
    assert all(c["status"] == "assumed" and c["source"] for c in plain["assumed"])
    text = out.table()
    for part in ("lpx-rack, 1 chip", "dot_general", "MXM", "assumed constants", "between"):
        assert part in text
    assert max(len(line) for line in text.splitlines()[2:-4]) <= 120


def test_a_program_of_free_layout_takes_no_time() -> None:
    out = cost.time(lambda x: x.reshape(-1), X, system="groq-node")
    assert isinstance(out, Report)
    assert (out.cycles, out.operations, out.utilisation) == (0.0, (), {})
    assert "busy: nothing" in out.table()


# --- errors -------------------------------------------------------------------------------------


def test_a_primitive_without_a_rule_is_named() -> None:
    with pytest.raises(CostError, match="primitive 'sort' has no cost rule"):
        cost.time(jnp.sort, X, system="groq-node")


def test_more_chips_than_the_system_has_are_refused() -> None:
    with pytest.raises(PlanError, match="16 chips"):
        cost.time(lambda x, *, axes: x, X, system="groq-8", mesh=of_576(16))


def test_a_mesh_of_another_machine_is_refused() -> None:
    mesh = ChipMesh(axes=(("x", 16),), topology=system("lpx-rack").topology)
    with pytest.raises(MeshError, match="16 and 256 chips in a node and a rack; groq-576 has 8"):
        cost.time(lambda x, *, axes: x, X, system="groq-576", mesh=mesh)


def test_an_unknown_system_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown system 'groq-nod'"):
        cost.time(jnp.exp, X, system="groq-nod")


@pytest.mark.parametrize("name", ["exp", "tanh", "rsqrt", "log"])
def test_a_special_function_takes_the_passes_of_the_chip(name: str) -> None:
    """More passes take longer by cycles that are counted by hand: 20 vectors on 8 ALUs."""
    function, x = getattr(vxm, name), jax.ShapeDtypeStruct((64, 100), jnp.float32)
    node = system("groq-node")

    def cycles(passes: int) -> float:
        chip = dataclasses.replace(node.chip, **{f"{name}_alu_passes": passes})
        return cost.time(function, x, system=dataclasses.replace(node, chip=chip)).cycles

    busy = (64 * 100 / 320) / 8
    assert cycles(7) - cycles(3) == pytest.approx(4 * (busy + node.chip.alu_cycles))


def test_specs_need_a_mesh() -> None:
    with pytest.raises(MeshError, match="without a mesh"):
        cost.time(jnp.exp, X, system="groq-node", in_specs=(P(),))


@pytest.mark.parametrize(
    ("program", "arguments", "complaint"),
    [
        (3, (X,), "time: fn is 3; it must be a function"),
        (jnp.exp, (), "time: fn cannot take 0 arguments"),
        (lambda x: x, (X, X), "time: fn cannot take 2 arguments"),
        (lambda x: x, ("x",), r"time: args\[0\] is 'x'; it must be an array"),
        (lambda x: x, ({"a": [X, None, object()]},), r"args\[0\]\['a'\]\[2\] is an object"),
    ],
)
def test_what_is_no_program_is_refused(program: Any, arguments: Any, complaint: str) -> None:
    with pytest.raises(CostError, match=complaint):
        inspect.unwrap(cost.time)(program, *arguments, system="groq-node")


@pytest.mark.parametrize("given", [None, 3, ["groq-node"], GROQCHIP1])
def test_what_is_no_system_is_refused(given: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"system is .*; it must be a name or the path"):
        inspect.unwrap(system)(given)
