"""A composite checkpoint over a base network that the user names."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tubelet.errors import CheckpointError, RequestError
from tubelet.models.edsr import EDSR, EDSRConfig
from tubelet.models.pfvsr import adapt
from tubelet.restore.job import upscale
from tubelet.zoo.bases import refer_to
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.opening import open_model


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """An image network, and adapters in another folder that refer to it."""
    torch.manual_seed(0)
    image = tmp_path / "image.safetensors"
    save_checkpoint(image, EDSR(EDSRConfig(scale=2, channels=4, num_blocks=1)), {})
    base = open_model(str(image))
    network = adapt(base.network, temporal="none")
    torch.nn.init.ones_(network.blocks[0].spatial.up.bias)
    adapter = tmp_path / "street" / "adapter.safetensors"
    save_checkpoint(adapter, network, {}, base=refer_to(base, adapter.parent))
    return image, adapter


def test_the_base_may_have_moved(files):
    image, adapter = files
    moved = image.with_name("moved.safetensors")
    image.rename(moved)
    with pytest.raises(CheckpointError, match=r"needs the image model .* put it there"):
        open_model("default", adapter=adapter)
    opened = open_model(str(moved), adapter=adapter)
    assert opened.spec.summary.endswith(f"over {moved}")
    assert opened.spec.scale == 2


def test_without_a_name_the_reference_counts(files):
    image, adapter = files
    named = open_model(str(image), adapter=adapter)
    referred = open_model("default", adapter=adapter)
    lq = torch.rand(1, 2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(named.network(lq), referred.network(lq))


def test_another_base_is_refused(files, tmp_path):
    image, adapter = files
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, EDSR(EDSRConfig(scale=2, channels=4, num_blocks=1)), {})
    with pytest.raises(CheckpointError, match="trained with other weights than those of") as caught:
        open_model(str(other), adapter=adapter)
    assert str(other) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="of kind 'online'"):
        open_model("fast-x2-bi", adapter=adapter)
    with pytest.raises(RequestError, match="has no adapters: it is a whole EDSR"):
        open_model(str(image), adapter=image)
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        open_model(str(image), adapter="missing.safetensors")


def test_adapters_without_a_hash_run_over_no_other_model(files, tmp_path):
    image, _ = files
    network = adapt(open_model(str(image)).network)
    adapter = tmp_path / "loose.safetensors"
    save_checkpoint(adapter, network, {}, base={"model": "image.safetensors"})
    with pytest.raises(CheckpointError, match="does not record the weights"):
        open_model(str(image), adapter=adapter)


def test_upscale_takes_an_adapter(files, tmp_path):
    image, adapter = files
    frames = tmp_path / "frames"
    frames.mkdir()
    for t in range(3):
        Image.new("RGB", (16, 16), (90, 60, 30 * t)).save(frames / f"{t}.png")
    result = upscale(frames, tmp_path / "out", model=str(image), adapter=adapter)
    assert result.frames == 3
    plain = upscale(frames, tmp_path / "plain", model=str(image))
    assert plain.frames == 3
    pixels = [(tmp_path / name).glob("*.png") for name in ("out", "plain")]
    adapted, unadapted = (Image.open(sorted(paths)[1]).tobytes() for paths in pixels)
    assert adapted != unadapted
