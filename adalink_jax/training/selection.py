"""Which step's parameters a run ends with, and when it stops for want of better ones.

What is known of it is part of the train state (`TrainState.best`), and so of every checkpoint: a
run that is killed and started again chooses as one that was not.
"""

import dataclasses
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.training.state import TrainState
from adalink_jax.values import Checked, Count, OneOf

KEEPS = ("best", "lowest")
# Stands for a score that is not a number: hosts compare what they put on devices, and NaN differs
# from itself.
UNKNOWN = math.inf


@dataclasses.dataclass(frozen=True)
class Selection(Checked):
    """What is scored while a run trains, and which step it ends with.

    Attributes:
      keep: "best" ends the run with the step of the highest score, "lowest" with that of the lowest
        (of a loss), among all that are evaluated and the start; None with the last step.
      metric: the score, named as in ``metrics.jsonl``, e.g. "eval/glue_stsb/validation/pearson";
        None for the mean of all tasks' scores.
      patience: stop after this many evaluations in a row without a better score; None for never.
      split: the split that is scored while training; None for the held-out examples
        (`Data.held_out`) if there are any, else for the split that is reported.
      train_examples: while training, score this many training examples of each task beside, as
        ``training_eval/…``; None for none.
    """

    keep: Annotated[str, OneOf(KEEPS)] | None = None
    metric: str | None = dataclasses.field(default=None, metadata={"recorded_as": "keep_metric"})
    patience: Count | None = None
    split: str | None = dataclasses.field(default=None, metadata={"recorded_as": "keep_split"})
    train_examples: Count | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("metric", "patience"):
            if self.keep is None and getattr(self, name) is not None:
                raise UserError(
                    f"Selection.{name} is {getattr(self, name)!r}, but KEEP is None, so the run "
                    "ends with its last step; set KEEP=best, or lowest for a loss"
                )

    def judged(self, state: TrainState, score: float) -> TrainState:
        """Returns the state after an evaluation, with its result as the best one if it is better.

        An equal score is not better, nor is NaN, but any is better than NaN.
        """
        # As a checkpoint holds it, so that a resumed run compares the same numbers.
        score, before = float(np.float32(score)), float(state.best["score"])
        better = score > before if self.keep == "best" else score < before
        # While no score is a number, the first state that was trained is kept.
        first = before == UNKNOWN and (not math.isnan(score) or not int(state.best["step"]))
        if not (better or first):
            return dataclasses.replace(
                state, best={**state.best, "waited": state.best["waited"] + 1}
            )
        known = UNKNOWN if math.isnan(score) else score
        return dataclasses.replace(state, best=_best(state, state.result, known))

    def is_over(self, state: TrainState) -> bool:
        """Returns whether the run has waited long enough for a better score."""
        return self.patience is not None and int(state.best["waited"]) >= self.patience


def tracking(state: TrainState, average: bool, best: bool) -> TrainState:
    """Returns a state at its start that also holds an average and a best one of what trains."""
    return dataclasses.replace(
        state,
        average=_copied(state.trainable) if average else None,
        best=_best(state, state.trainable, UNKNOWN) if best else None,
    )


def _best(state: TrainState, trainable: Any, score: float) -> dict[str, Any]:
    numbers = {"score": np.float32(score), "step": np.int32(state.step), "waited": np.int32(0)}
    place = state.step.sharding
    best = {name: jax.device_put(value, place) for name, value in numbers.items()}
    return {**best, "trainable": _copied(trainable)}


def _copied(tree: Any) -> Any:
    # The train step donates its state, so no two leaves may be one array.
    return jax.tree.map(jnp.copy, tree)
