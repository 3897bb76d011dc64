"""The picture of a comparison: every row at its rates, with its ranges, at a column's width."""

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from jaxtyping import config

from lpu_jax.errors import LpuError
from sharding.rank.compare import Comparison, compare
from sharding.request import Request

SVG = "{http://www.w3.org/2000/svg}"
#: SVG files round places to 1e-6 points.
ROUNDED = 1e-4
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 3.3, 2.6, 300


@cache
def _found() -> Comparison:
    return compare("smollm2-135m", "groq-node", Request(batch=4, context=64))


@cache
def _front() -> Comparison:
    """Rates of all users on a logarithmic axis."""
    return compare(
        "llama-3.1-70b", "h100x8", Request(context=512), policy="bf16", objective="pareto"
    )


def _drawing(comparison: Comparison, tmp_path: Path) -> ElementTree.Element:
    comparison.plot(tmp_path / "a.svg")
    return ElementTree.parse(tmp_path / "a.svg").getroot()


def _point(drawing: ElementTree.Element, number: int) -> tuple[float, float]:
    (group,) = (g for g in drawing.iter(f"{SVG}g") if g.get("id") == f"row-{number}")
    (use,) = group.iter(f"{SVG}use")
    return float(use.get("x", "nan")), float(use.get("y", "nan"))


def _bars(drawing: ElementTree.Element, opacity: str) -> list[list[float]]:
    """The ends of the bars drawn so darkly, left x, right x and y; keys of the legend are black."""
    found = []
    for path in drawing.iter(f"{SVG}path"):
        style = path.get("style", "")
        if f"stroke-opacity: {opacity}" in style and "#0072b2" in style:
            left, left_y, right, right_y = map(
                float, path.get("d", "").replace("M", "").replace("L", "").split()
            )
            assert left_y == right_y
            found.append([left, right, left_y])
    return found


def _along(values: Any, places: Any) -> Callable[[Any], Any]:
    """The axis that puts values at places: linear, or logarithmic if that alone fits."""
    for scale in (np.asarray, np.log):
        slope, offset = np.polyfit(scale(values), places, 1)
        if np.allclose(slope * scale(values) + offset, places, rtol=0, atol=ROUNDED):
            return lambda value, scale=scale, a=slope, b=offset: a * scale(value) + b
    raise AssertionError("points are on no linear and no logarithmic axis")


@pytest.mark.slow
@pytest.mark.parametrize("found", [_found, _front])
def test_every_row_is_at_its_rates_with_its_ranges(
    found: Callable[[], Comparison], tmp_path: Path
) -> None:
    comparison = found()
    rows = comparison.rows
    assert len(rows) >= 4
    drawing = _drawing(comparison, tmp_path)
    x, y = np.array([_point(drawing, number) for number in range(1, len(rows) + 1)]).T
    user = _along([row.tokens_per_s_per_user for row in rows], x)
    total = _along([row.tokens_per_s_total for row in rows], y)
    assert user(1001.0) > user(1000.0)
    assert total(1001.0) < total(1000.0)  # places in SVG count downwards
    for opacity, latencies in (
        ("0.25", [row.decode_latency_range_s for row in rows]),
        ("0.75", [(row.decode_latency_lower_s, row.decode_latency_upper_s) for row in rows]),
    ):
        expected = [
            [user(row.tokens_per_step / longest), user(row.tokens_per_step / shortest), at]
            for row, (shortest, longest), at in zip(rows, latencies, y, strict=True)
        ]
        bars = _bars(drawing, opacity)
        np.testing.assert_allclose(sorted(bars), sorted(expected), rtol=0, atol=10 * ROUNDED)


def test_every_row_has_its_number_beside_it(tmp_path: Path) -> None:
    comparison = _found()
    drawing = _drawing(comparison, tmp_path)
    texts = ["".join(text.itertext()) for text in drawing.iter(f"{SVG}text")]
    for number in range(1, len(comparison.rows) + 1):
        assert str(number) in texts
    assert "smollm2-135m on groq-node (8 x GroqChip1 (TSP v1))" in texts
    assert "weights fp16, batch 4, context 64" in texts
    for words in ("tokens/s of one user", "tokens/s of all users", "over assumed constants"):
        assert words in texts


def _lines(drawing: ElementTree.Element) -> list[list[list[float]]]:
    """The corners of the lines of fronts."""
    return [
        [
            [float(place) for place in corner.split()]
            for corner in re.split("[ML]", path.get("d", ""))[1:]
        ]
        for path in drawing.iter(f"{SVG}path")
        if "stroke-opacity: 0.6" in path.get("style", "")
    ]


@pytest.mark.slow
def test_a_front_is_a_staircase_and_a_ranking_is_not(tmp_path: Path) -> None:
    drawing, n_rows = _drawing(_front(), tmp_path), len(_front().rows)
    points = [_point(drawing, number) for number in range(1, n_rows + 1)]
    # A slower user may have the rates of the next faster point, up to its own.
    corners = [points[0]]
    for (_, faster_y), (x, y) in pairwise(points):
        corners += [(x, faster_y), (x, y)]
    (stairs,) = _lines(drawing)
    np.testing.assert_allclose(stairs, corners, rtol=0, atol=ROUNDED)
    assert _lines(_drawing(_found(), tmp_path)) == []


def test_a_png_is_a_column_wide_at_300_dots_per_inch(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _found().plot(path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert struct.unpack(">II", data[16:24]) == (
        round(WIDTH_INCHES * DOTS_PER_INCH),
        round(HEIGHT_INCHES * DOTS_PER_INCH),
    )
    at = data.index(b"pHYs") + 4
    dots_per_metre = struct.unpack(">IIB", data[at : at + 9])
    assert dots_per_metre == (round(DOTS_PER_INCH / 0.0254),) * 2 + (1,)


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_same_rows_are_the_same_file(tmp_path: Path, suffix: str, begins: bytes) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        _found().plot(str(path))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(begins)
    # Publishers refuse Type 3 fonts.
    assert b"/Type3" not in first.read_bytes()


def test_one_row_and_rows_alike_are_drawn(tmp_path: Path) -> None:
    row = _found().rows[0]
    for rows in ((row,), (row, row), (row,) * 12):
        drawing = _drawing(replace(_found(), rows=rows), tmp_path)
        for number in range(1, len(rows) + 1):
            assert all(np.isfinite(_point(drawing, number)))


@pytest.mark.parametrize("name", ["a$b_{c$", "<b>&", "x" * 200])
def test_any_name_of_a_model_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    found = _found()
    cfg = replace(found.scenario.model, name=name)
    drawing = _drawing(replace(found, scenario=replace(found.scenario, model=cfg)), tmp_path)
    texts = ["".join(text.itertext()) for text in drawing.iter(f"{SVG}text")]
    assert f"{name} on groq-node (8 x GroqChip1 (TSP v1))" in texts


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("a.gif", r"a.gif: a plot must end in \.png, \.svg or \.pdf"),
        ("none/a.png", "none/a.png cannot be written: No such file or directory"),
        (7, "path is 7; a plot goes to the path of a file"),
    ],
)
def test_a_wrong_path_is_one_sentence(
    tmp_path: Path, path: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such hook
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LpuError, match=sentence):
        _found().plot(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nothing_is_drawn_where_nothing_fits(tmp_path: Path) -> None:
    found = compare("llama-3.1-8b", "groq-node", Request(context=64), top=1)
    with pytest.raises(LpuError, match=r"was not drawn: no plan of llama-3\.1-8b fits"):
        found.plot(tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []
