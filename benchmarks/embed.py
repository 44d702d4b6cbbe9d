"""Put a trained network into the package: its weights, and its entry in the manifest.

    python benchmarks/embed.py fast-x4-bi runs/x4-bi/model.safetensors --summary "..." --made made.json

`made.json` holds what the manifest should tell of the making: data, degradation, stages with their steps, scores.
Paths of the machine that trained it are left out of the weight file.
"""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import tubelet
from tubelet.models.fast import FastVSR
from tubelet.zoo.checkpoint import load_model, save_checkpoint

WEIGHTS = Path(tubelet.__path__[0]) / "weights"


def embed(id: str, source: Path, summary: str, made: dict[str, object]) -> None:
    """Write the weights and the entry; an entry of the same id is replaced."""
    model = load_model(source)
    assert isinstance(model, FastVSR)
    path = WEIGHTS / f"{id}.safetensors"
    save_checkpoint(path, model, {})
    entry = {
        "id": id,
        "summary": summary,
        "architecture": "FastVSR",
        "config": asdict(model.config),
        "license": "Apache-2.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **made,
    }
    manifest = WEIGHTS / "manifest.json"
    entries = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else []
    entries = [e for e in entries if e["id"] != id] + [entry]
    text = json.dumps(
        sorted(entries, key=lambda e: e["id"], reverse=True), indent=1, ensure_ascii=False
    )
    manifest.write_text(text + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("id")
    parser.add_argument("source", type=Path)
    parser.add_argument("--summary", required=True)
    parser.add_argument("--made", type=Path, required=True)
    options = parser.parse_args()
    embed(
        options.id,
        options.source,
        options.summary,
        json.loads(options.made.read_text(encoding="utf-8")),
    )
