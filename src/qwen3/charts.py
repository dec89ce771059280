"""Line charts as SVG, drawn without any library: for reports of runs, and for the pages of figures.

Colours of text and grid are attributes, so that a page's style sheet may set its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 400, 76, 52, 40, 150


class Series(NamedTuple):
    """points: (x, y). band: (x, low, high) behind the line. A label that ends with "floor" is drawn dashed."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


class Axis(NamedTuple):
    """What an axis shows from low to high. share: value -> its place from 0 to 1."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    share: Callable[[float], float]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series | tuple[str, str, Sequence[tuple[float, float]]]],
    scale: Literal["log", "linear"] = "log",
) -> str:
    """The SVG's text. scale: of both axes; log has a tick at every x of the data and at powers of ten of y, and a mark
    at each point. y_label "": none."""
    lines = [Series(*one) for one in series]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *both in line.band for y in both]
    along, up = (_log_x(xs), _log_y(ys)) if scale == "log" else (_linear(xs), _linear(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + along.share(x) * wide, HEIGHT - BOTTOM - up.share(y) * tall

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" fill="#222222">{escape(title)}</text>',
    ]
    for value, text in up.ticks:
        x, y = at(along.low, value)
        out.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#444444">{text}</text>')
    for value, text in along.ticks:
        x, y = at(value, up.low)
        out.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle" fill="#444444">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle" fill="#222222">{escape(x_label)}</text>')
    if y_label:
        out.append(
            f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" fill="#222222" '
            f'transform="rotate(-90 16 {HEIGHT / 2})">{escape(y_label)}</text>'
        )
    for i, (label, colour, line, band) in enumerate(lines):
        if band:
            rim = [at(x, high) for x, _, high in band] + [at(x, low) for x, low, _ in reversed(band)]
            out.append(f'<polygon points="{_path(rim)}" fill="{colour}" fill-opacity="0.15"/>')
        places = [at(x, y) for x, y in sorted(line)]
        dash = ' stroke-dasharray="5 4"' if label.endswith("floor") else ""
        out.append(f'<polyline points="{_path(places)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if (scale == "log" and not dash) or len(places) == 1:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        y = TOP + 16 * i
        out.append(f'<line x1="{WIDTH - RIGHT + 12}" y1="{y}" x2="{WIDTH - RIGHT + 34}" y2="{y}" stroke="{colour}" '
                   f'stroke-width="2"{dash}/>')  # fmt: skip
        out.append(f'<text x="{WIDTH - RIGHT + 40}" y="{y + 4}" fill="#222222">{escape(label)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _log_x(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    ticks = [(x, f"{x / 1024:.0f}k" if x >= 1024 else f"{x:.0f}") for x in sorted(set(values))]
    return Axis(low, high, ticks, lambda x: (math.log(x) - math.log(low)) / (math.log(high / low) or 1))


def _log_y(values: Sequence[float]) -> Axis:
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 1e-9)
    ticks, value = [], low
    while value <= high * 1.001:
        ticks.append((float(value), f"{value:,.0f}"))
        value *= 10
    return Axis(low, high, ticks, lambda y: (math.log(y) - math.log(low)) / (math.log(high / low) or 1))


def _linear(values: Sequence[float]) -> Axis:
    """From a round number to a round number, in steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: some room around it
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * 5 >= high - low)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [(i * step, _short(i * step, step)) for i in range(first, last + 1)]
    low, high = first * step, last * step
    return Axis(low, high, ticks, lambda value: (value - low) / (high - low))


def _short(value: float, step: float) -> str:
    """1.2M, 40k, 0.05, 2e-05: as exact as the step."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and step >= size / 100):
            return f"{value / size:.{max(0, math.ceil(-math.log10(step / size) - 1e-9))}f}{unit}"
    if step < 1e-4:
        return f"{value:.3g}"
    return f"{value:.{max(0, math.ceil(-math.log10(step) - 1e-9))}f}"
