"""Import a Python file that belongs to no package: a script of the documents, a recorded rule."""

import importlib.util
from pathlib import Path
from types import ModuleType


def import_script(path: Path) -> ModuleType:
    """Run a file as a module of its own name, and return the module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
