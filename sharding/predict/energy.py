"""Joules per token, as bounds derived from the published power of a chip and how busy it is.

Upper: every chip of the plan draws its maximum all the time, idle stages too. Lower: each draws
its average power, and that only while its busiest unit works; idle chips draw nothing. Where the
power of a chip is not public there is no figure. Of a mixed system the chips of both pools count,
each with its own power; where GPUs only take prompts in, the LPUs alone. Not modelled: power of
links' far ends, hosts, cooling and conversion, of chips that the plan leaves unused, and how power
follows the data.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lpu_jax.machine.mixed import Machine, Split
from lpu_jax.machine.system import System
from models.blocks import BLOCK_KINDS, Kind, block_chain

from ..plan import FFN_PARTS
from .evaluate import Evaluation, Numbers

#: What the bounds mean, for reports.
MEANING = (
    "derived; chips only. Upper: all chips of the plan at their maximum power all the time. "
    "Lower: average power while the busiest unit of a chip works, none otherwise."
)


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Bounds of plans, one entry per plan; None where the power is not public."""

    lower_j_per_token: Numbers | None
    upper_j_per_token: Numbers | None  #: as many sequences in flight as fit
    upper_alone_j_per_token: Numbers | None  #: one micro-batch in flight


def energy(evaluation: Evaluation) -> Energy:
    """Bound the energy of a token.

    Args:
        evaluation: time of each plan.

    Returns:
        Joules for each token that a step keeps; `lower <= upper <= upper alone`.

    Fidelity: approximate.
    """
    request = evaluation.scenario.request
    kept = request.batch * request.kept_tokens
    lower, most_w = _busy_j(evaluation), _most_w(evaluation)

    def joules(seconds: Numbers) -> Numbers | None:
        return None if most_w is None else np.asarray(most_w * seconds / kept)

    return Energy(
        lower_j_per_token=None if lower is None else np.asarray(lower / kept),
        upper_j_per_token=joules(evaluation.cycles_per_batch / evaluation.clock_hz),
        upper_alone_j_per_token=joules(evaluation.latency_s),
    )


def decoding_machines(machine: Machine) -> tuple[System, ...]:
    """List the machines whose chips a step of decoding takes; GPUs before LPUs."""
    if isinstance(machine, System):
        return (machine,)
    if machine.split is Split.PREFILL_DECODE:
        return (machine.lpus,)
    return machine.gpus, machine.lpus


def _most_w(evaluation: Evaluation) -> Numbers | None:
    """Watts that all chips of each plan draw at most; None where they are not public."""
    machines = decoding_machines(evaluation.scenario.machine)
    found = np.zeros(len(evaluation.plans))
    for system, chips in zip(machines, _chips(evaluation), strict=True):
        if system.chip.power_max_w is None:
            return None
        found = found + system.chip.power_max_w * chips
    return found


def _chips(evaluation: Evaluation) -> list[Int[np.ndarray, " plans"]]:
    """Chips of each plan, and of its draft model, on each of `decoding_machines`."""
    asked, table, drafting = evaluation.scenario, evaluation.plans, evaluation.drafting
    if asked.crosses:
        return [table.stages * table.group_chips, table.ffn_stages * table.ffn_chips]
    drafts = np.zeros(len(table), np.int64)
    if drafting is not None:
        drafts = np.array([plan.n_chips for plan in drafting.evaluation.plans])
    if len(decoding_machines(asked.machine)) == 1:
        return [table.n_chips + drafts]
    return [table.n_chips, drafts]


def _busy_j(evaluation: Evaluation) -> Numbers | None:
    """Joules that busy chips draw on average in a step; None where their power is not public."""
    machines = decoding_machines(evaluation.scenario.machine)
    if len(machines) > 1:  # the average power of GPUs is not public
        return None
    average_w = machines[0].chip.power_average_w
    if average_w is None:
        return None
    busy_chip_s = _busy_chip_s(evaluation)
    if (drafting := evaluation.drafting) is not None:
        busy_chip_s = busy_chip_s + drafting.n_drafts * _busy_chip_s(drafting.evaluation)
    return np.asarray(average_w * busy_chip_s)


def _busy_chip_s(evaluation: Evaluation) -> Numbers:
    """Seconds in which chips work, summed over the chips of a step."""
    table = evaluation.plans
    ffn = np.where(table.ffn_stages > 0, table.ffn_chips, table.group_chips)
    # One after another: numpy's own order of a sum differs between one plan and many.
    chip_cycles = sum(
        cycles * (ffn if BLOCK_KINDS[kind].part in FFN_PARTS else table.group_chips)
        for kind, cycles in _busiest(evaluation)
    )
    return np.asarray(chip_cycles / evaluation.clock_hz)


def busy_cycles(evaluation: Evaluation) -> Numbers:
    """Sum over the blocks of a step the cycles in which the busiest unit of a chip works.

    Blocks follow one another without overlap, and all chips of a group run the same program, so
    that each chip of a stage is busy at least as long in the blocks of its stage.
    """
    # One after another, as above.
    return np.asarray(sum(cycles for _, cycles in _busiest(evaluation)))


def _busiest(evaluation: Evaluation) -> list[tuple[Kind, Numbers]]:
    """List, block by block, the cycles in which the busiest unit of a chip works."""
    busiest = {
        kind: np.max(
            [np.broadcast_to(b, len(evaluation.plans)) for b in block.timing.busy_cycles.values()],
            axis=0,
        )
        for kind, block in evaluation.blocks.items()
    }
    chain = block_chain(evaluation.scenario.model)
    return [(block.kind, busiest[block.kind]) for block in chain]


def one(bounds: Numbers | None, i: int) -> float | None:
    """The bound of one plan, if it is known."""
    return None if bounds is None else float(bounds[i])


def unknown_reason(machine: Machine) -> str | None:
    """Say in one sentence why a bound is missing; None if both are known."""
    chips = [system.chip for system in decoding_machines(machine)]
    for chip in chips:
        if chip.power_max_w is None:
            return f"No energy: the power of {chip.title} is not public."
    for chip in chips:
        if chip.power_average_w is None:
            return f"No lower bound of energy: the average power of {chip.title} is not public."
    return None


def cannot_order(machine: Machine) -> str | None:
    """Say in one sentence why plans cannot be ordered by energy; None if they can."""
    systems = decoding_machines(machine)
    if any(system.chip.power_max_w is None for system in systems):
        return unknown_reason(machine)
    if len({system.chip.power_max_w for system in systems}) > 1:
        names = " and ".join(system.name for system in systems)
        return (
            f"chips of {names} draw different power, and plans are searched by chips alone; "
            "give --objective per-chip, whose rows tell the energy."
        )
    return None


def knows_energy(machine: Machine) -> bool:
    """Whether at least one bound is known."""
    chips = [system.chip for system in decoding_machines(machine)]
    return any(
        all(getattr(chip, power) is not None for chip in chips)
        for power in ("power_max_w", "power_average_w")
    )
