"""The before/after page: self-contained, with the right frames, usable without a mouse."""

import base64
import io
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tubelet.errors import InputError
from tubelet.evaluation.compare import write_compare_page

VOID = {"meta", "img", "input", "br", "link", "hr"}


def write_levels(path: Path, size: tuple[int, int], *, frames: int = 12, offset: int = 0) -> Path:
    """Write a video whose gray level encodes the frame's number: 20, 36, 52, ... plus `offset`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for t in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 + 16 * t + offset, np.uint8)
            pixels[::8, : size[0] // 2] = (
                255 - pixels[::8, : size[0] // 2]
            )  # detail in the left half
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Page(HTMLParser):
    """Collects tags, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def decoded(attributes: dict[str, str | None]) -> Image.Image:
    head, data = (attributes["src"] or "").split(",", 1)
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_levels(tmp_path / "lq <1>.mp4", (64, 48)), write_levels(
        tmp_path / "sr.mkv", (256, 192), offset=5
    )


def test_page_needs_nothing_else(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_compare_page(*pair, tmp_path / "page.html", frames=3, details={"Model": "<b>"})
    text = path.read_text("utf-8")
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert page.of("link") == []
    for attributes in page.of("img") + page.of("script"):
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "&lt;b&gt;" in text
    assert "lq &lt;1&gt;.mp4" in text
    assert "$" not in text


def test_both_sides_show_the_same_frame_at_the_size_of_the_result(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    page = Page(write_compare_page(*pair, tmp_path / "page.html", frames=3).read_text("utf-8"))
    sides = [
        img
        for img in page.of("img")
        if (img.get("alt") or "").startswith(("Input at", "Result at"))
    ]
    levels = []
    for img in sides:
        image = decoded(img)
        assert image.size == (256, 192)
        levels.append(np.asarray(image.convert("L"))[100, 200])
    befores, afters = levels[::2], levels[1::2]
    assert len(befores) == len(afters) == 3
    for level, expected in zip(
        befores, (2, 6, 10), strict=True
    ):  # middle of each third of twelve frames
        assert abs(int(level) - (20 + 16 * expected)) <= 3
    for before, after in zip(befores, afters, strict=True):
        assert 2 <= int(after) - int(before) <= 8


def test_a_section_is_compared_with_its_time_range_in_the_input(tmp_path: Path) -> None:
    before = write_levels(tmp_path / "lq.mp4", (64, 48), frames=12)
    after = write_levels(
        tmp_path / "sr.mp4", (256, 192), frames=4, offset=16 * 6
    )  # begins at frame 6 of the input
    text = write_compare_page(
        before, after, tmp_path / "p.html", frames=2, before_start_s=6 / 25
    ).read_text("utf-8")
    sides = [img for img in Page(text).of("img") if "at 0:" in (img.get("alt") or "")]
    levels = [int(np.asarray(decoded(img).convert("L"))[100, 200]) for img in sides]
    assert abs(levels[0] - levels[1]) <= 3
    assert abs(levels[2] - levels[3]) <= 3


def test_close_ups_come_from_where_the_detail_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = write_compare_page(*pair, tmp_path / "p.html", frames=2, truth=pair[1]).read_text(
        "utf-8"
    )
    crops = {name: [] for name in ("Input, bicubic", "Input, Lanczos", "Result", "Original")}
    for img in Page(text).of("img"):
        if img.get("alt") in crops:
            crops[str(img["alt"])].append(np.asarray(decoded(img)))
    assert all(len(images) == len(crops["Result"]) >= 1 for images in crops.values())
    assert np.abs(np.diff(crops["Result"][0][:, 5, 0].astype(int))).max() > 60  # the stripes
    np.testing.assert_array_equal(crops["Result"][0], crops["Original"][0])
    assert not np.array_equal(crops["Input, bicubic"][0], crops["Input, Lanczos"][0])


def test_usable_by_keyboard_and_screen_reader(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = Page(write_compare_page(*pair, tmp_path / "p.html", frames=2).read_text("utf-8"))
    (slider,) = page.of("input")
    assert slider["type"] == "range"
    assert slider["aria-label"]
    assert all("alt" in img for img in page.of("img"))
    assert [button["aria-pressed"] for button in page.of("button")] == ["true", "false", "false"]
    assert page.of("html")[0]["lang"] == "en"


def test_a_missing_video_is_an_input_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        write_compare_page(tmp_path / "gone.mp4", pair[1], tmp_path / "p.html")
