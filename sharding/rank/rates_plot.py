"""Draw rates: one user's against that of all users, or of a chip, in one panel or several.

Colours are those of Okabe and Ito, and every series has its own marker too, so that the picture can
be read in grey. What the points are is the caller's: `curve` and `comparison` draw with this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpu_jax.quantities import format_count

from ..files import write_file
from ..pictures import drawn, picture_format

#: Okabe and Ito (2008): told apart by readers with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _FAINT = "#333333", "#d9d9d9"
#: Labels are at least this far apart, in parts of a panel's width or height.
_LABEL_GAP = 0.055
_PANEL_WIDTH, _HEIGHT = 5.5, 5.4  # inches


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of a series."""

    tokens_per_s_per_user: float
    tokens_per_s: float  #: of the system, or of a chip
    label: str  #: written beside it where there is room, once for points in a row that share it
    #: Lowest and highest rate of the user, drawn as a bar; None: not drawn.
    user_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one machine or search; its place among the series fixes colour and marker."""

    name: str
    marks: tuple[Mark, ...]  #: fastest for one user first
    is_front: bool  #: drawn as steps: any rate of a user below a point's is served too


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    rate: str  #: what its second rate is, on the axis
    series: tuple[Series, ...]


def draw(path: Path, panels: Sequence[Panel], *, title: str, legend: str) -> None:
    """Draw panels into a file: the whole file or none of it.

    Args:
        path: of the file; its suffix is its format.
        panels: at least one; the same series in each.
        title: of the picture.
        legend: what the labels beside points are.

    Raises:
        LpuError: the suffix is unknown, or the file cannot be written.
    """
    picture = picture_format(path)
    write_file(path, _picture(panels, title, legend, picture))


def _picture(panels: Sequence[Panel], title: str, legend: str, picture: str) -> bytes:
    import matplotlib  # only loaded where something is drawn
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "svg.hashsalt": "lpu",  # the same rates are the same file
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        width = _PANEL_WIDTH * max(len(panels), 1.4)
        figure = Figure(figsize=(width, _HEIGHT), layout="constrained")
        axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
        for one_axes, panel in zip(axes, panels, strict=True):
            _draw_panel(one_axes, panel)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(3, len(labels)),
            frameon=False,
            title=f"{legend}; modelled, with assumed constants",
            title_fontproperties={"size": 9},
        )
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        return drawn(figure, picture)


def _draw_panel(axes: Any, panel: Panel) -> None:
    for number, series in enumerate(panel.series):
        if series.marks:
            _draw_series(axes, series, number)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens/s of one user")
    axes.set_ylabel(panel.rate)
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.grid(which="major", color=_FAINT, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08, y=0.1)
    _plain_ticks(axes)
    for number, series in enumerate(panel.series):
        _label(axes, series.marks, _COLOURS[number % len(_COLOURS)])


def _draw_series(axes: Any, series: Series, number: int) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    users = [mark.tokens_per_s_per_user for mark in series.marks]
    rates = [mark.tokens_per_s for mark in series.marks]
    if series.is_front:
        axes.step(users, rates, where="post", color=colour, linewidth=1.2, alpha=0.55)
    for mark in series.marks:
        if mark.user_range is not None:
            axes.hlines(mark.tokens_per_s, *mark.user_range, color=colour, linewidth=1, alpha=0.45)
    axes.plot(
        users,
        rates,
        linestyle="none",
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5.5,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=series.name,
    )


def _plain_ticks(axes: Any) -> None:
    """Write 0.5, 1, 2, 5, 10, 1k, 1M instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(lambda value, _: _short(value))
        axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    return f"{value:g}" if value < 1 else format_count(value).replace(" ", "")


def _label(axes: Any, marks: Sequence[Mark], colour: str) -> None:
    """Write labels beside points, where there is room."""
    to_axes = axes.transAxes.inverted()
    placed: list[tuple[float, float]] = []
    last = None
    for mark in marks:
        if mark.label == last:
            continue
        rates = (mark.tokens_per_s_per_user, mark.tokens_per_s)
        at = tuple(to_axes.transform(axes.transData.transform(rates)))
        if any(math.dist(at, other) < _LABEL_GAP for other in placed):
            continue
        last = mark.label
        placed.append(at)
        axes.annotate(
            mark.label,
            rates,
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
