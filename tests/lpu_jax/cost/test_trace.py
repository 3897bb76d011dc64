"""Traces in the trace event format: events by their required fields, units that never overlap."""

import json
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import Program, read
from lpu_jax.cost.schedule import Timing, schedule
from lpu_jax.cost.sources import constants_read
from lpu_jax.cost.time_report import operation_rows
from lpu_jax.cost.trace import INSTALLS, Slice, Trace, unit_slices
from lpu_jax.datapath import mxm, sxm, vxm
from lpu_jax.machine.catalogue import system

GROQ = one_group(system("groq-node"), 1)
GIGAHERTZ = 1e9  # a cycle is a nanosecond


def shape(*lengths: int, dtype: str = "float16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))


def slices_of(function: Any, *shapes: jax.ShapeDtypeStruct) -> tuple[Timing, tuple[Slice, ...]]:
    program: Program = read(jax.make_jaxpr(function)(*shapes), strict=True)
    timing = schedule(program, GROQ)
    rows = operation_rows(timing, constants_read(program, GROQ))
    names = [row.name for row in rows]
    return timing, unit_slices(program, timing, rows, names, float(GROQ.chip.transit_cycles))


def attention(x: Any, w: Any, keys: Any, values: Any) -> Any:
    query = vxm.to_fp16(mxm.matmul(x, w))
    scores = mxm.matmul(query, keys)
    weights = vxm.exp(vxm.sub(scores, vxm.max_lanes(scores)))
    turned = sxm.rearrange(weights, "a b -> b a")
    return mxm.matmul(vxm.to_fp16(weights), values), turned


SHAPES = shape(16, 640), shape(640, 640), shape(640, 960), shape(960, 640)


def test_units_do_one_thing_at_a_time() -> None:
    timing, slices = slices_of(attention, *SHAPES)
    for track in {each.track for each in slices}:
        on_track = sorted(
            (each for each in slices if each.track == track), key=lambda each: each.start_cycle
        )
        assert all(a.end_cycle <= b.start_cycle for a, b in pairwise(on_track))
    assert {"MXM", "VXM", "SXM", INSTALLS} == {each.track for each in slices}
    assert max(each.end_cycle for each in slices) <= timing.cycles


def test_a_slice_lasts_as_long_as_its_unit_is_occupied() -> None:
    timing, slices = slices_of(mxm.matmul, shape(7, 500), shape(500, 700))
    product, install = slices
    # 4 x 3 tiles on two arrays: six rounds, ten cycles to install each, seven rows
    assert (product.start_cycle, product.end_cycle) == (22, 22 + 5 * 10 + 7)
    assert (install.start_cycle, install.end_cycle) == (0, 10)
    assert product.args["bound by"] == "latency"  # 64 cycles to the first result
    assert product.args["bytes"] == 500 * 960 * 2  # 700 columns are three vectors
    assert product.args["latency cycles"] == timing.cycles - product.end_cycle == 64


def test_weights_are_installed_before_the_rows_come() -> None:
    _, slices = slices_of(attention, *SHAPES)
    products = [each for each in slices if each.track == "MXM"]
    installs = [each for each in slices if each.track == INSTALLS]
    assert [each.name for each in installs] == [f"first weights of {p.name}" for p in products]
    for install, product in zip(installs, products, strict=True):
        assert install.end_cycle <= product.start_cycle


def test_a_weight_that_is_computed_is_installed_when_it_is_there() -> None:
    def program(x: Any, w: Any) -> Any:
        return mxm.matmul(x, vxm.to_fp16(w))

    timing, slices = slices_of(program, shape(1, 160), shape(160, 320, dtype="float32"))
    install = next(each for each in slices if each.track == INSTALLS)
    assert install.start_cycle == timing.slots[0].last + GROQ.chip.transit_cycles


def test_events_have_the_fields_of_the_format() -> None:
    trace = Trace(GIGAHERTZ)
    pid = trace.process("stage 0")
    trace.add(pid, [Slice(track="MXM", name="matmul", start_cycle=1.4, end_cycle=9.6)], 100.0)
    trace.count(pid, "SRAM", 100.0, 320.0)
    found = json.loads(trace.to_json())
    assert found["displayTimeUnit"] == "ns"
    events = {event["ph"]: event for event in found["traceEvents"]}
    assert events["X"] == {
        "ph": "X", "name": "matmul", "pid": 1, "tid": 1, "ts": 0.101, "dur": 0.009, "args": {},
    }  # fmt: skip
    assert events["C"]["args"] == {"value": 320.0}
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"]
        for event in found["traceEvents"]
        if event["ph"] == "M"
    }
    assert names["process_name", 1, 0] == {"name": "stage 0"}
    assert names["thread_name", 1, 1] == {"name": "MXM"}


def test_rounding_to_nanoseconds_makes_no_overlap() -> None:
    trace = Trace(1.5e9)
    pid = trace.process("stage")
    edges = [i * 0.77 for i in range(200)]
    trace.add(
        pid,
        [Slice(track="VXM", name="a", start_cycle=a, end_cycle=b) for a, b in pairwise(edges)],
        12345.678,
    )
    events = [e for e in json.loads(trace.to_json())["traceEvents"] if e["ph"] == "X"]
    for one, other in pairwise(events):
        assert round(1000 * (one["ts"] + one["dur"])) == round(1000 * other["ts"])
        assert round(1000 * one["ts"]) == pytest.approx(1000 * one["ts"], abs=1e-6)


def test_tracks_and_processes_keep_their_order() -> None:
    trace = Trace(GIGAHERTZ)
    first, second = trace.process("a"), trace.process("b")
    assert (first, second) == (1, 2)
    assert [trace.track(first, name) for name in ("MXM", "VXM", "MXM")] == [1, 2, 1]
    assert trace.track(second, "VXM") == 1
    assert trace.to_json() == trace.to_json()
