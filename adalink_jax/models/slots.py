"""Generation in slots: rows that begin and end on their own, and share every step.

A slot holds one row: its source, which is the keys and values of the encoded input for the
decoder's attention to it, the cache of its own tokens, and how its tokens are chosen. `begin` fills
slots that are free, `advance` adds tokens to all slots. Which of a slot's tokens count is known to
who fills it.

A row's tokens do not depend on the rows beside it: each is computed as if it were alone
(`jax.vmap`), and drawn by a seed of its own.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from adalink_jax.methods.base import Array, Params
from adalink_jax.models.decoding import BROKEN
from adalink_jax.models.inputs import EncoderInputs
from adalink_jax.models.t5 import Transformer


@flax.struct.dataclass
class Choice:
    """How each row's next token is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_p: only the most likely tokens are drawn whose probabilities add up to this; 1 for all.
      seed: with the token's number, all that a draw depends on.
    """

    temperature: Float[Array, " S"]
    top_p: Float[Array, " S"]
    seed: Int[Array, " S"]


@flax.struct.dataclass
class Slots:
    """S rows that are being decoded.

    Attributes:
      inputs: without images; they say which of the source a row may see, and its route.
      last: the newest token; 0 at first.
      count: number of generated tokens.
      choice: how the next one is chosen.
      source: the decoder's keys and values of the encoded inputs, every leaf [S, …].
      cache: keys and values of the tokens so far, every leaf [S, …].
    """

    inputs: EncoderInputs
    last: Int[Array, " S"]
    count: Int[Array, " S"]
    choice: Choice
    source: Params
    cache: Params


def empty(
    model: Transformer,
    params: Params,
    size: int,
    longest: int,
    max_length: int,
    images: int | None = None,
) -> Slots:
    """Returns free slots.

    Args:
      model: the network with its method.
      params: base and adapter, merged; arrays or their shapes.
      size: S.
      longest: T, the most tokens of an input.
      max_length: L, the most tokens to generate.
      images: M, the vectors of images of each row; None for text alone.
    """

    def zeros(*shape: int, dtype: Any = jnp.int32) -> Array:
        return jnp.zeros((size, *shape), dtype)

    inputs = EncoderInputs(zeros(longest), zeros())
    if images is not None:
        vectors = zeros(images, model.config.image_width or 0, dtype=model.config.dtype)
        inputs = EncoderInputs.of(inputs.tokens, inputs.routes, vectors)

    def made(params, inputs):
        encoded, source = _read(model, params, inputs)
        tokens = jnp.zeros((1, max_length), jnp.int32)
        _, cache = _decode(model, params, encoded, inputs, tokens, max_length, source, {})
        return source, cache

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    shapes = jax.eval_shape(made, params, one)
    source, cache = jax.tree.map(lambda leaf: zeros(*leaf.shape, dtype=leaf.dtype), shapes)
    choice = Choice(zeros(dtype=jnp.float32), zeros(dtype=jnp.float32), zeros())
    return Slots(dataclasses.replace(inputs, images=None), zeros(), zeros(), choice, source, cache)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("slots",))
def begin(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T2"],
    slots: Slots,
    places: Int[Array, " B"],
    routes: Int[Array, " B"],
    choice: Choice,
    encoder_images: Float[Array, "B M Dv"] | None = None,
    encoder_image_mask: Int[Array, "B M"] | None = None,
) -> Slots:
    """Encodes inputs, and puts them into slots.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      tokens: token ids, 0 on padding; T2 ≤ T.
      slots: their arrays are given up.
      places: each row's slot; S or more for a row that only fills up the batch.
      routes: each row's route.
      choice: how the rows' tokens are chosen.
      encoder_images: vectors of each row's images, of the slots' M; None if that is None.
      encoder_image_mask: 1 where such a vector is real, 0 on padding; None if all are.
    """
    inputs = EncoderInputs.of(tokens, routes, encoder_images, encoder_image_mask)
    _, source = jax.vmap(functools.partial(_read, model, params))(inputs)

    def put(into: jax.Array, rows: Array) -> jax.Array:
        # Shorter inputs are filled up: behind them, as a method puts its own vectors in front.
        more = [a - b for a, b in zip(into.shape[1:], rows.shape[1:], strict=True)]
        rows = jnp.pad(rows, [(0, 0), *((0, n) for n in more)])
        return into.at[places].set(rows.astype(into.dtype), mode="drop")

    rows = len(places)
    fresh = Slots(
        inputs=dataclasses.replace(inputs, images=None),
        last=jnp.zeros(rows, jnp.int32),
        count=jnp.zeros(rows, jnp.int32),
        choice=choice,
        source=source,
        # Zeros, as another row's numbers that are not finite would stay so behind any mask.
        cache=jax.tree.map(
            lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype), slots.cache
        ),
    )
    return jax.tree.map(put, slots, fresh)


@functools.partial(jax.jit, static_argnames=("model", "steps"), donate_argnames=("slots",))
def advance(
    model: Transformer, params: Params, slots: Slots, steps: int
) -> tuple[Slots, Int[Array, "S steps"]]:
    """Adds tokens to all slots.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      slots: their arrays are given up.
      steps: number of tokens.

    Returns:
      The slots and the new tokens; `BROKEN` where a row's logits are not finite. What follows a
      row's EOS, or `max_length` tokens, means nothing.
    """
    # The axis of keys is the third last; all leaves that are no numbers have it.
    length = max(leaf.shape[-3] for leaf in jax.tree.leaves(slots.cache) if leaf.ndim > 3)
    wide = next(leaf.shape[-3] for leaf in jax.tree.leaves(slots.source))
    encoded = jnp.zeros((1, wide, model.config.emb_dim), model.config.dtype)  # Only its shape.

    def one(inputs, last, source, cache):
        token = last[None, None]
        logits, cache = _decode(model, params, encoded, inputs, token, length, source, cache)
        return logits[0, 0], cache

    def step(slots: Slots, _: None):
        logits, cache = jax.vmap(one)(slots.inputs, slots.last, slots.source, slots.cache)
        token = _chosen(logits, slots.choice, slots.count)
        token = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), token, BROKEN)
        changed = {"last": jnp.maximum(token, 0), "count": slots.count + 1, "cache": cache}
        slots = dataclasses.replace(slots, **changed)
        return slots, token

    slots, tokens = jax.lax.scan(step, slots, None, length=steps)
    return slots, tokens.T


def _chosen(
    logits: Float[Array, "S V"], choice: Choice, count: Int[Array, " S"]
) -> Int[Array, " S"]:
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def one(logits, greedy, temperature, top_p, seed, count):
        logits = logits / jnp.where(temperature > 0, temperature, 1)
        order = jnp.argsort(-logits)
        share = jax.nn.softmax(logits[order])
        # Up to and with the token that reaches top_p.
        kept = jnp.where(jnp.cumsum(share) - share < top_p, logits[order], -jnp.inf)
        key = jax.random.fold_in(jax.random.key(seed), count)
        drawn = order[jax.random.categorical(key, kept)].astype(jnp.int32)
        return jnp.where(temperature > 0, drawn, greedy)

    def drawn():
        each = (logits, greedy, choice.temperature, choice.top_p, choice.seed, count)
        return jax.vmap(one)(*each)

    # Sorting a vocabulary takes longer than a step of a small model.
    return jax.lax.cond(jnp.any(choice.temperature > 0), drawn, lambda: greedy)


def _batch_of_one(row: EncoderInputs) -> EncoderInputs:
    return jax.tree.map(lambda leaf: leaf[None], row)


def _read(
    model: Transformer, params: Params, row: EncoderInputs
) -> tuple[Float[Array, "1 T2 D"], Params]:
    """Encodes one row; returns the sequence, and its keys and values for the decoder."""
    inputs = _batch_of_one(row)
    encoded = model.apply(
        {"params": params}, **inputs.to_encode(), enable_dropout=False, method="encode"
    )
    first = jnp.zeros((1, 1), jnp.int32)
    # Only "source" is taken, so XLA leaves out all else of this token.
    _, made = model.apply(
        {"params": params},
        encoded,
        decoder_input_tokens=first,
        decoder_target_tokens=jnp.ones_like(first),
        enable_dropout=False,
        **inputs.to_decode(1),
        method="decode",
        mutable=["source"],
    )
    return encoded, made["source"]


def _decode(model, params, encoded, row, tokens, max_length, source, cache):
    """Decodes one row's next token; without a cache, makes one for the tokens' length."""
    logits, made = model.apply(
        {"params": params, "source": source, **({"cache": cache} if cache else {})},
        encoded,
        decoder_input_tokens=tokens,
        decoder_target_tokens=jnp.ones_like(tokens),
        enable_dropout=False,
        decode=True,
        max_decode_length=max_length,
        **_batch_of_one(row).to_decode(tokens.shape[1]),
        method="decode",
        mutable=["cache"],
    )
    return logits, made["cache"]
