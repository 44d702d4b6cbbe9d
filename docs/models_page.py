"""Write docs/models.md from the specs: `make models-page`."""

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

This page is written by `make models-page` from the specs in the code; `tubelet models` prints the same for this
machine.

A *frame* model sees one frame, a *window* model some neighbors too, an *online* model what came before, a *clip* model
all of a scene, or a window of it. The number before it is the factor by which it enlarges.

## In the package

"""
_FETCHED = """
## Fetched on first use

```console
tubelet upscale in.mp4 out.mp4 --model basicvsr_pp-reds4    # fetches about 29 MB, once
tubelet models download realesr-animevideov3                # beforehand, for a machine without network
tubelet models cache                                        # where the files are, and which
tubelet models identify path/to/weights.pth                 # what a file is, and how it was recognized
```

Files are kept in `$TUBELET_HOME/models`, by default `~/.cache/tubelet/models` (on macOS
`~/Library/Caches/tubelet/models`, on Windows `%LOCALAPPDATA%\\tubelet\\Cache\\models`). A transfer that broke off is
completed by the next run, what arrives is compared with the published size and hash as far as there are any, and a file
that is there needs no network. Proxies are those of `https_proxy`. Where *by hand* stands, the publisher's page wants a
person: put the file into that folder under its published name. The license is that of the weights, as their publisher
states it; data that they were trained on can have terms of its own.

*Bicubic* and *blurred* are the ways in which the low-quality images of training were made: MATLAB's bicubic (BI), and
a Gaussian blur before every fourth pixel is taken (BD). Give a model what it was trained for; for videos of people that
is a model for real videos or images.

"""
_ARCHITECTURES = """
## Architectures

`--model path/to/any.pth` runs files of these networks, as BasicSR, MMagic (MMEditing), KAIR or the authors save them:
the names and shapes of its tensors tell the architecture and the configuration. Parameters and temporal contract are
those of the usual configuration.

"""


def render() -> str:
    """Make the text of the page."""
    package = [
        (
            f"`{s.id}`",
            _factor(s.scale),
            _temporal(s.temporal),
            _count(model_size(s)),
            _license(s),
            s.summary,
        )
        for s in list_models()
    ]
    fetched = [_fetched(known) for known in PUBLISHED_WEIGHTS]
    names = ", ".join(
        dict.fromkeys(
            foreign.name for foreign in UNSUPPORTED if foreign.advice.startswith("Tubelet")
        )
    )
    return "".join(
        (
            _HEAD,
            _table(("id", "scale", "kind", "parameters", "license", "for"), package),
            _FETCHED,
            _table(
                ("id", "network", "kind", "parameters", "license", "trained on or for", "file"),
                fetched,
            ),
            _ARCHITECTURES,
            _table(
                ("network", "kind", "parameters", "paper", "published weights"),
                [_architecture(a) for a in ARCHITECTURES],
            ),
            f"\nFiles of these are named and not run yet: {names}.\n",
        )
    )


def _fetched(known: PublishedWeights) -> Sequence[str]:
    contract = known.architecture.contract(known.config)
    kind = f"{_factor(contract.scale)} {_temporal(contract.temporal)}" if contract else "part"
    count = (
        _count(model_size(find_model(known.id)))
        if contract
        else _count(_usual_size(known.architecture))
    )
    file = (
        f"[{known.file.name}]({known.file.url})"
        if known.file.url
        else f"[by hand]({known.file.page}): {known.file.name}"
    )
    return f"`{known.id}`", known.architecture.name, kind, count, known.license, known.summary, file


def _architecture(architecture: Architecture) -> Sequence[str]:
    config = architecture.config()
    contract = architecture.contract(config)
    kind = (
        f"{_factor(contract.scale)} {_temporal(contract.temporal)}"
        if contract
        else "part of others"
    )
    ids = [known.id for known in PUBLISHED_WEIGHTS if known.architecture is architecture]
    ids += [spec.id for spec in list_models() if spec.architecture == architecture.name]
    page = PAGES.get(architecture.name)
    named = f"`{ids[0]}`" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "") if ids else ""
    by_hand = f"[authors]({page})" if page else ""
    weights = ", ".join(filter(None, (named, by_hand))) or "–"
    size = _count(_usual_size(architecture))
    source = (
        f"<{architecture.source}>"
        if architecture.source.startswith("http")
        else architecture.source
    )
    return architecture.name, kind, size, source or "–", weights


def _usual_size(architecture: Architecture) -> int:
    with torch.device("meta"):
        return count_parameters(architecture.build(architecture.config()))


def _temporal(temporal: Temporal) -> str:
    if temporal.kind == "window":
        return f"window of {2 * temporal.radius + 1}"
    if temporal.lookahead:
        return f"online, {temporal.lookahead} ahead"
    return f"{temporal.kind}, also between frames" if temporal.between_frames else temporal.kind


def _factor(scale: int) -> str:
    return f"×{scale}"


def _license(spec: ModelSpec) -> str:
    return spec.weights.license if spec.weights else spec.license


def _count(parameters: int) -> str:
    if parameters == 0:
        return "–"
    return f"{parameters / 1e6:.2f} M" if parameters >= 1_000_000 else f"{parameters / 1e3:.1f} k"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
