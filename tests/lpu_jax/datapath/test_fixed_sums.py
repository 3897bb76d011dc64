"""Sums that no split decides: by a tree and in wide numbers, on one chip and over chips.

Against NumPy loops in float32, Fractions and Python integers; all comparisons are of bits.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from exact_sums import round_units, units
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from small_machines import NODE, tiered

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import schedule
from lpu_jax.datapath import c2c, matrix_blocks, mxm, scaled, tree_sums, vxm, wide_sums
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.work import Unit
from lpu_jax.errors import LpuError, MeshError
from lpu_jax.machine.catalogue import system
from lpu_jax.mesh import ChipMesh, run_devices, run_nested, run_virtual
from lpu_jax.numerics.quantized import QuantizedArray, partition
from lpu_jax.numerics.schemes import FP8_BLOCK128, INT8_COLUMN

ROWS, COLUMNS = 3, 16
Axes = dict[str, Axis]


def values(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.float32(rng.normal(size=shape) * np.exp2(rng.integers(-6, 7, shape)))


def tree(parts: Any) -> np.ndarray:
    """Add the halves, each by itself, in float32."""
    parts = np.asarray(parts)
    if len(parts) == 1:
        return np.where(parts[0] == 0, np.float32(0), parts[0])
    half = len(parts) // 2
    return tree(parts[:half]) + tree(parts[half:])


def fractions(parts: Any) -> np.ndarray:
    """Exact sums of the leading axis, rounded once to float32."""
    exact = np.vectorize(lambda x: Fraction(float(x)) * 2**72, otypes=[object])(parts).sum(0)
    return np.vectorize(lambda total: round_units(int(total)) * 2.0**-24, otypes=["f4"])(exact)


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def runs(program: Callable[..., Any], mesh: ChipMesh, spec: P) -> dict[str, Callable[..., Any]]:
    """Ways of running a program over one axis `x`: for eight chips all, else virtual chips."""
    ways = {"virtual": run_virtual(program, mesh, (P("x"),), spec)}
    if mesh.n_chips == 8:
        ways["devices"] = run_devices(program, mesh, (P("x"),), spec)
        ways["nested"] = run_nested(program, mesh, {"x": 4}, (P("x"),), spec)
    return {name: jax.jit(way) for name, way in ways.items()}


def over_chips(n: int, algorithm: str = "auto", *tiers: int) -> ChipMesh:
    machine = tiered(*tiers) if tiers else NODE
    return ChipMesh(axes=(("x", n),), topology=machine.topology, algorithm=algorithm)


# --- by a tree ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_tree_adds_neighbours_first(n: int) -> None:
    x = values(n, ROWS, COLUMNS)
    got = tree_sums.sum_tree(x)
    assert same_bits(got, tree(x))
    batch = jax.jit(jax.vmap(tree_sums.sum_tree, in_axes=1))(x)
    assert same_bits(batch, tree(x))
    if n > 2:
        assert not same_bits(got, vxm.sum_leading(x))


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
def test_a_tree_over_chips_is_the_tree_of_one(n: int, kind: str) -> None:
    # Products right before the sum: a compiler that joined them into it would change bits.
    x = values(8, ROWS, COLUMNS)
    expected = tree(np.asarray(x) * np.float32(1.1))

    def program(mine: jax.Array, *, axes: Axes) -> jax.Array:
        part = tree_sums.sum_tree(mine * np.float32(1.1))
        if kind == "all_reduce":
            return c2c.tree_all_reduce(part, axes["x"])
        return c2c.tree_reduce_scatter(part, axes["x"], dim=-1)

    spec = P() if kind == "all_reduce" else P(None, "x")
    for name, run in runs(program, over_chips(n), spec).items():
        assert same_bits(run(x), expected), name
    of_three = run_virtual(program, over_chips(n, "auto", 3), (P("x"),), spec)  # chips of a node
    assert same_bits(jax.jit(of_three)(x), expected)


@pytest.mark.parametrize("algorithm", ["one_shot", "ring", "hier4+pipelined"])
def test_no_algorithm_moves_a_bit_of_a_tree_or_a_wide_sum(algorithm: str) -> None:
    x = values(8, ROWS, COLUMNS)

    def program(mine: jax.Array, *, axes: Axes) -> tuple[jax.Array, jax.Array]:
        exact = c2c.wide_all_reduce(wide_sums.sum_terms(mine), axes["x"])
        return c2c.tree_all_reduce(mine[0], axes["x"]), wide_sums.to_fp32(exact)

    found = jax.jit(run_virtual(program, over_chips(8, algorithm), (P("x"),), P()))(x)
    assert same_bits(found[0], tree(x))
    assert same_bits(found[1], fractions(x))


def test_a_tree_over_two_axes_has_the_order_of_their_chips() -> None:
    x = values(8, ROWS, COLUMNS)
    mesh = ChipMesh(axes=(("y", 2), ("x", 4)), topology=NODE.topology)

    def together(mine: jax.Array, *, axes: Axes) -> jax.Array:
        return c2c.tree_all_reduce(mine[0], c2c.joined(axes["y"], axes["x"]))

    def inner_first(mine: jax.Array, *, axes: Axes) -> jax.Array:
        return c2c.tree_all_reduce(c2c.tree_all_reduce(mine[0], axes["x"]), axes["y"])

    for program in (together, inner_first):
        run = jax.jit(run_virtual(program, mesh, (P(("y", "x")),), P()))
        assert same_bits(run(x), tree(x))


def test_zeros_of_either_sign_beside_a_number_change_no_bit() -> None:
    x = np.float32([[-0.0, -0.0, 1.5], [0.0, -0.0, -0.0], [-0.0, -0.0, 0.0], [-0.0, -0.0, 2.0]])
    assert same_bits(tree_sums.sum_tree(jnp.asarray(x)), np.float32([0.0, 0.0, 3.5]))


@pytest.mark.parametrize("n", [3, 6])
def test_chips_that_are_no_power_of_two_make_no_tree(n: int) -> None:
    for collective in (c2c.tree_all_reduce, lambda x, a: c2c.tree_reduce_scatter(x, a, dim=0)):
        with pytest.raises(MeshError, match=f"axis x has {n} chips; a binary tree needs a power"):
            collective(jnp.zeros((n, 2)), over_chips(n).as_axes()["x"])
    with pytest.raises(LpuError, match=f"leading axis of {n} was given"):
        tree_sums.sum_tree(jnp.zeros((n, 2)))
    zeros = jnp.zeros((1, 1, 1))
    with pytest.raises(LpuError, match=f"leaves={n} was given; it must be a power of two"):
        tree_sums.sum_by_id(zeros, jnp.zeros((1, 1), jnp.int32), leaf=1, leaves=n)


def dense_tree(x: np.ndarray, ids: np.ndarray, leaf: int, leaves: int) -> np.ndarray:
    """Put every entry in its place in a list of all ids, add each leaf in order, then the tree."""
    n, m, d = x.shape
    whole = np.zeros((leaf * leaves, m, d), np.float32)
    for entry in range(n):
        for row in range(m):
            if ids[entry, row] >= 0:
                whole[ids[entry, row], row] = x[entry, row]
    by_leaf = whole.reshape(leaves, leaf, m, d)
    total = by_leaf[:, 0]
    for within in range(1, leaf):
        total = total + by_leaf[:, within]
    return tree(total)


_SUM_BY_ID = jax.jit(tree_sums.sum_by_id, static_argnames=("leaf", "leaves"))


@given(st.integers(0, 2**32 - 1))
def test_few_entries_are_added_in_the_tree_over_all_ids(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaf, leaves = [(1, 16), (3, 4), (2, 1)][int(rng.integers(3))]
    n, m = 5, 4
    n_ids = leaf * leaves
    ids = np.full((n, m), -1, np.int32)
    for row in range(m):
        chosen = np.sort(rng.choice(n_ids, min(n, n_ids, int(rng.integers(1, n + 1))), False))
        first = 0 if rng.integers(2) else n - len(chosen)  # none before, or none behind
        ids[first : first + len(chosen), row] = chosen
    x = np.where(ids[..., None] < 0, np.float32(0), values(n, m, 2, seed=seed))
    expected = dense_tree(x, ids, leaf, leaves)
    run = _SUM_BY_ID
    assert same_bits(run(x, ids, leaf=leaf, leaves=leaves), expected)
    # Each of two chips has half of the ids; entries of the other are zeros.
    if leaves > 1:
        of_second = ids >= n_ids // 2
        shares = [np.where(here[..., None], x, 0) for here in (~of_second, of_second)]
        parts = [run(part, ids, leaf=leaf, leaves=leaves) for part in shares]
        assert same_bits(parts[0] + parts[1], expected)


# --- in wide numbers ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 8])
def test_wide_sums_over_any_number_of_chips_are_exact(n: int) -> None:
    whole = values(7 * n, ROWS, COLUMNS).at[:2, 0].set(2.0**39)
    whole = whole.at[1].multiply(-1.0)  # what cancels leaves the rest as it is

    def program(mine: jax.Array, *, axes: Axes) -> jax.Array:
        partial = wide_sums.add(wide_sums.sum_terms(mine[:3]), wide_sums.sum_terms(mine[3:]))
        return wide_sums.to_fp32(c2c.wide_all_reduce(partial, axes["x"]))

    expected = fractions(whole)
    for name, run in runs(program, over_chips(n), P()).items():
        assert same_bits(run(whole), expected), name
    assert not same_bits(vxm.sum_leading(whole), expected)


@pytest.mark.parametrize("n", [2, 5])
def test_a_contraction_over_chips_is_rounded_once(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(ROWS, 40 * n)).astype(np.float16)
    w = (rng.normal(size=(40 * n, COLUMNS)) * 2.0 ** rng.integers(-9, 9, (40 * n, 1))).astype("f2")
    expected = np.vectorize(round_units, otypes=["f4"])(units(x).dot(units(w)))

    def program(x: jax.Array, w: jax.Array, *, axes: Axes) -> jax.Array:
        partial = mxm.wide_matmul(x, w)
        return wide_sums.to_fp32(c2c.wide_all_reduce(partial, axes["x"]))

    specs = ((P(None, "x"), P("x")), P())
    run = run_virtual if n == 2 else run_devices
    assert same_bits(jax.jit(run(program, over_chips(n), *specs))(x, w), expected)


@pytest.mark.slow
def test_wide_products_of_stores_and_batches() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, ROWS, 24)), jnp.float16)
    w = jnp.asarray(rng.normal(size=(4, 24, COLUMNS)), jnp.float16)
    rows = jnp.asarray([3, -1], jnp.int32)
    store = mxm.wide_matmul(x, w, rows=rows)
    assert same_bits(store[0], mxm.wide_matmul(x[0], w[3]))
    assert not np.any(store[1])
    shared = jax.vmap(lambda one: mxm.wide_matmul(one, w))(x)  # a batch of rows
    for i in range(2):
        assert same_bits(shared[i], mxm.wide_matmul(x[i], w))
    own = jax.vmap(lambda one, matrix: mxm.wide_matmul(one, matrix))(x, w[:2])
    assert same_bits(own, mxm.wide_matmul(x, w[:2]))
    flat = jax.vmap(lambda one: mxm.wide_matmul(one, w[0]))(x)
    assert same_bits(flat[1], mxm.wide_matmul(x[1], w[0]))
    fast = mxm.wide_matmul(x[0], w[0], fidelity="fast")
    np.testing.assert_allclose(
        wide_sums.to_fp32(fast), wide_sums.to_fp32(mxm.wide_matmul(x[0], w[0])), rtol=1e-4
    )


def test_sums_of_int8_have_no_other_bits() -> None:
    with pytest.raises(LpuError, match=r"x int8\[2,4\] was given; sums of int8 are whole numbers"):
        mxm.wide_matmul(jnp.ones((2, 4), jnp.int8), jnp.ones((4, 3), jnp.int8))


def int8_weights(k: int) -> QuantizedArray:
    rng = np.random.default_rng(k)
    codes = jnp.asarray(rng.integers(-127, 128, (k, COLUMNS)), jnp.int8)
    return QuantizedArray(codes=codes, scales=values(1, COLUMNS), scheme=INT8_COLUMN)


@pytest.mark.parametrize("n", [1, 3])
def test_int8_rows_over_chips_are_those_of_one_chip(n: int) -> None:
    x = values(ROWS, 24)
    w = int8_weights(24)
    specs = ((P(None, "x"), partition(w, P("x"))), P())

    def program(x: jax.Array, w: Any, *, axes: Axes) -> jax.Array:
        return scaled.int8_product(x, w, over=axes["x"])

    run = jax.jit(run_virtual(program, over_chips(n), *specs))
    assert same_bits(run(x, w), scaled.int8_product(x, w))


def test_whole_sums_that_may_leave_int32_are_refused() -> None:
    axis = Axis(names=(), size=64, tiers=())
    w = int8_weights(4096)
    with pytest.raises(LpuError, match="262144 products over 64 chips was asked for; up to 131071"):
        scaled.int8_product(jnp.ones((1, 4096)), w, over=axis)


def test_blocks_of_float8_are_rounded_and_their_sum_is_not() -> None:
    x = np.asarray(values(ROWS, 384) / 8).astype(ml_dtypes.float8_e4m3fn)
    codes = values(384, COLUMNS, seed=2).astype(jnp.float8_e4m3fn)
    scales = jnp.abs(values(3, COLUMNS, seed=3))
    w = QuantizedArray(codes=codes, scales=scales, scheme=FP8_BLOCK128)
    got = wide_sums.to_fp32(scaled.wide_fp8_product(jnp.asarray(x), w))
    terms = []
    for block in range(3):
        rows = slice(128 * block, 128 * block + 128)
        exact = units(x[:, rows]).dot(units(np.asarray(w.codes)[rows]))
        rounded = np.vectorize(round_units, otypes=["f4"])(exact)
        terms.append(rounded * np.asarray(w.scales)[block])
    assert same_bits(got, fractions(np.stack(terms)))


# --- cost -----------------------------------------------------------------------------------------


def busy(function: Callable[..., Any], *args: Any) -> dict[Unit, float]:
    machine = one_group(system("groq-node"), 8)
    timing = schedule(read(jax.make_jaxpr(function)(*args), strict=True), machine)
    assert timing.lower_cycles <= timing.cycles <= timing.upper_cycles
    return {unit: float(cycles) for unit, cycles in timing.busy_cycles.items() if cycles}


def sent_bytes(function: Callable[..., Any], *args: Any) -> float:
    machine = one_group(system("groq-node"), 8)
    timing = schedule(read(jax.make_jaxpr(function)(*args), strict=True), machine)
    return sum(slot.work.moved_bytes for slot in timing.slots if slot.work.unit is Unit.C2C)


def test_bytes_on_the_links_are_those_of_the_format() -> None:
    axis = Axis(names=(), size=8, tiers=())
    x, whole = jnp.zeros((2, 640)), jnp.zeros((2, 640), jnp.int32)
    wide = jnp.zeros((2, 4, 640), jnp.int32)
    n = 2 * 640
    assert sent_bytes(lambda x: c2c.tree_all_reduce(x, axis), x) == 4 * n
    assert sent_bytes(lambda x: c2c.tree_reduce_scatter(x, axis, dim=-1), x) == 4 * n
    assert sent_bytes(lambda x: c2c.whole_all_reduce(x, axis), whole) == 4 * n
    assert sent_bytes(lambda x: c2c.wide_all_reduce(x, axis), wide) == 16 * n
    # The steps are those of an all-reduce of as many bytes.
    assert busy(lambda x: c2c.tree_all_reduce(x, axis), x) == busy(
        lambda x: c2c.all_reduce(x, axis), x
    )


def test_additions_take_the_vector_unit() -> None:
    # 2 rows of 640 are 4 vectors. 7 of 8 leaves are additions, on 16 ALUs; 8 enter per cycle.
    leaves = jnp.zeros((8, 2, 640))
    assert busy(tree_sums.sum_tree, leaves) == {Unit.VXM: 8 * 4 / 8}
    assert busy(tree_sums.sum_tree, leaves[:1]) == {}
    wide = jnp.zeros((8, 2, 4, 640), jnp.int32)
    # 8 operations for each of 8 times 4 vectors of values, on 16 ALUs; their words are 128 vectors.
    assert busy(wide_sums.sum_leading, wide) == {Unit.VXM: 16}
    assert busy(wide_sums.add, wide[0], wide[1]) == {Unit.VXM: 4}
    assert busy(wide_sums.to_fp32, wide[0]) == {Unit.VXM: 4 * 12 / 16}
    assert busy(wide_sums.sum_terms, leaves) == {Unit.VXM: 8 * 4 * (12 + 8) / 16}
    assert busy(matrix_blocks.stacked_rows, leaves[0], leaves[1]) == {}
