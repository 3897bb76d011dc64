"""Micro-batches of a plan over two machines: which of them has GPUs, network and LPUs, and when.

Each takes its own steps in order: blocks on the stages that hold them, ways across in between. A
stage works on one micro-batch at a time, and so do the lanes into the network each way, while bytes
pass; those on their way hold nobody up. Of the steps that could begin, the one that can begin first
does, of equals that of the earlier micro-batch: a possible schedule, not the best. Not modelled:
as in `predict.pools`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.blocks import BLOCK_KINDS, block_chain

from ..plan import FFN_PARTS
from ..predict.pools import hand_overs, lay_out
from .scheduled import ScheduledPlan, block_name, first_of

#: The resources, in the order in which they are drawn.
RESOURCES = ("GPUs", "to the LPUs", "to the GPUs", "LPUs")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a micro-batch does next: a block, or a way."""

    name: str
    resource: str  #: one of `RESOURCES`
    holds: tuple[str, ...]  #: what no other micro-batch has meanwhile
    cycles: float  #: until the next step may begin
    held_cycles: float  #: until another micro-batch may have what it holds


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A step of a micro-batch in time."""

    micro_batch: int
    step: Step
    start_cycle: float

    @property
    def end_cycle(self) -> float:
        """When it is done."""
        return self.start_cycle + self.step.cycles


def steps_of(scheduled: ScheduledPlan) -> tuple[Step, ...]:
    """List what a micro-batch does for one token, in order, without the host.

    Args:
        scheduled: a plan over two machines.

    Returns:
        Steps whose cycles add up to the latency of a token.
    """
    return tuple(_steps(scheduled))


def _steps(scheduled: ScheduledPlan) -> Iterator[Step]:
    asked, stage_of_block = scheduled.scenario, scheduled.evaluation.cuts.stage_of_block[:, 0]
    groups = lay_out(scheduled.plan.pools, *(own.system for own in asked.pools))
    ways = hand_overs(stage_of_block, groups, asked)
    way_after = dict(zip(ways.block.tolist(), range(len(ways.block)), strict=True))
    for number, block in enumerate(block_chain(asked.model)):
        cycles = first_of(scheduled.evaluation.blocks[block.kind].timing.cycles)
        is_ffn = BLOCK_KINDS[block.kind].part in FFN_PARTS
        yield Step(
            name=block_name(block),
            resource="LPUs" if is_ffn else "GPUs",
            holds=(f"stage {stage_of_block[number]}",),
            cycles=cycles,
            held_cycles=cycles,
        )
        if number not in way_after:
            continue
        i = way_after[number]
        ends = [scheduled.stages[n].system for n in (int(ways.giver[i]), int(ways.taker[i]))]
        crosses = ends[0] != ends[1]
        resource = ("to the GPUs" if is_ffn else "to the LPUs") if crosses else "GPUs"
        yield Step(
            name="hidden state" if number < len(stage_of_block) - 1 else "token ids back",
            resource=resource if not is_ffn or crosses else "LPUs",
            holds=(f"lanes out of {int(ways.giver[i])}", f"lanes into {int(ways.taker[i])}"),
            cycles=float(ways.cycles[i]),
            held_cycles=float(ways.lane_cycles[:, i].max()),
        )


def turns(steps: tuple[Step, ...], n_micro_batches: int) -> list[Turn]:
    """Let micro-batches take their steps, each as early as what it holds is free.

    Args:
        steps: of one micro-batch, in order.
        n_micro_batches: how many begin at once, at least one.

    Returns:
        The turns of all, in the order in which they begin.
    """
    ready = np.zeros(n_micro_batches)
    following = [0] * n_micro_batches
    free: dict[str, float] = {}
    taken: list[Turn] = []
    while any(i < len(steps) for i in following):
        begins = [
            max([ready[n], *(free.get(what, 0.0) for what in steps[i].holds)])
            if i < len(steps)
            else np.inf
            for n, i in enumerate(following)
        ]
        n = int(np.argmin(begins))
        turn = Turn(micro_batch=n, step=steps[following[n]], start_cycle=float(begins[n]))
        for what in turn.step.holds:
            free[what] = turn.start_cycle + turn.step.held_cycles
        ready[n] = turn.end_cycle
        following[n] += 1
        taken.append(turn)
    return sorted(taken, key=lambda turn: (turn.start_cycle, turn.micro_batch))
