"""`lpu check --text`: how well a model predicts a text on virtual chips, beside float32."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import any_system
from lpu_jax.machine.system import System
from models.config import LatentForm
from models.policy import policy_named

from ..files import read_text
from ..plan import Plan
from ..request import Request
from ..scenario import require_values
from .common import NO, emit, watched

#: Tokens of the text, and the machine, if none were asked for: one group of eight chips.
_TOKENS = 512
_SYSTEM = "groq-node"


def check_text(
    text: Path,
    model: str,
    weights: str | None,
    *,
    system: str | None,
    plans: Sequence[Plan],
    policies: Sequence[str],
    fidelity: str | None,
    n_tokens: int | None,
    mla: LatentForm | None,
    as_json: str | None,
) -> None:
    """Read the text, run every plan and policy on it, and print what came out."""
    # These read weights and need JAX's compiler; the other commands start without them.
    from models.tokenizer_files import read_tokenizer
    from models.weights.checkpoint import open_checkpoint

    from ..rank.choose import fastest_plan, text_plan
    from ..verify import text as texts
    from ..verify.named_inputs import SYNTHETIC, open_model

    content = read_text(text, f"text {text}")
    machine = any_system(_SYSTEM if system is None else system)
    require_values(machine, "check --text")
    opened = open_model(model, weights, mla=mla)
    cfg = opened.config
    if opened.weights_name.startswith(SYNTHETIC):
        raise LpuError("--text needs trained weights: give --weights with a checkpoint.")
    tokenizer = read_tokenizer(open_checkpoint(model if weights is None else weights))
    tokens = tokenizer.encode(content)[: _TOKENS if n_tokens is None else n_tokens]
    chosen = [policy_named(name, cfg) for name in dict.fromkeys(policies)]
    if fidelity is not None:
        chosen = [replace(one, fidelity=fidelity) for one in chosen]  # type: ignore[arg-type]  # checked there
    if not plans and not isinstance(machine, System):
        plans = [fastest_plan(cfg, machine, policy=chosen[0])[0]]
    if not plans:
        assert isinstance(machine, System)  # as the line above leaves it
        request = Request(context=max(1, min(len(tokens), cfg.max_position)))
        found = text_plan(
            cfg, machine, None, request, policy=chosen[0].on_chip, command="check --text"
        )
        (row,) = found.rows
        if not row.fits:
            emit(as_json, found.as_dict, found.table)
            raise typer.Exit(NO)
        plans = [row.plan]
    results = watched(
        lambda say: texts.compare_text(
            opened.source, machine, plans, tokens, policies=chosen, progress=say
        )
    )
    emit(
        as_json,
        lambda: texts.text_dict(cfg, machine, text, results),
        lambda: texts.text_report(cfg, machine, results),
    )
