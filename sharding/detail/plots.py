"""One plan as a picture: what each unit does in a block, which links are loaded, where time goes.

Drawn from the schedule that `lpu plan` prints. Not drawn: stages other than the slowest, and links
that carry nothing.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from lpu_jax.cost.trace import INSTALLS, UNIT_TRACKS, Slice

from ..pictures import drawn
from .explain import collectives, explanation
from .explanation import Explanation
from .scheduled import KindSchedule, ScheduledPlan, Stage
from .timeline import kind_slices, links_of_stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {
    "MXM": "#0072B2",
    "MXM weights": "#56B4E9",
    "VXM": "#E69F00",
    "SXM": "#009E73",
    "MEM": "#CC79A7",
    "C2C": "#D55E00",
    "DRAM": "#000000",
}
_GREY = "#5A5A5A"
_WIDTH_INCHES, _LEFT_INCHES, _RIGHT_INCHES = 13.0, 1.15, 0.25
_TITLE_INCHES, _LANE_INCHES, _GAP_INCHES = 0.55, 0.27, 0.36
_BETWEEN_INCHES, _MAP_INCHES, _BOTTOM_INCHES = 1.2, 4.6, 0.6
#: A name is written on a bar that takes at least this share of the width for each character.
_CHARACTER_SHARE = 0.0066
_THIN_SHARE = 0.004
#: More chips than this are shown by node.
_MOST_CHIPS = 80


def plan_plot(scheduled: ScheduledPlan, picture: str) -> bytes:
    """Draw a plan.

    Args:
        scheduled: the plan.
        picture: `png`, `svg` or `pdf`.

    Returns:
        The file's bytes.
    """
    import matplotlib as mpl

    style: Any = {
        "svg.hashsalt": "lpu",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.titlesize": 10,
    }
    with mpl.rc_context(style):
        return drawn(_figure(scheduled), picture)


def _figure(scheduled: ScheduledPlan) -> "Figure":
    from matplotlib.figure import Figure

    explained = explanation(scheduled)
    is_schedule = scheduled.scenario.system.lpus is not None
    made_of = "static schedule" if is_schedule else explained.note.partition(":")[0]
    lanes = {kind: _lanes(kind_slices(each)) for kind, each in scheduled.kinds.items()}
    heights = [_LANE_INCHES * (len(lane) + 0.2) for lane in lanes.values()]
    tall = _TITLE_INCHES + sum(heights) + _GAP_INCHES * len(lanes)
    tall += _BETWEEN_INCHES + _MAP_INCHES + _BOTTOM_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, tall))

    # Places are given in inches: an automatic layout is not the same to the last bit each time.
    def axes_at(left: float, bottom: float, width: float, height: float) -> "Axes":
        return figure.add_axes(
            (left / _WIDTH_INCHES, bottom / tall, width / _WIDTH_INCHES, height / tall)
        )

    figure.text(
        _LEFT_INCHES / _WIDTH_INCHES,
        1 - 0.15 / tall,
        f"{explained.model} ({explained.policy}) on {explained.system}: "
        f"{explained.plan.name}; {explained.latency_s * 1e6:.1f} us for a step",
        va="top",
        fontsize=12,
        fontweight="bold",
    )
    figure.text(
        _LEFT_INCHES / _WIDTH_INCHES,
        1 - 0.42 / tall,
        f"{made_of}; rests on assumed constants, which the report lists",
        va="top",
        color=_GREY,
    )
    longest = max(float(kind.block.timing.cycles) for kind in scheduled.kinds.values())
    bottom, width = tall - _TITLE_INCHES, _WIDTH_INCHES - _LEFT_INCHES - _RIGHT_INCHES
    for (kind, lane), height in zip(lanes.items(), heights, strict=True):
        bottom -= height + _GAP_INCHES
        axes = axes_at(_LEFT_INCHES, bottom, width, height)
        _timeline(axes, scheduled.kinds[kind], lane, explained, longest)
        axes.tick_params(labelbottom=kind == list(lanes)[-1])
    axes.set_xlabel("us from the start of the block")
    _reasons(axes_at(_LEFT_INCHES + 0.55, _BOTTOM_INCHES, 3.9, _MAP_INCHES), explained)
    map_left = _WIDTH_INCHES - _RIGHT_INCHES - 0.85 - _MAP_INCHES
    bar = axes_at(map_left + _MAP_INCHES + 0.15, _BOTTOM_INCHES, 0.18, _MAP_INCHES)
    square = axes_at(map_left, _BOTTOM_INCHES, _MAP_INCHES, _MAP_INCHES)
    _link_map(figure, square, bar, scheduled)
    return figure


def _lanes(slices: tuple[Slice, ...]) -> dict[str, list[Slice]]:
    """Sort slices into the lanes that have any, top to bottom."""
    lanes: dict[str, list[Slice]] = {name: [] for name in UNIT_TRACKS}
    for each in slices:
        lanes.setdefault(each.track, []).append(each)
    return {name: found for name, found in lanes.items() if found}


def _timeline(
    axes: "Axes",
    kind: KindSchedule,
    lanes: dict[str, list[Slice]],
    explained: Explanation,
    longest_cycles: float,
) -> None:
    """Draw one kind of block: a lane for each unit, a bar for each operation."""
    block = next(each for each in explained.blocks if each.kind == kind.kind)
    to_us = explained.microseconds
    limit = to_us(longest_cycles) * 1.01
    for y, (name, slices) in enumerate(lanes.items()):
        colour = COLOURS.get(name, _GREY)
        spans = [(to_us(s.start_cycle), to_us(s.end_cycle - s.start_cycle)) for s in slices]
        # Thin bars keep their own edge, or they would vanish in white.
        edges = ["white" if length > _THIN_SHARE * limit else colour for _, length in spans]
        axes.broken_barh(spans, (y - 0.4, 0.8), facecolors=colour, edgecolors=edges, linewidth=0.5)
        if name == INSTALLS:
            continue
        for (start, length), each in zip(spans, slices, strict=True):
            label = _label(each.name, length / limit)
            axes.text(
                start + length / 2, y, label, ha="center", va="center", fontsize=7,
                color="white" if name in ("MXM", "C2C", "SXM") else "black",
            )  # fmt: skip
    axes.axvline(to_us(block.cycles), color=_GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(lanes)), list(lanes))
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{block.kind} x{block.count}: {to_us(block.cycles):.2f} us each, "
        f"{block.share_of_token:.1%} of the step",
        loc="left",
    )


def _label(name: str, share: float) -> str:
    """The longest form of a name that a bar of a share of the width has room for."""
    inside = name.partition("(")[2].rstrip(")")
    fitting = (text for text in (name, inside) if text and len(text) * _CHARACTER_SHARE < share)
    return next(fitting, "")


def _reasons(axes: "Axes", explained: Explanation) -> None:
    """Draw what the time of a step goes to: it adds up to all of it."""
    shares: dict[str, tuple[str, float]] = {}
    for block in explained.blocks:
        for use in block.operations:
            if use.share_of_token:
                name = f"{use.row.unit}: {use.row.bound_by}"
                if block.dram_cycles and use.name.startswith("append"):  # it waits for the rest
                    name = "DRAM: caches"
                _, before = shares.get(name, ("", 0.0))
                shares[name] = (use.row.unit, before + use.share_of_token)
    total = explained.latency_cycles
    shares["hand-overs"] = ("C2C", explained.hand_over_cycles / total)
    shares["host and sampling"] = ("", explained.host_cycles / total)
    ranked = sorted(shares.items(), key=lambda item: -item[1][1])
    shown = [item for item in ranked if item[1][1] >= 0.005]
    rest = 1 - sum(share for _, (_, share) in shown)
    if rest >= 0.0005:
        shown.append(("everything else", ("", rest)))
    names = [name for name, _ in shown]
    values = [100 * share for _, (_, share) in shown]
    bars = axes.barh(
        range(len(shown)), values, color=[COLOURS.get(unit, _GREY) for _, (unit, _) in shown]
    )
    axes.bar_label(bars, fmt="%.1f %%", padding=3)
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.18)
    axes.set_xlabel("share of the time of a step, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("What the time goes to: unit and what binds it", loc="left")


# --- links ----------------------------------------------------------------------------------------


def _link_map(figure: "Figure", axes: "Axes", bar: "Axes", scheduled: ScheduledPlan) -> None:
    """Draw how long the busiest link between each two chips, or nodes, is busy in a stage."""
    stage = max(scheduled.stages, key=lambda stage: stage.cycles)
    src, dst, busy_us = stage_link_load(scheduled, stage)
    if not src.size:
        axes.set_axis_off()
        bar.set_axis_off()
        why = (
            "no link is used inside a stage"
            if scheduled.scenario.system.chip.has_link_schedules
            else "a roofline has no schedule of links"
        )
        axes.text(0.5, 0.5, why, ha="center", va="center")
        return
    unit = "chip"
    if len(np.union1d(src, dst)) > _MOST_CHIPS:
        size = scheduled.scenario.system.topology.node_chips
        src, dst, unit = src // size, dst // size, "node"
    places, matrix = load_matrix(src, dst, busy_us)
    image = axes.imshow(
        np.ma.masked_equal(matrix, 0.0), cmap="viridis_r", interpolation="nearest", vmin=0.0
    )
    axes.set_facecolor("#F2F2F2")
    step = max(1, -(-len(places) // 16))
    ticks = range(0, len(places), step)
    axes.set_xticks(ticks, [str(places[i]) for i in ticks], rotation=90 if len(places) > 99 else 0)
    axes.set_yticks(ticks, [str(places[i]) for i in ticks])
    axes.set_xlabel(f"receiving {unit}")
    axes.set_ylabel(f"sending {unit}")
    axes.set_title(
        f"Links in stage {stage.number}, collectives of all its blocks\n"
        f"(grey: no transfer; busiest {busy_us.max():.2f} us)",
        loc="left",
    )
    figure.colorbar(image, cax=bar, label="busiest link of the pair, us")


def stage_link_load(
    scheduled: ScheduledPlan, stage: Stage
) -> tuple[Int[np.ndarray, " links"], Int[np.ndarray, " links"], Float[np.ndarray, " links"]]:
    """Add up how long each link is busy with the collectives of a stage's blocks.

    Returns:
        Sending chip, receiving chip and us, for each link that is used.
    """
    total: dict[tuple[int, int, int], float] = {}
    for kind, schedule in scheduled.kinds.items():
        count = sum(block.kind == kind for block in stage.blocks)
        for use in collectives(scheduled, schedule) if count else ():
            links = links_of_stage(schedule, stage, use).link_busy()
            columns = (links.src, links.dst, links.part, links.busy_cycles)
            for src, dst, part, cycles in zip(
                *(column.tolist() for column in columns), strict=True
            ):
                total[src, dst, part] = total.get((src, dst, part), 0.0) + count * cycles
    keys = np.array(sorted(total), np.int64).reshape(-1, 3)
    busy = np.array([total[key] for key in sorted(total)], np.float64)
    return keys[:, 0], keys[:, 1], busy / scheduled.evaluation.clock_hz * 1e6


def load_matrix(
    src: Int[np.ndarray, " links"],
    dst: Int[np.ndarray, " links"],
    busy: Float[np.ndarray, " links"],
) -> tuple[Int[np.ndarray, " places"], Float[np.ndarray, "places places"]]:
    """Lay links out by sender and receiver: the busiest link of each pair.

    Returns:
        The places that occur, ascending, and the matrix.
    """
    places = np.union1d(src, dst)
    matrix = np.zeros((len(places), len(places)))
    np.maximum.at(matrix, (np.searchsorted(places, src), np.searchsorted(places, dst)), busy)
    return places, matrix
