"""Prepares a run before its first step: mesh, base, routes, state, evaluator."""

import contextlib
import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh

from adalink_jax.adapters.load import adapter_folder, check_adapter
from adalink_jax.adapters.texts import vocabulary_of
from adalink_jax.checkpoints import (
    Adapter,
    check_architecture,
    combined_fingerprint,
    fingerprint,
    leaf_digest,
    load_adapter,
    open_base,
)
from adalink_jax.checkpoints.architecture import describe_architecture
from adalink_jax.checkpoints.fingerprint import check_finite
from adalink_jax.data import corpus, own
from adalink_jax.distributed import hosts, sharding
from adalink_jax.errors import UserError, install, nearest
from adalink_jax.evaluation import BEAM_SIZE, Evaluator
from adalink_jax.methods import check_known
from adalink_jax.methods.base import Method, Params, merge
from adalink_jax.models import parameters
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.runs import memory
from adalink_jax.runs.folder import RunFolder, code
from adalink_jax.runs.options import GROUPS, Data, Evaluation, recorded
from adalink_jax.training import state as states

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration
    from adalink_jax.data import TrainBatches
    from adalink_jax.data.images import Pictures

# Hosts compare this many values along each dimension of a parameter.
_CORNER = 8


@dataclasses.dataclass(frozen=True)
class Base:
    """A base that is ready to be adapted.

    Attributes:
      config: its architecture, with this run's settings of how it runs.
      params: its tree. With several hosts, arrays that are read from disk when indexed.
      fingerprint: fingerprint of its contents.
      adapter: the adapter that training starts from; None for a new one.
    """

    config: T5Config
    params: Any
    fingerprint: str
    adapter: Adapter | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The base's entry in a run's record, with that of the adapter on it, if any."""
        architecture = describe_architecture(self.config)
        identity = {"fingerprint": self.fingerprint, "architecture": architecture}
        if self.adapter is not None:
            identity["initial_adapter"] = fingerprint(self.adapter.tree)
        return identity


def prepared_base(
    given: str | tuple[T5Config, Params] | None,
    model: T5Config | None,
    method: Method,
    seed: int,
    run_settings: Mapping[str, Any],
    check: Callable[[T5Config], None] = lambda config: None,
) -> Base:
    """Loads the base, or initializes one with random weights for full fine-tuning.

    Args:
      given: its checkpoint's path, or its architecture and tree; None for random weights.
      model: the architecture; None takes it from the checkpoint.
      method: the method that will be trained.
      seed: seed of random weights.
      run_settings: the fields of `T5Config` that say how the network runs.
      check: called with the architecture before any array is read or made.
    """

    def ready(config: T5Config) -> T5Config:
        config = dataclasses.replace(config, **run_settings)
        check(config)
        return config

    if isinstance(given, tuple):
        config, params = given
        for name, leaf in traverse_util.flatten_dict(dict(params), sep="/").items():
            check_finite(np.asarray(leaf), f"the base's {name}")
        if model is not None:
            check_architecture(model, config, "the base")
        config = ready(config)
    elif given is not None:
        say(f"loading the base {given}")
        stored = open_base(given, model)
        if stored.verify is None:
            say(f"base {stored.where}: no SHA256SUMS, so its files are not checked for damage")
        config = ready(stored.config)
        # With several hosts, the whole base may not fit on one of them.
        params = stored.load() if jax.process_count() == 1 else stored.unread()
    elif model is None:
        raise UserError("no base: give INITIAL_CHECKPOINT_PATH, or MODEL to train from scratch")
    elif not method.trains_base:
        raise UserError(
            f"INITIAL_CHECKPOINT_PATH is not set: {type(method).__name__} adapts a trained base; "
            "random weights are for full fine-tuning"
        )
    else:
        config = ready(model)
        params = jax.device_get(parameters.init_base(model, jax.random.key(seed)))
    return Base(config, params, _fingerprint(params))


def with_adapter(base: Base, path: str | None, method: Method) -> Base:
    """Loads the adapter that training starts from, and checks that it is this method's and base's.

    An adapter of one part of a composed method fills that part.

    Args:
      base: the base.
      path: the adapter's folder, or its run's; None for a new adapter.
      method: the method that will be trained.

    Raises:
      UserError: the adapter is damaged, or of another base, method or settings; or the method
        trains the base, or trains more than its adapters store.
    """
    if path is None:
        return base
    name = type(method).__name__
    if method.trains_base:
        raise UserError(
            f"INITIAL_ADAPTER_PATH is {path}, but {name} trains the base, which "
            "INITIAL_CHECKPOINT_PATH gives"
        )
    folder = adapter_folder(path)
    adapter = load_adapter(folder, architecture=base.config, base_fingerprint=base.fingerprint)
    part = method.part(adapter.method_name)
    if part is None:
        expected = " or ".join(f"'{one}'" for one in dict.fromkeys((method.scope, *method.scopes)))
        raise UserError(f"adapter {folder}: of method '{adapter.method_name}', expected {expected}")
    name = type(part).__name__
    differing = {
        field.name: getattr(adapter.method, field.name)
        for field in dataclasses.fields(part)
        if getattr(adapter.method, field.name) != getattr(part, field.name)
    }
    for field, theirs in differing.items():
        if field not in part.training_only:
            raise UserError(
                f"{name}.{field} is {getattr(part, field)!r}, but {theirs!r} in the adapter "
                f"{folder} that training starts from; set it to that"
            )
    try:
        check_adapter(base.config, part, adapter.tree, f"adapter {folder}")
    except UserError as error:
        settings = ", ".join(f"{name}.{field} = {value!r}" for field, value in differing.items())
        raise UserError(f"{error}; training can start from it with {settings}") from error
    return dataclasses.replace(base, adapter=adapter)


def _fingerprint(params: Params) -> str:
    """Computes `fingerprint`, with each host reading a share of the leaves. All must call it.

    Raises:
      UserError: hosts have different bases. Only shapes and a few values of each leaf are
        compared, because only one host reads a whole leaf.
    """
    if jax.process_count() == 1:
        return fingerprint(params)
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    corners = {name: leaf[(slice(_CORNER),) * len(leaf.shape)] for name, leaf in flat.items()}
    shapes = {name: list(leaf.shape) for name, leaf in flat.items()}
    hosts.agree(base={"shapes": shapes, "first values": fingerprint(corners)})
    by_size = sorted(flat, key=lambda name: (-math.prod(flat[name].shape), name))
    share = by_size[jax.process_index() :: jax.process_count()]
    digests = hosts.gather([leaf_digest(name, flat[name]).hex() for name in share])
    return combined_fingerprint(map(bytes.fromhex, itertools.chain(*digests)))


def own_data(
    data: Data,
    table: own.Table,
    evaluation: Evaluation,
    base: Any,
    run: RunFolder | None = None,
    adapter: Mapping[str, Any] | None = None,
) -> tuple[Data, Evaluation]:
    """Reads a table of the user's own, if there is one, and registers it as the task.

    Args:
      data: the task's name, and lengths, which may be None.
      table: the table.
      evaluation: how it is scored; targets that are any texts are generated.
      base: the base's path, which says the vocabulary.
      run: the training's folder, whose earlier starts must have had the same examples.
      adapter: what an adapter that is scored records of the data that it was trained on.

    Returns:
      `data` and `evaluation` for the table; the given ones if there is none.

    Raises:
      UserError: a mistake in the table; or its examples are others than those of earlier starts;
        or there is no table, and no task of this name, or its vocabulary or data is missing. This
        is said before a base is read, which may take minutes.
    """
    if not table.given:
        corpus.check_ready(data.mixture_or_task_name)
        return data, evaluation
    read = own.read(table, own.recorded(adapter), trains=run is not None)
    vocabulary, name = vocabulary_of(base, adapter), data.mixture_or_task_name
    for line in (*read.lines, *(f"{name}: {one}" for one in read.remarks_of(vocabulary))):
        say(line)
    known = read.register(name, vocabulary)
    record = (run.record() if run else None) or {}
    if (before := own.recorded(record.get("data"))) is not None:
        for file in _changed(before, known):
            place = getattr(table, file) or table.path
            raise UserError(
                f"{place} has changed: its examples are not those that this run began with; set it "
                "back to go on, or use another MODEL_DIR"
            )
    trained = own.recorded(adapter)
    if trained is not None and (others := _changed(trained, known)):
        places = " and ".join(str(getattr(table, file) or table.path) for file in others)
        say(f"{name}: the examples of {places} are others than those of the adapter's run")
    lengths = data.task_feature_lengths
    if lengths is None and trained is not None and adapter is not None:
        lengths = adapter.get("lengths")
    lengths = lengths or read.lengths(vocabulary)
    if not read.labels and evaluation.mode == "rank_classification":
        say(f"{name}: no labels to rank, so answers are generated, greedily")
        evaluation = dataclasses.replace(evaluation, mode="greedy")
    return dataclasses.replace(data, task_feature_lengths=lengths), evaluation


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the files, "path" or "dev", whose examples are not those of a record."""
    digests = before["table"]["sha256"]
    return [file for file in digests if now["sha256"].get(file, digests[file]) != digests[file]]


def checked_mesh(
    layout: sharding.Layout, batch_size: int, parts: int, eval_batch_size: int
) -> Mesh:
    """Makes the mesh and checks that it divides the batches that will be put on it."""
    mesh = sharding.make_mesh(layout)
    part_rows = {"BATCH_SIZE" if parts == 1 else f"BATCH_SIZE / {parts}": batch_size // parts}
    sharding.check_divisible(mesh, **part_rows, eval_batch_size=eval_batch_size)
    sharding.rehearse(mesh)
    return mesh


def check_groups(options: Any) -> None:
    """Raises `UserError` unless these are groups of settings, each once, of none that is given."""
    if not isinstance(options, Sequence) or isinstance(options, str):
        raise UserError(f"options is {options!r:.80}; expected a list of groups, such as [Loss()]")
    kinds = [type(one) for one in options]
    groups = {kind for kind in GROUPS if kind not in (Data, own.Table)}
    for kind, one in zip(kinds, options, strict=True):
        if kind not in groups:
            known = ", ".join(sorted(group.__name__ for group in groups))
            raise UserError(f"options has {one!r:.80}; expected groups of settings: {known}")
        if kinds.count(kind) > 1:
            raise UserError(f"options has two of {kind.__name__}; put their settings into one")


def check_method(method: Method, frozen_dtype: str) -> None:
    """Raises `UserError` unless the method can train on a base in this dtype, and be loaded."""
    check_known(method)
    check_frozen_dtype(frozen_dtype, method)


def check_frozen_dtype(frozen_dtype: str, method: Method) -> None:
    """Raises `UserError` unless the base can be stored in this dtype while the method trains."""
    if frozen_dtype != "float32" and method.trains_base:
        raise UserError(
            f"frozen_dtype is '{frozen_dtype}', but {type(method).__name__} freezes nothing: what "
            "trains is float32"
        )
    if frozen_dtype == "int8" and not importlib.util.find_spec("qwix"):
        raise UserError(
            f"frozen_dtype is 'int8', for which qwix is not installed: {install('int8')}"
        )


def check_fit(method: Method, base: Base, batches: "TrainBatches") -> None:
    """Raises `UserError` if the method's routes or the base's vocabulary do not fit the data.

    The routes of an adapter that training starts from must be the data's tasks, in their order.
    """
    routes = method.routes
    if routes not in (1, len(batches.tasks)):
        raise UserError(
            f"routes is {routes}, but {batches.name} has {len(batches.tasks)} "
            f"task{'s' if len(batches.tasks) > 1 else ''}: give each its route, or 1 for all"
        )
    names = base.adapter.route_names if base.adapter else batches.tasks
    if routes > 1 and names != batches.tasks:
        raise UserError(
            f"the routes of the adapter that training starts from are {', '.join(names)}, but the "
            f"tasks of {batches.name} are {', '.join(batches.tasks)}"
        )
    base.config.check_vocabulary(batches.vocabulary.vocab_size)


def initial_state(
    base: Base,
    method: Method,
    batches: "TrainBatches",
    transformation: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    layout: sharding.Layout,
    frozen_dtype: str,
) -> states.TrainState:
    """Makes the state before the first step, from the base's adapter or one initialized for it."""
    from tasks import LABELS

    if base.adapter is not None and base.adapter.method_name == method.scope:
        adapter: Params = base.adapter.tree
    else:
        labels = [label for task in batches.tasks for label in LABELS.get(task, ())]
        token_ids = [batches.vocabulary.encode(text) for text in method.texts(labels)]
        key = jax.random.key(seed)
        adapter = parameters.init_adapter(base.config, method, base.params, key, token_ids)
        if base.adapter is not None:  # Of a part.
            adapter = merge(adapter, base.adapter.tree)
    state = states.create(
        base.config, method, base.params, adapter, transformation, mesh, layout, frozen_dtype
    )
    trainable, frozen = map(_count, (state.trainable, state.frozen))
    say(
        f"trainable {trainable:,} of {trainable + frozen:,} parameters "
        f"({trainable / (trainable + frozen):.3%})"
    )
    if _count(adapter) > _count(base.params):
        size = f": is its {method.size_field} meant?" if method.size_field else ""
        say(f"the adapter has more parameters than the base{size}")
    return state


def _count(params: Params) -> int:
    # An int8 kernel is one leaf here; its scales are not counted as parameters.
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(params))
    return sum(math.prod(leaf.shape) for leaf in flat.values())


def placed_batches(
    batches: "TrainBatches", mesh: Mesh, first_step: int, train_steps: int
) -> Generator[dict[str, jax.Array]]:
    """Yields the batches of these steps on the mesh. A process only makes its devices' rows."""
    from adalink_jax.data import prefetch

    size = batches.batch_size

    def place(batch):
        return sharding.place_batch(batch, mesh, size)

    rows = sharding.local_rows(mesh, size)
    with contextlib.closing(prefetch(batches, first_step, train_steps, place, rows)) as placed:
        for step, batch in enumerate(placed, first_step + 1):
            hosts.reached(f"step {step}")
            yield batch


def evaluator(
    config: T5Config,
    method: Method,
    tasks: tuple[str, ...],
    data: Data,
    evaluation: Evaluation,
    mesh: Mesh,
    route_names: tuple[str, ...] = (),
    in_context: int = 0,
    seed: int = 0,
    few: int | None = None,
    pictures: "Pictures | None" = None,
) -> Evaluator:
    """Makes the evaluator of these tasks, each on its route; says which have nothing to score."""
    generated = 0 if evaluation.mode == "rank_classification" else data.lengths["targets"]
    beams = (evaluation.beam_size or BEAM_SIZE) if evaluation.mode == "beam" else 1
    memory.check_evaluation(config, mesh, evaluation.batch_size, beams * generated)
    made = Evaluator(
        Transformer(config, method),
        tasks,
        lengths=data.lengths,
        batch_size=evaluation.batch_size,
        mode=evaluation.mode,
        split=evaluation.split,
        limit=evaluation.limit,
        mesh=mesh,
        routes=task_routes(method, tasks, route_names),
        cache_dir=data.cache_dir,
        in_context=in_context,
        seed=seed,
        beam_size=evaluation.beam_size,
        held_out=data.held_out,
        few=few,
        pictures=pictures,
    )
    from tasks import available_splits

    for task, absent in made.absent_splits.items():
        if not made.identity[task]:
            others = [split for split in available_splits(task) if split != "train"]
            remedy = f"; it has {', '.join(others)}: set Evaluation.split" if others else ""
            say(f"{task} has no split {' or '.join(absent)}, so it is not scored{remedy}")
    return made


def task_routes(
    method: Method, tasks: tuple[str, ...], route_names: tuple[str, ...] = ()
) -> dict[str, int]:
    """Returns each task's route by name in the adapter's routes; 0 if all share one module.

    Raises:
      UserError: a task has no route.
    """
    if method.routes == 1:
        return dict.fromkeys(tasks, 0)
    names = route_names or tasks
    for task in tasks:
        if task not in names:
            guess = nearest(task, names) or ";"
            raise UserError(
                f"the adapter has no route for task '{task}'{guess} its routes are "
                f"{', '.join(names)}"
            )
    return {task: names.index(task) for task in tasks}


def say(line: str) -> None:
    """Prints a line; only in the first process of a multi-host run."""
    if jax.process_index() == 0:
        print(line, flush=True)


def agree_on_code(configuration: "Configuration | None") -> None:
    """Checks that all hosts run the same code with the same settings, before data is read."""
    if jax.process_count() == 1:
        return
    values = recorded(configuration.values) if configuration else {}
    # Paths may differ; their contents are compared later.
    paths = ("model_dir", "output_dir", "adapter_path", "cache_dir")
    paths += ("initial_checkpoint_path", "initial_adapter_path", "image_encoder", "image_folder")
    settings = {name: value for name, value in values.items() if name not in paths}
    hosts.agree(code={**code(), "source": hosts.code_digest()}, configuration=settings)
