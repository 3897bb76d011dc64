"""Text from real weights on emulated chips: prefill, then decoding with a cache, in batches.

Tokens are chosen on the chips (greedy) or drawn on the host from their logits. A sequence of a
batch gets the same tokens, bit for bit, as it would alone. Not built: continuous batching, where a
new prompt takes the place of a sequence that has ended.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError, WeightsError
from lpu_jax.machine.system import System
from lpu_jax.predicates import is_whole
from models.policy import Policy
from models.reference import stream
from models.sampling import Draws, Sampling, draw
from models.tokenizer import Tokenizer
from models.weights.source import WeightSource

from ..plan import Plan, check_is_plan
from ..scenario import policy_of, source_config, system_of
from .decoding import Decoder, Prediction
from .measures import sqnr_db


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What was generated after one prompt, and how far its numbers are from float32."""

    text: str  #: of the new tokens, without the prompt
    tokens: tuple[int, ...]  #: new tokens, the one that ended the text included
    prompt_tokens: tuple[int, ...]
    ended: Literal["stop", "length"]  #: by a token that ends the text, or by the number asked for
    logits: Float32[np.ndarray, " vocab"] = field(repr=False, compare=False)  #: of the first step
    sqnr_db: float | None  #: of these logits; None without a reference
    #: share of steps at which the reference, given the same text so far, prefers the same token as
    #: the chips
    argmax_agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON, without the logits."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "prompt_tokens": list(self.prompt_tokens),
            "ended": self.ended,
            "sqnr_db": self.sqnr_db,
            "argmax_agreement": self.argmax_agreement,
        }


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was generated after all prompts of a batch."""

    continuations: tuple[Continuation, ...]
    policy: Policy
    sampling: Sampling
    prefill_s: float  #: time on this computer, compilation included; says nothing of the chips
    decode_s: tuple[float, ...]  #: likewise, of each further token of all sequences

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON, without the logits."""
        return {
            "continuations": [one.as_dict() for one in self.continuations],
            "policy": self.policy.name,
            "fidelity": self.policy.fidelity,
            "sampling": {
                "temperature": self.sampling.temperature,
                "top_k": self.sampling.top_k,
                "top_p": self.sampling.top_p,
                "seed": self.sampling.seed,
            },
            "prefill_s": self.prefill_s,
            "decode_s": list(self.decode_s),
        }


def generate(
    source: WeightSource,
    system: str | Path | System,
    plan: Plan,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    policy: str | Policy = "fp16",
    sampling: Sampling | None = None,
    max_new_tokens: int = 8,
    stop_tokens: Collection[int] | None = None,
    reference: bool = True,
    execution: str = "virtual",
    on_text: Callable[[int, str], None] = lambda number, piece: None,
) -> Generation:
    """Continue prompts on the chips of a plan.

    Args:
        source: weights, such as `open_checkpoint(path).weights`.
        system: a system's name, the path of a TOML file, or a system; its node and rack sizes fix
            the order of sums across chips.
        plan: how blocks are split. Stages change no value, so all blocks run on one group of chips.
        tokenizer: of the same model.
        prompts: token numbers, such as `tokenizer.encode(text)`.
        policy: name of a precision policy, or a policy.
        sampling: how tokens are chosen; by default the most likely.
        max_new_tokens: a sequence stops after this many, or after a stop token.
        stop_tokens: by default those that end a text or a turn, as the model's configuration or its
            tokenizer names them.
        reference: compare the logits with a float32 model of the unrounded weights.
        execution: as for `execute.run_block`.
        on_text: called with the number of a prompt and a piece of its text as it comes.

    Returns:
        Text, tokens and comparison of each prompt, in their order.

    Raises:
        LpuError: it is a GPU system, or no token can be drawn.
        PlanError: a prompt is empty or has a token the model does not have, no token is asked for,
            or both do not fit the model's positions.
        WeightsError: the tokenizer has more tokens than the model.

    Fidelity: that of the policy, by default faithful: every block runs the datapath's own rounding.
    """
    system = system_of(system)
    system.require_lpu("generate")
    check_is_plan("generate", plan)
    cfg = source_config(source)
    policy = policy_of(policy, cfg)
    if not isinstance(tokenizer, Tokenizer):
        raise LpuError(
            f"generate: tokenizer is {described(tokenizer)}; it must be a Tokenizer, such as "
            "read_tokenizer(open_checkpoint(path)) of models.tokenizer_files."
        )
    if tokenizer.n_tokens > cfg.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.n_tokens} tokens; {cfg.name} has only {cfg.vocab_size}."
        )
    sampling = Sampling() if sampling is None else sampling
    _check_wishes(sampling, stop_tokens, reference, on_text)
    stops = {*cfg.eos_token_ids, *tokenizer.end_tokens} if stop_tokens is None else stop_tokens
    decoder = Decoder(
        source,
        system,
        plan,
        prompts,
        policy=policy,
        n_new=max_new_tokens,
        execution=execution,
    )
    sequences = _sequences(prompts, tokenizer, sampling, frozenset(stops), max_new_tokens)
    seconds: list[float] = []
    while not seconds or not all(one.ended for one in sequences):
        begun = perf_counter()
        if not seconds:
            made = decoder.prefill()
        else:
            growing = [not one.ended for one in sequences]
            made = decoder.advance([one.tokens[-1] for one in sequences], kept=growing)
        seconds.append(perf_counter() - begun)
        for number, one in enumerate(sequences):
            if not one.ended and (piece := one.take(made, number)):
                on_text(number, piece)
    compared = _compare(source, sequences) if reference else [(None, None)] * len(sequences)
    return Generation(
        continuations=tuple(
            one.result(*found) for one, found in zip(sequences, compared, strict=True)
        ),
        policy=policy,
        sampling=sampling,
        prefill_s=seconds[0],
        decode_s=tuple(seconds[1:]),
    )


def _check_wishes(sampling: object, stops: object, reference: object, on_text: object) -> None:
    """Refuse values of other types.

    Raises:
        LpuError: says which.
    """
    for name, given, is_right, allowed in (
        ("sampling", sampling, isinstance(sampling, Sampling), "a Sampling or None"),
        (
            "stop_tokens",
            stops,
            stops is None
            or (
                isinstance(stops, Collection)
                and not isinstance(stops, str | bytes)
                and all(is_whole(token) and token >= 0 for token in stops)
            ),
            "token numbers, or None",
        ),
        ("reference", reference, isinstance(reference, bool), "True or False"),
        ("on_text", on_text, callable(on_text), "a function"),
    ):
        if not is_right:
            raise LpuError(f"generate: {name} is {described(given)}; it must be {allowed}.")


@dataclass(kw_only=True)
class _Sequence:
    """One prompt and what has followed it so far."""

    prompt: list[int]
    tokenizer: Tokenizer
    sampling: Sampling
    draws: Draws
    stops: frozenset[int]
    most: int
    tokens: list[int] = field(default_factory=list)
    preferred: list[int] = field(default_factory=list)  #: what the chips found most likely
    logits: Float32[np.ndarray, " vocab"] | None = None
    said: str = ""
    ended: Literal["", "stop", "length"] = ""

    def take(self, made: Prediction, row: int) -> str:
        """Choose the next token from a prediction; return the text that it completes."""
        logits = made.logits[row]
        self.logits = logits if self.logits is None else self.logits
        token = int(made.tokens[row])
        self.preferred.append(token)
        if not self.sampling.is_greedy:
            position = len(self.prompt) + len(self.tokens)
            token = draw(logits, self.sampling, self.draws, position)
        self.tokens.append(token)
        if token in self.stops:
            self.ended = "stop"
        elif len(self.tokens) == self.most:
            self.ended = "length"
        return self._new_text()

    def _new_text(self) -> str:
        """Text that was not said before; an unfinished character waits for its other bytes."""
        text = self.text
        if text.endswith("\ufffd") and not self.ended:
            return ""
        piece, self.said = text[len(self.said) :], text
        return piece

    @property
    def text(self) -> str:
        """What the new tokens say after the prompt; alone, some tokenizers drop a first space."""
        before = self.tokenizer.decode(self.prompt)
        return self.tokenizer.decode(self.prompt + self.tokens)[len(before) :]

    def result(self, sqnr: float | None, agreement: float | None) -> Continuation:
        """Close the sequence."""
        assert self.logits is not None
        assert self.ended
        return Continuation(
            text=self.text,
            tokens=tuple(self.tokens),
            prompt_tokens=tuple(self.prompt),
            ended=self.ended,
            logits=self.logits,
            sqnr_db=sqnr,
            argmax_agreement=agreement,
        )


def _sequences(
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    sampling: Sampling,
    stops: frozenset[int],
    most: int,
) -> list[_Sequence]:
    """Begin the sequences; equal prompts of a batch draw from different random numbers."""
    seen: Counter[tuple[int, ...]] = Counter()
    made = []
    for prompt in prompts:
        copy = seen[tuple(prompt)]
        seen[tuple(prompt)] += 1
        made.append(
            _Sequence(
                prompt=list(prompt),
                tokenizer=tokenizer,
                sampling=sampling,
                draws=Draws(sampling.seed, prompt, copy),
                stops=stops,
                most=most,
            )
        )
    return made


def _compare(source: WeightSource, sequences: Sequence[_Sequence]) -> list[tuple[float, float]]:
    """Run the reference over prompts and answers: SQNR of the first step, agreement of all."""
    whole = [one.prompt + one.tokens[:-1] for one in sequences]
    # No position sees a later one, so that any token may pad the end.
    ids = np.zeros((len(whole), max(map(len, whole))), np.int32)
    for row, text in zip(ids, whole, strict=True):
        row[: len(text)] = text
    logits = np.asarray(stream(source, jnp.asarray(ids)))
    found = []
    for of_one, one, text in zip(logits, sequences, whole, strict=True):
        expected = of_one[len(one.prompt) - 1 : len(text)]
        assert one.logits is not None
        agree = float(np.mean(expected.argmax(-1) == np.asarray(one.preferred)))
        found.append((sqnr_db(expected[0], one.logits), agree))
    return found


def generation_text(prompts: Sequence[str], made: Generation, plan: Plan, system: System) -> str:
    """What was generated, where, and how far its first logits are from the reference."""
    lines = []
    for prompt, one in zip(prompts, made.continuations, strict=True):
        lines += [f"{prompt}{one.text}", ""]
    counts = " + ".join(str(len(one.tokens)) for one in made.continuations)
    chips = " and ".join(str(pool.group_chips) for pool in plan.pools)
    lines.append(
        f"{counts} tokens, {made.sampling}, on {chips} virtual chips of {system.name}, "
        f"plan {plan.name}; weights {made.policy.name}, {made.policy.fidelity} numerics"
    )
    sqnrs = [one.sqnr_db for one in made.continuations if one.sqnr_db is not None]
    agreements = [
        one.argmax_agreement for one in made.continuations if one.argmax_agreement is not None
    ]
    if sqnrs:
        worst = "" if len(sqnrs) == 1 else f" (the worst of {len(sqnrs)} prompts)"
        lines.append(
            f"logits of the first step against float32: SQNR {min(sqnrs):.1f} dB; the reference "
            f"prefers the same token at {min(agreements):.0%} of the steps{worst}"
        )
    decode = f", {sum(made.decode_s) / len(made.decode_s):.2f} s a token" if made.decode_s else ""
    lines.append(
        f"on this computer: prompt {made.prefill_s:.1f} s with compilation{decode} "
        "(nothing of the chips)"
    )
    return "\n".join(lines)
