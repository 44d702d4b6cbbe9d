from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.clip_parity import recorded_network
from helpers.recordings import recorded, recorded_input
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.models.two_step import (
    ARCHITECTURE,
    ConditionalEncoder,
    ConditionalEncoderConfig,
    TwoStepConfig,
    TwoStepRestorer,
)
from tubelet.zoo.baselines import Resample
from tubelet.zoo.checkpoint import load_model, open_checkpoint, save_checkpoint

PUBLISHED = {"variant": "published", "residual": False}
KINDS = {
    "paper": TwoStepConfig(channels=2),
    "without normalization": TwoStepConfig(channels=2, norm="none", residual=False),
    "x4": TwoStepConfig(channels=2, scale=4, norm="none"),
    "published": TwoStepConfig(channels=2, **PUBLISHED),
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def restorer(request: pytest.FixtureRequest) -> TwoStepRestorer:
    """Build a network in which no weight is zero."""
    torch.manual_seed(0)
    network = TwoStepRestorer(request.param)
    # Without normalization, only the head starts at zero.
    module = network.head if request.param.norm == "none" else network
    for parameter in module.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return network.eval()


def inputs(
    config: TwoStepConfig, height: int = 32, width: int = 48
) -> tuple[Tensor, Tensor, Tensor]:
    s = config.scale
    return (
        torch.rand(1, 3, s * height, s * width),
        torch.rand(1, 3, height, width),
        torch.rand(1, 3, height, width),
    )


def assert_recorded(recordings: Path, case: str, result: Tensor) -> None:
    description, (expected,) = recorded(recordings, case)
    tolerance = (
        max(1e-4, 20 * description["float64_max_abs_over_std"]) * description["output_stats"]["std"]
    )
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)


@torch.inference_mode()
def test_restore_as_recorded(recordings: Path) -> None:
    network = recorded_network(recordings, "two_step_A")
    assert network.config == TwoStepConfig(**PUBLISHED)
    description, _ = recorded(recordings, "two_step_A")
    assert sum(p.numel() for p in network.parameters()) == description["parameters"]
    keys = {"x": "two_step_A", "l": "two_step_A:l", "r": "two_step_A:r"}
    x, left, right = (
        recorded_input(recordings, keys[k], tuple(s)) for k, s in description["inputs"].items()
    )
    assert_recorded(recordings, "two_step_A", network.restore(x, left, right))


@torch.inference_mode()
def test_encode_as_recorded(recordings: Path) -> None:
    network = recorded_network(recordings, "two_step_encoder_A")
    assert isinstance(network, ConditionalEncoder)
    shape = tuple(recorded(recordings, "two_step_encoder_A")[0]["inputs"]["x"])
    assert_recorded(
        recordings,
        "two_step_encoder_A",
        network(recorded_input(recordings, "two_step_encoder_A", shape)),
    )


@torch.inference_mode()
@pytest.mark.parametrize(("scale", "millions"), [(2, 120.1), (4, 120.3)])
def test_shapes_as_the_paper_states_them(scale: int, millions: float) -> None:
    with torch.device("meta"):
        network = TwoStepRestorer(TwoStepConfig(scale=scale))
    network.eval().to_empty(device="cpu")
    sr, features = network.restore_with_features(*inputs(network.config, 16, 32))
    assert sr.shape == (1, 3, scale * 16, scale * 32)
    assert [f.shape for f in features] == [(1, 1024, 16 // 16, 32 // 16)] * 3
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@torch.inference_mode()
def test_features_are_those_that_are_added(restorer: TwoStepRestorer) -> None:
    hq, left, right = inputs(restorer.config)
    sr, features = restorer.restore_with_features(hq, left, right)
    assert torch.equal(sr, restorer.restore(hq, left, right))
    for feature, expected in zip(features, restorer.encode(hq, left, right), strict=True):
        assert feature.shape == (1, 32, 2, 3)
        assert torch.equal(feature, expected)
    assert not torch.equal(restorer.encoder_l(left), restorer.encoder_r(left))


@torch.inference_mode()
def test_each_image_has_an_effect(restorer: TwoStepRestorer) -> None:
    images = inputs(restorer.config)
    sr = restorer.restore(*images)
    for i in range(3):
        other = list(images)
        other[i] = torch.rand_like(other[i])
        assert not torch.allclose(restorer.restore(*other), sr, atol=1e-6)
    hq, left, right = images
    assert not torch.allclose(restorer.restore(hq, right, left), sr, atol=1e-6)


def test_every_parameter_learns(restorer: TwoStepRestorer) -> None:
    images = [torch.cat([x, x.flip(-1)]) for x in inputs(restorer.config)]
    restorer.train().restore(*images).square().mean().backward()
    dead = {n for n, p in restorer.named_parameters() if p.grad is None or not p.grad.any()}
    # Before batch normalization, a constant has no effect.
    assert dead <= {"head.0.bias"}


@torch.inference_mode()
def test_starts_from_the_result_of_its_image_model() -> None:
    network = TwoStepRestorer(TwoStepConfig(channels=2)).eval()
    hq, left, right = inputs(network.config)
    assert torch.equal(network.restore(hq, left, right), hq)


@torch.inference_mode()
def test_initial_weights_standardize_pixels() -> None:
    torch.manual_seed(0)
    network = TwoStepRestorer(TwoStepConfig(channels=32, norm="none"))
    gray = torch.full((1, 3, 8, 8), 0.5)
    for stages in (network.stages, network.encoder_l.stages, network.encoder_r.stages):
        conv = stages[0].get_submodule("conv1")
        y = functional.conv2d(gray, conv.weight, conv.bias)
        torch.testing.assert_close(y, torch.zeros(1, 32, 6, 6), rtol=0, atol=1e-5)
        y = functional.conv2d(gray + torch.randn(1, 3, 8, 8) / 4, conv.weight, conv.bias)
        assert y.square().mean() == pytest.approx(2, rel=0.3)


@torch.inference_mode()
def test_forward_is_both_steps(restorer: TwoStepRestorer) -> None:
    scale = restorer.config.scale
    lq = torch.rand(2, 3, 3, 16, 32)
    image_model = Resample(scale)
    restorer.with_image_model(image_model)
    hq = image_model(lq[:, 1:2])[:, 0].clamp(0, 1)
    sr = restorer(lq)
    assert sr.shape == (2, 1, 3, scale * 16, scale * 32)
    torch.testing.assert_close(sr[:, 0], restorer.restore(hq, lq[:, 0], lq[:, 2]))


def test_the_image_model_sees_the_middle_frame_once() -> None:
    calls: list[Tensor] = []

    class Spy(Resample):
        def forward(self, lq: Tensor) -> Tensor:
            calls.append(lq)
            return super().forward(lq)

    lq = torch.rand(1, 3, 3, 16, 16)
    TwoStepRestorer(TwoStepConfig(channels=2)).eval().with_image_model(Spy(2))(lq)
    assert len(calls) == 1
    assert torch.equal(calls[0], lq[:, 1:2])


def test_the_error_about_a_missing_image_model_has_a_remedy() -> None:
    network = TwoStepRestorer(TwoStepConfig(channels=2))
    with pytest.raises(
        ConfigError,
        match=r"no image model for its first step; give it one: model\.with_image_model",
    ):
        network(torch.rand(1, 3, 3, 16, 16))


def test_the_image_model_is_frozen_and_no_part_of_the_checkpoint() -> None:
    network = TwoStepRestorer(TwoStepConfig(channels=2))
    names = set(network.state_dict())
    image_model = SRVGGNetCompact(SRVGGConfig(scale=2, channels=4, num_blocks=1))
    assert network.with_image_model(image_model) is network
    assert not network.train().image_model.training
    assert network.training
    network(torch.rand(2, 3, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in image_model.parameters())
    assert set(network.state_dict()) == names
    copied = deepcopy(network)
    copied.load_state_dict(network.state_dict(), strict=True)
    wrapped = nn.ModuleDict({"module": network})
    assert set(wrapped.state_dict()) == {f"module.{name}" for name in names}
    wrapped.load_state_dict(wrapped.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"encoder_l\.stages"):
        copied.load_state_dict({"head.weight": network.head.weight}, strict=True)
    assert all(
        "image_model" not in name and "base" not in name for name, _ in network.named_modules()
    )


def test_the_image_model_goes_where_the_network_goes() -> None:
    network = TwoStepRestorer(TwoStepConfig(channels=2))
    network.with_image_model(SRVGGNetCompact(SRVGGConfig(scale=2, channels=4, num_blocks=1)))
    weight = network.image_model.body[0].weight
    nn.Sequential(network).double()
    assert weight.dtype == torch.float64
    network.to(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    network.to("meta")
    assert network.image_model.body[0].weight.is_meta
    assert deepcopy(network).image_model is not network.image_model


@torch.inference_mode()
def test_saved_and_read_back(restorer: TwoStepRestorer, tmp_path: Path) -> None:
    path = tmp_path / "two_step.safetensors"
    save_checkpoint(path, restorer.with_image_model(Resample(restorer.config.scale)), {})
    opened = open_checkpoint(path)
    assert opened.config == restorer.config
    images = inputs(restorer.config)
    assert torch.equal(opened.model.restore(*images), restorer.restore(*images))
    # A state dict without a configuration does not tell whether the network has a residual.
    has_residual = restorer.config.variant == "paper"
    assert open_checkpoint(restorer.state_dict()).config.residual == has_residual


def test_an_encoder_saved_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    config = ConditionalEncoderConfig(channels=2, norm="none")
    save_checkpoint(path, ConditionalEncoder(config), {})
    assert open_checkpoint(path).config == config


def test_a_missing_tensor_is_refused() -> None:
    state = TwoStepRestorer(TwoStepConfig(channels=2)).state_dict()
    with pytest.raises(
        CheckpointError, match=r"does not fit TwoStepRestorer: it lacks encoder_l\.stages\.1"
    ):
        load_model(
            {name: value for name, value in state.items() if "encoder_l.stages.1" not in name}
        )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"scale": 3}, "scale=3 must be 2 or 4"),
        ({"channels": 0}, "channels=0 must be from 1 to 512"),
        ({"variant": "other"}, "variant='other' must be paper or published"),
        ({"norm": "layer"}, "norm='layer' must be batch or none"),
        ({"variant": "published"}, "residual=True does not go with variant='published'"),
        ({**PUBLISHED, "scale": 4}, "scale=4 does not go with variant='published'"),
    ],
)
def test_other_shapes_are_refused(changes: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        TwoStepConfig(**changes)


@pytest.mark.parametrize("scale", [2, 4])
def test_sees_as_far_as_the_halo(scale: int) -> None:
    """The gradient of one pixel reaches as far as the halo, or up to 32 pixels less."""
    config = TwoStepConfig(scale=scale, channels=1, norm="none")
    contract = ARCHITECTURE.contract(config)
    network = TwoStepRestorer(config).double()
    assert contract is not None
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.3)
    size = 256  # multiples of 16 on both sides of the middle
    reach = 0
    for phase in (0, 15):
        hq = (
            torch.linspace(1, 2, scale * size)
            .double()
            .expand(1, 3, 32 * scale, -1)
            .clone()
            .requires_grad_()
        )
        left, right = (
            torch.linspace(1, 2, size).double().expand(1, 3, 32, -1).clone().requires_grad_()
            for _ in range(2)
        )
        at = scale * (size // 2 + phase) + (scale - 1 if phase else 0)
        network.restore(hq, left, right)[..., at].sum().backward()
        for image, unit in ((hq, scale), (left, 1), (right, 1)):
            assert image.grad is not None
            seen = image.grad.abs().sum((0, 1, 2)).nonzero()[:, 0] // unit
            reach = max(reach, size // 2 + phase - int(seen[0]), int(seen[-1]) - size // 2 - phase)
    assert contract.halo_px - 2 * 16 <= reach <= contract.halo_px
