"""Timelines of two ways to share a model out between GPUs and LPUs, as `lpu compare` prices them.

Prices of models of both machines, not measurements. Run with `python benchmarks/splits.py`; it
draws `docs/images/prefill-decode.png` and `docs/images/draft-verify.png`. The third way is drawn by
`lpu plan --plot`.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpu_jax.quantities import format_bytes, format_seconds
from models.blocks import BLOCK_KINDS
from sharding import Request, compare
from sharding.detail.micro_batches import RESOURCES, Step, turns
from sharding.detail.scheduled import ScheduledPlan, schedule_plan
from sharding.rank.first_token import PrefillElsewhere
from sharding.rank.row import Row
from sharding.request import decode_request
from sharding.scenario import Scenario

PICTURES = Path(__file__).parents[1] / "docs" / "images"
#: Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
PROMPT, TOKENS_SHOWN = 8192, 6
TOKEN_BYTES = 4


def prefill_decode() -> None:
    """Draw a prompt in chunks over the GPUs' stages, its cache on the network, and what follows."""
    found = compare(
        "kimi-k2", "vr-lpx-9:prefill-decode", Request(context=PROMPT), policy="int4", top=1
    )
    (row,) = found.rows
    own = row.prefill_elsewhere
    assert own is not None
    step = scheduled_chunk(found.scenario, own)
    layers = cached_at_ms(step)
    n_chunks = PROMPT // own.chunk_tokens
    clock_hz = step.evaluation.clock_hz
    period_ms = float(step.evaluation.slowest_stage_cycles[0]) / clock_hz * 1e3
    figure, axes = plt.subplots(figsize=(11, 4.6), layout="constrained")
    for chunk in range(n_chunks):
        for stage in step.stages:
            bar(
                axes,
                stage.number,
                chunk * period_ms + stage.start_cycles[0] / clock_hz * 1e3,
                stage.cycles / clock_hz * 1e3,
                COLOURS[chunk % len(COLOURS)],
                f"chunk {chunk + 1}",
            )
    network, lpus = len(step.stages), len(step.stages) + 1
    ready = np.add.outer(np.arange(n_chunks) * period_ms, layers).ravel()
    first_ms, delay_ms = own.time_to_first_token_s * 1e3, own.delay_s * 1e3
    assert ready.max() < first_ms  # the last layer's cache is there before its FFN and the head
    axes.eventplot(ready, lineoffsets=network, linelengths=0.8, linewidths=0.6, colors="#5A5A5A")
    for token in range(TOKENS_SHOWN):
        start = first_ms + delay_ms + token * row.decode_latency_s * 1e3
        bar(axes, lpus, start, row.decode_latency_s * 1e3, COLOURS[token % len(COLOURS)], "")
    axes.axvline(first_ms, color="black", linewidth=0.8, linestyle="--")
    axes.text(first_ms, -0.75, "first token ", ha="right", va="center", fontsize=8)
    names = [f"GPUs, stage {stage.number + 1}" for stage in step.stages]
    dress(axes, [*names, "network: caches of layers", f"LPUs: tokens 2 to {TOKENS_SHOWN + 1}"])
    axes.set_title(
        f"{found.scenario.model.name} (int4), a prompt of {PROMPT} in chunks of "
        f"{own.chunk_tokens}: {own.plan.name} on {own.system}, then {row.plan.name} on the LPUs.\n"
        f"The cache, {format_bytes(own.cache_bytes)}, takes the network "
        f"{format_seconds(own.hand_over_s)} in all; modelled, with assumed constants.",
        fontsize=9,
        loc="left",
    )
    save(figure, "prefill-decode")


def scheduled_chunk(asked: Scenario, own: PrefillElsewhere) -> ScheduledPlan:
    """Schedule one chunk of a prompt on the GPUs, block by block."""
    assert asked.mixed is not None
    request = replace(asked.request, tokens=own.chunk_tokens)
    alone = replace(asked, system=asked.mixed.gpus, mixed=None, request=request)
    return schedule_plan(own.plan, alone)


def cached_at_ms(step: ScheduledPlan) -> np.ndarray:
    """When the cache of each layer of a chunk is there: with the end of its attention block."""
    clock_hz = step.evaluation.clock_hz
    ends = [
        start + float(np.ravel(step.evaluation.blocks[block.kind].timing.cycles)[0])
        for stage in step.stages
        for block, start in zip(stage.blocks, stage.start_cycles, strict=True)
        if BLOCK_KINDS[block.kind].part == "attention"
    ]
    return np.array(ends) / clock_hz * 1e3


def draft_verify() -> None:
    """Draw two micro-batches whose drafts LPUs make and GPUs judge."""
    request = decode_request(context=PROMPT, draft_tokens=4, acceptance=0.7)
    found = compare(
        "gpt-oss-120b",
        "vr-lpx-1:draft-verify",
        request,
        policy="released",
        draft_model="gpt-oss-20b",
        top=1,
    )
    (row,) = found.rows
    assert row.draft is not None
    assert row.plan.n_stages == 1  # one verification at a time
    one = draft_steps(row, found.scenario)
    figure, axes = plt.subplots(figsize=(11, 2.9), layout="constrained")
    taken = turns(one * 2, 2)  # two steps of each
    axes.set_xlim(0, max(turn.end_cycle for turn in taken) * 1.01)
    for turn in taken:
        bar(
            axes,
            RESOURCES.index(turn.step.resource),
            turn.start_cycle,
            turn.step.cycles,
            COLOURS[turn.micro_batch],
            turn.step.name,
        )
    for number in range(2):
        axes.plot([], [], color=COLOURS[number], linewidth=6, label=f"micro-batch {number + 1}")
    axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=8, bbox_to_anchor=(1, -0.1))
    dress(axes, list(RESOURCES))
    axes.set_title(
        f"{found.scenario.model.name} on the GPUs by {row.plan.name}, {row.draft.drafts} drafts a "
        f"step of {row.draft.model} on the LPUs by {row.draft.plan.name}:\n"
        f"a step takes {format_seconds(row.decode_latency_s)} and keeps {row.tokens_per_step:.2f} "
        f"tokens at an acceptance of {request.acceptance:g}; modelled, with assumed constants.",
        fontsize=9,
        loc="left",
    )
    save(figure, "draft-verify")


def draft_steps(row: Row, asked: Scenario) -> tuple[Step, ...]:
    """List what a micro-batch does in one step, in milliseconds: drafts, ids, judgement, ids."""
    draft, mixed = row.draft, asked.mixed
    assert draft is not None
    assert mixed is not None
    ids = TOKEN_BYTES * asked.request.batch
    ways = [
        float(mixed.link.transfer_s(ids * n, draft.plan.n_chips, row.plan.n_chips))
        for n in (draft.drafts, draft.drafts + 1)
    ]
    np.testing.assert_allclose(sum(ways), draft.hand_over_s, rtol=1e-9)

    def step(name: str, resource: str, seconds: float, is_held: bool = True) -> Step:
        held_ms = seconds * 1e3 if is_held else 0.0  # latency holds no lane
        return Step(
            name=name,
            resource=resource,
            holds=(resource,),
            cycles=seconds * 1e3,
            held_cycles=held_ms,
        )

    gpus, back, there, lpus = RESOURCES
    return (
        *(step(f"{n + 1}", lpus, draft.draft_latency_s) for n in range(draft.drafts)),
        step("ids", there, ways[0], is_held=False),
        step("verification", gpus, draft.verification_s),
        step("kept", back, ways[1], is_held=False),
    )


def bar(axes: Axes, y: float, start: float, length: float, colour: str, name: str) -> None:
    """Draw one piece of work, with its name where there is room."""
    is_seen = length > 0.002 * axes.get_xlim()[1]
    axes.broken_barh(
        [(start, length)],
        (y - 0.4, 0.8),
        facecolors=colour,
        edgecolors="white" if is_seen else colour,  # the short ones are lines
        linewidth=0.4 if is_seen else 1.2,
    )
    if name and length > 0.004 * len(name) * max(axes.get_xlim()[1], start + length):
        axes.text(start + length / 2, y, name, ha="center", va="center", fontsize=6, color="white")


def dress(axes: Axes, rows: list[str]) -> None:
    """Name the rows, and the time along them."""
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -1.0)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    prefill_decode()
    draft_verify()
