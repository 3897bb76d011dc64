"""Tensor-core products of the blocks of `tensor_core_blocks`, as `lpu_jax` computes them."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lpu_jax.numerics import tensor_core
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import SCHEMES

#: Scheme of an element with block scales, by kind.
_SCHEMES = {
    "float8_e4m3fn": "mxfp8_e4m3",
    "float8_e5m2": "mxfp8_e5m2",
    "e3m2": "mxfp6_e3m2",
    "e2m3": "mxfp6_e2m3",
    "e2m1": "mxfp4",
}


def scheme_of(kind: str, element: str) -> Any:
    """Return the scheme of an element in a kind of product with block scales."""
    return SCHEMES["nvfp4" if kind == "nvfp4" else _SCHEMES[element]]


def array_of(codes: Any, element: str) -> jax.Array:
    """Return codes as an array of their type."""
    return jnp.asarray(codes.view(jnp.dtype(element)))


def quantized(kind: str, codes: Any, scales: Any, element: str, axis: int) -> QuantizedArray:
    """Return codes with their block scales."""
    scheme = scheme_of(kind, element)
    tensor_scale = jnp.ones((1, 1), jnp.float32) if scheme.is_two_level else None
    return QuantizedArray(
        codes=jnp.asarray(codes.view(scheme.code_dtype)),
        scales=jnp.asarray(scales.view(scheme.scale_dtype)),
        tensor_scale=tensor_scale,
        scheme=scheme,
        axis=axis,
    )


@cache
def _compiled(function: Any, generation: str) -> Any:
    return jax.jit(partial(function, generation=generation))


def product(case: tuple[str, str, str, str], made: dict[str, Any]) -> Any:
    """Return the bits of `A @ B + C`."""
    kind, generation, of_a, of_b = case
    c = jnp.asarray(made["c"].view(np.float32))
    if "a_scales" in made:
        x = quantized(kind, made["a"], made["a_scales"], of_a, -1)
        w = quantized(kind, made["b"], made["b_scales"], of_b, -2)
        with jax.enable_x64(True):
            d = _compiled(tensor_core.scaled_matmul, generation)(x, w, c=c)
    else:
        x, w = array_of(made["a"], of_a), array_of(made["b"], of_b)
        d = _compiled(tensor_core.matmul, generation)(x, w, c=c)
    return np.asarray(d).view(np.uint32)


assert ml_dtypes  # its types are those of `element`
