"""How long a save stops a training, and how long it takes until it is on disk.

What `adalink train` saves (random weights of FLAN-T5 small's shape, with Adafactor's state), of
AdaLink of rank 4 and of all weights, into a temporary folder, with its checksums:

* stops: until training can go on, as the arrays are copied;
* whole: until it is on disk.

How to read it: "of whole" is what a save that is not waited for leaves of its time. The threads
that write also need the cores, which on a CPU slows the steps beside them.
"""

import contextlib
import functools
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.checkpoints.training_state import Store  # noqa: E402
from adalink_jax.methods.base import Method  # noqa: E402
from adalink_jax.models import parameters  # noqa: E402
from adalink_jax.training import optimizers  # noqa: E402
from adalink_jax.training import state as states  # noqa: E402
from benchmarks import shapes, timing, train_step  # noqa: E402


class Saves:
    """Saves of one state, one after another."""

    def __init__(self, folder: str, state: states.TrainState):
        """Opens the folder.

        Args:
          folder: a new one.
          state: what is saved.
        """
        self._store, self._tree, self._step = Store(folder), state.saved(), 0
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._tree))

    def timed(self, whole: bool) -> timing.Seconds:
        """Saves while no other save is written.

        Args:
          whole: whether to count the time until it is on disk.
        """
        self._step += 1
        wall, cpu = time.perf_counter(), time.process_time()
        self._store.save(self._step, self._tree)
        stops = timing.Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        self._store.wait()
        written = timing.Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        return written if whole else stops

    def close(self) -> None:
        """Closes the folder."""
        self._store.close()


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=9).parse_args(arguments)
    load, model = os.getloadavg(), "toy" if options.small else "flan_t5_small"
    config, mesh = getattr(shapes, model)(0.0), train_step.make_mesh()
    base = parameters.init_base(config, jax.random.key(0))
    base = states.place_params(config, Method(), base, mesh)
    candidates, sizes = {}, {}
    with contextlib.ExitStack() as open_:
        for name in ("adalink", "full"):
            method = train_step.methods(1)[name]
            adapter = parameters.init_adapter(config, method, base, jax.random.key(1))
            full = method.trains_base
            rule = optimizers.adafactor(
                optimizers.factors(), multiply_by_parameter_scale=full, factored=full
            )
            rule = optimizers.per_module(rule, method)
            state = states.create(config, method, base, adapter, rule, mesh)
            folder = open_.enter_context(tempfile.TemporaryDirectory())
            saves = open_.enter_context(contextlib.closing(Saves(folder, state)))
            sizes[name] = saves.bytes
            candidates[f"{name}, stops"] = functools.partial(saves.timed, whole=False)
            candidates[f"{name}, whole"] = functools.partial(saves.timed, whole=True)
        wall, cpu = timing.interleaved(candidates, options.rounds)
    rows = [
        {
            "saved": name,
            "MB": sizes[name] / 1e6,
            "stops, s": statistics.median(wall[f"{name}, stops"]),
            "whole, s": statistics.median(wall[f"{name}, whole"]),
            "of whole": timing.ratio(wall, f"{name}, stops", f"{name}, whole"),
        }
        for name in sizes
    ]
    timing.report("saving", rows, {"model": model}, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
