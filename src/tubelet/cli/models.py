"""`tubelet models`: the zoo as a table, what a checkpoint is, and the weights that are fetched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.progress import write_json
from tubelet.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from tubelet.zoo.checkpoint import OpenedCheckpoint
    from tubelet.zoo.spec import ModelSpec

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class ModelsFlags:
    """List the models: what they are called, what they enlarge, how they see time, and whose they are.

    `tubelet models identify FILE` tells what a checkpoint is; `tubelet models download ID...` fetches published weights
    beforehand; `tubelet models cache` tells where they are kept.
    """

    json: bool = False
    """Write JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class IdentifyFlags:
    """Tell what a checkpoint is: its architecture and configuration, read off names and shapes."""

    file: str
    """A .safetensors or .pth file."""
    json: bool = False
    """Write JSON instead of lines."""


@dataclass(frozen=True, kw_only=True)
class DownloadFlags:
    """Fetch published weights, so that later runs need no network."""

    ids: tuple[str, ...]
    """Models, as `tubelet models` lists them."""


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """Tell where fetched weights are kept, and which are there. TUBELET_HOME names another place."""

    json: bool = False
    """Write JSON instead of lines."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    actions: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
        "identify": (IdentifyFlags, _identify),
        "download": (DownloadFlags, _download),
        "cache": (CacheFlags, _cache),
    }
    if args and args[0] in actions:
        flags, action = actions[args[0]]
        return action(parse(flags_from(flags), args[1:], verb=f"models {args[0]}"))
    wanted: ModelsFlags = parse(flags_from(ModelsFlags), args, verb="models")
    rows = _rows()
    if wanted.json:
        write_json(rows, sys.stdout)
        return 0
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
        return 0
    scale = f" ×{facts['scale']}" if facts["scale"] else ", a part of other networks"
    write = sys.stdout.write
    write(
        f"{flags.file}: {facts['architecture']}{scale}, {_short(facts['parameters'])} parameters\n"
    )
    for name in ("temporal", "config"):
        if facts[name]:
            write(
                f"  {name}: {', '.join(f'{key}={value}' for key, value in facts[name].items())}\n"
            )
    write(f"  layout: {_layout(opened, facts['tensors'])}\n")
    if facts["published_as"]:
        write(f"  published as: {', '.join(facts['published_as'])}\n")
    write(f"  source: {facts['source']}\n")
    if facts["scale"]:
        write(f"  tubelet upscale IN OUT --model {flags.file}\n")
    return 0


def _facts(file: str, opened: OpenedCheckpoint) -> dict[str, Any]:
    from tubelet.zoo.catalog import published_ids
    from tubelet.zoo.spec import count_parameters

    contract = opened.architecture.contract(opened.config)
    temporal = (
        {name: value for name, value in asdict(contract.temporal).items() if value}
        if contract
        else {}
    )
    return {
        "file": file,
        "architecture": opened.architecture.name,
        "scale": contract.scale if contract else None,
        "temporal": temporal,
        "config": asdict(opened.config),
        "parameters": count_parameters(opened.model),
        "tensors": len(opened.model.state_dict()),
        "wrapping": opened.wrapping,
        "renamed": opened.renamed,
        "published_as": published_ids(Path(file)),
        "source": opened.architecture.source,
    }


def _layout(opened: OpenedCheckpoint, tensors: int) -> str:
    inside = (
        f"in {' → '.join(name.rstrip('.') for name in opened.wrapping)}, "
        if opened.wrapping
        else ""
    )
    names = (
        f"{opened.renamed} of {tensors} names translated"
        if opened.renamed
        else f"all {tensors} names are ours"
    )
    return f"recognized by names and shapes; {inside}{names}"


def _explain(flags: IdentifyFlags, fault: str) -> None:
    """Say what comes nearest, where the file holds tensors at all."""
    from tubelet.zoo.checkpoint import read_state
    from tubelet.zoo.similarity import nearest
    from tubelet.zoo.unsupported import recognize_unsupported

    try:
        state, _ = read_state(flags.file)
    except CheckpointError:
        return
    near = [] if recognize_unsupported(state) else nearest(state)
    if flags.json:
        write_json(
            {
                "file": flags.file,
                "fault": fault,
                "tensors": len(state),
                "nearest": [asdict(n) for n in near],
            },
            sys.stdout,
        )
        return
    for one in near:
        sys.stdout.write(f"nearest: {one.architecture}, {one.share:.0%} of the names alike\n")
        for verb, names in (
            ("it lacks", one.missing),
            ("it has too much", one.unexpected),
            ("shapes", one.shapes),
        ):
            if names:
                sys.stdout.write(f"  {verb}: {', '.join(names)}\n")


def _download(flags: DownloadFlags) -> int:
    from tubelet.zoo.catalog import model_weights

    if not flags.ids:
        raise RequestError(
            "no model is named; `tubelet models` lists those whose weights are fetched"
        )
    for id in flags.ids:
        sys.stdout.write(f"{id}: {model_weights(id)}\n")
    return 0


def _cache(flags: CacheFlags) -> int:
    from tubelet.zoo.catalog import weights_folder

    folder = weights_folder()
    files = sorted(
        path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")
    )
    sizes = {path.name: path.stat().st_size for path in files}
    if flags.json:
        write_json({"folder": str(folder), "files": sizes}, sys.stdout)
        return 0
    sys.stdout.write(f"{folder}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB\n")
    for name, size_bytes in sizes.items():
        note = ", not whole: the next use completes it" if name.endswith(".part") else ""
        sys.stdout.write(f"  {name}  {size_bytes / 1e6:.1f} MB{note}\n")
    return 0


def _rows() -> list[dict[str, Any]]:
    from tubelet.zoo.catalog import list_models

    return [_row(spec) for spec in list_models(published=True)]


def _row(spec: ModelSpec) -> dict[str, Any]:
    from tubelet.zoo.catalog import model_size, weights_folder

    remote = spec.weights.remote if spec.weights else None
    here = remote is None or (weights_folder() / remote.name).is_file()
    return {
        "id": spec.id,
        "scale": spec.scale,
        "kind": spec.temporal.kind,
        "architecture": spec.architecture,
        "parameters": model_size(spec),
        "summary": spec.summary,
        "license": spec.weights.license if spec.weights else spec.license,
        "source": spec.source,
        "here": here,
        "file": spec.weights.file if spec.weights else None,
        "sha256": spec.weights.sha256 if spec.weights else None,
        "size_bytes": remote.size_bytes if remote else None,
        "url": (remote.url or None) if remote else None,
        "page": remote.page if remote else None,
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
        count = _short(row["parameters"])
        table.add_row(
            row["id"],
            f"×{row['scale']}",
            row["kind"],
            count,
            _weights(row),
            row["license"],
            row["summary"],
        )
    console = Console()
    console.print(table)
    console.print(
        "kind: a frame model sees one frame, window its neighbors, online those before, clip all.\n"
        "`--model default` is the one for real videos, in the scale that is asked for.\n"
        "weights: those with a size are fetched on first use, or by `tubelet models download ID`; for those by hand,\n"
        "that command says from where to where.",
        highlight=False,
        style="dim",
        soft_wrap=True,
    )


def _weights(row: dict[str, Any]) -> str:
    """Say whether weights are here, or how much is fetched; unknown sizes are those of the numbers, roughly."""
    if row["here"]:
        return "here" if row["parameters"] else "–"
    if row["url"] is None:
        return "by hand"
    size_bytes = row["size_bytes"]
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes else f"≈ {4 * row['parameters'] / 1e6:.0f} MB"


def _short(parameters: int) -> str:
    if parameters == 0:
        return "–"
    return f"{parameters / 1e6:.2f} M" if parameters >= 1_000_000 else f"{parameters / 1e3:.1f} k"
