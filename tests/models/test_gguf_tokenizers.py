"""Tokenizers that GGUF files hold, against the rules of llama.cpp."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from models.tokenizer import Tokenizer, TokenizerData

BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"


def sentencepiece(seed: int, n_pieces: int = 60) -> TokenizerData:
    """A vocabulary of bytes, letters and pieces with scores in no order."""
    rng = random.Random(seed)
    letters = [BLOCK, *"abcd"]
    pieces = set()
    while len(pieces) < n_pieces:
        pieces.add("".join(rng.choices(letters, k=rng.randint(2, 4))))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *letters, *sorted(pieces)]
    scores = [0.0] * 259 + rng.sample(range(-10_000, 0), len(letters) + n_pieces)
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(letters) + n_pieces)
    return TokenizerData(
        model="llama", pre_tokenizer="", tokens=tuple(tokens), token_types=tuple(kinds), merges=(),
        scores=tuple(map(float, scores)), bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def merged_by_score(data: TokenizerData, text: str) -> list[int]:
    """Tokens as llama.cpp's `llm_tokenizer_spm` finds them: the best neighbours first."""
    number = {token: i for i, token in enumerate(data.tokens)}
    parts = list((BLOCK + text).replace(" ", BLOCK))
    while True:
        pairs = [
            (-data.scores[number[a + b]], i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in number
        ]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = []
    for part in parts:
        if part in number:
            ids.append(number[part])
        else:
            ids += [number[f"<0x{byte:02X}>"] for byte in part.encode()]
    return ids


@given(
    seed=st.integers(0, 30), text=st.text(alphabet="abcd e\u00e9\u4e2d", min_size=1, max_size=24)
)
@settings(max_examples=30)
def test_sentencepiece_merges_by_score(seed, text):
    data = sentencepiece(seed)
    tokenizer = Tokenizer(data)
    assert tokenizer.encode(text) == [1, *merged_by_score(data, text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_tokens == {2}


def test_qwen2_splits_digits_one_by_one():
    """Seen in its tokenizer.json: "12" is never one token, as it is for Llama 3."""
    tokens = ("1", "2", "a", "b", "12", "ab")
    common = {"model": "gpt2", "tokens": tokens, "token_types": (1,) * 6, "merges": ("1 2", "a b")}
    qwen = Tokenizer(TokenizerData(pre_tokenizer="qwen2", **common))
    llama = Tokenizer(TokenizerData(pre_tokenizer="llama-bpe", **common))
    assert qwen.encode("12ab") == [0, 1, 5]
    assert llama.encode("12ab") == [4, 5]
