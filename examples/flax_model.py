"""A Flax model on the matrix unit: one argument changes, its error and its time can be read."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpu_jax import MxmDotGeneral
from lpu_jax.cost import time

D_MODEL, HEADS, SYSTEM = 64, 4, "groq-node"
x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, D_MODEL)), jnp.float32)


class Block(nnx.Module):
    def __init__(self, product, rngs: nnx.Rngs) -> None:
        attention = {"qkv_dot_general": product, "out_dot_general": product, "decode": False}
        self.attention = nnx.MultiHeadAttention(HEADS, D_MODEL, rngs=rngs, **attention)
        self.up = nnx.Linear(D_MODEL, 4 * D_MODEL, dot_general=product, rngs=rngs)
        self.down = nnx.Linear(4 * D_MODEL, D_MODEL, dot_general=product, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(x)
        return x + self.down(nnx.gelu(self.up(x)))


def train(block: Block, x: jax.Array) -> jax.Array:
    loss, gradient = nnx.value_and_grad(lambda block: jnp.mean(block(x) ** 2))(block)
    nnx.update(block, jax.tree.map(lambda w, g: w - 0.1 * g, nnx.state(block, nnx.Param), gradient))
    return loss


def main() -> None:
    expected = Block(jax.lax.dot_general, nnx.Rngs(0))(x)
    print("SQNR against float32, weights made with the same seed")
    for weights, activations in (("fp16", "fp16"), ("int8", "int8"), ("mxfp4", "fp16")):
        product = MxmDotGeneral(weights=weights, activations=activations)
        error = Block(product, nnx.Rngs(0))(x) - expected
        sqnr_db = 10 * jnp.log10(jnp.sum(expected**2) / jnp.sum(error**2))
        print(f"  {weights:5} weights, {activations:4} activations: {sqnr_db:.1f} dB")
    block = Block(MxmDotGeneral(weights="mxfp4"), nnx.Rngs(0))
    print(f"\nLoss with mxfp4 weights, two steps: {train(block, x):.4f}, {train(block, x):.4f}\n")
    print(time(block, x, system=SYSTEM).table())


if __name__ == "__main__":
    main()
