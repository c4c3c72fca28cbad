"""Trains a method, from settings to an adapter and its scores."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Annotated, Any

import jax

from adalink_jax import compile_cache
from adalink_jax.checkpoints import save_adapter
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.data import HELD_OUT, TrainBatches
from adalink_jax.data.own import Table
from adalink_jax.distributed import hosts, sharding
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.evaluation import Evaluator, Results, chosen, print_table, scalars, write
from adalink_jax.methods.base import Method, merge
from adalink_jax.models.stacking import unstack_layers
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.runs import dashboard, memory
from adalink_jax.runs.folder import RunFolder, comparable
from adalink_jax.runs.images import pictures_of
from adalink_jax.runs.options import (
    BaseSetting,
    Batches,
    Data,
    Evaluation,
    Images,
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
    check_method,
    checked_mesh,
    evaluator,
    initial_state,
    own_data,
    placed_batches,
    prepared_base,
    say,
    with_adapter,
)
from adalink_jax.training import state as states
from adalink_jax.training.flops import peak_flops, step_flops
from adalink_jax.training.loop import Periods, train_loop
from adalink_jax.training.optimizers import LearningRate, Optimizer, Schedule, per_module
from adalink_jax.training.pace import Pace, Work
from adalink_jax.training.selection import UNKNOWN, Selection, tracking
from adalink_jax.training.step import Step, compiled, make_train_step
from adalink_jax.values import LocalPath, Positive, Range, Rate, Seed, Steps, checks

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration


EmaDecay = Annotated[float, Range(0, 1, open_start=True, open_end=True)]


@hosts.joined()
@compile_cache.kept()
@checks
@memory.shortage()
def train(
    *,
    model_dir: LocalPath,
    data: Data,
    table: Table = Table(),
    images: Images = Images(),
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
    ema_decay: EmaDecay | None = None,
    batches: Batches = Batches(),
    evaluation: Evaluation = Evaluation(),
    periods: Periods = Periods(),
    selection: Selection = Selection(),
    precision: Precision = Precision(),
    layout: Layout = Layout(),
    layers: Layers = Layers(),
    loss: Loss = Loss(),
    wandb: str | None = None,
    configuration: "Configuration | None" = None,
) -> None:
    """Trains a method on a task or mixture, scores it, and writes its adapter.

    The same call resumes a run that was stopped, and does nothing if the run is finished.

    Args:
      model_dir: the run's folder; see `adalink_jax.runs.folder.RunFolder`.
      data: the task and its lengths.
      table: a table of the user's own, which becomes the task.
      images: the pictures of tasks that have some, and the encoder that sees them.
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
      ema_decay: decay of an exponential moving average of what trains, which is then evaluated and
        saved in its place; None for no average.
      batches: the batches of training steps.
      evaluation: how the task is scored.
      periods: when to evaluate, save and log.
      selection: what is scored while training, and which step the run ends with.
      precision: the dtypes of activations and frozen base.
      layout: how model and batches are laid out on devices.
      layers: whether layers are scanned, what the backward pass recomputes, what computes
        attention.
      loss: z-loss and label smoothing.
      wandb: the project at Weights & Biases that gets the values, too; None for none.
      configuration: the gin configuration of these arguments, for the records.

    Raises:
      UserError: any mistake that the user can fix; nothing is overwritten.
    """
    agree_on_code(configuration)
    dashboard.check(wandb)
    check_method(method, precision.frozen_dtype)
    parts = batches.gradient_accumulation_steps
    mesh = checked_mesh(layout, batches.batch_size, parts, evaluation.batch_size)
    with contextlib.closing(RunFolder(model_dir)) as folder:
        folder.claim("configuration", recorded(configuration.values) if configuration else {})
        if folder.is_finished(train_steps):
            paths, made = (initial_checkpoint_path, initial_adapter_path), (model, method, seed)
            return _nothing_to_do(folder, data, table, evaluation, paths, made)
        data, evaluation = own_data(data, table, evaluation, initial_checkpoint_path, folder)
        run_settings = {"dtype": precision.dtype, "dropout_rate": dropout_rate, **vars(layers)}
        transformation = per_module(optimizer(learning_rate), method, clip_norm)
        state_of = (method, transformation, mesh, layout, precision.frozen_dtype)
        tracked = (ema_decay is not None, selection.keep is not None)
        fits = functools.partial(memory.check_state, *state_of, copies=sum(tracked))
        base = prepared_base(initial_checkpoint_path, model, method, seed, run_settings, fits)
        base = with_adapter(base, initial_adapter_path, method)
        folder.claim("base", base.identity)
        source = TrainBatches(
            data.mixture_or_task_name, data.lengths, batches.batch_size, seed,
            batches.packing, data.cache_dir, batches.few_shot, data.held_out,
            **_lengths(batches, data, folder, train_steps),
            pictures=pictures_of(images, base.config, data.cache_dir),
        )  # fmt: skip
        folder.claim("data", source.identity)
        hosts.agree(data=source.identity, base=base.identity)
        check_fit(method, base, source)
        memory.check_batch(base.config, mesh, batches.batch_size // parts, source.shapes)
        say(source.summary)
        network = Transformer(base.config, method, source.max_routes_per_row)
        step_of = _step_of(network, optimizer, clip_norm, parts, ema_decay, loss)
        same = _same(configuration, network, clip_norm, parts, ema_decay, loss, layout)
        with sharding.on_mesh(mesh):
            new = functools.partial(evaluator, base.config, method, data=data, mesh=mesh, seed=seed)
            scorer = _Scorer(new, source, method, evaluation, selection)
            state = initial_state(
                base, method, source, transformation, seed, mesh, layout, precision.frozen_dtype
            )
            state = tracking(state, *tracked)
            base = dataclasses.replace(base, params=None, adapter=None)  # The state has copies.
            store = Store(folder.path / "checkpoints", periods.keep_checkpoints)
            state = _restored(state, store, train_steps)
            folder.start(configuration.text if configuration else "", int(state.step), wandb)
            placed = placed_batches(source, mesh, int(state.step), train_steps)
            # A save that is being written ends before the folder is let go.
            with contextlib.closing(store), contextlib.closing(placed):
                if not selection.is_over(state):
                    state = train_loop(
                        state, compiled(step_of, state, seed, learning_rate, same), placed,
                        train_steps=train_steps, periods=periods, log=folder, store=store,
                        evaluate=scorer,
                        judge=scorer.judge if selection.keep else None,
                        agree=_agreed if jax.process_count() > 1 else None,
                        pace=_pace(source, base.config, method),
                    )  # fmt: skip
        outcome = _outcome(state, selection, train_steps)
        _write_outcome(folder, state, base, method, source.tasks, scorer.reported(state), outcome)


def _nothing_to_do(
    folder: RunFolder,
    data: Data,
    table: Table,
    evaluation: Evaluation,
    paths: tuple[Any, str | None],
    made: tuple[T5Config | None, Method, int],
) -> None:
    """Says that a run is finished, if it is this one.

    A table that has changed is refused as ever. A base or an adapter to start from is read again
    where its path is another than the run's: that can take minutes.
    """
    base, adapter = paths
    if table.given:
        own_data(data, table, evaluation, base, folder)
    given, before = folder.contents["configuration"], (folder.record() or {})["configuration"]
    names = ("initial_checkpoint_path", "initial_adapter_path")
    if isinstance(base, tuple) or any(given.get(name) != before.get(name) for name in names):
        model, method, seed = made
        loaded = with_adapter(prepared_base(base, model, method, seed, {}), adapter, method)
        folder.claim("base", loaded.identity)
    say(f"{folder.path} holds this run, finished; nothing to do")


def _step_of(
    network: Transformer,
    optimizer: Optimizer,
    clip_norm: float | None,
    parts: int,
    ema_decay: float | None,
    loss: Loss,
) -> Callable[[Schedule], Step]:
    def step(rate: Schedule) -> Step:
        rule = per_module(optimizer(rate), network.method, clip_norm)
        settings = {"accumulation_steps": parts, "ema_decay": ema_decay, **vars(loss)}
        return make_train_step(network, rule, rate, **settings)

    return step


def _same(configuration: "Configuration | None", *of: Any) -> Hashable:
    """Returns what tells the step apart from another's; only gin tells two optimizers apart."""
    return configuration and (*of, json.dumps(configuration.values["optimizer"]))


def _lengths(batches: Batches, data: Data, folder: RunFolder, train_steps: int) -> dict[str, Any]:
    """Returns what lengths `TrainBatches` has. A run that goes on keeps those it began with."""
    record = folder.record()
    before = (record or {}).get("data", {})
    if batches.packing:
        # Runs of before had rows with targets of the length of one.
        own = before.get("packed_targets", data.lengths["targets"])
        return {"packed_targets": own} if record else {}
    if batches.padding is None:
        return {}
    padded_to = before.get("padded_to")
    return {"padded_to": padded_to} if padded_to else {"steps": train_steps}


def _pace(source: TrainBatches, config: T5Config, method: Method) -> Pace:
    def work(step: int) -> Work:
        tokens, (rows, inputs, targets) = source.size(step)
        flops = step_flops(config, rows, inputs, targets, method.trains_base) if peak else 0.0
        return Work(tokens, rows * (inputs + targets), flops)

    peak = peak_flops(jax.devices()[0].device_kind)
    return Pace(work, len(source.shapes), peak * jax.device_count() if peak else None)


def _agreed(number: int) -> int:
    return max(hosts.gather(number))


class _Scorer:
    """Scores a state while it trains, and at the end; the two may be of different splits."""

    def __init__(
        self,
        new: Callable[..., Evaluator],
        source: TrainBatches,
        method: Method,
        evaluation: Evaluation,
        selection: Selection,
    ):
        self._selection = selection
        new = functools.partial(new, pictures=source.pictures)
        # A task without a train split has no route of its own.
        scored = source.tasks + (source.untrained if method.routes == 1 else ())
        self._reported = new(tasks=scored, evaluation=evaluation)
        self._watched, self._beside = self._reported, None
        split = selection.split or (HELD_OUT if source.held_out is not None else None)
        if split not in (None, evaluation.split):
            watched = dataclasses.replace(evaluation, split=split)
            # Of held-out examples, those of the tasks that have any.
            tasks = source.tasks if split == HELD_OUT else scored
            self._watched = new(tasks=tasks, evaluation=watched)
            if self._watched.identity == self._reported.identity:
                self._watched = self._reported
        if selection.keep and not any(self._watched.identity.values()):
            raise UserError(f"KEEP is {selection.keep}, but there is no split to choose on")
        if selection.keep and self._watched is self._reported:
            say(
                f"KEEP={selection.keep} chooses on the split that is reported, so its score will "
                "be a little too high; Data.held_out=0.1 chooses on a tenth of the training data"
            )
        if count := selection.train_examples:
            part = dataclasses.replace(evaluation, split="train", limit=None)
            # No more than are trained on; fewer examples are the first of more.
            few = min(count, source.few_shot or count)
            self._beside = new(tasks=source.tasks, evaluation=part, few=few)
        if source.pictures is not None and not source.drawn:
            source.pictures.let_go()  # All that is trained on and scored is encoded.
        self._latest: tuple[int, Results] | None = None

    def __call__(self, state: states.TrainState) -> dict[str, float]:
        params = merge(state.frozen, state.result)
        results = self._watched(params)
        self._latest = int(state.step), results
        beside = scalars(self._beside(params), "training_eval") if self._beside else {}
        return {**scalars(results), **beside}

    def judge(self, state: states.TrainState) -> tuple[states.TrainState, bool]:
        """Returns a state after its evaluation, and whether it ends the run."""
        assert self._latest is not None  # Since the evaluation.
        state = self._selection.judged(state, chosen(self._latest[1], self._selection.metric))
        return state, self._selection.is_over(state)

    def reported(self, state: states.TrainState) -> Results:
        """Returns the results of what a run ends with."""
        step = int(state.step if state.best is None else state.best["step"])
        if self._watched is self._reported and self._latest and self._latest[0] == step:
            return self._latest[1]
        return self._reported(merge(state.frozen, state.kept))


def _outcome(state: states.TrainState, selection: Selection, train_steps: int) -> dict[str, Any]:
    """Returns what ``results.json`` says of the training."""
    outcome: dict[str, Any] = {"step": int(state.step)}
    if selection.keep is not None:
        score, step = float(state.best["score"]), int(state.best["step"])
        metric = selection.metric or "mean score"
        known = round(score, 4) if score != UNKNOWN else None
        say(f"step {step:,} of {outcome['step']:,} is kept: {metric} {known}")
        outcome["kept"] = {"step": step, "metric": metric, "score": known}
    if outcome["step"] < train_steps:
        say(f"stopped early at step {outcome['step']:,} of {train_steps:,}")
        outcome["stopped_early"] = True
    return outcome


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
    outcome: dict[str, Any],
) -> None:
    """Writes the adapter, then the results. A run with results is finished."""
    folder.record_seconds()
    # All hosts must call `whole`, since each holds parts of a sharded model.
    params = jax.tree.map(lambda leaf: sharding.whole(leaf, folder.writes), state.kept)
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
                "train_steps": outcome["step"],
                **({"kept": outcome["kept"]} if "kept" in outcome else {}),
                "scores": scalars(results),
            },
        )
        write(results, folder.path, outcome)
        folder.record_outcome()
        print_table(results)
