"""Rows of a comparison, or of several, as a picture: one user's rate against the second axis."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lpu_jax.machine.mixed import Machine
from lpu_jax.machine.system import System

from ..search.goals import FRONTS
from .ranking import Objective
from .rates_plot import Mark, Panel, Series, draw
from .row import Row

#: What the second axis has, by the second goal of a front, and its name.
_SECONDS: Mapping[str, tuple[Callable[[Row], float], str]] = {
    "throughput": (lambda row: row.tokens_per_s_total, "tokens/s of all users"),
    "per-chip": (lambda row: row.tokens_per_s_per_chip, "tokens/s per chip"),
    "chips": (lambda row: float(row.n_chips), "chips of the plan"),
}


def draw_rows(
    path: Path,
    rows: Mapping[str, Sequence[tuple[int, Row]]],
    objective: Objective,
    *,
    title: str,
    subtitle: str,
) -> None:
    """Draw rows into a PNG, SVG or PDF file.

    Args:
        path: of the file.
        rows: by the name of their series, each with its number; they fit.
        objective: that they are ranked by; a front is a line.
        title: of the picture.
        subtitle: what was asked.

    Raises:
        LpuError: the file cannot be written.
    """
    second, name = _SECONDS[FRONTS.get(objective, "throughput")]
    series = tuple(
        Series(
            name=of,
            marks=tuple(
                _mark(number, row, second(row))
                for number, row in sorted(own, key=lambda one: -one[1].tokens_per_s_per_user)
            ),
            is_front=objective in FRONTS,
        )
        for of, own in rows.items()
    )
    note = "Modelled, with assumed constants."
    panel = Panel(title="", second=name, series=series)
    draw(path, [panel], title=title, subtitle=subtitle, note=note)


def _mark(number: int, row: Row, second: float) -> Mark:
    def rates(shortest_s: float, longest_s: float) -> tuple[float, float]:
        return row.tokens_per_step / longest_s, row.tokens_per_step / shortest_s

    return Mark(
        tokens_per_s_per_user=row.tokens_per_s_per_user,
        second=second,
        label=str(number),
        bounds=rates(row.decode_latency_lower_s, row.decode_latency_upper_s),
        over_constants=rates(*row.decode_latency_range_s),
        id=f"row-{number}",
    )


def series_name(system: Machine) -> str:
    """What a legend calls a system, and whether it is not scheduled like an LPU."""
    has_gpus = not isinstance(system, System) or system.gpus is not None
    roofline = ", roofline" if has_gpus else ""
    return f"{system.name} ({system.title}{roofline})"
