"""The calls of a notebook: train, score and use an adapter from Python objects.

They are the engine, the checkpoints and the records of ``adalink train`` and ``adalink eval``.
What goes wrong is an exception here, `adalink_jax.errors.UserError` where the user can mend it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax import runs
from adalink_jax.adapters.load import adapter_folder, check_adapter
from adalink_jax.checkpoints import Adapter, fingerprint, load_adapter, load_base
from adalink_jax.config import gin_files
from adalink_jax.data.examples import held_out, pairs
from adalink_jax.errors import UserError, nearest
from adalink_jax.evaluation import Evaluator, Prediction
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, Params, merge
from adalink_jax.models.t5 import T5Config, Transformer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.

Base = str | tuple[T5Config, Params]

# Longer texts are truncated, as T5 was trained.
_LONGEST = 512


@dataclasses.dataclass(frozen=True)
class Result:
    """What `finetune` leaves.

    Attributes:
      folder: the run's folder, which the same call goes on with or reads again.
      adapter: the trained adapter.
      scores: each task's score after the last step, in percent.
      history: the lines of ``metrics.jsonl``: losses and scores by step.
    """

    folder: pathlib.Path
    adapter: Adapter
    scores: dict[str, float]
    history: list[dict[str, float]]


def finetune(
    base: Base,
    method: Method,
    examples: Any,
    *,
    validation: Any = None,
    labels: Sequence[str] | None = None,
    columns: tuple[str, str] | None = None,
    vocabulary: Any = None,
    model_dir: str | pathlib.Path | None = None,
    train_steps: int = 500,
    batch_size: int = 32,
    learning_rate: float | None = None,
    seed: int = 0,
    lengths: Mapping[str, int] | None = None,
    options: Sequence[Any] = (),
) -> Result:
    """Trains a method on examples, scores it, and writes its run folder.

    The same call again goes on where it was stopped, or returns what is there.

    Args:
      base: a checkpoint's path, the name of an embedded base ("mini", "mini_raw"), or what
        `load_base` returned.
      method: what is trained, e.g. ``AdaLink(rank=4)``. Its optimizer and learning rate are those
        of its gin file.
      examples: (text, target) pairs, dicts, a pandas frame, a table of Hugging Face's `datasets`;
        or the name of a SeqIO task or mixture.
      validation: likewise, to be scored; None holds out a tenth of the examples.
      labels: the texts that targets take, or ``()`` where targets are any texts; None finds out
        (`adalink_jax.data.examples.pairs`).
      columns: names of the columns of text and target; None takes usual names.
      vocabulary: a SentencePiece file's path or a SeqIO vocabulary; None takes the embedded base's,
        or the environment variable VOCABULARY.
      model_dir: the run's folder; None makes one in ``runs/``, named by what is run.
      train_steps: steps.
      batch_size: rows of a step.
      learning_rate: None for the method's own.
      seed: of initialization, dropout and order of the data.
      lengths: {"inputs": T, "targets": L} in tokens; None takes the longest example's, up to 512.
      options: groups of `adalink_jax.runs.options`, e.g. ``[Precision(dtype="bfloat16")]``.

    Returns:
      Folder, adapter, scores and history.

    Raises:
      UserError: whatever the user can mend; nothing is overwritten.

    Example:
      >>> import adalink_jax as al
      >>> films = [("a fine film", "good"), ("a dull film", "bad")] * 8
      >>> run = al.finetune("mini", al.AdaLink(rank=1), films, train_steps=1, model_dir=folder)
      mini: labels bad, good; ...
      >>> run.adapter.method
      AdaLink(rank=1, activation='identity', routes=1, stacks=('encoder',))
    """
    task, lengths = _task(base, examples, validation, labels, columns, vocabulary, lengths)
    bindings = [
        "MODEL=None",
        f"INITIAL_CHECKPOINT_PATH={_name_of(base)!r}",
        f"MIXTURE_OR_TASK_NAME={task!r}",
        f"TASK_FEATURE_LENGTHS={dict(lengths)!r}",
        f"TRAIN_STEPS={train_steps!r}",
        f"BATCH_SIZE={batch_size!r}",
        f"SEED={seed!r}",
        *_settings(method),
        *(binding for group in options for binding in _settings(group)),
    ]
    if learning_rate is not None:
        bindings.append(f"LEARNING_RATE={learning_rate!r}")
    if METHODS.get(method.scope) is not type(method):
        known = ", ".join(cls.__name__ for cls in METHODS.values())
        raise UserError(f"{type(method).__name__} is not in METHODS, which has {known}")
    files = ["runs/finetune.gin", f"methods/{method.scope}.gin"]

    def read(folder: str) -> gin_files.Configuration:
        more = [f"MODEL_DIR={folder!r}"]
        entry = "adalink_jax.runs.train"
        return gin_files.read(entry, files, bindings + more, supplied=("configuration",))

    if model_dir is None:
        content = json.dumps(read("").values, sort_keys=True).encode()
        model_dir = f"runs/{method.scope}-{hashlib.sha256(content).hexdigest()[:8]}"
    configuration = read(str(model_dir))
    arguments = gin_files.build(configuration)
    if not isinstance(base, str):
        arguments["initial_checkpoint_path"] = base
    runs.train(**arguments, configuration=configuration)
    return load_result(model_dir)


def load_result(model_dir: str | pathlib.Path) -> Result:
    """Reads a finished run's folder, whether `finetune` or ``adalink train`` wrote it.

    Raises:
      UserError: it holds no finished run, or is damaged.
    """
    folder = pathlib.Path(model_dir)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        history = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no finished run") from error
    except ValueError as error:
        raise UserError(f"{folder}: results.json or metrics.jsonl is damaged") from error
    scores = {name: task["score"] for name, task in results["tasks"].items()}
    return Result(folder, load_adapter(folder / "adapter"), scores, history)


def predict(
    base: Base,
    adapter: Adapter | Result | str | pathlib.Path | None,
    texts: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    route: str | None = None,
    vocabulary: Any = None,
    max_length: int = 64,
    batch_size: int = 64,
) -> list[Prediction]:
    """Answers texts with a base and an adapter.

    Args:
      base: as `finetune` takes it.
      adapter: a `Result`, a loaded adapter, its folder or its run's; None for the base without one.
      texts: inputs, as the task's preprocessing would give them.
      labels: texts to choose among; ``()`` generates; None takes those that the adapter was trained
        on, and generates where there are none.
      route: the name of the adapter's route, where it has several.
      vocabulary: as `finetune` takes it.
      max_length: tokens that are generated at most.
      batch_size: rows of a batch.

    Returns:
      For each text its `prediction`, and with labels their log-likelihoods in `scores`; `target`
      is empty.

    Raises:
      UserError: the adapter does not fit the base, an empty text, an unknown route.

    Example:
      >>> [one] = al.predict("mini", run, ["a fine film"])
      >>> one.prediction in ("good", "bad"), sorted(one.scores)
      (True, ['bad', 'good'])
    """
    model, params, known = _model(base, adapter)
    labels = _labels(known) if labels is None else tuple(labels)
    found = [(_checked(text, i), labels[0] if labels else "") for i, text in enumerate(texts)]
    if not found:
        return []
    results = _run(
        model, params, known, found, labels, base, vocabulary, route, max_length, batch_size
    )
    return [dataclasses.replace(one, target="") for one in results.predictions]


def evaluate(
    base: Base,
    adapter: Adapter | Result | str | pathlib.Path | None,
    examples: Any,
    labels: Sequence[str] | None = None,
    *,
    columns: tuple[str, str] | None = None,
    route: str | None = None,
    vocabulary: Any = None,
    max_length: int = 64,
    batch_size: int = 64,
) -> dict[str, float]:
    """Scores a base and an adapter on examples.

    Args:
      base: as `finetune` takes it.
      adapter: as `predict` takes it.
      examples: pairs, dicts, a frame or a table, as `finetune` takes them.
      labels: as `predict` takes them.
      columns: as `finetune` takes them.
      route: as `predict` takes it.
      vocabulary: as `finetune` takes it.
      max_length: tokens that are generated at most.
      batch_size: rows of a batch.

    Returns:
      The metrics in percent: "accuracy" with labels, else "sequence_accuracy".

    Raises:
      UserError: as `predict`; or the examples cannot be read.

    Example:
      >>> sorted(al.evaluate("mini", run, [("a fine film", "good")]))
      ['accuracy']
    """
    model, params, known = _model(base, adapter)
    labels = _labels(known) or None if labels is None else tuple(labels)
    found, labels = pairs(examples, labels, columns)
    results = _run(
        model, params, known, found, labels, base, vocabulary, route, max_length, batch_size
    )
    return dict(results.metrics)


def _run(
    model, params, adapter, found, labels, base, vocabulary, route, max_length, batch_size
) -> Any:
    """Evaluates pairs as the validation split of a task of their own."""
    from tasks import add_examples

    encoder = _vocabulary(base, vocabulary)
    task = add_examples({"validation": found}, labels, encoder)
    longest = _longest(encoder, found)
    evaluator = Evaluator(
        model,
        [task],
        lengths={**longest, "targets": max(longest["targets"], 0 if labels else max_length)},
        batch_size=batch_size,
        mode="rank_classification" if labels else "greedy",
        routes={task: _route(adapter, route)},
    )
    return evaluator(params).tasks[task].splits["validation"]


def _model(base: Base, adapter: Any) -> tuple[Transformer, Params, Adapter | None]:
    if adapter is None:
        config, params = _loaded(base)
        return Transformer(config), params, None
    found = adapter.adapter if isinstance(adapter, Result) else adapter
    if not isinstance(found, Adapter):
        found = load_adapter(adapter_folder(str(found)))
    if found.method.trains_base:
        return Transformer(found.architecture), found.tree, found
    config, params = _loaded(base)
    if (ours := fingerprint(params)) != found.base_fingerprint:
        raise UserError(
            f"the adapter was trained on another base: fingerprint {found.base_fingerprint[:12]}, "
            f"this base's is {ours[:12]}"
        )
    check_adapter(config, found.method, found.tree)
    return Transformer(config, found.method), merge(params, found.tree), found


def _loaded(base: Base) -> tuple[T5Config, Params]:
    return load_base(base) if isinstance(base, str) else base


def _labels(adapter: Adapter | None) -> tuple[str, ...]:
    """The labels of the one task that an adapter was trained on."""
    import tasks

    known = adapter.metadata.get("data", {}).get("tasks", []) if adapter else []
    if len(known) != 1:
        return ()
    own = (known[0].get("source") or {}).get("labels", ())
    return tuple(own or tasks.LABELS.get(known[0].get("name", ""), ()))


def _route(adapter: Adapter | None, name: str | None) -> int:
    routes = adapter.route_names if adapter else ("all",)
    if name is None and len(routes) == 1:
        return 0
    if name not in routes:
        raise UserError(
            f"route={name!r}{nearest(name or '', routes)}; the routes are {', '.join(routes)}"
        )
    return routes.index(name)


def _checked(text: Any, number: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"text {number} is {text!r:.80}; expected a non-empty string")
    return text


def _task(
    base, examples, validation, labels, columns, vocabulary, lengths
) -> tuple[str, Mapping[str, int]]:
    """The name of the task of the examples, and its lengths; says what it was taken for."""
    from tasks import add_examples

    if isinstance(examples, str):
        if lengths is None:
            raise UserError(f"give the lengths of {examples}: {{'inputs': 512, 'targets': 16}}")
        return examples, lengths
    found, labels = pairs(examples, labels, columns)
    if validation is None:
        found, scored = held_out(found)
    else:
        scored, _ = pairs(validation, labels, columns)
    encoder = _vocabulary(base, vocabulary)
    task = add_examples({"train": found, "validation": scored}, labels, encoder)
    kind = f"labels {', '.join(labels)}" if labels else "targets are any texts"
    lengths = lengths or _longest(encoder, [*found, *scored])
    print(
        f"{_name_of(base)}: {kind}; {len(found)} examples to train on and {len(scored)} to score, "
        f"up to {lengths['inputs']} and {lengths['targets']} tokens",
        flush=True,
    )
    return task, lengths


def _longest(vocabulary: Any, found: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Lengths with EOS, rounded up to a multiple of 8."""
    lengths = {}
    for feature, texts in zip(("inputs", "targets"), zip(*found, strict=True), strict=True):
        most = max(len(vocabulary.encode(text)) for text in set(texts)) + 1
        lengths[feature] = min(-(-most // 8) * 8, _LONGEST)
    return lengths


def _vocabulary(base: Base, given: Any) -> Any:
    import seqio

    import tasks

    if given is None:
        return tasks.MINI_VOCABULARY if base in ("mini", "mini_raw") else tasks.UserVocabulary()
    if isinstance(given, str | pathlib.Path):
        if not pathlib.Path(given).is_file():
            raise UserError(f"vocabulary {given}: no such file; expected a SentencePiece model")
        return seqio.SentencePieceVocabulary(str(given), extra_ids=100)
    return given


def _name_of(base: Base) -> str:
    return base if isinstance(base, str) else f"memory:{fingerprint(base[1])[:12]}"


def _settings(configured: Any) -> list[str]:
    """The gin bindings that make an object again."""
    kind = type(configured)
    module = kind.__module__.rpartition(".")[2]
    values = {f.name: getattr(configured, f.name) for f in dataclasses.fields(configured)}
    return [f"{module}.{kind.__qualname__}.{name}={value!r}" for name, value in values.items()]
