"""The one compiler option that the promised bits do not survive, refused where it is asked for.

With `--xla_cpu_enable_fast_math` XLA takes a product with a constant zero to be zero, NaN or not,
and the sign of a zero to be of no meaning. Other options that tests try (older instruction sets,
threads, passes and optimisation left out) move no bit. Not seen here: options given to a single
program (`jax.jit(compiler_options=...)`).
"""

import os
import re
from pathlib import Path

from ..errors import LpuError

_FAST_MATH = re.compile(r"(?:^|\s)--xla_cpu_enable_fast_math(?:=(\S*))?(?=\s|$)")


def check_options() -> None:
    """Raise if the environment asks XLA for fast math on the CPU.

    Raises:
        LpuError: with the option and where it was found.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("-"):  # XLA takes it for the name of a file
        given = Path(given).read_text(encoding="utf-8") if Path(given).is_file() else ""
    values = _FAST_MATH.findall(given)
    if values and values[-1].strip("'\"").lower() not in ("false", "0"):  # the last one counts
        raise LpuError(
            "XLA_FLAGS: --xla_cpu_enable_fast_math was given; the emulator's bits need it off, "
            "its default."
        )
