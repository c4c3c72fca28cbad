"""Training steps of T5 1.1 on one GPU: tokens per second, MFU and memory, beside peft.

A job of a few minutes for a machine with one NVIDIA H100 (80 GB), with this package's maths (jax,
flax, optax, orbax), and torch, transformers and peft for the comparison; no TensorFlow, SeqIO, gin,
checkpoints or network. Each part (`PARTS`, in order of value) runs in a process of its own, for at
most 75 s; after each, FOLDER/gpu.json is written anew, so a job that is cut keeps what it has. A
part that fails records its error. Parts that FOLDER/gpu.json has are not measured again.

python benchmarks/gpu.py --out FOLDER                   # measures, and prints tables
python benchmarks/gpu.py --out FOLDER --parts xl_lora   # measures only these
python benchmarks/gpu.py --out FOLDER --plan            # adds the plan's memory; needs libtpu
python benchmarks/gpu.py --table FOLDER/gpu.json        # prints tables

How to read it: a batch has no padding. Tokens are those of inputs and targets, without a prompt's.
MFU is the FLOPs of the products that the method's gradients need (traced without rematerialisation)
over the median step, by the card's data sheet; "of ceiling" is the same by the largest product
measured on this card. Memory is what the allocator held at most, what XLA said, and what
`adalink plan` says for a TPU v5p of 96 GB, whose compiler is another.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from adalink_jax.errors import UserError  # noqa: E402
from adalink_jax.training.flops import peak_flops  # noqa: E402

# What a part may take, and all of them together.
PART_SECONDS, MINUTES = 75.0, 6.0
# A part that has less than this left is not started.
LEAST_SECONDS = 25.0
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
    """A measurement in a process of its own.

    Attributes:
      name: its key in the JSON.
      kind: the function of `benchmarks.gpu_parts` that measures it.
      settings: that function's settings.
      flags: more of XLA's flags.
      like: parts; it takes the attention of the faster of those that were measured.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    flags: str = ""
    like: tuple[str, ...] = ()


XL = {"model": "xl", "batch": 32, "inputs": 512, "targets": 64}
LARGE = {**XL, "model": "large", "batch": 64}
XXL = {**XL, "model": "xxl", "batch": 16}
ADALINK = {**XL, "method": "adalink", "remat": "minimal"}
WAYS = ("xl_adalink", "xl_adalink_cudnn")


def _step(name: str, sizes: Mapping[str, Any], method: str, flags: str = "", **more: Any) -> Part:
    """Returns a step with the faster attention of `WAYS`."""
    settings = {**sizes, "method": method, "attention": "xla", "remat": "minimal", **more}
    return Part(name, "step", settings, flags, WAYS)


PARTS = (
    Part(
        "ceilings",
        "ceilings",
        {
            "products": [[8192] * 3, [16384, 2048, 2048], [16384, 2048, 5120], [16384, 5120, 2048]],
            "copied": 2**30,
            "calls": 10,
        },
    ),
    Part("xl_adalink", "step", {**ADALINK, "attention": "xla"}),
    Part("xl_adalink_cudnn", "step", {**ADALINK, "attention": "cudnn"}),
    Part("attention", "attention", {"batch": 32, "heads": 32, "length": 512, "width": 64}),
    _step("xl_lora", XL, "lora"),
    Part("xl_peft_lora", "peft", {**XL, "variants": [[32, True], [16, False], [32, False]]}),
    _step("xl_adalink_batch_64", {**XL, "batch": 64}, "adalink"),
    _step("xxl_adalink", XXL, "adalink"),
    _step("xxl_adalink_int8", XXL, "adalink", frozen_dtype="int8"),
    Part(
        "mixed",
        "mixed",
        {
            **{"model": "large", "batch": 1024, "inputs": 128, "rounds": 10},
            "adapters": [1, 16, 128, 1024],
        },
    ),
    _step("xl_prompt", XL, "prompt_tuning"),
    _step("large_adalink", LARGE, "adalink"),
    _step("large_full", {**LARGE, "batch": 32}, "full"),
    _step("xl_full", {**XL, "batch": 16}, "full"),
    _step("xl_adalink_kept", {**XL, "batch": 16}, "adalink", remat="none"),
    _step("xl_adalink_cublas", XL, "adalink", "--xla_gpu_enable_triton_gemm=false"),
    _step("large_lora", LARGE, "lora"),
    _step("large_prompt", LARGE, "prompt_tuning"),
    _step("xl_adalink_unscanned", XL, "adalink", scan_layers=False),
    _step("xl_adalink_rbg", XL, "adalink", rng="rbg"),
    _step("xxl_lora", XXL, "lora"),
)


def tiny(part: Part) -> Part:
    """Returns a part at toy size, for any device."""
    sizes = {"batch": 2, "inputs": 8, "targets": 4, "model": "toy"}
    smaller = {
        **{name: sizes[name] for name in sizes if name in part.settings},
        **{"heads": 2, "length": 8, "width": 8, "copied": 1024, "calls": 2, "rounds": 2},
        "products": [[32, 16, 8]],
        "variants": [[2, True], [2, False]],
        "adapters": [1, 3],
    }
    changes = {name: smaller[name] for name in smaller if name in part.settings}
    return dataclasses.replace(part, settings={**part.settings, **changes})


class Process:
    """The process of a part, which imports and then waits for `run`."""

    def __init__(self, part: Part, folder: pathlib.Path, log: Any):
        """Starts it; what it prints goes to the log."""
        self.part, self._found = part, folder / f"{part.name}.json"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {part.flags}".strip()
        environment = {
            **os.environ,
            "XLA_FLAGS": flags,
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
            # What XLA has found about kernels is found once for all parts.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9",
        }
        if not flags:
            del environment["XLA_FLAGS"]
        command = [sys.executable, str(ROOT / "benchmarks/gpu_parts.py"), part.kind]
        self._process = subprocess.Popen(
            [*command, str(self._found)],
            **{"stdin": subprocess.PIPE, "stdout": log, "stderr": log},
            **{"text": True, "cwd": ROOT, "env": environment},
        )

    def run(self, settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the settings, and what was found until the end or for so many seconds."""
        start, late = time.perf_counter(), None
        try:
            self._process.communicate(json.dumps(settings) + "\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            late = {"error": f"stopped after {seconds:.0f} s"}
        except BrokenPipeError:  # It ended before it read its settings.
            self._process.wait()
        self.stop()
        wall = {"wall_seconds": time.perf_counter() - start}
        found = json.loads(self._found.read_text()) if self._found.exists() else {}
        if self._process.returncode and not late and "error" not in found:
            late = {"error": f"its process ended with code {self._process.returncode}"}
        return {"settings": dict(settings), "flags": self.part.flags} | wall | found | (late or {})

    def stop(self) -> None:
        """Ends the process, if it has not ended."""
        self._process.kill()
        self._process.wait()


def measure(parts: Sequence[Part], out: pathlib.Path, minutes: float) -> dict[str, Any]:
    """Measures parts one after another; writes the JSON after each."""
    file, ends = out / "gpu.json", time.perf_counter() + 60 * minutes
    result = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    result["versions"] = _versions()
    parts = [part for part in parts if "error" in result["parts"].get(part.name, {"error": ""})]
    with (
        (out / "gpu.log").open("a", encoding="utf-8") as log,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        working = pathlib.Path(folder)
        waiting = [Process(part, working, log) for part in parts[:1]]
        for number, part in enumerate(parts):
            left = ends - time.perf_counter()
            if left < LEAST_SECONDS:
                print(f"{part.name} and what follows: no time is left", flush=True)
                break
            # The next part imports its libraries while this one is measured.
            waiting += [Process(each, working, log) for each in parts[number + 1 : number + 2]]
            settings = {**part.settings, **_faster(part, result["parts"])}
            found = waiting.pop(0).run(settings, min(PART_SECONDS, left))
            result["parts"][part.name] = found
            write(file, result)
            print(f"{part.name}: {_told(found)}", flush=True)
        for process in waiting:
            process.stop()
    return result


def _faster(part: Part, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attention of the fastest of the parts it is like; nothing if none was timed."""
    seconds = {
        name: statistics.median(measured[name]["seconds"])
        for name in part.like
        if measured.get(name, {}).get("seconds")
    }
    if not seconds:
        return {}
    fastest = min(seconds, key=lambda name: seconds[name])
    return {"attention": measured[fastest]["settings"]["attention"]}


def _told(found: Mapping[str, Any]) -> str:
    words = [f"{found['wall_seconds']:.0f} s"]
    if "compile_seconds" in found:
        words.append(f"compiled in {found['compile_seconds']:.0f} s")
    if found.get("seconds"):
        words.append(f"{1e3 * statistics.median(found['seconds']):.1f} ms a step")
    if "error" in found:
        words.append(found["error"])
    return ", ".join(words)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "flax", "optax", "qwix", "torch", "transformers", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(file: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes the JSON whole."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    new.replace(file)


def plan(file: pathlib.Path) -> None:
    """Adds what `adalink plan` says of each measured step's memory on a TPU v5p; needs libtpu."""
    import jax.numpy as jnp

    from adalink_jax.distributed.sharding import Layout
    from adalink_jax.methods import METHODS
    from adalink_jax.tools.cost.counts import Shape
    from adalink_jax.tools.planning import compiling, topologies
    from benchmarks import gpu_parts

    result = json.loads(file.read_text())
    topology = topologies.find("v5p:1x1x1")
    for name, found in _steps(result):
        settings = found["settings"]
        config = gpu_parts.architecture({**settings, "attention": "xla"})
        method = METHODS[settings["method"]](**gpu_parts.METHODS[settings["method"]])
        shape = Shape(settings["batch"], settings["inputs"], settings["targets"])
        stored = str(jnp.dtype(settings.get("frozen_dtype", "bfloat16")))
        case = compiling.Case(
            *(settings["model"], config, settings["method"], method, topology, Layout(), shape),
            frozen_dtype=stored,
        )
        program = compiling.Prepared(case, topology.devices()).compile("O1")
        found["plan"] = {"peak_bytes": program.peak_bytes, "fits": program.fits}
        write(file, result)
        print(f"{name}: {program.peak_bytes / GIB:.1f} GiB", flush=True)


def _steps(result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the parts that are steps and were compiled."""
    for name, found in result["parts"].items():
        if "xla" in found:
            yield name, found


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields lines of Markdown: a table of steps, one each of peft and adapters, and ceilings."""
    parts = result["parts"]
    ceilings = parts.get("ceilings", {})
    products = ceilings.get("products", {})
    ceiling = max(products.values(), default=None)
    device = next((found["device"] for found in parts.values() if "device" in found), "unknown")
    peak = peak_flops(device)
    yield f"device: {device}"
    yield ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    if products:
        words = [f"{size} {rate / 1e12:.0f} TFLOP/s" for size, rate in products.items()]
        yield f"products of bfloat16 matrices: {'; '.join(words)}"
    if "bytes_per_second" in ceilings:
        yield f"copy: {ceilings['bytes_per_second'] / 1e12:.2f} TB/s"
    yield from _markdown([_step_row(name, found, peak, ceiling) for name, found in _steps(result)])
    peft = parts.get("xl_peft_lora", {})
    flops = _flops_per_row(parts.get("xl_lora", {}))
    variants = [{**found, "variant": name} for name, found in _of(peft, "variants")]
    yield from _markdown([_peft_row(peft["settings"], f, flops, peak) for f in variants])
    yield from _markdown([_way_row(n, f) for n, f in _of(parts.get("attention", {}), "ways")])
    yield from _markdown(_mixed_rows(parts.get("mixed", {})))
    for name, found in parts.items():
        if "error" in found:
            yield f"* {name}: {found['error']}"


def _of(found: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    return list(found.get(key, {}).items())


def _step_row(
    name: str, found: Mapping[str, Any], peak: float | None, ceiling: float | None
) -> dict[str, str]:
    settings = found["settings"]
    row = {
        "step": name,
        "batch": f"{settings['batch']} x {settings['inputs']} + {settings['targets']}",
        "attention, remat": f"{settings['attention']}, {settings['remat']}",
        **{"ms": "", "tokens/s": "", "MFU": "", "of ceiling": "", "peak GiB": ""},
    }
    if found.get("seconds"):
        seconds = statistics.median(found["seconds"])
        tokens = settings["batch"] * (settings["inputs"] + settings["targets"])
        row |= {"ms": f"{1e3 * seconds:.4g}", "tokens/s": f"{tokens / seconds:,.0f}"}
        for key, rate in (("MFU", peak), ("of ceiling", ceiling)):
            row[key] = f"{found['flops'] / seconds / rate:.1%}" if rate else ""
    row["peak GiB"] = _gib(found.get("peak_bytes"))
    row["XLA's"] = _gib(_xla_peak(found["xla"]))
    planned = found.get("plan", {})
    row["plan's"] = _gib(planned.get("peak_bytes")) + " (does not fit)" * (
        planned.get("fits") is False
    )
    row["compile s"] = f"{found['compile_seconds']:.0f}"
    return row


def _xla_peak(xla: Mapping[str, int]) -> int:
    """Returns what a program holds at most: arguments, results that are no arguments, the rest."""
    return xla["argument_size"] + xla["output_size"] - xla["alias_size"] + xla["temp_size"]


def _gib(count: float | None) -> str:
    return "" if count is None else f"{count / GIB:.1f}"


def _flops_per_row(found: Mapping[str, Any]) -> float | None:
    """Returns the FLOPs of a row of a step's batch: peft's LoRA needs those of ours."""
    return found["flops"] / found["settings"]["batch"] if "flops" in found else None


def _peft_row(
    settings: Mapping[str, Any], found: Mapping[str, Any], flops: float | None, peak: float | None
) -> dict[str, str]:
    row = {"peft, LoRA": found["variant"], "ms": "", "tokens/s": "", "MFU": ""}
    if found.get("seconds"):
        seconds = statistics.median(found["seconds"])
        tokens = found["batch"] * (settings["inputs"] + settings["targets"])
        row |= {"ms": f"{1e3 * seconds:.4g}", "tokens/s": f"{tokens / seconds:,.0f}"}
        if flops and peak:
            row["MFU"] = f"{found['batch'] * flops / seconds / peak:.1%}"
    return row | {"peak GiB": _gib(found.get("peak_bytes")), "error": found.get("error", "")}


def _way_row(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    seconds = found.get("seconds")
    return {
        "attention": name,
        "ms": f"{1e3 * statistics.median(seconds):.4g}" if seconds else "",
        "largest error": f"{max(found['errors']):.1e}" if "errors" in found else "",
        "error": found.get("error", ""),
    }


def _mixed_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    calls = found.get("calls", {})
    rows = []
    for name, seconds in calls.items():
        median = statistics.median(seconds)
        pairs = zip(seconds, calls["K=1"], strict=True)
        rows.append(
            {
                "adapters": name,
                "ms": f"{1e3 * median:.4g}",
                "rows/s": f"{found['settings']['batch'] / median:,.0f}",
                "x K=1": f"{statistics.median(a / b for a, b in pairs):.3f}",
            }
        )
    return rows


def _markdown(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yields a table of rows with equal keys; nothing of no rows."""
    if not rows:
        return
    columns = list(rows[0])
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join(' --- ' if i == 0 else ' ---: ' for i in range(len(columns)))}|"
    yield from (f"| {' | '.join(row.values())} |" for row in rows)
    yield ""


def main(arguments: Sequence[str]) -> int:
    """Measures, plans or prints; returns 1 if a part failed."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--out", type=pathlib.Path, help="the folder of gpu.json and gpu.log")
    flags.add_argument("--parts", help="names, with commas; all by default")
    flags.add_argument("--tiny", action="store_true", help="toy sizes, for any device")
    flags.add_argument("--minutes", type=float, default=MINUTES, help=f"default {MINUTES:.0f}")
    flags.add_argument("--plan", action="store_true", help="add the plan's memory to gpu.json")
    flags.add_argument("--table", type=pathlib.Path, help="print the tables of this JSON")
    options = flags.parse_args(arguments)
    if (options.out is None) == (options.table is None):
        flags.error("either --out or --table")
    if options.table:
        print("\n".join(table(json.loads(options.table.read_text()))))
        return 0
    if options.plan:
        try:
            plan(options.out / "gpu.json")
        except UserError as error:
            flags.error(str(error))
        return 0
    names = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        flags.error(f"no part is called {', '.join(sorted(unknown))}")
    parts = [tiny(part) if options.tiny else part for part in PARTS if part.name in names]
    options.out.mkdir(parents=True, exist_ok=True)
    result = measure(parts, options.out, options.minutes)
    print("\n".join(table(result)))
    return int(any("error" in result["parts"].get(part.name, {}) for part in parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
