"""The `lpu` command: its commands in the order of the help text, and the way out of a mistake."""

import sys
from collections.abc import Sequence

import typer

from lpu_jax.errors import LpuError

from .check import check
from .common import BAD_INPUT
from .compare import compare
from .curve import curve
from .generate import generate
from .listing import models, systems
from .plan import plan
from .trace import trace
from .validate import validate

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compare, check and run sharding plans of transformers on emulated LPU chips.",
)
for command in (systems, models, compare, curve, plan, trace, check, generate, validate):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        app(args=arguments)
    except LpuError as error:
        print(f"lpu: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
