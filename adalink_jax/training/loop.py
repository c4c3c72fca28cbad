"""The training loop, top to bottom."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax

from adalink_jax import signals
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.errors import UserError
from adalink_jax.training.pace import Pace
from adalink_jax.training.state import TrainState
from adalink_jax.values import Checked, Count

Metrics = Mapping[str, Any]


class Log(Protocol):
    """Where a run's measurements are written (`adalink_jax.runs.folder.RunFolder`)."""

    def log(
        self, step: int, values: Mapping[str, float], times: Mapping[str, float] | None = None
    ) -> None:
        """Writes a line of named values. Times are kept apart, since they differ between runs."""
        ...

    def sync(self) -> None:
        """Makes sure that all lines are on disk."""
        ...


@dataclasses.dataclass(frozen=True)
class Periods(Checked):
    """When a run evaluates, saves and logs. It does all three after the last step.

    Attributes:
      eval_period: steps between evaluations.
      eval_at_start: whether to evaluate before the first step, too.
      checkpoint_period: steps between checkpoints.
      log_period: steps between lines of metrics.
      keep_checkpoints: how many of the latest checkpoints are kept; a run goes on from the second
        if the first is damaged.
    """

    eval_period: Count = 1000
    eval_at_start: bool = False
    checkpoint_period: Count = 1000
    log_period: Count = 10
    keep_checkpoints: Count = 2


def train_loop(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batches: Iterable[Any],
    *,
    train_steps: int,
    periods: Periods,
    log: Log,
    store: Store,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    judge: Callable[[TrainState], tuple[TrainState, bool]] | None = None,
    agree: Callable[[int], int] | None = None,
    pace: Pace | None = None,
) -> TrainState:
    """Trains from the state's step to `train_steps`, or until `judge` ends it.

    After step n (counted from 1) the loop writes a line of metrics, then evaluates, then saves a
    checkpoint. So when a checkpoint exists, all lines before it do too. A resumed run cuts the
    lines after its checkpoint, and ends with the same bytes as a run that was never stopped. A
    signal stops it after a step that it saves.

    Args:
      state: where training starts.
      train_step: compiled (state, batch) -> (state, metrics); it may donate the state.
      batches: the batches from the state's step to train_steps - 1, on devices.
      train_steps: total number of steps.
      periods: when to evaluate, save and log.
      log: receives the metrics.
      store: receives the checkpoints.
      evaluate: state -> scores by name.
      judge: called after each evaluation: state -> the state to go on with, and whether to end
        here. With it, the start is evaluated.
      agree: the signal to stop, 0 for none, of this host -> that of any host. With several hosts,
        all call it after the same steps: where they evaluate, save or log.
      pace: measures the steps and tells how far they are; None for a new one.

    Raises:
      UserError: a loss, or what was trained, is not finite; nothing from that step is saved.
      Stopped: a signal stopped it.
    """
    first_step, pace, batches = int(state.step), pace or Pace(), iter(batches)
    telling = pace.telling(first_step, train_steps, periods.eval_period)
    with telling, signals.waiting() as wish:
        if first_step == 0 and (periods.eval_at_start or judge):
            with pace.evaluating() as scored:
                log.log(0, scored(evaluate(state)))
            state = judge(state)[0] if judge else state
        pending: tuple[int, Metrics] | None = None
        for step in range(first_step + 1, train_steps + 1):
            batch = pace.waited(lambda: next(batches))
            state, metrics = pace.step(train_step, step, state, batch)
            wish.take()  # Now there is a step to save, and what took long is compiled.
            # Check the previous step's loss while the device works on this step.
            if pending:
                pace.at(step - 1, _finite_loss(*pending, store))
            pending = (step, metrics)
            last = step == train_steps
            evaluates = last or step % periods.eval_period == 0
            saves = last or step % periods.checkpoint_period == 0
            logs = last or step % periods.log_period == 0
            stop = 0 if last else wish.number
            if agree and not last:
                stop = agree(stop) if logs or evaluates or saves else 0
            saves = saves or stop > 0
            if logs or evaluates or saves:
                pace.at(step, _finite_loss(*pending, store))
                pending = None
            if (evaluates or saves) and not state.finite():
                raise _diverged(f"what step {step} has trained overflows", store)
            if logs:
                log.log(step, _as_floats(metrics), pace.times())
            if evaluates:
                with pace.evaluating() as scored:
                    log.log(step, scored(evaluate(state)))
                if judge:
                    state, ends = judge(state)
                    last = last or ends
            if saves or last:
                with pace.apart("saving"):
                    log.sync()
                    store.save(step, state.saved())
                    if last or stop:
                        store.wait()
            if last:
                return state
            if stop:
                raise signals.Stopped(stop, f"stopped at step {step:,}; the same command goes on")
    return state


def _finite_loss(step: int, metrics: Metrics, store: Store) -> float:
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise _diverged(f"the loss of step {step} is {loss} with gradient norm {norm}", store)
    return loss


def _diverged(what: str, store: Store) -> UserError:
    step = store.latest_step()
    kept = f"; TRAIN_STEPS={step} ends the run at its last checkpoint" if step else ""
    return UserError(
        f"{what}: not finite, so training stops before anything of it is saved{kept}; try a lower "
        "learning rate, or float32 activations"
    )


def _as_floats(metrics: Metrics) -> dict[str, float]:
    return {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
