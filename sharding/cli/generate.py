"""`lpu generate`: text from real weights on emulated chips."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system as named_system
from models.policy import policy_named

from ..plan_file import plan_of
from ..rank.choose import text_plan
from ..request import Request
from .common import A_PLAN, NO, Json, PolicyName, SystemName, emit, watched


def generate(
    prompts: Annotated[
        list[str], typer.Argument(help="Texts to continue, side by side as one batch.")
    ],
    weights: Annotated[
        Path, typer.Option("--weights", help="GGUF file, or directory of a checkpoint.")
    ],
    system: SystemName = "groq-node",
    plan: Annotated[
        str | None,
        typer.Option("--plan", help=f"{A_PLAN}. Default: the fastest of one stage."),
    ] = None,
    policy: PolicyName = "fp16",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 8,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is a message, in the model's chat format.")
    ] = False,
    system_prompt: Annotated[
        str | None,
        typer.Option("--system-prompt", help="With --chat: the system message."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token; above 0, tokens are drawn.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the K most likely; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed and prompt, same text.")] = 0,
    as_json: Json = None,
) -> None:
    """Continue texts with real weights on emulated chips: faithful numerics, cached."""
    from models.chat import chat_prompt
    from models.sampling import Sampling
    from models.tokenizer_files import read_tokenizer
    from models.weights.checkpoint import open_checkpoint

    from ..run import generate as generating
    from ..run.decoding import check_prompts

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if system_prompt is not None and not chat:
        raise LpuError("--system-prompt is part of a chat; give --chat too.")
    machine = named_system(system)
    chosen = None if plan is None else plan_of(plan)
    checkpoint = open_checkpoint(weights)
    cfg, tokenizer = checkpoint.config, read_tokenizer(checkpoint)
    formats = policy_named(policy, cfg)
    template = tokenizer.chat_template
    texts = [chat_prompt(template, one, system_prompt) if chat else one for one in prompts]
    # A rendered chat has its beginning already.
    tokens = [tokenizer.encode(text, begin=not chat) for text in texts]
    check_prompts(cfg, tokens, max_tokens)
    request = Request(batch=len(tokens), context=max(map(len, tokens)) + max_tokens)
    found = text_plan(cfg, machine, chosen, request, policy=formats, command="generate")
    (row,) = found.rows
    if not row.fits:
        emit(as_json, found.as_dict, found.table)
        raise typer.Exit(NO)
    made = watched(
        lambda say: generating.generate(
            checkpoint.weights,
            machine,
            row.plan,
            tokenizer,
            tokens,
            policy=formats,
            sampling=sampling,
            max_new_tokens=max_tokens,
            on_text=lambda _, piece: say(0, 0, escape(piece)),
        )
    )
    heads = [f"{one}\n\n" for one in prompts] if chat else prompts
    emit(
        as_json,
        lambda: made.as_dict() | {"plan": row.plan.as_dict(), "system": machine.name},
        lambda: generating.generation_text(heads, made, row.plan, machine),
    )
