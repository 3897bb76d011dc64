"""A plan over two machines as a picture: the first micro-batches on GPUs, network and LPUs.

Drawn from the numbers that `lpu plan` prints. Not drawn: layers behind the first few, which repeat.
"""

from typing import TYPE_CHECKING, Any

from ..pictures import drawn
from .micro_batches import RESOURCES, Turn, steps_of, turns
from .scheduled import ScheduledPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, which colour-blind readers tell apart, one for each micro-batch.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_GREY = "#5A5A5A"
#: Steps of the first micro-batch that are in the picture: some three layers.
_SHOWN_STEPS = 13
#: A name is written on a bar that takes at least this share of the width for each character.
_CHARACTER_SHARE = 0.0075


def micro_batch_plot(scheduled: ScheduledPlan, picture: str, n_micro_batches: int = 2) -> bytes:
    """Draw the first steps of micro-batches that alternate between two machines.

    Args:
        scheduled: a plan over two machines.
        picture: `png`, `svg` or `pdf`.
        n_micro_batches: at most as many as are in flight.

    Returns:
        The file's bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    steps, count = steps_of(scheduled), min(n_micro_batches, len(_COLOURS))
    count = min(count, int(scheduled.evaluation.in_flight[0]))
    taken = turns(steps, count)
    style: Any = {"svg.hashsalt": "lpu", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(11.0, 3.4))
        axes = figure.add_axes((0.09, 0.17, 0.89, 0.62))
        _draw(axes, taken, scheduled)
        asked = scheduled.scenario
        latency_us = scheduled.latency_cycles / scheduled.evaluation.clock_hz * 1e6
        figure.text(
            0.09,
            0.93,
            f"{asked.model.name} ({asked.policy.name}) on {asked.machine.name}: "
            f"{scheduled.plan.name}",
            fontsize=11,
            fontweight="bold",
        )
        figure.text(
            0.09,
            0.85,
            f"the first layers of {count} micro-batch{'es' if count > 1 else ''} of "
            f"{asked.request.batch}; a token takes {latency_us:,.0f} us; rests on assumed "
            "constants, which the report lists",
            color=_GREY,
        )
        return drawn(figure, picture)


def _draw(axes: "Axes", taken: list[Turn], scheduled: ScheduledPlan) -> None:
    """Draw a lane for each resource, a bar for each turn."""

    def us(cycles: float) -> float:
        return cycles / scheduled.evaluation.clock_hz * 1e6

    first = [turn for turn in taken if turn.micro_batch == 0][:_SHOWN_STEPS]
    end = us(first[-1].end_cycle)
    for turn in [turn for turn in taken if us(turn.start_cycle) < end]:
        y, colour = RESOURCES.index(turn.step.resource), _COLOURS[turn.micro_batch]
        start, length = us(turn.start_cycle), us(turn.step.cycles)
        seen = min(length, end - start)
        axes.broken_barh(
            [(start, length)], (y - 0.4, 0.8), facecolors=colour, edgecolors="white",
            linewidth=0.5, alpha=0.85,
        )  # fmt: skip
        if len(turn.step.name) * _CHARACTER_SHARE < seen / end:
            axes.text(
                start + seen / 2, y, turn.step.name, ha="center", va="center", fontsize=7,
                color="white",
            )  # fmt: skip
    for number in sorted({turn.micro_batch for turn in taken}):
        axes.plot([], [], color=_COLOURS[number], linewidth=6, label=f"micro-batch {number + 1}")
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, -0.08), ncols=4, frameon=False)
    axes.set_yticks(range(len(RESOURCES)), RESOURCES)
    axes.set_ylim(len(RESOURCES) - 0.4, -0.6)
    axes.set_xlim(0, end)
    axes.set_xlabel("us")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
