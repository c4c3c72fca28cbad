"""A client of `adalink serve`: ``al.Client("http://127.0.0.1:8000")``.

It sends a request again where the server was not there, or was full, until its patience ends. So a
server may be started anew meanwhile.
"""

import base64
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from adalink_jax.errors import UserError, install

# Seconds before a request is sent again: the first wait, and the longest.
_WAITS = (0.1, 2.0)


class ServerError(UserError):
    """What a server answered instead of a result.

    Attributes:
      status: the HTTP status; 0 if there was no answer.
      request_id: what the server's log calls the request; "" without an answer.
    """

    def __init__(self, message: str, status: int = 0, request_id: str = ""):
        super().__init__(message)
        self.status, self.request_id = status, request_id


class Client:
    """A connection to one server. Threads may share it.

    Examples:
      >>> with al.Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
      ...     client.score("rte sentence1: …", adapter="rte")["prediction"]
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        patience: float = 30.0,
    ):
        """Connects to nothing yet.

        Args:
          address: the server's, as it prints it.
          token: ADALINK_ADMIN_TOKEN, to load, unload and pin adapters.
          timeout: seconds to wait for an answer.
          patience: seconds in which a request is sent again while the server is not there or full.

        Raises:
          UserError: httpx is not installed.
        """
        try:
            import httpx
        except ImportError as error:
            raise UserError(f"httpx is not installed: {install('serve')}") from error
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=address, headers=headers, timeout=timeout)
        self._lost, self._address, self._patience = httpx.TransportError, address, patience

    def __enter__(self) -> "Client":
        """Returns itself, to be closed at the block's end."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def score(
        self,
        text: str,
        adapter: str | None = None,
        labels: Sequence[str] | None = None,
        *,
        image: str | bytes | None = None,
    ) -> dict[str, Any]:
        """Scores labels.

        Args:
          text: what the model reads.
          adapter: NAME or NAME:ROUTE; None for the base.
          labels: the answers to choose from; None for the adapter's own.
          image: what the text is about: the bytes of a picture's file, or a path below the
            server's ``--image_folder``; None for text alone.

        Returns:
          A dict with "prediction" and "scores": label → log-likelihood.

        Raises:
          ServerError: the server refused it, or was not there.
        """
        body = _body(text, adapter, image)
        return self._asked("POST", "/v1/score", body | ({"labels": [*labels]} if labels else {}))

    def generate(
        self,
        text: str,
        adapter: str | None = None,
        *,
        image: str | bytes | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Generates a text.

        Args:
          text: what the model reads.
          adapter: NAME or NAME:ROUTE; None for the base.
          image: as in `score`.
          **options: ``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``beam_size``.

        Returns:
          A dict with "text", "finish_reason" and "tokens".

        Raises:
          ServerError: the server refused it, or was not there.
        """
        return self._asked("POST", "/v1/generate", _body(text, adapter, image) | options)

    def stream(
        self,
        text: str,
        adapter: str | None = None,
        *,
        image: str | bytes | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yields a generated text in pieces, as `generate` does whole. It is not sent again."""
        body = _body(text, adapter, image) | {"stream": True, **options}
        try:
            with self._http.stream("POST", "/v1/generate", json=body) as answer:
                if answer.is_error:
                    answer.read()
                    raise _error(answer)
                for line in answer.iter_lines():
                    event = json.loads(line.removeprefix("data: ")) if line[:5] == "data:" else {}
                    if "detail" in event:
                        raise ServerError(event["detail"], event["status"], event["request_id"])
                    if piece := event.get("text"):
                        yield piece
        except self._lost as error:
            raise self._absent(error) from error

    def adapters(self) -> Iterator[dict[str, Any]]:
        """Yields all adapters, each a dict with "name", "on_device", "pinned" and others."""
        start: int | None = 0
        while start is not None:
            page = self._asked("GET", f"/v1/adapters?start={start}&limit=1000")
            yield from page["adapters"]
            start = page.get("next")

    def load(self, name: str) -> dict[str, Any]:
        """Has an adapter read and put on the device; needs the token."""
        return self._asked("POST", f"/v1/adapters/{name}/load")

    def pin(self, name: str) -> dict[str, Any]:
        """Has an adapter stay in memory; needs the token."""
        return self._asked("POST", f"/v1/adapters/{name}/pin")

    def unload(self, name: str) -> dict[str, Any]:
        """Has an adapter leave memory, pinned or not; needs the token."""
        return self._asked("POST", f"/v1/adapters/{name}/unload")

    def ready(self) -> bool:
        """Returns whether the server is there, and ready."""
        try:
            return self._http.get("/readyz").is_success
        except self._lost:
            return False

    def _asked(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        end, wait = time.monotonic() + self._patience, _WAITS[0]
        while True:
            try:
                answer = self._http.request(verb, path, json=body)
                if answer.is_success:
                    return answer.json()
                found = _error(answer)
            except self._lost as error:
                found = self._absent(error)
            if found.status not in (0, 503) or time.monotonic() + wait > end:
                raise found
            time.sleep(wait)  # A server that is full, or being started, needs a while.
            wait = min(2 * wait, _WAITS[1])

    def _absent(self, error: Exception) -> ServerError:
        return ServerError(f"no answer from {self._address}: {error or type(error).__name__}")


def _body(text: str, adapter: str | None, image: str | bytes | None) -> dict[str, Any]:
    if isinstance(image, bytes):
        # Which kind of picture it is, the server sees from the bytes.
        image = f"data:application/octet-stream;base64,{base64.b64encode(image).decode()}"
    return {"text": text, "adapter": adapter} | ({} if image is None else {"image": image})


def _error(answer: Any) -> ServerError:
    try:
        found = answer.json()
        return ServerError(found["detail"], found["status"], found["request_id"])
    except (ValueError, KeyError, TypeError):
        return ServerError(f"no server of adalink's: {answer.status_code}", answer.status_code)
