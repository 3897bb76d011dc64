"""Draw one user's rate against that of all users, of a chip, or chips, in one panel or several.

A panel is as wide as a column of a paper, and readable at that size. Colours are those of Okabe and
Ito, and every series has its own marker too, so that the picture can be read in grey. What the
points are is the caller's: `curve` and `rows_plot` draw with this. Where labels go is
`label_places`' question.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpu_jax.quantities import format_count

from ..files import write_file
from ..pictures import drawn, picture_format
from .label_places import place_labels

#: Okabe and Ito (2008): told apart by readers with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _FAINT = "#333333", "#d9d9d9"
#: Places are given in inches: an automatic layout is not the same to the last bit each time.
_PANEL_WIDTH, _HEIGHT = 3.3, 2.6
_LEFT, _RIGHT, _TOP, _AXIS, _LINE, _EDGE = 0.47, 0.1, 0.36, 0.34, 0.125, 0.08
#: Lines of legend and note that the height has room for.
_MOST_LINES = 3
_POINTS_PER_INCH, _DOTS_PER_INCH = 72, 300
_FONT, _SMALL, _TITLE = 7, 6.5, 7.5  # points
#: The mean width of a character of DejaVu Sans, in parts of its size, and of a key of the legend.
_CHARACTER_WIDTH, _KEY_INCHES = 0.56, 0.33
#: An axis whose ends are further apart is logarithmic.
_LARGEST_LINEAR_RATIO = 10.0
#: A label whose centre is further from its point, in points, is joined to it by a line.
_NEAR = 11.0
#: Room between the ends of the data and those of the axes, in parts of the data's own room.
_MARGIN = 0.1
#: A logarithmic axis whose ends are closer has ticks at 1, 2 and 5, one that is longer at 1.
_MOST_STEPPED = 300.0
#: How dark and thick, in points, the bars are: over assumed constants, and the schedule's bounds.
_OVER_CONSTANTS: dict[str, Any] = {"alpha": 0.25, "linewidth": 2.6}
_BOUNDS: dict[str, Any] = {"alpha": 0.75, "linewidth": 1.1}
_BAR_KEYS = {"bounds of the schedule": _BOUNDS, "over assumed constants": _OVER_CONSTANTS}

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of a series."""

    tokens_per_s_per_user: float
    second: float  #: on the second axis: a rate of the system or of a chip, or chips
    label: str  #: written beside it where there is room, once for points in a row that share it
    #: Lowest and highest rate of the user, as bars: at the bounds of the schedule's time, and over
    #: the assumed constants. None: not drawn.
    bounds: Range | None = None
    over_constants: Range | None = None
    id: str | None = None  #: of the point in an SVG file


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
    second: str  #: what its second axis has
    series: tuple[Series, ...]


def draw(path: Path, panels: Sequence[Panel], *, title: str, subtitle: str, note: str) -> None:
    """Draw panels into a file: the whole file or none of it.

    Args:
        path: of the file; its suffix is its format.
        panels: at least one; the same series in each.
        title: of the picture.
        subtitle: what was asked, under the title.
        note: what the labels beside points are, under the legend.

    Raises:
        LpuError: the suffix is unknown, or the file cannot be written.
    """
    picture = picture_format(path)
    write_file(path, _picture(panels, (title, subtitle, note), picture))


def _picture(panels: Sequence[Panel], words: tuple[str, str, str], picture: str) -> bytes:
    import matplotlib  # only loaded where something is drawn

    style: dict[Any, Any] = {
        "font.size": _FONT,
        "axes.labelsize": _FONT,
        "xtick.labelsize": _FONT,
        "ytick.labelsize": _FONT,
        "axes.linewidth": 0.6,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "text.parse_math": False,  # names may hold any character
        "xtick.color": _INK,
        "ytick.color": _INK,
        "svg.hashsalt": "lpu",  # the same rates are the same file
        "svg.fonttype": "none",
        "pdf.fonttype": 42,  # publishers refuse Type 3
    }
    with matplotlib.rc_context(style):
        return drawn(_figure(panels, *words), picture, dots_per_inch=_DOTS_PER_INCH)


def _figure(panels: Sequence[Panel], title: str, subtitle: str, note: str) -> Any:
    from matplotlib.figure import Figure

    keys = _legend_keys(panels)
    width = _PANEL_WIDTH * len(panels)
    columns = _legend_columns([name for name, _ in keys], width)
    lines = math.ceil(len(keys) / columns) + 1
    bottom = _AXIS + _LINE * (lines + 0.3)
    top = _TOP + (_LINE if panels[0].title else 0)
    height = _HEIGHT + _LINE * max(0, lines - _MOST_LINES)
    size = (_PANEL_WIDTH - _LEFT - _RIGHT, height - bottom - top)
    figure = Figure(figsize=(width, height))
    users = _extent(rate for panel in panels for rate in _users(panel))
    for number, panel in enumerate(panels):
        place = np.array([number * _PANEL_WIDTH + _LEFT, bottom, *size])
        axes = figure.add_axes(tuple(place / (width, height, width, height)))
        _draw_panel(axes, panel, users, size)

    def write(words: str, up: float, most: float, **font: Any) -> None:
        font["size"] = min(most, _size_that_fits(words, width - 2 * _EDGE))
        figure.text(_EDGE / width, up / height, words, **font)

    write(title, height - 0.04, _TITLE, va="top", weight="bold")
    write(subtitle, height - 0.17, _SMALL, va="top")
    write(note, 0.03, _SMALL, va="bottom")
    figure.legend(
        [key for _, key in keys],
        [name for name, _ in keys],
        loc="lower left",
        bbox_to_anchor=(_EDGE / width, _LINE / height),
        ncols=columns,
        fontsize=_SMALL,
        frameon=False,
        borderpad=0,
        borderaxespad=0.3,
        labelspacing=0.25,
        handlelength=1.6,
        columnspacing=1.2,
    )
    return figure


def _legend_keys(panels: Sequence[Panel]) -> list[tuple[str, Any]]:
    """The names and samples of all series, and of the bars if there are some."""
    from matplotlib.lines import Line2D

    keys = [
        (series.name, Line2D([], [], **_line(series, number)))
        for number, series in enumerate(panels[0].series)
        if series.marks
    ]
    marks = [mark for panel in panels for series in panel.series for mark in series.marks]
    if any(mark.bounds for mark in marks):
        keys += [(name, Line2D([], [], color=_INK, **bar)) for name, bar in _BAR_KEYS.items()]
    return keys


def _legend_columns(names: Sequence[str], width: float) -> int:
    """How many columns a legend may have in a width in inches."""
    longest = max(map(len, names)) * _CHARACTER_WIDTH * _SMALL / _POINTS_PER_INCH
    return max(1, min(len(names), int(width / (longest + _KEY_INCHES))))


def _size_that_fits(words: str, width: float) -> float:
    """The largest font at which words are no wider than a width in inches."""
    return width * _POINTS_PER_INCH / (1.12 * _CHARACTER_WIDTH * max(1, len(words)))


def _users(panel: Panel) -> Iterable[float]:
    """All that a panel shows of the rates of one user."""
    for series in panel.series:
        for mark in series.marks:
            yield from (mark.tokens_per_s_per_user, *(mark.bounds or ()))
            yield from mark.over_constants or ()


def _extent(rates: Iterable[float]) -> tuple[str, Range]:
    """Choose the scale of an axis and its ends, with some room around the rates."""
    found = list(rates)
    low, high = min(found), max(found)
    if low > 0 and high / low > _LARGEST_LINEAR_RATIO:
        room = (high / low) ** _MARGIN
        return "log", (low / room, high * room)
    room = _MARGIN * (high - low) or high / 4
    return "linear", (low - room, high + room)


def _draw_panel(axes: Any, panel: Panel, users: tuple[str, Range], size: Range) -> None:
    seconds = _extent(mark.second for series in panel.series for mark in series.marks)
    axes.set(xscale=users[0], xlim=users[1], yscale=seconds[0], ylim=seconds[1])
    _plain_ticks(axes.xaxis, *users)
    _plain_ticks(axes.yaxis, *seconds)
    axes.set_xlabel("tokens/s of one user", labelpad=1.5)
    axes.set_ylabel(panel.second, labelpad=2)
    axes.set_title(panel.title, loc="left", fontsize=_FONT, pad=3)
    axes.grid(which="major", color=_FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5, width=0.6, pad=2)
    axes.tick_params(which="minor", length=1.5, width=0.4)
    for number, series in enumerate(panel.series):
        if series.marks:
            _draw_series(axes, series, number)
    _label(axes, panel, size)


def _line(series: Series, number: int) -> dict[str, Any]:
    """How a series looks."""
    return {
        "linestyle": "-" if series.is_front else "none",
        "linewidth": 0.8,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 3.6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
        "color": _COLOURS[number % len(_COLOURS)],
    }


def _draw_series(axes: Any, series: Series, number: int) -> None:
    look = _line(series, number)
    if series.is_front:
        axes.step(
            [mark.tokens_per_s_per_user for mark in series.marks],
            [mark.second for mark in series.marks],
            where="post",
            color=look["color"],
            linewidth=look["linewidth"],
            alpha=0.6,
        )
    for mark in series.marks:
        for ends, bar in ((mark.over_constants, _OVER_CONSTANTS), (mark.bounds, _BOUNDS)):
            if ends is not None:
                level = (mark.second, mark.second)
                axes.plot(ends, level, color=look["color"], solid_capstyle="butt", **bar)
    for mark in series.marks:
        axes.plot(
            mark.tokens_per_s_per_user,
            mark.second,
            gid=mark.id,
            zorder=3,
            **look | {"linestyle": "none"},
        )


def _plain_ticks(axis: Any, scale: str, ends: Range) -> None:
    """Write 0.5, 1, 2, 5, 10, 1k, 1M instead of powers of ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if scale == "log":
        steps = (1, 2, 5) if ends[1] / ends[0] < _MOST_STEPPED else (1,)
        axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=12))
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: _short(value))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    return f"{value:g}" if value < 1 else format_count(value).replace(" ", "")


def _label(axes: Any, panel: Panel, size: Range) -> None:
    """Write labels beside points, where there is room."""
    frame = (_POINTS_PER_INCH * size[0], _POINTS_PER_INCH * size[1])

    def place(user: float, rate: float) -> Any:
        return axes.transLimits.transform(axes.transScale.transform((user, rate))) * frame

    marks = [(mark, n) for n, series in enumerate(panel.series) for mark in series.marks]
    if not marks:
        return
    points = np.array([place(mark.tokens_per_s_per_user, mark.second) for mark, _ in marks])
    bars = [
        (*place(ends[0], mark.second), *place(ends[1], mark.second))
        for mark, _ in marks
        for ends in (mark.over_constants, mark.bounds)
        if ends is not None
    ]
    texts = [
        None
        if n and (marks[n - 1][0].label, marks[n - 1][1]) == (mark.label, series)
        else mark.label
        for n, (mark, series) in enumerate(marks)
    ]
    found = place_labels(points, texts, np.array(bars).reshape(-1, 4), frame, _SMALL)
    for (mark, number), point, at in zip(marks, points, found, strict=True):
        if at is not None:
            colour = _COLOURS[number % len(_COLOURS)]
            leader = {"arrowstyle": "-", "linewidth": 0.4, "color": colour, "shrinkB": 2}
            axes.annotate(
                mark.label,
                point,
                at,
                xycoords="axes points",
                textcoords="axes points",
                fontsize=_SMALL,
                color=colour,
                ha="center",
                va="center",
                arrowprops=leader if math.dist(point, at) > _NEAR else None,
            )
