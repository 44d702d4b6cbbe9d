"""Self-contained HTML page that compares a video before and after: a slider, and close-ups."""

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

# In pixels of the result: four close-ups side by side still fit a desktop.
_CROP_WIDTH_PX = 144
_CROP_HEIGHT_PX = 112
_ZOOM = 2
_ZOOM_WORDS = {2: "two", 3: "three"}
_MAX_CROPS = 4
_THUMBNAIL_PX = 256
_HDR_TRANSFERS = (16, 18)
"""AVCOL_TRC_SMPTE2084 (PQ) and AVCOL_TRC_ARIB_STD_B67 (HLG)."""
_DEFAULT_LABELS = ("Input", "Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """Settings and texts of a page."""

    frames: int = 6
    """Number of frames to show, spread evenly over the video."""
    title: str | None = None
    """Heading. Default: the names of the files."""
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    """More lines of the table at the end, name → value."""
    truth: str | Path | None = None
    """The original that both videos should look like, where there is one."""
    before_start_s: float = 0.0
    """Time of the first video at which the second one starts, seconds."""
    labels: tuple[str, str] = _DEFAULT_LABELS
    """Names of the two videos on the page."""
    size: Literal["second", "larger"] = "second"
    """The video whose size the page has; the other ones are resized to it (bicubic)."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """Images of one moment of the videos.

    Attributes:
        time_s: Time in the second video, seconds.
        before_url: Frame of the first video, at the size of the page.
        after_url: Frame of the second video, at the size of the page.
        thumbnail_url: Small image for the button that selects the moment.
        closeups: Regions of high detail, each with one crop per column of the page.
    """

    time_s: float
    before_url: str
    after_url: str
    thumbnail_url: str
    closeups: list[_Closeup]


@dataclass(frozen=True, slots=True)
class _Closeup:
    """One region of one moment, cut out of all sides.

    Attributes:
        region: The region.
        time_s: Time in the second video, seconds.
        urls: One crop per column of the page.
    """

    region: Region
    time_s: float
    urls: list[str]


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
    """Write a page that compares an input video with its upscaled result.

    Args:
        before: Input; its frames are enlarged (bicubic) to the size of the result.
        after: Result, with the same timing.
        dst: HTML file; an existing one is replaced.
        frames: Number of frames to show, spread evenly.
        title: Heading; by default the names of the files.
        details: More lines of the table at the end, name → value.
        truth: Original of which `before` is a degraded copy, where there is one; in the size of
            `after`.
        before_start_s: Time of `before` at which `after` starts, seconds.

    Returns:
        The path of the page.

    Raises:
        InputError: One of the videos cannot be read.
    """
    page = ComparePage(
        frames=frames,
        title=title,
        details=details or {},
        truth=truth,
        before_start_s=before_start_s,
    )
    return write_page(before, after, dst, page)


def write_page(
    before: str | Path,
    after: str | Path,
    dst: str | Path,
    page: ComparePage,
) -> Path:
    """Write a page that compares any two videos, whose frames are paired by time.

    Args:
        before: Video at the left of the slider.
        after: Video at the right of the slider.
        dst: HTML file; it is written atomically, and an existing one is replaced.
        page: Settings and texts of the page.

    Returns:
        The path of the page.

    Raises:
        InputError: One of the videos cannot be read.
    """
    videos = _Videos(
        before=probe(before),
        after=probe(after),
        truth=None if page.truth is None else probe(page.truth),
        page=page,
    )
    times_s = sample_times(videos.after, page.frames, duration_s=videos.shared_s)
    moments = [_read_moment(videos, time_s) for time_s in times_s]

    # A figure with the slider per moment, and a button that shows it.
    figures: list[str] = []
    buttons: list[str] = []
    for number, moment in enumerate(moments):
        figures.append(_figure(moment, number, videos))
        buttons.append(_button(moment, number))
    # The table of close-ups: a row per region, a column per video.
    headings: list[str] = []
    for column in videos.columns:
        headings.append(f'<th scope="col">{html.escape(column)}</th>')
    closeup_rows: list[str] = []
    for closeup in _best_closeups(moments):
        closeup_rows.append(_closeup_row(closeup, videos.columns))
    # The table at the end; details of the caller replace lines of the same name.
    details = {
        page.labels[0]: _describe_video(before, videos.before),
        page.labels[1]: _describe_video(after, videos.after),
        **page.details,
    }
    detail_rows: list[str] = []
    for name, value in details.items():
        detail_rows.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>")

    title = page.title or f"{_file_name(before)} → {_file_name(after)}"
    page_width = videos.size[1]
    template_file = resources.files("tubelet.evaluation").joinpath("compare_page.html")
    template = Template(template_file.read_text("utf-8"))
    text = template.substitute(
        title=html.escape(title),
        summary=html.escape(_summary(videos)),
        aspect=_display_aspect(videos.after),
        width=page_width,
        crop_width=_ZOOM * min(_CROP_WIDTH_PX, page_width),
        zoom=_ZOOM_WORDS[_ZOOM],
        figures="\n".join(figures),
        choices="\n".join(buttons),
        columns="".join(headings),
        crops="\n".join(closeup_rows),
        details="\n".join(detail_rows),
    )
    path = Path(dst)
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")
    return path


@dataclass(frozen=True, slots=True)
class _Videos:
    """The videos of a page, and properties that follow from them."""

    before: VideoInfo
    after: VideoInfo
    truth: VideoInfo | None
    page: ComparePage

    @property
    def size(self) -> tuple[int, int]:
        """Size of the page's images, (height, width)."""
        before = (self.before.height, self.before.width)
        after = (self.after.height, self.after.width)
        before_is_larger = before[0] * before[1] > after[0] * after[1]
        if self.page.size == "larger" and before_is_larger:
            return before
        return after

    @property
    def enlarged(self) -> bool:
        """Whether the first video is smaller than the page, so that a player would enlarge it."""
        height, width = self.size
        return self.before.width * self.before.height < width * height

    @property
    def shared_s(self) -> float | None:
        """Seconds of the second video that the others have too; None if headers have no length."""
        lengths_s: list[float] = []
        if self.before.duration_s:
            lengths_s.append(max(0.0, self.before.duration_s - self.page.before_start_s))
        if self.truth is not None and self.truth.duration_s:
            lengths_s.append(max(0.0, self.truth.duration_s))
        return min(lengths_s, default=None)

    @property
    def columns(self) -> list[str]:
        """Names of the sides of a close-up."""
        first, second = self.page.labels
        if self.enlarged:
            names = [f"{first}, bicubic", f"{first}, Lanczos", second]
        else:
            names = [first, second]
        if self.truth is not None:
            names.append("Original")
        return names


def _read_moment(videos: _Videos, time_s: float) -> _Moment:
    """Read one moment of all videos; only its encoded images stay in memory.

    Args:
        videos: The videos.
        time_s: Time in the second video, seconds; the nearest frame sets the exact time.
    """
    after_frame = read_nearest_frame(videos.after, time_s)
    time_s = after_frame.time_s - videos.after.start_s
    before_frame = read_nearest_frame(videos.before, time_s + videos.page.before_start_s)

    # One image per column of the close-ups, all at the size of the page.
    size = videos.size
    before = enlarge(before_frame.rgb, size)
    after = enlarge(after_frame.rgb, size)
    sides: list[Tensor] = [before]
    if videos.enlarged:
        sides.append(enlarge(before_frame.rgb, size, "lanczos3"))
    sides.append(after)
    if videos.truth is not None:
        truth_frame = read_nearest_frame(videos.truth, time_s)
        sides.append(enlarge(truth_frame.rgb, size))

    # Crops are lossless: JPEG artifacts would be mistaken for those of the videos.
    regions = detailed_regions(
        after,
        width_px=_CROP_WIDTH_PX,
        height_px=_CROP_HEIGHT_PX,
        count=_MAX_CROPS,
    )
    closeups: list[_Closeup] = []
    for region in regions:
        urls: list[str] = []
        for side in sides:
            urls.append(data_url(to_image(region.crop(side)), lossless=True))
        closeups.append(_Closeup(region, time_s, urls))

    after_image = to_image(after)
    thumbnail = after_image.copy()
    thumbnail.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return _Moment(
        time_s=time_s,
        before_url=data_url(to_image(before)),
        after_url=data_url(after_image),
        thumbnail_url=data_url(thumbnail),
        closeups=closeups,
    )


def _best_closeups(moments: list[_Moment]) -> list[_Closeup]:
    """Choose close-ups of all moments by their detail, in regions that do not overlap."""
    # Neighboring moments have their detail in the same regions, which would all look alike.
    candidates: list[_Closeup] = []
    for moment in moments:
        candidates += moment.closeups
    candidates.sort(key=lambda closeup: closeup.region.detail, reverse=True)
    chosen: list[_Closeup] = []
    for candidate in candidates:
        overlaps = any(candidate.region.overlaps(other.region) for other in chosen)
        if len(chosen) < _MAX_CROPS and not overlaps:
            chosen.append(candidate)
    return chosen


def _figure(moment: _Moment, number: int, videos: _Videos) -> str:
    """Write a moment with the slider's handle; only the first one is visible at first."""
    time = _format_time(moment.time_s)
    first = html.escape(videos.page.labels[0])
    second = html.escape(videos.page.labels[1])
    hidden = " hidden" if number else ""
    alt_suffix = ", enlarged" if videos.enlarged else ""
    tag_suffix = ", bicubic" if videos.enlarged else ""
    return (
        f'<figure class="frame"{hidden}>'
        f'<img src="{moment.before_url}" alt="{first} at {time}{alt_suffix}" draggable="false">'
        f'<img class="after" src="{moment.after_url}" alt="{second} at {time}" draggable="false">'
        f'<div class="handle"></div><span class="tag left">{_tag_text(first)}{tag_suffix}</span>'
        f'<span class="tag right">{_tag_text(second)}</span></figure>'
    )


def _button(moment: _Moment, number: int) -> str:
    """Write the button that selects a moment."""
    pressed = "false" if number else "true"
    return (
        f'<button type="button" data-frame="{number}" aria-pressed="{pressed}">'
        f'<img src="{moment.thumbnail_url}" alt="">{_format_time(moment.time_s)}</button>'
    )


def _closeup_row(closeup: _Closeup, columns: list[str]) -> str:
    cells = [f'<td class="time">{_format_time(closeup.time_s)}</td>']
    for url, name in zip(closeup.urls, columns, strict=True):
        cells.append(f'<td><img src="{url}" alt="{html.escape(name)}"></td>')
    return f"<tr>{''.join(cells)}</tr>"


def _tag_text(label: str) -> str:
    """Write the default labels in lower case; other labels may be names."""
    return label.lower() if label in _DEFAULT_LABELS else label


def _summary(videos: _Videos) -> str:
    """Describe the sizes of the videos and the use of the page."""
    before = videos.before
    after = videos.after
    left, right = videos.page.labels
    if videos.page.labels == _DEFAULT_LABELS:
        left = "the input"
        right = "the result"
    if videos.enlarged:
        left += ", enlarged as a player does"
    text = (
        f"{before.width}×{before.height} → {after.width}×{after.height}. "
        f"Left of the line is {left}; right of it {right}. "
        "Drag the line, or use the arrow keys."
    )
    if after.color.transfer in _HDR_TRANSFERS:
        text += " The video is HDR; the page shows its code values without tone mapping."
    return text


def _describe_video(src: str | Path, info: VideoInfo) -> str:
    return f"{_file_name(src)}, {info.width}×{info.height}, {info.codec}"


def _display_aspect(info: VideoInfo) -> str:
    """Write the aspect ratio of the displayed video, for CSS."""
    aspect = info.width * info.sample_aspect / info.height
    return f"{aspect.numerator} / {aspect.denominator}"


def _file_name(src: str | Path) -> str:
    return Path(src).name or str(src)


def _format_time(time_s: float) -> str:
    minutes, seconds = divmod(time_s, 60)
    return f"{int(minutes)}:{seconds:05.2f}"
