"""Parts of a model's description that stand alone: grouped attention, constants, activations.

`config` has the others, and the whole.
"""

import dataclasses
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float64

from lpu_jax.arguments import described
from lpu_jax.errors import ConfigError
from lpu_jax.predicates import is_number, is_whole

from .hf_rules import Activation


def require_positive(owner: object, *fields: str) -> None:
    """Refuse fields of a dataclass that are not numbers above 0, whole ones where it says `int`.

    Raises:
        ConfigError: with the first such field.
    """
    types = {each.name: each.type for each in dataclasses.fields(owner)}  # type: ignore[arg-type]
    for field in fields:
        value, is_float = getattr(owner, field), "float" in str(types[field])
        name = f"{type(owner).__name__}.{field}"
        if not (is_number(value) if is_float else is_whole(value) and value < 2**31):
            kind = "a number" if is_float else "a whole number below 2**31"
            raise ConfigError(f"{name} must be {kind}, got {described(value)}.")
        if value <= 0:
            raise ConfigError(f"{name} must be above 0, got {value}.")


@dataclass(frozen=True, kw_only=True)
class Situ:
    """The activation of Kimi K3's MLPs: both gate and up projection are softly limited.

    `limit * tanh(gate / limit) * sigmoid(gate) * up`, with `up_limit * tanh(up / up_limit)` in
    place of `up` where there is an `up_limit`.

    Source:
        `SituAndMul` in vLLM 0.33, `model_executor/layers/activation.py`.
    """

    limit: float
    up_limit: float | None

    def __post_init__(self) -> None:
        require_positive(self, "limit", *(() if self.up_limit is None else ("up_limit",)))


def check_activation(owner: str, activation: str, situ: Situ | None) -> None:
    """Refuse an activation that does not exist, or whose numbers are missing.

    Raises:
        ConfigError: says which there are.
    """
    if activation not in get_args(Activation):
        raise ConfigError(
            f"{owner}: activation must be one of {', '.join(get_args(Activation))}, got "
            f"{activation!r}."
        )
    if (activation == "situ") != isinstance(situ, Situ):
        raise ConfigError(
            f"{owner}: the activation situ, and no other, goes with a Situ; activation "
            f"{activation!r} and {described(situ)} were given."
        )


@dataclass(frozen=True, kw_only=True)
class Warming:
    """Queries that grow with their position: `1 + strength * ln(1 + floor((position + 1) / step))`.

    Source:
        `attn_temperature_tuning` of Hugging Face transformers' `modeling_llama4`, which cites
        Nakanishi 2025, "Scalable-Softmax Is Superior for Attention".
    """

    step: int  #: positions
    strength: float

    def __post_init__(self) -> None:
        require_positive(self, "step", "strength")

    def factors(self, n_positions: int) -> Float64[np.ndarray, " n_positions"]:
        """Return what multiplies the query of each position, from 0 on."""
        steps = np.floor(np.arange(1, n_positions + 1, dtype=np.float64) / self.step)
        return np.asarray(1.0 + self.strength * np.log1p(steps))


@dataclass(frozen=True, kw_only=True)
class BlockIndexConfig:
    """The index of sparse grouped attention: a token attends to `top_blocks` blocks of positions.

    Every head of keys and values has a query of the index, all of them one index key of each
    position, of `head_dim` values each. A block of `block_size` positions is as good as the best
    product of its positions; the token's own block and those before it, `local_blocks` in all, are
    always among the chosen.
    """

    head_dim: int
    block_size: int
    top_blocks: int
    local_blocks: int

    def __post_init__(self) -> None:
        require_positive(self, "head_dim", "block_size", "top_blocks", "local_blocks")
        if self.local_blocks > self.top_blocks:
            raise ConfigError(
                f"BlockIndexConfig.local_blocks must be at most top_blocks, {self.top_blocks}, got "
                f"{self.local_blocks}."
            )


@dataclass(frozen=True, kw_only=True)
class GqaConfig:
    """Grouped-query attention: `n_heads` query heads share `n_kv_heads` key and value heads.

    Rotation may cover only the first `RopeConfig.dim` values of a head.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    qkv_bias: bool = False  #: queries, keys and values have biases
    o_bias: bool = False  #: the output projection has one
    qk_norm: bool = False  #: queries and keys of a head are RMS-normalised before rotation
    is_qk_norm_joint: bool = False  #: such a norm is one of all heads of a token together
    sinks: bool = False  #: a learned logit per query head takes part in the softmax, with no value
    window: int | None = None  #: keys that a query of a sliding layer sees, its own included
    scale: float | None = None  #: what multiplies q·k; None: one over the root of `head_dim`
    gated: bool = False  #: results of heads are multiplied by the sigmoid of a projection
    head_gated: bool = False  #: likewise, by one number for a whole head
    cap: float | None = None  #: scores stay within it on either side: `cap * tanh(score / cap)`
    value_dim: int | None = None  #: width of values where it is not that of keys
    value_scale: float = 1.0  #: multiplies values
    norms_values: bool = False  #: values of a head are RMS-normalised, without weights
    #: One matrix makes both: values are keys before their norm and rotation.
    are_values_keys: bool = False
    #: A sliding layer's query sees the keys from the last multiple of `window` on, not the last so
    #: many.
    is_chunked: bool = False
    norms_rotated: bool = False  #: rotated queries and keys are RMS-normalised, without weights
    warming: Warming | None = None  #: of queries, in layers without rotation
    block_index: BlockIndexConfig | None = None  #: of layers that attend to blocks it finds

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "n_kv_heads", "head_dim", "value_scale")
        given = [
            name
            for name in ("scale", "window", "cap", "value_dim")
            if getattr(self, name) is not None
        ]
        require_positive(self, *given)
        if self.gated and self.qkv_bias:
            raise ConfigError("gated attention must have no qkv_bias, got True.")
        if self.gated and self.head_gated:
            raise ConfigError("heads must have a gate for each value or one for all, not both.")
        if self.value_dim is not None and (self.gated or self.are_values_keys):
            raise ConfigError("values of another width must have no gate, and be no keys.")
        if self.block_index is not None and (
            self.sinks or self.gated or self.head_gated or self.value_dim is not None
        ):
            raise ConfigError(
                "attention to blocks must have no sinks, no gates and values as wide as keys."
            )
        if self.is_chunked and self.window is None:
            raise ConfigError("is_chunked is about the window of sliding layers: it needs one.")
        if self.is_qk_norm_joint and not self.qk_norm:
            raise ConfigError("is_qk_norm_joint is about norms of queries and keys: it needs them.")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and "
                f"{self.n_kv_heads}."
            )

    @property
    def q_per_kv(self) -> int:
        """Query heads that read one key/value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def softmax_scale(self) -> float:
        """What multiplies q·k before the softmax."""
        return float(self.head_dim**-0.5) if self.scale is None else self.scale

    @property
    def cached_values_per_token(self) -> int:
        """Values a layer keeps per token: a key and a value per KV head."""
        return self.n_kv_heads * (self.head_dim + self.value_width)

    @property
    def value_width(self) -> int:
        """Width of the values of a head."""
        return self.head_dim if self.value_dim is None else self.value_dim


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Constants by which a model scales values on their way; 1 changes nothing."""

    embedding: float = 1.0  #: multiplies the embedding of a token
    residual: float = 1.0  #: multiplies what a block adds to the hidden state
    logits: float = 1.0  #: divides the logits

    def __post_init__(self) -> None:
        require_positive(self, "embedding", "residual", "logits")
