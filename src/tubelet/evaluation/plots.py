"""Two kinds of plot as inline SVG: lines over frames, and points with names.

Written here, and not by a plotting library, for what the page needs: text that is text, colors that follow the page
into the dark (classes c0, c1, ... of its style sheet), sizes that a phone can read, a name at every point that does
not cover its neighbors, and no package beyond Tubelet's own. Everything is drawn in units of `WIDTH` × `HEIGHT`,
which the page scales.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["COLORS", "Axis", "Line", "Point", "line_plot", "line_sample", "point_plot"]

WIDTH, HEIGHT = 420, 290
COLORS = 8  # classes c0 … c7 of the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 14, 44
_CHAR_PX, _TEXT_PX = 7.2, 13  # of the page's labels, generously: fonts differ
_DASHES = ("", "8 3", "3 2", "9 3 2 3", "5 5", "2 4", "14 4", "6 2 2 2")


@dataclass(frozen=True, slots=True)
class Line:
    """A line: `ys` at `xs`, in color `color` of the page; NaN leaves a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int


@dataclass(frozen=True, slots=True)
class Point:
    """A named point; `color` None draws it gray and smaller: it is there to compare with."""

    name: str
    x: float
    y: float
    color: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says, whether equal steps on it are equal factors, and whether only whole numbers are on it."""

    label: str
    logarithmic: bool = False
    integers: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps values to units of the drawing."""

    place: Callable[[float], float]
    ticks: Sequence[float]


def line_plot(lines: Sequence[Line], *, x: Axis, y: Axis, title: str) -> str:
    """Draw lines.

    Args:
        lines: at least one.
        x: axis to the right.
        y: axis upwards.
        title: what it shows, for those who do not see it.

    Returns:
        An `<svg>` element; empty where there is nothing finite to draw.
    """
    points = [
        p
        for line in lines
        for p in zip(line.xs, line.ys, strict=True)
        if math.isfinite(p[0] + p[1])
    ]
    if not points:
        return ""
    across = _scale([p[0] for p in points], x, _LEFT, WIDTH - _RIGHT, tight=True)
    up = _scale([p[1] for p in points], y, HEIGHT - _BOTTOM, _TOP)
    drawn = [_frame(across, up, x, y)]
    for line in lines:
        dash = _DASHES[line.color % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        path = _path(line, across, up)
        name = html.escape(line.name)
        drawn.append(
            f'<path class="line c{line.color % COLORS}"{style} d="{path}"><title>{name}</title></path>'
        )
    return _svg(drawn, title)


def point_plot(points: Sequence[Point], *, x: Axis, y: Axis, title: str) -> str:
    """Draw points, with names wherever there is room for them; those with a color come first.

    Args:
        points: those that are not finite are left out.
        x: axis to the right.
        y: axis upwards.
        title: what it shows, for those who do not see it.

    Returns:
        An `<svg>` element; empty where there is nothing to draw.
    """
    points = [p for p in points if math.isfinite(p.x + p.y) and (p.x > 0 or not x.logarithmic)]
    if not points:
        return ""
    across = _scale([p.x for p in points], x, _LEFT, WIDTH - _RIGHT)
    up = _scale([p.y for p in points], y, HEIGHT - _BOTTOM, _TOP)
    drawn = [_frame(across, up, x, y)]
    places = [(across.place(p.x), up.place(p.y)) for p in points]
    taken = [(cx - 5, cy - 5, cx + 5, cy + 5) for cx, cy in places]
    ours_last = sorted(range(len(points)), key=lambda i: points[i].color is not None)
    for i in ours_last:
        (cx, cy), point = places[i], points[i]
        kind = "other" if point.color is None else f"c{point.color % COLORS}"
        radius = 3.5 if point.color is None else 5.5
        told = html.escape(
            f"{point.name}: {y.label} {point.y:g}, {x.label} {point.x:g}{point.note}"
        )
        drawn.append(
            f'<circle class="point {kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}"><title>{told}</title></circle>'
        )
    for i in reversed(ours_last):
        drawn += _label(points[i], places[i], taken)
    return _svg(drawn, title)


def line_sample(color: int) -> str:
    """Draw a short piece of the line of a color, for a legend."""
    dash = _DASHES[color % len(_DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    path = f'<path class="line c{color % COLORS}"{style} d="M0 5H36"/>'
    return f'<svg class="sample" viewBox="0 0 36 10" aria-hidden="true">{path}</svg>'


def _label(
    point: Point, place: tuple[float, float], taken: list[tuple[float, float, float, float]]
) -> list[str]:
    """Write a name beside its point where nothing is yet; nowhere if there is no room and it is not ours."""
    width = _CHAR_PX * len(point.name)
    cx, cy = place
    gap = 8
    steps = (0, 9, -9) if point.color is None else (0, 9, -9, 20, -20, 34, -34, 48, -48)
    sides = ((1, "start"), (-1, "end"))
    choices = [(cx + side * gap, cy + 4 + step, anchor) for step in steps for side, anchor in sides]
    choices[2:2] = [(cx, cy - gap, "middle"), (cx, cy + gap + 9, "middle")]
    for x, y, anchor in choices:
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        box = (left, y - _TEXT_PX + 3, left + width, y + 2)
        inside = (
            box[0] >= _LEFT + 2
            and box[2] <= WIDTH - 2
            and box[1] >= 0
            and box[3] <= HEIGHT - _BOTTOM
        )
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            kind = "name" if point.color is None else "name ours"
            text = html.escape(point.name)
            named = [
                f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
            ]
            far = abs(y - 4 - cy) > _TEXT_PX
            return (
                [f'<path class="leader" d="M{cx:.1f} {cy:.1f}L{x:.1f} {y - 4:.1f}"/>', *named]
                if far
                else named
            )
    return []


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _svg(drawn: Sequence[str], title: str) -> str:
    told = html.escape(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(drawn)}</svg>'
    )


def _frame(across: _Scale, up: _Scale, x: Axis, y: Axis) -> str:
    """Draw grid lines, tick labels and the names of the axes."""
    bottom, drawn = HEIGHT - _BOTTOM, list[str]()
    for value, label in zip(up.ticks, _tick_labels(up.ticks), strict=True):
        at = f"{up.place(value):.1f}"
        drawn.append(f'<path class="grid" d="M{_LEFT} {at}H{WIDTH - _RIGHT}"/>')
        drawn.append(
            f'<text x="{_LEFT - 6}" y="{up.place(value) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for value, label in zip(across.ticks, _tick_labels(across.ticks), strict=True):
        at = f"{across.place(value):.1f}"
        drawn.append(f'<path class="grid" d="M{at} {_TOP}V{bottom}"/>')
        drawn.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    middle = (_TOP + bottom) / 2
    drawn.append(
        f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(x.label)}</text>"
        f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y.label)}</text>"
    )
    return "".join(drawn)


def _path(line: Line, across: _Scale, up: _Scale) -> str:
    parts: list[str] = []
    pen_down = False
    for x, y in zip(line.xs, line.ys, strict=True):
        finite = math.isfinite(x + y)
        if finite:
            parts.append(f"{'L' if pen_down else 'M'}{across.place(x):.1f} {up.place(y):.1f}")
        pen_down = finite
    return "".join(parts)


def _scale(
    values: Sequence[float], axis: Axis, start: float, stop: float, *, tight: bool = False
) -> _Scale:
    """Fit values between two places of the drawing, with round ticks."""
    form = math.log10 if axis.logarithmic else float
    low, high = form(min(values)), form(max(values))
    if high - low < 1e-9:
        room = 0.3 if axis.logarithmic else max(abs(low) * 0.02, 0.5)
        low, high = low - room, high + room
    elif not tight:
        room = 0.08 * (high - low)
        low, high = low - room, high + room
    ticks = (
        _log_ticks(low, high)
        if axis.logarithmic
        else _linear_ticks(low, high, least=1 if axis.integers else 0)
    )
    if (
        len(ticks) < 2 and axis.logarithmic
    ):  # values so close together that no two powers lie between them
        ticks = _linear_ticks(10**low, 10**high, least=0)
    return _Scale(lambda value: start + (form(value) - low) / (high - low) * (stop - start), ticks)


def _linear_ticks(low: float, high: float, *, least: float) -> list[float]:
    """Take multiples of 1, 2 or 5 times a power of ten: four to eight of them."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = max(least, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))
    return [
        n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    """Take powers of ten, and 2 and 5 times those where the axis is short."""
    factors = (1,) if high - low > 3 else (1, 2, 5)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [f * 10.0**p for p in powers for f in factors if low <= math.log10(f * 10.0**p) <= high]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write ticks with as many decimals as they differ by."""
    return [f"{round(tick, 10):.6g}" for tick in ticks]
