"""A preview shows the frames that a full run would give."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tubelet.errors import InputError
from tubelet.evaluation.preview import write_preview
from tubelet.models.architecture import Contract
from tubelet.restore.engine import Engine
from tubelet.types import Temporal
from tubelet.video.probe import probe
from tubelet.zoo.spec import ModelSpec


class Echo(nn.Module):
    """Gives the middle frame of a window, twice as large, and counts its calls."""

    calls = 0

    def forward(self, lq: Tensor) -> Tensor:
        self.calls += 1
        middle = lq[:, lq.shape[1] // 2]
        return middle.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, None]


@pytest.fixture
def levels(tmp_path: Path) -> Path:
    """A lossless video of 50 frames; the gray level of frame t is 4·t."""
    path = tmp_path / "levels.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for t in range(50):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 4 * t, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = t, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def engine_of(temporal: Temporal) -> tuple[Engine, Echo]:
    model = Echo()
    contract = Contract(scale=2, temporal=temporal)
    spec = ModelSpec(id="echo", summary="", architecture="Echo", contract=contract, build=Echo)
    return Engine(spec, model), model


@pytest.mark.parametrize("temporal", [Temporal("frame"), Temporal("window", radius=2)])
def test_rows_show_the_frames_at_the_times_that_are_named(
    temporal: Temporal, levels: Path, tmp_path: Path
) -> None:
    engine, model = engine_of(temporal)
    times = write_preview(engine, probe(levels), tmp_path / "p.png", count=4)
    assert times == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.021)
    assert model.calls < 40  # not the whole video
    with Image.open(tmp_path / "p.png") as image:
        sheet = torch.from_numpy(np.array(image))
    row = sheet.shape[0] // 4
    for number, time_s in enumerate(times):
        y = number * row + row // 2
        assert set(sheet[y, :128].flatten().tolist()) == {4 * round(time_s * 25)}
        assert set(sheet[y, -128:].flatten().tolist()) == {4 * round(time_s * 25)}


def test_a_time_range_can_be_sampled(levels: Path, tmp_path: Path) -> None:
    engine, _ = engine_of(Temporal("frame"))
    times = write_preview(
        engine, probe(levels), tmp_path / "p.png", count=2, start_s=1.0, duration_s=0.4
    )
    assert times == pytest.approx([1.1, 1.3], abs=0.021)


def test_beyond_the_end_there_is_nothing(levels: Path, tmp_path: Path) -> None:
    engine, _ = engine_of(Temporal("frame"))
    with pytest.raises(InputError, match="no frame"):
        write_preview(engine, probe(levels), tmp_path / "p.png", start_s=9.0)


def test_pixels_that_are_not_square_are_shown_as_a_player_does(
    levels: Path, tmp_path: Path
) -> None:
    engine, _ = engine_of(Temporal("frame"))
    info = replace(probe(levels), sample_aspect=Fraction(3, 2))
    write_preview(engine, info, tmp_path / "p.png", count=1)
    with Image.open(tmp_path / "p.png") as image:
        assert 2 * 128 * 3 // 2 <= image.width < 2 * 128 * 3 // 2 + 10
