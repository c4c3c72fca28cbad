"""Answers streams of requests, in batches that mix adapters."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adalink_jax.adapters.load import adapter_folder, check_adapter
from adalink_jax.checkpoints import Adapter, fingerprint, load_adapter, load_base
from adalink_jax.checkpoints.adapters import RECORD
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import decoding
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools.serving.bank import Bank, Module, module
from adalink_jax.tools.serving.requests import Request, answer, failure

# Lengths and row counts are rounded up to powers of two, so that few programs are compiled.
_SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class _Known:
    """A checked adapter on disk: its routes as modules, its labels, and the time of its record."""

    modules: dict[str, Module]
    labels: tuple[str, ...]
    written: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A request that is ready to run."""

    request: Request
    tokens: tuple[int, ...]
    dropped: int
    name: str | None  # Its name in the bank; None for the base.
    kind: Method


class Service:
    """One base, and any number of adapters that are loaded on demand.

    Adapters are folders below one folder. A request names one of them. An adapter is loaded on
    first use, and again if it has changed. If memory is full, the least recently used adapter is
    unloaded.
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
          resident: the most adapters of one kind in memory.

        Raises:
          UserError: the base cannot be loaded, or the folder of adapters does not exist.
        """
        if adapters is not None and not pathlib.Path(adapters).is_dir():
            raise UserError(f"no folder {adapters} of adapters")
        self._config, params = load_base(base)
        self._config = dataclasses.replace(self._config, dropout_rate=0.0)
        self._config.check_vocabulary(vocabulary.vocab_size)
        self._fingerprint = fingerprint(params)
        self._params = jax.device_put(params)
        self._folder = None if adapters is None else pathlib.Path(adapters)
        self._vocabulary, self._labels_of = vocabulary, labels_of
        self._max_inputs, self._max_targets = max_inputs, max_targets
        self._resident = resident
        self._known: dict[str, _Known] = {}
        self._banks: dict[Method, Bank] = {}

    def answers(self, requests: Sequence[Request]) -> Iterator[dict]:
        """Answers a batch of requests in order; a request that fails gets an error instead.

        Args:
          requests: for any adapters, at most `resident` of one kind.
        """
        results: dict[int, dict] = {}
        groups: dict[tuple, list[_Row]] = collections.defaultdict(list)
        for request in requests:
            try:
                row = self._prepared(request)
            except (UserError, OSError) as error:
                results[request.line] = failure(request.line, error, request)
                continue
            length = _rounded(len(row.tokens), _SHORTEST)
            groups[row.kind, row.request.labels, length].append(row)
        for (kind, labels, length), rows in groups.items():
            for row, output in zip(rows, self._run(kind, labels, length, rows), strict=True):
                results[row.request.line] = self._answer(row, output)
        for request in requests:
            yield results[request.line]

    def _prepared(self, request: Request) -> _Row:
        ids = self._vocabulary.encode(request.text)
        keep = self._max_inputs - 1
        tokens = (*ids[:keep], self._vocabulary.eos_id)
        dropped = max(0, len(ids) - keep)
        if request.adapter is None:
            return _Row(request, tokens, dropped, None, Method())
        name, _, route = request.adapter.partition(":")
        known = self._load(name)
        routes = tuple(known.modules)
        if not route and len(routes) == 1:
            (route,) = routes
        if route not in routes:
            wrong = f"has no route '{route}'{nearest(route, routes)}" if route else "has several;"
            raise UserError(f"adapter '{name}' {wrong} ask for {name}:ROUTE of {', '.join(routes)}")
        labels = request.labels or known.labels or tuple(self._labels_of.get(route, ()))
        request = dataclasses.replace(request, labels=labels)
        return _Row(request, tokens, dropped, f"{name}:{route}", known.modules[route].kind)

    def _load(self, name: str) -> _Known:
        """Returns the adapter, reloaded if it has changed on disk."""
        if self._folder is None:
            raise UserError(f"adapter '{name}' is asked for, but no folder of adapters was given")
        folder = self._folder / name
        if pathlib.PurePath(name).name != name or not folder.is_dir():
            self._forget(name)
            names = sorted(child.name for child in self._folder.iterdir() if child.is_dir())
            raise UserError(f"no adapter '{name}' in {self._folder}{nearest(name, names)}")
        folder = adapter_folder(str(folder))
        stamp = (folder / RECORD).stat() if (folder / RECORD).exists() else None
        written = (0, 0) if stamp is None else (stamp.st_mtime_ns, stamp.st_size)
        known = self._known.get(name)
        if known is None or known.written != written:
            self._forget(name)
            adapter = load_adapter(
                folder, architecture=self._config, base_fingerprint=self._fingerprint
            )
            check_adapter(self._config, adapter.method, adapter.tree, str(folder))
            modules = {
                route: module(adapter.method, adapter.tree, i)
                for i, route in enumerate(adapter.route_names)
            }
            known = self._known[name] = _Known(modules, self._labels(adapter), written)
        return known

    def _labels(self, adapter: Adapter) -> tuple[str, ...]:
        """Returns the labels of an adapter's only training task, if it records one."""
        tasks = adapter.metadata.get("data", {}).get("tasks", [])
        if len(tasks) != 1:
            return ()
        return tuple(self._labels_of.get(tasks[0].get("name", ""), ()))

    def _forget(self, name: str) -> None:
        known = self._known.pop(name, None)
        for route, one in known.modules.items() if known else ():
            if one.kind in self._banks:
                self._banks[one.kind].unload(f"{name}:{route}")

    def _run(
        self, kind: Method, labels: tuple[str, ...], length: int, rows: Sequence[_Row]
    ) -> np.ndarray:
        """Runs rows of one kind together; returns label scores [B, C] or tokens [B, L]."""
        count = _rounded(len(rows), 1)
        tokens = np.zeros((count, length), np.int32)
        routes = np.zeros(count, np.int32)
        method, params = kind, self._params
        if kind != Method():
            bank = self._bank(kind, rows)
            method, params = bank.method, merge(self._params, bank.params)
            routes[: len(rows)] = [bank.slot(row.name) for row in rows if row.name is not None]
        for row, into in zip(rows, tokens, strict=False):
            into[: len(row.tokens)] = row.tokens
        model = Transformer(self._config, method)
        eos_id = self._vocabulary.eos_id
        if not labels:
            output = decoding.greedy(
                model, params, tokens, self._max_targets, routes=routes, eos_id=eos_id
            )
            return np.asarray(output)[: len(rows)]
        ids = [(*self._vocabulary.encode(label), eos_id) for label in labels]
        options = np.zeros((len(labels), max(map(len, ids))), np.int32)
        for into, option in zip(options, ids, strict=True):
            into[: len(option)] = option
        return np.asarray(_scores(model, params, tokens, options, routes))[: len(rows)]

    def _bank(self, kind: Method, rows: Sequence[_Row]) -> Bank:
        if kind not in self._banks:
            self._banks[kind] = Bank(self._config, kind, self._resident)
        bank = self._banks[kind]
        wanted = frozenset(row.name for row in rows if row.name is not None)
        for name in sorted(wanted):
            if name not in bank:
                adapter, _, route = name.partition(":")
                bank.load(name, self._known[adapter].modules[route], wanted)
        return bank

    def _answer(self, row: _Row, output: np.ndarray) -> dict:
        labels = row.request.labels
        if labels:
            return answer(row.request, labels[int(np.argmax(output))], output.tolist(), row.dropped)
        ids = output.tolist()
        end = ids.index(self._vocabulary.eos_id) if self._vocabulary.eos_id in ids else len(ids)
        text = self._vocabulary.decode([i for i in ids[:end] if i != self._vocabulary.pad_id])
        return answer(row.request, text, (), row.dropped)


@functools.partial(jax.jit, static_argnames="model")
def _scores(model, params, tokens, options, routes):
    return decoding.score_options(model, params, tokens, options, routes)


def _rounded(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
