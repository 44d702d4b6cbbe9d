"""Read the recorded outputs of published code (tests/recordings)."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.scripts import import_script


def recorded(recordings: Path, case: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the description of a case and its recorded outputs."""
    description = json.loads((recordings / "cases" / f"{case}.json").read_text(encoding="utf-8"))
    with np.load(recordings / "cases" / f"{case}.npz") as arrays:
        names = sorted(arrays.files, key=lambda n: int(n.split("_")[1]) if "_" in n else 0)
        return description, [torch.from_numpy(arrays[name]) for name in names]


def rules(recordings: Path) -> ModuleType:
    """Return the module that makes weights (`fill`) and inputs (`image`) from names."""
    return import_script(recordings / "rules.py")


def recorded_input(recordings: Path, key: str, shape: tuple[int, ...]) -> Tensor:
    """Make the input that a case was recorded with."""
    return torch.from_numpy(rules(recordings).image(key, shape))
