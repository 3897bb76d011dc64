"""The command line and mixed systems: what is given, and every refusal in one sentence."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lpu_jax.errors import PlanError
from lpu_jax.machine.catalogue import any_system
from lpu_jax.machine.mixed import MixedSystem
from sharding.cli.main import main
from sharding.plan import Plan
from sharding.rank.compare import compare
from sharding.rank.row import row_from_dict
from sharding.rank.sensitivity import sensitivity
from sharding.request import Request
from sharding.verify.chosen_layers import with_numerics

FILE = """
name = "small"
[pool.gpus]
system = "h100x2"
[pool.lpus]
system = "lpx-tray"
"""
TWO_POOLS = "1x1 a:1 + 1x4 f:4t row"


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Two H100 beside sixteen LPUs."""
    path = tmp_path / "small.toml"
    path.write_text(FILE)
    return str(path)


def _run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code: Any = 0
    try:
        main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    return int(code or 0), *capsys.readouterr()


def _compare(system: str, *more: str, top: int = 3) -> list[str]:
    about = ["compare", "smollm2-135m", "--system", system, "--context", "2", "--top", str(top)]
    return [*about, *more]


def _is_one_sentence(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("lpu: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--objective", "energy"), "No energy: the power of NVIDIA Groq 3 LPU (LP30) is not pub"),
        (
            ("--chip-watts", "lpx-1=3"),
            "chip_watts was given for 'lpx-1'; systems are h100x2, small",
        ),
        (
            ("--draft-model", "smollm2-135m", "--draft-tokens", "1", "--acceptance", "0.5"),
            "a draft model was given for small:attention-ffn; it drafts in the split draft-verify",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_a_mixed_system_cannot_tell_is_refused(
    small: str, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    system = f"{small}:attention-ffn"
    assert sentence in _is_one_sentence(_run(_compare(system, *options), capsys))


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", "smollm2-135m", "--plan", TWO_POOLS, "--out", "never.json"),
        ("generate", "--weights", "none", "hello"),
    ],
    ids=["trace", "generate"],
)
@pytest.mark.parametrize("is_file", [True, False])
def test_commands_of_one_machine_name_the_two(
    small: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], is_file: bool
) -> None:
    result = _run([*arguments, "--system", small if is_file else "h100-lpx-1"], capsys)
    assert "where one machine is needed, give one of" in _is_one_sentence(result)
    assert not Path("never.json").exists()


def test_a_curve_of_a_machine_that_drafts_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result = _run(["curve", "smollm2-135m", "--system", "h100-lpx-1:draft-verify"], capsys)
    assert "curve: h100-lpx-1:draft-verify needs a draft model" in _is_one_sentence(result)


@pytest.mark.slow
def test_a_curve_has_both_splits_and_a_picture(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "curve.svg"
    about = ["curve", "smollm2-135m", "--context", "2", "--batches", "1", "--plot", str(picture)]
    code, out, _ = _run([*about, "--system", small, "--json", "-"], capsys)
    assert code == 0
    found = json.loads(out)
    names = ["small:attention-ffn", "small:prefill-decode"]
    assert [machine["name"] for machine in found["systems"]] == names
    assert {point["system"] for point in found["points"]} == set(names)
    assert "small:attention-ffn" in picture.read_text()


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("1x4 a:4r f:4t", "the plan has one pool; on small it must have two"),
        ("3x1 a:1 + 1x4 f:4t", "stages 3 x group 1 = 3 chips were asked for; h100x2 has 2"),
        ("1x4 a:4r + 1x4 f:4t", "stages 1 x group 4 = 4 chips were asked for; h100x2 has 2"),
        ("1x1 a:1 + 3x8 f:8t", "stages 3 x group 8 = 24 chips were asked for; lpx-tray has 16"),
        ("1x1 a:1 + 31x1 f:1", "31 stages were asked for; pool 2 of smollm2-135m has 30 blocks"),
        ("1x1 a:1 + 1x4 f:2t", "mlp: tensor 2 x replica 1 = 2 chips, but a group has 4"),
        ("1x1 a:1 + 1x4 f:4t m:4e", "smollm2-135m has no MoE blocks"),
    ],
)
def test_plans_that_are_not_on_the_two_machines_are_refused(
    small: str, plan: str, sentence: str
) -> None:
    with pytest.raises(PlanError) as error:
        compare("smollm2-135m", any_system(small), Request(context=2), plans=[Plan.parse(plan)])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_values_of_both_machines_stand_beside_the_times(small: str) -> None:
    machine, plan = any_system(small), Plan.parse(TWO_POOLS)
    found = compare("smollm2-135m", machine, Request(context=2), plans=[plan])
    (row,) = with_numerics(found, 1).rows
    assert row.numerics is not None
    assert 30 < row.numerics["sqnr_db"] < 90


@pytest.mark.slow
def test_a_plan_over_both_machines_is_explained_and_drawn(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.svg"
    about = ["plan", "smollm2-135m", "--system", small, "--context", "2", "--plan", TWO_POOLS]
    code, out, err = _run([*about, "--plot", str(picture)], capsys)
    assert (code, err) == (0, "")
    assert "h100x2 0..0" in out
    assert "(network)" in out
    assert "to the LPUs" in picture.read_text()


def test_a_plan_of_two_machines_of_their_own_is_refused(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    about = ["plan", "smollm2-135m", "--system", f"{small}:prefill-decode", "--context", "2"]
    assert "have plans of their own; give one of them" in _is_one_sentence(_run(about, capsys))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (FILE.replace("h100x2", "h100x20"), "h100x20"),
        (FILE.replace("h100x2", "lpx-1"), "MixedSystem.gpus is lpx-1, which is made of LPUs"),
        (FILE.replace("lpx-tray", "vr-lpx-1"), "vr-lpx-1 is a mixed system"),
        (FILE.replace("lpus", "cpus"), "unknown key 'pool.cpus'; allowed: gpus, lpus"),
        (FILE.replace('"small"', "3"), "wrong.toml: key 'name' must be a string, got 3"),
        (FILE.replace("small", "a:draft-verify"), "what it ends with names a split, which is"),
        (FILE + '[link]\nlatency = "-3 us"\n', "latency"),
        (FILE + '[link]\nlane = "100 us"\n', "lane"),
        (FILE + "[link]\nlpu_lanes = 60\n", "lanes"),
        (FILE + "[link]\nspeed = 1\n", "key 'link.speed': unknown link constant"),
        (FILE + "[link\n", "not valid TOML"),
    ],
)
def test_files_with_mistakes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, sentence: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(content)
    assert sentence in _is_one_sentence(_run(_compare(str(path)), capsys))


@pytest.mark.slow
def test_the_smallest_part_of_both_machines_and_figures_of_its_chips(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    watts = ("--chip-watts", "h100x2=700", "--chip-watts", "lpx-tray=500", "--chip-hour-cost", "2")
    for split, power in (("attention-ffn", 1200.0), ("prefill-decode", 500.0)):
        asked = _compare(f"{small}:{split}", "--min-chips", *watts, "--json", "-", top=1)
        code, out, _ = _run(asked, capsys)
        assert code == 0
        data = json.loads(out)
        assert data["system"]["name"] == f"1 of h100x2 and 1 of lpx-tray:{split}"
        assert (data["gpus.chip_watts"], data["lpus.chip_watts"]) == (700.0, 500.0)
        (row,) = data["rows"]
        rate = row["tokens_per_s_per_chip"] * row["chips"]
        assert math.isclose(row["tokens_per_s_per_mw"], rate / power * 1e6, rel_tol=1e-12)
        cost = 2 * row["chips"] / 3600 / rate * 1e6
        assert math.isclose(row["cost_per_million_tokens"], cost, rel_tol=1e-12)


def test_figures_of_one_machine_alone_are_none_of_both(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*_compare(f"{small}:attention-ffn", top=1), "--chip-watts", "h100x2=700")
    code, out, _ = _run(asked, capsys)
    assert code == 0
    assert "tok/s MW" not in out
    assert "given: 700 W a chip of h100x2, for the chips of a plan" in out


@pytest.mark.parametrize("name", ["{small}:afd", "vr-lpx-9:afd", "VR-LPX-9:afd"])
def test_unknown_splits_are_refused_with_those_there_are(
    small: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    result = _run(_compare(name.format(small=small)), capsys)
    assert "unknown split 'afd'; known: attention-ffn, draft-verify, prefill-decode" in (
        _is_one_sentence(result)
    )


def test_drafts_need_a_model_that_makes_them(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _run(_compare(f"{small}:draft-verify"), capsys)
    assert "small:draft-verify needs a draft model, which drafts on its LPUs" in (
        _is_one_sentence(result)
    )


@pytest.mark.parametrize("batch", [64, 256])
def test_a_lone_micro_batch_is_said_to_let_both_machines_wait(small: str, batch: int) -> None:
    machine, plan = any_system(small), Plan.parse(TWO_POOLS)
    found = compare("smollm2-135m", machine, Request(batch=batch, context=8192), plans=[plan])
    (row,) = found.rows
    assert row.fits
    says = "row 1: one micro-batch in flight, so that GPUs and LPUs wait" in found.table()
    assert says is (row.in_flight == 1) is (batch == 256)


# --- what is given --------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """What JSON makes of a value."""
    return json.loads(json.dumps(value))


@pytest.mark.slow
def test_json_csv_and_a_picture_are_written_and_read_back(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"--{kind}": str(tmp_path / f"a.{kind}") for kind in ("json", "csv")}
    files["--plot"] = str(tmp_path / "a.svg")
    options = [part for option in files.items() for part in option]
    system = f"{small}:attention-ffn"
    code, out, err = _run(_compare(system, *options), capsys)
    assert (code, err) == (0, "")
    assert "2 x NVIDIA H100 SXM and 16 x NVIDIA Groq 3 LPU" in out
    found = compare("smollm2-135m", any_system(system), Request(context=2), top=3)
    data = json.loads(Path(files["--json"]).read_text())
    assert data["rows"] == _plain([row.as_dict() for row in found.rows])
    assert tuple(map(row_from_dict, data["rows"])) == found.rows
    assert data["system"]["chips"] == 18
    assert Path(files["--csv"]).read_text() == found.to_csv()
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == len(found.rows) == 3
    assert "<svg" in Path(files["--plot"]).read_text()
    for row in found.rows:
        assert row.plan.ffn is not None
        assert 0 < row.sram_used_fraction <= 1
        assert row.decode_latency_lower_s <= row.decode_latency_s <= row.decode_latency_upper_s
        assert math.isfinite(row.prefill_latency_s)


@pytest.mark.slow
def test_where_nothing_fits_a_plan_on_both_machines_comes_nearest(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    system = f"{small}:attention-ffn"
    arguments = ["compare", "llama-2-70b", "--system", system, "--context", "2", "--json", "-"]
    code, out, err = _run(arguments, capsys)
    assert (code, err) == (1, "")
    data = json.loads(out)
    assert data["rows"]
    for row in map(row_from_dict, data["rows"]):
        assert row.plan.ffn is not None
        assert not row.fits
        assert row.short_bytes > 0


@pytest.mark.slow
def test_samples_of_what_is_assumed_rank_plans_of_both_machines(small: str) -> None:
    """Plans whose fullest chip is a GPU, of more memory than an LPU's, are among them."""
    machine = any_system(small)
    assert isinstance(machine, MixedSystem)
    chip = replace(machine.gpus.chip, memory_bytes=1_500_000_000)  # type: ignore[call-arg]
    machine = replace(machine, gpus=replace(machine.gpus, chip=chip))
    found = compare("smollm2-135m", machine, Request(context=512, batch=64), top=5)
    assert found.evaluation.used_bytes.min() > machine.lpus.chip.memory_bytes
    study = sensitivity(found, 5, 1)
    assert study.eligible >= len(found.rows)
    assert study.contenders >= len(found.rows)
    names = {one.name for one in study.influences}
    assert {"link.latency_s", "gpus.chip.launch_gap_s", "lpus.chip.transit_cycles"} <= names


@pytest.mark.long
def test_a_sweep_over_workers_and_shards_finds_the_same(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [*_compare(small, "--system", "groq-node"), "--batch", "1", "--batch", "2"]
    shards = str(tmp_path / "shards")
    alone, split = (
        _run([*both, *more, "--json", "-"], capsys)
        for more in ((), ("--workers", "2", "--shards", shards))
    )
    assert (alone[0], split[0]) == (0, 0)
    rows = [json.loads(found[1])["rows"] for found in (alone, split)]
    assert rows[0] == rows[1]
    cases = json.loads(alone[1])["cases"]
    asked = {"small:attention-ffn", "small:prefill-decode", "groq-node"}
    assert {case["system"] for case in cases} == asked
