"""A plain float32 transformer in Flax NNX: the independent answer the emulator is compared with.

Every module maps a whole prompt to a whole prompt, norm and residual included. No cache, no
rounding to chip formats, no sharding. The blocks are in `reference_attention`,
`reference_recurrence` and `reference_mixture`; of the emulated layers nothing is used.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int

from lpu_jax.errors import ConfigError

from .config import GqaConfig, MlaConfig, ModelConfig
from .params import Kind, block_params, expert_params
from .reference_attention import GqaAttention, MlaAttention
from .reference_depth import Depth, WithDepth, first_states
from .reference_index import BlockedAttention, Seen, SparseAttention
from .reference_mixture import Mlp, Moe
from .reference_parts import Hidden, Params, RmsNorm, capped, contract, param
from .reference_recurrence import DeltaNet, Mamba2
from .weights.source import WeightSource
from .weights.stored import dequantised


class Embed(nnx.Module):
    """Token numbers to hidden states."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.table = param(params, "table")
        self.multiplier, self.n_states = model_cfg.multipliers.embedding, model_cfg.n_states

    def __call__(self, tokens: Int[Array, "b t"]) -> Hidden:
        """Look up each token."""
        return first_states(self.multiplier * self.table[tokens], self.n_states)


class Head(nnx.Module):
    """Hidden states to logits, final norm included."""

    def __init__(self, model_cfg: ModelConfig, params: Params) -> None:
        self.norm = RmsNorm(params, "norm", model_cfg.norm_eps)
        self.depth = Depth(model_cfg, params)
        self.out = param(params, "out")
        self.divisor, self.cap = model_cfg.multipliers.logits, model_cfg.logit_cap

    def __call__(self, x: Hidden) -> Float32[Array, "b t vocab"]:
        """Return the logits of every position."""
        given = self.norm(self.depth.given(x))
        logits = contract("btd,dv->btv", given, self.out[...]) / self.divisor
        return capped(logits, self.cap)


Module = (
    Embed | GqaAttention | MlaAttention | SparseAttention | DeltaNet | Mamba2 | Mlp | Moe | Head
    | WithDepth
)  # fmt: skip


def advanced(module: Module, x: Array, seen: Seen | None) -> tuple[Array, Seen | None]:
    """Run a block; layers that follow an index see the keys that it chose.

    Args:
        module: of `reference_block`.
        x: hidden states, or token numbers.
        seen: which keys each query of the last layer with an index saw; None without one.

    Returns:
        The block's result, and which keys the next block may be told of.
    """
    return module(x, seen) if isinstance(module, SparseAttention) else (module(x), seen)


def reference_block(
    model_cfg: ModelConfig, kind: str, params: Params, held: tuple[int, ...] | None = None
) -> Module:
    """Build one block from a weight source's arrays.

    Args:
        model_cfg: the model.
        kind: one of `params.Kind`.
        params: the block's arrays; for "moe" with the parameters of the held experts stacked on a
            leading axis.
        held: for "moe": ids of those experts, default all.

    Returns:
        The module.

    Raises:
        UnknownNameError: if `kind` is not a block kind.
        ConfigError: if a parameter is missing or the stacked experts do not match `held`.
    """
    missing = set(block_params(model_cfg, kind)).difference(params)
    if missing:
        raise ConfigError(f"a {kind} block needs parameter {min(missing)!r}; it is missing.")
    block: Module = bare_block(model_cfg, kind, params, held)
    if model_cfg.residual_block is None or isinstance(block, Embed | Head):
        return block
    return WithDepth(model_cfg, params, block)


def bare_block(
    model_cfg: ModelConfig, kind: str, params: Params, held: tuple[int, ...] | None = None
) -> Any:
    """Build a block as `reference_block` does, without attention residuals around it.

    Args:
        model_cfg: likewise.
        kind: likewise.
        params: likewise; none is missing.
        held: likewise.
    """
    attention, moe = model_cfg.attention_of(kind), model_cfg.moe
    match kind:
        case "embed":
            return Embed(model_cfg, params)
        case "attention" | "unrotated" if isinstance(attention, MlaConfig):
            rope = None if kind == "unrotated" else model_cfg.rope
            return MlaAttention(model_cfg, attention, params, rope=rope)
        case "indexed" | "following" if isinstance(attention, MlaConfig):
            return SparseAttention(model_cfg, attention, params, has_index=kind == "indexed")
        case "attention" | "sliding" | "unrotated" if isinstance(attention, GqaConfig):
            window = attention.window if kind == "sliding" else None
            rope = None if kind == "unrotated" else model_cfg.rope_of(kind)
            return GqaAttention(model_cfg, attention, params, window=window, rope=rope)
        case "blocked" if isinstance(attention, GqaConfig):
            return BlockedAttention(model_cfg, attention, params)
        case "recurrent" if model_cfg.recurrent is not None:
            if model_cfg.recurrent.rule == "mamba2":
                return Mamba2(model_cfg, model_cfg.recurrent, params)
            return DeltaNet(model_cfg, model_cfg.recurrent, params)
        case "dense":
            return Mlp(model_cfg, params)
        case "moe" if moe is not None:
            ids = tuple(range(moe.n_experts)) if held is None else held
            return Moe(model_cfg, moe, params, ids)
        case _:
            return Head(model_cfg, params)


def with_experts(source: WeightSource, layer: int, held: tuple[int, ...]) -> dict[str, Any]:
    """Return a moe block's arrays with the experts `held` stacked, as `reference_block` wants."""
    model_cfg = source.config
    assert model_cfg.moe is not None
    names = expert_params(model_cfg.d_model, model_cfg.moe)
    experts = [source.expert(layer, expert_id) for expert_id in held]
    stacks = {name: np.stack([dequantised(expert[name]) for expert in experts]) for name in names}
    return {**source.block("moe", layer), **stacks}


def _chain(model_cfg: ModelConfig) -> Iterator[tuple[Kind, int]]:
    """List the blocks in the order a token meets them: kind and layer."""
    yield "embed", 0
    for layer in range(model_cfg.n_layers):
        for kind in model_cfg.layer_kinds(layer):
            yield kind, layer
    yield "head", 0


def _read(source: WeightSource, kind: Kind, layer: int) -> Module:
    """Read and build one block, a mixture with all its experts."""
    model_cfg = source.config
    if kind == "moe" and model_cfg.moe is not None:
        everyone = tuple(range(model_cfg.moe.n_experts))
        return reference_block(model_cfg, kind, with_experts(source, layer, everyone))
    return reference_block(model_cfg, kind, source.block(kind, layer))


class Transformer(nnx.Module):
    """The whole model: token numbers to logits, everything held in float32."""

    def __init__(self, source: WeightSource) -> None:
        chain = _chain(source.config)
        self.blocks = nnx.List([_read(source, kind, layer) for kind, layer in chain])

    def __call__(self, tokens: Int[Array, "b t"]) -> Float32[Array, "b t vocab"]:
        """Return the logits of every position.

        Args:
            tokens: `[b, t]` token numbers, positions from 0, no padding.

        Fidelity:
            Order-dependent: float32 throughout at the highest precision of the backend; within
            2e-5 of Hugging Face's float32 logits on tiny models.
        """
        x: Array = tokens
        seen: Seen | None = None
        for block in self.blocks:
            x, seen = advanced(block, x, seen)
        return x


def stream(source: WeightSource, tokens: Int[Array, "b t"]) -> Float32[Array, "b t vocab"]:
    """Return what `Transformer` returns, with one block at a time in memory."""
    x: Array = tokens
    seen: Seen | None = None
    for kind, layer in _chain(source.config):
        # Finished before the next block is read, so that this one can be dropped.
        x, seen = jax.block_until_ready(advanced(_read(source, kind, layer), x, seen))
    return x
