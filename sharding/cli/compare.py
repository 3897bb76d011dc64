"""`lpu compare`: the main job."""

from enum import StrEnum
from typing import Annotated

import typer

from .. import compare as comparing
from .common import NO, Batch, Context, Format, Json, ModelName, SystemName, emit, watched


class Objective(StrEnum):
    """What plans are ranked by."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    PARETO = "pareto"


def compare(
    model: ModelName,
    system: SystemName,
    weights_format: Format = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 10,
    objective: Annotated[
        Objective, typer.Option(help="What plans are ranked by.")
    ] = Objective.LATENCY,
    check: Annotated[
        int,
        typer.Option(min=0, help="Run the first N plans on virtual chips and report their error."),
    ] = 0,
    as_json: Json = None,
) -> None:
    """Search legal plans; rank them by time, with memory fit and, with --check, numerical error."""
    found = comparing.compare(
        model,
        system,
        weights_format=weights_format,
        batch=batch,
        context=context,
        top=top,
        objective=objective.value,
    )
    if check and found.fitting:
        found = watched(lambda say: comparing.with_numerics(found, check, progress=say))
    emit(as_json, found.as_dict, found.table)
    if not found.fitting:
        raise typer.Exit(NO)
