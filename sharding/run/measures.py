"""How far values are from those of a reference: decibels, and predictions of a text."""

import math

import numpy as np
from jaxtyping import Float, Float32, Float64, Int


def sqnr_db(reference: Float[np.ndarray, "..."], values: Float[np.ndarray, "..."]) -> float:
    """Signal over noise in dB, `10 log10(sum ref^2 / sum (ref - x)^2)`, summed in float64.

    Values that overflowed, or are not numbers, count as infinite noise.
    """
    wide = reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        noise = float(np.sum((wide - values.astype(np.float64)) ** 2))
    return decibels(float(np.sum(wide**2)), noise)


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers in dB; noise of values that overflowed, not finite, counts as infinite.

    No noise at all gives infinity, whatever the signal.
    """
    if noise == 0:
        return math.inf
    if not (signal and math.isfinite(noise)):
        return -math.inf
    return 10 * math.log10(signal / noise)


def finite(value: float) -> float | None:
    """Return None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def log_probabilities(logits: Float64[np.ndarray, "t vocab"]) -> Float64[np.ndarray, "t vocab"]:
    """Logarithms of the softmax of each row, in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def compare_predictions(
    expected: Float32[np.ndarray, "t vocab"],
    logits: Float32[np.ndarray, "t vocab"],
    following: Int[np.ndarray, " t"],
) -> dict[str, float]:
    """Sums over some predictions, from the logits of the reference and of the chips.

    Args:
        expected: logits of the reference.
        logits: of the chips.
        following: the tokens that come next.

    Returns:
        `predictions`, `loss` and `reference_loss` (negative log-likelihoods, nats), `kl` (nats),
        `agreements` of the most likely token, `power` of the reference's logits and of the `noise`.

    Fidelity: approximate, in float64.
    """
    wide, mine = expected.astype(np.float64), logits.astype(np.float64)
    rows = np.arange(len(following))
    with np.errstate(invalid="ignore"):  # logits may have overflowed
        log_p, log_q = log_probabilities(wide), log_probabilities(mine)
        return {
            "predictions": float(len(following)),
            "loss": float(-log_q[rows, following].sum()),
            "reference_loss": float(-log_p[rows, following].sum()),
            "kl": float((np.exp(log_p) * (log_p - log_q)).sum()),
            "agreements": float((wide.argmax(-1) == mine.argmax(-1)).sum()),
            "power": float((wide**2).sum()),
            "noise": float(((wide - mine) ** 2).sum()),
        }


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
