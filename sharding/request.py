"""What a model is asked to do at once: new tokens, sequences, positions, drafts.

Decoding, speculative decoding and prefill are one program with 1, draft + 1, or a chunk of new
tokens per sequence. Not modelled: the draft model's time and memory, and acceptance that differs
between positions or texts; one probability, independent for each draft, is the user's to give.
"""

from dataclasses import dataclass

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.predicates import is_number, is_whole
from models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the model is asked to do at once."""

    batch: int = 1
    tokens: int = 1  #: new tokens per sequence
    context: int = 4096  #: allocated positions
    #: Probability that a draft is accepted, if all tokens but the first are drafts.
    acceptance: float | None = None
    #: New tokens of the longest step that shares a cache with this one; None: this is the longest.
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        """Take whole numbers of NumPy, such as those of a sweep, as Python's."""
        for name in ("batch", "tokens", "context", "most_tokens"):
            number = getattr(self, name)
            if is_whole(number):
                object.__setattr__(self, name, int(number))
        if is_number(self.acceptance):
            object.__setattr__(self, "acceptance", float(self.acceptance))

    @property
    def longest_step(self) -> int:
        """New tokens per sequence that the cache must have room for at once."""
        return max(self.tokens, self.most_tokens or 1)

    @property
    def kept_tokens(self) -> float:
        """Tokens that a step adds to a sequence, on average."""
        if self.acceptance is None:
            return float(self.tokens)
        return expected_tokens(self.tokens - 1, self.acceptance)

    @property
    def sampled_tokens(self) -> int:
        """Positions of a sequence whose next token is chosen: the last, or each draft's too."""
        return 1 if self.acceptance is None else self.tokens


#: No request is larger: a limit that keeps whole numbers exact.
MOST_AT_ONCE = 1 << 24


#: One sequence, one new token, 4,096 allocated positions: what public functions ask by default.
NEXT_TOKEN = Request()


def check_request(request: Request, cfg: ModelConfig) -> None:
    """Refuse a request that no plan can serve.

    Raises:
        LpuError: batch, tokens, context or most_tokens is not a whole number of at least 1, the
            context exceeds the model's positions, the new tokens exceed the context, the acceptance
            is not a probability, or the model cannot be given drafts.
    """
    for name in ("batch", "tokens", "context", "most_tokens"):
        number = getattr(request, name)
        if name == "most_tokens" and number is None:
            continue
        _check_whole(name, number)
        if number < 1:
            raise LpuError(f"{name} is {described(number)}; it must be at least 1.")
        if number > MOST_AT_ONCE:
            raise LpuError(f"{name} is {described(number)}; it must be at most {MOST_AT_ONCE}.")
    if request.context > cfg.max_position:
        raise LpuError(
            f"context is {request.context}; {cfg.name} has {cfg.max_position} positions at most."
        )
    for name in ("tokens", "most_tokens"):
        if (number := getattr(request, name)) is not None and number > request.context:
            raise LpuError(
                f"{name} is {number}; a step adds at most the {request.context} positions of the "
                "context."
            )
    if request.acceptance is not None:
        _check_acceptance(request.acceptance)
        check_drafts(cfg)


def check_drafts(cfg: ModelConfig) -> None:
    """Refuse drafts for a model, or by one, whose state cannot forget those that are not kept.

    Raises:
        LpuError: it has recurrent layers.
    """
    if "recurrent" in cfg.kind_counts:
        raise LpuError(
            f"{cfg.name} has recurrent layers, whose states would keep drafts that are not "
            "accepted; drafts are not built for it."
        )


def _check_acceptance(rate: object) -> None:
    if not is_number(rate) or not 0 <= rate <= 1:
        raise LpuError(f"acceptance is {described(rate)}; it must be a number from 0 to 1.")


def _check_whole(name: str, number: object) -> None:
    if not is_whole(number):
        raise LpuError(f"{name} is {described(number)}; it must be a whole number.")


def decode_request(
    *,
    batch: int = 1,
    context: int,
    draft_tokens: int | None = None,
    acceptance: float | None = None,
) -> Request:
    """Say what a decode step does, with or without drafts.

    Args:
        batch: sequences per micro-batch.
        context: allocated positions per sequence.
        draft_tokens: drafted tokens after the known one; None: no speculation.
        acceptance: probability that a draft is accepted; given with `draft_tokens`.

    Returns:
        A request with `draft_tokens + 1` new tokens per sequence.

    Raises:
        LpuError: a number that is none, one of the two without the other, or drafts that are not a
            number of tokens.
    """
    for name, number in (("batch", batch), ("context", context)):
        _check_whole(name, number)
        if number < 1:
            raise LpuError(f"{name} is {described(number)}; it must be at least 1.")
    if draft_tokens is None and acceptance is None:
        return Request(batch=batch, context=context)
    if draft_tokens is None or acceptance is None:
        given, missing = ("draft tokens", "acceptance") if acceptance is None else (
            "acceptance", "draft tokens"
        )  # fmt: skip
        raise LpuError(f"{given} was given without {missing}; speculative decoding needs both.")
    _check_whole("draft tokens", draft_tokens)
    if not 0 <= draft_tokens < context:
        raise LpuError(
            f"draft tokens is {described(draft_tokens)}; it must be at least 0 and below the "
            f"context of {context}."
        )
    _check_acceptance(acceptance)
    return Request(batch=batch, context=context, tokens=draft_tokens + 1, acceptance=acceptance)


def check_prompt(prompt: int | None, request: Request) -> int:
    """Choose the length of a prompt: as given, or as long as the context.

    Raises:
        LpuError: not a whole number from 1 to the context.
    """
    if prompt is None:
        return request.context
    if not is_whole(prompt) or not 1 <= prompt <= request.context:
        raise LpuError(
            f"prompt is {described(prompt)}; it must be a whole number from 1 to the context of "
            f"{request.context}."
        )
    return int(prompt)


def expected_tokens(draft_tokens: int, acceptance: float) -> float:
    """Count the tokens that a step adds to a sequence, on average.

    The `i`-th draft is kept if it and all before it are accepted, with probability
    `acceptance ** i`; the sum over `i` from 0, the model's own token, to `draft_tokens` is
    `(1 - a ** (k + 1)) / (1 - a)`.

    Args:
        draft_tokens: `k`, at least 0.
        acceptance: `a`, from 0 to 1.

    Returns:
        Tokens per step and sequence, from 1 to `draft_tokens + 1`.

    Example:
        >>> expected_tokens(3, 0.5)
        1.875
    """
    kept = 1.0
    for _ in range(draft_tokens):
        kept = 1 + acceptance * kept  # Horner: exact at 0 and 1
    return kept
