"""A check that was stopped goes on: the same bits, the same report; foreign files are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from placed_blocks import TINY_KIMI

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.verify.emulate import BlockCheck, Run
from sharding.verify.resume import Progress, load_progress, save_progress
from sharding.verify.routing import RoutingCheck
from sharding.verify.whole_model import check_whole

NODE, FLOAT32 = system("groq-node"), POLICIES["float32"]
SOURCE = SyntheticWeights(TINY_KIMI, 3)
PLAN = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=MoeShard())
IDENTITY = {"model": "m", "seed": 1, "tokens": [1, 2], "plan": {"order": ("a", "b")}}


def progress() -> Progress:
    checks = [
        BlockCheck(
            kind="attention", layer=0, sqnr_db=1 / 3, change_sqnr_db=-np.inf, max_abs_err=0.0
        ),
        BlockCheck(
            kind="moe",
            layer=0,
            sqnr_db=np.inf,
            change_sqnr_db=2.5,
            max_abs_err=1e-30,
            routing=RoutingCheck(choices=6, flips=1, margin=0.1),
        ),
    ]
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 5)).astype(np.float16)
    hidden[0, :3] = np.inf, -0.0, 6e-8
    run = Run(
        plan=PLAN,
        hidden=hidden,
        reference=rng.normal(size=(2, 5)).astype(np.float32),
        routes="abc",
        checks=checks,
    )
    return Progress(n_done=2, seconds=0.1 + 0.2, runs=[run])


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path, given = tmp_path / "state", progress()
    save_progress(path, IDENTITY, given)
    found = load_progress(path, IDENTITY, [PLAN])
    assert found is not None
    assert (found.n_done, found.seconds) == (2, given.seconds)
    (before,), (after,) = given.runs, found.runs
    assert after.hidden.dtype == np.float16
    assert after.hidden.tobytes() == before.hidden.tobytes()
    assert after.reference.tobytes() == before.reference.tobytes()
    assert (after.routes, after.checks) == (before.routes, before.checks)
    assert os.listdir(tmp_path) == ["state"]


def test_no_file_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_progress(tmp_path / "state", IDENTITY, [PLAN]) is None


def test_another_run_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_progress(path, IDENTITY, progress())
    for other in ({"seed": 2}, {"tokens": [1]}, {"extra": 1}):
        with pytest.raises(LpuError, match=f"from another run: it differs in {next(iter(other))}"):
            load_progress(path, IDENTITY | other, [PLAN])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Every kind of damage: one sentence, and the file is left as it is."""
    path = tmp_path / "state"
    save_progress(path, IDENTITY, progress())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:-100], whole[70:], bytes(flipped), b"\xff\xfe" * 90, b"text\n{}\n"):
        path.write_bytes(damaged)
        with pytest.raises(LpuError, match="is damaged or was not written by lpu check"):
            load_progress(path, IDENTITY, [PLAN])
        assert path.read_bytes() == damaged


def test_a_path_that_cannot_be_looked_at_is_one_sentence() -> None:
    with pytest.raises(LpuError, match="cannot be read: File name too long"):
        load_progress(Path("a" * 300), IDENTITY, [PLAN])


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LpuError, match="must be a file"):
        load_progress(tmp_path, IDENTITY, [PLAN])


def test_a_place_that_cannot_be_written_is_said_before_any_block_runs(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(LpuError, match="cannot be written"):
        check_whole(
            SOURCE,
            NODE,
            [PLAN],
            policy=FLOAT32,
            token_ids=(1,),
            resume=tmp_path / "absent" / "state",
            progress=lambda *step: seen.append(step[2]),
        )
    assert seen == ["embedding"]


class _Stopped(Exception):
    pass


def stop_before_blocks(done: int, n_steps: int, what: str) -> None:
    """Stop with the embedding done: the least state there is."""
    if what != "embedding":
        raise _Stopped


def test_whatever_changes_the_bits_makes_it_another_run(tmp_path: Path) -> None:
    """Refused before anything is run; the file then still serves the run that wrote it."""
    path = tmp_path / "state"
    arguments = {
        "source": SOURCE,
        "system": NODE,
        "plans": [PLAN],
        "policy": FLOAT32,
        "token_ids": (7, 120),
        "weights_name": "synthetic, seed 3",
        "resume": path,
        "progress": stop_before_blocks,
    }
    with pytest.raises(_Stopped):
        check_whole(**arguments)
    written = path.read_bytes()
    others = [
        ("model", {"source": SyntheticWeights(replace(TINY_KIMI, norm_eps=1e-3), 3)}),
        ("system", {"system": system("lpx-9")}),
        ("plans", {"plans": [replace(PLAN, stages=2)]}),
        ("policy, fidelity", {"policy": POLICIES["fp16"]}),
        ("policy", {"policy": replace(POLICIES["fp16"], fidelity="fast")}),
        ("tokens", {"token_ids": (7, 121)}),
        ("tokens", {"token_ids": (120, 7)}),
        ("layers", {"layers": (1,)}),
        ("weights", {"weights_name": "synthetic, seed 4"}),
        ("routing", {"routing": "free"}),
    ]
    for differing, other in others:
        with pytest.raises(LpuError, match=rf"is from another run: it differs in {differing}\.$"):
            check_whole(**(arguments | other))
    assert path.read_bytes() == written
    with pytest.raises(_Stopped):
        check_whole(**arguments)


@pytest.mark.parametrize("n_done", [0, 1, 3, 4])
def test_a_stopped_run_does_every_block_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_done: int
) -> None:
    """Blocks that do nothing: only which of them are run is asked."""
    ran: list[tuple[str, int]] = []

    def run_steps(steps, runs, *, starting, finished):
        for step in steps:
            starting(step)
            ran.append((step.kind, step.layer))
            finished(step)

    def stop(done: int, n_steps: int, what: str) -> None:
        if (done == n_done and what != "embedding") or what == "head":
            raise _Stopped

    monkeypatch.setattr("sharding.verify.whole_model.run_steps", run_steps)
    all_blocks = [("attention", 0), ("dense", 0), ("attention", 1), ("moe", 1)]
    for progress, expected in ((stop, all_blocks[:n_done]), (lambda *_: None, all_blocks)):
        with monkeypatch.context() as patched:
            patched.setattr(
                "sharding.verify.whole_model.run_head",
                lambda *_, **__: (_ for _ in ()).throw(_Stopped),
            )
            with pytest.raises(_Stopped):
                check_whole(
                    SOURCE,
                    NODE,
                    [PLAN],
                    policy=FLOAT32,
                    token_ids=(7,),
                    resume=tmp_path / "state",
                    progress=progress,
                )
        assert ran == expected


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [0, 1, 3, 4])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    """Stopped before a block, or before the head; weights are asked for again only where needed."""
    path, arguments = tmp_path / "state", {"token_ids": (7, 120), "weights_name": "synthetic"}
    (expected,) = check_whole(SOURCE, NODE, [PLAN], policy=FLOAT32, **arguments)

    def stop(done: int, n_steps: int, what: str) -> None:
        if done == stop_at and what != "embedding":
            raise _Stopped

    with pytest.raises(_Stopped):
        check_whole(SOURCE, NODE, [PLAN], policy=FLOAT32, resume=path, progress=stop, **arguments)
    steps = []
    (found,) = check_whole(
        SOURCE,
        NODE,
        [PLAN],
        policy=FLOAT32,
        resume=path,
        progress=lambda *step: steps.append(step[0]),
        **arguments,
    )
    assert steps[0] == stop_at
    same = {"seconds": 0.0, "peak_rss_bytes": 0}
    assert replace(found, **same) == replace(expected, **same)
    assert found.logits.tobytes() == expected.logits.tobytes()
    others = {"tokens": {"token_ids": (7, 121)}, "routing": {"routing": "free"}}
    for name, other in (others | {"layers": {"layers": (1,)}}).items():
        with pytest.raises(LpuError, match=f"it differs in {name}"):
            check_whole(SOURCE, NODE, [PLAN], policy=FLOAT32, resume=path, **(arguments | other))


LLAMA_HF = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_report(tmp_path: Path) -> None:
    """SIGKILL in the middle of 40 layers; whatever it was writing, the file is whole."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_HF))
    plan = "group_chips = 1\n[attention]\nreplica = 1\n[mlp]\nreplica = 1\n"
    (tmp_path / "plan.toml").write_text(plan)
    state = tmp_path / "state"

    def command(report: str, *more: str) -> list[str]:
        return [
            sys.executable,
            "-c",
            "from sharding.cli.main import main; main()",
            *("check", str(tmp_path / "config.json"), "--system", "groq-node", "--layers", "all"),
            *("--plan", str(tmp_path / "plan.toml"), "--weights-format", "float32"),
            *("--json", str(tmp_path / report), *more),
        ]

    def done() -> int:
        if not state.exists():
            return 0
        return int(json.loads(state.read_text().partition("\n")[2])["n_done"])

    started = subprocess.Popen(command("never", "--resume", str(state)), stdout=subprocess.DEVNULL)
    while done() < 5:
        assert started.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert 5 <= done() < 80
    assert not (tmp_path / "never").exists()
    reports = []
    for report, more in (("resumed", ("--resume", str(state))), ("at once", ())):
        subprocess.run(command(report, *more), check=True, stdout=subprocess.DEVNULL)
        found = json.loads((tmp_path / report).read_text())
        for values in (found, *found["results"]):
            assert values.pop("seconds") > 0
            assert values.pop("peak_rss_bytes") > 0
        reports.append(found)
    assert reports[0] == reports[1]
