"""How results become files: whole, or not at all; and the sentence for one that cannot be read.

Not decided here: what is in them.
"""

import errno
import os
import secrets
import stat
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


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written to, before the work that is to be written there.

    Raises:
        LpuError: a folder, or inside none, a name that is too long, or a place without permission.
    """
    try:
        problem = _refusal(path)
    except OSError as error:
        problem = error.errno or errno.EIO
    if problem:
        raise LpuError(f"{path} cannot be written: {os.strerror(problem)}.")


def _refusal(path: Path) -> int:
    """The number of the error with which a file at this path would be refused, or 0."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        path.parent.stat()
        mode = stat.S_IFREG  # what it will be
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    # A regular file is replaced by its neighbour; anything else is written to.
    changed = path.parent if stat.S_ISREG(mode) else path
    return 0 if os.access(changed, os.W_OK) else errno.EACCES


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file or none of it; text is written as UTF-8.

    Raises:
        LpuError: it cannot be written.
    """
    # Processes of several machines may share a folder, and have one number.
    beside = f".{path.name[:_KEPT_CHARACTERS]}.{secrets.token_hex(8)}.tmp"
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
    except ValueError as error:  # no name of a file, such as one with a null character
        raise LpuError(f"{str(path)!r} cannot be written: {error}.") from None
