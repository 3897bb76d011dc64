"""Folders of answers: whole files, one sweep each, and runs that go on where others ended."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.zoo import model
from sharding.rank import sweep as module
from sharding.rank.shards import Shards
from sharding.rank.sweep import sweep
from sharding.rank.sweep_result import Sweep
from sharding.rank.task import Task, answer
from sharding.request import Request
from sharding.scenario import scenario

REPOSITORY = Path(__file__).parents[3]
IDENTITY = {"model": "a 1", "batches": [1, 8]}
TASKS = ("a" * 64, "b" * 64)
MODEL, REQUEST, SYSTEMS, BATCHES = "smollm2-135m", Request(context=2), ("groq-2", "groq-1"), (1, 2)
N_CASES = len(SYSTEMS) * len(BATCHES)


def _sweep(folder: Path | None, **options: Any) -> Sweep:
    return sweep(
        MODEL, SYSTEMS, REQUEST, policies="int8", batches=BATCHES, shards=folder, **options
    )


@pytest.fixture(scope="module")
def whole() -> str:
    """The sweep as JSON, without shards."""
    return _sweep(None).to_json()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The tasks that are computed."""
    done: list[Task] = []

    def counting(task: Task) -> str:
        done.append(task)
        return answer(task)

    monkeypatch.setattr(module, "answer", counting)
    return done


# --- the folder ---------------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text()), min_size=1))
def test_answers_come_back_letter_by_letter(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    Shards(tmp_path, IDENTITY, TASKS).write(TASKS[0], text)
    assert Shards(tmp_path, IDENTITY, TASKS).read() == {TASKS[0]: text}


def test_a_folder_is_made_and_says_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "a sweep"
    Shards(folder, IDENTITY, TASKS)
    said = json.loads((folder / "sweep.json").read_text())
    assert {name: said[name] for name in IDENTITY} == IDENTITY
    assert sorted(os.listdir(folder)) == ["sweep.json"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _digit(path: Path) -> None:
    path.write_text(path.read_text().replace("1234", "1235"))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def _other_task(path: Path) -> None:
    path.rename(path.with_name(f"{TASKS[1]}.jsonl"))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_cut, "{0}.jsonl is damaged; remove it, and its task is done again."),
        (_digit, "{0}.jsonl is damaged; remove it, and its task is done again."),
        (_empty, "{0}.jsonl: it is empty."),
        (_binary, "{0}.jsonl: it must be UTF-8; byte 0 is not part of it."),
        (_other_task, "{1}.jsonl is damaged; remove it, and its task is done again."),
        (_folder, "{0}.jsonl: it must be a regular file."),
    ],
)
def test_a_damaged_answer_is_refused(
    damage: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    Shards(tmp_path, IDENTITY, TASKS).write(TASKS[0], '{"rate": 1234.5}\n')
    damage(tmp_path / f"{TASKS[0]}.jsonl")
    with pytest.raises(LpuError) as refused:
        Shards(tmp_path, IDENTITY, TASKS).read()
    assert str(refused.value) == f"{tmp_path}/{sentence.format(*TASKS)}"


@pytest.mark.parametrize("name", ["notes.txt", f"{'c' * 64}.jsonl", "old"])
def test_a_foreign_file_is_refused(name: str, tmp_path: Path) -> None:
    Shards(tmp_path, IDENTITY, TASKS)
    (tmp_path / name).write_text("mine")
    with pytest.raises(LpuError) as refused:
        Shards(tmp_path, IDENTITY, TASKS)
    assert str(refused.value) == (
        f"shards {tmp_path}: {name} is no part of this sweep; give a folder of its own."
    )
    (tmp_path / name).rename(tmp_path / ".nfs0001")  # files of the system are nobody's
    Shards(tmp_path, IDENTITY, TASKS)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(LpuError, match=r"thesis\.tex is no part of this sweep"):
        Shards(tmp_path, IDENTITY, TASKS)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"batches": [1]}, "batches ([1, 8] there, [1] asked for)"),
        ({"batches": [1], "model": "b 2"}, 'model ("a 1" there, "b 2" asked for), batches ([1, 8]'),
        ({"batches": list(range(60))}, "batches; give another folder"),
        ({"limit": 3}, "limit (null there, 3 asked for)"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(
    other: dict[str, Any], told: str, tmp_path: Path
) -> None:
    Shards(tmp_path, IDENTITY, TASKS).write(TASKS[0], "{}\n")
    with pytest.raises(LpuError) as refused:
        Shards(tmp_path, IDENTITY | other, (TASKS[1],))
    sentence = str(refused.value)
    assert sentence.startswith(f"shards {tmp_path} are of another sweep, which differs in {told}")
    assert sentence.endswith("; give another folder.")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": "lpu sweep, shards 0"}', "\xff"])
def test_a_damaged_identity_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        LpuError, match=r"sweep\.json( is damaged|: it is empty|: it must be UTF-8)"
    ):
        Shards(tmp_path, IDENTITY, TASKS)


def test_places_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, why in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "inside", "Not a directory"),
        (tmp_path / ("a" * 300), "File name too long"),
    ):
        with pytest.raises(LpuError, match=f"the folder cannot be made: {why}"):
            Shards(folder, IDENTITY, TASKS)
    with pytest.raises(LpuError, match="cannot be made: embedded null byte"):
        Shards(f"{tmp_path}/a\0b", IDENTITY, TASKS)


# --- what a hash rests on -----------------------------------------------------------------------


def test_a_task_is_named_by_all_that_its_answer_rests_on() -> None:
    task = _task()
    asked, wanted = task.scenario, task.wanted
    others = [
        replace(task, min_chips=True),
        replace(task, wanted=replace(wanted, objective="throughput")),
        replace(task, wanted=replace(wanted, top=2)),
        replace(task, wanted=replace(wanted, invariant="certified")),
        replace(task, wanted=replace(wanted, limits=replace(wanted.limits, min_rate=1.0))),
        replace(task, wanted=replace(wanted, limits=replace(wanted.limits, prompt=3))),
        replace(task, scenario=replace(asked, model=replace(asked.model, norm_eps=1e-6))),
        replace(task, scenario=replace(asked, request=replace(asked.request, batch=2))),
        replace(task, scenario=replace(asked, policy=POLICIES["int8"])),
        replace(task, scenario=replace(asked, system=replace(asked.system, n_chips=1))),
        replace(task, scenario=replace(asked, system=replace(asked.system, chip=_other_chip()))),
        replace(task, scenario=replace(asked, system=replace(asked.system, host_overhead_s=1e-6))),
    ]
    digests = {one.digest for one in (task, *others)}
    assert len(digests) == len(others) + 1
    assert _task().digest == task.digest


def _other_chip() -> Any:
    chip = system("groq-2").chip
    return replace(chip, clock_hz=chip.clock_hz + 1)


def _task() -> Task:
    asked = scenario(replace(model(MODEL), n_layers=2), "groq-2", REQUEST)
    limits = module.Limits(min_rate=None, max_first_token_s=None, prompt=2)
    wanted = module.Wanted(objective="latency", top=1, invariant="off", limits=limits)
    return Task(scenario=asked, wanted=wanted, min_chips=False)


@pytest.mark.slow
def test_a_task_has_one_name_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _NAMING],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {_task().digest}


_NAMING = """
from dataclasses import replace
from models.zoo import model
from sharding.rank.limits import Limits
from sharding.rank.task import Task
from sharding.rank.wanted import Wanted
from sharding.request import Request
from sharding.scenario import scenario
asked = scenario(replace(model("smollm2-135m"), n_layers=2), "groq-2", Request(context=2))
limits = Limits(min_rate=None, max_first_token_s=None, prompt=2)
wanted = Wanted(objective="latency", top=1, invariant="off", limits=limits)
print(Task(scenario=asked, wanted=wanted, min_chips=False).digest)
"""


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_answer_is_computed_twice(tmp_path: Path, counted: list[Task], whole: str) -> None:
    assert _sweep(tmp_path).to_json() == whole
    assert len(counted) == N_CASES
    files = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(files) == N_CASES + 1
    (lost, *_) = sorted(name for name in files if name.endswith(".jsonl"))
    (tmp_path / lost).unlink()
    assert _sweep(tmp_path).to_json() == whole
    assert [task.digest for task in counted[N_CASES:]] == [lost.removesuffix(".jsonl")]
    again = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert {**again, lost: files[lost]} == files


@pytest.mark.slow
def test_parts_of_a_sweep_meet_in_their_folder(
    tmp_path: Path, counted: list[Task], whole: str
) -> None:
    left = [len(_sweep(tmp_path, shard=(part, 3)).left) for part in (2, 3, 1)]
    # Of four cases the first run has the second, the second the third, the last both others.
    assert left == [3, 2, 0]
    assert len({task.digest for task in counted}) == len(counted) == N_CASES
    assert _sweep(tmp_path, shard=(3, 3)).to_json() == whole
    assert len(counted) == N_CASES


@pytest.mark.slow
def test_figures_are_no_part_of_what_is_searched(tmp_path: Path, counted: list[Task]) -> None:
    _sweep(tmp_path)
    found = _sweep(tmp_path, chip_watts=300.0, top=1)
    assert found.rows[0].row.tokens_per_s_per_mw is not None
    assert len(counted) == N_CASES


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"objective": "chips"}, 'objective ("latency" there, "chips" asked for)'),
        ({"min_rate": 10.0}, "min_rate (null there, 10.0 asked for)"),
        ({"per": 2}, "rows (1 there, 2 asked for)"),
    ],
)
def test_another_question_is_another_sweep(
    option: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "answer", lambda task: '{"searched": null}\n')
    monkeypatch.setattr(module, "read_answer", lambda text: None)
    _sweep(tmp_path)
    with pytest.raises(LpuError) as refused:
        _sweep(tmp_path, **option)
    assert f"which differs in {told}; give another folder." in str(refused.value)


#: Says on standard output when an answer is there, and takes its time with the next.
_SLOWLY = """
import sys, time
from sharding.rank import sweep as module
from sharding.request import Request
whole = module.answer
def slowly(task):
    text = whole(task)
    print("done", flush=True)
    time.sleep(0.2)
    return text
module.answer = slowly
module.sweep("smollm2-135m", ("groq-2", "groq-1"), Request(context=2), policies="int8",
             batches=(1, 2), shards=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, counted: list[Task], whole: str) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", _SLOWLY, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    for _ in range(3):  # the third answer is not in its file yet
        assert killed.stdout.readline() == "done\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    kept = {path.name: path.stat().st_ino for path in tmp_path.glob("*.jsonl")}
    assert len(kept) == 2
    assert _sweep(tmp_path).to_json() == whole
    assert len(counted) == N_CASES - 2
    assert kept.keys().isdisjoint(f"{task.digest}.jsonl" for task in counted)
    assert kept.items() <= {path.name: path.stat().st_ino for path in tmp_path.iterdir()}.items()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shards = Shards(tmp_path, IDENTITY, TASKS)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LpuError, match=r"\.jsonl cannot be written: No space left on device\."):
        shards.write(TASKS[0], "{}\n")
    assert os.listdir(tmp_path) == ["sweep.json"]
