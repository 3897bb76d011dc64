"""Attention residuals in the float32 reference: what a block is given, and where it adds.

Plain ones, as the paper writes them, over the states of whole prompts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from .config import ModelConfig
from .depth import NORM, QUERY, STATES
from .reference_parts import Hidden, Params, RmsNorm, contract, param

#: All states of a token side by side, the embedding first.
States = Float32[Array, "b t states_d"]


class Depth(nnx.Module):
    """Which mean of the states a block is given; a model without such residuals has one state."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.n_states = model_cfg.n_states
        if self.n_states > 1:
            self.norm = RmsNorm(params, NORM, model_cfg.norm_eps)
            self.query = param(params, QUERY)
            read, own = params.get(STATES, (self.n_states - 1, -1))
            self.read, self.own = int(read), int(own)

    def given(self, states: States) -> Hidden:
        """Return the mean of the states that a block reads.

        Source: "Attention Residuals" (arXiv 2603.15031), with blocks.
        """
        if self.n_states == 1:
            return states
        read = self._apart(states)[:, :, : self.read + 1]
        scores = contract("btnd,d->btn", self.norm(read), self.query[...])
        return contract("btn,btnd->btd", jax.nn.softmax(scores, axis=-1), read)

    def grown(self, states: States, result: Hidden) -> States:
        """Return the states behind a block that gave a result: in most models it is the state."""
        if self.n_states == 1:
            return result
        apart = self._apart(states)
        return apart.at[:, :, self.own].add(result).reshape(states.shape)

    def _apart(self, states: States) -> Float32[Array, "b t n d"]:
        return states.reshape(*states.shape[:2], self.n_states, -1)


class WithDepth(nnx.Module):
    """A block of a model with attention residuals: all its states to all its states."""

    def __init__(
        self, model_cfg: ModelConfig, params: Params, block: Callable[[Hidden], Hidden]
    ) -> None:
        self.depth, self.block = Depth(model_cfg, params), block

    def __call__(self, states: States) -> States:
        """Run the block on a whole prompt."""
        return self.depth.grown(states, self.block(self.depth.given(states)))


def first_states(embedding: Hidden, n_states: int) -> States:
    """Put zeros, to which layers will add, beside the embedding of each token."""
    return jnp.pad(embedding, ((0, 0), (0, 0), (0, (n_states - 1) * embedding.shape[-1])))
