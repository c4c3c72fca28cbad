"""The plan's folder: the stored rows, also as Markdown, CSV and a plot."""

import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.tools import tables
from adalink_jax.tools.cost.counts import Shape
from adalink_jax.tools.planning.topologies import GIB

Row = Mapping[str, Any]

_FILE = "plan.json"
_ARRAYS = 2  # The most arrays that are named per buffer.
_NOTES = """\
Bytes are per chip. *activations*: the peak less parameters, optimizer state and batch, so \
gradients too. *peak*: most memory at one time, of what the compiler allows a program; of a \
refused step, what it would need; with a star, compiled as a run is, because at the planning level \
it came close to what is allowed. *hardware FLOPs*, *model FLOPs*: operations of a step on all \
chips, as they are done and without recomputation. *sent*: bytes that a chip sends to others in a \
step. *estimate*: seconds of a step at the chip's published peaks, a lower bound; nothing here was \
run. *compile*: seconds that the compiler took on the planning machine.
"""


def stored(folder: pathlib.Path) -> list[Row]:
    """Returns the rows in a plan's folder.

    Raises:
      UserError: its file is not a plan.
    """
    path = folder / _FILE
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [row for row in rows if row["decided_at"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no plan of this script: {error!r}; move it away") from error


def answered(question: Row, rows: Iterable[Row]) -> Row | None:
    """Returns the row that answers a question, or None."""
    for row in rows:
        if all(row.get(name) == value for name, value in question.items()):
            return row
    return None


def write(rows: Sequence[Row], missing: int, folder: pathlib.Path) -> None:
    """Writes plan.json, plan.md and plan.csv atomically; also plan.png if the plan is complete.

    Args:
      rows: at least one.
      missing: the number of requested rows that are still missing.
      folder: created if it does not exist; files of these names in it are replaced.
    """
    record = json.dumps({"missing": missing, "rows": list(rows)}, indent=1) + "\n"
    files.write_text(folder / _FILE, record)
    files.write_text(folder / "plan.md", markdown(rows, missing))
    files.write_text(folder / "plan.csv", _csv(rows))
    if not missing:
        with files.replaced_file(folder / "plan.png") as file:
            plot(rows, file)


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    nested = (dict, list)
    return tables.csv_text(
        columns,
        ({k: json.dumps(v) if isinstance(v, nested) else v for k, v in r.items()} for r in rows),
    )


def markdown(rows: Sequence[Row], missing: int = 0) -> str:
    """Returns the plan as a table, each step's smallest slice, and advice where none fits."""
    parts = ["# Does it fit", ""]
    if missing:
        parts += [f"**Partial: {missing} of the rows that were asked for are not there yet.**", ""]
    shapes = {_shape(row) for row in rows}
    several = len(shapes) > 1
    if not several:
        shape = shapes.pop()
        parts += [f"{shape.batch} rows of {shape.tokens} tokens.", ""]
    table = [_cells(row, several) for row in rows]
    parts.append(tables.markdown(list(table[0]), (list(cells.values()) for cells in table), 5))
    parts += ["", _NOTES, *_smallest(rows), *_refusals(rows)]
    return "\n".join(parts).rstrip() + "\n"


def _shape(row: Row) -> Shape:
    return Shape(row["batch"], row["inputs"], row["targets"], row.get("images", 0))


def layout(row: Row) -> str:
    """Describes how a row's model is divided on its slice."""
    words = []
    if row["model_parallelism"] > 1:
        words.append(f"{row['model_parallelism']}-way tensor")
    if row["fully_sharded"]:
        words.append("fully sharded")
    words = words or ["whole"]
    words.append(f"remat {row['remat']}")
    if row["gradient_accumulation_steps"] > 1:
        words.append(f"in {row['gradient_accumulation_steps']} parts")
    if row["frozen_dtype"]:
        words.append(f"base {row['frozen_dtype']}")
    return ", ".join(words)


def _cells(row: Row, shape: bool) -> dict[str, str]:
    cells = {
        "model": row["model"],
        "method": row["method"],
        "optimizer": row["optimizer"],
        "slice": row["topology"],
        "layout": layout(row),
    }
    if shape:
        cells["shape"] = f"{row['batch']} × {_shape(row).tokens}"
    again = "*" if row["decided_at"] != row["optimization_level"] else ""
    kinds = row["collectives"]  # None for a refused step, empty on one chip.
    sent = sum(kind["sent_bytes"] for kind in (kinds or {}).values())
    return cells | {
        "parameters": tables.in_bytes(row["parameter_bytes"]),
        "optimizer state": tables.in_bytes(row["optimizer_bytes"]),
        "activations": tables.in_bytes(row["activation_bytes"]),
        "peak": tables.in_bytes(row["peak_bytes"]) + again,
        "allowed": tables.in_bytes(row["allowed_bytes"]),
        "hardware FLOPs": f"{row['hardware_flops'] / 1e15:.3g} P",
        "model FLOPs": f"{row['model_flops'] / 1e15:.3g} P",
        "sent": "" if kinds is None else tables.in_bytes(sent),
        "estimate": f"{row['step_seconds']:.3g} s" if row["fits"] else "",
        "compile": f"{row['compile_seconds']:.0f} s",
        "verdict": "FITS" if row["fits"] else "DOES NOT FIT",
    }


def summary(row: Row) -> list[str]:
    """Returns lines about one row: buffers, collectives, and the estimate's parts or advice."""
    lines = []
    for buffer in row["buffers"]:
        lines.append(f"buffer {_words(buffer)}")
    for kind, each in (row["collectives"] or {}).items():
        lines.append(f"{kind}: {each['count']} times, {tables.in_bytes(each['sent_bytes'])} sent")
    if row["fits"]:
        times = {name: row[f"{name}_seconds"] for name in ("compute", "hbm", "ici")}
        parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.items())
        lines.append(f"estimate of a step, the longest of: {parts}")
    else:
        lines.append(advice(row))
    return lines


def _words(buffer: Mapping[str, Any]) -> str:
    """Returns a buffer's size and the largest arrays that share it."""

    def values(array: str) -> int:
        return math.prod(map(int, re.findall(r"\d+", array.partition("[")[2])))

    arrays = sorted(buffer["shapes"].split(", "), key=values, reverse=True)
    more = f" and {len(arrays) - _ARRAYS} more" if len(arrays) > _ARRAYS else ""
    return f"{tables.in_bytes(buffer['bytes'])}: {', '.join(arrays[:_ARRAYS])}{more}"


def advice(row: Row) -> str:
    """Returns what to change in a step that does not fit: the first tried change that fits."""
    tried = row["tried"]
    if tried and tried[-1]["fits"]:
        return f"fits with {tried[-1]['change']} ({tables.in_bytes(tried[-1]['peak_bytes'])})"
    compiled = [each for each in tried if each["peak_bytes"] is not None]
    words = [
        f"{each['change']} needs {tables.in_bytes(each['peak_bytes'])}"
        for each in sorted(compiled, key=lambda each: each["peak_bytes"])[:2]
    ]
    ruled_out = len(tried) - len(compiled)
    if ruled_out:
        words.append(f"with {ruled_out} other changes what the step is given alone does not fit")
    words.append(
        f"parameters and optimizer state, each held once, fill {row['least_chips']} such chips"
    )
    return "no change that was tried makes it fit: " + "; ".join(words)


def _name(row: Row) -> str:
    return f"{row['model']}, {row['method']}, {row['optimizer']}"


def _smallest(rows: Sequence[Row]) -> list[str]:
    """Lists each step's smallest slice of each TPU generation, among those where it fits."""
    steps: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row["chips"]):
        by_generation = steps.setdefault(_name(row), {})
        if row["fits"]:
            by_generation.setdefault(row["topology"].partition(":")[0], row)
    lines = [
        "## The smallest slice that it fits on",
        "",
        "Of those in the table, as laid out there.",
    ]
    slices = (
        ", ".join(by_generation[g]["topology"] for g in sorted(by_generation))
        for by_generation in steps.values()
    )
    cells = [(name, some or "none") for name, some in zip(steps, slices, strict=True)]
    return [*lines, "", tables.markdown(("step", "slices"), cells, 2), ""]


def _refusals(rows: Sequence[Row]) -> list[str]:
    refused = [row for row in rows if not row["fits"]]
    if not refused:
        return []
    lines = ["## What to change where it does not fit", ""]
    for row in refused:
        largest = "; ".join(map(_words, row["buffers"]))
        lines.append(f"* {_name(row)} on {row['topology']} ({layout(row)}): {advice(row)}.")
        if largest:
            lines.append(f"  Largest buffers: {largest}.")
    return lines


def plot(rows: Sequence[Row], file: Any) -> None:
    """Draws each step's peak relative to a chip's limit: one panel per model, grouped by slice."""
    from matplotlib import figure, patches

    models = list(dict.fromkeys(row["model"] for row in rows))
    steps = list(dict.fromkeys((row["method"], row["optimizer"]) for row in rows))
    slices = list(dict.fromkeys(row["topology"] for row in rows))
    size = (max(6, 1 + 0.25 * len(steps) * len(slices) + 0.3 * len(slices)), 3.4 * len(models) + 1)
    canvas = figure.Figure(figsize=size, layout="constrained")
    panels = canvas.subplots(len(models), 1, squeeze=False)[:, 0]
    width = 0.8 / len(steps)
    for axes, model in zip(panels, models, strict=True):
        for i, step in enumerate(steps):
            for row in rows:
                if (row["model"], row["method"], row["optimizer"]) != (model, *step):
                    continue
                place = slices.index(row["topology"]) - 0.4 + i * width
                bar = axes.bar(
                    place, row["peak_bytes"] / row["allowed_bytes"], width, align="edge",
                    color=f"C{i}", edgecolor="black", linewidth=0.4,
                )  # fmt: skip
                if not row["fits"]:
                    bar[0].set(hatch="///", alpha=0.5)
                axes.text(
                    place + width / 2, row["peak_bytes"] / row["allowed_bytes"],
                    f"{row['peak_bytes'] / GIB:.3g}", ha="center", va="bottom", fontsize=6,
                )  # fmt: skip
        axes.axhline(1, color="black", linewidth=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(range(len(slices)), slices)
        axes.set_title(f"{model}: peak of a chip / what the compiler allows (numbers: GiB)")
        axes.grid(axis="y", alpha=0.3)
    colors = [patches.Patch(color=f"C{i}", label=", ".join(step)) for i, step in enumerate(steps)]
    canvas.legend(
        handles=colors, loc="outside lower center", ncols=4, fontsize=8,
        title="hatched: does not fit",
    )  # fmt: skip
    canvas.savefig(file, dpi=150, format="png")
