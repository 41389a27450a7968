"""Charts as inline SVG: lines over optimizer steps, bars of scores, an interval. Colours are classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..result import Interval

WIDTH, HEIGHT = 460, 230  # units of a chart's own coordinates, which scale with the page
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 40  # room around the area of the lines
Place = Callable[[float], float]  # where a value is drawn
MOST_POINTS = 300  # of a line; more than the chart has pixels to tell apart
MOST_DOTS = 40  # of a line with a dot for each point


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        colour: The class that colours it.
        points: (step, value), ascending.
    """

    label: str
    colour: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Lines over the same steps.

    Attributes:
        title: Title of the chart.
        unit: In what; empty for a plain number.
        lines: At least one, each with at least one point.
        percent: Whether values are shares, shown as per cent.
        from_zero: Whether the axis begins at 0.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    percent: bool = False
    from_zero: bool = False

    def svg(self) -> Markup:
        """Return the chart as an SVG element."""
        points = [point for line in self.lines for point in line.points]
        steps = ticks(0.0, max(x for x, _ in points), 5, whole=True)
        low, high = min(y for _, y in points), max(y for _, y in points)
        values = ticks(0.0 if self.from_zero else low, high, 4)
        last = max(x for x, _ in points)
        across = scale(0.0, last, LEFT, WIDTH - RIGHT)
        up = scale(values[0], values[-1], HEIGHT - BOTTOM, TOP)
        written = self._labels(values)
        parts = [_grid(value, text, up) for value, text in zip(values, written, strict=True)]
        parts += [_step(step, across) for step in steps if step <= last]
        parts += [_drawn(line, across, up, self._value) for line in self.lines]
        parts.append(
            Markup('<text class="unit" x="{}" y="{}" text-anchor="middle">optimizer step</text>').format(
                (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6
            )
        )
        name = f"{self.title}{f', {self.unit}' if self.unit else ''}, over optimizer steps"
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, HEIGHT, name, Markup("").join(parts)
        )

    def _labels(self, values: Sequence[float]) -> list[str]:
        if self.percent:
            return [f"{100 * value:g}%" for value in values]
        return [f"{value:.6g}" for value in values]

    def _value(self, value: float) -> str:
        if self.percent:
            return f"{value:.1%}"
        return f"{value:.4g}{f' {self.unit}' if self.unit else ''}"


def _drawn(line: Line, across: Place, up: Place, say: Callable[..., str]) -> Markup:
    """Return a line, with a dot for each point and its value in the dot's title if they are few."""
    shown = _thinned(line.points)
    path = " ".join(f"{'L' if i else 'M'}{across(x):.1f} {up(y):.1f}" for i, (x, y) in enumerate(shown))
    parts = [Markup('<path class="line {}" d="{}"/>').format(line.colour, path)]
    if len(shown) <= MOST_DOTS:
        dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.6"><title>{}, step {:g}: {}</title></circle>')
        parts += [dot.format(line.colour, across(x), up(y), line.label, x, say(y)) for x, y in shown]
    return Markup("").join(parts)


def _grid(value: float, text: str, up: Place) -> Markup:
    y = up(value)
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 8, y + 4, text)


def _step(step: float, across: Place) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:,.0f}</text>').format(
        across(step), HEIGHT - BOTTOM + 17, step
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MOST_POINTS` means over neighbours; the last point stays as it is."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    return [*((sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups), points[-1]]


def scale(low: float, high: float, start: float, end: float) -> Place:
    """Return the map of [low, high] to [start, end]; a single value is in the middle."""
    span = high - low
    if span == 0:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return round numbers, about `count` of them, from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / count))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * count >= span * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Bar:
    """One bar: a label, its value from 0 to 100, and the class that colours it."""

    label: str
    value: float
    colour: str


def bars(title: str, entries: Sequence[Bar]) -> Markup:
    """Return horizontal bars of scores from 0 to 100, each with its value."""
    height, end = 42, WIDTH - 52
    across = scale(0, 100, 1, end)
    drawn = Markup(
        '<text x="1" y="{top}">{label}</text>'
        '<rect class="track" x="1" y="{y}" width="{end}" height="14" rx="3"/>'
        '<rect class="bar {colour}" x="1" y="{y}" width="{width:.1f}" height="14" rx="3"/>'
        '<text class="value" x="{after}" y="{base}">{value:.1f}</text>'
    )
    parts = []
    for place, bar in enumerate(entries):
        y, width = 20 + place * height, max(across(min(max(bar.value, 0), 100)), 1.5)
        at = {"top": y - 6, "y": y, "base": y + 12, "after": end + 10}
        parts.append(drawn.format(**at, **vars(bar), end=end, width=width))
    bottom = 6 + height * len(entries)
    for tick in (25, 50, 75, 100):
        parts.append(Markup('<text class="unit" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            across(tick), bottom + 8, tick
        ))  # fmt: skip
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, bottom + 18, title, Markup("").join(parts)
    )


def interval(title: str, shown: Interval) -> Markup:
    """Return an estimate with its interval on an axis that shows 0, a half and 1; infinite ends leave the axis."""
    estimate, low, high = shown.estimate, shown.low, shown.high
    known = [value for value in (estimate, low, high) if math.isfinite(value)]
    start, end = min(-0.1, *known) - 0.05, max(1.1, *known) + 0.05
    start, end = max(start, -2.0), min(end, 3.0)
    across = scale(start, end, 14, WIDTH - 14)

    def inside(value: float) -> float:
        return across(min(max(value, start), end))

    reach = f"from {low:.2f} to {high:.2f}" if shown.is_bounded else "which these rows do not bound"
    ends = ((0.0, "0: as before"), (0.5, "0.5"), (1.0, "1: as the teacher"))
    parts = [axis_line(across(tick), 8, 58, text) for tick, text in ends]
    parts.append(
        Markup(
            '<line class="range" x1="{:.1f}" x2="{:.1f}" y1="33" y2="33"/><circle class="estimate" cx="{:.1f}" cy="33" '
            'r="7"><title>{:.2f}, {}</title></circle>'
        ).format(inside(low), inside(high), inside(estimate), estimate, reach)
    )
    return Markup('<svg viewBox="0 0 {} 84" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, title, Markup("").join(parts)
    )


def axis_line(x: float, top: float, bottom: float, text: str) -> Markup:
    """Return a vertical line of a horizontal axis with its label below."""
    return Markup(
        '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
        '<text class="unit" x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>'
    ).format(x, top, bottom, bottom + 18, text)
