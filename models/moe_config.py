"""The mixture of experts of a model, and its router: sizes and rules, never a tensor."""

from dataclasses import dataclass
from typing import get_args

from lpu_jax.errors import ConfigError

from .config_parts import Situ, check_activation, require_positive
from .hf_rules import Activation, Scoring


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture of experts and its router.

    Experts lie in `n_groups` equal groups, of which a token may use `topk_groups`. `normalise`
    divides the chosen scores by their sum; `routed_scaling` multiplies them afterwards. The first
    `n_dense_layers` layers have a dense MLP instead, and so have all but each `interval`-th. The
    defaults are the router of DeepSeek-V3 ("noaux_tc").

    `swiglu_limit` makes experts, shared ones too, compute `(up + 1) * gate * sigmoid(swiglu_alpha *
    gate)` with gate at most the limit and up between minus and plus the limit, as gpt-oss does;
    None is plain SwiGLU. With a `d_latent` routed experts take and give rows of so many values: one
    matrix before them makes these of the hidden state, one behind their sum is its way back.
    """

    n_experts: int
    top_k: int
    n_shared: int
    d_expert: int
    n_groups: int = 1
    topk_groups: int = 1
    routed_scaling: float = 1.0
    normalise: bool = True
    n_dense_layers: int = 0
    interval: int = 1
    scoring: Scoring = "sigmoid"
    correction_bias: bool = True  #: added to the scores to choose experts, not to weigh them
    router_offset: bool = False  #: the router's matrix has a bias of its own
    expert_bias: bool = False  #: both matrices of every expert have biases
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    weighs_rows: bool = False  #: weights multiply what experts are given, not their results
    activation: Activation = "silu"  #: of experts, shared ones too
    #: Gemma 4: experts, shared ones and the router each have a norm of their own, and so have the
    #: results of either kind of expert; a stored number scales each expert's weight.
    has_own_norms: bool = False
    gated_shared: bool = False  #: the shared experts' result is multiplied by a sigmoid of the row
    d_latent: int | None = None
    latent_norm: bool = False  #: sums over experts are RMS-normalised before their way back
    situ: Situ | None = None  #: the numbers of that activation

    def __post_init__(self) -> None:
        require_positive(
            self, "n_experts", "top_k", "d_expert", "n_groups", "topk_groups", "interval"
        )
        if self.scoring not in get_args(Scoring):
            raise ConfigError(
                f"MoeConfig.scoring must be one of {', '.join(get_args(Scoring))}, got "
                f"{self.scoring!r}."
            )
        if self.d_latent is not None:
            require_positive(self, "d_latent")
        if self.latent_norm and self.d_latent is None:
            raise ConfigError(
                "latent_norm is about a narrower space of experts: there is no d_latent."
            )
        if self.swiglu_limit is not None:
            require_positive(self, "swiglu_limit", "swiglu_alpha")
        check_activation("MoeConfig", self.activation, self.situ)
        if self.activation != "silu" and (self.swiglu_limit is not None or self.gated_shared):
            raise ConfigError(
                f"clamped or gated experts have the activation silu, got {self.activation!r}."
            )
        if self.weighs_rows and self.expert_bias:
            raise ConfigError("experts whose rows are weighed must have no biases, got True.")
        if self.has_own_norms and not self.n_shared:
            raise ConfigError("experts with norms of their own must have shared ones beside them.")
        if self.n_shared < 0 or self.n_dense_layers < 0:
            raise ConfigError(
                f"n_shared and n_dense_layers must be 0 or more, got {self.n_shared} and "
                f"{self.n_dense_layers}."
            )
        if self.n_experts % self.n_groups or self.topk_groups > self.n_groups:
            raise ConfigError(
                f"n_groups must divide n_experts and be at least topk_groups, got "
                f"{self.n_experts} experts, {self.n_groups} groups, topk_groups "
                f"{self.topk_groups}."
            )
        if self.n_groups > 1 and self.experts_per_group < 2:
            raise ConfigError(
                f"a group is scored by its two best experts, so groups need 2 experts or more, "
                f"got {self.experts_per_group}."
            )
        if self.top_k > self.topk_groups * self.experts_per_group:
            raise ConfigError(
                f"top_k must fit in the chosen groups ({self.topk_groups} groups of "
                f"{self.experts_per_group}), got {self.top_k}."
            )

    def is_in_layer(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) of a model has these experts."""
        return layer >= self.n_dense_layers and not (layer + 1) % self.interval

    @property
    def experts_per_group(self) -> int:
        """Experts in one routing group."""
        return self.n_experts // self.n_groups

    @property
    def d_shared(self) -> int:
        """Width of the shared experts together; 0 when there are none."""
        return self.n_shared * self.d_expert
