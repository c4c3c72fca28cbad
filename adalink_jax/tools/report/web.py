"""A document as one HTML file that needs no other file and no network."""

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence

from adalink_jax.tools.report import plots
from adalink_jax.tools.report.page import (
    Block,
    Cell,
    Command,
    Examples,
    Figure,
    Heading,
    Paragraph,
    Table,
)

_STYLE = """\
:root { color-scheme: light dark; --line: #8885; --right: #0a7d4f; --wrong: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --right: #4cc38a; --wrong: #ff8577; } }
body { font-family: system-ui, sans-serif; line-height: 1.45; max-width: 84em; margin: 1.5em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; }
/* A shadow at the side where a table goes on. The text column that names a row stays in sight. */
.wide { overflow-x: auto; margin: 1em 0; background-repeat: no-repeat;
  background-image: linear-gradient(to right, Canvas 40%, #0000),
    linear-gradient(to left, Canvas 40%, #0000), linear-gradient(to right, #8888, #0000),
    linear-gradient(to left, #8888, #0000);
  background-position: 0 0, 100% 0, 0 0, 100% 0;
  background-attachment: local, local, scroll, scroll;
  background-size: 3em 100%, 3em 100%, 1em 100%, 1em 100%; }
.name { position: sticky; left: 0; background: Canvas padding-box; }
caption { text-align: left; margin-bottom: 0.4em; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.88em;
  font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: 0.25em 0.6em; text-align: right;
  white-space: nowrap; vertical-align: top; }
td.text, th.text { text-align: left; } td.text { white-space: normal; max-width: 26em; }
th[aria-sort] { cursor: pointer; } th[aria-sort]::after { content: " ↕"; opacity: 0.4; }
th[aria-sort=ascending]::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending]::after { content: " ↓"; opacity: 1; }
.note { font-size: 0.85em; margin: 0.3em 0; overflow-wrap: anywhere; }
figure { margin: 1em 0; } figcaption { font-size: 0.85em; }
.panels { display: flex; flex-wrap: wrap; gap: 0.5em; }
.panels svg { width: 100%; height: auto; } .panels div { flex: 0 1 22.5em; min-width: 0; }
.panels div.whole { flex-basis: 46em; overflow-x: auto; } .whole svg { min-width: 38em; }
.legend { font-size: 0.85rem; } .legend span { margin-right: 1.2em; }
code { font-size: 0.9em; white-space: pre-wrap; overflow-wrap: anywhere; }
td details { min-width: 13em; max-width: 38em; white-space: normal; } summary { cursor: pointer; }
.filter { display: flex; flex-wrap: wrap; gap: 0.6em; }
.examples td { white-space: normal; min-width: 7.5em; text-align: left; }
.examples td:first-child { min-width: 15em; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
.right::before { content: "✓ "; } .wrong::before { content: "✗ "; }
@media (max-width: 40em) {
  td.text { min-width: 5em; max-width: 8em; } td, th { padding: 0.25em 0.4em; }
}
"""

_SCRIPT = """\
const number = text => { const plain = text.replaceAll(',', '').replace('−', '-').replace('< ', '');
  const n = parseFloat(plain);
  return Number.isNaN(n) ? null : n; };
for (const head of document.querySelectorAll('th[aria-sort]')) {
  const sort = () => {
    const column = head.cellIndex, body = head.closest('table').tBodies[0];
    const numbers = !head.classList.contains('text');
    const key = row => { const text = row.cells[column].textContent.trim();
      return numbers ? number(text) : text || null; };
    const rows = [...body.rows].map(row => [key(row), row]);
    const less = (a, b) => numbers ? a - b : a.localeCompare(b, undefined, {numeric: true});
    const down = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
      : down * less(a, b));  // An empty cell stays last.
    for (const other of head.parentNode.cells) other.setAttribute('aria-sort', 'none');
    head.setAttribute('aria-sort', down < 0 ? 'descending' : 'ascending');
    body.append(...rows.map(([, row]) => row));
  };
  head.addEventListener('click', sort);
  head.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
}
for (const button of document.querySelectorAll('button.copy')) {
  const code = button.parentNode.querySelector('code');
  button.addEventListener('click', async () => {
    try { await navigator.clipboard.writeText(code.textContent); } catch {
      getSelection().selectAllChildren(code); document.execCommand('copy'); }
    button.textContent = 'copied';
  });
}
const filter = document.querySelector('.filter');
if (filter) filter.addEventListener('input', () => {
  const [kind, words] = [...filter.querySelectorAll('select, input')].map(e => e.value);
  for (const row of document.querySelectorAll('.examples tbody tr'))
    row.hidden = !row.dataset.kinds.split(' ').includes(kind)
      || !row.textContent.toLowerCase().includes(words.toLowerCase());
});
"""

_KINDS = {
    "any": "all examples",
    "some-wrong": "some method is wrong",
    "all-wrong": "every method is wrong",
    "all-right": "every method is right",
    "differ": "some are right, some wrong",
}


def page(blocks: Sequence[Block]) -> str:
    """Returns the document as one HTML file: tables that sort, folded commands, a filter."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    numbers = itertools.count()
    shown = list(_filtered(blocks))
    body = "\n".join(_html(block, numbers) for block in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style></head>\n"
        f"<body>\n{body}\n<script>\n{_SCRIPT}</script>\n</body></html>\n"
    )


def _filtered(blocks: Sequence[Block]) -> Iterator[Block | None]:
    """Yields the blocks, with None where the filter stands: before the first examples."""
    pending = True
    for block in blocks:
        if pending and isinstance(block, Examples):
            pending = False
            yield None
        yield block


def _html(block: Block | None, numbers: Iterator[int]) -> str:
    if block is None:
        options = "".join(f'<option value="{k}">{text}</option>' for k, text in _KINDS.items())
        return (
            f'<div class="filter"><label>Show <select>{options}</select></label>'
            '<label>with the words <input type="search"></label></div>'
        )
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Figure):
        return _figure(block, numbers)
    if isinstance(block, Examples):
        return _examples(block)
    notes = "".join(f'\n<p class="note">{html.escape(note)}</p>' for note in block.notes)
    return f'<div class="wide">{_table(block)}</div>{notes}'


def _table(table: Table) -> str:
    """Returns a table without its empty columns; what all rows share stands above it."""
    name = table.text_columns - 1  # The last column of text tells the rows apart.
    shared, kept = table.divided()

    def kind(column: int) -> str:
        if column == name:
            return ' class="text name"'
        return ' class="text"' if column < name else ""

    caption = ", ".join(f"{table.header[i]}: {_cell(table.rows[0][i])}" for i in shared)
    head = "".join(
        f'<th{kind(i)} aria-sort="none" tabindex="0">{html.escape(table.header[i])}</th>'
        for i in kept
    )
    rows = ["".join(f"<td{kind(i)}>{_cell(row[i])}</td>" for i in kept) for row in table.rows]
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<table>{f'<caption>{caption}</caption>' if caption else ''}\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table>"
    )


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Command):
        return html.escape(cell)
    start = html.escape(" ".join(cell.text.split()[:2]))
    return (
        f"<details><summary>{start} …</summary><code>{html.escape(cell.text)}</code> "
        '<button type="button" class="copy">copy</button></details>'
    )


def _figure(figure: Figure, numbers: Iterator[int]) -> str:
    styles, labels = plots.looks(figure.panels), [plots.labels(panel) for panel in figure.panels]
    # One legend for all panels, if they show the same; else one below each.
    common = all(one == labels[0] for one in labels)
    drawn = "\n".join(
        f"<div{' class=whole' if plots.is_wide(panel) else ''}>"
        f"{plots.svg(panel, styles, f'panel{next(numbers)}')}"
        f"{'' if common else _legend(styles, own)}</div>"
        for panel, own in zip(figure.panels, labels, strict=True)
    )
    caption = html.escape(figure.caption)
    return (
        f'<figure role="group" aria-label="{caption}">\n<div class="panels">\n{drawn}\n</div>\n'
        f"<figcaption>{caption}{_legend(styles, labels[0]) if common else ''}</figcaption></figure>"
    )


def _legend(styles: Mapping[str, plots.Look], labels: Sequence[str]) -> str:
    entries = []
    for label in labels:
        color = styles[label].color.replace(plots.TEXT, "currentColor")
        mark = f'<b style="color:{color}">{styles[label].text}</b>'
        entries.append(f"<span>{mark} {html.escape(label)}</span> ")
    return f'<div class="legend">{"".join(entries)}</div>'


def _examples(block: Examples) -> str:
    rows = []
    for inputs, target, predictions in block.rows:
        right = [prediction == target for prediction in predictions]
        kinds = ["any"]
        kinds += ["all-right"] if all(right) else ["some-wrong"]
        kinds += [] if any(right) else ["all-wrong"]
        kinds += ["differ"] if any(right) and not all(right) else []
        answers = "".join(
            f'<td class="{"right" if ok else "wrong"}">{html.escape(prediction)}</td>'
            for prediction, ok in zip(predictions, right, strict=True)
        )
        rows.append(
            f'<tr data-kinds="{" ".join(kinds)}"><td>{html.escape(inputs)}</td>'
            f"<td>{html.escape(target)}</td>{answers}</tr>"
        )
    header = "".join(
        f"<th class=text>{html.escape(h)}</th>" for h in ("input", "target", *block.methods)
    )
    body = "\n".join(rows)
    return (
        f"<details><summary>{html.escape(block.title)}: {html.escape(block.note)}</summary>"
        f'<div class="wide"><table class="examples"><thead><tr>{header}</tr></thead>\n<tbody>\n'
        f"{body}\n</tbody></table></div></details>"
    )
