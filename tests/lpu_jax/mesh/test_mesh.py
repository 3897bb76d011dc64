"""The chip mesh: how arrays are cut and joined, and what is held once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from small_machines import NODE, tiered
from strategies import factorisations

from lpu_jax.datapath import c2c, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.mesh import ChipMesh, run_devices, run_nested, run_virtual, trace

MANY = tiered(8).topology
MESH = ChipMesh(axes=(("a", 2), ("b", 3)), topology=NODE.topology)
SPECS = [
    P(),
    P("a"),
    P("b", "a"),
    P(None, "b"),
    P(("a", "b")),
    P(("a", "b"), None),
    P(None, ("a", "b")),
]


def doubled(x: jax.Array, *, axes: dict[str, Axis]) -> jax.Array:
    return vxm.add(x, x)


@pytest.mark.first(3)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cut_and_joined_arrays_are_what_devices_see(spec: P) -> None:
    x = jnp.arange(12 * 18, dtype=jnp.float32).reshape(12, 18)

    def shifted(x: jax.Array, *, axes: dict[str, Axis]) -> jax.Array:
        # Places within a shard, so that a shard in the wrong place would show.
        return vxm.add(x, jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape))

    virtual = run_virtual(shifted, MESH, (spec,), spec)(x)
    np.testing.assert_array_equal(virtual, run_devices(shifted, MESH, (spec,), spec)(x))


@pytest.mark.slow
@settings(max_examples=12)  # every example compiles
@given(shape=factorisations(12, 3), order=st.permutations(["a", "b", "c"]))
def test_cutting_and_joining_along_any_axes_is_the_identity(
    shape: tuple[int, ...], order: list[str]
) -> None:
    mesh = ChipMesh(axes=tuple(zip("abc", shape, strict=True)), topology=MANY)
    x = jnp.arange(144, dtype=jnp.float32).reshape(12, 12)
    for spec in (P(tuple(order)), P(order[0], (order[1], order[2])), P(None, order[2])):
        out = run_virtual(lambda x, *, axes: x, mesh, (spec,), spec)(x)
        np.testing.assert_array_equal(out, x)


def test_chips_are_numbered_with_the_last_axis_innermost() -> None:
    def gathered(x: jax.Array, *, axes: dict[str, Axis]) -> jax.Array:
        return c2c.all_gather(x, c2c.joined(axes["a"], axes["b"]), dim=-1)

    x = jnp.arange(6, dtype=jnp.float32).reshape(1, 6)
    for run in (run_virtual, run_devices):
        np.testing.assert_array_equal(run(gathered, MESH, (P(None, ("a", "b")),), P())(x), x)
    axes = MESH.as_axes()
    assert (axes["a"].stride, axes["b"].stride) == (3, 1)
    assert MESH.n_chips == 6


def test_trees_of_arguments_take_trees_of_specs() -> None:
    def program(x: Any, *, axes: dict[str, Axis]) -> dict[str, jax.Array]:
        return {"sum": vxm.add(x["u"], x["v"][0]), "v": x["v"][1]}

    tree = {"u": jnp.ones((6, 2)), "v": (jnp.ones((6, 2)), jnp.arange(3.0))}
    specs = ({"u": P("a"), "v": (P("a"), P("b"))},)
    out_specs = {"sum": P("a"), "v": P("b")}
    for run in (run_virtual, run_devices):
        out = run(program, MESH, specs, out_specs)(tree)
        np.testing.assert_array_equal(out["sum"], np.full((6, 2), 2.0))
        np.testing.assert_array_equal(out["v"], np.arange(3.0))


def test_replicas_are_not_computed_twice() -> None:
    mesh = ChipMesh(axes=(("replica", 1000), ("b", 3)), topology=MANY)
    program = run_virtual(doubled, mesh, (P("b"),), P("b"))
    shapes = {
        str(atom.aval.shape)
        for equation in jax.make_jaxpr(program)(jnp.ones((6, 5))).eqns
        for atom in equation.outvars
    }
    assert not any("1000" in shape for shape in shapes)


def test_a_mesh_of_thousands_of_chips_is_traced_without_devices() -> None:
    mesh = ChipMesh(axes=(("a", 64), ("b", 36)), topology=MANY)
    x = jax.ShapeDtypeStruct((2304, 2**20), jnp.float32)
    jaxpr = trace(doubled, mesh, (P(("a", "b")),), P(("a", "b")), x)
    (shard_map,) = jaxpr.eqns
    assert shard_map.params["jaxpr"].invars[0].aval.shape == (1, 2**20)


@pytest.mark.slow
def test_nested_runs_spread_an_axis_over_devices() -> None:
    mesh = ChipMesh(axes=(("a", 4), ("b", 6)), topology=MANY)
    x = jnp.arange(24 * 2, dtype=jnp.float32).reshape(24, 2)
    spec = P(("a", "b"))
    for devices in ({"a": 4}, {"a": 2}, {"a": 4, "b": 2}, {}):
        out = run_nested(doubled, mesh, devices, (spec,), spec)(x)
        np.testing.assert_array_equal(out, 2 * x)
