"""Products of Flax layers: bits against exact fractions, layouts against integers.

Where only layout is at stake, operands are fp8: those products need no certificate and compile
several times faster than float16 ones.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lpu_jax.datapath import mxm
from lpu_jax.datapath.dot_general import DimensionNumbers, MxmDotGeneral
from lpu_jax.errors import LpuError, UnknownNameError
from lpu_jax.numerics import scalar
from lpu_jax.numerics.formats import E4M3FN
from lpu_jax.numerics.quantized import output_scale, quantize, widen
from lpu_jax.numerics.schemes import Scheme

#: `[m, k] @ [k, n]`.
MATRICES: DimensionNumbers = (((1,), (0,)), ((), ()))
PLAIN_FP8 = Scheme(name="plain_e4m3fn", format=E4M3FN)
#: Products of two fp8 operands, the second stored or not.
FP8 = MxmDotGeneral(weights=PLAIN_FP8, activations="e4m3fn")
FP8_BOTH_MADE = MxmDotGeneral(weights=None, activations="e4m3fn")


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def integers(*shape: int, seed: int = 0) -> jax.Array:
    """Integers that e4m3fn holds; their products and short sums are exact in every format."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), jnp.float32)


def sqnr_db(y: Any, reference: Any) -> float:
    y, reference = np.float64(y), np.float64(reference)
    return float(10 * np.log10((reference**2).sum() / ((y - reference) ** 2).sum()))


# --- bits ---------------------------------------------------------------------------------------

# Two rows and a short third tile; one shape, so that one compilation serves several tests.
X, W = normal(2, 330), normal(330, 24, seed=1) * jnp.float32(0.1)


def exact_product(x: Any, w: Any, *, k_tile: int = 160, rounded: Any = np.float16) -> np.ndarray:
    """What the unit should make of float32 operands, in Python fractions."""
    rows, columns = (rounded(np.asarray(v)).astype(np.float64).tolist() for v in (x, w.T))
    return np.float32([[scalar.dot(row, column, k_tile) for column in columns] for row in rows])


@pytest.mark.slow
def test_a_layer_equals_exact_fractions_and_the_matrix_unit() -> None:
    layer = nnx.Linear(330, 24, use_bias=False, dot_general=MxmDotGeneral(), rngs=nnx.Rngs(0))
    layer.kernel[...] = W
    y = np.asarray(layer(X))
    np.testing.assert_array_equal(y, exact_product(X, W))
    np.testing.assert_array_equal(y, mxm.matmul(X.astype(jnp.float16), W.astype(jnp.float16)))
    # The oracle notices other tiles, and operands that were not rounded.
    assert (y != exact_product(X, W, k_tile=320)).any()
    assert (y != exact_product(X, W, rounded=np.float32)).any()


@pytest.mark.slow
def test_fp8_weights_without_scales_are_multiplied_as_they_are() -> None:
    # Sums of all magnitudes of fp8 do not fit float32, so that the length of a tile shows.
    spread = np.random.default_rng(0).integers(-6, 7, 330)[:, None]
    x, w = (
        X * jnp.asarray(np.exp2(spread.T), jnp.float32),
        W * jnp.asarray(np.exp2(spread), jnp.float32),
    )
    fp8 = functools.partial(exact_product, x, w, rounded=lambda v: v.astype(jnp.float8_e4m3fn))
    expected = fp8(k_tile=320)  # tiles of 8-bit operands are longer than those of fp16
    assert (expected != fp8(k_tile=160)).any()
    np.testing.assert_array_equal(FP8(x, w, MATRICES), expected)
    np.testing.assert_array_equal(FP8_BOTH_MADE(x, w, MATRICES), expected)


@pytest.mark.slow
def test_the_order_in_which_contracted_dimensions_are_named_changes_no_bit() -> None:
    x, w = X.reshape(2, 2, 165), W.reshape(2, 165, 24)
    for numbers in ((((1, 2), (0, 1)), ((), ())), (((2, 1), (1, 0)), ((), ()))):
        np.testing.assert_array_equal(MxmDotGeneral()(x, w, numbers), exact_product(X, W))


@pytest.mark.slow
def test_the_options_of_the_matrix_unit_reach_it() -> None:
    options: dict[str, Any] = {"rounding": "rz", "carry": "exact"}
    y = MxmDotGeneral(**options)(X, W, MATRICES)
    expected = mxm.matmul(X.astype(jnp.float16), W.astype(jnp.float16), **options)
    np.testing.assert_array_equal(y, expected)
    assert (np.asarray(y) != exact_product(X, W)).any()


@pytest.mark.slow
def test_bits_do_not_depend_on_the_batch_on_jit_or_on_vmap() -> None:
    x, w = normal(64, 48), normal(48, 5, seed=1)
    product = functools.partial(MxmDotGeneral(), dimension_numbers=MATRICES)
    whole = product(x, w)
    np.testing.assert_array_equal(whole[:1], jax.jit(product)(x[:1], w))
    np.testing.assert_array_equal(whole, jax.vmap(lambda row: product(row[None], w)[0])(x))


stored = jax.jit(quantize, static_argnums=1)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["nvfp4", "int8"])
def test_stored_weights_are_widened_in_blocks_along_the_contraction(weights: str) -> None:
    x, w = normal(3, 48), normal(2, 5, 48, seed=1)  # [m, k], [g, n, k]
    y = MxmDotGeneral(weights=weights)(x, w, (((1,), (2,)), ((), ())))
    q = stored(w.reshape(10, 48).T, weights)  # the columns of both g are those of one matrix
    sums = np.float64(x.astype(jnp.float16)) @ np.float64(jax.jit(widen)(q))
    expected = np.float32(sums)  # none is so near a tie that the float64 error decides
    if (scale := output_scale(q)) is not None:
        expected = expected * np.asarray(scale)
    np.testing.assert_array_equal(y, expected.reshape(3, 2, 5))
    # Blocks along the other axis would have been noticed.
    other = jax.jit(widen)(stored(w.reshape(10, 48), weights)).T
    assert (np.float32(np.float64(x.astype(jnp.float16)) @ np.float64(other)) != expected).any()
    assert sqnr_db(y, np.einsum("mk,gnk->mgn", x, w)) > 15  # four bits give about 18 dB


@pytest.mark.slow
def test_matrices_of_a_batch_are_stored_one_by_one() -> None:
    x, w = normal(2, 3, 48), normal(2, 48, 5, seed=1) * jnp.float32([1, 1000])[:, None, None]
    product = MxmDotGeneral(weights="int8_tensor", activations="int8")  # one scale per matrix
    y = product(x, w, (((2,), (1,)), ((0,), (0,))))
    np.testing.assert_array_equal(y, jax.vmap(lambda x, w: product(x, w, MATRICES))(x, w))
    for i in range(2):
        assert sqnr_db(y[i], x[i] @ w[i]) > 30  # a shared scale would leave nothing of the first


@pytest.mark.slow
def test_int8_activations_are_scaled_by_row() -> None:
    x, w = normal(4, 40), normal(40, 6, seed=1)
    y = MxmDotGeneral(weights="int8", activations="int8")(x, w, MATRICES)
    q = stored(w, "int8")
    largest = np.abs(np.asarray(x)).max(1, keepdims=True)
    codes = np.round(np.asarray(x) * (np.float32(127) / largest)).astype(np.int64)
    sums = np.float32(codes @ np.int64(q.codes))
    expected = sums * (largest * np.float32(1 / 127)) * np.asarray(q.scales)
    np.testing.assert_array_equal(y, expected)
    assert sqnr_db(y, x @ w) > 35


# --- layout and types -----------------------------------------------------------------------------


#: Sizes of batch, contracted and free dimensions.
SIZES = {"b0": 2, "b1": 3, "k0": 3, "k1": 2, "m0": 2, "m1": 1, "n0": 3, "n1": 2}


@st.composite
def products(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], DimensionNumbers]:
    """Shapes of two operands with any of the dimensions, in any order, and how to multiply them."""
    names = [name for name in SIZES if draw(st.booleans())]
    lhs, rhs = (draw(st.permutations([n for n in names if n[0] in of])) for of in ("bkm", "bkn"))
    contracted, batch = (draw(st.permutations([n for n in names if n[0] == of])) for of in "kb")
    numbers: Any = tuple(
        tuple(tuple(side.index(name) for name in group) for side in (lhs, rhs))
        for group in (contracted, batch)
    )
    return tuple(SIZES[n] for n in lhs), tuple(SIZES[n] for n in rhs), numbers


@pytest.mark.slow
@settings(max_examples=12)
@given(product=st.sampled_from([FP8, FP8_BOTH_MADE]), case=products())
def test_any_dimension_numbers_mean_what_they_mean_to_jax(
    product: MxmDotGeneral, case: tuple[tuple[int, ...], tuple[int, ...], DimensionNumbers]
) -> None:
    lhs_shape, rhs_shape, numbers = case
    lhs, rhs = integers(*lhs_shape), integers(*rhs_shape, seed=1)
    np.testing.assert_array_equal(
        product(lhs, rhs, numbers), lax.dot_general(lhs, rhs, numbers), strict=True
    )


@pytest.mark.parametrize("shapes", [((0, 3), (3, 2)), ((2, 0), (0, 2)), ((2, 3), (3, 0))])
def test_empty_operands_give_what_they_give_in_jax(shapes: tuple[tuple[int, ...], ...]) -> None:
    lhs, rhs = (jnp.ones(shape) for shape in shapes)
    expected = lax.dot_general(lhs, rhs, MATRICES)
    np.testing.assert_array_equal(MxmDotGeneral()(lhs, rhs, MATRICES), expected, strict=True)


@pytest.mark.parametrize("preferred", [None, jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    [
        (jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float16, jnp.float16),
        (jnp.bfloat16, jnp.float32),
    ],
)
def test_results_have_the_type_that_jax_gives_and_are_rounded_once(
    x_dtype: Any, w_dtype: Any, preferred: Any
) -> None:
    x, w = integers(2, 9).astype(x_dtype), (integers(9, 3, seed=1) + 0.125).astype(w_dtype)
    product = MxmDotGeneral(weights=None, activations="e4m3fn")
    y = product(x, w, MATRICES, preferred_element_type=preferred)
    expected = lax.dot_general(x, w, MATRICES, preferred_element_type=preferred)
    assert y.dtype == expected.dtype
    e4m3fn = [np.asarray(v).astype(jnp.float8_e4m3fn).astype(np.float64) for v in (x, w)]
    np.testing.assert_array_equal(y, (e4m3fn[0] @ e4m3fn[1]).astype(expected.dtype))


def test_fp8_activations_saturate_and_fp16_ones_overflow() -> None:
    x, w = jnp.zeros((2, 330)).at[0, 0].set(1e6), jnp.ones((330, 24))
    assert FP8(x, w, MATRICES)[0].tolist() == [448.0] * 24
    assert MxmDotGeneral()(x, w, MATRICES)[0].tolist() == [np.inf] * 24


# --- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint])
def test_derivatives_are_those_of_the_unrounded_float32_product(around: Any) -> None:
    x, w, g = normal(4, 30), normal(30, 3, seed=1), normal(4, 3, seed=2)
    product = around(lambda x, w: FP8(x, w, MATRICES))
    y, pull = jax.vjp(product, x, w)
    np.testing.assert_array_equal(y, FP8(x, w, MATRICES))
    dx, dw = pull(g)
    # float32 sums of at most 30 products of normal numbers: relative errors of a few 2**-24.
    np.testing.assert_allclose(dx, np.float64(g) @ np.float64(w).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dw, np.float64(x).T @ np.float64(g), rtol=1e-4, atol=1e-5)
    tangents = normal(4, 30, seed=3), normal(30, 3, seed=4)
    _, dy = jax.jvp(product, (x, w), tangents)
    expected = np.float64(tangents[0]) @ np.float64(w) + np.float64(x) @ np.float64(tangents[1])
    np.testing.assert_allclose(dy, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_narrow_operands_have_their_types() -> None:
    x, w = normal(4, 30).astype(jnp.bfloat16), normal(30, 3, seed=1).astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x, w: FP8(x, w, MATRICES), x, w)
    assert {v.dtype for v in (y, *pull(y))} == {jnp.dtype(jnp.bfloat16)}


def test_layers_in_a_scan_and_under_vmap_are_differentiated() -> None:
    layers, x = normal(3, 8, 8, seed=1), normal(5, 2, 8)

    def loss(product: Any, layers: jax.Array, x: jax.Array) -> jax.Array:
        out, _ = lax.scan(jax.checkpoint(lambda x, w: (product(x, w, MATRICES), None)), x, layers)
        return out.sum()

    grad = jax.jit(jax.vmap(jax.grad(functools.partial(loss, FP8)), in_axes=(None, 0)))
    # Of integer powers of two nothing is rounded, so that both must agree exactly.
    powers = jnp.round(layers) * 0.5
    x = jnp.round(x)
    exact = functools.partial(lax.dot_general, precision=lax.Precision.HIGHEST)
    reference = jax.vmap(jax.grad(functools.partial(loss, exact)), in_axes=(None, 0))
    np.testing.assert_allclose(grad(powers, x), reference(powers, x), rtol=0, atol=0)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "mxfp5"}, "unknown weight scheme 'mxfp5'"),
        ({"weights": jnp.int8}, "must be a string or a Scheme or None"),
        ({"activations": "fp32"}, "activations='fp32' was given; it must be one of fp16, e4m3fn"),
        ({"rounding": "rna"}, "rounding='rna'"),
        ({"carry": "fp16"}, "carry='fp16'"),
        ({"activations": "int8"}, "int8 activations were given with weights fp16"),
        ({"activations": "int8", "weights": "mxint8"}, "with weights mxint8"),
        ({"activations": "int8", "weights": None}, "with weights None"),
    ],
)
def test_options_that_do_not_exist_or_go_together(options: Any, message: str) -> None:
    # Field by field: the run-time type checks of the test suite would find some of these first.
    product = object.__new__(MxmDotGeneral)
    for name, value in {**vars(MxmDotGeneral()), **options}.items():
        object.__setattr__(product, name, value)
    with pytest.raises(LpuError, match=message):
        product.__post_init__()


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (
            jnp.int8,
            {},
            r"operand int8\[2,2\] was given; it must be an array of float32, bfloat16, float16",
        ),
        (jnp.complex64, {}, "operand complex64"),
        (jnp.float8_e4m3fn, {}, "operand float8_e4m3fn"),
        (jnp.float32, {"preferred_element_type": jnp.int32}, "a result of int32 was asked for"),
        (jnp.float32, {"out_sharding": "x"}, "out_sharding='x' was given"),
    ],
)
def test_operands_that_the_unit_does_not_take(dtype: Any, options: Any, message: str) -> None:
    x = jnp.ones((2, 2), dtype)
    with pytest.raises(LpuError, match=message):
        MxmDotGeneral()(x, x, MATRICES, **options)


def test_dimensions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LpuError, match=r"do not fit float32\[2,3\] and float32\[2,3\]"):
        MxmDotGeneral()(jnp.ones((2, 3)), jnp.ones((2, 3)), MATRICES)


def test_an_unknown_scheme_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="nearest"):
        MxmDotGeneral(weights="mxfp5")
