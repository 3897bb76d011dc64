"""What the reference's blocks share: float32 products, parameters and RMS norms.

No model and no block; nothing of the emulated layers is used, so that a mistake there is not
repeated here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from .config import ModelConfig
from .weights.stored import dequantised

Hidden = Float32[Array, "b t d"]
#: Parameters of a block by name: arrays, or codes and scales as a checkpoint holds them.
Params = Mapping[str, Any]


def contract(pattern: str, *operands: Array) -> Array:
    """Return a float32 einsum that no backend may run in a narrower format."""
    return jnp.einsum(
        pattern,
        *operands,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def param(params: Params, name: str) -> nnx.Param[Array]:
    """Hold one parameter in float32."""
    return nnx.Param(jnp.asarray(dequantised(params[name]), dtype=jnp.float32))


def capped(x: Array, cap: float | None) -> Array:
    """Return `cap * tanh(x / cap)`, or values as they are without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Result(nnx.Module):
    """What becomes of a block's result: its norm, the addition, a number for the whole layer.

    `multiplier` scales what is added. With attention residuals the result is left as it is.
    """

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.adds = model_cfg.residual_block is None
        self.has_norm, self.has_scale = model_cfg.norms_results, "layer_scale" in params
        if self.has_norm:
            self.norm = RmsNorm(params, "result_norm", model_cfg.norm_eps)
        if self.has_scale:
            self.scale = param(params, "layer_scale")
        self.multiplier = model_cfg.multipliers.residual

    def __call__(self, x: Hidden, result: Hidden) -> Hidden:
        """Add a block's result to the hidden state before it."""
        if not self.adds:
            return result
        total = x + self.multiplier * (self.norm(result) if self.has_norm else result)
        return total * self.scale[...].reshape(1, 1, 1) if self.has_scale else total


class RmsNorm(nnx.Module):
    """`x / sqrt(mean(x²) + eps) * weight` over the axes that the weight has, which are the last."""

    def __init__(self, params: Params, name: str, eps: float) -> None:
        self.weight = param(params, name)
        self.eps = eps

    def __call__(self, x: Float32[Array, "*rows width"]) -> Float32[Array, "*rows width"]:
        """Normalise each vector of these axes."""
        weight = self.weight[...]
        mean_square = jnp.mean(jnp.square(x), axis=tuple(range(-weight.ndim, 0)), keepdims=True)
        weight = weight.reshape((1,) * (x.ndim - weight.ndim) + weight.shape)
        return x * jax.lax.rsqrt(mean_square + self.eps) * weight


def input_norm(model_cfg: ModelConfig, params: Params) -> Callable[[Hidden], Hidden]:
    """Return the norm of what a block is given; a model without has none."""
    if not model_cfg.norms_inputs:
        return lambda x: x
    return RmsNorm(params, "norm", model_cfg.norm_eps)
