"""A run, from its configuration to an adapter and its scores. The functions that gin binds."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from json import dumps
from typing import TYPE_CHECKING, Any

import jax
import optax

from adalink_jax import hosts, sharding
from adalink_jax.adaptations import adapter_folder, check_adapter
from adalink_jax.checkpoints import load_adapter, open_base, save_adapter
from adalink_jax.checkpoints.store import Store
from adalink_jax.describe import description, print_description
from adalink_jax.errors import UserError
from adalink_jax.evaluation import Results, print_table, scalars, write
from adalink_jax.methods.base import Method, merge
from adalink_jax.models.stacking import unstack_layers
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.preparation import (
    Base,
    check_counts,
    check_fit,
    check_frozen_dtype,
    checked_mesh,
    evaluator,
    initial_state,
    placed_batches,
    prepared_base,
    say,
)
from adalink_jax.training import state as states
from adalink_jax.training.folder import RunFolder, code, comparable
from adalink_jax.training.loop import Periods, train_loop
from adalink_jax.training.optimizers import Schedule, per_module
from adalink_jax.training.step import compiled, make_train_step

if TYPE_CHECKING:
    from adalink_jax.settings import Configuration


@hosts.joined()
def train(
    *,
    model_dir: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    train_steps: int,
    batch_size: int,
    method: Method,
    optimizer: Callable[[Schedule], optax.GradientTransformation],
    learning_rate: Schedule,
    initial_checkpoint_path: str | None = None,
    model: T5Config | None = None,
    seed: int = 0,
    eval_period: int = 1000,
    checkpoint_period: int = 1000,
    keep_checkpoints: int = 1,
    log_period: int = 10,
    packing: bool = False,
    few_shot: int | None = None,
    gradient_accumulation_steps: int = 1,
    model_parallelism: int = 1,
    fully_sharded: bool = False,
    slices: int = 1,
    devices: int | None = None,
    dtype: str = "float32",
    frozen_dtype: str = "float32",
    dropout_rate: float = 0.1,
    scan_layers: bool | None = None,
    remat: str = "none",
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    evaluation_mode: str = "rank_classification",
    eval_batch_size: int = 64,
    eval_limit: int | None = None,
    cache_dir: str | None = None,
    configuration: "Configuration | None" = None,
) -> None:
    """Trains a method on a task or mixture, scores it, and writes its adapter.

    The same call goes on with a run that was stopped, and does nothing for one that is finished.

    Args:
      model_dir: the run's folder; see `adalink_jax.training.folder.RunFolder`.
      mixture_or_task_name: registered with SeqIO.
      task_feature_lengths: {"inputs": T, "targets": L} in tokens; longer ones are truncated.
      train_steps: steps in all, counted from 0.
      batch_size: rows of the global batch.
      method: what is trained.
      optimizer: learning rate -> optax transformation, e.g. `optimizers.adafactor`.
      learning_rate: the schedule.
      initial_checkpoint_path: the base; None for random weights (full fine-tuning only).
      model: the architecture; None takes it from the checkpoint.
      seed: of the initialisation, the dropout and the order of the data.
      eval_period: steps between evaluations; the last step is always evaluated.
      checkpoint_period: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the latest checkpoints stay.
      log_period: steps between lines of metrics.
      packing: whether rows hold several examples, or are bucketed by length.
      few_shot: how many examples of each task are trained on, chosen by `seed`; None for all.
      gradient_accumulation_steps: parts of a batch, one in memory at a time.
      model_parallelism: devices that share the products of one model.
      fully_sharded: whether the base's matrices are split over all devices of a slice.
      slices: groups of devices with a slower network between them, as `sharding.Layout`.
      devices: how many devices the run expects; None takes what is there.
      dtype: of the activations, "float32" or "bfloat16"; adapters are float32.
      frozen_dtype: in which devices store the frozen base: "float32", "bfloat16" or "int8".
      dropout_rate: of the base's dropouts while training.
      scan_layers: whether layers are stacked and scanned; None where a stack has more than 12.
      remat: what the backward pass computes again: "none", "minimal" or "full".
      z_loss: coefficient of the z-loss.
      label_smoothing: mass that leaves the target token.
      evaluation_mode: "rank_classification", "greedy" or "beam".
      eval_batch_size: rows of a batch in evaluation.
      eval_limit: examples of a split that are evaluated; None for all.
      cache_dir: where token arrays are cached.
      configuration: what gin resolved these arguments from, for the records.

    Raises:
      UserError: whatever the user can mend; nothing is overwritten.
    """
    from adalink_jax import data

    _agree_on_code(configuration)
    periods = Periods(eval_period, checkpoint_period, log_period)
    check_counts(train_steps=train_steps, eval_batch_size=eval_batch_size, **vars(periods))
    check_frozen_dtype(frozen_dtype, method)
    layout = sharding.Layout(model_parallelism, fully_sharded, slices, devices)
    mesh = checked_mesh(layout, batch_size, gradient_accumulation_steps, eval_batch_size)
    folder = RunFolder(model_dir)
    folder.claim("configuration", configuration.values if configuration else {})
    if folder.is_finished(train_steps):
        return say(f"{model_dir} holds this run, finished; nothing to do")
    how = {"dtype": dtype, "dropout_rate": dropout_rate, "scan_layers": scan_layers, "remat": remat}
    base = prepared_base(initial_checkpoint_path, model, method, seed, how)
    folder.claim("base", base.identity)
    batches = data.TrainBatches(
        mixture_or_task_name, task_feature_lengths, batch_size, seed, packing, cache_dir, few_shot
    )
    folder.claim("data", batches.identity)
    hosts.agree(data=batches.identity)
    check_fit(method, base.config, batches)
    say(batches.summary)

    transformation = per_module(optimizer(learning_rate), method)
    train_step = make_train_step(
        Transformer(base.config, method, batches.max_routes_per_row),
        transformation,
        learning_rate,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        accumulation_steps=gradient_accumulation_steps,
    )
    with sharding.on_mesh(mesh):
        of_eval = (mesh, evaluation_mode, eval_batch_size, eval_limit, cache_dir)
        evaluation = _Evaluation(
            evaluator(base.config, method, batches.tasks, task_feature_lengths, *of_eval)
        )
        state = initial_state(
            base, method, batches, transformation, seed, mesh, layout, frozen_dtype
        )
        base = dataclasses.replace(base, params=None)  # The state has copies of its own.
        store = Store(folder.path / "checkpoints", keep_checkpoints)
        state = _restored(state, store, train_steps)
        folder.start(configuration.text if configuration else "", int(state.step))
        placed = placed_batches(batches, mesh, int(state.step), train_steps)
        with contextlib.closing(folder), contextlib.closing(placed):
            state = train_loop(
                state,
                compiled(train_step, state, seed),
                placed,
                train_steps=train_steps,
                periods=periods,
                folder=folder,
                store=store,
                evaluate=evaluation,
            )
        results = evaluation.latest or evaluation.of(state)
    folder.record_seconds()
    _write_outcome(folder, state, base, method, batches.tasks, results)
    store.close()


@hosts.joined()
def evaluate(
    *,
    output_dir: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    initial_checkpoint_path: str | None = None,
    adapter_path: str | None = None,
    dtype: str = "float32",
    scan_layers: bool | None = None,
    mode: str = "rank_classification",
    batch_size: int = 64,
    limit: int | None = None,
    in_context: int = 0,
    seed: int = 0,
    model_parallelism: int = 1,
    fully_sharded: bool = False,
    slices: int = 1,
    devices: int | None = None,
    frozen_dtype: str = "float32",
    cache_dir: str | None = None,
    configuration: "Configuration | None" = None,
) -> None:
    """Scores an adapter, or a base alone, on the evaluation splits of a task or mixture.

    Args:
      output_dir: takes ``results.json``, the predictions, and ``run.json`` that says what was
        scored; must not hold results yet.
      mixture_or_task_name: registered with SeqIO.
      task_feature_lengths: {"inputs": T, "targets": L} in tokens.
      initial_checkpoint_path: the base; None where the adapter is a model (full fine-tuning).
      adapter_path: an adapter's folder or its run's; None scores the base alone.
      dtype: of the activations.
      scan_layers: as in `train`.
      mode: "rank_classification", "greedy" or "beam".
      batch_size: rows of a batch.
      limit: examples of a split that are evaluated; None for all.
      in_context: training examples that stand solved in front of each input.
      seed: which of them, as in few-shot training.
      model_parallelism: devices that share the products of one model.
      fully_sharded: whether the base's matrices are split over all devices of a slice.
      slices: groups of devices with a slower network between them, as `sharding.Layout`.
      devices: how many devices the run expects; None takes what is there.
      frozen_dtype: in which devices store the base, as in `train`.
      cache_dir: where token arrays are cached.
      configuration: what gin resolved these arguments from.

    Raises:
      UserError: whatever the user can mend; nothing is overwritten.
    """
    from adalink_jax.data.corpus import mixture

    _agree_on_code(configuration)
    check_counts(batch_size=batch_size)
    check_frozen_dtype(frozen_dtype, Method())
    layout = sharding.Layout(model_parallelism, fully_sharded, slices, devices)
    mesh = checked_mesh(layout, batch_size, 1, batch_size)
    folder = RunFolder(output_dir)
    if (folder.path / "results.json").exists():
        raise UserError(f"{output_dir} already holds results.json; use another EVAL_OUTPUT_DIR")
    base_path, method, adapter = initial_checkpoint_path, Method(), None
    if adapter_path is not None:
        adapter = load_adapter(adapter_folder(adapter_path))
        method = adapter.method
        if method.trains_base:
            if base_path is not None:
                raise UserError(
                    f"{adapter_path} is a whole model (full fine-tuning), which needs no base; "
                    "leave INITIAL_CHECKPOINT_PATH out"
                )
            base_path, method, adapter = adapter_path, Method(), None
    how = {"dtype": dtype, "dropout_rate": 0.0, "scan_layers": scan_layers}
    base = prepared_base(base_path, None, Method(), 0, how)
    params = base.params
    if adapter is not None:
        adapter = load_adapter(
            adapter_folder(str(adapter_path)),
            architecture=base.config,
            base_fingerprint=base.fingerprint,
        )
        check_adapter(base.config, method, adapter.tree, str(adapter_path))
        params = merge(params, adapter.tree)
    tasks = mixture(mixture_or_task_name).tasks
    with sharding.on_mesh(mesh):
        scored = evaluator(
            base.config, method, tasks, task_feature_lengths, mesh, mode, batch_size, limit,
            cache_dir, adapter.route_names if adapter else (), in_context, seed,
        )  # fmt: skip
        placed = states.place_params(base.config, method, params, mesh, layout, frozen_dtype)
        results = scored(placed)
    folder.claim("configuration", configuration.values if configuration else {})
    folder.claim("base", base.identity)
    folder.claim("data", {"name": mixture_or_task_name, "evaluated": scored.identity})
    if folder.writes:
        folder.write_record(configuration.text if configuration else "", 0)
        write(results, folder.path)
        print_table(results)


def describe(
    *,
    model: T5Config | None = None,
    method: Method | None = None,
    initial_checkpoint_path: str | None = None,
    json: bool = False,
    configuration: "Configuration | None" = None,
) -> None:
    """Says what a configuration is: parameters by part, bytes, and what is where.

    Args:
      model: the architecture; None takes it from the checkpoint.
      method: the method; None describes the base alone.
      initial_checkpoint_path: read where there is no `model`.
      json: whether to print one JSON object instead of tables.
      configuration: unused; every function that gin binds takes it.

    Raises:
      UserError: neither a model nor a checkpoint.
    """
    del configuration
    if model is None:
        if initial_checkpoint_path is None:
            raise UserError("nothing to describe: give MODEL or INITIAL_CHECKPOINT_PATH")
        model = open_base(initial_checkpoint_path).config
    described = description(model, method or Method())
    if json:
        print(dumps(described, indent=1))
    else:
        print_description(described)


def _agree_on_code(configuration: "Configuration | None") -> None:
    """Before anything is read: whether all hosts run the same code with the same settings."""
    if jax.process_count() == 1:
        return
    values = configuration.values if configuration else {}
    # Paths may differ, if what they hold does not.
    paths = ("model_dir", "output_dir", "initial_checkpoint_path", "adapter_path", "cache_dir")
    settings = {name: value for name, value in values.items() if name not in paths}
    hosts.agree(code={**code(), "source": hosts.code_digest()}, configuration=settings)


class _Evaluation:
    """Scores a state for the loop, and keeps the latest results."""

    def __init__(self, evaluator: Callable[[Any], Results]):
        self._evaluator = evaluator
        self.latest: Results | None = None

    def of(self, state: states.TrainState) -> Results:
        return self._evaluator(merge(state.frozen, state.trainable))

    def __call__(self, state: states.TrainState) -> dict[str, float]:
        self.latest = self.of(state)
        return scalars(self.latest)


def _restored(state: states.TrainState, store: Store, train_steps: int) -> states.TrainState:
    """The state of the latest checkpoint; the given one where there is none."""
    step = store.latest_step() or 0
    if step > train_steps:
        raise UserError(f"TRAIN_STEPS is {train_steps}, but MODEL_DIR holds a run of {step} steps")
    if step:
        state = state.restored(store.restore(step, state.saved_like()))
        say(f"going on from step {step:,}")
    return state


def _write_outcome(
    folder: RunFolder,
    state: states.TrainState,
    base: Base,
    method: Method,
    tasks: tuple[str, ...],
    results: Results,
) -> None:
    """Writes the adapter, then the results: a run with results is finished."""
    # Every host takes part: each holds parts of a sharded model.
    trained = jax.tree.map(lambda leaf: sharding.whole(leaf, folder.writes), state.trainable)
    if folder.writes:
        exported, tree = method.export(unstack_layers(trained))
        save_adapter(
            folder.path / "adapter",
            tree,
            method_name=method.scope,
            settings=dataclasses.asdict(exported),
            architecture=base.config,
            base_fingerprint=base.fingerprint,
            route_names=tasks if getattr(method, "routes", 1) > 1 else ("all",),
            metadata={
                "configuration": comparable(folder.contents["configuration"]),
                "data": folder.contents["data"],
                "train_steps": int(state.step),
                "scores": scalars(results),
            },
        )
        write(results, folder.path, step=int(state.step))
        print_table(results)
