"""Pairs of frames whose motion is known exactly: things cut from photographs, moving over a photograph.

    ref(p)  = image(camera(p + flow(p)))      supp(q) = image(camera(q))       so ref(p) is supp at q = p + flow(p)

`camera` is a random zoom, turn and shift at fractions of a pixel, so that both frames are resampled alike: each pixel
is the mean of four samples of an image that is finer than the frame. In front of the background move other images,
cut out along random outlines, each with a flow of its own; where one hides what is behind it, that is known too.

The n-th pair is a function of the seed and n alone, so a run can resume anywhere.

    frames (2, 3, H, W): ref, supp          flow (2, H, W), px, dx then dy          visible (1, H, W): seen in supp too
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tubelet.data.cache import read_clip
from tubelet.errors import ConfigError, InputError
from tubelet.ops.pixels import quantize
from tubelet.video.sequence import IMAGE_SUFFIXES

__all__ = ["MotionSettings", "MovingImages", "MovingPair", "find_images"]

_FINER = 2  # samples a pixel, along each axis
_MAX_PIXELS = 4 << 20  # of an image in memory; a larger one is halved
_MIN_SIDE_PX = 64
_SLOPE = 0.15  # most change of the flow from one pixel to the next: things bend, they do not fold
_ZOOM = (
    1.2,
    4.8,
)  # pixels of the image to one of the frame: finer than the frame, free of its coding noise
_STILL_CAMERA, _STILL = (
    0.1,
    0.04,
)  # shares of the pairs in which only things move, and in which nothing does


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionSettings:
    """Size and variety of the pairs."""

    batch: int = 8
    """Pairs per step, a multiple of 4: each pair is used in its four mirror images."""
    patch_px: int = 128
    """Side of the frames, pixels; a multiple of 2 ** (levels - 1)."""
    max_px: float = 20.0
    """Maximum motion, pixels."""
    things: int = 4
    """Maximum number of objects that move in front of the background."""
    noise: float = 0.03
    """Maximum standard deviation of the noise, in pixel values of [0, 1]; half of the pairs have
    noise."""
    change: float = 0.03
    """Maximum change of brightness and contrast from ref to supp, as a fraction; half of the
    pairs have one."""

    def __post_init__(self) -> None:
        if self.batch < 4 or self.batch % 4 or self.patch_px < 8 or self.things < 0:
            raise ConfigError(f"{self}: need batch a multiple of 4, patch_px ≥ 8 and things ≥ 0")
        if not self.max_px > 0 or self.noise < 0 or not 0 <= self.change < 1:
            raise ConfigError(f"{self}: need max_px > 0, noise ≥ 0 and 0 ≤ change < 1")


class MovingPair(NamedTuple):
    """One pair, float32; see the legend on top of this file."""

    frames: Tensor
    flow: Tensor
    visible: Tensor


def find_images(roots: Sequence[Path]) -> list[Path]:
    """List the images in some folders, in the order of their names.

    Raises:
        InputError: a folder is missing, or there is no image.
    """
    for root in roots:
        if not root.is_dir():
            raise InputError(f"no such folder of images: {root}")
    found = [
        path
        for root in roots
        for path in sorted(root.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise InputError(f"no image in {', '.join(map(str, roots))}")
    return found


class MovingImages:
    """Draws pairs of frames with known motion from photographs.

    Args:
        paths: of the images; they are held in memory, at most 16 MB each.
        settings: size and variety of the pairs.
        seed: of all draws.

    Raises:
        InputError: there is none, or one is below 64 pixels on a side.
    """

    def __init__(self, paths: Sequence[Path], settings: MotionSettings, seed: int) -> None:
        if not paths:
            raise InputError("no image to make pairs of")
        self.settings, self.seed = settings, seed
        self._images = [_read(path) for path in paths]

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the pairs of a step: frames (B, 2, 3, H, W), flow (B, 2, H, W) and visible (B, 1, H, W).

        Each pair comes in its four mirror images, so that no batch moves to one side: there is nothing to learn from
        which side that would be.
        """
        few = self.settings.batch // 4
        pairs = [image for i in range(few) for image in _mirrored(self.pair(step * few + i))]
        return (
            torch.stack([pair.frames for pair in pairs]),
            torch.stack([pair.flow for pair in pairs]),
            torch.stack([pair.visible for pair in pairs]),
        )

    def pair(self, index: int) -> MovingPair:
        """Draw one pair."""
        rng = np.random.default_rng((self.seed, index))
        side = self.settings.patch_px
        sheets = self._draw_sheets(rng)
        ref, top_ref, flow = _show(sheets, side, moved=True)
        supp, top_supp, _ = _show(sheets, side, moved=False)
        owner = functional.avg_pool2d(
            functional.one_hot(top_ref, len(sheets)).movedim(-1, 0).float(), _FINER
        ).argmax(0)
        fields = torch.stack(
            [functional.avg_pool2d(sheet_flow, _FINER) for sheet_flow in flow]
        )  # (L, 2, H, W)
        own = fields.gather(0, owner[None, None].expand(1, 2, -1, -1))[0]
        frames = _expose(torch.stack([ref, supp]), rng, self.settings)
        return MovingPair(frames, own, _is_seen(own, owner, top_supp))

    def _draw_sheets(self, rng: np.random.Generator) -> list[_Sheet]:
        """Draw the background and the things before it, the nearest last."""
        settings = self.settings
        grid = _grid(settings.patch_px)
        still = rng.random()
        camera = (
            torch.zeros_like(grid) if still < _STILL_CAMERA else _draw_flow(rng, grid, settings)
        )
        sheets = [_Sheet(self._draw_image(rng), camera, None)]
        for _ in range(int(rng.integers(0, settings.things + 1))):
            along = camera if rng.random() < 0.7 else torch.zeros_like(camera)
            flow = _limit(along + _draw_flow(rng, grid, settings), settings.max_px)
            sheets.append(
                _Sheet(self._draw_image(rng), flow, _Outline.draw(rng, settings.patch_px))
            )
        if still < _STILL:
            return [sheet._replace(flow=torch.zeros_like(grid)) for sheet in sheets]
        return sheets

    def _draw_image(self, rng: np.random.Generator) -> _Image:
        """Draw an image and how the camera sees it."""
        whole, half = self._images[int(rng.integers(len(self._images)))]
        zoom = math.exp(rng.uniform(math.log(_ZOOM[0]), math.log(_ZOOM[1])))
        middle = math.sqrt(_ZOOM[0] * _ZOOM[1])
        pixels, zoom = (whole, zoom) if zoom < middle else (half, zoom / 2)
        angle = rng.normal(0, 0.15) + math.pi / 2 * int(rng.random() < 0.25)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turn = turn @ np.diag([rng.choice([-1.0, 1.0]), 1.0]) * zoom
        room = [
            max(0.0, n / 2 - zoom * self.settings.patch_px / 2)
            for n in (pixels.shape[2], pixels.shape[1])
        ]
        center = [
            n / 2 + rng.uniform(-r, r)
            for n, r in zip((pixels.shape[2], pixels.shape[1]), room, strict=True)
        ]
        return _Image(
            pixels,
            torch.tensor(turn, dtype=torch.float32),
            torch.tensor(center, dtype=torch.float32),
        )


def _mirrored(pair: MovingPair) -> list[MovingPair]:
    """Mirror a pair at no axis, at either and at both."""
    images = [pair]
    for axes, signs in (((-1,), (-1, 1)), ((-2,), (1, -1)), ((-2, -1), (-1, -1))):
        frames, flow, visible = (part.flip(axes) for part in pair)
        images.append(MovingPair(frames, flow * torch.tensor(signs)[:, None, None], visible))
    return images


class _Image(NamedTuple):
    pixels: NDArray[np.uint8]  # (3, H, W)
    turn: Tensor  # (2, 2), from the frame to the image
    center: Tensor  # (2,) x and y, where the middle of the frame lies


class _Outline(NamedTuple):
    """A blob: where the coarse random map is positive."""

    map: Tensor  # (1, 1, n, n)
    turn: Tensor  # (2, 2), from pixels to [-1, 1]
    center: Tensor  # (2,), pixels of the frame, from its middle

    @staticmethod
    def draw(rng: np.random.Generator, side: int) -> _Outline:
        n = int(rng.integers(3, 10))
        axis = torch.linspace(-1, 1, n)
        bumps = torch.from_numpy(rng.normal(0, 0.35, (n, n))).float()
        height = 0.75 + bumps - (axis[:, None].square() + axis.square()) * 1.2
        height = functional.interpolate(
            height[None, None], scale_factor=4.0, mode="bicubic", align_corners=False
        )
        radius = side * math.exp(rng.uniform(math.log(0.08), math.log(0.5)))
        slim = math.exp(rng.normal(0, 0.4))
        angle = rng.uniform(0, math.pi)
        turn = np.diag([1 / (radius * slim), slim / radius]) @ np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        center = rng.uniform(-0.5, 0.5, 2) * side
        return _Outline(
            height,
            torch.tensor(turn, dtype=torch.float32),
            torch.tensor(center, dtype=torch.float32),
        )

    def covers(self, places: Tensor) -> Tensor:
        """Tell which places (2, h, w), pixels from the middle of the frame, lie within: (h, w) bool."""
        grid = torch.einsum("ij,jhw->hwi", self.turn, places - self.center[:, None, None])
        return (
            functional.grid_sample(self.map, grid[None], align_corners=False)[0, 0] > 0
        )  # outside the map is 0


class _Sheet(NamedTuple):
    image: _Image
    flow: Tensor  # (2, 2 H, 2 W), pixels of the frame
    outline: _Outline | None  # None: everywhere


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read an image: whole, and halved; (3, H, W) uint8 each."""
    pixels = read_clip(path, max_frames=1)[0]
    if min(pixels.shape[1:]) < _MIN_SIDE_PX:
        raise InputError(
            f"{path} is {pixels.shape[2]}×{pixels.shape[1]} pixels; at least {_MIN_SIDE_PX} are needed"
        )
    while pixels.shape[1] * pixels.shape[2] > _MAX_PIXELS:
        pixels = _halve(pixels)
    return pixels, _halve(pixels)


def _halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    half = functional.avg_pool2d(torch.from_numpy(pixels)[None].float(), 2)[0]
    return half.round().byte().numpy()


def _grid(side: int) -> Tensor:
    """Place the samples of a frame: (2, h, w), x and y in pixels from its middle."""
    axis = (torch.arange(side * _FINER) + 0.5) / _FINER - side / 2
    return torch.stack([axis.expand(len(axis), -1), axis[:, None].expand(-1, len(axis))])


def _draw_flow(rng: np.random.Generator, grid: Tensor, settings: MotionSettings) -> Tensor:
    """Draw a smooth flow (2, h, w), pixels: shift, affine, perspective and local bending, in random shares."""
    half = settings.patch_px / 2
    strength = settings.max_px * rng.random() ** 2  # small motion is frequent, and must be exact
    angle = rng.uniform(0, 2 * math.pi)
    shift = strength * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float32)
    share = rng.random(3) ** 2 * (rng.random(3) < 0.6)
    place = grid / half  # [-1, 1]
    flow = shift[:, None, None].expand_as(grid)
    if share[0]:
        affine = torch.einsum("ij,jhw->ihw", _affine(rng), place)
        flow = flow + affine * (share[0] * min(strength, _SLOPE * half))
    if share[1]:  # a plane that tilts, to first order
        tilt = torch.from_numpy(rng.normal(0, 0.5, 2)).float()
        flow = flow + place * torch.einsum("i,ihw->hw", tilt, place) * (
            share[1] * min(strength, _SLOPE * half / 2)
        )
    if share[2]:
        knots = int(rng.integers(3, 8))
        bend = torch.from_numpy(rng.normal(0, 0.5, (1, 2, knots, knots))).float()
        bend = functional.interpolate(bend, grid.shape[1:], mode="bicubic", align_corners=True)[0]
        flow = flow + bend * (share[2] * min(strength, _SLOPE * half / (knots - 1)))
    return _limit(flow, settings.max_px)


def _affine(rng: np.random.Generator) -> Tensor:
    """Draw zoom, turn and shear: (2, 2), entries around 1."""
    zoom, turn = rng.normal(0, 0.7, 2)
    parts = np.array([[zoom, -turn], [turn, zoom]]) + rng.normal(0, 0.35, (2, 2))
    return torch.from_numpy(parts).float()


def _limit(flow: Tensor, max_px: float) -> Tensor:
    longest = flow.square().sum(0).max().sqrt().item()
    return flow * min(1.0, max_px / max(longest, 1e-6))


def _show(
    sheets: Sequence[_Sheet], side: int, *, moved: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Render a frame.

    Returns:
        the frame (3, H, W); which sheet is seen at each sample, (2 H, 2 W); and the flow of each sheet.
    """
    grid = _grid(side)
    image, top = torch.empty(3, *grid.shape[1:]), torch.zeros(grid.shape[1:], dtype=torch.long)
    for i, sheet in enumerate(sheets):
        places = grid + sheet.flow if moved else grid
        if sheet.outline is None:
            image = _look(sheet.image, places)
            continue
        covered = sheet.outline.covers(places)
        if covered.any():
            image[:, covered] = _look(sheet.image, places[:, covered][:, None])[:, 0]
            top[covered] = i
    return functional.avg_pool2d(image, _FINER), top, [sheet.flow for sheet in sheets]


def _look(image: _Image, places: Tensor) -> Tensor:
    """Sample an image at places of the frame: (2, h, w) → (3, h, w) in [0, 1]."""
    spots = torch.einsum("ij,jhw->ihw", image.turn, places) + image.center[:, None, None]
    height, width = image.pixels.shape[1:]
    # Only what is looked at becomes floating point.
    left, upper = (
        max(0, min(math.floor(spot.min().item()) - 2, size - 8))
        for spot, size in zip(spots, (width, height), strict=True)
    )
    right, lower = (math.ceil(spot.max().item()) + 3 for spot in spots)
    part = torch.from_numpy(
        image.pixels[:, upper : max(lower, upper + 8), left : max(right, left + 8)]
    )
    part = part[None].float() / 255
    size = torch.tensor([part.shape[3], part.shape[2]], dtype=torch.float32)
    grid = (spots - torch.tensor([left, upper])[:, None, None]) * (2 / size)[:, None, None] - 1
    return functional.grid_sample(
        part, grid.movedim(0, -1)[None], padding_mode="reflection", align_corners=False
    )[0]


def _is_seen(flow: Tensor, owner: Tensor, top_supp: Tensor) -> Tensor:
    """Tell which pixels of ref are seen in supp: inside the frame, and on the same sheet there; (1, H, W) float."""
    side = flow.shape[-1]
    x, y = flow + (torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="xy")) + 0.5)
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    last = side * _FINER - 1
    there = top_supp[(y * _FINER).long().clamp(0, last), (x * _FINER).long().clamp(0, last)]
    return (inside & (there == owner)).float()[None]


def _expose(frames: Tensor, rng: np.random.Generator, settings: MotionSettings) -> Tensor:
    """Do to both frames what a camera does: blur, contrast, then a change of light and noise, and 8 bits."""
    if rng.random() < 0.25:
        frames = _blur(frames, rng.uniform(0.4, 1.3))
    frames = (frames - 0.5) * rng.uniform(0.7, 1.2) + 0.5 + rng.uniform(-0.1, 0.1)
    if rng.random() < 0.5:
        gain, offset = rng.uniform(-settings.change, settings.change, 2)
        frames = torch.stack([frames[0], frames[1] * (1 + gain) + offset])
    if rng.random() < 0.5:
        sigma = settings.noise * rng.random() ** 2
        frames = (
            frames + torch.from_numpy(rng.standard_normal(frames.shape, dtype=np.float32)) * sigma
        )
    return quantize(frames)


def _blur(frames: Tensor, sigma_px: float) -> Tensor:
    reach = math.ceil(3 * sigma_px)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    frames = functional.pad(frames, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(frames, kernel, groups=3), kernel.mT, groups=3)
