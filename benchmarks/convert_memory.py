"""Peak memory of converting a base of 247,577,856 parameters (T5 1.1 base, 945 MiB as float32).

Each part runs in its own process. Measured are its seconds and its peak memory as counted by the
system (ru_maxrss):

* writing each format from another, one array at a time: the conversion itself;
* the check that `adalink convert` makes after it: the copy's logits with adalink_jax, then with
  transformers if it is installed. These hold the whole model in memory.

How to read it: "peak MiB" of a conversion should stay below 1,500. It is hardly more than that of
the libraries (the row "libraries") plus twice the largest array (94 MiB; safetensors and zarr are
read and written in slices no larger than that).
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from adalink_jax.adapters.probe import has_transformers  # noqa: E402
from adalink_jax.checkpoints import StoredBase, save_base  # noqa: E402
from adalink_jax.checkpoints.architecture import expected_shapes  # noqa: E402
from benchmarks import shapes, timing  # noqa: E402

_LIBRARIES = "import adalink_jax.checkpoints, tensorstore"
_CONVERT = """
import sys
from adalink_jax.checkpoints import open_base, save_base
save_base(sys.argv[2], open_base(sys.argv[1]), sys.argv[3])
"""
_VERIFY = "import sys; from adalink_jax.adapters import probe; probe.{}(sys.argv[1])"
# Source and format of each conversion; this process writes the first base.
_STEPS = (("native", "t5x"), ("t5x", "huggingface"), ("huggingface", "t5x"), ("t5x", "native"))


class _Random:
    """An array of random numbers that is generated when it is read, so none is kept in memory."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __getitem__(self, index) -> np.ndarray:
        generator = np.random.default_rng(len(self.shape))
        return generator.standard_normal(self.shape, np.float32)[index] * 0.05


def measured(what: str, code: str, *arguments: str) -> dict[str, str | float]:
    """Runs code in a new interpreter; returns its row of the table."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{what} failed")
    peak = usage.ru_maxrss / 1024  # Linux counts KiB.
    return {"process": what, "peak MiB": peak, "seconds": time.perf_counter() - start}


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=1).parse_args(arguments)
    load = os.getloadavg()
    config = shapes.toy(0.0) if options.small else shapes.t5_1_1("base", 0.0)
    arrays = {name: _Random(shape) for name, shape in expected_shapes(config).items()}
    rows = [measured("libraries", _LIBRARIES)]
    with tempfile.TemporaryDirectory() as folder:
        places = {"native": f"{folder}/source"}
        save_base(places["native"], StoredBase(config, "random", arrays), "native")
        for number, (source, target) in enumerate(_STEPS):
            place = f"{folder}/{number}"
            rows.append(measured(f"{source} → {target}", _CONVERT, places[source], place, target))
            places[target] = place
        rows.append(measured("check: adalink_jax", _VERIFY.format("base_logits"), places["t5x"]))
        if has_transformers():
            code = _VERIFY.format("transformers_logits")
            rows.append(measured("check: transformers", code, places["huggingface"]))
        else:
            print("transformers skipped: it is not installed")
    count = sum(int(np.prod(array.shape)) for array in arrays.values())
    timing.report("convert_memory", rows, {"parameters": count}, ({}, {}), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
