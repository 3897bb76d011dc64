"""One plan of a comparison: its numbers, as plain values and back from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lpu_jax.machine.mixed import Machine, MixedSystem, Split

from ..plan import Plan
from ..plan_file import plan_from_dict
from ..predict.energy import energy, one
from ..predict.evaluate import Evaluation
from ..predict.latency_range import latency_ranges_s
from ..predict.slot_reading import SlotReading, slot_readings
from .chip_figures import Figures
from .draft_row import DraftRow, draft_row, draft_row_from_dict
from .first_token import (
    PrefillElsewhere,
    first_tokens,
    prefill_elsewhere,
    prefill_elsewhere_from_dict,
    prefills_elsewhere,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan of a comparison."""

    plan: Plan
    fits: bool
    reason: str | None  #: why it does not fit
    short_bytes: float  #: what the fullest chip lacks, negative where there is room
    sram_used_fraction: float
    decode_latency_s: float
    decode_latency_lower_s: float
    decode_latency_upper_s: float
    #: with all uncertain constants at their favourable ends, and at their unfavourable ends
    decode_latency_range_s: tuple[float, float]
    tokens_per_s_per_user: float
    tokens_per_s_total: float
    tokens_per_s_per_chip: float  #: of one copy's rate, and its chips
    tokens_per_step: float  #: that a step adds to a sequence, on average
    in_flight: int  #: micro-batches of a copy
    copies: int  #: of the plan, side by side on the machine
    users_in_flight: int  #: of all copies
    busiest_s: float  #: of a micro-batch on the slowest stage, or on its lanes into a network
    total_bound_by: str  #: `slowest stage`, `draft model` or `users in flight`
    reserve_limit_fraction: float  #: part of the memory that may be reserved until it fits no more
    hand_over_s: float
    host_s: float  #: host and sampling, part of the latency
    prefill_latency_s: float  #: of the prompt of every sequence of the batch
    prefill_chunk_tokens: int  #: new tokens per sequence of a step: the fastest that fit
    prefill_chunk_bound_by: str  #: `memory` if a longer one would be faster, else `time`
    time_to_first_token_s: float  #: prefill, and the host's part
    wire_bytes_per_token: float  #: payload of all collectives and hand-overs, each once
    energy_j_per_token_lower: float | None  #: None: the power of the chip is not public
    energy_j_per_token_upper: float | None
    energy_j_per_token_upper_alone: float | None  #: one micro-batch in flight
    memory_bytes: Mapping[str, float]  #: of the fullest chip
    slots: SlotReading | None = None  #: of a mixture on LPUs
    draft: DraftRow | None = None  #: the draft model, whose time and fit the row includes
    numerics: Mapping[str, Any] | None = None
    prefill_elsewhere: PrefillElsewhere | None = None  #: on GPUs beside LPUs that decode
    tokens_per_s_per_mw: float | None = None  #: None: the watts of a chip were not given
    cost_per_million_tokens: float | None = None  #: None: the cost of a chip was not given

    @property
    def n_chips(self) -> int:
        """Chips of one copy, a draft model's too."""
        return self.plan.n_chips + (0 if self.draft is None else self.draft.plan.n_chips)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values; scripts parse these names."""
        return {
            **{name: value for name, value in vars(self).items() if self._is_told(name)},
            "plan": self.plan.as_dict(),
            "name": self.plan.name,
            "digest": self.plan.digest,
            "chips": self.plan.n_chips,
            "stages": self.plan.n_stages,
            "slots": None if self.slots is None else self.slots.as_dict(),
            "draft": None if self.draft is None else self.draft.as_dict(),
            "prefill_elsewhere": None
            if self.prefill_elsewhere is None
            else self.prefill_elsewhere.as_dict(),
        }

    def _is_told(self, name: str) -> bool:
        """Whether a value is part of the row: what was not given has none."""
        return name not in _OF_GIVEN_FIGURES or getattr(self, name) is not None


_OF_GIVEN_FIGURES = ("tokens_per_s_per_mw", "cost_per_million_tokens")


def row_from_dict(data: Mapping[str, Any]) -> Row:
    """Read a row from what `Row.as_dict` makes, once more from JSON."""
    values = {one.name: data[one.name] for one in fields(Row) if one.name in data}
    shortest_s, longest_s = data["decode_latency_range_s"]
    slots, draft, beside = data["slots"], data["draft"], data["prefill_elsewhere"]
    return Row(
        **values
        | {
            "plan": plan_from_dict(data["plan"]),
            "decode_latency_range_s": (shortest_s, longest_s),
            "slots": None if slots is None else SlotReading(**slots),
            "draft": None if draft is None else draft_row_from_dict(draft),
            "prefill_elsewhere": None if beside is None else prefill_elsewhere_from_dict(beside),
        }
    )


def with_figures(row: Row, figures: Figures, machine: Machine) -> Row:
    """Add what figures of chips make of a row's rate: of the chips of a copy, no others."""
    own = figures.over(_chips_on(row, machine))
    return replace(
        row,
        tokens_per_s_per_mw=own.tokens_per_s_per_mw(row.tokens_per_s_per_chip),
        cost_per_million_tokens=own.cost_per_million_tokens(row.tokens_per_s_per_chip),
    )


def _chips_on(row: Row, machine: Machine) -> list[int]:
    """Count the chips of a row: of a mixed system those that are GPUs, and those that are LPUs."""
    if not isinstance(machine, MixedSystem):
        return [row.n_chips]
    match machine.split:
        case Split.ATTENTION_FFN:
            return [pool.n_chips for pool in row.plan.pools]
        case Split.PREFILL_DECODE:
            return [0, row.n_chips]
        case Split.DRAFT_VERIFY:
            return [row.plan.n_chips, row.n_chips - row.plan.n_chips]


def reason_of(evaluation: Evaluation, i: int, memory: str) -> str:
    """Say which part of the memory is too much for a plan, by its number."""
    usable = (evaluation.sram_bytes - evaluation.reserved_bytes)[i]
    if evaluation.lacks_dram[i]:
        return "does not fit: caches exceed the DRAM beside a chip"
    if evaluation.own_short_bytes[i] <= 0:
        return f"does not fit: the draft model exceeds the {memory} of the chips left for it"
    if evaluation.weight_bytes[i] > usable:
        return f"does not fit: weights alone exceed a chip's {memory}"
    if evaluation.weight_bytes[i] + evaluation.cache_bytes[i] > usable:
        return f"does not fit: weights and cache exceed a chip's {memory}"
    return f"does not fit: weights, cache and activations exceed a chip's {memory}"


def _total_bound_by(evaluation: Evaluation, i: int) -> str:
    """What bounds the rate of all sequences of a plan."""
    if not evaluation.is_stage_bound[i]:
        return "users in flight"
    drafting, slowest = evaluation.drafting, evaluation.slowest_stage_cycles[i]
    return "draft model" if drafting and drafting.cycles[i] == slowest else "slowest stage"


def rows_of(evaluation: Evaluation, chosen: Sequence[int], prompt_tokens: int) -> list[Row]:
    """Make rows of some plans, by their numbers; first tokens are those of a prompt."""
    if not chosen:
        return []
    plans = [evaluation.plans[i] for i in chosen]
    request = evaluation.scenario.request
    memory = evaluation.scenario.machine.memory_name
    taken_in = first_tokens(plans, evaluation.fits[chosen], evaluation.scenario, prompt_tokens)
    taken_in_elsewhere = (
        prefill_elsewhere(evaluation.scenario, prompt_tokens)
        if prefills_elsewhere(evaluation.scenario)
        else None
    )
    joules = energy(evaluation)
    sized = [evaluation.slots[i] for i in chosen] if evaluation.slots else []
    slots = slot_readings(plans, sized, evaluation.scenario)
    drafting = evaluation.drafting
    beside = [] if drafting is None else [drafting.evaluation.plans[i] for i in chosen]
    ranges_s = latency_ranges_s(plans, evaluation.scenario, beside)
    return [
        Row(
            plan=plan,
            fits=bool(evaluation.fits[i]),
            reason=None if evaluation.fits[i] else reason_of(evaluation, i, memory),
            short_bytes=float(evaluation.short_bytes[i]),
            sram_used_fraction=float(
                (evaluation.used_bytes[i] + evaluation.reserved_bytes[i]) / evaluation.sram_bytes[i]
            ),
            decode_latency_s=float(evaluation.latency_s[i]),
            decode_latency_lower_s=float(evaluation.lower_cycles[i] / evaluation.clock_hz),
            decode_latency_upper_s=float(evaluation.upper_cycles[i] / evaluation.clock_hz),
            decode_latency_range_s=(float(ranges_s[row, 0]), float(ranges_s[row, 1])),
            tokens_per_s_per_user=float(evaluation.tokens_per_s_per_user[i]),
            tokens_per_s_total=float(evaluation.tokens_per_s_total[i]),
            tokens_per_s_per_chip=float(evaluation.tokens_per_s_of_copy[i] / evaluation.n_chips[i]),
            tokens_per_step=request.kept_tokens,
            in_flight=int(evaluation.in_flight[i]),
            copies=int(evaluation.copies[i]),
            users_in_flight=int(evaluation.copies[i] * evaluation.in_flight[i]) * request.batch,
            busiest_s=float(evaluation.slowest_stage_cycles[i] / evaluation.clock_hz),
            total_bound_by=_total_bound_by(evaluation, i),
            reserve_limit_fraction=float(evaluation.largest_reserve_fraction[i]),
            hand_over_s=float(evaluation.hand_over_cycles[i] / evaluation.clock_hz),
            host_s=float(evaluation.host_cycles / evaluation.clock_hz),
            prefill_latency_s=float(taken_in.latency_s[row]),
            prefill_chunk_tokens=int(taken_in.chunk_tokens[row]),
            prefill_chunk_bound_by="memory" if taken_in.is_memory_bound[row] else "time",
            time_to_first_token_s=float(taken_in.time_to_first_token_s[row]),
            wire_bytes_per_token=float(
                evaluation.wire_bytes[i] / (request.batch * request.kept_tokens)
            ),
            energy_j_per_token_lower=one(joules.lower_j_per_token, i),
            energy_j_per_token_upper=one(joules.upper_j_per_token, i),
            energy_j_per_token_upper_alone=one(joules.upper_alone_j_per_token, i),
            memory_bytes=evaluation.memory_bytes(i),
            slots=slots[row],
            draft=None if evaluation.drafting is None else draft_row(evaluation.drafting, i),
            prefill_elsewhere=taken_in_elsewhere,
        )
        for row, (i, plan) in enumerate(zip(chosen, plans, strict=True))
    ]
