"""`lpu generate`: text from real weights on emulated chips."""

from pathlib import Path
from typing import Annotated

import typer

from lpu_jax.system import system as named_system
from models.policy import FP16

from .. import compare as comparing
from ..axes import Request
from ..legal import one_stage_plans
from ..plan import read_plan
from .common import NO, Json, SystemName, emit, watched


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

    from .. import generate as generating

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
        emit(as_json, found.as_dict, found.table)
        raise typer.Exit(NO)
    made = watched(
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
    emit(
        as_json,
        lambda: made.as_dict() | {"plan": row.plan.as_dict(), "system": machine.name},
        lambda: generating.generation_text(prompt, made, row.plan, machine),
    )
