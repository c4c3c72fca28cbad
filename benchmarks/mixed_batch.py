"""Throughput of one batch with many adapters, for several numbers of adapters K.

Measured in float32 at rank 4: scoring a batch of rows (encode the input, score two labels). Each
row uses a random one of K AdaLink adapters that are stacked in memory:

* mixed, K: one call for the whole batch, for any mix of adapters (as `scripts/infer.py` does);
* base: the same batch without adapters;
* loop, K: one call per adapter for its rows, padded to the same number of rows so that all use one
  program (each with its adapter as an argument);
* module: only the routed product, on the embedded batch.

The models are the mini base's architecture and T5 small's (random weights).

How to read it: all run in turns in one process (`timing`). "× K=1" is the ratio of the fastest
round to that of K = 1, next to the median ratio within a round; targets: 1.05 at K = 64 and 1.10
at K = 1024. "module" is that product's fastest round as a share of the mixed call's.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.methods.adalink import AdaLink  # noqa: E402
from adalink_jax.methods.base import Method, merge  # noqa: E402
from adalink_jax.methods.low_rank import routed_low_rank  # noqa: E402
from adalink_jax.models import decoding  # noqa: E402
from adalink_jax.models.parameters import init_base  # noqa: E402
from adalink_jax.models.t5 import T5Config, Transformer  # noqa: E402
from benchmarks import shapes, timing  # noqa: E402

RANK = 4
# With more adapters than rows, the loop would make as many calls as there are rows.
LARGEST_LOOP = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """B, T, and the numbers of adapters K."""

    batch: int = 64
    length: int = 64
    adapters: tuple[int, ...] = (1, 8, 64, 512, 1024)


def mini() -> T5Config:
    """Returns the shipped mini base's architecture."""
    return T5Config(
        vocab_size=384,
        emb_dim=128,
        num_heads=4,
        num_encoder_layers=3,
        num_decoder_layers=2,
        head_dim=32,
        mlp_dim=256,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
    )


def scorer(config: T5Config, method: Method) -> Callable[..., Any]:
    """Returns a compiled ``(params, tokens [B,T], options, routes [B]) -> scores [B,C]``."""
    model = Transformer(config, method)

    @jax.jit
    def score(params, tokens, options, routes):
        return decoding.score_options(model, params, tokens, options, routes)

    return score


def stacked(config: T5Config, count: int) -> dict[str, Any]:
    """Returns K random adapters."""
    rng = np.random.default_rng(count)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32) * shape[-2] ** -0.5)

    tree = {"down": normal(count, config.emb_dim, RANK), "up": normal(count, RANK, config.emb_dim)}
    return {"encoder": {"adalink": tree}}


def loop(score_one, base, adapters, routes, tokens, options) -> Callable[[], Any]:
    """Returns one call per adapter in the batch, on its rows, padded to a power of two."""
    used = np.unique(routes)
    most = max(int(np.sum(routes == k)) for k in used)
    rows_of = {}
    for k in used:
        rows = np.zeros((1 << (most - 1).bit_length(), tokens.shape[1]), np.int32)
        rows[: int(np.sum(routes == k))] = tokens[routes == k]
        one = jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], adapters)
        rows_of[int(k)] = (merge(base, one), jnp.asarray(rows))

    def run():
        outputs = [score_one(p, rows, options, None) for p, rows in rows_of.values()]
        jax.block_until_ready(outputs)

    return run


def candidates(name: str, config: T5Config, sizes: Sizes) -> dict[str, Callable[[], Any]]:
    """Returns all calls for one architecture; first checks that mixed calls score correctly."""
    base = init_base(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    shape = (sizes.batch, sizes.length)
    tokens = rng.integers(2, config.vocab_size, shape).astype(np.int32)
    options = jnp.asarray(rng.integers(2, config.vocab_size, (2, 2)), jnp.int32)
    placed = jnp.asarray(tokens)
    plain, single = scorer(config, Method()), scorer(config, AdaLink(rank=RANK))
    calls = {
        f"{name}, base": lambda: jax.block_until_ready(plain(base, placed, options, None)),
    }
    embedded = jnp.asarray(rng.standard_normal((*shape, config.emb_dim), np.float32))
    product = jax.jit(routed_low_rank)
    for count in sizes.adapters:
        adapters = stacked(config, count)
        routes = rng.integers(0, count, sizes.batch).astype(np.int32)
        score = scorer(config, AdaLink(rank=RANK, routes=count))
        params, placed_routes = merge(base, adapters), jnp.asarray(routes)

        def mixed(score=score, params=params, routes=placed_routes):
            return jax.block_until_ready(score(params, placed, options, routes))

        calls[f"{name}, mixed, K={count}"] = mixed
        leaves = adapters["encoder"]["adalink"]
        by_token = jnp.repeat(placed_routes[:, None], sizes.length, axis=1)
        given = (embedded, leaves["down"], leaves["up"], by_token)
        calls[f"{name}, module, K={count}"] = lambda g=given: jax.block_until_ready(product(*g))
        if count <= LARGEST_LOOP:
            calls[f"{name}, loop, K={count}"] = loop(
                single, base, adapters, routes, tokens, options
            )
        k = int(routes[0])
        one = jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], adapters)
        expected = single(merge(base, one), placed[:1], options, None)
        np.testing.assert_allclose(mixed()[:1], expected, rtol=1e-4, atol=1e-3)
    return calls


def rows(name: str, sizes: Sizes, wall: timing.Times) -> list[dict[str, Any]]:
    """Returns the table's lines for one architecture."""
    first, table = f"{name}, mixed, K=1", []
    for kind in ("base", *(f"{k}, K={c}" for c in sizes.adapters for k in ("mixed", "loop"))):
        call = f"{name}, {kind}"
        if call not in wall:
            continue
        fastest = min(wall[call])
        line = {
            "model": name,
            "call": kind,
            "ms": 1e3 * fastest,
            "rows/s": sizes.batch / fastest,
            "× K=1": fastest / min(wall[first]),
            "× K=1, median": timing.ratio(wall, call, first),
        }
        if kind.startswith("mixed"):
            line["module"] = min(wall[call.replace("mixed", "module")]) / fastest
        table.append(line)
    return table


def main(flags: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=20).parse_args(flags)
    sizes = Sizes(4, 8, (1, 6)) if options.small else Sizes()
    models = {"mini": mini()}
    if not options.small:
        models["T5 small"] = shapes.flan_t5_small(0.0)
    load = os.getloadavg()
    table, wall, cpu = [], {}, {}
    for name, config in models.items():
        times = timing.interleaved(candidates(name, config, sizes), options.rounds, warm_ups=2)
        wall |= times[0]
        cpu |= times[1]
        table += rows(name, sizes, wall)
    settings = {**dataclasses.asdict(sizes), "rank": RANK, "rounds": options.rounds}
    timing.report("mixed_batch", table, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
