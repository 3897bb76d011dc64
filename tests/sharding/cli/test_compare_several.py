"""`lpu compare` of several scenarios: one table, shards, Ctrl-C, and one scenario as ever."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lpu_jax.errors import LpuError
from sharding.cli import several
from sharding.cli.main import main as lpu
from sharding.cli.several import batch_sizes, figure, share_of
from sharding.rank import sweep as sweeping
from sharding.rank.compare import compare
from sharding.rank.sweep import sweep
from sharding.request import Request

REPOSITORY = Path(__file__).parents[3]
PATIENCE_S = 120


@dataclass
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lpu compare` in this process."""

    def main(*arguments: str) -> Result:
        code: Any = 0
        try:
            lpu(["compare", "smollm2-135m", "--context", "2", *arguments])
        except SystemExit as stop:
            code = stop.code
        return Result(code or 0, *capsys.readouterr())

    return main


ONE = ("--system", "groq-1", "--policy", "int8")
FOUR = (*ONE, "--system", "groq-2", "--batch", "1..2")


def _found(**options: Any) -> Any:
    return sweep(
        "smollm2-135m", ("groq-1", "groq-2"), Request(context=2), policies="int8",
        batches=(1, 2), **options,
    )  # fmt: skip


def _is_one_sentence(result: Result, words: str) -> None:
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("lpu: ")
    assert words in result.err


# --- what is printed ----------------------------------------------------------------------------


@pytest.mark.slow
def test_one_scenario_is_a_comparison(run: Run) -> None:
    alone = compare("smollm2-135m", "groq-1", Request(context=2), policy="int8")
    for more in ((), ("--batch", "1"), ("--workers", "3"), ("--batch", "1..1", "--batch", "1")):
        result = run(*ONE, *more)
        assert (result.code, result.out, result.err) == (0, f"{alone.table()}\n", "")


@pytest.mark.slow
def test_several_scenarios_are_one_table(run: Run) -> None:
    found = _found()
    assert run(*FOUR) == Result(0, f"{found.table()}\n", "")
    assert run(*FOUR, "--json", "-").out == f"{found.to_json()}\n"
    assert run(*FOUR, "--csv", "-").out == found.to_csv()


@pytest.mark.slow
def test_options_reach_the_sweep(run: Run, tmp_path: Path) -> None:
    options = (
        *("--objective", "throughput", "--top", "3", "--per", "2", "--min-chips"),
        *("--chip-watts", "groq-1=250", "--chip-watts", "groq-2=300", "--chip-hour-cost", "2.5"),
        *("--min-rate", "10", "--max-first-token", "1", "--prompt", "1"),
        *("--plot", str(tmp_path / "a.svg"), "--json", str(tmp_path / "a.json")),
    )
    found = _found(
        objective="throughput",
        top=3,
        per=2,
        min_chips=True,
        chip_watts={"groq-1": 250.0, "groq-2": 300.0},
        chip_hour_cost=2.5,
        min_rate=10.0,
        max_first_token_s=1.0,
        prompt=1,
    )
    assert len(found.rows) > 1
    assert run(*FOUR, *options).out == f"{found.table()}\n"
    assert (tmp_path / "a.json").read_text() == f"{found.to_json()}\n"
    assert 'id="row-1"' in (tmp_path / "a.svg").read_text()


def test_figures_reach_a_comparison(run: Run) -> None:
    result = run(*ONE, "--chip-watts", "250", "--chip-hour-cost", "groq-1=2", "--csv", "-")
    (row, *_) = csv.DictReader(io.StringIO(result.out))
    rate = float(row["tokens_per_s_per_chip"])
    assert float(row["tokens_per_s_per_mw"]) == pytest.approx(rate / 250e-6, rel=1e-12)
    assert float(row["cost_per_million_tokens"]) == pytest.approx(2e6 / 3600 / rate, rel=1e-12)


def test_a_front_of_one_scenario(run: Run) -> None:
    result = run(*ONE, "--objective", "latency,per-chip", "--json", "-")
    data = json.loads(result.out)
    assert data["objective"] == "latency,per-chip"
    rates = [(row["tokens_per_s_per_user"], row["tokens_per_s_per_chip"]) for row in data["rows"]]
    assert rates == sorted(rates, key=lambda rate: (-rate[0], rate[1]))


def test_nothing_fits_is_a_no(run: Run) -> None:
    result = run("--system", "groq-1", "--batch", "1", "--batch", "64")
    assert (result.code, result.err) == (1, "")
    assert result.out.count("is short of") == 2


@pytest.mark.slow
def test_processes_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        assert run(*FOUR, "--workers", workers, "--json", str(tmp_path / workers)).code == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


# --- shards -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_say_what_is_left_and_the_last_prints(run: Run, tmp_path: Path) -> None:
    shards, data = tmp_path / "shards", tmp_path / "a.json"
    options = (*FOUR, "--shards", str(shards), "--json", str(data))
    first = run(*options, "--shard", "1/2")
    assert (first.code, first.out) == (0, "")
    assert first.err == f"lpu: 2 of 4 cases are in {shards}; 2 are left.\n"
    assert not data.exists()
    found = _found()
    assert run(*options, "--shard", "2/2") == Result(0, f"{found.table()}\n", "")
    assert data.read_text() == f"{found.to_json()}\n"


def test_one_scenario_may_have_shards_too(run: Run, tmp_path: Path) -> None:
    result = run(*ONE, "--shards", str(tmp_path))
    assert result.code == 0
    assert "ranked by latency, the best of each" in result.out
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_the_folder_of_another_sweep(run: Run, tmp_path: Path) -> None:
    assert run(*ONE, "--shards", str(tmp_path)).code == 0
    result = run(*FOUR, "--shards", str(tmp_path))
    _is_one_sentence(result, "are of another sweep, which differs in systems, batches ([1] there")


# --- Ctrl-C -------------------------------------------------------------------------------------

#: Stops itself as Ctrl-C does, at the third case.
_STOPPING = """
import os, signal, sys
from sharding.cli.main import main
from sharding.rank import sweep
whole, done = sweep.answer, []
def answer(task):
    if len(done) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGINT)
    done.append(whole(task))
    return done[-1]
sweep.answer = answer
main(sys.argv[2:])
"""


def _stopped(after: int, arguments: Sequence[str]) -> Result:
    code = [sys.executable, "-c", _STOPPING, str(after), "compare", "smollm2-135m"]
    done = subprocess.run(
        [*code, "--context", "2", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_ctrl_c_prints_what_was_found() -> None:
    result = _stopped(2, FOUR)
    assert result.code == 130
    words = "2 of 4 cases were not compared: groq-2, int8, batch 1; groq-2, int8, batch 2."
    assert result.err == f"lpu: stopped: {words}\n"
    assert f"PARTIAL: {words}" in result.out
    assert "is short of" not in result.out or "groq-1" in result.out
    assert "  1   " in result.out or "\n 1 " in result.out
    data = json.loads(_stopped(2, [*FOUR, "--json", "-"]).out)
    assert len(data["left"]) == 2
    assert [case["system"] for case in data["cases"]] == ["groq-1", "groq-1"]


def test_ctrl_c_of_one_scenario(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sharding.rank.compare.compare", stopped)
    result = run(*ONE)
    assert (result.code, result.out) == (130, "")
    assert result.err == "lpu: stopped before anything was found.\n"


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_all_processes(tmp_path: Path) -> None:
    """The terminal sends it to every process of the group."""
    command = [sys.executable, "-c", "from sharding.cli.main import main; main()", "compare"]
    going = subprocess.Popen(
        [*command, "smollm2-135m", "--context", "2", *FOUR, "--workers", "2",
         "--shards", str(tmp_path), "--batch", "4..4096"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        while not list(tmp_path.glob("*.jsonl")):
            assert going.poll() is None
        os.killpg(going.pid, signal.SIGINT)
        out, err = going.communicate(timeout=PATIENCE_S)
    finally:
        going.kill()
    assert going.returncode == 130
    assert "PARTIAL: " in out
    assert err.startswith("lpu: stopped: ")
    assert err.count("\n") == 1
    # Helpers of the interpreter end when they see that it has.
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and _is_there(going.pid):
        time.sleep(0.1)
    assert not _is_there(going.pid)


def _is_there(group: int) -> bool:
    """Whether a process of a group has not ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "sizes"),
    [
        (["8"], [8]),
        (["8", "1"], [8, 1]),
        (["1..256"], [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (["1..100"], [1, 2, 4, 8, 16, 32, 64]),
        (["3..12", "5"], [3, 6, 12, 5]),
        (["4..4", "4"], [4]),
    ],
)
def test_batch_sizes(texts: list[str], sizes: list[int]) -> None:
    assert batch_sizes(texts) == sizes


@pytest.mark.parametrize("text", ["x", "1..x", "..", "1.5", "", "1...4"])
def test_no_batch_size(text: str) -> None:
    with pytest.raises(LpuError, match=r"a whole number, or a range such as 1\.\.256"):
        batch_sizes([text])


@pytest.mark.parametrize("text", ["4..2", "0..4", "-2..4"])
def test_no_range(text: str) -> None:
    with pytest.raises(LpuError, match="a range goes from at least 1 to no less"):
        batch_sizes([text])


def test_figures_and_shares_as_text() -> None:
    assert figure("chip-watts", None) is None
    assert figure("chip-watts", ["3.5"]) == 3.5
    assert figure("chip-watts", ["a=b.toml=3", "c=4"]) == {"a=b.toml": 3.0, "c": 4.0}
    assert share_of("2/8") == (2, 8)
    assert share_of(None) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--check", "1"), "--check is for the plans of one scenario, without --per, --shards or"),
        (("--sensitivity", "9"), "--shard; scenarios asked for: 4."),
        (("--seed", "7"), "--seed 7 is that of the draws of --sensitivity N; give both"),
        (("--system", "groq-1"), "systems are groq-1, groq-2, groq-1; each may be given once"),
        (("--system", "groq-mode"), "nearest: groq-node"),
        (("--policy", "int8"), "policies are int8, int8; each may be given once"),
        (("--batch", "0"), "batch is 0; it must be at least 1"),
        (("--batch", "x"), "batch is 'x'; it must be a whole number, or a range such as 1..256"),
        (("--chip-watts", "x"), "--chip-watts is 'x'; it must be a number, or SYSTEM=NUMBER"),
        (("--chip-watts", "0"), "chip_watts is 0.0; it must be a number above 0"),
        (("--chip-watts", "groq-3=1"), "chip_watts was given for 'groq-3'; systems are groq-1"),
        (("--chip-watts", "1", "--chip-watts", "2"), "--chip-watts is given twice for all systems"),
        (("--chip-watts", "a=1", "--chip-watts", "2"), "--chip-watts is given twice"),
        (("--chip-hour-cost", "-1"), "chip_hour_cost is -1.0; it must be a number above 0"),
        (("--shard", "1/2"), "shard was given without shards"),
        (("--shard", "2"), "--shard is '2'; it must be I/N, such as 1/8 for the first of 8"),
        (("--shard", "0/2", "--shards", "a"), "shard is (0, 2); it must be (i, n)"),
        (("--shards", "file/a"), "shards file/a: the folder cannot be made: Not a directory"),
        (("--draft-model", "smollm2-135m"), "was given without draft tokens"),
        (("--json", "none/a.json"), "none/a.json cannot be written"),
        (("--shards", ".", "--csv", "a.csv"), "--csv a.csv lies in the folder of --shards, which"),
        (("--chip-watts", "1e-300"), "chip_watts is 1e-300; it must be a number above 0, at least"),
    ],
)  # fmt: skip
def test_bad_options(
    arguments: Sequence[str],
    sentence: str,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def work(*_: Any) -> str:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(sweeping, "answer", work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    _is_one_sentence(run(*FOUR, *arguments), sentence)
    assert os.listdir(tmp_path) == ["file"]


def test_the_number_of_processes_is_at_least_one(run: Run) -> None:
    assert run(*FOUR, "--workers", "0").code == 2


@pytest.mark.slow
def test_progress_is_shared_by_all_cases(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    told: list[tuple[int, int, str]] = []

    def watched(work: Callable[..., Any]) -> Any:
        return work(lambda done, total, what: told.append((done, total, what)))

    monkeypatch.setattr(several, "watched", watched)
    assert run(*FOUR).code == 0
    assert [(done, total) for done, total, _ in told] == [(n, 4) for n in range(5)]
    assert told[-1][2] == "sweep: groq-2, int8, batch 2"
