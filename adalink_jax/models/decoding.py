"""Generation and scoring with a T5: greedy, beam search, and the likelihood of given options.

The encoder runs once per call. Generation keeps the decoder's keys and values in the network's
"cache" collection, and runs in a `lax.while_loop` that ends when every row has ended. XLA computes
values that the loop does not change, such as the keys and values of cross-attention, once before
the loop.

A row without input tokens and images only fills up a batch. It is not decoded: its output tokens
are all 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Params
from adalink_jax.models.inputs import EncoderInputs, Routes
from adalink_jax.models.t5 import Transformer

# Maximum size in bytes, over all devices, of the logits of one chunk of scored options.
LOGITS_BYTES = 2**28

# What is generated where logits are not finite, as they are with a damaged base or adapter.
BROKEN = -1


@functools.partial(jax.jit, static_argnames=("model", "max_length", "eos_id"))
def greedy(
    model: Transformer,
    params: Params,
    encoder_input_tokens: Int[Array, "B T"],
    max_length: int,
    *,
    routes: Routes | None = None,
    encoder_images: Float[Array, "B M Dv"] | None = None,
    encoder_image_mask: Int[Array, "B M"] | None = None,
    eos_id: int = 1,
) -> Int[Array, "B L"]:
    """Generates greedily: always the most likely next token.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: token ids, 0 on padding.
      max_length: L, the maximum number of generated tokens, including EOS.
      routes: for methods with several routes; the decoder uses the first input token's route.
      encoder_images: vectors of each row's images, which do not count as generated tokens.
      encoder_image_mask: 1 where such a vector is real, 0 on padding; None if all are.
      eos_id: the token that ends a row.

    Returns:
      int32 tokens, including EOS if it was generated, then 0. A row whose logits are not finite
      holds `BROKEN`.
    """
    inputs = EncoderInputs.of(encoder_input_tokens, routes, encoder_images, encoder_image_mask)
    encoded = _encode(model, params, inputs)
    step, cache = _decoder(model, params, encoded, inputs, max_length)
    batch = encoder_input_tokens.shape[0]

    def unfinished(state):
        now, _, ended, _, _ = state
        return (now < max_length) & ~jnp.all(ended)

    def extend(state):
        now, last, ended, tokens, cache = state
        logits, cache = step(last, cache)
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        token = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), token, BROKEN)
        token = jnp.where(ended, 0, token)
        ended |= (token == eos_id) | (token == BROKEN)
        return now + 1, token, ended, tokens.at[:, now].set(token), cache

    last = jnp.zeros(batch, jnp.int32)
    tokens = jnp.zeros((batch, max_length), jnp.int32)
    state = (0, last, inputs.empty, tokens, cache)
    return jax.lax.while_loop(unfinished, extend, state)[3]


@functools.partial(
    jax.jit, static_argnames=("model", "max_length", "beam_size", "length_penalty", "eos_id")
)
def beam_search(
    model: Transformer,
    params: Params,
    encoder_input_tokens: Int[Array, "B T"],
    max_length: int,
    *,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    routes: Routes | None = None,
    encoder_images: Float[Array, "B M Dv"] | None = None,
    encoder_image_mask: Int[Array, "B M"] | None = None,
    eos_id: int = 1,
) -> Int[Array, "B L"]:
    """Generates by beam search and returns each row's best output.

    Source: T5X ``t5x/decoding.py``. An output of n tokens, including EOS, scores
    ``log-probability / ((5 + n) / 6)^alpha`` (Wu et al. 2016, eq. 14). Each step takes the
    ``2 · beam_size`` most likely continuations. Those that end with EOS are outputs; the
    `beam_size` best of the others continue. A row stops when no continuation can beat its best
    output. If a row has no output within `max_length`, its most likely unfinished beam is
    returned. A single beam is greedy decoding.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: token ids, 0 on padding.
      max_length: L, the maximum number of generated tokens, including EOS.
      beam_size: number of unfinished outputs that are kept.
      length_penalty: alpha ≥ 0; 0 compares log-probabilities, larger values favor longer outputs.
      routes: as in `greedy`.
      encoder_images: as in `greedy`.
      encoder_image_mask: as in `greedy`.
      eos_id: the token that ends a row.

    Returns:
      int32 tokens, including EOS if it was generated, then 0. A row whose logits are not finite
      holds `BROKEN`.

    Raises:
      ValueError: `beam_size` < 1 or `length_penalty` < 0.
    """
    if beam_size < 1 or length_penalty < 0:
        raise ValueError(f"beam_size {beam_size} must be ≥ 1, length_penalty {length_penalty} ≥ 0")
    if beam_size == 1:
        return greedy(
            model,
            params,
            encoder_input_tokens,
            max_length,
            routes=routes,
            encoder_images=encoder_images,
            encoder_image_mask=encoder_image_mask,
            eos_id=eos_id,
        )
    inputs = EncoderInputs.of(encoder_input_tokens, routes, encoder_images, encoder_image_mask)
    empty, encoded = inputs.empty, _encode(model, params, inputs)
    # Beams of one example are neighboring rows. The images are read.
    encoded, inputs = jax.tree.map(
        lambda x: jnp.repeat(x, beam_size, axis=0),
        (encoded, dataclasses.replace(inputs, images=None)),
    )
    step, cache = _decoder(model, params, encoded, inputs, max_length)
    search = _Search(step, beam_size, length_penalty, max_length, eos_id)
    state = search.start(empty, cache)
    state = jax.lax.while_loop(search.unfinished, search.extend, state)
    finished = state["best_score"] > -jnp.inf
    tokens = jnp.where(finished[:, None], state["best"], state["live"][:, 0])
    return jnp.where(state["broken"][:, None], BROKEN, tokens)


@functools.partial(jax.jit, static_argnames=("model",))
def score_options(
    model: Transformer,
    params: Params,
    encoder_input_tokens: Int[Array, "B T"],
    options: Int[Array, "C L"] | Int[Array, "B C L"],
    routes: Routes | None = None,
    encoder_images: Float[Array, "B M Dv"] | None = None,
    encoder_image_mask: Int[Array, "B M"] | None = None,
) -> Float[Array, "B C"]:
    """Computes the log-likelihood of every option given every input.

    It is the sum of the log-probabilities of the option's tokens, including EOS, and is not
    divided by the option's length. T5X's ``score_batch`` does the same for rank classification.

    All options of an example share its encoding. They also share its keys and values of
    cross-attention, because only the decoder is mapped over options. Options are scored in
    chunks, so memory does not grow with their number.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: token ids, 0 on padding.
      options: each option's tokens with EOS, 0 on padding; of all rows, or each row's own.
      routes: as in `greedy`.
      encoder_images: as in `greedy`.
      encoder_image_mask: as in `greedy`.

    Returns:
      float32 log-likelihoods.
    """
    source = EncoderInputs.of(encoder_input_tokens, routes, encoder_images, encoder_image_mask)
    encoded = _encode(model, params, source)
    batch = encoder_input_tokens.shape[0]
    if options.ndim == 3:
        options = jnp.swapaxes(options, 0, 1)
    count, length = options.shape[0], options.shape[-1]

    def score(option: Int[Array, " L"] | Int[Array, "B L"]) -> Float[Array, " B"]:
        inputs = jnp.pad(option[..., :-1], [*[(0, 0)] * (option.ndim - 1), (1, 0)])
        inputs, targets = (jnp.broadcast_to(x, (batch, length)) for x in (inputs, option))
        return _log_likelihood(model, params, encoded, source, inputs, targets)

    fitting = 1  # Stays 1 if sizes are symbolic (`jax.export`).
    if isinstance(batch, int) and isinstance(length, int):
        fitting = max(1, LOGITS_BYTES // (4 * batch * length * model.config.vocab_size))
    chunks = -(-count // fitting)
    size = -(-count // chunks)
    padded = jnp.pad(options, [(0, chunks * size - count), *[(0, 0)] * (options.ndim - 1)])
    scores = jax.lax.map(jax.vmap(score), padded.reshape(chunks, size, *options.shape[1:]))
    return scores.reshape(chunks * size, batch)[:count].T


def encoded_options(labels: Sequence[str], vocabulary: Any) -> Int[np.ndarray, "C L"]:
    """Encodes texts for `score_options`: each one's tokens with EOS, then 0.

    Args:
      labels: the texts.
      vocabulary: has ``encode`` and ``eos_id``.

    Raises:
      UserError: two of them are the same tokens, so that no model can tell them apart.
    """
    tokens = [(*vocabulary.encode(label), vocabulary.eos_id) for label in labels]
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, tokens, strict=True):
        if ids in seen:
            raise UserError(
                f"labels '{seen[ids]}' and '{label}' are the same tokens in this vocabulary, so no "
                "model can tell them apart; write other words in their place"
            )
        seen[ids] = label
    options = np.zeros((len(tokens), max(map(len, tokens), default=0)), np.int32)
    for row, ids in zip(options, tokens, strict=True):
        row[: len(ids)] = ids
    return options


@functools.partial(jax.jit, static_argnames=("model",))
def score_targets(
    model: Transformer,
    params: Params,
    encoder_input_tokens: Int[Array, "B T"],
    targets: Int[Array, "B L"],
    routes: Routes | None = None,
    encoder_images: Float[Array, "B M Dv"] | None = None,
    encoder_image_mask: Int[Array, "B M"] | None = None,
) -> Float[Array, " B"]:
    """Computes the log-likelihood of each row's own target, as `score_options` does of options.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: token ids, 0 on padding.
      targets: each row's tokens with EOS, 0 on padding.
      routes: as in `greedy`.
      encoder_images: as in `greedy`.
      encoder_image_mask: as in `greedy`.

    Returns:
      float32 log-likelihoods.
    """
    source = EncoderInputs.of(encoder_input_tokens, routes, encoder_images, encoder_image_mask)
    encoded = _encode(model, params, source)
    inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return _log_likelihood(model, params, encoded, source, inputs, targets)


def _log_likelihood(
    model: Transformer,
    params: Params,
    encoded: Float[Array, "B T2 D"],
    source: EncoderInputs,
    inputs: Int[Array, "B L"],
    targets: Int[Array, "B L"],
) -> Float[Array, " B"]:
    logits = model.apply(
        {"params": params},
        encoded,
        decoder_input_tokens=inputs,
        decoder_target_tokens=targets,
        enable_dropout=False,
        **source.to_decode(targets.shape[1]),
        method="decode",
    )
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(log_probs, axis=-1, where=targets > 0)


def _encode(model: Transformer, params: Params, inputs: EncoderInputs) -> Float[Array, "B T2 D"]:
    return model.apply(
        {"params": params}, **inputs.to_encode(), enable_dropout=False, method="encode"
    )


def _decoder(
    model: Transformer,
    params: Params,
    encoded: Float[Array, "B T2 D"],
    source: EncoderInputs,
    max_length: int,
) -> tuple[Callable, Params]:
    """Returns ``step(tokens [B], cache) → (logits [B,V], cache)`` and the empty cache."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be at least 1")

    def decode(inputs: Int[Array, "B L"], cache: Params):
        return model.apply(
            {"params": params, **cache},
            encoded,
            decoder_input_tokens=inputs,
            decoder_target_tokens=jnp.ones_like(inputs),
            enable_dropout=False,
            decode=True,
            max_decode_length=max_length,
            **source.to_decode(inputs.shape[1]),
            method="decode",
            mutable=["cache"],
        )

    def step(tokens: Int[Array, " B"], cache: Params):
        logits, cache = decode(tokens[:, None], cache)
        return logits[:, 0], cache

    full_length = jnp.zeros((encoded.shape[0], max_length), jnp.int32)
    _, shapes = jax.eval_shape(decode, full_length, {})
    return step, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


class _Search:
    """The start, the step and the stop condition of a beam search.

    The state is a dict: now (number of tokens so far), live [B,k,L] and their log-probabilities
    live_score [B,k] in descending order, best [B,L] and its penalized best_score [B], broken [B]
    (whether logits were not finite), and the cache, whose rows are the B·k beams.
    """

    def __init__(self, step: Callable, beams: int, alpha: float, max_length: int, eos_id: int):
        self.step, self.beams, self.alpha = step, beams, alpha
        self.max_length, self.eos_id = max_length, eos_id

    def start(self, filler: Bool[Array, " B"], cache: Params) -> dict[str, Any]:
        """Returns the state before the first token."""
        shape = (filler.shape[0], self.beams, self.max_length)
        # All beams are equal at first, so only the first one counts.
        live_score = jnp.full(shape[:2], -jnp.inf).at[:, 0].set(0.0)
        return {
            "now": 0,
            "live": jnp.zeros(shape, jnp.int32),
            "live_score": live_score,
            "best": jnp.zeros((shape[0], shape[2]), jnp.int32),
            "best_score": jnp.where(filler, jnp.inf, -jnp.inf),
            "broken": jnp.zeros_like(filler),
            "cache": cache,
        }

    def penalty(self, length):
        """Returns the divisor of the log-probability of an output with `length` tokens."""
        return ((5.0 + length) / 6.0) ** self.alpha

    def unfinished(self, state) -> Bool[Array, ""]:
        """Returns whether some row may still get a better output."""
        # Log-probabilities only decrease, and the longest output has the largest divisor.
        bound = state["live_score"][:, 0] / self.penalty(self.max_length)
        return (state["now"] < self.max_length) & jnp.any(state["best_score"] < bound)

    def extend(self, state) -> dict[str, Any]:
        """Adds one token to every live beam."""
        now, live = state["now"], state["live"]
        batch, beams, _ = live.shape
        last = jnp.where(now > 0, live[:, :, now - 1], 0)
        logits, cache = self.step(last.reshape(-1), state["cache"])
        finite = jnp.isfinite(jnp.max(logits, axis=-1)).reshape(batch, beams)
        log_probs = jax.nn.log_softmax(logits).reshape(batch, beams, -1)
        scores = (state["live_score"][..., None] + log_probs).reshape(batch, -1)
        score, place = jax.lax.top_k(scores, 2 * beams)  # [B,2k]
        parent, token = jnp.divmod(place.astype(jnp.int32), log_probs.shape[-1])
        tokens = jnp.take_along_axis(live, parent[..., None], axis=1).at[:, :, now].set(token)
        ends = token == self.eos_id

        ended = jnp.where(ends, score, -jnp.inf) / self.penalty(now + 1)
        top = jnp.argmax(ended, axis=1)[:, None]
        ended = jnp.take_along_axis(ended, top, axis=1)[:, 0]
        better = ended > state["best_score"]
        top_tokens = jnp.take_along_axis(tokens, top[..., None], axis=1)[:, 0]

        live_score, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, score), beams)
        rows = jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(parent, kept, axis=1)
        return {
            "now": now + 1,
            "live": jnp.take_along_axis(tokens, kept[..., None], axis=1),
            "live_score": live_score,
            "best": jnp.where(better[:, None], top_tokens, state["best"]),
            "best_score": jnp.where(better, ended, state["best_score"]),
            "broken": state["broken"] | ~jnp.all(finite, axis=1),
            "cache": jax.tree.map(functools.partial(_take_rows, rows=rows.reshape(-1)), cache),
        }


def _take_rows(leaf: Array, rows: Int[Array, " rows"]) -> Array:
    """Takes rows of a cached [..., B, L, N, K]; the cache's index, which has no rows, is kept."""
    return jnp.take(leaf, rows, axis=leaf.ndim - 4) if leaf.ndim >= 4 else leaf
