"""Draw the curves of a model: one user's rate against that of all users, and of a chip.

Colours are those of Okabe and Ito, and every system has its own marker too, so that the picture can
be read in grey. Not drawn: plans that are on no front, and the bounds of each time.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpu_jax.errors import LpuError
from lpu_jax.machine.system import System
from lpu_jax.quantities import format_count

from ..files import write_file
from ..pictures import drawn, picture_format
from .curve import Curve, Point

#: Okabe and Ito (2008): told apart by readers with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _FAINT = "#333333", "#d9d9d9"
#: Labels of batch sizes are at least this far apart, in parts of a panel's width or height.
_LABEL_GAP = 0.055


def draw(curve: Curve, path: Path) -> None:
    """Draw a curve into a file: the whole file or none of it.

    Args:
        curve: with at least one point.
        path: of the file; its suffix is its format.

    Raises:
        LpuError: the suffix is unknown, nothing fits, or the file cannot be written.
    """
    picture = picture_format(path)
    if not curve.points:
        raise LpuError(f"{path} was not drawn: no plan of {curve.model.name} fits.")
    write_file(path, _picture(curve, picture))


def _picture(curve: Curve, picture: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "svg.hashsalt": "lpu",  # the same curve is the same file
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 5.4), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for panel, per_chip in zip(panels, (False, True), strict=True):
            _draw_panel(panel, curve, per_chip)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(3, len(labels)),
            frameon=False,
            title="numbers beside points are batch sizes; modelled, with assumed constants",
            title_fontproperties={"size": 9},
        )
        figure.suptitle(_title(curve), fontsize=12, fontweight="bold", x=0.01, ha="left")
        return drawn(figure, picture)


def _title(curve: Curve) -> str:
    request = curve.request
    drafts = (
        ""
        if request.acceptance is None
        else f", {request.tokens - 1} drafts accepted with {request.acceptance:g}"
    )
    return f"{curve.model.name}, weights {curve.policy.name}, context {request.context}{drafts}"


def _draw_panel(panel: Any, curve: Curve, per_chip: bool) -> None:
    """One front of every system, as steps: any rate of a user below a point's is served too."""
    for number, system in enumerate(curve.systems):
        points = curve.front(system.name, per_chip=per_chip)
        if not points:
            continue
        rates = _rates(points, per_chip)
        users, totals = zip(*rates, strict=True)
        colour = _COLOURS[number % len(_COLOURS)]
        panel.step(users, totals, where="post", color=colour, linewidth=1.2, alpha=0.55)
        panel.plot(
            users,
            totals,
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5.5,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=f"{system.name} ({system.n_chips} x {system.chip.title}{_roofline(system)})",
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("tokens/s of one user")
    panel.set_ylabel("tokens/s of the system" if not per_chip else "tokens/s per chip of the plan")
    panel.set_title("per chip" if per_chip else "whole system", loc="left", fontsize=11)
    panel.grid(which="major", color=_FAINT, linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.08, y=0.1)
    _plain_ticks(panel)
    for number, system in enumerate(curve.systems):
        points = curve.front(system.name, per_chip=per_chip)
        _label_batches(panel, points, per_chip, _COLOURS[number % len(_COLOURS)])


def _roofline(system: System) -> str:
    """What a reader must know of a system that is not scheduled like an LPU."""
    return ", roofline" if system.note else ""


def _rates(points: Sequence[Point], per_chip: bool) -> list[tuple[float, float]]:
    return [
        (
            point.tokens_per_s_per_user,
            point.tokens_per_s_per_chip if per_chip else point.tokens_per_s_total,
        )
        for point in points
    ]


def _plain_ticks(panel: Any) -> None:
    """Write 0.5, 1, 2, 5, 10, 1k, 1M instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(lambda value, _: _short(value))
        axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    return f"{value:g}" if value < 1 else format_count(value).replace(" ", "")


def _label_batches(panel: Any, points: Sequence[Point], per_chip: bool, colour: str) -> None:
    """Write the batch size beside the first point that has it, where there is room."""
    to_panel = panel.transAxes.inverted()
    placed: list[tuple[float, float]] = []
    last = None
    for point, rate in zip(points, _rates(points, per_chip), strict=True):
        if point.batch == last:
            continue
        at = tuple(to_panel.transform(panel.transData.transform(rate)))
        if any(math.dist(at, other) < _LABEL_GAP for other in placed):
            continue
        last = point.batch
        placed.append(at)
        panel.annotate(
            str(point.batch),
            rate,
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
