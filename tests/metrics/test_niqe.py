import math

import numpy as np
import pytest
import torch

from helpers.recordings import recorded, rules
from tubelet.errors import CheckpointError, InputError, ResourceError
from tubelet.metrics import make_meter
from tubelet.metrics.niqe import (
    PRISTINE,
    Pristine,
    _describe,
    _fit_asymmetric,
    fit_pristine,
    load_pristine,
    niqe,
)


def _images(recordings):
    """Yield recorded rows on luma with their 8-bit images, (3, H, W) RGB in [0, 1].

    The recorded channel order is BGR.
    """
    description, _ = recorded(recordings, "niqe")
    make = rules(recordings)
    for row in description["results"]:
        if row["convert_to"] != "y":
            continue
        shape = tuple(row["shape"])
        (kind, amount) = row["distortion"]
        x = make.image(row["key"], shape)
        if kind == "noise":
            noise = 20 * make.fill("noise:" + row["key"], (math.prod(shape),)).reshape(shape)
            x = x + (noise * (amount / 255)).astype("float32")
        elif kind == "scale":
            x = (x - 0.5) * amount + 0.5
        yield row, torch.from_numpy(x).clamp(0, 1).flip(0)


def test_equals_recorded_values_with_the_published_model(recordings, request):
    from pathlib import Path

    path = Path(torch.hub.get_dir()) / "checkpoints" / PRISTINE.name
    if not path.is_file():
        pytest.skip(f"{PRISTINE.name} is not in {path.parent}; {PRISTINE.url}")
    model = load_pristine(path)
    for row, image in _images(recordings):
        assert niqe(image, model, border=row["crop_border"]).item() == pytest.approx(
            row["niqe"], rel=1e-3
        ), row


def test_the_own_model_follows_recorded_values(recordings):
    """Another pristine model gives other numbers, but similar ones in the same order."""
    model = load_pristine()
    rows: list[tuple[float, float]] = []
    for row, image in _images(recordings):
        score = niqe(image, model, border=row["crop_border"]).item()
        rows.append((row["niqe"], score))
    assert len(rows) == 6
    assert np.corrcoef(np.array(rows).T)[0, 1] > 0.98
    assert all(0.75 < own / published < 1.35 for published, own in rows)


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _fit_by_search(values: list[float]) -> tuple[float, float, float]:
    """Fit by the definition: a search through all shapes."""
    left_rms = _rms([value for value in values if value < 0])
    right_rms = _rms([value for value in values if value > 0])
    gamma_hat = left_rms / right_rms
    mean_abs = sum(map(abs, values)) / len(values)
    mean_square = sum(value * value for value in values) / len(values)
    r_hat = mean_abs**2 / mean_square
    moment = r_hat * (gamma_hat**3 + 1) * (gamma_hat + 1) / (gamma_hat**2 + 1) ** 2
    gamma = math.gamma

    def miss(shape: float) -> float:
        return (gamma(2 / shape) ** 2 / (gamma(1 / shape) * gamma(3 / shape)) - moment) ** 2

    shape = min((0.2 + 0.001 * i for i in range(9801)), key=miss)
    scale = math.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left_rms * scale, right_rms * scale


def test_the_fit_equals_a_search_by_definition():
    rng = np.random.default_rng(0)
    rows = np.stack(
        [
            rng.laplace(size=400),
            rng.normal(size=400),
            rng.uniform(-1, 2, 400),
            rng.normal(size=400) ** 3,
        ]
    )
    fitted = torch.stack(_fit_asymmetric(torch.from_numpy(rows)), 1)
    for row, values in zip(fitted.tolist(), rows.tolist(), strict=True):
        assert row == pytest.approx(_fit_by_search(values), rel=1e-6)
    # A Gaussian has shape 2.
    assert fitted[1, 0] == pytest.approx(2, abs=0.5)
    assert _fit_asymmetric(torch.ones(1, 9, dtype=torch.float64))[1].isnan()


def test_worse_images_score_higher(shared):
    from tubelet.data import read_clip
    from tubelet.ops import imresize

    folder = shared / "data" / "dev_eval" / "davis_goat"
    gt = torch.from_numpy(read_clip(folder, max_frames=1, size_multiple=4)[0]).float() / 255
    blurred = imresize(imresize(gt, 1 / 4), 4).clamp(0, 1)
    noisy = (gt + 0.1 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    scores = []
    for image in (gt, blurred, noisy):
        meter = make_meter("niqe-tubelet")
        meter.update(image, None)
        scores.append(meter.mean())
    assert 2 < scores[0] < 5
    assert min(scores[1:]) > 1.5 * scores[0]


def test_a_fitted_model_prefers_its_own_images():
    noise = torch.rand(3, 300, 300, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise[None, :, :40, :40], (300, 300), mode="bicubic")[
        0
    ].clamp(0, 1)
    model = fit_pristine([noise, noise.flip(-1), noise.flip(-2)])
    assert model.mean.shape == (36,)
    assert torch.equal(model.cov, model.cov.T)
    assert niqe(noise, model) < niqe(smooth, model)
    assert _describe(noise[0] * 255)[0].shape == (9, 36)


def test_the_published_model_is_looked_for_and_read(tmp_path, monkeypatch):
    own = load_pristine()
    path = tmp_path / "elsewhere.npz"
    np.savez(
        path,
        mu_pris_param=own.mean[None].numpy(),
        cov_pris_param=own.cov.numpy(),
        gaussian_window=np.zeros(1),
    )
    image = torch.rand(3, 100, 200)
    scores = []
    for meter in (make_meter("niqe", weights=path), make_meter("niqe-tubelet")):
        meter.update(image, None)
        scores.append(meter.mean())
    assert scores[0] == scores[1]
    with pytest.raises(
        ResourceError,
        match=r"niqe needs niqe_pris_params\.npz, .*not in .*; fetch it from https://",
    ):
        make_meter("niqe", weights=tmp_path)
    (tmp_path / PRISTINE.name).write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match="is not a pristine model"):
        make_meter("niqe", weights=tmp_path)


def test_a_reference_is_not_looked_at():
    meter = make_meter("niqe-tubelet")
    meter.update(torch.rand(3, 100, 200), torch.rand(3, 50, 100))
    assert meter.mean() > 0


def test_a_small_image_is_one_line():
    with pytest.raises(
        InputError, match="niqe-tubelet: NIQE needs two blocks of 96×96 pixels, got 64×48"
    ):
        make_meter("niqe-tubelet").update(torch.rand(3, 48, 64), None)
    with pytest.raises(ValueError, match="two blocks"):
        niqe(torch.rand(3, 100, 100), Pristine(torch.zeros(36), torch.eye(36)))
