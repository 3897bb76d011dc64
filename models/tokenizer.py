"""Text to token numbers and back, for the tokenizers of GGUF files and of checkpoint directories.

Of GGUF's tokenizers, byte-pair encoding with the pre-tokenizers of SmolLM and of Llama 3 is known;
a directory's `tokenizer.json` is run by the package it was written for. SentencePiece and tiktoken
models without a `tokenizer.json` are not read, and no code of a checkpoint is ever run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers.models import BPE

from lpu_jax.errors import WeightsError

from .chat import ChatTemplate

#: GGUF's token type for tokens that text is never split into, such as `<|im_start|>`.
CONTROL_TOKEN_TYPE = 3
#: GGUF's type for tokens that were added to the vocabulary and are part of the text.
USER_DEFINED_TOKEN_TYPE = 4

#: How Llama 3 splits text before it merges bytes, as in its tokenizer.json.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: GGUF's names of pre-tokenizers, and whether a text begins with the first token unless the file
#: says otherwise (for `llama-bpe` so, in llama.cpp's llama-vocab.cpp).
_PRE_TOKENIZERS = {"smollm": False, "llama-bpe": True}
#: Control tokens that end a text or a turn, whatever a file says of them: those that llama.cpp
#: stops at, of the families here.
_END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
    }
)


@dataclass(frozen=True, kw_only=True)
class TokenizerData:
    """A tokenizer as data of a GGUF file.

    Attributes:
        model: the algorithm, GGUF's `tokenizer.ggml.model`.
        pre_tokenizer: the rule that splits text first, GGUF's `tokenizer.ggml.pre`.
        tokens: the text of each token, in the byte alphabet of GPT-2, by token number.
        token_types: GGUF's type of each token.
        merges: pairs in the order they are merged, each as "left right".
        bos_token_id: the token that begins a text, if any.
        eos_token_id: the token that ends a text, if any.
        add_bos: whether `encode` puts the first before every text; None: as the pre-tokenizer
            does.
    """

    model: str
    pre_tokenizer: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    add_bos: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerJson:
    """A tokenizer as a checkpoint directory has it; `models.tokenizer_files` reads it.

    Attributes:
        path: of the `tokenizer.json`, for messages.
        content: the whole file.
        special_tokens: such as `bos_token`, by the names that chat templates use.
        end_token_ids: numbers that the directory's files say end a text.
    """

    path: str
    content: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()


class Tokenizer:
    """Encodes text for one model and decodes its answers.

    Args:
        data: what it is made of.
        chat_template: the model's Jinja template, if it has one.

    Attributes:
        n_tokens: one more than its largest token number.
        end_tokens: numbers that end a text or a turn.
        chat_template: the model's, with its special tokens.

    Raises:
        WeightsError: the data do not describe a supported tokenizer.
    """

    def __init__(
        self, data: TokenizerData | TokenizerJson, *, chat_template: str | None = None
    ) -> None:
        self._first: list[int] = []
        if isinstance(data, TokenizerData):
            self._engine = _byte_pair_engine(data)
            special = _special_tokens(data)
            begins = _PRE_TOKENIZERS[data.pre_tokenizer] if data.add_bos is None else data.add_bos
            if begins and data.bos_token_id is not None:
                self._first = [data.bos_token_id]
            ends: Iterable[int | None] = (data.eos_token_id,)
        else:
            self._engine = _read_engine(data)
            special, ends = dict(data.special_tokens), data.end_token_ids
        numbers: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        self.n_tokens = max(numbers.values(), default=-1) + 1
        named = {special.get("eos_token"), *_END_TOKENS}
        self.end_tokens = frozenset(
            {end for end in ends if end is not None}
            | {numbers[token] for token in named if token in numbers}
        )
        self.chat_template = (
            None
            if chat_template is None
            else ChatTemplate(source=chat_template, special_tokens=special)
        )

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """Return the token numbers of `text`; control tokens in it are recognised.

        Args:
            text: what to encode.
            begin: add what the model expects around a text; a rendered chat has it already.
        """
        ids: list[int] = self._engine.encode(text, add_special_tokens=begin).ids
        return [*self._first, *ids] if begin else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; control tokens are left out."""
        text: str = self._engine.decode([int(token) for token in ids])
        return text


def _byte_pair_engine(data: TokenizerData) -> tokenizers.Tokenizer:
    if data.model != "gpt2" or data.pre_tokenizer not in _PRE_TOKENIZERS:
        raise WeightsError(
            f"tokenizer must be gpt2 with the {' or the '.join(_PRE_TOKENIZERS)} pre-tokenizer, "
            f"got {data.model} with {data.pre_tokenizer}."
        )
    vocabulary = {token: number for number, token in enumerate(data.tokens)}
    merges = [_pair(merge) for merge in data.merges]
    is_llama = data.pre_tokenizer == "llama-bpe"
    try:
        engine = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=is_llama))
    except Exception as problem:  # the package raises nothing narrower
        raise WeightsError(f"tokenizer: its merges do not fit its tokens: {problem}.") from problem
    split = (
        pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
        if is_llama
        else pre_tokenizers.Digits(individual_digits=True)
    )
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not is_llama)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, alphabet])
    engine.decoder = decoders.ByteLevel()
    typed = list(zip(data.tokens, data.token_types, strict=True))
    engine.add_special_tokens([token for token, kind in typed if kind == CONTROL_TOKEN_TYPE])
    engine.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in typed
            if kind == USER_DEFINED_TOKEN_TYPE
        ]
    )
    return engine


def _special_tokens(data: TokenizerData) -> dict[str, str]:
    numbers = {"bos_token": data.bos_token_id, "eos_token": data.eos_token_id}
    return {
        name: data.tokens[number]
        for name, number in numbers.items()
        if number is not None and number < len(data.tokens)
    }


def _read_engine(data: TokenizerJson) -> Any:
    try:
        engine = tokenizers.Tokenizer.from_str(data.content)
    except Exception as problem:  # the package raises nothing narrower
        said = " ".join(str(problem).split())
        raise WeightsError(f"{data.path}: it does not describe a tokenizer: {said}.") from problem
    # What a training run cut or padded to is no part of the model.
    engine.no_truncation()
    engine.no_padding()
    return engine


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
