"""What every request passes: an id, a limit of its body in bytes and seconds, counts."""

import asyncio
import contextlib
import http
import json
import re
import time
import uuid

from adalink_jax.tools.serving.metrics import Metrics

# How much more than the limit of a body is read before the connection is closed, and for how long.
_DISCARDED, _DISCARDING = 16, 2.0
# How many of the largest bodies are in memory at a time.
_BODIES = 64

_ID = re.compile(rb"[\w.-]{1,128}")


class Gate:
    """ASGI middleware around the application."""

    def __init__(self, app, metrics: Metrics, body_bytes: int, body_seconds: float):
        """Wraps an application.

        Args:
          app: the application.
          metrics: what is counted.
          body_bytes: the most bytes of a body; more are not read.
          body_seconds: seconds in which the body must have come.
        """
        self._app, self._metrics = app, metrics
        self._most, self._seconds = body_bytes, body_seconds
        self._held = 0  # Bytes of the bodies of all requests that are not answered.

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.monotonic(), 499  # As of a client that went away.
        scope.setdefault("state", {}).update(request_id=name, came=began)
        body = _Body()

        async def told(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            try:
                whole = await self._read(body, headers, receive)
            except _Refused as refused:
                await self._discard(receive)
                await _refuse(told, refused.status, str(refused), name)
                return
            if not whole:
                return
            await self._app(scope, _replayed(body, receive), told)
        finally:
            self._held -= body.size
            route = scope.get("route")
            path = getattr(route, "path", "unknown")  # Not the client's words: they have no end.
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - began)

    async def _read(self, body: "_Body", headers, receive) -> bool:
        """Reads a body; returns False if the client goes away meanwhile."""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            raise _Refused(413, f"the body has {int(length):,} bytes; at most {self._most:,}")
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    body.parts.append(part := message.get("body", b""))
                    body.size += len(part)
                    self._held += len(part)
                    if body.size > self._most:
                        raise _Refused(413, f"the body has more than {self._most:,} bytes")
                    if self._held > _BODIES * self._most:
                        raise _Refused(503, "too many bytes of requests wait")
                    if not message.get("more_body"):
                        return True
        except TimeoutError:
            raise _Refused(408, f"the body took more than {self._seconds:g} s") from None

    async def _discard(self, receive) -> None:
        """Reads some of what is left, as a client that still sends may not see the answer."""
        left = _DISCARDED * self._most
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARDING):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return


class _Body:
    """What has come of a request's body."""

    def __init__(self):
        self.parts: list[bytes] = []
        self.size = 0


class _Refused(Exception):
    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status


def _replayed(body: _Body, receive):
    """Returns a `receive` that gives the body again, then waits for the client to go away."""
    given = False

    async def again():
        nonlocal given
        if given:
            return await receive()
        given, whole = True, b"".join(body.parts)
        body.parts.clear()  # It may be large, and is not needed twice.
        return {"type": "http.request", "body": whole, "more_body": False}

    return again


async def _refuse(send, status: int, detail: str, name: str) -> None:
    content = json.dumps(problem(status, detail, name)).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),  # The rest of the body is not read.
        *([(b"retry-after", b"1")] if status == 503 else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def problem(status: int, detail: str, request_id: str) -> dict:
    """Returns a problem document (RFC 9457) as a JSON object."""
    # An error may name a file, and a file's name need not be Unicode.
    detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")
    title = http.HTTPStatus(status).phrase
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": request_id,
        # Where OpenAI's clients look.
        "error": {"message": detail, "type": title, "code": status},
    }
