"""`lpu plan` and `lpu trace` as a user runs them: what is printed, written and refused."""

import json
from pathlib import Path

import pytest

from sharding.cli.main import main

PLAN = """
stages = 1
group_chips = 8
[attention]
replica = 8
[mlp]
tensor = 8
"""
REQUEST = ("smollm2-135m", "--system", "groq-node", "--context", "64")


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return str(path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_a_plan_is_explained(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *REQUEST, "--plan", plan) == 0
    out = capsys.readouterr().out
    for part in ("Memory map of", "Mesh axes", "matmul (gate_up)", "bound by", "one_shot", "node"):
        assert part in out


@pytest.mark.slow
def test_a_plan_is_given_by_name(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("plan", *REQUEST, "--plan", plan) == 0
    from_file = capsys.readouterr().out
    assert run("plan", *REQUEST, "--plan", " 1x8  a:8r f:8t") == 0
    assert capsys.readouterr().out == from_file
    # What could be a name is a file, if there is one.
    monkeypatch.chdir(tmp_path)
    Path("1x8 a:1 f:1").write_text(PLAN)
    assert run("plan", *REQUEST, "--plan", "1x8 a:1 f:1") == 0
    assert capsys.readouterr().out == from_file


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("1x8 a:8r f:8q", "'8q' of 'f:' is not understood; it must be a number and one of t tens"),
        ("1x8 a:8r", "plan '1x8 a:8r': mlp is missing; it must have a part such as f:8t, or f:1"),
        ("1x8 a:8r f:8t rows", "unknown word 'rows'; nearest: row"),
        ("1x8", "plan '1x8': attention is missing"),
        ("1x8 a:8r f:7t", "mlp: tensor 7 x replica 1 = 7 chips, but a group has 8; off by 1."),
        ("1x8 a:8r f:8t m:8e", "smollm2-135m has no MoE blocks; the plan must not have a part"),
        ("2x8 a:8r f:8t", "stages 2 x group 8 = 16 chips were asked for; groq-node has 8."),
        ("1x8.toml", "plan file 1x8.toml cannot be read: No such file or directory."),
        ("a:8r f:8t", "plan file a:8r f:8t cannot be read: No such file or directory."),
    ],
)
@pytest.mark.parametrize("command", ["plan", "check"])
def test_what_is_wrong_with_a_name_is_said_in_a_sentence(
    command: str, name: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    request = REQUEST if command == "plan" else REQUEST[:3]
    assert run(command, *request, "--plan", name) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["plan", "trace", "check", "generate"])
def test_help_says_both_ways_to_give_a_plan(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Name of a plan, such as '1x8 a:2t.4r f:8t row', or a TOML or JSON file" in words


def test_its_json_holds_the_explanation(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *REQUEST, "--plan", plan, "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    latency_s = data["rows"][0]["decode_latency_s"]
    assert data["explanation"]["latency_s"] == latency_s
    assert [block["kind"] for block in data["explanation"]["blocks"]] == [
        "embed", "attention", "dense", "head",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_plan_with_a_draft_model_has_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "half.toml"
    path.write_text(PLAN.replace("8", "4"))
    drafts = ("--draft-tokens", "3", "--acceptance", "0.5", "--draft-model", "smollm2-135m")
    plans = ("--plan", "1x4 a:4r f:4t row", "--draft-plan", str(path))
    both = (*plans, "--json", str(tmp_path / "out.json"))
    assert run("plan", *REQUEST, *drafts, *both) == 0
    out = capsys.readouterr().out
    assert "Memory map of smollm2-135m, 1x4" in out
    assert "The operations below are those of the step that judges the drafts." in out
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["explanation"]["latency_s"] == data["rows"][0]["draft"]["verification_s"]
    assert run("plan", *REQUEST, "--plan", str(path), "--draft-plan", str(path)) == 2
    assert "a draft plan was given without a draft model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plot_is_written_whole_or_not_at_all(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", *REQUEST, "--plan", plan, "--plot", str(tmp_path / "a.svg")) == 0
    assert "</svg>" in (tmp_path / "a.svg").read_text()
    capsys.readouterr()
    for name in ("a.gif", "no/a.png"):
        assert run("plan", *REQUEST, "--plan", plan, "--plot", str(tmp_path / name)) == 2
        refused = capsys.readouterr()
        assert refused.out == ""
        assert refused.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "plan.toml"]


@pytest.mark.slow
def test_a_trace_is_written(plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "token.json"
    assert run("trace", *REQUEST, "--plan", plan, "--out", str(out)) == 0
    assert "ui.perfetto.dev" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["traceEvents"]) > 1000
    assert run("trace", *REQUEST, "--plan", plan, "--out", str(out), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size


def test_a_trace_that_cannot_be_written_is_one_sentence(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("trace", *REQUEST, "--plan", plan, "--out", str(tmp_path / "no" / "a.json")) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "cannot be written" in refused.err
    assert refused.err.count("\n") == 1


def test_a_plan_that_does_not_fit_is_traced_and_a_no(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "token.json"
    arguments = ("llama-2-70b", "--system", "groq-node", "--plan", plan, "--context", "64")
    assert run("trace", *arguments, "--out", str(out)) == 1
    assert "does not fit: short of" in capsys.readouterr().out
    assert out.exists()


@pytest.mark.slow
def test_without_a_plan_the_fastest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", *REQUEST, "--json", "-") == 0
    best = json.loads(capsys.readouterr().out)["rows"][0]
    assert run("plan", *REQUEST, "--json", "-") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in shown["rows"]] == [best["name"]]
    assert shown["explanation"]["latency_s"] == best["decode_latency_s"]
    assert run("trace", *REQUEST, "--out", str(tmp_path / "a.json"), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["plan"] == best["plan"]


@pytest.mark.slow
def test_a_step_with_drafts_is_explained_and_traced(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*REQUEST, "--plan", plan, "--draft-tokens", "3", "--acceptance", "0.5")
    assert run("plan", *asked, "--json", "-") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["explanation"]["request"]["tokens"] == 4
    assert shown["explanation"]["latency_s"] == shown["rows"][0]["decode_latency_s"]
    assert run("trace", *asked, "--out", str(tmp_path / "a.json"), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["latency_s"] == shown["explanation"]["latency_s"]


def test_a_traced_roofline_is_called_one(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("smollm2-135m", "--system", "h100x8", "--context", "64", "--plan", plan)
    assert run("trace", *asked, "--out", str(tmp_path / "a.json")) == 0
    assert "GPU roofline" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [("plan", "--plot", "a.svg"), ("trace", "--out", "a.json"), ("curve", "--plot", "a.svg")],
)
def test_two_results_are_not_written_into_one_file(
    command: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, option, file = command
    path = tmp_path / file
    assert run(name, *REQUEST, option, str(path), "--json", str(path)) == 2
    assert f"--json and {option} both name {path}" in capsys.readouterr().err
    assert not path.exists()
