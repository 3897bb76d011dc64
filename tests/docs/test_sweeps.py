"""What `docs/sweeps.md` says is run: its programs, and its array of jobs as a shell expands it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from sharding.cli.main import main as lpu
from sharding.rank.sweep import sweep
from sharding.request import Request

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
(SCRIPT,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
#: What the script asks for, and what this test asks for in its place.
SMALLER = {
    "kimi-k2": "smollm2-135m",
    "lpx-9": "groq-1",
    "lpx-12": "groq-2",
    "int4": "int8",
    "fp8": "fp16",
    "1..256": "1..2",
}
N_CASES = 8


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program: str) -> None:
    exec(compile(program, "docs/sweeps.md", "exec"), {"__name__": "__main__"})


def _arguments(task: int, folder: Path) -> list[str]:
    """What the script calls `lpu` with, in a task of the array."""
    shell = folder / "bin"
    shell.mkdir(exist_ok=True)
    (shell / "lpu").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (shell / "lpu").chmod(0o755)
    (folder / "job.sh").write_text(SCRIPT)
    said = subprocess.run(
        ["bash", str(folder / "job.sh")],
        env=os.environ
        | {
            "PATH": f"{shell}:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_SUBMIT_DIR": str(folder),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [*(SMALLER.get(word, word) for word in said.splitlines()), "--context", "64"]


def _job(task: int, folder: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        lpu(_arguments(task, folder))
    assert not stopped.value.code


def _answers(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (folder / "shards").glob("*.jsonl")}


@pytest.mark.slow
def test_an_array_of_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (count,) = map(int, re.findall(r"^#SBATCH --array=1-(\d+)$", SCRIPT, re.MULTILINE))
    assert f'"$SLURM_ARRAY_TASK_ID/{count}"' in SCRIPT
    result = tmp_path / "sweep.json"
    for done, task in enumerate((3, 1, 8, 2, 7, 4, 6), 1):
        _job(task, tmp_path)
        assert len(_answers(tmp_path)) == done
        assert f"{N_CASES - done} are left" in capsys.readouterr().err
        assert not result.exists()
    # The third job is submitted again: its answer is there.
    kept = _answers(tmp_path)
    _job(3, tmp_path)
    assert _answers(tmp_path) == kept
    _job(5, tmp_path)
    assert kept.items() < _answers(tmp_path).items()
    found = sweep(
        "smollm2-135m",
        ("groq-1", "groq-2"),
        Request(context=64),
        policies=("int8", "fp16"),
        batches=(1, 2),
    )
    assert result.read_text() == f"{found.to_json()}\n"
    # One was lost, and the command without --shard computes it.
    lost = next((tmp_path / "shards").glob("*.jsonl"))
    lost.unlink()
    result.unlink()
    arguments = _arguments(1, tmp_path)
    at = arguments.index("--shard")
    with pytest.raises(SystemExit) as stopped:
        lpu([*arguments[:at], *arguments[at + 2 :]])
    assert not stopped.value.code
    assert lost.exists()
    assert result.read_text() == f"{found.to_json()}\n"
