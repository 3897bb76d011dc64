"""Transformers for the emulated machine: configurations, parameters, weights, layers."""

from typing import TYPE_CHECKING

from lpu_jax.packages import exports

if TYPE_CHECKING:
    from .config import ModelConfig
    from .policy import POLICIES, Policy, policy_named
    from .weights.checkpoint import open_checkpoint
    from .weights.synthetic import SyntheticWeights
    from .zoo import model, named_models

__all__ = [
    "POLICIES",
    "ModelConfig",
    "Policy",
    "SyntheticWeights",
    "model",
    "named_models",
    "open_checkpoint",
    "policy_named",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "POLICIES": "policy",
        "ModelConfig": "config",
        "Policy": "policy",
        "SyntheticWeights": "weights.synthetic",
        "model": "zoo",
        "named_models": "zoo",
        "open_checkpoint": "weights.checkpoint",
        "policy_named": "policy",
    },
)
