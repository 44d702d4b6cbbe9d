import io
import urllib.error
import urllib.request
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from tubelet.errors import CheckpointError, ResourceError
from tubelet.metrics import make_meter
from tubelet.metrics.perceptual import WEIGHTS
from tubelet.metrics.weights import WeightFile, find_weights, read_tensors

pytest.importorskip("piq", reason="piq is in the extra [metrics]")
torchvision = pytest.importorskip("torchvision", reason="torchvision comes with piq")
SIZE = (40, 52)


def _random(*shape: int, seed: int = 0, gain: float = 1.0) -> torch.Tensor:
    return gain * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _backbone(make) -> dict[str, torch.Tensor]:
    """Write a file as torchvision publishes it: random convolutions and a stump of a classifier."""
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in make(weights=None).features.state_dict().items()
        }
    state = {
        f"features.{name}": _random(*shape, seed=i, gain=(2 / max(1, shape[1:].numel())) ** 0.5)
        for i, (name, shape) in enumerate(shapes.items())
    }
    return {**state, "classifier.1.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """A folder with both files of LPIPS as published, with random values."""
    folder = tmp_path_factory.mktemp("alex")
    torch.save(_backbone(torchvision.models.alexnet), folder / "alexnet-owt-7be5be79.pth")
    sizes = (64, 192, 384, 256, 256)
    linear = {
        f"lin{i}.model.1.weight": _random(1, n, 1, 1, seed=i).abs() for i, n in enumerate(sizes)
    }
    torch.save(linear, folder / "alex.pth")
    return folder


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A folder with the files of LPIPS with VGG and of DISTS."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.save(_backbone(torchvision.models.vgg16), folder / "vgg16-397923af.pth")
    torch.save(
        [_random(1, n, 1, 1).abs() for n in (64, 128, 256, 512, 512)], folder / "lpips_weights.pt"
    )
    torch.save(
        {name: _random(1, 1475, 1, 1).abs() for name in ("alpha", "beta")},
        folder / "dists_weights.pt",
    )
    return folder


def _lpips_by_definition(folder, a: torch.Tensor, b: torch.Tensor) -> float:
    features = torchvision.models.alexnet(weights=None).features[:12]
    state = torch.load(folder / "alexnet-owt-7be5be79.pth")
    features.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("features.")})
    linear = torch.load(folder / "alex.pth")
    shift, scale = (
        torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
    )
    total, x, y = 0.0, *((2 * p - 1 - shift) / scale for p in (a, b))
    for number, layer in enumerate(features):
        x = layer(x)
        y = layer(y)
        if number in (1, 4, 7, 9, 11):
            difference = (functional.normalize(x, dim=0) - functional.normalize(y, dim=0)) ** 2
            weights = linear[f"lin{(1, 4, 7, 9, 11).index(number)}.model.1.weight"][0]
            total += (weights * difference).sum(0).mean().item()
    return total


def test_lpips_is_what_its_paper_defines(alex):
    a, b = (torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(2))
    a, b = ((x * 255).round() / 255 for x in (a, b))
    meter = make_meter("lpips", weights=alex)
    meter.update(a, b)
    meter.update(a, a)
    with torch.inference_mode():
        expected = _lpips_by_definition(alex, a, b)
    assert meter.values() == pytest.approx([expected, 0], rel=1e-4)
    border = make_meter("lpips", weights=alex, border=3)
    border.update(a, b)
    with torch.inference_mode():
        assert border.mean() == pytest.approx(
            _lpips_by_definition(alex, a[:, 3:-3, 3:-3], b[:, 3:-3, 3:-3]), rel=1e-4
        )


def test_tlpips_compares_the_changes(alex):
    frames = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    same = make_meter("tlpips", weights=alex)
    frozen = make_meter("tlpips", weights=alex)
    for frame in frames:
        same.update(frame, frame)
        frozen.update(frames[0], frame)
    assert same.values()[1:] == [0, 0]
    lpips = make_meter("lpips", weights=alex)
    for before, now in pairwise(frames):
        lpips.update(before, now)
    assert frozen.values()[1:] == pytest.approx(lpips.values())


def test_vgg_metrics_are_zero_for_equal_images_and_rise(vgg):
    gt = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    for name in ("lpips-vgg", "dists"):
        meter = make_meter(name, weights=vgg)
        for amount in (0, 0.02, 0.2):
            meter.update((gt + _random(3, *SIZE, gain=amount)).clamp(0, 1), gt)
        zero, little, much = meter.values()
        assert zero == pytest.approx(0, abs=1e-5)
        assert 1e-5 < little < much, name


def test_dists_takes_frames_at_their_own_size(vgg, monkeypatch):
    def resize(*_, **__):
        raise AssertionError("DISTS resized")

    # As piq does above 256 pixels.
    monkeypatch.setattr(functional, "interpolate", resize)
    meter = make_meter("dists", weights=vgg)
    meter.update(torch.rand(3, 257, 257), torch.rand(3, 257, 257))
    assert 0 < meter.mean() < 1


def _tiny_clip():
    from piq.feature_extractors.clip import CLIP

    torch.manual_seed(0)
    return CLIP(
        16,
        32,
        (1, 1, 1, 1),
        8,
        None,
        8,
        100,
        64,
        1,
        1,
    )


@pytest.mark.parametrize("form", ["state", "archive"])
def test_clip_iqa_reads_the_published_forms(tmp_path, form):
    clip = _tiny_clip()
    if form == "state":
        torch.save(clip.state_dict(), tmp_path / "RN50.pt")
    else:
        _save_archive(clip.state_dict(), tmp_path / "RN50.pt")
    torch.save(
        torch.tensor([[98, 5, 99, 0, 0, 0, 0, 0], [98, 6, 99, 0, 0, 0, 0, 0]]),
        tmp_path / "clipiqa_tokens.pt",
    )
    meter = make_meter("clip-iqa", weights=tmp_path)
    meter.update(torch.rand(3, 64, 96), None)
    assert 0 < meter.mean() < 1
    torch.save(torch.zeros(3, 8), tmp_path / "clipiqa_tokens.pt")
    with pytest.raises(CheckpointError, match="does not hold the tokens"):
        make_meter("clip-iqa", weights=tmp_path)


def _save_archive(state, path):
    """A TorchScript archive, as OpenAI publishes CLIP."""
    import warnings

    root = torch.nn.Module()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module.get_submodule(parent)
        module.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(root).save(path)


@pytest.mark.parametrize("name", ["lpips", "lpips-vgg", "dists", "clip-iqa", "tlpips"])
def test_absent_weights_are_one_line_with_file_place_and_url(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def no_network(self, request, **_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    file = WEIGHTS["lpips" if name == "tlpips" else name][0]
    with pytest.raises(ResourceError) as caught:
        make_meter(name)
    line = str(caught.value)
    assert "\n" not in line
    assert {file.name, str(tmp_path / "hub" / "checkpoints"), file.url} <= set(
        line.replace(",", "").split()
    )
    with pytest.raises(
        ResourceError,
        match=f"needs {file.name}, which is not in {tmp_path}/none; fetch it from https",
    ):
        make_meter(name, weights=tmp_path / "none")


def test_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    source = tmp_path / "published.pt"
    torch.save({"w": torch.ones(2)}, source)
    good = WeightFile("w.pt", source.as_uri())
    (path,) = find_weights("x", [good], None)
    assert path == tmp_path / "hub" / "checkpoints" / "w.pt"
    source.unlink()
    # No second download.
    assert find_weights("x", [good], None) == [path]
    assert read_tensors(path)["w"].tolist() == [1, 1]
    torch.save({"w": torch.ones(2)}, source)
    with pytest.raises(ResourceError, match=r"could not be downloaded \(what arrived has sha256"):
        find_weights("x", [WeightFile("other.pt", source.as_uri(), "00000000")], None)
    # Nothing half-written.
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.pt"]


def test_one_named_file_finds_the_other_beside_it(alex, tmp_path):
    assert [p.name for p in find_weights("lpips", WEIGHTS["lpips"], alex / "alex.pth")] == [
        "alexnet-owt-7be5be79.pth",
        "alex.pth",
    ]
    with pytest.raises(ResourceError, match="needs alexnet"):
        find_weights("lpips", WEIGHTS["lpips"], tmp_path)


def test_damaged_and_foreign_files_are_one_line(alex, vgg, tmp_path):
    (tmp_path / "alex.pth").write_bytes((alex / "alex.pth").read_bytes())
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="is text, not weights"):
        make_meter("lpips", weights=tmp_path)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes((vgg / "lpips_weights.pt").read_bytes())
    with pytest.raises(CheckpointError, match="does not hold alexnet") as caught:
        make_meter("lpips", weights=tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(
        (alex / "alexnet-owt-7be5be79.pth").read_bytes()
    )
    (tmp_path / "alex.pth").write_bytes((vgg / "lpips_weights.pt").read_bytes())
    with pytest.raises(CheckpointError, match="does not hold the linear layers"):
        make_meter("lpips", weights=tmp_path)
    buffer = io.BytesIO()
    torch.save(None, buffer)
    (tmp_path / "alex.pth").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="holds no tensors"):
        make_meter("lpips", weights=tmp_path)
