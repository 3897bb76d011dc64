"""Where labels beside points go: near their own point, over no other point and no other label.

One label after another takes the best place that is left; those before it do not move. Where no
place is left there is no label. Lengths are in points of 1/72 inch.
"""

from collections.abc import Sequence
from math import inf

import numpy as np
from jaxtyping import Float

#: The width of a digit of DejaVu Sans and the height of one, in parts of its size.
_DIGIT_WIDTH, _DIGIT_HEIGHT = 0.636, 0.75
#: Half the side of the square that a point needs, and the room between it and its label.
_POINT_RADIUS = 2.2
_DISTANCES = (0.6, 4.0, 8.0, 12.0)
#: Where a label may lie as seen from its point, the usual places first.
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
#: A label further away may cross this many bars less.
_CROSSINGS_PER_DISTANCE = 1.5

Boxes = Float[np.ndarray, "_ 4"]  # left, bottom, right, top


def place_labels(
    points: Float[np.ndarray, "points 2"],
    texts: Sequence[str | None],
    bars: Boxes,
    frame: tuple[float, float],
    font_size: float,
) -> list[tuple[float, float] | None]:
    """Choose the places of labels.

    Args:
        points: what must stay visible.
        texts: the label of each point, in order of precedence; None: it has none.
        bars: what a label had better not cross.
        frame: the width and height that labels stay within.
        font_size: of the labels.

    Returns:
        The centre of each label; None: it has none, or there is no room for it.
    """
    taken: Boxes = np.concatenate([points - _POINT_RADIUS, points + _POINT_RADIUS], axis=1)
    places: list[tuple[float, float] | None] = []
    for point, text in zip(points, texts, strict=True):
        place = None
        if text is not None:
            half = 0.5 * font_size * np.array([_DIGIT_WIDTH * len(text), _DIGIT_HEIGHT])
            place = _best_place(point, half, taken, bars, frame)
        if place is None:
            places.append(None)
        else:
            box = np.concatenate([place - half, place + half])
            taken = np.concatenate([taken, box[None]])
            places.append((float(place[0]), float(place[1])))
    return places


def _best_place(
    point: Float[np.ndarray, " 2"],
    half: Float[np.ndarray, " 2"],
    taken: Boxes,
    bars: Boxes,
    frame: tuple[float, float],
) -> Float[np.ndarray, " 2"] | None:
    """The nearest free place of a label of a half width and height that crosses few bars."""
    best, least = None, inf
    for step, distance in enumerate(_DISTANCES):
        for direction in _DIRECTIONS:
            place = point + np.array(direction) * (half + _POINT_RADIUS + distance)
            low, high = place - half, place + half
            if (low < 0).any() or (high > frame).any() or _crossed(low, high, taken):
                continue
            cost = _crossed(low, high, bars) + step * _CROSSINGS_PER_DISTANCE
            if cost < least:
                best, least = place, cost
    return best


def _crossed(low: Float[np.ndarray, " 2"], high: Float[np.ndarray, " 2"], boxes: Boxes) -> int:
    """How many boxes the box from one corner to another touches."""
    return int(((low < boxes[:, 2:]) & (boxes[:, :2] < high)).all(axis=1).sum())
