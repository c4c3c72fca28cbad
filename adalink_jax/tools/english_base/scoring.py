"""How good a base is, by training sets of GLUE alone: a look at its outputs, and fine-tuning."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.english_base import training

_EVAL = 256  # Rows scored at once.
_HELD_OUT = 2000  # Rows of a training set that score at most; a tenth of it if that is less.
_STEPS = 50  # Steps of one program.
_ROWS = 32
# Steps of fine-tuning, and in which order: those first that say most.
_LENGTHS = {"sst2": 4000, "mrpc": 800, "stsb": 1200, "rte": 600, "cola": 1200, "qnli": 1500,
            "mnli": 1500, "qqp": 2400}  # fmt: skip
_RATE = 4e-4


class Scorer:
    """Scores bases of one architecture, compiling once.

    Args:
      config: the architecture.
      tasks: see `examples.glue`.
    """

    def __init__(self, config: T5Config, tasks: Mapping[str, Mapping[str, Any]]):
        self._tasks = tasks
        model = Transformer(config)

        @jax.jit
        def pooled(params, inputs):
            inputs = inputs.astype(jnp.int32)
            encoded = model.apply(
                {"params": params}, inputs, enable_dropout=False, method="encode"
            ).astype(jnp.float32)
            seen = (inputs > 1).astype(jnp.float32)[..., None]
            return (encoded * seen).sum(1) / jnp.maximum(seen.sum(1), 1)

        @jax.jit
        def first(params, inputs):
            inputs = inputs.astype(jnp.int32)
            start = jnp.zeros((len(inputs), 1), jnp.int32)
            return model.apply({"params": params}, inputs, start, start + 1, enable_dropout=False)[
                :, 0
            ]

        def loss(params, one, shared):
            del shared
            key = jax.random.key(one["key"])
            return training.instruction_loss({"model": params}, config, one, key, dropout=True)

        self._pooled, self._first, self._steps = pooled, first, training.steps(loss)

    def look(self, params: Any) -> dict[str, float]:
        """Scores a base without training it: SST-2 by a linear map, STS-B by angles."""
        sst2, stsb = self._tasks["sst2"], self._tasks["stsb"]
        rows = slice(0, 3 * _HELD_OUT)
        outputs = _batched(functools.partial(self._pooled, params), sst2["inputs"][rows])
        outputs = np.c_[outputs / outputs.std(0), np.ones(len(outputs))]
        wanted = sst2["labels"][rows] * 2 - 1
        seen = np.arange(len(outputs)) % 3 > 0
        gram = outputs[seen].T @ outputs[seen] + 10 * np.eye(outputs.shape[1])
        map_ = np.linalg.solve(gram, outputs[seen].T @ wanted[seen])
        right = (outputs[~seen] @ map_ > 0) == (wanted[~seen] > 0)
        both = [
            _batched(functools.partial(self._pooled, params), stsb[n]) for n in ("first", "second")
        ]
        one, two = (some - np.mean(both, (0, 1)) for some in both)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        likeness = (one * two).sum(1) / np.maximum(norms, 1e-9)
        return {
            "sst2_linear": float(right.mean() * 100),
            "stsb_angle": float(np.corrcoef(likeness, stsb["labels"])[0, 1] * 100),
        }

    def unchanged(self, params: Any) -> dict[str, float]:
        """Scores a base's own answers on the held-out rows."""
        return {task: self._score(params, task) for task in _LENGTHS}

    def fine_tune(self, params: Any, until: float) -> dict[str, float]:
        """Fine-tunes all weights on nine tenths of each training set and scores on the rest.

        Args:
          params: the base.
          until: the time (of `time.monotonic`) after which no task is begun.
        """
        scores = {}
        for task, length in _LENGTHS.items():
            if time.monotonic() > until:
                break
            trained = self._tuned(params, task, length)
            scores[task] = self._score(trained, task)
            print(f"  {task} fine-tuned: {scores[task]:.1f}", flush=True)
        return scores

    def _tuned(self, params: Any, task: str, length: int) -> Any:
        rows = self._tasks[task]
        rest = np.flatnonzero(~_held_out(len(rows["inputs"])))
        rng = np.random.default_rng(0)
        order = np.concatenate([
            rng.permutation(rest) for _ in range(1 + length * _ROWS // len(rest))
        ])  # fmt: skip
        tree, done = jax.tree.map(jnp.copy, params), 0
        state = training.OPTIMIZER.init(tree)
        labels = rows["firsts"][np.round(rows["labels"]).astype(int)]
        while done < length:
            some = order[done * _ROWS : (done + _STEPS) * _ROWS].reshape(_STEPS, _ROWS)
            batch = {
                "inputs": rows["inputs"][some],
                "targets": labels[some][..., None],
                "key": np.arange(done, done + _STEPS, dtype=np.uint32),
            }
            rate = _RATE * min((done + _STEPS) / (0.1 * length), 1 - done / length)
            tree, state, _ = self._steps(tree, state, jnp.float32(rate), batch, ())
            done += _STEPS
        return tree

    def _score(self, params: Any, task: str) -> float:
        """Returns the score in percent: Matthews for CoLA, Pearson for STS-B, else accuracy."""
        rows = self._tasks[task]
        held_out = np.flatnonzero(_held_out(len(rows["inputs"])))[:_HELD_OUT]
        logits = _batched(functools.partial(self._first, params), rows["inputs"][held_out])
        logits = logits[:, rows["firsts"]]
        wanted = rows["labels"][held_out]
        if task == "stsb":
            chances = np.exp(logits - logits.max(1, keepdims=True))
            guess = chances @ np.arange(logits.shape[1]) / chances.sum(1)
            return float(np.corrcoef(guess, wanted)[0, 1] * 100)
        guess = logits.argmax(1)
        if task == "cola":
            if len(set(guess)) < 2:
                return 0.0
            return float(np.corrcoef(guess, wanted)[0, 1] * 100)
        return float((guess == wanted).mean() * 100)


def _held_out(count: int) -> np.ndarray:
    return np.arange(count) % 10 == 0


def _batched(function: Callable, rows: np.ndarray) -> np.ndarray:
    """Returns a function of rows of tokens; rows of like length are computed together."""
    lengths = (rows > 0).sum(1)
    order = np.argsort(lengths, kind="stable")
    found = []
    for start in range(0, len(rows), _EVAL):
        some = rows[order[start : start + _EVAL]]
        width = -(-int((some > 0).sum(1).max()) // 32) * 32
        padded = np.pad(some, ((0, _EVAL - len(some)), (0, 0)))[:, :width]
        padded[len(some) :, 0] = 1
        found.append(np.asarray(function(padded), np.float32)[: len(some)])
    return np.concatenate(found)[np.argsort(order)]
