"""The command line's contract: exit codes, one sentence on standard error, JSON alone on `-`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY

from sharding.cli.main import main as lpu

REPOSITORY = Path(__file__).parents[3]


@dataclass
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `lpu` in this process, with its arguments where a shell would put them."""

    def main(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["lpu", *arguments])
        code: Any = 0
        try:
            lpu()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return Result(code or 0, out, err)

    return main


# A short context has few sizes of prefill chunks to try.
SMALL = ("compare", "smollm2-135m", "--system", "groq-node", "--context", "2")
LLAMA_HF = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
PLAN = """
stages = 1
group_chips = 8
[attention]
replica = 8
[mlp]
tensor = 8
"""


def _is_one_sentence(result: Result) -> None:
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("lpu: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_compare_prints_a_table(run: Run) -> None:
    result = run(*SMALL, "--top", "3")
    assert result.code == 0
    assert result.err == ""
    assert "tok/s user" in result.out
    assert "…" not in result.out


def test_json_to_standard_output_is_alone(run: Run) -> None:
    result = run(*SMALL, "--top", "2", "--json", "-")
    assert result.code == 0
    assert len(json.loads(result.out)["rows"]) == 2


@pytest.mark.slow
def test_json_to_a_file_beside_the_text(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    result = run(*SMALL, "--json", str(path))
    assert result.code == 0
    assert json.loads(path.read_text())["searched"]["fitting"] > 0
    assert "tok/s user" in result.out
    assert os.listdir(tmp_path) == ["out.json"]


@pytest.mark.parametrize("where", ["none/out.json", "."])
def test_an_unwritable_path_leaves_nothing(run: Run, tmp_path: Path, where: str) -> None:
    result = run(*SMALL, "--json", str(tmp_path / where))
    _is_one_sentence(result)
    assert "cannot be written" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_at_the_end_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = run(*SMALL, "--json", str(tmp_path / "out.json"))
    _is_one_sentence(result)
    assert "No space left on device" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_written_to_and_not_replaced(run: Run, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(*SMALL, "--top", "1", "--json", str(pipe)).code == 0
        assert json.loads(os.read(reader, 10**6))["objective"] == "latency"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("compare", "llama-2-70c", "--system", "groq-node"), "nearest: llama-2-70b"),
        (("compare", "smollm2-135m", "--system", "groq-mode"), "nearest: groq-node"),
        ((*SMALL, "--batch", "0"), "batch is 0; it must be at least 1"),
        ((*SMALL, "--batch", "-3"), "batch is -3; it must be at least 1"),
        ((*SMALL[:-1], "0"), "context is 0; it must be at least 1"),
        ((*SMALL[:-1], "8193"), "context is 8193; smollm2-135m has 8192 positions at most"),
        ((*SMALL, "--weights-format", "fp17"), "unknown precision policy 'fp17'; nearest: fp16"),
        ((*SMALL, "--mla", "expanded"), "smollm2-135m has no latent attention"),
        ((*SMALL, "--weights-format", "fp8"), "does not divide the head width 64"),
        (("compare", "none.json", "--system", "groq-node"), "none.json: cannot be read"),
        (("compare", "a.safetensors", "--system", "groq-node"), "a.safetensors: holds weights; a"),
        (("compare", "tests", "--system", "groq-node"), "tests: this folder has no config.json; a"),
        (("check", "tests"), "tests: this folder has neither a config.json nor weights; a model"),
        (("compare", "smollm2-135m", "--system", "none.toml"), "none.toml"),
    ],
)
def test_bad_input(run: Run, changed: Sequence[str], sentence: str) -> None:
    result = run(*changed)
    _is_one_sentence(result)
    assert sentence in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "LONG"),
        ("check", "smollm2-135m", "--text", "LONG"),
        ("check", "smollm2-135m", "--weights", "LONG"),
        ("check", "smollm2-135m", "--plan", "LONG"),
        (*SMALL, "--top", "1", "--json", "LONG"),
        (*SMALL, "--top", "1", "--json", f"{__file__}/inside"),
    ],
    ids=["model", "text", "weights", "plan", "json", "inside a file"],
)
def test_paths_that_the_system_refuses(run: Run, arguments: Sequence[str]) -> None:
    """Names have 255 bytes at most; a file has nothing inside."""
    result = run(*(part.replace("LONG", "a" * 300) for part in arguments))
    _is_one_sentence(result)
    assert any(why in result.err for why in ("File name too long", "Not a directory"))


def test_a_name_of_full_length_is_written(run: Run, tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes
    assert run(*SMALL, "--top", "1", "--json", str(path)).code == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_draft_model_has_a_plan_of_its_own(run: Run) -> None:
    drafts = ("--draft-tokens", "1", "--acceptance", "0.5", "--draft-model", "smollm2-135m")
    result = run(*SMALL, *drafts, "--top", "1", "--json", "-")
    assert result.code == 0
    (row,) = json.loads(result.out)["rows"]
    assert row["chips"] + row["draft"]["chips"] <= 8
    for other in ("llama-3.1-8b", "smollm2-135"):
        _is_one_sentence(run(*SMALL, *drafts[:-1], other))
    _is_one_sentence(run(*SMALL, *drafts[-2:]))


def test_an_unknown_objective_lists_the_known(run: Run) -> None:
    result = run(*SMALL, "--objective", "speed")
    assert result.code == 2
    assert result.out == ""
    assert "'latency', 'throughput', 'per-chip'" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object, got list"),
        (json.dumps(LLAMA_HF | {"model_type": "mamba2"}), "must be one of llama, "),
        (json.dumps(LLAMA_HF | {"hidden_size": "64"}), "'hidden_size' must be a whole number"),
        (json.dumps({"model_type": "llama"}), "it is missing"),
        (json.dumps(LLAMA_HF | {"num_key_value_heads": 3}), "n_heads must be a multiple"),
    ],
)
def test_malformed_model_files(run: Run, tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    result = run("compare", str(path), "--system", "groq-node")
    _is_one_sentence(result)
    assert sentence in result.err


def test_a_model_file_is_compared(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_HF))
    result = run("compare", str(path), "--system", "groq-node", "--context", "2")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("chips = = 3", "not valid TOML"), ('topology = "ring"', "must be 'groq' or 'lpx'")],
)
def test_malformed_system_files(run: Run, tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(content)
    result = run("compare", "smollm2-135m", "--system", str(path))
    _is_one_sentence(result)
    assert sentence in result.err


def _plan(run: Run, tmp_path: Path, content: str, model: str = "smollm2-135m") -> Result:
    path = tmp_path / "plan.toml"
    path.write_text(content)
    return run("plan", model, "--system", "groq-node", "--plan", str(path), "--context", "2")


def test_a_plan_in_full(run: Run, tmp_path: Path) -> None:
    result = _plan(run, tmp_path, PLAN)
    assert (result.code, result.err) == (0, "")
    assert "Memory map of 1x8 a:8r f:8t row" in result.out
    assert "spare" in result.out


@pytest.mark.slow
def test_a_plan_that_does_not_fit_is_a_no_with_its_memory_map(run: Run, tmp_path: Path) -> None:
    result = _plan(run, tmp_path, PLAN.replace("replica", "tensor"), "llama-2-70b")
    assert (result.code, result.err) == (1, "")
    assert "Memory map of 1x8 a:8t f:8t row" in result.out
    assert "short of" in result.out


@pytest.mark.slow
def test_no_plan_fits(run: Run) -> None:
    arguments = ("compare", "llama-2-70b", "--system", "groq-node", "--context", "2")
    text, data = run(*arguments), run(*arguments, "--json", "-")
    assert (text.code, data.code) == (1, 1)
    assert "No plan fits." in text.out
    assert json.loads(data.out)["searched"]["fitting"] == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("stages = ", "is malformed"),
        (PLAN.replace("stages = 1", "stages = 0"), "'stages' must be a whole number of at least 1"),
        (PLAN.replace("stages = 1", "stages = 2"), "= 16 chips were asked for; groq-node has 8"),
        (PLAN.replace("stages = 1", "stages = 63"), "63 stages were asked for"),
        (PLAN.replace("replica = 8", "tensor = 8"), "attention: tensor 8 is more ways than the 3"),
        (PLAN.replace("tensor = 8", "tensor = 7"), "but a group has 8; off by 1"),
        (PLAN.replace("tensor = 8", "expert = 8"), "unknown key in"),
        (PLAN + "[moe]\nexpert = 8\n", "has no MoE blocks"),
    ],
)
def test_malformed_and_illegal_plans(run: Run, tmp_path: Path, content: str, sentence: str) -> None:
    result = _plan(run, tmp_path, content)
    _is_one_sentence(result)
    assert sentence in result.err


@pytest.mark.parametrize("command", ["systems", "models"])
def test_lists(run: Run, command: str) -> None:
    assert run(command).code == 0
    data = json.loads(run(command, "--json", "-").out)
    assert {"groq-576", "lpx-9"} & {row["name"] for row in data} or command == "models"
    assert all(row["name"] for row in data)


def test_one_model_says_what_its_file_holds_beside_it(run: Run, tmp_path: Path) -> None:
    found = json.loads(run("models", "kimi-k2.5", "--json", "-").out)
    assert (found["released_format"], found["left_out"]) == ("int4", ["vision_config"])
    assert "Left out: prediction layers (1)." in run("models", "DeepSeek-V3").out
    assert "Left out: nothing." in run("models", "llama-3.1-8b").out
    # A folder of a named model's name is what it holds.
    folder = tmp_path / "kimi-k2.5"
    folder.mkdir()
    fields = json.loads((TINY / "qwen3" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields))
    found = json.loads(run("models", str(folder), "--json", "-").out)
    assert (found["layers"], found["status"], found["left_out"]) == (2, "as given", [])
    (folder / "config.json").write_text(json.dumps(fields | {"n_streams": 4}))
    refused = run("models", str(folder))
    _is_one_sentence(refused)
    assert "key 'n_streams' = 4 is not known" in refused.err


def test_a_format_that_no_policy_holds_has_a_row_and_no_bytes(run: Run, tmp_path: Path) -> None:
    fields = json.loads((TINY / "qwen3" / "config.json").read_text())
    narrow = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"quantization_config": narrow}))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(json.dumps(fields))
    listed = run("models", str(tmp_path))
    assert listed.code == 0
    assert "no policy holds modelopt MIXED_PRECISION" in listed.out
    assert re.search(r"modelopt MIXED_PRECISION +- +as given", listed.out)
    found, plain = (
        json.loads(run("models", str(folder), "--json", "-").out)
        for folder in (tmp_path, tmp_path / "plain")
    )
    assert found["released_bytes"] is None
    assert plain["released_bytes"] > 0
    assert found["parameters"] == plain["parameters"]


def test_the_types_of_model_are_listed(run: Run) -> None:
    rows = json.loads(run("models", "--types", "--json", "-").out)
    assert {"model_type": "olmo3", "class": "Olmo3ForCausalLM"} in rows
    assert {"model_type": "qwen3_vl", "class": None} in rows
    assert len({row["model_type"] for row in rows}) == len(rows)
    text = run("models", "--types").out
    assert all(row["model_type"] in text for row in rows)
    _is_one_sentence(run("models", "llama-3.1-8b", "--types"))


def test_a_mixed_system_is_listed_and_described_and_not_one_machine(run: Run) -> None:
    assert "vr-lpx-N (N racks)" in run("systems").out
    text = run("systems", "vr-lpx-9").out
    for words in ("vr-nvl72: 72 x", "lpx-9: 2304 x", "latency_s = 3 us (1.5 us to 10 us), assumed"):
        assert words in text
    data = json.loads(run("systems", "vr-lpx-9", "--json", "-").out)
    assert data["pools"]["lpus"]["chips"] == 2304
    refused = run("plan", "smollm2-135m", "--system", "vr-lpx-9:prefill-decode")
    _is_one_sentence(refused)
    assert "have plans of their own; give one of them" in refused.err


@pytest.mark.slow
def test_the_command_as_a_process() -> None:
    code = "from sharding.cli.main import main; main()"
    command = [sys.executable, "-c", code, *SMALL, "--batch", "0"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "lpu: batch is 0; it must be at least 1.\n"


@pytest.mark.slow
def test_what_fits_on_no_number_of_chips_is_shown_on_all_of_them(run: Run) -> None:
    found = run("compare", "llama-2-70b", "--system", "groq-2", "--context", "2", "--min-chips")
    assert found.code == 1
    assert "No plan fits." in found.out
    assert "groq-2: 2 x GroqChip1" in found.out
