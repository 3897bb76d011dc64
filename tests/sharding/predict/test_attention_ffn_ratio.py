"""The published rule for the ratio of attention to FFN machines, beside our own rates.

Song et al., "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving" (arXiv
2601.21351, theorem 4.4): r machines for attention with B sequences each share one for FFNs. With
times that are linear, `t_A`, `t_C`, `t_F(rB) = alpha r B + beta`, the rate of a machine
`r B / (r + 1) / max(t_A, t_C, t_F)` is highest at
`r* = max((t_A - beta) / (alpha B), (t_C - beta) / (alpha B), sqrt(beta / (alpha B)))`.
Its own inputs were not to be had: the rule gets ours, and must name the ratio that we find best.
"""

from dataclasses import replace

import numpy as np
import pytest

from lpu_jax.machine.catalogue import any_system, system
from lpu_jax.machine.mixed import MixedSystem
from sharding import Plan
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.pools import most_in_flight
from sharding.request import Request
from sharding.scenario import Scenario, scenario

RATIOS = np.arange(1, 9)


def _asked(batch: int, context: int) -> Scenario:
    machine = any_system("h100-lpx-1")
    assert isinstance(machine, MixedSystem)
    # Memory is no question of the rule, nor is the host.
    chip = replace(machine.lpus.chip, sram_bytes=1 << 40)
    machine = replace(machine, gpus=system("h100x8"), lpus=replace(machine.lpus, chip=chip))
    request = Request(batch=batch, context=context)
    return scenario("llama-3.1-8b", machine, request, policy="fp16")


def _of_ratio(ratio: int, each: int, context: int) -> Evaluation:
    """Evaluate attention on so many GPUs with `each` sequences of their own, FFNs on a tray."""
    plan = Plan.parse(f"1x{ratio} a:{ratio}d + 1x16 f:16t row")
    return evaluate([plan], _asked(ratio * each, context))


def _seconds(found: Evaluation) -> tuple[float, float]:
    """Attention and FFN of all layers."""
    layers = found.scenario.model.n_layers
    return tuple(  # type: ignore[return-value]
        layers * float(found.blocks[kind].timing.cycles[0]) / found.clock_hz
        for kind in ("attention", "dense")
    )


@pytest.mark.parametrize(("each", "context"), [(8, 4096), (32, 8192), (64, 1024)])
def test_the_best_ratio_is_that_of_the_published_rule(each: int, context: int) -> None:
    found = [_of_ratio(int(ratio), each, context) for ratio in RATIOS]
    attention_s, ffn_s = np.array([_seconds(one) for one in found]).T
    # Each GPU has its own sequences, so that attention takes the same; FFNs take a line.
    np.testing.assert_allclose(attention_s, attention_s[0], rtol=0.15)
    slope, start = np.polyfit(RATIOS * each, ffn_s, 1)
    np.testing.assert_allclose(slope * RATIOS * each + start, ffn_s, rtol=0.15)
    best = max(
        (attention_s.mean() - start) / (slope * each), np.sqrt(max(start, 0) / (slope * each))
    )
    # With many in flight the slower of both decides, as in the rule.
    rate = RATIOS * each / (RATIOS + 1) / np.maximum(attention_s, ffn_s)
    ours = RATIOS[np.argmax(rate)]
    assert abs(ours - np.clip(best, 1, RATIOS[-1])) <= 1
    # Our own period is no shorter than both, and is theirs where neither embedding nor head,
    # which the rule leaves out, is what a stage waits for.
    slowest_s = np.array([float(one.slowest_stage_cycles[0]) / one.clock_hz for one in found])
    assert np.all(slowest_s >= np.maximum(attention_s, ffn_s) * (1 - 1e-9))
    flying = most_in_flight(np.array([2]), found[0].scenario)
    assert flying.tolist() == [4]
