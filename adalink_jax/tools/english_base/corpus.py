"""Text on the device: pieces, what the teacher sees in them, and rows of two pieces."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.tools.english_base import packed, teacher

EOS = 1
ROW = 96  # Two pieces, each with its end; few are longer, and cut.
HIDDEN = 32  # Target tokens of a row.
_LAYERS = (3, 5)  # Outputs of the teacher that are learned, from 0.
_BATCH = 512  # Pieces that the teacher sees at once.
_OF_TEXT = 0.7  # Share of rows that begin with a piece of the text, not of what was made of it.
_START, _LONGEST = 0.05, 5  # Chance that a hidden span begins at a token; its tokens at most.


class Corpus(NamedTuple):
    """Pieces of text with the teacher's view of them.

    Attributes:
      tokens: [N, S], 0 on padding.
      lengths: [N].
      partners: [N], the number of a piece that belongs to it; its own if there is none.
      offsets: [N], where its tokens' states begin.
      states: [tokens of all pieces, W], outputs of two of the teacher's layers side by side.
      mean: [W], of the states.
      scale: [W], one over their standard deviation.
      embeddings: [N, E], of length 1.
      of_text: how many pieces are of the text; they are the first.
    """

    tokens: jax.Array
    lengths: jax.Array
    partners: jax.Array
    offsets: jax.Array
    states: jax.Array
    mean: jax.Array
    scale: jax.Array
    embeddings: jax.Array
    of_text: jax.Array


def load(data: pathlib.Path, dtype: Any) -> Corpus:
    """Reads the pieces and runs the teacher on all of them once.

    Args:
      data: a folder that `packed.make` wrote.
      dtype: dtype of the teacher's arithmetic.
    """
    about = json.loads((data / "data.json").read_text())
    with np.load(data / "pieces.npz") as file:
        arrays = {name: file[name] for name in file.files}
    flat, lengths = packed.read_ragged(arrays, "tokens")
    ids, id_lengths = packed.read_ragged(arrays, "teacher")
    steps = packed.padded(arrays["aligned"], lengths, packed.PIECE)
    aligned = np.cumsum(steps, 1, dtype=np.int16)
    offsets = np.cumsum(lengths) - lengths
    weights, heads = teacher.load(data / "teacher.npz", dtype)
    embeddings, states = _seen(
        weights,
        heads,
        packed.padded(ids, id_lengths, packed.TEACHER_PIECE),
        aligned,
        lengths,
        offsets,
    )
    some = states[: 1 << 14].astype(jnp.float32)
    return Corpus(
        jnp.asarray(packed.padded(flat, lengths, packed.PIECE)),
        jnp.asarray(lengths),
        jnp.asarray(np.arange(len(lengths)) + arrays["partners"]),
        jnp.asarray(offsets.astype(np.int32)),
        states,
        some.mean(0),
        1 / (some.std(0) + 1e-3),
        embeddings,
        jnp.int32(min(about["counts"]["of_text"], len(lengths))),
    )


def _seen(weights, heads, ids, aligned, lengths, offsets) -> tuple[jax.Array, jax.Array]:
    """Returns the teacher's embeddings of all pieces, and the states at all their tokens."""
    width = weights["embeddings.LayerNorm.weight"].shape[0]
    total = int(lengths.sum())

    @functools.partial(jax.jit, donate_argnums=0)
    def add(states, weights, ids, aligned, lengths, offsets):
        outputs, embeddings = teacher.states(weights, heads, ids)
        both = jnp.concatenate([outputs[i] for i in _LAYERS], -1).astype(jnp.bfloat16)
        picked = jnp.take_along_axis(both, aligned[..., None].astype(jnp.int32), 1)
        place = jnp.arange(aligned.shape[1])
        where = jnp.where(place < lengths[:, None], offsets[:, None] + place, total)
        return states.at[where].set(picked, mode="drop"), embeddings

    states = jnp.zeros((total, width * len(_LAYERS)), jnp.bfloat16)
    embeddings = []
    for start in range(0, len(ids), _BATCH):
        part = slice(start, start + _BATCH)
        rows = [ids[part], aligned[part], lengths[part], offsets[part].astype(np.int32)]
        missing = _BATCH - len(rows[0])
        rows = [np.pad(r, [(0, missing), *[(0, 0)] * (r.ndim - 1)]) for r in rows]
        rows[0][_BATCH - missing :, 0] = EOS  # A row without a token has no mean.
        states, new = add(states, weights, *rows)
        embeddings.append(new[: _BATCH - missing])
    return jnp.concatenate(embeddings), states


class Rows(NamedTuple):
    """Rows of two pieces: [R, ROW] each, but `pieces`.

    Attributes:
      tokens: the first piece, its end, the second piece, its end, padding.
      side: 0 and 1 on tokens of the first and second piece, 2 elsewhere.
      place: the place of a token in the states.
      pieces: [R, 2], the numbers of the pieces.
    """

    tokens: jax.Array
    side: jax.Array
    place: jax.Array
    pieces: jax.Array


def rows(corpus: Corpus, key: jax.Array, count: int) -> Rows:
    """Draws rows; the second piece belongs to the first in half of them."""
    keys = jax.random.split(key, 4)
    text = jax.random.bernoulli(keys[3], _OF_TEXT, (count,))
    end = jnp.where(text, corpus.of_text, corpus.lengths.shape[0])
    first = jax.random.randint(keys[0], (count,), 0, end)
    second = jax.random.randint(keys[1], (count,), 0, corpus.lengths.shape[0])
    partner = corpus.partners[first]
    near = jax.random.bernoulli(keys[2], 0.6, (count,)) & (partner != first)
    second = jnp.where(near, partner, second)
    pieces = jnp.stack([first, second], 1)
    lengths = corpus.lengths[pieces]
    at = jnp.arange(ROW)[None]
    behind = lengths[:, :1] + 1
    inside = jnp.where(at < behind, at, at - behind)
    owner = (at >= behind).astype(jnp.int32)
    length = jnp.take_along_axis(lengths, owner, 1)
    numbers = jnp.take_along_axis(pieces, owner, 1)
    tokens = corpus.tokens[numbers, jnp.minimum(inside, packed.PIECE - 1)].astype(jnp.int32)
    tokens = jnp.where(inside < length, tokens, jnp.where(inside == length, EOS, 0))
    side = jnp.where(inside < length, owner, 2)
    place = corpus.offsets[numbers] + jnp.minimum(inside, length - 1)
    return Rows(tokens, side, place, pieces)


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
