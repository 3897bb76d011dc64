"""What leaves a comparison: CSV and DataFrames hold every value, HTML what its rows say."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import pytest
from jaxtyping import config

from lpu_jax.errors import LpuError
from models.zoo import model
from sharding.rank.compare import Comparison, compare
from sharding.request import Request
from sharding.verify.chosen_layers import with_numerics

#: Of numbers printed with four digits.
PRINTED = 6e-4
#: pandas reads decimal numbers to within a unit in the last place.
PANDAS = 1e-15
NUMERICS = {
    "sqnr_db": 61.5, "max_abs_err": None, "fidelity": "faithful", "rounding_moved": ["a", "b, c"],
    "blocks": [{"kind": "attention", "sqnr_db": 60.0}, {"kind": "dense", "sqnr_db": None}],
}  # fmt: skip


@cache
def _small() -> Comparison:
    """Ten plans; one of them was run, so that some values have parts in one row only."""
    found = compare("smollm2-135m", "groq-node", Request(batch=4, context=64))
    (first, second, *others) = found.rows
    return replace(found, rows=(first, replace(second, numerics=NUMERICS), *others))


@cache
def _too_large() -> Comparison:
    return compare("llama-3.1-8b", "groq-node", Request(context=64), top=5)


BOTH = pytest.mark.parametrize("found", [_small, _too_large])


def _named(name: str) -> Comparison:
    found = _small()
    cfg = replace(found.scenario.model, name=name)
    return replace(found, scenario=replace(found.scenario, model=cfg))


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


def _is(cell: str, value: Any) -> bool:
    """Whether a cell is a value, every digit of it."""
    if value is None:
        return cell == ""
    if isinstance(value, bool | str):
        return cell == str(value)
    return float(cell) == value


# --- columns ------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
def test_csv_has_every_value_of_every_row(found: Callable[[], Comparison]) -> None:
    comparison = found()
    request = comparison.scenario.request
    asked = {
        "model": comparison.scenario.model.name,
        "policy": comparison.scenario.policy.name,
        "system": comparison.scenario.system.name,
        "request.batch": request.batch,
        "request.context": request.context,
    }
    read = _read(comparison.to_csv())
    assert len(read) == len(comparison.rows) > 1
    for number, (cells, row) in enumerate(zip(read, comparison.rows, strict=True), 1):
        # pandas flattens what is nested by code of its own
        (values,) = pandas.json_normalize([row.as_dict()]).to_dict("records")
        low, high = values.pop("decode_latency_range_s")
        values |= {"decode_latency_range_s.low": low, "decode_latency_range_s.high": high}
        if row.numerics is not None:
            for i, block in enumerate(values.pop("numerics.blocks")):
                values |= {f"numerics.blocks.{i}.{name}": block[name] for name in block}
        elif comparison is _small():
            assert values.pop("numerics") is None
        values = {
            name: "; ".join(value) if isinstance(value, list | tuple) else value
            for name, value in values.items()
        }
        for part in ("plan.vocab", "plan.ffn"):
            if values.get(part, ...) is None and part not in cells:
                del values[part]  # another row has one: only its parts are columns
        for name, value in (values | asked | {"row": number}).items():
            assert _is(cells.pop(name), value), name
        assert cells.pop("objective") == "latency"
        left = {name: cell for name, cell in cells.items() if not name.startswith("request.")}
        assert all(name.startswith(("numerics.", "plan.vocab.", "plan.ffn.")) for name in left)
        assert not any(cell for name, cell in left.items() if name.startswith("plan.vocab."))


@BOTH
def test_pandas_reads_back_the_dataframe(found: Callable[[], Comparison]) -> None:
    made = found().to_dataframe()
    read = pandas.read_csv(io.StringIO(found().to_csv()))
    assert list(read.columns) == list(made.columns)
    for name in made:
        for ours, theirs in zip(made[name], read[name], strict=True):
            if pandas.isna(ours):
                assert pandas.isna(theirs)
            elif isinstance(ours, str):
                assert theirs == ours
            else:
                assert theirs == pytest.approx(ours, rel=PANDAS), name
    assert made["fits"].dtype == bool
    assert made["memory_bytes.weights"].tolist() == [
        row.memory_bytes["weights"] for row in found().rows
    ]
    assert (made["decode_latency_range_s.low"] < made["decode_latency_range_s.high"]).all()


def test_without_rows_there_are_the_columns_of_what_was_asked() -> None:
    none = replace(_small(), rows=())
    assert none.to_csv().startswith("row,model,policy,system,objective,request.batch,")
    assert none.to_csv().count("\n") == 1
    assert len(none.to_dataframe()) == 0
    assert none._repr_html_().count("<tr") == 1


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "=a,\"b\"\n'c'"])
def test_no_name_becomes_a_formula(name: str) -> None:
    """The name of a model is what its file says; a spreadsheet runs what begins like these."""
    found = _named(name)
    read = _read(found.to_csv())
    assert [cells["model"] for cells in read] == [f"'{name}"] * len(found.rows)
    assert found.to_dataframe()["model"].tolist() == [name] * len(found.rows)
    assert all(float(cells["short_bytes"]) < 0 for cells in read)  # a number is one with its sign


@pytest.mark.parametrize("name", ['"quoted"', "a,b", "one\ntwo", "<script>", "é·", "a=1"])
def test_other_names_are_kept(name: str) -> None:
    assert {cells["model"] for cells in _read(_named(name).to_csv())} == {name}


# --- files and errors ---------------------------------------------------------------------------


def test_a_file_is_the_text(tmp_path: Path) -> None:
    for path in (tmp_path / "a.csv", str(tmp_path / "b")):
        assert _small().to_csv(path) is None
        assert Path(path).read_bytes().decode() == _small().to_csv()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none/a.csv", "none/a.csv cannot be written: No such file or directory."),
        (".", r"\. cannot be written: Is a directory\."),
        ("a\0b", r"'a\\x00b' cannot be written: embedded null"),
        (3, "path is 3; CSV goes to the path of a file."),
    ],
)
def test_a_wrong_path_is_one_sentence(
    path: Any, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such hook
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LpuError, match=sentence):
        _small().to_csv(path)
    assert list(tmp_path.iterdir()) == []


def test_without_pandas_csv_is_still_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LpuError, match="pandas is not installed; `pip install pandas`"):
        _small().to_dataframe()
    assert len(_read(_small().to_csv())) == 10


# --- JSON ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_has_the_numerical_error_of_plans_that_were_run() -> None:
    found = with_numerics(compare("smollm2-135m", "groq-node", Request(context=2), top=2), 1)
    run, not_run = json.loads(found.to_json())["rows"]
    assert not_run["numerics"] is None
    assert run["numerics"]["sqnr_db"] > 0
    assert 0 < run["numerics"]["max_abs_err"] < math.inf
    assert run["numerics"]["fidelity"] == "faithful"
    assert float(_read(found.to_csv())[0]["numerics.sqnr_db"]) == run["numerics"]["sqnr_db"]


# --- HTML ---------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Reads the texts of a table, and that every element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.caption = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"style"}
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open[-1] == "caption":
            self.caption += data


UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def _seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * UNITS[unit]


@BOTH
def test_html_has_a_row_for_each_plan_with_its_values(found: Callable[[], Comparison]) -> None:
    comparison = found()
    page = Page(comparison._repr_html_())
    assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "div"}
    heads, *rows = page.rows
    assert len(rows) == len(comparison.rows)
    for number, (texts, row) in enumerate(zip(rows, comparison.rows, strict=True), 1):
        cells = dict(zip(heads, texts, strict=True))
        assert cells["#"] == str(number)
        assert cells["plan"] == row.plan.name
        assert cells["chips"] == str(row.plan.n_chips)
        used = float(cells["SRAM"].rstrip("%")) / 100
        assert used == pytest.approx(row.sram_used_fraction, abs=0.0005)
        assert _seconds(cells["token"]) == pytest.approx(row.decode_latency_s, rel=PRINTED)
        ends = [_seconds(end) for end in cells["over constants"].split("..")]
        assert ends == pytest.approx(row.decode_latency_range_s, rel=PRINTED)
        assert float(cells["tok/s user"]) == pytest.approx(row.tokens_per_s_per_user, abs=0.5)
        assert float(cells["tok/s total"]) == pytest.approx(row.tokens_per_s_total, abs=0.5)
        if row.fits:
            assert cells["fits"] == "yes"
        else:
            assert cells["fits"].startswith(f"{row.reason} (short of ")
    for part in (comparison.scenario.model.name, comparison.scenario.system.name, "batch"):
        assert part in page.caption


def test_html_is_readable_on_any_background() -> None:
    html = _small()._repr_html_()
    assert not re.search(r"[\";]\s*(color|background)", html)
    assert "http" not in html


@pytest.mark.parametrize("name", ['<script>alert("a")</script>', "</table>&lt;'x", '" onload="x'])
def test_html_keeps_hostile_names_as_text(name: str) -> None:
    page = Page(_named(name)._repr_html_())
    assert page.caption.startswith(f"{name}, weights fp16")
    assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "div"}


def test_html_keeps_a_hostile_cell_as_text() -> None:
    row = replace(_small().rows[0], fits=False, reason="<b>&amp;</td>")
    page = Page(replace(_small(), rows=(row,))._repr_html_())
    assert page.rows[1][-1].startswith("<b>&amp;</td> (short of ")


@pytest.mark.slow
def test_html_says_what_is_no_lpu_and_what_a_step_is() -> None:
    gpus = compare("smollm2-135m", "h100x8", Request(context=64), top=1)
    assert "GPU roofline" in gpus._repr_html_()
    drafts = Request(tokens=3, acceptance=0.5, context=64)
    found = compare(replace(model("smollm2-135m"), n_layers=1), "groq-node", drafts, top=1)
    assert "step" in Page(found._repr_html_()).rows[0]
