"""How the three packages are found and what they export: names that are loaded when first used.

`import sharding` alone must not load JAX's compiler or matplotlib, so each package says where its
public names live, and a name is imported when it is asked for.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

_DISTRIBUTION = "lpu-jax"


def exports(
    package: str, names: Mapping[str, str], modules: Mapping[str, str] = MappingProxyType({})
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package.

    Args:
        package: its name.
        names: the module that defines each public name, relative to the package.
        modules: where each public name that is a module lies, relative to the package.

    Returns:
        A function from a name to what it names, which also knows `__version__`; and one that lists
        the names.
    """

    def find(name: str) -> Any:
        if name == "__version__":
            return version(_DISTRIBUTION)
        if name in modules:
            found = import_module(f".{modules[name]}", package)
        elif name in names:
            found = getattr(import_module(f".{names[name]}", package), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)
        return found

    return find, lambda: sorted({*names, *modules, "__version__"})


def check_one_root(package: ModuleType, beside: ModuleType) -> None:
    """Say so when another directory of a package's name hides the one that belongs here.

    Args:
        package: as Python found it; a directory without `__init__.py` has no file.
        beside: a package that is known to be ours.

    Raises:
        ImportError: they do not lie side by side.
    """
    found, ours = str(package.__file__), str(beside.__file__)
    if Path(found).parent.parent != Path(ours).parent.parent:
        raise ImportError(
            f"lpu_jax needs the `{package.__name__}` package installed beside {ours}, but Python "
            f"found {found} first; run `python -P`, which leaves the working directory off the "
            "path."
        )
