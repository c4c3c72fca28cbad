"""Trains the English bases: raw (hidden words, the teacher's view), then tuned (instructions).

adalink pretrain-english DATA runs/english --seconds=300

DATA is the folder that `adalink english-data` writes. Each stage has a share of --seconds, and its
learning rate follows the time spent, so a fast machine trains more and every machine ends in time.
OUT/raw and OUT/tuned are bases for --gin.INITIAL_CHECKPOINT_PATH. A run that was stopped goes on
from its last saved state. OUT/log.jsonl has losses and scores on held-out rows of GLUE's training
sets; no dev set is read.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.checkpoints.bases import load_base
from adalink_jax.checkpoints.fingerprint import file_sha256, fingerprint
from adalink_jax.errors import UserError
from adalink_jax.tools import stages
from adalink_jax.tools.english_base import corpus as corpora
from adalink_jax.tools.english_base import examples, scoring, training


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the training.

    Attributes:
      name: its name.
      share: of all seconds.
      rate: the learning rate after the warm-up; it falls to a tenth, linearly in time.
      prefix: the share of rows with hidden tokens whose end is hidden (`denoising_loss`).
      instructs: whether two of three programs train on instructions.
      writes: the name of the base that it ends with, or None.
    """

    name: str
    share: float
    rate: float
    prefix: float
    instructs: bool
    writes: str | None


STAGES = (
    Stage("spans", 0.60, 2e-3, 0.0, False, None),
    Stage("prefix", 0.10, 5e-4, 0.8, False, "raw"),
    Stage("instructions", 0.30, 1e-3, 0.2, True, "tuned"),
)
_WARMUP, _FLOOR = 0.04, 0.1  # Shares of a stage's time, and of its rate.
_SAVED_EVERY = 60.0  # Seconds.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folders and how long."""
    parser.add_argument("data", metavar="DATA", help="the folder of `adalink english-data`")
    parser.add_argument("out", metavar="OUT", help="the folder of both bases")
    parser.add_argument("--seconds", type=float, default=10_800, help="of all stages together")
    parser.add_argument("--rows", type=int, default=64, help="rows of 96 tokens in a step")
    parser.add_argument("--steps", type=int, default=5, help="steps in one program")
    parser.add_argument("--score_seconds", type=float, default=0, help="of fine-tuning on GLUE")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and rows")


def run(arguments: argparse.Namespace) -> None:
    """Trains all stages that are not finished, and writes both bases.

    Raises:
      UserError: a flag is out of range, DATA is not a folder of data, or a state is damaged.
    """
    if arguments.seconds <= 0 or arguments.rows < 2 or arguments.steps < 1 or arguments.seed < 0:
        raise UserError(
            "--seconds must be above 0, --rows 2 or more, --steps 1 or more, and --seed 0 or more"
        )
    data, out = pathlib.Path(arguments.data), pathlib.Path(arguments.out)
    if not (data / "data.json").exists():
        raise UserError(f"{data} is not a folder that `adalink english-data` wrote")
    out.mkdir(parents=True, exist_ok=True)
    trainer = _Trainer(arguments, data, out)
    for stage in STAGES:
        trainer.train(stage)
    trainer.finish()


class _Trainer:
    """What the stages share: the text on the device, weights, compiled programs, the log."""

    def __init__(self, arguments: argparse.Namespace, data: pathlib.Path, out: pathlib.Path):
        self._arguments, self._data, self._out = arguments, data, out
        self._begun = time.monotonic()
        fast = jax.default_backend() != "cpu"
        self._config = dataclasses.replace(
            training.CONFIG, dtype=jnp.bfloat16 if fast else jnp.float32
        )
        self._data_sha256 = file_sha256(data / "data.json")
        self.log(event="start", backend=jax.default_backend(), jax=jax.__version__)
        self._corpus = corpora.load(data, self._config.dtype)
        jax.block_until_ready(self._corpus.embeddings)
        count, tokens = self._corpus.lengths.shape[0], self._corpus.states.shape[0]
        self.log(event="corpus", pieces=count, tokens=tokens)
        self._scorer = scoring.Scorer(self._config, examples.glue(data))
        self._examples: examples.Examples | None = None
        tree = training.initial(arguments.seed, self._corpus)
        self._tree, self._state = tree, training.OPTIMIZER.init(tree)
        self._compiled: set[bool] = set()
        self._denoise = training.steps(self._denoising_loss)
        self._instruct = training.steps(self._instruction_loss)

    def log(self, **fields: Any) -> None:
        """Prints a line and adds it to the log."""
        fields = {"seconds": round(time.monotonic() - self._begun, 1), **fields}
        line = json.dumps(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()}
        )
        print(line, flush=True)
        with open(self._out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _denoising_loss(self, tree, one, shared):
        corpus, prefix = shared
        key = jax.random.key(one)
        return training.denoising_loss(
            tree, self._config, corpus, key, prefix, self._arguments.rows
        )

    def _instruction_loss(self, tree, one, shared):
        del shared
        return training.instruction_loss(tree, self._config, one, jax.random.key(0), dropout=False)

    def train(self, stage: Stage) -> None:
        """Trains a stage from its last saved state, or from the end of the stage before it."""
        path = self._out / f"{stage.name}.state.safetensors"
        seconds = stage.share * self._arguments.seconds
        origin = f"{fingerprint(self._tree)} {self._data_sha256}"
        done, self._tree, self._state = stages.restored(path, origin, self._tree, self._state)
        spent, step = done.get("spent", 0.0), int(done.get("step", 0))
        if spent >= seconds:
            self.log(event="stage was done", stage=stage.name)
        else:
            self._go_on(stage, path, origin, spent, step)
            self.log(event="scores", stage=stage.name, **self._scorer.look(self._tree["model"]))
        if stage.writes:
            self._write_base(stage.writes)

    def _go_on(
        self, stage: Stage, path: pathlib.Path, origin: str, spent: float, step: int
    ) -> None:
        """Trains until the stage's seconds are spent."""
        seconds = stage.share * self._arguments.seconds
        if stage.instructs and self._examples is None:
            self._examples = examples.Examples(
                self._data,
                np.asarray(self._corpus.tokens),
                np.asarray(self._corpus.embeddings, np.float32),
                self._arguments.seed,
            )
            self.log(event="instructions", rows=len(self._examples.inputs))
        saved, said = time.monotonic(), -1.0
        sums: dict[str, list[float]] = {}
        while spent < seconds:
            begun = time.monotonic()
            instructs = stage.instructs and step // self._arguments.steps % 3 > 0
            for name, value in self._program(stage, spent / seconds, step, instructs).items():
                sums.setdefault(name, []).append(float(value))
            took = time.monotonic() - begun
            if instructs in self._compiled:
                spent += took
            else:  # Compiling is no training.
                self.log(event="compiled", stage=stage.name, instructs=instructs, took=took)
                self._compiled.add(instructs)
            step += self._arguments.steps
            if spent / seconds - said > 0.05 or spent >= seconds:
                means = {name: float(np.mean(values)) for name, values in sums.items()}
                self.log(event="step", stage=stage.name, step=step, spent=spent, **means)
                said, sums = spent / seconds, {}
            if time.monotonic() - saved > _SAVED_EVERY or spent >= seconds:
                progress = {"spent": spent, "step": step}
                stages.save(path, origin, progress, self._tree, self._state)
                saved = time.monotonic()

    def _program(self, stage: Stage, done: float, step: int, instructs: bool) -> dict[str, Any]:
        """Takes some steps; returns the means of the losses."""
        shape = (self._arguments.steps, self._arguments.rows)
        warm = min(1.0, (done + 1e-3) / _WARMUP)
        rate = jnp.float32(stage.rate * warm * (1 - (1 - _FLOOR) * done))
        if instructs:
            rng = np.random.default_rng((self._arguments.seed, STAGES.index(stage), step))
            assert self._examples is not None
            each, shared, program = self._examples.batch(shape, rng), (), self._instruct
        else:
            drawn = np.random.SeedSequence((self._arguments.seed, STAGES.index(stage), step))
            each = drawn.generate_state(shape[0])
            shared, program = (self._corpus, jnp.float32(stage.prefix)), self._denoise
        self._tree, self._state, parts = program(self._tree, self._state, rate, each, shared)
        return jax.device_get(parts)

    def _write_base(self, name: str) -> None:
        made = json.loads((self._data / "data.json").read_text())
        vocabulary = file_sha256(self._data / "vocabulary.model")
        data = {"name": "english", "vocabulary": vocabulary, "text": made["text_sha256"]}
        about = {"seed": self._arguments.seed, "seconds": self._arguments.seconds, "data": data}
        stages.write_base(self._out / name, self._tree["model"], training.CONFIG, about)

    def finish(self) -> None:
        """Scores the tuned base, and fine-tunes both on GLUE while there is time."""
        self.log(event="scores", base="tuned", **self._scorer.unchanged(self._tree["model"]))
        until = time.monotonic() + self._arguments.score_seconds
        for name in ("tuned", "raw"):
            if time.monotonic() < until:
                _, params = load_base(str(self._out / name))
                scores = self._scorer.fine_tune(jax.tree.map(jnp.asarray, params), until)
                self.log(event="fine-tuned", base=name, **scores)
