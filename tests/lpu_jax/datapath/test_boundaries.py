"""What units are given where it enters: right values, or one sentence that says what is allowed.

Expected values are Python's or NumPy's; all comparisons are exact.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax.datapath import c2c, masks, mem, mxm, scaled, selection, sxm, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.dot_general import MxmDotGeneral
from lpu_jax.errors import LpuError, MeshError
from lpu_jax.numerics import elementary, fused, rounding, scalar
from lpu_jax.numerics.formats import E4M3FN
from lpu_jax.numerics.quantized import (
    QuantizedArray,
    check,
    dequantize,
    output_scale,
    quantize,
    widen,
)
from lpu_jax.numerics.schemes import MXFP4

X = jnp.asarray([[1.5, -2.0, 3.0, 0.25]], jnp.float32)
IDS = jnp.asarray([0, 1], jnp.int32)
ZERO = jnp.zeros((), jnp.int32)
CHIPS = Axis(names=("chip",), size=2, tiers=())


def on_chips(program: Callable[[Any], Any], x: Any) -> Any:
    """Run a program on virtual chips, one row of `x` each."""
    return jax.vmap(program, axis_name="chip")(x)


def assert_one_sentence(error: pytest.ExceptionInfo[LpuError]) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 300, message


def _multiplied(dimension_numbers: Any) -> Any:
    """Multiply as a user does, without the hook that checks annotations in tests."""
    multiply = inspect.unwrap(MxmDotGeneral.__call__)
    return multiply(MxmDotGeneral(), jnp.ones((2, 3)), jnp.ones((3, 4)), dimension_numbers)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fused.fma(*[jnp.ones(2)] * 3), r"fused\.fma: 64-bit types are off"),
        (
            lambda: _multiplied(None),
            "MxmDotGeneral: dimension_numbers or a type that do not fit",
        ),
        (
            lambda: _multiplied(((1, 0), ((), ()))),
            "MxmDotGeneral: dimension_numbers or a type that do not fit",
        ),
        (lambda: vxm.to_fp32(np.int64(2**40 + 1)), r"vxm\.to_fp32: x=int64\[\]"),
        (lambda: vxm.to_fp32(np.float64([0.1])), r"x=float64\[1\]"),
        (lambda: vxm.to_fp32(1 + 2j), r"vxm\.to_fp32: x=\(1\+2j\) .* a floating point array or"),
        (lambda: vxm.to_fp32(jnp.asarray([1j])), r"x=complex64\[1\]"),
        (lambda: vxm.exp(1.0), r"vxm\.exp: x=1\.0 was given; it must be a float32 array\."),
        (lambda: vxm.exp([1.0]), "x=a list"),
        (lambda: elementary.exp(jnp.int32(1)), r"elementary\.exp: x=int32\[\]"),
        (lambda: elementary.add(X, X[0]), r"shapes \(1, 4\), \(4,\) were given"),
        (lambda: elementary.sum_lanes(X, axis=2), r"axis=2 .* shape \(1, 4\)"),
        (lambda: vxm.select(X.astype(jnp.float16), X, X), r"mask=float16\[1,4\] .* a bool array"),
        (lambda: vxm.select(1.0, X, X), "mask=1.0"),
        (lambda: vxm.add(X, None), "y=None was given; it must be a number or a float32 array"),
        (lambda: vxm.add(X, True), "y=True"),
        (lambda: vxm.add(X, 2**24 + 1), "the number 16777217 was given"),
        (lambda: vxm.add(X, np.int64(2**40 + 1)), "the number 1099511627777"),
        (lambda: vxm.mul(X, 1e300), r"the number 1e\+300 was given"),
        (lambda: vxm.mul(X, 2**200), r"about 2\*\*200 was given"),
        (lambda: rounding.encode(X, "fp16"), r"rounding\.encode: fmt='fp16' .* a Format\."),
        (lambda: rounding.decode(X, E4M3FN), r"codes=float32\[1,4\] .* an integer array"),
        (lambda: rounding.encode(X, E4M3FN, exponent=jnp.zeros((1, 3), jnp.int32)), "same rank"),
        (lambda: rounding.round_product(X * 1.23456, X, E4M3FN), "more than 8 significant bits"),
        (lambda: scalar.decode(256, E4M3FN), "codes of e4m3fn are 0 to 255"),
        (lambda: scalar.dot_tile([1.0], [1.0, 2.0]), "1 activations and 2 weights"),
    ],
)
def test_numbers_that_would_come_out_wrong_are_refused(call, message):
    with pytest.raises(LpuError, match=message) as error:
        call()
    assert_one_sentence(error)


def test_numbers_that_are_taken_are_right():
    assert vxm.add(X, 2**24).tolist() == [[float(np.float32(v) + 2**24) for v in X[0].tolist()]]
    assert vxm.add(X, np.int64(2**40)).tolist() == vxm.add(X, 2.0**40).tolist()
    assert vxm.mul(X, 0.1).tolist() == (np.asarray(X) * np.float32(0.1)).tolist()
    assert vxm.maximum(X, -np.inf).tolist() == X.tolist()
    assert vxm.to_fp32(np.int32([2**24 + 3])).tolist() == [float(np.float32(2**24 + 3))]
    assert vxm.to_fp32(np.float16([0.1])).tolist() == [float(np.float16(0.1))]
    assert vxm.exp(np.float32([0.0])).tolist() == [1.0]
    np.testing.assert_array_equal(sxm.join(np.ones((2, 1), np.int8), np.ones((2, 2), np.int8)), 1)


def test_a_selection_of_numbers_has_the_shape_of_its_mask():
    mask = jnp.asarray([[True], [False]])
    assert vxm.select(mask, 1.0, 2.0).tolist() == [[1.0], [2.0]]
    assert vxm.select(mask, X, 0.0).tolist() == [X[0].tolist(), [0.0] * 4]


# --- chips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("collective", ["all_reduce", "reduce_scatter"])
@pytest.mark.parametrize(
    "values",
    [
        np.int32([[16777217], [1]]),  # a sum in fp32 would lose the 1
        np.int8([[100], [100]]),  # and this would end at 127
        np.asarray([[288], [288]], ml_dtypes.float8_e4m3fn),  # NaN: 576 is more than 448
        np.asarray([[1j], [1j]], np.complex64),
        np.asarray([[True], [True]]),
    ],
    ids=lambda values: values.dtype.name,
)
def test_sums_over_chips_are_refused_where_they_would_be_wrong(collective, values):
    dim = {"dim": 0} if collective == "reduce_scatter" else {}
    x = jnp.asarray(values).repeat(2, 1)
    with pytest.raises(LpuError, match=f"{collective}: x={values.dtype.name}.* float16") as error:
        on_chips(lambda x: getattr(c2c, collective)(x, CHIPS, **dim), x)
    assert_one_sentence(error)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_with_room_for_sums_are_added(dtype):
    x = jnp.asarray([[100.0], [28.0]], dtype)
    assert on_chips(lambda x: c2c.all_reduce(x, CHIPS), x).tolist() == [[128.0], [128.0]]


def test_moves_take_every_type():
    for values in (np.int32([[16777217], [1]]), np.int8([[100], [-100]]), np.bool_([[1], [0]])):
        found = on_chips(lambda x: c2c.all_gather(x, CHIPS, dim=0), jnp.asarray(values))
        np.testing.assert_array_equal(found, np.stack([values[:, 0]] * 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: c2c.all_reduce(x, "tensor"), "axis='tensor' was given; it must be an Axis"),
        (lambda x: c2c.all_reduce(x, None), "axis=None"),
        (lambda x: c2c.all_gather(x, CHIPS, dim=1), r"dim=1 was given for .* shape \(4,\)"),
        (lambda x: c2c.all_gather(x, CHIPS, dim="n"), "dim='n' was given; it must be a whole"),
        (lambda x: c2c.all_gather(x, CHIPS, dim=0, keep=9), "keep=9 was given for 2 shares of 4"),
        (lambda x: c2c.reduce_scatter(x[:3], CHIPS, dim=0), "for 2 chips; its length must be a"),
        (lambda x: c2c.all_to_all(x[:3], CHIPS, dim=0), "for 2 chips"),
        (lambda x: c2c.joined(CHIPS, "b"), "axes='b'"),
        (lambda x: c2c.joined(), "axes of the mesh are needed"),
    ],
)
def test_collectives_say_what_they_need(call, message):
    with pytest.raises(LpuError, match=message) as error:
        on_chips(call, jnp.ones((2, 4), jnp.float32))
    assert_one_sentence(error)


def test_an_axis_without_names_computes_nothing():
    # It serves to trace a program for its time; alone it would return the operand as the sum.
    nameless = Axis(names=(), size=2, tiers=())
    with pytest.raises(MeshError, match="over 2 chips runs on 1") as error:
        c2c.all_reduce(jnp.ones(3), nameless)
    assert_one_sentence(error)
    assert jax.make_jaxpr(lambda x: c2c.all_reduce(x, nameless))(jnp.ones(3))


# --- stored weights -------------------------------------------------------------------------------


def stored(scheme: Any, k: int = 64, n: int = 3) -> QuantizedArray:
    w = np.random.default_rng(0).normal(size=(k, n)).astype(np.float32)
    return quantize(jnp.asarray(w), scheme)


TAKERS = {
    "mxm.matmul": lambda q: mxm.matmul(jnp.ones((2, q.codes.shape[-2]), jnp.float16), q),
    "mxm.widened": mxm.widened,
    "dequantize": dequantize,
    "method": QuantizedArray.dequantize,
    "widen": widen,
    "output_scale": output_scale,
    "check": check,
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: replace(stored("mxfp4"), scales=jnp.full((1, 3), 127, jnp.uint8)),
            r"must have shape \(2, 3\), but have \(1, 3\)",
        ),
        (
            lambda: QuantizedArray(
                codes=jnp.ones((64, 3), jnp.int8), scales=stored("mxfp4").scales, scheme=MXFP4
            ),
            "codes of scheme mxfp4 must be uint8, but are int8",
        ),
        (
            lambda: replace(stored("mxfp4"), codes=jnp.full((64, 3), 0x13, jnp.uint8)),
            "code 19 was given; it must be 0 to 15 for scheme mxfp4",
        ),
        (
            lambda: replace(stored("int4"), codes=jnp.full((64, 3), 9, jnp.int8)),
            "code 9 was given; it must be -8 to 7 for scheme int4",
        ),
        (
            lambda: replace(stored("mxfp4"), scales=None),
            "scales .* must have shape .* but have None",
        ),
        (
            lambda: replace(stored("mxfp4"), scales="ones"),
            "scales must be an array or None, but is 'ones'",
        ),
        (lambda: replace(stored("nvfp4"), tensor_scale=None), "tensor scale .* but have None"),
        (lambda: replace(stored("mxfp4"), axis=0), "axis 0"),
    ],
)
def test_an_invalid_array_is_refused_wherever_it_enters(taker, wrong, message):
    with pytest.raises(LpuError, match=message) as error:
        TAKERS[taker](wrong())
    assert_one_sentence(error)


def test_codes_cannot_be_looked_at_in_a_program_but_shapes_can():
    wrong = replace(stored("mxfp4"), codes=jnp.full((64, 3), 0x13, jnp.uint8))
    assert jax.jit(dequantize)(wrong).shape == (64, 3)
    for taker in ("dequantize", "widen", "mxm.matmul"):
        with pytest.raises(LpuError, match="must have shape"):
            jax.jit(TAKERS[taker])(replace(wrong, scales=wrong.scales[:1]))


def test_the_method_gives_the_values_that_the_codes_stand_for():
    q = stored("mxfp4")
    values = np.asarray(q.codes).view(np.uint8)
    scale = np.exp2(np.asarray(q.scales, np.float64) - 127).repeat(32, 0)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # OCP MX v1.0, table of E2M1
    signs = np.where(values & 8, -1.0, 1.0)
    np.testing.assert_array_equal(q.dequantize(), signs * magnitudes[values & 7] * scale)


def test_other_weights_do_not_multiply_bare():
    with pytest.raises(LpuError, match="int8_product: w of scheme mxfp4 was given"):
        scaled.int8_product(jnp.ones((2, 64), jnp.float32), stored("mxfp4"))


# --- addresses and shapes -------------------------------------------------------------------------

STORE = jnp.ones((2, 4, 3), jnp.float16)
MATRICES = (((1,), (0,)), ((), ()))
CACHE = jnp.zeros((2, 5), jnp.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mxm.matmul(STORE[0].T, STORE, rows=jnp.asarray([0, 7], jnp.int32)),
            r"mxm\.matmul: rows 7 was given; it must be at most 1 for the store w",
        ),
        (lambda: mem.select_expert(IDS, jnp.asarray([2], jnp.int32)), "ids 2 .* -1 to 1"),
        (lambda: mem.take_rows(STORE, jnp.asarray([0, 4], jnp.int32)), "rows 4 .* 0 to 3"),
        (lambda: mem.take_rows(STORE, jnp.zeros(3, jnp.int32)), r"rows=int32\[3\] .* b=2"),
        (lambda: mem.rows_from(STORE[0], IDS + 3, 2), "positions 3 .* 0 to 2"),
        (
            lambda: mem.take_share(X.T, ZERO + 2, 2),
            "index 2 was given; it must be 0 to 1 for 2 shares",
        ),
        (lambda: mem.pad_rows(X.T, 3), "n=3 was given for 4 rows"),
        (lambda: mem.append(CACHE, CACHE[:, :1], IDS + 4, 1), "positions 5 .* 0 to 4"),
        (lambda: mem.append(CACHE, CACHE[:1, :1], IDS, 1), r"new=float32\[1,1\]|b=2"),
        (lambda: mem.append(CACHE, CACHE[:, :1], IDS, 0), "axis=0 .* must be 1 to 1"),
        (lambda: mem.append(CACHE, jnp.zeros((2, 1), jnp.int32), IDS, 1), "its type"),
        (lambda: mem.append_ring(CACHE, jnp.zeros((2, 6)), IDS, 1), "6 new entries .* 5 positions"),
        (lambda: mem.ring_view(CACHE, IDS, 2), "axis=2"),
        (lambda: mem.ring_length(0, 1, 320), "window=0 was given; it must be a whole number"),
        (lambda: mem.lookup(jnp.zeros((2, 2), jnp.int8), IDS, ZERO, 300), "missing=300 .* int8"),
        (lambda: mem.lookup(X, IDS, IDS), r"first=int32\[2\]"),
        (lambda: selection.top_k(X, 5), "k=5 was given for rows of 4"),
        (lambda: selection.top_k(X, 0), "k=0"),
        (lambda: selection.take_lanes(X, jnp.full((1, 1), 4, jnp.int32)), "ids 4 .* 0 to 3"),
        (lambda: selection.keep_groups(X, jnp.zeros((1, 1), jnp.int32), 3), "n_groups=3"),
        (lambda: selection.keep_groups(X, jnp.full((1, 1), 2, jnp.int32), 2), "groups 2"),
        (lambda: selection.take_best(X, jnp.zeros((1, 3), jnp.int32)), "n=4"),
        (lambda: masks.causal_mask(STORE.astype(jnp.float32), IDS[:0], 1), "for 0 sequences"),
        (lambda: masks.causal_mask(jnp.zeros((3, 1, 4)), IDS, 1), "3 groups .* 2 sequences"),
        (lambda: masks.key_mask(jnp.zeros((3, 1, 4)), IDS[:3], jnp.zeros(2, jnp.int32), 1), "."),
        (lambda: masks.key_mask(jnp.zeros((2, 1, 4)), IDS, ZERO[None], 1, 0), "window=0"),
        (lambda: sxm.rearrange(X, "a b"), "pattern='a b' was given"),
        (lambda: sxm.rearrange(X, "a b -> a c"), "the same axes"),
        (lambda: sxm.rearrange(X, "a ... -> ... a"), "the same axes"),
        (lambda: sxm.rearrange(X, "a (b c) -> a b c", b=3), r"b=3 was given for shape \(1, 4\)"),
        (lambda: sxm.rearrange(X, "a (b c) -> a b c"), "of no axis was given"),
        (lambda: sxm.rearrange(X, "a b -> b a", d=2), "d=2"),
        (lambda: sxm.rearrange(X, "a b -> b a", a="1"), "a='1' was given; it must be a whole"),
        (lambda: sxm.split(X, (1, 2)), r"sizes=\(1, 2\) were given for a last axis of 4"),
        (lambda: sxm.split(X, [1, 3]), "sizes=a list"),
        (lambda: sxm.keep_columns(X, 5), "n=5 was given for 4 columns"),
        (lambda: sxm.join(X, X.astype(jnp.float16)), "all of one type"),
        (lambda: sxm.join(X, X.T), r"parts=float32\[4,1\]"),
        (lambda: sxm.join(), "nothing was given"),
        (lambda: sxm.swap_pairs(X[:, :3], interleaved=True), "must be even"),
        (lambda: sxm.swap_pairs(X, interleaved=1), "interleaved=1 was given; it must be True or"),
        (lambda: MxmDotGeneral()(np.zeros((2, 2)), X, MATRICES), r"operand float64\[2,2\]"),
        (lambda: MxmDotGeneral()(X, X, MATRICES), "dimension_numbers .* do not fit"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(LpuError, match=message) as error:
        call()
    assert_one_sentence(error)


def test_addresses_cannot_be_looked_at_in_a_program():
    rows = jnp.asarray([0, 7], jnp.int32)
    found = jax.jit(lambda rows: mxm.matmul(STORE[0].T, STORE, rows=rows))(rows)
    assert found.shape == (2, 3, 3)  # the docstring says that 7 counts as the last


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (CHIPS, {"names": "chip"}),
        (CHIPS, {"names": (1,)}),
        (CHIPS, {"size": 0}),
        (CHIPS, {"size": 2.0}),
        (CHIPS, {"tiers": [8]}),
        (CHIPS, {"algorithm": None}),
        (CHIPS, {"stride": "1"}),
        (MXFP4, {"format": "e2m1"}),
        (MXFP4, {"block_rows": 1.5}),
        (MXFP4, {"block_rows": True}),
        (MXFP4, {"scale_format": "e8m0"}),
        (MXFP4, {"is_two_level": 1}),
        (E4M3FN, {"name": 1}),
        (E4M3FN, {"exponent_bits": 4.0}),
        (E4M3FN, {"max_code": "126"}),
        (E4M3FN, {"is_signed": None}),
        (MxmDotGeneral(), {"weights": 8}),
        (MxmDotGeneral(), {"activations": ["fp16"]}),
    ],
)
def test_fields_of_records_are_checked(record, fields):
    # Field by field: the run-time type checks of the test suite would find some of these first.
    changed = object.__new__(type(record))
    for name, value in {**vars(record), **fields}.items():
        object.__setattr__(changed, name, value)
    (name,) = fields
    with pytest.raises(LpuError, match=f"{type(record).__name__}: {name}=") as error:
        changed.__post_init__()
    assert_one_sentence(error)
