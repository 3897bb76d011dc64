"""`lpu check`: plans run on virtual chips against a float32 reference.

Blocks of each kind on random states, or a whole forward pass from tokens to logits.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import any_system
from lpu_jax.machine.mixed import Machine
from models.policy import Policy, policy_named

from ..plan import Plan
from ..plan_file import plan_of
from ..rank.choose import default_plans, fastest_plan
from ..scenario import policy_of_values, require_values
from ..verify import one_chip_bits
from .check_text import check_text
from .common import A_PLAN, NO, Json, Mla, PolicyNames, emit, watched

if TYPE_CHECKING:
    from models.weights.source import WeightSource

    from ..verify.named_inputs import OpenedModel


def check(
    model: Annotated[
        str, typer.Argument(help="Zoo name or hub id, path of a config.json, or of a checkpoint.")
    ],
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            help="System name, or path of a TOML file. Default: lpx-9, and with --text groq-node.",
        ),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            "--plan",
            help=f"{A_PLAN}; repeat to compare. Default: three plans, and with --layers the "
            "fastest that fits.",
        ),
    ] = None,
    policy: PolicyNames = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="synthetic, or path of a checkpoint. Default: those of MODEL if it has some, else "
            "synthetic.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Tokens to logits through these layers: all, N (the first N), A-B, or a list. "
            "Default: one layer of each kind, on random hidden states.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to decode. Default: 2, with --layers 1, with --text 512."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            help="UTF-8 file: perplexity and divergence over its first tokens; --policy "
            "may be repeated.",
        ),
    ] = None,
    token_ids: Annotated[
        str | None,
        typer.Option("--token-ids", help="With --layers: these tokens, such as 1,15,7."),
    ] = None,
    fidelity: Annotated[
        str | None,
        typer.Option("--fidelity", help="faithful (default), or fast: plain fp32 products."),
    ] = None,
    routing: Annotated[
        str,
        typer.Option(
            "--routing",
            help="With --layers: forced (the reference follows the emulated router), or free.",
        ),
    ] = "forced",
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="With --layers: file that keeps the state, to resume from."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of synthetic weights, and of tokens or states.")
    ] = 0,
    mla: Mla = None,
    as_json: Json = None,
) -> None:
    """Run plans on virtual chips against float32: one layer of a kind, or tokens to logits."""
    # This reads weights and needs JAX's compiler; the other commands start without it.
    from ..verify.named_inputs import layers_named, open_model, token_ids_named

    policies = policy or ["fp16"]
    if text is not None:
        if layers is not None or token_ids is not None or resume is not None or routing != "forced":
            raise LpuError("--text excludes --layers, --token-ids, --resume and --routing free.")
        check_text(
            text,
            model,
            weights,
            system=system,
            plans=[plan_of(one) for one in plan or ()],
            policies=policies,
            fidelity=fidelity,
            n_tokens=tokens,
            mla=mla,
            as_json=as_json,
        )
        return
    if len(policies) > 1:
        raise LpuError(f"{len(policies)} policies were given; one is allowed without --text.")
    opened = open_model(model, weights, seed, mla)
    machine, cfg = any_system(system or "lpx-9"), opened.config
    require_values(machine, "check")
    formats = policy_of_values(policy_named(policies[0], cfg), machine)
    if fidelity is not None:
        formats = replace(formats, fidelity=fidelity)  # type: ignore[arg-type]  # checked there
    plans = [plan_of(one) for one in plan or ()]
    if layers is None:
        if token_ids is not None or resume is not None or routing != "forced":
            raise LpuError("--token-ids, --resume and --routing free need --layers.")
        _check_blocks(opened.source, machine, plans, formats, tokens or 2, seed, as_json)
        return
    _check_whole(
        opened,
        machine,
        plans,
        formats,
        chosen=layers_named(layers, cfg),
        n_tokens=tokens,
        ids=None if token_ids is None else token_ids_named(token_ids),
        seed=seed,
        routing=routing,
        resume=resume,
        as_json=as_json,
    )


def _check_whole(
    opened: "OpenedModel",
    machine: Machine,
    plans: list[Plan],
    policy: Policy,
    *,
    chosen: tuple[int, ...],
    n_tokens: int | None,
    ids: tuple[int, ...] | None,
    seed: int,
    routing: str,
    resume: Path | None,
    as_json: str | None,
) -> None:
    """Run tokens through layers and the two ends of the model."""
    from ..verify import whole_model, whole_model_report

    cfg = opened.config
    ids = whole_model.random_tokens(cfg, n_tokens or 1, seed) if ids is None else ids
    if n_tokens is not None and n_tokens != len(ids):
        raise LpuError(f"--tokens {n_tokens} and {len(ids)} --token-ids were given; give one.")
    whole_model.check_tokens(cfg, ids, plans)
    note = ""
    if not plans:
        fastest, note = fastest_plan(cfg, machine, policy=policy)
        plans = [fastest]
    results = watched(
        lambda say: whole_model.check_whole(
            opened.source,
            machine,
            plans,
            policy=policy,
            token_ids=ids,
            layers=chosen,
            routing=routing,
            resume=resume,
            weights_name=opened.weights_name,
            progress=say,
        )
    )
    emit(
        as_json,
        lambda: whole_model_report.whole_dict(cfg, machine, results, policy=policy, note=note),
        lambda: whole_model_report.whole_text(cfg, machine, results, policy=policy, note=note),
    )
    if not one_chip_bits.as_promised(results):
        raise typer.Exit(NO)


def _check_blocks(
    source: "WeightSource",
    machine: Machine,
    plans: list[Plan],
    policy: Policy,
    n_tokens: int,
    seed: int,
    as_json: str | None,
) -> None:
    """Run one layer of a kind from random hidden states."""
    # These need JAX's compiler; the other commands start without it.
    from ..verify.chosen_layers import check as check_layers

    cfg = source.config
    plans = plans or default_plans(cfg, machine, policy=policy)
    results = watched(
        lambda say: check_layers(
            cfg,
            machine,
            plans,
            policy=policy,
            source=source,
            tokens=n_tokens,
            seed=seed,
            progress=say,
        )
    )
    emit(
        as_json,
        lambda: one_chip_bits.check_dict(cfg, machine, results, policy=policy),
        lambda: one_chip_bits.check_text(cfg, machine, results, policy=policy),
    )
    if not one_chip_bits.as_promised(results):
        raise typer.Exit(NO)
