import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from helpers.toy_models import clip_of, cuts_at, direct, frames_of
from tubelet.cli import main
from tubelet.data import read_clip
from tubelet.errors import CheckpointError, RequestError, ResourceError
from tubelet.models.srvgg import SRVGGConfig, SRVGGNetCompact
from tubelet.models.swinir import SwinIR, SwinIRConfig
from tubelet.models.tdan import TDAN, TDANConfig
from tubelet.models.two_step import TwoStepConfig, TwoStepRestorer, needed_image_model
from tubelet.ops import imresize
from tubelet.recipes.two_step_data import enlarge
from tubelet.restore.engine import Engine
from tubelet.restore.settings import UpscaleSettings
from tubelet.zoo.bases import fingerprint, hash_tensors, open_base, refer_to
from tubelet.zoo.checkpoint import open_checkpoint, save_checkpoint
from tubelet.zoo.opened_model import OpenedModel, open_without_base
from tubelet.zoo.opening import open_model
from tubelet.zoo.spec import ModelSpec

WIDTH = 45
HEIGHT = 35


def save_image_model(path: Path, scale: int = 2) -> Path:
    torch.manual_seed(1)
    save_checkpoint(path, SRVGGNetCompact(SRVGGConfig(scale=scale, channels=4, num_blocks=1)), {})
    return path


def open_image_model(name: str, scale: int) -> OpenedModel:
    return open_base(name, needed_image_model(TwoStepConfig(scale=scale)))


def save_two_step(path: Path, base: dict[str, str] | None, *, scale: int = 2) -> Path:
    """Save a small network in which all three images count."""
    torch.manual_seed(0)
    restorer = TwoStepRestorer(TwoStepConfig(channels=2, scale=scale, norm="none"))
    nn.init.normal_(restorer.head.weight, std=0.2)
    save_checkpoint(path, restorer, {}, base=base)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Save both steps in one folder, the second with a reference to the first."""
    image = save_image_model(tmp_path / "image.safetensors")
    return save_two_step(
        tmp_path / "two_step.safetensors", refer_to(open_image_model(str(image), 2), tmp_path)
    )


def test_the_hash_is_of_names_shapes_and_numbers(tmp_path: Path) -> None:
    first, second = (
        open_checkpoint(save_image_model(tmp_path / f"{n}.safetensors")).model for n in "ab"
    )
    assert hash_tensors(first) == hash_tensors(second)
    assert hash_tensors(second.to(memory_format=torch.channels_last)) == hash_tensors(first)
    with torch.no_grad():
        next(second.parameters())[0, 0, 0, 0] += 1e-6
    assert hash_tensors(second) != hash_tensors(first)


def test_both_steps_from_one_path(pair: Path) -> None:
    opened = open_model(str(pair))
    spec = opened.spec
    model = opened.network
    assert (spec.scale, spec.temporal.kind, spec.temporal.radius, spec.contract.size_multiple) == (
        2,
        "window",
        1,
        16,
    )
    assert spec.summary == f"checkpoint {pair}, over image.safetensors"
    image = open_checkpoint(pair.with_name("image.safetensors")).model
    lq = torch.rand(1, 3, 3, 16, 32)
    with torch.inference_mode():
        hq = image(lq[:, 1:2])[:, 0].clamp(0, 1)
        assert torch.equal(model(lq)[:, 0], model.restore(hq, lq[:, 0], lq[:, 2]))
    opened = open_without_base(str(pair))
    restorer_spec = opened.spec
    without = opened.network
    assert without.image_model is None
    image = open_image_model(str(pair.with_name("image.safetensors")), 2)
    assert spec.contract.halo_px == restorer_spec.contract.halo_px + image.spec.contract.halo_px


def test_relative_paths_begin_at_the_checkpoint(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert open_model("../two_step.safetensors").network.image_model is not None
    shutil.move(pair, elsewhere)
    line = (
        r"needs the image model image\.safetensors, "
        r"but it is not at image\.safetensors; put it there"
    )
    with pytest.raises(CheckpointError, match=line):
        open_model("two_step.safetensors")
    # The current folder is searched, too.
    monkeypatch.chdir(tmp_path)
    assert open_model("elsewhere/two_step.safetensors").network.image_model is not None


def test_other_weights_are_refused(pair: Path) -> None:
    save_checkpoint(
        pair.with_name("image.safetensors"), SRVGGNetCompact(SRVGGConfig(scale=2, channels=4)), {}
    )
    with pytest.raises(
        CheckpointError,
        match=r"with other weights than those of .*image\.safetensors: its .* \w{12}…",
    ):
        open_model(str(pair))


@pytest.mark.parametrize("moved", ["both", "to one folder", "to the folder of the process"])
def test_an_image_model_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    """Both files have the name that training gives them, and other models lie in the way."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/image", "runs/second", "elsewhere"):
        Path(folder).mkdir(parents=True)
    image = save_image_model(Path("runs/image/model.safetensors"))
    reference = refer_to(open_image_model(str(image), 2), Path("runs/second"))
    assert reference["model"] == "../image/model.safetensors"
    second = save_two_step(Path("runs/second/model.safetensors"), reference)
    save_checkpoint(
        Path("model.safetensors"), SRVGGNetCompact(SRVGGConfig(scale=2, channels=4)), {}
    )
    if moved == "both":
        shutil.move("runs", "elsewhere")
        second = "elsewhere" / second
    elif moved == "to one folder":
        image.rename("elsewhere/model.safetensors")
        second = second.rename("elsewhere/second.safetensors")
    else:
        shutil.copytree("runs/image", "image")
        shutil.rmtree("runs/image")
        Path("a").mkdir()
        monkeypatch.chdir("a")
        second = ".." / second
    assert open_model(str(second)).network.image_model is not None


def test_models_without_tensors_have_different_fingerprints() -> None:
    bicubic, lanczos = (open_image_model(name, 2) for name in ("bicubic-x2", "lanczos-x2"))
    assert hash_tensors(bicubic.network) == hash_tensors(lanczos.network)
    assert fingerprint(bicubic) != fingerprint(lanczos)


@pytest.mark.parametrize(
    ("note", "line"),
    [
        (None, r"does not name the image model"),
        ({"model": ""}, r"does not name the image model"),
        (
            {"model": "hat-x22"},
            r"needs the image model hat-x22, but no model is called 'hat-x22'; did you mean hat-x2",
        ),
        (
            {"model": "fast-x2-bi"},
            r"but fast-x2-bi cannot be an image model: FastVSR is of kind 'online'",
        ),
        (
            {"model": "edvr_m-reds"},
            r"but edvr_m-reds cannot be an image model: EDVR is of kind 'window'",
        ),
        (
            {"model": "bicubic-x4"},
            r"but bicubic-x4 cannot be this image model: it upscales ×4, and ×2 is needed",
        ),
        (
            {"model": "two_step.safetensors"},
            r"but it is not at two_step\.safetensors; put it there",
        ),
    ],
)
def test_unsuitable_image_models_are_refused(
    tmp_path: Path, note: dict[str, str] | None, line: str
) -> None:
    path = save_two_step(tmp_path / "two_step.safetensors", note)
    with pytest.raises(CheckpointError, match=line) as caught:
        open_model(str(path))
    assert "\n" not in str(caught.value)


def test_a_window_model_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "tdan.safetensors"
    save_checkpoint(path, TDAN(TDANConfig(channels=8, num_frames=3, groups=2)), {})
    with pytest.raises(
        RequestError,
        match=r"tdan\.safetensors cannot be an image model: TDAN is of kind 'window'",
    ):
        open_image_model(str(path), 4)


def save_with_header(path: Path, header: dict[str, str]) -> None:
    """Save a second step whose header was written by someone else."""
    config = TwoStepConfig(channels=2, norm="none")
    own = {"architecture": "TwoStepRestorer", "config": json.dumps(asdict(config))}
    save_file(TwoStepRestorer(config).state_dict(), path, metadata=own | header)


def test_the_notes_of_earlier_checkpoints_are_read(pair: Path, tmp_path: Path) -> None:
    reference = refer_to(open_image_model(str(tmp_path / "image.safetensors"), 2), tmp_path)
    save_with_header(
        tmp_path / "earlier.safetensors", {"notes": json.dumps({"image_model": reference})}
    )
    assert open_model(str(tmp_path / "earlier.safetensors")).network.image_model is not None
    other = {"image_model": reference | {"sha256": 64 * "0"}}
    save_with_header(tmp_path / "earlier.safetensors", {"notes": json.dumps(other)})
    with pytest.raises(CheckpointError, match="was trained with other weights"):
        open_model(str(tmp_path / "earlier.safetensors"))


@pytest.mark.parametrize(
    "header",
    [
        {"notes": "[]"},
        {"notes": '{"image_model": "hat-x2"}'},
        {"notes": '{"image_model": {"model": 2}}'},
        {"notes": '{"image'},
        {"base": "[]"},
        {"base": '"hat-x2"'},
        {"base": '{"model": "hat-x2", "sha256": 3}'},
        {"base": '{"model'},
    ],
)
def test_hostile_headers_give_one_line(tmp_path: Path, header: dict[str, str]) -> None:
    path = tmp_path / "two_step.safetensors"
    save_with_header(path, header)
    with pytest.raises(CheckpointError, match=r"does not name the image model|damaged header"):
        open_model(str(path))


def test_published_two_step_weights_use_their_image_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUBELET_HOME", str(tmp_path / "home"))
    config = TwoStepConfig(channels=2, variant="published", residual=False)
    torch.save(TwoStepRestorer(config).state_dict(), path := tmp_path / "unet.pth")
    with pytest.raises(
        ResourceError, match=r"needs the image model hat-x2, but .*HAT_SRx2_ImageNet-pretrain\.pth"
    ):
        open_model(str(path))


@pytest.mark.parametrize("scale", [2, 4])
def test_a_name_stands_for_the_scale_that_is_needed(scale: int) -> None:
    image = open_image_model("bicubic", scale)
    assert (image.name, image.spec.scale) == (f"bicubic-x{scale}", scale)
    sha256 = hash_tensors(image.network)
    assert refer_to(image, Path()) == {
        "model": image.name,
        "architecture": "Resample",
        "sha256": sha256,
    }


@torch.inference_mode()
def test_an_image_model_with_other_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    swinir = SwinIR(
        SwinIRConfig(
            scale=2, channels=8, depths=(2,), num_heads=(2,), upsample_channels=8, window=7
        )
    ).eval()
    save_checkpoint(tmp_path / "swinir.safetensors", swinir, {})
    path = save_two_step(tmp_path / "two_step.safetensors", {"model": "swinir.safetensors"})
    assert open_model(str(path)).spec.contract.size_multiple == 7 * 16
    image = open_image_model(str(tmp_path / "swinir.safetensors"), 2)
    lq = torch.rand(2, 3, 9, 14)
    padded = functional.pad(lq, (0, 0, 0, 5), mode="replicate")
    expected = swinir(padded[:, None])[:, 0, :, :18].clamp(0, 1)
    torch.testing.assert_close(enlarge(image, lq), expected)


def by_hand(spec: ModelSpec, model: nn.Module, scene: Tensor) -> Tensor:
    """Restore a scene with repeated end frames, reflect-padded to 48×48: (T, 3, sH, sW)."""
    height, width = scene.shape[-2:]
    padded = functional.pad(scene, (0, -width % 16, 0, -height % 16), mode="reflect")
    return direct(spec, model, padded)[..., : spec.scale * height, : spec.scale * width]


def small(shared: Path, name: str, frames: int) -> Tensor:
    """Read a real clip, shrunk to an odd size, in eight bits: (T, 3, H, W)."""
    gt = (
        torch.from_numpy(read_clip(shared / "data" / "dev_eval" / name, max_frames=frames)).float()
        / 255
    )
    return (imresize(gt, 0.08).clamp(0, 1)[..., :HEIGHT, :WIDTH] * 255).round() / 255


def to_images(clip: Tensor) -> np.ndarray:
    return (clip.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "parts",
    [(("vid4_walk", 5), ("vid4_city", 3)), (("vid4_walk", 2),), (("vid4_walk", 1),)],
    ids=["cut", "two", "one"],
)
def test_a_real_clip_through_the_command(
    shared: Path, pair: Path, tmp_path: Path, parts: tuple[tuple[str, int]]
) -> None:
    """First and last frames, and those beside a cut, have themselves as neighbors."""
    clips = [small(shared, *part) for part in parts]
    (tmp_path / "in").mkdir()
    for t, image in enumerate(to_images(torch.cat(clips))):
        Image.fromarray(image).save(tmp_path / "in" / f"{t:04d}.png")
    arguments = [
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--model",
        str(pair),
        "--progress",
        "none",
    ]
    assert main(["upscale", *arguments, "--precision", "fp32"]) == 0
    written = np.stack(
        [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").glob("*.png"))]
    )
    opened = open_model(str(pair))
    spec = opened.spec
    model = opened.network
    expected = to_images(torch.cat([by_hand(spec, model, clip) for clip in clips]))
    assert written.shape == expected.shape == (len(expected), 2 * HEIGHT, 2 * WIDTH, 3)
    assert np.abs(written.astype(int) - expected).max() <= 1
    assert expected.std() > 10


@pytest.mark.parametrize("scale", [2, 4])
def test_tiles_leave_no_seam(tmp_path: Path, scale: int) -> None:
    path = save_two_step(tmp_path / "two_step.safetensors", {"model": "lanczos"}, scale=scale)
    opened = open_model(str(path))
    spec = opened.spec
    model = opened.network
    clip = clip_of(1, 16, 288)
    results: list[Tensor] = []
    for tile in (0, 32):
        engine = Engine(spec, model, UpscaleSettings(device="cpu", precision="fp32", tile=tile))
        results.append(
            torch.stack([f.rgb for f in engine.restore(frames_of(clip), starts_scene=cuts_at())])
        )
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-4)
