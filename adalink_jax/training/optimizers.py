"""Optimizers, the learning rate's factors, and separate updates per module; optax does the maths.

Weight decay is decoupled (arXiv 1711.05101): a step takes ``learning rate × decay × parameter`` off
a parameter, beside its update. It acts on matrices alone, within one module and one layer: kernels,
embeddings, prompts, the factors of a low-rank product. Biases, scales, gates and norms are vectors
there, and keep their size: a decayed scale would go to 0, where it means 1. Adafactor's decay is
T5X's own.
"""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import Method
from adalink_jax.models.stacking import STACKED, STACKS
from adalink_jax.values import NotNegative, Positive, Range, Rate, Says, Size, Steps, checks

Schedule = optax.Schedule
# What a run takes: how updates are made, and the rate of each step.
Optimizer = Annotated[
    Callable[[Schedule], optax.GradientTransformation],
    Says(
        "a file, --gin_file=optimizers/adamw.gin after the method's, or a reference, "
        "--gin.OPTIMIZER=@optimizers.adamw; gin/optimizers has each, and @optax.… goes in a gin "
        "file that has the line 'import optax'"
    ),
]
LearningRate = Annotated[
    Schedule, Says("a schedule, such as @optimizers.factors(), of which LEARNING_RATE is the rate")
]

FACTORS = (
    "constant",
    "linear_warmup",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "linear_decay",
    "cosine_decay",
)


@checks
def factors(
    factors: str = "constant",
    base_learning_rate: NotNegative = 1e-3,
    warmup_steps: Steps = 1000,
    decay_steps: Steps | None = None,
) -> Schedule:
    """Makes a learning-rate schedule as a product of factors, as T5X does.

    Source: T5X ``utils.create_learning_rate_scheduler``; the last two factors, which it lacks, are
    as in transformers' ``get_linear_schedule_with_warmup`` and ``get_cosine_…``.

    Args:
      factors: names joined by "*": "constant" (the base rate); "linear_warmup" (step /
        warmup_steps up to 1); "rsqrt_decay" (1 / sqrt(max(step, warmup_steps)));
        "rsqrt_normalized_decay" (the same times sqrt(warmup_steps), so that it starts at 1);
        "linear_decay" and "cosine_decay" (from 1, where the warm-up ends if there is one, to 0
        after decay_steps).
      base_learning_rate: value of the factor "constant".
      warmup_steps: warm-up steps of the factors that have one.
      decay_steps: the step at which "linear_decay" and "cosine_decay" are 0: a run's TRAIN_STEPS.

    Returns:
      A function step -> learning rate, with steps counted from 0. The base rate is a leaf of it, so
      that a compiled step may take it as an argument: see `rate_argument`.

    Raises:
      UserError: an unknown factor, or a decay that has no end, or ends in the warm-up.
    """
    names = [name.strip() for name in factors.split("*")]
    for name in names:
        if name not in FACTORS:
            raise UserError(
                f"factors is {factors!r}, of which {name!r} is none of {', '.join(FACTORS)}"
                f"{nearest(name, FACTORS)}"
            )
    start = _decay_start(names, warmup_steps)
    decay = next((name for name in names if name in ("linear_decay", "cosine_decay")), None)
    if decay and decay_steps is None:
        raise UserError(f"decay_steps is not set, where {decay} is 0; set it to %TRAIN_STEPS")
    if decay and decay_steps is not None and decay_steps <= start:
        raise UserError(
            f"decay_steps is {decay_steps}, so {decay} would end within the warm-up; set "
            f"warmup_steps, which is {start}, to fewer steps"
        )

    schedule = _Product(tuple(names), warmup_steps, decay_steps)
    return jax.tree_util.Partial(schedule, np.float32(base_learning_rate))


def _decay_start(names: Sequence[str], warmup_steps: int) -> int:
    return warmup_steps if "linear_warmup" in names else 0


@dataclasses.dataclass(frozen=True)
class _Product:
    """A product of factors. Two of the same are equal, so that runs share a compiled step."""

    names: tuple[str, ...]
    warmup_steps: int
    decay_steps: int | None

    def __call__(self, base: jax.typing.ArrayLike, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns the rate of a step."""
        step = jnp.asarray(step, jnp.float32)
        rsqrt = 1.0 / jnp.sqrt(jnp.maximum(step, self.warmup_steps))
        start = _decay_start(self.names, self.warmup_steps)
        done = jnp.clip((step - start) / ((self.decay_steps or start + 1) - start), 0.0, 1.0)
        values = {
            "constant": jnp.asarray(base, jnp.float32),
            "linear_warmup": jnp.minimum(1.0, step / self.warmup_steps),
            "rsqrt_decay": rsqrt,
            "rsqrt_normalized_decay": rsqrt * jnp.sqrt(jnp.float32(self.warmup_steps)),
            "linear_decay": 1.0 - done,
            "cosine_decay": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
        }
        return jnp.prod(jnp.stack([values[name] for name in self.names]))


def rate_argument(schedule: Schedule) -> jax.tree_util.Partial:
    """Returns a schedule as an argument of a compiled function.

    What `factors` returns has its base rate as a leaf, so runs that differ in it share a program.
    Any other function is compiled as it is.
    """
    if isinstance(schedule, jax.tree_util.Partial):
        return schedule
    return jax.tree_util.Partial(schedule)


@checks
def adafactor(
    learning_rate: Schedule,
    *,
    multiply_by_parameter_scale: bool,
    factored: bool,
    decay_rate: Annotated[float, Range(0, 1)] = 0.8,
    clipping_threshold: NotNegative | None = 1.0,
    weight_decay_rate: NotNegative | None = None,
    min_dim_size_to_factor: Size = 128,
) -> optax.GradientTransformation:
    """Makes `optax.adafactor`; two arguments are required because no default fits all methods.

    Args:
      learning_rate: the schedule.
      multiply_by_parameter_scale: whether an update is scaled by its parameter's RMS (at least
        1e-3). True for full fine-tuning. False for adapters: parameters that start at zero would
        move a thousand times too slowly.
      factored: whether second moments of large matrices are kept as row and column means. True
        for full fine-tuning, as in T5X; False for adapters, which are small.
      decay_rate: exponent of the second moments' decay.
      clipping_threshold: largest RMS of an update before the learning rate; None for no limit.
      weight_decay_rate: the share of each parameter, vectors too, that a step takes off whatever
        the learning rate, as in T5X; None for no decay.
      min_dim_size_to_factor: smallest dimension of a factored matrix; 128 as in T5X.
    """
    return optax.adafactor(
        learning_rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=clipping_threshold,
        weight_decay_rate=weight_decay_rate,
        factored=factored,
    )


def _matrices(params: Any) -> Any:
    """Returns which leaves decay. Within `per_module` a leaf has no axis of routes or layers."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


@checks
def adamw(
    learning_rate: Schedule,
    *,
    weight_decay: NotNegative = 0.01,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    eps: Positive = 1e-8,
) -> optax.GradientTransformation:
    """Makes `optax.adamw`: Adam with decoupled weight decay of matrices (arXiv 1711.05101).

    Args:
      learning_rate: the schedule.
      weight_decay: the share that a step takes off, times the learning rate. The default is
        PyTorch's.
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the latter.
    """
    return optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_matrices
    )


@checks
def adam(
    learning_rate: Schedule, *, b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-8
) -> optax.GradientTransformation:
    """Makes `optax.adam` (arXiv 1412.6980): `adamw` without decay.

    Args:
      learning_rate: the schedule.
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the latter.
    """
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


@checks
def sgd(
    learning_rate: Schedule,
    *,
    momentum: Rate = 0.0,
    nesterov: bool = False,
    weight_decay: NotNegative = 0.0,
) -> optax.GradientTransformation:
    """Makes stochastic gradient descent, with momentum and decoupled weight decay if asked for.

    Args:
      learning_rate: the schedule.
      momentum: the share of the last step that is added to the next; 0 for none.
      nesterov: whether the gradient is that at the place where momentum leads.
      weight_decay: as of `adamw`. The momentum does not see it.
    """
    return optax.chain(
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.add_decayed_weights(weight_decay, _matrices) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


@checks
def lion(
    learning_rate: Schedule,
    *,
    weight_decay: NotNegative = 0.01,
    b1: Rate = 0.9,
    b2: Rate = 0.99,
) -> optax.GradientTransformation:
    """Makes `optax.lion` (arXiv 2302.06675) with decoupled weight decay of matrices.

    All elements of an update are as large as the learning rate, so its authors take a third to a
    tenth of AdamW's, and a decay that is larger by as much.

    Args:
      learning_rate: the schedule.
      weight_decay: as of `adamw`.
      b1: decay of the mean of gradients in the update's sign.
      b2: decay of the mean of gradients that is kept.
    """
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_matrices)


def per_module(
    transformation: optax.GradientTransformation, method: Method, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Applies a transformation to each of a method's stacked modules separately.

    An adapter's leaf stacks K modules on its leading axis. Second moments, clipping and scaling
    of one task must not depend on another task, so the transformation is mapped over that axis.
    Leaves of the base that the method unlocks have no such axis, and neither have a method's own
    that its routes share (`Method.has_routes`). If the base trains, it may hold
    stacked layers (`adalink_jax.models.stacking`); the transformation is mapped over these.

    Gradients are clipped before that, so layers count together, stacked or not, and each of K
    modules alone. The updates of some leaves are multiplied by the method's `rate_factors`, and so
    is their decay.

    Args:
      transformation: the optimizer, of the leaves of one module.
      method: the method that trains.
      clip_norm: the largest global norm of the gradients of a module; None for no limit.
    """
    clip = None if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    if method.routed:
        transformation = _per_route(transformation, method)
        # One module's leaves all count together, those that routes would share among them.
        clip = clip and (_per_route(clip, method) if method.routes > 1 else clip)
    if method.trains_base:
        for stack in STACKS:
            transformation = _per_layer(transformation, stack)
    return _with_factors(optax.chain(clip, transformation) if clip else transformation, method)


def _with_factors(
    inner: optax.GradientTransformation, method: Method
) -> optax.GradientTransformation:
    """Multiplies updates by factors, which is a learning rate of its own for each leaf."""

    def name_of(path: Any) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    def init(params):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        method.check_rate_factors(list(map(name_of, paths)))
        return inner.init(params)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, state, params)

        def scaled(path, leaf):
            factor = method.rate_factor(name_of(path))
            return leaf if factor == 1 else leaf * factor

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)


def _per_route(inner: optax.GradientTransformation, method: Method) -> optax.GradientTransformation:
    """Maps over the routes. Leaves without them, if any, have a separate part of the state."""

    def update(updates, state, params=None):
        return jax.vmap(inner.update)(updates, state, params)

    mapped = optax.GradientTransformation(jax.vmap(inner.init), update)

    def owners(params: Any) -> Any:
        def label(path, _):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return "method" if method.has_routes(name) else "base"

        return jax.tree_util.tree_map_with_path(label, params)

    rules: dict[Hashable, optax.GradientTransformation] = {"method": mapped, "base": inner}

    def chosen(params: Any) -> optax.GradientTransformation:
        present = set(jax.tree.leaves(owners(params)))
        return optax.partition(rules, owners) if len(present) > 1 else rules[present.pop()]

    return optax.GradientTransformation(
        lambda params: chosen(params).init(params),
        lambda updates, state, params=None: chosen(updates).update(updates, state, params),
    )


def _per_layer(inner: optax.GradientTransformation, stack: str) -> optax.GradientTransformation:
    """Maps over the stacked layers of one stack. The state is `inner`'s with stacked leaves."""

    def axes(tree: Any) -> Any:
        """Returns 0 for each leaf of a stacked parameter, None for all others."""

        def axis(path, _):
            names = [getattr(key, "key", None) for key in path]
            return 0 if (stack, STACKED) in itertools.pairwise(names) else None

        return jax.tree_util.tree_map_with_path(axis, tree)

    def init(params):
        in_axes = axes(params)
        if not jax.tree.leaves(in_axes):
            return inner.init(params)
        state = jax.eval_shape(inner.init, params)
        return jax.vmap(inner.init, in_axes=(in_axes,), out_axes=axes(state))(params)

    def update(updates, state, params=None):
        params_axes, state_axes = axes(updates), axes(state)
        if not jax.tree.leaves(params_axes):
            return inner.update(updates, state, params)
        mapped = jax.vmap(
            inner.update,
            in_axes=(params_axes, state_axes, None if params is None else params_axes),
            out_axes=(params_axes, state_axes),
        )
        try:
            return mapped(updates, state, params)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise UserError(
                "the optimizer lets parameters depend on each other (as its own clipping by the "
                "global norm does), which it cannot where layers are scanned; set scan_layers to "
                "False, or clip with CLIP_NORM"
            ) from error

    return optax.GradientTransformation(init, update)
