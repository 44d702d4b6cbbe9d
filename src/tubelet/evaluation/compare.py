"""Write one self-contained page that shows a video before and after: a slider, and a strip of close-ups."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from torch import Tensor

from tubelet.evaluation.crops import Region, detailed_regions
from tubelet.evaluation.pictures import data_url, enlarge, to_image
from tubelet.evaluation.sampling import frame_near, sample_times
from tubelet.video.probe import VideoInfo, probe

__all__ = ["write_compare_page"]

_CROP_PX = (144, 112)  # width, height in pixels of the result; four side by side still fit a desktop
_ZOOM = 2
_CROPS = 4
_HDR_TRANSFERS = (16, 18)  # AVCOL_TRC_SMPTE2084 (PQ), AVCOL_TRC_ARIB_STD_B67 (HLG)


@dataclass(frozen=True, slots=True)
class _Moment:
    """One frame of the page: both sides at the size of the result, and its best close-ups."""

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
    before_info, after_info = probe(before), probe(after)
    truth_info = None if truth is None else probe(truth)
    columns = ["Input, bicubic", "Input, Lanczos", "Result", *(["Original"] if truth else [])]
    moments = [
        _moment((before_info, after_info, truth_info), time_s, before_start_s)
        for time_s in sample_times(after_info, frames)
    ]
    size = f"{after_info.width}×{after_info.height}"
    facts = {
        "Input": f"{_name(before)}, {before_info.width}×{before_info.height}, {before_info.codec}",
        "Result": f"{_name(after)}, {size}, {after_info.codec}",
        **(details or {}),
    }
    page = Template(resources.files("tubelet.evaluation").joinpath("compare_page.html").read_text("utf-8"))
    text = page.substitute(
        title=html.escape(title or f"{_name(before)} → {_name(after)}"),
        summary=html.escape(_summary(before_info, after_info)),
        aspect=_display_aspect(after_info),
        width=after_info.width,
        crop_width=_ZOOM * min(_CROP_PX[0], after_info.width),
        zoom={2: "two", 3: "three"}[_ZOOM],
        figures="\n".join(_figure(moment, number) for number, moment in enumerate(moments)),
        choices="\n".join(_choice(moment, number) for number, moment in enumerate(moments)),
        columns="".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns),
        crops="\n".join(_closeup_row(*row, columns) for row in _best_closeups(moments)),
        details="\n".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()),
    )
    path = Path(dst)
    path.write_text(text, "utf-8")
    return path


def _moment(videos: tuple[VideoInfo, VideoInfo, VideoInfo | None], time_s: float, before_start_s: float) -> _Moment:
    """Read one moment of both videos and keep no more of it than its encoded pictures."""
    before, after, truth = videos
    result = frame_near(after, time_s)
    time_s = result.time_s - after.start_s
    lq = frame_near(before, time_s + before_start_s).rgb
    sr, size = result.rgb, (result.rgb.shape[-2], result.rgb.shape[-1])
    sides: list[Tensor] = [enlarge(lq, size), enlarge(lq, size, "lanczos3"), sr]
    if truth is not None:
        sides.append(enlarge(frame_near(truth, time_s).rgb, size))
    regions = detailed_regions(sr, width_px=_CROP_PX[0], height_px=_CROP_PX[1], count=_CROPS)
    closeups = [(region, [data_url(to_image(region.of(side)), lossless=True) for side in sides]) for region in regions]
    picture = to_image(sr)
    thumbnail = picture.copy()
    thumbnail.thumbnail((256, 256))
    return _Moment(time_s, data_url(to_image(sides[0])), data_url(picture), data_url(thumbnail), closeups)


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


def _figure(moment: _Moment, number: int) -> str:
    at = _time(moment.time_s)
    return (
        f'<figure class="frame"{" hidden" if number else ""}>'
        f'<img src="{moment.before_url}" alt="Input at {at}, enlarged" draggable="false">'
        f'<img class="after" src="{moment.after_url}" alt="Result at {at}" draggable="false">'
        '<div class="handle"></div><span class="tag left">input, bicubic</span>'
        '<span class="tag right">result</span></figure>'
    )


def _choice(moment: _Moment, number: int) -> str:
    return (
        f'<button type="button" data-frame="{number}" aria-pressed="{"false" if number else "true"}">'
        f'<img src="{moment.thumbnail_url}" alt="">{_time(moment.time_s)}</button>'
    )


def _closeup_row(time_s: float, urls: list[str], columns: list[str]) -> str:
    cells = "".join(
        f'<td><img src="{url}" alt="{html.escape(name)}"></td>' for url, name in zip(urls, columns, strict=True)
    )
    return f'<tr><td class="time">{_time(time_s)}</td>{cells}</tr>'


def _summary(before: VideoInfo, after: VideoInfo) -> str:
    text = f"{before.width}×{before.height} → {after.width}×{after.height}. Left of the line is the input, "
    text += "enlarged as a player does; right of it the result. Drag the line, or use the arrow keys."
    if after.colour.transfer in _HDR_TRANSFERS:
        text += " The video is HDR; the page shows its code values without tone mapping."
    return text


def _display_aspect(info: VideoInfo) -> str:
    shape = info.width * info.sample_aspect / info.height
    return f"{shape.numerator} / {shape.denominator}"


def _name(src: str | Path) -> str:
    return Path(src).name or str(src)


def _time(time_s: float) -> str:
    minutes, seconds = divmod(time_s, 60)
    return f"{int(minutes)}:{seconds:05.2f}"
