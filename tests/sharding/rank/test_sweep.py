"""A sweep: its rows are those of comparisons, one rank over all, and nothing else."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import config
from slices import some_slow

from lpu_jax.errors import LpuError, UnknownNameError
from lpu_jax.machine.catalogue import system
from models.zoo import model
from sharding.rank import sweep as module
from sharding.rank.compare import Comparison, compare
from sharding.rank.ranking import Objective
from sharding.rank.row import row_from_dict
from sharding.rank.sweep import sweep
from sharding.rank.sweep_result import Sweep, SweepInterrupted
from sharding.request import Request, decode_request

MODEL, REQUEST = "smollm2-135m", Request(context=2)  # few sizes of prefill chunks
#: On one chip it fits with int8 and one sequence only.
SYSTEMS, POLICIES, BATCHES = ("groq-2", "groq-1"), ("fp16", "int8"), (1, 64)
CASES = list(product(SYSTEMS, POLICIES, BATCHES))
#: More rows than any front here has.
ALL = 1000
#: Of a product or quotient of two numbers that are rounded once.
ROUNDED = 1e-14


@cache
def _swept(**options: Any) -> Sweep:
    return sweep(MODEL, SYSTEMS, REQUEST, policies=POLICIES, batches=BATCHES, **options)


@cache
def _compared(name: str, policy: str, batch: int, objective: Objective, top: int) -> Comparison:
    request = replace(REQUEST, batch=batch)
    return compare(MODEL, name, request, policy=policy, objective=objective, top=top)


def _alone(objective: Objective, top: int) -> list[tuple[tuple[str, str, int], Any]]:
    """The rows of every case compared alone, with their case."""
    found = [(case, _compared(*case, objective, top)) for case in CASES]
    return [(case, row) for case, one in found if one.fitting for row in one.rows]


def _rows(found: Sweep) -> list[tuple[tuple[str, str, int], Any]]:
    return [((row.system, row.policy, row.batch), row.row) for row in found.rows]


# --- rows ---------------------------------------------------------------------------------------

KEYS: Mapping[Objective, Any] = {
    "latency": lambda row: (-row.tokens_per_s_per_user, row.plan.n_chips),
    "throughput": lambda row: (-row.tokens_per_s_total, -row.tokens_per_s_per_user),
    "per-chip": lambda row: (-row.tokens_per_s_per_chip, -row.tokens_per_s_per_user),
    "chips": lambda row: (row.plan.n_chips, -row.tokens_per_s_per_user),
    "energy": lambda row: (row.energy_j_per_token_upper, -row.tokens_per_s_per_user),
    "first-token": lambda row: (row.time_to_first_token_s, -row.tokens_per_s_per_user),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        "latency",
        *some_slow([name for name in KEYS if name != "latency"], count=1),
    ],
)
def test_the_best_of_each_case_is_ranked_among_all(objective: Objective) -> None:
    expected = sorted(_alone(objective, 1), key=lambda one: KEYS[objective](one[1]))
    assert len(expected) == 5
    assert _rows(_swept(objective=objective)) == expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("objective", "second"),
    [
        ("pareto", lambda row: row.tokens_per_s_total),
        ("latency,per-chip", lambda row: row.tokens_per_s_per_chip),
        ("latency,chips", lambda row: -row.plan.n_chips),
    ],
)
def test_a_front_is_what_no_row_of_any_case_beats(objective: Objective, second: Any) -> None:
    every = _alone(objective, ALL)

    def is_beaten(row: Any) -> bool:
        user, other = row.tokens_per_s_per_user, second(row)
        return any(
            o.tokens_per_s_per_user >= user
            and second(o) >= other
            and (o.tokens_per_s_per_user, second(o)) != (user, other)
            for _, o in every
        )

    best = [one for one in every if not is_beaten(one[1])]
    found = _rows(_swept(objective=objective))
    assert all(one in best for one in found)
    # Of equal ones the first: no rate of the others is missing.
    rates = {(row.tokens_per_s_per_user, second(row)) for _, row in best}
    assert [(row.tokens_per_s_per_user, second(row)) for _, row in found] == sorted(
        rates, reverse=True
    )
    assert len(best) < len(every)


@pytest.mark.long
def test_rows_of_a_case_and_of_all_may_be_limited() -> None:
    more, few = _swept(per=2), _swept(per=2, top=3)
    expected = sorted(_alone("latency", 2), key=lambda one: KEYS["latency"](one[1]))
    assert _rows(more) == expected
    assert few.rows == more.rows[:3]
    front = _swept(objective="pareto", per=1)
    assert len({(row.system, row.policy, row.batch) for row in front.rows}) == len(front.rows)


@pytest.mark.slow
def test_a_row_comes_back_from_json() -> None:
    for row in _swept().rows:
        data = json.loads(json.dumps(row.row.as_dict()))
        assert row_from_dict(data) == row.row


@pytest.mark.slow
def test_a_mixture_and_its_drafts_come_back_from_json() -> None:
    cfg = replace(model("gpt-oss-20b"), n_layers=2, sliding_layers=(0,))
    asked = decode_request(context=4, draft_tokens=2, acceptance=0.5)
    (row,) = compare(cfg, "lpx-tray", asked, draft_model=cfg, top=1).rows
    assert row.slots is not None
    assert row.draft is not None
    assert row_from_dict(json.loads(json.dumps(row.as_dict()))) == row


# --- what has no rows ---------------------------------------------------------------------------


@pytest.mark.slow
def test_where_nothing_fits_the_nearest_is_told() -> None:
    found = _swept()
    without = [case for case in found.cases if case.answer is not None and not case.answer.rows]
    names = [(case.system.name, case.policy.name, case.batch) for case in without]
    assert names == [("groq-1", "fp16", 1), ("groq-1", "fp16", 64), ("groq-1", "int8", 64)]
    for case, name in zip(without, names, strict=True):
        assert case.answer is not None
        nearest = _compared(*name, "latency", 1).nearest
        assert nearest is not None
        assert case.answer.nearest == nearest
        assert f"  {case.name}: the nearest, {nearest.plan.name}, is short of " in found.table()


@pytest.mark.slow
def test_a_limit_that_leaves_no_plan_is_told() -> None:
    found = _swept(min_rate=13_500.0)
    assert {row.policy for row in found.rows} == {"fp16"}
    told = [case.answer.excluded for case in found.cases if case.answer and case.answer.excluded]
    assert told
    assert all("no plan gives 13500 tokens/s to one user" in why for why in told)
    assert all(why in found.table().replace("\n", " ") for why in told)


def test_what_cannot_be_asked_of_one_system_is_told_of_it() -> None:
    found = sweep(MODEL, ("groq-1", "lpx-tray"), REQUEST, policies="int8", objective="energy")
    assert [row.system for row in found.rows] == ["groq-1"]
    sentence = "objective energy: No energy: the power of NVIDIA Groq 3 LPU (LP30) is not public."
    assert found.cases[1].answer is not None
    assert found.cases[1].answer.refused == sentence
    assert f"  lpx-tray, int8, batch 1: {sentence}" in found.table()
    with pytest.raises(LpuError, match="objective energy: No energy"):
        sweep(MODEL, "lpx-tray", REQUEST, objective="energy")


# --- what leaves it -----------------------------------------------------------------------------


def _refuse(word: str) -> Any:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.slow
def test_json_has_every_case() -> None:
    found = _swept()
    data = json.loads(found.to_json(), parse_constant=_refuse)
    assert [one["name"] for one in data["systems"]] == list(SYSTEMS)
    assert [one["name"] for one in data["policies"]] == list(POLICIES)
    assert data["batches"] == list(BATCHES)
    assert data["left"] == []
    assert [(one["system"], one["policy"], one["batch"]) for one in data["cases"]] == CASES
    for row, of in zip(data["rows"], found.rows, strict=True):
        assert (row["system"], row["policy"], row["batch"]) == (of.system, of.policy, of.batch)
        assert row["name"] == of.plan.name
    alone = json.loads(_compared(*CASES[0], "latency", 1).to_json())
    assert data["cases"][0]["searched"] == alone["searched"]
    assert set(data["rows"][0]) == {"system", "policy", "batch", *alone["rows"][0]}
    assert data["versions"] == alone["versions"]


@pytest.mark.slow
def test_csv_and_dataframe_have_the_columns_of_comparisons() -> None:
    found, alone = _swept(), _compared(*CASES[0], "latency", 1)
    read = list(csv.DictReader(io.StringIO(found.to_csv()), strict=True))
    assert set(read[0]) == set(next(csv.DictReader(io.StringIO(alone.to_csv()))))
    for number, (cells, row) in enumerate(zip(read, found.rows, strict=True), 1):
        assert cells["row"] == str(number)
        assert (cells["system"], cells["policy"]) == (row.system, row.policy)
        assert cells["request.batch"] == str(row.batch)
        assert float(cells["decode_latency_s"]) == row.row.decode_latency_s
    frame = found.to_dataframe()
    assert frame["request.batch"].tolist() == [row.batch for row in found.rows]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["latency", "latency,chips"])
def test_systems_are_series_of_a_picture(objective: Objective, tmp_path: Path) -> None:
    found = _swept(objective=objective)
    found.plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for number, row in enumerate(found.rows, 1):
        assert f'id="row-{number}"' in text
        assert f"{row.system} (" in text
    assert ("chips of the plan" in text) == (objective == "latency,chips")
    found.plot(tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("over", "columns"),
    [
        ({}, ["system", "policy", "batch"]),
        ({"policies": "int8", "batches": 1}, ["system"]),
        ({"systems": "groq-2", "batches": 1}, ["policy"]),
        ({"systems": "groq-2", "policies": "int8"}, ["batch"]),
    ],
)
def test_the_table_has_the_columns_that_differ(over: dict[str, Any], columns: list[str]) -> None:
    asked = {"systems": SYSTEMS, "policies": POLICIES, "batches": BATCHES} | over
    found = sweep(MODEL, request=REQUEST, **asked) if over else _swept()
    text = found.table()
    assert "…" not in text
    (heading,) = (
        line for line in text.splitlines() if line.split()[:1] == ["#"] and "SRAM" in line
    )
    names = heading.split()
    assert names[1 : names.index("plan")] == columns


# --- options ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_smallest_part_of_each_machine_may_be_taken() -> None:
    found = sweep(MODEL, SYSTEMS, REQUEST, policies="int8", batches=BATCHES, min_chips=True)
    names = {(row.case.system.name, row.batch): row.system for row in found.rows}
    assert names == {
        ("groq-2", 1): "1 of groq-2",
        ("groq-2", 64): "2 of groq-2",
        ("groq-1", 1): "1 of groq-1",
    }
    assert "1 of groq-1" in found.table()


@pytest.mark.long
def test_a_draft_model_drafts_in_every_case() -> None:
    asked = decode_request(context=4, draft_tokens=2, acceptance=0.5)
    drafts = replace(model(MODEL), name="small", n_layers=2)
    found = sweep(MODEL, "groq-8", asked, policies=POLICIES, draft_model=drafts)
    for row in found.rows:
        (alone,) = compare(
            MODEL, "groq-8", asked, policy=row.policy, draft_model=drafts, top=1
        ).rows
        assert row.row == alone
        assert row.row.draft is not None
    assert "small makes them one after another" in found.table()


@pytest.mark.slow
def test_figures_of_chips_are_divided_out() -> None:
    watts, cost = {"groq-2": 250.0}, 3.5
    found = _swept_with_figures(watts, cost)
    for row in found.rows:
        rate, power = Fraction(row.row.tokens_per_s_per_chip), watts.get(row.system)
        for_a_million = Fraction(cost) / 3600 * 10**6 / rate
        assert math.isclose(row.row.cost_per_million_tokens or 0, for_a_million, rel_tol=ROUNDED)
        if power is None:
            assert row.row.tokens_per_s_per_mw is None
        else:
            of_a_megawatt = rate * 10**6 / Fraction(power)
            assert math.isclose(row.row.tokens_per_s_per_mw or 0, of_a_megawatt, rel_tol=ROUNDED)
    text, data = found.table(), found.as_dict()
    assert "tok/s MW" in text
    assert "cost/Mtok" in text
    assert [one.get("chip_watts") for one in data["systems"]] == [250.0, None]
    (first, *_) = csv.DictReader(io.StringIO(found.to_csv()))
    assert (first["chip_watts"], first["chip_hour_cost"]) == ("250.0", "3.5")
    assert float(first["cost_per_million_tokens"]) == found.rows[0].row.cost_per_million_tokens


def _swept_with_figures(watts: Any, cost: Any) -> Sweep:
    return sweep(
        MODEL,
        SYSTEMS,
        REQUEST,
        policies=POLICIES,
        chip_watts=watts,
        chip_hour_cost=cost,
    )


def test_without_figures_nothing_is_said_of_them() -> None:
    for found in (_swept(), _compared(*CASES[0], "latency", 1)):
        for text in (found.table(), found.to_json(), found.to_csv()):
            assert not any(
                word in text for word in ("_per_mw", "cost_per", "chip_watts", "tok/s MW")
            )


def test_a_comparison_takes_figures_too() -> None:
    case = ("groq-2", "int8")
    found = compare(
        MODEL, case[0], REQUEST, policy=case[1], chip_watts=300.0, chip_hour_cost=2.0, top=1
    )
    (row,) = found.rows
    assert (found.as_dict()["chip_watts"], found.as_dict()["chip_hour_cost"]) == (300.0, 2.0)
    assert row.tokens_per_s_per_mw == row.tokens_per_s_per_chip / 300 * 1e6
    assert "300 W a chip and 2 for an hour of a chip" in found.table()
    assert float(next(csv.DictReader(io.StringIO(found.to_csv())))["tokens_per_s_per_mw"]) == (
        row.tokens_per_s_per_mw
    )


@pytest.mark.slow
def test_ctrl_c_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    done, whole = [], module.answer

    def interrupted(task: Any) -> str:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return whole(task)

    monkeypatch.setattr(module, "answer", interrupted)
    with pytest.raises(SweepInterrupted) as stopped:
        sweep(MODEL, SYSTEMS, REQUEST, policies=POLICIES, batches=BATCHES)
    found = stopped.value.sweep
    assert len(found.left) == len(CASES) - 2
    kept = [one for one in _rows(_swept()) if one[0] in CASES[:2]]
    assert _rows(found) == kept
    assert "PARTIAL: 6 of 8 cases were not compared: groq-2, int8, batch 1; " in found.table()
    assert len(json.loads(found.to_json())["left"]) == 6


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"systems": []}, LpuError, "systems is empty; at least one is needed"),
        ({"systems": None}, LpuError, "system is None; it must be a name, a path, or a system"),
        ({"systems": ["groq-mode"]}, UnknownNameError, "nearest: groq-node"),
        ({"systems": ["groq-1", "groq-1"]}, LpuError, "systems are groq-1, groq-1; each may"),
        ({"policies": ("fp16", "fp16")}, LpuError, "policies are fp16, fp16; each may be"),
        ({"policies": "fp9"}, UnknownNameError, "unknown precision policy 'fp9'"),
        ({"policies": ()}, LpuError, "policies is empty"),
        ({"policies": "float32"}, LpuError, "float32 is for checking only"),
        ({"batches": []}, LpuError, "batches is empty"),
        ({"batches": (1, 0)}, LpuError, "batch is 0; it must be at least 1"),
        ({"batches": "8"}, LpuError, "batch is '8'; it must be a whole number"),
        ({"batches": (1, True)}, LpuError, "batch is True; it must be a whole number"),
        ({"request": Request(batch=2)}, LpuError, "takes batches= instead"),
        ({"request": 4096}, LpuError, "request is 4096; it must be a Request"),
        ({"request": Request(context=8193)}, LpuError, "has 8192 positions at most"),
        ({"objective": "speed"}, UnknownNameError, "unknown objective 'speed'"),
        ({"objective": "latency,energy"}, UnknownNameError, "unknown objective 'latency,energy'"),
        ({"invariant": "most"}, UnknownNameError, "unknown invariant 'most'"),
        ({"top": 0}, LpuError, "top is 0; it must be a whole number of at least 1"),
        ({"per": 1.5}, LpuError, "per is 1.5; it must be a whole number of at least 1"),
        ({"prompt": 3}, LpuError, "prompt is 3; it must be a whole number from 1"),
        ({"min_rate": -1}, LpuError, "min_rate is -1; it must be a number above 0"),
        ({"chip_watts": 0}, LpuError, "chip_watts is 0; it must be a number above 0"),
        ({"chip_hour_cost": -2.5}, LpuError, "chip_hour_cost is -2.5; it must be a number above 0"),
        ({"chip_hour_cost": math.nan}, LpuError, "chip_hour_cost is nan; it must be a number"),
        ({"chip_watts": {"groq-9": 3}}, LpuError, "chip_watts was given for 'groq-9'; systems are"),
        ({"chip_watts": {"groq-1": "3"}}, LpuError, "chip_watts is '3'; it must be a number"),
        ({"draft_model": "smollm2-135m"}, LpuError, "was given without draft tokens"),
        ({"executor": "processes"}, LpuError, "executor is 'processes'; it must be a concurrent"),
        ({"progress": 3}, LpuError, "sweep: progress is 3; it must be a function"),
        ({"shard": (1, 2)}, LpuError, "shard was given without shards"),
        ({"shard": (3, 2), "shards": "a"}, LpuError, r"shard is \(3, 2\); it must be \(i, n\)"),
        ({"shard": 1}, LpuError, r"shard is 1; it must be \(i, n\)"),
        ({"shards": 7}, LpuError, "shards is 7; it must be the path of a folder"),
        ({"min_chips": "no"}, LpuError, "min_chips is 'no'; it must be True or False"),
    ],
)  # fmt: skip
def test_bad_input(
    given: dict[str, Any],
    error: type[Exception],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def work(*_: Any) -> str:
        raise AssertionError("the work was begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such hook
    monkeypatch.setattr(module, "answer", work)
    with pytest.raises(error, match=sentence):
        sweep(MODEL, **{"systems": "groq-1", "request": REQUEST} | given)


def test_two_systems_of_one_name_are_refused() -> None:
    other = replace(system("groq-2"), name="groq-1")
    with pytest.raises(LpuError, match="systems are groq-1, groq-1; each may be given once"):
        sweep(MODEL, ("groq-1", other), REQUEST)
