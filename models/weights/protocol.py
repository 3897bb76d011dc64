"""What a weight source is: one interface for real checkpoints and for random values.

Arrays have the shapes of `models.params`, one block or one routed expert at a time.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from lpu_jax.errors import WeightsError

from ..config import ModelConfig
from ..params import block_params
from .stored import Weight


@runtime_checkable
class WeightSource(Protocol):
    """Anything that can produce the parameters of a model.

    Query and key columns are in the pair order that `config.rope.interleaved` tells.
    """

    @property
    def config(self) -> ModelConfig:
        """The model these weights belong to."""

    def block(self, kind: str, layer: int = 0) -> Mapping[str, Weight]:
        """Return one block's parameters without its routed experts.

        Args:
            kind: one of `params.Kind`.
            layer: the layer from 0; ignored for "embed" and "head".
        """

    def expert(self, layer: int, expert_id: int) -> Mapping[str, Weight]:
        """Return one routed expert: `gate_up` `[d, n, fe]`, `down` `[fe, d]` and their biases."""


def check_expert(model_cfg: ModelConfig, layer: int, expert_id: int) -> None:
    """Raise unless the model has this expert.

    Raises:
        WeightsError: if layer `layer` has no experts or fewer than `expert_id + 1`.
    """
    moe = model_cfg.moe
    if moe is None or not model_cfg.is_moe_layer(layer):
        raise WeightsError(f"{model_cfg.name}: layer {layer} has no routed experts.")
    if not 0 <= expert_id < moe.n_experts:
        raise WeightsError(
            f"{model_cfg.name}: expert must be 0 to {moe.n_experts - 1}, got {expert_id}."
        )


def check_block(model_cfg: ModelConfig, kind: str, layer: int) -> None:
    """Raise unless the model has a block of this kind at this layer.

    Raises:
        UnknownNameError: if `kind` is not a block kind.
        ConfigError: if the model has no such layer or no such kind.
        WeightsError: if layer `layer` has no block of this kind.
    """
    block_params(model_cfg, kind)
    if kind in ("embed", "head"):
        return
    actual = model_cfg.layer_kinds(layer)
    if kind not in actual:
        # Of two blocks, the one that stands where this one would.
        own = actual[-1 if kind in ("dense", "moe") else 0]
        article = "an" if own in ("attention", "unrotated", "indexed") else "a"
        raise WeightsError(
            f"{model_cfg.name}: layer {layer} has {article} {own} block, not {kind}."
        )
