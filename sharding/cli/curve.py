"""`lpu curve`: one user's rate against that of all users."""

from pathlib import Path
from typing import Annotated

import typer

from lpu_jax.errors import LpuError

from ..pictures import picture_format
from ..rank import curve as curves
from ..request import decode_request
from .common import (
    NO,
    Acceptance,
    Context,
    DraftTokens,
    Json,
    ModelName,
    PolicyName,
    check_outputs,
    draw,
    emit,
    searching,
)


def curve(
    model: ModelName,
    system: Annotated[
        list[str],
        typer.Option("--system", help="System name, or path of a TOML file; repeat to compare."),
    ],
    policy: PolicyName = "fp16",
    context: Context = 4096,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes, such as 1,4,16. Default: doubled while something fits."),
    ] = None,
    draft_tokens: DraftTokens = None,
    acceptance: Acceptance = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw into a .png, .svg or .pdf file.")
    ] = None,
    as_json: Json = None,
) -> None:
    """Best plans over batch sizes: tokens/s of one user, of the system, and per chip."""
    check_outputs(json=as_json, plot=plot)
    if plot is not None:
        picture_format(plot)
    request = decode_request(context=context, draft_tokens=draft_tokens, acceptance=acceptance)
    sizes = None if batches is None else _whole_numbers(batches)
    found = searching(lambda: curves.curve(model, system, request, policy=policy, batches=sizes))
    draw(plot, found.plot, fits=bool(found.points))
    emit(as_json, found.as_dict, found.table)
    if not found.points:
        raise typer.Exit(NO)


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LpuError(
            f"batches is {text!r}; it must be whole numbers separated by commas, such as 1,4,16."
        ) from None
