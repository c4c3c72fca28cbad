"""The server's application: all paths, health, metrics, the page, and what errors look like."""

import functools
import importlib.resources
from collections.abc import Callable
from typing import Any

import fastapi
from fastapi import responses
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adalink_jax.errors import UserError
from adalink_jax.tools.serving.adapter_paths import adapters
from adalink_jax.tools.serving.answers import Answers, Gone
from adalink_jax.tools.serving.batching import Busy, Late
from adalink_jax.tools.serving.gate import Gate, problem
from adalink_jax.tools.serving.metrics import Metrics
from adalink_jax.tools.serving.openai_paths import openai
from adalink_jax.tools.serving.requests import LONGEST_IMAGE, LONGEST_LINE
from adalink_jax.tools.serving.shelf import Absent
from adalink_jax.tools.serving.text_paths import inference

_BODY_SECONDS = 30.0


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
        (Absent, 404), (UserError, 422), (OSError, 422), (Busy, 503), (Late, 504), (Gone, 499),
        (Exception, 500),
    ):  # fmt: skip
        app.add_exception_handler(kind, functools.partial(_said, status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.include_router(inference(answers))
    app.include_router(openai(answers))
    app.include_router(adapters(answers, admin_token))
    _operations(app, metrics, ready, answers.service.pictures is not None)
    most = LONGEST_LINE + (LONGEST_IMAGE if answers.service.pictures else 0)
    return Gate(app, metrics, most, _BODY_SECONDS)


def _operations(
    app: fastapi.FastAPI, metrics: Metrics, ready: Callable[[], bool], sees: bool
) -> None:
    page = importlib.resources.files("adalink_jax.tools.serving").joinpath("page.html")
    page = page.read_text(encoding="utf-8")
    page = page.replace(' id="picture" hidden', "") if sees else page

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
        return responses.HTMLResponse(page)


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
