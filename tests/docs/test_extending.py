"""Every worked example of `docs/extending.md`: its patch applies, and what follows it runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def _blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


def test_every_addition_has_an_example() -> None:
    assert len(SECTIONS) == 6
    assert all(_blocks(section, "python") for section in SECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_works(section: str, tmp_path: Path) -> None:
    for package in ("lpu_jax", "models", "sharding"):
        shutil.copytree(ROOT / package, tmp_path / package)
    for patch in _blocks(section, "diff"):
        subprocess.run(["git", "apply"], cwd=tmp_path, input=patch, text=True, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for program in _blocks(section, "python"):
        where = f"import lpu_jax\nassert lpu_jax.__file__.startswith({str(tmp_path)!r})\n"
        subprocess.run(
            [sys.executable, "-c", where + program], cwd=tmp_path, env=environment, check=True
        )
