"""Tokenizers of GGUF data and of checkpoint directories, against merges done by hand."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.errors import WeightsError
from models.tokenizer import Tokenizer, TokenizerData
from models.tokenizer_files import read_tokenizer
from models.weights.checkpoint import Checkpoint
from models.weights.source import from_hf_tensors
from models.zoo import model


def alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, others from 256."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


#: All bytes, then tokens made by merges, then control tokens and one that was added.
MERGES = ("h e", "l l", "he ll", "1 2", "12 3", "4 5", "Ġ t", "y o", "yo u")
MADE = ("he", "ll", "hell", "12", "123", "45", "Ġt", "yo", "you", "whole")
CONTROL, ADDED = ("<|begin|>", "<|im_end|>"), ("<tool>",)
TOKENS = (*alphabet(), *MADE, *CONTROL, *ADDED)
NUMBER = {token: number for number, token in enumerate(TOKENS)}
DATA = TokenizerData(
    model="gpt2",
    pre_tokenizer="smollm",
    tokens=TOKENS,
    token_types=(1,) * (256 + len(MADE)) + (3,) * len(CONTROL) + (4,) * len(ADDED),
    merges=MERGES,
    bos_token_id=NUMBER["<|begin|>"],
    eos_token_id=NUMBER["<|im_end|>"],
)
SMOL = Tokenizer(DATA)
LLAMA = Tokenizer(replace(DATA, pre_tokenizer="llama-bpe", add_bos=False))


def pieces(tokenizer, text):
    return [TOKENS[number] for number in tokenizer.encode(text)]


def test_merges_are_applied_in_their_order():
    assert pieces(SMOL, "hello the") == ["hell", "o", "Ġt", "he"]


def test_digits_stand_alone_for_smollm_and_in_threes_for_llama():
    assert pieces(SMOL, "12345") == list("12345")
    assert pieces(LLAMA, "12345") == ["123", "45"]
    assert pieces(LLAMA, "112345") == ["1", "12", "3", "45"]  # 112 is split off before merging


def test_llama_takes_whole_tokens_that_no_merge_makes():
    assert pieces(LLAMA, "whole") == ["whole"]
    assert pieces(SMOL, "whole") == ["w", "h", "o", "l", "e"]


def test_llama_splits_contractions_whatever_their_case():
    """The apostrophe goes with what follows: `you` is not split, `'LL` stands alone."""
    assert pieces(LLAMA, "you'll") == ["you", "'", "ll"]
    assert pieces(LLAMA, "you'LL") == ["you", "'", "L", "L"]


def test_control_tokens_are_found_and_left_out():
    numbers = SMOL.encode("you<|im_end|><tool>")
    assert numbers == [NUMBER["you"], NUMBER["<|im_end|>"], NUMBER["<tool>"]]
    assert SMOL.decode(numbers) == "you<tool>"  # what was added to the vocabulary is text


@pytest.mark.parametrize(
    ("pre_tokenizer", "add_bos", "begins"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("llama-bpe", None, True),  # llama.cpp begins these unless the file says otherwise
        ("llama-bpe", False, False),
    ],
)
def test_the_first_token_is_there_if_the_model_expects_it(pre_tokenizer, add_bos, begins):
    tokenizer = Tokenizer(replace(DATA, pre_tokenizer=pre_tokenizer, add_bos=add_bos))
    first = [NUMBER["<|begin|>"]] if begins else []
    assert tokenizer.encode("you") == [*first, NUMBER["you"]]
    assert tokenizer.encode("you", begin=False) == [NUMBER["you"]]


@pytest.mark.parametrize("tokenizer", [SMOL, LLAMA])
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, begin=False)) == text


def test_tokens_that_end_a_turn_are_known_by_name():
    nameless = Tokenizer(replace(DATA, eos_token_id=None))
    assert nameless.end_tokens == {NUMBER["<|im_end|>"]}
    other = Tokenizer(replace(DATA, eos_token_id=5))
    assert other.end_tokens == {5, NUMBER["<|im_end|>"]}


def test_merges_without_tokens_are_one_sentence():
    with pytest.raises(WeightsError, match="its merges do not fit its tokens"):
        Tokenizer(replace(DATA, merges=("q zz",)))


# --- checkpoint directories -------------------------------------------------------------------


def tokenizer_json():
    """What the format defines, by hand: the same tokens, a beginning in the post-processor."""
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [
            {
                "id": NUMBER[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token in CONTROL,
            }
            for token in (*CONTROL, *ADDED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {
                "<|begin|>": {
                    "id": "<|begin|>",
                    "ids": [NUMBER["<|begin|>"]],
                    "tokens": ["<|begin|>"],
                }
            },
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": {token: NUMBER[token] for token in TOKENS[: 256 + len(MADE)]},
            "merges": [merge.split() for merge in MERGES],
        },
    }


def folder(tmp_path: Path, **files: object) -> Checkpoint:
    """A directory with such files; what is not text is written as JSON."""
    paths = {}
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        paths[path.name] = path
    cfg = model("smollm2-135m")
    weights = from_hf_tensors(cfg, {})
    return Checkpoint(path=tmp_path, config=cfg, weights=weights, tokenizer_files=paths)


def test_a_directory_is_read_without_its_training_limits(tmp_path):
    tokenizer = read_tokenizer(folder(tmp_path, tokenizer__json=tokenizer_json()))
    names = [TOKENS[number] for number in tokenizer.encode("hello the")]
    assert names == ["<|begin|>", "hell", "o", "Ġt", "he"]  # longer than its truncation
    assert tokenizer.decode(tokenizer.encode("hello the")) == "hello the"
    assert tokenizer.encode("you", begin=False) == [NUMBER["you"]]
    assert tokenizer.n_tokens == len(TOKENS)
    assert tokenizer.chat_template is None
    assert tokenizer.end_tokens == {NUMBER["<|im_end|>"]}


def test_ends_and_templates_of_a_directory(tmp_path):
    config = {
        "bos_token": {"content": "<|begin|>", "lstrip": False},
        "eos_token": "you",
        "chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
        ],
    }
    checkpoint = folder(
        tmp_path,
        tokenizer__json=tokenizer_json(),
        tokenizer_config__json=config,
        generation_config__json={"eos_token_id": [7, 9]},
    )
    tokenizer = read_tokenizer(checkpoint)
    assert tokenizer.end_tokens == {7, 9, NUMBER["you"], NUMBER["<|im_end|>"]}
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.source.startswith("{{ bos_token")
    assert tokenizer.chat_template.special_tokens["bos_token"] == "<|begin|>"
    own = folder(
        tmp_path,
        tokenizer__json=tokenizer_json(),
        tokenizer_config__json=config,
        chat_template__jinja="its own file",
    )
    template = read_tokenizer(own).chat_template
    assert template is not None
    assert template.source == "its own file"


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path):
    files = folder(
        tmp_path,
        tokenizer__json=tokenizer_json(),
        tokenizer_config__json={"bos_token": "<|begin|>"},
        special_tokens_map__json={"bos_token": "no", "eos_token": {"content": "you"}},
        chat_template__jinja="its own file",
    )
    tokenizer = read_tokenizer(files)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.special_tokens == {"bos_token": "<|begin|>", "eos_token": "you"}
    assert NUMBER["you"] in tokenizer.end_tokens


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no tokenizer.json; SentencePiece and tiktoken files are not read"),
        ({"tokenizer__json": "{"}, r"tokenizer\.json: it does not describe a tokenizer: "),
        ({"tokenizer__json": "[]"}, r"tokenizer\.json: it does not describe a tokenizer: "),
        (
            {"tokenizer__json": tokenizer_json(), "tokenizer_config__json": "[1]"},
            r"tokenizer_config\.json: it must be a JSON object",
        ),
        (
            {"tokenizer__json": tokenizer_json(), "tokenizer_config__json": "[" * 100_000},
            r"tokenizer_config\.json: it must be JSON",
        ),
        (
            {"tokenizer__json": tokenizer_json(), "generation_config__json": {"eos_token_id": "2"}},
            r"generation_config\.json: eos_token_id must be token numbers",
        ),
        (
            {"tokenizer__json": tokenizer_json(), "tokenizer_config__json": {"chat_template": 7}},
            r"tokenizer_config\.json: chat_template must be a string",
        ),
    ],
)
def test_files_that_are_not_what_they_are_called_are_one_sentence(tmp_path, files, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_tokenizer(folder(tmp_path, **files))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    checkpoint = folder(tmp_path, tokenizer__json=tokenizer_json())
    checkpoint.tokenizer_files["tokenizer.json"].write_bytes(b"{\xff}")
    with pytest.raises(WeightsError, match=r"tokenizer\.json: it must be UTF-8; byte 1 is not"):
        read_tokenizer(checkpoint)


# --- directories, beside what Hugging Face transformers makes of them -----------------------------

_DATA = Path(__file__).parent / "data"
_ORACLE = json.loads((_DATA / "tokenizers.json").read_text(encoding="utf-8"))["layouts"]


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("layouts", _DATA / "tokenizer_layouts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_MODULE = _module()
LAYOUTS = {name: rest for name, *rest in _MODULE.layouts()}


def _read(folder: Path) -> Tokenizer:
    cfg = model("smollm2-135m")
    files = {path.name: path for path in folder.iterdir()}
    return read_tokenizer(
        Checkpoint(
            path=folder,
            config=cfg,
            weights=from_hf_tensors(cfg, {}),
            tokenizer_files=MappingProxyType(files),
        )
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_directory_means_what_transformers_makes_of_it(tmp_path, name):
    _MODULE.write(tmp_path, *LAYOUTS[name])
    tokenizer, oracle = _read(tmp_path), _ORACLE[name]
    ids = [tokenizer.encode(text) for text in _MODULE.TEXTS]
    assert ids == oracle["ids"]
    end = oracle["end"]
    assert end is None or end in tokenizer.end_tokens


@pytest.mark.parametrize("named", [5, "x", [3], {"a": {}}])
def test_further_tokens_that_are_none_are_one_sentence(tmp_path, named):
    engine, settings, others = LAYOUTS["bare"]
    _MODULE.write(tmp_path, engine, settings | {"additional_special_tokens": named}, others)
    with pytest.raises(WeightsError, match="additional_special_tokens must be a list of tokens"):
        _read(tmp_path)


def test_every_layout_was_asked():
    assert set(LAYOUTS) == set(_ORACLE)
    assert len(LAYOUTS) >= 20


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([1], "added_tokens_decoder must be an object, got [1]"),
        ({"9": "<x>"}, "must have a token with its content for each number, got '<x>' for '9'"),
        ({"x": {"content": "<x>"}}, "for 'x'"),
        ({"9" * 30: {"content": "<x>"}}, "must have a token with its content"),
        ({"9": {"content": "<x>", "special": "yes"}}, "must have a token with its content"),
        ({"9000": {"content": "<x>"}}, "give the token '<x>' the number 9000; it has"),
    ],
)
def test_added_tokens_that_are_none_are_one_sentence(tmp_path, added, message):
    engine, settings, others = LAYOUTS["bare"]
    _MODULE.write(tmp_path, engine, settings | {"added_tokens_decoder": added}, others)
    with pytest.raises(WeightsError, match=re.escape(message)) as said:
        _read(tmp_path)
    assert "\n" not in str(said.value)
