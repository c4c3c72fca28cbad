"""Answers streams of requests, in batches that mix adapters."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adalink_jax.checkpoints import fingerprint, load_base
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import decoding
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools.serving.bank import Bank, Module
from adalink_jax.tools.serving.programs import Programs
from adalink_jax.tools.serving.requests import Request, answer, failure
from adalink_jax.tools.serving.shelf import Known, Shelf

# Shapes are rounded up to powers of two, so that few programs are compiled: the rows of a call, the
# tokens of a text and of a label, the number of labels.
_SHORTEST_TEXT = 16
_SHORTEST_LABEL = 4
_LONGEST_LABEL = 128  # Tokens with EOS.

# What stays in memory: programs, and banks of one kind of adapters each.
_PROGRAMS = 64
_BANKS = 16


@dataclasses.dataclass(frozen=True)
class _Row:
    """A request that is ready to run.

    Attributes:
      request: the request, with the labels that are scored.
      tokens: its text with EOS.
      dropped: number of tokens cut off at the end of the text.
      name: its adapter and route; None for the base.
      module: what that name meant when the batch was read; None for the base.
      options: the labels' tokens; None to generate.
    """

    request: Request
    tokens: tuple[int, ...]
    dropped: int
    name: str | None
    module: Module | None
    options: np.ndarray | None

    @property
    def group(self) -> tuple:
        """What rows of one call have in common."""
        length = _rounded(len(self.tokens), _SHORTEST_TEXT)
        return self.module.kind if self.module else Method(), self.request.labels, length


class Service:
    """One base, and any number of adapters that are loaded on demand.

    Adapters are folders below one folder. A request names one of them. An adapter is loaded on
    first use, and again if it has changed; within a batch it stays what it was. If memory is full,
    the least recently used adapter is unloaded.
    """

    def __init__(
        self,
        base: str,
        adapters: str | None,
        vocabulary: Any,
        labels_of: Mapping[str, Sequence[str]],
        *,
        max_inputs: int = 512,
        max_targets: int = 16,
        beam_size: int = 1,
        resident: int = 64,
    ):
        """Loads the base.

        Args:
          base: its checkpoint.
          adapters: the folder of adapters (or of runs); None for only the base.
          vocabulary: the base's vocabulary: ``encode``, ``decode``, ``eos_id``, ``pad_id``.
          labels_of: name of a task → its labels, for adapters that record their task.
          max_inputs: the most tokens of a text, including EOS; the rest is cut off and the answer
            reports it.
          max_targets: the most tokens to generate.
          beam_size: number of beams to generate with; 1 is greedy.
          resident: the most adapters of one kind in memory.

        Raises:
          UserError: the base cannot be loaded, or the folder of adapters does not exist.
        """
        config, params = load_base(base)
        self._config = dataclasses.replace(config, dropout_rate=0.0)
        self._config.check_vocabulary(vocabulary.vocab_size)
        self._shelf = Shelf(adapters, self._config, fingerprint(params), labels_of, resident)
        self._params = jax.device_put(params)
        self._vocabulary, self._labels_of = vocabulary, labels_of
        self._max_inputs, self._max_targets, self._beam_size = max_inputs, max_targets, beam_size
        self._resident = resident
        self._banks: dict[Method, Bank] = {}  # Ordered by use, the most recent one last.
        self._programs = Programs(_PROGRAMS)
        self._options = functools.lru_cache(maxsize=256)(self._encoded)

    def answers(self, requests: Sequence[Request]) -> Iterator[dict]:
        """Answers a batch of requests in order; a request that fails gets an error instead.

        Args:
          requests: for any adapters, at most `resident` of one kind.
        """
        results: dict[int, dict] = {}
        groups: dict[tuple, list[_Row]] = collections.defaultdict(list)
        adapters = self._read(requests)
        for request in requests:
            try:
                row = self._prepared(request, adapters)
            except (UserError, OSError) as error:
                results[request.line] = failure(request.line, error, request)
            else:
                groups[row.group].append(row)
        for rows in groups.values():
            for part in self._parts(rows):
                for row, output in zip(part, self._run(part), strict=True):
                    results[row.request.line] = self._answer(row, output)
        for request in requests:
            yield results[request.line]

    def _read(self, requests: Sequence[Request]) -> dict[str, Known | Exception]:
        """Returns every adapter that is asked for, or why it cannot be used, read only once."""
        adapters: dict[str, Known | Exception] = {}
        for name in dict.fromkeys(_name(one) for one in requests if one.adapter is not None):
            try:
                adapters[name] = self._shelf.read(name)
            except (UserError, OSError) as error:
                adapters[name] = error
        return adapters

    def _prepared(self, request: Request, adapters: Mapping[str, Known | Exception]) -> _Row:
        name, module, labels = None, None, request.labels
        if request.adapter is not None:
            known = adapters[_name(request)]
            if isinstance(known, Exception):
                raise known
            route = _route(request.adapter, tuple(known.modules))
            name, module = f"{_name(request)}:{route}", known.modules[route]
            labels = labels or known.labels or tuple(self._labels_of.get(route, ()))
        options = self._options(labels) if labels else None
        ids = self._vocabulary.encode(request.text)
        keep = self._max_inputs - 1
        tokens = (*ids[:keep], self._vocabulary.eos_id)
        request = dataclasses.replace(request, labels=labels)
        return _Row(request, tokens, max(0, len(ids) - keep), name, module, options)

    def _encoded(self, labels: tuple[str, ...]) -> np.ndarray:
        """Returns the labels' tokens, padded to a shape that others have too."""
        options = decoding.encoded_options(labels, self._vocabulary)
        count, length = options.shape
        if length > _LONGEST_LABEL:
            raise UserError(f"a label has {length:,} tokens; at most {_LONGEST_LABEL} are scored")
        shape = _rounded(count, 1) - count, _rounded(length, _SHORTEST_LABEL) - length
        return np.pad(options, [(0, more) for more in shape])

    def _parts(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
        """Divides rows of one group, so that the logits of one label for all of them fit."""
        most, options = len(rows), rows[0].options
        if options is not None:
            row_bytes = 4 * options.shape[1] * self._config.vocab_size
            most = max(1, decoding.LOGITS_BYTES // row_bytes)
            most = 1 << (most.bit_length() - 1)  # A power of two, as rows are rounded up to one.
        for start in range(0, len(rows), most):
            yield rows[start : start + most]

    def _run(self, rows: Sequence[_Row]) -> np.ndarray:
        """Runs rows of one group together; returns label scores [B, C] or tokens [B, L]."""
        kind, labels, length = rows[0].group
        count = _rounded(len(rows), 1)
        tokens = np.zeros((count, length), np.int32)
        routes = np.zeros(count, np.int32)
        for row, into in zip(rows, tokens, strict=False):
            into[: len(row.tokens)] = row.tokens
        method, params = kind, self._params
        if kind != Method():
            bank = self._bank(kind, rows)
            method, params = bank.method, merge(self._params, bank.params)
            routes[: len(rows)] = [bank.slot(row.name) for row in rows if row.name is not None]
        model = Transformer(self._config, method)
        run = functools.partial(self._programs.run, model=model, params=params, tokens=tokens)
        options = rows[0].options
        if options is not None:
            output = run(decoding.score_options, options=options, routes=routes)
            return np.asarray(output)[: len(rows), : len(labels)]
        static = {"max_length": self._max_targets, "eos_id": self._vocabulary.eos_id}
        if self._beam_size == 1:
            return np.asarray(run(decoding.greedy, static=static, routes=routes))[: len(rows)]
        static["beam_size"] = self._beam_size
        return np.asarray(run(decoding.beam_search, static=static, routes=routes))[: len(rows)]

    def _bank(self, kind: Method, rows: Sequence[_Row]) -> Bank:
        """Returns the bank of a kind, with the rows' modules in it."""
        bank = self._banks.pop(kind, None)
        if bank is None:
            bank = Bank(self._config, kind, self._resident)
        self._banks[kind] = bank
        if len(self._banks) > _BANKS:
            del self._banks[next(iter(self._banks))]
        wanted = {row.name: row.module for row in rows if row.name and row.module}
        for name, module in sorted(wanted.items()):
            if not bank.holds(name, module):
                bank.load(name, module, frozenset(wanted))
        return bank

    def _answer(self, row: _Row, output: np.ndarray) -> dict:
        labels = row.request.labels
        if not np.all(np.isfinite(output)) or (not labels and decoding.BROKEN in output):
            who = "the base" if row.name is None else f"adapter '{row.request.adapter}'"
            error = UserError(f"{who} computes numbers here that are not finite")
            return failure(row.request.line, error, row.request)
        if labels:
            return answer(row.request, labels[int(np.argmax(output))], output.tolist(), row.dropped)
        ids = output.tolist()
        end = ids.index(self._vocabulary.eos_id) if self._vocabulary.eos_id in ids else len(ids)
        text = self._vocabulary.decode([i for i in ids[:end] if i != self._vocabulary.pad_id])
        return answer(row.request, text, (), row.dropped)


def _name(request: Request) -> str:
    """Returns the name of a request's adapter, without a route."""
    return (request.adapter or "").partition(":")[0]


def _route(adapter: str, routes: tuple[str, ...]) -> str:
    """Returns the route that a request names, which may be left out if there is only one."""
    name, _, route = adapter.partition(":")
    if not route and len(routes) == 1:
        return routes[0]
    if route not in routes:
        wrong = f"has no route '{route}'{nearest(route, routes)}" if route else "has several;"
        raise UserError(f"adapter '{name}' {wrong} ask for {name}:ROUTE of {', '.join(routes)}")
    return route


def _rounded(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
