"""Draw the image of the README from what `tubelet demo` left in its folder.

tubelet demo demo && python benchmarks/image.py demo docs/images/result.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from tubelet.evaluation.images import enlarge, to_image
from tubelet.video.reader import open_reader

FRAME, SIDE_PX, BAR_PX = 40, 330, 26


def frame_of(path: Path) -> torch.Tensor:
    """Read the frame that the image shows: (3, H, W)."""
    with open_reader(path) as reader:
        return next(frame.rgb for frame in reader if frame.index == FRAME)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--left", type=int, default=300)
    parser.add_argument("--top", type=int, default=200)
    options = parser.parse_args()
    original = frame_of(options.demo / "street-original.mp4")
    panels = {
        "input, bicubic": enlarge(frame_of(options.demo / "street-input.mp4"), (720, 1280)),
        "Tubelet x4": frame_of(options.demo / "street-restored.mp4"),
        "original": original,
    }
    sheet = Image.new("RGB", (len(panels) * SIDE_PX, SIDE_PX + BAR_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, (label, rgb) in enumerate(panels.items()):
        crop = to_image(rgb).crop(
            (options.left, options.top, options.left + SIDE_PX - 2, options.top + SIDE_PX)
        )
        sheet.paste(crop, (column * SIDE_PX, BAR_PX))
        draw.text((column * SIDE_PX + 6, 3), label, "black", font)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
