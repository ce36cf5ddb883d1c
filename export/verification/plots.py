"""Plots as SVG that stands in a page: colours come from its style sheet, so that light and dark are its own affair."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import ErrorOverTime

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 64, 16, 12, 40, 300
_BAR, _LABEL, _VALUE = 28, 250, 90


def bars(rows: Sequence[tuple[str, float]], unit: str) -> str:
    """A bar for each (label, value), from 0, with the value beside it."""
    most = max((value for _, value in rows), default=0.0) or 1.0
    height = _BAR * len(rows) + 4
    drawn = []
    for number, (label, value) in enumerate(rows):
        top, length = _BAR * number + 4, (WIDTH - _LABEL - _VALUE) * value / most
        shown = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
        drawn += [
            f'<text x="{_LABEL - 10}" y="{top + 15}" class="end">{escape(label)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{max(length, 1):.1f}" height="20" rx="3" class="bar"/>',
            f'<text x="{_LABEL + length + 8:.1f}" y="{top + 15}" class="value">{shown} {escape(unit)}</text>',
        ]
    return _svg(height, "; ".join(f"{label}: {value:.3g} {unit}" for label, value in rows), drawn)


def error_over_time(series: Sequence[ErrorOverTime]) -> str:
    """The error at each step, and what is allowed there (dashed), on a logarithmic scale; a legend if several."""
    area = _Area.around(series)
    drawn = [*area.grid()]
    for number, each in enumerate(series, start=1):
        drawn.append(f'<polyline class="limit s{number}" points="{area.points(each.allowed)}"/>')
        drawn.append(f'<polyline class="line s{number}" points="{area.points(each.errors)}"/>')
        drawn += area.marks(each, number)
    if bad := [each.first_bad for each in series if each.first_bad is not None]:
        drawn += area.beyond(min(bad))
    return _svg(_HEIGHT, f"error of {series[0].output} at each time step", drawn)


@dataclass(frozen=True)
class _Area:
    """Where a step and an error stand in the picture.

    Attributes:
        steps: the most steps that are shown.
        low, high: exponents of ten at the lower and the upper edge; what is beyond, as 0 is, stands on the edge.
    """

    steps: int
    low: int
    high: int

    @classmethod
    def around(cls, series: Sequence[ErrorOverTime]) -> _Area:
        values = [value for each in series for value in (*each.errors, *each.allowed)]
        seen = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
        low, high = math.floor(min(seen)), math.ceil(max(seen))
        return cls(max(each.steps for each in series), low, high + (low == high))

    def x(self, step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step / (self.steps - 1) if self.steps > 1 else 0.5)

    def y(self, error: float) -> float:
        exponent = math.log10(error) if error > 0 else self.low
        share = (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def points(self, values: Sequence[float]) -> str:
        """One value alone is a line across the picture."""
        if len(values) == 1:
            return f"{_LEFT},{self.y(values[0]):.1f} {WIDTH - _RIGHT},{self.y(values[0]):.1f}"
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in enumerate(values))

    def grid(self) -> Iterator[str]:
        for exponent in range(self.low, self.high + 1, -(-(self.high - self.low) // 8)):
            y = self.y(10.0**exponent)
            yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="end" x="{_LEFT - 8}" y="{y + 4:.1f}">1e{exponent:+03d}</text>'
        for step in _ticks(self.steps):
            yield f'<text class="middle" x="{self.x(step):.1f}" y="{_HEIGHT - _BOTTOM + 18}">{step}</text>'
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        yield f'<text class="middle" x="{middle:.1f}" y="{_HEIGHT - 4}">time step</text>'

    def beyond(self, step: int) -> Iterator[str]:
        """Where the output is first wrong."""
        x, end = self.x(step), "end" if self.x(step) > WIDTH / 2 else "start"
        yield f'<line class="bad" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        shift = -10 if end == "end" else 10
        yield f'<text class="bad {end}" x="{x + shift:.1f}" y="{_HEIGHT - _BOTTOM - 10}">wrong from step {step}</text>'

    def marks(self, each: ErrorOverTime, number: int) -> Iterator[str]:
        """Points of a short series, a ring around the first that is wrong, and what each step says under the mouse."""
        for step, (error, allowed) in enumerate(zip(each.errors, each.allowed, strict=True)):
            at = f'cx="{self.x(step):.1f}" cy="{self.y(error):.1f}"'
            if each.steps <= 40:
                yield f'<circle class="dot s{number}" {at} r="3"/>'
            if step == each.first_bad:
                yield f'<circle class="bad" {at} r="7"/>'
            said = f"{each.case}, step {step}: {error:.1e}, allowed {allowed:.1e}"
            yield f'<circle class="hit" {at} r="6"><title>{escape(said)}</title></circle>'


def _ticks(steps: int) -> list[int]:
    """About eight round numbers from 0."""
    rough = max(1.0, (steps - 1) / 8)
    unit = 10 ** math.floor(math.log10(rough))
    apart = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    return list(range(0, steps, apart))


def _svg(height: int, label: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(drawn)
        + "\n</svg>"
    )
