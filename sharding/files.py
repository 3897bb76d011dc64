"""How results become files: whole, or not at all.

Not decided here: what is in them.
"""

import os
from pathlib import Path

from lpu_jax.errors import LpuError


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file or none of it; text is written as UTF-8.

    Raises:
        LpuError: it cannot be written.
    """
    # A device or a pipe is written to, not replaced; a directory is refused by `open`.
    replaces = path.is_file() or not path.exists()
    target = path.with_name(f".{path.name}.{os.getpid()}.tmp") if replaces else path
    try:
        with target.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if replaces:
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the new name without its bytes
        if replaces:
            target.replace(path)
    except OSError as error:
        if replaces:
            target.unlink(missing_ok=True)
        raise LpuError(f"{path} cannot be written: {error.strerror}.") from None
