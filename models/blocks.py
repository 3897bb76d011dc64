"""The blocks of a model: the per-chip program of each kind, and its arguments as shapes.

One list of arguments serves the trace (shapes), the placement (stored bytes) and the run (how
arrays are split): every dimension knows its logical axis. Lengths are per chip and may be symbolic.
Holds no values and knows no plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .block_leaves import Leaf as Leaf
from .block_leaves import Sizes as Sizes
from .block_leaves import (
    attention_cache,
    blocked_cache,
    chosen_positions,
    recurrent_cache,
    sparse_cache,
    warming_table,
)
from .config import MlaConfig, ModelConfig
from .layers.blocked import blocked_attention
from .layers.depth import with_depth
from .layers.dispatch import Dispatch, exchanged_mixture
from .layers.grouped import grouped_attention
from .layers.indexed import following_attention, indexed_attention
from .layers.latent import latent_attention
from .layers.linear import Split
from .layers.mlp import dense_mlp
from .layers.moe import ExpertSizes, mixture
from .layers.recurrent import recurrent_layer
from .layers.vocabulary import embed, head
from .params import Kind as Kind
from .params import block_params
from .policy import Policy
from .weight_leaves import weight_leaf


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of the chain that a stage may hold."""

    kind: Kind
    layer: int


@cache
def block_chain(cfg: ModelConfig) -> tuple[Block, ...]:
    """List the blocks a token passes through, from the embedding to the head."""
    layers = [
        Block(kind=kind, layer=layer)
        for layer in range(cfg.n_layers)
        for kind in cfg.layer_kinds(layer)
    ]
    return (
        Block(kind="embed", layer=0),
        *layers,
        Block(kind="head", layer=cfg.n_layers - 1),
    )


@cache
def block_kinds(cfg: ModelConfig) -> tuple[Kind, ...]:
    """Kinds of block a model has, each once, in the order of the chain."""
    return tuple(dict.fromkeys(block.kind for block in block_chain(cfg)))


def block_program(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    split: Split,
    *,
    experts: ExpertSizes | None = None,
    dispatch: Dispatch = Dispatch.REPLICATED,
) -> Callable[..., Any]:
    """Give the per-chip program of a block; it takes what `block_arguments` lists and `axes=`.

    Args:
        cfg: the model.
        kind: the kind of block.
        policy: formats of rows, and the carry.
        split: how its output projection is split over chips.
        experts: experts of each chip, its slots, and the rows of each (MoE only).
        dispatch: how rows reach the chips of their experts (MoE only).
    """
    row = BLOCK_KINDS[kind]
    own = policy.of_part(row.part)
    program = row.program(
        _Variant(cfg=cfg, policy=own, split=split, dispatch=dispatch, experts=experts)
    )
    has_depth = cfg.residual_block is not None and kind not in ("embed", "head")
    return with_depth(program, cfg, own) if has_depth else program


def block_arguments(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    split: Split,
    sizes: Sizes,
    dispatch: Dispatch = Dispatch.REPLICATED,
) -> tuple[Any, ...]:
    """Describe the arguments of a block's program, as a tree of `Leaf`.

    Args:
        cfg: the model.
        kind: the kind of block.
        policy: formats of the weights.
        split: how the output projection is split.
        sizes: lengths of one chip: logical axes of `models.params`, `batch` (all sequences),
            `batch_local` (of one chip), `tokens` (new ones per sequence), `context` (allocated),
            `kv_length` (its part of one chip), `index_length` (that of an index's keys) and
            `window` (positions of a sliding layer's ring).
        dispatch: how rows reach the chips of their experts.
    """
    weights = {
        name: weight_leaf(spec, policy, split, sizes)
        for name, spec in block_params(cfg, kind).items()
    }
    variant = _Variant(cfg=cfg, policy=policy, split=split, dispatch=dispatch)
    first, *others = BLOCK_KINDS[kind].arguments(variant, sizes)
    return first, weights, *others


# --- one row per kind of block ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """One way to build a block; see `block_program`."""

    cfg: ModelConfig
    policy: Policy
    split: Split
    dispatch: Dispatch
    experts: ExpertSizes | None = None

    @property
    def projects(self) -> dict[str, Any]:
        """What the layers with an output projection take."""
        return {"cfg": self.cfg, "policy": self.policy, "split": self.split}


def _number(begins_as: Literal["first row", "chip"], axis: str) -> Leaf:
    """Describe what tells a chip which part of an axis is its own."""
    dimensions = ((1, axis),)
    return Leaf(dimensions=dimensions, dtype=jnp.int32, kind="tables", bits=32, begins_as=begins_as)


def _hidden(variant: _Variant, sizes: Sizes) -> Leaf:
    batch, tokens = sizes.local["batch"], sizes.local["tokens"]
    return _state(variant.policy.dtype, batch, tokens, variant.cfg.hidden_width)


def _embed_arguments(variant: _Variant, sizes: Sizes) -> tuple[Any, ...]:
    tokens = _state(jnp.int32, sizes.local["batch"], sizes.local["tokens"])
    return tokens, _number("first row", "vocab")


def _head_arguments(variant: _Variant, sizes: Sizes) -> tuple[Any, ...]:
    rows = _state(jnp.int32, sizes.local["batch"])
    return _hidden(variant, sizes), rows, _number("first row", "vocab")


def _attention_program(variant: _Variant, *, is_sliding: bool = False) -> Callable[..., Any]:
    if isinstance(variant.cfg.attention, MlaConfig):
        return partial(latent_attention, **variant.projects)
    kind: Kind = "sliding" if is_sliding else "attention"
    return partial(grouped_attention, **variant.projects, kind=kind)


def _attention_arguments(
    variant: _Variant, sizes: Sizes, *, is_sliding: bool = False, is_rotated: bool = True
) -> tuple[Any, ...]:
    # Where the context is split, a chip also knows its first position; of a short cache each chip
    # holds all.
    is_split = sizes.splits_context and not is_sliding
    kind: Kind = "sliding" if is_sliding else "attention"
    return (
        _hidden(variant, sizes),
        attention_cache(variant.cfg, variant.policy, sizes, is_sliding=is_sliding),
        _tables(variant.cfg, kind, sizes) if is_rotated else warming_table(variant.cfg, sizes),
        _state(jnp.int32, sizes.local["batch"]),
        _number("chip", "batch_local"),
        *([_number("first row", "kv_length")] if is_split else []),
    )


def _sparse_arguments(variant: _Variant, sizes: Sizes, *, has_index: bool) -> tuple[Any, ...]:
    cfg = variant.cfg
    return (
        _hidden(variant, sizes),
        sparse_cache(cfg, variant.policy, sizes, has_index=has_index),
        _tables(cfg, "indexed" if has_index else "following", sizes),
        _state(jnp.int32, sizes.local["batch"]),
        _number("chip", "batch_local"),
        _number("first row", "index_length") if has_index else chosen_positions(cfg, sizes),
        *([_number("first row", "kv_length")] if sizes.splits_context else []),
    )


def _blocked_arguments(variant: _Variant, sizes: Sizes) -> tuple[Any, ...]:
    hidden, _, *others = _attention_arguments(variant, sizes)
    return hidden, blocked_cache(variant.cfg, variant.policy, sizes), *others


def _recurrent_program(variant: _Variant) -> Callable[..., Any]:
    return partial(recurrent_layer, **variant.projects)


def _recurrent_arguments(variant: _Variant, sizes: Sizes) -> tuple[Any, ...]:
    return (
        _hidden(variant, sizes),
        recurrent_cache(variant.cfg, variant.policy, sizes),
        _state(jnp.int32, sizes.local["batch"]),
        _number("chip", "batch_local"),
    )


def _moe_program(variant: _Variant) -> Callable[..., Any]:
    assert variant.experts is not None
    layer = exchanged_mixture if variant.dispatch is Dispatch.ALL_TO_ALL else mixture
    return partial(layer, **variant.projects, sizes=variant.experts)


def _moe_arguments(variant: _Variant, sizes: Sizes) -> tuple[Any, ...]:
    assert variant.cfg.moe is not None
    first = _number("first row", "experts")
    address = ((1, "experts"), (variant.cfg.moe.n_experts, None))
    placement = {
        "first_expert": first,
        "address": replace(first, dimensions=address, begins_as="address"),
    }
    if variant.dispatch is Dispatch.ALL_TO_ALL:
        placement["share"] = _number("chip", "experts")
    return _hidden(variant, sizes), placement


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """What a kind of block is: its parameters are in `params`, its layer in `layers`."""

    title: str  #: what a list of blocks calls it
    result: str  #: what a report calls its result
    #: the part of a plan that says how it is split; the vocabulary is split over the whole group
    part: Literal["vocab", "attention", "mlp", "moe"]
    program: Callable[[_Variant], Callable[..., Any]]
    arguments: Callable[[_Variant, Sizes], tuple[Any, ...]]  #: of the program, without its weights
    #: numbers of the arguments that change from call to call; the rest is placed with the weights
    inputs: tuple[int, ...] = (0,)
    has_cache: bool = False
    #: behind the cache come tables of the rotation, or of what multiplies queries
    has_tables: bool = False
    #: it has a cache, but no positions: it is told how many new tokens of each sequence count
    is_recurrent: bool = False
    #: whether it says behind its cache where it attended, or is told behind the share
    positions: Literal["all", "chosen", "told"] = "all"
    #: logical axes that chips hold whole, though the part of the plan may split them
    whole: frozenset[str] = frozenset()


BLOCK_KINDS: Mapping[Kind, BlockKind] = MappingProxyType(
    {
        "embed": BlockKind(
            title="embedding",
            result="hidden state",
            part="vocab",
            program=lambda variant: partial(embed, cfg=variant.cfg, policy=variant.policy),
            arguments=_embed_arguments,
        ),
        "attention": BlockKind(
            title="attention",
            result="attention output",
            part="attention",
            program=_attention_program,
            arguments=_attention_arguments,
            inputs=(0, 2, 4),  # hidden state, cache, positions
            has_cache=True,
            has_tables=True,
        ),
        "sliding": BlockKind(
            title="sliding",
            result="sliding attention output",
            part="attention",
            program=partial(_attention_program, is_sliding=True),
            arguments=partial(_attention_arguments, is_sliding=True),
            inputs=(0, 2, 4),
            has_cache=True,
            has_tables=True,
            whole=frozenset({"kv_length", "index_length"}),
        ),
        "unrotated": BlockKind(
            title="unrotated",
            result="attention output without rotation",
            part="attention",
            program=_attention_program,
            arguments=partial(_attention_arguments, is_rotated=False),
            inputs=(0, 2, 4),
            has_cache=True,
            has_tables=True,
        ),
        "recurrent": BlockKind(
            title="recurrent",
            result="recurrent layer's output",
            part="attention",
            program=_recurrent_program,
            arguments=_recurrent_arguments,
            inputs=(0, 2, 3),  # hidden state, cache, counts
            has_cache=True,
            is_recurrent=True,
            whole=frozenset({"kv_length", "index_length"}),
        ),
        "indexed": BlockKind(
            title="indexed",
            result="sparse attention output",
            part="attention",
            program=lambda variant: partial(indexed_attention, **variant.projects),
            arguments=partial(_sparse_arguments, has_index=True),
            inputs=(0, 2, 4),
            has_cache=True,
            has_tables=True,
            positions="chosen",
        ),
        "following": BlockKind(
            title="following",
            result="sparse attention output without an index",
            part="attention",
            program=lambda variant: partial(following_attention, **variant.projects),
            arguments=partial(_sparse_arguments, has_index=False),
            inputs=(0, 2, 4, 6),  # hidden state, cache, positions, where to attend
            has_cache=True,
            has_tables=True,
            positions="told",
        ),
        "blocked": BlockKind(
            title="blocked",
            result="block-sparse attention output",
            part="attention",
            program=lambda variant: partial(blocked_attention, **variant.projects),
            arguments=_blocked_arguments,
            inputs=(0, 2, 4),
            has_cache=True,
            has_tables=True,
        ),
        "dense": BlockKind(
            title="dense",
            result="dense MLP output",
            part="mlp",
            program=lambda variant: partial(dense_mlp, **variant.projects),
            arguments=lambda variant, sizes: (_hidden(variant, sizes),),
        ),
        "moe": BlockKind(
            title="moe",
            result="sum over experts and shared expert's output",
            part="moe",
            program=_moe_program,
            arguments=_moe_arguments,
        ),
        "head": BlockKind(
            title="head",
            result="logits",
            part="vocab",
            program=lambda variant: partial(head, cfg=variant.cfg, policy=variant.policy),
            arguments=_head_arguments,
            inputs=(0, 2),  # hidden state, rows
        ),
    }
)
#: Kinds of block that keep a cache.
CACHING_KINDS: frozenset[Kind] = frozenset(
    kind for kind, row in BLOCK_KINDS.items() if row.has_cache
)


# --- trees of leaves --------------------------------------------------------------------------


def shapes(arguments: Any) -> Any:
    """Turn a tree of `Leaf` into shapes that JAX traces."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments, is_leaf=is_leaf
    )


def is_leaf(value: Any) -> bool:
    """Whether a tree node is a `Leaf`."""
    return isinstance(value, Leaf)


def _state(dtype: Any, *lengths: Any) -> Leaf:
    return Leaf(
        dimensions=tuple((length, None) for length in lengths),
        dtype=dtype,
        kind="state",
        bits=8 * jnp.dtype(dtype).itemsize,
    )


def _tables(cfg: ModelConfig, kind: Kind, sizes: Sizes) -> dict[str, Leaf]:
    is_own = kind in ("attention", "indexed") or cfg.sliding_rope is not None
    rope, kinds = cfg.rope_of(kind), block_kinds(cfg)
    table = Leaf(
        dimensions=((sizes.local["context"], None), (rope.dim, None)),
        dtype=jnp.float32,
        kind="tables",
        bits=32,
        rope=rope,
        is_shared=not is_own and not {"attention", "indexed"}.isdisjoint(kinds),
    )
    return {"cos": replace(table, begins_as="cos"), "sin": replace(table, begins_as="sin")}
