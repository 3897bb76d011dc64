"""Named models equal the published configuration files.

`data/configs` holds them unedited, as shipped in the PyPI package aiconfigurator-core 0.12.0
(NVIDIA, Apache-2.0); llama-2-70b, whose original is gated, is assembled from derived checkpoints.
"""

import dataclasses
from pathlib import Path

import pytest

from lpu_jax.errors import ConfigError, UnknownNameError
from models.hf_config import from_hf
from models.zoo import SOURCES, model, named_models

CONFIGS = Path(__file__).parent / "data" / "configs"
FILES = {name: name for name in named_models() if name != "smollm2-135m"}
FILES["kimi-k2"] = "kimi-k2-instruct"


@pytest.mark.parametrize("name", sorted(FILES))
def test_named_model_equals_its_published_file(name):
    published = from_hf(CONFIGS / f"{FILES[name]}.json")
    assert dataclasses.replace(published, name=name) == model(name)


def test_every_named_model_has_a_source():
    assert SOURCES.keys() == named_models().keys()


def test_a_path_is_read_and_names_the_model():
    path = CONFIGS / "llama-3.1-8b.json"
    assert model(path) == model(str(path)) == model("Llama-3.1-8B")


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown model 'kimi-k3'.*kimi-k2"):
        model("kimi-k3")


def test_a_word_that_looks_like_a_path_is_one():
    with pytest.raises(ConfigError, match=r"nowhere/config\.json: cannot be read"):
        model("nowhere/config.json")
