"""Labels beside points: each near its own point, none over a point, a label or the frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.rank.label_places import place_labels

FRAME = (200.0, 100.0)
FONT = 6.5
NO_BARS = np.empty((0, 4))
#: A digit of DejaVu Sans, in parts of its size: its advance, and its height above the baseline.
DIGIT = (0.636, 0.729)

places = st.tuples(st.floats(0, FRAME[0]), st.floats(0, FRAME[1]))


def _box(place: tuple[float, float], text: str) -> tuple[float, float, float, float]:
    half_width, half_height = FONT * DIGIT[0] * len(text) / 2, FONT * DIGIT[1] / 2
    x, y = place
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@given(st.lists(places, min_size=1, max_size=25))
def test_labels_are_over_nothing(points: list[tuple[float, float]]) -> None:
    texts = [str(number) for number in range(1, len(points) + 1)]
    found = place_labels(np.array(points), texts, NO_BARS, FRAME, FONT)
    boxes = [_box(at, text) for at, text in zip(found, texts, strict=True) if at is not None]
    for number, box in enumerate(boxes):
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= FRAME[0]
        assert box[3] <= FRAME[1]
        assert not any(_overlap(box, other) for other in boxes[:number])
        assert not any(_overlap(box, (x, y, x, y)) for x, y in points)
    for point, at in zip(points, found, strict=True):
        assert at is None or np.hypot(*np.subtract(point, at)) < 40


def test_ten_points_in_one_place_all_have_labels() -> None:
    points = np.full((10, 2), 50.0)
    found = place_labels(points, [str(n) for n in range(1, 11)], NO_BARS, FRAME, FONT)
    assert None not in found
    assert len(set(found)) == 10


def test_what_has_no_room_or_no_label_gets_none() -> None:
    crowd = np.full((200, 2), 50.0)
    found = place_labels(crowd, ["8"] * 200, NO_BARS, FRAME, FONT)
    assert found[0] is not None
    assert found[-1] is None
    assert place_labels(np.array([[50.0, 50.0]]), [None], NO_BARS, FRAME, FONT) == [None]


@pytest.mark.parametrize("above", [True, False])
def test_a_label_keeps_off_a_bar_where_it_can(above: bool) -> None:
    height = 56.0 if above else 44.0
    bar = np.array([[0.0, height, 200.0, height]])
    (at,) = place_labels(np.array([[50.0, 50.0]]), ["7"], bar, FRAME, FONT)
    assert at is not None
    assert not _overlap(_box(at, "7"), tuple(bar[0]))
