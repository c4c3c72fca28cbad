"""Time of the routed low-rank product for several numbers of modules K.

Measured at B=64, T=64, D=512, R=4 in float32, with each row of tokens on a random one of K routes:

* routed: `adalink_jax.methods.low_rank.routed_low_rank`, one route per row;
* routed, 4 slots: the same function if a row may have four routes (packed examples);
* masked: all K·R columns for every token, with those of other modules masked;
* per token: each token's own matrices, gathered.

Each runs forward, and forward with the gradients of x, W_down and W_up ("trained"). The variants
must compute the same numbers, which is checked first. Those that need more than 2 GiB are left out.

How to read it: "× K=1" compares a variant's forward pass with routed at K = 1 in the same rounds.
For routed it should stay near 1: the cost must not grow with K. When training, the gradients of
W_down and W_up are as large as all K modules, which explains some growth.
"""

import dataclasses
import functools
import os
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.methods.low_rank import routed_low_rank  # noqa: E402
from benchmarks import timing  # noqa: E402

LARGEST_ARRAY = 2**31  # bytes


@dataclasses.dataclass(frozen=True)
class Sizes:
    """B, T, D, R, and the numbers of modules K."""

    batch: int = 64
    length: int = 64
    width: int = 512
    rank: int = 4
    routes: tuple[int, ...] = (1, 8, 64, 1024)


def masked(x, down, up, routes):
    """Computes all modules' columns for every token, and masks those of other routes."""
    count, width, rank = down.shape
    hidden = x @ down.transpose(1, 0, 2).reshape(width, count * rank)
    own = routes[..., None] == jnp.repeat(jnp.arange(count), rank)
    return (hidden * own) @ up.reshape(count * rank, -1)


def per_token(x, down, up, routes):
    """Gathers each token's own matrices."""
    hidden = jnp.einsum("btd,btdr->btr", x, down[routes])
    return jnp.einsum("btr,btrd->btd", hidden, up[routes])


VARIANTS: dict[str, Callable[..., Any]] = {
    "routed": routed_low_rank,
    "routed, 4 slots": functools.partial(routed_low_rank, slots=4),
    "masked": masked,
    "per token": per_token,
}


def largest_bytes(variant: str, sizes: Sizes, count: int) -> int:
    """Returns the bytes of a variant's largest intermediate array."""
    tokens = sizes.batch * sizes.length
    columns = {"masked": count * sizes.rank, "per token": sizes.width * sizes.rank}
    return 4 * tokens * columns.get(variant, 4 * sizes.rank)


def arguments(sizes: Sizes, count: int) -> tuple[jax.Array, ...]:
    """Returns random x, W_down, W_up, and one route per row."""
    rng = np.random.default_rng(count)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * shape[-2] ** -0.5)

    x = normal(sizes.batch, sizes.length, sizes.width)
    down = normal(count, sizes.width, sizes.rank)
    up = normal(count, sizes.rank, sizes.width)
    routes = np.repeat(rng.integers(0, count, (sizes.batch, 1)), sizes.length, axis=1)
    return x, down, up, jnp.asarray(routes, jnp.int32)


def trained(variant: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the forward and backward pass of a variant."""

    def run(x, down, up, routes):
        y, backward = jax.vjp(lambda *arrays: variant(*arrays, routes), x, down, up)
        return backward(y)

    return run


def check(variants: dict[str, Callable[..., Any]], given: tuple[jax.Array, ...]) -> None:
    """Raises unless all variants agree with per-row products in NumPy."""
    x, down, up, routes = map(np.asarray, given)
    expected = x @ down[routes[:, 0]] @ up[routes[:, 0]]
    for variant in variants.values():
        np.testing.assert_allclose(variant(*given), expected, rtol=1e-4, atol=1e-4)


def main(flags: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=20).parse_args(flags)
    sizes = Sizes(4, 8, 16, 2, (1, 6)) if options.small else Sizes()
    load = os.getloadavg()
    steps: dict[str, Callable[[], Any]] = {}
    for count in sizes.routes:
        given = arguments(sizes, count)
        fitting = {
            name: variant
            for name, variant in VARIANTS.items()
            if largest_bytes(name, sizes, count) <= LARGEST_ARRAY
        }
        check(fitting, given)
        for name, variant in fitting.items():
            for mode, function in (("", variant), (", trained", trained(variant))):
                compiled = functools.partial(jax.jit(function), *given)
                steps[f"{name}, K={count}{mode}"] = lambda f=compiled: jax.block_until_ready(f())
    wall, cpu = timing.interleaved(steps, options.rounds, warm_ups=2)
    rows = []
    for count in sizes.routes:
        for name in VARIANTS:
            step = f"{name}, K={count}"
            if step not in steps:
                continue
            back = f"{step}, trained"
            rows.append(
                {
                    "variant": name,
                    "K": count,
                    "ms": 1e3 * statistics.median(wall[step]),
                    "× K=1": timing.ratio(wall, step, "routed, K=1"),
                    "× K=1, CPU": timing.ratio(cpu, step, "routed, K=1"),
                    "trained, ms": 1e3 * statistics.median(wall[back]),
                    "trained, × K=1": timing.ratio(wall, back, "routed, K=1, trained"),
                    "trained, × K=1, CPU": timing.ratio(cpu, back, "routed, K=1, trained"),
                }
            )
    settings = {**dataclasses.asdict(sizes), "rounds": options.rounds}
    timing.report("routed_low_rank", rows, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
