"""Choice of the next token from logits: the most likely one, or a draw from the likely ones.

A draw is made on the host in float64, from the raw words of a counter-based generator, so that it
depends on the seed, the prompt and the place in the text alone: not on the other sequences of a
batch, nor on how often a machine was asked. Not built: penalties, min-p, beams.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.predicates import is_number, is_whole

#: A draw keeps the upper 53 bits of a raw word: as many as a float64 below 1 holds.
_SPARE_BITS = 11


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; by default the most likely one.

    First logits are divided by the temperature, then the `top_k` most likely tokens are kept, then
    of these the fewest whose probabilities reach `top_p`. Equally likely ones rank by their number.

    Raises:
        LpuError: a value out of range.
    """

    temperature: float = 0.0  #: 0 takes the most likely token
    top_k: int = 0  #: 0 keeps all
    top_p: float = 1.0  #: 1 keeps all
    seed: int = 0

    def __post_init__(self) -> None:
        heat, k, p, seed = self.temperature, self.top_k, self.top_p, self.seed
        for name, number, is_right, allowed in (
            ("temperature", heat, is_number(heat) and heat >= 0, "0 or more"),
            ("top-k", k, is_whole(k) and k >= 0, "1 or more, or 0 for all tokens"),
            ("top-p", p, is_number(p) and 0 < p <= 1, "above 0 and at most 1"),
            ("seed", seed, is_whole(seed) and seed >= 0, "0 or more"),
        ):
            if not is_right:
                raise LpuError(f"{name} is {described(number)}; it must be {allowed}.")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def __str__(self) -> str:
        """Say it in words."""
        if self.is_greedy:
            return "greedy"
        kept = f", top-k {self.top_k}" if self.top_k else ""
        kept += f", top-p {self.top_p:g}" if self.top_p < 1 else ""
        return f"temperature {self.temperature:g}{kept}, seed {self.seed}"


def candidates(
    logits: Float32[np.ndarray, " vocab"], sampling: Sampling
) -> tuple[Int[np.ndarray, " kept"], Float64[np.ndarray, " kept"]]:
    """Tokens that may be drawn, most likely first, and their probabilities, which sum to 1.

    Args:
        logits: of one position.
        sampling: how tokens are chosen, with a temperature above 0.

    Raises:
        LpuError: a logit is not a number, or none is finite.

    Fidelity: approximate, in float64.
    """
    wide = logits.astype(np.float64)
    if np.isnan(wide).any() or not np.isfinite(wide.max()):
        raise LpuError("no token can be drawn: the logits are not finite; try another policy.")
    order = np.argsort(-wide, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf
        weights = np.exp((wide[order] - wide[order[0]]) / sampling.temperature)
    probabilities = weights / weights.sum()
    kept = probabilities
    if sampling.top_p < 1:
        n_before = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p))
        kept = probabilities[: n_before + 1]
    return order[: len(kept)], kept / kept.sum()


class Draws:
    """The random numbers of one sequence: one for each position, in any order.

    Args:
        seed: of the run.
        prompt: tokens of the sequence's prompt.
        copy: which of several equal prompts of a batch this is, from 0.
    """

    def __init__(self, seed: int, prompt: Sequence[int], copy: int = 0) -> None:
        name = f"{seed}/{copy}/{','.join(str(int(token)) for token in prompt)}"
        # NumPy promises the raw words of its bit generators for all releases, not what it makes
        # of them.
        self._key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")

    def uniform(self, position: int) -> float:
        """A number from 0 to below 1."""
        generator = np.random.Philox(key=self._key, counter=[0, position, 0, 0])
        return float(int(generator.random_raw()) >> _SPARE_BITS) * 2.0**-53


def draw(
    logits: Float32[np.ndarray, " vocab"], sampling: Sampling, draws: Draws, position: int
) -> int:
    """Choose the token at a position.

    Args:
        logits: of the position before it.
        sampling: how, with a temperature above 0.
        draws: random numbers of the sequence.
        position: in the sequence, its prompt included.

    Raises:
        LpuError: as in `candidates`.
    """
    tokens, probabilities = candidates(logits, sampling)
    reached = np.cumsum(probabilities)
    # The last sum may round to less than 1; scaling by it leaves no gap.
    place = np.searchsorted(reached, draws.uniform(position) * reached[-1], side="right")
    return int(tokens[min(int(place), len(tokens) - 1)])
