"""`lpu validate`: published figures against ours."""

from typing import Annotated

import typer

from ..validate import published as validating
from .common import NO, Json, emit, watched


def validate(
    checks_only: Annotated[
        bool, typer.Option("--checks-only", help="Leave out figures that cannot pass or fail.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Say which terms make up a difference of more than a factor of 2."
        ),
    ] = False,
    as_json: Json = None,
) -> None:
    """Compare published figures with the model's; exit code 1 if one is missed."""
    found = watched(lambda say: validating.validate(checks_only=checks_only, progress=say))
    emit(
        as_json,
        found.as_dict,
        lambda: "\n\n".join([found.text(), *([found.explanation()] if explain else [])]),
    )
    if not found.passed:
        raise typer.Exit(NO)
