"""Routing of a check: what the emulated router chose, and a float32 mixture that follows or not.

Of a mixture only the experts that are asked for are made, one at a time. A flip of a choice is not
an arithmetic error, so the two are kept apart: flips and the router's margin are counted on the
reference's own state. Not here: the emulated experts (`emulate`).
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from models.config import ModelConfig, MoeConfig
from models.depth import NORM, QUERY, STATES
from models.layers.router import choose_experts
from models.params import expert_params
from models.policy import Policy
from models.reference import bare_block
from models.reference_depth import Depth
from models.reference_mixture import Moe

#: "forced": the reference uses the experts that the emulated router chose. "free": its own.
Routing = Literal["forced", "free"]
#: Parameters of a mixture that its router reads.
_OF_ROUTER = (
    *("norm", "router_norm", "router", "router_offset", "router_bias", "expert_scale"),
    *(NORM, QUERY, STATES),
)


@dataclass(frozen=True, kw_only=True)
class RoutingCheck:
    """How the router's choices compare with those of the reference on its own state."""

    choices: int  #: tokens x experts per token
    flips: int  #: of them, those that the reference would make otherwise
    margin: float  #: least lead of a chosen expert over the best one left out, in the reference


def emulated_routes(
    weights: Mapping[str, Any],
    hidden: Float[np.ndarray, "tokens d"],
    cfg: ModelConfig,
    policy: Policy,
) -> Int[np.ndarray, "tokens k"]:
    """Route each token by the block's own layer functions, on the state that all chips hold.

    Args:
        weights: the stored block.
        hidden: state at the block's entry.
        cfg: the model.
        policy: formats, and how products are made.

    Fidelity: the choices that the block makes itself.
    """
    of_router = {name: weights[name] for name in _OF_ROUTER if name in weights}
    chosen = [_choose(row.reshape(1, -1), of_router, cfg=cfg, policy=policy) for row in hidden]
    return np.concatenate([np.asarray(one) for one in chosen])


@partial(jax.jit, static_argnames=("cfg", "policy"))
def _choose(
    row: Float[Array, "1 d"], weights: dict[str, Any], *, cfg: ModelConfig, policy: Policy
) -> Int[Array, "1 k"]:
    return choose_experts(row, weights, cfg=cfg, policy=policy)[0]


class MixtureReference:
    """The float32 mixture, one expert in memory at a time, for several ways of routing at once.

    A way is named by a key: plans whose tokens took the same experts so far share their state.
    """

    def __init__(self, cfg: ModelConfig, values: dict[str, Float32[np.ndarray, "..."]]) -> None:
        """Take a model and a block's parameters without its routed experts."""
        assert cfg.moe is not None
        self.cfg, self.moe, self.values = cfg, cfg.moe, values
        self._inputs: dict[str, tuple[Any, Any]] = {}
        self._routed: dict[str, Any] = {}  #: sums over experts
        self._base = self._module((), values)
        self._depth = Depth(cfg, values)

    def own_routes(self, hidden: Float32[np.ndarray, "tokens d"]) -> Int[np.ndarray, "tokens k"]:
        """Choose experts by the reference alone."""
        return np.asarray(self._base.route(self._given(hidden))[0][0])

    def margin(self, hidden: Float32[np.ndarray, "tokens d"]) -> float:
        """Return how firmly the reference makes its choice, see `router_margin`."""
        normed = np.asarray(self._base.of_router(self._given(hidden))[0], np.float64)
        return router_margin(normed, self.values, self.moe)

    def begin(
        self, key: str, hidden: Float32[np.ndarray, "tokens d"], ids: Int[np.ndarray, "tokens k"]
    ) -> None:
        """Begin with a state whose tokens will use the experts `ids`."""
        if key not in self._inputs:
            self._inputs[key] = jnp.asarray(hidden)[None], jnp.asarray(ids)[None]
            shape = (1, len(hidden), self.cfg.d_routed)
            self._routed[key] = jnp.zeros(shape, jnp.float32)

    @property
    def needed(self) -> set[int]:
        """Experts that are used."""
        return {int(i) for _, ids in self._inputs.values() for i in np.asarray(ids).reshape(-1)}

    def add(self, number: int, values: dict[str, Float32[np.ndarray, "..."]]) -> None:
        """Add one expert's share; it is zero for tokens that do not use it."""
        stacked = {name: value[None] for name, value in values.items()}
        module = self._module((number,), self.values | stacked)
        for key, (states, ids) in self._inputs.items():
            given = self._depth.given(states)
            self._routed[key] = self._routed[key] + module.routed(given, ids)

    def total(self, key: str) -> Float32[np.ndarray, "tokens d"]:
        """Return the state behind the block, once all experts that are used were added."""
        states, _ = self._inputs[key]
        result = self._base.finished(self._depth.given(states), self._routed[key])
        return np.asarray(self._depth.grown(states, result)[0])

    def _given(self, hidden: Float32[np.ndarray, "tokens d"]) -> Float32[Array, "1 tokens d"]:
        """Return what the block is given of these states."""
        return self._depth.given(jnp.asarray(hidden)[None])

    def _module(self, held: tuple[int, ...], params: dict[str, Any]) -> Moe:
        empty = {
            name: np.zeros((0, *spec.shape[1:]), np.float32)
            for name, spec in expert_params(self.cfg.d_model, self.moe).items()
        }
        module = bare_block(self.cfg, "moe", empty | params, held)
        assert isinstance(module, Moe)
        return module


def count_flips(own: Int[np.ndarray, "tokens k"], taken: Int[np.ndarray, "tokens k"]) -> int:
    """Count choices of experts that are in one set of a token but not in the other."""
    return sum(len(set(a) - set(b)) for a, b in zip(own.tolist(), taken.tolist(), strict=True))


def joined_key(key: str, ids: Int[np.ndarray, "tokens k"]) -> str:
    """Name the way that tokens took so far: a hash of the way before and of this choice."""
    digest = hashlib.sha256(key.encode())
    digest.update(np.sort(ids, axis=1).astype("<i4").tobytes())
    return digest.hexdigest()


def router_margin(
    normed: Float[np.ndarray, "tokens d"],
    values: Mapping[str, Float32[np.ndarray, "..."]],
    moe: MoeConfig,
) -> float:
    """Smallest distance from what the router took to the best it left, in float64.

    Args:
        normed: normalised rows.
        values: `router`, `router_offset` and `router_bias`, as far as the model has them.
        moe: the router's rules.

    Returns:
        In units of what is ranked: corrected scores, or logits where softmax or sigmoid come
        afterwards; infinity where nothing is left out.
    """
    smallest = math.inf
    for row in _ranking(normed, values, moe):
        if moe.n_groups > 1:
            grouped = row.reshape(moe.n_groups, -1)
            best_two = np.sort(grouped, axis=1)[:, -2:].sum(1)
            order = np.argsort(-best_two, kind="stable")
            ranked = best_two[order]
            if moe.topk_groups < moe.n_groups:
                smallest = min(smallest, ranked[moe.topk_groups - 1] - ranked[moe.topk_groups])
            row = grouped[order[: moe.topk_groups]].reshape(-1)
        ranked = np.sort(row)[::-1]
        if moe.top_k < len(ranked):
            smallest = min(smallest, ranked[moe.top_k - 1] - ranked[moe.top_k])
    return float(smallest)


def _ranking(
    normed: Float[np.ndarray, "tokens d"],
    values: Mapping[str, Float32[np.ndarray, "..."]],
    moe: MoeConfig,
) -> Float[np.ndarray, "tokens e"]:
    """Give what experts are ranked by."""
    logits = normed @ values["router"].astype(np.float64)
    if "router_offset" in values:
        logits = logits + values["router_offset"][None, :]
    match moe.scoring:
        case "sigmoid":
            ranking = 1 / (1 + np.exp(-logits))
        case "softmax":
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            ranking = powers / powers.sum(-1, keepdims=True)
        case "softmax_after_top_k" | "sigmoid_after_top_k":
            ranking = logits
    if "router_bias" in values:
        ranking = ranking + values["router_bias"][None, :]
    corrected: np.ndarray = ranking
    return corrected
