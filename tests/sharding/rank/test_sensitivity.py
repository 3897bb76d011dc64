"""Sensitivity: winners counted by hand, fits respected, one seed one result."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from lpu_jax.machine.uncertainty import draw_system, uncertain, uncertain_constants, variant
from lpu_jax.provenance import CALLER, vary
from sharding.cli.main import main
from sharding.plan import Plan
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.rank import sensitivity as module
from sharding.rank.choose import promises_its_rule
from sharding.rank.compare import compare
from sharding.rank.comparison import Comparison
from sharding.rank.correlation import chance_level, spearman
from sharding.rank.sensitivity import sensitivity
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.space.plan_table import PlanTable

SMALL = Request(batch=2, context=4)
TRANSIT, RESERVE = "chip.transit_cycles", "chip.reserved_fraction"


def _given(spec: Any, *but: str) -> Any:
    """A specification whose uncertain numbers a person has set, but for some."""
    return vary(
        spec,
        *(
            dataclasses.replace(c, source=CALLER, low=None, high=None, options=())
            for c in uncertain(spec)
            if c.name not in but
        ),
    )


def _certain_but(machine: System, *names: str) -> System:
    """The machine with all numbers given, but for some of the chip's."""
    chip, topology = _given(machine.chip, *names), _given(machine.topology)
    return dataclasses.replace(_given(machine), chip=chip, topology=topology)


@cache
def _compared() -> Comparison:
    machine = _certain_but(system("groq-6"), "transit_cycles", "reserved_fraction")
    found = compare("smollm2-135m", machine, SMALL)
    return compare("smollm2-135m", machine, SMALL, plans=found.evaluation.plans, top=1)


@pytest.mark.slow
def test_contenders_are_what_was_asked_for() -> None:
    tree: Any = {"policy": "int8", "invariant": "tree", "top": 1}
    found = compare("smollm2-135m", "groq-4", SMALL, **tree)
    rate = 0.9 * found.rows[0].tokens_per_s_per_user
    for limits in ({}, {"min_rate": rate}):
        asked = compare("smollm2-135m", "groq-4", SMALL, **tree, **limits)
        plans = module._Study(asked).plans
        assert all(promises_its_rule(plan) for plan in plans)
        assert {part.split for plan in plans for part in (plan.attention, plan.mlp)} == {"tree"}
        kept = [rate <= own for own in evaluate(plans, asked.scenario).tokens_per_s_per_user]
        assert all(kept) == bool(limits)


# --- three plans with times that can be worked out by hand ----------------------------------------


@pytest.fixture
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """Plan 0 takes 100 transits and 93 % of the memory, plan 1 3,000 cycles, plan 2 9,000.

    Plan 0 is first while a transit takes less than 30 cycles and at most 7 % are reserved; plan 2
    has the highest rate of all, because its stages are short.
    """
    whole = _compared()
    share = getattr(request, "param", 0.93)

    def timed(plans: Sequence[Plan], asked: Scenario, _: Sequence[Plan]) -> Evaluation:
        machine = asked.system
        transits = 100.0 * machine.chip.transit_cycles
        index = [whole.evaluation.plans.index(plan) for plan in plans]
        latency = np.array([transits, 3000.0, 9000.0])[index]
        sram = float(machine.chip.sram_bytes)
        nothing = np.zeros(len(plans))
        return dataclasses.replace(
            whole.evaluation,
            plans=PlanTable.of(plans),
            scenario=asked,
            latency_cycles=latency,
            worst_latency_cycles=latency,
            lower_cycles=latency,
            upper_cycles=latency,
            slowest_stage_cycles=np.array([transits, 3000.0, 1000.0])[index],
            hand_over_cycles=nothing,
            wire_bytes=nothing,
            weight_bytes=np.array([share, 0.5, 0.5])[index] * sram,
            least_bytes=np.array([share, 0.5, 0.5])[index] * sram,
            cache_bytes=nothing,
            dram_bytes=nothing,
            activation_bytes=nothing,
            reserved_bytes=np.full(len(plans), machine.chip.reserved_fraction * sram),
            sram_bytes=np.full(len(plans), sram),
            cached_batches=np.array([1.0, 1.0, 9.0])[index],
            in_flight=np.array([1, 1, 9])[index],
            copies=np.ones(len(plans), np.int64),
        )

    monkeypatch.setattr(module, "evaluate_with_drafts", timed)
    plans = whole.evaluation.plans[:3]
    found = timed(plans, whole.scenario, ())
    return dataclasses.replace(whole, evaluation=found)


def _name(toy: Comparison, plan: int) -> str:
    return toy.evaluation.plans[plan].name


@pytest.mark.slow
def test_shares_are_those_of_the_ranges(toy: Comparison) -> None:
    """Whole numbers 10..50 by logarithm: ln(30/10)/ln(51/10) below 30; 70 % reserve at most 7 %.

    Tolerance: four standard deviations of a share of 800 samples, 0.07.
    """
    found = sensitivity(toy, 800, 0)
    fast = math.log(3) / math.log(5.1)
    assert found.nominal == _name(toy, 0)
    assert found.fits_share == pytest.approx(0.7, abs=0.07)
    assert found.first_share == pytest.approx(0.7 * fast, abs=0.07)
    assert found.wins == {
        _name(toy, 0): pytest.approx(found.first_share),
        _name(toy, 1): pytest.approx(1 - found.first_share),
    }
    # Where it fits it is always one of three; where it does not, it is none of them.
    assert found.split_first_three_share == found.fits_share
    # 90 % of the transits lie in 10 * 5.1**0.05 .. 10 * 5.1**0.95; whole numbers and samples, so
    # two off.
    clock = toy.evaluation.clock_hz
    low, high = (1000 * 5.1**share / clock for share in (0.05, 0.95))
    assert found.latency_s == pytest.approx((low, high), abs=200 / clock)
    assert found.winner_latency_s is not None
    assert found.winner_latency_s[1] == 3000 / clock
    assert found.median_loss == 0.0
    # The top of its losses: at 5.1**0.95, 47 cycles, 4,700 against 3,000.
    assert found.high_loss == pytest.approx(4700 / 3000 - 1, abs=0.04)


@pytest.mark.slow
def test_one_constant_alone(toy: Comparison) -> None:
    found = sensitivity(toy, 50, 0)
    reserve, transit = found.influences
    assert (reserve.name, transit.name) == (RESERVE, TRANSIT)
    low, high = transit.ends
    assert (low.value, low.stays_first, low.loss) == ("10", True, 0.0)
    assert low.latency_ratio == pytest.approx(10 / 22)
    assert (high.value, high.stays_first, high.winner) == ("50", False, _name(toy, 1))
    assert high.loss == pytest.approx(5000 / 3000 - 1)
    assert high.latency_ratio == pytest.approx(50 / 22)
    none, full = reserve.ends
    assert (none.value, none.stays_first, none.latency_ratio) == ("0", True, 1.0)
    assert (full.value, full.loss, full.latency_ratio) == ("0.1", None, None)
    assert full.winner == _name(toy, 1)
    for influence in found.influences:
        assert influence.rank_correlation is not None
        assert influence.rank_correlation > found.correlation_noise


def test_a_plan_that_does_not_fit_cannot_win(toy: Comparison) -> None:
    rng = np.random.default_rng(9)
    drawn = [draw_system(toy.scenario.system, rng).chip for _ in range(40)]
    fits = [chip.reserved_fraction <= 0.07 for chip in drawn]
    fast = [chip.transit_cycles < 30 for chip in drawn]
    found = sensitivity(toy, 40, 9)
    assert 0 < sum(fits) < 40
    assert found.fits_share == sum(fits) / 40
    assert found.first_share == sum(a and b for a, b in zip(fits, fast, strict=True)) / 40


@pytest.mark.parametrize("toy", [0.97], indirect=True)
def test_a_plan_that_fits_only_with_a_smaller_reserve_may_win(toy: Comparison) -> None:
    """Plan 0 needs a reserve of 3 % at most, so that at 5 % plan 1 is first."""
    found = sensitivity(toy, 200, 0)
    assert (found.nominal, found.contenders) == (_name(toy, 1), 3)
    assert 0 < found.wins[_name(toy, 0)] < 0.4


def test_every_objective_has_its_winner(toy: Comparison) -> None:
    for objective, winner in (("throughput", 2), ("pareto", 0)):
        asked = dataclasses.replace(toy, objective=objective)
        found = sensitivity(asked, 3, 0)
        assert found.nominal == _name(toy, winner)
        assert found.objective == ("throughput" if winner else "latency")


def test_the_cap_keeps_the_best(toy: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CONTENDERS", 2)
    found = sensitivity(toy, 200, 0)
    assert (found.contenders, found.eligible) == (2, 3)
    assert set(found.wins) == {_name(toy, 0), _name(toy, 1)}
    assert "2 plans (the best of 3)" in found.text()


def test_the_cap_keeps_the_best_in_whatever_order_they_come(
    toy: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = list(reversed(toy.evaluation.plans))
    turned = module.evaluate_with_drafts(plans, toy.scenario, ())
    monkeypatch.setattr(module, "MOST_CONTENDERS", 2)
    found = sensitivity(dataclasses.replace(toy, evaluation=turned), 200, 0)
    assert set(found.wins) == {_name(toy, 0), _name(toy, 1)}


def test_constants_that_move_no_plan_are_left_out() -> None:
    """Hops that only `reach_s` counts, the chunk of a prefill, and the power of a chip."""
    for name in ("groq-rack", "lpx-rack", "h100x8", "vr-nvl72"):
        machine = system(name)
        left_out = {c.name for c in (*uncertain(machine.chip), *uncertain(machine.topology))} - {
            full.partition(".")[2] for full in uncertain_constants(machine)
        }
        assert "prefill_chunk_tokens" in left_out
        assert left_out <= {"prefill_chunk_tokens", "most_hops", "power_w", "log_alu_passes"}
        assert ("most_hops" in left_out) == (name == "groq-rack")
        rng = np.random.default_rng(0)
        drawn = draw_system(machine, rng)
        assert drawn.chip.prefill_chunk_tokens == machine.chip.prefill_chunk_tokens
        # one number for each that is listed, or for each reading, none for the others
        listed = uncertain_constants(machine)
        again = np.random.default_rng(0)
        again.random(len({c.reading or name for name, c in listed.items()}))
        assert rng.random() == again.random()


def test_one_seed_one_result(toy: Comparison) -> None:
    def text(seed: int) -> str:
        return json.dumps(sensitivity(toy, 20, seed).as_dict(), allow_nan=False)

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_the_text_names_what_matters(toy: Comparison) -> None:
    told: list[str] = []
    text = sensitivity(toy, 20, 0, lambda _done, _total, what: told.append(what)).text()
    for part in (_name(toy, 0), TRANSIT, RESERVE, "does not fit", "the same", "seed 0"):
        assert part in text
    assert "sample 20 of 20" in "".join(told)


# --- real machines --------------------------------------------------------------------------------


@pytest.mark.slow
def test_winners_on_drawn_machines_counted_by_hand() -> None:
    """On a machine whose fastest plan fits with a reserve of 7.5 % at most."""
    base = _compared()
    row = base.rows[0]
    own = base.evaluation.plans.index(row.plan)
    machine = base.scenario.system
    least = float(base.evaluation.least_bytes[own])
    chip = dataclasses.replace(machine.chip, sram_bytes=math.ceil(least / 0.925))
    tight = compare(
        "smollm2-135m",
        dataclasses.replace(machine, chip=chip),
        SMALL,
        plans=base.evaluation.plans,
        top=1,
    )
    rng = np.random.default_rng(1)
    wins: Counter[str] = Counter()
    times = []
    for _ in range(6):
        drawn = draw_system(tight.scenario.system, rng)
        found = evaluate(tight.evaluation.plans, dataclasses.replace(tight.scenario, system=drawn))
        usable = (1 - drawn.chip.reserved_fraction) * drawn.chip.sram_bytes
        order = sorted(
            (i for i in range(len(found.plans)) if found.least_bytes[i] <= usable),
            key=lambda i: (found.latency_cycles[i], -found.tokens_per_s_total[i]),
        )
        if order:
            wins[found.plans[order[0]].name] += 1
        own = found.plans.index(row.plan)
        if found.fits[own]:
            times.append(float(found.latency_s[own]))
    result = sensitivity(tight, 6, 1)
    assert result.nominal == row.plan.name
    assert dict(result.wins) == {name: count / 6 for name, count in wins.items()}
    assert result.fits_share == len(times) / 6
    assert 0 < len(times) < 6
    assert len(wins) > 1
    assert result.latency_s == pytest.approx(tuple(np.quantile(times, (0.05, 0.95))), rel=1e-12)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = tmp_path / "machine.toml"
    machine.write_text(
        'topology = "groq"\nchips = 2\n[chip]\nbase = "groqchip1"\nreserved_fraction = 0.05\n'
        "mxm_latency_cycles = 64\nlane_rotate_cycles = 9\nmem_accesses_per_cycle = 2\n"
        "weight_stream_bytes_per_cycle = 20_480\n"
        "exp_alu_passes = 2\ntanh_alu_passes = 2\nrsqrt_alu_passes = 2\n"
        'weight_prefetch = "round"\npadding = "vectors"\nwidening = "array"\n'
        "wire_value_bits = 16\nmem_slices_per_address = 16\n"
    )
    data = tmp_path / "out.json"
    with pytest.raises(SystemExit) as leaving:
        main(
            [
                *("compare", "smollm2-135m", "--system", str(machine), "--context", "2"),
                *("--sensitivity", "2", "--seed", "3", "--json", str(data)),
            ]
        )
    assert not leaving.value.code
    assert "Sensitivity: 2 samples, seed 3" in capsys.readouterr().out
    found = json.loads(data.read_text())["sensitivity"]
    assert found["n_samples"] == 2
    # What the file sets is certain; the transit is not, and the host's time adds to every plan.
    names = {influence["name"] for influence in found["influences"]}
    assert {name for name in names if name.startswith("chip.")} == {TRANSIT}
    assert "system.host_overhead_s" in names


@pytest.mark.slow
def test_values_at_an_end_of_their_range_are_named() -> None:
    """No host time is the least there is; a transit of 22 cycles lies inside its range."""
    machine = _certain_but(system("groq-6"), "transit_cycles")
    host = next(c for c in system("groq-6").constants() if c.name == "host_overhead_s")
    found = sensitivity(
        compare("smollm2-135m", vary(machine, host), SMALL, plans=_compared().evaluation.plans),
        5,
    )
    one_sided = {influence.name for influence in found.influences if influence.is_one_sided}
    assert one_sided == {"system.host_overhead_s"}
    assert found.latency_s is not None
    assert found.nominal_latency_s < found.latency_s[0]  # by hand: host time is up to 200 us
    assert "The nominal time lies outside these intervals: the values of system" in found.text()


def test_a_variant_changes_what_it_names() -> None:
    machine = system("groq-24")
    changed = variant(machine, {TRANSIT: 30, "system.host_overhead_s": 1e-6})
    assert (changed.chip.transit_cycles, changed.host_overhead_s) == (30, 1e-6)
    assert changed.topology == machine.topology
    assert variant(machine, {}) == machine


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((0, 0), "samples is 0"), ((True, 0), "samples is True"), ((1, -1), "seed is -1")],
)
def test_impossible_numbers(arguments: tuple[int, int], sentence: str) -> None:
    with pytest.raises(LpuError, match=sentence):
        sensitivity(_compared(), *arguments)


def test_nothing_to_rank_and_nothing_to_draw() -> None:
    with pytest.raises(LpuError, match="no plan fits"):
        sensitivity(dataclasses.replace(_compared(), fitting=0), 1)
    asked = dataclasses.replace(_compared().scenario, system=_certain_but(system("groq-6")))
    certain = dataclasses.replace(_compared(), scenario=asked)
    with pytest.raises(LpuError, match="no constant of groq-6 has a range"):
        sensitivity(certain, 1)


WHOLE = st.integers(min_value=0, max_value=6)


@given(st.lists(st.tuples(WHOLE, WHOLE), min_size=2, max_size=12))
def test_rank_correlation_is_that_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    """Ranks by counting: those below, and half of those equal."""
    x, y = (np.array(values, np.float64) for values in zip(*pairs, strict=True))

    def ranks(values: Any) -> Any:
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    a, b = np.array(ranks(x)), np.array(ranks(y))
    if a.std() == 0 or b.std() == 0:
        assert spearman(x, y) is None
    else:
        assert spearman(x, y) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)


def test_chance_correlations_stay_below_their_bound() -> None:
    """Twenty constants without influence, 1,000 times 50 samples: about one case in twenty."""
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(1000):
        ranks = np.argsort(rng.random((21, 50)), axis=1) - 24.5
        above += np.abs(ranks[1:] @ ranks[0] / (ranks[0] @ ranks[0])).max() > 0.43
    bound = chance_level(50, 20)
    # By hand: the normal quantile of 0.05 / 40 is 3.02; over the root of 49.
    assert bound == pytest.approx(3.023 / 7, rel=1e-3)
    # Binomial: 50 of 1,000 with a standard deviation of 7; the bound is never exceeded more often.
    assert 20 < above < 75


def test_rank_correlation_by_hand() -> None:
    """1 - 6 sum(d^2) / (n (n^2 - 1)) = 1 - 6 * 6 / 60; an infinite loss is only the largest."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, np.array([2.0, 3.0, 1.0, np.inf])) == pytest.approx(1 - 6 * 6 / 60)
    assert spearman(x, np.array([5.0, 5.0, 5.0, 5.0])) is None


@pytest.mark.long
def test_the_nominal_winner_is_among_the_plans_however_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_CONTENDERS", 1)
    found = compare("llama-2-70b", "groq-576", policy="int8", top=1)
    machine = found.scenario.system  # the smallest plausible reserve is none
    roomy = dataclasses.replace(machine.chip, reserved_fraction=0.0)
    faster = compare(
        "llama-2-70b", dataclasses.replace(machine, chip=roomy), policy="int8", top=1
    ).rows[0]
    assert faster.tokens_per_s_per_user > found.rows[0].tokens_per_s_per_user
    assert sensitivity(found, 1).nominal == found.rows[0].plan.name
