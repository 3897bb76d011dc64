"""`lpu check`: plans run on virtual chips against a float32 reference."""

from pathlib import Path
from typing import Annotated

import typer

from lpu_jax.system import system as named_system
from models.policy import policy_named
from models.zoo import model as named_model

from .. import certify
from ..plan import Plan, read_plan
from .common import NO, Format, Json, ModelName, SystemName, emit, watched


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
    from .. import verify  # needs JAX's compiler; the other commands start without it

    cfg, machine = named_model(model), named_system(system)
    policy = policy_named(weights_format, cfg)
    plans: list[Plan] = (
        [read_plan(path) for path in plan] if plan else certify.default_plans(cfg, machine, policy)
    )
    results = watched(
        lambda say: verify.compare_plans(
            cfg, machine, plans, policy, tokens=tokens, seed=seed, progress=say
        )
    )
    emit(
        as_json,
        lambda: certify.check_dict(cfg, machine, policy, results),
        lambda: certify.check_text(cfg, machine, policy, results),
    )
    if not certify.as_promised(results):
        raise typer.Exit(NO)
