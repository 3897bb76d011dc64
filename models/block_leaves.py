"""What the arguments of a block's program are on one chip: lengths, axes and storage, no values.

The leaves of weights are in `blocks`, which knows the kinds of block; here are those of caches and
states, and of what multiplies queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax.numpy as jnp

from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.predicates import shorter

from .cache_formats import cache_scheme, stored_bits
from .config import GqaConfig, MlaConfig, ModelConfig
from .policy import Policy
from .rope import RopeConfig

#: A length of this chip, and the logical axis it is a share of (None: the same on every chip).
Dimension = tuple[Any, str | None]


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
    #: for a cache: what another leaf holds too, in the layout of another product
    is_copy: bool = False
    #: for a cache: it is written whole with every token, and lies in the chip wherever caches lie
    stays: bool = False
    #: for a table: blocks of another kind have it, with which it is counted
    is_shared: bool = False
    #: before anything runs: zeros; the number of a chip's first row, or of the chip, along an axis;
    #: a table of the rotation, or of what multiplies queries; the row of the store in which each
    #: expert lies
    begins_as: Literal["zeros", "first row", "chip", "cos", "sin", "warming", "address"] = "zeros"
    rope: RopeConfig | None = None  #: of a table of the rotation

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
    #: lengths that a local one is a multiple of, whatever the plan; 1 where it is not named
    steps: Mapping[str, int] = field(default_factory=dict)

    def share(self, axis: str | None, length: int) -> Dimension:
        """This chip's share of a dimension of `length`."""
        return (
            (self.local[axis], axis) if axis is not None and axis in self.local else (length, None)
        )

    def gathered(self, axis: str) -> Dimension:
        """The whole dimension, padding included, on every chip."""
        return (self.local[axis] * self.ways[axis], None)


def attention_cache(
    cfg: ModelConfig, policy: Policy, sizes: Sizes, *, is_sliding: bool
) -> dict[str, Any]:
    """Describe keys and values in the layouts that the matrix unit installs.

    Args:
        cfg: the model.
        policy: their format.
        sizes: lengths of one chip.
        is_sliding: whether the layer sees its window only.
    """
    attention = cfg.attention_of("sliding" if is_sliding else "attention")
    batch: Dimension = (sizes.local["batch_local"], "batch_local")
    context: Dimension = (sizes.local["kv_length"], "kv_length")
    if is_sliding:
        context = (sizes.local["window"], None)
    if isinstance(attention, GqaConfig):
        lead: tuple[Dimension, ...] = (batch, sizes.share("kv_heads", attention.n_kv_heads))
        key_dim, value_dim = attention.head_dim, attention.value_width
    elif attention.form == "expanded":
        lead = (batch, sizes.share("heads", attention.n_heads))
        key_dim, value_dim = attention.query_head_dim, attention.v_head_dim
    else:
        lead = (batch,)
        key_dim, value_dim = attention.cached_values_per_token, attention.kv_lora_rank
    # A latent is key and value at once, and lies in both layouts, with the scales of both.
    is_latent = not isinstance(attention, GqaConfig) and attention.form != "expanded"
    return {
        "keys": vectors_leaf(policy, lead, context, key_dim, axis=-2),
        "values": vectors_leaf(
            policy, lead, context, value_dim, is_copy=is_latent, whole=key_dim if is_latent else 0
        ),
    }


def vectors_leaf(
    policy: Policy,
    lead: tuple[Dimension, ...],
    positions: Dimension,
    width: int,
    *,
    axis: int = -1,
    is_copy: bool = False,
    whole: int = 0,
) -> Any:
    """Describe cached vectors: values, or codes and scales, which are counted with the codes.

    Args:
        policy: their format.
        lead: sequences, and heads where they have vectors of their own.
        positions: of a chip.
        width: values of a vector.
        axis: where they lie, -2 for columns and -1 for rows.
        is_copy: as in `Leaf`.
        whole: values of the vectors of which these are the first ones; 0: these are all.
    """

    def leaf(n: int, dtype: Any, bits: float | int) -> Leaf:
        last: tuple[Dimension, ...] = (positions, (n, None))
        return Leaf(
            dimensions=(*lead, *(last if axis == -1 else last[::-1])),
            dtype=dtype,
            kind="cache",
            bits=bits,
            batch=len(lead),
            rows=1,
            is_copy=is_copy,
        )

    scheme = cache_scheme(policy.cache, whole or width)
    if scheme is None:
        return leaf(width, policy.cache_dtype, policy.cache_bits)
    n_scales = -(-width // scheme.row_granule)
    return QuantizedArray(
        codes=leaf(width, scheme.code_dtype, stored_bits(scheme, width)),
        scales=leaf(n_scales, scheme.scale_dtype, 0),
        scheme=scheme,
        axis=axis,
    )


def recurrent_cache(cfg: ModelConfig, policy: Policy, sizes: Sizes) -> dict[str, Leaf]:
    """Describe the states of a recurrent layer's heads, and the last inputs of its convolutions.

    Args:
        cfg: a model with recurrent layers.
        policy: format of the inputs; states are fp32.
        sizes: lengths of one chip.
    """
    net = cfg.recurrent
    assert net is not None
    batch: Dimension = (sizes.local["batch_local"], "batch_local")
    heads = sizes.share("kv_heads", net.n_key_heads)
    per_key = sizes.share("q_per_kv", net.value_heads_per_key)
    key, value, kept = (net.key_dim, None), (net.value_dim, None), (net.taps - 1, None)
    state = Leaf(
        dimensions=(batch, heads, per_key, key, value),
        dtype=jnp.float32,
        kind="cache",
        bits=32,
        stays=True,
    )
    inputs = replace(state, dtype=policy.dtype, bits=policy.base_bits)
    return {
        "state": state,
        "qk_inputs": replace(inputs, dimensions=(batch, kept, (2, None), heads, key)),
        "v_inputs": replace(inputs, dimensions=(batch, kept, heads, per_key, value)),
    }


def warming_table(cfg: ModelConfig, sizes: Sizes) -> dict[str, Leaf]:
    """Describe what multiplies queries of layers without rotation, where the model has it.

    Args:
        cfg: the model.
        sizes: lengths of one chip.
    """
    if not isinstance(cfg.attention, GqaConfig) or cfg.attention.warming is None:
        return {}
    table = Leaf(
        dimensions=((sizes.local["context"], None), (1, None)),
        dtype=jnp.float32,
        kind="tables",
        bits=32,
        begins_as="warming",
    )
    return {"warming": table}


def sparse_cache(
    cfg: ModelConfig, policy: Policy, sizes: Sizes, *, has_index: bool
) -> dict[str, Any]:
    """Describe latents, which are read by address and so lie in rows, and the keys of an index.

    Args:
        cfg: a model with an index.
        policy: format of both.
        sizes: lengths of one chip.
        has_index: whether the layer has an index of its own.
    """
    attention = cfg.attention
    assert isinstance(attention, MlaConfig)
    batch: Dimension = (sizes.local["batch_local"], "batch_local")
    positions: Dimension = (sizes.local["kv_length"], "kv_length")
    latents = vectors_leaf(policy, (batch,), positions, attention.cached_values_per_token)
    if not has_index:
        return {"latents": latents}
    positions = (sizes.local["index_length"], "index_length")
    keys = vectors_leaf(policy, (batch,), positions, cfg.index.head_dim, axis=-2)
    return {"latents": latents, "index_keys": keys}


def blocked_cache(cfg: ModelConfig, policy: Policy, sizes: Sizes) -> dict[str, Any]:
    """Describe keys and values, which are read by address and so lie in rows, and index keys.

    Args:
        cfg: a model with an index of blocks.
        policy: format of all.
        sizes: lengths of one chip.
    """
    gqa = cfg.attention
    assert isinstance(gqa, GqaConfig)
    batch: Dimension = (sizes.local["batch_local"], "batch_local")
    positions: Dimension = (sizes.local["kv_length"], "kv_length")
    heads = sizes.share("kv_heads", gqa.n_kv_heads)
    of_heads = (batch, heads)
    return {
        "key_rows": vectors_leaf(policy, of_heads, positions, gqa.head_dim),
        "value_rows": vectors_leaf(policy, of_heads, positions, gqa.value_width),
        "index_keys": vectors_leaf(policy, (batch,), positions, cfg.block_index.head_dim, axis=-2),
    }


def chosen_positions(cfg: ModelConfig, sizes: Sizes) -> Leaf:
    """Describe the positions that each new token of a chip's sequences attends to."""
    whole = sizes.local["kv_length"] * sizes.ways.get("kv_length", 1)
    lengths: tuple[Dimension, ...] = (
        (sizes.local["batch_local"], "batch_local"),
        (sizes.local["tokens"], None),
        (shorter(cfg.index.top_k, whole), None),
    )
    return Leaf(dimensions=lengths, dtype=jnp.int32, kind="state", bits=32)
