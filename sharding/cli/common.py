"""What all commands of `lpu` share: option types, exit codes, and how results leave it.

Exit codes: 0 ok; 1 the answer is no; 2 bad input, with one sentence on standard error. Nothing is
decided here or in the commands: they parse arguments, call the library and print.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lpu_jax.errors import LpuError
from models.config import LatentForm, ModelConfig
from models.policy import POLICIES, RELEASED
from models.zoo import model

from ..files import read_text, write_file
from ..plan_file import read_plan
from ..rank.compare import compare
from ..rank.comparison import Comparison
from ..report import Watcher
from ..request import Request

NO, BAD_INPUT = 1, 2
Result = TypeVar("Result")

ModelName = Annotated[str, typer.Argument(help="Zoo name, or path of a config.json.")]
SystemName = Annotated[str, typer.Option("--system", help="System name, or path of a TOML file.")]
Json = Annotated[
    str | None, typer.Option("--json", help="Write JSON to FILE; - for standard output alone.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="Plan as TOML or JSON. Default: the fastest that fits."),
]
_POLICY = typer.Option(
    "--policy",
    "--weights-format",
    help=f"Precision policy: {', '.join((*POLICIES, RELEASED))} (as the checkpoint ships).",
)
PolicyName = Annotated[str, _POLICY]
PolicyNames = Annotated[list[str] | None, _POLICY]
Mla = Annotated[
    LatentForm | None,
    typer.Option(
        "--mla",
        help="Latent attention over one cached latent per token (absorbed, the default), or over "
        "keys and values of every head (expanded).",
    ),
]
Batch = Annotated[int, typer.Option(help="Sequences per micro-batch.")]
Context = Annotated[int, typer.Option(help="Allocated positions per sequence.")]
ExpertShares = Annotated[
    Path | None,
    typer.Option(
        help="Histogram of routing: a JSON list with a number per expert, how often it is chosen. "
        "Default: all alike."
    ),
]
DraftTokens = Annotated[
    int | None, typer.Option(help="Speculative decoding: drafted tokens per step.")
]
Acceptance = Annotated[
    float | None, typer.Option(help="Speculative decoding: probability that a draft is accepted.")
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        help="Speculative decoding: zoo name, or path of a config.json, of the model that makes "
        "the drafts, on chips of its own. Default: drafts cost nothing."
    ),
]


def model_in_form(name: str, mla: LatentForm | None) -> ModelConfig:
    """Find a model, its latent attention in the form that was asked for."""
    found = model(name)
    return found if mla is None else found.with_latent_form(mla)


def read_shares(path: Path | None) -> list[Any] | None:
    """Read a histogram of routing.

    Raises:
        LpuError: the file cannot be read, or is no JSON list.
    """
    if path is None:
        return None
    text = read_text(path, f"expert shares {path}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise LpuError(f"{path} must be a JSON list of numbers, one for each expert.")
    return found


def compare_one(
    model: str,
    system: str,
    plan: Path | None,
    request: Request,
    *,
    policy: str,
    mla: LatentForm | None,
    draft_model: str | None = None,
    draft_plan: Path | None = None,
    expert_shares: Path | None = None,
) -> Comparison:
    """Compare a single plan: that of a file, or the fastest that fits (else the nearest)."""
    return compare(
        model_in_form(model, mla),
        system,
        request,
        policy=policy,
        draft_model=draft_model,
        draft_plan=None if draft_plan is None else read_plan(draft_plan),
        plans=None if plan is None else [read_plan(plan)],
        top=1,
        expert_shares=read_shares(expert_shares),
    )


def check_apart(as_json: str | None, other: Path | None, option: str) -> None:
    """Refuse to write two results into one file.

    Raises:
        LpuError: `--json` and the other option name the same file.
    """
    if as_json not in (None, "-") and other is not None and Path(str(as_json)) == other:
        raise LpuError(f"--json and {option} both name {other}; they must be two files.")


def emit(as_json: str | None, data: Callable[[], Any], text: Callable[[], str]) -> None:
    """Print text, or write JSON: to a file beside the text, or alone to standard output."""
    if as_json == "-":
        print(json.dumps(data(), indent=1))
        return
    if as_json is not None:
        write_file(Path(as_json), json.dumps(data(), indent=1) + "\n")
    print(text())


def watched(work: Callable[[Watcher], Result]) -> Result:
    """Do long work, with a bar and an estimate on standard error if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return work(lambda *_: None)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)
        return work(
            lambda done, total, what: bar.update(
                task, completed=done, total=total or None, description=what
            )
        )
