"""`lpu compare`: the main job, for one scenario or for several in one table."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lpu_jax.errors import LpuError

from ..rank import compare as comparing
from ..rank import sensitivity as ranking
from ..rank.comparison import Comparison
from ..request import decode_request
from ..scenario import (
    machine_of,
    policy_of,
    policy_of_values,
    require_values,
)
from .common import (
    NO,
    Acceptance,
    Context,
    DraftModel,
    DraftTokens,
    ExpertShares,
    Json,
    Mla,
    ModelName,
    Outputs,
    PolicyNames,
    interruptible,
    model_in_form,
    read_shares,
    searching,
    watched,
)
from .several import (
    Cases,
    batch_sizes,
    compare_several,
    figure,
    refuse_for_several,
    share_of,
    split_names,
)

#: Rows that are printed for one scenario.
_TOP = 10


class Objective(StrEnum):
    """What plans are ranked by."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    PER_CHIP = "per-chip"
    CHIPS = "chips"
    ENERGY = "energy"
    FIRST_TOKEN = "first-token"
    PARETO = "pareto"
    LATENCY_THROUGHPUT = "latency,throughput"
    LATENCY_PER_CHIP = "latency,per-chip"
    LATENCY_CHIPS = "latency,chips"


class Invariant(StrEnum):
    """Which plans may be chosen, by what they promise of their bits."""

    OFF = "off"
    CERTIFIED = "certified"
    TREE = "tree"
    WIDE = "wide"


def compare(
    model: ModelName,
    system: Annotated[
        list[str],
        typer.Option("--system", help="System name, or path of a TOML file; repeat to compare."),
    ],
    policy: PolicyNames = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            help="Sequences per micro-batch; repeat to compare; 1..256: 1, 2, 4 and so on to 256. "
            "Default: 1."
        ),
    ] = None,
    context: Context = 4096,
    prompt: Annotated[
        int | None, typer.Option(help="Prompt length, for time to first token. Default: context.")
    ] = None,
    draft_tokens: DraftTokens = None,
    acceptance: Acceptance = None,
    draft_model: DraftModel = None,
    expert_shares: ExpertShares = None,
    mla: Mla = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Rows to print. Default: 10, of several scenarios all."),
    ] = None,
    per: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows that each of several scenarios may have. Default: its best, or its "
            "part of the front.",
        ),
    ] = None,
    objective: Annotated[
        Objective,
        typer.Option(
            help="What plans are ranked by: latency of a token, throughput of all in flight, the "
            "same per-chip, fewest chips, least energy of a token, first-token of a prompt; or a "
            "front of plans that no other beats in both: latency,throughput (also pareto), "
            "latency,per-chip, latency,chips."
        ),
    ] = Objective.LATENCY,
    min_rate: Annotated[float | None, typer.Option(help="Tokens/s of one user, at least.")] = None,
    max_first_token: Annotated[
        float | None, typer.Option(help="Seconds to the first token of the prompt, at most.")
    ] = None,
    min_chips: Annotated[
        bool,
        typer.Option(
            "--min-chips", help="Compare on the smallest part of the machine on which it fits."
        ),
    ] = False,
    invariant: Annotated[
        Invariant,
        typer.Option(
            help="Only plans with the bits of one chip: as it is (certified), or as it adds by the "
            "same rule (tree, wide)."
        ),
    ] = Invariant.OFF,
    chip_watts: Annotated[
        list[str] | None,
        typer.Option(help="Watts of a chip, for tokens/s per MW; SYSTEM=W: of that system's."),
    ] = None,
    chip_hour_cost: Annotated[
        list[str] | None,
        typer.Option(
            help="Cost of a chip for an hour, in any currency, for the cost of a million tokens; "
            "SYSTEM=C: of that system's."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that compare several scenarios.")
    ] = 1,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the answer of each scenario; a run that was stopped goes on "
            "from it."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: compare the I-th of every N scenarios, and leave the others to other runs "
            "with the same --shards."
        ),
    ] = None,
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
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of these draws. Default: 0.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the rows' rates into FILE: .png, .svg or .pdf."),
    ] = None,
    csv: Annotated[
        str | None, typer.Option(help="Write the rows to FILE; - for standard output alone.")
    ] = None,
    as_json: Json = None,
) -> None:
    """Search all legal plans for the best, with memory fit and, with --check, numerical error."""
    out = Outputs(as_json=as_json, csv=csv, plot=plot)
    if seed is not None and not sensitivity:
        raise LpuError(f"--seed {seed} is that of the draws of --sensitivity N; give both.")
    cases = Cases(
        model=model_in_form(model, mla),
        systems=split_names(system, drafts=draft_model is not None),
        policies=policy or ["fp16"],
        batches=batch_sizes(batch or ["1"]),
        request=decode_request(context=context, draft_tokens=draft_tokens, acceptance=acceptance),
    )
    options = {
        "draft_model": draft_model,
        "objective": objective.value,
        "prompt": prompt,
        "expert_shares": read_shares(expert_shares),
        "invariant": invariant.value,
        "min_rate": min_rate,
        "max_first_token_s": max_first_token,
        "min_chips": min_chips,
        "chip_watts": figure("--chip-watts", chip_watts),
        "chip_hour_cost": figure("--chip-hour-cost", chip_hour_cost),
    }
    with interruptible():
        if len(cases) > 1 or (per, shards, shard) != (None, None, None):
            refuse_for_several(cases, check=check, sensitivity=sensitivity)
            out.check_outside(shards)
            options |= {"top": top, "per": per}
            part = share_of(shard)
            compare_several(cases, options, out, workers=workers, shards=shards, shard=part)
            return
        if check:
            _require_values(cases)
        found = _compare_one(cases, options | {"top": top or _TOP})
        _give_one(found, out, check=check, sensitivity=sensitivity, seed=seed or 0)


def _require_values(cases: Cases) -> None:
    """Refuse what --check cannot compute, before the search."""
    machine = machine_of(cases.systems[0])
    require_values(machine, "--check")
    policy_of_values(policy_of(cases.policies[0], cases.model), machine)


def _compare_one(cases: Cases, options: Mapping[str, Any]) -> Comparison:
    """Compare plans of the only scenario."""
    (system,), (policy,), (batch,) = cases.systems, cases.policies, cases.batches
    request = replace(cases.request, batch=batch)
    return searching(
        lambda: comparing.compare(cases.model, system, request, policy=policy, **options)
    )


def _give_one(found: Comparison, out: Outputs, *, check: int, sensitivity: int, seed: int) -> None:
    """Run or vary the plans of a comparison as asked, and give it.

    Raises:
        typer.Exit: nothing fits.
    """
    moved = None
    if check and found.fitting:
        from ..verify.chosen_layers import with_numerics

        compared = found
        found = watched(lambda say: with_numerics(compared, check, progress=say))
    if sensitivity and found.fitting:
        ranked = found
        moved = watched(lambda say: ranking.sensitivity(ranked, sensitivity, seed, progress=say))
    out.give(found, moved, fits=bool(found.fitting))
    if not found.fitting:
        raise typer.Exit(NO)
