"""Trains a method: from settings to an adapter and its scores."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import optax

from adalink_jax.checkpoints import save_adapter
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.distributed import hosts, sharding
from adalink_jax.errors import UserError
from adalink_jax.evaluation import Results, print_table, scalars, write
from adalink_jax.methods.base import Method, merge
from adalink_jax.models.stacking import unstack_layers
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.runs.folder import RunFolder, comparable
from adalink_jax.runs.setup import (
    Base,
    agree_on_code,
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
from adalink_jax.training.loop import Periods, train_loop
from adalink_jax.training.optimizers import Schedule, per_module
from adalink_jax.training.step import compiled, make_train_step

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration


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
      model_dir: the run's folder; see `adalink_jax.runs.folder.RunFolder`.
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

    agree_on_code(configuration)
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
                log=folder,
                store=store,
                evaluate=evaluation,
            )
        results = evaluation.latest or evaluation.of(state)
    folder.record_seconds()
    _write_outcome(folder, state, base, method, batches.tasks, results)
    store.close()


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
