"""Where the labels of a scatter plot go, so that none lies on another or on a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_CHARACTER, _LINE, _GAP, _RADIUS = 7.0, 13.0, 8.0, 5.0  # pixels, of a 12-pixel font and a point


class Label(NamedTuple):
    """A text's baseline begins (anchor "start") or ends ("end") at x, y, in pixels."""

    x: float
    y: float
    anchor: str


def place_labels(points: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[Label]:
    """A place for each text beside its point: right or left of it, as little up or down as can be.

    Args:
        points: x, y of their centres, pixels, y downwards.
        texts: one for each.
    """
    dots = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points]
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for (x, y), text in zip(points, texts, strict=True):
        places = [
            Label(x + side * _GAP, y + 4 + lines * _LINE, "start" if side > 0 else "end")
            for lines in (0, 1, -1, 2, -2, 3, -3) for side in (1, -1)
        ]  # fmt: skip
        free = [place for place in places if not _meets(_box(place, text), [*dots, *taken])]
        label = free[0] if free else places[0]
        taken.append(_box(label, text))
        labels.append(label)
    return labels


def _box(label: Label, text: str) -> tuple[float, float, float, float]:
    left = label.x if label.anchor == "start" else label.x - _CHARACTER * len(text)
    return left, label.y - _LINE + 3, left + _CHARACTER * len(text), label.y + 2


def _meets(
    box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]
) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
