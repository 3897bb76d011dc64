"""How results become files: whole, or not at all; and the sentence for one that cannot be read.

Not decided here: what is in them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lpu_jax.errors import LpuError

#: Characters of a name that its temporary neighbour keeps: names are 255 bytes at most.
_KEPT_CHARACTERS = 40


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the operating system's refusal to look at a path, or to read it, into one sentence.

    Args:
        what: what is read, with its path: the beginning of the sentence.

    Raises:
        LpuError: a name that is too long, a folder that may not be entered, a broken disk.
    """
    try:
        yield
    except OSError as problem:
        raise LpuError(f"{what}: cannot be read: {problem.strerror}.") from problem


def read_text(path: Path, what: str) -> str:
    """Read a text file whole.

    Args:
        path: of the file.
        what: what is read, with its path: the beginning of a sentence.

    Raises:
        LpuError: it is absent, no regular file, cannot be read, is not UTF-8 or is empty.
    """
    with reading(what):
        if not path.exists():
            raise LpuError(f"{what}: there is no such file.")
        if not path.is_file():
            raise LpuError(f"{what}: it must be a regular file.")
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise LpuError(
            f"{what}: it must be UTF-8; byte {problem.start} is not part of it."
        ) from problem
    if not text:
        raise LpuError(f"{what}: it is empty.")
    return text


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file or none of it; text is written as UTF-8.

    Raises:
        LpuError: it cannot be written.
    """
    beside = f".{path.name[:_KEPT_CHARACTERS]}.{os.getpid()}.tmp"
    replaces, target = False, path
    try:
        # A device or a pipe is written to, not replaced; a directory is refused by `open`.
        if path.is_file() or not path.exists():
            replaces, target = True, path.with_name(beside)
        with target.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if replaces:
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the new name without its bytes
        if replaces:
            target.replace(path)
    except OSError as error:
        if replaces:
            with suppress(OSError):  # it was never made
                target.unlink()
        raise LpuError(f"{path} cannot be written: {error.strerror}.") from None
