"""Make the moving image of the README: a crop of a video, enlarged bicubically and upscaled by Tubelet.

    python benchmarks/readme_clip.py carphone_qcif.mp4 docs/images/before-after.webp

The clip is `carphone` in QCIF (176×144), a test sequence of the 1990s that no embedded model was
trained on. The command upscales it with the default model; the left half shows the same crop of the
same frames, enlarged by bicubic interpolation.
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import tubelet
from tubelet.evaluation.images import enlarge, to_image
from tubelet.video.reader import open_reader

BAR_PX = 28
GAP_PX = 4


def load_frames(path: Path, indexes: range) -> list:
    """Read some frames of a video, (3, H, W) each."""
    with open_reader(path) as reader:
        return [frame.rgb for frame in reader if frame.index in indexes]


def draw_pair(before: Image.Image, after: Image.Image) -> Image.Image:
    """Put two images side by side, with a line of text above each."""
    width, height = before.size
    sheet = Image.new("RGB", (2 * width + GAP_PX, height + BAR_PX), "white")
    sheet.paste(before, (0, BAR_PX))
    sheet.paste(after, (width + GAP_PX, BAR_PX))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    draw.text((6, 4), "176x144, enlarged 4 times (bicubic)", "black", font)
    draw.text((width + GAP_PX + 6, 4), "Tubelet, 4 times, default model", "black", font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=44, help="first frame that is shown")
    parser.add_argument("--frames", type=int, default=50, help="every second of them is shown")
    parser.add_argument("--box", type=int, nargs=4, default=(48, 24, 480, 444), metavar="PX")
    options = parser.parse_args()
    shown = range(options.first, options.first + options.frames, 2)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.mkv"
        tubelet.upscale(options.clip, result, codec="ffv1")
        after = load_frames(result, shown)
    before = load_frames(options.clip, shown)

    pairs = []
    for lq, sr in zip(before, after, strict=True):
        bicubic = to_image(enlarge(lq, sr.shape[-2:])).crop(options.box)
        pairs.append(draw_pair(bicubic, to_image(sr).crop(options.box)))
    pairs[0].save(
        options.out,
        save_all=True,
        append_images=pairs[1:],
        duration=80,
        loop=0,
        quality=82,
        method=6,
    )
    print(f"{options.out}: {len(pairs)} frames, {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
