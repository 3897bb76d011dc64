"""Text to token numbers and back, for the tokenizers of GGUF files and of checkpoint directories.

Of GGUF's tokenizers, byte-pair encoding with some pre-tokenizers and SentencePiece's, which merges
by the scores of tokens, are known; a directory's `tokenizer.json` is run by the package it was
written for. SentencePiece and tiktoken models without a `tokenizer.json` are not read, and no code
of a checkpoint is ever run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from lpu_jax.errors import WeightsError

from .chat import ChatTemplate

#: GGUF's name of SentencePiece's algorithm (`tokenizer.ggml.model`).
SENTENCEPIECE = "llama"
#: What SentencePiece writes for a space.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
#: GGUF's token type of what stands for text that no token has.
_UNKNOWN_TOKEN_TYPE = 2
#: GGUF's token type for tokens that text is never split into, such as `<|im_start|>`.
CONTROL_TOKEN_TYPE = 3
#: GGUF's type for tokens that were added to the vocabulary and are part of the text.
USER_DEFINED_TOKEN_TYPE = 4

#: How Llama 3 splits text before it merges bytes, as in its tokenizer.json.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: The same of Qwen2 and its followers: digits stand alone.
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, kw_only=True)
class _PreTokenizer:
    """How text is split before bytes are merged, as in the family's tokenizer.json.

    Attributes:
        pattern: what stays together; None: words as GPT-2 has them, digits alone.
        begins: whether a text begins with the first token unless the file says otherwise (in
            llama.cpp's llama-vocab.cpp).
        keeps_tokens: whether a part that is a token is not split and merged again.
        normalises: whether characters that are written in several ways are made one (NFC).
    """

    pattern: str | None = None
    begins: bool = False
    keeps_tokens: bool = False
    normalises: bool = False


#: By GGUF's name.
_PRE_TOKENIZERS: Mapping[str, _PreTokenizer] = {
    "smollm": _PreTokenizer(),
    "llama-bpe": _PreTokenizer(pattern=_LLAMA3_SPLIT, begins=True, keeps_tokens=True),
    "qwen2": _PreTokenizer(pattern=_QWEN2_SPLIT, normalises=True),
}
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
            does, and SentencePiece always.
        scores: of SentencePiece, of each token: of two neighbours those are merged first whose
            token has the highest.
        adds_space: of SentencePiece, whether a space goes before a text.
    """

    model: str
    pre_tokenizer: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    add_bos: bool | None = None
    scores: tuple[float, ...] = ()
    adds_space: bool = True

    @property
    def begins(self) -> bool:
        """Whether every text begins with the first token."""
        if self.add_bos is not None:
            return self.add_bos
        return self.model == SENTENCEPIECE or _PRE_TOKENIZERS[self.pre_tokenizer].begins


@dataclass(frozen=True, kw_only=True)
class TokenizerJson:
    """A tokenizer as a checkpoint directory has it; `models.tokenizer_files` reads it.

    Attributes:
        path: of the `tokenizer.json`, for messages.
        content: the whole file.
        special_tokens: such as `bos_token`, by the names that chat templates use.
        end_token_ids: numbers that the directory's files say end a text.
        added: tokens that the settings add, by number; text is never split into them.
        named: further special tokens that the settings name.
    """

    path: str
    content: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    named: tuple[str, ...] = ()


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
            by_score = data.model == SENTENCEPIECE
            self._engine = _sentencepiece_engine(data) if by_score else _byte_pair_engine(data)
            special = _special_tokens(data)
            if data.begins and data.bos_token_id is not None:
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
            f"tokenizer must be {SENTENCEPIECE}, or gpt2 with the "
            f"{' or the '.join(_PRE_TOKENIZERS)} pre-tokenizer; got {data.model} with "
            f"{data.pre_tokenizer}."
        )
    vocabulary = {token: number for number, token in enumerate(data.tokens)}
    merges = [_pair(merge) for merge in data.merges]
    rule = _PRE_TOKENIZERS[data.pre_tokenizer]
    try:
        engine = tokenizers.Tokenizer(
            BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.keeps_tokens)
        )
    except Exception as problem:  # the package raises nothing narrower
        raise WeightsError(f"tokenizer: its merges do not fit its tokens: {problem}.") from problem
    split = (
        pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated")
        if rule.pattern
        else pre_tokenizers.Digits(individual_digits=True)
    )
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, alphabet])
    if rule.normalises:
        engine.normalizer = normalizers.NFC()
    engine.decoder = decoders.ByteLevel()
    _add_tokens(engine, data)
    return engine


def _sentencepiece_engine(data: TokenizerData) -> tokenizers.Tokenizer:
    """Merge neighbours by the score of what they make, whole texts at once; bytes stand in."""
    number = {token: i for i, token in enumerate(data.tokens)}
    merges = [
        (-data.scores[i], i, (token[:at], token[at:]))
        for i, token in enumerate(data.tokens)
        for at in range(1, len(token))
        if token[:at] in number and token[at:] in number
    ]
    unknown = [
        t
        for t, kind in zip(data.tokens, data.token_types, strict=True)
        if kind == _UNKNOWN_TOKEN_TYPE
    ]
    engine = tokenizers.Tokenizer(
        BPE(
            vocab=number,
            merges=[pair for *_, pair in sorted(merges)],
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    if data.adds_space:
        engine.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    else:
        engine.normalizer = spaces
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if data.adds_space else []),
        ]
    )
    _add_tokens(engine, data)
    return engine


def _add_tokens(engine: tokenizers.Tokenizer, data: TokenizerData) -> None:
    """Add the tokens that text is never split into."""
    typed = list(zip(data.tokens, data.token_types, strict=True))
    engine.add_special_tokens([token for token, kind in typed if kind == CONTROL_TOKEN_TYPE])
    engine.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in typed
            if kind == USER_DEFINED_TOKEN_TYPE
        ]
    )


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
    _add_of_settings(engine, data)
    return engine


def _add_of_settings(engine: tokenizers.Tokenizer, data: TokenizerJson) -> None:
    """Add what settings add, in the order of their numbers, then special tokens they only name."""
    known = engine.get_added_tokens_decoder()
    for number, token in sorted(data.added.items()):
        if number in known and repr(known[number]) == repr(token):
            continue
        engine.add_tokens([token])
        if engine.token_to_id(token.content) != number:
            raise WeightsError(
                f"{data.path}: the settings beside it give the token {token.content!r} the number "
                f"{number}; it has {engine.token_to_id(token.content)}."
            )
    for text in (*data.special_tokens.values(), *data.named):
        if engine.token_to_id(text) is None:
            engine.add_special_tokens([text])


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
