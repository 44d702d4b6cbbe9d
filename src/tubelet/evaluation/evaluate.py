"""Run models over a benchmark as its protocol says, with the engine that `upscale` runs.

    protocol, root → clips → (lq, gt) frames → Engine → meters → scores/<model>/<clip>.json → results.json

Frames are streamed: of a clip, what the engine looks at is in memory, and the gt frames of that. Each clip's score is
written when it is whole; a run that was stopped goes on behind the last of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

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
from tubelet.evaluation.settings import EvaluateSettings
from tubelet.evaluation.showcase import CropCollector
from tubelet.evaluation.ticker import EvaluationTicker, Task
from tubelet.metrics.measure import METRICS, make_meter, metric_info
from tubelet.metrics.protocols import MetricProtocol, find_protocol
from tubelet.ops.pixels import quantize
from tubelet.progress import CancelToken, OnProgress
from tubelet.restore.device import resolve_device, resolve_precision
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame

__all__ = ["EvaluateSettings", "evaluate"]


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
    """Score models on the clips of a protocol.

    Args:
        models: ids of the zoo, names that stand for one model per scale, or paths of checkpoints.
        protocol: or its name.
        root: folder of the set, in its published layout.
        out: folder of the results, made if absent; what an earlier run left there is taken over where it still holds.
        settings: metrics, device and the like.
        on_progress: called in this thread, at most ten times a second and after each clip.
        on_score: called with the score of each clip, once it is stored; not for scores of an earlier run.
        cancel: stops the evaluation after the frame that it is at; finished clips are kept.

    Returns:
        A score per model, in their order.

    Raises:
        RequestError: an unknown model, protocol or metric, a model of another scale, a folder of another evaluation.
        InputError: a clip is missing, damaged, or its frames do not fit together.
        ResourceError: a metric's package or weights, the device or memory is missing.
        Cancelled: `cancel` was cancelled.
    """
    settings = settings or EvaluateSettings()
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    if settings.metrics:
        protocol = replace(protocol, metrics=tuple(dict.fromkeys(settings.metrics)))
    job = _Job(protocol, settings, out, on_score)
    evaluated = find_evaluated_models(models, scale=protocol.scale)
    subjects = [
        inspect_clip(clip, protocol, max_frames=settings.max_frames)
        for clip in find_clips(protocol, root)
    ]
    _check_metrics(protocol, subjects, settings)
    _check_folder(out, protocol)
    plans = {model.name: job.plan(model, subjects) for model in evaluated}
    tasks = [task for plan in plans.values() for task in plan]
    ticker = EvaluationTicker(on_progress, tasks, cancel=cancel)
    scores: list[ModelScore] = []
    for model in evaluated:
        scores.append(
            ModelScore(
                model=model.name,
                summary=model.spec.summary,
                weights_sha256=model.weights_sha256,
                parameters=model.parameters,
                clips=job.run(model, plans[model.name], ticker),
            )
        )
    write_results(
        out,
        Results(
            protocol=protocol_facts(protocol),
            metrics=protocol.metrics,
            max_frames=settings.max_frames,
            models=tuple(scores),
        ),
    )
    return scores


def _check_metrics(
    protocol: MetricProtocol, subjects: Sequence[InspectedClip], settings: EvaluateSettings
) -> None:
    """Make every meter once: what is absent is told before anything runs."""
    without = [subject.name for subject in subjects if subject.gt is None]
    for name in protocol.metrics:
        if metric_info(name).needs_reference and without:
            alone = ", ".join(info.name for info in METRICS if not info.needs_reference)
            raise RequestError(
                f"{name} compares with an original, and {without[0]} has none; --metrics takes {alone}"
            )
        make_meter(name, border=protocol.border, weights=settings.metric_weights)


def _check_folder(out: Path, protocol: MetricProtocol) -> None:
    """Refuse a folder that is something else."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; name a folder for the results")
    try:
        stored = json.loads((out / "results.json").read_text("utf-8"))["protocol"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if stored != protocol.name:
        raise RequestError(
            f"{out} has the results of {stored}; name another folder for those of {protocol.name}"
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What all models and clips of an evaluation share."""

    protocol: MetricProtocol
    settings: EvaluateSettings
    out: Path
    on_score: Callable[[ClipScore], None] | None

    def plan(self, model: EvaluatedModel, subjects: Sequence[InspectedClip]) -> list[Task]:
        """List what a model has to do, and what it has done.

        Raises:
            ConfigError, ResourceError: the model cannot run on the device, or not in the precision.
        """
        device = resolve_device(self.settings.device)
        precision = resolve_precision(self.settings.precision, model.spec, device)
        count, shown = len(subjects), min(self.settings.showcases, len(subjects))
        places = {(2 * i + 1) * count // (2 * shown) for i in range(shown)}
        tasks: list[Task] = []
        for place, subject in enumerate(subjects):
            identity = Identity(
                model=model.name,
                weights_sha256=model.weights_sha256,
                clip=subject.name,
                source=subject.fingerprint,
                protocol=_decisive(self.protocol),
                max_frames=self.settings.max_frames,
                device=str(device),
                precision=precision,
                tubelet=version("tubelet"),
            )
            showcase = subject.frames // 2 if place in places else None
            tasks.append(
                Task(model.name, subject, identity, showcase, self._stored(identity, showcase))
            )
        return tasks

    def run(
        self, model: EvaluatedModel, tasks: Sequence[Task], ticker: EvaluationTicker
    ) -> tuple[ClipScore, ...]:
        """Score a model on all clips; it is loaded for the first that is not done, and let go after the last."""
        engine: Engine | None = None
        scores: list[ClipScore] = []
        for task in tasks:
            score = task.score
            if score is None:
                engine = engine or self._engine(model, model.load())
                ticker.begin(task)
                score = self._score(engine, task, ticker)
                write_clip_score(self.out, score)
                if self.on_score is not None:
                    self.on_score(score)
                ticker.finish(task, score)
            scores.append(score)
        return tuple(scores)

    def _engine(self, model: EvaluatedModel, network: nn.Module) -> Engine:
        asked = self.settings
        return Engine(
            model.spec,
            network,
            UpscaleSettings(device=asked.device, precision=asked.precision, tile=asked.tile),
        )

    def _stored(self, identity: Identity, showcase: int | None) -> ClipScore | None:
        """Take over the score of an earlier run, if it is of the same and has all that is asked for."""
        score = (
            None
            if self.settings.fresh
            else read_clip_score(self.out, identity.model, identity.clip)
        )
        if (
            score is None
            or score.identity != identity
            or (showcase is not None and score.showcase is None)
        ):
            return None
        wanted = self.protocol.metrics
        if not set(wanted) <= score.mean.keys():
            return None
        return replace(
            score,
            mean={name: score.mean[name] for name in wanted},
            per_frame={name: score.per_frame[name] for name in wanted},
        )

    def _score(self, engine: Engine, task: Task, ticker: EvaluationTicker) -> ClipScore:
        """Restore a clip and measure it, frame by frame."""
        subject, settings = task.subject, self.settings
        meters = {
            name: make_meter(
                name,
                border=self.protocol.border,
                weights=settings.metric_weights,
                device=str(engine.device),
            )
            for name in self.protocol.metrics
        }
        collector = None if task.showcase is None else CropCollector(task.showcase)
        first: int | None = None
        watch = _Stopwatch()
        with FramePairs(subject, self.protocol, max_frames=settings.max_frames) as pairs:
            for index, frame in enumerate(watch.restored(engine, pairs)):
                pair = pairs.pop()
                # The literature measures images that were saved.
                sr = quantize(frame.rgb[..., : subject.height, : subject.width])
                if collector is not None:
                    collector.add(index, sr=sr, gt=pair.gt, lq=pair.lq)
                if subject.scored is None or index in subject.scored:
                    first = index if first is None else first
                    for meter in meters.values():
                        meter.update(sr, pair.gt)
                ticker.tick()
            frames = pairs.frames
        if subject.scored is not None and frames != subject.frames:
            raise InputError(
                f"{subject.name} has {frames} frames, and its header said {subject.frames}"
            )
        if collector is not None:
            collector.save(self.out, subject.name, task.model)
        return ClipScore(
            identity=task.identity,
            per_frame={name: meter.values() for name, meter in meters.items()},
            mean={name: meter.mean() for name, meter in meters.items()},
            frames=frames,
            first_frame=first or 0,
            width=subject.width,
            height=subject.height,
            seconds_per_frame=watch.engine_s / frames,
            showcase=collector and collector.showcase,
            machine=describe_run(engine.device),
        )


class _Stopwatch:
    """Times the engine alone: not the reading and degrading before it, nor the measuring after it."""

    def __init__(self) -> None:
        self.engine_s = 0.0

    def restored(self, engine: Engine, pairs: FramePairs) -> Iterator[Frame]:
        """Yield what the engine makes of the pairs."""
        results = engine.restore(pairs)
        while True:
            began_s, busy_s = time.perf_counter(), pairs.busy_s
            frame = next(results, None)
            self.engine_s += time.perf_counter() - began_s - (pairs.busy_s - busy_s)
            if frame is None:
                return
            yield frame


def _decisive(protocol: MetricProtocol) -> dict[str, Any]:
    """Keep what decides a number: not the words about it, and not which numbers are asked for."""
    facts = protocol_facts(protocol)
    facts = {
        name: value
        for name, value in facts.items()
        if name not in ("summary", "used_by", "metrics", "clips")
    }
    return {**facts, "edition": RANDOM_PRESETS.get(protocol.degradation)}
