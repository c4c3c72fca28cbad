"""Trains a method, from settings to an adapter and its scores."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from adalink_jax.checkpoints import save_adapter
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.distributed import hosts, sharding
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.evaluation import Results, print_table, scalars, write
from adalink_jax.methods.base import Method, merge
from adalink_jax.models.stacking import unstack_layers
from adalink_jax.models.t5 import Transformer
from adalink_jax.runs import memory
from adalink_jax.runs.folder import RunFolder, comparable
from adalink_jax.runs.options import (
    BaseSetting,
    Batches,
    Data,
    Evaluation,
    Layers,
    Loss,
    MethodSetting,
    ModelSetting,
    Precision,
    recorded,
)
from adalink_jax.runs.setup import (
    Base,
    agree_on_code,
    check_fit,
    check_frozen_dtype,
    checked_mesh,
    evaluator,
    initial_state,
    placed_batches,
    prepared_base,
    say,
    with_adapter,
)
from adalink_jax.training import state as states
from adalink_jax.training.loop import Periods, train_loop
from adalink_jax.training.optimizers import LearningRate, Optimizer, per_module
from adalink_jax.training.step import compiled, make_train_step
from adalink_jax.values import LocalPath, Positive, Rate, Seed, Steps, checks

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration


@hosts.joined()
@checks
@memory.shortage()
def train(
    *,
    model_dir: LocalPath,
    data: Data,
    train_steps: Steps,
    method: MethodSetting,
    optimizer: Optimizer,
    learning_rate: LearningRate,
    initial_checkpoint_path: BaseSetting = None,
    initial_adapter_path: LocalPath | None = None,
    model: ModelSetting = None,
    seed: Seed = 0,
    dropout_rate: Rate = 0.1,
    clip_norm: Positive | None = None,
    batches: Batches = Batches(),
    evaluation: Evaluation = Evaluation(),
    periods: Periods = Periods(),
    precision: Precision = Precision(),
    layout: Layout = Layout(),
    layers: Layers = Layers(),
    loss: Loss = Loss(),
    configuration: "Configuration | None" = None,
) -> None:
    """Trains a method on a task or mixture, scores it, and writes its adapter.

    The same call resumes a run that was stopped, and does nothing if the run is finished.

    Args:
      model_dir: the run's folder; see `adalink_jax.runs.folder.RunFolder`.
      data: the task and its lengths.
      train_steps: total number of steps, including those before a resume.
      method: the method to train.
      optimizer: learning rate -> optax transformation, e.g. `optimizers.adafactor`.
      learning_rate: the schedule.
      initial_checkpoint_path: the base's path, or the result of `load_base`; None for random
        weights (full fine-tuning only).
      initial_adapter_path: the folder of an adapter or of its run, from which training starts; None
        for a new one. It must be of this method, with the same settings, on the same base.
      model: the architecture; None takes it from the checkpoint.
      seed: seed of initialization, dropout and the order of the data.
      dropout_rate: rate of the base's dropouts during training.
      clip_norm: the largest global norm of a step's gradients, of each module alone; None for no
        limit.
      batches: the batches of training steps.
      evaluation: how the task is scored.
      periods: when to evaluate, save and log.
      precision: the dtypes of activations and frozen base.
      layout: how model and batches are laid out on devices.
      layers: whether layers are scanned, and what the backward pass recomputes.
      loss: z-loss and label smoothing.
      configuration: the gin configuration of these arguments, for the records.

    Raises:
      UserError: any mistake that the user can fix; nothing is overwritten.
    """
    from adalink_jax.data import TrainBatches

    agree_on_code(configuration)
    check_frozen_dtype(precision.frozen_dtype, method)
    parts = batches.gradient_accumulation_steps
    mesh = checked_mesh(layout, batches.batch_size, parts, evaluation.batch_size)
    with contextlib.closing(RunFolder(model_dir)) as folder:
        folder.claim("configuration", recorded(configuration.values) if configuration else {})
        if folder.is_finished(train_steps):
            return say(f"{model_dir} holds this run, finished; nothing to do")
        run_settings = {"dtype": precision.dtype, "dropout_rate": dropout_rate, **vars(layers)}
        transformation = per_module(optimizer(learning_rate), method, clip_norm)
        state_of = (method, transformation, mesh, layout, precision.frozen_dtype)
        fits = functools.partial(memory.check_state, *state_of)
        base = prepared_base(initial_checkpoint_path, model, method, seed, run_settings, fits)
        base = with_adapter(base, initial_adapter_path, method)
        folder.claim("base", base.identity)
        source = TrainBatches(
            data.mixture_or_task_name, data.task_feature_lengths, batches.batch_size, seed,
            batches.packing, data.cache_dir, batches.few_shot, data.held_out,
        )  # fmt: skip
        folder.claim("data", source.identity)
        hosts.agree(data=source.identity, base=base.identity)
        check_fit(method, base, source)
        memory.check_batch(base.config, mesh, batches.batch_size // parts, source.shapes)
        say(source.summary)

        network = Transformer(base.config, method, source.max_routes_per_row)
        train_step = make_train_step(
            network, transformation, learning_rate, **vars(loss), accumulation_steps=parts
        )
        with sharding.on_mesh(mesh):
            # A task without a train split has no route of its own.
            scored = source.tasks + (source.untrained if method.routes == 1 else ())
            scorer = _Scorer(evaluator(base.config, method, scored, data, evaluation, mesh))
            state = initial_state(
                base, method, source, transformation, seed, mesh, layout, precision.frozen_dtype
            )
            # The state has its own copies.
            base = dataclasses.replace(base, params=None, adapter=None)
            store = Store(folder.path / "checkpoints", periods.keep_checkpoints)
            state = _restored(state, store, train_steps)
            folder.start(configuration.text if configuration else "", int(state.step))
            placed = placed_batches(source, mesh, int(state.step), train_steps)
            with contextlib.closing(placed):
                state = train_loop(
                    state,
                    compiled(train_step, state, seed),
                    placed,
                    train_steps=train_steps,
                    periods=periods,
                    log=folder,
                    store=store,
                    evaluate=scorer,
                    agree=_agreed if jax.process_count() > 1 else None,
                )
            results = scorer.latest or scorer.of(state)
        _write_outcome(folder, state, base, method, source.tasks, results)
        store.close()


def _agreed(number: int) -> int:
    return max(hosts.gather(number))


class _Scorer:
    """Scores a state for the training loop, and keeps the latest results."""

    def __init__(self, evaluator: Callable[[Any], Results]):
        self._evaluator = evaluator
        self.latest: Results | None = None

    def of(self, state: states.TrainState) -> Results:
        return self._evaluator(merge(state.frozen, state.trainable))

    def __call__(self, state: states.TrainState) -> dict[str, float]:
        self.latest = self.of(state)
        return scalars(self.latest)


def _restored(state: states.TrainState, store: Store, train_steps: int) -> states.TrainState:
    """Restores the latest whole checkpoint; returns the given state if there is none."""
    step = store.latest_step() or 0
    if step > train_steps:
        raise UserError(f"TRAIN_STEPS is {train_steps}, but MODEL_DIR holds a run of {step} steps")
    saved = store.restore_latest(state.saved_like(), say)
    if saved is None:
        return state
    state = state.restored(saved)
    if not state.finite():  # An earlier version could save this.
        raise UserError(
            f"the training checkpoint of step {int(state.step)} holds numbers that are not finite; "
            "use another MODEL_DIR, with a lower learning rate or float32 activations"
        )
    say(f"going on from step {int(state.step):,}")
    return state


def _write_outcome(
    folder: RunFolder,
    state: states.TrainState,
    base: Base,
    method: Method,
    tasks: tuple[str, ...],
    results: Results,
) -> None:
    """Writes the adapter, then the results. A run with results is finished."""
    folder.record_seconds()
    # All hosts must call `whole`, since each holds parts of a sharded model.
    params = jax.tree.map(lambda leaf: sharding.whole(leaf, folder.writes), state.trainable)
    if folder.writes:
        exported, tree = method.export(unstack_layers(params))
        save_adapter(
            folder.path / "adapter",
            tree,
            method_name=method.scope,
            settings=exported.settings(),
            architecture=base.config,
            base_fingerprint=base.fingerprint,
            route_names=tasks if method.routes > 1 else ("all",),
            metadata={
                "configuration": comparable(folder.contents["configuration"]),
                "data": folder.contents["data"],
                "train_steps": int(state.step),
                "scores": scalars(results),
            },
        )
        write(results, folder.path, step=int(state.step))
        folder.record_outcome()
        print_table(results)
