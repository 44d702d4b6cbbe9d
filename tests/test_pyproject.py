"""What pyproject.toml promises: the order of the packages, and extras that have code behind them."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tubelet.cli.doctor import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "tubelet"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
IMPORTED_AS = {"opencv-python-headless": "cv2", "tensorboard": "torch.utils.tensorboard"}


def modules() -> set[str]:
    """Names directly in `tubelet`."""
    files = {path.stem for path in SOURCES.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in SOURCES.glob("*/__init__.py")}


def floors() -> list[set[str]]:
    """Names of each floor, the highest first, without the packages in brackets, which do not exist yet."""
    (contract,) = [
        one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["type"] == "layers"
    ]
    planned = re.compile(r"\(tubelet\.\w+\)")
    names = [
        set(re.findall(r"tubelet\.(\w+)", planned.sub("", layer))) for layer in contract["layers"]
    ]
    return [floor for floor in names if floor]


def chain_of(document: str) -> list[set[str]]:
    """Read the floors out of the one block of a document that draws them."""
    blocks = re.findall(r"```\n(cli .*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)
    (chain,) = [block for block in blocks if "types" in block]
    return [set(re.findall(r"\w+", floor)) for floor in chain.split("→")]


def imported_names() -> set[str]:
    """Every module that the sources import, and the packages above it."""
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
    return names | {name.partition(".")[0] for name in names}


def test_every_module_has_its_floor() -> None:
    assert set().union(*floors()) == modules()


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_documents_draw_the_floors_that_are_enforced(document: str) -> None:
    assert chain_of(document) == floors()


def test_the_table_of_the_design_has_every_package() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    table = text.partition("| package | holds |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == modules() | {"weights"}


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
                f"[{extra}] lists {package}, which nothing imports"
            )
    assert {extra for extra, _ in EXTRAS} == extras.keys()
