"""Run models over a benchmark as its protocol defines, with the same engine as `upscale`.

    protocol, root → clips → (lq, gt) frames → Engine → meters → scores/<model>/<clip>.json
                                                                          → results.json

Frames are streamed: of a clip, only the frames that the engine works on are in memory, and their
originals. The scores of a clip are written when it is finished, and a run that was stopped
continues after the last of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tubelet.data.datasets import find_clips
from tubelet.degrade import RANDOM_PRESETS
from tubelet.errors import InputError, RequestError
from tubelet.evaluation.evaluated_models import EvaluatedModel, find_evaluated_models
from tubelet.evaluation.pairs import FramePairs, InspectedClip, inspect_clip
from tubelet.evaluation.results import (
    ClipScore,
    Identity,
    ModelScore,
    Results,
    describe_run,
    protocol_facts,
    read_clip_score,
    write_clip_score,
    write_results,
)
from tubelet.evaluation.sampling import spread_indices
from tubelet.evaluation.settings import EvaluateSettings
from tubelet.evaluation.showcase import CropCollector
from tubelet.evaluation.ticker import EvaluationTicker, Task
from tubelet.metrics.measure import METRICS, Meter, make_meter, metric_info
from tubelet.metrics.protocols import MetricProtocol, find_protocol
from tubelet.ops.pixels import quantize
from tubelet.progress import CancelToken, OnProgress
from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame

__all__ = ["EvaluateSettings", "evaluate"]

_DESCRIPTIVE_FIELDS = ("summary", "used_by", "metrics", "clips")
"""Fields of a protocol that do not affect the score of a clip in a metric."""


def evaluate(
    models: Sequence[str],
    protocol: str | MetricProtocol,
    root: Path,
    out: Path,
    *,
    settings: EvaluateSettings | None = None,
    on_progress: OnProgress | None = None,
    on_score: Callable[[ClipScore], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[ModelScore]:
    """Score models on the clips of a protocol, and store the scores.

    Args:
        models: Ids of the zoo, names that stand for one model per scale, or paths of checkpoints.
        protocol: The protocol or its name.
        root: Folder of the benchmark, in its published layout.
        out: Folder of the results, created if absent. Scores of an earlier run are reused where
            they are still valid.
        settings: Metrics, device and the like.
        on_progress: Called in this thread, up to ten times a second and after each clip.
        on_score: Called with the scores of each clip after they were stored; not for reused ones.
        cancel: Stops the evaluation after the current frame; finished clips stay stored.

    Returns:
        The scores of each model, in the order of `models`.

    Raises:
        RequestError: A model, protocol or metric is unknown, a model has another scale, or `out`
            has the results of another protocol.
        InputError: A clip is missing or damaged, or its frames do not match.
        ResourceError: A metric's package or weights, the device, or memory is missing.
        Cancelled: `cancel` was cancelled.
    """
    settings = settings or EvaluateSettings()
    if isinstance(protocol, str):
        protocol = find_protocol(protocol)
    if settings.metrics:
        # dict.fromkeys removes duplicates and keeps the order.
        metrics = tuple(dict.fromkeys(settings.metrics))
        protocol = replace(protocol, metrics=metrics)
    job = _Job(protocol, settings, out, on_score)

    # Check everything that can be wrong before the first model runs.
    evaluated = find_evaluated_models(models, scale=protocol.scale)
    clips: list[InspectedClip] = []
    for clip in find_clips(protocol, root):
        clips.append(inspect_clip(clip, protocol, max_frames=settings.max_frames))
    _check_metrics(protocol, clips, settings)
    _check_folder(out, protocol)
    plans = [job.plan(model, clips) for model in evaluated]

    # Run the models one after the other, so that only one is in memory.
    tasks: list[Task] = []
    for plan in plans:
        tasks += plan
    ticker = EvaluationTicker(on_progress, tasks, cancel=cancel)
    scores: list[ModelScore] = []
    for model, plan in zip(evaluated, plans, strict=True):
        scores.append(
            ModelScore(
                model=model.name,
                summary=model.spec.summary,
                weights_sha256=model.weights_sha256,
                parameters=model.parameters,
                clips=job.run(model, plan, ticker),
            )
        )
    results = Results(
        protocol=protocol_facts(protocol),
        metrics=protocol.metrics,
        max_frames=settings.max_frames,
        models=tuple(scores),
    )
    write_results(out, results)
    return scores


def _check_metrics(
    protocol: MetricProtocol,
    clips: Sequence[InspectedClip],
    settings: EvaluateSettings,
) -> None:
    """Create every meter once, so that a missing package or weight file is reported early.

    Raises:
        RequestError: A metric is unknown, or it needs originals and a clip has none.
        ResourceError: A metric's package or weights are missing.
    """
    without_gt = [clip.name for clip in clips if clip.gt is None]
    for name in protocol.metrics:
        if metric_info(name).needs_reference and without_gt:
            usable = ", ".join(info.name for info in METRICS if not info.needs_reference)
            raise RequestError(
                f"{name} compares with an original, and {without_gt[0]} has none; "
                f"use --metrics with {usable}"
            )
        make_meter(name, border=protocol.border, weights=settings.metric_weights)


def _check_folder(out: Path, protocol: MetricProtocol) -> None:
    """Check that a folder is usable for the results.

    Raises:
        RequestError: It is a file, or it has the results of another protocol.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; name a folder for the results")
    try:
        stored = json.loads((out / "results.json").read_text("utf-8"))["protocol"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        # There are no results yet, or they are damaged and will be replaced.
        return
    if stored != protocol.name:
        raise RequestError(
            f"{out} has the results of {stored}; name another folder for those of {protocol.name}"
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """Settings that all models and clips of an evaluation share."""

    protocol: MetricProtocol
    settings: EvaluateSettings
    out: Path
    on_score: Callable[[ClipScore], None] | None

    def plan(
        self,
        model: EvaluatedModel,
        clips: Sequence[InspectedClip],
    ) -> list[Task]:
        """List the clips that a model must restore, and the stored scores that it can reuse.

        Raises:
            ConfigError, ResourceError: The model cannot run on the device or in the precision.
        """
        device = resolve_device(self.settings.device)
        precision = resolve_precision(self.settings.precision, model.spec, device)
        showcases = spread_indices(len(clips), self.settings.showcases)
        tasks: list[Task] = []
        for index, clip in enumerate(clips):
            identity = Identity(
                model=model.name,
                weights_sha256=model.weights_sha256,
                clip=clip.name,
                source=clip.fingerprint,
                protocol=_score_fields(self.protocol),
                max_frames=self.settings.max_frames,
                device=str(device),
                precision=precision,
                tubelet=version("tubelet"),
            )
            showcase = clip.frames // 2 if index in showcases else None
            tasks.append(
                Task(
                    model=model.name,
                    clip=clip,
                    identity=identity,
                    showcase=showcase,
                    score=self._stored_score(identity, showcase),
                )
            )
        return tasks

    def run(
        self,
        model: EvaluatedModel,
        tasks: Sequence[Task],
        ticker: EvaluationTicker,
    ) -> tuple[ClipScore, ...]:
        """Score a model on all clips.

        The model is loaded for the first clip without a stored score, and released on return.
        """
        engine: Engine | None = None
        scores: list[ClipScore] = []
        for task in tasks:
            score = task.score
            if score is None:
                if engine is None:
                    engine = self._load_engine(model)
                ticker.begin(task)
                score = self._score_clip(engine, task, ticker)
                write_clip_score(self.out, score)
                if self.on_score is not None:
                    self.on_score(score)
                ticker.finish(task, score)
            scores.append(score)
        return tuple(scores)

    def _load_engine(self, model: EvaluatedModel) -> Engine:
        upscale_settings = UpscaleSettings(
            device=self.settings.device,
            precision=self.settings.precision,
            tile=self.settings.tile,
        )
        return Engine(model.spec, model.load(), upscale_settings)

    def _stored_score(
        self,
        identity: Identity,
        showcase: int | None,
    ) -> ClipScore | None:
        """Read the scores of an earlier run.

        Returns:
            The scores; None if there are none, if they belong to other weights, files or settings,
            or if a metric or the images of a showcase are missing.
        """
        if self.settings.fresh:
            return None
        score = read_clip_score(self.out, identity.model, identity.clip)
        if score is None or score.identity != identity:
            return None
        if showcase is not None and score.showcase is None:
            return None
        # An earlier run may have measured more metrics; only the requested ones are returned.
        mean: dict[str, float] = {}
        per_frame: dict[str, Sequence[float]] = {}
        for metric in self.protocol.metrics:
            if metric not in score.mean:
                return None
            mean[metric] = score.mean[metric]
            per_frame[metric] = score.per_frame[metric]
        return replace(score, mean=mean, per_frame=per_frame)

    def _score_clip(
        self,
        engine: Engine,
        task: Task,
        ticker: EvaluationTicker,
    ) -> ClipScore:
        """Restore a clip and measure it frame by frame.

        Raises:
            InputError: A frame is missing or damaged.
        """
        clip = task.clip
        meters = self._make_meters(engine)
        collector = None if task.showcase is None else CropCollector(task.showcase)
        first_scored: int | None = None
        stopwatch = _EngineStopwatch()
        with FramePairs(clip, self.protocol, max_frames=self.settings.max_frames) as pairs:
            for index, frame in enumerate(stopwatch.restore(engine, pairs)):
                pair = pairs.pop()
                # The literature measures images that were saved with 8 bits.
                sr = quantize(frame.rgb[..., : clip.height, : clip.width])
                if collector is not None:
                    collector.add(index, sr=sr, gt=pair.gt, lq=pair.lq)
                if clip.scored is None or index in clip.scored:
                    if first_scored is None:
                        first_scored = index
                    for meter in meters.values():
                        meter.update(sr, pair.gt)
                ticker.tick()
            frames = pairs.frames
        # The scored frames were chosen for this number of frames.
        if clip.scored is not None and frames != clip.frames:
            raise InputError(
                f"{clip.name} has {frames} frames, but its header claims {clip.frames}"
            )
        if collector is not None:
            collector.save(self.out, clip.name, task.model)
        per_frame: dict[str, Sequence[float]] = {}
        mean: dict[str, float] = {}
        for metric, meter in meters.items():
            per_frame[metric] = meter.values()
            mean[metric] = meter.mean()
        return ClipScore(
            identity=task.identity,
            per_frame=per_frame,
            mean=mean,
            frames=frames,
            first_frame=first_scored or 0,
            width=clip.width,
            height=clip.height,
            seconds_per_frame=stopwatch.engine_s / frames,
            showcase=None if collector is None else collector.showcase,
            machine=describe_run(engine.device),
        )

    def _make_meters(self, engine: Engine) -> dict[str, Meter]:
        """Create a meter for each metric of the protocol."""
        meters: dict[str, Meter] = {}
        for name in self.protocol.metrics:
            meters[name] = make_meter(
                name,
                border=self.protocol.border,
                weights=self.settings.metric_weights,
                device=str(engine.device),
            )
        return meters


class _EngineStopwatch:
    """Measures the time in the engine, without reading, degrading and measuring.

    Attributes:
        engine_s: Time so far, seconds.
    """

    def __init__(self) -> None:
        self.engine_s = 0.0

    def restore(self, engine: Engine, pairs: FramePairs) -> Iterator[Frame]:
        """Yield the results of the engine for the frames of `pairs`."""
        results = engine.restore(pairs)
        while True:
            started_s = time.perf_counter()
            busy_before_s = pairs.busy_s
            frame = next(results, None)
            if frame is not None:
                # An image can wait to be computed until it is read; the copy has it.
                frame = replace(frame, rgb=frame.rgb)
            elapsed_s = time.perf_counter() - started_s
            # The engine reads its input meanwhile, and that time is not its own.
            self.engine_s += elapsed_s - (pairs.busy_s - busy_before_s)
            if frame is None:
                return
            yield frame


def _score_fields(protocol: MetricProtocol) -> dict[str, Any]:
    """Select the fields of a protocol that affect scores, and the edition of its degradation."""
    fields = protocol_facts(protocol)
    for name in _DESCRIPTIVE_FIELDS:
        fields.pop(name, None)
    # The edition changes when a random preset produces other pixels from the same seed.
    fields["edition"] = RANDOM_PRESETS.get(protocol.degradation)
    return fields
