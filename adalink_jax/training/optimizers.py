"""Adafactor as in the paper, T5X's learning-rate factors, and separate updates per module."""

import itertools
from collections.abc import Callable, Hashable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import Method
from adalink_jax.models.stacking import STACKED, STACKS
from adalink_jax.values import NotNegative, Range, Says, Size, Steps, checks

Schedule = optax.Schedule
# What a run takes: how updates are made, and the rate of each step.
Optimizer = Annotated[
    Callable[[Schedule], optax.GradientTransformation],
    Says("@optimizers.adafactor, or @optax.adamw in a gin file that has the line 'import optax'"),
]
LearningRate = Annotated[
    Schedule, Says("a schedule, such as @optimizers.factors(), of which LEARNING_RATE is the rate")
]

FACTORS = ("constant", "linear_warmup", "rsqrt_decay")


@checks
def factors(
    factors: str = "constant", base_learning_rate: NotNegative = 1e-3, warmup_steps: Steps = 1000
) -> Schedule:
    """Makes a learning-rate schedule as a product of T5X's factors.

    Source: T5X ``utils.create_learning_rate_scheduler``.

    Args:
      factors: "constant" (the base rate), "linear_warmup" (step / warmup_steps up to 1) and
        "rsqrt_decay" (1 / sqrt(max(step, warmup_steps))), joined by "*".
      base_learning_rate: value of the factor "constant".
      warmup_steps: warm-up steps of the other two factors.

    Returns:
      A function step -> learning rate, with steps counted from 0.
    """
    names = [name.strip() for name in factors.split("*")]
    for name in names:
        if name not in FACTORS:
            raise UserError(
                f"factors is {factors!r}, of which {name!r} is none of {', '.join(FACTORS)}"
                f"{nearest(name, FACTORS)}"
            )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        values = {
            "constant": jnp.float32(base_learning_rate),
            "linear_warmup": jnp.minimum(1.0, step / warmup_steps),
            "rsqrt_decay": 1.0 / jnp.sqrt(jnp.maximum(step, warmup_steps)),
        }
        return jnp.prod(jnp.stack([values[name] for name in names]))

    return schedule


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
      weight_decay_rate: None for no decay.
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


def per_module(
    transformation: optax.GradientTransformation, method: Method
) -> optax.GradientTransformation:
    """Applies a transformation to each of a method's stacked modules separately.

    An adapter's leaf stacks K modules on its leading axis. Second moments, clipping and scaling
    of one task must not depend on another task, so the transformation is mapped over that axis.
    Leaves of the base that the method unlocks have no such axis, and neither have a method's own
    that its routes share (`Method.has_routes`). If the base trains, it may hold
    stacked layers (`adalink_jax.models.stacking`); the transformation is mapped over these.

    The updates of some leaves are multiplied by the method's `rate_factors`.
    """
    if method.routed:
        transformation = _per_route(transformation, method)
    if method.trains_base:
        for stack in STACKS:
            transformation = _per_layer(transformation, stack)
    return _with_factors(transformation, method)


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
                "the optimizer lets parameters depend on each other (as clipping by the global "
                "norm does), which it cannot where layers are scanned; set scan_layers to False"
            ) from error

    return optax.GradientTransformation(init, update)
