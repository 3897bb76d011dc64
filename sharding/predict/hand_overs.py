"""Hand-overs: the hidden state from stage to stage, token ids back to the first; their cycles."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lpu_jax.cost.placed_machine import Groups
from lpu_jax.cost.timing import hand_over_cycles
from lpu_jax.machine.system import System

from ..scenario import Scenario

Pairs = Int[np.ndarray, " pairs"]
#: Bytes of a token id on its way back to the first stage.
TOKEN_BYTES = 4
#: Bytes of a position that an index chose.
POSITION_BYTES = 4


def hidden_bytes(scenario: Scenario) -> float:
    """Bytes of the hidden state of a step on its way to the next stage.

    With attention residuals all states go along with every hand-over (`models.layers.depth`).
    Where layers follow an index, the positions that it chose go along with every hand-over, as
    int32 (assumed: a stage may begin between it and them).
    """
    request, bits = scenario.request, scenario.system.chip.wire_value_bits
    hidden = scenario.model.hidden_width * bits / 8
    if scenario.model.following_layers:
        hidden += POSITION_BYTES * min(scenario.model.index.top_k, request.context)
    return request.batch * request.tokens * hidden


def hand_over_times(
    groups: Sequence[Groups], scenario: Scenario
) -> Float[np.ndarray, "placements 2"]:
    """Cycles of all hand-overs of a token, the return included, and of the slowest one.

    Args:
        groups: where the stages of plans lie.
        scenario: the model, the machine, the request and the formats.
    """
    several = [group for group in groups if len(group.bases) > 1]
    found = np.zeros((len(groups), 2))
    if not several:
        return found
    steps, back = _hand_overs(several, scenario)
    lengths = np.array([len(group.bases) - 1 for group in several])
    start = np.cumsum(lengths) - lengths
    rows = [i for i, group in enumerate(groups) if len(group.bases) > 1]
    found[rows, 0] = np.add.reduceat(steps, start) + back
    found[rows, 1] = np.maximum.reduceat(steps, start)
    return found


def _hand_overs(
    groups: Sequence[Groups], scenario: Scenario
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " placements"]]:
    """Cycles of every hand-over of placements, end to end, and of each one's return."""
    system, request = scenario.system, scenario.request
    sampled = request.batch * request.sampled_tokens
    chips = np.array([group.chips for group in groups])
    n_steps = np.array([len(group.bases) - 1 for group in groups])
    steps = hand_over_cycles(
        system,
        np.repeat(chips, n_steps),
        np.concatenate([group.bases[:-1] for group in groups]),
        np.concatenate([group.bases[1:] for group in groups]),
        hidden_bytes(scenario),
    )
    first, last = (np.array([group.bases[i] for group in groups]) for i in (0, -1))
    return steps, hand_over_cycles(system, chips, last, first, TOKEN_BYTES * sampled)


def cycles_between(
    system: System,
    givers: tuple[Pairs, Pairs],
    takers: tuple[Pairs, Pairs],
    payload_bytes: float | int,
) -> Float[np.ndarray, " pairs"]:
    """Cycles of hand-overs between groups of different sizes.

    As many chips as the smaller group has give and take the vector; in a larger group those that
    have it hand it on to as many others, until all do.

    Args:
        system: LPUs or GPUs.
        givers: first chip and number of chips of each group that sends; all hold the vector.
        takers: the same of each group that receives.
        payload_bytes: the vector.
    """
    (source, n_givers), (target, n_takers) = givers, takers
    have = np.minimum(n_givers, n_takers)
    cycles = hand_over_cycles(system, have, source, target, payload_bytes)
    while (lacking := np.flatnonzero(have < n_takers)).size:
        more = np.minimum(have, n_takers - have)[lacking]
        first = target[lacking]
        cycles[lacking] += hand_over_cycles(
            system, more, first, first + have[lacking], payload_bytes
        )
        have[lacking] += more
    return cycles
