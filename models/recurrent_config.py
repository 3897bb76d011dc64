"""The gated linear recurrence of layers that do not attend: its rule and its sizes."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from lpu_jax.arguments import described
from lpu_jax.errors import ConfigError
from lpu_jax.predicates import is_number

from .config_parts import require_positive

#: Rules of a recurrence: the delta rule, or that of Mamba2, which corrects nothing.
RecurrentRule = Literal["delta", "mamba2"]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A gated linear recurrence: heads with a state `[key_dim, value_dim]` in place of a cache.

    Queries and keys of a key head serve its `value_heads_per_key` value heads, each with a state, a
    decay and a rate of its own. Queries, keys and values pass a causal convolution over `taps`
    tokens each. By the rule "delta" it is Gated DeltaNet; with a `channel_rank` Kimi Delta
    Attention: every key channel has a decay of its own, decays and gates come through so many
    values each, and gates are sigmoids. If it `is_full_rank`, they come by one matrix each instead,
    as in Ling 3; if it `is_gate_full`, as in Kimi K3, gates alone do.

    By the rule "mamba2" queries, keys and rates are what its paper calls C, B and steps. A decay
    follows from its step, convolutions have biases, each head adds its value times a number to its
    result, and the results of a key head are gated, then normalised together.
    """

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    channel_rank: int | None = None
    is_full_rank: bool = False
    is_gate_full: bool = False
    #: Logarithms of decays are this number, below 0, times a sigmoid: none forgets faster.
    decay_bound: float | None = None
    rule: RecurrentRule = "delta"
    least_step: float = 0.0  #: steps of Mamba2 are kept from it
    most_step: float | None = None  #: to it, where there is such a limit

    def __post_init__(self) -> None:
        given = [name for name in ("channel_rank", "most_step") if getattr(self, name) is not None]
        require_positive(self, *given)
        require_positive(self, "n_key_heads", "n_value_heads", "key_dim", "value_dim", "taps")
        if self.n_value_heads % self.n_key_heads:
            raise ConfigError(
                f"n_value_heads must be a multiple of n_key_heads, got {self.n_value_heads} and "
                f"{self.n_key_heads}."
            )
        if self.taps < 2:
            raise ConfigError(f"taps must be at least 2, got {self.taps}.")
        if self.rule not in get_args(RecurrentRule):
            raise ConfigError(
                f"RecurrentConfig.rule must be one of {', '.join(get_args(RecurrentRule))}, got "
                f"{self.rule!r}."
            )
        if not is_number(self.least_step) or not 0 <= self.least_step < (self.most_step or inf):
            raise ConfigError(
                f"least_step must be a number from 0 to below most_step, got "
                f"{described(self.least_step)} and {described(self.most_step)}."
            )
        if self.rule == "delta" and (self.least_step, self.most_step) != (0.0, None):
            raise ConfigError("limits of steps are about the rule mamba2; this one is delta.")
        if self.rule == "mamba2" and self.channel_rank is not None:
            raise ConfigError("channel_rank is about the rule delta; this one is mamba2.")
        self._check_channels()

    def _check_channels(self) -> None:
        if self.is_full_rank and (self.rule != "delta" or self.channel_rank is not None):
            raise ConfigError("is_full_rank is about the rule delta, and has no channel_rank.")
        if self.is_gate_full and self.channel_rank is None:
            raise ConfigError("is_gate_full is about gates beside decays that have a channel_rank.")
        bound = self.decay_bound
        if bound is None:
            return
        if not is_number(bound) or not -inf < bound < 0:
            raise ConfigError(f"decay_bound must be a number below 0, got {described(bound)}.")
        if not self.has_channel_decays:
            raise ConfigError("decay_bound is about decays of channels; there are none.")

    @property
    def has_channel_decays(self) -> bool:
        """Whether every key channel has a decay of its own, and gates are sigmoids."""
        return self.is_full_rank or self.channel_rank is not None

    @property
    def value_heads_per_key(self) -> int:
        """Value heads that share the queries and keys of one key head."""
        return self.n_value_heads // self.n_key_heads

    @property
    def state_values(self) -> int:
        """Values of the states of one sequence in a layer."""
        return self.n_value_heads * self.key_dim * self.value_dim

    @property
    def convolved_values(self) -> int:
        """Queries, keys and values of one token, which pass the convolution."""
        return 2 * self.n_key_heads * self.key_dim + self.n_value_heads * self.value_dim
