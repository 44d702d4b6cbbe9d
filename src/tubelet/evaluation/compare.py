"""Write one self-contained page that shows a video before and after: a slider, and a strip of close-ups."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Literal

from torch import Tensor

from tubelet.evaluation.crops import Region, detailed_regions
from tubelet.evaluation.images import data_url, enlarge, to_image
from tubelet.evaluation.sampling import read_nearest_frame, sample_times
from tubelet.files import atomic_write
from tubelet.video.info import VideoInfo
from tubelet.video.probe import probe

__all__ = ["ComparePage", "write_compare_page", "write_page"]

_CROP_PX = (
    144,
    112,
)  # width, height in pixels of the result; four side by side still fit a desktop
_ZOOM = 2
_CROPS = 4
_HDR_TRANSFERS = (16, 18)  # AVCOL_TRC_SMPTE2084 (PQ), AVCOL_TRC_ARIB_STD_B67 (HLG)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """What a page shows and says."""

    frames: int = 6
    """How many moments, spread evenly."""
    title: str | None = None
    """Heading; None is the names of the files."""
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    """More lines for the table at the end, name → value."""
    truth: str | Path | None = None
    """The original that both are to look like, where there is one."""
    before_start_s: float = 0.0
    """Time of the first video at which the second begins, seconds."""
    labels: tuple[str, str] = ("Input", "Result")
    """What the two videos are called."""
    size: Literal["second", "larger"] = "second"
    """Whose size the page has; the others are brought to it (bicubic)."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """One frame of the page: both sides at the size of the page, and its best close-ups."""

    time_s: float
    before_url: str
    after_url: str
    thumbnail_url: str
    closeups: list[tuple[Region, list[str]]]


def write_compare_page(
    before: str | Path,
    after: str | Path,
    dst: str | Path,
    *,
    frames: int = 6,
    title: str | None = None,
    details: Mapping[str, str] | None = None,
    truth: str | Path | None = None,
    before_start_s: float = 0.0,
) -> Path:
    """Write a page that compares two videos of the same timing.

    Args:
        before: the input; its frames are enlarged (bicubic) to the size of the result.
        after: the result.
        dst: the HTML file; an existing one is replaced.
        frames: how many moments, spread evenly.
        title: heading; by default the names of the files.
        details: more lines for the table at the end, name → value.
        truth: the original of which `before` is a degraded copy, where there is one; of the size of `after`.
        before_start_s: time of `before` at which `after` begins, seconds.

    Returns:
        The path of the page.

    Raises:
        InputError: one of the videos cannot be read.
    """
    page = ComparePage(
        frames=frames,
        title=title,
        details=details or {},
        truth=truth,
        before_start_s=before_start_s,
    )
    return write_page(before, after, dst, page)


def write_page(before: str | Path, after: str | Path, dst: str | Path, page: ComparePage) -> Path:
    """Write a page that compares any two videos; frames are paired by time.

    Args:
        before: left of the slider.
        after: right of it.
        dst: the HTML file; an existing one is replaced. It appears when it is whole.
        page: what it shows and says.

    Returns:
        The path of the page.

    Raises:
        InputError: one of the videos cannot be read.
    """
    videos = _Videos(
        probe(before), probe(after), None if page.truth is None else probe(page.truth), page
    )
    times_s = sample_times(videos.after, page.frames, duration_s=videos.shared_s)
    moments = [_moment(videos, time_s) for time_s in times_s]
    facts = {
        page.labels[0]: _described(before, videos.before),
        page.labels[1]: _described(after, videos.after),
        **page.details,
    }
    form = Template(
        resources.files("tubelet.evaluation").joinpath("compare_page.html").read_text("utf-8")
    )
    text = form.substitute(
        title=html.escape(page.title or f"{_name(before)} → {_name(after)}"),
        summary=html.escape(_summary(videos)),
        aspect=_display_aspect(videos.after),
        width=videos.size[1],
        crop_width=_ZOOM * min(_CROP_PX[0], videos.size[1]),
        zoom={2: "two", 3: "three"}[_ZOOM],
        figures="\n".join(_figure(moment, number, videos) for number, moment in enumerate(moments)),
        choices="\n".join(_choice(moment, number) for number, moment in enumerate(moments)),
        columns="".join(f'<th scope="col">{html.escape(name)}</th>' for name in videos.columns),
        crops="\n".join(_closeup_row(*row, videos.columns) for row in _best_closeups(moments)),
        details="\n".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()
        ),
    )
    path = Path(dst)
    with atomic_write(path) as part:
        part.write_text(text, "utf-8")
    return path


@dataclass(frozen=True, slots=True)
class _Videos:
    """The videos of a page."""

    before: VideoInfo
    after: VideoInfo
    truth: VideoInfo | None
    page: ComparePage

    @property
    def size(self) -> tuple[int, int]:
        """Of the page's images (height, width)."""
        sizes = [(self.after.height, self.after.width), (self.before.height, self.before.width)]
        return (
            sizes[0]
            if self.page.size == "second"
            else max(sizes, key=lambda size: size[0] * size[1])
        )

    @property
    def enlarged(self) -> bool:
        """Say whether the first video is smaller than the page, so that a player would enlarge it."""
        return self.before.width * self.before.height < self.size[0] * self.size[1]

    @property
    def shared_s(self) -> float | None:
        """How much of the second video the others have too, seconds; None where a header does not say."""
        starts_s = (
            (self.before, self.page.before_start_s),
            *(((self.truth, 0.0),) if self.truth else ()),
        )
        return min(
            (max(0.0, v.duration_s - start_s) for v, start_s in starts_s if v.duration_s),
            default=None,
        )

    @property
    def columns(self) -> list[str]:
        """Names of the close-ups of a moment."""
        first, second = self.page.labels
        left = [f"{first}, bicubic", f"{first}, Lanczos"] if self.enlarged else [first]
        return [*left, second, *(["Original"] if self.truth else [])]


def _moment(videos: _Videos, time_s: float) -> _Moment:
    """Read one moment of all videos and keep no more of it than its encoded images."""
    result = read_nearest_frame(videos.after, time_s)
    time_s = result.time_s - videos.after.start_s
    lq, size = (
        read_nearest_frame(videos.before, time_s + videos.page.before_start_s).rgb,
        videos.size,
    )
    sr = enlarge(result.rgb, size)
    sides: list[Tensor] = [
        enlarge(lq, size),
        *([enlarge(lq, size, "lanczos3")] if videos.enlarged else []),
        sr,
    ]
    if videos.truth is not None:
        sides.append(enlarge(read_nearest_frame(videos.truth, time_s).rgb, size))
    regions = detailed_regions(sr, width_px=_CROP_PX[0], height_px=_CROP_PX[1], count=_CROPS)
    closeups = [
        (region, [data_url(to_image(region.crop(side)), lossless=True) for side in sides])
        for region in regions
    ]
    image = to_image(sr)
    thumbnail = image.copy()
    thumbnail.thumbnail((256, 256))
    return _Moment(
        time_s, data_url(to_image(sides[0])), data_url(image), data_url(thumbnail), closeups
    )


def _best_closeups(moments: list[_Moment]) -> list[tuple[float, list[str]]]:
    """Choose among the close-ups of all moments: most detail first, each from another place."""
    ranked = sorted(
        ((region, moment.time_s, urls) for moment in moments for region, urls in moment.closeups),
        key=lambda candidate: -candidate[0].detail,
    )
    chosen: list[tuple[Region, float, list[str]]] = []
    for candidate in ranked:
        if len(chosen) < _CROPS and not any(candidate[0].overlaps(other) for other, _, _ in chosen):
            chosen.append(candidate)
    return [(time_s, urls) for _, time_s, urls in chosen]


def _figure(moment: _Moment, number: int, videos: _Videos) -> str:
    at = _time(moment.time_s)
    first, second = (html.escape(label) for label in videos.page.labels)
    how, tag = (", enlarged", ", bicubic") if videos.enlarged else ("", "")
    return (
        f'<figure class="frame"{" hidden" if number else ""}>'
        f'<img src="{moment.before_url}" alt="{first} at {at}{how}" draggable="false">'
        f'<img class="after" src="{moment.after_url}" alt="{second} at {at}" draggable="false">'
        f'<div class="handle"></div><span class="tag left">{_as_tag(first)}{tag}</span>'
        f'<span class="tag right">{_as_tag(second)}</span></figure>'
    )


def _choice(moment: _Moment, number: int) -> str:
    return (
        f'<button type="button" data-frame="{number}" aria-pressed="{"false" if number else "true"}">'
        f'<img src="{moment.thumbnail_url}" alt="">{_time(moment.time_s)}</button>'
    )


def _closeup_row(time_s: float, urls: list[str], columns: list[str]) -> str:
    cells = "".join(
        f'<td><img src="{url}" alt="{html.escape(name)}"></td>'
        for url, name in zip(urls, columns, strict=True)
    )
    return f'<tr><td class="time">{_time(time_s)}</td>{cells}</tr>'


def _as_tag(label: str) -> str:
    """Write a plain word small, a name as it is."""
    return label.lower() if label in ("Input", "Result") else label


def _summary(videos: _Videos) -> str:
    before, after = videos.before, videos.after
    first, second = videos.page.labels
    plain = videos.page.labels == ("Input", "Result")
    left, right = ("the input", "the result") if plain else (first, second)
    sizes = f"{before.width}×{before.height} → {after.width}×{after.height}"
    how = ", enlarged as a player does" if videos.enlarged else ""
    text = f"{sizes}. Left of the line is {left}{how}; right of it {right}. Drag the line, or use the arrow keys."
    if after.color.transfer in _HDR_TRANSFERS:
        text += " The video is HDR; the page shows its code values without tone mapping."
    return text


def _described(src: str | Path, info: VideoInfo) -> str:
    return f"{_name(src)}, {info.width}×{info.height}, {info.codec}"


def _display_aspect(info: VideoInfo) -> str:
    shape = info.width * info.sample_aspect / info.height
    return f"{shape.numerator} / {shape.denominator}"


def _name(src: str | Path) -> str:
    return Path(src).name or str(src)


def _time(time_s: float) -> str:
    minutes, seconds = divmod(time_s, 60)
    return f"{int(minutes)}:{seconds:05.2f}"
