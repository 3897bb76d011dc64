"""`lpu plan`: one plan in full."""

from pathlib import Path
from typing import Annotated

import typer

from .. import compare as comparing
from .. import report
from ..comparison import memory_map
from ..plan import read_plan
from .common import NO, Batch, Context, Format, Json, ModelName, SystemName, emit


def plan(
    model: ModelName,
    system: SystemName,
    plan: Annotated[Path, typer.Option("--plan", help="Plan as TOML or JSON.")],
    weights_format: Format = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    as_json: Json = None,
) -> None:
    """Show one plan: its row, and what the fullest chip holds."""
    found = comparing.compare(
        model,
        system,
        [read_plan(plan)],
        weights_format=weights_format,
        batch=batch,
        context=context,
    )
    (row,) = found.rows
    emit(
        as_json,
        found.as_dict,
        lambda: (
            "\n".join([found.table(), report.render(memory_map(row))])
            if row.fits
            else found.table()
        ),
    )
    if not row.fits:
        raise typer.Exit(NO)
