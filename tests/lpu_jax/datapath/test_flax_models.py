"""Whole Flax models on the matrix unit: values against float32, time against the unit's own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from lpu_jax import cost
from lpu_jax.datapath import mxm
from lpu_jax.datapath.dot_general import MxmDotGeneral
from lpu_jax.numerics.formats import E4M3FN
from lpu_jax.numerics.schemes import MXFP4, Scheme

#: Products of two fp8 operands, the second stored or not: they compile several times faster than
#: those of float16.
PLAIN_FP8 = Scheme(name="plain_e4m3fn", format=E4M3FN)
FP8 = MxmDotGeneral(weights=PLAIN_FP8, activations="e4m3fn")
FP8_BOTH_MADE = MxmDotGeneral(weights=None, activations="e4m3fn")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def sqnr_db(y: Any, reference: Any) -> float:
    y, reference = np.float64(y), np.float64(reference)
    return float(10 * np.log10((reference**2).sum() / ((y - reference) ** 2).sum()))


def primitives(function: Callable[..., Any], *args: Any) -> list[str]:
    return [row.name for row in cost.time(function, *args, system="lpx-rack").operations]


D_MODEL, HEADS = 16, 2


class Block(nnx.Module):
    """Attention and an MLP, as a user would write them."""

    def __init__(self, product: Any, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            num_heads=HEADS,
            in_features=D_MODEL,
            decode=False,
            qkv_dot_general=product,
            out_dot_general=product,
            rngs=rngs,
        )
        self.up = nnx.Linear(D_MODEL, 32, dot_general=product, rngs=rngs)
        self.down = nnx.LinearGeneral(32, D_MODEL, dot_general=product, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(x)
        return x + self.down(nnx.gelu(self.up(x)))


@pytest.mark.slow
def test_an_nnx_block_runs_and_trains_on_the_matrix_unit() -> None:
    x = normal(2, 5, D_MODEL)
    reference, block = (Block(product, nnx.Rngs(0)) for product in (lax.dot_general, FP8))

    @nnx.jit
    def step(block: Block, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(block: Block) -> tuple[jax.Array, jax.Array]:
            y = block(x)
            return (y**2).mean(), y

        (value, y), grads = nnx.value_and_grad(loss, has_aux=True)(block)
        params = nnx.state(block, nnx.Param)
        nnx.update(block, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return value, y

    first, y = step(block, x)
    # A rounding to three mantissa bits costs about 28 dB of each operand.
    assert 15 < sqnr_db(y - x, nnx.jit(lambda m, x: m(x))(reference, x) - x) < 40
    assert step(block, x)[0] < first


def test_models_with_equal_options_share_what_is_compiled() -> None:
    traces = []

    @nnx.jit
    def run(layer: nnx.Linear, x: jax.Array) -> jax.Array:
        traces.append(layer)
        return layer(x)

    for _ in range(2):
        product = MxmDotGeneral(weights=PLAIN_FP8, activations="e4m3fn")
        run(nnx.Linear(4, 3, dot_general=product, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    assert len(traces) == 1


@pytest.mark.slow
def test_linen_layers_run_on_the_matrix_unit_scores_included() -> None:
    x = normal(2, 5, D_MODEL)

    def model(product: Any, of_scores: Any) -> linen.Module:
        attend = functools.partial(linen.dot_product_attention, einsum_dot_general=of_scores)
        return linen.Sequential(
            [
                linen.Dense(D_MODEL, dot_general=product),
                linen.MultiHeadDotProductAttention(
                    num_heads=HEADS,
                    qkv_dot_general=product,
                    out_dot_general=product,
                    attention_fn=attend,
                ),
                linen.DenseGeneral((2, 3), dot_general=product),
            ]
        )

    narrow, reference = model(FP8, FP8_BOTH_MADE), model(None, None)
    params = reference.init(jax.random.key(0), x)
    y, expected = (jax.jit(m.apply)(params, x) for m in (narrow, reference))
    assert y.shape == (2, 5, 2, 3)
    assert 10 < sqnr_db(y, expected) < 40
    names = primitives(narrow.apply, params, x)
    assert names.count("mxm_matmul") == 8  # of which two are scores and their sum of values
    assert "dot_general" not in names


@pytest.mark.slow
def test_the_class_is_what_dot_general_cls_wants() -> None:
    x = normal(2, 3, 4, 6)
    layer = nnx.LinearGeneral(
        (4, 6),
        (2, 5),
        axis=(-2, -1),
        batch_axis={0: 2},
        dot_general_cls=MxmDotGeneral,
        use_bias=False,
        dtype=jnp.bfloat16,
        preferred_element_type=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, 2, 5), jnp.float32)
    assert sqnr_db(y, np.einsum("bmkl,bklno->bmno", x, layer.kernel[...])) > 40


# --- cost -----------------------------------------------------------------------------------------


def test_a_flax_model_is_timed_as_matrix_products() -> None:
    x = jax.ShapeDtypeStruct((4, 640), jnp.float16)
    layer = nnx.Linear(
        640,
        960,
        use_bias=False,
        param_dtype=jnp.float16,
        preferred_element_type=jnp.float32,
        dot_general=MxmDotGeneral(),
        rngs=nnx.Rngs(0),
    )
    own = cost.time(
        mxm.matmul, x, jax.ShapeDtypeStruct((640, 960), jnp.float16), system="groq-node"
    )
    timed = cost.time(layer, x, system="groq-node")
    assert timed == own
    assert [row.unit for row in timed.operations] == ["MXM"]


def test_roundings_are_operations_of_the_vector_unit() -> None:
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4, 640), (640, 960)))
    out = cost.time(
        lambda x, w: MxmDotGeneral()(x, w, (((1,), (0,)), ((), ()))), x, w, system="groq-node"
    )
    names = [row.name for row in out.operations]
    assert names == ["vxm_to_fp32+to_fp16", "mxm_matmul", "vxm_to_format"]
    assert out.assumed_rules == ()


def test_stored_weights_are_read_in_their_bits_and_rounded_for_nothing() -> None:
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 640), (960, 640)))

    def rows(weights: Any) -> dict[str, Any]:
        product = MxmDotGeneral(weights=weights)
        numbers = (((1,), (1,)), ((), ()))
        out = cost.time(lambda x, w: product(x, w, numbers), x, w, system="groq-node")
        return {row.name: row for row in out.operations}

    for weights, bits in (("fp16", 16), ("bf16", 16), (MXFP4, 4.25), ("nvfp4", 4.5)):
        assert list(rows(weights))[:2] == ["vxm_to_fp16", "mxm_matmul"]
        assert rows(weights)["mxm_matmul"].moved_bytes == 640 * 960 * bits / 8
    # What the program makes is rounded and laid out by the program.
    assert {"transpose", "mxm_matmul"} < set(rows(None))
