"""Tensor-core products as operations of a program: forms, batches, price, and wrong arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensor_core_blocks import CASES, operands
from tensor_core_products import product, quantized

from lpu_jax import cost
from lpu_jax.datapath import mxm, tensor_core
from lpu_jax.errors import CostError, LpuError
from lpu_jax.numerics.quantized import QuantizedArray, quantize
from lpu_jax.numerics.schemes import MXFP4
from lpu_jax.numerics.tensor_core import matmul

RNG = np.random.default_rng(0)
M, K, N, G = 3, 40, 5, 4


def numbers(*shape, dtype=jnp.float16):
    return jnp.asarray(RNG.normal(size=shape), dtype)


X, W, STORE = numbers(M, K), numbers(K, N), numbers(G, K, N)


def hopper(x, w, **choices):
    return tensor_core.matmul(x, w, generation="hopper", **choices)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.slow
def test_it_is_the_product_of_the_numerics():
    same(hopper(X, W), matmul(X, W, generation="hopper"))


def test_a_store_is_multiplied_at_addresses():
    each = [hopper(X, w) for w in STORE]
    found = hopper(X, STORE, rows=jnp.asarray([2, -1, 0], jnp.int32))
    same(found, jnp.stack([each[2], jnp.zeros((M, N), jnp.float32), each[0]]))


@pytest.mark.slow
def test_every_form_multiplies_matrix_by_matrix():
    each = jnp.stack([hopper(X, w) for w in STORE])
    same(hopper(X, STORE), each)
    same(hopper(jnp.broadcast_to(X, (G, M, K)), STORE), each)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_a_batch_has_the_bits_of_its_entries_and_stays_one_operation(axes):
    xs, ws = jnp.stack([X, -X, X[::-1]]), jnp.stack([W, W * 2, W[::-1]])
    operands = [v if axis == 0 else v[0] for v, axis in zip((xs, ws), axes, strict=True)]
    mapped = jax.vmap(hopper, in_axes=axes)
    entries = [
        hopper(*(v if axis is None else v[i] for v, axis in zip(operands, axes, strict=True)))
        for i in range(3)
    ]
    same(jax.jit(mapped)(*operands), jnp.stack(entries))
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(mapped)(*operands).eqns]
    assert names.count("tensor_core_matmul") == 1
    assert "while" not in names


def scaled():
    """Codes with block scales, and the product of the numerics."""
    made = operands(CASES[-1], "near-one", M, N, 64, np.random.default_rng(1))
    made["c"] = np.zeros((M, N), np.uint32)
    x = quantized("nvfp4", made["a"], made["a_scales"], "e2m1", -1)
    w = quantized("nvfp4", made["b"], made["b_scales"], "e2m1", -2)
    return x, w, product(CASES[-1], made)


@pytest.mark.slow
def test_block_scales_multiply():
    x, w, bits = scaled()
    same(tensor_core.matmul(x, w, generation="blackwell"), bits)


@pytest.mark.slow
def test_a_batch_of_block_scales_has_the_bits_of_its_entries():
    x, w, bits = scaled()
    stacked = jax.tree.map(lambda v: jnp.stack([v, v]), x)
    mapped = jax.vmap(lambda q: tensor_core.matmul(q, w, generation="rubin"))(stacked)
    same(mapped, np.stack([bits, bits]))


@pytest.mark.slow
def test_stored_weights_are_widened_for_float16_rows():
    w = quantize(numbers(64, N, dtype=jnp.float32), "int4", -2)
    x = numbers(M, 64)
    same(hopper(x, w), hopper(x, mxm.widened(w)))


def test_lengths_may_be_symbols():
    b, k = jax.export.symbolic_shape("b, k")
    shapes = (jax.ShapeDtypeStruct((b, k), jnp.float16), jax.ShapeDtypeStruct((k, N), jnp.float16))
    assert jax.eval_shape(hopper, *shapes).shape == (b, N)


BYTES = np.zeros((64, 64), np.uint8)
X_NVFP4 = quantized("nvfp4", BYTES[:M], BYTES[:M, :4], "e2m1", -1)
W_NVFP4 = quantized("nvfp4", BYTES[:, :N], BYTES[:4, :N], "e2m1", -2)
W_MXFP8 = quantized("mxfp8", BYTES[:, :N], BYTES[:2, :N], "float8_e4m3fn", -2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hopper(X, W.astype(jnp.bfloat16)), "float16 and bfloat16 were given"),
        (lambda: hopper(X, W[:7]), "x has 40 columns but w has 7 rows"),
        (lambda: hopper(X[0], W), r"shapes \(40,\) and \(40, 5\) were given"),
        (lambda: hopper(X, W, rows=jnp.zeros(1, jnp.int32)), "it must be a store"),
        (lambda: hopper(X_NVFP4, W), "x of scheme nvfp4 was given with w"),
        (lambda: hopper(X_NVFP4, W_MXFP8), "schemes nvfp4 and mxfp8_e4m3 were given"),
        (lambda: hopper(X.astype(jnp.bfloat16), W_MXFP8), "bfloat16 rows were given with weights"),
        (lambda: tensor_core.matmul(X, W, generation="volta"), "volta"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(call, words):
    with pytest.raises(LpuError, match=words):
        call()


def test_hopper_takes_no_block_scales():
    with pytest.raises(LpuError, match="nvfp4 on hopper was given"):
        hopper(X_NVFP4, W_NVFP4)


def seconds(function, *shapes):
    return cost.time(function, *shapes, system="h100x8").seconds


def test_it_has_the_price_of_a_product_on_a_gpu():
    x, w = (jax.ShapeDtypeStruct(s, jnp.float16) for s in ((64, 4096), (4096, 4096)))
    assert seconds(hopper, x, w) == seconds(mxm.matmul, x, w)
    ws = jax.ShapeDtypeStruct((4, 4096, 4096), jnp.float16)
    assert seconds(hopper, x, ws) == seconds(mxm.matmul, x, ws)
    mapped = [jax.vmap(one, in_axes=(None, 0)) for one in (hopper, mxm.matmul)]
    assert seconds(mapped[0], x, ws) == seconds(mapped[1], x, ws)


def test_block_scales_stream_their_stored_bits():
    def multiply(x, x_scales, w, w_scales):
        one = QuantizedArray(codes=x, scales=x_scales, scheme=MXFP4, axis=-1)
        two = QuantizedArray(codes=w, scales=w_scales, scheme=MXFP4, axis=-2)
        return tensor_core.matmul(one, two, generation="blackwell")

    def shapes(k, n):
        pairs = ((1, k), (1, k // 32), (k, n), (k // 32, n))
        return [jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in pairs]

    # Weights of 4 bits and scales of 8 for 32 of them, against 16 bits: 3.76 times fewer bytes.
    whole = seconds(multiply, *shapes(8192, 32768)) - seconds(multiply, *shapes(64, 32768))
    k = (jax.ShapeDtypeStruct((1, k), jnp.float16) for k in (8192, 64))
    w = (jax.ShapeDtypeStruct((k, 32768), jnp.float16) for k in (8192, 64))
    fp16 = [seconds(hopper, x, y) for x, y in zip(k, w, strict=True)]
    assert (fp16[0] - fp16[1]) / whole == pytest.approx(16 / 4.25, rel=0.01)


def test_an_lpu_has_no_tensor_cores():
    with pytest.raises(CostError, match="has no tensor cores"):
        cost.time(hopper, X, W, system="lpx-1")
