"""Moving scene drawn by code, as a test clip: text, texture, fine lines, and many motions.

    still canvas (drawn at 4×, reduced to 2×) ─ paste moving objects (drawn at 8×, reduced to 2×)
    ─ camera ─ 1280×720

Every pixel of a frame averages several drawn ones, as a lens and a sensor do: edges are not jagged.
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
"""Frames per second."""

# Sizes and positions below are in canvas pixels, twice as fine as those of a frame. Drawing
# functions use drawn pixels, which are finer by `_CANVAS_DETAIL` or `_OBJECT_DETAIL`.
_CANVAS_SIZE = (3000, 1640)
"""Width and height of the canvas, with room for the camera to move."""
_CANVAS_DETAIL = 2
_OBJECT_DETAIL = 4

Color = tuple[int, int, int]
_SKY: Color = (88, 138, 196)
_HAZE: Color = (214, 226, 232)
_INK: Color = (34, 36, 44)
_PAPER: Color = (244, 240, 230)
_SPOKE: Color = (236, 236, 240)
_TICKER_BACKGROUND: Color = (22, 22, 20)
_TICKER_TEXT: Color = (255, 176, 46)

_HILLS: tuple[tuple[int, Color], ...] = (
    (820, (128, 150, 150)),
    (960, (92, 122, 84)),
    (1120, (66, 92, 48)),
)
"""Height of the skyline and color of each range of hills, from far to near."""

_CABIN_COLORS: tuple[Color, ...] = (
    (222, 72, 60),
    (240, 190, 70),
    (70, 140, 210),
    (90, 170, 110),
    (180, 90, 170),
)

_FOX = "The quick brown fox jumps over 13 lazy dogs"
_BOARD_LINES = (
    (100, _FOX),
    (80, f"{_FOX}, quartz & jam"),
    (66, f"{_FOX}: 0123456789 (sphinx)"),
    (54, "Pack my box with five dozen liquor jugs; how vexingly quick daft zebras jump. 3.14159"),
    (
        46,
        "Tickets are valid for 90 minutes in zones A and B; "
        "bicycles travel free after 19:00, dogs always.",
    ),
    (
        40,
        "Small print: sizes are in pixels, times in seconds, colors by their tags. "
        "Sharp eyes read this.",
    ),
)
"""Font size in drawn pixels and text of each line on the board."""


def draw_scene(frames: int = 60) -> Iterator[Tensor]:
    """Draw the scene.

    Args:
        frames: Number of frames, 25 per second.

    Yields:
        (3, 720, 1280) float32 in [0, 1], multiples of 1/255.
    """
    still = _still_canvas()
    tram = _tram()
    ticker = _ticker()
    for t in range(frames):
        # Moving objects.
        canvas = still.copy()
        wheel = _wheel(angle_deg=2.3 * t)
        canvas.paste(wheel, (2020, 560), mask=wheel)
        ticker_left = 4 * t
        visible_ticker = ticker.crop((ticker_left, 0, ticker_left + 1090, ticker.height))
        canvas.paste(visible_ticker, (330, 446))
        canvas.paste(tram, (-420 + 18 * t, 1130), mask=tram)

        # The camera pans, sways and zooms slowly, by fractions of a pixel.
        left = 90 + 3.3 * t + 24 * math.sin(t / 19)
        top = 60 + 1.15 * t
        width = 2560 - 1.9 * t
        height = width * SCENE_SIZE[1] / SCENE_SIZE[0]
        view = (left, top, left + width, top + height)
        image = canvas.resize(SCENE_SIZE, Image.Resampling.BICUBIC, box=view)
        # (H, W, 3) → (3, H, W)
        yield torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


@cache
def _still_canvas() -> Image.Image:
    """Draw all objects that do not move, which takes half a second."""
    # One generator for all textures: another order of the calls would give another scene.
    rng = np.random.default_rng(7)
    canvas = _sky(rng)
    _draw_wires(canvas)
    _paste_hills(canvas, rng)
    _paste_wall(canvas, rng)
    canvas.paste(_board(), (300, 190))
    canvas.paste(_chart(), (1560, 760))
    return canvas


def _noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    coarse_px: float,
    octaves: int,
) -> np.ndarray:
    """Draw fractal noise: octaves of smooth noise, each finer and weaker than the previous one.

    Args:
        rng: Source of the noise.
        size: (width, height), pixels.
        coarse_px: Size of the coarsest structures, pixels.
        octaves: Number of octaves.

    Returns:
        (height, width), float32, about -1 to 1.
    """
    width, height = size
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cell_px = max(1.0, coarse_px / 2**octave)
        grid_height = math.ceil(height / cell_px) + 2
        grid_width = math.ceil(width / cell_px) + 2
        grid = rng.standard_normal((grid_height, grid_width)).astype(np.float32)
        layer = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(layer) * 0.6**octave
    return total / 2


def _to_image(rgb: np.ndarray) -> Image.Image:
    """Convert (H, W, 3) in [0, 255] to an image."""
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _sky(rng: np.random.Generator) -> Image.Image:
    """Draw a sky that fades to haze, with clouds that fade with it."""
    # (H, 1, 1), from 0 at the top to 1 at the bottom.
    down = np.linspace(0, 1, _CANVAS_SIZE[1], dtype=np.float32)[:, None, None]
    sky = np.array(_SKY, np.float32)
    haze = np.array(_HAZE, np.float32)
    gradient = (1 - down) * sky + down * haze
    # (H, W, 1)
    density = np.clip(_noise(rng, _CANVAS_SIZE, 420, 7) * 1.6 - 0.15, 0, 1)[..., None]
    clouds = density * (1 - 0.6 * down)
    return _to_image(gradient + clouds * (250 - gradient))


def _paste_hills(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Paste three ranges of grass and wood, darker and rougher from far to near."""
    width, height = _CANVAS_SIZE
    # (W,), from 0 at the left to 1 at the right; (H, 1), rows.
    across = np.arange(width) / width
    rows = np.arange(height)[:, None]
    for depth, (base, color) in enumerate(_HILLS):
        ridge = 40 * _noise(rng, (width, 8), 160, 6)[0]
        skyline = base + 90 * np.sin(5 * across + 2 * depth) + ridge
        mask = (rows > skyline).astype(np.uint8) * 255
        contrast = 14 + 18 * depth
        leaves = _noise(rng, _CANVAS_SIZE, 60 / (depth + 1), 5)[..., None] * contrast
        hill = _to_image(np.array(color, np.float32) + leaves)
        canvas.paste(hill, mask=Image.fromarray(mask))


def _paste_wall(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Paste a gable of bricks, each with its own tint, behind the board."""
    width = 1330
    height = 1180
    brick_width = 76
    brick_height = 26
    joint = 4
    mortar = (176, 168, 158)
    brick = np.array((150, 82, 66))
    wall = np.full((height, width, 3), mortar, np.float32)
    for row in range(math.ceil(height / brick_height)):
        for column in range(-1, math.ceil(width / brick_width)):
            # Every second row is shifted by half a brick.
            left = column * brick_width + (row % 2) * brick_width // 2
            right = left + brick_width - joint
            top = row * brick_height
            bottom = top + brick_height - joint
            tint = brick * rng.normal(1, 0.1) + rng.normal(0, 5, 3)
            wall[top:bottom, max(0, left) : max(0, right)] = tint
    wall += _noise(rng, (width, height), 24, 5)[..., None] * 22
    canvas.paste(_to_image(wall), (210, 130))


def _font(px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(px)


def _new_sheet(
    size: tuple[int, int],
    color: Color,
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Create an image to draw on, `_CANVAS_DETAIL` times as large as it will be on the canvas."""
    width, height = size
    image = Image.new("RGB", (width * _CANVAS_DETAIL, height * _CANVAS_DETAIL), color)
    return image, ImageDraw.Draw(image)


def _new_object(
    size: tuple[int, int],
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Create a transparent image, `_OBJECT_DETAIL` times as large as it will be on the canvas."""
    width, height = size
    transparent = (0, 0, 0, 0)
    image = Image.new("RGBA", (width * _OBJECT_DETAIL, height * _OBJECT_DETAIL), transparent)
    return image, ImageDraw.Draw(image)


def _reduce(image: Image.Image, factor: int) -> Image.Image:
    """Average blocks of `factor` × `factor` pixels."""
    mode = image.mode
    if mode == "RGBA":
        # Premultiplied alpha, so that colors are weighted by their opacity.
        image = image.convert("RGBa")
    size = (image.width // factor, image.height // factor)
    image = image.resize(size, Image.Resampling.BOX)
    return image.convert(mode)


def _board() -> Image.Image:
    """Draw a notice board with lines of text, from large to hardly readable."""
    image, draw = _new_sheet((1150, 830), _PAPER)
    draw.rectangle((0, 0, image.width - 1, image.height - 1), outline=_INK, width=16)
    draw.text((60, 40), "TUBELET  ·  Line 7", _INK, font=_font(200))
    red = (170, 40, 36)
    draw.text((60, 290), "Harbour, Museum, Old Town: every 10 min", red, font=_font(104))
    top = 720
    for px, text in _BOARD_LINES:
        draw.text((60, top), text, _INK, font=_font(px))
        top += round(px * 1.45)
    # A timetable, ruled with hairlines.
    gray = (120, 120, 128)
    for line in range(12):
        y = 1390 + 20 * line
        draw.line((60, y, 2240, y), fill=gray, width=4)
    return _reduce(image, _CANVAS_DETAIL)


def _chart() -> Image.Image:
    """Draw a test chart: a star, groups of finer and finer lines, and rings."""
    image, draw = _new_sheet((470, 330), (250, 250, 250))

    # A star of 18 black sectors.
    center_x = 250
    center_y = 250
    radius = 220
    for sector in range(0, 36, 2):
        corners: list[tuple[float, float]] = [(center_x, center_y)]
        for edge in (sector, sector + 1):
            angle_rad = math.tau * edge / 36
            x = center_x + radius * math.cos(angle_rad)
            y = center_y + radius * math.sin(angle_rad)
            corners.append((x, y))
        draw.polygon(corners, fill=_INK)

    # Four lines of each period.
    left = 490.0
    for period in (32, 26, 22, 18, 14):
        for _ in range(4):
            draw.rectangle((left, 40, left + period / 2 - 1, 300), fill=_INK)
            left += period

    # Rings around (700, 480).
    blue = (30, 70, 140)
    for ring in range(10):
        radius = 150 - 15 * ring
        box = (700 - radius, 480 - radius, 700 + radius, 480 + radius)
        draw.ellipse(box, outline=blue, width=5)

    draw.text((40, 520), "1 2 3 4 5", _INK, font=_font(90))
    return _reduce(image, _CANVAS_DETAIL)


def _draw_wires(canvas: Image.Image) -> None:
    """Draw thin wires in front of the sky, and a lattice mast."""
    # An opacity mask for the color of the wires.
    mask = Image.new("L", (_CANVAS_SIZE[0] * _CANVAS_DETAIL, 1000 * _CANVAS_DETAIL), 0)
    draw = ImageDraw.Draw(mask)
    for wire in range(6):
        points: list[tuple[float, float]] = []
        for x in range(0, mask.width, 40):
            sag = 90 * math.sin(math.pi * x / mask.width)
            points.append((x, 60 + 70 * wire + sag))
        draw.line(points, fill=255, width=5)

    left = 3560
    right = left + 140
    for step in range(35):
        top = step * 58
        bottom = top + 58
        draw.line([(left, top), (right, bottom)], fill=255, width=6)
        draw.line([(right, top), (left, bottom)], fill=255, width=6)
    for x in (left, right):
        draw.line([(x, 0), (x, mask.height)], fill=255, width=10)
    canvas.paste(_INK, (0, 0), mask=_reduce(mask, _CANVAS_DETAIL))


def _ticker() -> Image.Image:
    """Draw the text of a lit display, which runs to the left."""
    image, draw = _new_sheet((1500, 76), _TICKER_BACKGROUND)
    text = "Next tram 4 min   +++   mind the gap   +++   25 frames a second   +++   4x larger"
    draw.text((30, 24), text, _TICKER_TEXT, font=_font(96))
    return _reduce(image, _CANVAS_DETAIL)


def _tram() -> Image.Image:
    """Draw a tram with windows and lettering, on a transparent background."""
    image, draw = _new_object((760, 300))

    # Body, with a stripe.
    red = (196, 52, 44)
    body = (20, 40, image.width - 20, 1040)
    draw.rounded_rectangle(body, 120, fill=red, outline=_INK, width=12)
    draw.rectangle((20, 620, image.width - 20, 680), fill=_PAPER)

    # Windows, with a reflection.
    glass = (176, 206, 222)
    reflection = (232, 244, 250)
    for window in range(6):
        x = 150 + 470 * window
        box = (x, 160, x + 390, 560)
        draw.rounded_rectangle(box, 40, fill=glass, outline=_INK, width=12)
        draw.line([(x + 60, 540), (x + 250, 180)], fill=reflection, width=26)

    draw.text((300, 700), "7  City Transport · car 1142", _PAPER, font=_font(210))

    # Wheels, with hubs.
    for x in (520, 1080, 1960, 2520):
        draw.ellipse((x - 130, 900, x + 130, 1160), fill=(60, 60, 66), outline=_INK, width=20)
        draw.ellipse((x - 40, 990, x + 40, 1070), fill=(170, 170, 176))
    return _reduce(image, _OBJECT_DETAIL)


def _wheel(angle_deg: float) -> Image.Image:
    """Draw a Ferris wheel with thin spokes and cabins, turned by an angle."""
    image, draw = _new_object((560, 560))
    center = image.width / 2
    radius = center - 160
    for spoke in range(20):
        angle_rad = math.radians(angle_deg + 18 * spoke)
        x = center + radius * math.cos(angle_rad)
        y = center + radius * math.sin(angle_rad)
        draw.line([(center, center), (x, y)], fill=_SPOKE, width=14)
        # A cabin at every second spoke, drawn over it.
        if spoke % 2 == 0:
            color = _CABIN_COLORS[spoke // 2 % len(_CABIN_COLORS)]
            cabin = (x - 90, y - 60, x + 90, y + 120)
            draw.ellipse(cabin, fill=color, outline=_INK, width=12)
    for rim in (radius, radius - 90):
        box = (center - rim, center - rim, center + rim, center + rim)
        draw.ellipse(box, outline=_SPOKE, width=18)
    return _reduce(image, _OBJECT_DETAIL)
