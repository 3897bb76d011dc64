"""What all commands of `lpu` share: option types, exit codes, and how results leave it.

Exit codes: 0 ok; 1 the answer is no; 2 bad input, with one sentence on standard error; 130 stopped
by Ctrl-C. Nothing is decided here or in the commands: they parse arguments, call the library and
print.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import Machine
from models.config import LatentForm, ModelConfig
from models.policy import POLICIES, RELEASED
from models.zoo import model

from ..files import check_writable, read_text, write_file
from ..pictures import picture_format
from ..plan_file import plan_of
from ..rank.compare import compare
from ..rank.comparison import Comparison
from ..rank.sensitivity import Sensitivity
from ..rank.sweep_result import Sweep
from ..report import Watcher
from ..request import Request

NO, BAD_INPUT, INTERRUPTED = 1, 2, 130
Result = TypeVar("Result")

ModelName = Annotated[str, typer.Argument(help="Zoo name, hub id, or path of a config.json.")]
SystemName = Annotated[str, typer.Option("--system", help="System name, or path of a TOML file.")]
Json = Annotated[
    str | None, typer.Option("--json", help="Write JSON to FILE; - for standard output alone.")
]
A_PLAN = "Name of a plan, such as '1x8 a:2t.4r f:8t row', or a TOML or JSON file"
PlanText = Annotated[
    str | None, typer.Option("--plan", help=f"{A_PLAN}. Default: the fastest that fits.")
]
_POLICY = typer.Option(
    "--policy",
    "--weights-format",
    help=f"Precision policy: {', '.join((*POLICIES, RELEASED))} (as the checkpoint ships); behind "
    "it a format of the cache (+fp8-cache, +fp8x0.25-cache, +fp8-head-cache, +mxfp8-cache, "
    "+nvfp4-cache) and one of partial sums between chips (+bf16-wire, +fp8-wire, +fp32-wire, "
    "+exact-wire).",
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
        help="Speculative decoding: zoo name, hub id, or path of a config.json, of the model that "
        "makes the drafts, on chips of its own. Default: drafts cost nothing."
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
    machine: Machine,
    plan: str | None,
    request: Request,
    *,
    policy: str,
    mla: LatentForm | None,
    draft_model: str | None = None,
    draft_plan: str | None = None,
    expert_shares: Path | None = None,
) -> Comparison:
    """Compare a single plan: that given, or the fastest that fits (else nearest)."""
    cfg = model_in_form(model, mla)
    given: dict[str, Any] = {
        "draft_plan": None if draft_plan is None else plan_of(draft_plan),
        "plans": None if plan is None else [plan_of(plan)],
        "expert_shares": read_shares(expert_shares),
    }
    return searching(
        lambda: compare(
            cfg, machine, request, policy=policy, draft_model=draft_model, top=1, **given
        )
    )


def check_outputs(**outputs: str | Path | None) -> None:
    """Refuse files that cannot be written, before the work that makes them.

    Args:
        outputs: the value of each option, by its name; `-` is standard output.

    Raises:
        LpuError: two options name one file, or one names what cannot be written.
    """
    given = {f"--{name}": str(value) for name, value in outputs.items() if value is not None}
    for (one, name), (other, same) in combinations(given.items(), 2):
        if os.path.realpath(name) == os.path.realpath(same):
            allowed = "standard output takes one" if name == "-" else "they must be two files"
            raise LpuError(f"{one} and {other} both name {name}; {allowed}.")
    for name in given.values():
        if name != "-":
            check_writable(Path(name))


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where rows go: files are checked before the work that fills them."""

    as_json: str | None
    csv: str | None
    plot: Path | None

    def __post_init__(self) -> None:
        """Refuse files that cannot be written.

        Raises:
            LpuError: says which.
        """
        check_outputs(json=self.as_json, csv=self.csv, plot=self.plot)
        if self.plot is not None:
            picture_format(self.plot)

    def check_outside(self, shards: Path | None) -> None:
        """Refuse files in the folder of a sweep's answers, which holds nothing else.

        Raises:
            LpuError: says which.
        """
        for name, path in (("json", self.as_json), ("csv", self.csv), ("plot", self.plot)):
            if shards is None or path is None or path == "-":
                continue
            if Path(path).resolve().parent == shards.resolve():
                raise LpuError(
                    f"--{name} {path} lies in the folder of --shards, which holds a sweep's "
                    "answers alone; give another."
                )

    def give(
        self, found: Comparison | Sweep, moved: Sensitivity | None = None, *, fits: bool
    ) -> None:
        """Write, draw and print rows, and how their ranking moves."""
        if self.csv is not None and self.csv != "-":
            found.to_csv(self.csv)
        draw(self.plot, found.plot, fits=fits)
        emit(
            self.as_json,
            lambda: found.as_dict() | ({"sensitivity": moved.as_dict()} if moved else {}),
            lambda: (
                found.to_csv().rstrip("\n")
                if self.csv == "-"
                else "\n\n".join([found.table(), *([moved.text()] if moved else [])])
            ),
        )


@contextmanager
def interruptible() -> Iterator[None]:
    """End a command at Ctrl-C with one sentence.

    Raises:
        typer.Exit: at Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("lpu: stopped before anything was found.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def draw(plot: Path | None, drawing: Callable[[Path], None], *, fits: bool) -> None:
    """Draw a result, or say on standard error that nothing fits and there is nothing to draw."""
    if plot is not None and fits:
        drawing(plot)
    elif plot is not None:
        print(f"lpu: {plot} was not drawn: no plan fits.", file=sys.stderr)


def emit(as_json: str | None, data: Callable[[], Any], text: Callable[[], str]) -> None:
    """Print text, or write JSON: to a file beside the text, or alone to standard output."""
    if as_json == "-":
        print(json.dumps(data(), indent=1))
        return
    if as_json is not None:
        write_file(Path(as_json), json.dumps(data(), indent=1) + "\n")
    print(text())


def searching(work: Callable[[], Result]) -> Result:
    """Search plans; on a terminal with the time that it takes, which nothing foretells."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return work()
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as line:
        line.add_task("searching plans")
        return work()


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
