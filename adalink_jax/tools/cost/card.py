"""The cost card: models × methods at one batch shape, as Markdown, CSV, JSON and a plot."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import jax

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models.config import REMATS
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools import tables
from adalink_jax.tools.cost import programs
from adalink_jax.tools.cost.counts import Shape, parameters, traced_flops

LATENCY_BATCHES = (1, 8, 64)

_NOTES = """\
* One training step and one forward pass of {shape}, {dtype} activations, dropout \
{dropout_rate}. T is padded: every row counts whole.
* *stored*: the adapter's parameters, float32 on disk. *trainable*: with what only training needs.
* *forward*, *step*: operations of matrix products, two to a multiply-add, as counted in the \
traced program. *× base*: to the base's own forward pass. A frozen layer is still passed through \
backwards: that is one forward pass more; freezing saves the gradients of the kernels, which is \
another.
* *its own*: operations of the step's products in the method's own modules; its longer sequence \
(prompt tuning) is in *step*.
* *state*: parameters, gradients and Adafactor's state, without activations.
"""
_COMPILED = """\
* *XLA*: operations that the compiler counts in the step, elementwise ones included (norms, \
softmax, dropout, optimizer), which explains what it has beyond the products; *moved*: bytes that \
its kernels read and write; *peak*: most memory held at one time, compiled for {device}.
"""
_MEMORY = """\
* *remat none, minimal, full*: most memory held at one time, parameters and optimizer included, in \
a step whose backward pass recomputes nothing, all but the products with weights, or everything in \
a layer (`Layers.remat`). Layers are scanned; compiled for {device}.
"""
_MEASURED = """\
* *step p50 / p95*, *b1, b8, b64*: milliseconds on {device}, of a training step of this shape \
and of a forward pass (encode one input, score one target) of 1, 8 and 64 rows: median / 95th \
percentile.
"""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One line of the card.

    Attributes:
      model: name of the architecture.
      config: the architecture.
      label: name of the method, with the settings that were changed.
      method: the method.
      asked: whether it was asked for by name. One that was not is left out, with the reason, where
        it does not take the shape.
    """

    model: str
    config: T5Config
    label: str
    method: Method
    asked: bool = True


def rows(
    candidates: Iterable[Candidate], shape: Shape, compiled: bool, memory: bool, measured: bool
) -> list[dict[str, Any]]:
    """Computes the card's rows as JSON values; prints each model and method as it starts.

    The row of one that is left out has only "model", "method" and "left_out", the reason.

    Args:
      candidates: models and methods.
      shape: the batch's shape.
      compiled: whether to compile the step for the present device.
      memory: whether to compile it once more for each of `REMATS`, for its peak memory.
      measured: whether to time the step and the forward pass with random weights.

    Raises:
      UserError: a size of the shape is below 1, or a method that was asked for does not take it.
    """
    for name, size in dataclasses.asdict(shape).items():
        least = 0 if name == "images" else 1
        if size < least:
            raise UserError(f"{name} is {size}; it must be at least {least}")
    table, candidates = [], list(candidates)
    for candidate in candidates:
        print(f"{candidate.model}, {candidate.label} …", file=sys.stderr, flush=True)
        try:
            table.append(_counts(candidate, shape))
        except UserError as error:
            if candidate.asked:
                raise
            names = {"model": candidate.model, "method": candidate.label}
            table.append({**names, "left_out": str(error)})
    if not _counted(table):
        raise UserError("; ".join(dict.fromkeys(one["left_out"] for one in table)))
    # Compiling takes minutes, which a method that does not take the shape must not cost.
    for candidate, row in zip(candidates, table, strict=True):
        if (compiled or memory or measured) and "left_out" not in row:
            what = f"compiling {candidate.model}, {candidate.label} …"
            print(what, file=sys.stderr, flush=True)
            row |= _programs(candidate, shape, compiled, memory, measured)
    return table


def _counted(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for one in rows if "left_out" not in one]


def _counts(candidate: Candidate, shape: Shape) -> dict[str, Any]:
    config, method = candidate.config, candidate.method
    counts = parameters(config, method)
    base = traced_flops(config, Method(), shape)
    traced = traced_flops(config, method, shape)
    return {
        "model": candidate.model,
        "method": candidate.label,
        "parameters": counts.total,
        "trainable": counts.trainable,
        "stored": counts.stored,
        "adapter_bytes": counts.adapter_bytes,
        "forward_flops": traced.forward,
        "step_flops": traced.train,
        "method_flops": traced.method,
        "step_to_base_forward": traced.train / base.forward,
        "state_bytes": programs.state_bytes(config, method),
    }


def _programs(
    candidate: Candidate, shape: Shape, compiled: bool, memory: bool, measured: bool
) -> dict[str, Any]:
    config, method, row = candidate.config, candidate.method, {}
    if compiled:
        program = programs.compile_step(config, method, shape)
        row |= {f"xla_{name}": value for name, value in dataclasses.asdict(program).items()}
    if memory:
        found = programs.peaks(config, method, shape)
        row |= {f"peak_bytes_remat_{remat}": peak for remat, peak in found.items()}
    if measured:
        row |= _named("step", programs.time_step(config, method, shape))
        for batch in LATENCY_BATCHES:
            rows = dataclasses.replace(shape, batch=batch)
            row |= _named(f"forward_b{batch}", programs.time_forward(config, method, rows))
    return row


def _named(name: str, latency: programs.Latency) -> dict[str, float]:
    return {f"{name}_{key}_s": value for key, value in dataclasses.asdict(latency).items()}


def write(
    rows: Sequence[Mapping[str, Any]], shape: Shape, config: T5Config, folder: pathlib.Path
) -> str:
    """Writes cost.md, cost.csv, cost.json and cost.png; returns the Markdown.

    Args:
      rows: the result of `rows`, all of the same shape.
      shape: the batch's shape.
      config: one of the architectures, for its dtype and dropout.
      folder: created if it does not exist; files of these names in it are replaced.
    """
    columns = list(dict.fromkeys(name for one in rows for name in one))
    files.write_text(folder / "cost.csv", tables.csv_text(columns, rows))
    sizes = {name: size for name, size in dataclasses.asdict(shape).items() if size}
    record = {"shape": sizes, "device": _device(), "rows": list(rows)}
    files.write_text(folder / "cost.json", json.dumps(record, indent=1) + "\n")
    text = markdown(rows, shape, config)
    files.write_text(folder / "cost.md", text)
    with files.replaced_file(folder / "cost.png") as file:
        plot(rows, file)
    return text


def _device() -> str:
    device = jax.devices()[0]
    return f"{jax.device_count()} × {device.device_kind} ({device.platform})"


def markdown(rows: Sequence[Mapping[str, Any]], shape: Shape, config: T5Config) -> str:
    """Returns the card as a table, with notes that explain the columns."""
    compiled = any("xla_flops" in one for one in rows)
    memory = any("peak_bytes_remat_none" in one for one in rows)
    measured = any("step_p50_s" in one for one in rows)
    table = [_cells(one, compiled, memory, measured) for one in _counted(rows)]
    text = tables.markdown(list(table[0]), (list(cells.values()) for cells in table), 2)
    facts = {
        "shape": f"{shape.batch} rows of {shape.tokens} tokens",
        "dtype": str(config.dtype),
        "dropout_rate": config.dropout_rate,
        "device": _device(),
    }
    notes = _NOTES + _COMPILED * compiled + _MEMORY * memory + _MEASURED * measured
    text = "# What each method costs\n\n" + text + "\n\n" + notes.format(**facts)
    for one in rows:
        if "left_out" in one:
            text += f"* Left out: {one['method']} on {one['model']}: {one['left_out']}.\n"
    return text


def _cells(one: Mapping[str, Any], compiled: bool, memory: bool, measured: bool) -> dict[str, str]:
    cells = {
        "model": one["model"],
        "method": one["method"],
        "parameters": f"{one['parameters']:,}",
        "trainable": f"{one['trainable']:,}",
        "stored": f"{one['stored']:,}",
        "bytes": tables.in_bytes(one["adapter_bytes"]),
        "forward": tables.in_thousands(one["forward_flops"]),
        "step": tables.in_thousands(one["step_flops"]),
        "× base": f"{one['step_to_base_forward']:.2f}",
        "its own": tables.in_thousands(one["method_flops"]),
        "state": tables.in_bytes(one["state_bytes"]),
    }
    if compiled:
        there = "xla_flops" in one
        cells["XLA"] = tables.in_thousands(one["xla_flops"]) if there else ""
        cells["moved"] = tables.in_bytes(one["xla_bytes_accessed"]) if there else ""
        cells["peak"] = tables.in_bytes(one["xla_peak_bytes"]) if there else ""
    for remat in REMATS if memory else ():
        peak = one.get(f"peak_bytes_remat_{remat}")
        cells[f"remat {remat}"] = "" if peak is None else tables.in_bytes(peak)
    if measured:
        names = {"step p50 / p95": "step"} | {f"b{b}": f"forward_b{b}" for b in LATENCY_BATCHES}
        for title, name in names.items():
            times: list[Any] = [one.get(f"{name}_{quantile}_s") for quantile in ("p50", "p95")]
            cells[title] = "" if None in times else " / ".join(f"{1e3 * t:.3g}" for t in times)
    return cells


def plot(rows: Iterable[Mapping[str, Any]], file: BinaryIO) -> None:
    """Draws stored parameters and the cost of a step, one panel each; colors are methods."""
    from matplotlib import figure

    rows = _counted(rows)
    models = list(dict.fromkeys(one["model"] for one in rows))
    methods = list(dict.fromkeys(one["method"] for one in rows))
    canvas = figure.Figure(figsize=(10, 4), layout="constrained")
    panels = canvas.subplots(1, 2)
    titles = ("stored (bytes, float32)", "step / forward pass of the base (operations)")
    for axes, key, title in zip(
        panels, ("adapter_bytes", "step_to_base_forward"), titles, strict=True
    ):
        for i, method in enumerate(methods):
            by_model = {one["model"]: one[key] for one in rows if one["method"] == method}
            places = [models.index(model) + i * 0.8 / len(methods) - 0.4 for model in by_model]
            width = 0.8 / len(methods)
            axes.bar(places, by_model.values(), width=width, align="edge", label=method)
        axes.set_xticks(range(len(models)), models, rotation=30, ha="right")
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yscale("log")
    names = panels[0].get_legend_handles_labels()
    canvas.legend(*names, loc="outside lower center", ncols=len(methods), fontsize=8)
    canvas.savefig(file, dpi=150)
