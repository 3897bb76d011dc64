"""Prefill: in which chunks a prompt is taken in, and when its first token is there.

A prefill step is the program of a decode step with a chunk of new tokens per sequence; the last
chunk is a shorter step of its own. Not modelled: prompts that share the chips with sequences that
are decoded, and a prompt's attention growing chunk by chunk: each attends to all allocated
positions, as the static program does, which also runs the head on every chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from ..plan import Plan
from ..scenario import Scenario
from .evaluate import Evaluation, evaluate


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """How plans take in a prompt for every sequence of a micro-batch; one entry per plan."""

    chunk_tokens: Int[np.ndarray, " plans"]  #: new tokens per sequence of a step
    #: Whether a longer chunk would be faster if its activations fitted.
    is_memory_bound: Bool[np.ndarray, " plans"]
    latency_s: Float[np.ndarray, " plans"]  #: on the chips, up to the first token sampled
    time_to_first_token_s: Float[np.ndarray, " plans"]  #: the same and the host's overhead


def chunk_lengths(scenario: Scenario) -> tuple[int, ...]:
    """List the chunks that are tried: powers of two, and the longest that chip and context allow.

    The prompt has no part in it, so that a longer one never has an earlier first token.
    """
    most = min(scenario.request.context, scenario.system.chip.prefill_chunk_tokens)
    powers = (1 << i for i in range(most.bit_length()))
    return tuple(sorted({most, *powers}))


def prefill(
    plans: Sequence[Plan],
    fits: Bool[np.ndarray, " plans"],
    scenario: Scenario,
    prompt_tokens: int,
    chunks: Sequence[int] | None = None,
) -> Prefill:
    """Choose the chunk with the earliest first token, of those whose activations fit.

    Large chunks share the installation of weights and the latencies of the links; they need more
    room, and leave stages idle where a prompt has few of them.

    Args:
        plans: legal plans.
        fits: whether each fits for one token; one that does not has chunks as if it did.
        scenario: of the decode steps.
        prompt_tokens: tokens of each sequence's prompt, at most the context.
        chunks: new tokens per sequence of a step, ascending from 1; None: `chunk_lengths`.

    Returns:
        Chunk and times of each plan. A longer prompt has no earlier first token, and more chunks
        to choose from make it no later.

    Fidelity: approximate.
    """
    system = scenario.system
    tokens = np.ones(len(plans), np.int64)
    seconds, unbound_s = np.full((2, len(plans)), np.inf)
    for chunk in chunk_lengths(scenario) if chunks is None else chunks:
        found_s, has_room = _prompt_s(plans, scenario, prompt_tokens, chunk)
        unbound_s = np.minimum(unbound_s, found_s)
        better = (has_room | ~fits | (chunk == 1)) & (found_s < seconds)
        tokens = np.where(better, chunk, tokens)
        seconds = np.where(better, found_s, seconds)
        if chunk >= prompt_tokens:
            break  # longer ones would be the same step
    return Prefill(
        chunk_tokens=tokens,
        is_memory_bound=unbound_s < seconds,
        latency_s=seconds,
        time_to_first_token_s=seconds + system.host_overhead_s,
    )


def _prompt_s(
    plans: Sequence[Plan], scenario: Scenario, prompt_tokens: int, chunk: int
) -> tuple[Float[np.ndarray, " plans"], Bool[np.ndarray, " plans"]]:
    """Time of a prompt in chunks of a length, and whether such a chunk fits.

    Chunks follow one another through the stages. The first takes its whole way, each other one
    the time of its slowest stage more: exact for equal chunks, and where the last is shorter at
    most that time too long.
    """

    def step(tokens: int) -> Evaluation:
        """A step of so many tokens, with the cache of the chunk's: its stages are cut alike."""
        longest = max(chunk, scenario.request.longest_step)
        asked = replace(scenario.request, tokens=tokens, most_tokens=longest, acceptance=None)
        return evaluate(plans, replace(scenario, request=asked))

    before, rest = divmod(prompt_tokens - 1, chunk)
    whole = step(chunk)
    last = whole if rest + 1 == chunk else step(rest + 1)
    if before == 0:
        cycles = last.latency_cycles - last.host_cycles
    else:
        cycles = (
            whole.latency_cycles
            - whole.host_cycles
            + (before - 1) * whole.slowest_stage_cycles
            + last.slowest_stage_cycles
        )
    return cycles / whole.clock_hz, whole.fits
