import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.toy_datasets import save_frames
from helpers.videos import make_video
from tubelet.data import read_clip
from tubelet.data.copies import (
    Degradation,
    clip_seed,
    lossless,
    write_clips,
    write_image,
    write_images,
    write_video,
)
from tubelet.data.datasets import find_folder_clips
from tubelet.degrade import degrade, draw_recipe
from tubelet.errors import Cancelled, ConfigError, IncompleteError, InputError, RequestError
from tubelet.progress import CancelToken, Progress


def expected(src: Path, preset: str, scale: int, seed: int = 0) -> np.ndarray:
    gt = torch.from_numpy(read_clip(src, max_frames=100, size_multiple=scale)).float() / 255
    return (degrade(gt, preset, scale=scale, seed=seed) * 255).round().byte().numpy()


@pytest.mark.parametrize("preset", ["bi", "bd", "real", "second-order"])
def test_images_are_what_degrade_gives_and_keep_their_names(tmp_path: Path, preset: str):
    src = save_frames(tmp_path / "src", 4, (66, 50), "im{}.png")
    seen: list[Progress] = []
    done = write_images(
        src, tmp_path / "out", Degradation(preset=preset, scale=4, seed=5), on_progress=seen.append
    )
    assert done == 4
    assert (seen[0].done, seen[0].total, seen[-1].done, seen[-1].label) == (1, 4, 4, "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"im{n}.png" for n in range(4)]
    assert np.array_equal(read_clip(tmp_path / "out", max_frames=9), expected(src, preset, 4, 5))


@pytest.mark.parametrize("preset", ["bd-b", "real"])
def test_a_lossless_video_holds_the_same_values_and_times(tmp_path: Path, preset: str):
    src = make_video(tmp_path / "src.mp4", pts=[0, 1, 2, 5, 9, 10, 11, 12, 30, 31])
    notes = write_video(
        src,
        tmp_path / "out.mkv",
        Degradation(preset=preset, scale=2, seed=1),
        encode=lossless(tmp_path / "out.mkv"),
        overwrite=False,
    )
    assert notes == []
    assert np.array_equal(
        read_clip(tmp_path / "out.mkv", max_frames=99), expected(src, preset, 2, 1)
    )
    with av.open(str(tmp_path / "out.mkv")) as container:
        times = [round(25 * frame.time) for frame in container.decode(video=0)]
    assert times == [0, 1, 2, 5, 9, 10, 11, 12, 30, 31]


def test_mp4_is_near_and_says_so(tmp_path: Path):
    src, dst = make_video(tmp_path / "src.mp4"), tmp_path / "out.mp4"
    notes = write_video(
        src, dst, Degradation(preset="bi", scale=2), encode=lossless(dst), overwrite=False
    )
    assert "use .mkv or a folder to keep all values" in notes[-1]
    difference = read_clip(dst, max_frames=99).astype(int) - expected(src, "bi", 2)
    assert np.abs(difference).mean() < 2


def test_a_image(tmp_path: Path):
    src = save_frames(tmp_path / "src", 1, (20, 12)) / "00000000.png"
    write_image(src, tmp_path / "out.png", Degradation(preset="bi", scale=2))
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.array(image).transpose(2, 0, 1), expected(src, "bi", 2)[0])


def test_clips_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b"):
        save_frames(tmp_path / "src" / name, 2, (40, 40))
    clips, out = find_folder_clips(tmp_path / "src"), tmp_path / "out"
    how = Degradation(preset="real", scale=2, seed=3)

    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    token = CancelToken()
    seen: list[Progress] = []

    def stop(now: Progress) -> None:
        seen.append(now)
        if now.label == "b":
            token.cancel()

    with pytest.raises(Cancelled):
        write_clips(clips, out, how, on_progress=stop, cancel=token)
    assert [(now.label, now.done, now.total) for now in seen] == [
        ("a", 1, 4),
        ("a", 2, 4),
        ("b", 3, 4),
    ]
    assert sorted(p.name for p in out.iterdir()) == ["a", "degradation.json"]
    before = (out / "a" / "00000000.png").stat().st_mtime_ns
    assert write_clips(clips, out, how) == 1
    assert (out / "a" / "00000000.png").stat().st_mtime_ns == before
    assert np.array_equal(
        read_clip(out / "b", max_frames=9),
        expected(tmp_path / "src" / "b", "real", 2, clip_seed("b", 3)),
    )


def test_copies_of_two_degradations_do_not_mix(tmp_path: Path):
    save_frames(tmp_path / "src" / "a", 1)
    clips, out = find_folder_clips(tmp_path / "src"), tmp_path / "out"
    write_clips(clips, out, Degradation(preset="bi"))
    assert json.loads((out / "degradation.json").read_text())["preset"] == "bi"
    with pytest.raises(RequestError, match="copies of another degradation"):
        write_clips(clips, out, Degradation(preset="bi", scale=2))
    with pytest.raises(RequestError, match="not empty, and has no copies"):
        write_clips(clips, tmp_path / "src", Degradation())


def test_a_damaged_image_leaves_nothing(tmp_path: Path):
    src = save_frames(tmp_path / "src", 3)
    (src / "00000001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 3 images could not be decoded"):
        write_images(src, tmp_path / "out", Degradation(preset="bi"))
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_truncated_video_is_written_and_told(tmp_path: Path):
    src = make_video(tmp_path / "src.mkv", frames=40)
    src.write_bytes(src.read_bytes()[:-600])
    with pytest.raises(IncompleteError, match=r"was written, but .* is damaged"):
        write_video(
            src,
            tmp_path / "out.mkv",
            Degradation(preset="bi"),
            encode=lossless(tmp_path / "out.mkv"),
            overwrite=False,
        )
    assert (tmp_path / "out.mkv").exists()


def test_a_recipe_replays_whatever_the_seed(tmp_path: Path):
    src = save_frames(tmp_path / "src", 3, (48, 48))
    recipe = draw_recipe("real", scale=4, seed=8)
    write_images(src, tmp_path / "out", Degradation(preset="real", seed=1, recipe=recipe))
    assert np.array_equal(read_clip(tmp_path / "out", max_frames=9), expected(src, "real", 4, 8))


@pytest.mark.parametrize(
    "fields", [{"preset": "bx"}, {"scale": 0}, {"scale": 17}, {"preset": "bd-b", "scale": 3}]
)
def test_requests_without_sense_are_refused(fields: dict):
    with pytest.raises(ConfigError):
        Degradation(**fields)


def test_images_too_small_are_refused(tmp_path: Path):
    src = save_frames(tmp_path / "src", 1, (3, 3))
    with pytest.raises(InputError, match="3x3 pixels, too small for scale 1/4"):
        write_images(src, tmp_path / "out", Degradation(preset="bi"))
