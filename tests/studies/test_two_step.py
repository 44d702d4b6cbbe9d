import dataclasses
import json
from importlib.resources import files

import numpy as np
import pytest

from tubelet.errors import CheckpointError
from tubelet.models.two_step import TwoStepConfig
from tubelet.recipes.two_step import TwoStepTraining
from tubelet.recipes.two_step_data import TripletSettings
from tubelet.studies import two_step as two_step_ablation
from tubelet.studies.two_step import (
    CLAIMS,
    VARIANTS,
    Claim,
    Run,
    TwoStepAblation,
    judge,
    render_csv,
)


def _runs(better: list[float], worse: list[float]) -> list[Run]:
    mae = VARIANTS[1]
    plain = VARIANTS[0]
    pairs = zip(better, worse, strict=True)
    return [
        Run(v, seed, x, 20.0)
        for seed, (a, b) in enumerate(pairs)
        for v, x in ((mae, a), (plain, b))
    ]


@pytest.mark.parametrize(
    ("differences", "margin", "outcome"),
    [
        ([0.10, 0.11, 0.12], 0.0, "holds"),
        ([-0.10, -0.11, -0.12], 0.0, "does not hold"),
        ([0.10, 0.11, -0.12], 0.0, "inconclusive"),
        ([0.01, 0.02, 0.03], 0.0, "inconclusive"),  # 0.02 ± 0.025
        ([-0.01, -0.02, -0.03], -0.05, "holds"),
        ([0.10, 0.11, 0.12], 1.0, "does not hold"),
        ([9.0], 0.0, "inconclusive"),
    ],
)
def test_verdicts(differences, margin, outcome):
    # Seeds differ far more than losses do.
    offsets = [30.0 + 3 * seed for seed in range(len(differences))]
    runs = _runs([a + b for a, b in zip(offsets, differences, strict=True)], offsets)
    claim = Claim(text="", better="MAE", worse="MSE", margin_db=margin, published_db=0.18)
    assert judge(claim, runs).outcome == outcome
    assert judge(claim, runs).mean_db == pytest.approx(np.mean(differences))
    assert judge(
        dataclasses.replace(claim, worse="frozen"), _runs([21, 21.1], [0, 0])
    ).mean_db == pytest.approx(1.05)


def test_half_the_width_of_an_interval():
    verdict = judge(CLAIMS[1], _runs([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]))
    # As R's t.test has it.
    assert verdict.half_width_db == pytest.approx(3.7945, abs=0.01)


def test_figures_of_the_paper_are_those_of_its_tables():
    tables = dict(_paper_rows())
    for variant in VARIANTS:
        assert variant.published_db == tables[variant.name], variant.name
    by_name = {variant.name: variant.published_db for variant in VARIANTS} | {
        "frozen": tables["HAT"]
    }
    for claim in CLAIMS:
        assert claim.published_db == pytest.approx(by_name[claim.better] - by_name[claim.worse])


def _paper_rows():
    text = (files("tubelet.evaluation") / "published_tables" / "two_step.toml").read_text("utf-8")
    for line in text.splitlines():
        if " | " in line:
            method, *_, figure = (cell.strip() for cell in line.split("|"))
            yield method.removeprefix("two-step (").removesuffix(")"), float(figure)


def test_ablation_runs_each_variant_once_and_reports(gratings, image_model, monkeypatch):
    small = TwoStepTraining(
        network=TwoStepConfig(channels=1, norm="none"),
        batch=1,
        crops=TripletSettings(patch_px=16, frames_per_video=3),
        score_px=16,
        score_frames=1,
    )
    monkeypatch.setattr(two_step_ablation, "configure", lambda preset, *, scale: small)
    ablation = TwoStepAblation(
        data=(gratings,),
        image_model=image_model,
        out=gratings.parent / "ab",
        cache=gratings.parent / "cache",
        seeds=1,
        steps=1,
    )
    finished = []
    stop_after = 3

    def stop(run):
        finished.append(run)
        if len(finished) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_step_ablation.run(ablation, on_run=stop)
    trained = []
    main = two_step_ablation.main

    def count(config, **options):
        if not (config.out / "scores.json").is_file():
            trained.append(config)
        return main(config, **options)

    monkeypatch.setattr(two_step_ablation, "main", count)
    finished.clear()
    progress = []
    runs, verdicts = two_step_ablation.run(
        ablation, on_run=finished.append, on_progress=progress.append
    )
    assert finished == runs
    assert len(runs) == 8
    assert (progress[-1].done, progress[-1].total) == (8, 8)
    assert len(trained) == 8 - stop_after
    assert len({run.frozen_psnr_y for run in runs}) == 1
    assert len(verdicts) == 4
    assert not list((gratings.parent / "ab").rglob("state.pt"))
    assert [(c.loss, c.alpha) for c in trained] == [
        (v.loss, v.alpha) for v in VARIANTS[stop_after:]
    ]
    report = (gratings.parent / "ab" / "report.md").read_text("utf-8")
    for variant in VARIANTS:
        assert f"| {variant.name} |" in report
    for verdict in verdicts:
        assert f"| {verdict.claim.text} | {verdict.outcome} |" in report
    assert (gratings.parent / "ab" / "results.csv").read_text("utf-8") == render_csv(runs)
    first = render_csv(runs).splitlines()[1]
    assert first.startswith("I,MSE,mse,0.0,0,")
    scores = json.loads(
        (gratings.parent / "ab" / "runs" / "mse-0" / "scores.json").read_text("utf-8")
    )
    assert f"{scores['test']['psnr_y']:.4f}" in first
    trained.clear()
    two_step_ablation.run(ablation)
    assert trained == []
    with pytest.raises(CheckpointError, match="or the weights of the image model have changed"):
        two_step_ablation.run(dataclasses.replace(ablation, image_model="bicubic-x2", seeds=2))
