"""Peak memory of a process that trains, compared with transformers' and peft's.

Three steps at FLAN-T5 small's shape (random weights, dropout, Adafactor, a batch without padding),
each in its own process. Measured is the process's peak memory as counted by the system
(ru_maxrss), with its libraries in it:

* each of the paper's methods on a base that is read from its folder, by the compiled step of
  `adalink_jax.runs.train`;
* transformers (full fine-tuning) and peft (LoRA on the encoder, prompt tuning), if installed;
* the libraries alone, of both.

How to read it: "× ours" is another implementation's process to the same method's here. On devices
the memory is XLA's: `adalink cost` and `benchmarks/gpu.py` have it.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from benchmarks import matrix_products, other_frameworks, shapes, timing, train_step  # noqa: E402

_BASE = """
import sys
import jax
from flax import traverse_util
from adalink_jax.checkpoints import StoredBase, save_base
from adalink_jax.models import parameters
from benchmarks import shapes
folder, shape = sys.argv[1:]
config = getattr(shapes, shape)(0.1)
base = jax.device_get(parameters.init_base(config, jax.random.key(0)))
arrays = traverse_util.flatten_dict(base, sep="/")
save_base(folder, StoredBase(config, "random", arrays), "native")
"""
_OURS = """
import sys
import numpy as np
from adalink_jax import compile_cache
from adalink_jax.checkpoints import open_base
from benchmarks import shapes, train_step
file, name, folder, shape, prompt = sys.argv[1:]
config, mesh = getattr(shapes, shape)(0.1), train_step.make_mesh()
with compile_cache.kept(), train_step.on_mesh(mesh):
    batch = train_step.place_batch(dict(np.load(file)), mesh)
    method = train_step.methods(int(prompt))[name]
    step = train_step.method_step(config, method, open_base(folder).load(), batch, mesh)
    for _ in range(3):
        step()
"""
_THEIRS = """
import json, sys, types
import numpy as np
from benchmarks import other_frameworks
file, name, config, rank, prompt = sys.argv[1:]
config = types.SimpleNamespace(**json.loads(config))
network = other_frameworks.transformers_network(name, config, int(rank), int(prompt))
if network is None:
    sys.exit(3)
step = other_frameworks.torch_step(network, np.load(file))
for _ in range(3):
    step()
"""
_LIBRARIES = {
    "libraries": "import jax, benchmarks.train_step",
    "their libraries": "import torch, transformers, peft",
}
_SKIPPED = 3


def peak(code: str, *arguments: str) -> float | None:
    """Returns the peak memory of code in a new interpreter, in MiB; None if it skips itself.

    The system counts this process's own memory, too, as the child begins as its copy. So nothing
    large is made here.
    """
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", code, *arguments]
    child = subprocess.Popen(command, cwd=ROOT, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode == _SKIPPED:
        return None
    if child.returncode:
        raise SystemExit(f"{code}\nfailed with {arguments}")
    return usage.ru_maxrss / 1024  # Linux counts KiB.


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = timing.parser(__doc__, rounds=1)
    flags.add_argument("--inputs", type=int, default=64, help="input tokens of a row; default 64")
    options = flags.parse_args(arguments)
    load = os.getloadavg()
    shape = "toy" if options.small else "flan_t5_small"
    config = getattr(shapes, shape)(0.1)
    sizes = matrix_products.Shape(16, options.inputs, 4)
    if options.small:
        sizes = matrix_products.Shape(2, 8, 2)
    prompt = 4 if options.small else train_step.PROMPT_LENGTH
    fields = json.dumps({**dataclasses.asdict(config), "dtype": "float32"})
    peaks: dict[str, float] = {"libraries": peak(_LIBRARIES["libraries"]) or 0.0}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/batch.npz"
        np.savez(file, **train_step.make_batch(config.vocab_size, sizes))
        peak(_BASE, f"{folder}/base", shape)
        for name in train_step.methods(prompt):
            peaks[name] = peak(_OURS, file, name, f"{folder}/base", shape, str(prompt)) or 0.0
        theirs = [str(train_step.RANK), str(prompt)]
        for name in other_frameworks.NETWORKS:
            if (measured := peak(_THEIRS, file, name, fields, *theirs)) is not None:
                peaks[name] = measured
    if "peft, lora" in peaks:
        peaks["their libraries"] = peak(_LIBRARIES["their libraries"]) or 0.0
    rows = [
        {
            "trained": name,
            "peak MiB": mebibytes,
            "× ours": mebibytes / peaks[method] if (method := name.split(", ")[-1]) in peaks else 0,
        }
        for name, mebibytes in peaks.items()
    ]
    settings = {"shape": dataclasses.asdict(sizes), "model": shape, "prompt_length": prompt}
    timing.report("step_memory", rows, settings, ({}, {}), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
