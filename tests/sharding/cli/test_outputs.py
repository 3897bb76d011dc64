"""Files that commands write: refused before any work, written whole, standard output alone."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lpu_jax.errors import LpuError
from sharding.cli.main import main
from sharding.files import check_writable
from sharding.rank import compare as comparing
from sharding.rank.compare import compare
from sharding.request import Request

SMALL = ("compare", "smollm2-135m", "--system", "groq-node", "--context", "2", "--top", "2")
TOO_LARGE = ("compare", "llama-3.1-8b", "--system", "groq-node", "--context", "64", "--top", "1")


def _run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0), *capsys.readouterr()


@pytest.mark.slow
def test_csv_to_standard_output_is_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run([*SMALL, "--csv", "-"], capsys)
    assert (code, err) == (0, "")
    assert out == compare("smollm2-135m", "groq-node", Request(context=2), top=2).to_csv()


@pytest.mark.slow
def test_all_files_beside_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("old")
    files = {f"--{name}": tmp_path / f"a.{name}" for name in ("csv", "json")}
    files["--plot"] = tmp_path / "a.svg"
    options = [part for option, path in files.items() for part in (option, str(path))]
    code, out, err = _run([*SMALL, *options], capsys)
    assert (code, err) == (0, "")
    assert "tok/s user" in out
    data = json.loads(files["--json"].read_text())
    names = [row["name"] for row in csv.DictReader(io.StringIO(files["--csv"].read_text()))]
    assert names == [row["name"] for row in data["rows"]]
    assert 'id="row-2"' in files["--plot"].read_text()
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "a.json", "a.svg"]


@pytest.mark.slow
def test_json_alone_and_csv_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run([*SMALL, "--json", "-", "--csv", str(tmp_path / "a.csv")], capsys)
    assert code == 0
    assert len(json.loads(out)["rows"]) == 2
    assert (tmp_path / "a.csv").read_text().count("\n") == 3


def test_what_does_not_fit_is_written_and_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    code, out, err = _run([*TOO_LARGE, "--csv", "-", "--plot", str(picture)], capsys)
    assert code == 1
    assert err == f"lpu: {picture} was not drawn: no plan fits.\n"
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["fits"] == "False"
    assert row["reason"].startswith("does not fit")
    assert not picture.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--plot", "a.gif"], "a.gif: a plot must end in .png, .svg or .pdf."),
        (["--plot", "-"], "-: a plot must end in .png, .svg or .pdf."),
        (["--plot", "none/a.svg"], "none/a.svg cannot be written: No such file or directory."),
        (["--csv", "none/a.csv"], "none/a.csv cannot be written: No such file or directory."),
        (["--csv", "here"], "here cannot be written: Is a directory."),
        (["--csv", "old.csv/a"], "old.csv/a cannot be written: Not a directory."),
        (["--json", "a" * 300], f"{'a' * 300} cannot be written: File name too long."),
        (["--json", "-", "--csv", "-"], "--json and --csv both name -; standard output takes one."),
        (["--json", "a.csv", "--csv", "here/../a.csv"], "--json and --csv both name a.csv; they"),
        (["--csv", "a.svg", "--plot", "./a.svg"], "--csv and --plot both name a.svg; they must be"),
        (["--csv", "old.csv", "--plot", "none/a.svg"], "none/a.svg cannot be written"),
    ],
)  # fmt: skip
def test_output_paths_are_checked_before_the_work(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(comparing, "compare", work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "old.csv").write_text("old")
    code, out, err = _run([*SMALL, *options], capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"lpu: {sentence}")
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["here", "old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


@pytest.mark.parametrize(
    "command",
    [("plan", "--plot", "a.svg"), ("trace", "--out", "a.json"), ("curve", "--plot", "a.svg")],
)
def test_other_commands_check_theirs_too(
    command: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, option, file = command
    asked = (name, "smollm2-135m", "--system", "groq-node", "--context", "2")
    path = tmp_path / "none" / file
    code, out, err = _run([*asked, option, str(path)], capsys)
    assert (code, out) == (2, "")
    assert err == f"lpu: {path} cannot be written: No such file or directory.\n"


def test_a_pipe_and_a_device_may_be_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")
    check_writable(Path(os.devnull))
    check_writable(tmp_path / "new")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_place_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may have every permission, so the system's answer is made up."""
    asked = []

    def denied(path: Path, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", denied)
    with pytest.raises(LpuError, match=r"a\.csv cannot be written: Permission denied\."):
        check_writable(tmp_path / "a.csv")
    assert asked == [(tmp_path, os.W_OK)]
