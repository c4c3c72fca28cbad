"""Rank classification that encodes once, compared with one forward pass per label.

Measured at FLAN-T5 small's shape with an AdaLink of rank 4 (random weights, float32, 64 examples
of 64 tokens without padding):

* encode once: `adalink_jax.models.decoding.score_options`, which evaluation uses;
* per label: the whole network once for every label, as when scoring each (input, label) pair.

Tasks have 2 labels of 2 tokens (SST-2) or 26 labels of 4 tokens (STS-B's values). Both ways must
give the same log-likelihoods, which is checked first.

How to read it: "× encode once" is how many times longer it takes to score every pair (the median
of ratios within a round). It should grow with the number of labels, because the encoder runs only
once for all of them.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.methods import METHODS  # noqa: E402
from adalink_jax.methods.base import merge  # noqa: E402
from adalink_jax.models import parameters  # noqa: E402
from adalink_jax.models.decoding import score_options  # noqa: E402
from adalink_jax.models.t5 import Transformer  # noqa: E402
from benchmarks import shapes, timing  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Examples per batch, input tokens, and (name, labels, tokens per label) of each task."""

    batch: int = 64
    inputs: int = 64
    tasks: tuple[tuple[str, int, int], ...] = (("2 labels", 2, 2), ("26 labels", 26, 4))


@jax.jit(static_argnums=0)
def score_pairs(model: Transformer, params: Any, tokens: jax.Array, option: jax.Array):
    """Returns the log-likelihoods [B] of one label, from a run of the whole network."""
    targets = jnp.broadcast_to(option, (tokens.shape[0], option.shape[0]))
    inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = model.apply({"params": params}, tokens, inputs, targets, enable_dropout=False)
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(chosen, axis=-1, where=targets > 0)


def candidates(config, sizes: Sizes) -> dict[str, Callable[[], Any]]:
    """Returns both ways of scoring, for every task."""
    method = METHODS["adalink"](rank=4)
    base = parameters.init_base(config, jax.random.key(0))
    adapter = parameters.init_adapter(config, method, base, jax.random.key(1))
    model, params = Transformer(config, method), merge(base, adapter)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(3, config.vocab_size, (sizes.batch, sizes.inputs)), jnp.int32)
    steps = {}
    for task, count, length in sizes.tasks:
        options = rng.integers(3, config.vocab_size, (count, length)).astype(np.int32)
        options[:, -1] = 1  # EOS

        def once(options=options):
            return jax.block_until_ready(score_options(model, params, tokens, options))

        def per_label(options=options):
            scores = [score_pairs(model, params, tokens, option) for option in options]
            return jax.block_until_ready(jnp.stack(scores, axis=1))

        np.testing.assert_allclose(once(), per_label(), rtol=1e-4)
        steps[f"{task}, encode once"], steps[f"{task}, per label"] = once, per_label
    return steps


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=10).parse_args(arguments)
    config = shapes.toy(0.0) if options.small else shapes.flan_t5_small(0.0)
    sizes = Sizes(4, 8, (("2 labels", 2, 2), ("5 labels", 5, 3))) if options.small else Sizes()
    load = os.getloadavg()
    wall, cpu = timing.interleaved(candidates(config, sizes), options.rounds, warm_ups=1)
    rows = []
    for name in wall:
        once = f"{name.split(', ')[0]}, encode once"
        seconds = statistics.median(wall[name])
        rows.append(
            {
                "scoring": name,
                "seconds": seconds,
                "CPU seconds": statistics.median(cpu[name]),
                "examples/s": sizes.batch / seconds,
                "× encode once": timing.ratio(wall, name, once),
                "× encode once, CPU": timing.ratio(cpu, name, once),
            }
        )
    settings = {**dataclasses.asdict(sizes), "rounds": options.rounds}
    timing.report("evaluation", rows, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
