"""The `lpu` command: parses arguments, calls the library and prints; nothing is decided here.

Exit codes: 0 ok; 1 the answer is no; 2 bad input, with one sentence on standard error.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from lpu_jax.errors import LpuError
from lpu_jax.quantities import format_bytes, format_count
from lpu_jax.system import named_systems
from lpu_jax.system import system as named_system
from models.params import n_active, n_parameters
from models.policy import FP16, POLICIES, RELEASED, policy_named
from models.zoo import SOURCES, named_models
from models.zoo import model as named_model

from . import certify, report
from . import compare as comparing
from .axes import Request
from .comparison import memory_map
from .legal import one_stage_plans
from .plan import Plan, read_plan

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compare, check and run sharding plans of transformers on emulated LPU chips.",
)

NO, BAD_INPUT = 1, 2
Result = TypeVar("Result")


class Objective(StrEnum):
    """What plans are ranked by."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    PARETO = "pareto"


ModelName = Annotated[str, typer.Argument(help="Zoo name, or path of a config.json.")]
SystemName = Annotated[str, typer.Option("--system", help="System name, or path of a TOML file.")]
Json = Annotated[
    str | None, typer.Option("--json", help="Write JSON to FILE; - for standard output alone.")
]
Format = Annotated[
    str,
    typer.Option(
        "--weights-format",
        "--policy",
        help=f"Precision policy: {', '.join((*POLICIES, RELEASED))} (as the checkpoint ships).",
    ),
]
Batch = Annotated[int, typer.Option(help="Sequences per micro-batch.")]
Context = Annotated[int, typer.Option(help="Allocated positions per sequence.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        app(args=arguments)
    except LpuError as error:
        print(f"lpu: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _emit(as_json: str | None, data: Callable[[], Any], text: Callable[[], str]) -> None:
    """Print text, or write JSON: to a file beside the text, or alone to standard output."""
    if as_json == "-":
        print(json.dumps(data(), indent=1))
        return
    if as_json is not None:
        _write(Path(as_json), json.dumps(data(), indent=1) + "\n")
    print(text())


def _write(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    # A device or a pipe is written to, not replaced; a directory is refused by `open`.
    replaces = path.is_file() or not path.exists()
    target = path.with_name(f".{path.name}.{os.getpid()}.tmp") if replaces else path
    try:
        target.write_text(text, encoding="utf-8")
        if replaces:
            target.replace(path)
    except OSError as error:
        if replaces:
            target.unlink(missing_ok=True)
        raise LpuError(f"{path} cannot be written: {error.strerror}.") from None


@app.command()
def systems(as_json: Json = None) -> None:
    """List the named systems with chips, SRAM and the sources of every number."""
    found = named_systems()

    def text() -> str:
        made = report.table(
            ("system", "left"),
            ("chips", "right"),
            ("chip", "left"),
            ("SRAM", "right"),
            ("assumed", "right"),
        )
        for machine in found:
            constants = machine.constants()
            assumed = sum(constant.status == "assumed" for constant in constants)
            made.add_row(
                machine.name,
                str(machine.n_chips),
                machine.chip.title,
                format_bytes(machine.sram_bytes),
                f"{assumed} of {len(constants)} numbers",
            )
        return report.render(
            made,
            "Also groq-N for N chips and lpx-N for N racks. --json gives every number with its "
            "source.",
        )

    def data() -> Any:
        return [
            {
                "name": machine.name,
                "chips": machine.n_chips,
                "chip": machine.chip.name,
                "sram_bytes": machine.sram_bytes,
                "constants": [
                    {**vars(constant), "value": str(constant.value)}
                    for constant in machine.constants()
                ],
            }
            for machine in found
        ]

    _emit(as_json, data, text)


@app.command()
def models(as_json: Json = None) -> None:
    """List the named models with parameters and bytes."""
    found = named_models()

    def text() -> str:
        made = report.table(
            ("model", "left"), ("layers", "right"), ("parameters", "right"), ("active", "right"),
            ("16-bit bytes", "right"), ("source", "left"),
        )  # fmt: skip
        for name, cfg in found.items():
            made.add_row(
                name,
                str(cfg.n_layers),
                format_count(n_parameters(cfg), digits=4),
                format_count(n_active(cfg), digits=4),
                format_bytes(2 * n_parameters(cfg)),
                SOURCES[name],
            )
        return report.render(made)

    def data() -> Any:
        return [
            {
                "name": name,
                "layers": cfg.n_layers,
                "parameters": n_parameters(cfg),
                "active_parameters": n_active(cfg),
                "bytes_16_bit": 2 * n_parameters(cfg),
                "source": SOURCES[name],
            }
            for name, cfg in found.items()
        ]

    _emit(as_json, data, text)


@app.command()
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
        found = _watched(lambda say: comparing.with_numerics(found, check, progress=say))
    _emit(as_json, found.as_dict, found.table)
    if not found.fitting:
        raise typer.Exit(NO)


@app.command()
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
    _emit(
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


@app.command()
def check(
    model: ModelName,
    system: SystemName,
    plan: Annotated[
        list[Path] | None,
        typer.Option(
            "--plan", help="Plan as TOML or JSON; repeat to compare. Default: three plans."
        ),
    ] = None,
    weights_format: Format = "fp16",
    tokens: Annotated[int, typer.Option(min=1, max=64, help="Tokens to decode.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic weights.")] = 0,
    as_json: Json = None,
) -> None:
    """Run plans on virtual chips, full width, one layer of a kind, against a float32 reference."""
    from . import verify  # needs JAX's compiler; the other commands start without it

    cfg, machine = named_model(model), named_system(system)
    policy = policy_named(weights_format, cfg)
    plans: list[Plan] = (
        [read_plan(path) for path in plan] if plan else certify.default_plans(cfg, machine, policy)
    )
    results = _watched(
        lambda say: verify.compare_plans(
            cfg, machine, plans, policy, tokens=tokens, seed=seed, progress=say
        )
    )
    _emit(
        as_json,
        lambda: certify.check_dict(cfg, machine, policy, results),
        lambda: certify.check_text(cfg, machine, policy, results),
    )
    if not certify.as_promised(results):
        raise typer.Exit(NO)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    weights: Annotated[Path, typer.Option("--weights", help="GGUF file of a Llama model.")],
    system: SystemName = "groq-node",
    plan: Annotated[Path | None, typer.Option("--plan", help="Plan as TOML or JSON.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 8,
    as_json: Json = None,
) -> None:
    """Continue a prompt with real weights on emulated chips: faithful numerics, greedy, cached."""
    from models.tokenizer import Tokenizer
    from models.weights.gguf import load_gguf

    from . import generate as generating

    machine = named_system(system)
    file = load_gguf(weights)
    tokenizer = Tokenizer(file.tokenizer)
    positions = len(tokenizer.encode(prompt)) + max_tokens
    context = min(file.config.max_position, positions)
    found = comparing.compare(
        file.config,
        machine,
        [read_plan(plan)]
        if plan
        else one_stage_plans(file.config, machine, FP16, Request(context=context)),
        context=context,
        top=1,
    )
    (row,) = found.rows
    if not row.fits:
        _emit(as_json, found.as_dict, found.table)
        raise typer.Exit(NO)
    made = _watched(
        lambda say: generating.generate(
            file.weights,
            tokenizer,
            prompt,
            machine,
            row.plan,
            max_new_tokens=max_tokens,
            on_token=say,
        )
    )
    _emit(
        as_json,
        lambda: made.as_dict() | {"plan": row.plan.as_dict(), "system": machine.name},
        lambda: generating.generation_text(prompt, made, row.plan, machine),
    )


def _watched(work: Callable[[Callable[[str], None]], Result]) -> Result:
    """Do long work, saying on standard error what is being done if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return work(lambda _: None)
    with console.status("starting") as status:
        return work(status.update)
