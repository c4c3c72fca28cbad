"""Requests and answers, one per line, and the errors that concern only one request."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from adalink_jax.errors import UserError, nearest

_FIELDS = ("text", "adapter", "labels", "id", "image")
_COLUMNS = ("text", "adapter", "image")

LONGEST_LINE = 2**20  # Bytes.
MOST_LABELS = 1000  # Of one request.
LONGEST_NAME = 255  # Characters of an adapter's name, as in file systems.
LONGEST_IMAGE = 2**24  # Characters of a picture that is sent: a file of 12 MiB.
_DEEPEST = 32  # Brackets in each other.


@dataclasses.dataclass(frozen=True)
class Request:
    """One line of input.

    Attributes:
      line: its number, from 1.
      text: the model's input, as the task's preprocessing would produce it.
      adapter: NAME, or NAME:ROUTE for an adapter with several routes; None for the base.
      labels: texts to choose from; if empty, the adapter's own labels or generation.
      id: any value that the answer repeats; None for nothing.
      scores: whether the adapter's own labels are scored where none are given.
      beam_size: the number of beams to generate with; 1 is greedy.
      image: what it shows (`pictures.Pictures.read`). Without one it is text alone, and "" says so
        to an adapter that was trained on pictures.
    """

    line: int
    text: str
    adapter: str | None = None
    labels: tuple[str, ...] = ()
    id: Any = None
    scores: bool = True
    beam_size: int = 1
    image: str | None = None

    @property
    def name(self) -> str:
        """The name of its adapter, without a route; "" for the base."""
        return (self.adapter or "").partition(":")[0]


def route_of(adapter: str, routes: Sequence[str]) -> str:
    """Returns the route that a request names, which may be left out if there is only one.

    Raises:
      UserError: there is no such route, or none is named of several.
    """
    name, _, route = adapter.partition(":")
    if not route and len(routes) == 1:
        return routes[0]
    if route not in routes:
        guess = nearest(route, routes) or ";"
        wrong = f"has no route '{route}'{guess}" if route else "has several;"
        raise UserError(f"adapter '{name}' {wrong} ask for {name}:ROUTE of {', '.join(routes)}")
    return route


def parse(line: int, content: bytes, tsv: bool) -> Request:
    """Parses a line: a JSON object with "text" (and the other fields of `Request`), or TSV.

    Args:
      line: its number.
      content: its bytes, without the newline; those of a line that is too long may be cut.
      tsv: whether it is ``text``, ``text<TAB>adapter`` or ``text<TAB>adapter<TAB>image`` instead
        of JSON.

    Raises:
      UserError: the line is invalid.
    """
    if len(content) > LONGEST_LINE:
        raise UserError(f"longer than {LONGEST_LINE:,} bytes")
    try:
        # A file's first line may begin with a mark of its encoding.
        text = content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"no UTF-8: byte {error.start} is 0x{content[error.start]:02x}") from error
    if tsv:
        cells = text.rstrip("\r").split("\t")
        if len(cells) > len(_COLUMNS):
            known = "a text, an adapter's name and an image"
            raise UserError(f"{len(cells)} columns; expected {known} at most")
        fields: Any = dict(zip(_COLUMNS, cells, strict=False))
        fields["adapter"] = fields.get("adapter") or None
    else:
        fields = _json(text)
    if not isinstance(fields, dict):
        raise UserError(f"a JSON {type(fields).__name__}; expected an object with 'text'")
    for name in fields:
        if name not in _FIELDS:
            raise UserError(f"unknown field {name!r:.80}{nearest(name, _FIELDS)}")
    if not isinstance(fields.get("text"), str):
        raise UserError("field 'text' is missing or no string")
    adapter, labels = fields.get("adapter"), fields.get("labels")
    if adapter is not None and not isinstance(adapter, str):
        raise UserError("field 'adapter' is no string")
    if (image := fields.get("image")) is not None and not isinstance(image, str):
        raise UserError("field 'image' is no string")
    labels = () if labels is None else labels
    if not isinstance(labels, list | tuple) or not all(isinstance(x, str) for x in labels):
        raise UserError("field 'labels' is no list of strings")
    return checked_request(line, fields["text"], adapter, tuple(labels), fields.get("id"), image)


def checked_request(
    line: int,
    text: str,
    adapter: str | None,
    labels: tuple[str, ...],
    id: Any,
    image: str | None = None,
) -> Request:
    """Returns a request whose values are of the right types.

    Raises:
      UserError: one of them is empty, or too long.
    """
    if not text.strip():
        raise UserError("the text is empty")
    if adapter == "":
        raise UserError("field 'adapter' is empty; leave it out to ask the base")
    if adapter is not None and len(adapter) > LONGEST_NAME:
        raise UserError(f"the adapter's name has {len(adapter):,} characters")
    if len(labels) > MOST_LABELS:
        raise UserError(f"{len(labels):,} labels; a request has at most {MOST_LABELS:,}")
    return Request(line, text, adapter, labels, id, image=image)


def _json(text: str) -> Any:
    """Returns a JSON value that can be written again as JSON, as an answer repeats some of it."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)  # No NaN, Infinity, 1e999.
    except (ValueError, RecursionError) as error:
        # Where a line of several is no matter: a request is one.
        said = re.sub(r"line 1 (column \d+) \(char \d+\)", r"\1", str(error))
        raise UserError(f"no JSON: {said or type(error).__name__}") from error
    if _is_deeper(value, _DEEPEST):  # Python's versions differ in how deep they read.
        raise UserError(f"no JSON that is read here: brackets in more than {_DEEPEST} brackets")
    try:
        written.encode("utf-8")
    except UnicodeEncodeError as error:
        half = written[error.start]
        raise UserError(f"half of a character, {half!r}, which no text can hold") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"'{twice}' stands in one object twice")
    return dict(pairs)


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [one for one in level if isinstance(one, list | dict)]
        if not level:
            return False
        level = [x for one in level for x in (one.values() if isinstance(one, dict) else one)]
    return True


def answer(request: Request, prediction: str, scores: Sequence[float], dropped: int) -> dict:
    """Returns the answer to a request, as a JSON object.

    Args:
      request: the request, with the labels that were scored.
      prediction: the label with the highest score, or the generated text.
      scores: the log-likelihood of each label; empty after generation.
      dropped: number of tokens cut off at the end of the text.
    """
    result = {"line": request.line, "adapter": request.adapter, "prediction": prediction}
    if scores:
        result["scores"] = dict(zip(request.labels, map(float, scores), strict=True))
    if dropped:
        result["truncated_tokens"] = dropped
    return result if request.id is None else {"id": request.id, **result}


def failure(line: int, error: Exception, request: Request | None = None) -> dict:
    """Returns the answer for a line that failed."""
    # An error may name a file, and a file's name need not be Unicode.
    message = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
    result = {"line": line, "error": message}
    return result if request is None or request.id is None else {"id": request.id, **result}
