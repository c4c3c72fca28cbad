"""Adapters, services and servers on the mini base, as tests make them."""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import socket
import threading
import time
import types

import httpx
import jax
import numpy as np
import uvicorn

import tasks
from adalink_jax.checkpoints import fingerprint, save_adapter
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import decoding
from adalink_jax.models.parameters import init_adapter
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools.serving import serve
from adalink_jax.tools.serving.engine import FLOAT32, Engine
from adalink_jax.tools.serving.service import Limits, Service
from adalink_jax.tools.serving.shelf import Shelf

LABELS = ("negative", "positive", "acceptable")
TEXTS = ("the happy dog likes the park", "a cat", "the bad film was not good at all", "dogs sing")
METHODS_OF = {
    "adalink_2": METHODS["adalink"](rank=2),
    "adalink_3": METHODS["adalink"](rank=3),
    "adalink_9": METHODS["adalink"](rank=9),
    "adalink_relu": METHODS["adalink"](rank=2, activation="relu"),
    "adalink_many": METHODS["adalink"](rank=2, routes=3),
    "lora": METHODS["lora"](rank=2, alpha=6.0, dropout_rate=0.1),
    "lora_some": METHODS["lora"](rank=3, linears=("mlp/*",), layers=(0,)),
    "lora_wider": METHODS["lora"](rank=5, alpha=1.0),
    "prompt_tuning": METHODS["prompt_tuning"](length=3, reparameterise=False),
    "prompt_other": METHODS["prompt_tuning"](length=3, reparameterise=False, routes=2),
}


def written(base, folder, methods):
    """Writes an adapter of each method with random values; returns their trees by name."""
    config, params = base
    trees = {}
    for number, (name, method) in enumerate(methods.items()):
        tree = init_adapter(config, method, params, jax.random.key(number))
        rng = np.random.default_rng(number)
        tree = jax.tree.map(lambda x, r=rng: r.normal(0, 0.3, x.shape).astype(np.float32), tree)
        trees[name] = tree
        write(folder / name, base, method, tree)
    return trees


def write(folder, base, method, tree, **metadata):
    config, params = base
    save_adapter(
        folder,
        tree,
        method_name=method.scope,
        settings=method.settings(),
        architecture=config,
        base_fingerprint=fingerprint(params),
        route_names=[f"r{i}" for i in range(method.routes)] if method.routes > 1 else ["all"],
        metadata=metadata,
    )


@functools.cache
def scorer(config, method):
    """Scores options by one adapter: compiled once for all tests."""
    return jax.jit(functools.partial(decoding.score_options, Transformer(config, method)))


def alone(base, trees, text, name, methods=METHODS_OF):
    """Log-likelihoods by the adapter itself, without a bank, a batch or padding."""
    config, params = base
    config = dataclasses.replace(config, dropout_rate=0.0)
    encode = tasks.MINI_VOCABULARY.encode
    tokens = np.asarray([[*encode(text), 1]], np.int32)
    ids = [[*encode(label), 1] for label in LABELS]
    options = np.asarray([one + [0] * (max(map(len, ids)) - len(one)) for one in ids], np.int32)
    adapter, _, route = (name or "").partition(":")
    method, merged, routes = METHODS["full"](), params, None
    if adapter:
        method = methods[adapter]
        merged = merge(params, trees[adapter])
        routes = np.asarray([int(route.removeprefix("r") or 0)])
    return scorer(config, method)(merged, tokens, options, routes)[0].tolist()


def greedy(base, trees, text, name):
    """The text of greedy decoding, without slots, a batch or a server."""
    config, params = base
    adapter, _, route = (name or "").partition(":")
    method, routes = Method(), None
    if adapter:
        method, params = METHODS_OF[adapter], merge(params, trees[adapter])
        routes = np.asarray([int(route.removeprefix("r") or 0)])
    tokens = np.zeros((1, 16), np.int32)
    ids = [*tasks.MINI_VOCABULARY.encode(text), 1]
    tokens[0, : len(ids)] = ids
    model = Transformer(dataclasses.replace(config, dropout_rate=0.0), method)
    found = np.asarray(decoding.greedy(model, params, tokens, 8, routes=routes))[0].tolist()
    return tasks.MINI_VOCABULARY.decode(found[: found.index(1)] if 1 in found else found)


LIMITS = Limits(inputs=32)


def served(
    base,
    adapters,
    vocabulary=tasks.MINI_VOCABULARY,
    *,
    labels_of=None,
    limits=LIMITS,
    resident=6,
    host_bytes=2**30,
    precision=FLOAT32,
    **sizes,
):
    """Returns a service of a base and a folder of adapters."""
    engine = Engine(str(base), precision, resident=resident, **sizes)
    where = None if adapters is None else str(adapters)
    base = engine.config, engine.fingerprint
    shelf = Shelf(where, *base, vocabulary, labels_of or {}, host_bytes, limits.inputs)
    return Service(engine, shelf, vocabulary, limits)


SOME = ("adalink_2", "adalink_9", "adalink_many")
EVERY = (*SOME, "lora", "prompt_tuning")
SERVER_LIMITS = Limits(inputs=16, targets=8, rows=4, slots=4)
# Longer than a machine that many share stands still for.
PATIENCE = 600
FLAGS = {
    "queue": 64, "window_ms": 2, "deadline_ms": PATIENCE * 1000, "warm": 0,
}  # fmt: skip


@contextlib.contextmanager
def running(service, **flags):
    """Yields a client of a server in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    wish = types.SimpleNamespace(number=0)
    flags = argparse.Namespace(**{**FLAGS, **flags})

    def run():
        asyncio.run(serve._serve(uvicorn, service, flags, listener, wish))

    thread = threading.Thread(target=run)
    thread.start()
    address = "http://{}:{}".format(*listener.getsockname())
    limits = httpx.Limits(max_connections=400)
    with httpx.Client(base_url=address, timeout=PATIENCE, limits=limits) as client:
        try:
            until(lambda: client.get("/readyz").status_code == 200)
            yield client
        finally:
            wish.number = 15
            thread.join(60)
            assert not thread.is_alive()


def until(true, seconds=120.0):
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
