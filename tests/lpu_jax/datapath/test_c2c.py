"""Collectives: four ways of running give the bits of a NumPy loop in the stated order.

The partial sums are plain products, computed right before the link: a compiler that joined a
product into an addition of the collective would change bits between the ways of running.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_machines import NODE, tiered

from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS
from lpu_jax.datapath import c2c, vxm
from lpu_jax.datapath.axis import PIPELINED, Axis, steps_of
from lpu_jax.errors import CostError, MeshError
from lpu_jax.mesh import ChipMesh, run_devices, run_nested, run_virtual

ROWS, COLUMNS = 3, 24  # columns are a multiple of 2, 3 and 8
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
#: How the results of all chips make the global result.
OUT_SPECS = {
    "all_reduce": P(),
    "all_gather": P(),
    "reduce_scatter": P(None, "x"),
    "all_to_all": P("x"),
}
Axes = dict[str, Axis]


def factors(n: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(n)
    pair = rng.normal(size=(2, n, ROWS, COLUMNS)) * np.exp2(rng.integers(-4, 5, (n, 1, 1)))
    a, b = (jnp.asarray(values, jnp.float32) for values in pair)
    return a, b


def chain(kind: str, wire: str) -> Callable[..., jax.Array]:
    """Product, collective, and an operation after it that could be contracted with it."""

    def program(a: jax.Array, b: jax.Array, *, axes: Axes) -> jax.Array:
        partial_sums = a.reshape(ROWS, COLUMNS) * b.reshape(ROWS, COLUMNS)
        sent = vxm.to_fp16(partial_sums) if wire == "float16" else partial_sums
        if kind == "all_reduce":
            got = c2c.all_reduce(sent, axes["x"])
        else:
            got = getattr(c2c, kind)(sent, axes["x"], dim=-1)
        got = vxm.to_fp32(got) if wire == "float16" else got
        return vxm.add(vxm.mul(got, 3.0), got)

    return program


def ordered_sum(parts: np.ndarray) -> np.ndarray:
    """Add in float32 by ascending chip number, then round to the wire's type."""
    total = parts[0].astype(np.float32)
    for part in parts[1:]:
        total = total + part.astype(np.float32)
    return total.astype(parts.dtype)


def tiered_sum(parts: np.ndarray, tiers: tuple[int, ...]) -> np.ndarray:
    """Add inside each node, then over nodes, then over racks; each level is rounded to the wire."""
    below = 1
    for tier in tiers:
        parts = np.stack(
            [ordered_sum(parts[i : i + tier // below]) for i in range(0, len(parts), tier // below)]
        )
        below = tier
    return ordered_sum(parts) if len(parts) > 1 else parts[0]


def expected(kind: str, wire: str, a: jax.Array, b: jax.Array) -> np.ndarray:
    parts = (np.asarray(a) * np.asarray(b)).astype(wire)
    if kind in ("all_reduce", "reduce_scatter"):
        got = ordered_sum(parts)
    elif kind == "all_gather":
        got = np.concatenate(list(parts), axis=-1)
    else:
        shares = np.split(parts, len(parts), axis=-1)  # one for each receiver: [n, rows, c]
        got = np.concatenate([np.concatenate(list(share), axis=-1) for share in shares])
    wide = got.astype(np.float32)
    return wide * np.float32(3) + wide


@pytest.mark.first(2)
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_virtual_devices_nested_and_single_steps_equal_numpy(kind: str, n: int) -> None:
    a, b = factors(n)
    program, mesh = chain(kind, "float32"), ChipMesh(axes=(("x", n),), topology=NODE.topology)
    specs = ((P("x"), P("x")), OUT_SPECS[kind])
    runs = {
        "virtual": jax.jit(run_virtual(program, mesh, *specs)),
        "virtual, each operation on its own": run_virtual(program, mesh, *specs),
        "devices": jax.jit(run_devices(program, mesh, *specs)),
    }
    for devices in (4, 2) if n == 8 else ():
        nested = run_nested(program, mesh, {"x": devices}, *specs)
        runs[f"{devices} devices of {n // devices}"] = jax.jit(nested)
    for name, run in runs.items():
        np.testing.assert_array_equal(run(a, b), expected(kind, "float32", a, b), err_msg=name)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
def test_sums_cross_the_wire_rounded_to_float16(kind: str) -> None:
    a, b = factors(8)
    mesh = ChipMesh(axes=(("x", 8),), topology=NODE.topology)
    for run in (run_virtual, run_devices):
        program = jax.jit(run(chain(kind, "float16"), mesh, (P("x"), P("x")), OUT_SPECS[kind]))
        np.testing.assert_array_equal(program(a, b), expected(kind, "float16", a, b))
    assert np.any(expected(kind, "float16", a, b) != expected(kind, "float32", a, b))


@pytest.mark.parametrize("tiers", [(4,), (2, 4), (3,), (8, 16)])
def test_runs_longer_than_a_node_are_summed_node_by_node(tiers: tuple[int, ...]) -> None:
    a, b = factors(8)
    mesh = ChipMesh(axes=(("x", 8),), topology=tiered(*tiers).topology)
    parts = (np.asarray(a) * np.asarray(b)).astype(np.float16)
    wide = tiered_sum(parts, tiers).astype(np.float32)
    for run in (run_virtual, run_devices):
        program = jax.jit(run(chain("all_reduce", "float16"), mesh, (P("x"), P("x")), P()))
        np.testing.assert_array_equal(program(a, b), wide * np.float32(3) + wide)
    if tiers[0] < 8:  # the order of summation shows in the bits
        assert np.any(tiered_sum(parts, tiers) != ordered_sum(parts))


def test_a_run_over_two_axes_is_summed_in_chip_order() -> None:
    a, b = factors(8)

    def program(a: jax.Array, b: jax.Array, *, axes: Axes) -> jax.Array:
        both = c2c.joined(axes["y"], axes["x"])
        return c2c.all_reduce(vxm.mul(a.reshape(ROWS, COLUMNS), b.reshape(ROWS, COLUMNS)), both)

    mesh = ChipMesh(axes=(("y", 2), ("x", 4)), topology=NODE.topology)
    specs = ((P(("y", "x")), P(("y", "x"))), P())
    runs = [
        run_virtual(program, mesh, *specs),
        run_devices(program, mesh, *specs),
        run_nested(program, mesh, {"y": 2}, *specs),
        run_nested(program, mesh, {"y": 2, "x": 2}, *specs),
    ]
    for run in runs:
        np.testing.assert_array_equal(jax.jit(run)(a, b), ordered_sum(np.asarray(a * b)))


@pytest.mark.slow
def test_chips_between_those_of_a_run_take_places_in_the_node() -> None:
    a, b = factors(8)
    mesh = ChipMesh(
        axes=(("x", 4), ("y", 2)), topology=tiered(4).topology
    )  # two chips of x in a node of four

    def program(a: jax.Array, b: jax.Array, *, axes: Axes) -> jax.Array:
        parts = vxm.to_fp16(vxm.mul(a.reshape(ROWS, COLUMNS), b.reshape(ROWS, COLUMNS)))
        return c2c.all_reduce(parts, axes["x"]).reshape(1, ROWS, COLUMNS)

    both = P(("x", "y"))
    out = run_virtual(program, mesh, (both, both), P("y"))(a, b)
    parts = (np.asarray(a) * np.asarray(b)).astype(np.float16)
    np.testing.assert_array_equal(out[0], tiered_sum(parts[0::2], (2,)))
    np.testing.assert_array_equal(out[1], tiered_sum(parts[1::2], (2,)))


def test_only_the_kept_places_of_a_gather_are_there() -> None:
    def program(a: jax.Array, *, axes: Axes) -> jax.Array:
        return c2c.all_gather(a.reshape(ROWS, COLUMNS), axes["x"], dim=1, keep=COLUMNS + 5)

    a, _ = factors(3)
    out = run_virtual(program, ChipMesh(axes=(("x", 3),), topology=NODE.topology), (P("x"),), P())(
        a
    )
    np.testing.assert_array_equal(out, np.concatenate([a[0], a[1][:, :5]], axis=-1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_chip_keeps_its_values(kind: str) -> None:
    a, b = factors(1)
    out = run_virtual(
        chain(kind, "float32"),
        ChipMesh(axes=(("x", 1),), topology=NODE.topology),
        (P("x"), P("x")),
        OUT_SPECS[kind],
    )(a, b)
    np.testing.assert_array_equal(out, expected(kind, "float32", a, b))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_programs_equals_one_after_the_other(kind: str) -> None:
    pairs = [factors(2), tuple(reversed([x + 1 for x in factors(2)]))]
    a, b = (jnp.stack(values) for values in zip(*pairs, strict=True))
    mesh = ChipMesh(axes=(("x", 2),), topology=NODE.topology)

    def program(a: jax.Array, b: jax.Array, *, axes: Axes) -> jax.Array:
        return jax.vmap(lambda a, b: chain(kind, "float32")(a, b, axes=axes))(a, b)

    out_spec = P(None, *OUT_SPECS[kind])
    for run in (run_virtual, run_devices):
        out = run(program, mesh, (P(None, "x"), P(None, "x")), out_spec)(a, b)
        np.testing.assert_array_equal(out, [expected(kind, "float32", *pair) for pair in pairs])


@pytest.mark.parametrize("algorithm", ["auto", "ring"])
def test_a_sum_keeps_the_sign_of_zero_that_one_chip_has(algorithm: str) -> None:
    # What a chip has beside chips that send -0 arrives bit for bit; -0 and +0 give +0.
    parts = np.asarray([[-0.0, -0.0, 0.0, 1.5], [-0.0, 0.0, -0.0, -0.0]], np.float16)
    mesh = ChipMesh(axes=(("x", 2),), topology=NODE.topology, algorithm=algorithm)

    def add(x, *, axes):
        return c2c.all_reduce(x[0], axes["x"])

    got = np.asarray(run_virtual(add, mesh, (P("x"),), P())(jnp.asarray(parts)))
    np.testing.assert_array_equal(np.signbit(got), [True, False, False, False])
    np.testing.assert_array_equal(got, [0, 0, 0, 1.5])


# --- the ring's own order -------------------------------------------------------------------------


def ring_sum(parts: np.ndarray) -> np.ndarray:
    """Sum share by share, element by element: share i from chip i + 1 round to chip i."""
    n, length = len(parts), parts.shape[-1]
    size = -(-length // n)  # the last shares may be shorter, or empty
    total = np.empty_like(parts[0])
    for share in range(n):
        columns = slice(share * size, min(length, (share + 1) * size))
        carried = parts[(share + 1) % n][..., columns]
        for hop in range(2, n + 1):
            own = parts[(share + hop) % n][..., columns]
            carried = (carried.astype(np.float32) + own.astype(np.float32)).astype(parts.dtype)
        total[..., columns] = carried
    return total


@pytest.mark.first(1)
@pytest.mark.parametrize("wire", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_ring_sums_in_its_own_order_however_it_is_run(kind: str, n: int, wire: str) -> None:
    a, b = factors(n)
    mesh = ChipMesh(axes=(("x", n),), topology=NODE.topology, algorithm="ring")
    program, specs = chain(kind, wire), ((P("x"), P("x")), OUT_SPECS[kind])
    parts = (np.asarray(a) * np.asarray(b)).astype(wire)
    wide = ring_sum(parts).astype(np.float32)
    runs = {
        "virtual": jax.jit(run_virtual(program, mesh, *specs)),
        "virtual, each operation on its own": run_virtual(program, mesh, *specs),
        "devices": jax.jit(run_devices(program, mesh, *specs)),
    }
    for devices in (4, 2) if n == 8 else ():
        nested = run_nested(program, mesh, {"x": devices}, *specs)
        runs[f"{devices} devices of {n // devices}"] = jax.jit(nested)
    for name, run in runs.items():
        np.testing.assert_array_equal(run(a, b), wide * np.float32(3) + wide, err_msg=name)
    if n > 2:  # two numbers have one order; more show theirs in the bits
        assert np.any(ring_sum(parts) != ordered_sum(parts))


@pytest.mark.parametrize("columns", [1, 5, 23])
def test_a_ring_cuts_rows_that_do_not_divide(columns: int) -> None:
    a, _ = factors(8)
    parts = a[..., :columns]
    mesh = ChipMesh(axes=(("x", 8),), topology=NODE.topology, algorithm="ring")

    def program(x: jax.Array, *, axes: Axes) -> jax.Array:
        rows = c2c.all_reduce(x.reshape(ROWS, columns), axes["x"])
        alone = c2c.all_reduce(x[0, 0, 0], axes["x"])
        return vxm.add(rows, jnp.zeros_like(rows)) + 0 * alone

    out = run_virtual(program, mesh, (P("x"),), P())(parts)
    np.testing.assert_array_equal(out, ring_sum(np.asarray(parts)))


def test_a_batch_of_rings_equals_one_after_the_other() -> None:
    a, b = factors(2), factors(2)
    both = jnp.stack([a[0], b[1]])
    mesh = ChipMesh(axes=(("x", 2),), topology=NODE.topology, algorithm="ring")

    def program(x: jax.Array, *, axes: Axes) -> jax.Array:
        return jax.vmap(lambda one: c2c.all_reduce(one.reshape(ROWS, COLUMNS), axes["x"]))(x)

    out = run_virtual(program, mesh, (P(None, "x"),), P(None))(both)
    np.testing.assert_array_equal(out, [ring_sum(np.asarray(one)) for one in both])


@pytest.mark.parametrize("name", ["ring", "ring+pipelined"])
def test_a_ring_over_more_than_a_node_is_refused(name: str) -> None:
    mesh = ChipMesh(axes=(("x", 4), ("y", 2)), topology=tiered(4).topology, algorithm=name)
    wanted = (
        rf"c2c\.all_reduce: algorithm '{re.escape(name)}' needs .* at most 2 of them 2 apart; "
        "the run has 4"
    )
    with pytest.raises(CostError, match=wanted):
        c2c.all_reduce(jnp.zeros((2, 3)), mesh.as_axes()["x"])


@pytest.mark.slow
def test_every_other_algorithm_gives_the_same_bits() -> None:
    a, b = factors(8)
    for algorithm in ("auto", *ALGORITHMS, *(name + PIPELINED for name in ALGORITHMS)):
        mesh = ChipMesh(axes=(("x", 8),), topology=NODE.topology, algorithm=algorithm)
        run = run_virtual(chain("all_reduce", "float16"), mesh, (P("x"), P("x")), P())
        same = np.array_equal(run(a, b), expected("all_reduce", "float16", a, b))
        assert same == (steps_of(algorithm) not in c2c.OWN_ORDERS)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
@pytest.mark.parametrize("algorithm", ["direct", "ring"])
def test_overlapping_steps_move_no_bit(kind: str, algorithm: str) -> None:
    a, b = factors(8)
    out = []
    for name in (algorithm, algorithm + PIPELINED):
        mesh = ChipMesh(axes=(("x", 8),), topology=NODE.topology, algorithm=name)
        run = run_virtual(chain(kind, "float16"), mesh, (P("x"), P("x")), OUT_SPECS[kind])
        out.append(run(a, b))
    np.testing.assert_array_equal(*out)


# --- errors -------------------------------------------------------------------------------------


def _reduced_over(axis: Axis) -> Callable[..., Any]:
    return lambda a, *, axes: c2c.all_reduce(a, axis)


def test_an_axis_of_another_size_is_named() -> None:
    axis = Axis(names=("x",), size=4, tiers=())
    run = jax.vmap(lambda a: c2c.all_reduce(a, axis), axis_name="x")
    with pytest.raises(MeshError, match="axis x has 2 chips in the running mesh but 4 in the plan"):
        run(factors(2)[0])


def test_an_axis_that_does_not_run_is_named() -> None:
    with pytest.raises(MeshError, match=r"c2c\.all_reduce: axis y is not an axis of the running"):
        c2c.all_reduce(jnp.zeros((2, 3)), Axis(names=("y",), size=2, tiers=()))


def test_a_device_axis_inside_a_virtual_one_is_refused() -> None:
    wrong = Axis(names=("x", "y"), size=4, tiers=())
    nested = jax.vmap(
        jax.vmap(lambda a: c2c.all_reduce(a, wrong), axis_name="y", axis_size=2),
        axis_name="x",
        axis_size=2,
    )
    nested(jnp.zeros((2, 2, 3)))  # the innermost name is the innermost axis
    crossed = jax.vmap(
        jax.vmap(lambda a: c2c.all_reduce(a, wrong), axis_name="x", axis_size=2),
        axis_name="y",
        axis_size=2,
    )
    with pytest.raises(MeshError, match="virtual axis 'x' must be the innermost"):
        crossed(jnp.zeros((2, 2, 3)))
