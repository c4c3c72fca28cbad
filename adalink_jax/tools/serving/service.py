"""What requests mean: their adapters, labels and tokens; calls that mix adapters; answers."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models import decoding
from adalink_jax.tools.serving.bank import Module
from adalink_jax.tools.serving.engine import BASE, Engine
from adalink_jax.tools.serving.requests import Request, answer, failure, route_of
from adalink_jax.tools.serving.shelf import Known, Shelf

# Shapes are rounded up, so that few programs are compiled: the rows of a call to a power of four,
# the tokens of a text and of a label and the number of labels to a power of two.
_SHORTEST_TEXT = 16
_SHORTEST_LABEL = 4
_LONGEST_LABEL = 128  # Tokens with EOS.


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
      request: the request, with the labels that are scored.
      tokens: its text with EOS.
      dropped: number of tokens cut off at the end of the text.
      module: what its adapter and route meant when it was read; None for the base.
      options: the labels' tokens [C,L]; None to generate.
    """

    request: Request
    tokens: tuple[int, ...]
    dropped: int
    module: Module | None
    options: np.ndarray | None

    @property
    def kind(self) -> Method:
        """The kind of its adapter; `BASE` without one."""
        return self.module.kind if self.module else BASE

    @property
    def group(self) -> tuple:
        """What rows of one call have in common."""
        what = self.options.shape if self.options is not None else self.request.beam_size
        return self.kind, what, _rounded(len(self.tokens), _SHORTEST_TEXT)


class Service:
    """Answers requests by one base and the adapters of a shelf.

    An adapter is loaded on first use, and again if it has changed. If memory is full, the least
    recently used adapter is unloaded. Any thread may call `row`; one alone may run rows.

    Attributes:
      engine: the base, and the adapters on the device.
      shelf: the adapters on disk and in the host's memory.
      limits: what it takes.
    """

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        vocabulary: Any,
        labels_of: Mapping[str, Sequence[str]],
        limits: Limits = DEFAULTS,
    ):
        """Joins the parts.

        Args:
          engine: the base, with room for a call's adapters.
          shelf: the adapters.
          vocabulary: the base's vocabulary: ``encode``, ``decode``, ``eos_id``, ``pad_id``.
          labels_of: name of a task → its labels, for adapters that record their task.
          limits: what it takes.

        Raises:
          UserError: the vocabulary is not the base's.
        """
        engine.config.check_vocabulary(vocabulary.vocab_size)
        self.engine, self.shelf, self.limits = engine, shelf, limits
        self._vocabulary, self._labels_of = vocabulary, labels_of
        engine.kept = shelf.pinned_modules
        self._options = functools.lru_cache(maxsize=256)(self._encoded)

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
        adapters = self._read(requests)
        for request in requests:
            try:
                rows.append(self.row(request, adapters))
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

    def row(self, request: Request, adapters: Mapping[str, Known | Exception] | None = None) -> Row:
        """Reads a request's adapter, and encodes its text and labels.

        Args:
          request: the request.
          adapters: those that were read for its batch; None to read it now.

        Raises:
          UserError: the adapter cannot be used, or the labels cannot be scored.
        """
        module, labels = None, request.labels
        if request.adapter is not None:
            known = self.shelf.read(request.name) if adapters is None else adapters[request.name]
            if isinstance(known, Exception):
                raise known
            route = route_of(request.adapter, tuple(known.modules))
            module = known.modules[route]
            if request.scores:
                labels = labels or known.labels or tuple(self._labels_of.get(route, ()))
        options = self._options(labels) if labels else None
        ids = self._vocabulary.encode(request.text)
        keep = self.limits.inputs - 1
        tokens = (*ids[:keep], self._vocabulary.eos_id)
        request = dataclasses.replace(request, labels=labels)
        return Row(request, tokens, max(0, len(ids) - keep), module, options)

    def _encoded(self, labels: tuple[str, ...]) -> np.ndarray:
        """Returns the labels' tokens, padded to a shape that others have too."""
        options = decoding.encoded_options(labels, self._vocabulary)
        count, length = options.shape
        if length > _LONGEST_LABEL:
            raise UserError(f"a label has {length:,} tokens; at most {_LONGEST_LABEL} are scored")
        shape = _rounded(count, 1) - count, _rounded(length, _SHORTEST_LABEL) - length
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
        """Divides rows into calls: of one group each, and so that the logits of one fit."""
        groups: dict[tuple, list[Row]] = collections.defaultdict(list)
        for row in rows:
            groups[row.group].append(row)
        for group in groups.values():
            most, options = self.limits.rows, group[0].options
            if options is not None:
                row_bytes = 4 * options.shape[1] * self.engine.config.vocab_size
                fitting = max(1, decoding.LOGITS_BYTES // row_bytes)
                if fitting < most:
                    most = 1 << ((fitting.bit_length() - 1) // 2 * 2)  # As rows are rounded up.
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def run(self, rows: Sequence[Row]) -> np.ndarray:
        """Runs rows of one group together; returns label scores [B, C] or tokens [B, L]."""
        first, modules = rows[0], [row.module for row in rows]
        count = rounded_rows(len(rows), self.limits.rows)
        self.engine.load(first.kind, modules)
        call = functools.partial(
            self.engine.run,
            kind=first.kind,
            encoder_input_tokens=padded(rows, count, self.limits.inputs),
            routes=self.engine.routes(first.kind, modules, count),
        )
        if first.options is not None:
            options = np.zeros((count, *first.options.shape), np.int32)
            options[: len(rows)] = np.stack(
                [row.options for row in rows if row.options is not None]
            )
            return np.asarray(call(decoding.score_options, options=options))[: len(rows)]
        static = {"max_length": self.limits.targets, "eos_id": self._vocabulary.eos_id}
        if first.request.beam_size == 1:
            return np.asarray(call(decoding.greedy, static=static))[: len(rows)]
        static["beam_size"] = first.request.beam_size
        return np.asarray(call(decoding.beam_search, static=static))[: len(rows)]


def padded(rows: Sequence[Row], count: int, most: int) -> np.ndarray:
    """Returns the tokens of rows, int32 [count, T ≤ most], of a length that others have too."""
    longest = max(len(row.tokens) for row in rows)
    tokens = np.zeros((count, min(most, _rounded(longest, _SHORTEST_TEXT))), np.int32)
    for row, into in zip(rows, tokens, strict=False):
        into[: len(row.tokens)] = row.tokens
    return tokens


def lengths(most: int) -> list[int]:
    """Returns all lengths of `padded` rows."""
    found = [_SHORTEST_TEXT]
    while found[-1] < most:
        found.append(2 * found[-1])
    return [min(most, length) for length in found]


def row_counts(most: int) -> list[int]:
    """Returns all numbers of rows that `rounded_rows` gives."""
    return sorted({rounded_rows(count, most) for count in range(1, most + 1)})


def rounded_rows(count: int, most: int) -> int:
    """Returns a number of rows that few calls have: a power of four, or all that fit."""
    return min(most, 1 << (-(-(count - 1).bit_length() // 2) * 2))


def _rounded(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
