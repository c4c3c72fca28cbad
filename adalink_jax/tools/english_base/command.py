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
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax import files, shipped
from adalink_jax.checkpoints.bases import load_base
from adalink_jax.checkpoints.fingerprint import file_sha256, fingerprint
from adalink_jax.checkpoints.formats import packed
from adalink_jax.errors import UserError
from adalink_jax.tools import stages
from adalink_jax.tools.english_base import corpus as corpora
from adalink_jax.tools.english_base import examples, scoring, training
from adalink_jax.tools.english_base import teacher as teachers
from adalink_jax.tools.english_base.vocabulary import EOS


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the training.

    Attributes:
      name: its name.
      share: of all seconds.
      rate: the learning rate after the warm-up; it falls to a tenth, linearly in time.
      begun: the rate of the encoder and the table, which begin as the teacher's: large steps would
        spoil them. 0 trains the decoder alone: what it sends back before it can answer would
        spoil them, too.
      prefix: the share of rows with hidden tokens whose end is hidden (`denoising_loss`); None if
        it trains on instructions.
      writes: the name of the base that it ends with, or None.
    """

    name: str
    share: float
    rate: float
    begun: float
    prefix: float | None
    writes: str | None


STAGES = (
    Stage("spans", 0.35, 2e-3, 3e-4, 0.0, None),
    Stage("prefix", 0.05, 1e-3, 1.5e-4, 0.8, "raw"),
    Stage("answers", 0.05, 2e-3, 0.0, None, None),
    Stage("instructions", 0.55, 1e-3, 2e-4, None, "tuned"),
)
_WARMUP, _FLOOR = 0.04, 0.1  # Shares of a stage's time, and of its rate.
_SAVED_EVERY = 60.0  # Seconds.
_CALIBRATED = 512  # Rows on which the base is fitted to the teacher before the training.
_EMBEDDED = 256  # Pieces that the teacher sees at once.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folders and how long."""
    parser.add_argument("data", metavar="DATA", help="the folder of `adalink english-data`")
    parser.add_argument("out", metavar="OUT", help="the folder of both bases")
    parser.add_argument("--seconds", type=float, default=10_800, help="of all stages together")
    parser.add_argument("--rows", type=int, default=32, help="rows of 96 tokens in a step")
    parser.add_argument("--steps", type=int, default=5, help="steps in one program")
    parser.add_argument("--score_seconds", type=float, default=0, help="of fine-tuning on GLUE")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and rows")


def run(arguments: argparse.Namespace) -> None:
    """Trains all stages that are not finished, and writes both bases.

    Raises:
      UserError: a flag is out of range, DATA is not a folder of data, or a state is damaged.
    """
    if arguments.seconds <= 0 or arguments.rows < 4 or arguments.steps < 1 or arguments.seed < 0:
        raise UserError(
            "--seconds must be above 0, --rows 4 or more, --steps 1 or more, and --seed 0 or more"
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
        self._data_sha256 = file_sha256(data / "data.json")
        self.log(event="start", backend=jax.default_backend(), jax=jax.__version__)
        self._corpus = corpora.load(data)
        tokens = int((self._corpus.rows > 0).sum())
        self.log(event="corpus", rows=len(self._corpus.rows), tokens=tokens)
        self._begin(jnp.bfloat16 if jax.default_backend() != "cpu" else jnp.float32)
        self._scorer = scoring.Scorer(self._config, examples.glue(data))
        self._examples: examples.Examples | None = None
        self._compiled: set[str] = set()
        self._denoise = training.steps(self._denoising_loss)
        self._instruct = training.steps(self._instruction_loss)
        self._answer = training.steps(self._answering_loss)

    def _begin(self, dtype: Any) -> None:
        """Makes the base and the teacher; the arithmetic of both is in `dtype`."""
        weights, heads = teachers.load(self._data / "teacher.npz", jnp.float32)
        # Windows at any place, not rows: these end with the end of a piece.
        tokens = self._corpus.rows[self._corpus.rows > 0].astype(np.int32)
        if len(tokens) < 2 * corpora.ROW:
            raise UserError(f"{self._data} has {len(tokens)} tokens of text, too few to train on")
        rng = np.random.default_rng(self._arguments.seed)
        begins = rng.integers(0, len(tokens) - corpora.ROW, _CALIBRATED)
        rows = tokens[begins[:, None] + np.arange(corpora.ROW)]
        self._architecture, self._tree, teacher = training.begun(
            weights, heads, rows, self._arguments.seed
        )
        self._state = training.OPTIMIZER.init(self._tree)
        self._teacher = jax.tree.map(lambda leaf: leaf.astype(dtype), teacher)
        self._config = dataclasses.replace(self._architecture, dtype=dtype)
        self.log(event="begun")

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
        teacher, prefix = shared
        key = jax.random.key(one["key"])
        tokens = one["tokens"].astype(jnp.int32)
        return training.denoising_loss(tree, self._config, teacher, tokens, key, prefix)

    def _instruction_loss(self, tree, one, shared):
        del shared
        return training.instruction_loss(tree, self._config, one, jax.random.key(0), dropout=False)

    def _answering_loss(self, tree, one, shared):
        model = {**jax.lax.stop_gradient(tree["model"]), "decoder": tree["model"]["decoder"]}
        return self._instruction_loss({"model": model}, one, shared)

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
            if stage.writes:
                scores = self._scorer.look(self._tree["model"])
                self.log(event="scores", base=stage.writes, **scores)
        if stage.writes:
            self._write_base(stage.writes)

    def _go_on(
        self, stage: Stage, path: pathlib.Path, origin: str, spent: float, step: int
    ) -> None:
        """Trains until the stage's seconds are spent."""
        seconds = stage.share * self._arguments.seconds
        if stage.prefix is None and self._examples is None:
            self._examples = examples.Examples(
                self._data, self._corpus.pieces, self._embed, self._arguments.seed
            )
            self.log(event="instructions", rows=len(self._examples.inputs))
        saved, said = time.monotonic(), -1.0
        sums: dict[str, list[float]] = {}
        while spent < seconds:
            begun = time.monotonic()
            each = self._rows(stage, step)
            width = next(iter(each.values())).shape[-1]
            program = "text" if stage.prefix is not None else f"{stage.name}, width {width}"
            for name, value in self._program(stage, spent / seconds, each).items():
                sums.setdefault(name, []).append(float(value))
            took = time.monotonic() - begun
            if program in self._compiled:
                spent += took
            else:  # Compiling is no training.
                self.log(event="compiled", stage=stage.name, program=program, took=took)
                self._compiled.add(program)
            step += self._arguments.steps
            if spent / seconds - said > 0.05 or spent >= seconds:
                means = {name: float(np.mean(values)) for name, values in sums.items()}
                self.log(event="step", stage=stage.name, step=step, spent=spent, **means)
                said, sums = spent / seconds, {}
            if time.monotonic() - saved > _SAVED_EVERY or spent >= seconds:
                progress = {"spent": spent, "step": step}
                stages.save(path, origin, progress, self._tree, self._state)
                saved = time.monotonic()

    def _rows(self, stage: Stage, step: int) -> dict[str, np.ndarray]:
        """Draws the rows of a program's steps."""
        shape = (self._arguments.steps, self._arguments.rows)
        rng = np.random.default_rng((self._arguments.seed, STAGES.index(stage), step))
        if stage.prefix is None:
            assert self._examples is not None
            return self._examples.batch(shape, rng)
        tokens = corpora.batch(self._corpus, shape, rng)
        return {"tokens": tokens, "key": rng.integers(0, 1 << 32, shape[0], np.uint32)}

    def _program(self, stage: Stage, done: float, each: dict[str, np.ndarray]) -> dict[str, Any]:
        """Takes some steps; returns the means of the losses."""
        warm = min(1.0, (done + 1e-3) / _WARMUP)
        falling = warm * (1 - (1 - _FLOOR) * done)
        rate, begun = jnp.float32(stage.rate * falling), jnp.float32(stage.begun * falling)
        of_model = {"encoder": begun, "token_embedder": begun, "decoder": rate}
        rates = {"model": of_model, "head": rate}
        if stage.prefix is None:
            shared, program = (), self._instruct if stage.begun else self._answer
        else:
            shared, program = (self._teacher, jnp.float32(stage.prefix)), self._denoise
        self._tree, self._state, parts = program(self._tree, self._state, rates, each, shared)
        return jax.device_get(parts)

    def _embed(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the teacher's embeddings, of length 1, of pieces."""
        pieces, weights = self._corpus.pieces, self._teacher.weights
        heads = self._config.num_heads

        @jax.jit
        def embedded(tokens):
            ids = teachers.wrapped(weights, tokens.astype(jnp.int32))
            return teachers.embedding(teachers.blocks(weights, heads, ids)[1], ids > 0)

        # Pieces of like length stand together, so that little padding is computed.
        places = np.argsort((pieces[numbers] > 0).sum(1), kind="stable")
        order = numbers[places]
        found = []
        for start in range(0, len(order), _EMBEDDED):
            some = pieces[order[start : start + _EMBEDDED]]
            some = np.pad(some, ((0, _EMBEDDED - len(some)), (0, 2)))
            lengths = (some > 0).sum(1)
            some[np.arange(_EMBEDDED), lengths] = EOS
            some = some[:, : -(-(int(lengths.max()) + 1) // 16) * 16]
            found.append(np.asarray(embedded(some), np.float32))
        return np.concatenate(found)[: len(order)][np.argsort(places)]

    def _write_base(self, name: str) -> None:
        """Writes a base with its vocabulary, as the package adalink-jax-bases has them."""
        made = json.loads((self._data / "data.json").read_text())
        vocabulary = (self._data / shipped.VOCABULARY).read_bytes()
        data = {
            "vocabulary": hashlib.sha256(vocabulary).hexdigest(),
            "text": made["text_sha256"],
            "sources": made["sources"],
        }
        about = {"seed": self._arguments.seed, "seconds": self._arguments.seconds, "data": data}
        with files.replaced_folder(self._out / name) as partial:
            packed.write(partial, self._tree["model"], self._architecture, about)
            (partial / shipped.VOCABULARY).write_bytes(vocabulary)

    def finish(self) -> None:
        """Scores the tuned base as it was written, and fine-tunes both while there is time."""
        _, params = load_base(str(self._out / "tuned"))
        self.log(event="scores", base="tuned", **self._scorer.unchanged(params))
        until = time.monotonic() + self._arguments.score_seconds
        for name in ("tuned", "raw"):
            if time.monotonic() < until:
                _, params = load_base(str(self._out / name))
                scores = self._scorer.fine_tune(jax.tree.map(jnp.asarray, params), until)
                self.log(event="fine-tuned", base=name, **scores)
