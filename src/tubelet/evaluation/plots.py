"""Two kinds of plots as inline SVG: lines over frames, and points with names.

They are written here, and not by a plotting library, for the needs of the page: text stays text,
colors follow the page into dark mode (classes c0, c1, ... of its style sheet), sizes are readable
on a phone, every name is placed where it does not cover others, and no package is needed. The
drawing has `WIDTH` × `HEIGHT` units, which the page scales.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

__all__ = ["COLORS", "Axis", "Line", "Point", "line_plot", "line_sample", "point_plot"]

WIDTH = 420
HEIGHT = 290
COLORS = 8
"""Number of colors of the page, classes c0 to c7; later lines repeat them."""

# Edges of the plot area; the margins have room for the labels of the axes.
_LEFT = 50
_RIGHT = WIDTH - 14
_TOP = 14
_BOTTOM = HEIGHT - 44

# Size of the page's labels, estimated generously since fonts differ.
_CHAR_WIDTH = 7.2
_TEXT_HEIGHT = 13

_DASHES = ("", "8 3", "3 2", "9 3 2 3", "5 5", "2 4", "14 4", "6 2 2 2")

_LABEL_GAP = 8
"""Distance of a name from its point."""
_LABEL_SHIFTS = (0, 9, -9, 20, -20, 34, -34, 48, -48)
"""Vertical shifts of a name from its point, in the order in which they are tried."""
_GRAY_LABEL_SHIFTS = (0, 9, -9)

Anchor = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]
"""Rectangle (left, top, right, bottom), in units of the drawing."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points.

    Attributes:
        name: Name of the line, shown by a tooltip.
        xs: Positions on the horizontal axis.
        ys: Values; NaN and infinity leave a gap.
        color: Number of the line's color on the page, which also selects its dashes.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int


@dataclass(frozen=True, slots=True)
class Point:
    """A point with a name.

    Attributes:
        name: Name of the point.
        x: Position on the horizontal axis.
        y: Position on the vertical axis.
        color: Number of the point's color on the page; None draws a smaller gray point, for
            methods that are shown for comparison.
    """

    name: str
    x: float
    y: float
    color: int | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a plot.

    Attributes:
        label: Quantity and unit.
        logarithmic: Whether equal steps on the axis are equal factors.
        integers: Whether only integers are labeled.
    """

    label: str
    logarithmic: bool = False
    integers: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """Mapping from values to units of the drawing.

    Attributes:
        position: Function from a value to its position.
        ticks: Values with a grid line and a label.
    """

    position: Callable[[float], float]
    ticks: Sequence[float]


@dataclass(frozen=True, slots=True)
class _Label:
    """A possible position of a name, with the anchor and baseline of SVG text."""

    text: str
    x: float
    y: float
    anchor: Anchor

    @property
    def box(self) -> Box:
        """The rectangle that the text covers."""
        width = _CHAR_WIDTH * len(self.text)
        match self.anchor:
            case "start":
                left = self.x
            case "middle":
                left = self.x - width / 2
            case "end":
                left = self.x - width
        return left, self.y - _TEXT_HEIGHT + 3, left + width, self.y + 2


def line_plot(lines: Sequence[Line], *, x: Axis, y: Axis, title: str) -> str:
    """Draw lines.

    Args:
        lines: The lines; not empty.
        x: Horizontal axis.
        y: Vertical axis, upwards.
        title: Description of the plot for screen readers.

    Returns:
        An `<svg>` element; empty if there is no finite value to draw.
    """
    finite_xs: list[float] = []
    finite_ys: list[float] = []
    for line in lines:
        for x_value, y_value in zip(line.xs, line.ys, strict=True):
            if math.isfinite(x_value + y_value):
                finite_xs.append(x_value)
                finite_ys.append(y_value)
    if not finite_xs:
        return ""
    # Lines use the full width of the plot; y grows downwards in SVG.
    x_scale = _fit_scale(finite_xs, x, _LEFT, _RIGHT, margin=False)
    y_scale = _fit_scale(finite_ys, y, _BOTTOM, _TOP)
    elements = _grid_and_labels(x_scale, y_scale, x, y)
    for line in lines:
        style = _line_style(line.color)
        path = _path(line, x_scale, y_scale)
        name = html.escape(line.name)
        elements.append(f'<path {style} d="{path}"><title>{name}</title></path>')
    return _svg(elements, title)


def point_plot(
    points: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    title: str,
) -> str:
    """Draw points, with names where there is room; names of colored points are placed first.

    Args:
        points: The points; those that are not finite, or not on a logarithmic axis, are left out.
        x: Horizontal axis.
        y: Vertical axis, upwards.
        title: Description of the plot for screen readers.

    Returns:
        An `<svg>` element; empty if there is nothing to draw.
    """
    drawable: list[Point] = []
    for point in points:
        on_axis = point.x > 0 or not x.logarithmic
        if math.isfinite(point.x + point.y) and on_axis:
            drawable.append(point)
    if not drawable:
        return ""
    x_scale = _fit_scale([point.x for point in drawable], x, _LEFT, _RIGHT)
    y_scale = _fit_scale([point.y for point in drawable], y, _BOTTOM, _TOP)
    elements = _grid_and_labels(x_scale, y_scale, x, y)

    # Names must not cover any point, nor each other.
    occupied: list[Box] = []
    for point in drawable:
        center_x = x_scale.position(point.x)
        center_y = y_scale.position(point.y)
        occupied.append((center_x - 5, center_y - 5, center_x + 5, center_y + 5))

    # Colored points are drawn last, over gray ones, but their names are placed first.
    drawable_order = sorted(drawable, key=lambda point: point.color is not None)
    for point in drawable_order:
        elements.append(_circle(point, x_scale, y_scale, x, y))
    for point in reversed(drawable_order):
        center_x = x_scale.position(point.x)
        center_y = y_scale.position(point.y)
        elements += _place_name(point, center_x, center_y, occupied)
    return _svg(elements, title)


def line_sample(color: int) -> str:
    """Draw a short piece of a line, for a legend."""
    path = f'<path {_line_style(color)} d="M0 5H36"/>'
    return f'<svg class="sample" viewBox="0 0 36 10" aria-hidden="true">{path}</svg>'


def _line_style(color: int) -> str:
    """Write the attributes that give a line its color and dashes."""
    dash = _DASHES[color % len(_DASHES)]
    style = f'class="line c{color % COLORS}"'
    if dash:
        style += f' stroke-dasharray="{dash}"'
    return style


def _circle(
    point: Point,
    x_scale: _Scale,
    y_scale: _Scale,
    x: Axis,
    y: Axis,
) -> str:
    """Draw a point, with its name and values as a tooltip."""
    if point.color is None:
        style = "other"
        radius = 3.5
    else:
        style = f"c{point.color % COLORS}"
        radius = 5.5
    center_x = x_scale.position(point.x)
    center_y = y_scale.position(point.y)
    tooltip = f"{point.name}: {y.label} {point.y:g}, {x.label} {point.x:g}"
    return (
        f'<circle class="point {style}" cx="{center_x:.1f}" cy="{center_y:.1f}" r="{radius}">'
        f"<title>{html.escape(tooltip)}</title></circle>"
    )


def _place_name(
    point: Point,
    center_x: float,
    center_y: float,
    occupied: list[Box],
) -> list[str]:
    """Write a point's name at the first free position, and add it to `occupied`.

    Returns:
        SVG elements; none if there is no room. A name that is far from its point has a line to it.
    """
    for label in _name_positions(point, center_x, center_y):
        box = label.box
        if not _is_inside(box) or any(_overlap(box, other) for other in occupied):
            continue
        occupied.append(box)
        elements: list[str] = []
        if abs(label.y - 4 - center_y) > _TEXT_HEIGHT:
            elements.append(
                f'<path class="leader" d="M{center_x:.1f} {center_y:.1f}'
                f'L{label.x:.1f} {label.y - 4:.1f}"/>'
            )
        style = "name" if point.color is None else "name ours"
        elements.append(
            f'<text class="{style}" x="{label.x:.1f}" y="{label.y:.1f}" '
            f'text-anchor="{label.anchor}">{html.escape(point.name)}</text>'
        )
        return elements
    return []


def _name_positions(
    point: Point,
    center_x: float,
    center_y: float,
) -> list[_Label]:
    """List the positions to try for a name: right, left, above, below, then shifted ones."""
    # Gray points have few positions: names of colored points matter more.
    shifts = _GRAY_LABEL_SHIFTS if point.color is None else _LABEL_SHIFTS
    positions: list[_Label] = []
    for shift in shifts:
        # The baseline of text that is centered on the point is 4 units lower.
        baseline = center_y + 4 + shift
        positions.append(_Label(point.name, center_x + _LABEL_GAP, baseline, "start"))
        positions.append(_Label(point.name, center_x - _LABEL_GAP, baseline, "end"))
    above = _Label(point.name, center_x, center_y - _LABEL_GAP, "middle")
    below = _Label(point.name, center_x, center_y + _LABEL_GAP + 9, "middle")
    # After the unshifted positions at the right and left.
    positions[2:2] = [above, below]
    return positions


def _is_inside(box: Box) -> bool:
    """Return whether a name is in the plot area, or in the margin at its right."""
    left, top, right, bottom = box
    is_inside_x = _LEFT + 2 <= left <= right <= WIDTH - 2
    is_inside_y = 0 <= top <= bottom <= _BOTTOM
    return is_inside_x and is_inside_y


def _overlap(a: Box, b: Box) -> bool:
    overlap_x = a[0] < b[2] and b[0] < a[2]
    overlap_y = a[1] < b[3] and b[1] < a[3]
    return overlap_x and overlap_y


def _svg(elements: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(elements)}</svg>"
    )


def _grid_and_labels(
    x_scale: _Scale,
    y_scale: _Scale,
    x: Axis,
    y: Axis,
) -> list[str]:
    """Draw grid lines with their values, and the labels of the axes."""
    elements: list[str] = []
    for value in y_scale.ticks:
        position = y_scale.position(value)
        elements.append(f'<path class="grid" d="M{_LEFT} {position:.1f}H{_RIGHT}"/>')
        elements.append(
            f'<text x="{_LEFT - 6}" y="{position + 4:.1f}" text-anchor="end">'
            f"{_tick_label(value)}</text>"
        )
    for value in x_scale.ticks:
        position = x_scale.position(value)
        elements.append(f'<path class="grid" d="M{position:.1f} {_TOP}V{_BOTTOM}"/>')
        elements.append(
            f'<text x="{position:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">'
            f"{_tick_label(value)}</text>"
        )
    middle_x = (_LEFT + _RIGHT) / 2
    middle_y = (_TOP + _BOTTOM) / 2
    elements.append(
        f'<text class="axis" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(x.label)}</text>"
    )
    elements.append(
        f'<text class="axis" transform="translate(12 {middle_y}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y.label)}</text>'
    )
    return elements


def _path(line: Line, x_scale: _Scale, y_scale: _Scale) -> str:
    """Write the path of a line, which starts anew after a value that is not finite."""
    commands: list[str] = []
    pen_down = False
    for x, y in zip(line.xs, line.ys, strict=True):
        finite = math.isfinite(x + y)
        if finite:
            command = "L" if pen_down else "M"
            commands.append(f"{command}{x_scale.position(x):.1f} {y_scale.position(y):.1f}")
        pen_down = finite
    return "".join(commands)


def _fit_scale(
    values: Sequence[float],
    axis: Axis,
    start: float,
    stop: float,
    *,
    margin: bool = True,
) -> _Scale:
    """Fit values between two positions of the drawing, with round ticks.

    Args:
        values: Finite values; not empty.
        axis: Their axis.
        start: Position of the smallest value.
        stop: Position of the largest value.
        margin: Whether to leave some space before the smallest and after the largest value.
    """
    transform = math.log10 if axis.logarithmic else float
    low = transform(min(values))
    high = transform(max(values))
    padding = 0.0
    if high - low < 1e-9:
        # All values are equal; the axis needs a length.
        padding = 0.3 if axis.logarithmic else max(abs(low) * 0.02, 0.5)
    elif margin:
        padding = 0.08 * (high - low)
    low -= padding
    high += padding

    if axis.logarithmic:
        ticks = _log_ticks(low, high)
        if len(ticks) < 2:
            # The values are so close together that there are no two round powers between them.
            ticks = _linear_ticks(10**low, 10**high)
    else:
        ticks = _linear_ticks(low, high, min_step=1 if axis.integers else 0)

    def position(value: float) -> float:
        return start + (transform(value) - low) / (high - low) * (stop - start)

    return _Scale(position, ticks)


def _linear_ticks(
    low: float,
    high: float,
    *,
    min_step: float = 0,
) -> list[float]:
    """List multiples of 1, 2 or 5 times a power of ten: four to eight of them."""
    approximate_step = (high - low) / 5
    power = 10 ** math.floor(math.log10(approximate_step))
    step = power
    for factor in (1, 2, 5, 10):
        step = factor * power
        if step >= approximate_step:
            break
    step = max(min_step, step)
    # Rounding errors must not drop a tick at an end.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """List powers of ten, and 2 and 5 times those if the axis is short.

    Args:
        low: Decimal logarithm of the smallest value.
        high: Decimal logarithm of the largest value.
    """
    factors = (1, 2, 5)
    is_long = high - low > 3
    if is_long:
        factors = (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[float] = []
    for power, factor in product(powers, factors):
        tick = factor * 10.0**power
        if low <= math.log10(tick) <= high:
            ticks.append(tick)
    return ticks


def _tick_label(tick: float) -> str:
    """Write a tick without the rounding error of its multiplication."""
    return f"{round(tick, 10):.6g}"
