"""SeqIO tasks as token arrays: tokenized once, cached on disk, memory-mapped.

SeqIO and TensorFlow are imported inside functions only: importing this module costs nothing, and
what needs no task works on machines without them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

import adalink_jax
from adalink_jax.data import cache
from adalink_jax.data.ragged import Ragged, Texts
from adalink_jax.errors import UserError, nearest

# Part of every cache key: raise it when the arrays of the same text would change.
FORMAT = 1

FEATURES = ("inputs", "targets")

# What TensorFlow says of every machine without CUDA, in two lines.
_NOTICE = re.compile(
    rb"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR$"
    rb"|^I.*\] Could not find cuda drivers on your machine, GPU will not be used\.$"
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One split of one task.

    Attributes:
      inputs: int32 token sequences, whole; they end with the end-of-sequence token if the task
        adds one.
      targets: likewise.
      input_texts: the text of each input.
      target_texts: the text of each target.
      identity: JSON-able: where the data came from (None for a task that does not say), the
        number of examples, and the SHA-256 of the token arrays.
    """

    inputs: Ragged
    targets: Ragged
    input_texts: Texts
    target_texts: Texts
    identity: dict

    def few(self, count: int, seed: int) -> "Tokens":
        """Returns some of the examples, chosen by a hash of seed and tokens.

        They are the same wherever the examples stand, and those of a smaller number are among
        those of a larger one. Labels are not balanced: it is a sample of the task.

        Args:
          count: how many examples.
          seed: which of the samples.

        Raises:
          UserError: `count` is below 1, or there are fewer examples.
        """
        if not 1 <= count <= len(self):
            raise UserError(f"{count} of the task's {len(self):,} training examples were asked for")
        prefix = f"{seed}\n".encode()
        keys = [
            hashlib.sha256(prefix + self.inputs[i].tobytes() + self.targets[i].tobytes()).digest()
            for i in range(len(self))
        ]
        chosen = np.array(sorted(range(len(self)), key=keys.__getitem__)[:count])
        inputs, targets = self.inputs.take(chosen), self.targets.take(chosen)
        arrays = {"inputs": inputs.flat, "inputs_offsets": inputs.offsets}
        arrays |= {"targets": targets.flat, "targets_offsets": targets.offsets}
        identity = {
            **self.identity,
            "examples": count,
            "sha256": cache.digest(arrays),
            "few_shot": {"of": len(self), "seed": seed},
        }
        texts = (self.input_texts.take(chosen), self.target_texts.take(chosen))
        return Tokens(inputs, targets, *texts, identity)

    def after(self, shown: "Tokens", eos_id: int | None) -> "Tokens":
        """Returns the examples with others in front of each input, solved: shown in context.

        Args:
          shown: the examples to show; each one's input, then its target.
          eos_id: the end-of-sequence token, which is left out between examples.
        """
        pairs = zip(shown.inputs, shown.targets, strict=True)
        prefix = np.concatenate([sequence for pair in pairs for sequence in pair])
        prefix = prefix[prefix != eos_id]
        text = "".join(
            f"{given} {target} "
            for given, target in zip(shown.input_texts, shown.target_texts, strict=True)
        )
        return dataclasses.replace(
            self,
            inputs=Ragged.of([np.concatenate([prefix, sequence]) for sequence in self.inputs]),
            input_texts=Texts.of([f"{text}{one}".encode() for one in self.input_texts]),
            identity={**self.identity, "in_context": shown.identity},
        )

    def __len__(self) -> int:
        return len(self.inputs)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A registered mixture, or a task as a mixture of one.

    Attributes:
      name: its registered name.
      tasks: names of its tasks in alphabetical order; the index of a task is its route.
      rates: the mixing rate of each task.
      vocabulary: the one vocabulary of inputs and targets.
    """

    name: str
    tasks: tuple[str, ...]
    rates: tuple[float, ...]
    vocabulary: object


def check_registered(name: str) -> None:
    """Raises `UserError` unless a mixture or task of this name is registered; opens nothing."""
    _register()
    import seqio

    known = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    if name not in known:
        raise UserError(f"unknown mixture or task '{name}'{nearest(name, known)}")


def mixture(name: str) -> Mixture:
    """Looks up a registered mixture or task.

    Raises:
      UserError: the name is unknown, its features are not inputs and targets, its tasks do not
        share one vocabulary, or a mixing rate cannot be computed.
    """
    check_registered(name)
    import seqio

    found = seqio.get_mixture_or_task(name)
    members = seqio.get_subtasks(found)
    vocabularies = {}
    for task in members:
        for feature in FEATURES:
            if feature not in task.output_features:
                raise UserError(
                    f"task '{task.name}' has the features {sorted(task.output_features)}; "
                    "an encoder-decoder needs 'inputs' and 'targets'"
                )
            vocabulary = task.output_features[feature].vocabulary
            vocabularies.setdefault(vocabulary_identity(vocabulary), vocabulary)
    if len(vocabularies) > 1:
        raise UserError(f"'{name}' uses {len(vocabularies)} vocabularies; T5 has one for all text")
    rates = tuple(1.0 if found is task else _rate(found, task) for task in members)
    if not any(rates):
        raise UserError(f"mixture '{name}': all its mixing rates are 0")
    (vocabulary,) = vocabularies.values()
    return Mixture(name, tuple(task.name for task in members), rates, vocabulary)


def _register() -> None:
    """Makes the tasks of this project known to SeqIO.

    Raises:
      UserError: another module named ``tasks`` stands before this project's on Python's path.
    """
    with contextlib.nullcontext() if "tasks" in sys.modules else _without_notices():
        import tasks
    ours = pathlib.Path(adalink_jax.__file__).parent.parent / "tasks"
    found = pathlib.Path(getattr(tasks, "__path__", [tasks.__file__])[0])
    if found.resolve() != ours.resolve():
        raise UserError(
            f"Python imports {found} as 'tasks', which hides the tasks of adalink_jax in {ours}; "
            "give it another name"
        )


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Leaves TensorFlow's notice that there is no CUDA out of the standard error.

    It is written while a library loads, before TensorFlow reads the log level that it was given,
    and not by Python: so all that is written meanwhile is kept, and passed on without the notice.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            others = b"".join(line for line in said if not _NOTICE.search(line))
            sys.stderr.write(others.decode(errors="replace"))


def _rate(found, task) -> float:
    try:
        rate = float(found.get_rate(task))
    except TypeError as error:  # a rate by number of examples, of a source that does not know it
        raise UserError(
            f"mixture '{found.name}': the rate of task '{task.name}' cannot be computed: {error}"
        ) from error
    if not 0 <= rate < float("inf"):
        raise UserError(f"mixture '{found.name}': task '{task.name}' has rate {rate}")
    return rate


def vocabulary_identity(vocabulary) -> str:
    """Returns a string that is equal for vocabularies that give equal tokens, and only for those.

    It is the vocabulary's own `identity` where it has one, else a hash of its SentencePiece
    model, else its class and size.
    """
    if isinstance(identity := getattr(vocabulary, "identity", None), str):
        return identity
    if model := getattr(vocabulary, "sp_model", None):
        return hashlib.sha256(model).hexdigest()
    return f"{type(vocabulary).__name__} of {vocabulary.vocab_size}"


def tokens(task_name: str, split: str, cache_dir: str | os.PathLike | None = None) -> Tokens:
    """Returns a split of a task as token arrays, from the cache if it is there.

    The cache key is a hash of the task's name, the split, the identities of source and vocabulary,
    the preprocessors and their code. Where a source or a preprocessor cannot say what it does, as
    in most tasks registered by users, nothing could tell a stale cache: such a task is tokenized
    anew each time, and identified by its tokens.

    Args:
      task_name: a registered SeqIO task.
      split: one of its splits.
      cache_dir: the cache folder; default ADALINK_CACHE_DIR, else ~/.cache/adalink_jax.

    Raises:
      UserError: unknown task or split, no examples, tokens that are not integers, or a cache
        folder that cannot be written.
    """
    _register()
    import seqio

    if task_name not in seqio.TaskRegistry.names():
        raise UserError(
            f"unknown task '{task_name}'{nearest(task_name, seqio.TaskRegistry.names())}"
        )
    task = seqio.TaskRegistry.get(task_name)
    if split not in task.splits:
        raise UserError(
            f"task '{task_name}' has no split '{split}'; it has {', '.join(sorted(task.splits))}"
        )
    key = _cache_key(task, split)
    if key is None:
        return _as_tokens(*_tokenize(task, split, None))
    hashed = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]", "_", f"{task_name}.{split}")
    path = cache.folder(cache_dir) / f"{stem}.{hashed[:32]}.safetensors"
    return _cached(path, task, split, key["source"])


def _cache_key(task, split: str) -> dict | None:
    """Returns all that the tokens of a task depend on, or None where that cannot be told."""
    import seqio

    import tasks

    steps = _steps(task.preprocessors)
    if steps is None or not hasattr(task.source, "identity"):
        return None
    code = hashlib.sha256()
    for file in sorted(pathlib.Path(tasks.__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return {
        "task": task.name,
        "split": split,
        "source": tasks.source_identity(task.name, split),
        "vocabulary": [
            vocabulary_identity(task.output_features[feature].vocabulary) for feature in FEATURES
        ],
        "steps": steps,
        "tasks": code.hexdigest(),
        "seqio": seqio.__version__,
        "format": FORMAT,
    }


def _steps(preprocessors) -> list | None:
    """Names preprocessors with their arguments, if all are top-level functions of `tasks` or SeqIO.

    Whatever else a preprocessor does may change without its name changing.
    """
    import seqio

    steps = []
    for step in preprocessors:
        if isinstance(step, seqio.CacheDatasetPlaceholder):
            continue
        arguments = []
        while isinstance(step, functools.partial):
            arguments.append([list(step.args), dict(step.keywords)])
            step = step.func
        module, name = getattr(step, "__module__", ""), getattr(step, "__qualname__", "")
        if module.split(".")[0] not in ("tasks", "seqio"):
            return None
        if getattr(sys.modules[module], name, None) is not step:  # made by another function
            return None
        steps.append([f"{module}.{name}", arguments])
    try:
        return json.loads(json.dumps(steps))
    except TypeError:  # an argument that is no plain value
        return None


def _cached(path: pathlib.Path, task, split: str, source: dict) -> Tokens:
    try:
        return _as_tokens(*cache.read(path))
    except FileNotFoundError:
        pass
    except (cache.Damaged, OSError) as error:
        logger.warning("token cache %s is damaged (%s): building it anew", path, error)
    arrays, identity = _tokenize(task, split, source)
    try:
        cache.write(path, arrays, identity)
    except UserError as error:
        raise UserError(
            f"token cache {error}; set ADALINK_CACHE_DIR to a folder that can be written"
        ) from error
    # Memory-mapped pages are shared between processes and can be dropped; the arrays cannot.
    return _as_tokens(*cache.read(path))


def _as_tokens(arrays: dict[str, np.ndarray], identity: dict) -> Tokens:
    ragged = {
        name: Ragged(arrays[name], arrays[f"{name}_offsets"])
        for name in (*FEATURES, "input_texts", "target_texts")
    }
    return Tokens(
        ragged["inputs"],
        ragged["targets"],
        Texts(ragged["input_texts"]),
        Texts(ragged["target_texts"]),
        identity,
    )


def _tokenize(task, split: str, source: dict | None) -> tuple[dict[str, np.ndarray], dict]:
    """Runs a SeqIO task over a split.

    Returns:
      The arrays of `Tokens` (each with its offsets), and its identity.
    """
    import tensorflow as tf

    logger.info("tokenizing task '%s', split '%s'", task.name, split)
    try:
        tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take its memory from JAX
    except RuntimeError:
        pass  # TensorFlow runs already, with the devices that somebody chose for it
    # A preprocessor that draws random numbers must draw the same in every process.
    tf.random.set_seed(0)
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
    spec = dataset.element_spec
    for feature in FEATURES:
        found = spec.get(feature)
        if found is None or not found.dtype.is_integer or found.shape.rank != 1:
            what = "missing" if found is None else f"{found.dtype.name} of shape {found.shape}"
            raise UserError(
                f"task '{task.name}': feature '{feature}' is {what}; expected a sequence of tokens"
            )
    texts = {
        feature: f"{feature}_pretokenized"
        for feature in FEATURES
        if _is_text(spec.get(f"{feature}_pretokenized"))
    }
    wanted = (*FEATURES, *texts.values())
    parts = {name: [] for name in wanted}
    dataset = dataset.map(lambda example: {name: example[name] for name in wanted})
    for batch in dataset.ragged_batch(1024):
        for name in wanted:
            parts[name].append(batch[name])
    if not parts["inputs"]:
        raise UserError(f"task '{task.name}', split '{split}': there are no examples")

    arrays = {}
    for feature in FEATURES:
        ragged = _joined(parts[feature])
        arrays[feature], arrays[f"{feature}_offsets"] = ragged.flat, ragged.offsets
    identity = {"source": source, "examples": len(arrays["inputs_offsets"]) - 1}
    identity["sha256"] = cache.digest(arrays)
    for feature in FEATURES:
        if feature in texts:
            strings = [text for part in parts[texts[feature]] for text in part.numpy().tolist()]
        else:
            vocabulary = task.output_features[feature].vocabulary
            ragged = Ragged(arrays[feature], arrays[f"{feature}_offsets"])
            strings = [_decoded(vocabulary, sequence) for sequence in ragged]
        ragged = Texts.of(strings).ragged
        name = f"{feature[:-1]}_texts"
        arrays[name], arrays[f"{name}_offsets"] = ragged.flat, ragged.offsets
    return arrays, identity


def _is_text(spec) -> bool:
    return spec is not None and spec.dtype.name == "string" and spec.shape.rank == 0


def _joined(parts: list) -> Ragged:
    """Joins the batches of a feature, [n, length] or ragged, to one ragged array of int32."""
    flat, lengths = [], []
    for part in parts:
        if hasattr(part, "row_lengths"):
            flat.append(part.flat_values.numpy())
            lengths.append(part.row_lengths().numpy())
        else:  # all sequences of the task have one length
            flat.append(part.numpy().reshape(-1))
            lengths.append(np.full(len(part), part.shape[1]))
    return Ragged.joined(np.concatenate(flat).astype(np.int32), np.concatenate(lengths))


def _decoded(vocabulary, sequence: np.ndarray) -> bytes:
    text = vocabulary.decode(sequence.tolist())
    return (text if isinstance(text, str) else " ".join(map(str, text))).encode()
