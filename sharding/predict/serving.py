"""Prefill: in which chunks a prompt is taken in, and when its first token is there.

A prefill step is the program of a decode step with a chunk of new tokens per sequence. There are
programs of a few lengths; what is left of a prompt takes a shorter one. Not modelled: prompts that
share the chips with sequences that are decoded, and a prompt's attention growing chunk by chunk:
each attends to all allocated positions, as the static program does, which also runs the head on
every chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from ..plan import Plan
from ..scenario import Scenario
from .evaluate import Evaluation, Numbers, evaluate


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """How plans take in a prompt for every sequence of a micro-batch; one entry per plan."""

    chunk_tokens: Int[np.ndarray, " plans"]  #: new tokens per sequence of a step
    #: Whether a longer chunk would be faster if its activations fitted.
    is_memory_bound: Bool[np.ndarray, " plans"]
    latency_s: Float[np.ndarray, " plans"]  #: on the chips, up to the first token sampled
    time_to_first_token_s: Float[np.ndarray, " plans"]  #: the same and the host's overhead


def chunk_lengths(scenario: Scenario) -> tuple[int, ...]:
    """List the lengths of programs: powers of two, and the longest that chip and context allow.

    The prompt has no part in it, so that a longer one never has an earlier first token.
    """
    chips = [own.system.chip for own in scenario.pools]
    most = min(scenario.request.context, *(chip.prefill_chunk_tokens for chip in chips))
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
    lengths = chunk_lengths(scenario) if chunks is None else chunks
    steps = {length: _step(plans, scenario, length) for length in lengths}
    tokens = np.ones(len(plans), np.int64)
    seconds, unbound_s = np.full((2, len(plans)), np.inf)
    for chunk, step in steps.items():
        found_s = _prompt_cycles(steps, prompt_tokens, chunk) / step.clock_hz
        unbound_s = np.minimum(unbound_s, found_s)
        better = (step.fits | ~fits | (chunk == 1)) & (found_s < seconds)
        tokens = np.where(better, chunk, tokens)
        seconds = np.where(better, found_s, seconds)
    return Prefill(
        chunk_tokens=tokens,
        is_memory_bound=unbound_s < seconds,
        latency_s=seconds,
        # The host of the head, whose time the steps had.
        time_to_first_token_s=seconds + scenario.pools[0].system.host_overhead_s,
    )


def _step(plans: Sequence[Plan], scenario: Scenario, tokens: int) -> Evaluation:
    """Evaluate a step of so many tokens; rings of sliding layers hold the longest chunk.

    Slots that a plan gives a number for are those of its decode step.
    """
    longest = max(chunk_lengths(scenario)[-1], scenario.request.longest_step)
    asked = replace(scenario.request, tokens=tokens, most_tokens=longest, acceptance=None)
    ruled = [plan.with_ruled_slots for plan in plans]
    return evaluate(ruled, replace(scenario, request=asked))


def _prompt_cycles(steps: Mapping[int, Evaluation], prompt_tokens: int, chunk: int) -> Numbers:
    """Cycles of a prompt in chunks of a length, the last of which takes any program that holds it.

    Chunks follow one another through the stages. The first takes its whole way, each other one
    the time of its slowest stage more: exact for equal chunks, and where the last is shorter at
    most that time too long.
    """
    before, rest = divmod(prompt_tokens - 1, chunk)
    last = [step for length, step in steps.items() if rest < length <= chunk]
    whole = steps[chunk]
    if before == 0:
        return np.asarray(np.min([step.latency_cycles for step in last], 0) - whole.host_cycles)
    return np.asarray(
        whole.latency_cycles
        - whole.host_cycles
        + (before - 1) * whole.slowest_stage_cycles
        + np.min([step.slowest_stage_cycles for step in last], 0)
    )
