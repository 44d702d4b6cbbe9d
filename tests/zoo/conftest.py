import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tubelet.downloads import RemoteFile
from tubelet.models import srvgg
from tubelet.models.architecture import Contract
from tubelet.types import Temporal
from tubelet.zoo import catalog as zoo
from tubelet.zoo.publishers import PublishedWeights
from tubelet.zoo.spec import ModelSpec, WeightsSpec


@pytest.fixture
def learned(tmp_path, monkeypatch):
    """A zoo with one learned model."""
    trained = nn.Conv2d(3, 3, 3)
    file = tmp_path / "tiny.safetensors"
    save_file(trained.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = ModelSpec(
        id="tiny",
        summary="",
        architecture="Conv2d",
        contract=Contract(scale=1, temporal=Temporal("frame")),
        build=lambda: nn.Conv2d(3, 3, 3),
        weights=WeightsSpec(file=file.name, sha256=digest),
    )
    monkeypatch.setattr(zoo, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.setattr(zoo, "MODELS", (spec,))
    return trained, spec, file


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file of a small network, at an address of this machine, and an empty cache."""
    monkeypatch.setenv("TUBELET_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model = srvgg.SRVGGNetCompact(srvgg.SRVGGConfig(channels=4, num_blocks=1)).eval()
    torch.save({"params": model.state_dict()}, tmp_path / "tiny.pth")
    digest = hashlib.sha256((tmp_path / "tiny.pth").read_bytes()).hexdigest()

    def publish(**changes):
        usual = {"name": "tiny.pth", "url": (tmp_path / "tiny.pth").as_uri(), "sha256": digest[:8]}
        known = PublishedWeights(
            id="tiny-x4",
            architecture=srvgg.ARCHITECTURE,
            config=model.config,
            summary="",
            file=RemoteFile(**{**usual, **changes}),
            license="MIT",
        )
        files = {known.id: known}
        monkeypatch.setattr(zoo, "published_by_id", lambda: files)
        return known

    return publish, model, tmp_path / "home" / "models" / "tiny.pth"
