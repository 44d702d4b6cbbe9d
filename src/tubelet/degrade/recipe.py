"""Random degradations as a list of steps, drawn from a seed, which can be saved and replayed.

real          blur → resize → noise → codec, mild: the effect of a camera and an upload
second-order  two rounds of blur → resize → noise → JPEG → codec, then a last resize with a sinc
              filter, strong

A replay from JSON is exact to the bit. A clip that does not fit in memory is degraded in parts: the
steps are the same for all of them, only the noise continues.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tubelet.degrade.kernels import KernelShape
from tubelet.degrade.steps import (
    Blur,
    Codec,
    DegradationStep,
    Jpeg,
    Noise,
    Resize,
    ResizeMethod,
    apply_step,
    resized_size,
)
from tubelet.errors import ConfigError, InputError
from tubelet.ops.pixels import quantize

__all__ = [
    "RANDOM_PRESETS",
    "DegradationRecipe",
    "RandomPreset",
    "apply_recipe",
    "draw_recipe",
    "part_frames",
    "recipe_from_json",
    "recipe_to_json",
    "stream_recipe",
]

RandomPreset = Literal["real", "second-order"]
RANDOM_PRESETS: Mapping[str, int] = {"real": 2, "second-order": 1}
"""Random presets, and the edition of each. Increase it when a seed gives other pixels, since caches
compare it."""

_STEPS: dict[str, type[DegradationStep]] = {
    "blur": Blur,
    "resize": Resize,
    "noise": Noise,
    "jpeg": Jpeg,
    "codec": Codec,
}
"""Name of each step in JSON."""

_MAX_PART_BYTES = 256 << 20
"""Size of a part as float32, where its frames are largest; the encoder needs several copies."""
_MAX_PART_FRAMES = 300
_BYTES_PER_PX = 3 * 4

_PLAIN_METHODS: list[ResizeMethod] = ["area", "bilinear-plain", "bicubic-plain"]
_KERNEL_TAPS = tuple(range(7, 22, 2))

Range = tuple[float, float]
"""Lower and upper bound of a uniform distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradationRecipe:
    """Steps that degrade a clip, in order, and the preset and seed that they were drawn from.

    Attributes:
        preset: Name of the random preset.
        seed: Seed of all draws.
        scale: Downscaling factor.
        steps: The steps, see `tubelet.degrade.steps`.
    """

    preset: str
    seed: int
    scale: int
    steps: tuple[DegradationStep, ...]

    def __str__(self) -> str:
        """List the steps, one per line."""
        lines = [f"{self.preset}, seed {self.seed}, 1/{self.scale}:"]
        for number, step in enumerate(self.steps, 1):
            lines.append(f"  {number}. {_describe_step(step)}")
        return "\n".join(lines)


def draw_recipe(
    preset: RandomPreset,
    *,
    scale: int = 4,
    seed: int = 0,
) -> DegradationRecipe:
    """Draw the steps of a random preset.

    Args:
        preset: "real" or "second-order".
        scale: Downscaling factor.
        seed: Seed of all draws; the same seed gives the same recipe on every machine.

    Raises:
        ConfigError: The preset is unknown, or is not random.

    Source: "second-order" after Wang et al., Real-ESRGAN, ICCVW 2021, and Chan et al.,
    RealBasicVSR, CVPR 2022.
    """
    if preset not in RANDOM_PRESETS:
        raise ConfigError(f"{preset!r} draws no recipe; these do: {', '.join(RANDOM_PRESETS)}")
    rng = random.Random(seed)
    steps = _draw_real(rng, scale) if preset == "real" else _draw_second_order(rng, scale)
    return DegradationRecipe(preset=preset, seed=seed, scale=scale, steps=tuple(steps))


def apply_recipe(
    clip: Tensor,
    recipe: DegradationRecipe,
    *,
    part: int = 0,
) -> Tensor:
    """Degrade a clip by the steps of a recipe.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        recipe: The steps.
        part: Index of the part, if `clip` is a part of a longer one.

    Returns:
        (T, 3, ceil(H/scale), ceil(W/scale)), multiples of 1/255.

    Raises:
        ResourceError: This build of FFmpeg lacks an encoder of the recipe.
    """
    gt_size = (clip.shape[-2], clip.shape[-1])
    return quantize(_apply_steps(recipe.steps, clip, gt_size, part))


def stream_recipe(
    frames: Iterable[Tensor],
    recipe: DegradationRecipe,
    size: tuple[int, int],
    *,
    max_part_frames: int = _MAX_PART_FRAMES,
) -> Iterator[Tensor]:
    """Degrade a clip of any length in bounded memory.

    Steps on single frames are applied frame by frame, up to the first step that needs the clip;
    from there on, the clip is processed in parts of `part_frames`. The result for a clip of not
    more frames is equal to that of `apply_recipe`.

    Args:
        frames: Frames of the clip, (3, H, W) each, in [0, 1].
        recipe: The steps.
        size: (H, W), pixels.
        max_part_frames: Maximum length of a part, if the memory allows it.

    Yields:
        (3, ceil(H/scale), ceil(W/scale)) per frame.
    """
    num_frame_steps = len(recipe.steps)
    for index, step in enumerate(recipe.steps):
        if _needs_clip(step):
            num_frame_steps = index
            break
    frame_steps = recipe.steps[:num_frame_steps]
    clip_steps = recipe.steps[num_frame_steps:]

    # Lazy: a part is read and degraded only when it is needed.
    prepared = (_apply_steps(frame_steps, frame[None], size, 0)[0] for frame in frames)
    max_frames = min(max_part_frames, part_frames(recipe, size))
    for part in itertools.count():
        batch = list(itertools.islice(prepared, max_frames))
        if not batch:
            return
        clip = torch.stack(batch)
        # The stacked copy replaces the frames, which would double the memory of a part.
        batch.clear()
        yield from quantize(_apply_steps(clip_steps, clip, size, part))


def part_frames(recipe: DegradationRecipe, size: tuple[int, int]) -> int:
    """Compute how many frames `stream_recipe` holds at once, from their size only.

    Args:
        recipe: The steps, which determine the size of the frames in between.
        size: (H, W) of the original clip, pixels.
    """
    # Find the largest frames among those that a step on the clip gets.
    frame_px = math.prod(size)
    max_frame_px = 0
    for step in recipe.steps:
        if isinstance(step, Resize):
            frame_px = math.prod(resized_size(size, step.factor))
        elif _needs_clip(step):
            max_frame_px = max(max_frame_px, frame_px)
    frame_bytes = max(1, _BYTES_PER_PX * max_frame_px)
    num_frames = min(_MAX_PART_FRAMES, _MAX_PART_BYTES // frame_bytes)
    return max(1, num_frames)


def recipe_to_json(recipe: DegradationRecipe) -> str:
    """Convert a recipe to JSON that a user can read and edit."""
    step_names = {step_type: name for name, step_type in _STEPS.items()}
    steps: list[dict[str, Any]] = []
    for step in recipe.steps:
        steps.append({"step": step_names[type(step)], **dataclasses.asdict(step)})
    record = {
        "preset": recipe.preset,
        "seed": recipe.seed,
        "scale": recipe.scale,
        "steps": steps,
    }
    return json.dumps(record, indent=2) + "\n"


def recipe_from_json(text: str) -> DegradationRecipe:
    """Read a recipe from JSON.

    Raises:
        InputError: The text is not JSON, or a step, a field or a value is not valid in a recipe.
    """
    try:
        return _parse_recipe(text)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"not a recipe as `tubelet degrade --recipe` writes it: {reason}"
        ) from error


def _parse_recipe(text: str) -> DegradationRecipe:
    """Read a recipe from JSON.

    Raises:
        KeyError, TypeError, ValueError: The text is not valid.
    """
    record = cast(dict[str, Any], json.loads(text))
    steps = tuple(map(_parse_step, record["steps"]))
    recipe = DegradationRecipe(
        preset=record["preset"],
        seed=int(record["seed"]),
        scale=int(record["scale"]),
        steps=steps,
    )
    # The size of the result is that of the last resize.
    final_factor = 0.0
    for step in steps:
        if isinstance(step, Resize):
            final_factor = step.factor
    if abs(final_factor * recipe.scale - 1) > 1e-6:
        raise ValueError(f"the last resize must be to 1/{recipe.scale}")
    if recipe.preset not in RANDOM_PRESETS:
        raise ValueError(f"preset {recipe.preset!r} is none of {', '.join(RANDOM_PRESETS)}")
    return recipe


def _parse_step(fields: Mapping[str, Any]) -> DegradationStep:
    values = dict(fields)
    step_type = _STEPS.get(values.pop("step"))
    if step_type is None:
        raise ValueError(f"step {fields['step']!r} is none of {', '.join(_STEPS)}")
    return step_type(**values)


def _describe_step(step: DegradationStep) -> str:
    """Describe a step in one line."""
    match step:
        case Blur(kernel="sinc"):
            return f"blur: sinc, cut-off {step.cutoff_rad:.2f} rad, {step.taps} taps"
        case Blur():
            size = f"σ {step.sigma_x:.2f} × {step.sigma_y:.2f} px"
            beta = "" if step.kernel == "gaussian" else f", β {step.beta:.2f}"
            return f"blur: {step.kernel}, {size}{beta}, {step.taps} taps"
        case Resize():
            return f"resize: to {step.factor:.3f} of the original, {step.method}"
        case Noise():
            amount = f"σ {255 * step.strength:.1f} of 255"
            if step.kind == "poisson":
                amount = f"× {step.strength:.2f}"
            color = "gray" if step.channels == 1 else "color"
            return f"noise: {step.kind}, {amount}, {color}"
        case Jpeg():
            return f"JPEG: quality {step.quality}"
        case Codec():
            options = ", ".join(f"{name} {value}" for name, value in step.options.items())
            return f"codec: {step.encoder}, {options}"


def _needs_clip(step: DegradationStep) -> bool:
    """Return whether a step must see the frames of a clip together."""
    return isinstance(step, Noise | Codec)


def _apply_steps(
    steps: Iterable[DegradationStep],
    clip: Tensor,
    gt_size: tuple[int, int],
    part: int,
) -> Tensor:
    for step in steps:
        clip = apply_step(step, clip, gt_size=gt_size, part=part)
    return clip


# The order of the draws in the functions below is fixed, and so is their number: another order
# would give other steps from the same seed, and published models were trained with these.


def _draw_real(rng: random.Random, scale: int) -> Iterator[DegradationStep]:
    """Draw blur → resize → noise → codec."""
    # Blur, in half of the draws. σ in pixels of the original: from sharp optics to slightly out
    # of focus.
    if rng.random() < 0.5:
        min_sigma = 0.15 * scale
        max_sigma = 0.35 * scale
        yield Blur(
            kernel="gaussian",
            taps=2 * math.ceil(3 * max_sigma) + 1,
            sigma_x=rng.uniform(min_sigma, max_sigma),
            sigma_y=rng.uniform(min_sigma, max_sigma),
            angle_rad=rng.uniform(0, math.pi),
            edge="reflect",
        )

    methods: list[ResizeMethod] = ["bicubic", "area", "bilinear"]
    yield Resize(factor=1 / scale, method=rng.choice(methods))

    kind = rng.choice(["none", "gaussian", "shot"])
    seed = rng.getrandbits(62)
    channels = rng.choice([1, 3])
    strength = rng.uniform(0.5, 6.0) / 255
    if kind != "none":
        yield Noise(
            kind=cast(Any, kind),
            channels=cast(Any, channels),
            strength=strength,
            seed=seed,
        )

    # H.264 three times as often as the others, and no encoder in one of six draws.
    encoder = rng.choice(["libx264", "libx264", "libx264", "libx265", "mpeg4", ""])
    if encoder:
        yield _draw_codec(
            rng,
            encoder,
            x264_crf=(16, 30),
            x265_crf=(18, 32),
            mpeg4_quantizer=(2, 7),
        )


def _draw_second_order(
    rng: random.Random,
    scale: int,
) -> Iterator[DegradationStep]:
    """Draw two rounds, then the last resize with a sinc filter before or after the compression.

    Deviations: encoders are drawn by quality, since RealBasicVSR's bit rates are those of its
    crops; the first round has one in half of the draws; all frames of a clip are degraded alike,
    where RealBasicVSR lets parameters drift a little.
    """
    # First round, relative to the original size.
    yield _draw_blur(rng, sigma=(0.2, 3.0), sinc_probability=0.1)
    yield _draw_resize(rng, 1.0, odds=(0.2, 0.7, 0.1), factors=(0.15, 1.5))
    yield _draw_noise(rng, sigma=(1.0, 30.0), poisson=(0.05, 3.0))
    yield Jpeg(quality=rng.randint(30, 95))
    if rng.random() < 0.5:
        yield _draw_any_codec(rng)

    # Second round, weaker and relative to the size of the result.
    if rng.random() < 0.8:
        yield _draw_blur(rng, sigma=(0.2, 1.5), sinc_probability=0.1)
    yield _draw_resize(rng, 1 / scale, odds=(0.3, 0.4, 0.3), factors=(0.3, 1.2))
    yield _draw_noise(rng, sigma=(1.0, 25.0), poisson=(0.05, 2.5))

    # Last resize and sinc filter, and the compression, in either order.
    resize: list[DegradationStep] = [Resize(factor=1 / scale, method=rng.choice(_PLAIN_METHODS))]
    if rng.random() < 0.8:
        resize.append(_draw_sinc(rng))
    compression: list[DegradationStep] = [
        Jpeg(quality=rng.randint(30, 95)),
        _draw_any_codec(rng),
    ]
    resize_first = rng.random() < 0.5
    yield from resize + compression if resize_first else compression + resize


def _draw_blur(
    rng: random.Random,
    *,
    sigma: Range,
    sinc_probability: float,
) -> Blur:
    if rng.random() < sinc_probability:
        return _draw_sinc(rng)
    shapes: list[KernelShape] = ["gaussian", "generalized", "plateau"]
    (shape,) = rng.choices(shapes, [0.70, 0.15, 0.15])
    isotropic = rng.random() < 0.65
    # All values are drawn even where a kernel does not use them, see above.
    sigma_x = rng.uniform(*sigma)
    sigma_y = rng.uniform(*sigma)
    angle_rad = rng.uniform(-math.pi, math.pi)
    beta = rng.uniform(0.5, 4.0) if shape == "generalized" else rng.uniform(1.0, 2.0)
    taps = rng.choice(_KERNEL_TAPS)
    return Blur(
        kernel=shape,
        taps=taps,
        sigma_x=sigma_x,
        sigma_y=sigma_x if isotropic else sigma_y,
        angle_rad=0.0 if isotropic else angle_rad,
        beta=1.0 if shape == "gaussian" else beta,
    )


def _draw_sinc(rng: random.Random) -> Blur:
    taps = rng.choice(_KERNEL_TAPS)
    cutoff_rad = rng.uniform(math.pi / 3, math.pi)
    return Blur(kernel="sinc", taps=taps, cutoff_rad=cutoff_rad)


def _draw_resize(
    rng: random.Random,
    base_factor: float,
    *,
    odds: tuple[float, float, float],
    factors: Range,
) -> Resize:
    """Draw a resize up, down or by `base_factor` exactly.

    Args:
        rng: Source of the draws.
        base_factor: Fraction of the original size that the drawn factor is multiplied with.
        odds: Probability of enlarging, shrinking and neither.
        factors: Smallest factor of shrinking and largest factor of enlarging.
    """
    (direction,) = rng.choices(["up", "down", "keep"], odds)
    # Both factors are drawn in any case, see above.
    up = rng.uniform(1.0, factors[1])
    down = rng.uniform(factors[0], 1.0)
    method = rng.choice(_PLAIN_METHODS)
    factor_of = {"up": up, "down": down, "keep": 1.0}
    return Resize(factor=base_factor * factor_of[direction], method=method)


def _draw_noise(rng: random.Random, *, sigma: Range, poisson: Range) -> Noise:
    """Draw Gaussian noise with σ in units of 1/255, or Poisson noise with a factor."""
    channels = cast(Any, 1 if rng.random() < 0.4 else 3)
    seed = rng.getrandbits(62)
    if rng.random() < 0.5:
        strength = rng.uniform(*sigma) / 255
        return Noise(kind="gaussian", channels=channels, strength=strength, seed=seed)
    strength = rng.uniform(*poisson)
    return Noise(kind="poisson", channels=channels, strength=strength, seed=seed)


def _draw_any_codec(rng: random.Random) -> Codec:
    encoder = rng.choice(["libx264", "libx265", "mpeg4"])
    return _draw_codec(
        rng,
        encoder,
        x264_crf=(20, 36),
        x265_crf=(22, 38),
        mpeg4_quantizer=(3, 12),
    )


def _draw_codec(
    rng: random.Random,
    encoder: str,
    *,
    x264_crf: Range,
    x265_crf: Range,
    mpeg4_quantizer: tuple[int, int],
) -> Codec:
    """Draw the quality of an encoder from its range."""
    if encoder == "libx264":
        crf = rng.uniform(*x264_crf)
        preset = rng.choice(["veryfast", "medium"])
        return Codec(encoder=encoder, options={"crf": f"{crf:.1f}", "preset": preset})
    if encoder == "libx265":
        crf = rng.uniform(*x265_crf)
        options = {
            "crf": f"{crf:.1f}",
            "preset": "veryfast",
            # The encoder would print to the standard error.
            "x265-params": "log-level=none",
        }
        return Codec(encoder=encoder, options=options)
    quantizer = rng.randint(*mpeg4_quantizer)
    options = {
        # A fixed quantizer; FFmpeg's unit of the quality is FF_QP2LAMBDA = 118 per step.
        "flags": "qscale",
        "global_quality": str(118 * quantizer),
        "qmin": str(quantizer),
        "qmax": str(quantizer),
    }
    return Codec(encoder=encoder, options=options)
