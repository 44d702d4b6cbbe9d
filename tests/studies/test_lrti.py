import json
import math
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.cli import main
from tubelet.data import CachedClip
from tubelet.errors import Cancelled, CheckpointError, ConfigError, InputError, RequestError
from tubelet.files import file_lock
from tubelet.metrics import psnr
from tubelet.ops.pixels import to_float
from tubelet.progress import CancelToken
from tubelet.recipes.frame_scores import FrameScores
from tubelet.studies.lrti import LRTIAblation, describe, run
from tubelet.studies.lrti_clips import ClipSettings, StudyClips
from tubelet.studies.lrti_designs import STUDIES, build_studies
from tubelet.studies.lrti_endpoints import endpoint_db
from tubelet.studies.lrti_progress import StudyProgress
from tubelet.studies.lrti_results import judge_claims, seeds_after_pilot
from tubelet.studies.lrti_runs import Cost, StudyRuns, slug
from tubelet.studies.lrti_sizes import NETWORKS
from tubelet.training import RestorationLoss
from tubelet.zoo.checkpoint import load_model

FRAMES = 10
SHORT, SAME, TRUNCATED, LONG, SAME_UNRELATED, TRUNCATED_UNRELATED = (
    arm.name for arm in build_studies("smoke", ("mechanism",), ())[0].arms
)


@pytest.fixture
def clips(tmp_path) -> Path:
    """A folder with four clips of ten frames, patterns that bend, and a short one."""
    y, x = np.mgrid[:132, :132]
    for number, frames in enumerate((FRAMES, FRAMES, FRAMES, FRAMES, 3)):
        folder = tmp_path / "clips" / f"clip{number}"
        folder.mkdir(parents=True)
        for t in range(frames):
            pixels = 127 + 127 * np.sin((x + t) / (4 + number)) * np.sin((y - t) / 6)
            image = np.stack([pixels, 255 - pixels, pixels // 2], -1).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{t:02d}.png")
    return tmp_path / "clips"


def _ablation(clips: Path, **changes) -> LRTIAblation:
    ablation = LRTIAblation(
        data=(clips,),
        out=clips.parent / "out",
        cache=clips.parent / "cache",
        preset="smoke",
        studies=("mechanism",),
        seeds=1,
        steps=2,
    )
    return replace(ablation, **changes)


def _video(base_db: float, *, gain_db: float = 0.0, name: str = "v") -> FrameScores:
    """Scores of a video; the gain is that of frames 5 to T-4, counted from 1."""
    values = [base_db + (gain_db if 4 <= t < FRAMES - 4 else 0.0) for t in range(FRAMES)]
    return FrameScores(name=name, psnr_y=tuple(values), psnr_rgb=tuple(v - 1 for v in values))


def _scores(gains_db: dict[str, float], seeds: int = 4, spread_db: float = 0.01):
    """Scores of every arm of the study "mechanism"; seeds differ far more than arms."""
    rng = np.random.default_rng(0)
    scores = {}
    for arm in build_studies("smoke", ("mechanism",), ())[0].arms:
        rows = []
        for seed in range(seeds):
            gain_db = gains_db.get(arm.name, 0.0) + rng.normal(0, spread_db)
            rows.append([_video(25 + 3 * seed + n, gain_db=gain_db) for n in range(2)])
        scores[arm.name] = rows
    return scores


def _outcomes(scores) -> dict[str, str]:
    (study,) = build_studies("smoke", ("mechanism",), ())
    return {result.id: result.outcome for result in judge_claims(study, scores)}


GAINS = {SHORT: 0.0, SAME: -0.1, TRUNCATED: 0.5, LONG: 0.55}


def test_endpoints_count_the_right_frames():
    values = tuple(float(2**t) for t in range(40))
    video = FrameScores(name="v", psnr_y=values, psnr_rgb=values)
    # Counted from 1, frames 5 to 36.
    assert endpoint_db(video, "inner") == fmean(values[4:36])
    assert endpoint_db(video, "all") == fmean(values)
    assert endpoint_db(video, "ends") == fmean([values[0], values[1], values[38], values[39]])
    near = [*values[:4], *values[36:]]
    assert endpoint_db(video, "growth") == fmean(values[10:30]) - fmean(near)


def test_verdicts_on_invented_scores():
    assert _outcomes(_scores(GAINS)) == {
        "M0": "holds",
        "M1": "holds",
        "M2": "holds",
        "M3": "holds",
        "M4": "holds",
        "M5": "holds",
    }
    weak = _outcomes(_scores({**GAINS, TRUNCATED: 0.05}))
    assert (weak["M1"], weak["M2"], weak["M4"]) == ("does not hold",) * 3
    assert _outcomes(_scores(GAINS, seeds=1))["M1"] == "inconclusive"
    # Ten times the spread: more seeds than a study has.
    assert _outcomes(_scores(GAINS, spread_db=0.5))["M1"] == "not decidable here"


def test_controls_overrule_claims():
    without_positive = _outcomes(_scores({**GAINS, LONG: -0.2}))
    assert without_positive["M0"] == "does not hold"
    assert {without_positive[name] for name in ("M1", "M2", "M3", "M4")} == {"not judged"}
    assert without_positive["M5"] == "holds"

    gain_for_nothing = _outcomes(_scores({**GAINS, TRUNCATED_UNRELATED: 0.4}))
    assert gain_for_nothing["M5"] == "does not hold"
    assert gain_for_nothing["M0"] == "holds"
    assert {gain_for_nothing[name] for name in ("M1", "M2", "M3", "M4")} == {"does not hold"}


def test_a_pilot_demands_seeds_up_to_a_limit():
    (study,) = build_studies("smoke", ("mechanism",), ())
    # A growing spread; the smallest effect is 0.1 dB. Differences of two arms have 1.4 times it.
    numbers = []
    for spread_db in (0.01, 0.05, 0.5):
        scores = _scores(GAINS, seeds=3, spread_db=spread_db)
        numbers.append(seeds_after_pilot(replace(study, seeds=3), scores))
    assert numbers[0] == 3
    assert 4 <= numbers[1] <= 10
    assert numbers[2] == 3  # not decidable, so no more seeds are spent


@pytest.fixture
def costs(monkeypatch):
    """Replace the measured costs by invented ones."""

    def measure(self, on_arm=None):
        for arm in self._study.arms:
            time_s = arm.length + (1.0 if arm.strategy == "truncated" else 0.0)
            self.costs[arm.name] = Cost(step_s=time_s, peak_bytes=arm.length * 2**20)

    monkeypatch.setattr(StudyRuns, "measure_costs", measure)


@pytest.fixture
def invented(monkeypatch, costs):
    """Replace training by invented scores and costs; returns the runs (study, arm, seed)."""
    trained = []

    def train(self, arm, seed, *, on_progress=None, cancel=None):
        trained.append((self._study.name, arm.name, seed))
        rng = np.random.default_rng((seed, len(arm.name)))
        gain_db = 0.5 if arm.strategy == "truncated" and arm.clips != "unrelated" else 0.0
        gain_db += 0.5 if arm.length > 2 else 0.0
        gain_db -= 0.5 if arm.is_framewise else 0.0
        gain_db += rng.normal(0, 0.01)
        return (_video(25 + seed, gain_db=gain_db), _video(30 + seed, gain_db=gain_db))

    monkeypatch.setattr(StudyRuns, "run", train)
    return trained


def test_all_studies_are_reported_with_tables_and_plots(clips, invented):
    progress, finished = [], []
    ablation = _ablation(clips, studies=STUDIES, seeds=None)
    results = run(ablation, on_run=finished.append, on_progress=progress.append)
    names = ["mechanism", *(f"truncation-{name}" for name in NETWORKS), "block"]
    assert [result.name for result in results] == names
    assert len(finished) == len(invented)
    # Seed by seed, so that an interrupted study has complete pairs.
    mechanism = [(arm, seed) for study, arm, seed in invented if study == "mechanism"]
    assert [seed for _, seed in mechanism] == [0] * 6 + [1] * 6
    assert progress[-1].done == progress[-1].total

    page = (ablation.out / "report.html").read_text("utf-8")
    for result in results:
        assert result.title in page
        for claim in result.claims:
            assert f'<td class="text">{claim.outcome}</td>' in page
        for arm in result.arms:
            assert f'<th scope="row">{arm.name}</th>' in page
    assert page.count("Table 3 of the paper, from these measurements") == len(NETWORKS)
    assert page.count("Quality against memory</figcaption><svg") == len(names)
    assert page.count("Quality against time</figcaption><svg") == len(names)
    assert "×2.79" in page  # 10.9 GB of 3.9 in the paper
    written = json.loads((ablation.out / "results.json").read_text("utf-8"))
    assert [study["name"] for study in written["studies"]] == names
    json.dumps(written, allow_nan=False)
    held_out = written["studies"][0]["held_out"]
    assert len(held_out) == 2
    assert not set(held_out) & set(written["studies"][0]["train_videos"])

    # Another command adds to the report.
    run(replace(ablation, studies=("mechanism",)))
    again = json.loads((ablation.out / "results.json").read_text("utf-8"))
    assert again == written


def test_a_plan_comes_before_the_first_run_and_is_kept(clips, invented, monkeypatch):
    ablation = _ablation(clips, studies=("truncation",), networks=("basicvsr",), seeds=None)

    def stop(_run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ablation, on_run=stop)
    path = ablation.out / "truncation-basicvsr" / "plan.json"
    plan = json.loads(path.read_text("utf-8"))
    claims = {claim["id"]: claim for claim in plan["design"]["claims"]}
    assert claims["LC2"]["margin_db"] == -0.05
    assert plan["seeds"] == [2]
    assert plan["steps"] == 2
    (result,) = run(ablation)
    assert result.seeds[0] == 2
    assert result.is_pilot

    with pytest.raises(CheckpointError, match="another plan: steps 2, not 3; name another --out"):
        run(replace(ablation, steps=3))
    (clips / "clip4").rename(clips / "clip9")
    shutil.copytree(clips / "clip0", clips / "clip5")
    with pytest.raises(CheckpointError, match="another plan: train_videos has changed"):
        run(ablation)


def test_the_number_format_is_part_of_the_plan(clips, invented):
    ablation = _ablation(clips, precision="bf16")
    run(ablation)
    plan = json.loads((ablation.out / "mechanism" / "plan.json").read_text())
    assert plan["design"]["training"]["loop"]["precision"] == "bf16"
    with pytest.raises(CheckpointError, match="is a study of another plan: design has changed"):
        run(replace(ablation, precision="fp32"))


def test_more_seeds_than_planned_are_admitted_in_the_report(clips, invented):
    ablation = _ablation(clips, seeds=2)
    run(ablation)
    (result,) = run(replace(ablation, seeds=3))
    assert result.seeds == (2, 3)
    page = (ablation.out / "report.html").read_text("utf-8")
    assert "3 seeds; 2 had been planned" in page


def test_arms_at_equal_time_get_their_steps_from_measured_costs(clips, invented):
    ablation = _ablation(clips, studies=("truncation",), networks=("basicvsr",), seeds=1, steps=120)
    (result,) = run(ablation)
    steps = {arm.name: arm.steps for arm in result.arms}
    # A step of TB takes 3 s, of plain training 2 s and 6 s, of the shorter TB 2 s.
    assert steps["plain 2, time of TB 2 of 10"] == 180
    assert steps["plain 6, time of TB 2 of 10"] == 60
    assert steps["TB 1 of 10, time of TB 2 of 10"] == 180
    assert {arm.train_s for arm in result.arms if "time of" in arm.name} == {360.0}
    assert steps["plain 2"] == steps["TB 2 of 10"] == 120


def test_arms_are_paired_and_resume(clips, costs, monkeypatch):
    seen: list[bytes] = []
    trained: dict[str, list[bytes]] = {}
    compare = RestorationLoss.__call__

    def record(self, model, lq, gt, *edges):
        seen.append(gt.numpy().tobytes())
        return compare(self, model, lq, gt, *edges)

    monkeypatch.setattr(RestorationLoss, "__call__", record)

    def note(finished):
        trained[finished.arm] = seen.copy()
        seen.clear()

    ablation = _ablation(clips)
    (whole,) = run(ablation, on_run=note)
    assert {len(samples) for samples in trained.values()} == {2}
    assert trained[SAME] == trained[TRUNCATED]
    assert trained[SAME_UNRELATED] == trained[TRUNCATED_UNRELATED]
    assert len({tuple(samples) for samples in trained.values()}) == 4
    assert not list(ablation.out.rglob("state.pt"))

    # A study that was stopped within its second arm.
    runs = ablation.out / "mechanism" / "runs"
    first = runs / f"{slug(SHORT)}-0" / "model.safetensors"
    time_ns = first.stat().st_mtime_ns
    for name in (SAME, TRUNCATED):
        shutil.rmtree(runs / f"{slug(name)}-0")
    cancel = CancelToken()

    def stop(progress):
        if SAME in progress.label and progress.done == 3:
            cancel.cancel()

    with pytest.raises(Cancelled):
        run(ablation, on_progress=stop, cancel=cancel)
    assert not (runs / f"{slug(TRUNCATED)}-0").exists()
    (resumed,) = run(ablation)
    assert first.stat().st_mtime_ns == time_ns
    assert resumed == whole


def test_a_run_of_another_process_is_waited_for(clips, costs, monkeypatch):
    monkeypatch.setattr("tubelet.studies.lrti._POLL_S", 0.0)
    ablation = _ablation(clips)
    runs = ablation.out / "mechanism" / "runs"
    runs.mkdir(parents=True)
    finished: list[str] = []
    steps: list[int] = []
    with ExitStack() as other_process:
        other_process.enter_context(file_lock(runs / f".{slug(SHORT)}-0.lock"))

        def watch(progress):
            steps.append(progress.done)
            if "waiting for another process" in progress.label:
                assert len(finished) == 5
                other_process.close()

        (result,) = run(ablation, on_run=lambda run: finished.append(run.arm), on_progress=watch)
    assert finished[-1] == SHORT
    assert sorted(finished) == sorted(arm.name for arm in result.arms)
    assert steps == sorted(steps)
    assert steps[-1] == 2 * len(finished)
    assert not list(ablation.out.rglob("*.lock"))


def test_waiting_for_another_process_can_be_cancelled():
    cancel = CancelToken()
    labels: list[str] = []
    progress = StudyProgress(lambda event: labels.append(event.label), "mechanism", cancel)
    progress.wait(0.0)
    cancel.cancel()
    with pytest.raises(Cancelled):
        progress.wait(60.0)
    assert labels == 2 * ["mechanism: waiting for another process"]


def test_costs_are_measured_once(clips):
    (study,) = build_studies("smoke", ("mechanism",), ())
    arms = (study.arm(SHORT), replace(study.arm(SHORT), name="the same again"))
    gt = np.random.default_rng(0).integers(0, 255, (FRAMES, 3, 32, 32), dtype=np.uint8)
    clip = CachedClip("noise", gt, (gt[..., ::4, ::4],))
    measured = []
    runs = []
    for _ in range(2):
        study_runs = StudyRuns(
            replace(study, arms=arms),
            {"pans": StudyClips([clip], [clip])},
            clips.parent / "study",
            base=lambda training: replace(training, data=(clips,)),
            steps=1,
        )
        study_runs.measure_costs(measured.append)
        runs.append(study_runs)
    assert measured == [SHORT]
    assert runs[0].costs == runs[1].costs
    cost = runs[0].costs[SHORT]
    assert runs[0].costs["the same again"] == cost
    # The network alone, with SpyNet, has 1.4 million parameters.
    assert cost.peak_bytes > 4 * 1.4e6
    assert 0 < cost.step_s < 60
    assert not (clips.parent / "study" / "runs").exists()


def test_frames_without_the_past_are_videos_of_their_own(clips):
    (study,) = build_studies("smoke", ("block",), ())
    arm = study.arm("RITB without the past, noisy pans")
    noise = np.random.default_rng(0).integers(0, 255, (FRAMES, 3, 128, 128), dtype=np.uint8)
    clip = CachedClip("noise", noise, (noise[..., ::4, ::4],))
    settings = StudyClips([clip], [clip])
    runs = StudyRuns(
        replace(study, arms=(arm,)),
        {"pans": settings},
        clips.parent / "study",
        base=lambda training: replace(training, data=(clips,)),
        steps=1,
    )
    (video,) = runs.run(arm, 0)
    network = load_model(runs.config(arm, 0).out / "model.safetensors")
    assert len(video.psnr_y) == FRAMES
    lq = to_float(torch.from_numpy(np.array(clip.lqs[0])))[None]
    gt = to_float(torch.from_numpy(noise))
    with torch.no_grad():
        sr = network(lq[:, 4:5])[0, 0]
    assert video.psnr_y[4] == pytest.approx(psnr(sr, gt[4]).item(), abs=1e-4)
    assert runs.config(arm, 0).batch == study.training.length


def test_the_full_preset_is_that_of_the_specification():
    mechanism, *truncation, block = build_studies("small", STUDIES, NETWORKS)
    assert mechanism.clips == ClipSettings(frames=40, window_px=192, score_px=256, held_out=10)
    assert [arm.name for arm in mechanism.arms][:4] == [
        "plain 4",
        "plain 4, same samples",
        "TB 4 of 40",
        "plain 16",
    ]
    truncated = mechanism.configure(mechanism.arm("TB 4 of 40"))
    assert (truncated.samples, truncated.clip, truncated.length) == (10, 40, 4)
    assert truncated.flow == "frozen"
    assert (mechanism.seeds, block.seeds) == (4, 6)
    for study in truncation:
        assert (study.seeds, study.is_pilot, study.effect_db) == (3, True, 0.08)
        names = [arm.name for arm in study.arms if not arm.time_of]
        assert names == [
            "plain 8",
            "plain 8, same samples",
            "TB 8 of 40",
            "TB 4 of 40",
            "plain 24",
        ]
        samples = study.configure(study.arm("TB 8 of 40")).samples
        assert samples == 5
    floors = {claim.id: claim.floor_db for claim in truncation[-1].claims}
    assert floors["LC1"] == pytest.approx(0.12)
    assert floors["LC2"] is None
    assert len(block.arms) == 9
    lines = describe(LRTIAblation())
    assert "mechanism: 6 arms of 4000 steps, 4 seeds, 6 claims and controls" in lines
    assert any("truncation-lrti: 8 arms of 2000 steps, 3 to 10 seeds" in line for line in lines)
    assert math.isclose(block.arm("RITB, noisy pans").length, 8)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"studies": ("mechanics",)}, RequestError, "unknown study 'mechanics'; did you mean mech"),
        ({"networks": ("edvr",)}, RequestError, "unknown network 'edvr'; known are basicvsr, "),
        ({"preset": "smal"}, RequestError, "unknown preset 'smal'; did you mean small?"),
        ({"seeds": 0}, ConfigError, "seeds and steps must be at least 1"),
        ({"studies": ()}, ConfigError, "studies and networks must not be empty"),
        ({"data": ()}, ConfigError, "no data to train on; name folders of clips: --data FOLDER"),
        ({"preset": "small"}, InputError, "0 of 5 clips have 40 frames; the study needs 10"),
    ],
)
def test_what_does_not_fit_is_refused(clips, changes, error, words):
    with pytest.raises(error, match=words.replace("?", r"\?")) as caught:
        run(_ablation(clips, **changes))
    assert "\n" not in str(caught.value)
    assert not (clips.parent / "out").exists()


def test_the_command_prints_verdicts(clips, invented, capsys):
    out = clips.parent / "out"
    args = ["ablate", "lrti", "--data", str(clips), "--preset", "smoke", "--out", str(out)]
    args += ["--cache", str(clips.parent / "cache"), "--studies", "mechanism"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "mechanism: plain 2, seed 0: " in printed
    assert "mechanism M1: TB 2 of 10 > plain 2 by 0.3 dB: +0." in printed
    assert f"wrote {out / 'report.html'} and {out / 'results.json'}" in printed
    assert main([*args, "--studies", "mechanics"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
