"""Results of an evaluation, and the files that store them.

    out/
      results.json                      means per model, and per model and clip
      scores/<model>/<clip>.json        scores of every frame, written when the clip is finished
      images/<clip>/                    crops and temporal profiles of a few clips
      report.md .csv .tex .html

JSON has neither infinity (the PSNR of identical frames) nor NaN (a frame without a score); they
are stored as "inf" and null.
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
    """Everything that determines a score: a stored score is reused if all of this is equal.

    Attributes:
        model: Id of the model.
        weights_sha256: Hash of its weight file; None for a model without weights.
        clip: Name of the clip.
        source: Fingerprint of the clip's files (names, sizes, modification times).
        protocol: The fields of the protocol that affect the scores.
        max_frames: Upper limit on the number of evaluated frames; None is all frames.
        device: Device that the model ran on.
        precision: Number format inside the model.
        tubelet: Version of Tubelet.
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
    """Regions of a clip that the report shows, the same in the original and in every result.

    Attributes:
        frame: Index of the frame that the crops are cut from, from 0.
        crops: (x, y, width, height) of each crop, in pixels of the result.
        column: (x, y, height) of the pixel column of the temporal profile.
    """

    frame: int
    crops: tuple[tuple[int, int, int, int], ...]
    column: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """Scores of one model on one clip.

    Attributes:
        identity: Everything that determines the score.
        per_frame: Metric → one value per scored frame; NaN where a frame has none.
        mean: Metric → score of the clip.
        frames: Number of frames that were restored.
        first_frame: Index of the first frame that was scored.
        width, height: Size of the compared images, pixels.
        seconds_per_frame: Time in the engine, without reading and measuring.
        showcase: Regions that the report shows; None where no images were stored.
        machine: Versions and hardware, as returned by `describe_run`.
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
    """Scores of one model on all clips.

    Attributes:
        model: Id of the model.
        summary: One-line description of the model.
        weights_sha256: Hash of its weight file, or None.
        parameters: Number of trained parameters.
        clips: Scores of the clips, in the order of the benchmark.
    """

    model: str
    summary: str
    weights_sha256: str | None
    parameters: int
    clips: tuple[ClipScore, ...]

    @property
    def mean(self) -> dict[str, float]:
        """Mean of each metric over clips, each of which is a mean over frames."""
        # Clips of any length have equal weight: papers average this way.
        means: dict[str, float] = {}
        for metric in self.clips[0].mean:
            means[metric] = mean_of([clip.mean[metric] for clip in self.clips])
        return means

    @property
    def seconds_per_frame(self) -> float:
        """Engine time of all clips, divided by the number of their frames."""
        seconds = 0.0
        frames = 0
        for clip in self.clips:
            seconds += clip.seconds_per_frame * clip.frames
            frames += clip.frames
        return seconds / frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Results of a whole evaluation.

    Attributes:
        protocol: The protocol's fields, as returned by `protocol_facts`.
        metrics: Names of the metrics; the first one ranks the models.
        max_frames: Upper limit on the number of evaluated frames of each clip. Scores are those of
            the protocol only if it is None (all frames).
        models: Scores of the models, in the order in which they were requested.
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
    """Convert a protocol to a dictionary that JSON can represent."""
    # The round trip turns tuples into lists, so that a stored protocol compares equal to a new one.
    text = json.dumps(asdict(protocol))
    return cast(dict[str, Any], json.loads(text))


def describe_run(device: torch.device) -> dict[str, Any]:
    """Collect the software versions and the hardware of this run.

    Args:
        device: Device that the model ran on.
    """
    return {
        "versions": {
            "python": platform.python_version(),
            "tubelet": version("tubelet"),
            "torch": version("torch"),
            "av": version("av"),
        },
        "hardware": asdict(describe_machine(device)),
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, with NaN and infinity replaced by `to_jsonable`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        to_jsonable(content),
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def write_clip_score(out: Path, score: ClipScore) -> None:
    """Store the scores of one model on one clip in the folder `out`."""
    path = _clip_path(out, score.identity.model, score.identity.clip)
    write_json(path, asdict(score))


def read_clip_score(out: Path, model: str, clip: str) -> ClipScore | None:
    """Read the stored scores of a model on a clip.

    Returns:
        The scores; None if there are none, or if another version stored them in another format.
    """
    path = _clip_path(out, model, clip)
    try:
        stored = json.loads(path.read_text("utf-8"))
        return _parse_clip_score(stored)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_results(out: Path, results: Results) -> Path:
    """Write results.json, which has the means; scores of frames are in the files of the clips."""
    path = out / "results.json"
    models: list[dict[str, Any]] = []
    for model in results.models:
        # The summary has one mean per clip; the values of each frame stay in the clip's own file.
        clip_means: dict[str, Mapping[str, float]] = {}
        for clip in model.clips:
            clip_means[clip.identity.clip] = clip.mean
        models.append(
            {
                "model": model.model,
                "summary": model.summary,
                "weights_sha256": model.weights_sha256,
                "parameters": model.parameters,
                "mean": model.mean,
                "seconds_per_frame": model.seconds_per_frame,
                "clips": clip_means,
                # All clips of a model ran on the same machine.
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
    """Read the results of an evaluation from its folder.

    Raises:
        InputError: results.json or the scores of a clip are missing.
    """
    path = out / "results.json"
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path} is missing or damaged; run `tubelet evaluate` again") from None
    models: list[ModelScore] = []
    for entry in stored["models"]:
        models.append(
            ModelScore(
                model=entry["model"],
                summary=entry["summary"],
                weights_sha256=entry["weights_sha256"],
                parameters=entry["parameters"],
                clips=_read_clip_scores(out, entry["model"], entry["clips"]),
            )
        )
    return Results(
        protocol=stored["protocol"],
        metrics=tuple(stored["metrics"]),
        max_frames=stored["max_frames"],
        models=tuple(models),
    )


def to_jsonable(value: Any) -> Any:
    """Convert nested values to values that JSON can represent, with floats rounded to 7 decimals.

    NaN becomes null, infinity becomes "inf" or "-inf", tuples become lists.
    """
    if isinstance(value, float):
        # JSON has neither NaN nor infinity.
        if math.isnan(value):
            return None
        if math.isinf(value):
            return str(value)
        # More digits would only store rounding errors of float32.
        return round(value, 7)
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {str(key): to_jsonable(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in cast(Sequence[Any], value)]
    return value


def _clip_path(out: Path, model: str, clip: str) -> Path:
    return out / "scores" / model / f"{clip}.json"


def _read_clip_scores(
    out: Path,
    model: str,
    clips: Sequence[str],
) -> tuple[ClipScore, ...]:
    """Read the scores of a model on all clips.

    Raises:
        InputError: The scores of a clip are missing.
    """
    scores: list[ClipScore] = []
    for clip in clips:
        score = read_clip_score(out, model, clip)
        if score is None:
            raise InputError(f"{out} lacks scores of {model}; run `tubelet evaluate` again")
        scores.append(score)
    return tuple(scores)


def _parse_clip_score(stored: dict[str, Any]) -> ClipScore:
    """Build a `ClipScore` from the content of its JSON file."""
    per_frame: dict[str, list[float]] = {}
    for metric, values in stored["per_frame"].items():
        per_frame[metric] = list(map(_parse_score, values))
    mean: dict[str, float] = {}
    for metric, value in stored["mean"].items():
        mean[metric] = _parse_score(value)
    # A missing or unknown field raises here, and `read_clip_score` then ignores the file.
    fields: dict[str, Any] = {
        **stored,
        "identity": Identity(**stored["identity"]),
        "per_frame": per_frame,
        "mean": mean,
        "showcase": _parse_showcase(stored["showcase"]),
    }
    return ClipScore(**fields)


def _parse_showcase(stored: dict[str, Any] | None) -> Showcase | None:
    if stored is None:
        return None
    return Showcase(
        frame=stored["frame"],
        crops=tuple(map(tuple, stored["crops"])),
        column=tuple(stored["column"]),
    )


def _parse_score(value: Any) -> float:
    """Read a score, which `to_jsonable` stored as null if it was NaN and as "inf" if infinite."""
    return math.nan if value is None else float(value)
