"""Rows of text: pieces one after another, each with its end; and what is hidden of a row."""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.tools.english_base import packed
from adalink_jax.tools.english_base.vocabulary import EOS

ROW = 96
HIDDEN = 32  # Target tokens of a row.
_OF_TEXT = 0.7  # Share of rows that are of the text for sure; the others are of all pieces.
_START, _LONGEST = 0.05, 5  # Chance that a hidden span begins at a token; its tokens at most.


class Corpus(NamedTuple):
    """Pieces of text, and the rows that they fill.

    Attributes:
      pieces: [N, S], 0 on padding.
      rows: [M, ROW], 0 on padding.
      of_text: how many rows are of the text; they are the first.
    """

    pieces: np.ndarray
    rows: np.ndarray
    of_text: int


def load(data: pathlib.Path) -> Corpus:
    """Reads the pieces of a folder that `prepare.make` wrote."""
    about = json.loads((data / "data.json").read_text())
    with np.load(data / "pieces.npz") as file:
        flat, lengths = packed.read_ragged(file, "tokens")
    pieces = packed.padded(flat, lengths, packed.PIECE)
    # A piece begins a row where it does not fit behind those before it.
    count, filled, row, begins = len(lengths), 0, -1, []
    for length in lengths.tolist():
        if row < 0 or filled + length + 1 > ROW:
            row, filled = row + 1, 0
        begins.append(row * ROW + filled)
        filled += length + 1
    rows = np.zeros((row + 1) * ROW, flat.dtype)
    start = np.repeat(begins, lengths)
    inside = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows[start + inside] = flat
    rows[np.array(begins) + lengths] = EOS
    last = min(about["counts"]["of_text"], count) - 1
    return Corpus(pieces, rows.reshape(-1, ROW), begins[last] // ROW + 1)


def batch(corpus: Corpus, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws rows, [*shape, ROW]."""
    ends = np.where(rng.random(shape) < _OF_TEXT, corpus.of_text, len(corpus.rows))
    return corpus.rows[(rng.random(shape) * ends).astype(int)]


class Corrupted(NamedTuple):
    """Rows with hidden tokens.

    Attributes:
      inputs: [R, ROW], what is left, with a sentinel for each hidden span.
      origin: [R, ROW], where each input token stood; ROW for sentinels and padding.
      targets: [R, HIDDEN], what is hidden, cut to that many tokens.
    """

    inputs: jax.Array
    origin: jax.Array
    targets: jax.Array


def corrupt(tokens: jax.Array, key: jax.Array, prefix: jax.Array, vocab_size: int) -> Corrupted:
    """Hides tokens of rows: spans, as T5 does, or all behind a place, as for a language model.

    Args:
      tokens: [R, ROW].
      key: chooses.
      prefix: [R], whether all behind a place is hidden.
      vocab_size: the sentinels are the last ids, in falling order.
    """
    keys = jax.random.split(key, 3)
    at = jnp.arange(ROW)[None]
    count = (tokens > 0).sum(1, keepdims=True)
    start = jax.random.bernoulli(keys[0], _START, tokens.shape)
    length = jax.random.randint(keys[1], tokens.shape, 1, _LONGEST + 1)
    mask = functools.reduce(
        jnp.logical_or,
        (_shifted(start & (length > i), i) for i in range(_LONGEST)),
    ) & (tokens > EOS)
    cut = 1 + (jax.random.uniform(keys[2], count.shape) * (count - 1)).astype(jnp.int32)
    behind = (at >= cut) & (tokens > 0)
    mask = jnp.where(prefix[:, None], behind, mask)
    first = mask & ~_shifted(mask, 1) & ~prefix[:, None]
    sentinels = vocab_size - jnp.cumsum(first, 1)
    kept = (tokens > 0) & (~mask | first)
    order = jnp.argsort(jnp.where(kept, at, ROW + at), axis=1)
    left = kept.sum(1, keepdims=True)
    inputs = jnp.take_along_axis(jnp.where(first, sentinels, tokens), order, 1)
    origin = jnp.where(jnp.take_along_axis(first, order, 1), ROW, order)
    inputs = jnp.where(at < left, inputs, jnp.where((at == left) & prefix[:, None], EOS, 0))
    origin = jnp.where(at < left, origin, ROW)
    place = jnp.cumsum(mask, 1) + jnp.cumsum(first, 1) - 1
    row = jnp.arange(tokens.shape[0])[:, None]
    targets = jnp.zeros((tokens.shape[0], HIDDEN), jnp.int32)
    targets = targets.at[row, jnp.where(mask, place, HIDDEN)].set(tokens, mode="drop")
    targets = targets.at[row, jnp.where(first, place - 1, HIDDEN)].set(sentinels, mode="drop")
    end = place[:, -1:] + 1
    targets = targets.at[row, jnp.where(prefix[:, None], HIDDEN, end)].set(EOS, mode="drop")
    return Corrupted(inputs, origin, targets)


def _shifted(flags: jax.Array, by: int) -> jax.Array:
    return jnp.pad(flags, ((0, 0), (by, 0)))[:, : flags.shape[1]]
