"""A moving scene drawn by code, for people without a clip at hand: text, texture, fine lines, many motions.

    still canvas (drawn at 4×, kept at 2×) ─ paste what moves (drawn at 8×, kept at 2×) ─ camera ─ 1280×720

Every pixel of a frame averages several drawn ones, as a lens and a sensor do: nothing is jagged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["FRAME_RATE", "SCENE_SIZE", "draw_scene"]

SCENE_SIZE = (1280, 720)
"""Width and height of a frame, pixels."""
FRAME_RATE = 25
"""Frames a second."""

_CANVAS = (3000, 1640)  # at twice the scale of a frame, with room for the camera to move
_FINE = 2  # the canvas is drawn this much larger, and sprites twice that
_MAST_PX = 3560  # left edge of the lattice mast, in drawn pixels
_SKY, _HAZE, _INK, _PAPER = (88, 138, 196), (214, 226, 232), (34, 36, 44), (244, 240, 230)

Color = tuple[int, int, int]

_SMALL_PRINT = (
    (54, "Pack my box with five dozen liquor jugs; how vexingly quick daft zebras jump. 3.14159"),
    (
        46,
        "Tickets are valid for 90 minutes in zones A and B; bicycles travel free after 19:00, dogs always.",
    ),
    (
        40,
        "Small print: sizes are in pixels, times in seconds, colors by their tags. Sharp eyes read this.",
    ),
)


def draw_scene(frames: int = 60) -> Iterator[Tensor]:
    """Draw the scene.

    Args:
        frames: how many, 25 a second.

    Yields:
        (3, 720, 1280) float32 in [0, 1], multiples of 1/255.
    """
    still, tram, ticker = _still_canvas(), _tram(), _ticker()
    for t in range(frames):
        canvas = still.copy()
        wheel = _wheel(angle_deg=2.3 * t)
        canvas.paste(wheel, (2020, 560), wheel)
        canvas.paste(ticker.crop((4 * t, 0, 4 * t + 1090, ticker.height)), (330, 446))
        canvas.paste(tram, (-420 + 18 * t, 1130), tram)
        left = 90 + 3.3 * t + 24 * math.sin(t / 19)
        top = 60 + 1.15 * t
        width = 2560 - 1.9 * t  # a slow zoom
        box = (left, top, left + width, top + width * SCENE_SIZE[1] / SCENE_SIZE[0])
        image = canvas.resize(SCENE_SIZE, Image.Resampling.BICUBIC, box=box)
        yield torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


@cache
def _still_canvas() -> Image.Image:
    """Sky, hills, a wall of bricks with a board, a chart, and wires; half a second to draw."""
    rng = np.random.default_rng(7)
    canvas = _sky(rng)
    _draw_wires(canvas)
    _paste_hills(canvas, rng)
    _paste_wall(canvas, rng)
    canvas.paste(_board(), (300, 190))
    canvas.paste(_chart(), (1560, 760))
    return canvas


def _noise(
    rng: np.random.Generator, size: tuple[int, int], coarse_px: float, octaves: int
) -> np.ndarray:
    """Draw fractal noise (H, W), about -1..1: octaves of smooth noise, each finer and weaker."""
    total = np.zeros(size[::-1], np.float32)
    for octave in range(octaves):
        cell = max(1.0, coarse_px / 2**octave)
        grid = rng.standard_normal((math.ceil(size[1] / cell) + 2, math.ceil(size[0] / cell) + 2))
        layer = Image.fromarray(grid.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(layer) * 0.6**octave
    return total / 2


def _to_image(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _sky(rng: np.random.Generator) -> Image.Image:
    down = np.linspace(0, 1, _CANVAS[1], dtype=np.float32)[:, None, None]
    sky = (1 - down) * np.array(_SKY, np.float32) + down * np.array(_HAZE, np.float32)
    cloud = np.clip(_noise(rng, _CANVAS, 420, 7) * 1.6 - 0.15, 0, 1)[..., None] * (1 - 0.6 * down)
    return _to_image(sky + cloud * (250 - sky))


def _paste_hills(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Three ranges of grass and wood, the nearer the darker and the rougher."""
    across = np.arange(_CANVAS[0]) / _CANVAS[0]
    for depth, (base, color) in enumerate(
        [(820, (128, 150, 150)), (960, (92, 122, 84)), (1120, (66, 92, 48))]
    ):
        skyline = (
            base
            + 90 * np.sin(5 * across + 2 * depth)
            + 40 * _noise(rng, (_CANVAS[0], 8), 160, 6)[0]
        )
        inside = (np.arange(_CANVAS[1])[:, None] > skyline).astype(np.uint8) * 255
        leaves = _noise(rng, _CANVAS, 60 / (depth + 1), 5)[..., None] * (14 + 18 * depth)
        canvas.paste(_to_image(np.array(color, np.float32) + leaves), mask=Image.fromarray(inside))


def _paste_wall(canvas: Image.Image, rng: np.random.Generator) -> None:
    """A gable of bricks, each with its own tint, behind the board."""
    width, height, brick_w, brick_h, joint = 1330, 1180, 76, 26, 4
    wall = np.full((height, width, 3), (176, 168, 158), np.float32)
    for row in range(math.ceil(height / brick_h)):
        for column in range(-1, math.ceil(width / brick_w)):
            x, y = column * brick_w + (row % 2) * brick_w // 2, row * brick_h
            tint = np.array((150, 82, 66)) * rng.normal(1, 0.1) + rng.normal(0, 5, 3)
            wall[y : y + brick_h - joint, max(0, x) : max(0, x + brick_w - joint)] = tint
    wall += _noise(rng, (width, height), 24, 5)[..., None] * 22
    canvas.paste(_to_image(wall), (210, 130))


def _font(px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(px)


def _sheet(size: tuple[int, int], color: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Open an image to draw on, `_FINE` times as large as it will be."""
    image = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), color)
    return image, ImageDraw.Draw(image)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Average `factor` × `factor` pixels, colors weighted by their opacity."""
    mode = image.mode
    image = image.convert("RGBa") if mode == "RGBA" else image
    image = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
    return image.convert(mode)


def _board() -> Image.Image:
    """A notice board: a title, and lines of text from large to as small as can be read."""
    image, draw = _sheet((1150, 830), _PAPER)
    draw.rectangle((0, 0, image.width - 1, image.height - 1), outline=_INK, width=16)
    draw.text((60, 40), "TUBELET  ·  Line 7", _INK, font=_font(200))
    draw.text((60, 290), "Harbour, Museum, Old Town: every 10 min", (170, 40, 36), font=_font(104))
    fox, top = "The quick brown fox jumps over 13 lazy dogs", 720
    for px, text in (
        (100, fox),
        (80, f"{fox}, quartz & jam"),
        (66, f"{fox}: 0123456789 (sphinx)"),
        *_SMALL_PRINT,
    ):
        draw.text((60, top), text, _INK, font=_font(px))
        top += round(px * 1.45)
    for line in range(12):  # a timetable, ruled with hairlines
        draw.line((60, 1390 + 20 * line, 2240, 1390 + 20 * line), fill=(120, 120, 128), width=4)
    return _reduced(image, _FINE)


def _chart() -> Image.Image:
    """A test chart: a star, line groups that get finer, and rings."""
    image, draw = _sheet((470, 330), (250, 250, 250))
    cx, cy, radius = 250, 250, 220
    for spoke in range(0, 36, 2):
        first, last = (math.tau * (spoke + i) / 36 for i in (0, 1))
        draw.polygon(
            [(cx, cy)]
            + [(cx + radius * math.cos(a), cy + radius * math.sin(a)) for a in (first, last)],
            fill=_INK,
        )
    x = 490.0
    for period in (32, 26, 22, 18, 14):
        for _ in range(4):
            draw.rectangle((x, 40, x + period / 2 - 1, 300), fill=_INK)
            x += period
    for ring in range(10):
        r = 150 - 15 * ring
        draw.ellipse((700 - r, 480 - r, 700 + r, 480 + r), outline=(30, 70, 140), width=5)
    draw.text((40, 520), "1 2 3 4 5", _INK, font=_font(90))
    return _reduced(image, _FINE)


def _draw_wires(canvas: Image.Image) -> None:
    """Thin wires before the sky, and a mast with a lattice."""
    overlay = Image.new("L", (_CANVAS[0] * _FINE, 1000 * _FINE), 0)
    draw = ImageDraw.Draw(overlay)
    for wire in range(6):
        sag = [
            (x, 60 + 70 * wire + 90 * math.sin(math.pi * x / overlay.width))
            for x in range(0, overlay.width, 40)
        ]
        draw.line(sag, fill=255, width=5)
    for step in range(35):
        x, y = _MAST_PX, step * 58
        draw.line([(x, y), (x + 140, y + 58)], fill=255, width=6)
        draw.line([(x + 140, y), (x, y + 58)], fill=255, width=6)
    for x in (_MAST_PX, _MAST_PX + 140):
        draw.line([(x, 0), (x, overlay.height)], fill=255, width=10)
    canvas.paste(_INK, (0, 0), _reduced(overlay, _FINE))


def _ticker() -> Image.Image:
    """A lit display whose text runs to the left."""
    image, draw = _sheet((1500, 76), (22, 22, 20))
    text = "Next tram 4 min   +++   mind the gap   +++   25 frames a second   +++   4x larger"
    draw.text((30, 24), text, (255, 176, 46), font=_font(96))
    return _reduced(image, _FINE)


def _tram() -> Image.Image:
    """A tram with windows and lettering, on transparent ground."""
    scale = 2 * _FINE
    image = Image.new("RGBA", (760 * scale, 300 * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(
        (20, 40, image.width - 20, 1040), 120, fill=(196, 52, 44), outline=_INK, width=12
    )
    draw.rectangle((20, 620, image.width - 20, 680), fill=_PAPER)
    for window in range(6):
        x = 150 + 470 * window
        draw.rounded_rectangle(
            (x, 160, x + 390, 560), 40, fill=(176, 206, 222), outline=_INK, width=12
        )
        draw.line([(x + 60, 540), (x + 250, 180)], fill=(232, 244, 250), width=26)
    draw.text((300, 700), "7  City Transport · car 1142", _PAPER, font=_font(210))
    for x in (520, 1080, 1960, 2520):
        draw.ellipse((x - 130, 900, x + 130, 1160), fill=(60, 60, 66), outline=_INK, width=20)
        draw.ellipse((x - 40, 990, x + 40, 1070), fill=(170, 170, 176))
    return _reduced(image, scale)


def _wheel(angle_deg: float) -> Image.Image:
    """A wheel of thin spokes with cabins, turned by an angle."""
    scale = 2 * _FINE
    size = 560 * scale
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    center, radius = size / 2, size / 2 - 160
    for spoke in range(20):
        angle = math.radians(angle_deg + 18 * spoke)
        x, y = center + radius * math.cos(angle), center + radius * math.sin(angle)
        draw.line([(center, center), (x, y)], fill=(236, 236, 240), width=14)
        if spoke % 2 == 0:
            hue = [(222, 72, 60), (240, 190, 70), (70, 140, 210), (90, 170, 110), (180, 90, 170)][
                spoke // 2 % 5
            ]
            draw.ellipse((x - 90, y - 60, x + 90, y + 120), fill=hue, outline=_INK, width=12)
    for rim in (radius, radius - 90):
        draw.ellipse(
            (center - rim, center - rim, center + rim, center + rim),
            outline=(236, 236, 240),
            width=18,
        )
    return _reduced(image, scale)
