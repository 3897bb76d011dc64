"""Three plans that show what a split does to the bits, and the report of their check.

Plans that split by columns and by experts promise the bits of one chip; plans that split rows do
not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lpu_jax.errors import PlanError
from lpu_jax.system import System
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import Policy

from . import report
from .axes import Request
from .evaluate import evaluate
from .legal import Search, check_policy
from .plan import Plan

if TYPE_CHECKING:
    from .verify import CheckResult


def default_plans(cfg: ModelConfig, system: System, policy: Policy) -> list[Plan]:
    """Choose three plans: two split by columns with different degrees, and one split by rows.

    Args:
        cfg: the model.
        system: the machine.
        policy: formats of the weights.

    Returns:
        The fastest plan split by columns that fits (or that lacks least), one like it with other
        degrees, and the first one's degrees split by rows.

    Raises:
        PlanError: the machine has no two different splits of a group.
    """
    check_policy(policy, cfg, system)
    request = Request(context=min(cfg.max_position, 4096))
    plans = list(Search(cfg, system, policy, request).plans())
    evaluation = evaluate(plans, cfg, system, policy, request)
    order = sorted(
        range(len(plans)),
        key=lambda i: (max(evaluation.short_bytes[i], 0.0), evaluation.latency_cycles[i]),
    )
    by_column = [plans[i] for i in order if promises_one_chip_bits(plans[i])]
    first = by_column[0]
    others = [
        plan
        for plan in by_column
        if plan.attention.tensor != first.attention.tensor
        and (plan.moe is None or first.moe is None or plan.moe.expert != first.moe.expert)
    ]
    if not others:
        raise PlanError(f"{system.name} has only one split of {cfg.name} by columns; give --plan.")
    return [first, others[0], split_by(first, Split.ROW)]


def split_by(plan: Plan, split: Split) -> Plan:
    """The same degrees with another split of every output projection."""
    return replace(
        plan,
        attention=replace(plan.attention, split=split),
        mlp=replace(plan.mlp, split=split),
        moe=None if plan.moe is None else replace(plan.moe, split=split),
    )


def promises_one_chip_bits(plan: Plan) -> bool:
    """Whether every output projection of a plan is split by columns."""
    parts = (plan.attention, plan.mlp, plan.moe)
    return all(part is None or part.split is Split.COLUMN for part in parts)


def as_promised(results: Sequence["CheckResult"]) -> bool:
    """Whether all plans that promise the bits of one chip have the same bits."""
    hashes = {r.output_hash for r in results if promises_one_chip_bits(r.plan)}
    return len(hashes) <= 1


def check_text(
    cfg: ModelConfig, system: System, policy: Policy, results: Sequence["CheckResult"]
) -> str:
    """Lay a check out as text: errors, equality of bits, and where roundings moved."""
    rows = report.table(
        ("#", "right"),
        ("plan", "left"),
        ("SQNR", "right"),
        ("max error", "right"),
        ("bits", "left"),
        ("as one chip", "left"),
    )
    hashes = list(dict.fromkeys(result.output_hash for result in results))
    lines = []
    for number, result in enumerate(results, 1):
        rows.add_row(
            str(number),
            result.plan.name,
            f"{result.sqnr_db:.2f} dB",
            f"{result.max_abs_err:.3g}",
            f"{result.output_hash[:12]} ({chr(ord('A') + hashes.index(result.output_hash) % 26)})",
            "certified" if promises_one_chip_bits(result.plan) else "no",
        )
        lines += [f"  plan {number}: {moved}" for moved in result.rounding_moved]
    blocks = ", ".join(f"{block.kind} of layer {block.layer}" for block in results[0].blocks)
    routing = _routing(results)
    return report.render(
        f"{cfg.name}, weights {policy.name}, {system.name}: {results[0].output.shape[0]} tokens "
        f"decoded through {blocks}; faithful numerics against float32 arithmetic on the same "
        "stored weights",
        rows,
        "Where roundings moved:" if lines else "No rounding moved.",
        *lines,
        *routing,
        "Plans with the same letter have the same bits."
        if as_promised(results)
        else "FAILED: plans that promise the same bits differ.",
    )


def _routing(results: Sequence["CheckResult"]) -> list[str]:
    """Say how the router's choices compare with those of the reference."""
    margins = [r.router_margin for r in results if r.router_margin is not None]
    if not margins:
        return []
    agree = all(r.routes_agree for r in results)
    return [
        f"Router: the float32 reference, on its own, "
        f"{'chooses' if agree else 'would not choose'} the same experts; "
        f"smallest margin {min(margins):.3g}."
    ]
