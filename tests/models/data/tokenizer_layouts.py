"""Tokenizer files as directories of released models have them, made with the tokenizers package.

Each layout is a `tokenizer.json` and what stands beside it. `make_tokenizers.py` asks Hugging Face
transformers what each makes of `TEXTS`; tests read the same files.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

TEXTS = ("hi", "hi<|im_end|>hi", "he said 12345 \u00e9", "<tool> hi", " hi  he</s>", "<pad>hi<new>")

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_MADE = ("he", "hi", "\u0120he", "\u0120hi")
_MERGES = [("h", "e"), ("h", "i"), ("\u0120", "he"), ("\u0120", "hi")]
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def _byte_level(first: tuple[str, ...] = ("<s>", "</s>")) -> Tokenizer:
    """Bytes and a few merges behind some first tokens, as GPT-2, Llama 3 and Qwen have them."""
    vocab = {token: i for i, token in enumerate((*first, *_BYTES, *_MADE))}
    engine = Tokenizer(BPE(vocab=vocab, merges=_MERGES))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(list(first))
    return engine


def _begun(engine: Tokenizer) -> Tokenizer:
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))]
    )
    return engine


def _with_split(engine: Tokenizer) -> Tokenizer:
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return engine


def _sentencepiece() -> Tokenizer:
    """Llama 2's: spaces are characters, unknown ones are bytes."""
    pieces = [_SPACE, *"hies a12345", f"{_SPACE}h", "hi", f"{_SPACE}hi", f"{_SPACE}he"]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {
        t: i for i, t in enumerate(dict.fromkeys(("<unk>", "<s>", "</s>", *byte_tokens, *pieces)))
    }
    merges = [(_SPACE, "h"), ("h", "i"), (f"{_SPACE}h", "i"), (f"{_SPACE}h", "e")]
    engine = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    engine.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


def _unigram() -> Tokenizer:
    words = {
        _SPACE: -2.0,
        "h": -3.0,
        "i": -3.1,
        "e": -3.2,
        f"{_SPACE}hi": -1.5,
        "s": -4.0,
        "a": -4.1,
    }
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *words.items()]
    engine = Tokenizer(Unigram(pieces, unk_id=0))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    engine.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


def _added(number: int, text: str, **more: Any) -> dict[str, Any]:
    rules = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {str(number): {"content": text, "special": True, **rules, **more}}


def layouts() -> Iterator[tuple[str, Tokenizer, dict[str, Any], dict[str, Any]]]:
    """Yield a name, the engine, `tokenizer_config.json`, and other files by name."""
    n = 2 + len(_BYTES) + len(_MADE)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    yield "bare", _byte_level(), plain, {}
    yield "begins in the file", _begun(_byte_level()), plain | ends, {}
    yield "begins by settings", _byte_level(), plain | ends | {"add_bos_token": True}, {}
    yield (
        "settings take the first away",
        _begun(_byte_level()),
        plain | ends | {"add_bos_token": False},
        {},
    )
    yield "ends by settings", _byte_level(), plain | ends | {"add_eos_token": True}, {}
    yield "both by settings", _begun(_byte_level()), plain | ends | {
        "add_bos_token": True, "add_eos_token": True
    }, {}  # fmt: skip
    yield "end added in settings", _begun(_byte_level()), plain | ends | {
        "eos_token": "<|im_end|>", "added_tokens_decoder": _added(n, "<|im_end|>")
    }, {}  # fmt: skip
    yield (
        "several added, out of order",
        _byte_level(),
        plain
        | ends
        | {
            "added_tokens_decoder": _added(n + 1, "<tool>", special=False) | _added(n, "<|im_end|>")
        },
        {},
    )
    yield (
        "added text is normalised",
        _byte_level(),
        plain
        | ends
        | {"added_tokens_decoder": _added(n, "<tool>", special=False, normalized=True)},
        {},
    )
    yield (
        "added token takes spaces",
        _byte_level(),
        plain | ends | {"added_tokens_decoder": _added(n, "<tool>", rstrip=True)},
        {},
    )
    yield (
        "known to the vocabulary alone",
        _byte_level(("<s>", "</s>")),
        plain
        | ends
        | {"added_tokens_decoder": _added(0, "<s>") | _added(1, "</s>") | _added(n, "<pad>")},
        {},
    )
    yield "end only named", _byte_level(), plain | {"bos_token": "<s>", "eos_token": "<new>"}, {}
    yield "end with its properties", _byte_level(), plain | {
        "eos_token": {"__type": "AddedToken",
            "content": "<|im_end|>", "lstrip": False, "rstrip": False,
                      "normalized": False, "single_word": False}
    }, {}  # fmt: skip
    yield "pad only named", _byte_level(), plain | ends | {"pad_token": "<pad>"}, {}
    yield (
        "further ones named",
        _byte_level(),
        plain | ends | {"additional_special_tokens": ["<tool>", "<|im_end|>"]},
        {},
    )
    yield (
        "named in a file of their own",
        _begun(_byte_level()),
        plain,
        {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>"}},
    )
    yield "split like Llama 3", _with_split(_begun(_byte_level())), plain | ends, {}
    nfc = _with_split(_byte_level())
    nfc.normalizer = normalizers.NFC()
    yield "composed like Qwen", nfc, plain | ends | {"add_bos_token": False}, {}
    cut = _begun(_byte_level())
    cut.enable_truncation(3)
    cut.enable_padding(length=8)
    yield "cut and padded in training", cut, plain | ends, {}
    yield "SentencePiece as byte pairs", _begun(_sentencepiece()), plain | ends, {}
    yield "SentencePiece without a first token", _sentencepiece(), plain | ends, {}
    yield "SentencePiece as a unigram", _unigram(), plain | ends, {}
    yield "GPT-2's class", _byte_level(("<|endoftext|>", "</s>")), {
        "tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"
    }, {}  # fmt: skip


def write(
    folder: Path, engine: Tokenizer, settings: dict[str, Any], others: dict[str, Any]
) -> None:
    """Write a layout into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    for name, content in ({"tokenizer_config.json": settings} | others).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
