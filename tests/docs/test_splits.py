"""What splits cost: the table of docs/timing.md is what schedules say; bytes are counted."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models.layers.linear import Split
from sharding.legal import check_plan
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.request import decode_request
from sharding.scenario import scenario

PAGE = Path(__file__).parents[2] / "docs" / "timing.md"
BEGIN, END = "<!-- splits: a test compares -->\n", "<!-- end of splits -->"
D_MODEL, N_ATTENTION, N_MOE = 7168, 61, 60


@cache
def found() -> Evaluation:
    request = decode_request(context=4096, draft_tokens=0, acceptance=0.7)
    asked = scenario("kimi-k2", "lpx-9", request, policy="int4")
    plans = [
        Plan(
            stages=61,
            group_chips=32,
            attention=AttentionShard(tensor=16, replica=2, split=split),
            mlp=MlpShard(tensor=32, split=split),
            moe=MoeShard(expert=2, tensor=16, split=split),
        )
        for split in Split
    ]
    for plan in plans:
        check_plan(plan, asked)
    return evaluate(plans, asked)


def _table() -> str:
    """Time with its bounds, payload, and what the fullest chip holds."""
    numbers, lines = found(), ["| split | us a token | bounds | payload, MB | MB of a chip |"]
    lines.append("|---" * 5 + "|")
    for i, split in enumerate(Split):
        low, time, high = (
            float(cycles[i]) / numbers.clock_hz * 1e6
            for cycles in (numbers.lower_cycles, numbers.latency_cycles, numbers.upper_cycles)
        )
        assert low <= time <= high
        lines.append(
            f"| `{split}` | {time:.0f} | {low:.0f} to {high:.0f} | "
            f"{numbers.wire_bytes[i] / 1e6:.1f} | {numbers.used_bytes[i] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_the_page_has_the_table() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert shown == _table(), f"docs/timing.md should have\n{_table()}"


@pytest.mark.parametrize(
    ("split", "attention", "dense", "moe"),
    [
        (Split.ROW, 2 * D_MODEL, 2 * D_MODEL, 2 * D_MODEL),
        (Split.COLUMN, 2 * (64 * 128 + D_MODEL), 2 * (18432 + D_MODEL), None),
        (Split.TREE, 4 * D_MODEL, 4 * D_MODEL, None),
        (Split.WIDE, 16 * D_MODEL, 16 * D_MODEL, 16 * D_MODEL),
    ],
)
def test_payload_is_that_of_the_format(
    split: Split, attention: int, dense: int, moe: int | None
) -> None:
    numbers, plan = found(), list(Split).index(split)
    sent = {kind: np.broadcast_to(b.wire_bytes, 4)[plan] for kind, b in numbers.blocks.items()}
    assert sent["attention"] == attention
    assert sent["dense"] == dense
    if moe is None:
        slots, shared = 8, 1  # what the busiest chip may have to run; rows of one token
        gathered = 2 * D_MODEL
        if split is Split.TREE:  # over `tensor` whole, over `expert` a sixteenth of two rows
            moe = 4 * D_MODEL * (slots + shared) + 4 * D_MODEL // 16 * 2 + gathered
        else:  # results of both chips' slots, and what multiplies `down`
            moe = 2 * (2048 * slots + D_MODEL * slots * 2) + 2 * 2048 + gathered
    assert sent["moe"] == moe
