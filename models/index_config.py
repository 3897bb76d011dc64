"""Indexes of sparse attention, of positions or of blocks of them, and which layers have one."""

from dataclasses import dataclass

from lpu_jax.errors import ConfigError

from .config_parts import BlockIndexConfig, require_positive


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """The lightning indexer of sparse latent attention: a token attends to `top_k` positions.

    Those have the largest sums over `n_heads` of a weight, which a projection makes of the token,
    times a rectified product of a query and the position's index key, of `head_dim` values each.
    """

    n_heads: int
    head_dim: int
    top_k: int

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "head_dim", "top_k")

    @property
    def scale(self) -> float:
        """What multiplies the weights of heads: it moves no choice but by rounding."""
        return float((self.n_heads * self.head_dim) ** -0.5)


def check_index(
    name: str,
    index: IndexConfig | None,
    following_layers: tuple[int, ...],
    other_layers: tuple[int, ...],
    rotary_dim: int,
) -> None:
    """Refuse layers that follow no index or cannot have one, and index heads that are too narrow.

    Args:
        name: of the model.
        index: of its layers, None for a model without.
        following_layers: layers that attend where the last one with an index does.
        other_layers: those that slide, do not rotate or do not attend.
        rotary_dim: values of a head that are rotated.

    Raises:
        ConfigError: says which.
    """
    if index is None:
        if following_layers:
            raise ConfigError(f"{name}: no layer has an index, so none can follow another's.")
        return
    if 0 in following_layers:
        raise ConfigError(f"{name}: layer 0 must have an index, as none comes before it.")
    if other_layers:
        raise ConfigError(
            f"{name}: all layers of a model with an index must have latent attention with "
            f"rotation; {other_layers[0]} has another kind."
        )
    if rotary_dim > index.head_dim:
        raise ConfigError(
            f"{name}: rope.dim must be at most the width of an index head {index.head_dim}, got "
            f"{rotary_dim}."
        )


def check_block_index(
    name: str,
    index: BlockIndexConfig | None,
    blocked_layers: tuple[int, ...],
    other_layers: tuple[int, ...],
    rotary_dim: int,
) -> None:
    """Refuse layers that attend to blocks without an index of them, and the reverse.

    Args:
        name: of the model.
        index: of its grouped attention, None for a model without.
        blocked_layers: layers that attend to what it finds.
        other_layers: those that slide, do not rotate or do not attend.
        rotary_dim: values of a head that are rotated.

    Raises:
        ConfigError: says which.
    """
    if (index is None) != (not blocked_layers):
        raise ConfigError(f"{name}: layers that attend to blocks need an index, and it needs them.")
    both = sorted(set(blocked_layers) & set(other_layers))
    if both:
        raise ConfigError(
            f"{name}: layers that attend to blocks must be neither sliding nor recurrent ones, nor "
            f"without rotation, got {both}."
        )
    if index is not None and rotary_dim > index.head_dim:
        raise ConfigError(
            f"{name}: rope.dim must be at most the width of an index head {index.head_dim}, got "
            f"{rotary_dim}."
        )
