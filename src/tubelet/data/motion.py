"""Pairs of frames with known motion: objects cut from photographs that move over a photograph.

    ref(p) = image(camera(p + flow(p)))     supp(q) = image(camera(q))
    so ref(p) is supp at q = p + flow(p)

`camera` is a random zoom, rotation and shift by fractions of a pixel, so that both frames are
resampled equally: each pixel is the mean of four samples of an image that is finer than the frame.
Objects, cut out of other images along random outlines, move in front of the background, each with a
separate flow; where an object hides the layers behind it, the occlusion is known too.

The n-th pair depends only on the seed and n, so that a run can be resumed at any step.

    frames  (2, 3, H, W)    ref and supp
    flow    (2, H, W)       pixels, dx then dy
    visible (1, H, W)       1 where a pixel of ref is also seen in supp
    L       number of layers: the background, then the objects from back to front
    h, w    sampling grid: _OVERSAMPLING times H and W
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
from tubelet.errors import InputError, require
from tubelet.ops.pixels import quantize
from tubelet.video.sequence import has_image_suffix

__all__ = ["MotionSettings", "MovingImages", "MovingPair", "find_images"]

# Samples per pixel along each axis.
_OVERSAMPLING = 2
# A larger image is halved, to limit memory.
_MAX_PIXELS = 4 << 20
_MIN_SIDE_PX = 64
# Maximum change of the flow per pixel: the motion bends objects, but does not fold them.
_MAX_SLOPE = 0.15
# Pixels of the image per pixel of the frame. The image is finer, so that its compression artifacts
# average out.
_MIN_ZOOM = 1.2
_MAX_ZOOM = 4.8
# Fraction of the pairs with a static camera, in which only objects move.
_STATIC_CAMERA = 0.1
# Fraction of the pairs in which nothing moves.
_STATIC = 0.04
# Axes that are flipped, and the signs of dx and dy in the mirror image.
_MIRRORS = (((-1,), (-1, 1)), ((-2,), (1, -1)), ((-2, -1), (-1, -1)))


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
        count_faults = (
            self.batch < 4,
            self.batch % 4 != 0,
            self.patch_px < 8,
            self.things < 0,
        )
        require(
            not any(count_faults),
            f"{self}: need batch a multiple of 4, patch_px ≥ 8 and things ≥ 0",
        )
        amount_faults = (
            not self.max_px > 0,
            self.noise < 0,
            not 0 <= self.change < 1,
        )
        require(
            not any(amount_faults),
            f"{self}: need max_px > 0, noise ≥ 0 and 0 ≤ change < 1",
        )


class MovingPair(NamedTuple):
    """One pair, float32; the shapes are in the docstring of this module."""

    frames: Tensor
    flow: Tensor
    visible: Tensor


def find_images(roots: Sequence[Path]) -> list[Path]:
    """List the images in folders, sorted by name within each folder.

    Raises:
        InputError: A folder is missing, or there is no image.
    """
    images: list[Path] = []
    for root in roots:
        if not root.is_dir():
            raise InputError(f"no such folder of images: {root}")
        images += filter(has_image_suffix, sorted(root.iterdir()))
    if not images:
        raise InputError(f"no image in {', '.join(map(str, roots))}")
    return images


class MovingImages:
    """Draws pairs of frames with known motion from photographs.

    Args:
        paths: Images. They are held in memory, up to 16 MB each.
        settings: Size and variety of the pairs.
        seed: Seed of all pairs.

    Raises:
        InputError: There is no image, or one has a side below 64 pixels.
    """

    def __init__(self, paths: Sequence[Path], settings: MotionSettings, seed: int) -> None:
        if not paths:
            raise InputError("no image to make pairs of")
        self.settings = settings
        self.seed = seed
        self._images = [_read(path) for path in paths]

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the pairs of a step.

        Each pair is used in its four mirror images, so that the mean motion of a batch is zero: a
        network cannot learn a preferred direction.

        Returns:
            frames (B, 2, 3, H, W), flow (B, 2, H, W) and visible (B, 1, H, W).
        """
        num_drawn = self.settings.batch // 4
        first = step * num_drawn
        pairs: list[MovingPair] = []
        for index in range(first, first + num_drawn):
            pairs += _mirror_images(self.pair(index))
        return (
            torch.stack([pair.frames for pair in pairs]),
            torch.stack([pair.flow for pair in pairs]),
            torch.stack([pair.visible for pair in pairs]),
        )

    def pair(self, index: int) -> MovingPair:
        """Draw one pair."""
        rng = np.random.default_rng((self.seed, index))
        side = self.settings.patch_px
        layers = self._draw_layers(rng)
        ref, top_ref = _render(layers, side, moved=True)
        supp, top_supp = _render(layers, side, moved=False)

        # A pixel belongs to the layer that covers the largest part of it.
        coverage = functional.one_hot(top_ref, len(layers)).movedim(-1, 0).float()  # (L, h, w)
        owner = functional.avg_pool2d(coverage, _OVERSAMPLING).argmax(0)  # (H, W)
        flows = [functional.avg_pool2d(layer.flow, _OVERSAMPLING) for layer in layers]
        index_of_owner = owner[None, None].expand(1, 2, -1, -1)
        flow = torch.stack(flows).gather(0, index_of_owner)[0]  # (L, 2, H, W) → (2, H, W)

        frames = _expose(torch.stack([ref, supp]), rng, self.settings)
        return MovingPair(frames, flow, _visible(flow, owner, top_supp))

    def _draw_layers(self, rng: np.random.Generator) -> list[_Layer]:
        """Draw the background and the objects, from back to front."""
        settings = self.settings
        grid = _grid(settings.patch_px)
        static = rng.random()
        if static < _STATIC_CAMERA:
            camera_flow = torch.zeros_like(grid)
        else:
            camera_flow = _draw_flow(rng, grid, settings)
        layers = [_Layer(self._draw_image(rng), camera_flow, None)]
        num_objects = int(rng.integers(0, settings.things + 1))
        for _ in range(num_objects):
            # Most objects move with the camera, and relative to the background.
            moves_with_camera = rng.random() < 0.7
            base_flow = camera_flow if moves_with_camera else torch.zeros_like(camera_flow)
            flow = _limit(base_flow + _draw_flow(rng, grid, settings), settings.max_px)
            image = self._draw_image(rng)
            layers.append(_Layer(image, flow, _Outline.draw(rng, settings.patch_px)))
        if static < _STATIC:
            return [layer._replace(flow=torch.zeros_like(grid)) for layer in layers]
        return layers

    def _draw_image(self, rng: np.random.Generator) -> _Image:
        """Draw an image, and the position, rotation and zoom at which the camera sees it."""
        full, half = self._images[int(rng.integers(len(self._images)))]
        zoom = math.exp(rng.uniform(math.log(_MIN_ZOOM), math.log(_MAX_ZOOM)))
        if zoom < math.sqrt(_MIN_ZOOM * _MAX_ZOOM):
            pixels = full
        else:
            # Like a mipmap: far zooms read the halved image, which avoids aliasing.
            pixels = half
            zoom = zoom / 2

        angle = rng.normal(0, 0.15) + math.pi / 2 * int(rng.random() < 0.25)
        rotation = _rotation(angle)
        mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
        matrix = rotation @ mirror * zoom

        # The frame stays within the image if the image is large enough and not rotated.
        height, width = pixels.shape[1:]
        half_frame = zoom * self.settings.patch_px / 2
        max_dx = max(0.0, width / 2 - half_frame)
        max_dy = max(0.0, height / 2 - half_frame)
        center_x = width / 2 + rng.uniform(-max_dx, max_dx)
        center_y = height / 2 + rng.uniform(-max_dy, max_dy)
        return _Image(
            pixels,
            torch.tensor(matrix, dtype=torch.float32),
            torch.tensor([center_x, center_y], dtype=torch.float32),
        )


def _mirror_images(pair: MovingPair) -> list[MovingPair]:
    """Return a pair, and its mirror images along x, along y and along both."""
    pairs = [pair]
    for axes, signs in _MIRRORS:
        flow = pair.flow.flip(axes) * torch.tensor(signs)[:, None, None]
        pairs.append(MovingPair(pair.frames.flip(axes), flow, pair.visible.flip(axes)))
    return pairs


def _rotation(angle: float) -> NDArray[np.float64]:
    cos = math.cos(angle)
    sin = math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


class _Image(NamedTuple):
    """An image as the camera sees it.

    Attributes:
        pixels: (3, H, W), uint8.
        matrix: (2, 2), from pixels of the frame to pixels of the image.
        center: (2,) x and y, position of the frame's center in the image.
    """

    pixels: NDArray[np.uint8]
    matrix: Tensor
    center: Tensor


class _Outline(NamedTuple):
    """The outline of an object: the area where a coarse random map is positive.

    Attributes:
        map: (1, 1, n, n).
        matrix: (2, 2), from pixels of the frame to the coordinates [-1, 1] of the map.
        center: (2,), pixels from the center of the frame.
    """

    map: Tensor
    matrix: Tensor
    center: Tensor

    @staticmethod
    def draw(rng: np.random.Generator, side: int) -> _Outline:
        """Draw an outline for frames of a side in pixels."""
        # A paraboloid that is positive in the middle, with random bumps: a blob.
        n = int(rng.integers(3, 10))
        axis = torch.linspace(-1, 1, n)
        bumps = torch.from_numpy(rng.normal(0, 0.35, (n, n))).float()
        height = 0.75 + bumps - (axis[:, None].square() + axis.square()) * 1.2
        height = functional.interpolate(
            height[None, None],
            scale_factor=4.0,
            mode="bicubic",
            align_corners=False,
        )
        radius = side * math.exp(rng.uniform(math.log(0.08), math.log(0.5)))
        elongation = math.exp(rng.normal(0, 0.4))
        angle = rng.uniform(0, math.pi)
        matrix = np.diag([1 / (radius * elongation), elongation / radius]) @ _rotation(angle)
        center = rng.uniform(-0.5, 0.5, 2) * side
        return _Outline(
            height,
            torch.tensor(matrix, dtype=torch.float32),
            torch.tensor(center, dtype=torch.float32),
        )

    def covers(self, positions: Tensor) -> Tensor:
        """Return which positions (2, h, w), pixels from the frame's center, are inside: (h, w)."""
        offsets = positions - self.center[:, None, None]
        grid = torch.einsum("ij,jhw->hwi", self.matrix, offsets)
        # Outside the map, samples are 0, which is not inside.
        return functional.grid_sample(self.map, grid[None], align_corners=False)[0, 0] > 0


class _Layer(NamedTuple):
    """The background or an object.

    Attributes:
        image: Texture of the layer.
        flow: (2, h, w), pixels of the frame.
        outline: Area of the layer; None covers the frame.
    """

    image: _Image
    flow: Tensor
    outline: _Outline | None


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read an image in full and half size; (3, H, W) uint8 each."""
    pixels = read_clip(path, max_frames=1)[0]
    height, width = pixels.shape[1:]
    if min(height, width) < _MIN_SIDE_PX:
        raise InputError(f"{path} is {width}×{height} pixels; at least {_MIN_SIDE_PX} are needed")
    while pixels.shape[1] * pixels.shape[2] > _MAX_PIXELS:
        pixels = _halve(pixels)
    return pixels, _halve(pixels)


def _halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    half = functional.avg_pool2d(torch.from_numpy(pixels)[None].float(), 2)[0]
    return half.round().byte().numpy()


def _grid(side: int) -> Tensor:
    """Return the sampling positions of a frame: (2, h, w), x and y in pixels from its center."""
    axis = (torch.arange(side * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - side / 2
    x = axis.expand(len(axis), -1)
    y = axis[:, None].expand(-1, len(axis))
    return torch.stack([x, y])


def _draw_flow(rng: np.random.Generator, grid: Tensor, settings: MotionSettings) -> Tensor:
    """Draw a smooth flow: the sum of a shift, an affine, a perspective and a local deformation.

    Args:
        rng: Random generator.
        grid: (2, h, w), positions in pixels from the center of the frame.
        settings: Size of the frame and maximum motion.

    Returns:
        (2, h, w), pixels.
    """
    half = settings.patch_px / 2
    # Small motion is frequent, and must be estimated exactly.
    strength = settings.max_px * rng.random() ** 2
    angle = rng.uniform(0, 2 * math.pi)
    shift = strength * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float32)
    # Each of the three deformations is absent in 40 % of the flows.
    shares = rng.random(3) ** 2 * (rng.random(3) < 0.6)
    affine_share, tilt_share, bend_share = shares
    position = grid / half  # [-1, 1]

    flow = shift[:, None, None].expand_as(grid)
    if affine_share:
        affine = torch.einsum("ij,jhw->ihw", _draw_affine(rng), position)
        flow = flow + affine * (affine_share * min(strength, _MAX_SLOPE * half))
    if tilt_share:
        # The perspective of a plane that tilts, to first order.
        tilt = torch.from_numpy(rng.normal(0, 0.5, 2)).float()
        tilt_px = tilt_share * min(strength, _MAX_SLOPE * half / 2)
        flow = flow + position * torch.einsum("i,ihw->hw", tilt, position) * tilt_px
    if bend_share:
        knots = int(rng.integers(3, 8))
        bend = torch.from_numpy(rng.normal(0, 0.5, (1, 2, knots, knots))).float()
        bend = functional.interpolate(bend, grid.shape[1:], mode="bicubic", align_corners=True)[0]
        bend_px = bend_share * min(strength, _MAX_SLOPE * half / (knots - 1))
        flow = flow + bend * bend_px
    return _limit(flow, settings.max_px)


def _draw_affine(rng: np.random.Generator) -> Tensor:
    """Draw a zoom, a rotation and a shear, as the displacement matrix (2, 2)."""
    zoom, rotation = rng.normal(0, 0.7, 2)
    similarity = np.array([[zoom, -rotation], [rotation, zoom]])
    matrix = similarity + rng.normal(0, 0.35, (2, 2))
    return torch.from_numpy(matrix).float()


def _limit(flow: Tensor, max_px: float) -> Tensor:
    """Scale a flow down, so that its longest vector has at most `max_px` pixels."""
    longest_px = flow.square().sum(0).max().sqrt().item()
    return flow * min(1.0, max_px / max(longest_px, 1e-6))


def _render(layers: Sequence[_Layer], side: int, *, moved: bool) -> tuple[Tensor, Tensor]:
    """Render a frame.

    Args:
        layers: Background and objects, from back to front.
        side: Side of the frame, pixels.
        moved: Apply the flow of the layers: this is ref, otherwise supp.

    Returns:
        The frame (3, H, W), and the index of the visible layer of each sample (h, w).
    """
    grid = _grid(side)
    image = torch.empty(3, *grid.shape[1:])
    top = torch.zeros(grid.shape[1:], dtype=torch.long)
    for number, layer in enumerate(layers):
        positions = grid + layer.flow if moved else grid
        if layer.outline is None:
            image = _sample(layer.image, positions)
            continue
        covered = layer.outline.covers(positions)
        if covered.any():
            # Only the covered positions are sampled, as an image of one row.
            samples = _sample(layer.image, positions[:, covered][:, None])
            image[:, covered] = samples[:, 0]
            top[covered] = number
    return functional.avg_pool2d(image, _OVERSAMPLING), top


def _sample(image: _Image, positions: Tensor) -> Tensor:
    """Sample an image at positions of the frame: (2, h, w) → (3, h, w) in [0, 1]."""
    points = torch.einsum("ij,jhw->ihw", image.matrix, positions) + image.center[:, None, None]
    x, y = points
    height, width = image.pixels.shape[1:]
    # Only the region around the points is converted to floating point: the image is large.
    left = max(0, min(math.floor(x.min().item()) - 2, width - 8))
    top = max(0, min(math.floor(y.min().item()) - 2, height - 8))
    right = max(math.ceil(x.max().item()) + 3, left + 8)
    bottom = max(math.ceil(y.max().item()) + 3, top + 8)
    region = torch.from_numpy(image.pixels[:, top:bottom, left:right])[None].float() / 255

    # From pixels to the coordinates [-1, 1] of `grid_sample`.
    size = torch.tensor([region.shape[3], region.shape[2]], dtype=torch.float32)
    origin = torch.tensor([left, top])[:, None, None]
    grid = (points - origin) * (2 / size)[:, None, None] - 1
    return functional.grid_sample(
        region,
        grid.movedim(0, -1)[None],
        padding_mode="reflection",
        align_corners=False,
    )[0]


def _visible(flow: Tensor, owner: Tensor, top_supp: Tensor) -> Tensor:
    """Return which pixels of ref are seen in supp: inside the frame, and on the same layer.

    Args:
        flow: (2, H, W), pixels.
        owner: (H, W), layer of each pixel of ref.
        top_supp: (h, w), visible layer of each sample of supp.

    Returns:
        (1, H, W) float, 1 where visible.
    """
    side = flow.shape[-1]
    axis = torch.arange(side)
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    x, y = flow + (pixels + 0.5)
    is_inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    last = side * _OVERSAMPLING - 1
    row = (y * _OVERSAMPLING).long().clamp(0, last)
    column = (x * _OVERSAMPLING).long().clamp(0, last)
    is_same_layer = top_supp[row, column] == owner
    return (is_inside & is_same_layer).float()[None]


def _expose(frames: Tensor, rng: np.random.Generator, settings: MotionSettings) -> Tensor:
    """Simulate a camera: blur, contrast, a change of light between the frames, noise and 8 bits."""
    if rng.random() < 0.25:
        frames = _blur(frames, rng.uniform(0.4, 1.3))
    frames = (frames - 0.5) * rng.uniform(0.7, 1.2) + 0.5 + rng.uniform(-0.1, 0.1)
    if rng.random() < 0.5:
        gain, offset = rng.uniform(-settings.change, settings.change, 2)
        frames = torch.stack([frames[0], frames[1] * (1 + gain) + offset])
    if rng.random() < 0.5:
        sigma = settings.noise * rng.random() ** 2
        noise = torch.from_numpy(rng.standard_normal(frames.shape, dtype=np.float32))
        frames = frames + noise * sigma
    return quantize(frames)


def _blur(frames: Tensor, sigma_px: float) -> Tensor:
    """Convolve with a separable Gaussian; the border is replicated."""
    radius = math.ceil(3 * sigma_px)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    frames = functional.pad(frames, (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(functional.conv2d(frames, kernel, groups=3), kernel.mT, groups=3)
