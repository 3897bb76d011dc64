"""What the packages export: every public name is found, in any order, and loads nothing early."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lpu_jax
import models
import sharding

PACKAGES = {package.__name__: package for package in (lpu_jax, models, sharding)}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_found_and_typed(name: str) -> None:
    package = PACKAGES[name]
    for public in package.__all__:
        assert getattr(package, public) is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname or alias.name
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    } - {"version"}
    assert declared == set(package.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'compair'"):
        package.compair  # noqa: B018


def test_a_public_function_is_never_hidden_by_a_module_of_its_name() -> None:
    """Importing a submodule binds it on its package: no public name may be one at the top."""
    for package in PACKAGES.values():
        folder = Path(package.__file__).parent
        rooms = {path.stem for path in folder.glob("*.py")} | {
            path.name for path in folder.iterdir() if path.is_dir()
        }
        for public in rooms & set(package.__all__):
            assert getattr(package, public) is importlib.import_module(
                f"{package.__name__}.{public}"
            )


PROGRAM = """
import sys
import {package}
early = {{"jax", "matplotlib", "flax"}} & set(sys.modules)
assert not early, early
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_compiler(package: str) -> None:
    program = PROGRAM.format(package=package)
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_the_main_job_in_one_line() -> None:
    """As a new user types it, with modules loaded first that could hide the function."""
    program = (
        "import sharding, sharding.rank.compare, sharding.verify.one_chip_bits\n"
        "found = sharding.compare('smollm2-135m', 'groq-node', sharding.Request(context=512))\n"
        "print(found.rows[0].plan.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert re.match(r"\d+x\d+ a:", done.stdout)
