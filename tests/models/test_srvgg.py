from fractions import Fraction

import pytest
import torch
from torch.nn import functional

from helpers.clip_parity import assert_recognized
from helpers.image_parity import (
    assert_as_recorded,
    assert_every_parameter_learns,
    listed_state,
    load,
)
from tubelet.data import read_clip
from tubelet.errors import ConfigError
from tubelet.metrics import psnr
from tubelet.models.srvgg import ARCHITECTURE, SRVGGConfig, SRVGGNetCompact
from tubelet.ops import imresize
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.zoo.opening import open_model

TINY = SRVGGConfig(scale=2, channels=8, num_blocks=2)


@pytest.mark.parametrize("case", ["srvgg_x4_A", "srvgg_x2_A_relu"])
def test_gives_the_recorded_output(recordings, case):
    assert_as_recorded(recordings, case, ARCHITECTURE)


def test_gives_the_recorded_output_with_an_activation_that_files_do_not_store(recordings):
    assert_as_recorded(recordings, "srvgg_x4_A_lrelu", ARCHITECTURE, act="leakyrelu")


@pytest.mark.parametrize(
    ("name", "num_blocks", "parameters"),
    [("animevideov3", 16, 621_424), ("general_x4v3", 32, 1_213_296)],
)
def test_recognizes_published_files(recordings, name, num_blocks, parameters):
    assert_recognized(
        recordings, f"srvgg_{name}", ARCHITECTURE, SRVGGConfig(num_blocks=num_blocks), parameters
    )


def test_claims_no_other_published_file(recordings):
    lists = sorted((recordings / "keys").glob("*.txt"))
    claimed = [
        path.name for path in lists if ARCHITECTURE.translate(listed_state(path)) is not None
    ]
    assert claimed == ["srvgg_animevideov3.txt", "srvgg_general_x4v3.txt"]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"body.0.weight": torch.zeros(4)},
        {"body.0.weight": torch.zeros(4, 3, 3, 3)},
        {"body.0.weight": torch.zeros(12, 3, 3, 3), "body.2.bias": torch.zeros(12)},
    ],
)
def test_refuses_state_dicts_of_other_shapes(state):
    assert ARCHITECTURE.translate(state) is None


def test_the_published_checkpoint_sharpens_an_edge(shared):
    file = torch.load(shared / "checkpoints" / "realesr-animevideov3.pth", weights_only=True)
    model = load(ARCHITECTURE, file["params"])
    lq = torch.full((1, 1, 3, 24, 32), 0.2)
    lq[..., 16:] = 0.8
    with torch.inference_mode():
        sr = model(lq)[0, 0]
    assert sr.shape == (3, 96, 128)
    torch.testing.assert_close(sr[..., 16:-16, 24:48].mean(), torch.tensor(0.2), rtol=0, atol=0.02)
    torch.testing.assert_close(sr[..., 16:-16, 80:104].mean(), torch.tensor(0.8), rtol=0, atol=0.02)
    assert sr[..., 16:-16, 64].mean() - sr[..., 16:-16, 63].mean() > 0.1


@pytest.mark.parametrize("act", ["prelu", "relu", "leakyrelu"])
def test_every_parameter_learns(act):
    torch.manual_seed(0)
    model = SRVGGNetCompact(SRVGGConfig(scale=2, channels=8, num_blocks=2, act=act))
    assert_every_parameter_learns(model, torch.rand(1, 2, 3, 9, 7))


def test_frames_do_not_see_each_other():
    torch.manual_seed(0)
    model = SRVGGNetCompact(TINY)
    lq = torch.rand(2, 3, 3, 9, 7)
    torch.testing.assert_close(model(lq)[1, 2], model(lq[1:, 2:])[0, 0])


@pytest.mark.parametrize(("scale", "output_scale"), [(4, 2), (4, 3), (2, 3), (1, 2)])
def test_tiles_of_a_resized_output_leave_no_seam(scale, output_scale):
    torch.manual_seed(0)
    config = SRVGGConfig(scale=scale, channels=8, num_blocks=2, output_scale=output_scale)
    contract = ARCHITECTURE.contract(config)
    assert contract.scale == output_scale
    model = SRVGGNetCompact(config).eval()
    lq = torch.rand(1, 1, 3, 12, 30)
    halo = contract.halo_px
    with torch.inference_mode():
        whole = model(lq)
        tile = model(lq[..., 10 - halo : 20 + halo])
    expected = whole[..., 10 * output_scale : 20 * output_scale]
    inner = tile[..., halo * output_scale : (halo + 10) * output_scale]
    torch.testing.assert_close(inner, expected)


def test_the_resized_output_is_that_of_the_network():
    torch.manual_seed(0)
    model = SRVGGNetCompact(SRVGGConfig(channels=8, num_blocks=2)).eval()
    half = SRVGGNetCompact(SRVGGConfig(channels=8, num_blocks=2, output_scale=2)).eval()
    half.load_state_dict(model.state_dict())
    lq = torch.rand(2, 2, 3, 5, 7)
    with torch.inference_mode():
        sr = model(lq).flatten(0, 1)
        resized = half(lq)
    # Half-way between two pixels, the four weights of Keys' kernel with a = -0.75.
    weights = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    kernel = torch.outer(weights, weights).expand(3, 1, 4, 4)
    padded = functional.pad(sr, (1, 1, 1, 1), mode="replicate")
    expected = functional.conv2d(padded, kernel, stride=2, groups=3)
    torch.testing.assert_close(resized.flatten(0, 1), expected)


def test_sees_as_far_as_the_halo():
    torch.manual_seed(0)
    model = SRVGGNetCompact(TINY)
    halo = ARCHITECTURE.contract(TINY).halo_px
    lq = torch.rand(1, 1, 3, 21, 21, requires_grad=True)
    model(lq)[..., 20:22, 20:22].sum().backward()
    columns = lq.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
    assert (columns.min(), columns.max()) == (10 - halo, 10 + halo)


@pytest.mark.parametrize(
    "fields",
    [{"scale": 0}, {"channels": 0}, {"num_blocks": -1}, {"act": "gelu"}, {"output_scale": -1}],
)
def test_refuses_a_configuration_out_of_range(fields):
    with pytest.raises(ConfigError):
        SRVGGConfig(**fields)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_costs_less_than_a_fiftieth_of_a_decibel(shared, precision):
    opened = open_model(str(shared / "checkpoints" / "realesr-animevideov3.pth"))
    spec = opened.spec
    model = opened.network
    gt = torch.from_numpy(
        read_clip(shared / "data" / "dev_eval" / "vid4_city", max_frames=1)
    ).float()[..., 100:292, :256]
    lq = imresize(gt[0] / 255, 1 / 4).clamp(0, 1)
    scores = {}
    for name in ("fp32", precision):
        engine = Engine(spec, model, UpscaleSettings(device="cpu", precision=name))
        (sr,) = engine.restore([Frame(lq, 0, Fraction(1, 25))])
        scores[name] = psnr((sr.rgb.clamp(0, 1) * 255).round() / 255, gt[0] / 255)
    assert scores[precision] > scores["fp32"] - 0.02
