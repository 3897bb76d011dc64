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

from lpu_jax.errors import LpuError
from lpu_jax.machine.system import System
from models.config import ModelConfig
from models.policy import Policy

from ..axes import Request
from ..legal import check_request
from ..plan import Plan
from .evaluate import evaluate


def decode_request(
    cfg: ModelConfig,
    *,
    batch: int = 1,
    context: int,
    draft_tokens: int | None = None,
    acceptance: float | None = None,
) -> Request:
    """Say what a decode step does, with or without drafts.

    Args:
        cfg: the model.
        batch: sequences per micro-batch.
        context: allocated positions per sequence.
        draft_tokens: drafted tokens behind the known one; None: no speculation.
        acceptance: probability that a draft is accepted; given with `draft_tokens`.

    Returns:
        A request with `draft_tokens + 1` new tokens per sequence.

    Raises:
        LpuError: an impossible number, or one of the two without the other.
    """
    if (draft_tokens is None) != (acceptance is None):
        given, missing = ("draft tokens", "acceptance") if acceptance is None else (
            "acceptance", "draft tokens"
        )  # fmt: skip
        raise LpuError(f"{given} was given without {missing}; speculative decoding needs both.")
    request = Request(batch=batch, context=context)
    check_request(request, cfg)
    if draft_tokens is None or acceptance is None:
        return request
    if isinstance(draft_tokens, bool) or not isinstance(draft_tokens, int):
        raise LpuError(f"draft tokens is {draft_tokens!r}; it must be a whole number.")
    if not 0 <= draft_tokens < context:
        raise LpuError(
            f"draft tokens is {draft_tokens}; it must be at least 0 and below the context of "
            f"{context}."
        )
    is_number = isinstance(acceptance, int | float) and not isinstance(acceptance, bool)
    if not is_number or not 0 <= acceptance <= 1:
        raise LpuError(f"acceptance is {acceptance!r}; it must be a number from 0 to 1.")
    return replace(request, tokens=draft_tokens + 1, acceptance=float(acceptance))


def check_prompt(prompt: int | None, request: Request) -> int:
    """Choose the length of a prompt: as given, or as long as the context.

    Raises:
        LpuError: not a whole number from 1 to the context.
    """
    if prompt is None:
        return request.context
    whole = isinstance(prompt, int) and not isinstance(prompt, bool)
    if not whole or not 1 <= prompt <= request.context:
        raise LpuError(
            f"prompt is {prompt!r}; it must be a whole number from 1 to the context of "
            f"{request.context}."
        )
    return prompt


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """How plans take in a prompt for every sequence of a micro-batch; one entry per plan."""

    chunk_tokens: Int[np.ndarray, " plans"]  #: new tokens per sequence of a step
    latency_s: Float[np.ndarray, " plans"]  #: on the chips, up to the first token sampled
    time_to_first_token_s: Float[np.ndarray, " plans"]  #: the same and the host's overhead


def prefill(
    plans: Sequence[Plan],
    fits: Bool[np.ndarray, " plans"],
    cfg: ModelConfig,
    system: System,
    policy: Policy,
    request: Request,
    prompt_tokens: int,
) -> Prefill:
    """Choose the chunk that takes a prompt in fastest, of those whose activations fit.

    Chunks follow one another through the stages; the last one's whole way to its sampled token
    counts, and of each before it the slowest stage. Large chunks share the installation of weights,
    but in MoE blocks every slot multiplies all rows of a chunk.

    Args:
        plans: legal plans.
        fits: whether each fits for one token; one that does not has chunks as if it did.
        cfg: the model.
        system: the machine.
        policy: formats of the weights.
        request: of the decode steps: batch and context.
        prompt_tokens: tokens of each sequence's prompt, at most the context.

    Returns:
        Chunk and times of each plan.

    Fidelity: approximate.
    """
    chunk = min(prompt_tokens, system.chip.prefill_chunk_tokens)
    tokens, seconds = np.ones(len(plans), np.int64), np.full(len(plans), np.inf)
    while chunk:
        asked = replace(request, tokens=chunk, acceptance=None)
        step = evaluate(plans, cfg, system, policy, asked)
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
