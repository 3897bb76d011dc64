"""Numbered steps of named arrays in a folder, by Orbax: a step is complete or absent.

Orbax writes a step into a temporary directory and renames it at the end, so that an interrupted
save leaves the steps before it as they were. Items are written as they come, one in memory at a
time; SHA-256 of every file is noted, and compared before Orbax reads it. Not modelled: what the
arrays mean (`saved`), several processes that write one step, and writers at the same time.

Orbax is slow to import, and so is this module: import it where it is used.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from jaxtyping import Shaped

from lpu_jax.errors import WeightsError

#: Steps that stay; older ones are deleted once a newer one is complete.
STEPS_KEPT = 2
#: Describes a step; what has none is no step.
_CONTENTS = "contents.json"
#: How Orbax names a directory that is being written, and we one that is being deleted.
_UNFINISHED = ".orbax-checkpoint-tmp"
#: How often to look for more remains of a save that failed, and after how long.
_MOST_LOOKS, _LOOK_S = 20, 0.1

Item = dict[str, Shaped[np.ndarray, "..."]]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a step says of itself."""

    description: Any  #: plain values, as they were given
    files: Mapping[str, Mapping[str, str]]  #: of each item: SHA-256 of every file


class _Items(ocp.CheckpointHandler):  # type: ignore[misc]
    """Writes a stream of items, each by Orbax's own handler of trees, then the contents."""

    def __init__(self) -> None:
        self.trees = ocp.StandardCheckpointHandler()

    def save(self, directory: Any, args: "_Save") -> None:
        """Write a step into the temporary directory that Orbax made."""
        files = {}
        while (named := next(args.items, None)) is not None:
            name, item = named
            where = directory / name
            where.mkdir()
            self.trees.save(where, args=ocp.args.StandardSave(item))
            self.trees.finalize(where)
            files[name] = _digests(Path(where))
            del named, item  # before the next is made
        contents = {"description": args.describe(), "files": files}
        text = json.dumps(contents | {"sha256": _digest_of(contents)}, indent=1)
        (directory / _CONTENTS).write_text(text)

    def restore(self, directory: Any, args: "_Read") -> Any:
        """Read one item of a step."""
        return self.trees.restore(directory / args.name)

    def close(self) -> None:
        """Let go of the handler of trees."""
        self.trees.close()


@ocp.args.register_with_handler(_Items, for_save=True)
@dataclass(kw_only=True)
class _Save(ocp.args.CheckpointArgs):  # type: ignore[misc]
    items: Iterator[tuple[str, Item]]
    describe: Callable[[], Any]


@ocp.args.register_with_handler(_Items, for_restore=True)
@dataclass(kw_only=True)
class _Read(ocp.args.CheckpointArgs):  # type: ignore[misc]
    name: str


def steps(folder: Path) -> list[int]:
    """List the complete steps of a folder, ascending; a folder that is absent has none."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if path.name.isdecimal() and (path / _CONTENTS).is_file()
    )


def write_step(
    folder: Path,
    step: int,
    items: Iterator[tuple[str, Item]],
    describe: Callable[[], Any],
) -> None:
    """Write a step, then delete all but the last `STEPS_KEPT`.

    Remains of an interrupted save are deleted first. If an item cannot be made or written, the
    folder is left as it was.

    Args:
        folder: made if it is absent.
        step: higher than any in the folder.
        items: name and arrays of each item, asked for one by one.
        describe: called after the last item; gives plain values that are written beside them.

    Raises:
        WeightsError: the folder cannot be written.
    """
    is_new, target = not folder.exists(), folder.absolute() / str(step)
    if target.exists():
        raise WeightsError(f"{target} already exists and is not a saved state.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete_remains(folder)
        with _checkpointer() as checkpointer:
            checkpointer.save(target, args=_Save(items=items, describe=describe))
    except BaseException as error:
        _delete_what_still_comes(folder)
        if is_new and folder.is_dir():
            folder.rmdir()
        reason = _of_the_system(error)
        if reason is not None:
            raise WeightsError(f"{folder} cannot be written: {reason}.") from None
        raise
    for old in steps(folder)[:-STEPS_KEPT]:
        (folder / str(old)).rename(folder / f"{old}{_UNFINISHED}")
    _delete_remains(folder)


def _of_the_system(error: BaseException) -> str | None:
    """Return what the system said, to Python or to the library that writes arrays for Orbax."""
    if isinstance(error, OSError):
        return error.strerror
    # tensorstore raises a ValueError for whatever happened, and notes the number in its text.
    number = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    return None if number is None else os.strerror(int(number[1]))


def read_contents(folder: Path, step: int) -> Contents:
    """Read what a step says of itself.

    Raises:
        WeightsError: it says nothing that can be read, it was changed, or an item is missing.
    """
    where = f"step {step} of {folder}"
    try:
        contents = json.loads((folder / str(step) / _CONTENTS).read_text(encoding="utf-8"))
        digest = contents.pop("sha256")
        is_whole = digest == _digest_of(contents)
        found = Contents(**contents)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{where}: {_CONTENTS} is not that of a saved state.") from None
    if not is_whole:
        raise WeightsError(f"{where}: {_CONTENTS} is damaged.")
    for name in found.files:
        if not (folder / str(step) / name).is_dir():
            raise WeightsError(f"{where}: {name} is missing.")
    return found


def read_item(folder: Path, step: int, name: str, contents: Contents) -> Item:
    """Read the arrays of one item.

    Raises:
        WeightsError: a file of it is missing, was changed or cannot be read.
    """
    where = folder / str(step) / name
    try:
        found = _digests(where)
        for path in sorted(contents.files[name].keys() | found.keys()):
            if found.get(path) != contents.files[name].get(path):
                raise WeightsError(f"step {step} of {folder}: {name} is damaged: {path}.")
        with _checkpointer() as checkpointer:
            item: Item = checkpointer.restore(where.absolute().parent, args=_Read(name=name))
    except OSError as error:
        raise WeightsError(
            f"step {step} of {folder}: {name} cannot be read: {error.strerror}."
        ) from None
    return item


def _remains(folder: Path) -> list[Path]:
    """What an interrupted save, or an interrupted deletion, left behind."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in folder.iterdir()
        if path.name.partition(".")[0].isdecimal() and _UNFINISHED in path.name
    ]


def _delete_remains(folder: Path) -> None:
    for path in _remains(folder):
        shutil.rmtree(path)


def _delete_what_still_comes(folder: Path) -> None:
    """Delete the remains of a save that failed: its other writes end in threads, a moment later."""
    for _ in range(_MOST_LOOKS):
        for path in _remains(folder):
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(_LOOK_S)
        if not _remains(folder):
            return


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(directory).as_posix()] = digest
    return digests


def _digest_of(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


@contextmanager
def _checkpointer() -> Iterator[Any]:
    """Orbax's writer and reader; its messages are kept from the user, its errors are not."""
    messages = logging.getLogger("absl")
    level = messages.level
    messages.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(_Items()) as checkpointer:
            yield checkpointer
    finally:
        messages.setLevel(level)
