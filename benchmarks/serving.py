"""Requests that share a device: the engine, the server in front of it, peft.

A round answers the same requests: texts of T tokens, each with one of K LoRAs (rank 4 on the
encoder's linear layers) of its own, for which two labels are scored. All weights are random.

* engine, K: `Service` on batches of B rows, as `adalink infer` runs them;
* engine, one row: a call for each request;
* HTTP, K: `adalink serve` asked by as many connections as a batch has rows, from a process beside
  it, which needs a share of the cores;
* peft: transformers' T5 with peft, a mixed batch (``adapter_names``), and adapter by adapter
  (``set_adapter``). The encoder runs once for both labels, as here. Skipped where these are not
  installed.

How to read it: "÷ engine" is the median over rounds of a candidate's seconds divided by the
engine's with as many adapters. HTTP's is also given in CPU seconds of the server's process.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import socket
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.checkpoints import fingerprint, save_adapter, save_base  # noqa: E402
from adalink_jax.checkpoints.lazy import StoredBase  # noqa: E402
from adalink_jax.methods.lora import LoRA  # noqa: E402
from adalink_jax.models.parameters import init_adapter, init_base  # noqa: E402
from adalink_jax.models.t5 import T5Config  # noqa: E402
from adalink_jax.tools.serving.engine import Engine  # noqa: E402
from adalink_jax.tools.serving.requests import Request  # noqa: E402
from adalink_jax.tools.serving.service import Limits, Service  # noqa: E402
from adalink_jax.tools.serving.shelf import Shelf  # noqa: E402
from benchmarks import asking, other_frameworks, shapes, timing  # noqa: E402

LABELS = ("yes", "no")
METHOD = LoRA(rank=4, alpha=16.0, dropout_rate=0.0, stacks=("encoder",))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """B, T, requests of a round, and the numbers of adapters K."""

    batch: int = 64
    length: int = 64
    requests: int = 128
    adapters: tuple[int, ...] = (1, 8, 64, 512)


class Numbers:
    """A vocabulary in which a text is numbers of tokens, and a label a token of its own."""

    eos_id, pad_id = 1, 0

    def __init__(self, size: int):
        """Makes one of `size` tokens."""
        self.vocab_size = size

    def encode(self, text: str) -> list[int]:
        """Returns a text's tokens."""
        return (
            [2 + LABELS.index(text)]
            if text in LABELS
            else [int(n) for n in text.split() if n.isdigit()]
        )

    def decode(self, ids: list[int]) -> str:
        """Returns tokens as a text."""
        return " ".join(map(str, ids))


def written(folder: pathlib.Path, config: T5Config, most: int) -> None:
    """Writes a base and adapters of random weights."""
    base = jax.tree.map(np.asarray, init_base(config, jax.random.key(0)))
    arrays: dict[str, Any] = traverse_util.flatten_dict(dict(base), sep="/")
    save_base(str(folder / "base"), StoredBase(config, "random", arrays, beside=None), "native")
    digest, shape = fingerprint(base), init_adapter(config, METHOD, base, jax.random.key(0))
    rng = np.random.default_rng(0)
    for number in range(most):
        tree = jax.tree.map(lambda x: rng.normal(0, 0.02, x.shape).astype(np.float32), shape)
        save_adapter(
            folder / "adapters" / f"a{number}",
            tree,
            method_name="lora",
            settings=METHOD.settings(),
            architecture=config,
            base_fingerprint=digest,
        )


def service(folder: pathlib.Path, config: T5Config, sizes: Sizes) -> Service:
    """Returns the service of all adapters."""
    resident = max(*sizes.adapters, sizes.batch)
    engine = Engine(str(folder / "base"), resident=resident, bank_bytes=2**34)
    where = str(folder / "adapters")
    vocabulary = Numbers(config.vocab_size)
    shelf = Shelf(where, engine.config, engine.fingerprint, vocabulary, {}, 2**34, sizes.length)
    return Service(engine, shelf, vocabulary, Limits(sizes.length, 8, sizes.batch, 1))


def asked(config: T5Config, sizes: Sizes, count: int) -> list[Request]:
    """Returns the requests of a round for `count` adapters."""
    rng = np.random.default_rng(count)
    tokens = rng.integers(4, config.vocab_size, (sizes.requests, sizes.length - 1))
    names = rng.integers(0, count, sizes.requests)
    return [
        Request(i, " ".join(map(str, row)), f"a{name}", LABELS)
        for i, (row, name) in enumerate(zip(tokens, names, strict=True))
    ]


def engine_calls(served: Service, requests: list[Request], rows: int) -> Callable[[], None]:
    """Returns a call that answers all requests, `rows` at a time."""

    def run() -> None:
        for start in range(0, len(requests), rows):
            found = list(served.answers(requests[start : start + rows]))
            assert all("scores" in one for one in found)

    return run


def _client(address: tuple[str, int], bodies: list[list[bytes]], heard: Any) -> None:
    """A process that asks, over as many connections as a batch has rows."""

    async def ask(waiting: asyncio.Queue) -> None:
        reader, writer = await asyncio.open_connection(*address)
        while not waiting.empty():
            assert await asking.answered(reader, writer, waiting.get_nowait()) == 200
        writer.close()

    async def rounds() -> None:
        loop = asyncio.get_running_loop()
        while (number := await loop.run_in_executor(None, heard.recv)) is not None:
            waiting: asyncio.Queue = asyncio.Queue()
            for body in bodies[number[0]]:
                waiting.put_nowait(body)
            await asyncio.gather(*(ask(waiting) for _ in range(number[1])))
            heard.send("done")

    asyncio.run(rounds())


def _message(request: Request) -> bytes:
    asks = {"text": request.text, "adapter": request.adapter, "labels": list(LABELS)}
    return asking.message("/v1/score", asks | {"deadline_ms": 600_000})


@contextlib.contextmanager
def http_calls(
    served: Service, rounds: list[list[Request]], sizes: Sizes
) -> Iterator[list[Callable[[], None]]]:
    """Yields a call for each list of requests, that asks a server for them all."""
    import uvicorn

    from adalink_jax.tools.serving import serve

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    wish = types.SimpleNamespace(number=0)
    flags = argparse.Namespace(queue=4096, window_ms=2, deadline_ms=600_000, warm=0)
    running = serve._serve(uvicorn, served, flags, listener, wish)
    server = threading.Thread(target=lambda: asyncio.run(running))
    server.start()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    bodies = [[_message(request) for request in requests] for requests in rounds]
    given = (listener.getsockname(), bodies, theirs)
    client = multiprocessing.get_context("spawn").Process(target=_client, args=given, daemon=True)
    client.start()

    def run(number: int) -> None:
        ours.send((number, sizes.batch))
        assert ours.recv() == "done"

    try:
        yield [lambda number=number: run(number) for number in range(len(rounds))]
    finally:
        ours.send(None)
        client.join()
        wish.number = 15
        server.join()


def peft_calls(config: T5Config, requests: list[Request], batch: int) -> dict[str, Callable]:
    """Returns peft's mixed batches, and its adapters one after another."""
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        print(f"peft is skipped: {error}")
        return {}
    torch.set_num_threads(timing.cores())
    network = transformers.T5ForConditionalGeneration(other_frameworks.transformers_config(config))
    lora = other_frameworks.lora_config(METHOD.rank)
    names = sorted({request.name for request in requests})
    model = peft.get_peft_model(network, lora, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora)
    model.eval()
    vocabulary = Numbers(config.vocab_size)
    tokens = torch.tensor([[*vocabulary.encode(one.text), 1] for one in requests])
    owners = [one.name for one in requests]
    targets = torch.tensor([[2, 1], [3, 1]])

    def score(rows: Any, chosen: list[str] | None) -> None:
        named = {"adapter_names": chosen} if chosen else {}
        encoder = model.base_model.model.get_encoder()
        with model.base_model._enable_peft_forward_hooks(**named) if named else no_hooks():
            encoded = encoder(input_ids=rows)
        for target in targets:
            labels = target.repeat(len(rows), 1)
            logits = network(encoder_outputs=encoded, labels=labels).logits
            torch.log_softmax(logits, -1).gather(-1, labels[..., None]).sum((1, 2))

    no_hooks = contextlib.nullcontext

    def mixed() -> None:
        with torch.no_grad():
            for start in range(0, len(owners), batch):
                score(tokens[start : start + batch], owners[start : start + batch])

    def in_turn() -> None:
        with torch.no_grad():
            for name in names:
                mine = [i for i, owner in enumerate(owners) if owner == name]
                model.set_adapter(name)
                for start in range(0, len(mine), batch):
                    score(tokens[mine[start : start + batch]], None)

    return {"peft, mixed": mixed, "peft, in turn": in_turn}


def main(flags: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=10).parse_args(flags)
    sizes = Sizes(4, 8, 8, (1, 6)) if options.small else Sizes()
    config = shapes.toy(0.0) if options.small else shapes.flan_t5_small(0.0)
    load, calls = os.getloadavg(), {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        written(pathlib.Path(folder), config, max(sizes.adapters))
        served = service(pathlib.Path(folder), config, sizes)
        rounds = {count: asked(config, sizes, count) for count in sizes.adapters}
        over_http = running.enter_context(http_calls(served, list(rounds.values()), sizes))
        for (count, requests), over in zip(rounds.items(), over_http, strict=True):
            calls[f"engine, K={count}"] = engine_calls(served, requests, sizes.batch)
            calls[f"HTTP, K={count}"] = over
        compared = sizes.adapters[min(2, len(sizes.adapters) - 1)]
        calls["engine, one row"] = engine_calls(served, rounds[compared], 1)
        peft = peft_calls(config, rounds[compared], sizes.batch)
        wall, cpu = timing.interleaved(calls | peft, options.rounds, warm_ups=2)
    table = []
    for name in wall:
        count = name.partition("K=")[2] or str(compared)
        line: dict[str, Any] = {"call": name, "requests/s": sizes.requests / min(wall[name])}
        line["÷ engine"] = timing.ratio(wall, name, f"engine, K={count}")
        line["÷ engine, K=1"] = timing.ratio(wall, name, "engine, K=1")
        if name.startswith("HTTP"):
            line["CPU ÷ engine"] = timing.ratio(cpu, name, f"engine, K={count}")
        table.append(line)
    settings = {**dataclasses.asdict(sizes), "rounds": options.rounds, "compared": compared}
    timing.report("serving", table, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
