"""Three plans that show what a split does to the bits, and the report of their check.

Plans that split by columns and by experts promise the bits of one chip; plans that split rows do
not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import FP16, Policy

from .. import report
from ..axes import Request
from ..legal import Search, check_policy
from ..plan import AttentionShard, MlpShard, MoeShard, Plan
from ..predict.evaluate import evaluate
from ..rank.comparison import versions

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
        LpuError: the system is one of GPUs.
        PlanError: the machine has no two different splits of a group.
    """
    system.require_lpu("check")
    if policy.base != "fp16":
        policy = FP16  # what no chip runs takes as much room
    check_policy(policy, cfg, system)
    request = Request(context=min(cfg.max_position, 4096))
    plans = list(Search(cfg, system, policy, request).within_reach().plans())
    evaluation = evaluate(plans, cfg, system, policy, request)
    order = sorted(
        range(len(plans)),
        key=lambda i: (max(evaluation.short_bytes[i], 0.0), evaluation.latency_cycles[i]),
    )
    by_column = [
        plans[i] for i in order if promises_one_chip_bits(plans[i]) and _splits_all(plans[i], cfg)
    ]
    if not by_column:
        raise PlanError(
            f"{system.name} has no plan that splits every block of {cfg.name}; give --plan."
        )
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
    """Whether every output projection of a plan is split by columns, or not split at all.

    An exchange of rows adds the shared expert's result in another place even on one chip; a split
    of the context rounds partial results before they are merged.
    """
    if plan.attention.context > 1:
        return False
    if plan.moe is not None and plan.moe.dispatch is Dispatch.ALL_TO_ALL:
        return False
    return all(part.split is Split.COLUMN or ways == 1 for part, ways in _ways(plan))


def _splits_all(plan: Plan, cfg: ModelConfig) -> bool:
    """Whether a plan splits every kind of block that the model has."""
    has_dense = cfg.n_moe_layers < cfg.n_layers
    return all(ways > 1 for part, ways in _ways(plan) if has_dense or part is not plan.mlp)


def _ways(plan: Plan) -> list[tuple[AttentionShard | MlpShard | MoeShard, int]]:
    """The parts of a plan, and over how many chips each splits its output projection."""
    parts: list[tuple[AttentionShard | MlpShard | MoeShard, int]] = [
        (plan.attention, plan.attention.tensor),
        (plan.mlp, plan.mlp.tensor),
    ]
    if plan.moe is not None:
        parts.append((plan.moe, plan.moe.expert * plan.moe.tensor))
    return parts


@runtime_checkable
class Checked(Protocol):
    """What the bits of a check belong to."""

    @property
    def plan(self) -> Plan:
        """The plan that ran."""

    @property
    def fidelity(self) -> str:
        """How products were computed."""

    @property
    def output_hash(self) -> str:
        """Hash of the bits that came out."""


def as_promised(results: Sequence[Checked]) -> bool:
    """Whether all plans that promise the bits of one chip have the same bits.

    Fast products promise no bits: whatever the backend adds first differs with the shapes.
    """
    hashes = {
        r.output_hash
        for r in results
        if r.fidelity == "faithful" and promises_one_chip_bits(r.plan)
    }
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
            _label(result, results),
        )
        lines += [f"  plan {number}: {moved}" for moved in result.rounding_moved]
    blocks = ", ".join(f"{block.kind} of layer {block.layer}" for block in results[0].blocks)
    routing = _routing(results)
    return report.render(
        f"{cfg.name}, weights {policy.name}, {system.name}: {results[0].output.shape[0]} tokens "
        f"decoded through {blocks}; {results[0].fidelity} numerics against float32 arithmetic on "
        "the same stored weights",
        rows,
        "Where roundings moved:" if lines else "No rounding moved.",
        *lines,
        *routing,
        "Plans with the same letter have the same bits."
        if as_promised(results)
        else "FAILED: plans that promise the same bits differ.",
    )


def _label(result: "CheckResult", results: Sequence["CheckResult"]) -> str:
    """Certified: a plan with other degrees that promises the same was run and has the same bits."""
    if result.fidelity != "faithful" or not promises_one_chip_bits(result.plan):
        return "no"
    others = {
        r.output_hash for r in results if promises_one_chip_bits(r.plan) and r.plan != result.plan
    }
    return "certified" if others == {result.output_hash} else "promised"


def check_dict(
    cfg: ModelConfig, system: System, policy: Policy, results: Sequence["CheckResult"]
) -> dict[str, Any]:
    """A check as plain values, for JSON."""
    return {
        "model": cfg.name,
        "system": system.name,
        "weights_format": policy.name,
        "fidelity": results[0].fidelity,
        "tokens": int(results[0].output.shape[0]),
        "as_promised": as_promised(results),
        "versions": versions(),
        "results": [
            {
                "plan": result.plan.as_dict(),
                "name": result.plan.name,
                "promises_one_chip_bits": promises_one_chip_bits(result.plan),
                **result.as_dict(),
            }
            for result in results
        ],
    }


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
