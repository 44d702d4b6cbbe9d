"""Write the package table and the import chain into the documents: `make package-map`.

Both come from the code: the order of the layers from the contract in pyproject.toml, the
description of a package from the first sentence of its docstring.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "tubelet"
DOCUMENTS = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md")


def layers() -> list[list[str]]:
    """Read the layers of the contract, highest first; packages in brackets do not exist yet."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    names = []
    for layer in contract["layers"]:
        present = re.sub(r"\(tubelet\.\w+\)", "", layer)
        names.append(re.findall(r"tubelet\.(\w+)", present))
    return [layer for layer in names if layer]


def first_sentence(name: str) -> str:
    """Read the first sentence of the docstring of a package or module of `tubelet`."""
    package = SOURCES / name / "__init__.py"
    path = package if package.is_file() else SOURCES / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.removesuffix(".")


def chain() -> str:
    """Draw the layers as a block of code, each importing only from those to its right."""
    drawn = " → ".join(" | ".join(layer) for layer in layers())
    lines = textwrap.wrap(drawn, 100, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(["```", *lines, "```"])


def table() -> str:
    """List every package and module, the highest layer first."""
    rows = ["| package | holds |", "|---|---|"]
    for layer in layers():
        rows += [f"| `{name}` | {first_sentence(name)} |" for name in layer]
    rows.append("| `weights` | The embedded models and their manifest |")
    return "\n".join(rows)


def with_map(text: str) -> str:
    """Put the present chain and table between their marks."""
    for name, content in (("chain", chain()), ("packages", table())):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = pattern.sub(lambda _, new=f"{begin}\n{content}\n{end}": new, text)
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_map(document.read_text("utf-8")), encoding="utf-8")
