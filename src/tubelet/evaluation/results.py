"""What an evaluation found, and its files.

    out/
      results.json                      the means: per model, and per model and clip
      scores/<model>/<clip>.json        every frame; written whole as each clip finishes
      images/<clip>/                  crops and temporal profiles of a few clips
      report.md .csv .tex .html

JSON has neither infinity (the PSNR of equal frames) nor NaN (a frame that a metric leaves out): they are written as
"inf" and null.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from tubelet.errors import InputError
from tubelet.evaluation.machine import describe_machine
from tubelet.files import atomic_write
from tubelet.metrics.meters import mean_of
from tubelet.metrics.protocols import MetricProtocol

__all__ = [
    "ClipScore",
    "Identity",
    "ModelScore",
    "Results",
    "Showcase",
    "describe_run",
    "protocol_facts",
    "read_clip_score",
    "read_results",
    "to_jsonable",
    "write_clip_score",
    "write_json",
    "write_results",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a score belongs to: a stored one is taken over where all of this is equal.

    Attributes:
        model: id of the model.
        weights_sha256: of its weight file; None for a model without weights.
        clip: name of the clip.
        source: fingerprint of the clip's files (names, sizes, times of change).
        protocol: the protocol's fields that decide the numbers.
        max_frames: frames of the clip that were looked at; None is all.
        device: where the model ran.
        precision: number format inside the model.
        tubelet: version.
    """

    model: str
    weights_sha256: str | None
    clip: str
    source: str
    protocol: Mapping[str, Any]
    max_frames: int | None
    device: str
    precision: str
    tubelet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Showcase:
    """Where the images of a clip were cut out; the same places in the original and in every result.

    Attributes:
        frame: number of the frame of the crops, from 0.
        crops: x, y, width, height of each crop, pixels of the result.
        column: x, y, height of the column of pixels of the temporal profile.
    """

    frame: int
    crops: tuple[tuple[int, int, int, int], ...]
    column: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """What one model reached on one clip.

    Attributes:
        identity: of what the score is.
        per_frame: metric → one value per scored frame; NaN where a frame has none.
        mean: metric → the clip's score.
        frames: frames that were restored.
        first_frame: number of the first frame that was scored.
        width, height: of the images that were compared, pixels.
        seconds_per_frame: time in the engine, reading and measuring left out.
        showcase: where its images come from; None where none were kept.
        machine: versions and hardware, as `describe_run` tells them.
    """

    identity: Identity
    per_frame: Mapping[str, Sequence[float]]
    mean: Mapping[str, float]
    frames: int
    first_frame: int
    width: int
    height: int
    seconds_per_frame: float
    showcase: Showcase | None = None
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScore:
    """What one model reached on all clips.

    Attributes:
        model: its id.
        summary: a line about it.
        weights_sha256: of its weight file, or None.
        parameters: how many numbers were trained.
        clips: in the order of the set.
    """

    model: str
    summary: str
    weights_sha256: str | None
    parameters: int
    clips: tuple[ClipScore, ...]

    @property
    def mean(self) -> dict[str, float]:
        """The mean over clips of each clip's mean over frames."""
        return {
            name: mean_of([clip.mean[name] for clip in self.clips]) for name in self.clips[0].mean
        }

    @property
    def seconds_per_frame(self) -> float:
        """Seconds of all clips by frames of all clips."""
        seconds = sum(clip.seconds_per_frame * clip.frames for clip in self.clips)
        return seconds / sum(clip.frames for clip in self.clips)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All of an evaluation.

    Attributes:
        protocol: its facts, as `protocol_facts` gives them.
        metrics: names, the one that models are ranked by first.
        max_frames: frames of each clip that were looked at; None is all, and only then the numbers are the protocol's.
        models: in the order in which they were named.
    """

    protocol: Mapping[str, Any]
    metrics: tuple[str, ...]
    max_frames: int | None
    models: tuple[ModelScore, ...]

    @property
    def name(self) -> str:
        """Name of the protocol."""
        return str(self.protocol["name"])

    @property
    def clips(self) -> tuple[str, ...]:
        """Names of the clips."""
        return tuple(clip.identity.clip for clip in self.models[0].clips)


def protocol_facts(protocol: MetricProtocol) -> dict[str, Any]:
    """Write a protocol as JSON can hold it."""
    return cast(dict[str, Any], json.loads(json.dumps(asdict(protocol))))


def describe_run(device: torch.device) -> dict[str, Any]:
    """Tell versions and hardware.

    Args:
        device: where the model ran.
    """
    versions = {name: version(name) for name in ("tubelet", "torch", "av")}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "hardware": asdict(describe_machine(device)),
    }


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all, without NaN and infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_jsonable(content), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as part:
        part.write_text(text + "\n", "utf-8")


def write_clip_score(out: Path, score: ClipScore) -> None:
    """Write one clip's score to its place below `out`."""
    write_json(_clip_path(out, score.identity.model, score.identity.clip), asdict(score))


def read_clip_score(out: Path, model: str, clip: str) -> ClipScore | None:
    """Read what is stored for a model and a clip.

    Returns:
        The score; None where there is none, or one that another version wrote in another form.
    """
    path = _clip_path(out, model, clip)
    try:
        stored = json.loads(path.read_text("utf-8"))
        return _clip_from(stored)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_results(out: Path, results: Results) -> Path:
    """Write results.json: the means, the per-frame values left to the files of the clips."""
    path = out / "results.json"
    models: list[dict[str, Any]] = []
    for model in results.models:
        models.append(
            {
                "model": model.model,
                "summary": model.summary,
                "weights_sha256": model.weights_sha256,
                "parameters": model.parameters,
                "mean": model.mean,
                "seconds_per_frame": model.seconds_per_frame,
                "clips": {clip.identity.clip: clip.mean for clip in model.clips},
                **model.clips[0].machine,
            }
        )
    content = {
        "protocol": results.protocol,
        "metrics": results.metrics,
        "max_frames": results.max_frames,
        "models": models,
    }
    write_json(path, content)
    return path


def read_results(out: Path) -> Results:
    """Read an evaluation back from its folder.

    Raises:
        InputError: there is none, or a part of it is missing.
    """
    path = out / "results.json"
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path} is missing or damaged; run `tubelet evaluate` again") from None
    models: list[ModelScore] = []
    for entry in stored["models"]:
        clips = [read_clip_score(out, entry["model"], clip) for clip in entry["clips"]]
        whole = tuple(clip for clip in clips if clip is not None)
        if len(whole) != len(clips):
            raise InputError(
                f"{out} lacks scores of {entry['model']}; run `tubelet evaluate` again"
            )
        facts = {name: entry[name] for name in ("model", "summary", "weights_sha256", "parameters")}
        models.append(ModelScore(**facts, clips=whole))
    return Results(
        protocol=stored["protocol"],
        metrics=tuple(stored["metrics"]),
        max_frames=stored["max_frames"],
        models=tuple(models),
    )


def _clip_path(out: Path, model: str, clip: str) -> Path:
    return out / "scores" / model / f"{clip}.json"


def _clip_from(stored: dict[str, Any]) -> ClipScore:
    showcase = stored["showcase"]
    if showcase is not None:
        crops = tuple(tuple(crop) for crop in showcase["crops"])
        showcase = Showcase(frame=showcase["frame"], crops=crops, column=tuple(showcase["column"]))
    numbers: dict[str, Any] = {
        "per_frame": {
            name: [_number(v) for v in values] for name, values in stored["per_frame"].items()
        },
        "mean": {name: _number(value) for name, value in stored["mean"].items()},
    }
    identity = Identity(**stored["identity"])
    fields: dict[str, Any] = {**stored, **numbers, "identity": identity, "showcase": showcase}
    return ClipScore(**fields)


def to_jsonable(value: Any) -> Any:
    """Replace what JSON cannot hold, and shorten floats to what they are worth."""
    if isinstance(value, float):
        return None if math.isnan(value) else str(value) if math.isinf(value) else round(value, 7)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in cast(Sequence[Any], value)]
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
