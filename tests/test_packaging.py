"""One wheel, three packages, one root: what packaging tools and linters do not check for us.

Each rule is a function from a directory to the list of its violations, so that the same function
is run on the repository (expecting none) and on a small broken tree (expecting some).
"""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import jax
import pytest

import lpu_jax
import models
import sharding

REPOSITORY = Path(__file__).parent.parent
INSTALL_ROOT = Path(lpu_jax.__file__).parent.parent
#: Each package may import itself and those after it.
PACKAGES = ("sharding", "models", "lpu_jax")
NEVER_IMPORTED = {"tests", "benchmarks", "examples", "strategies"}
SKIPPED_DIRECTORIES = {"__pycache__", "build", "dist"}


# Parts of forbidden text for planting below; whole, they would be found in this very file.
HOME, TEMPORARY, INDEX, HOSTED = "home", "tmp", "index", "pythonhosted"


def _python_files(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield package, path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    """Yield (line, dotted name, relative level) of every import in a module, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level


def arrow_violations(root: Path) -> list[str]:
    """Imports against the arrows, absolute ones inside a package, relative ones out of it."""
    found = []
    for package, path, tree in _python_files(root):
        allowed = PACKAGES[PACKAGES.index(package) + 1 :]
        depth = len(path.relative_to(root).parents) - 1
        for line, name, level in _imports(tree):
            top = name.split(".")[0]
            wrong = level > depth if level else top in PACKAGES and top not in allowed
            if wrong or (not level and top in NEVER_IMPORTED):
                found.append(f"{path.relative_to(root)}:{line} imports {'.' * level}{name}")
    return found


def undeclared_imports(root: Path) -> list[str]:
    """Third-party imports that neither the dependencies of lpu_jax nor its extras would bring."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = {
        _normal(match.group())
        for requirement in chain(project["dependencies"], *extras)
        if (match := re.match(r"[\w.-]+", requirement))
    }
    providers = importlib.metadata.packages_distributions()
    found = []
    for _, path, tree in _python_files(root):
        for line, name, level in _imports(tree):
            top = name.split(".")[0]
            if level or top in PACKAGES or top in sys.stdlib_module_names:
                continue
            if not declared & {_normal(dist) for dist in providers.get(top, [top])}:
                found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def undocumented_names(root: Path) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    found = []
    for _, path, tree in _python_files(root):
        where = str(path.relative_to(root))
        if any(part.startswith("_") and part != "__init__.py" for part in Path(where).parts):
            continue
        if not ast.get_docstring(tree):
            found.append(f"{where}: the module")
        found += [f"{where}:{node.lineno} {node.name}" for node in _public_definitions(tree.body)]
    return found


def _public_definitions(
    body: list[ast.stmt],
) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the undocumented public definitions of a module or class body."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        # An override or an overload says what it does where it is declared.
        decorators = {ast.unparse(item).split(".")[-1] for item in node.decorator_list}
        if not ast.get_docstring(node) and not decorators & {"overload", "override"}:
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _public_definitions(node.body)


def style_violations(root: Path) -> list[str]:
    """Things the jaxtyping hook cannot see through: string annotations, code in `__init__.py`."""
    found = []
    for package, path, tree in _python_files(root):
        where = path.relative_to(root)
        found += [
            f"{where}:{line} postpones annotations"
            for line, name, _ in _imports(tree)
            if name == "__future__"
        ]
        defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
        if path.name == "__init__.py" and defines:
            found.append(f"{where} of {package} holds code")
    return found


# Written so that the patterns do not match themselves.
_MACHINE_PATH = re.compile(
    r"(?<![\w.$}/-])/(?:home|Users|root|work|workspace|mnt|tmp|opt/[\w-]+)/[A-Za-z0-9_.]"
)
_REGISTRY = re.compile(
    r"--(?:extra-)?index[-]url|find[-]links|https?://\S*/sim[p]le\b|pythonhosted[.]org"
)


def machine_traces(root: Path) -> list[str]:
    """Lines of text files that name a directory of one machine or the host of a package index."""
    found = []
    for path in _text_files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if _MACHINE_PATH.search(line) or _REGISTRY.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:80]}")
    return found


def _text_files(root: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(root):
        at_top = Path(directory) == root
        subdirectories[:] = [
            name
            for name in subdirectories
            if name not in SKIPPED_DIRECTORIES
            and (not name.startswith(".") or name in {".ci", ".github"})
            and not (at_top and name == "weights")
        ]
        for name in sorted(names):
            if not name.endswith((".gguf", ".safetensors", ".npz", ".npy", ".png")):
                yield Path(directory) / name


RULES = (arrow_violations, undeclared_imports, undocumented_names, style_violations)


@pytest.mark.first(1)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_installed_packages_keep_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(INSTALL_ROOT) == []


def test_repository_names_no_machine() -> None:
    assert machine_traces(REPOSITORY) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (arrow_violations, "lpu_jax/cost/collectives/links.py", "import models.config\n"),
        (
            arrow_violations,
            "lpu_jax/machine/chip.py",
            "def late():\n    from sharding import plan\n",
        ),
        (arrow_violations, "models/zoo.py", "from models.config import ModelConfig\n"),
        (arrow_violations, "models/zoo.py", "from ..lpu_jax import chip\n"),
        (arrow_violations, "sharding/plan.py", "import strategies\n"),
        (undeclared_imports, "models/zoo.py", "import torch\n"),
        (undeclared_imports, "models/zoo.py", "from hypothesis import given\n"),
        (undocumented_names, "lpu_jax/machine/chip.py", '"""Chips."""\n\n\ndef clock(): ...\n'),
        (
            undocumented_names,
            "lpu_jax/machine/chip.py",
            '"""Chips."""\n\n\nclass Chip:\n    "A chip."\n\n    def clock(self): ...\n',
        ),
        (undocumented_names, "lpu_jax/machine/chip.py", "clock_hz = 1\n"),
        (style_violations, "models/zoo.py", "from __future__ import annotations\n"),
        (style_violations, "models/__init__.py", '"""Models."""\n\n\ndef model(): ...\n'),
        (machine_traces, "docs/use.md", f"cp x /{HOME}/ada/x\n"),
        (machine_traces, "docs/use.md", f"see `/{TEMPORARY}/x`\n"),
        (machine_traces, "docs/use.md", f"pip install --{INDEX}-url https://host.example/\n"),
        (machine_traces, "constraints.txt", f"x @ https://files.{HOSTED}.org/x\n"),
    ],
)
def test_rule_finds_a_planted_violation(
    rule: Callable[[Path], list[str]], path: str, text: str, tmp_path: Path
) -> None:
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    assert len(rule(tmp_path)) == 1


def test_rules_accept_what_the_house_style_writes(tmp_path: Path) -> None:
    for path, text in {
        "lpu_jax/cost/links.py": '"""Links."""\n\nfrom ..chip import ChipSpec\n',
        "models/__init__.py": '"""Models."""\n',
        "sharding/plan.py": '"""Plans."""\n\nimport jax\nfrom lpu_jax.chip import ChipSpec\n',
    }.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    assert [found for rule in (*RULES, machine_traces) for found in rule(tmp_path)] == []


def test_three_packages_load_from_one_root_and_are_typed() -> None:
    roots = {Path(package.__file__).parent.parent for package in (lpu_jax, models, sharding)}
    assert roots == {INSTALL_ROOT}
    for package in PACKAGES:
        assert (INSTALL_ROOT / package / "py.typed").is_file()


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert released[0] == project["version"]
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [project["version"]]


def test_a_users_models_directory_is_named_by_the_guard(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(INSTALL_ROOT)}
    command = ["-c", "import sharding"]
    shadowed = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert shadowed.returncode != 0
    assert f"found {tmp_path / 'models' / '__init__.py'} first; run `python -P`" in shadowed.stderr
    subprocess.run([sys.executable, "-P", *command], cwd=tmp_path, env=environment, check=True)


@pytest.mark.slow
def test_importing_the_packages_changes_no_jax_setting() -> None:
    program = (
        "import importlib, pkgutil, jax\n"
        "before = dict(jax.config.values)\n"
        f"for package in {PACKAGES!r}:\n"
        "    root = importlib.import_module(package)\n"
        "    for module in pkgutil.walk_packages(root.__path__, package + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "changed = {k for k, v in jax.config.values.items() if before.get(k, v) != v}\n"
        "assert not changed, changed\n"
    )
    environment = os.environ | {"PYTHONPATH": str(INSTALL_ROOT)}
    subprocess.run([sys.executable, "-P", "-c", program], env=environment, check=True)


def test_suite_runs_under_the_hostile_settings() -> None:
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    assert jax.config.jax_numpy_rank_promotion == "raise"
    assert not jax.config.jax_enable_x64
    assert jax.device_count("cpu") == 8


def test_shape_checks_are_installed() -> None:
    # Without the hook, annotations would be comments and a wrong shape would pass every test.
    loader = type(models.__spec__.loader)
    assert loader.__module__.startswith("jaxtyping"), loader
