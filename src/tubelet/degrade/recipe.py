"""A degradation as a list of drawn steps: drawn from a seed, printed, saved as JSON, and replayed to the bit.

real          blur → resize → noise → codec, mild: what a camera and an upload do to a clip
second-order  two rounds of blur → resize → noise → JPEG → codec, and a last resize with a sinc filter, strong

A clip that is too long to hold is degraded in parts: the steps are the same for all of them, only noise goes on.
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
    resized,
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
"""Presets that draw, and the edition of each: raise it when a seed gives other pixels, since caches go by it."""

_STEPS: dict[str, type[DegradationStep]] = {
    "blur": Blur,
    "resize": Resize,
    "noise": Noise,
    "jpeg": Jpeg,
    "codec": Codec,
}
_PART_BYTES = (
    256 << 20
)  # of one float32 copy of a part, where it is largest; the encoder needs several at a time
_PART_MAX_FRAMES = 300
_PLAIN: list[ResizeMethod] = ["area", "bilinear-plain", "bicubic-plain"]
_TAPS = tuple(range(7, 22, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradationRecipe:
    """What is done to a clip, in order.

    Attributes:
        preset: that it was drawn by.
        seed: that it was drawn from.
        scale: factor by which the result is smaller.
        steps: see `tubelet.degrade.steps`.
    """

    preset: str
    seed: int
    scale: int
    steps: tuple[DegradationStep, ...]

    def __str__(self) -> str:
        """List the steps, a line each."""
        lines = [f"{self.preset}, seed {self.seed}, 1/{self.scale}:"]
        return "\n".join(
            lines + [f"  {number}. {_line(step)}" for number, step in enumerate(self.steps, 1)]
        )


def draw_recipe(preset: RandomPreset, *, scale: int = 4, seed: int = 0) -> DegradationRecipe:
    """Draw the steps of a random preset.

    Args:
        preset: "real" or "second-order".
        scale: factor by which the result is smaller.
        seed: of all draws; the same seed gives the same recipe on every machine.

    Raises:
        ConfigError: the preset draws nothing, or is unknown.

    Source: "second-order" after Wang et al., Real-ESRGAN, ICCVW 2021, and Chan et al., RealBasicVSR, CVPR 2022.
    """
    if preset not in RANDOM_PRESETS:
        raise ConfigError(f"{preset!r} draws no recipe; these do: {', '.join(RANDOM_PRESETS)}")
    rng = random.Random(seed)
    steps = _draw_real(rng, scale) if preset == "real" else _draw_second_order(rng, scale)
    return DegradationRecipe(preset=preset, seed=seed, scale=scale, steps=tuple(steps))


def apply_recipe(clip: Tensor, recipe: DegradationRecipe, *, part: int = 0) -> Tensor:
    """Degrade a clip by the steps of a recipe.

    Args:
        clip: (T, 3, H, W) in [0, 1].
        recipe: what to do.
        part: number of the part, where the clip is one of a longer one.

    Returns:
        (T, 3, ceil(H/scale), ceil(W/scale)), multiples of 1/255.

    Raises:
        ResourceError: this build of FFmpeg lacks an encoder of the recipe.
    """
    gt_size = (clip.shape[-2], clip.shape[-1])
    return quantize(_apply(recipe.steps, clip, gt_size, part))


def stream_recipe(
    frames: Iterable[Tensor], recipe: DegradationRecipe, size: tuple[int, int]
) -> Iterator[Tensor]:
    """Degrade a clip of any length in bounded memory.

    What works on single frames is done as they come, as far as the first step that needs the clip; from there on the
    clip is taken in parts of `part_frames`. A clip of no more frames than that comes out as `apply_recipe` gives it.

    Args:
        frames: (3, H, W) each, in [0, 1].
        recipe: what to do.
        size: (H, W), pixels.

    Yields:
        (3, ceil(H/scale), ceil(W/scale)).
    """
    first = next(
        (n for n, step in enumerate(recipe.steps) if isinstance(step, Noise | Codec)),
        len(recipe.steps),
    )
    single, rest = recipe.steps[:first], recipe.steps[first:]
    begun = (_apply(single, frame[None], size, 0)[0] for frame in frames)
    most = part_frames(recipe, size)
    for part in itertools.count():
        held = list(itertools.islice(begun, most))
        if not held:
            return
        clip = torch.stack(held)
        held.clear()
        yield from quantize(_apply(rest, clip, size, part))


def part_frames(recipe: DegradationRecipe, size: tuple[int, int]) -> int:
    """Say how many frames `stream_recipe` holds at once, by their size alone.

    Args:
        recipe: its steps tell how large the frames become in between.
        size: (H, W) of the good clip, pixels.
    """
    now, largest = math.prod(size), 0
    for step in recipe.steps:
        if isinstance(step, Resize):
            now = math.prod(resized(size, step.factor))
        elif isinstance(step, Noise | Codec):
            largest = max(largest, now)
    return max(1, min(_PART_MAX_FRAMES, _PART_BYTES // max(1, 12 * largest)))


def recipe_to_json(recipe: DegradationRecipe) -> str:
    """Write a recipe as JSON that a user can read and edit."""
    names = {kind: name for name, kind in _STEPS.items()}
    steps = [{"step": names[type(step)], **dataclasses.asdict(step)} for step in recipe.steps]
    record = {"preset": recipe.preset, "seed": recipe.seed, "scale": recipe.scale, "steps": steps}
    return json.dumps(record, indent=2) + "\n"


def recipe_from_json(text: str) -> DegradationRecipe:
    """Read a recipe.

    Raises:
        InputError: the text is not JSON, or a step, a field or a value is not one that a recipe has.
    """
    try:
        record = cast(dict[str, Any], json.loads(text))
        steps = tuple(_step_from(fields) for fields in record["steps"])
        recipe = DegradationRecipe(
            preset=record["preset"],
            seed=int(record["seed"]),
            scale=int(record["scale"]),
            steps=steps,
        )
        last = next((step for step in reversed(steps) if isinstance(step, Resize)), None)
        if last is None or abs(last.factor * recipe.scale - 1) > 1e-6:
            raise ValueError(f"the last resize must be to 1/{recipe.scale}")
        if recipe.preset not in RANDOM_PRESETS:
            raise ValueError(f"preset {recipe.preset!r} is none of {', '.join(RANDOM_PRESETS)}")
        return recipe
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"not a recipe as `tubelet degrade --recipe` writes it: {reason}"
        ) from error


def _step_from(fields: Mapping[str, Any]) -> DegradationStep:
    values = dict(fields)
    kind = _STEPS.get(values.pop("step"))
    if kind is None:
        raise ValueError(f"step {fields['step']!r} is none of {', '.join(_STEPS)}")
    return kind(**values)


def _line(step: DegradationStep) -> str:
    match step:
        case Blur(kernel="sinc"):
            return f"blur: sinc, cut-off {step.cutoff_rad:.2f} rad, {step.taps} taps"
        case Blur():
            beta = "" if step.kernel == "gaussian" else f", β {step.beta:.2f}"
            return f"blur: {step.kernel}, σ {step.sigma_x:.2f} × {step.sigma_y:.2f} px{beta}, {step.taps} taps"
        case Resize():
            return f"resize: to {step.factor:.3f} of the original, {step.method}"
        case Noise():
            amount = (
                f"× {step.strength:.2f}"
                if step.kind == "poisson"
                else f"σ {255 * step.strength:.1f} of 255"
            )
            return f"noise: {step.kind}, {amount}, {'gray' if step.channels == 1 else 'color'}"
        case Jpeg():
            return f"JPEG: quality {step.quality}"
        case Codec():
            return f"codec: {step.encoder}, " + ", ".join(
                f"{name} {value}" for name, value in step.options.items()
            )


def _apply(
    steps: Iterable[DegradationStep], clip: Tensor, gt_size: tuple[int, int], part: int
) -> Tensor:
    for step in steps:
        clip = apply_step(step, clip, gt_size=gt_size, part=part)
    return clip


def _draw_real(rng: random.Random, scale: int) -> Iterator[DegradationStep]:
    """Blur → resize → noise → codec. The order of the draws is fixed: models were trained on what seeds give."""
    if rng.random() < 0.5:
        low, high = (
            0.15 * scale,
            0.35 * scale,
        )  # σ in gt pixels: from sharp optics to slightly out of focus
        taps = 2 * math.ceil(3 * high) + 1
        sigma_x, sigma_y, angle = (
            rng.uniform(low, high),
            rng.uniform(low, high),
            rng.uniform(0, math.pi),
        )
        yield Blur(
            kernel="gaussian",
            taps=taps,
            sigma_x=sigma_x,
            sigma_y=sigma_y,
            angle_rad=angle,
            edge="reflect",
        )
    methods: list[ResizeMethod] = ["bicubic", "area", "bilinear"]
    yield Resize(factor=1 / scale, method=rng.choice(methods))
    kind, seed = rng.choice(["none", "gaussian", "shot"]), rng.getrandbits(62)
    channels, strength = rng.choice([1, 3]), rng.uniform(0.5, 6.0) / 255
    if kind != "none":
        yield Noise(
            kind=cast(Any, kind), channels=cast(Any, channels), strength=strength, seed=seed
        )
    encoder = rng.choice(["libx264", "libx264", "libx264", "libx265", "mpeg4", ""])
    if encoder:
        yield _draw_codec(
            rng, encoder, x264_crf=(16, 30), x265_crf=(18, 32), mpeg4_quantizer=(2, 7)
        )


def _draw_second_order(rng: random.Random, scale: int) -> Iterator[DegradationStep]:
    """Two rounds, then the last resize with a sinc filter before or after the last compression.

    Deviations: encoders are drawn by quality, since RealBasicVSR's bit rates are those of its crops; the first round
    has one in half of the draws; whole clips are degraded alike, where RealBasicVSR lets parameters drift a little.
    """
    yield _draw_blur(rng, sigma=(0.2, 3.0), sinc_probability=0.1)
    yield _draw_resize(rng, 1.0, ways=(0.2, 0.7, 0.1), factors=(0.15, 1.5))
    yield _draw_noise(rng, sigma=(1.0, 30.0), poisson=(0.05, 3.0))
    yield Jpeg(quality=rng.randint(30, 95))
    if rng.random() < 0.5:
        yield _draw_any_codec(rng)
    if rng.random() < 0.8:
        yield _draw_blur(rng, sigma=(0.2, 1.5), sinc_probability=0.1)
    yield _draw_resize(rng, 1 / scale, ways=(0.3, 0.4, 0.3), factors=(0.3, 1.2))
    yield _draw_noise(rng, sigma=(1.0, 25.0), poisson=(0.05, 2.5))
    last: list[DegradationStep] = [Resize(factor=1 / scale, method=rng.choice(_PLAIN))]
    if rng.random() < 0.8:
        last.append(_draw_sinc(rng, low_rad=math.pi / 3))
    compression: list[DegradationStep] = [Jpeg(quality=rng.randint(30, 95)), _draw_any_codec(rng)]
    yield from last + compression if rng.random() < 0.5 else compression + last


def _draw_blur(rng: random.Random, *, sigma: tuple[float, float], sinc_probability: float) -> Blur:
    if rng.random() < sinc_probability:
        return _draw_sinc(rng, low_rad=math.pi / 3)
    shapes: list[KernelShape] = ["gaussian", "generalized", "plateau"]
    (shape,) = rng.choices(shapes, [0.70, 0.15, 0.15])
    isotropic = rng.random() < 0.65
    sigma_x, sigma_y = rng.uniform(*sigma), rng.uniform(*sigma)
    angle = rng.uniform(-math.pi, math.pi)
    beta = rng.uniform(0.5, 4.0) if shape == "generalized" else rng.uniform(1.0, 2.0)
    return Blur(
        kernel=shape,
        taps=rng.choice(_TAPS),
        sigma_x=sigma_x,
        sigma_y=sigma_x if isotropic else sigma_y,
        angle_rad=0.0 if isotropic else angle,
        beta=1.0 if shape == "gaussian" else beta,
    )


def _draw_sinc(rng: random.Random, *, low_rad: float) -> Blur:
    return Blur(kernel="sinc", taps=rng.choice(_TAPS), cutoff_rad=rng.uniform(low_rad, math.pi))


def _draw_resize(
    rng: random.Random,
    base: float,
    *,
    ways: tuple[float, float, float],
    factors: tuple[float, float],
) -> Resize:
    """Draw up, down or keep with the odds `ways`, relative to `base` of the original size."""
    (way,) = rng.choices(["up", "down", "keep"], ways)
    up, down, method = (
        rng.uniform(1.0, factors[1]),
        rng.uniform(factors[0], 1.0),
        rng.choice(_PLAIN),
    )
    return Resize(factor=base * {"up": up, "down": down, "keep": 1.0}[way], method=method)


def _draw_noise(
    rng: random.Random, *, sigma: tuple[float, float], poisson: tuple[float, float]
) -> Noise:
    channels = cast(Any, 1 if rng.random() < 0.4 else 3)
    seed = rng.getrandbits(62)
    if rng.random() < 0.5:
        return Noise(
            kind="gaussian", channels=channels, strength=rng.uniform(*sigma) / 255, seed=seed
        )
    return Noise(kind="poisson", channels=channels, strength=rng.uniform(*poisson), seed=seed)


def _draw_any_codec(rng: random.Random) -> Codec:
    encoder = rng.choice(["libx264", "libx265", "mpeg4"])
    return _draw_codec(rng, encoder, x264_crf=(20, 36), x265_crf=(22, 38), mpeg4_quantizer=(3, 12))


def _draw_codec(
    rng: random.Random,
    encoder: str,
    *,
    x264_crf: tuple[float, float],
    x265_crf: tuple[float, float],
    mpeg4_quantizer: tuple[int, int],
) -> Codec:
    if encoder == "libx264":
        crf, preset = rng.uniform(*x264_crf), rng.choice(["veryfast", "medium"])
        return Codec(encoder=encoder, options={"crf": f"{crf:.1f}", "preset": preset})
    if encoder == "libx265":
        crf = rng.uniform(*x265_crf)
        options = {"crf": f"{crf:.1f}", "preset": "veryfast", "x265-params": "log-level=none"}
        return Codec(encoder=encoder, options=options)
    quality = rng.randint(*mpeg4_quantizer)
    options = {
        "flags": "qscale",
        "global_quality": str(118 * quality),
        "qmin": str(quality),
        "qmax": str(quality),
    }
    return Codec(encoder=encoder, options=options)
