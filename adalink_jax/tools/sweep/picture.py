"""The end of the quickstart: what a base says of a picture, before and after AdaLink."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax import files
from adalink_jax.notices import load_tasks
from adalink_jax.tools.sweep import outcomes, pool, trainings

TASK, STEPS = "mini_coco", 200
_BASE, _ENCODER = "mini_images", "mini_images_encoder"
_LENGTHS = {"inputs": 16, "targets": 16}
# What the base says and what the adapter says: the folders of their runs.
_BEFORE, _AFTER = "picture_base", "picture_adalink"

_SHOWN = """
5. Another base sees pictures, through a frozen encoder. It was taught to tell of them at length,
   and was never asked for a short caption:

     input      {inputs} and a picture
     right is   {target}
     it says    {before}

   With AdaLink, a module for the image's tokens and one for the text's, {trained:,} parameters,
   trained in {steps} steps:

     it says    {after}

   That is the first of {count} pictures, right or wrong. Over all of them CIDEr, how much a caption
   shares with five right ones, goes from {low:.1f} to {high:.1f}; {first} were one of the five word
   for word, and {last} are. {image} shows the picture."""


def show(out: pathlib.Path, steps: int) -> None:
    """Scores the base, trains AdaLink by modality, prints and draws the first picture's captions.

    Args:
      out: the quickstart's folder, which gets two runs and ``report/picture.png``.
      steps: of the training.

    Raises:
      SystemExit: a run failed; what it said is printed.
    """
    sees = {"Images.encoder": _ENCODER, "Evaluation.mode": "greedy"}
    before, after = out / _BEFORE, out / _AFTER
    if not (before / "results.json").exists():
        _, flags = trainings.frozen_base(str(before), _BASE, TASK, _LENGTHS, 0)
        flags += trainings.training((), **sees)
        pool.quietly("eval", "adalink_jax.runs.evaluate", flags)
    flags = trainings.training(
        ("experiments/mini_images.gin", "methods/adalink_by_modality.gin"),
        MODEL_DIR=str(after), INITIAL_CHECKPOINT_PATH=_BASE, MIXTURE_OR_TASK_NAME=TASK,
        BATCH_SIZE=16, RANK=4, LEARNING_RATE=0.03, TRAIN_STEPS=steps, EVAL_PERIOD=steps,
    )  # fmt: skip
    pool.quietly("train", "adalink_jax.runs.train", flags)
    said = [outcomes.predictions(folder, TASK) for folder in (before, after)]
    one = said[0][0] | {"before": said[0][0]["prediction"], "after": said[1][0]["prediction"]}
    image, made = out / "report" / "picture.png", after / "results.json"
    if not image.exists() or image.stat().st_mtime < made.stat().st_mtime:
        _draw(one, image)
    print(
        _SHOWN.format(
            **one, steps=steps, trained=outcomes.trained(after), count=len(said[0]), image=image,
            low=outcomes.score(before, TASK), high=outcomes.score(after, TASK),
            first=_exact(said[0]), last=_exact(said[1]),
        )
    )  # fmt: skip


def _exact(predictions: Sequence[Mapping[str, Any]]) -> int:
    """Counts the captions that are one of the right ones, word for word."""
    return sum(one["prediction"] in (one["references"] or ()) for one in predictions)


def _draw(one: Mapping[str, Any], to: pathlib.Path) -> None:
    """Draws a validation picture beside its captions, as a PNG."""
    import matplotlib.figure

    load_tasks()
    import tasks

    figure = matplotlib.figure.Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.imshow(tasks.PICTURES[f"{TASK}_validation"](one["index"]), interpolation="nearest")
    texts = {"right is": "target", "the base says": "before", "with AdaLink it says": "after"}
    for number, (label, key) in enumerate(texts.items()):
        height = 0.95 - number / 3
        right.text(0, height, label, va="top", color="gray")
        right.text(0, height - 0.1, textwrap.fill(str(one[key]), 52), va="top")
    for axes in (left, right):
        axes.axis("off")
    with files.replaced_file(to) as image:
        figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
