"""What a terminal is told: tables and lines as plain text, versions, and how far work is."""

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.quantities import format_seconds

#: Called with how far long work is: steps done, steps in all (0 if unknown), what comes next.
Watcher = Callable[[int, int, str], None]


def check_watcher(caller: str, progress: object) -> None:
    """Refuse what cannot be called with how far work is.

    Raises:
        LpuError: it is no function.
    """
    if not callable(progress):
        raise LpuError(
            f"{caller}: progress is {described(progress)}; it must be a function of the steps "
            "done, the steps in all and what comes next."
        )


#: Width of tables when the terminal does not say: piped output must not be cut.
TEXT_WIDTH = 200


def render(*parts: Any) -> str:
    """Lay out tables and lines as plain text."""
    console = Console(width=TEXT_WIDTH, no_color=True, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False) if isinstance(part, str) else console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def table(*columns: tuple[str, str], title: str | None = None) -> Table:
    """Make a table; each column is a heading and `left` or `right`."""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        min_width=len(title or ""),
    )
    for heading, justify in columns:
        made.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return made


def interval(low_s: float, high_s: float) -> str:
    """Write two times in s as an interval."""
    return f"{format_seconds(low_s)}..{format_seconds(high_s)}"


def brief_rate(tokens_per_s: float) -> str:
    """Write a rate as a whole number, below ten with two digits."""
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.2g}"


def rate(tokens_per_s: float) -> str:
    """Write a rate with four digits, or all that it has before the point."""
    return f"{tokens_per_s:.4g}" if tokens_per_s < 1000 else f"{tokens_per_s:.0f}"


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    return {
        "lpu_jax": version("lpu-jax"),
        "jax": version("jax"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }
