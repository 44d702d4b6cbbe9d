"""Parts of HTML pages: style sheet, escaped text, tables of numbers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources

__all__ = [
    "empty_section",
    "escape",
    "escape_note",
    "number_cell",
    "read_resource",
    "style_sheet",
    "text_table",
    "wrap_table",
]


def read_resource(name: str) -> str:
    """Read a file of this package."""
    return resources.files("tubelet.evaluation").joinpath(name).read_text("utf-8")


def style_sheet() -> str:
    """Return the style sheet of reports, with the colors of the plots."""
    return read_resource("report_style.css")


def escape(value: object) -> str:
    """Escape text for HTML."""
    return html.escape(str(value))


def escape_note(note: str) -> str:
    """Escape a note, and mark text between backticks as code."""
    pieces = html.escape(note).split("`")
    # Every second piece was between two backticks.
    for index in range(1, len(pieces), 2):
        pieces[index] = f"<code>{pieces[index]}</code>"
    return "".join(pieces)


def empty_section(reason: str) -> str:
    """Write a paragraph in place of a plot or a table."""
    return f"<p>Nothing to show: {html.escape(reason)}.</p>"


def wrap_table(content: str) -> str:
    """Wrap a table of numbers so that it scrolls sideways on a narrow screen."""
    return f'<div class="wide" tabindex="0"><table class="numbers">{content}</table></div>'


def number_cell(text: str) -> str:
    """Write a cell that is aligned to the right; `text` is HTML."""
    return f'<td class="n">{text}</td>'


def text_table(
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    *,
    num_text: int = 1,
    caption: str = "",
) -> str:
    """Write a table whose first columns are text, and whose others are numbers.

    Args:
        header: Headings.
        body: Rows of text, which is escaped.
        num_text: Number of columns of text.
        caption: Heading of the table.
    """
    headings: list[str] = []
    for column, heading in enumerate(header):
        alignment = "" if column < num_text else ' class="n"'
        headings.append(f'<th scope="col"{alignment}>{escape(heading)}</th>')
    lines: list[str] = []
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    lines.append(f"<thead><tr>{''.join(headings)}</tr></thead><tbody>")
    for first, *others in body:
        lines.append(f'<tr><th scope="row">{escape(first)}</th>')
        for column, cell in enumerate(others, 1):
            is_text = column < num_text
            text = escape(cell)
            lines.append(f'<td class="text">{text}</td>' if is_text else number_cell(text))
        lines.append("</tr>")
    lines.append("</tbody>")
    return wrap_table("".join(lines))
