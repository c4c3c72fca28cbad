"""A document with headings, paragraphs, tables, figures and examples, as Markdown."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from adalink_jax.tools import tables
from adalink_jax.tools.report.plots import Heat, Panel


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
class Command:
    """A command line in a table's cell."""

    text: str


Cell = str | Command


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      header: the columns' names.
      rows: cells by row.
      text_columns: the first columns, which hold text; the others hold numbers.
      name: the name of the table's own files, without a suffix.
      notes: what stands below it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int
    name: str
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> list[list[str]]:
        """The rows as plain text."""
        return [[c.text if isinstance(c, Command) else c for c in row] for row in self.rows]

    def divided(self) -> tuple[list[int], list[int]]:
        """Returns the columns of text that all rows share, and the others that are not empty.

        A row that has none of them but its name, as that of chance, has no say.
        """
        name = self.text_columns - 1  # The last column of text tells the rows apart.
        said = [row for row in self.texts if any(row[:name])]
        shared = [i for i in range(name) if len({row[i] for row in said}) == 1 and said[0][i]]
        columns = range(len(self.header))
        return shared, [i for i in columns if i not in shared and any(row[i] for row in self.texts)]


@dataclasses.dataclass(frozen=True)
class Figure:
    """Panels, which a PNG next to the document shows together."""

    file: str
    caption: str
    panels: tuple[Panel | Heat, ...]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Predictions of several methods for the same inputs, which only a web page shows.

    Attributes:
      title: the task, and the base.
      methods: the methods' labels.
      rows: (input, target, each method's prediction).
      note: which examples these are.
    """

    title: str
    methods: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]
    note: str


Block = Heading | Paragraph | Table | Figure | Examples


def markdown(blocks: Sequence[Block]) -> str:
    """Returns the document as Markdown, with links to its images and without examples."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Paragraph):
            parts.append(block.text)
        elif isinstance(block, Figure):
            parts.append(f"![{block.caption}]({block.file})")
        elif isinstance(block, Table):
            rows = [[f"`{c.text}`" if isinstance(c, Command) else c for c in r] for r in block.rows]
            parts.append(tables.markdown(block.header, rows, block.text_columns))
            parts += block.notes
    return "\n\n".join(parts) + "\n"


def quoted(command: str) -> str:
    """Returns a recorded command line as a shell takes it.

    Records of before hold its words joined with spaces, so that a word with a space or a quote must
    be found again: words begin with ``--``, but for the command's own name.
    """
    try:
        if shlex.join(shlex.split(command)) == command:
            return command
    except ValueError:
        pass  # An open quote.
    name, *flags = re.split(r" (?=--)", command)
    return shlex.join([*name.split(), *flags])
