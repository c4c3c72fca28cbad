"""What requests mean: their adapters, labels, tokens and pictures; calls that mix them; answers."""

import collections
import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.images import check_trained_with
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models import decoding
from adalink_jax.tools.serving.bank import Module
from adalink_jax.tools.serving.engine import BASE, Engine
from adalink_jax.tools.serving.pictures import Picture, Pictures
from adalink_jax.tools.serving.requests import Request, answer, failure, route_of
from adalink_jax.tools.serving.shapes import (
    SHORTEST_LABEL,
    SHORTEST_TEXT,
    divided,
    rounded,
    rounded_rows,
    row_counts,
)
from adalink_jax.tools.serving.shelf import Known, Shelf

_LONGEST_LABEL = 128  # Tokens with EOS.
_READERS = 4  # Threads that read the pictures of a batch.
# What a call costs beside its rows, in rows, as long as no times are known.
_CALL = 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a service takes.

    Attributes:
      inputs: the most tokens of a text, including EOS; the rest is cut off and the answer says so.
      targets: the most tokens to generate.
      rows: the most rows of one call.
      slots: the most texts of one kind of adapters that are generated side by side.
    """

    inputs: int = 512
    targets: int = 16
    rows: int = 64
    slots: int = 0

    @property
    def room(self) -> int:
        """How many adapters of one kind may be in use at one time."""
        return self.rows + self.slots


DEFAULTS = Limits()


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A request that is ready to run.

    Attributes:
      request: the request, with the labels that are scored, and without its image.
      tokens: its text with EOS.
      dropped: number of tokens cut off at the end of the text.
      module: what its adapter and route meant when it was read; None for the base.
      options: the labels' tokens [C,L]; None to generate.
      picture: what it shows; None for text alone.
    """

    request: Request
    tokens: tuple[int, ...]
    dropped: int
    module: Module | None
    options: np.ndarray | None
    picture: Picture | None = None

    @property
    def kind(self) -> Method:
        """The kind of its adapter; `BASE` without one."""
        return self.module.kind if self.module else BASE

    @property
    def group(self) -> tuple:
        """What rows of one call have in common."""
        what = self.options.shape if self.options is not None else self.request.beam_size
        return self.kind, what, rounded(len(self.tokens), SHORTEST_TEXT)


class Service:
    """Answers requests by one base and the adapters of a shelf.

    An adapter is loaded on first use, and again if it has changed. If memory is full, the least
    recently used adapter is unloaded. Any thread may call `row`; one alone may run rows.

    Attributes:
      engine: the base, and the adapters on the device.
      shelf: the adapters on disk and in the host's memory.
      limits: what it takes.
      pictures: what reads and encodes images; None if no request may have one.
    """

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        vocabulary: Any,
        limits: Limits = DEFAULTS,
        pictures: Pictures | None = None,
    ):
        """Joins the parts.

        Args:
          engine: the base, with room for a call's adapters.
          shelf: the adapters.
          vocabulary: the base's vocabulary: ``encode``, ``decode``, ``eos_id``, ``pad_id``.
          limits: what it takes.
          pictures: reads and encodes images; None if no request may have one.

        Raises:
          UserError: the vocabulary is not the base's.
        """
        engine.config.check_vocabulary(vocabulary.vocab_size)
        self.engine, self.shelf, self.limits = engine, shelf, limits
        self.pictures = pictures
        self._vocabulary = vocabulary
        engine.kept = shelf.pinned_modules
        self._options = functools.lru_cache(maxsize=256)(self._encoded)
        # The fastest seconds of calls by what their rows share and how many they are.
        self._fastest: dict[tuple, float] = {}

    def load(self, known: Known) -> None:
        """Puts an adapter on the device.

        Raises:
          UserError: those that are pinned leave too little room for a call's.
        """
        most = self.engine.resident - self.limits.room
        for module in known.modules.values():
            if sum(one.kind == module.kind for one in self.shelf.pinned_modules()) > most:
                raise UserError(f"{most} adapters of a kind can be pinned; --resident sets it")
            self.engine.load(module.kind, [module])

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        return self._vocabulary.eos_id

    def answers(self, requests: Sequence[Request]) -> Iterator[dict]:
        """Answers a batch of requests in order; a request that fails gets an error instead.

        Within the batch an adapter stays what it was.

        Args:
          requests: for any adapters, at most `Limits.resident` of one kind.
        """
        results: dict[int, dict] = {}
        rows: list[Row] = []
        adapters, shown = self._read(requests), self._seen(requests)
        for request in requests:
            try:
                rows.append(self.row(request, adapters, shown))
            except (UserError, OSError) as error:
                results[request.line] = failure(request.line, error, request)
        for part in self.parts(rows):
            for row, output in zip(part, self.run(part), strict=True):
                try:
                    results[row.request.line] = self.answer(row, output)
                except UserError as error:
                    results[row.request.line] = failure(row.request.line, error, row.request)
        for request in requests:
            yield results[request.line]

    def _read(self, requests: Sequence[Request]) -> dict[str, Known | Exception]:
        """Returns every adapter that is asked for, or why it cannot be used, read only once."""
        adapters: dict[str, Known | Exception] = {}
        for name in dict.fromkeys(one.name for one in requests if one.adapter is not None):
            try:
                adapters[name] = self.shelf.read(name)
            except (UserError, OSError) as error:
                adapters[name] = error
        return adapters

    def _seen(self, requests: Sequence[Request]) -> dict[str, Picture | Exception]:
        """Returns every picture that is asked about, or why it cannot be, read only once."""
        asked = list(dict.fromkeys(one.image for one in requests if one.image))
        pictures = self.pictures
        if not asked or pictures is None:
            return {}

        def read(image: str) -> Picture | Exception:
            try:
                return pictures.read(image)
            except UserError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(min(_READERS, len(asked))) as pool:
            return dict(zip(asked, pool.map(read, asked), strict=True))

    def row(
        self,
        request: Request,
        adapters: Mapping[str, Known | Exception] | None = None,
        shown: Mapping[str, Picture | Exception] | None = None,
    ) -> Row:
        """Reads a request's adapter and picture, and encodes its text and labels.

        Args:
          request: the request.
          adapters: those that were read for its batch; None to read it now.
          shown: the pictures that were read for its batch; None to read it now.

        Raises:
          UserError: the adapter or the picture cannot be used, there is a picture where none can be
            seen, or none where the adapter was trained on some, or the labels cannot be scored.
        """
        module, labels, known, route = None, request.labels, None, ""
        if request.adapter is not None:
            known = self.shelf.read(request.name) if adapters is None else adapters[request.name]
            if isinstance(known, Exception):
                raise known
            route = route_of(request.adapter, tuple(known.modules))
            module = known.modules[route]
            if request.scores:
                labels = labels or known.labels[route]
        self._check_image(request, known, route)
        picture = self._picture(request.image, shown) if request.image else None
        options = self._options(labels) if labels else None
        ids = self._vocabulary.encode(request.text)
        keep = self.limits.inputs - 1
        tokens = (*ids[:keep], self._vocabulary.eos_id)
        # Without the picture, which may be megabytes of text.
        request = dataclasses.replace(request, labels=labels, image=None)
        row = Row(request, tokens, max(0, len(ids) - keep), module, options, picture)
        if known and known.longest and (length := self.tokens_of(row)) > known.longest:
            raise UserError(
                f"adapter '{request.adapter}' takes inputs of up to {known.longest} tokens, and "
                f"this one has {length}"
            )
        return row

    def _check_image(self, request: Request, known: Known | None, route: str) -> None:
        """Raises `UserError` if a request has an image and must not, or the other way round."""
        if not request.image:
            if request.image is None and known is not None and route in known.pictured:
                raise UserError(
                    f"adapter '{request.adapter}' was trained on pictures, and the request has no "
                    "'image'; an empty one asks about the text alone"
                )
        elif self.engine.config.image_width is None:
            raise UserError("the request has an image, but the base reads text alone")
        elif self.pictures is None:
            raise UserError("the request has an image, but --image_encoder names no image encoder")
        elif known is not None:
            who = f"adapter '{request.adapter}'"
            check_trained_with(self.pictures.identity, known.image_encoder, who)

    def _picture(self, image: str, shown: Mapping[str, Picture | Exception] | None) -> Picture:
        assert self.pictures is not None  # Since `_check_image`.
        found = self.pictures.read(image) if shown is None else shown[image]
        if isinstance(found, Exception):
            raise found
        return found

    def tokens_of(self, row: Row) -> int:
        """Returns the number of tokens that the encoder reads of a row, of its image too."""
        images = 0 if self.pictures is None or row.picture is None else self.pictures.shape[0]
        return images + len(row.tokens)

    def _encoded(self, labels: tuple[str, ...]) -> np.ndarray:
        """Returns the labels' tokens, padded to a shape that others have too."""
        options = decoding.encoded_options(labels, self._vocabulary)
        count, length = options.shape
        if length > _LONGEST_LABEL:
            raise UserError(f"a label has {length:,} tokens; at most {_LONGEST_LABEL} are scored")
        shape = rounded(count, 1) - count, rounded(length, SHORTEST_LABEL) - length
        return np.pad(options, [(0, more) for more in shape])

    def answer(self, row: Row, output: np.ndarray) -> dict:
        """Returns the answer to a row, of what `run` returned for it.

        Raises:
          UserError: numbers are not finite.
        """
        labels = row.request.labels
        if not np.all(np.isfinite(output)) or (not labels and decoding.BROKEN in output):
            raise self.broken(row)
        if labels:
            output = output[: len(labels)]
            return answer(row.request, labels[int(np.argmax(output))], output.tolist(), row.dropped)
        return answer(row.request, self.text(output.tolist()), (), row.dropped)

    def broken(self, row: Row) -> UserError:
        """Returns the error of a row whose numbers are not finite."""
        who = "the base" if row.module is None else f"adapter '{row.request.adapter}'"
        return UserError(f"{who} computes numbers here that are not finite")

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of generated tokens, up to EOS."""
        eos = self._vocabulary.eos_id
        ids = ids[: ids.index(eos)] if eos in ids else ids
        return self._vocabulary.decode([i for i in ids if i != self._vocabulary.pad_id])

    def parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Divides rows into calls, each of one group and so many rows that all end soonest."""
        groups: dict[tuple, list[Row]] = collections.defaultdict(list)
        for row in rows:
            groups[row.group].append(row)
        for name, group in groups.items():
            most = self.most_rows(group[0])
            start = 0
            for size in divided(len(group), most, self._seconds_of(name, most)):
                yield group[start : start + size]
                start += size

    def most_rows(self, row: Row) -> int:
        """Returns how many rows like this one a call may have, so that its logits fit."""
        most = self.limits.rows
        if row.options is None:
            return most
        row_bytes = 4 * row.options.shape[1] * self.engine.config.vocab_size
        fitting = max(1, decoding.LOGITS_BYTES // row_bytes)
        # As rows are rounded up.
        return most if fitting >= most else 1 << ((fitting.bit_length() - 1) // 2 * 2)

    def _seconds_of(self, group: tuple, most: int) -> Callable[[int], float]:
        """Returns the time of a group's calls by their rows, in rows until all were timed."""
        known = {size: self._fastest.get((group, size), math.inf) for size in row_counts(most)}
        if math.inf in known.values():
            return lambda size: size + _CALL
        return known.__getitem__

    def run(self, rows: Sequence[Row]) -> np.ndarray:
        """Runs rows of one group together; returns label scores [B, C] or tokens [B, L]."""
        first, modules = rows[0], [row.module for row in rows]
        count = rounded_rows(len(rows), self.limits.rows)
        self.engine.load(first.kind, modules)
        began = time.perf_counter()
        output = self._ran(rows, count, modules)
        key, seconds = (first.group, count), time.perf_counter() - began
        # The first of its kind compiles, which is no time of a call.
        self._fastest[key] = min(seconds, self._fastest[key]) if key in self._fastest else math.inf
        return output[: len(rows)]

    def _ran(self, rows: Sequence[Row], count: int, modules: Sequence[Module | None]) -> np.ndarray:
        """Runs the rows of a call, and empty ones up to `count`."""
        first = rows[0]
        call = functools.partial(
            self.engine.run,
            kind=first.kind,
            encoder_input_tokens=padded(rows, count, self.limits.inputs),
            routes=self.engine.routes(first.kind, modules, count),
            **self._images(rows, count),
        )
        if first.options is not None:
            options = np.zeros((count, *first.options.shape), np.int32)
            options[: len(rows)] = np.stack(
                [row.options for row in rows if row.options is not None]
            )
            return np.asarray(call(decoding.score_options, options=options))
        static = {"max_length": self.limits.targets, "eos_id": self._vocabulary.eos_id}
        if first.request.beam_size == 1:
            return np.asarray(call(decoding.greedy, static=static))
        static["beam_size"] = first.request.beam_size
        return np.asarray(call(decoding.beam_search, static=static))

    def _images(self, rows: Sequence[Row], count: int) -> dict[str, np.ndarray]:
        """Returns the part of a call that holds images; none if no row has any."""
        pictures = [row.picture for row in rows]
        if self.pictures is None or not any(pictures):
            return {}
        return self.pictures.batch(pictures, count)


def padded(rows: Sequence[Row], count: int, most: int) -> np.ndarray:
    """Returns the tokens of rows, int32 [count, T ≤ most], of a length that others have too."""
    longest = max(len(row.tokens) for row in rows)
    tokens = np.zeros((count, min(most, rounded(longest, SHORTEST_TEXT))), np.int32)
    for row, into in zip(rows, tokens, strict=False):
        into[: len(row.tokens)] = row.tokens
    return tokens
