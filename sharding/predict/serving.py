"""Serving in numbers: what is asked of a step, how a prompt is taken in, and the first token.

Decoding, speculative decoding and prefill are one program with 1, draft + 1, or a chunk of new
tokens per sequence. Not modelled: prompts that share the chips with sequences that are decoded,
chunks of unequal length (the last one is padded), and a prompt's attention growing chunk by chunk:
each attends to all allocated positions, as the static program does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from ..plan import Plan
from ..scenario import Scenario
from .evaluate import evaluate


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """How plans take in a prompt for every sequence of a micro-batch; one entry per plan."""

    chunk_tokens: Int[np.ndarray, " plans"]  #: new tokens per sequence of a step
    latency_s: Float[np.ndarray, " plans"]  #: on the chips, up to the first token sampled
    time_to_first_token_s: Float[np.ndarray, " plans"]  #: the same and the host's overhead


def prefill(
    plans: Sequence[Plan],
    fits: Bool[np.ndarray, " plans"],
    scenario: Scenario,
    prompt_tokens: int,
) -> Prefill:
    """Choose the chunk that takes a prompt in fastest, of those whose activations fit.

    Chunks follow one another through the stages; the last one's whole way to its sampled token
    counts, and of each before it the slowest stage. Large chunks share the installation of weights,
    but in MoE blocks every slot multiplies all rows of a chunk.

    Args:
        plans: legal plans.
        fits: whether each fits for one token; one that does not has chunks as if it did.
        scenario: of the decode steps.
        prompt_tokens: tokens of each sequence's prompt, at most the context.

    Returns:
        Chunk and times of each plan.

    Fidelity: approximate.
    """
    system = scenario.system
    chunk = min(prompt_tokens, system.chip.prefill_chunk_tokens)
    tokens, seconds = np.ones(len(plans), np.int64), np.full(len(plans), np.inf)
    while chunk:
        asked = replace(scenario.request, tokens=chunk, acceptance=None)
        step = evaluate(plans, replace(scenario, request=asked))
        n_chunks = -(-prompt_tokens // chunk)
        cycles = step.latency_cycles - step.host_cycles + (n_chunks - 1) * step.slowest_stage_cycles
        allowed = step.fits | ~fits | (chunk == 1)
        better = allowed & (cycles / step.clock_hz < seconds)
        tokens = np.where(better, chunk, tokens)
        seconds = np.where(better, cycles / step.clock_hz, seconds)
        chunk //= 2
    return Prefill(
        chunk_tokens=tokens,
        latency_s=seconds,
        time_to_first_token_s=seconds + system.host_overhead_s,
    )
