"""Timestamps and spans of any video: properties that hypothesis tries to break."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.videos import make_plain
from tubelet.types import Frame
from tubelet.video.output_format import OutputClock
from tubelet.video.reader import Span, open_reader

settings.register_profile("tubelet", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tubelet")

ticks = st.sampled_from(
    [Fraction(1, 90_000), Fraction(1, 1000), Fraction(1, 25), Fraction(1001, 30_000)]
)
times = st.fractions(0, 10_000, max_denominator=90_000)


@st.composite
def clocks(draw: st.DrawFn) -> OutputClock:
    tick_s = draw(ticks)
    origin_s = draw(times)
    exact = draw(times) / tick_s
    return OutputClock(tick_s=tick_s, origin_s=origin_s, phase_ticks=round(exact) - exact)


@given(clock=clocks(), time_s=times, step_ticks=st.fractions(0, 3, max_denominator=100))
def test_the_order_of_frames_survives_rounding(
    clock: OutputClock, time_s: Fraction, step_ticks: Fraction
) -> None:
    first = round(clock.exact(time_s))
    second = round(clock.exact(time_s + step_ticks * clock.tick_s))
    assert first <= second
    # Frames that are more than a tick apart never share a tick.
    if step_ticks > 1:
        assert first < second
    assert clock.moved_s(time_s) <= clock.tick_s


@given(clock=clocks())
def test_a_clock_survives_json(clock: OutputClock) -> None:
    assert OutputClock.from_json(clock.to_json()) == clock


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    gaps_ms=st.lists(st.integers(1, 120), min_size=1, max_size=12),
    bounds=st.lists(st.integers(0, 13), max_size=3),
)
def test_spans_between_any_frames_give_each_frame_once(
    tmp_path: Path, gaps_ms: list[int], bounds: list[int]
) -> None:
    """Frames with any spacing, split before any of them, equal those of the whole video."""
    pts_ms = [0]
    for gap in gaps_ms:
        pts_ms.append(pts_ms[-1] + gap)
    path = make_plain(tmp_path / "in.mkv", pts_ms=pts_ms, size=(16, 16), audio=False)
    with open_reader(path) as reader:
        whole = [describe(frame) for frame in reader]
    assert [time_s for _, _, time_s, _ in whole] == [Fraction(pts, 1000) for pts in pts_ms]

    edges = sorted({min(bound, len(whole)) for bound in bounds} | {0, len(whole)})
    parts = []
    for first, last in pairwise(edges):
        span = Span(
            start=whole[first][1] if first else None,
            stop=whole[last][1] if last < len(whole) else None,
            first_index=first,
            may_seek=reader.may_seek,
        )
        with open_reader(path, span=span) as part:
            parts += [describe(frame) for frame in part]
    assert parts == whole


def describe(frame: Frame) -> tuple[int, int, Fraction, float]:
    """Return index, pts, time in seconds, and a sum that identifies the pixels."""
    return frame.index, frame.pts, frame.pts * frame.time_base, frame.rgb.double().sum().item()
