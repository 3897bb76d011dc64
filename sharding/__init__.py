"""Sharding plans: which split of a transformer over LPU chips is legal, fits, and is fast."""

from pathlib import Path as _Path

import lpu_jax as _machine
import models as _models


def _check_packages_share_a_root() -> None:
    """Say so when a `models` directory of the user's hides the one this package needs."""
    # A namespace package (a directory without __init__.py) has no __file__.
    found, machine = str(_models.__file__), str(_machine.__file__)
    if _Path(found).parent.parent != _Path(machine).parent.parent:
        raise ImportError(
            f"sharding needs the `models` package installed beside {machine}, but Python found "
            f"{found} first; run `python -P`, which leaves the working directory off the path."
        )


_check_packages_share_a_root()
