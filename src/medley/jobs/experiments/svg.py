"""Plots as SVG text: lines, means with intervals, histograms, lanes of time.

Drawn here and not by a plotting library, because the report must be one file that follows the reader's dark or light
setting: every colour is a CSS variable of `STYLE`, which a library's own output does not allow, and 200 lines do what
four kinds of plots need without 40 MB of dependencies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from medley.jobs.experiments.axes import Scale
from medley.jobs.experiments.statistics import Mean

COLOURS = 8
OURS = b'<svg class="plot" '  # every plot begins so
_SIZE = re.compile(r'viewBox="0 0 (\d+) (\d+)" width="\d+" height="\d+"')
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 32, 44
STYLE = """
.plot { --ink: #1c2422; --soft: #5b6663; --line: #dfe4e1; --ground: #ffffff; --down: #d9a7a3;
  --c0: #1f6f6b; --c1: #c2571a; --c2: #3a5fb0; --c3: #93650a; --c4: #8a3c8f;
  --c5: #3e7d27; --c6: #b3312c; --c7: #5b6663; }
@media (prefers-color-scheme: dark) { .plot { --ink: #e7ecea; --soft: #9aa7a3; --line: #303937; --ground: #1b211f;
  --down: #6e3b38; --c0: #58b5ae; --c1: #ee9560; --c2: #86a8f2; --c3: #e0b04f; --c4: #cf93d6; --c5: #8cc870;
  --c6: #f0827c; --c7: #9aa7a3; } }
.plot { font: 12px system-ui, sans-serif; }
.plot text { fill: var(--soft); } .plot .title { fill: var(--ink); font-weight: 600; font-size: 12.5px; }
.plot .grid { stroke: var(--line); stroke-width: 1; } .plot .axis { stroke: var(--soft); stroke-width: 1; }
.plot .end { text-anchor: end; } .plot .middle { text-anchor: middle; }
.plot polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.plot .again { stroke-width: 1; opacity: .55; }
.plot .reach { stroke-width: 2; } .plot .down { fill: var(--down); } .plot .lane { fill: var(--line); opacity: .45; }
""" + "".join(f".plot .s{n} {{ stroke: var(--c{n}); }} .plot .f{n} {{ fill: var(--c{n}); }}\n" for n in range(COLOURS))


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `again` draws it faint, as a further repeat."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """The box, the axes, the title of one plot."""

    title: str
    x: Scale
    y: Scale
    x_label: str = ""
    y_label: str = ""
    width: int = 354
    height: int = 240
    foot: int = BOTTOM  # room below the plot

    def left(self, value: float) -> float:
        return LEFT + self.x.at(value) * (self.width - LEFT - RIGHT)

    def top(self, value: float) -> float:
        return self.height - self.foot - self.y.at(value) * (self.height - TOP - self.foot)


def lines(frame: Frame, series: Iterable[Series]) -> str:
    drawn = [_polyline(frame, one) for one in series if one.points]
    return _svg(frame, [*_grid(frame), *_x_axis(frame), *drawn])


def _polyline(frame: Frame, one: Series) -> str:
    points = [(frame.left(x), frame.top(y)) for x, y in one.points if isfinite(x) and isfinite(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    kind = f"s{one.colour % COLOURS}{' again' if one.again else ''}"
    if len(points) == 1:
        return f'<circle class="f{one.colour % COLOURS}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>'
    return f'<polyline class="{kind}" points="{path}"><title>{escape(one.name)}</title></polyline>'


def intervals(frame: Frame, categories: Sequence[str], series: Sequence[tuple[str, Sequence[Mean | None]]]) -> str:
    """For each category one dot a series with its interval; a missing mean is a cross at the foot."""
    room = (frame.width - LEFT - RIGHT) / max(len(categories), 1)
    drawn: list[str] = []
    level = max((len(one) for one in categories), default=0) * 6.4 <= room
    for place, category in enumerate(categories):
        middle = LEFT + room * (place + 0.5)
        drawn.append(_category(frame, category, middle, level))
        for number, (name, means) in enumerate(series):
            share = (number + 0.5) / len(series) - 0.5
            drawn.append(_dot(frame, middle + share * room * 0.72, number, f"{category}, {name}", means[place]))
    return _svg(frame, [*_grid(frame), *drawn])


def _category(frame: Frame, text: str, middle: float, level: bool) -> str:
    foot = frame.height - frame.foot + 16
    if level:
        return f'<text class="middle" x="{middle:.1f}" y="{foot}">{escape(text)}</text>'
    short = text if len(text) <= 16 else text[:15] + "…"
    turn = f"rotate(-24 {middle:.1f} {foot - 4})"
    return f'<text class="end" x="{middle + 6:.1f}" y="{foot - 4}" transform="{turn}">{escape(short)}</text>'


def _dot(frame: Frame, x: float, number: int, name: str, mean: Mean | None) -> str:
    colour = number % COLOURS
    if mean is None:
        foot = frame.height - frame.foot - 5
        cross = f"M{x - 3:.1f} {foot - 3}l6 6m0 -6l-6 6"
        return f'<path class="s{colour}" d="{cross}"><title>{escape(name)}: none</title></path>'
    y, low, high = frame.top(mean.value), frame.top(max(mean.low, frame.y.low)), frame.top(min(mean.high, frame.y.high))
    bar = f'<line class="s{colour} reach" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    label = f"{escape(name)}: {mean.value:.4g} ± {mean.half:.2g} ({mean.count} runs)"
    return f'<g><title>{label}</title>{bar}<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/></g>'


def histogram(frame: Frame, series: Sequence[tuple[str, int, Sequence[tuple[float, float]]]], width: float) -> str:
    """Bars side by side: (name, colour, (start of the bin, height))."""
    drawn = []
    for number, (name, colour, bars) in enumerate(series):
        for start, height in bars:
            left = frame.left(start + width * number / len(series))
            right = frame.left(start + width * (number + 0.92) / len(series))
            top, foot = frame.top(height), frame.top(frame.y.low)
            drawn.append(
                f'<rect class="f{colour % COLOURS}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.6):.1f}" '
                f'height="{max(foot - top, 0):.1f}"><title>{escape(name)}: {height:.3g}</title></rect>'
            )
    return _svg(frame, [*_grid(frame), *_x_axis(frame), *drawn])


@dataclass(frozen=True, slots=True)
class Stripe:
    """One machine in a plot of lanes: fractions by bin, outages in seconds."""

    name: str
    width_s: float
    compute: Sequence[float]
    transfer: Sequence[float]
    downs: Sequence[tuple[float, float]]


def stripes(title: str, x: Scale, x_label: str, rows: Sequence[Stripe], width: int = 740) -> str:
    """A lane a machine: computing above, transfers below, outages across."""
    tall = 15 if len(rows) <= 24 else 9
    frame = Frame(title, x, Scale(0, 1, False, "", ()), x_label, "", width, TOP + BOTTOM + tall * len(rows))
    drawn = []
    for number, row in enumerate(rows):
        top = TOP + number * tall
        if tall > 9 or number % 2 == 0:
            drawn.append(f'<text class="end" x="{LEFT - 6}" y="{top + tall - 3.5}">{escape(_short(row.name))}</text>')
        left, right = frame.left(x.low), frame.left(x.high)
        drawn.append(f'<rect class="lane" x="{left}" y="{top + 1}" width="{right - left:.1f}" height="{tall - 2}"/>')
        drawn += _cells(frame, row, row.compute, 0, top + 1, (tall - 2) * 0.62)
        drawn += _cells(frame, row, row.transfer, 1, top + 1 + (tall - 2) * 0.62, (tall - 2) * 0.38)
        for start, stop in row.downs:
            a, b = frame.left(start), frame.left(min(stop, x.high))
            drawn.append(
                f'<rect class="down" x="{a:.1f}" y="{top + 1}" width="{max(b - a, 1):.1f}" height="{tall - 2}"/>'
            )
    return _svg(frame, [*drawn, *_x_axis(frame)])


def _cells(frame: Frame, row: Stripe, shares: Sequence[float], colour: int, top: float, height: float) -> Iterable[str]:
    for number, share in enumerate(shares):
        start = number * row.width_s
        if share < 0.01 or start >= frame.x.high:
            continue
        left, right = frame.left(start), frame.left(min(start + row.width_s, frame.x.high))
        yield (
            f'<rect class="f{colour}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.2f}" height="{height:.1f}" '
            f'opacity="{min(share, 1):.2f}"/>'
        )


def _short(name: str) -> str:
    return name if len(name) <= 8 else "…" + name[-7:]


def legend(names: Sequence[str]) -> str:
    """Coloured words, in the order of the colours."""
    marks = (
        f'<span><i style="background: var(--c{n % COLOURS})"></i>{escape(one)}</span>' for n, one in enumerate(names)
    )
    return f'<p class="legend plot">{"".join(marks)}</p>'


def alone(text: str, names: Sequence[str] = ()) -> str:
    """The same plot as a file of its own, its legend below."""
    found = _SIZE.search(text)
    assert found is not None, "not a plot of ours"
    width, height = int(found[1]), int(found[2])
    tall = height + 22 * bool(names)
    size = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" width="{width}" height="{tall}"'
    ground = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--ground)"/>'
    drawn = text.replace(found[0], size, 1).replace("<desc/>", ground, 1)
    return drawn.removesuffix("</svg>") + "".join(_legend_marks(names, height + 12)) + "</svg>"


def _legend_marks(names: Sequence[str], middle: int) -> Iterable[str]:
    left = 12.0
    for number, name in enumerate(names):
        colour = number % COLOURS
        yield f'<rect class="f{colour}" x="{left:.0f}" y="{middle - 8}" width="10" height="10" rx="2"/>'
        yield f'<text x="{left + 15:.0f}" y="{middle + 1}">{escape(name)}</text>'
        left += 30 + 6.6 * len(name)


def _svg(frame: Frame, content: Iterable[str]) -> str:
    title = f'<text class="title" x="{LEFT - 46}" y="16">{escape(frame.title)}</text>' if frame.title else ""
    body = "".join(content)
    return (
        f'<svg class="plot" viewBox="0 0 {frame.width} {frame.height}" width="{frame.width}" height="{frame.height}" '
        f'role="img" aria-label="{escape(frame.title)}"><desc/>{title}{body}</svg>'
    )


def _grid(frame: Frame) -> Iterable[str]:
    right = frame.width - RIGHT
    for value, text in frame.y.ticks:
        y = frame.top(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{text}</text>'
    foot = frame.height - frame.foot
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{foot}" y2="{foot}"/>'
    label = _with_unit(frame.y_label, frame.y.unit)
    if label:
        middle = TOP + (foot - TOP) / 2
        turn = f"rotate(-90 12 {middle})"
        yield f'<text class="middle" x="12" y="{middle}" transform="{turn}">{escape(label)}</text>'


def _x_axis(frame: Frame) -> Iterable[str]:
    foot = frame.height - frame.foot
    for value, text in frame.x.ticks:
        x = frame.left(value)
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 4}"/>'
        yield f'<text class="middle" x="{x:.1f}" y="{foot + 16}">{text}</text>'
    label = _with_unit(frame.x_label, frame.x.unit)
    yield f'<text class="middle" x="{(LEFT + frame.width - RIGHT) / 2}" y="{foot + 33}">{escape(label)}</text>'


def _with_unit(label: str, unit: str) -> str:
    return f"{label}, {unit}" if label and unit else label or unit
