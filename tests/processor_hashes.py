"""Hashes of values of every part of the emulator, one line each: `python -m processor_hashes`.

Run in a process of its own for each processor that is tried. Where XLA itself cannot convert
float16 (below AVX it calls a function that it does not have), the parts that need it say so.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import checkpoint, oracle

from lpu_jax.datapath import mxm, vxm
from lpu_jax.numerics import rounding
from lpu_jax.numerics.accumulate import PRODUCT_KINDS
from lpu_jax.numerics.formats import FORMATS
from lpu_jax.numerics.quantized import dequantize, quantize
from lpu_jax.numerics.schemes import SCHEMES
from models.policy import FP16
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.run.forward import forward

UNARY = (
    *("exp", "log", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "rsqrt", "sqrt"),
    *("reciprocal", "absolute", "to_fp16", "to_fp8", "to_int8", "sum_lanes", "max_lanes"),
    *("sum_leading", "max_leading"),
)
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "less_equal")
PLAN = Plan(group_chips=2, attention=AttentionShard(tensor=2), mlp=MlpShard(tensor=2))
#: One of each kind of scale and element.
BLOCK_SCHEMES = ("int8", "int4", "fp8", "mxfp6_e3m2", "mxfp4", "nvfp4", "msfp16")
CANNOT = "XLA cannot convert float16 here"


def numbers(seed: int) -> jax.Array:
    """Any bits, subnormals and moderate numbers: `[12, 400]`."""
    rng = np.random.default_rng(seed)
    any_bits = rng.integers(0, 2**32, (4, 400), np.uint32).view(np.float32)
    others = np.concatenate([rng.normal(size=(4, 400)) * 2.0**-126, rng.normal(size=(4, 400))])
    return jnp.asarray(np.concatenate([any_bits, others.astype(np.float32)]))


def vector_functions() -> Any:
    x, y, z = map(numbers, range(3))
    single = [getattr(vxm, name)(x) for name in UNARY]
    return single, [getattr(vxm, name)(x, y) for name in BINARY], vxm.fma(x, y, z)


def vector_functions_of_constants() -> Any:
    return jax.jit(vector_functions)()


def a_chain() -> Any:
    """Products into sums, constant divisors, a norm and a softmax, in one program."""

    def chain(x: jax.Array, y: jax.Array) -> jax.Array:
        h = vxm.add(vxm.mul(x, y), x)
        h = vxm.div(vxm.mul(vxm.mul(h, 0.1), 3.3), 3.0)
        h = vxm.mul(h, vxm.rsqrt(vxm.add(vxm.sum_lanes(vxm.mul(h, h)), 1e-5)))
        return vxm.fma(vxm.softmax(h), y, vxm.silu(vxm.mul(h, 4.0)))

    return jax.jit(chain)(numbers(0)[8:], numbers(1)[8:])


def conversions() -> Any:
    x, codes = numbers(3), jnp.arange(1 << 16)
    encoded = [rounding.encode(x, fmt, overflow="ieee") for fmt in FORMATS.values()]
    return encoded, [rounding.decode(codes, fmt) for fmt in FORMATS.values()]


def blocks() -> Any:
    w = numbers(4)[4:].reshape(64, 50)
    stored = [quantize(w, SCHEMES[name]) for name in BLOCK_SCHEMES]
    return stored, [dequantize(w) for w in stored]


def products() -> Any:
    def operand(seed: int, dtype: str, shape: tuple[int, int]) -> jax.Array:
        values = np.random.default_rng(seed).normal(size=shape) * (20 if dtype == "int8" else 1)
        return jnp.asarray(values.astype(np.float32)).astype(dtype)

    return [
        mxm.matmul(operand(5, x, (3, 400)), operand(6, w, (400, 40)), carry=carry)
        for x, w in PRODUCT_KINDS
        for carry in (("fp32", "exact") if x == w else ("fp32",))
    ]


def a_model() -> Any:
    """Prefill and decoding of a tiny model, each chip with half of its heads and columns."""
    tokens, source = oracle("llama")[0][:, :6], checkpoint("llama").weights
    return [
        forward(source, "groq-node", PLAN, tokens, policy=FP16, step=step) for step in (None, 1)
    ]


def converts_float16() -> bool:
    """Tell whether XLA can compile a conversion of float16, without anything of ours."""
    try:
        jax.jit(lambda x: x.astype(jnp.float32))(jnp.zeros(4, jnp.float16))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def hash_of(part: Callable[[], Any]) -> str:
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(part())]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()[:16]


def main() -> None:
    for part in (vector_functions, vector_functions_of_constants, a_chain, conversions):
        print(part.__name__, hash_of(part), flush=True)
    can = converts_float16()
    for part in (blocks, products, a_model):
        print(part.__name__, hash_of(part) if can else CANNOT, flush=True)


if __name__ == "__main__":
    main()
