"""Speculative decoding in numbers: how many tokens a step keeps of those that were drafted.

A step runs the token that is known and `k` drafted ones behind it. Drafts are kept up to the first
that the model would not have chosen, and the model's own token follows: at least one token, at most
`k + 1`. Not modelled: the draft model's time and memory, and acceptance that differs between
positions or texts; one probability, independent for each draft, is the user's to give.
"""


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
