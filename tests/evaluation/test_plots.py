"""Plots: marks at the values, names that do not overlap, gaps for unknown values."""

import math
import re

import pytest

from tubelet.evaluation.plots import HEIGHT, WIDTH, Axis, Line, Point, line_plot, point_plot

FRAME, DB, MILLIONS = Axis("frame"), Axis("PSNR (dB)"), Axis("millions", logarithmic=True)


def curve(svg: str) -> str:
    (path,) = re.findall(r'<path class="line[^>]* d="([^"]+)"', svg)
    return path


def circles(svg: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)
    ]


def test_a_line_goes_up_with_its_values() -> None:
    path = curve(line_plot([Line("a", range(3), [20, 21, 23], 0)], x=FRAME, y=DB, title="t"))
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs)
    assert ys[0] > ys[1] > ys[2]  # the drawing counts from the top
    assert ys[0] - ys[1] == pytest.approx((ys[1] - ys[2]) / 2, abs=0.2)


def test_unknown_and_infinite_values_leave_a_gap() -> None:
    values = [20.0, 21.0, math.nan, 22.0, math.inf, 23.0, 24.0]
    path = curve(line_plot([Line("a", range(7), values, 0)], x=FRAME, y=DB, title="t"))
    assert path.count("M") == 3
    assert path.count("L") == 2
    assert "nan" not in path
    assert line_plot([Line("a", [0], [math.nan], 0)], x=FRAME, y=DB, title="t") == ""


def test_equal_values_and_a_single_frame_can_be_drawn() -> None:
    for values in ([25.0], [25.0, 25.0]):
        assert curve(
            line_plot([Line("a", range(len(values)), values, 0)], x=FRAME, y=DB, title="t")
        )


def test_equal_factors_are_equal_steps_on_a_logarithmic_axis() -> None:
    svg = point_plot(
        [Point(name, x, 20, 0) for name, x in (("a", 1), ("b", 10), ("c", 100))],
        x=MILLIONS,
        y=DB,
        title="",
    )
    (a, _), (b, _), (c, _) = circles(svg)
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_points_outside_of_a_logarithmic_axis_are_left_out() -> None:
    points = [Point("none", 0, 20, 0), Point("a", 1, 20, 0), Point("b", 1, math.nan)]
    assert len(circles(point_plot(points, x=MILLIONS, y=DB, title=""))) == 1
    assert point_plot(points[:1], x=MILLIONS, y=DB, title="") == ""


def test_names_cover_neither_each_other_nor_the_edge() -> None:
    crowd = [Point(f"Method-{i}", 10 + i % 5, 27 + 0.1 * (i // 5)) for i in range(20)]
    ours = [
        Point("fast-x4-bi", 10.5, 27.1, 0),
        Point("fast-x4-real", 10.6, 27.1, 1),
        Point("bicubic-x4", 0.1, 23, 2),
    ]
    svg = point_plot([*crowd, *ours], x=MILLIONS, y=DB, title="")
    boxes: list[tuple[float, float, float, float]] = []
    names = re.findall(
        r'<text class="name[^"]*" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)', svg
    )
    for x, y, anchor, name in names:
        width = 6 * len(name)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, float(y) - 9, left + width, float(y)))
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= WIDTH
        assert 0 <= a[1] < a[3] <= HEIGHT
        assert not any(
            a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i]
        )
    named = {name for *_, name in names}
    assert {point.name for point in ours} <= named
    assert len(named) < len(
        crowd
    )  # there is no room for all; the others show their names as tooltips
    assert all(f"<title>{point.name}:" in svg for point in crowd)


def test_ticks_are_round_and_inside() -> None:
    svg = line_plot(
        [Line("a", range(41), [20 + 0.037 * t for t in range(41)], 0)], x=FRAME, y=DB, title="t"
    )
    labels = re.findall(r'<text x="[\d.]+" y="[\d.]+" text-anchor="(?:end|middle)">([^<]+)', svg)
    assert "20.5" in labels
    assert "40" in labels
    assert all(len(label) <= 5 for label in labels)


def test_values_close_together_have_ticks_on_a_logarithmic_axis() -> None:
    svg = point_plot(
        [Point("a", 0.0536, 25, 0), Point("b", 0.063, 26, 1)], x=MILLIONS, y=DB, title="t"
    )
    labels = re.findall(r'text-anchor="middle">(0[\d.]+)<', svg)
    assert len(labels) >= 2
    assert all(0.05 < float(label) < 0.07 for label in labels)


def test_frame_numbers_are_integers() -> None:
    svg = line_plot(
        [Line("a", range(3), [20, 21, 22], 0)], x=Axis("frame", integers=True), y=DB, title="t"
    )
    labels = re.findall(r'text-anchor="middle">([^<]+)', svg)
    assert labels[:3] == ["0", "1", "2"]


def test_names_are_escaped() -> None:
    svg = point_plot([Point("<a&b>", 1, 20, 0)], x=MILLIONS, y=DB, title='"<t>"')
    assert "&lt;a&amp;b&gt;" in svg
    assert "<a&b>" not in svg
    assert '"<t>"' not in svg
