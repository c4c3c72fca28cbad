"""The Python API: train, score and use an adapter in a notebook.

It uses the same engine, checkpoints and records as ``adalink train`` and ``adalink eval``. Errors
are exceptions; mistakes that the user can fix are `adalink_jax.errors.UserError`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from adalink_jax import compile_cache, files, runs
from adalink_jax.adapters.load import adapter_folder, check_belongs, opened_base
from adalink_jax.adapters.texts import check_vocabulary, labels_of, opened_vocabulary, vocabulary_of
from adalink_jax.checkpoints import Adapter, fingerprint, load_adapter, load_base
from adalink_jax.config import gin_files
from adalink_jax.data import own
from adalink_jax.data.batches import checked_lengths
from adalink_jax.data.examples import check_division, divided, held_out, longest, pairs
from adalink_jax.data.images import Encoder
from adalink_jax.errors import UserError
from adalink_jax.evaluation import Evaluator, Prediction
from adalink_jax.methods import check_known
from adalink_jax.methods.base import Method, Params, merge
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.notices import load_tasks
from adalink_jax.runs import metrics
from adalink_jax.runs.images import pictures_of
from adalink_jax.runs.options import Batches, Evaluation, Images, Lengths, MethodSetting
from adalink_jax.runs.setup import check_groups
from adalink_jax.values import Length, NotNegative, Seed, Size, Steps, checks

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.

Base = str | tuple[T5Config, Params]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of `finetune`.

    Attributes:
      folder: the run's folder; the same call resumes or reads it.
      adapter: the trained adapter.
      scores: each task's score after the last step, in percent.
      history: the lines of ``metrics.jsonl``: losses and scores by step.
    """

    folder: pathlib.Path
    adapter: Adapter
    scores: dict[str, float]
    history: list[dict[str, float]]

    def __repr__(self) -> str:
        # Without the arrays and the lines, which would fill a notebook's page.
        return f"Result(folder={str(self.folder)!r}, scores={self.scores})"


@checks
def finetune(
    base: Base,
    method: MethodSetting,
    examples: Any,
    *,
    validation: Any = None,
    labels: Sequence[str] | None = None,
    columns: tuple[str, ...] | None = None,
    vocabulary: Any = None,
    model_dir: str | pathlib.Path | None = None,
    train_steps: Steps = 500,
    batch_size: Size = 32,
    learning_rate: NotNegative | None = None,
    seed: Seed = 0,
    lengths: Lengths | None = None,
    options: Sequence[Any] = (),
) -> Result:
    """Trains a method on examples, scores it, and writes its run folder.

    The same call again resumes a run that was stopped, or returns the result of a finished run.

    Args:
      base: a checkpoint's path, the name of an embedded base (such as "mini"), or the result
        of `load_base`.
      method: the method to train, e.g. ``AdaLink(rank=4)``. Its optimizer and learning rate come
        from its gin file.
      examples: (text, target) pairs, or (text, target, image) where the text is about a picture;
        dicts, a pandas frame, a table of Hugging Face's `datasets`; or the name of a SeqIO task or
        mixture. An image is a path below `Images.folder`, "" for none.
      validation: examples to score, in the same forms; None holds out a tenth of the examples.
      labels: the possible targets, or ``()`` if targets are free texts; None decides by the
        examples (`adalink_jax.data.examples.pairs`).
      columns: names of the columns of text and target, and of that of images where it is read;
        None looks for common names, "image" among them.
      vocabulary: a SentencePiece file's path or a SeqIO vocabulary; None takes the embedded base's
        vocabulary, or the file in the environment variable VOCABULARY.
      model_dir: the run's folder; None makes one in ``runs/``, named after the configuration.
      train_steps: number of steps.
      batch_size: number of rows per step.
      learning_rate: learning rate; None takes the method's default.
      seed: seed of initialization, dropout and the order of the data.
      lengths: {"inputs": T, "targets": L} in tokens; None takes the longest example's, up to 512.
      options: groups of `adalink_jax.runs.options`, e.g. ``[Precision(dtype="bfloat16")]``; for
        examples with pictures ``[Images(encoder=…, folder=…)]``.

    Returns:
      Folder, adapter, scores and history.

    Raises:
      UserError: any mistake that the user can fix; nothing is overwritten.

    Examples:
      >>> import adalink_jax as al
      >>> films = [("a fine film", "good"), ("a dull film", "bad")] * 8
      >>> settings = {"validation": films, "train_steps": 1, "model_dir": folder}
      >>> run = al.finetune("mini", al.AdaLink(rank=1), films, **settings)
      mini: labels bad, good; ...
      >>> run.adapter.method == al.AdaLink(rank=1)
      True
    """
    check_known(method)
    check_groups(options)
    labels = None if labels is None else _chosen(labels)
    for group in options:
        if isinstance(group, Batches):
            batch_size = _one_batch_size(batch_size, group.batch_size)
    sees = any(isinstance(group, Images) and group.encoder is not None for group in options)
    task, lengths = _task(base, examples, validation, labels, columns, vocabulary, lengths, sees)
    macros = {
        "MODEL": None,
        "INITIAL_CHECKPOINT_PATH": _name_of(base),
        "MIXTURE_OR_TASK_NAME": task,
        "TASK_FEATURE_LENGTHS": dict(lengths),
        "TRAIN_STEPS": train_steps,
        "BATCH_SIZE": batch_size,
        "SEED": seed,
        **({} if learning_rate is None else {"LEARNING_RATE": learning_rate}),
    }
    if not isinstance(examples, str) and not any(isinstance(one, Evaluation) for one in options):
        import tasks

        # Any texts are generated; labels are ranked, as Evaluation has it.
        options = [*options, *([] if task in tasks.LABELS else [Evaluation(mode="greedy")])]
    bindings = [f"{name}={value!r}" for name, value in macros.items()]
    given = [binding for group in (method, *options) for binding in _settings(group)]
    # Groups bind all of their fields, and this one is an argument here.
    bindings += [one for one in given if not one.startswith("options.Batches.batch_size=")]
    configuration = _configuration(method, bindings, model_dir)
    arguments = gin_files.build(configuration)
    if not isinstance(base, str):
        arguments["initial_checkpoint_path"] = base
    for group in options:
        if isinstance(group, Images):  # Its encoder may be an object.
            arguments["images"] = group
    runs.train(**arguments, configuration=configuration)
    return load_result(configuration.values["model_dir"])


def _one_batch_size(argument: int, grouped: int) -> int:
    """Returns the batch size of an argument and of a group, of which one is left as it was."""
    sizes = {argument, grouped} - {Batches.batch_size}
    if len(sizes) > 1:
        raise UserError(f"batch_size is {argument}, and {grouped} in Batches; give one of them")
    return sizes.pop() if sizes else argument


def _configuration(
    method: Method, bindings: Sequence[str], model_dir: str | pathlib.Path | None
) -> gin_files.Configuration:
    """Resolves the method's gin file and bindings as ``adalink train`` does."""

    def read(folder: str) -> gin_files.Configuration:
        return gin_files.read(
            "adalink_jax.runs.train",
            ["runs/finetune.gin", f"methods/{method.scope}.gin"],
            [*bindings, f"MODEL_DIR={folder!r}"],
            supplied=("configuration",),
        )

    if model_dir is None:
        values = {**read("runs").values, "model_dir": ""}
        content = json.dumps(values, sort_keys=True).encode()
        model_dir = f"runs/{method.scope}-{hashlib.sha256(content).hexdigest()[:8]}"
    return read(str(model_dir))


def load_result(model_dir: str | pathlib.Path) -> Result:
    """Reads the folder of a finished run of `finetune` or ``adalink train``.

    Raises:
      UserError: the folder holds no finished run, or is damaged.
    """
    folder = pathlib.Path(model_dir)
    try:
        results = files.read_json(folder / "results.json")
        history = metrics.read(folder / "metrics.jsonl")
        scores = {name: task["score"] for name, task in results["tasks"].items()}
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no finished run") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: results.json is damaged") from error
    return Result(folder, load_adapter(folder / "adapter"), scores, history)


@compile_cache.kept()
@checks
def predict(
    base: Base,
    adapter: Adapter | Result | str | pathlib.Path | None,
    texts: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    route: str | None = None,
    vocabulary: Any = None,
    max_length: Length = 64,
    batch_size: Size = 64,
    pictures: Sequence[str] | None = None,
    images: Images = Images(),
) -> list[Prediction]:
    """Predicts labels or texts with a base and an adapter.

    Args:
      base: as in `finetune`.
      adapter: a `Result`, a loaded adapter, or the folder of an adapter or of its run; None for the
        base without an adapter.
      texts: inputs, in the form that the task's preprocessing gives.
      labels: texts to choose among; ``()`` to generate a text. None takes the labels that the
        adapter was trained on, and generates if there are none.
      route: the name of the adapter's route, if it has several.
      vocabulary: as in `finetune`.
      max_length: maximum number of generated tokens.
      batch_size: number of rows of a batch.
      pictures: the picture of each text, a path below `images.folder`; None for texts alone.
      images: the image encoder, and the folder of the pictures. An encoder that was opened before
        (`load_image_encoder`) is not opened again.

    Returns:
      One `Prediction` per text. With labels, `scores` holds their log-likelihoods; `target` is
      empty.

    Raises:
      UserError: the adapter does not fit the base, a text is empty, or the route is unknown.

    Examples:
      >>> [one] = al.predict("mini", run, ["a fine film"])
      >>> one.prediction in ("good", "bad"), sorted(one.scores)
      (True, ['bad', 'good'])
    """
    model, params, loaded = _model(base, adapter)
    labels = _labels(loaded, route) if labels is None else _chosen(labels)
    examples = [
        (_checked(text, i), labels[0] if labels else "") for i, text in enumerate(_listed(texts))
    ]
    if not examples:
        return []
    results = _run(
        *(model, params, loaded, examples, labels, base, vocabulary, route, max_length),
        *(batch_size, pictures, images),
    )
    return [dataclasses.replace(one, target="") for one in results.predictions]


@compile_cache.kept()
@checks
def evaluate(
    base: Base,
    adapter: Adapter | Result | str | pathlib.Path | None,
    examples: Any,
    labels: Sequence[str] | None = None,
    *,
    columns: tuple[str, ...] | None = None,
    route: str | None = None,
    vocabulary: Any = None,
    max_length: Length = 64,
    batch_size: Size = 64,
    pictures: Sequence[str] | None = None,
    images: Images = Images(),
) -> dict[str, float]:
    """Scores a base and an adapter on examples.

    Args:
      base: as in `finetune`.
      adapter: as in `predict`.
      examples: pairs, dicts, a frame or a table, as in `finetune`, perhaps with images.
      labels: as in `predict`.
      columns: as in `finetune`.
      route: as in `predict`.
      vocabulary: as in `finetune`.
      max_length: maximum number of generated tokens.
      batch_size: number of rows of a batch.
      pictures: the picture of each example, as in `predict`; None for those of `examples`.
      images: as in `predict`.

    Returns:
      The metrics in percent: "accuracy" with labels, else "sequence_accuracy".

    Raises:
      UserError: as in `predict`; or the examples cannot be read.

    Examples:
      >>> sorted(al.evaluate("mini", run, [("a fine film", "good")]))
      ['accuracy']
    """
    model, params, loaded = _model(base, adapter)
    labels = _labels(loaded, route) or None if labels is None else _chosen(labels)
    shown, labels = pairs(examples, labels, columns)
    rows, keys = divided(shown)
    if keys is not None:
        if pictures is not None:
            raise UserError("the examples have images, and `pictures` is given too")
        _check_seen(keys, images.encoder is not None)
        pictures = keys
    results = _run(
        *(model, params, loaded, rows, labels, base, vocabulary, route, max_length),
        *(batch_size, pictures, images),
    )
    return dict(results.metrics)


def _run(
    model, params, adapter, rows, labels, base, vocabulary, route, max_length, batch_size, pictures,
    images,
) -> Any:  # fmt: skip
    """Evaluates pairs as the validation split of a new task."""
    from tasks import add_examples

    if adapter is None and route is not None:
        raise UserError(f"route={route!r} is given, but no adapter")
    if pictures is not None and len(pictures) != len(rows):
        raise UserError(f"there are {len(pictures)} pictures for {len(rows)} texts")
    if labels and len(set(labels)) < max(2, len(labels)):
        raise UserError(f"labels is {list(labels)}; it takes two or more, all different, or ()")
    encoder = _vocabulary(base, vocabulary)
    if adapter is not None:
        check_vocabulary(adapter, encoder)
    keys = None if pictures is None else {"validation": [os.fspath(one) for one in pictures]}
    task = add_examples({"validation": rows}, labels, encoder, images=keys)
    most = longest(encoder, rows)
    evaluator = Evaluator(
        model,
        [task],
        lengths={**most, "targets": max(most["targets"], 0 if labels else max_length)},
        batch_size=batch_size,
        mode="rank_classification" if labels else "greedy",
        routes={task: adapter.route(route) if adapter else 0},
        pictures=pictures_of(images, model.config, trained=adapter.data if adapter else None),
    )
    result = evaluator(params).tasks[task].splits["validation"]
    if result.truncated:
        warnings.warn(
            f"{result.truncated} of {len(rows)} texts are longer than {most['inputs']} tokens "
            "and were truncated",
            stacklevel=3,
        )
    return result


def _model(base: Base, adapter: Any) -> tuple[Transformer, Params, Adapter | None]:
    load_tasks()
    if adapter is None:
        config, params = _loaded(base)
        return Transformer(config), params, None
    loaded = adapter.adapter if isinstance(adapter, Result) else adapter
    if not isinstance(loaded, Adapter):
        loaded = load_adapter(adapter_folder(str(loaded)))
    if loaded.method.trains_base:
        return Transformer(loaded.architecture), loaded.tree, loaded
    if isinstance(base, str):
        stored = opened_base(base, loaded)
        config, params = stored.config, stored.load()
    else:
        config, params = base
    check_belongs(loaded, config, params, "that is given")
    return Transformer(config, loaded.method), merge(params, loaded.tree), loaded


def _loaded(base: Base) -> tuple[T5Config, Params]:
    return load_base(base) if isinstance(base, str) else base


def _labels(adapter: Adapter | None, route: str | None) -> tuple[str, ...]:
    """Returns the labels that an adapter's route was trained on."""
    import tasks

    if adapter is None:
        return ()
    return labels_of(adapter, adapter.route_names[adapter.route(route)], tasks.LABELS)


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        raise UserError(f"texts is {texts!r:.80}; expected a list of texts: [{texts!r:.40}]")
    # To go over a mapping or a frame gives the names of its columns.
    frame = isinstance(texts, Mapping | bytes) or hasattr(texts, "columns")
    if frame or not isinstance(texts, Iterable):
        raise UserError(f"texts is a {type(texts).__name__}; expected a list of texts")
    return list(texts)


def _chosen(labels: Any) -> tuple[Any, ...]:
    """Returns labels that are given, in their order; raises `UserError` where there is none."""
    named = isinstance(labels, Iterable) and not isinstance(labels, str | bytes | Mapping | Set)
    given = tuple(labels) if named else ()
    if not named or not all(isinstance(label, str) and label.strip() for label in given):
        raise UserError(f"labels is {labels!r:.80}; expected a list of texts, or () for any text")
    return given


def _checked(text: Any, number: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"text {number} is {text!r:.80}; expected a non-empty string")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"text {number} holds half of a character (a lone surrogate)")
    return text


def _check_seen(keys: Sequence[str], sees: bool) -> None:
    """Raises `UserError` if examples have pictures, and nothing sees them."""
    if not sees:
        shown = next((key for key in keys if key), "")
        raise UserError(
            f"the examples have images, such as '{shown}', to which a model of text alone is blind;"
            " set Images(encoder=…), or name the two columns that are read: columns=('…', '…')"
        )


def _task(
    base, examples, validation, labels, columns, vocabulary, lengths, sees
) -> tuple[str, Mapping[str, int]]:
    """Registers a task for the examples, prints what it is, and returns its name and lengths."""
    load_tasks()
    from tasks import add_examples

    if isinstance(examples, str):
        given = {"validation": validation, "labels": labels, "columns": columns}
        if unused := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{unused[0]} is given, but the task {examples} has its own")
        if lengths is None:
            raise UserError(f"give the lengths of {examples}: {{'inputs': 512, 'targets': 16}}")
        return examples, lengths
    shown, labels = pairs(examples, labels, columns)
    if validation is None:
        shown, others = held_out(shown, labels)
    else:
        others, _ = pairs(validation, labels, columns)
    (rows, keys), (scored, scored_keys) = divided(shown), divided(others)
    if validation is None:
        check_division(rows, scored, labels, "give more examples, or `validation`")
    images = None
    if keys is not None or scored_keys is not None:
        if keys is None or scored_keys is None:
            raise UserError("of `examples` and `validation` only one has images")
        _check_seen(keys, sees)
        images = {"train": keys, "validation": scored_keys}
    encoder = _vocabulary(base, vocabulary)
    task = add_examples({"train": rows, "validation": scored}, labels, encoder, images=images)
    kind = f"labels {', '.join(labels)}" if labels else "targets are any texts"
    lengths = checked_lengths(lengths) if lengths else longest(encoder, [*rows, *scored])
    print(
        f"{_name_of(base)}: {kind}; {len(rows)} examples to train on and {len(scored)} to score, "
        f"up to {lengths['inputs']} and {lengths['targets']} tokens",
        *own.remarks(rows, scored, labels),
        *own.unknown(encoder, [*rows, *scored], labels),
        sep="\n",
        flush=True,
    )
    return task, lengths


def _vocabulary(base: Base, vocabulary: Any) -> Any:
    if vocabulary is None:
        return vocabulary_of(base)
    named = isinstance(vocabulary, str | pathlib.Path)
    return opened_vocabulary(str(vocabulary)) if named else vocabulary


def _name_of(base: Base) -> str:
    return base if isinstance(base, str) else f"memory:{fingerprint(base[1])[:12]}"


def _settings(configured: Any) -> list[str]:
    """Returns the gin bindings of an object's fields; an image encoder is named as a base is."""
    if isinstance(configured, Images) and isinstance(configured.encoder, Encoder):
        named = f"memory:{configured.encoder.fingerprint[:12]}"
        configured = dataclasses.replace(configured, encoder=named)
    kind = type(configured)
    module = kind.__module__.rpartition(".")[2]
    values = {f.name: getattr(configured, f.name) for f in dataclasses.fields(configured)}
    return [f"{module}.{kind.__qualname__}.{name}={value!r}" for name, value in values.items()]
