"""The draft model beside a plan of a comparison: as plain values, and as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.table import Table

from lpu_jax.quantities import format_seconds

from .. import report
from ..plan import Plan
from ..plan_file import plan_from_dict
from ..predict.evaluate import Drafting
from ..request import Request


@dataclass(frozen=True, kw_only=True)
class DraftRow:
    """What drafts the tokens of a plan: where, in what time, and what its fullest chip holds."""

    model: str
    policy: str
    plan: Plan
    fits: bool
    short_bytes: float  #: what its fullest chip lacks, negative where there is room
    sram_used_fraction: float
    drafts: int  #: of a step
    draft_latency_s: float  #: of one draft
    drafting_s: float  #: of all drafts of a step, one after another
    hand_over_s: float  #: of the drafts to the model, and of the tokens kept back
    verification_s: float  #: the model's own step
    memory_bytes: Mapping[str, float]  #: of its fullest chip

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values; scripts parse these names."""
        return vars(self) | {
            "plan": self.plan.as_dict(),
            "name": self.plan.name,
            "chips": self.plan.n_chips,
            "stages": self.plan.n_stages,
        }


def draft_row_from_dict(data: Mapping[str, Any]) -> DraftRow:
    """Read a row from what `DraftRow.as_dict` makes, once more from JSON."""
    values = {one.name: data[one.name] for one in fields(DraftRow)}
    return DraftRow(**values | {"plan": plan_from_dict(data["plan"])})


def draft_row(drafting: Drafting, i: int) -> DraftRow:
    """What drafts for one plan, by its number."""
    found = drafting.evaluation
    asked, clock = found.scenario, found.clock_hz * drafting.clock_ratio
    used = found.used_bytes[i] + found.reserved_bytes[i]
    return DraftRow(
        model=asked.model.name,
        policy=asked.policy.name,
        plan=found.plans[i],
        fits=bool(found.fits[i]),
        short_bytes=float(found.short_bytes[i]),
        sram_used_fraction=float(used / found.sram_bytes[i]),
        drafts=drafting.n_drafts,
        draft_latency_s=float(found.latency_s[i]),
        drafting_s=float(drafting.cycles[i] / clock),
        hand_over_s=float(drafting.hand_over_cycles[i] / clock),
        verification_s=float(drafting.verification_cycles[i] / clock),
        memory_bytes=found.memory_bytes(i),
    )


def draft_table(rows: Sequence[DraftRow], memory: str) -> Table:
    """The draft model beside each row of a comparison, and where the time of a step goes."""
    first = rows[0]
    made = report.table(
        ("#", "right"),
        ("draft plan", "left"),
        ("chips", "right"),
        (memory, "right"),
        ("one draft", "right"),
        (f"{first.drafts} drafts", "right"),
        ("ids there and back", "right"),
        ("verification", "right"),
        title=f"Drafts of {first.model}, weights {first.policy}, on chips beside the plan's",
    )
    for number, row in enumerate(rows, 1):
        made.add_row(
            str(number),
            row.plan.name,
            str(row.plan.n_chips),
            f"{row.sram_used_fraction:.1%}",
            format_seconds(row.draft_latency_s),
            format_seconds(row.drafting_s),
            format_seconds(row.hand_over_s),
            format_seconds(row.verification_s),
        )
    return made


def draft_note(request: Request, model: str | None) -> str:
    """What a step with drafts is, in a sentence; `model` drafts, or nobody knows who."""
    cost = (
        "the draft model's own time is not counted (compare and plan take --draft-model)."
        if model is None
        else f"{model} makes them one after another, before the step that judges them."
    )
    return (
        f"speculative decoding: {request.tokens - 1} drafts a step, each accepted with probability "
        f"{request.acceptance:g}, keep {request.kept_tokens:.4g} tokens a step; {cost}"
    )
