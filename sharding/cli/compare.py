"""`lpu compare`: the main job."""

from enum import StrEnum
from typing import Annotated

import typer

from ..rank import compare as comparing
from ..rank import sensitivity as ranking
from ..request import decode_request
from .common import (
    NO,
    Acceptance,
    Batch,
    Context,
    DraftModel,
    DraftTokens,
    ExpertShares,
    Json,
    Mla,
    ModelName,
    PolicyName,
    SystemName,
    emit,
    model_in_form,
    read_shares,
    watched,
)


class Objective(StrEnum):
    """What plans are ranked by."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    PARETO = "pareto"
    FIRST_TOKEN = "first-token"


def compare(
    model: ModelName,
    system: SystemName,
    policy: PolicyName = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    prompt: Annotated[
        int | None, typer.Option(help="Prompt length, for time to first token. Default: context.")
    ] = None,
    draft_tokens: DraftTokens = None,
    acceptance: Acceptance = None,
    draft_model: DraftModel = None,
    expert_shares: ExpertShares = None,
    mla: Mla = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 10,
    objective: Annotated[
        Objective,
        typer.Option(
            help="What plans are ranked by: latency of a token, throughput of all in flight, "
            "pareto: those that no plan beats in both tokens/s per user and tokens/s of all users, "
            "or first-token of a prompt."
        ),
    ] = Objective.LATENCY,
    check: Annotated[
        int,
        typer.Option(min=0, help="Run the first N plans on virtual chips and report their error."),
    ] = 0,
    sensitivity: Annotated[
        int,
        typer.Option(
            min=0, help="Rank again on N machines drawn from the ranges of assumed constants."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of these draws.")] = 0,
    as_json: Json = None,
) -> None:
    """Search legal plans; rank them by time, with memory fit and, with --check, numerical error."""
    request = decode_request(
        batch=batch, context=context, draft_tokens=draft_tokens, acceptance=acceptance
    )
    found = comparing.compare(
        model_in_form(model, mla),
        system,
        request,
        policy=policy,
        draft_model=draft_model,
        objective=objective.value,
        prompt=prompt,
        top=top,
        expert_shares=read_shares(expert_shares),
    )
    if check and found.fitting:
        from ..verify.chosen_layers import with_numerics

        found = watched(lambda say: with_numerics(found, check, progress=say))
    moved = (
        watched(lambda say: ranking.sensitivity(found, sensitivity, seed, progress=say))
        if sensitivity and found.fitting
        else None
    )
    emit(
        as_json,
        lambda: found.as_dict() | ({"sensitivity": moved.as_dict()} if moved else {}),
        lambda: "\n\n".join([found.table(), *([moved.text()] if moved else [])]),
    )
    if not found.fitting:
        raise typer.Exit(NO)
