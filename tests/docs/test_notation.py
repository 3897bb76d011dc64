"""What `docs/notation.md` says of plans: its grammar has our words, its examples are one plan."""

import json
import re
from pathlib import Path

import pytest

from models.layers.linear import Split
from sharding.plan import AXES, PARTS, Plan, SlotRule
from sharding.plan_file import plan_of, read_plan

PAGE = (Path(__file__).parents[2] / "docs" / "notation.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Plans\n")[1].split("\n## ")[0]
(NAME,) = re.findall(r"^    (.+)$", SECTION, re.MULTILINE)[:1]
PLAN = Plan.parse(NAME)


def _block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("language", ["toml", "json"])
def test_the_files_are_the_plan_of_the_name(language: str, tmp_path: Path) -> None:
    path = tmp_path / f"plan.{language}"
    path.write_text(_block(language), encoding="utf-8")
    assert read_plan(path) == plan_of(str(path)) == plan_of(NAME) == PLAN
    assert PLAN.name == NAME


def test_the_json_says_everything() -> None:
    assert json.loads(_block("json")) == json.loads(json.dumps(PLAN.as_dict()))


def test_the_ascii_spelling() -> None:
    (ascii_name,) = re.findall(r"In ASCII, .*: `(.+?)`", SECTION)
    assert ascii_name.isascii()
    assert Plan.parse(ascii_name) == PLAN


def test_the_grammar_has_the_words_that_are_read() -> None:
    rules = dict(re.findall(r"^(\w+) += (.*?) ;", _block("ebnf"), re.MULTILINE | re.DOTALL))
    said = {
        rule: re.findall(r'"(.+?)"', re.sub(r"\(\*.*?\*\)", "", text))
        for rule, text in rules.items()
    }
    assert said["letter"] == [part.letter for part in PARTS.values()]
    letters = {axis.letter for axes in AXES.values() for axis in axes}
    assert sorted(said["degree"]) == sorted(letters)
    assert said["split"] == list(Split)
    assert said["rule"] == list(SlotRule)


def test_the_program_runs() -> None:
    exec(compile(_block("python"), "docs/notation.md", "exec"), {})
