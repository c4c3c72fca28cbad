"""Rows of instructions and of GLUE, as token arrays."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adalink_jax.tools.english_base import packed
from adalink_jax.tools.english_base.vocabulary import EOS

ROW = 96
WIDTHS = (32, 64, ROW)
GLUE_ROW = 128
TARGET = 8  # Tokens of an answer at most.
_SIMILAR = 20_000  # Pairs of pieces whose likeness the teacher gives.
_AMONG = 8_000  # Pieces among which the nearest is sought.
# How often a kind is drawn. A word as an answer has ten times the loss of a choice between two, and
# would drown them.
_WEIGHTS = {"logic": 3.0, "sentiment": 3.0, "grammar": 3.0, "similar": 2.0, "same": 2.0,
            "answered": 2.0, "next": 0.5, "defined": 0.1, "kind_of": 0.1}  # fmt: skip

Embed = Callable[[np.ndarray], np.ndarray]


class Examples:
    """Instructions as rows.

    Args:
      data: a folder that `prepare.make` wrote.
      tokens: [N, S], the pieces.
      embed: gives the teacher's embeddings [M, E], of length 1, of the pieces of M numbers.
      seed: chooses templates and pairs.
    """

    def __init__(self, data: pathlib.Path, tokens: np.ndarray, embed: Embed, seed: int):
        self._about = json.loads((data / "data.json").read_text())
        self._answers = list(self._about["answers"].values())
        self._rng = np.random.default_rng(seed)
        self._tokens = [row[row > 0].tolist() for row in tokens]
        with np.load(data / "instructions.npz") as file:
            made = {name: file[name] for name in file.files}
        kinds = sorted({template["kind"] for template in self._about["templates"]})
        first, second, label = self._similar(len(tokens), embed)
        kind = np.concatenate([made["kind"], np.full(len(first), kinds.index("similar"))])
        first = np.concatenate([made["first"], first])
        second = np.concatenate([made["second"], second])
        label = np.concatenate([made["label"], label])
        self.inputs = np.zeros((len(kind), ROW), np.uint16)
        self.targets = np.zeros((len(kind), TARGET), np.uint16)
        for i, (number, *rest) in enumerate(zip(kind, first, second, label, strict=True)):
            self._fill(i, kinds[number], *map(int, rest))
        self._weigh(np.array([_WEIGHTS[name] for name in kinds])[kind], kind, len(kinds))
        # The texts are in the rows now.
        del self._tokens

    def _weigh(self, weights: np.ndarray, kind: np.ndarray, kinds: int) -> None:
        """Sorts the rows by width; a kind's weight is shared by its rows."""
        weights = weights / np.bincount(kind, minlength=kinds)[kind]
        widths = np.array(WIDTHS)[np.searchsorted(WIDTHS, (self.inputs > 0).sum(1))]
        self._of_width = {width: np.flatnonzero(widths == width) for width in WIDTHS}
        self._chances = {width: weights[rows].cumsum() for width, rows in self._of_width.items()}

    def batch(self, shape: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws rows of like length, kinds by their weights.

        Args:
          shape: number of steps S and rows R of `ROW` tokens; narrower ones are more.
          rng: draws.

        Returns:
          `inputs` [S, R * ROW / W, W] of one width W of `WIDTHS` and `targets` [..., TARGET].
        """
        totals = {width: chances[-1] for width, chances in self._chances.items() if len(chances)}
        shares = np.array(list(totals.values()))
        # A width with twice the rows in a step is drawn half as often.
        shares = shares * np.array(list(totals))
        width = int(rng.choice(list(totals), p=shares / shares.sum()))
        steps, rows = shape
        places = rng.random((steps, rows * ROW // width)) * totals[width]
        drawn = np.searchsorted(self._chances[width], places, side="right")
        drawn = self._of_width[width][np.minimum(drawn, len(self._of_width[width]) - 1)]
        return {"inputs": self.inputs[drawn, :width], "targets": self.targets[drawn]}

    def _similar(self, count: int, embed: Embed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns pairs of pieces: neighbours by the teacher, pieces side by side, strangers."""
        first = self._rng.integers(0, count, min(_SIMILAR, 2 * count))
        among = self._rng.integers(0, count, min(_AMONG, count))
        second = self._rng.integers(0, count, len(first))
        part = len(first) // 3
        # What stands side by side belongs together: a text goes on, or was changed.
        second[part : 2 * part] = np.minimum(first[part : 2 * part] + 1, count - 1)
        seen = np.unique(np.concatenate([first, second, among]))
        embeddings = embed(seen)

        def of(numbers: np.ndarray) -> np.ndarray:
            return embeddings[np.searchsorted(seen, numbers)]

        near = of(first[:part]) @ of(among).T
        near[first[:part, None] == among] = -1
        second[:part] = among[near.argmax(1)]
        likeness = (of(first) * of(second)).sum(1)
        score = np.round(np.clip(likeness, 0, 1) * 25) / 5
        names = list(self._about["answers"])
        return first, second, np.array([-1 - names.index(f"{value:.1f}") for value in score])

    def _fill(self, i: int, kind: str, first: int, second: int, label: int) -> None:
        """Writes the row of one instruction."""
        templates = [t for t in self._about["templates"] if t["kind"] == kind]
        template = templates[self._rng.integers(len(templates))]
        before, between, after = template["parts"]
        room = ROW - 1 - len(before) - len(between or ()) - len(after)
        own = self._tokens[first]
        other = self._tokens[second] if between is not None else []
        other = other[: max(room // 2, room - len(own))]
        own = own[: room - len(other)]
        row = [*before, *own, *(between or ()), *other, *after, EOS]
        self.inputs[i, : len(row)] = row
        if label < 0:
            answer = self._answers[-1 - label]
        else:
            answer = self._about["answers"][template["answers"][label]]
        answer = [*answer[: TARGET - 1], EOS]
        self.targets[i, : len(answer)] = answer


def glue(data: pathlib.Path) -> Mapping[str, Mapping[str, Any]]:
    """Reads GLUE's training sets.

    Returns:
      For each task `inputs` [N, GLUE_ROW], `labels` [N] and `firsts`, the first token of each
      label; for "stsb" also the two sentences alone, `first` and `second`.
    """
    found = {}
    with np.load(data / "glue.npz") as file:
        for task in (name[: -len("_firsts")] for name in file.files if name.endswith("_firsts")):
            rows = {"inputs": packed.padded(*packed.read_ragged(file, task), GLUE_ROW)}
            rows |= {"labels": file[f"{task}_labels"], "firsts": file[f"{task}_firsts"]}
            if task == "stsb":
                for name in ("first", "second"):
                    rows[name] = packed.padded(*packed.read_ragged(file, f"stsb_{name}"), GLUE_ROW)
            found[task] = rows
    return found
