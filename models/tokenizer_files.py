"""The tokenizer files of a checkpoint directory: as JSON and text, nothing of them is executed.

Read are `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
`generation_config.json` and `chat_template.jinja`; of several named chat templates, the one named
"default". As in Hugging Face's reader, settings add tokens, and `tokenizer.json` alone says what
goes around a text: `add_bos_token` and `add_eos_token` have no say beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from lpu_jax.errors import WeightsError
from lpu_jax.quantities import format_given

from .tokenizer import Tokenizer, TokenizerJson
from .weights.checkpoint import Checkpoint

#: Properties of an added token that are true or false.
_SWITCHES = ("special", "lstrip", "rstrip", "single_word", "normalized")
#: No number of a token is longer.
_MOST_DIGITS = 9
#: Names that chat templates use.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the tokenizer of an opened checkpoint.

    Raises:
        WeightsError: it has none that is supported, or a file is not what its name says.
    """
    if (data := checkpoint.tokenizer_data) is not None:
        return Tokenizer(data, chat_template=checkpoint.chat_template)
    files = checkpoint.tokenizer_files
    settings = _object(files.get("tokenizer_config.json"))
    return Tokenizer(
        _tokenizer_json(files, settings, checkpoint.path),
        chat_template=_chat_template(files, settings),
    )


def _tokenizer_json(
    files: Mapping[str, Path], settings: Mapping[str, Any], folder: Path
) -> TokenizerJson:
    if "tokenizer.json" not in files:
        raise WeightsError(
            f"{folder}: there is no tokenizer.json; SentencePiece and tiktoken files are not read."
        )
    path = files["tokenizer.json"]
    older = _object(files.get("special_tokens_map.json"))  # speaks where the settings do not
    special = {
        name: text
        for name in _SPECIAL
        if (text := _token_text(settings.get(name) or older.get(name))) is not None
    }
    return TokenizerJson(
        path=str(path),
        content=_text(path),
        special_tokens=special,
        end_token_ids=_end_token_ids(files.get("generation_config.json")),
        added=_added(files, settings),
        named=_named(files, settings),
    )


def _named(files: Mapping[str, Path], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the further special tokens that settings name."""
    found: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        given = settings.get(key)
        listed = list(given.values()) if isinstance(given, dict) else given or []
        if not isinstance(listed, list) or None in map(_token_text, listed):
            raise WeightsError(
                f"{files['tokenizer_config.json']}: {key} must be a list of tokens, got "
                f"{format_given(given)}."
            )
        found += map(_token_text, listed)
    return tuple(found)


def _added(files: Mapping[str, Path], settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Read the tokens that settings add, by number."""
    given = settings.get("added_tokens_decoder") or {}
    path = files.get("tokenizer_config.json")
    if not isinstance(given, dict):
        raise WeightsError(
            f"{path}: added_tokens_decoder must be an object, got {format_given(given)}."
        )
    found = {}
    for number, token in given.items():
        rules = token if isinstance(token, dict) else {}
        text, switches = rules.get("content"), {name: rules.get(name, False) for name in _SWITCHES}
        is_right = isinstance(text, str) and all(isinstance(on, bool) for on in switches.values())
        if not (is_right and number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS):
            raise WeightsError(
                f"{path}: added_tokens_decoder must have a token with its content for each number, "
                f"got {format_given(token)} for {format_given(number)}."
            )
        # What is special is not normalised unless it says so; what is not special is.
        normalised = rules.get("normalized", not switches["special"])
        found[int(number)] = AddedToken(text, **switches | {"normalized": normalised})
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise WeightsError(
            f"{path}: it must be UTF-8; byte {problem.start} is not part of it."
        ) from problem


def _object(path: Path | None) -> dict[str, Any]:
    """Return a JSON object; that of a file that is not there is empty."""
    if path is None:
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, WeightsError):
            raise
        raise WeightsError(f"{path}: it must be JSON.") from problem
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: it must be a JSON object, got {format_given(found)}.")
    return found


def _token_text(given: Any) -> str | None:
    """Return a special token's text; it is written alone or with its properties."""
    text = given.get("content") if isinstance(given, dict) else given
    return text if isinstance(text, str) else None


def _end_token_ids(path: Path | None) -> tuple[int, ...]:
    given = _object(path).get("eos_token_id")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    for one in listed:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise WeightsError(
                f"{path}: eos_token_id must be token numbers, got {format_given(given)}."
            )
    return tuple(listed)


def _chat_template(files: Mapping[str, Path], settings: Mapping[str, Any]) -> str | None:
    """The file of its own comes before the setting, as in Hugging Face's reader."""
    if "chat_template.jinja" in files:
        return _text(files["chat_template.jinja"])
    given = settings.get("chat_template")
    if isinstance(given, list):
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default")
    if given is not None and not isinstance(given, str):
        raise WeightsError(
            f"{files['tokenizer_config.json']}: chat_template must be a string, got "
            f"{format_given(given)}."
        )
    return given
