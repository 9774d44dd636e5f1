"""Charts as inline SVG: numbers in, markup out. Colours are the page's, by class, so that they follow its theme.

Every function takes the width in pixels at which the chart is shown, since text must not shrink with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

ROW, BAR, DOT, TEXT = 26, 16, 4.0, 12  # pixels
CHARACTER = 6.7  # width of one, on average, at TEXT
MOST_POINTS = 4  # of a line, for each pixel


@dataclass(frozen=True)
class Part:
    """A bar of a waterfall, in milliseconds: it begins where the last one ended. `kind` names its colour."""

    name: str
    ms: float
    kind: str


@dataclass(frozen=True)
class Dot:
    """A sample of a strip. `hollow` sets it apart; `title` is shown under the pointer."""

    value: float
    title: str
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A curve over time or size; None breaks it. `kind` names its colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: str


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis that is shaded in a colour."""

    start: float
    stop: float
    kind: str
    title: str


def waterfall(parts: Sequence[Part], width: int) -> Markup:
    """Stages one under the other, each beginning where the last ended, with milliseconds and share."""
    total = sum(part.ms for part in parts) or 1.0
    left = max(len(part.name) for part in parts) * CHARACTER + 12
    room = width - left - 8
    body, at = [], 0.0
    for index, part in enumerate(parts):
        y, x, long = index * ROW + 4, left + at / total * room, max(1.5, part.ms / total * room)
        label = f"{shown(part.ms)} ms, {part.ms / total:.1%}"
        space = len(label) * CHARACTER + 10
        inside = long > space
        after = x + long + space < width
        anchor, place = ("start", x + 8) if inside else ("start", x + long + 6) if after else ("end", x - 6)
        body += [
            _text(left - 10, y + 12, part.name, "end"),
            f'<rect class="track" x="{left:.1f}" y="{y}" width="{room:.1f}" height="{BAR}" rx="3"/>',
            f'<rect class="f-{part.kind}" x="{x:.1f}" y="{y}" width="{long:.1f}" height="{BAR}" rx="3">'
            f"<title>{escape(part.name)}: {label}</title></rect>",
            _text(place, y + 12, label, anchor, "on" if inside else "value"),
        ]
        at += part.ms
    return _svg(width, len(parts) * ROW + 4, body)


def strip(dots: Sequence[Dot], marks: Sequence[tuple[str, float]], kind: str, width: int, unit: str = "ms") -> Markup:
    """Samples as dots over one axis, piled in columns as wide as a dot, and lines at percentiles."""
    low, high = min(dot.value for dot in dots), max(dot.value for dot in dots)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    ticks = _ticks(low - margin, high + margin, max(3, width // 130))
    low, high = min(low - margin, ticks[0]), max(high + margin, ticks[-1])
    left, right = 12.0, width - 18.0
    scale = (right - left) / (high - low)
    piles = _piled([left + (dot.value - low) * scale for dot in dots])
    tallest = max((row for _, row in piles), default=0)
    step = min(2 * DOT + 1, 96 / (tallest + 1))
    base = 34 + (tallest + 1) * step
    body = [f'<line class="axis" x1="{left}" x2="{right:.1f}" y1="{base + 6:.1f}" y2="{base + 6:.1f}"/>']
    for tick in ticks:
        x = left + (tick - low) * scale
        body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base + 6:.1f}" y2="{base + 10:.1f}"/>')
        body.append(_text(x, base + 23, shown(tick) + (f" {unit}" if tick == ticks[-1] else ""), "middle", "dim"))
    taken = [-100.0, -100.0]
    for name, value in marks:
        x = left + (value - low) * scale
        space = len(name) * CHARACTER / 2 + 5
        level = next((row for row, end in enumerate(taken) if x - space > end), None)
        body.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{base + 6:.1f}"/>')
        if level is not None:
            taken[level] = x + space
            body.append(_text(x, 25 - 13 * level, name, "middle", "dim"))
    for dot, (x, row) in zip(dots, piles, strict=True):
        look = f"s-{kind} hollow" if dot.hollow else f"f-{kind} dot"
        body.append(
            f'<circle class="{look}" cx="{x:.1f}" cy="{base - row * step:.1f}" r="{DOT}">'
            f"<title>{escape(dot.title)}</title></circle>"
        )
    return _svg(width, base + 30, body)


def lines(
    curves: Sequence[Line],
    width: int,
    unit: str,
    x_unit: str = "s",
    bands: Sequence[Band] = (),
    *,
    height: int = 220,
    dots: bool = False,
    filled: bool = False,
) -> Markup:
    """Curves over one x axis, from 0 upwards, with stretches shaded behind them."""
    known = [y for curve in curves for y in curve.y if y is not None]
    xs = [x for curve in curves for x in curve.x] + [x for band in bands for x in (band.start, band.stop)]
    ticks = _ticks(0.0, max(known, default=1.0) * 1.08 or 1.0, 4)
    top_value = max(ticks[-1], max(known, default=1.0) * 1.08)
    left = max(len(shown(tick)) for tick in ticks) * CHARACTER + 14
    first, last = min(xs, default=0.0), max(xs, default=1.0)
    last = last if last > first else first + 1.0
    top, bottom = 24.0, height - 28.0
    across, up = (width - left - 14) / (last - first), (bottom - top) / top_value
    body = []
    for band in bands:
        x = left + (max(band.start, first) - first) * across
        long = max(0.4, (min(band.stop, last) - max(band.start, first)) * across)
        body.append(
            f'<rect class="band f-{band.kind}" x="{x:.1f}" y="{top}" width="{long:.1f}" height="{bottom - top:.1f}">'
            f"<title>{escape(band.title)}</title></rect>"
        )
    for tick in ticks:
        y = bottom - tick * up
        body.append(f'<line class="grid" x1="{left:.1f}" x2="{width - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text(left - 8, y + 4, shown(tick), "end", "dim"))
    body.append(_text(left, 13, unit, "start", "dim"))
    for tick in _ticks(first, last, max(3, width // 130)):
        if first <= tick <= last:
            x = left + (tick - first) * across
            name = shown(tick) + (f" {x_unit}" if x + 50 > width - 14 or tick == first else "")
            body.append(_text(min(x, width - 14 - len(name) * CHARACTER / 2), height - 8, name, "middle", "dim"))
    for curve in curves:
        for stretch in _stretches(curve, int(width * MOST_POINTS)):
            places = [(left + (x - first) * across, bottom - y * up) for x, y in stretch]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            if filled:
                ends = f"{places[-1][0]:.1f},{bottom:.1f} {places[0][0]:.1f},{bottom:.1f}"
                body.append(f'<polygon class="under f-{curve.kind}" points="{path} {ends}"/>')
            body.append(f'<polyline class="line s-{curve.kind}" points="{path}"/>')
            if dots:
                for (x, y), (at, value) in zip(places, stretch, strict=True):
                    body.append(
                        f'<circle class="f-{curve.kind} dot" cx="{x:.1f}" cy="{y:.1f}" r="{DOT}">'
                        f"<title>{shown(at)} {escape(x_unit)}: {shown(value)} {escape(unit)}</title></circle>"
                    )
    return _svg(width, height, body)


def shown(value: float) -> str:
    """A number for an axis: three significant digits, no exponent below a million."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at or above `low` to at or below `high`, `most` + 1 of them at most; never none."""
    span = high - low if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most)
    found = [
        round(index * step, 12) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]
    return found or [low]


def _piled(places: Sequence[float]) -> list[tuple[float, int]]:
    """(x, row) of each: in columns as wide as a dot, the first in the lowest row."""
    column = 2 * DOT + 1
    filled: dict[int, int] = {}
    found = []
    for x in places:
        index = math.floor(x / column)
        found.append(((index + 0.5) * column, filled.get(index, 0)))
        filled[index] = filled.get(index, 0) + 1
    return found


def _stretches(curve: Line, most: int) -> list[list[tuple[float, float]]]:
    """Unbroken stretches of a curve. Of more than `most` points neighbours are joined, the highest kept."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    by = max(1, math.ceil(sum(map(len, found)) / most))
    return [
        [max(stretch[at : at + by], key=lambda point: point[1]) for at in range(0, len(stretch), by)]
        for stretch in found
        if stretch
    ]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{escape(text)}</text>'


def _svg(width: float, height: float, body: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">'
    return Markup(head + "".join(body) + "</svg>")
