"""From jaxpr to program: what is joined, what is free, what is refused, what is repeated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.export import symbolic_shape

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import Program, expression, read
from lpu_jax.cost.schedule import schedule
from lpu_jax.datapath import mem, mxm, vxm
from lpu_jax.errors import CostError
from lpu_jax.machine.catalogue import system
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import INT4_GROUP32

X = jax.ShapeDtypeStruct((4, 640), jnp.float32)
GROQ = one_group(system("groq-node"), 1)


def program(function, *args: jax.ShapeDtypeStruct, strict: bool = True) -> Program:
    return read(jax.make_jaxpr(function)(*args), strict=strict)


def test_operations_that_feed_each_other_become_one_chain() -> None:
    chained = program(lambda x: vxm.exp(vxm.sub(vxm.mul(x, 2.0), x)), X)
    assert chained.names == ("vxm_mul+sub+exp",)
    # x comes in once and one result goes out: what lies between stays on the ALUs.
    assert (len(chained.operations[0].reads), len(chained.operations[0].makes)) == (1, 1)


def test_a_reduction_ends_a_chain_and_its_result_starts_another() -> None:
    names = program(lambda x: vxm.mul(x, vxm.rsqrt(vxm.sum_lanes(vxm.mul(x, x)))), X).names
    assert names == ("vxm_mul", "vxm_sum_lanes", "vxm_rsqrt", "vxm_mul")


def test_values_that_are_needed_later_leave_their_chain() -> None:
    def two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = vxm.mul(x, x)
        return y, vxm.exp(y)

    (operation,) = program(two, X).operations
    assert len(operation.makes) == 2


def test_layout_is_free_and_names_the_same_value() -> None:
    def moved(x: jax.Array) -> jax.Array:
        return vxm.mul(x.reshape(2, 2, 640)[1:], x.reshape(2, 2, 640)[1:])

    assert program(moved, X).names == ("vxm_mul",)


def test_a_slice_across_a_row_is_not_free() -> None:
    with pytest.raises(CostError, match="slice: not a datapath operation or free layout"):
        program(lambda x: vxm.exp(x[:, :320]), X)


def _refused() -> dict[str, Callable[[jax.Array], jax.Array]]:
    return {
        "sort": jnp.sort,
        "while": lambda x: lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y, x),
        "cond": lambda x: lax.cond(jnp.bool_(True), lambda: x, lambda: -x),
    }


@pytest.mark.parametrize("name", [*_refused(), "sin"])
def test_a_layer_may_hold_nothing_else(name: str) -> None:
    function = (_refused() | {"sin": jnp.sin})[name]
    with pytest.raises(CostError, match=rf"{name}: not a datapath operation"):
        program(lambda x: function(vxm.mul(x, 2.0)), X)


@pytest.mark.parametrize("name", _refused())
def test_an_operation_without_a_rule_is_named(name: str) -> None:
    with pytest.raises(CostError, match=f"primitive '{name}' has no cost rule"):
        program(_refused()[name], X, strict=False)


def test_arithmetic_on_constants_is_free_and_ordinary_primitives_are_listed() -> None:
    def biased(x: jax.Array) -> jax.Array:
        return x + jnp.sin(jnp.arange(640, dtype=jnp.float32))[None]

    read_back = program(biased, X, strict=False)
    assert read_back.names == ("vxm_add",)
    assert read_back.ordinary == ("add",)
    assert program(lambda x: vxm.mul(x, x), X, strict=False).ordinary == ()


def test_a_loop_of_known_length_is_unrolled() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return lax.scan(lambda y, _: (vxm.sum_lanes(y) + y, None), x, length=3)[0]

    names = program(loop, X, strict=False).names
    assert names == ("vxm_sum_lanes", "vxm_add") * 3


def test_a_batch_around_an_operation_repeats_its_work() -> None:
    xs = jax.ShapeDtypeStruct((5, 4, 640), jnp.float32)
    (one,) = program(vxm.sum_lanes, X).operations
    (many,) = program(jax.vmap(vxm.sum_lanes), xs).operations
    assert many.operands == one.operands
    assert many.work(GROQ, {}).busy_cycles == 5 * one.work(GROQ, {}).busy_cycles


def test_functions_inside_functions_are_read_through() -> None:
    inner = jax.jit(lambda x: vxm.mul(x, x))
    assert program(lambda x: vxm.exp(inner(x)), X).names == ("vxm_mul+exp",)


def test_weights_are_known_before_the_program_runs_and_so_is_a_cache_written_in_place() -> None:
    cache = jax.ShapeDtypeStruct((2, 160, 320), jnp.float16)
    new = jax.ShapeDtypeStruct((2, 160, 1), jnp.float16)
    position = jax.ShapeDtypeStruct((2,), jnp.int32)

    def step(cache: jax.Array, new: jax.Array, position: jax.Array) -> jax.Array:
        return mem.append(cache, new, position, axis=2)

    (operation,) = program(step, cache, new, position).operations
    assert operation.result_known


def test_time_depends_on_the_stored_format_not_on_the_array_type() -> None:
    x = jax.ShapeDtypeStruct((1, 640), jnp.float16)
    codes = jax.ShapeDtypeStruct((640, 6400), jnp.int8)
    scales = jax.ShapeDtypeStruct((20, 6400), jnp.bfloat16)

    def stored(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
        return mxm.matmul(x, QuantizedArray(codes=codes, scales=scales, scheme=INT4_GROUP32))

    timing = schedule(program(stored, x, codes, scales), GROQ)
    (matmul,) = (slot for slot in timing.slots if slot.operation.name == "mxm_matmul")
    assert matmul.work.moved_bytes == 640 * 6400 * (4 + 16 / 32) / 8


def test_only_integer_arithmetic_is_accepted_as_a_dimension() -> None:
    a, b = symbolic_shape("a, b")
    dimension = -(-a // 3) * b + b % 4
    for values in ({"a": 7, "b": 5}, {"a": np.asarray([7, 8]), "b": np.asarray([5, 6])}):
        expected = -(-values["a"] // 3) * values["b"] + values["b"] % 4
        np.testing.assert_array_equal(expression(dimension)(values), expected)
    with pytest.raises(CostError, match="is not integer arithmetic"):
        expression("a if b else 1")
