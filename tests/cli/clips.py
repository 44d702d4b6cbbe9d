"""A small video to upscale."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES = 10
SIZE = (64, 48)


def write_clip(path: Path, *, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Path:
    """Write a moving gradient at 25 frames a second."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            rgb = np.stack([128 + 80 * np.sin((x + 3 * t) / 5), 128 + 80 * np.cos((y + t) / 4), x * 2 + y], -1)
            frame = av.VideoFrame.from_ndarray(rgb.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
