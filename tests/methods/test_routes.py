"""A batch of several tasks, each example beside its single-task adapter alone."""

import jax
import numpy as np
import pytest

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models.parameters import init_adapter
from adalink_jax.models.t5 import Transformer
from tests.tiers import mostly_slow

TASKS = 4
SINGLE = {
    "adalink": METHODS["adalink"](rank=2, activation="relu", stacks=("encoder", "decoder")),
    "lora": METHODS["lora"](rank=2, stacks=("encoder", "decoder"), alpha=3.0),
    "lora_some": METHODS["lora"](rank=2, linears=("mlp/*",), layers=(1,)),
    "prompt_tuning": METHODS["prompt_tuning"](length=3),
    "prompt_ulpt": METHODS["prompt_tuning"](
        length=3, bottleneck=2, initialisation="random", generator="ulpt"
    ),
    "translation": METHODS["translation"](),
    "embedding_lora": METHODS["embedding_lora"](rank=2),
    "position_offsets": METHODS["position_offsets"](rank=2, max_length=20),
    "invertible": METHODS["invertible"](),
    "dora": METHODS["dora"](rank=2),
    "vera": METHODS["vera"](rank=3),
    "peanut": METHODS["peanut"](rank=2),
    "glora": METHODS["glora"](rank=2),
    "ia3": METHODS["ia3"](),
    "input_scaling": METHODS["input_scaling"](),
    "bitfit": METHODS["bitfit"](),
    "norm_tuning": METHODS["norm_tuning"](),
    "bottleneck": METHODS["bottleneck"](rank=2, activation="gelu"),
    "compacter": METHODS["compacter"](rank=4),
    "propetl": METHODS["propetl"](rank=2, scored=False, rate_factors=None),
    "prefix_tuning": METHODS["prefix_tuning"](length=3),
    "unipelt": METHODS["compose"](
        parts=(
            METHODS["prefix_tuning"](length=2, gated=True),
            METHODS["bottleneck"](rank=2, gated=True),
            METHODS["lora"](rank=2, gated=True),
        )
    ),
    "prefix_mlp": METHODS["prefix_tuning"](length=2, reparameterise=True, bottleneck=3),
    "llama_adapter": METHODS["llama_adapter"](length=3, stacks=("encoder", "decoder")),
    "reft": METHODS["reft"](rank=2, first=1, last=2),
    "compose": METHODS["compose"](
        parts=(
            METHODS["llama_adapter"](length=2, layers=(1,)),
            METHODS["lora"](rank=2),
            METHODS["prefix_tuning"](length=2, position="none"),
        )
    ),
}
SHORT = ["adalink"]
# The routes of a batch: repeated, out of order, and one that none asks for.
ROUTES = (2, 0, 3, 2)
LENGTHS = ((4, 2), (3, 3), (5, 2), (4, 4))


@pytest.fixture(scope="module", params=mostly_slow(SINGLE, SHORT))
def tasks(request, tiny):
    """A method with a route a task, the single-task method, and their adapters, random."""
    config, base, _ = tiny
    single = SINGLE[request.param]
    rng = np.random.default_rng(0)
    adapters = []
    for k in range(TASKS):
        adapter = init_adapter(config, single, base, jax.random.key(k))
        shaken = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), adapter)
        adapters.append(shaken)
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *adapters)
    return config, base, single.with_routes(TASKS), stacked, single, adapters


@pytest.fixture(scope="module")
def examples():
    """Four examples of different lengths: (inputs, shifted targets, targets), each [1, n]."""
    rng = np.random.default_rng(1)
    found = []
    for inputs, targets in LENGTHS:
        x, y = (rng.integers(3, 48, (1, n)).astype(np.int32) for n in (inputs, targets))
        found.append((x, np.pad(y, ((0, 0), (1, 0)))[:, :-1], y))
    return found


@pytest.fixture(scope="module")
def alone(tasks, examples):
    """Each example's logits [L, V] under its own single-task adapter."""
    config, base, _, _, single, adapters = tasks
    apply = jax.jit(Transformer(config, single).apply, static_argnames="enable_dropout")
    return [
        apply({"params": merge(base, adapters[k])}, *example, enable_dropout=False)[0]
        for example, k in zip(examples, ROUTES, strict=True)
    ]


def test_unpacked(tasks, examples, alone):
    config, base, method, stacked, *_ = tasks
    columns = [
        np.concatenate([np.pad(x, ((0, 0), (0, 6 - x.shape[1]))) for x in arrays])
        for arrays in zip(*examples, strict=True)
    ]
    routes = np.asarray(ROUTES, np.int32)[:, None]
    logits = Transformer(config, method).apply(
        {"params": merge(base, stacked)},
        *columns,
        encoder_routes=np.broadcast_to(routes, columns[0].shape),
        decoder_routes=np.broadcast_to(routes, columns[1].shape),
        enable_dropout=False,
    )
    for got, expected in zip(logits, alone, strict=True):
        np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_packed(tasks, examples, alone):
    config, base, method, stacked, *_ = tasks

    def row(values, which):
        parts = [np.full_like(e[which], v) for e, v in zip(examples, values, strict=True)]
        return np.concatenate(parts, axis=1)

    def packed():
        return Transformer(config, method, route_slots=len(set(ROUTES))).apply(
            {"params": merge(base, stacked)},
            *(np.concatenate(arrays, axis=1) for arrays in zip(*examples, strict=True)),
            encoder_segment_ids=row((1, 2, 3, 4), 0),
            decoder_segment_ids=row((1, 2, 3, 4), 2),
            encoder_routes=row(ROUTES, 0),
            decoder_routes=row(ROUTES, 2),
            enable_dropout=False,
        )

    if method.scope == "prompt_tuning":  # Its vectors stand in front of a row of one example.
        with pytest.raises(UserError, match="packed"):
            packed()
        return
    logits = packed()
    np.testing.assert_allclose(logits[0], np.concatenate(alone), rtol=1e-5, atol=1e-5)
