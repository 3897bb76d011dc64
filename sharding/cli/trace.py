"""`lpu trace`: the static schedule of one plan as a file that Perfetto opens."""

from pathlib import Path
from typing import Annotated

import typer

from lpu_jax.quantities import format_bytes, format_seconds

from ..detail.scheduled import schedule_plan
from ..files import write_file
from ..request import decode_request
from ..scenario import system_of
from .common import (
    NO,
    Acceptance,
    Batch,
    Context,
    DraftTokens,
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


def trace(
    model: ModelName,
    system: SystemName,
    out: Annotated[Path, typer.Option("--out", help="File to write; open it in ui.perfetto.dev.")],
    plan: PlanText = None,
    policy: PolicyName = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    draft_tokens: DraftTokens = None,
    acceptance: Acceptance = None,
    mla: Mla = None,
    as_json: Json = None,
) -> None:
    """Write one step through a plan as a trace: stages, units, links and memory over time."""
    from ..detail.timeline import plan_trace

    check_outputs(json=as_json, out=out)
    request = decode_request(
        batch=batch, context=context, draft_tokens=draft_tokens, acceptance=acceptance
    )
    found = compare_one(model, system_of(system), plan, request, policy=policy, mla=mla)
    (row,) = found.rows
    scheduled = schedule_plan(row.plan, found.scenario)
    content = plan_trace(scheduled).to_json()
    write_file(out, content)
    size, note = len(content.encode()), found.scenario.system.note
    short = f"The plan does not fit: short of {format_bytes(row.short_bytes)}."
    emit(
        as_json,
        lambda: {
            "trace": str(out),
            "bytes": size,
            "plan": row.plan.as_dict(),
            "stages": len(scheduled.stages),
            "latency_s": row.decode_latency_s,
            "fits": row.fits,
            "short_bytes": row.short_bytes,
            "note": note,
        },
        lambda: "\n".join(
            [
                f"{out}: {format_bytes(size)}, {row.plan.name}, stages: {len(scheduled.stages)}, "
                f"{format_seconds(row.decode_latency_s)} for a step; open it in ui.perfetto.dev.",
                *([note] if note else []),
                *([] if row.fits else [short]),
            ]
        ),
    )
    if not row.fits:
        raise typer.Exit(NO)
