"""Rotary position embedding as data: the frequencies of every released scaling rule.

The rotation itself, and its rounding, belong to the layers. Rules whose frequencies depend on the
length of the prompt ("dynamic", "longrope") are not modelled.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from lpu_jax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: divide the low frequencies by `factor`, keep the high ones, blend between.

    Source:
        Rule "llama3" of Hugging Face transformers' `modeling_rope_utils`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        if min(self.factor, self.low_freq_factor, self.original_max_position) <= 0:
            raise ConfigError(f"Llama3Scaling needs positive numbers, got {self}.")
        if self.high_freq_factor < self.low_freq_factor:
            raise ConfigError(
                f"Llama3Scaling needs high_freq_factor at least low_freq_factor, "
                f"got {self.high_freq_factor} and {self.low_freq_factor}."
            )

    def apply(self, frequencies: Float64[np.ndarray, " pairs"]) -> Float64[np.ndarray, " pairs"]:
        """Return the scaled frequencies, in radians per position."""
        turns = self.original_max_position * frequencies / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        if span == 0:  # nothing to blend, as in Llama 4 Scout
            return np.where(turns < self.low_freq_factor, frequencies / self.factor, frequencies)
        kept_share = np.clip((turns - self.low_freq_factor) / span, 0.0, 1.0)
        return frequencies * (kept_share + (1.0 - kept_share) / self.factor)


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Divide every frequency by `factor`: positions are that much closer together.

    Source:
        Rule "linear" of Hugging Face transformers' `modeling_rope_utils`.
    """

    factor: float

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ConfigError(f"LinearScaling needs a factor above 0, got {self.factor}.")

    def apply(self, frequencies: Float64[np.ndarray, " pairs"]) -> Float64[np.ndarray, " pairs"]:
        """Return the scaled frequencies, in radians per position."""
        return np.asarray(frequencies / self.factor)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN: interpolate slow pairs, keep fast pairs, blend between two pair indices.

    `mscale` and `mscale_all_dim` are DeepSeek's split of the temperature: their ratio scales
    cos and sin, the second alone (squared) scales the softmax. None means the key is absent.
    `cos_sin_factor` replaces what would follow from them for cos and sin (`attention_factor`).

    Source:
        Peng et al. 2023, "YaRN"; rule "yarn" of transformers' `modeling_rope_utils`.
    """

    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position: int
    mscale: float | None = None
    mscale_all_dim: float | None = None
    cos_sin_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if min(self.factor, self.beta_fast, self.beta_slow, self.original_max_position) <= 0:
            raise ConfigError(f"YarnScaling needs positive numbers, got {self}.")

    def temperature(self, mscale: float) -> float:
        """Return `0.1 * mscale * ln(factor) + 1`, YaRN's fit of the attention temperature."""
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    @property
    def attention_factor(self) -> float:
        """What multiplies cos and sin."""
        if self.cos_sin_factor is not None:
            return self.cos_sin_factor
        if self.mscale and self.mscale_all_dim:
            return self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)
        return self.temperature(1.0)

    def apply(
        self, frequencies: Float64[np.ndarray, " pairs"], theta: float
    ) -> Float64[np.ndarray, " pairs"]:
        """Return the scaled frequencies, in radians per position."""
        dim = 2 * frequencies.shape[0]
        first = self._pair_of_turns(self.beta_fast, dim, theta)
        last = self._pair_of_turns(self.beta_slow, dim, theta)
        if self.truncate:
            first, last = float(math.floor(first)), float(math.ceil(last))
        first, last = max(first, 0.0), min(last, dim - 1.0)
        if first == last:
            last += 0.001  # the published rule's own guard against 0 / 0
        ramp = np.clip((np.arange(dim // 2) - first) / (last - first), 0.0, 1.0)
        return np.asarray(frequencies * ((1.0 - ramp) + ramp / self.factor))

    def _pair_of_turns(self, turns: float, dim: int, theta: float) -> float:
        """Return the (fractional) pair that makes `turns` full turns over the original context."""
        ratio = self.original_max_position / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(theta))


#: A rule that changes the frequencies of a rotation for longer contexts.
Scaling = Llama3Scaling | LinearScaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of `dim` values per head.

    `interleaved` tells which values form a pair: (0, 1), (2, 3), … when true, as DeepSeek and
    Kimi rotate; (0, dim/2), (1, dim/2 + 1), … when false, as Llama does.

    With a `span` they are the fastest pairs of so many values, (0, span/2), (1, span/2 + 1), …, of
    which the others do not turn ("proportional", Gemma 4).
    """

    theta: float
    dim: int
    interleaved: bool
    scaling: Scaling | None = None
    span: int | None = None

    def __post_init__(self) -> None:
        if self.span is not None and (
            self.span % 2 or self.span < self.dim or self.interleaved or self.scaling
        ):
            raise ConfigError(
                f"rope.span must be an even number, at least dim ({self.dim}), of halves without "
                f"scaling, got {self.span}."
            )
        if self.dim <= 0 or self.dim % 2:
            raise ConfigError(f"rope.dim must be a positive even number, got {self.dim}.")
        if self.theta <= 1:
            raise ConfigError(f"rope.theta must be above 1, got {self.theta}.")

    @property
    def width(self) -> int:
        """Values of a head over which the rotated ones are spread, from its first."""
        return self.dim if self.span is None else self.span

    def inverse_frequencies(self) -> Float64[np.ndarray, " pairs"]:
        """Return the rotation of each pair, in radians per position.

        Returns:
            `[dim / 2]` float64, pair 0 (the fastest) first, scaling applied.

        Fidelity:
            Approximate: float64 evaluation of a real formula; frameworks hold these in float32.
        """
        exponents = np.arange(0, self.dim, 2, dtype=np.float64) / self.width
        frequencies = np.asarray(np.power(self.theta, -exponents), dtype=np.float64)
        match self.scaling:
            case None:
                return frequencies
            case Llama3Scaling() | LinearScaling() as scaling:
                return scaling.apply(frequencies)
            case YarnScaling() as scaling:
                return scaling.apply(frequencies, self.theta)

    @property
    def attention_factor(self) -> float:
        """What multiplies cos and sin: 1 unless YaRN says otherwise."""
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling) else 1.0
