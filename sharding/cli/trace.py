"""`lpu trace`: the static schedule of one plan as a file that Perfetto opens."""

from pathlib import Path
from typing import Annotated

import typer

from lpu_jax.quantities import format_bytes, format_seconds
from lpu_jax.system import system as named_system
from models.policy import policy_named
from models.zoo import model as named_model

from ..axes import Request
from ..plan import read_plan
from ..scheduled import schedule_plan
from .common import NO, Batch, Context, Format, Json, ModelName, SystemName, emit, write_text


def trace(
    model: ModelName,
    system: SystemName,
    plan: Annotated[Path, typer.Option("--plan", help="Plan as TOML or JSON.")],
    out: Annotated[Path, typer.Option("--out", help="Trace to write; open it in ui.perfetto.dev.")],
    weights_format: Format = "fp16",
    batch: Batch = 1,
    context: Context = 4096,
    as_json: Json = None,
) -> None:
    """Write one token through a plan as a trace: stages, units, links and memory over time."""
    from ..timeline import plan_trace

    cfg, machine = named_model(model), named_system(system)
    scheduled = schedule_plan(
        read_plan(plan),
        cfg,
        machine,
        policy_named(weights_format, cfg),
        Request(batch=batch, context=context),
    )
    content = plan_trace(scheduled).to_json()
    write_text(out, content)
    fits = bool(scheduled.evaluation.fits[0])
    latency_s = float(scheduled.evaluation.latency_s[0])
    short_bytes = float(scheduled.evaluation.short_bytes[0])
    emit(
        as_json,
        lambda: {
            "trace": str(out),
            "bytes": len(content),
            "stages": len(scheduled.stages),
            "latency_s": latency_s,
            "fits": fits,
            "short_bytes": short_bytes,
        },
        lambda: (
            f"{out}: {format_bytes(len(content))}, stages: {len(scheduled.stages)}, "
            f"{format_seconds(latency_s)} for a token; open it in ui.perfetto.dev."
            + ("" if fits else f"\nThe plan does not fit: short of {format_bytes(short_bytes)}.")
        ),
    )
    if not fits:
        raise typer.Exit(NO)
