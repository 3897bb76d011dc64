"""Stages that serve one thing at a time, simulated one by one."""

from collections.abc import Sequence
from fractions import Fraction


def cycles_per_batch(stage_cycles: Sequence[int], in_flight: int) -> Fraction:
    """Cycles per micro-batch when so many go round through the stages for ever."""
    free = [0] * len(stage_cycles)
    ready = [0] * in_flight
    rounds = 200
    for at in range(rounds):
        if at == rounds // 2:
            half = ready[-1]
        for batch in range(in_flight):
            for stage, cycles in enumerate(stage_cycles):
                free[stage] = ready[batch] = max(ready[batch], free[stage]) + cycles
    return Fraction(ready[-1] - half, in_flight * (rounds - rounds // 2))


def makespan(jobs: Sequence[Sequence[int]]) -> int:
    """When the last job leaves the last stage; a job is its cycles in each stage."""
    free = [0] * len(jobs[0])
    for job in jobs:
        ready = 0
        for stage, cycles in enumerate(job):
            free[stage] = ready = max(ready, free[stage]) + cycles
    return free[-1]
