"""The parts that `benchmarks/gpu.py` measures, each in a process of its own.

A process imports its libraries and waits for its settings, a line of JSON on its input. So the
next part's imports take place while this part is measured, and its memory is its own. It writes
what it has found into a file, anew after each finding.

Weights are random numbers made on the device: a step's time does not depend on them.
"""

import dataclasses
import functools
import importlib
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax import methods  # noqa: E402
from adalink_jax.distributed.sharding import (  # noqa: E402
    make_mesh,
    on_mesh,
    place_batch,
    replicated,
)
from adalink_jax.methods.adalink import AdaLink  # noqa: E402
from adalink_jax.methods.base import Method, Site, merge  # noqa: E402
from adalink_jax.models.kernels import quantised  # noqa: E402
from adalink_jax.models.layers import Attention  # noqa: E402
from adalink_jax.models.t5 import T5Config, Transformer  # noqa: E402
from adalink_jax.tools.cost.counts import Shape, traced_flops  # noqa: E402
from adalink_jax.tools.cost.programs import default_optimizer  # noqa: E402
from adalink_jax.training.state import TrainState, abstract_state  # noqa: E402
from adalink_jax.training.step import in_place, make_train_step  # noqa: E402
from benchmarks import matrix_products, mixed_batch, other_frameworks, shapes, timing  # noqa: E402
from benchmarks.train_step import make_batch  # noqa: E402

# Steps that are timed, after others that are not: at most so many, and so many seconds.
WARM_UPS, STEPS, SECONDS = 2, 12, 6.0
# The methods as AdaLink's paper has them for a raw T5.
METHODS: dict[str, dict[str, Any]] = {
    "adalink": {"rank": 256},
    "lora": {"rank": 16},
    "prompt_tuning": {"length": 64},
    "full": {},
}
BFLOAT16 = jnp.dtype(jnp.bfloat16)

Settings = Mapping[str, Any]
# Adds findings to those that are written already.
Tell = Callable[..., None]


def timed(call: Callable[[], Any], steps: int = STEPS) -> list[float]:
    """Returns the seconds of repeated calls, each of which returns when its work is done."""
    for _ in range(WARM_UPS):
        call()
    seconds, began = [], time.perf_counter()
    while len(seconds) < steps and (not seconds or time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def card() -> dict[str, Any]:
    """Returns the device's name, and the bytes that were and may be in use, where it tells."""
    device = jax.devices()[0]
    found = device.memory_stats() or {}
    names = {"peak_bytes": "peak_bytes_in_use", "limit_bytes": "bytes_limit"}
    told = {name: found[key] for name, key in names.items() if key in found}
    return {"device": device.device_kind, **told}


def architecture(settings: Settings) -> T5Config:
    """Returns the configuration of a step's model, with what says how it runs."""
    rate, size = settings.get("dropout_rate", 0.1), settings["model"]
    config = shapes.toy(rate) if size == "toy" else shapes.t5_1_1(size, rate)
    given = ("remat", "attention", "scan_layers")
    changes = {name: settings[name] for name in given if name in settings}
    return dataclasses.replace(config, dtype=BFLOAT16, **changes)


def method_of(settings: Settings) -> Method:
    """Returns a step's method."""
    return methods.METHODS[settings["method"]](**METHODS[settings["method"]])


@functools.partial(jax.jit, static_argnums=(0, 1))
def noise(shape: tuple[int, ...], dtype: Any, number: int) -> jax.Array:
    """Returns numbers with variance 1, a hash of their places: made where they are stored."""
    size = math.prod(shape)
    x = jax.lax.iota(jnp.uint32, size) + jnp.uint32(number) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    uniform = ((x ^ (x >> 16)) >> 8).astype(jnp.float32) / 2**23 - 1
    return (uniform * 3**0.5).astype(dtype).reshape(shape)


def random_params(like: Any) -> Any:
    """Returns a tree of random parameters with these shapes, dtypes and places.

    They are about as large as T5X's initial ones: with larger values, activations overflow.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(like, is_leaf=_is_quantised)

    def make() -> Any:
        return jax.tree.unflatten(tree, [one(i, *each) for i, each in enumerate(paths)])

    def one(number: int, path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("/scale"):
            return jnp.ones(leaf.shape, leaf.dtype)
        deviation = 1.0 if name.endswith("embedding") else leaf.shape[-2] ** -0.5
        if name.endswith("query/kernel"):
            deviation /= 8
        if _is_quantised(leaf):
            return quantised(noise(leaf.shape, jnp.dtype("float32"), number) * deviation)
        return noise(leaf.shape, leaf.dtype, number) * jnp.asarray(deviation, leaf.dtype)

    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(make, out_shardings=places)()


def _is_quantised(leaf: Any) -> bool:
    return hasattr(leaf, "qvalue")


def random_state(like: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns a training state with random parameters, made on the device."""
    trainable, frozen = random_params(like.trainable), random_params(like.frozen)
    places = jax.tree.map(lambda leaf: leaf.sharding, like.opt_state)
    return dataclasses.replace(
        like,
        step=jax.device_put(jnp.zeros((), jnp.int32), like.step.sharding),
        trainable=trainable,
        opt_state=jax.jit(optimizer.init, out_shardings=places)(trainable),
        frozen=frozen,
    )


def model_flops(config: T5Config, method: Method, shape: Shape) -> int:
    """Returns the FLOPs of a step's products that its gradients need, counted in its trace.

    Layers are traced one after another, as scanned ones compute more than the gradients need. All
    layers of a stack but the first cost the same, so two are traced in place of all.
    """

    def of(layers: int) -> int:
        depths = {"num_encoder_layers": layers, "num_decoder_layers": layers}
        plain = {"remat": "none", "attention": "xla", "scan_layers": False}
        return traced_flops(dataclasses.replace(config, **depths, **plain), method, shape).train

    assert config.num_encoder_layers == config.num_decoder_layers
    first, second = of(1), of(2)
    return first + (config.num_encoder_layers - 1) * (second - first)


def step(settings: Settings, tell: Tell) -> None:
    """A training step as `adalink_jax.runs.train` compiles it, with Adafactor and dropout."""
    config, method = architecture(settings), method_of(settings)
    sizes = [settings[name] for name in ("batch", "inputs", "targets")]
    rows, shape = matrix_products.Shape(*sizes), Shape(*sizes)
    optimizer, mesh = default_optimizer(method), make_mesh()
    with on_mesh(mesh):
        dtype = jnp.dtype(settings.get("frozen_dtype", "bfloat16"))
        like = abstract_state(config, method, optimizer, mesh, frozen_dtype=dtype)
        batch = place_batch(make_batch(config.vocab_size, rows), mesh)
        key = jax.device_put(jax.random.key(0, impl=settings.get("rng")), replicated(mesh))
        start = time.perf_counter()
        train = make_train_step(Transformer(config, method), optimizer, lambda step: 1e-3)
        lowered = in_place(train, like).lower(like, batch, key)
        traced = time.perf_counter()
        tell(trace_seconds=traced - start)
        with ThreadPoolExecutor() as threads:
            # Counted while XLA compiles.
            counted = threads.submit(model_flops, config, method, shape)
            compiled = lowered.compile()
            tell(compile_seconds=time.perf_counter() - traced, xla=sizes_of(compiled))
            tell(flops=counted.result())
        state = random_state(like, optimizer)

        def call() -> None:
            nonlocal state
            state, metrics = compiled(state, batch, key)
            losses.append(float(metrics["loss"]))

        losses: list[float] = []
        seconds = timed(call)
    tell(seconds=seconds, losses=losses, **card())


def sizes_of(compiled: Any) -> dict[str, int]:
    """Returns what XLA says of a program's memory, in bytes."""
    found = compiled.memory_analysis()
    fields = ("argument_size", "output_size", "temp_size", "alias_size", "peak_memory")
    return {field: getattr(found, f"{field}_in_bytes") for field in fields}


def ceilings(settings: Settings, tell: Tell) -> None:
    """What the card reaches: products of bfloat16 matrices by size, and a copy."""

    def median(function: Callable[..., Any], *arrays: Any) -> float:
        # Several at a time, so that starting them takes no time of the device.
        compiled, count = jax.jit(function), settings["calls"]

        def run() -> None:
            jax.block_until_ready([compiled(*arrays) for _ in range(count)])

        return statistics.median(timed(run, 5)) / count

    rates = {}
    for rows, inner, columns in settings["products"]:
        arrays = noise((rows, inner), BFLOAT16, 1), noise((inner, columns), BFLOAT16, 2)
        rates[f"{rows} x {inner} x {columns}"] = (
            2 * rows * inner * columns / median(jnp.matmul, *arrays)
        )
        tell(products=rates, **card())
    array = noise((settings["copied"],), BFLOAT16, 3)
    tell(bytes_per_second=2 * array.nbytes / median(lambda x: x + 1, array))


def attention(settings: Settings, tell: Tell) -> None:
    """One attention with T5's bias, forward and backward: XLA's own and cuDNN's, and how exact."""

    def both(way: Callable[..., Any]) -> Callable[..., Any]:
        def loss(qkv, bias, mask, lengths):
            out = way(*qkv, bias, mask, lengths)
            # As in a network, nothing follows from a query that is padding.
            counted = (jnp.arange(out.shape[1]) < lengths[:, None])[:, :, None, None]
            return jnp.sum(jnp.sin(out.astype(jnp.float32)) * counted), out

        return jax.jit(jax.grad(loss, has_aux=True))

    few, many = (_attended(settings, rows) for rows in (2, settings["batch"]))
    expected, found = both(_in_float32)(*few), {}
    real = (jnp.arange(settings["length"]) < few[3][:, None])[:, :, None, None]
    for name, way in _ways().items():
        run = both(way)
        try:
            seconds = timed(lambda run=run: jax.block_until_ready(run(*many)))
            found[name] = {"seconds": seconds}
            if name in ("xla", "cudnn, bias and mask"):
                # Of the gradients of queries, keys and values, and of the output.
                pairs = zip(*map(jax.tree.leaves, (run(*few), expected)), strict=True)
                found[name]["errors"] = [
                    float(jnp.linalg.norm((ours - exact) * real) / jnp.linalg.norm(exact * real))
                    for ours, exact in pairs
                ]
        except Exception as error:  # One way's failure says nothing of the others.
            found[name] = {"error": first_line(error)}
        tell(ways=found, **card())


def _attended(settings: Settings, rows: int) -> tuple[Any, ...]:
    """Returns (queries, keys, values), T5's bias, the mask, and the lengths that it is made of."""
    heads, length, width = (settings[name] for name in ("heads", "length", "width"))
    q, k, v = (noise((rows, length, heads, width), BFLOAT16, i) for i in range(3))
    bias = noise((1, heads, length, length), BFLOAT16, 3)
    lengths = jnp.where(jnp.arange(rows) % 2, length, length - length // 4).astype(jnp.int32)
    real = jnp.arange(length) < lengths[:, None]
    mask = real[:, None, :, None] & real[:, None, None, :]
    return (q / width**0.5, k, v), bias, mask, lengths


def _attend(dtype: Any, q, k, v, bias, mask, lengths) -> Any:
    config = dataclasses.replace(shapes.toy(0.0), dtype=dtype)
    q, k, v, bias = (x.astype(dtype) for x in (q, k, v, bias))
    ours = Attention(config, Site("encoder", "attention"), Method())
    return ours._attend(q, k, v, mask, bias, None, True)


_in_float32 = functools.partial(_attend, jnp.dtype("float32"))


def _ways() -> dict[str, Callable[..., Any]]:
    """Returns functions of queries, keys, values, bias, mask and lengths."""
    ways: dict[str, Callable[..., Any]] = {"xla": functools.partial(_attend, BFLOAT16)}
    if jax.default_backend() != "gpu":
        return ways
    cudnn = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")
    return ways | {
        "cudnn, bias and mask": lambda q, k, v, bias, mask, n: cudnn(q, k, v, bias, mask),
        "cudnn, bias and lengths": lambda q, k, v, bias, mask, n: cudnn(
            q, k, v, bias, query_seq_lengths=n, key_value_seq_lengths=n
        ),
        "cudnn, mask alone": lambda q, k, v, bias, mask, n: cudnn(q, k, v, None, mask),
        "cudnn, neither": lambda q, k, v, bias, mask, n: cudnn(q, k, v),
    }


def mixed(settings: Settings, tell: Tell) -> None:
    """Scoring a batch whose rows use K adapters, for several K, as `benchmarks/mixed_batch.py`."""
    config, rng = architecture({**settings, "dropout_rate": 0.0}), np.random.default_rng(0)
    rank, mesh = mixed_batch.RANK, make_mesh()
    one = AdaLink(rank=rank)
    with on_mesh(mesh):
        like = abstract_state(config, one, default_optimizer(one), mesh, frozen_dtype=BFLOAT16)
        base = random_params(like.frozen)
        shape = (settings["batch"], settings["inputs"])
        tokens = jnp.asarray(rng.integers(2, config.vocab_size, shape), jnp.int32)
        options = jnp.asarray(rng.integers(2, config.vocab_size, (2, 2)), jnp.int32)
        plain = mixed_batch.scorer(config, Method())
        calls = {"base": lambda: jax.block_until_ready(plain(base, tokens, options, None))}
        for count in settings["adapters"]:
            score = mixed_batch.scorer(config, AdaLink(rank=rank, routes=count))
            params = merge(base, mixed_batch.stacked(config, count))
            routes = jnp.asarray(rng.integers(0, count, shape[0]), jnp.int32)

            def call(score=score, params=params, routes=routes):
                return jax.block_until_ready(score(params, tokens, options, routes))

            calls[f"K={count}"] = call
        wall, _ = timing.interleaved(calls, settings["rounds"], warm_ups=2)
    tell(calls=wall, **card())


def peft(settings: Settings, tell: Tell) -> None:
    """LoRA of peft on transformers' T5, of the same shape and rank: PyTorch, all in bfloat16."""
    import torch

    config, rng = architecture(settings), np.random.default_rng(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, found = _peft_model(config, device), {}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adafactor(trained, lr=1e-3)
    for rows, checkpointing in settings["variants"]:
        name = f"batch {rows}, {'with' if checkpointing else 'without'} gradient checkpointing"
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        sizes = ((rows, settings["inputs"]), (rows, settings["targets"]))
        tokens, targets = (
            torch.from_numpy(rng.integers(3, config.vocab_size, size)).to(device) for size in sizes
        )

        losses: list[float] = []

        def call(tokens=tokens, targets=targets, losses=losses) -> None:
            optimizer.zero_grad()
            mask = torch.ones_like(tokens)
            loss = model(input_ids=tokens, attention_mask=mask, labels=targets).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if device == "cuda":
                torch.cuda.synchronize()

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            found[name] = {"batch": rows, "seconds": timed(call), "losses": losses}
        except torch.OutOfMemoryError as error:
            found[name] = {"batch": rows, "error": first_line(error)}
            optimizer.zero_grad()
        if device == "cuda":
            found[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
        tell(variants=found)


def _peft_model(config: T5Config, device: str) -> Any:
    import torch
    import transformers
    from peft import get_peft_model

    network = other_frameworks.transformers_config(config)
    lora = other_frameworks.lora_config(METHODS["lora"]["rank"])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.T5ForConditionalGeneration(network)
        # Modules in float32, peft's default, would make its products several times slower.
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    return model.train()


def first_line(error: BaseException) -> str:
    """Returns an error in one line, without what an allocator adds."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def main(kind: str, out: str) -> None:
    """Measures a part whose settings are the first line of the input."""
    if kind == "peft":
        importlib.import_module("peft")
    given, findings = sys.stdin.readline(), {}

    def tell(**more: Any) -> None:
        findings.update(more)
        path = pathlib.Path(out)
        path.with_suffix(".new").write_text(json.dumps(findings), encoding="utf-8")
        path.with_suffix(".new").replace(path)

    parts = {f.__name__: f for f in (ceilings, attention, step, mixed, peft)}
    try:
        if given:  # Without a line, nobody waits for the part any more.
            parts[kind](json.loads(given), tell)
    except Exception as error:
        tell(error=first_line(error))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
