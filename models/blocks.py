"""The blocks of a model: the per-chip program of each kind, and its arguments as shapes.

One list of arguments serves the trace (shapes), the placement (stored bytes) and the run (how
arrays are split): every dimension knows its logical axis. Lengths are per chip and may be symbolic.
Holds no values and knows no plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import FP16_PLAIN, Scheme

from .config import GqaConfig, MlaConfig, ModelConfig
from .layers.dispatch import Dispatch, exchanged_mixture
from .layers.grouped import grouped_attention
from .layers.latent import latent_attention
from .layers.linear import Split
from .layers.mlp import dense_mlp
from .layers.moe import mixture
from .layers.vocabulary import embed, head
from .params import Kind as Kind
from .params import ParamSpec, block_params
from .policy import Policy

#: Kinds of block that keep a cache.
CACHING_KINDS: frozenset[Kind] = frozenset({"attention", "sliding"})
#: A length of this chip, and the logical axis it is a share of (None: the same on every chip).
Dimension = tuple[Any, str | None]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of the chain that a stage may hold."""

    kind: Kind
    layer: int


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of a block's arguments, as one chip holds it."""

    dimensions: tuple[Dimension, ...]
    dtype: Any
    #: `weights` and `cache` are held for the whole life of the program; `tables` are constants; the
    #: rest come and go.
    kind: Literal["weights", "scales", "cache", "tables", "state"]
    bits: float | int  #: stored bits per value
    #: for matrices: how many leading dimensions are separate matrices, and how many after them are
    #: rows
    batch: int = 0
    rows: int = 0
    #: for weights: codes that multiply int8 activations as they are, where matrices are single
    multiplies_bare: bool = False

    @property
    def shape(self) -> tuple[Any, ...]:
        """Lengths on one chip."""
        return tuple(length for length, _ in self.dimensions)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Lengths on one chip by logical axis, and over how many chips each axis is split.

    All may be symbolic or arrays.
    """

    local: Mapping[str, Any]
    ways: Mapping[str, Any]
    #: chips share out the positions of the cache, so that programs merge their results
    splits_context: bool = False

    def share(self, axis: str | None, length: int) -> Dimension:
        """This chip's share of a dimension of `length`."""
        return (
            (self.local[axis], axis) if axis is not None and axis in self.local else (length, None)
        )

    def gathered(self, axis: str) -> Dimension:
        """The whole dimension, padding included, on every chip."""
        return (self.local[axis] * self.ways[axis], None)


def block_chain(cfg: ModelConfig) -> tuple[Block, ...]:
    """List the blocks a token passes, from the embedding to the head."""
    layers = [
        block
        for i in range(cfg.n_layers)
        for block in (
            Block(kind="sliding" if i in cfg.sliding_layers else "attention", layer=i),
            Block(kind="moe" if cfg.is_moe_layer(i) else "dense", layer=i),
        )
    ]
    return (
        Block(kind="embed", layer=0),
        *layers,
        Block(kind="head", layer=cfg.n_layers - 1),
    )


def block_kinds(cfg: ModelConfig) -> tuple[Kind, ...]:
    """Kinds of block a model has, each once, in the order of the chain."""
    return tuple(dict.fromkeys(block.kind for block in block_chain(cfg)))


def block_program(
    cfg: ModelConfig,
    kind: Kind,
    policy: Policy,
    split: Split,
    *,
    n_local: Any = None,
    n_slots: Any = None,
    dispatch: Dispatch = Dispatch.REPLICATED,
) -> Callable[..., Any]:
    """Give the per-chip program of a block; it takes what `block_arguments` lists and `axes=`.

    Args:
        cfg: the model.
        kind: the kind of block.
        policy: formats of rows, and the carry.
        split: how its output projection is split over chips.
        n_local: experts of each chip (MoE only).
        n_slots: static expert slots of each chip (MoE only).
        dispatch: how rows reach the chips of their experts (MoE only).
    """
    match kind:
        case "embed":
            return embed
        case "attention" | "sliding":
            attention = cfg.attention
            if isinstance(attention, MlaConfig):
                return partial(latent_attention, cfg=cfg, policy=policy, split=split)
            window = attention.window if kind == "sliding" else None
            return partial(grouped_attention, cfg=cfg, policy=policy, split=split, window=window)
        case "dense":
            return partial(dense_mlp, cfg=cfg, policy=policy, split=split)
        case "moe":
            layer = exchanged_mixture if dispatch is Dispatch.ALL_TO_ALL else mixture
            return partial(
                layer, cfg=cfg, policy=policy, split=split, n_local=n_local, n_slots=n_slots
            )
        case "head":
            return partial(head, cfg=cfg, policy=policy)


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
            `kv_length` (its part of one chip) and `window` (positions of a sliding layer's ring).
        dispatch: how rows reach the chips of their experts.
    """
    weights = {
        name: _weight(name, spec, policy, split, sizes)
        for name, spec in block_params(cfg, kind).items()
    }
    batch, tokens = sizes.local["batch"], sizes.local["tokens"]
    hidden = _state(policy.dtype, batch, tokens, cfg.d_model)
    first = Leaf(dimensions=((1, "vocab"),), dtype=jnp.int32, kind="tables", bits=32)
    match kind:
        case "embed":
            return _state(jnp.int32, batch, tokens), weights, first
        case "attention" | "sliding":
            number = partial(Leaf, dtype=jnp.int32, kind="tables", bits=32)
            # Where the context is split, a chip also knows its first position.
            is_split = sizes.splits_context and kind == "attention"
            return (
                hidden,
                weights,
                _cache(cfg, kind, policy, sizes),
                _tables(cfg, sizes),
                _state(jnp.int32, batch),
                number(dimensions=((1, "batch_local"),)),
                *([number(dimensions=((1, "kv_length"),))] if is_split else []),
            )
        case "dense":
            return hidden, weights
        case "moe":
            assert cfg.moe is not None
            table = partial(Leaf, dtype=jnp.int32, kind="tables", bits=32)
            placement = {
                "first_expert": table(dimensions=((1, "experts"),)),
                "address": table(dimensions=((1, "experts"), (cfg.moe.n_experts, None))),
            }
            if dispatch is Dispatch.ALL_TO_ALL:
                placement["share"] = table(dimensions=((1, "experts"),))
            return hidden, weights, placement
        case "head":
            return hidden, weights, _state(jnp.int32, batch), first


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


def _weight(name: str, spec: ParamSpec, policy: Policy, split: Split, sizes: Sizes) -> Any:
    """Describe a weight; one with an output axis is split along its rows or along its columns."""
    dimensions = []
    for axis, length in zip(spec.axes, spec.shape, strict=True):
        if axis == "d_out":
            axis = "shared_d_out" if name.startswith("shared") else "d_out"
            share = sizes.share(axis, length) if split is Split.COLUMN else (length, None)
        elif (
            axis is not None
            and axis != "experts"
            and axis in sizes.ways
            and "d_out" in spec.axes
            and split is Split.COLUMN
        ):
            share = sizes.gathered(axis)
        else:
            share = sizes.share(axis, length)
        dimensions.append(share)
    scheme = policy.scheme(spec)
    leaf = partial(Leaf, kind="weights", batch=spec.batch, rows=spec.rows)
    if scheme is None:
        return leaf(dimensions=tuple(dimensions), dtype=jnp.float32, bits=policy.bits(spec))
    if scheme == FP16_PLAIN:
        return leaf(dimensions=tuple(dimensions), dtype=jnp.float16, bits=16)
    return _quantized(tuple(dimensions), spec, scheme)


def _quantized(dimensions: tuple[Dimension, ...], spec: ParamSpec, scheme: Scheme) -> Any:
    """Describe codes and scales of a weight, each in the dimensions of the weight."""
    first_column = spec.batch + spec.rows
    matrices = dimensions[: spec.batch]
    rows, columns = dimensions[spec.batch : first_column], dimensions[first_column:]
    return QuantizedArray(
        codes=Leaf(
            dimensions=dimensions,
            dtype=scheme.code_dtype,
            kind="weights",
            bits=scheme.bits_per_value,
            batch=spec.batch,
            rows=spec.rows,
            multiplies_bare=scheme.multiplies_bare and not spec.batch,
        ),
        scales=_scales(matrices, rows, columns, scheme),
        tensor_scale=Leaf(
            dimensions=(*matrices, *((1, None),) * (len(rows) + len(columns))),
            dtype=jnp.float32,
            kind="weights",
            bits=32,
        )
        if scheme.is_two_level
        else None,
        scheme=scheme,
    )


def _scales(
    matrices: tuple[Dimension, ...],
    rows: tuple[Dimension, ...],
    columns: tuple[Dimension, ...],
    scheme: Scheme,
) -> Leaf | None:
    """Describe the scales of a weight; those of blocks are counted with the codes."""
    if scheme.scale_format is None:
        return None
    is_counted = scheme.block_rows is None or scheme.block_columns is None
    if scheme.block_rows is None:
        rows = ((1, None),) * len(rows)
    else:
        *outer, (length, axis) = rows
        rows = (*outer, (-(-length // scheme.block_rows), axis))
    if scheme.block_columns is None:
        columns = ((1, None),) * len(columns)
    return Leaf(
        dimensions=(*matrices, *rows, *columns),
        dtype=scheme.scale_dtype,
        kind="weights" if is_counted else "scales",
        bits=scheme.scale_format.bits if is_counted else 0,
    )


def _cache(cfg: ModelConfig, kind: Kind, policy: Policy, sizes: Sizes) -> dict[str, Leaf]:
    """Keys and values in the layouts that the matrix unit installs."""
    attention = cfg.attention
    batch: Dimension = (sizes.local["batch_local"], "batch_local")
    context: Dimension = (sizes.local["kv_length"], "kv_length")
    if kind == "sliding":
        context = (sizes.local["window"], None)
    if isinstance(attention, GqaConfig):
        lead: tuple[Dimension, ...] = (batch, sizes.share("kv_heads", attention.n_kv_heads))
        key_dim = value_dim = attention.head_dim
    elif attention.form == "expanded":
        lead = (batch, sizes.share("heads", attention.n_heads))
        key_dim, value_dim = attention.query_head_dim, attention.v_head_dim
    else:
        lead = (batch,)
        key_dim, value_dim = attention.cached_values_per_token, attention.kv_lora_rank
    leaf = partial(
        Leaf,
        dtype=policy.dtype,
        kind="cache",
        bits=policy.base_bits,
        batch=len(lead),
        rows=1,
    )
    return {
        "keys": leaf(dimensions=(*lead, (key_dim, None), context)),
        "values": leaf(dimensions=(*lead, context, (value_dim, None))),
    }


def _tables(cfg: ModelConfig, sizes: Sizes) -> dict[str, Leaf]:
    table = Leaf(
        dimensions=((sizes.local["context"], None), (cfg.rope.dim, None)),
        dtype=jnp.float32,
        kind="tables",
        bits=32,
    )
    return {"cos": table, "sin": table}
