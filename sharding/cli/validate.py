"""`lpu validate`: published figures against ours."""

from typing import Annotated

import typer

from ..validate import published as validating
from .common import NO, Json, emit, watched


def validate(
    checks_only: Annotated[
        bool, typer.Option("--checks-only", help="Leave out figures that cannot pass or fail.")
    ] = False,
    as_json: Json = None,
) -> None:
    """Compare published figures with the model's; exit code 1 if one is missed."""
    found = watched(lambda say: validating.validate(checks_only=checks_only, progress=say))
    emit(as_json, found.as_dict, found.text)
    if not found.passed:
        raise typer.Exit(NO)
