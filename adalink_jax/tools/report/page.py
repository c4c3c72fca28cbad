"""A document with headings, paragraphs, tables and images, as Markdown or as one HTML file."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Sequence

from adalink_jax.tools import tables

_STYLE = """\
body { font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 0.9em; }
td, th { border-bottom: 1px solid #ccc; padding: 0.25em 0.7em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
td.text, th.text { text-align: left; }
img { max-width: 100%; }
code { font-size: 0.85em; white-space: pre-wrap; word-break: break-all; }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first `text_columns` columns hold text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Image:
    """A PNG file next to the document."""

    file: str
    caption: str


Block = Heading | Paragraph | Table | Image


def markdown(blocks: Sequence[Block]) -> str:
    """Returns the document as Markdown, with links to its images."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Paragraph):
            parts.append(block.text)
        elif isinstance(block, Image):
            parts.append(f"![{block.caption}]({block.file})")
        else:
            parts.append(tables.markdown(block.header, block.rows, block.text_columns))
    return "\n\n".join(parts) + "\n"


def html_page(blocks: Sequence[Block], folder: pathlib.Path) -> str:
    """Returns the document as one HTML file with the images embedded.

    Args:
      blocks: the document.
      folder: the folder with its images.
    """
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _html(block: Block, folder: pathlib.Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Image):
        data = base64.b64encode((folder / block.file).read_bytes()).decode()
        caption = html.escape(block.caption)
        return f'<p><img alt="{caption}" src="data:image/png;base64,{data}"><br>{caption}</p>'
    rows = []
    for tag, line in (("th", block.header), *(("td", row) for row in block.rows)):
        cells = (
            f"<{tag}{' class=text' if i < block.text_columns else ''}>{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(line)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>\n{chr(10).join(rows)}\n</table>"
