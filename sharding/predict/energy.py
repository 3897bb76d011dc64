"""Joules per token, as bounds derived from the published power of a chip and how busy it is.

Upper: every chip of the plan draws its maximum all the time, idle stages too. Lower: each draws
its average power, and that only while its busiest unit works; idle chips draw nothing. Where the
power of a chip is not public there is no figure. Not modelled: power of links' far ends, hosts,
cooling and conversion, of chips that the plan leaves unused, and how power follows the data.
"""

from dataclasses import dataclass

import numpy as np

from lpu_jax.machine.mixed import Machine, MixedSystem
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
    scenario, request = evaluation.scenario, evaluation.scenario.request
    chip = scenario.system.chip
    most_w, average_w = chip.power_max_w, chip.power_average_w
    if scenario.mixed is not None:
        most_w, average_w = None, None
    kept = request.batch * request.kept_tokens
    all_chips = np.array([plan.n_chips for plan in evaluation.plans])
    busy_chip_s = _busy_chip_s(evaluation)
    if (drafting := evaluation.drafting) is not None:
        all_chips = all_chips + np.array([plan.n_chips for plan in drafting.evaluation.plans])
        busy_chip_s = busy_chip_s + drafting.n_drafts * _busy_chip_s(drafting.evaluation)

    def joules(power_w: int | float | None, chip_s: Numbers) -> Numbers | None:
        return None if power_w is None else np.asarray(power_w * chip_s / kept)

    return Energy(
        lower_j_per_token=joules(average_w, busy_chip_s),
        upper_j_per_token=joules(
            most_w, all_chips * evaluation.cycles_per_batch / evaluation.clock_hz
        ),
        upper_alone_j_per_token=joules(most_w, all_chips * evaluation.latency_s),
    )


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
    if isinstance(machine, MixedSystem):
        return f"No energy: that of two machines is not added up, which {machine.name} is."
    if machine.chip.power_max_w is None:
        return f"No energy: the power of {machine.chip.title} is not public."
    if machine.chip.power_average_w is None:
        return f"No lower bound of energy: the average power of {machine.chip.title} is not public."
    return None


def knows_energy(machine: Machine) -> bool:
    """Whether at least one bound is known."""
    return not isinstance(machine, MixedSystem) and (
        machine.chip.power_max_w,
        machine.chip.power_average_w,
    ) != (None, None)
