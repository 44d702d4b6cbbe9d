"""The documentation site: `make docs-site` builds it from these pages and the docstrings.

Sphinx with MyST (Markdown) and the theme Furo, which follows the reader's light or dark setting.
"""

import re
from importlib.metadata import version as installed_version

from pygments.lexers.shell import BashLexer

project = "Tubelet"
author = "The Tubelet authors"
copyright = "the Tubelet authors; Apache-2.0"
release = installed_version("tubelet")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}

# Markdown: links to headings, and fenced directives.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Links that leave docs/ (README, CHANGELOG) are for readers of the repository.
suppress_warnings = ["myst.xref_missing", "myst.header"]

# API reference: signatures with types, members in the order of the source.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"Tubelet {release}"
html_static_path = ["_static"]
html_css_files = ["tubelet.css"]
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Single backquotes in docstrings are code.
default_role = "code"

_SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:", "Example:")


def is_drawing(paragraph: list[str]) -> bool:
    """Recognize a drawing or a table: indented lines, or columns with wide gaps."""
    return any(line.startswith("  ") or re.search(r"\S {3,}\S", line) for line in paragraph)


def keep_drawings(app, what, name, obj, options, lines):
    """Show the drawings and tables above the sections of a docstring with their own lines."""
    shown: list[str] = []
    paragraphs = "\n".join(lines).split("\n\n")
    in_sections = False
    for text in paragraphs:
        paragraph = text.splitlines()
        in_sections = in_sections or any(line.strip() in _SECTIONS for line in paragraph)
        if is_drawing(paragraph) and not in_sections:
            shown += [".. code-block:: text", "", *("    " + line for line in paragraph), ""]
        else:
            shown += [*paragraph, ""]
    lines[:] = shown


def setup(app):
    """Connect the hook, which runs before the sections are parsed, and highlight console blocks."""
    app.add_lexer("console", BashLexer)
    app.connect("autodoc-process-docstring", keep_drawings, priority=100)
