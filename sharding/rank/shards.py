"""A folder with the answers of a sweep, one file for each task that is finished.

`sweep.json` says which sweep it is. The file of a task is named by the task's digest: its first
line has the digest of the rest, which is the answer as JSON lines. Files appear whole or not at
all, so that a run that was killed, or one of many, leaves answers that another takes up.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError

from ..files import read_text, reading, write_file

_FORMAT = "lpu sweep, shards 1"
_IDENTITY = "sweep.json"
#: Characters of a value that a message repeats.
_MOST_SHOWN = 60


class Shards:
    """A folder of answers.

    Args:
        folder: its path; it is made if it is not there.
        identity: what makes the sweep this one, as values for JSON.
        tasks: the digests of its tasks.

    Raises:
        LpuError: no folder, another sweep's, or one that holds something else; one that cannot be
            written to.
    """

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], tasks: Sequence[str]
    ) -> None:
        if not isinstance(folder, str | Path):
            raise LpuError(f"shards is {described(folder)}; it must be the path of a folder.")
        self.folder, self._tasks = Path(folder), tuple(tasks)
        self._make()
        mine = json.loads(json.dumps({"format": _FORMAT, **identity}))
        path = self.folder / _IDENTITY
        is_known = path.exists()
        if is_known:
            _check_identity(path, mine)
        self._check_names()
        if not is_known:
            write_file(path, json.dumps(mine, indent=1) + "\n")

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise LpuError(
                f"shards {self.folder}: the folder cannot be made: {problem.strerror}."
            ) from problem
        except ValueError as problem:  # no name of a folder, such as one with a null character
            raise LpuError(f"shards {str(self.folder)!r} cannot be made: {problem}.") from None

    def _check_names(self) -> None:
        """Refuse a folder with files of another kind.

        Names that begin with a dot are of files that are just being written, or of the system.
        """
        with reading(f"shards {self.folder}"):
            names = sorted(path.name for path in self.folder.iterdir())
        known = {_IDENTITY, *map(_file_of, self._tasks)}
        for name in names:
            if not name.startswith(".") and name not in known:
                raise LpuError(
                    f"shards {self.folder}: {name} is no part of this sweep; give a folder of its "
                    "own."
                )

    def read(self) -> dict[str, str]:
        """Read the answers that are there, by the digests of their tasks.

        Raises:
            LpuError: a file is damaged, or of another task.
        """
        found = {}
        for task in self._tasks:
            path = self.folder / _file_of(task)
            with reading(f"shards {self.folder}"):
                is_there = path.exists()
            if is_there:
                found[task] = _answer_in(path, task)
        return found

    def write(self, task: str, answer: str) -> None:
        """Keep the answer of a task.

        Raises:
            LpuError: it cannot be written.
        """
        head = json.dumps({"task": task, "sha256": _sha256(answer)})
        write_file(self.folder / _file_of(task), f"{head}\n{answer}")


def _check_identity(path: Path, mine: Mapping[str, Any]) -> None:
    """Refuse the folder of another sweep."""
    text = read_text(path, str(path))
    try:
        theirs = json.loads(text)
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict) or theirs.get("format") != _FORMAT:
        raise LpuError(f"{path} is damaged, or of another program; give another folder.")
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if names:
        told = ", ".join(_difference(name, theirs.get(name), mine.get(name)) for name in names)
        raise LpuError(
            f"shards {path.parent} are of another sweep, which differs in {told}; give another "
            "folder."
        )


def _file_of(task: str) -> str:
    return f"{task}.jsonl"


def _answer_in(path: Path, task: str) -> str:
    head, _, answer = read_text(path, str(path)).partition("\n")
    if head != json.dumps({"task": task, "sha256": _sha256(answer)}):
        raise LpuError(f"{path} is damaged; remove it, and its task is done again.")
    return answer


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _difference(name: str, theirs: Any, mine: Any) -> str:
    """Name a difference, with both values if they are short."""
    shown = f"{name} ({json.dumps(theirs)} there, {json.dumps(mine)} asked for)"
    return shown if len(shown) <= _MOST_SHOWN + len(name) else name
