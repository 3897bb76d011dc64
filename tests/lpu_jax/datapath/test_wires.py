"""Partial sums in the format of a wire: NumPy loops with ml_dtypes, and exact fractions.

As in `test_c2c`, the partial sums are products, computed right before the link.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_machines import NODE, tiered

from lpu_jax.cost.collectives.algorithms.table import AUTO
from lpu_jax.datapath import c2c, vxm, wires
from lpu_jax.errors import LpuError
from lpu_jax.machine.system import System
from lpu_jax.mesh import ChipMesh, run_devices, run_nested, run_virtual

ROWS, COLUMNS = 3, 24
WIRES = ("bf16", "fp8", "fp32", "exact")


def factors(n: int) -> tuple[jax.Array, jax.Array]:
    """Sums of very different sizes in a row."""
    rng = np.random.default_rng(n)
    pair = rng.normal(size=(2, n, ROWS, COLUMNS)) * np.exp2(rng.integers(-8, 9, (n, 1, COLUMNS)))
    a, b = (jnp.asarray(values, jnp.float32) for values in pair)
    return a, b


def program(wire: str, kind: str = "all_reduce") -> Any:
    def run(a: jax.Array, b: jax.Array, *, axes: Any) -> jax.Array:
        parts = vxm.mul(a.reshape(ROWS, COLUMNS), b.reshape(ROWS, COLUMNS))
        if kind == "all_reduce":
            got = wires.all_reduce(parts, axes["x"], wire=wire)  # type: ignore[arg-type]
        else:
            got = wires.reduce_scatter(parts, axes["x"], dim=-1, wire=wire)  # type: ignore[arg-type]
        return vxm.add(vxm.mul(got, 3.0), got)

    return run


def rounded(x: np.ndarray, wire: str) -> np.ndarray:
    if wire == "bf16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    if wire == "fp8":
        # 24 columns are one block, the eight of a ring's chip one of its own.
        scale = np.exp2(np.floor(np.log2(np.abs(x).max(-1, keepdims=True))) - 8)
        return np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn) * scale
    return x


def ordered(parts: np.ndarray, wire: str) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return rounded(total, wire)


def expected(a: jax.Array, b: jax.Array, wire: str, node: int) -> np.ndarray:
    """Round, add inside each node and round, add over nodes and round; or add fractions."""
    parts = np.asarray(a) * np.asarray(b)
    if wire == "exact":
        sums = [sum(map(Fraction, column.tolist())) for column in parts.reshape(len(parts), -1).T]
        # Correct to fp32: a float64 of these sums of 24-bit products is not always exact.
        got = np.asarray([to_fp32(total) for total in sums], np.float32).reshape(parts.shape[1:])
    else:
        parts = rounded(parts, wire)
        runs = [ordered(parts[i : i + node], wire) for i in range(0, len(parts), node)]
        got = ordered(np.stack(runs), wire) if len(runs) > 1 else runs[0]
    return got * np.float32(3) + got


def to_fp32(exact: Fraction) -> np.float32:
    """Round to nearest: the neighbour of a first guess that is closest, an even one of two."""
    guess = np.float32(float(exact))
    above, below = (np.nextafter(guess, np.float32(end)) for end in (np.inf, -np.inf))
    near = [guess, above, below]
    return min(near, key=lambda n: (abs(Fraction(float(n)) - exact), int(n.view(np.int32)) & 1))


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("n", "machine", "node"), [(3, NODE, 8), (8, tiered(4), 4)])
def test_every_way_of_running_gives_the_bits_of_a_loop(
    wire: str, n: int, machine: System, node: int
) -> None:
    a, b = factors(n)
    mesh = ChipMesh(axes=(("x", n),), topology=machine.topology)
    specs = ((P("x"), P("x")), P())
    ways = [run_virtual(program(wire), mesh, *specs), run_devices(program(wire), mesh, *specs)]
    if n == 8:
        ways.append(run_nested(program(wire), mesh, {"x": 4}, *specs))
    for way in ways:
        np.testing.assert_array_equal(jax.jit(way)(a, b), expected(a, b, wire, node))
    assert np.any(expected(a, b, wire, node) != expected(a, b, "fp16", 8)) or wire == "fp32"


@pytest.mark.parametrize("wire", ["bf16", "fp8", "fp32"])
def test_shares_are_those_of_the_sum(wire: str) -> None:
    a, b = factors(4)
    mesh = ChipMesh(axes=(("x", 4),), topology=NODE.topology)
    run = run_virtual(program(wire, "reduce_scatter"), mesh, (P("x"), P("x")), P(None, "x"))
    np.testing.assert_array_equal(jax.jit(run)(a, b), expected(a, b, wire, 8))


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["bf16", "fp8"])
def test_a_ring_rounds_at_every_hop(wire: str) -> None:
    """Share i begins at chip i + 1 and travels round to chip i."""
    a, b = factors(3)
    mesh = ChipMesh(axes=(("x", 3),), topology=NODE.topology, algorithm="ring")
    got = jax.jit(run_virtual(program(wire), mesh, (P("x"), P("x")), P()))(a, b)
    parts = rounded(np.asarray(a) * np.asarray(b), wire)
    shares = []
    for i, share in enumerate(np.split(parts, 3, axis=-1)):
        total = share[(i + 1) % 3]
        for hop in (2, 3):
            total = rounded(total + share[(i + hop) % 3], wire)
        shares.append(total)
    total = np.concatenate(shares, axis=-1)
    np.testing.assert_array_equal(got, total * np.float32(3) + total)


@pytest.mark.parametrize("wire", WIRES)
def test_on_one_chip_nothing_crosses_and_nothing_is_rounded(wire: str) -> None:
    x = np.asarray([[-0.0, 1 + 2**-20, 1e5, 2.0**-60]], np.float32)

    def run(x: jax.Array, *, axes: Any) -> jax.Array:
        return wires.all_reduce(x, axes["x"], wire=wire)  # type: ignore[arg-type]

    mesh = ChipMesh(axes=(("x", 1),), topology=NODE.topology)
    found = np.asarray(run_virtual(run, mesh, (P(),), P())(jnp.asarray(x)))
    np.testing.assert_array_equal(found.view(np.int32), x.view(np.int32))


@pytest.mark.slow
def test_no_algorithm_and_no_level_changes_an_exact_sum() -> None:
    a, b = factors(8)
    specs, found = ((P("x"), P("x")), P()), []
    for machine, algorithm in ((NODE, AUTO[0]), (NODE, "ring"), (tiered(2, 4), AUTO[0])):
        mesh = ChipMesh(axes=(("x", 8),), topology=machine.topology, algorithm=algorithm)
        found.append(np.asarray(jax.jit(run_virtual(program("exact"), mesh, *specs))(a, b)))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_formats_that_are_none_are_refused() -> None:
    mesh = ChipMesh(axes=(("x", 2),), topology=NODE.topology)

    def refused(reduce: Any, **how: Any) -> None:
        def run(x: jax.Array, *, axes: Any) -> jax.Array:
            out: jax.Array = reduce(x, axes["x"], **how)
            return out

        run_virtual(run, mesh, (P("x"),), P())(jnp.ones((4, 2), jnp.float32))

    with pytest.raises(LpuError, match="wire='exact' was given; it must be one of bf16, fp8, fp32"):
        refused(wires.reduce_scatter, dim=-1, wire="exact")
    with pytest.raises(
        LpuError, match="wire='fp16' was given; it must be one of bf16, fp8, fp32, e"
    ):
        refused(wires.all_reduce, wire="fp16")
    with pytest.raises(LpuError, match="wire='fp4' was given; it must be one of bf16, fp8 or None"):
        refused(c2c.all_reduce, wire="fp4")
