"""Why an operation takes as long as it does: what binds it, and which constants that rests on."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lpu_jax import cost
from lpu_jax.cost import Report
from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.sources import constants_read, worst_status
from lpu_jax.cost.time_report import bound_by
from lpu_jax.datapath import c2c, mem, mxm, sxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.work import Unit, Work
from lpu_jax.machine.catalogue import system
from lpu_jax.mesh import ChipMesh
from models.blocks import Kind, block_kinds
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.axes import MESH_AXES
from sharding.predict.kinds import schedule_block
from sharding.request import Request
from sharding.scenario import Scenario

#: What every product rests on.
PRODUCT = ("mxm_latency_cycles", "weight_prefetch", "padding", "widening")


def shape(*lengths: int, dtype: str = "float16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))


def only(report: Report) -> Any:
    (row,) = report.operations
    return row


@pytest.mark.parametrize(("rows", "reason"), [(1, "weight stream"), (64, "rows")])
def test_one_row_waits_for_weights_and_many_rows_for_arithmetic(rows: int, reason: str) -> None:
    # int8 on GroqChip1: a round brings 4 x 320 x 320 B at 20,480 B per cycle: 20 cycles
    x, w = shape(rows, 6400, dtype="int8"), shape(6400, 6400, dtype="int8")
    row = only(cost.time(mxm.matmul, x, w, system="groq-node"))
    rounds = 20 * 20 / 4
    assert row.bound_by == reason
    assert row.busy_cycles == (rounds - 1) * max(20, rows) + rows


def test_where_both_take_equally_long() -> None:
    def reason(rows: int) -> str:
        x, w = shape(rows, 640, dtype="int8"), shape(640, 6400, dtype="int8")
        return str(only(cost.time(mxm.matmul, x, w, system="groq-node")).bound_by)

    assert [reason(rows) for rows in (19, 20, 21)] == ["weight stream", "rows", "rows"]


def test_a_wide_stream_leaves_the_loading_of_the_arrays() -> None:
    row = only(cost.time(mxm.matmul, shape(1, 3200), shape(3200, 3200), system="lpx-rack"))
    assert row.bound_by == "array load"
    assert row.status == "assumed"
    assert {"array_load_rows_per_cycle", "mxm_latency_cycles"} <= set(row.assumed)


@pytest.mark.parametrize(
    ("function", "x", "reason"),
    [
        (lambda x: vxm.mul(vxm.add(vxm.mul(x, 2.0), 1.0), 3.0), shape(1, 320), "latency"),
        (vxm.exp, shape(64, 6400), "large ALUs"),
        (lambda x: vxm.mul(x, 2.0), shape(64, 6400), "streams in"),
        (vxm.sum_lanes, shape(1, 6400), "lane fold"),
        (vxm.sum_lanes, shape(64, 64000), "streams in"),
    ],
)
def test_what_binds_the_vector_unit(function: Any, x: jax.ShapeDtypeStruct, reason: str) -> None:
    wide = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    row = only(cost.time(function, wide, system="groq-node"))
    assert (row.unit, row.bound_by) == ("VXM", reason)


def test_what_binds_the_switch_and_the_memory() -> None:
    turned = cost.time(
        lambda x: sxm.rearrange(x, "a b -> b a"), shape(64, 6400), system="groq-node"
    )
    assert only(turned).bound_by == "vectors"
    table, ids, first = shape(4096, 640), shape(64, dtype="int32"), shape(dtype="int32")
    read_rows = cost.time(mem.lookup, table, ids, first, system="groq-node")
    assert only(read_rows).bound_by == "accesses"
    assert only(read_rows).assumed == ("mem_accesses_per_cycle", "mem_slices_per_address")


@pytest.mark.parametrize(("vectors", "reason"), [(1, "link latency"), (2000, "link rate")])
def test_what_binds_the_links(vectors: int, reason: str) -> None:
    def program(x: jax.Array, *, axes: dict[str, Axis]) -> jax.Array:
        return c2c.all_reduce(x, axes["x"])

    mesh = ChipMesh(axes=(("x", 8),), topology=system("groq-node").topology)
    row = only(cost.time(program, shape(vectors, 160), system="groq-node", mesh=mesh))
    assert (row.unit, row.bound_by) == ("C2C", reason)


def test_the_weakest_constant_gives_the_status() -> None:
    wide = shape(4, 640, dtype="float32")
    product = only(cost.time(lambda x: vxm.mul(x, 2.0), wide, system="groq-node"))
    assert (product.status, product.assumed) == ("published", ())
    matmul = only(cost.time(mxm.matmul, shape(4, 640), shape(640, 640), system="groq-node"))
    assert (matmul.status, matmul.assumed) == ("assumed", PRODUCT)
    turned = only(
        cost.time(lambda x: sxm.rearrange(x, "a b -> b a"), shape(4, 640), system="groq-node")
    )
    assert turned.status == "derived"  # one switch unit in each hemisphere
    assert worst_status(()) == "-"


def test_an_operation_does_not_rest_on_what_others_read() -> None:
    def program(x: Any, w: Any) -> Any:
        return vxm.mul(mxm.matmul(x, w), 2.0)

    report = cost.time(program, shape(4, 640), shape(640, 640), system="groq-node")
    assert [row.assumed for row in report.operations] == [PRODUCT, ()]
    assert {c.name for c in report.assumed} == {*PRODUCT, "transit_cycles"}


def test_an_operation_without_work_rests_on_nothing() -> None:
    def program(x: Any) -> Any:
        return c2c.all_reduce(x, Axis(names=(), size=1, tiers=()))

    traced = read(jax.make_jaxpr(program)(shape(4, 640)), strict=True)
    assert constants_read(traced, one_group(system("groq-node"), 1)) == ((),)
    assert bound_by(Work(unit=Unit.C2C, absent=True, limits={"link rate": 0.0})) == "-"


KIMI, LLAMA = model("kimi-k2"), model("llama-2-70b")
KINDS: list[tuple[Any, Kind]] = [(cfg, kind) for cfg in (KIMI, LLAMA) for kind in block_kinds(cfg)]


@pytest.mark.parametrize(("cfg", "kind"), KINDS)
def test_every_operation_of_a_model_says_why(cfg: Any, kind: Kind) -> None:
    ways = dict.fromkeys(MESH_AXES[kind], 1) | {"tensor": 8}
    node = system("groq-node")
    machine = one_group(node, 8)
    request = Request(context=1024)
    block = schedule_block(
        kind,
        ways,
        machine,
        Scenario(cfg, node, request, policy=POLICIES["fp16"]),
        slots={"slots": 8, "sent": 1, "capacity": 0},
        split=Split.ROW,
        collective="auto",
        dispatch=Dispatch.REPLICATED,
    )
    for slot in block.timing.slots:
        work = slot.work
        if work.unit is Unit.FREE or work.absent:
            continue
        reasons = [float(cycles) for cycles in work.limits.values()]
        # the largest of its reasons, or where phases follow each other, their sum
        assert max(reasons) <= float(work.busy_cycles) <= sum(reasons) * (1 + 1e-12)
        assert bound_by(work) in {*work.limits, "latency", "link latency"}


def test_what_operations_add_to_the_end_is_the_time() -> None:
    def program(x: Any, w: Any, v: Any, other: Any) -> Any:
        hidden = vxm.to_fp32(mxm.matmul(x, w))
        beside = sxm.rearrange(other, "a b -> b a")
        gate = vxm.mul(hidden, vxm.sum_lanes(hidden))
        return mxm.matmul(vxm.to_fp16(gate), v), beside

    shapes = shape(64, 640), shape(640, 9600), shape(9600, 640), shape(64, 38400)
    report = cost.time(program, *shapes, system="groq-node")
    added = sum(row.adds_cycles for row in report.operations)
    assert added == max(row.end_cycle for row in report.operations)
    assert added == pytest.approx(report.cycles, abs=1)  # whole cycles
    # The sums end before the transpose beside them, which came first.
    assert 0 in [row.adds_cycles for row in report.operations if row.unit == "VXM"]
