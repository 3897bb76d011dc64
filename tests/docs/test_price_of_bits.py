"""What promises of bits cost: the table of docs/search.md is what searches find."""

from pathlib import Path

import pytest

from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario, scenario
from sharding.search.find import INVARIANT, find_plans

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
BEGIN, END = "<!-- price of bits: a test compares -->\n", "<!-- end of price of bits -->"
QUICK = ("llama-3.1-70b", "lpx-rack", "fp8")
#: Their searches for the highest rate of all are the longest ones.
CASES = [
    ("kimi-k2", "lpx-9", "int4"),
    ("deepseek-v3", "lpx-9", "fp8"),
    ("gpt-oss-120b", "groq-576", "mxfp4"),
]


def _line(asked: Scenario, invariant: str) -> str:
    """Time and payload of the fastest plan, and the rate of the plan with most."""
    best = {}
    for objective in ("latency", "throughput"):
        plans, _ = find_plans(asked, objective, choices=INVARIANT[invariant])
        assert plans is not None
        best[objective] = evaluate(plans, asked)
    fast, wide = best["latency"], best["throughput"]
    return (
        f"| {asked.model.name} {asked.policy.name}, {asked.system.name} | `{invariant}` | "
        f"{fast.latency_s[0] * 1e6:.1f} | {fast.wire_bytes[0] / 1e6:.1f} | "
        f"{wide.tokens_per_s_total[0]:,.0f} | {fast.plans[0].name} |"
    )


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(QUICK, marks=pytest.mark.slow),
        *(pytest.param(c, marks=pytest.mark.long) for c in CASES),
    ],
)
def test_the_page_has_the_price_of_bits(case: tuple[str, str, str]) -> None:
    model, system, policy = case
    asked = scenario(model, system, Request(context=8192), policy=policy)
    shown = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines()
    lines = [_line(asked, invariant) for invariant in INVARIANT]
    assert [line for line in shown if line.startswith(f"| {model} ")] == lines, "\n".join(lines)
