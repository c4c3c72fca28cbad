"""The losses and steps of the English bases.

A tree has `model`, the base, and `head`, a gain and a constant for each channel of each layer's
output, which put it in the teacher's units; the head is thrown away in the end.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import EncoderLayer, T5Config, Transformer
from adalink_jax.tools.english_base import corpus as corpora
from adalink_jax.tools.english_base import packed, transplant
from adalink_jax.tools.english_base import teacher as teachers
from adalink_jax.training.losses import cross_entropy

_INNER = 0.2  # Weight of a layer's loss beside the last's.
_Z_LOSS = 1e-4

Tree = dict[str, Any]
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(b2=0.98),
    optax.add_decayed_weights(0.01, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
)


class Teacher(NamedTuple):
    """What a base learns from.

    Attributes:
      weights: the teacher's.
      places: [layers, T, D], what a place adds to each layer's output; a T5 has no places.
      means: [layers, D], of a layer's output.
      scales: [layers, D], one over its standard deviation.
    """

    weights: Mapping[str, jax.Array]
    places: jax.Array
    means: jax.Array
    scales: jax.Array


def begun(
    weights: Mapping[str, jax.Array], heads: int, rows: np.ndarray, seed: int
) -> tuple[T5Config, Tree, Teacher]:
    """Returns the architecture, base and head before the training, and what they learn from.

    The encoder begins as the teacher; of the decoder, all is random but its first look at the
    encoder.

    Args:
      weights: the teacher's, in float32.
      heads: the number of its heads.
      rows: [R, T], rows of text without padding.
      seed: of the random weights.
    """
    config = transplant.config_of(weights, heads)
    calibration = transplant.calibrate(weights, heads, rows)
    embedding, encoder, views = transplant.encoder(weights, config, rows, calibration)
    rng = np.random.default_rng(seed)
    sentinels = embedding[-packed.EXTRA_IDS :]
    # All begin as the teacher's mask; without noise no output could tell them apart.
    sentinels += rng.normal(0, 0.3 * sentinels[0].std(), sentinels.shape)
    model = init_base(config, jax.random.key(seed))
    model = {**model, "encoder": encoder, "token_embedder": {"embedding": embedding}}
    # The decoder begins by saying which words the encoder has seen.
    last = views[str(config.num_encoder_layers - 1)]
    value, out = transplant.reading(embedding, rows, last, calibration.streams[-1])
    reader = model["decoder"]["layers_0"]["encoder_decoder_attention"]
    reader["value"]["kernel"], reader["out"]["kernel"] = value, out
    outputs = calibration.streams[2::2]
    axes = (1, 2)
    teacher = Teacher(
        weights,
        jnp.asarray(calibration.places[2::2]),
        jnp.asarray(outputs.mean(axes)),
        jnp.asarray(1 / (outputs.std(axes) + 1e-3)),
    )
    return config, jax.tree.map(jnp.asarray, {"model": model, "head": views}), teacher


def denoising_loss(
    tree: Tree,
    config: T5Config,
    teacher: Teacher,
    tokens: jax.Array,
    key: jax.Array,
    prefix: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes how far the encoder is from the teacher, and how well the decoder fills in.

    A quarter of the rows are whole. The others have hidden tokens, which the decoder gives; there
    the encoder is to see what the teacher sees of the whole text.

    Args:
      tree: base and head.
      config: the base's, with the dtype of the arithmetic.
      teacher: what it learns from.
      tokens: [R, ROW], rows of text.
      key: draws what is hidden.
      prefix: the share of rows with hidden tokens whose end is hidden, instead of spans.

    Returns:
      The loss and its parts: `words` a hidden token, `layers` and `states` the squared distance of
      the inner layers and of the last one, in units of the teacher's deviation, where no token is
      hidden.
    """
    keys = jax.random.split(key)
    whole = len(tokens) // 4
    open_ended = jax.random.bernoulli(keys[1], prefix, (len(tokens) - whole,))
    hidden = corpora.corrupt(tokens[whole:], keys[0], open_ended, config.vocab_size)
    inputs = jnp.concatenate([tokens[:whole], hidden.inputs])
    places = jnp.where(tokens[:whole] > 0, jnp.arange(corpora.ROW), corpora.ROW)
    origin = jnp.concatenate([places, hidden.origin])
    model, params = Transformer(config), {"params": tree["model"]}
    encoded, streams = model.apply(
        params,
        inputs,
        enable_dropout=False,
        method="encode",
        capture_intermediates=lambda module, _: isinstance(module, EncoderLayer),
    )
    logits = model.apply(
        params,
        encoded[whole:],
        hidden.inputs,
        _shifted(hidden.targets),
        hidden.targets,
        enable_dropout=False,
        method="decode",
    )
    weights = (hidden.targets > 0).astype(jnp.float32)
    loss, _ = cross_entropy(logits, hidden.targets, weights, z_loss=_Z_LOSS)
    words = jnp.asarray(loss) / weights.sum()
    found = [
        streams["intermediates"]["encoder"][f"layers_{i}"]["__call__"][0]
        for i in range(config.num_encoder_layers - 1)
    ]
    distances = _distances(tree["head"], config, teacher, tokens, origin, [*found, encoded])
    parts = {"words": words, "layers": sum(distances[:-1]), "states": distances[-1]}
    return words + _INNER * parts["layers"] + parts["states"], parts


def _distances(head, config, teacher, tokens, origin, streams) -> list[jax.Array]:
    """Returns the distance of each layer's output from the teacher's."""
    ids = teachers.wrapped(teacher.weights, tokens)
    blocks, last = teachers.blocks(teacher.weights, config.num_heads, ids)
    outputs = [*(block.stream for block in blocks[2::2]), last]
    seen = (origin < corpora.ROW).astype(jnp.float32)
    at = jnp.minimum(origin, corpora.ROW - 1)[..., None]
    distances = []
    for i, (stream, output) in enumerate(zip(streams, outputs, strict=True)):
        wanted = (output[:, 1:].astype(jnp.float32) - teacher.places[i] - teacher.means[i]) * (
            teacher.scales[i]
        )
        wanted = jax.lax.stop_gradient(jnp.take_along_axis(wanted, at, 1))
        view = transplant.viewed(stream.astype(jnp.float32), head[str(i)])
        error = jnp.square((view - teacher.means[i]) * teacher.scales[i] - wanted).mean(-1)
        distances.append((error * seen).sum() / seen.sum())
    return distances


def instruction_loss(
    tree: Tree, config: T5Config, batch: Mapping[str, jax.Array], key: jax.Array, dropout: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss of targets, and the share of targets whose first token is the likeliest.

    Args:
      tree: base, with or without head.
      config: the base's.
      batch: `inputs` [R, T] and `targets` [R, L], 0 on padding.
      key: of dropout.
      dropout: whether there is any.
    """
    targets = batch["targets"].astype(jnp.int32)
    logits = Transformer(config).apply(
        {"params": tree["model"]},
        batch["inputs"].astype(jnp.int32),
        _shifted(targets),
        targets,
        enable_dropout=dropout,
        rngs={"dropout": key} if dropout else {},
    )
    weights = (targets > 0).astype(jnp.float32)
    loss, _ = cross_entropy(logits, targets, weights, z_loss=_Z_LOSS)
    loss = jnp.asarray(loss) / weights.sum()
    return loss, {"answers": loss, "right": jnp.mean(logits[:, 0].argmax(-1) == targets[:, 0])}


def _shifted(targets: jax.Array) -> jax.Array:
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))


def steps(loss_of: Callable) -> Callable:
    """Returns a function that takes several steps in one program.

    Args:
      loss_of: from the tree, the step's part of `each`, and `shared` to the loss and its parts.

    Returns:
      A jitted function from the tree, the optimizer's state, the rates (a number, or a tree of
      numbers for the tree's upper parts), `each` (arrays with the steps as first axis) and
      `shared`, to tree, state and the means of the loss's parts.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(tree, state, rates, each, shared):
        def moved_by(rate, tree, updates):
            return jax.tree.map(lambda leaf, update: leaf - rate * update, tree, updates)

        def step(carry, one):
            tree, state = carry
            gradients, parts = jax.grad(loss_of, has_aux=True)(tree, one, shared)
            updates, new = OPTIMIZER.update(gradients, state, tree)
            moved = jax.tree.map(moved_by, rates, tree, updates)
            # A step whose gradients are not finite is left out; the log's losses show it.
            finite = jnp.isfinite(optax.tree.norm(gradients))
            kept = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (moved, new), (tree, state)
            )
            return kept, parts

        (tree, state), parts = jax.lax.scan(step, (tree, state), each)
        return tree, state, jax.tree.map(jnp.mean, parts)

    return run
