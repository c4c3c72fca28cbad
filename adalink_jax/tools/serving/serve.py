"""Serves many adapters of one base over HTTP.

    adalink serve --base BASE --adapters RUNS --vocabulary spiece.model

Requests for any adapters share the device: POST /v1/score, /v1/generate, or OpenAI's
/v1/completions, where a model is an adapter. /docs describes all paths, / is a page to try them,
/metrics is for Prometheus. /readyz answers 200 once programs of all shapes are compiled.

Who sends the header "Authorization: Bearer TOKEN" with the token in ADALINK_ADMIN_TOKEN may load,
unload and pin adapters. SIGTERM ends the server once what waits is answered.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import time
from typing import Annotated, Any

from adalink_jax import compile_cache, signals
from adalink_jax.errors import UserError, install
from adalink_jax.tools.serving.model import add_model, opened
from adalink_jax.tools.serving.service import Limits, Service
from adalink_jax.values import Range, checked

_MOST = {
    "batch_size": 1024, "slots": 1024, "resident": 4096, "inputs": 2**14, "targets": 2**10,
    "queue": 2**20, "window_ms": 10_000, "deadline_ms": 3_600_000, "warm": 2**20,
    "bank_mib": 2**20, "host_mib": 2**20, "model_parallelism": 2**10,
}  # fmt: skip
_ZERO = ("window_ms", "warm")
# Seconds that a stop waits for answers.
_DRAIN = 30
_PROGRAMS = 4096
# Seconds between two lines about what is compiled.
_SAID_EVERY = 10
# Seconds that an idle connection stays open: longer than proxies keep theirs, so that none is
# closed as a request comes.
_KEPT = 75


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the base, the adapters, the address and the limits."""
    add_model(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for all")
    add("--port", type=int, default=8000, help="0 for any free one")
    add("--batch_size", type=int, default=64, help="the most rows of one call")
    add("--slots", type=int, default=16, help="texts of one kind generated side by side")
    add("--queue", type=int, default=1024, help="requests that may wait; more are answered 503")
    add("--window_ms", type=int, default=2, help="how long an idle device waits for more")
    add("--deadline_ms", type=int, default=30_000, help="after which a request is answered 504")
    about = "adapters that are looked at for the programs to compile before the server is ready"
    add("--warm", type=int, default=1000, help=about)


@compile_cache.kept()
def run(flags: argparse.Namespace) -> None:
    """Serves until a signal."""
    for name, most in _MOST.items():
        least = 0 if name in _ZERO else 1
        checked(f"--{name}", getattr(flags, name), Annotated[int, Range(least, most)])
    checked("--port", flags.port, Annotated[int, Range(0, 65_535)])
    try:
        import uvicorn

        from adalink_jax.tools.serving import web  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {install('serve')}") from error
    limits = Limits(flags.inputs, flags.targets, flags.batch_size, flags.slots)
    with contextlib.closing(_socket(flags.host, flags.port)) as listener:
        service = opened(flags, limits, max(flags.resident, limits.room), _PROGRAMS)
        with signals.waiting("what was asked is answered") as wish:
            wish.take()
            asyncio.run(_serve(uvicorn, service, flags, listener, wish))
        raise signals.Stopped(wish.number, "stopped: all that was asked is answered")


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from error


async def _serve(
    uvicorn: Any, service: Service, flags: argparse.Namespace, listener: socket.socket, wish: Any
) -> None:
    from adalink_jax.tools.serving import web
    from adalink_jax.tools.serving.answers import Answers
    from adalink_jax.tools.serving.batching import Batcher
    from adalink_jax.tools.serving.metrics import Metrics
    from adalink_jax.tools.serving.warming import examples, steps

    metrics = Metrics()
    batcher = Batcher(service, metrics, queue=flags.queue, window=flags.window_ms / 1e3)
    _count(metrics, service, batcher)
    batcher.start()
    answers = Answers(service, batcher, metrics, flags.queue, flags.deadline_ms / 1e3)
    warmed = asyncio.Event()
    app = web.application(
        answers,
        metrics,
        ready=lambda: warmed.is_set() and not wish.number,
        admin_token=os.environ.get("ADALINK_ADMIN_TOKEN") or None,
    )

    server = _server(uvicorn, app)
    host, port = listener.getsockname()[:2]
    _say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    async def warming() -> None:
        began = time.monotonic()
        rows = await answers.in_thread(examples, service, flags.warm)
        kinds, said = len({row.kind for row in rows}), began
        calls = list(steps(service, rows))
        _say(f"compiling for {len(calls)} shapes of {kinds} kinds of adapters; answers meanwhile")
        for number, call in enumerate(calls):  # What is asked meanwhile runs between them.
            if time.monotonic() - said > _SAID_EVERY:
                said = time.monotonic()
                _say(f"compiled {number} of {len(calls)}")
            await asyncio.wrap_future(batcher.ask(call))
        count = service.engine.programs.compiled
        seconds = time.monotonic() - began
        _say(f"ready: {count} programs of {kinds} kinds of adapters in {seconds:.1f} s")
        warmed.set()

    async def stopping() -> None:
        while not wish.number:
            await asyncio.sleep(0.05)
        server.should_exit = True

    tasks = [asyncio.create_task(warming()), asyncio.create_task(stopping())]
    try:
        serving = asyncio.create_task(server.serve([listener]))
        await asyncio.wait({serving, tasks[0]}, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
        await serving
    finally:
        for task in tasks:
            task.cancel()
        answers.pool.shutdown(cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(None, batcher.stop)


def _server(uvicorn: Any, app: Any) -> Any:
    class Server(uvicorn.Server):
        def capture_signals(self):  # The command hears them itself.
            return contextlib.nullcontext()

    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEPT,
            timeout_graceful_shutdown=_DRAIN,
        )
    )


def _count(metrics: Any, service: Service, batcher: Any) -> None:
    """Adds what is asked for when the metrics are read."""
    engine, shelf = service.engine, service.shelf
    for name, about, value in (
        ("adalink_waiting", "Requests that wait", lambda: batcher.waiting),
        ("adalink_texts", "Texts that are being generated", lambda: batcher.live),
        ("adalink_programs_compiled", "Programs compiled", lambda: engine.programs.compiled),
        ("adalink_adapters_on_device", "Modules on the device", lambda: len(engine.loaded)),
        ("adalink_adapters_in_host", "Adapters in host memory", lambda: len(shelf.resident())),
        ("adalink_adapter_reads", "Adapters read from disk", lambda: shelf.reads),
        ("adalink_device_evictions", "Made room on the device", lambda: engine.evictions),
        ("adalink_host_evictions", "Made room in host memory", lambda: shelf.evictions),
        ("adalink_bank_bytes", "Bytes of banks on the device", lambda: engine.bank_bytes),
    ):
        metrics.gauge(name, about, value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
