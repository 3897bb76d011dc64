"""`lpu plan`: one plan in full."""

from pathlib import Path
from typing import Annotated

import typer

from .. import report
from ..detail.explain import explanation
from ..detail.scheduled import schedule_plan
from ..files import write_file
from ..pictures import picture_format
from ..rank.comparison import memory_maps
from ..request import decode_request
from ..scenario import machine_of, require_one_schedule
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
    PlanText,
    PolicyName,
    SystemName,
    check_outputs,
    compare_one,
    emit,
)

_OPERATIONS_OF_DRAFTS = "The operations below are those of the step that judges the drafts."


def plan(
    model: ModelName,
    system: SystemName,
    plan: PlanText = None,
    policy: PolicyName = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    draft_tokens: DraftTokens = None,
    acceptance: Acceptance = None,
    draft_model: DraftModel = None,
    draft_plan: Annotated[
        str | None,
        typer.Option(
            help="Plan of the draft model: name or file. Default: the fastest that fits beside."
        ),
    ] = None,
    expert_shares: ExpertShares = None,
    mla: Mla = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw timelines and link loads into FILE: .png, .svg or .pdf."),
    ] = None,
    as_json: Json = None,
) -> None:
    """Show one plan: its row, what the fullest chip holds, and what every operation takes."""
    check_outputs(json=as_json, plot=plot)
    picture = None if plot is None else picture_format(plot)
    request = decode_request(
        batch=batch, context=context, draft_tokens=draft_tokens, acceptance=acceptance
    )
    machine = machine_of(system)
    require_one_schedule(machine, "plan")
    found = compare_one(
        model,
        machine,
        plan,
        request,
        policy=policy,
        mla=mla,
        draft_model=draft_model,
        draft_plan=draft_plan,
        expert_shares=expert_shares,
    )
    (row,) = found.rows
    memory = found.scenario.machine.memory_name
    scheduled = schedule_plan(row.plan, found.scenario)
    explained = explanation(scheduled)
    if plot is not None and picture is not None:
        # matplotlib is only loaded where something is drawn
        from ..detail.micro_batch_plot import micro_batch_plot
        from ..detail.plots import plan_plot

        draw = micro_batch_plot if found.scenario.crosses else plan_plot
        write_file(plot, draw(scheduled, picture))
    emit(
        as_json,
        lambda: found.as_dict() | {"explanation": explained.as_dict()},
        lambda: "\n".join(
            [
                found.table(),
                *([report.render(*memory_maps(row, memory))] if row.fits else []),
                *([_OPERATIONS_OF_DRAFTS] if row.draft is not None else []),
                explained.text(),
            ]
        ),
    )
    if not row.fits:
        raise typer.Exit(NO)
