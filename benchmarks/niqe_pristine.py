"""Fit Tubelet's own pristine model of NIQE to photographs, and write it beside the metric.

    python benchmarks/niqe_pristine.py --images ../shared/data/train_image

Images are halved first, which leaves little of their coding noise.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tubelet.metrics.niqe import fit_pristine
from tubelet.ops import imresize

OUT = Path(__file__).parents[1] / "src/tubelet/metrics/niqe_pristine.npz"


def images(folder: Path) -> Iterator[Tensor]:
    """Read every image of a folder, halved: (3, H, W) in [0, 1]."""
    for path in sorted(folder.glob("*.webp")):
        with Image.open(path) as image:
            x = (
                torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float()
                / 255
            )
        yield imresize(x, 0.5).clamp(0, 1)


def main() -> None:
    """Fit the model to the images, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    count = len(list(options.images.glob("*.webp")))
    with torch.inference_mode():
        model = fit_pristine(images(options.images))
    np.savez(options.out, mu_pris_param=model.mean.numpy(), cov_pris_param=model.cov.numpy())
    print(f"{count} images → {options.out}, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
