"""Charts as numbers: the rectangles of stacked column charts. Templates draw them, with a table of the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 640
HEIGHT = 120
_GAP = 0.25
_LEAST = 1.5
"""The least height of a rectangle, so that every value above zero is visible."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The column at one time: values by series, from the bottom up."""

    at: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rect:
    """A part of a column, in the chart's own units."""

    series: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns of rectangles. `top` is the value at the chart's full height."""

    bars: Sequence[Bar]
    series: Sequence[str]
    rects: Sequence[Rect]
    top: float
    sums: Mapping[str, float]

    @property
    def empty(self) -> bool:
        return not any(self.sums.values())


def bars(columns: Sequence[Bar]) -> Chart:
    """Return a chart of *columns*, which all have the same series."""
    series = list(columns[0].values)
    top = nice(max(sum(column.values.values()) for column in columns))
    step = WIDTH / len(columns)
    width = round(step * (1 - _GAP), 2)
    rects = []
    for place, column in enumerate(columns):
        x, base = round((place + _GAP / 2) * step, 2), float(HEIGHT)
        for number, value in enumerate(column.values.values()):
            if value > 0:
                height = max(HEIGHT * value / top, _LEAST)
                base -= height
                rects.append(Rect(number, x, round(base, 2), width, round(height, 2)))
    sums = {name: sum(column.values[name] for column in columns) for name in series}
    return Chart(columns, series, rects, top, sums)


def nice(value: float) -> float:
    """Return the next round number: 1, 2 or 5 and zeros."""
    if value <= 0:
        return 1.0
    size = 1.0
    while size < value:
        size *= 10
    while size / 10 >= value:
        size /= 10
    return next(part * size for part in (0.1, 0.2, 0.5, 1.0) if part * size >= value)
