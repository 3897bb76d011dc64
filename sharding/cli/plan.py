"""`lpu plan`: one plan in full."""

from pathlib import Path
from typing import Annotated

import typer

from .. import compare as comparing
from .. import report
from ..comparison import memory_map
from ..explain import explanation
from ..pictures import picture_format, write_picture
from ..plan import read_plan
from ..scheduled import schedule_plan
from .common import NO, Batch, Context, Format, Json, ModelName, SystemName, emit


def plan(
    model: ModelName,
    system: SystemName,
    plan: Annotated[Path, typer.Option("--plan", help="Plan as TOML or JSON.")],
    weights_format: Format = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw timelines and link loads into FILE: .png, .svg or .pdf."),
    ] = None,
    as_json: Json = None,
) -> None:
    """Show one plan: its row, what the fullest chip holds, and what every operation takes."""
    picture = None if plot is None else picture_format(plot)
    found = comparing.compare(
        model,
        system,
        [read_plan(plan)],
        weights_format=weights_format,
        batch=batch,
        context=context,
    )
    (row,) = found.rows
    memory = found.system.chip.memory_name
    scheduled = schedule_plan(row.plan, found.model, found.system, found.policy, found.request)
    explained = explanation(scheduled)
    if plot is not None and picture is not None:
        from ..plots import plan_plot  # matplotlib is only loaded where something is drawn

        write_picture(plot, plan_plot(scheduled, picture))
    emit(
        as_json,
        lambda: found.as_dict() | {"explanation": explained.as_dict()},
        lambda: "\n".join(
            [
                found.table(),
                *([report.render(memory_map(row, memory))] if row.fits else []),
                explained.text(),
            ]
        ),
    )
    if not row.fits:
        raise typer.Exit(NO)
