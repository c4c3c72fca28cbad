"""The server's paths: scores, texts, OpenAI's completions, adapters, health, metrics, the page."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import hmac
import importlib.resources
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import fastapi
from fastapi import responses
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adalink_jax.errors import UserError
from adalink_jax.tools.serving import schemas
from adalink_jax.tools.serving.batching import Batcher, Full, Job, Late
from adalink_jax.tools.serving.gate import Gate, problem
from adalink_jax.tools.serving.generation import Draw
from adalink_jax.tools.serving.metrics import Metrics
from adalink_jax.tools.serving.requests import LONGEST_LINE, Request, checked_request
from adalink_jax.tools.serving.service import Row, Service
from adalink_jax.tools.serving.shelf import Absent

# The model of OpenAI's paths that is no adapter.
BASE_MODEL = "base"
_BODY_SECONDS = 30.0
_READERS = 4  # Threads that read adapters and encode texts.
_PAGE = 1000  # Adapters of one list.


class Gone(Exception):
    """The client has gone away."""


class Pending:
    """One job, and what has been told of it, on the event loop's side."""

    def __init__(self, batcher: Batcher, row: Row, deadline: float, draw: Draw | None):
        """Queues the job.

        Raises:
          Full: too many wait.
        """
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Queue()
        self._batcher = batcher
        self.job = Job(row, row.request.name, deadline, self._say_done, draw, self._say)
        batcher.submit(self.job)

    def _say(self, item: Any) -> None:
        if not self._loop.is_closed():
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

    async def row(self, request: Request) -> Row:
        """Reads a request's adapter and encodes its text."""
        if self._reading + self.batcher.waiting >= self._queue:
            raise Full("too many requests wait")
        began = time.monotonic()
        self._reading += 1
        try:
            return await self.in_thread(self.service.row, request)
        finally:
            self._reading -= 1
            self._metrics.stages.labels("read").observe(time.monotonic() - began)

    async def in_thread(self, function: Callable, *arguments: Any) -> Any:
        """Calls what may wait for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    def pending(self, row: Row, deadline_ms: int | None, draw: Draw | None = None) -> Pending:
        """Queues a row."""
        seconds = self._seconds if deadline_ms is None else deadline_ms / 1e3
        return Pending(self.batcher, row, time.monotonic() + seconds, draw)

    def draw(self, asked: schemas.GenerateRequest | schemas.CompletionRequest) -> Draw:
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


def application(
    answers: Answers, metrics: Metrics, *, ready: Callable[[], bool], admin_token: str | None
) -> Gate:
    """Returns the ASGI application.

    Args:
      answers: the base, its adapters, and what runs them.
      metrics: what is counted.
      ready: whether it may be sent requests.
      admin_token: what may load, unload and pin adapters; None for nobody.
    """
    app = fastapi.FastAPI(
        title="adalink serve", summary="Many adaptations of one frozen model", redoc_url=None
    )
    for kind, status in (
        (Absent, 404), (UserError, 422), (OSError, 422), (Full, 503), (Late, 504), (Gone, 499),
        (Exception, 500),
    ):  # fmt: skip
        app.add_exception_handler(kind, functools.partial(_said, status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.include_router(_inference(answers))
    app.include_router(_openai(answers))
    app.include_router(_adapters(answers, admin_token))
    _operations(app, metrics, ready)
    return Gate(app, metrics, LONGEST_LINE, _BODY_SECONDS)


def _inference(answers: Answers) -> fastapi.APIRouter:
    router = fastapi.APIRouter(tags=["inference"])

    @router.post("/v1/score", response_model_exclude_defaults=True)
    async def score(asked: schemas.ScoreRequest, client: fastapi.Request) -> schemas.ScoreAnswer:
        """Scores labels: their log-likelihoods, and the likeliest."""
        labels = tuple(asked.labels or ())
        row = await answers.row(checked_request(1, asked.text, asked.adapter, labels, asked.id))
        if row.options is None:
            raise UserError("the adapter has no labels of its own; name some in 'labels'")
        _, output = await answers.pending(row, asked.deadline_ms).result(client)
        found = answers.service.answer(row, output)
        return schemas.ScoreAnswer(**{k: v for k, v in found.items() if k != "line"})

    @router.post("/v1/generate", response_model=schemas.GenerateAnswer)
    async def generate(asked: schemas.GenerateRequest, client: fastapi.Request):
        """Generates a text: greedily, by draws, or by a beam search."""
        request = checked_request(1, asked.text, asked.adapter, (), asked.id)
        row = await answers.row(
            dataclasses.replace(request, scores=False, beam_size=asked.beam_size)
        )
        draw = answers.draw(asked)
        if asked.beam_size > 1:
            if asked.stream or asked.temperature or asked.max_tokens:
                raise UserError("a beam search takes no stream, no temperature and no max_tokens")
            _, output = await answers.pending(row, asked.deadline_ms).result(client)
            answers.service.answer(row, output)
            ids = output.tolist()
            ended = answers.service.eos_id in ids
            ids = ids[: ids.index(answers.service.eos_id)] if ended else ids
            return _generated(answers, row, ids, "stop" if ended else "length")
        pending = answers.pending(row, asked.deadline_ms, draw)
        if asked.stream:
            events = _events(answers, pending, row, client.state.request_id)
            return responses.StreamingResponse(events, media_type="text/event-stream")
        return _generated(answers, row, *await pending.result(client))

    return router


def _generated(answers: Answers, row: Row, ids: list[int], reason: Any) -> schemas.GenerateAnswer:
    return schemas.GenerateAnswer(
        adapter=row.request.adapter,
        text=answers.service.text(ids),
        finish_reason=reason,
        tokens=len(ids),
        truncated_tokens=row.dropped,
        id=row.request.id,
    )


async def _events(answers: Answers, pending: Pending, row: Row, name: str) -> AsyncIterator[str]:
    async for piece, result in answers.pieces(pending):
        if isinstance(result, Exception):
            yield f"event: error\n{_event(problem(_status(result), str(result), name))}"
            return
        if piece:
            yield _event({"text": piece})
        if result is not None:
            ended = {"finish_reason": result, "tokens": pending.job.length}
            yield _event(ended | ({"id": row.request.id} if row.request.id is not None else {}))


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _openai(answers: Answers) -> fastapi.APIRouter:
    router = fastapi.APIRouter(tags=["OpenAI"])

    @router.post("/v1/completions", response_model=schemas.Completion)
    async def completions(asked: schemas.CompletionRequest, client: fastapi.Request):
        """OpenAI's completions; a model is an adapter, or the base."""
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        adapter = None if asked.model == BASE_MODEL else asked.model
        rows = []
        for prompt in prompts:
            request = checked_request(1, prompt, adapter, (), None)
            rows.append(await answers.row(dataclasses.replace(request, scores=False)))
        draw = answers.draw(asked)
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        about["model"] = asked.model
        if asked.stream:
            if len(rows) > 1:
                raise UserError("one prompt is streamed at a time")
            pending = answers.pending(rows[0], None, draw)
            events = _chunks(answers, pending, about, client.state.request_id)
            return responses.StreamingResponse(events, media_type="text/event-stream")
        waiting: list[Pending] = []
        try:
            for row in rows:
                waiting.append(answers.pending(row, None, draw))
            found = [await pending.result(client) for pending in waiting]
        finally:
            for pending in waiting:
                answers.batcher.cancel(pending.job)
        choices = [
            schemas.Choice(index=i, text=answers.service.text(ids), finish_reason=reason)
            for i, (ids, reason) in enumerate(found)
        ]
        read, made = sum(len(row.tokens) for row in rows), sum(len(ids) for ids, _ in found)
        usage = schemas.Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)
        return schemas.Completion(**about, choices=choices, usage=usage)

    @router.get("/v1/models")
    async def models() -> schemas.Models:
        """The base and all adapters, as models."""
        names = [BASE_MODEL, *await answers.in_thread(answers.service.shelf.names)]
        return schemas.Models(data=[schemas.Model(id=name) for name in names])

    return router


async def _chunks(answers: Answers, pending: Pending, about: dict, name: str) -> AsyncIterator[str]:
    async for piece, result in answers.pieces(pending):
        if isinstance(result, Exception):
            yield _event(problem(_status(result), str(result), name))
            return
        choice = schemas.Choice(index=0, text=piece, finish_reason=result)
        yield _event(schemas.Completion(**about, choices=[choice]).model_dump())
    yield "data: [DONE]\n\n"


def _adapters(answers: Answers, admin_token: str | None) -> fastapi.APIRouter:
    router = fastapi.APIRouter(prefix="/v1/adapters", tags=["adapters"])
    service, shelf = answers.service, answers.service.shelf

    def state(name: str, known: Any, loaded: frozenset) -> schemas.AdapterState:
        modules = [] if known is None else list(known.modules.values())
        return schemas.AdapterState(
            name=name,
            in_host_memory=known is not None,
            on_device=any(module in loaded for module in modules),
            pinned=name in shelf.pinned(),
            routes=None if known is None else list(known.modules),
            labels=None if known is None else list(known.labels),
        )

    async def on_device(function: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(answers.batcher.ask(function))

    def admin(authorization: Annotated[str | None, fastapi.Header()] = None) -> None:
        if admin_token is None:
            raise HTTPException(403, "this server was started without ADALINK_ADMIN_TOKEN")
        if not hmac.compare_digest(
            (authorization or "").encode(), f"Bearer {admin_token}".encode()
        ):
            raise HTTPException(401, "no admin token, or a wrong one")

    only_admins = [fastapi.Depends(admin)]

    @router.get("")
    async def listed(
        start: Annotated[int, fastapi.Query(ge=0)] = 0,
        limit: Annotated[int, fastapi.Query(ge=1, le=_PAGE)] = 100,
    ) -> schemas.AdapterList:
        """Some of the adapters on disk, and where they are."""
        names = await answers.in_thread(shelf.names)
        known, loaded = shelf.resident(), service.engine.loaded
        some = [state(name, known.get(name), loaded) for name in names[start : start + limit]]
        more = start + limit if start + limit < len(names) else None
        return schemas.AdapterList(adapters=some, total=len(names), next=more)

    @router.get("/{name}")
    async def one(name: str) -> schemas.AdapterState:
        """One adapter, which is read if it is not in memory."""
        known = await answers.in_thread(shelf.read, name)
        return state(name, known, service.engine.loaded)

    @router.post("/{name}/load", dependencies=only_admins)
    async def load(name: str) -> schemas.AdapterState:
        """Reads an adapter, and puts it on the device."""
        known = await answers.in_thread(shelf.read, name)
        await on_device(functools.partial(service.load, known))
        return state(name, known, service.engine.loaded)

    @router.post("/{name}/pin", dependencies=only_admins)
    async def pin(name: str) -> schemas.AdapterState:
        """Loads an adapter, which then stays in memory until it is unloaded."""
        known = await answers.in_thread(shelf.pin, name)
        try:
            await on_device(functools.partial(service.load, known))
        except UserError:
            shelf.drop(name)
            raise
        return state(name, known, service.engine.loaded)

    @router.post("/{name}/unload", dependencies=only_admins)
    async def unload(name: str) -> schemas.AdapterState:
        """Takes an adapter out of memory; it stays on disk, and is read again when it is asked."""
        if (known := shelf.resident().get(name)) is None and name not in shelf.names():
            raise Absent(f"no adapter '{name}'")
        shelf.drop(name)
        if known is not None:
            modules = list(known.modules.values())
            await on_device(functools.partial(service.engine.unload, modules))
        return state(name, None, service.engine.loaded)

    return router


def _operations(app: fastapi.FastAPI, metrics: Metrics, ready: Callable[[], bool]) -> None:
    page = importlib.resources.files("adalink_jax.tools.serving").joinpath("page.html")

    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"])
    async def readyz() -> dict[str, str]:
        """Whether it may be sent requests."""
        if not ready():
            raise HTTPException(503, "not ready: programs are being compiled, or it is stopping")
        return {"status": "ready"}

    @app.get("/metrics", tags=["operations"])
    async def exposition() -> responses.PlainTextResponse:
        """Prometheus's metrics."""
        return responses.PlainTextResponse(metrics.exposition())

    @app.get("/", include_in_schema=False)
    async def root() -> responses.HTMLResponse:
        """The page."""
        return responses.HTMLResponse(page.read_text(encoding="utf-8"))


def _status(error: Exception) -> int:
    for kind, status in ((Absent, 404), (UserError, 422), (Full, 503), (Late, 504)):
        if isinstance(error, kind):
            return status
    return 500


async def _said(status: int, request: fastapi.Request, error: Exception):
    detail = str(error) if status != 500 else "an error of the server's own; its log says more"
    headers = {"Retry-After": "1"} if status == 503 else None
    return _problem(request, status, detail, headers)


async def _invalid(request: fastapi.Request, error: Exception):
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return _problem(request, 400, f"{place}: {first['msg']}" if place else first["msg"])


async def _http(request: fastapi.Request, error: Exception):
    assert isinstance(error, HTTPException)
    return _problem(request, error.status_code, str(error.detail), error.headers)


def _problem(request: fastapi.Request, status: int, detail: str, headers: Any = None):
    if status == 499:  # Nobody reads it.
        return responses.Response(status_code=499)
    content = problem(status, detail, request.state.request_id)
    media = "application/problem+json"
    return responses.JSONResponse(content, status, headers, media_type=media)
