"""Text from real weights on emulated chips: prefill, then greedy decoding with a cache.

The prompt is padded to a bucket, so that prompts of many lengths share two compiled programs per
kind of block. Not built: sampling, several prompts at once, chat templates.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, Float32

from lpu_jax.errors import PlanError, WeightsError
from lpu_jax.system import System
from models.blocks import Block, block_chain
from models.config import ModelConfig
from models.policy import FP16, Policy
from models.reference import Transformer
from models.tokenizer import Tokenizer
from models.weights.source import WeightSource

from .axes import Request
from .emulate import sqnr_db
from .execute import run_attention, run_block, with_inputs
from .load import LoadedBlock, place_block, store_block
from .plan import Plan

#: Prompts are padded to a multiple of this many tokens.
BUCKET = 32
#: The cache is allocated in whole vectors of 320 positions; a longer one changes no bit.
_CONTEXT_STEP = 320


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was generated, and how far its numbers are from the float32 reference."""

    text: str  #: of the new tokens, without the prompt
    tokens: tuple[int, ...]  #: new tokens, the one that ended the text included
    prompt_tokens: tuple[int, ...]
    logits: Float32[np.ndarray, " vocab"] = field(repr=False, compare=False)  #: of the first step
    sqnr_db: float | None  #: of these logits; None without a reference
    #: share of steps at which the reference, given the same text so far, prefers the same token
    argmax_agreement: float | None
    prefill_s: float  #: time on this computer, compilation included; says nothing of the chips
    decode_s: tuple[float, ...]  #: likewise, of each further token

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON, without the logits."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "prompt_tokens": list(self.prompt_tokens),
            "sqnr_db": self.sqnr_db,
            "argmax_agreement": self.argmax_agreement,
            "prefill_s": self.prefill_s,
            "decode_s": list(self.decode_s),
        }


def generate(
    source: WeightSource,
    tokenizer: Tokenizer,
    prompt: str,
    system: System,
    plan: Plan,
    *,
    policy: Policy | None = None,
    max_new_tokens: int = 8,
    stop_tokens: Collection[int] | None = None,
    reference: bool = True,
    execution: str = "virtual",
    on_token: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt with the most likely tokens, on the chips of a plan.

    Args:
        source: weights; of a GGUF file, `load_gguf(path).weights`.
        tokenizer: of the same model, `Tokenizer(load_gguf(path).tokenizer)`.
        prompt: text; control tokens in it are recognised.
        system: its node and rack sizes fix the order of sums across chips.
        plan: how blocks are split. Stages change no value, so all blocks run on one group of chips.
        policy: formats of the weights, fp16 by default.
        max_new_tokens: stop after so many, or behind a stop token.
        stop_tokens: by default those that the model's configuration names as end of text.
        reference: compare the logits with a float32 model of the unrounded weights.
        execution: `virtual` chips, or `devices`.
        on_token: called with each piece of text as it comes.

    Returns:
        Text, tokens and comparison.

    Raises:
        LpuError: the system is one of GPUs.
        PlanError: the prompt is empty, no token is asked for, or both do not fit the model's
            positions.
        WeightsError: the tokenizer has more tokens than the model.

    Fidelity: faithful: every block runs the datapath's own rounding.
    """
    system.require_lpu("generate")
    cfg = source.config
    prompt_tokens = tokenizer.encode(prompt)
    _check_request(cfg, tokenizer, prompt_tokens, max_new_tokens)
    chips = _Chips(
        source,
        plan,
        FP16 if policy is None else policy,
        system,
        len(prompt_tokens),
        max_new_tokens,
        execution,
    )
    new: list[int] = []
    first_logits: Float32[np.ndarray, " vocab"] | None = None
    seconds = []
    pending = prompt_tokens
    stops = cfg.eos_token_ids if stop_tokens is None else stop_tokens
    while len(new) < max_new_tokens and not (new and new[-1] in stops):
        begun = perf_counter()
        token, logits = chips.advance(pending)
        seconds.append(perf_counter() - begun)
        first_logits = logits if first_logits is None else first_logits
        new.append(token)
        pending = [token]
        if on_token is not None:
            on_token(tokenizer.decode([token]))
    assert first_logits is not None
    compared = _compare(source, prompt_tokens, new, first_logits) if reference else (None, None)
    return Generation(
        text=tokenizer.decode(new),
        tokens=tuple(new),
        prompt_tokens=tuple(prompt_tokens),
        logits=first_logits,
        sqnr_db=compared[0],
        argmax_agreement=compared[1],
        prefill_s=seconds[0],
        decode_s=tuple(seconds[1:]),
    )


def _check_request(
    cfg: ModelConfig, tokenizer: Tokenizer, prompt_tokens: list[int], max_new_tokens: int
) -> None:
    if not prompt_tokens:
        raise PlanError("generate: the prompt is empty; at least one token is needed.")
    if max_new_tokens < 1:
        raise PlanError(f"generate: {max_new_tokens} new tokens were asked for; 1 is the least.")
    needed = len(prompt_tokens) + max_new_tokens
    if needed > cfg.max_position:
        raise PlanError(
            f"generate: prompt and new tokens need {needed} positions; {cfg.name} has "
            f"{cfg.max_position}."
        )
    if len(tokenizer.data.tokens) > cfg.vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(tokenizer.data.tokens)} tokens; {cfg.name} has only "
            f"{cfg.vocab_size}."
        )


def _compare(
    source: WeightSource,
    prompt_tokens: list[int],
    new: list[int],
    logits: Float32[np.ndarray, " vocab"],
) -> tuple[float, float]:
    """Run the reference over prompt and answer: SQNR of the first step, agreement of all."""
    whole = jnp.asarray([prompt_tokens + new[:-1]], jnp.int32)
    expected = np.asarray(Transformer(source)(whole)[0, len(prompt_tokens) - 1 :])
    agree = float(np.mean(expected.argmax(-1) == np.asarray(new)))
    return sqnr_db(expected[0], logits), agree


class _Chips:
    """All blocks of a model on the chips of a plan, and their caches."""

    def __init__(
        self,
        source: WeightSource,
        plan: Plan,
        policy: Policy,
        system: System,
        n_prompt: int,
        n_new: int,
        execution: str,
    ) -> None:
        self.cfg = source.config
        self.execution = execution
        self.position = 0
        topology = system.topology
        tiers = (topology.node_chips, topology.rack_chips)
        padded_prompt = -(-n_prompt // BUCKET) * BUCKET
        context = -(-(padded_prompt + n_new) // _CONTEXT_STEP) * _CONTEXT_STEP
        self.chain: tuple[Block, ...] = block_chain(self.cfg)
        self.placed: dict[int, list[LoadedBlock]] = {padded_prompt: [], 1: []}
        tables: Any = None
        for block in self.chain:
            stored = store_block(source, block.kind, block.layer, policy)
            shared: Any = None
            for tokens, placed in self.placed.items():
                request = Request(batch=1, tokens=tokens, context=context)
                loaded = place_block(stored, plan, request, tiers=tiers, widen_once=True)
                # One copy of the weights in memory, whatever the number of tokens.
                shared = loaded.arguments[1] if shared is None else shared
                arguments = (loaded.arguments[0], shared, *loaded.arguments[2:])
                if block.kind == "attention":
                    tables = arguments[3] if tables is None else tables
                    arguments = (*arguments[:3], tables, *arguments[4:])
                placed.append(replace(loaded, arguments=arguments))
        self.caches = [
            loaded.arguments[2] if loaded.kind == "attention" else None for loaded in self.placed[1]
        ]

    def advance(self, tokens: list[int]) -> tuple[int, Float32[np.ndarray, " vocab"]]:
        """Run new tokens through all blocks and return the most likely next one and the logits."""
        # The first call is the prompt, padded at its end: later tokens overwrite the padding's
        # cache entries before any query may see them.
        bucket = 1 if self.position else max(self.placed)
        row = np.zeros((1, bucket), np.int32)
        row[0, : len(tokens)] = tokens
        positions = np.full(1, self.position, np.int32)
        hidden: Any = row
        for i, block in enumerate(self.placed[bucket]):
            if block.kind == "attention":
                hidden, self.caches[i] = run_attention(
                    self.cfg, block, hidden, self.caches[i], positions, execution=self.execution
                )
            elif block.kind == "head":
                token, logits = self._head(block, hidden, len(tokens) - 1)
            else:
                hidden = run_block(self.cfg, with_inputs(block, hidden), execution=self.execution)
        self.position += len(tokens)
        return token, logits

    def _head(
        self, block: LoadedBlock, hidden: Float16[Array, "1 t d"], row: int
    ) -> tuple[int, Float32[np.ndarray, " vocab"]]:
        rows = np.full(1, row, np.int32)
        best, logits = run_block(
            self.cfg, with_inputs(block, hidden, rows), execution=self.execution
        )
        return int(best[0, 0]), np.asarray(jax.device_get(logits))[0, : self.cfg.vocab_size]


def generation_text(prompt: str, made: Generation, plan: Plan, system: System) -> str:
    """What was generated, where, and how far its first logits are from the reference."""
    steps = f"{len(made.tokens)} tokens"
    lines = [f"{prompt}{made.text}", ""]
    lines.append(
        f"{steps}, greedy, on {plan.group_chips} virtual chips of {system.name}, plan "
        f"{plan.name}; faithful numerics"
    )
    if made.sqnr_db is not None and made.argmax_agreement is not None:
        lines.append(
            f"logits of the first step against float32: SQNR {made.sqnr_db:.1f} dB; "
            f"the reference prefers the same token at {made.argmax_agreement:.0%} of the steps"
        )
    decode = f", {sum(made.decode_s) / len(made.decode_s):.2f} s a token" if made.decode_s else ""
    lines.append(
        f"on this computer: prompt {made.prefill_s:.1f} s with compilation{decode} "
        "(nothing of the chips)"
    )
    return "\n".join(lines)
