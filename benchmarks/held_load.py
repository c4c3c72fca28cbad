"""A server under load for long: errors, latency, memory and programs over time.

`adalink serve` runs the embedded base in a process of its own, with K AdaLinks of random weights.
This process, on the same cores, first asks over 64 connections as fast as it can, which is
saturation. Then requests arrive at random moments (a Poisson process) at a share of that rate,
whether or not earlier ones are answered: four in five score two labels, one generates; texts have
1 to 30 words, and adapters are chosen by Zipf's law.

How to read it: one line for each tenth of the time. Latency is from the moment that a request was
due, so a stalled server is not excused by requests that were sent late; it is that of requests
that did not fail. "Full" are those that failed with 503, as too many waited. "Sent late" is how
long after it was due a request was sent, at most: where that is seconds, this machine stood still,
and not the server alone. "MiB" is the server's memory, which must not grow; "programs" are those
compiled since its start, which must not become more; and no request should fail.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jax
import numpy as np

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from adalink_jax.checkpoints import fingerprint, load_base, save_adapter  # noqa: E402
from adalink_jax.methods import METHODS  # noqa: E402
from adalink_jax.models.parameters import init_adapter  # noqa: E402
from benchmarks import asking, timing  # noqa: E402

# Its labels are those that adapters choose from.
TASK = "mini_sst2"
WORDS = "the a happy dog cat likes park film was not good at all in of green old very small".split()
_SLICES, _WORDS, _GENERATES = 10, 30, 0.2


@dataclasses.dataclass(frozen=True)
class Load:
    """K, connections at saturation and seconds of it, minutes held, share of saturation."""

    adapters: int = 64
    connections: int = 64
    saturates: float = 30.0
    minutes: float = 30.0
    share: float = 0.8


@dataclasses.dataclass(frozen=True)
class Answer:
    """A request's path, status, when it was due, how late it was sent, what it took; seconds."""

    path: str
    status: int
    due: float
    late: float
    seconds: float


def written(folder: pathlib.Path, count: int) -> None:
    """Writes adapters of random weights, whose names are a0, a1 and so on."""
    config, params = load_base("mini")
    method, digest = METHODS["adalink"](rank=4), fingerprint(params)
    shape = init_adapter(config, method, params, jax.random.key(0))
    rng = np.random.default_rng(0)
    for number in range(count):
        tree = jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), shape)
        save_adapter(
            folder / f"a{number}",
            tree,
            method_name="adalink",
            settings=method.settings(),
            architecture=config,
            base_fingerprint=digest,
            metadata={"data": {"tasks": [{"name": TASK}]}},
        )


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[tuple[int, int]]:
    """Yields the process id and port of a server of the adapters in a folder, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "adalink_jax", "serve", "--base=mini", "--vocabulary=mini"]
    command += [f"--adapters={folder}", f"--port={port}", "--inputs=64", "--targets=8"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            while not _is_ready(port):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode())
                time.sleep(0.2)  # Another process says only when asked that it is ready.
            yield process.pid, port
        finally:
            process.terminate()
            process.wait()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def requests(adapters: int) -> Iterator[tuple[str, bytes]]:
    """Yields an endless sequence of paths and HTTP requests; the same each time."""
    rng = np.random.default_rng(0)
    while True:
        about: dict[str, Any] = {"text": " ".join(rng.choice(WORDS, rng.integers(1, _WORDS)))}
        about["adapter"] = f"a{min(rng.zipf(1.3), adapters) - 1}"
        path = "/v1/generate" if rng.random() < _GENERATES else "/v1/score"
        yield path, asking.message(path, about)


class Connections:
    """Open connections to the server, each with one request at a time."""

    def __init__(self, port: int):
        """Opens none yet."""
        self._port, self._idle = port, []
        self.again = 0  # Requests that met a connection which the server had closed.

    async def ask(self, message: bytes) -> int:
        """Returns the status of a request's answer."""
        # The server closes what was idle for long, maybe at this moment: then, as curl does, the
        # next connection is asked.
        while self._idle:
            stream = self._idle.pop()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                return await self._asked(stream, message)
            self.again += 1
        return await self._asked(await asyncio.open_connection("127.0.0.1", self._port), message)

    async def _asked(self, stream: Any, message: bytes) -> int:
        status = await asking.answered(*stream, message)
        self._idle.append(stream)
        return status


async def saturated(port: int, load: Load) -> float:
    """Returns requests a second over connections that always ask."""
    connections, stream = Connections(port), requests(load.adapters)
    start = time.perf_counter()
    middle, end = start + load.saturates / 2, start + load.saturates
    counted = 0

    async def ask() -> None:
        nonlocal counted
        while time.perf_counter() < end:
            assert await connections.ask(next(stream)[1]) == 200
            counted += time.perf_counter() > middle

    await asyncio.gather(*(ask() for _ in range(load.connections)))
    return counted / (time.perf_counter() - middle)


async def held(
    connections: Connections, rate: float, load: Load, watch: Any
) -> tuple[list[Answer], list[Any]]:
    """Asks at a rate; returns the answers, and what `watch` returned after each slice of time."""
    stream = requests(load.adapters)
    answers: list[Answer] = []
    start, seconds, seen, asked = time.perf_counter(), load.minutes * 60, [], set()

    async def ask(path: str, message: bytes, due: float) -> None:
        late = time.perf_counter() - start - due
        try:
            status = await connections.ask(message)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        answers.append(Answer(path, status, due, late, time.perf_counter() - start - due))

    due, rng = 0.0, np.random.default_rng(1)
    for path, message in stream:
        due += rng.exponential(1 / rate)
        if due > seconds:
            break
        while len(seen) < int(due / seconds * _SLICES):
            seen.append(await asyncio.to_thread(watch))
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        task = asyncio.create_task(ask(path, message, due))
        asked.add(task)
        task.add_done_callback(asked.discard)
    await asyncio.gather(*asked)
    while len(seen) < _SLICES:
        seen.append(await asyncio.to_thread(watch))
    return answers, seen


def watching(pid: int, port: int) -> dict[str, float]:
    """Returns the server's resident MiB, and the number of programs it compiled."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    kib = int(status.split("VmRSS:")[1].split()[0])
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    name = "adalink_programs_compiled "
    (programs,) = (float(line.split()[1]) for line in lines if line.startswith(name))
    return {"MiB": kib / 1024, "programs": programs}


def table(answers: list[Answer], seen: list[dict[str, float]], load: Load) -> list[dict]:
    """Returns a line for each slice of time, and one for all of it."""
    seconds = load.minutes * 60
    lines = []
    for number, after in enumerate([*seen, seen[-1]]):
        whole = number == len(seen)
        chosen = [a for a in answers if whole or int(a.due / seconds * _SLICES) == number]
        line: dict[str, Any] = {"time": "all" if whole else f"{number + 1} of {_SLICES}"}
        line |= {"requests": len(chosen), "failed": sum(a.status != 200 for a in chosen)}
        line["of them full"] = sum(a.status == 503 for a in chosen)
        line["sent late, ms"] = 1000 * max((a.late for a in chosen), default=0.0)
        for path in ("score", "generate"):
            right = [a for a in chosen if a.path.endswith(path) and a.status == 200]
            taken = [1000 * a.seconds for a in right]
            for share in (50, 95, 99):
                line[f"{path} p{share}, ms"] = float(np.percentile(taken, share)) if taken else None
        lines.append(line | after)
    return lines


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--minutes", type=float, default=Load.minutes, help="default 30")
    flags.add_argument("--share", type=float, default=Load.share, help="of saturation")
    flags.add_argument("--saturates", type=float, default=Load.saturates, help="seconds")
    flags.add_argument("--out", type=pathlib.Path, help="also write the JSON into this file")
    options = flags.parse_args(arguments)
    load = Load(minutes=options.minutes, share=options.share, saturates=options.saturates)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        written(pathlib.Path(folder), load.adapters)
        with serving(pathlib.Path(folder)) as (pid, port):
            rate = load.share * asyncio.run(saturated(port, load))
            first = watching(pid, port)
            connections = Connections(port)
            answers, seen = asyncio.run(held(connections, rate, load, lambda: watching(pid, port)))
    lines = table(answers, seen, load)
    compiled = seen[-1]["programs"] - first["programs"]
    statuses = collections.Counter(str(answer.status) for answer in answers)
    settings = {**dataclasses.asdict(load), "rate": rate, "at first": first}
    timing.report("held_load", lines, settings, ({}, {}), before, options.out, compiled=compiled,
                  statuses=statuses, asked_again=connections.again)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
