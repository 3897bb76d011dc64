"""The curve of rates: its fronts by brute force, its batches, its file and its picture."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from brute_force import EveryPlan
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import config
from legal_plans import legal_plans
from random_scenarios import random_mixed_scenario

from lpu_jax.errors import LpuError, UnknownNameError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.system import System
from models.policy import POLICIES
from models.zoo import model
from sharding.cli.main import main as lpu
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.rank.curve import Curve, curve
from sharding.rank.front import on_front
from sharding.request import Request, decode_request
from sharding.scenario import Scenario
from sharding.search.find import fits_somehow

CONTEXT = 512
ALONE = Request(context=CONTEXT)
DRAFTS = decode_request(context=CONTEXT, draft_tokens=3, acceptance=1.0)
#: A tray of an LPX rack: few plans.
TRAY = replace(system("lpx-rack"), name="lpx-16", n_chips=16)


@cache
def _curve(*systems: str | System, request: Request = ALONE) -> Curve:
    return curve("smollm2-135m", systems, request, batches=(1, 4))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20),
)
def test_a_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    first, second = np.array(points, float).T
    front = on_front(first, second)
    kept = {points[i] for i in np.flatnonzero(front)}
    expected = {
        p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)
    }
    assert kept == expected
    assert front.sum() == len(expected)  # of equal points one


@pytest.mark.slow
def test_the_front_of_all_batches_is_found_by_brute_force() -> None:
    cfg, machine = model("smollm2-135m"), replace(system("groq-8"), n_chips=3, name="three")
    found = []
    for batch in (1, 4):
        request = Request(batch=batch, context=CONTEXT)
        asked = Scenario(cfg, machine, request, policy=POLICIES["fp16"])
        found.append(evaluate(legal_plans(asked), asked))
    made = _curve(machine)
    _check_fronts(made, "three", found)
    assert {point.batch for point in made.points} == {1, 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 8))]
)
def test_a_curve_beside_gpus_is_found_by_brute_force(seed: int) -> None:
    asked = random_mixed_scenario(Random(seed), most_plans=400)
    assert asked.mixed is not None
    asked, found = replace(asked, expert_shares=None), []
    request = replace(asked.request, batch=1)
    made = curve(asked.model, asked.mixed, request, policy=asked.policy, batches=(1, 2))
    name = f"{asked.mixed.name}:attention-ffn"
    assert [machine.name for machine in made.systems] == [
        name,
        f"{asked.mixed.name}:prefill-decode",
    ]
    for batch in (1, 2):
        one = replace(asked, request=replace(request, batch=batch))
        found.append(evaluate(EveryPlan(one).plans, one))
    _check_fronts(made, name, found)


def _check_fronts(made: Curve, name: str, evaluations: Sequence[Evaluation]) -> None:
    """Hold the fronts of a machine up to those of all plans of all batch sizes."""
    rates = [
        (
            float(found.tokens_per_s_per_user[i]),
            float(found.tokens_per_s_total[i]),
            float(found.tokens_per_s_of_copy[i] / found.n_chips[i]),
        )
        for found in evaluations
        for i in np.flatnonzero(found.fits)
    ]
    for per_chip, at in ((False, 1), (True, 2)):
        front = {
            (p[0], p[at])
            for p in rates
            if not any(
                q[0] >= p[0] and q[at] >= p[at] and (q[0], q[at]) != (p[0], p[at]) for q in rates
            )
        }
        points = made.front(name, per_chip=per_chip)
        assert {
            (
                point.tokens_per_s_per_user,
                point.tokens_per_s_per_chip if per_chip else point.tokens_per_s_total,
            )
            for point in points
        } == front
        users = [point.tokens_per_s_per_user for point in points]
        assert users == sorted(users, reverse=True)


@pytest.mark.slow
def test_batches_are_doubled_while_something_fits() -> None:
    (batches,) = curve("smollm2-135m", "groq-8", Request(context=4096)).batches
    assert len(batches) > 1
    assert list(batches) == [1 << i for i in range(len(batches))]
    cfg, policy = model("smollm2-135m"), POLICIES["fp16"]
    for batch, fits in ((batches[-1], True), (2 * batches[-1], False)):
        request = decode_request(batch=batch, context=4096)
        assert fits_somehow(Scenario(cfg, system("groq-8"), request, policy=policy)) == fits


@pytest.mark.slow
def test_drafts_move_every_rate() -> None:
    plain, drafts = _curve("groq-24"), _curve("groq-24", request=DRAFTS)
    best_plain = plain.points[0].tokens_per_s_per_user
    best_drafts = drafts.points[0].tokens_per_s_per_user
    # Four tokens for the time of a slightly longer step.
    assert best_plain < best_drafts < 4 * best_plain
    assert drafts.as_dict()["tokens_per_step"] == 4
    assert "draft model's own time is not counted" in drafts.table()


def _refuse(word: str) -> Any:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.slow
def test_json_and_table_hold_every_point_of_every_system() -> None:
    made = _curve("groq-24", TRAY)
    data = json.loads(json.dumps(made.as_dict()), parse_constant=_refuse)
    assert [found["name"] for found in data["systems"]] == ["groq-24", "lpx-16"]
    assert {point["system"] for point in data["points"]} == {"groq-24", "lpx-16"}
    text = made.table()
    assert "…" not in text
    for point in data["points"]:
        assert point["on_front"] or point["on_front_per_chip"]
        assert point["tokens_per_s_total"] <= (
            point["users_in_flight"] * point["tokens_per_s_per_user"] * (1 + 1e-12)
        )
        assert point["name"] in text
        known = point["system"] == "groq-24"
        assert (point["energy_j_per_token_upper"] is not None) == known
        if known:
            assert 0 < point["energy_j_per_token_lower"] < point["energy_j_per_token_upper"]
    assert "No energy: the power of NVIDIA Groq 3 LPU (LP30) is not public." in text
    assert data["systems"][1]["assumed"]


@pytest.mark.slow
def test_gpus_stand_beside_lpus_and_say_what_they_are(tmp_path: Path) -> None:
    made = _curve("groq-24", "h100x8")
    assert "h100x8: GPU roofline" in made.table()
    points = made.front("h100x8")
    assert points
    assert all(point.energy_j_per_token_lower is None for point in points)
    made.plot(tmp_path / "both.svg")
    assert "H100 SXM, roofline)" in (tmp_path / "both.svg").read_text()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_a_whole_file_and_always_the_same(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        _curve("groq-24", TRAY).plot(path)
    assert first.read_bytes() == second.read_bytes()
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert first.read_bytes().startswith(begins)
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]
    if suffix == "svg":
        text = first.read_text()
        for word in ("tokens/s of one user", "tokens/s per chip", "groq-24", "lpx-16", "assumed"):
            assert word in text


@pytest.mark.parametrize("name", ["curve", "curve.jpeg", "curve.png.txt"])
def test_a_suffix_is_a_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(LpuError, match=r"must end in \.png, \.svg or \.pdf"):
        _curve("groq-24").plot(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_picture_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LpuError, match="cannot be written"):
        _curve("groq-24").plot(tmp_path / "none" / "curve.png")
    (tmp_path / "there.png").mkdir()
    with pytest.raises(LpuError, match="cannot be written"):
        _curve("groq-24").plot(tmp_path / "there.png")
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]


@pytest.mark.parametrize(
    ("systems", "given", "error", "sentence"),
    [
        ([], {}, LpuError, "no system was given"),
        (None, {}, LpuError, "systems is None; it must be a name, a path, a system, or a list"),
        (["groq-24"], {"batches": 3}, LpuError, "batches is 3; it must be a list of batch sizes"),
        (["groq-24", "groq-24"], {}, LpuError, "each may be given once"),
        (["groq-24"], {"batches": []}, LpuError, "no batch size was given"),
        (["groq-24"], {"batches": [1, 0]}, LpuError, "batch is 0; it must be at least 1"),
        (["groq-24"], {"request": Request(batch=2)}, LpuError, "takes batches= instead"),
        (["groq-24"], {"request": 4096}, LpuError, "request is 4096; it must be a Request"),
        (["groq-24"], {"policy": 8}, LpuError, "policy is 8; it must be a name or a Policy"),
        (["groq-mode"], {}, UnknownNameError, "nearest: groq-node"),
    ],
)
def test_bad_input(
    systems: Any,
    given: dict[str, Any],
    error: type[Exception],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such hook
    with pytest.raises(error, match=sentence):
        curve("smollm2-135m", systems, **given)


# --- the command --------------------------------------------------------------------------------

ONE = ("--system", "groq-24", "--context", "512")


def _run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    code: Any = 0
    try:
        lpu(["curve", "smollm2-135m", *arguments])
    except SystemExit as stop:
        code = stop.code
    return code or 0, *capsys.readouterr()


@pytest.mark.slow
def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    code, out, err = _run(
        [*ONE, "--batches", "1,4", "--plot", str(picture), "--json", str(data)],
        capsys,
    )
    assert (code, err) == (0, "")
    assert "tok/s chip" in out
    assert json.loads(data.read_text()) == json.loads(json.dumps(_curve("groq-24").as_dict()))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plot", "curve.gif"], "must end in"),
        (["--batches", "1,x"], "batches is '1,x'; it must be whole numbers"),
        (["--batches", ""], "batches is ''"),
        (["--draft-tokens", "2"], "without acceptance"),
    ],
)
def test_bad_options_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run([*ONE, *arguments], capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_nothing_fits_is_a_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curve.png"
    code, out, _ = _run(
        ["--system", "groq-1", "--context", "8192", "--batches", "64", "--plot", str(picture)],
        capsys,
    )
    assert code == 1
    assert "groq-1: no plan fits at any batch size" in out
    assert not picture.exists()
