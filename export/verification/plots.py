"""Plots as SVG for a page. Colours come from the page's style sheet, which has them for light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import ErrorOverTime

# Pixels of the picture; the page scales it to its own width.
WIDTH = 720
_HEIGHT = 300

# Around the area of a plot over time.
_LEFT = 64
_RIGHT = WIDTH - 16
_TOP = 12
_BOTTOM = _HEIGHT - 40

# Of a bar chart: the height of a row, and the widths of its labels and values.
_ROW = 28
_LABEL = 250
_VALUE = 90

_MAX_DOTS = 40
"""A longer series is drawn as a line without dots, which would touch one another."""


def bars(rows: Sequence[tuple[str, float]], unit: str) -> str:
    """Draw a bar from 0 for each (label, value), with the value next to it."""
    largest = max((value for _, value in rows), default=0.0) or 1.0
    elements = []
    for number, (label, value) in enumerate(rows):
        top = _ROW * number + 4
        length = (WIDTH - _LABEL - _VALUE) * value / largest
        number_text = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
        value_text = f"{number_text} {escape(unit)}"
        elements += [
            f'<text x="{_LABEL - 10}" y="{top + 15}" class="end">{escape(label)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{max(length, 1):.1f}" height="20" rx="3" class="bar"/>',
            f'<text x="{_LABEL + length + 8:.1f}" y="{top + 15}" class="value">{value_text}</text>',
        ]
    summary = "; ".join(f"{label}: {value:.3g} {unit}" for label, value in rows)
    return _svg(_ROW * len(rows) + 4, summary, elements)


def error_over_time(series: Sequence[ErrorOverTime]) -> str:
    """Draw the error at each step, and what is allowed there (dashed), on a logarithmic scale."""
    area = _Area.around(series)
    elements = list(area.grid())
    first_bad_steps = []
    for number, curve in enumerate(series, start=1):
        elements.append(
            f'<polyline class="limit s{number}" points="{area.points(curve.allowed)}"/>'
        )
        elements.append(f'<polyline class="line s{number}" points="{area.points(curve.errors)}"/>')
        elements += area.marks(curve, number)
        if curve.first_bad is not None:
            first_bad_steps.append(curve.first_bad)
    if first_bad_steps:
        elements += area.first_bad_line(min(first_bad_steps))
    return _svg(_HEIGHT, f"error of {series[0].output} at each time step", elements)


@dataclass(frozen=True)
class _Area:
    """Where a step and an error are in the picture.

    Attributes:
        steps: the steps of the longest series.
        low: exponent of ten at the lower edge; a smaller error, such as 0, is drawn on the edge.
        high: exponent of ten at the upper edge; a larger error, such as an infinity, is drawn on the edge.
    """

    steps: int
    low: int
    high: int

    @classmethod
    def around(cls, series: Sequence[ErrorOverTime]) -> _Area:
        """The smallest area, in whole powers of ten, that shows every finite value above 0."""
        steps = max(curve.steps for curve in series)
        exponents = []
        for curve in series:
            for value in (*curve.errors, *curve.allowed):
                if 0 < value < math.inf:
                    exponents.append(math.log10(value))
        if not exponents:
            return cls(steps, low=0, high=1)
        low = math.floor(min(exponents))
        high = math.ceil(max(exponents))
        return cls(steps, low, max(high, low + 1))

    def x(self, step: float) -> float:
        share = step / (self.steps - 1) if self.steps > 1 else 0.5
        return _LEFT + (_RIGHT - _LEFT) * share

    def y(self, error: float) -> float:
        exponent = math.log10(error) if error > 0 else self.low
        within = min(max(exponent, self.low), self.high)
        share = (within - self.low) / (self.high - self.low)
        return _BOTTOM - (_BOTTOM - _TOP) * share

    def points(self, values: Sequence[float]) -> str:
        if len(values) == 1:
            # One value is a line across the picture.
            y = self.y(values[0])
            return f"{_LEFT},{y:.1f} {_RIGHT},{y:.1f}"
        return " ".join(
            f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in enumerate(values)
        )

    def grid(self) -> Iterator[str]:
        """Lines at powers of ten, at most nine of them, and the numbers of steps."""
        decades = self.high - self.low
        for exponent in range(self.low, self.high + 1, math.ceil(decades / 8)):
            y = self.y(10.0**exponent)
            yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="end" x="{_LEFT - 8}" y="{y + 4:.1f}">1e{exponent:+03d}</text>'
        for step in _ticks(self.steps):
            yield f'<text class="middle" x="{self.x(step):.1f}" y="{_BOTTOM + 18}">{step}</text>'
        middle = (_LEFT + _RIGHT) / 2
        yield f'<text class="middle" x="{middle:.1f}" y="{_HEIGHT - 4}">time step</text>'

    def first_bad_line(self, step: int) -> Iterator[str]:
        """A line where the output is first wrong; its text is on the side that has room."""
        x = self.x(step)
        yield f'<line class="bad" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        anchor = "end" if x > WIDTH / 2 else "start"
        shift = -10 if anchor == "end" else 10
        yield f'<text class="bad {anchor}" x="{x + shift:.1f}" y="{_BOTTOM - 10}">wrong from step {step}</text>'

    def marks(self, curve: ErrorOverTime, number: int) -> Iterator[str]:
        """Dots of a short series, a ring around the first wrong one, and a tooltip for each step."""
        first_bad = curve.first_bad  # once: it is found by looking at every step
        shows_dots = curve.steps <= _MAX_DOTS
        pairs = zip(curve.errors, curve.allowed, strict=True)
        for step, (error, allowed) in enumerate(pairs):
            center = f'cx="{self.x(step):.1f}" cy="{self.y(error):.1f}"'
            if shows_dots:
                yield f'<circle class="dot s{number}" {center} r="3"/>'
            if step == first_bad:
                yield f'<circle class="bad" {center} r="7"/>'
            tooltip = f"{curve.case}, step {step}: {error:.1e}, allowed {allowed:.1e}"
            yield f'<circle class="hit" {center} r="6"><title>{escape(tooltip)}</title></circle>'


def _ticks(steps: int) -> list[int]:
    """About eight round numbers from 0."""
    rough = max(1.0, (steps - 1) / 8)
    power = 10 ** math.floor(math.log10(rough))
    distance = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return list(range(0, steps, distance))


def _svg(height: int, label: str, elements: Sequence[str]) -> str:
    start = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return "\n".join([start, *elements, "</svg>"])
