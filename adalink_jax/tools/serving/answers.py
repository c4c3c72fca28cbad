"""What the server's paths share: rows are read in threads, jobs queued, texts put together."""

import asyncio
import concurrent.futures
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import fastapi

from adalink_jax.errors import UserError
from adalink_jax.tools.serving import schemas
from adalink_jax.tools.serving.batching import Batcher, Busy, Job, Late
from adalink_jax.tools.serving.generation import Draw
from adalink_jax.tools.serving.metrics import Metrics
from adalink_jax.tools.serving.requests import Request
from adalink_jax.tools.serving.service import Row, Service
from adalink_jax.tools.serving.shelf import Absent

_READERS = 4  # Threads that read adapters and encode texts.


class Gone(Exception):
    """The client has gone away."""


class Pending:
    """One job, and what has been told of it, on the event loop's side."""

    def __init__(self, batcher: Batcher, row: Row, deadline: float, draw: Draw | None):
        """Queues the job.

        Raises:
          Busy: too many wait.
        """
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Queue()
        self._batcher = batcher
        self.job = Job(row, row.request.name, deadline, self._say_done, draw, self._say)
        batcher.submit(self.job)

    def _say(self, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(self._told.put_nowait, item)

    def _say_done(self, result: Any) -> None:
        self._say((result,))

    async def tokens(self) -> AsyncIterator[Any]:
        """Yields lists of tokens as they come, and last the result in a tuple."""
        try:
            while not isinstance(item := await self._told.get(), tuple):
                yield item
            yield item
        finally:
            self._batcher.cancel(self.job)

    async def result(self, client: fastapi.Request) -> tuple[list[int], Any]:
        """Waits for all tokens and the result.

        Raises:
          Gone: the client went away.
          Late: the deadline passed.
          Exception: what the job ended with.
        """
        found: list[int] = []

        async def wait() -> Any:
            async for item in self.tokens():
                if isinstance(item, tuple):
                    return item[0]
                found.extend(item)

        waits = asyncio.create_task(wait())
        leaves = asyncio.create_task(_gone(client))
        try:
            left = max(0, self.job.deadline - time.monotonic())
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({waits, leaves}, timeout=left, return_when=first)
            if leaves.done():
                raise Gone
            if not waits.done():
                raise Late("the deadline passed before the answer")
            if isinstance(result := waits.result(), Exception):
                raise result
            return found, result
        finally:
            waits.cancel()
            leaves.cancel()
            self._batcher.cancel(self.job)


async def _gone(client: fastapi.Request) -> None:
    while (await client.receive())["type"] != "http.disconnect":
        pass


class Answers:
    """What the paths share: rows are read in threads, jobs queued, texts put together."""

    def __init__(
        self, service: Service, batcher: Batcher, metrics: Metrics, queue: int, seconds: float
    ):
        """Starts no thread yet.

        Args:
          service: the base and its adapters.
          batcher: what runs the rows.
          metrics: what is counted.
          queue: the most requests that are read or wait.
          seconds: after which an answer is of no more use, where a request does not say.
        """
        self.service, self.batcher = service, batcher
        self._metrics, self._queue, self._seconds = metrics, queue, seconds
        self.pool = concurrent.futures.ThreadPoolExecutor(_READERS, "reader")
        self._reading = 0

    def deadline(self, client: fastapi.Request, deadline_ms: int | None = None) -> float:
        """Returns when an answer is of no more use, counted from its request's head.

        Like a job's deadline it is of `time.monotonic`.
        """
        seconds = self._seconds if deadline_ms is None else deadline_ms / 1e3
        return client.state.came + seconds

    async def row(self, request: Request, deadline: float) -> Row:
        """Reads a request's adapter and encodes its text.

        Raises:
          Busy: too many are read or wait.
          Late: the deadline passed meanwhile.
        """
        if self._reading + self.batcher.waiting >= self._queue:
            raise Busy("too many requests wait")
        began = time.monotonic()
        self._reading += 1
        reads = asyncio.ensure_future(self.in_thread(self.service.row, request))
        reads.add_done_callback(self._read)
        try:
            # Goes on where nobody waits any more, and counts: threads that hang are refused work.
            await asyncio.wait({reads}, timeout=max(0, deadline - began))
        finally:
            self._metrics.stages.labels("read").observe(time.monotonic() - began)
        if not reads.done():
            raise Late("the deadline passed before the adapter was read")
        return reads.result()

    def _read(self, done: asyncio.Future) -> None:
        self._reading -= 1
        if not done.cancelled():
            done.exception()  # Or asyncio would say that nobody asked for it.

    async def in_thread(self, function: Callable, *arguments: Any) -> Any:
        """Calls what may wait for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    def pending(self, row: Row, deadline: float, draw: Draw | None = None) -> Pending:
        """Queues a row."""
        return Pending(self.batcher, row, deadline, draw)

    def draw(
        self, asked: schemas.GenerateRequest | schemas.CompletionRequest | schemas.ChatRequest
    ) -> Draw:
        """Returns how a text is generated.

        Raises:
          UserError: more tokens are asked for than the server generates.
        """
        most = self.service.limits.targets
        if (asked.max_tokens or 0) > most:
            raise UserError(f"max_tokens is {asked.max_tokens}; this server generates {most}")
        seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        return Draw(asked.max_tokens or most, asked.temperature, asked.top_p, seed)

    async def pieces(self, pending: Pending) -> AsyncIterator[tuple[str, Any]]:
        """Yields a text piece by piece, as (piece, None), and last (rest, result)."""
        ids: list[int] = []
        said = ""
        async for item in pending.tokens():
            result = item[0] if isinstance(item, tuple) else None
            ids += [] if isinstance(item, tuple) else item
            text = self.service.text(ids)
            if result is None:
                text = text.rstrip("\ufffd")  # Bytes of a character that is not whole yet.
                if not text.startswith(said) or text == said:
                    continue
            piece, said = text[len(said) :], text
            yield piece, result


def event(content: dict) -> str:
    """Returns a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def status_of(error: Exception) -> int:
    """Returns the HTTP status of an error that a job ended with."""
    for kind, status in ((Absent, 404), (UserError, 422), (Busy, 503), (Late, 504)):
        if isinstance(error, kind):
            return status
    return 500
