"""Three plans that show what a split does to the bits, and the report of their check.

Plans that split by columns and by experts promise the bits of one chip; plans that add by a tree or
in wide numbers those of one chip that adds so; plans that split rows promise none.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lpu_jax.machine.mixed import Machine
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import Policy

from .. import report
from ..plan import Plan
from ..rank.choose import promises_its_rule, promises_one_chip_bits, rules_of
from ..report import versions

if TYPE_CHECKING:
    from .chosen_layers import CheckResult


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
    """Whether all plans that promise the bits of one chip under the same rules have the same bits.

    Fast products promise no bits: whatever the backend adds first differs with the shapes.
    """
    promising = [r for r in results if r.fidelity == "faithful" and promises_its_rule(r.plan)]
    return all(len(_hashes_under(rules_of(r.plan), promising)) == 1 for r in promising)


def _hashes_under(rules: tuple[Split, ...], results: Sequence[Checked]) -> set[str]:
    """The bits of the plans that promise them under the same rules."""
    return {
        r.output_hash for r in results if promises_its_rule(r.plan) and rules_of(r.plan) == rules
    }


def check_text(
    cfg: ModelConfig, system: Machine, results: Sequence["CheckResult"], *, policy: Policy
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
    if result.fidelity != "faithful" or not promises_its_rule(result.plan):
        return "no"
    rules = rules_of(result.plan)
    others = _hashes_under(rules, [r for r in results if r.plan != result.plan])
    word = "certified" if others == {result.output_hash} else "promised"
    own = [rule for rule in dict.fromkeys(rules) if rule is not Split.COLUMN]
    return f"{word} ({'/'.join(own)})" if own else word


def check_dict(
    cfg: ModelConfig, system: Machine, results: Sequence["CheckResult"], *, policy: Policy
) -> dict[str, Any]:
    """A check as plain values, for JSON."""
    return {
        "model": cfg.name,
        "system": system.name,
        "policy": policy.name,
        "fidelity": results[0].fidelity,
        "tokens": int(results[0].output.shape[0]),
        "as_promised": as_promised(results),
        "versions": versions(),
        "results": [
            {
                "plan": result.plan.as_dict(),
                "name": result.plan.name,
                "promises_one_chip_bits": promises_one_chip_bits(result.plan),
                "promises_its_rule": promises_its_rule(result.plan),
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
