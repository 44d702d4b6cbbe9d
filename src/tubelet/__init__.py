"""Tubelet: video super-resolution. The functions of this module are imported on first use.

tubelet.upscale("old.mp4", "new.mp4", scale=4)
model = tubelet.create_model("lanczos-x4")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.restore.job import upscale
    from tubelet.zoo.catalog import list_models
    from tubelet.zoo.checkpoint import load_model
    from tubelet.zoo.opening import create_model

__all__ = ["create_model", "list_models", "load_model", "upscale"]

_MODULES = {
    "create_model": "tubelet.zoo.opening",
    "list_models": "tubelet.zoo.catalog",
    "load_model": "tubelet.zoo.checkpoint",
    "upscale": "tubelet.restore.job",
}
# After `import tubelet`, names such as tubelet.ops.imresize need no further import.
_PACKAGES = ("degrade", "metrics", "ops")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        module = importlib.import_module(_MODULES[name])
        return getattr(module, name)
    if name in _PACKAGES:
        return importlib.import_module(f"tubelet.{name}")
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        return metadata.version("tubelet")
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_PACKAGES, "__version__"])
