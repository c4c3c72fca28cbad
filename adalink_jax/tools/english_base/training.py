"""The losses and steps of the English bases.

A tree has `model`, the base, and `head`, two linear maps from the encoder's outputs to what the
teacher gives; the head is thrown away in the end.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.english_base import corpus as corpora
from adalink_jax.training.losses import cross_entropy

CONFIG = T5Config(
    vocab_size=8192,
    emb_dim=256,
    num_heads=4,
    num_encoder_layers=6,
    num_decoder_layers=2,
    head_dim=64,
    mlp_dim=640,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
)
_RELATION, _PIECE = 10.0, 2.0  # Weights of losses beside that of a token's state.
_Z_LOSS = 1e-4

Tree = dict[str, Any]
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(b2=0.98),
    optax.add_decayed_weights(0.01, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
)


def initial(seed: int, corpus: corpora.Corpus) -> Tree:
    """Returns random weights of base and head."""
    keys = jax.random.split(jax.random.key(seed), 3)
    draw = jax.nn.initializers.lecun_normal()
    width = CONFIG.emb_dim
    head = {
        "tokens": draw(keys[1], (width, corpus.states.shape[1])),
        "pieces": draw(keys[2], (width, corpus.embeddings.shape[1])),
    }
    return {"model": init_base(CONFIG, keys[0]), "head": head}


def denoising_loss(
    tree: Tree, config: T5Config, corpus: corpora.Corpus, key: jax.Array, prefix: Any, count: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes how far the encoder is from the teacher, and how well the decoder fills in.

    Half of the rows are whole. The other half have hidden tokens, which the decoder gives; there
    the encoder is to see what the teacher sees of the whole text.

    Args:
      tree: base and head.
      config: the base's, with the dtype of the arithmetic.
      corpus: the text.
      key: draws rows and what is hidden.
      prefix: the share of rows with hidden tokens whose end is hidden, instead of spans.
      count: R, number of rows.

    Returns:
      The loss and its parts.
    """
    keys = jax.random.split(key, 3)
    drawn = corpora.rows(corpus, keys[0], count)
    half = count // 2
    open_ended = jax.random.bernoulli(keys[2], prefix, (half,))
    hidden = corpora.corrupt(drawn.tokens[half:], keys[1], open_ended, config.vocab_size)
    inputs = jnp.concatenate([drawn.tokens[:half], hidden.inputs])
    same = jnp.broadcast_to(jnp.arange(corpora.ROW), (half, corpora.ROW))
    origin = jnp.concatenate([same, hidden.origin])
    model, params = Transformer(config), {"params": tree["model"]}
    encoded = model.apply(params, inputs, enable_dropout=False, method="encode")
    logits = model.apply(
        params,
        encoded[half:],
        hidden.inputs,
        _shifted(hidden.targets),
        hidden.targets,
        enable_dropout=False,
        method="decode",
    )
    weights = (hidden.targets > 0).astype(jnp.float32)
    loss, _ = cross_entropy(logits, hidden.targets, weights, z_loss=_Z_LOSS)
    parts = {"words": jnp.asarray(loss) / weights.sum()}
    whole = jnp.concatenate([jnp.ones(half, bool), ~open_ended])
    parts |= _distances(tree["head"], corpus, drawn, origin, encoded, whole)
    total = parts["words"] + parts["states"] + _PIECE * parts["pieces"]
    return total + _RELATION * parts["relations"], parts


def _distances(head, corpus, drawn, origin, encoded, whole) -> dict[str, jax.Array]:
    """Returns how far the encoder's outputs are from the teacher's states and embeddings."""
    at = jnp.minimum(origin, corpora.ROW - 1)
    side = jnp.where(origin < corpora.ROW, jnp.take_along_axis(drawn.side, at, 1), 2)
    seen = (side < 2).astype(jnp.float32)
    place = jnp.take_along_axis(drawn.place, at, 1)
    target = (corpus.states[place].astype(jnp.float32) - corpus.mean) * corpus.scale
    guess = encoded @ head["tokens"].astype(encoded.dtype)
    error = jnp.square(guess.astype(jnp.float32) - target).mean(-1)
    states = (error * seen).sum() / seen.sum()
    sides = (side[..., None] == jnp.arange(2)).astype(encoded.dtype)
    sums = jnp.einsum("rtd,rts->rsd", encoded, sides).astype(jnp.float32)
    sizes = sides.astype(jnp.float32).sum(1)
    pooled = sums / jnp.maximum(sizes, 1)[..., None] @ head["pieces"]
    # Not `norm`, whose gradient at 0, of a side that is hidden, is not a number.
    pooled = pooled * jax.lax.rsqrt(jnp.square(pooled).sum(-1, keepdims=True) + 1e-6)
    embeddings = corpus.embeddings[drawn.pieces].astype(jnp.float32)
    counted = (sizes > 0) & whole[:, None]
    cosine = (pooled * embeddings).sum(-1)
    pieces = ((1 - cosine) * counted).sum() / counted.sum()
    half = len(whole) // 2
    own, theirs = pooled[:half, 0], embeddings[:half, 0]
    relations = jnp.square(own @ own.T - theirs @ theirs.T).mean()
    return {"states": states, "pieces": pieces, "relations": relations}


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
      A jitted function from the tree, the optimizer's state, the rate, `each` (arrays with the
      steps as first axis) and `shared`, to tree, state and the means of the loss's parts.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(tree, state, rate, each, shared):
        def step(carry, one):
            tree, state = carry
            gradients, parts = jax.grad(loss_of, has_aux=True)(tree, one, shared)
            updates, new = OPTIMIZER.update(gradients, state, tree)
            moved = jax.tree.map(lambda leaf, update: leaf - rate * update, tree, updates)
            # A step whose gradients are not finite is left out; the log's losses show it.
            finite = jnp.isfinite(optax.tree.norm(gradients))
            kept = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (moved, new), (tree, state)
            )
            return kept, parts

        (tree, state), parts = jax.lax.scan(step, (tree, state), each)
        return tree, state, jax.tree.map(jnp.mean, parts)

    return run
