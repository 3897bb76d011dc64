"""Where the time of five rows goes: the table of docs/timing.md is what the schedules say."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from models.blocks import block_chain
from sharding.detail.scheduled import schedule_plan
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.request import decode_request
from sharding.scenario import scenario

PAGE = Path(__file__).parents[2] / "docs" / "timing.md"
BEGIN, END = "<!-- rows of a step: a test compares -->\n", "<!-- end of rows of a step -->"
#: The fastest plan for one row, and for five.
PLANS = (
    Plan(
        stages=24,
        group_chips=24,
        attention=AttentionShard(tensor=8, replica=3),
        mlp=MlpShard(tensor=24),
    ),
    Plan(stages=8, group_chips=64, attention=AttentionShard(tensor=64), mlp=MlpShard(tensor=64)),
)
TERMS = {
    "all-reduces": "all_reduce",
    "hand-overs": "hand-over",
    "vector unit": "VXM",
    "attention's products": "MXM of a cache",
    "switch unit and memory": "SXM, MEM",
    "weights' products": "MXM of weights",
    "other collectives": "all_gather",
}


@cache
def _terms_us(plan: Plan, draft_tokens: int) -> dict[str, float]:
    """By how much each term moves the end of a step; together its whole time."""
    request = decode_request(context=4096, draft_tokens=draft_tokens, acceptance=0.7)
    found = schedule_plan(plan, scenario("llama-3.1-70b", "groq-576", request, policy="int8"))
    clock_mhz = found.evaluation.clock_hz / 1e6
    blocks = Counter(block.kind for block in block_chain(found.scenario.model))
    terms = Counter({"hand-over": float(found.evaluation.hand_over_cycles[0]) / clock_mhz})
    for kind, block in found.kinds.items():
        for row, name in zip(block.rows, block.names, strict=True):
            is_of_cache = "(keys)" in name or "(values)" in name
            term = {
                "C2C": name.split()[0],
                "MXM": "MXM of a cache" if is_of_cache else "MXM of weights",
                "VXM": "VXM",
            }.get(row.unit, "SXM, MEM")
            terms[term] += blocks[kind] * row.adds_cycles / clock_mhz
    assert set(terms) == set(TERMS.values())
    # Cycles are rounded up once a block.
    assert sum(terms.values()) == pytest.approx(
        float(found.evaluation.latency_s[0]) * 1e6, rel=1e-3
    )
    return terms


def _table() -> str:
    """One row and five rows under both plans, and each term's part of the difference."""
    heads = [f"`{plan.name}`: 1 row | 5 rows | of the increase" for plan in PLANS]
    lines = [
        f"| us of a step | {' | '.join(heads)} |",
        "|---" * (1 + 3 * len(PLANS)) + "|",
    ]
    for words, term in TERMS.items():
        cells = []
        for plan in PLANS:
            one, five = _terms_us(plan, 0), _terms_us(plan, 4)
            more = sum(five.values()) - sum(one.values())
            part = (five[term] - one[term]) / more
            cells += [f"{one[term]:.0f}", f"{five[term]:.0f}", f"{abs(part):.0%}"]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    cells = []
    for plan in PLANS:
        one, five = (sum(_terms_us(plan, drafts).values()) for drafts in (0, 4))
        cells += [f"{one:.0f}", f"{five:.0f}", f"{five / one:.2f}x"]
    lines.append(f"| **together** | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_the_page_has_the_table() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert shown == _table(), f"docs/timing.md should have\n{_table()}"


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_rows_cost_what_links_carry_and_no_weights(plan: Plan) -> None:
    """What is said beside the table: weights are installed once, however many rows there are."""
    one, five = _terms_us(plan, 0), _terms_us(plan, 4)
    more = sum(five.values()) - sum(one.values())
    assert five["MXM of weights"] <= 1.01 * one["MXM of weights"]
    links = sum(five[term] - one[term] for term in ("all_reduce", "hand-over"))
    assert links > 0.5 * more
    assert five["VXM"] - one["VXM"] < 0.1 * more
