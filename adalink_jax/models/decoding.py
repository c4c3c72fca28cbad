"""Generation and scoring with a T5: greedy, beam search, and the likelihood of given options.

The encoder runs once per call. Generation keeps the decoder's keys and values in the network's
"cache" collection and runs in a `lax.while_loop` that ends when every row has ended. What the
loop does not change, such as the cross-attention's keys and values of the encoded input, XLA
computes once before it.

A row without a single input token fills up a batch: it is not decoded, its tokens are all 0.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from adalink_jax.methods.base import Array, Params
from adalink_jax.models.t5 import Transformer

# A row's one route, or where a row holds several (modalities) the route of each input token.
Routes = Int[Array, " B"] | Int[Array, "B T"]

# Options are scored in chunks whose logits take at most this many bytes (over all devices).
_LOGITS_BYTES = 2**28


@functools.partial(jax.jit, static_argnames=("model", "max_length", "eos_id"))
def greedy(
    model: Transformer,
    params: Params,
    encoder_input_tokens: Int[Array, "B T"],
    max_length: int,
    *,
    routes: Routes | None = None,
    eos_id: int = 1,
) -> Int[Array, "B L"]:
    """Generates the likeliest next token, one after another.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: 0 on padding.
      max_length: L, tokens to generate at most, EOS included.
      routes: for methods with several routes; the decoder's is that of the first input token.
      eos_id: the token that ends a row.

    Returns:
      int32 tokens, with EOS where it came within L, and 0 behind it.
    """
    encoded = _encode(model, params, encoder_input_tokens, routes)
    step, cache = _decoder(model, params, encoded, encoder_input_tokens, routes, max_length)
    batch = encoder_input_tokens.shape[0]

    def unfinished(state):
        now, _, ended, _, _ = state
        return (now < max_length) & ~jnp.all(ended)

    def extend(state):
        now, last, ended, tokens, cache = state
        logits, cache = step(last, cache)
        token = jnp.where(ended, 0, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        return now + 1, token, ended | (token == eos_id), tokens.at[:, now].set(token), cache

    last = jnp.zeros(batch, jnp.int32)
    tokens = jnp.zeros((batch, max_length), jnp.int32)
    state = (0, last, _is_filler(encoder_input_tokens), tokens, cache)
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
    eos_id: int = 1,
) -> Int[Array, "B L"]:
    """Generates by beam search, as T5X (``t5x/decoding.py``): returns each row's best output.

    An output of n tokens, EOS included, scores ``log-probability / ((5 + n) / 6)^alpha`` (Wu et
    al. 2016, eq. 14). Of every step's ``2 · beam_size`` likeliest continuations those that end
    are outputs, and the `beam_size` best of the others go on. A row stops when no continuation
    can beat its best output. One that has no output within `max_length` returns its likeliest
    unfinished beam. A single beam is greedy decoding.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: 0 on padding.
      max_length: L, tokens to generate at most, EOS included.
      beam_size: how many unfinished outputs are kept.
      length_penalty: alpha ≥ 0; 0 compares log-probabilities, more favors longer outputs.
      routes: as in `greedy`.
      eos_id: the token that ends a row.

    Returns:
      int32 tokens, with EOS where it came within L, and 0 behind it.

    Raises:
      ValueError: `beam_size` < 1 or `length_penalty` < 0.
    """
    if beam_size < 1 or length_penalty < 0:
        raise ValueError(f"beam_size {beam_size} must be ≥ 1, length_penalty {length_penalty} ≥ 0")
    if beam_size == 1:
        return greedy(model, params, encoder_input_tokens, max_length, routes=routes, eos_id=eos_id)
    encoded = _encode(model, params, encoder_input_tokens, routes)
    # Beams of one example are neighboring rows.
    encoded, inputs, routes = jax.tree.map(
        lambda x: jnp.repeat(x, beam_size, axis=0), (encoded, encoder_input_tokens, routes)
    )
    step, cache = _decoder(model, params, encoded, inputs, routes, max_length)
    search = _Search(step, beam_size, length_penalty, max_length, eos_id)
    state = search.start(_is_filler(encoder_input_tokens), cache)
    state = jax.lax.while_loop(search.unfinished, search.extend, state)
    found = state["best_score"] > -jnp.inf
    return jnp.where(found[:, None], state["best"], state["live"][:, 0])


@functools.partial(jax.jit, static_argnames=("model",))
def score_options(
    model: Transformer,
    params: Params,
    encoder_input_tokens: Int[Array, "B T"],
    options: Int[Array, "C L"],
    routes: Routes | None = None,
) -> Float[Array, "B C"]:
    """The log-likelihood of every option given every input.

    It is the sum of the log-probabilities of the option's tokens, its EOS included, without
    division by its length: what T5X's ``score_batch`` gives for rank classification.

    The options share their example's encoding and, being a mapped axis of the decoder alone, its
    cross-attention keys and values. They are scored in chunks, so that memory does not grow with
    their number.

    Args:
      model: the network with its method.
      params: base and adapter, merged.
      encoder_input_tokens: 0 on padding.
      options: each option's tokens with its EOS, 0 on padding.
      routes: as in `greedy`.

    Returns:
      float32 log-likelihoods.
    """
    encoded = _encode(model, params, encoder_input_tokens, routes)
    batch = encoder_input_tokens.shape[0]
    count, length = options.shape

    def score(option: Int[Array, " L"]) -> Float[Array, " B"]:
        inputs = jnp.pad(option[:-1], (1, 0))
        inputs, targets = (jnp.broadcast_to(x, (batch, length)) for x in (inputs, option))
        logits = model.apply(
            {"params": params},
            encoded,
            encoder_input_tokens,
            inputs,
            targets,
            enable_dropout=False,
            **_spread(routes, encoder_input_tokens, length),
            method="decode",
        )
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.sum(log_probs, axis=-1, where=targets > 0)

    fitting = 1  # Where sizes are symbolic (`jax.export`).
    if isinstance(batch, int) and isinstance(length, int):
        fitting = max(1, _LOGITS_BYTES // (4 * batch * length * model.config.vocab_size))
    chunks = -(-count // fitting)
    size = -(-count // chunks)
    padded = jnp.pad(options, ((0, chunks * size - count), (0, 0)))
    scores = jax.lax.map(jax.vmap(score), padded.reshape(chunks, size, length))
    return scores.reshape(chunks * size, batch)[:count].T


def _is_filler(tokens: Int[Array, "B T"]) -> Bool[Array, " B"]:
    return ~jnp.any(tokens > 0, axis=-1)


def _spread(routes: Routes | None, tokens: Int[Array, "B T"], length: int) -> dict[str, Any]:
    """The network's arguments of a row's routes, for a decoder of `length` tokens."""
    if routes is None:
        return {}
    encoder = jnp.broadcast_to(routes if routes.ndim == 2 else routes[:, None], tokens.shape)
    decoder = jnp.broadcast_to(encoder[:, :1], (tokens.shape[0], length))
    return {"encoder_routes": encoder, "decoder_routes": decoder}


def _encode(
    model: Transformer, params: Params, tokens: Int[Array, "B T"], routes: Routes | None
) -> Float[Array, "B T2 D"]:
    encoder_routes = _spread(routes, tokens, 1).get("encoder_routes")
    return model.apply(
        {"params": params},
        tokens,
        enable_dropout=False,
        encoder_routes=encoder_routes,
        method="encode",
    )


def _decoder(
    model: Transformer,
    params: Params,
    encoded: Float[Array, "B T2 D"],
    encoder_input_tokens: Int[Array, "B T"],
    routes: Routes | None,
    max_length: int,
) -> tuple[Callable, Params]:
    """Returns ``step(tokens [B], cache) → (logits [B,V], cache)`` and the empty cache."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be at least 1")

    def decode(inputs: Int[Array, "B L"], cache: Params):
        return model.apply(
            {"params": params, **cache},
            encoded,
            encoder_input_tokens,
            inputs,
            jnp.ones_like(inputs),
            enable_dropout=False,
            decode=True,
            max_decode_length=max_length,
            **_spread(routes, encoder_input_tokens, inputs.shape[1]),
            method="decode",
            mutable=["cache"],
        )

    def step(tokens: Int[Array, " B"], cache: Params):
        logits, cache = decode(tokens[:, None], cache)
        return logits[:, 0], cache

    whole = jnp.zeros((encoded.shape[0], max_length), jnp.int32)
    _, shapes = jax.eval_shape(decode, whole, {})
    return step, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


class _Search:
    """One beam search: its start, its step, and its end.

    The state is a dict of now (tokens so far), live [B,k,L] and their log-probabilities
    live_score [B,k] in falling order, best [B,L] and its penalized best_score [B], and the cache,
    whose rows are the B·k beams.
    """

    def __init__(self, step: Callable, beams: int, alpha: float, max_length: int, eos_id: int):
        self.step, self.beams, self.alpha = step, beams, alpha
        self.max_length, self.eos_id = max_length, eos_id

    def start(self, filler: Bool[Array, " B"], cache: Params) -> dict[str, Any]:
        """The state before the first token."""
        shape = (filler.shape[0], self.beams, self.max_length)
        # All beams are the same at first, so only one of them counts.
        live_score = jnp.full(shape[:2], -jnp.inf).at[:, 0].set(0.0)
        return {
            "now": 0,
            "live": jnp.zeros(shape, jnp.int32),
            "live_score": live_score,
            "best": jnp.zeros((shape[0], shape[2]), jnp.int32),
            "best_score": jnp.where(filler, jnp.inf, -jnp.inf),
            "cache": cache,
        }

    def penalty(self, length):
        """What the log-probability of an output of so many tokens is divided by."""
        return ((5.0 + length) / 6.0) ** self.alpha

    def unfinished(self, state) -> Bool[Array, ""]:
        """Whether some row may still find a better output."""
        # Log-probabilities only fall, and no penalty divides them by more than the longest's.
        bound = state["live_score"][:, 0] / self.penalty(self.max_length)
        return (state["now"] < self.max_length) & jnp.any(state["best_score"] < bound)

    def extend(self, state) -> dict[str, Any]:
        """One more token for every live beam."""
        now, live = state["now"], state["live"]
        batch, beams, _ = live.shape
        last = jnp.where(now > 0, live[:, :, now - 1], 0)
        logits, cache = self.step(last.reshape(-1), state["cache"])
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
            "cache": jax.tree.map(functools.partial(_take_rows, rows=rows.reshape(-1)), cache),
        }


def _take_rows(leaf: Array, rows: Int[Array, " rows"]) -> Array:
    """Rows of a cached [..., B, L, N, K] (scanned layers stand in front); its index is no row's."""
    return jnp.take(leaf, rows, axis=leaf.ndim - 4) if leaf.ndim >= 4 else leaf
