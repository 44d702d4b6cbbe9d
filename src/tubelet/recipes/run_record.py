"""The settings of a run, recorded in its folder: another run must not continue from its checkpoint.

`training.state` compares the settings of the loop; a recipe has more that change the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.errors import CheckpointError
from tubelet.files import atomic_write
from tubelet.training import check_same_run

__all__ = ["check_or_record", "check_record"]

_RECORD_FILE = "samples.json"


def check_record(out: Path, settings: Mapping[str, Any]) -> None:
    """Check that the run in a folder, if there is one, has these settings.

    Args:
        out: Folder of the run.
        settings: Everything that changes the result of the run, as JSON can represent it.

    Raises:
        CheckpointError: It has others, or its record is damaged.
    """
    path = out / _RECORD_FILE
    if not path.is_file():
        return
    try:
        recorded: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} is damaged; name another output folder") from None
    # JSON turns tuples into lists.
    check_same_run(out, recorded, json.loads(json.dumps(settings)))


def check_or_record(out: Path, settings: Mapping[str, Any]) -> None:
    """Compare settings with those of the run in a folder, or record them in it.

    Args:
        out: See `check_record`.
        settings: See `check_record`.

    Raises:
        CheckpointError: The folder contains the checkpoint of another run.
    """
    if (out / "state.pt").is_file():
        check_record(out, settings)
        return
    # Without a checkpoint there is nothing to lose.
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / _RECORD_FILE) as part:
        part.write_text(json.dumps(settings, indent=1), encoding="utf-8")
