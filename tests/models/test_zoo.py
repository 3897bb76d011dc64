"""Named models: each has a file, a source and a status, and files are read only when asked for."""

import dataclasses
import json
import subprocess
import sys

import pytest
from released_configs import CONFIGS

from lpu_jax.errors import ConfigError, UnknownNameError
from models.hf_config import from_hf
from models.hub_ids import HUB_IDS, NAMES
from models.zoo import NAMED, known_name, left_out, model, named_models


def test_every_file_has_a_name_and_every_name_a_file():
    assert {path.name for path in CONFIGS.iterdir()} == {entry.file for entry in NAMED.values()}
    assert list(named_models()) == list(NAMED)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_model_is_its_file_but_for_what_is_said(name):
    """Only what `changes` names, and the name, may differ from the file."""
    read = dataclasses.asdict(from_hf(CONFIGS / NAMED[name].file))
    named = dataclasses.asdict(model(name))
    different = {key for key in read if read[key] != named[key]} - {"name"}
    fields = {"max_position_embeddings": "max_position", "eos_token_id": "eos_token_ids"}
    assert named["name"] == name
    assert different == {fields[key] for key in NAMED[name].changes}


def test_what_is_inferred_is_called_assumed():
    assumed = {name for name, entry in NAMED.items() if entry.status == "assumed"}
    assert assumed == {"kimi-k2-thinking", "ling-1t", "ling-3.0-flash"}
    assert all("assumed" in NAMED[name].source for name in assumed)


def test_positions_of_the_two_releases_of_glm_differ():
    assert (model("glm-4.5").max_position, model("glm-4.6").max_position) == (131072, 202752)


def test_files_are_read_when_their_model_is_asked_for():
    """Listing names must not cost the reading of all files: a command needs one of them."""
    script = """
import json, pathlib
opened, read_text = [], pathlib.Path.read_text

def watched(self, *given, **named):
    opened.append(self.name)
    return read_text(self, *given, **named)

pathlib.Path.read_text = watched
from models import zoo
zoo.model("kimi-k2"), zoo.model("Kimi-K2")
print(json.dumps([name for name in opened if name.endswith(".json")]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(done.stdout) == ["kimi-k2-instruct.json"]


def test_a_path_is_read_and_names_the_model():
    path = CONFIGS / "llama-3.1-8b.json"
    assert model(path) == model(str(path)) == model("Llama-3.1-8B")


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown model 'xxx"):  # no file has such a name
        model("x" * 300)
    with pytest.raises(UnknownNameError, match=r"unknown model 'kimi-k4'.*kimi-k2"):
        model("kimi-k4")


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_model_is_found_by_every_id_it_has_on_the_hub(name):
    """Case 6.6: what a user has at hand is the id; in any case, as names are."""
    assert HUB_IDS[name]
    for hub_id in HUB_IDS[name]:
        assert known_name(hub_id) == known_name(hub_id.upper()) == name
        assert model(hub_id) is model(name)
        assert left_out(hub_id) == left_out(name)


def test_an_id_stands_for_one_model():
    ids = [hub_id.lower() for found in HUB_IDS.values() for hub_id in found]
    assert len(ids) == len(set(ids)) == len(NAMES)
    assert HUB_IDS.keys() == NAMED.keys()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("moonshotai/Kimi-K2-Instuct", "moonshotai/Kimi-K2-Instruct"),
        ("deepseek-ai/DeepSeek-V4", "deepseek-ai/DeepSeek-V3"),
        ("deepseek/DeepSeek-V3", "deepseek-ai/DeepSeek-V3"),
        ("openai/gpt-oss-20B-", "openai/gpt-oss-20b"),
        ("QWEN/qwen3-32", "Qwen/Qwen3-32B"),
    ],
)
def test_a_wrong_id_names_the_nearest(given, meant):
    with pytest.raises(UnknownNameError, match=f"unknown model '{given}'; nearest:") as said:
        model(given)
    assert meant in str(said.value)


def test_a_folder_is_read_even_if_it_is_called_as_an_id(tmp_path, monkeypatch):
    folder = tmp_path / "deepseek-ai" / "DeepSeek-V3"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((CONFIGS / "llama-3.1-8b.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert model("deepseek-ai/DeepSeek-V3").family == "llama"
    assert known_name("deepseek-ai/DeepSeek-V3") is None
    with pytest.raises(ConfigError, match=r"some/where: cannot be read"):
        model("some/where")


def test_a_word_that_looks_like_a_path_is_one():
    with pytest.raises(ConfigError, match=r"nowhere/config\.json: cannot be read"):
        model("nowhere/config.json")
