"""Text to token numbers and back, for the byte-pair tokenizers stored in GGUF files.

Only the "gpt2" model with the "smollm" pre-tokenizer is known: digits one by one, then GPT-2's
split and byte alphabet. Chat templates are not read; the tokens that end a text are in the model's
configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from lpu_jax.errors import WeightsError

#: GGUF's token type for tokens that text is never split into, such as `<|im_start|>`.
CONTROL_TOKEN_TYPE = 3


@dataclass(frozen=True, kw_only=True)
class TokenizerData:
    """A tokenizer as data.

    Attributes:
        model: the algorithm, GGUF's `tokenizer.ggml.model`.
        pre_tokenizer: the rule that splits text first, GGUF's `tokenizer.ggml.pre`.
        tokens: the text of each token, in the byte alphabet of GPT-2, by token number.
        token_types: GGUF's type of each token.
        merges: pairs in the order they are merged, each as "left right".
        bos_token_id: the token that begins a text, if any.
        add_bos: whether `encode` puts the first before every text.
    """

    model: str
    pre_tokenizer: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    bos_token_id: int | None = None
    add_bos: bool = False


class Tokenizer:
    """Encodes text for one model and decodes its answers."""

    def __init__(self, data: TokenizerData) -> None:
        if (data.model, data.pre_tokenizer) != ("gpt2", "smollm"):
            raise WeightsError(
                f"tokenizer must be gpt2 with the smollm pre-tokenizer, got {data.model} with "
                f"{data.pre_tokenizer}."
            )
        vocabulary = {token: number for number, token in enumerate(data.tokens)}
        merges = [_pair(merge) for merge in data.merges]
        self.data = data
        self._engine = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=merges))
        self._engine.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        self._engine.decoder = decoders.ByteLevel()
        self._engine.add_special_tokens(
            [
                token
                for token, kind in zip(data.tokens, data.token_types, strict=True)
                if kind == CONTROL_TOKEN_TYPE
            ]
        )

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of `text`; control tokens in it are recognised."""
        ids: list[int] = self._engine.encode(text).ids
        bos = self.data.bos_token_id
        return [bos, *ids] if self.data.add_bos and bos is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; control tokens are left out."""
        text: str = self._engine.decode([int(token) for token in ids])
        return text


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
