"""The adapters below one folder, or in one packed file, read when they are asked for."""

import dataclasses
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from adalink_jax.adapters.load import check_adapter
from adalink_jax.adapters.pack import Places, places_of
from adalink_jax.adapters.texts import check_vocabulary, labels_of
from adalink_jax.errors import UserError, nearest
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.serving.bank import Module, module

# A name that is nearly right is looked for among so many; more would take longer than an answer.
_SIMILAR = 2000


class Absent(UserError):
    """There is no adapter of this name."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A checked adapter.

    Attributes:
      modules: its routes, by name.
      labels: those that each route was trained on, by its name; none of a route of several tasks.
      longest: the most vectors of an input, of its picture and its text; None for any number.
      image_encoder: what is recorded of the encoder whose pictures it was trained on, if of any.
      pictured: the routes that were trained on pictures.
      written: which file its record was; another one means that the adapter was written anew.
      nbytes: bytes of its arrays.
    """

    modules: Mapping[str, Module]
    labels: Mapping[str, tuple[str, ...]]
    longest: int | None
    image_encoder: Mapping[str, Any] | None
    pictured: frozenset[str]
    written: tuple[int, ...]
    nbytes: int


class Shelf:
    """Reads adapters by name, and keeps those that were asked for last. Threads may share it.

    Attributes:
      reads: how many adapters were read from disk.
      evictions: how many made room for others.
    """

    def __init__(
        self,
        where: str | None,
        config: T5Config,
        base_fingerprint: str,
        vocabulary: Any,
        labels_of: Mapping[str, Sequence[str]],
        most_bytes: int,
        length: int,
    ):
        """Reads nothing yet.

        Args:
          where: the folder of adapters (or of runs), or a packed file; None if there is none.
          config: the base's architecture.
          base_fingerprint: the base's `fingerprint`.
          vocabulary: the base's; adapters that were trained with another are refused.
          labels_of: name of a task → its labels.
          most_bytes: how many bytes of adapters to keep; the last one read stays in any case.
          length: the most vectors of a padded input, of its picture and its text.

        Raises:
          UserError: there is no such folder or file.
        """
        self._places: Places | None = None if where is None else places_of(pathlib.Path(where))
        self._config, self._fingerprint = config, base_fingerprint
        self._vocabulary, self._length = vocabulary, length
        self._labels_of, self._most_bytes = labels_of, most_bytes
        self._known: dict[str, Known] = {}  # Ordered by use, the most recent one last.
        self._pinned: set[str] = set()
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}
        self.reads = self.evictions = 0

    def read(self, name: str) -> Known:
        """Returns the adapter of a name as it is on disk now.

        Symbolic links are followed: who may write into the folder decides what is served. A
        request can only name what lies directly in it.

        Raises:
          Absent: there is none.
          UserError: it is damaged, of another base, or cannot share a batch.
          OSError: it cannot be read.
        """
        if self._places is None:
            raise Absent(f"adapter '{name}' is asked for, but no folder of adapters was given")
        if not self._places.holds(name):
            raise Absent(f"no adapter '{name}'{self._similar(name)}")
        with self._lock:
            reading = self._reading.setdefault(name, threading.Lock())
        with reading:  # Many ask for a new one at once, and one reads it.
            known = self._current(self._places, name)
        with self._lock:
            self._reading.pop(name, None)
            self._known.pop(name, None)
            self._known[name] = known
            self._make_room(name)
        return known

    def _current(self, places: Places, name: str) -> Known:
        known = self._known.get(name)
        written = places.written(name)
        if known is not None and known.written == written:
            return known
        try:
            return self._load(places, name, written)
        except UserError:
            if written == (written := places.written(name)):
                raise
            # Written anew meanwhile: the record was the old one's, the arrays the new one's.
            return self._load(places, name, written)

    def _similar(self, name: str) -> str:
        names = self.names()
        return nearest(name, names) if len(names) <= _SIMILAR else ""

    def _make_room(self, newest: str) -> None:
        total = sum(known.nbytes for known in self._known.values())
        for name in tuple(self._known):
            if total <= self._most_bytes:
                return
            if name != newest and name not in self._pinned:
                total -= self._known.pop(name).nbytes
                self.evictions += 1

    def _load(self, places: Places, name: str, written: tuple[int, ...]) -> Known:
        adapter = places.load(name, architecture=self._config, base_fingerprint=self._fingerprint)
        check_adapter(self._config, adapter.method, adapter.tree, f"'{name}'")
        modules = {
            route: module(adapter.method, adapter.tree, i, self._length)
            for i, route in enumerate(adapter.route_names)
        }
        self.reads += 1
        check_vocabulary(adapter, self._vocabulary, f"adapter '{name}'")
        labels = {route: labels_of(adapter, route, self._labels_of) for route in modules}
        trees = [one.tree for one in modules.values()]
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        pictured = frozenset(filter(adapter.shows_pictures, adapter.route_names))
        return Known(
            modules, labels, adapter.method.longest_input, adapter.image_encoder, pictured, written,
            nbytes,
        )  # fmt: skip

    def names(self) -> Sequence[str]:
        """Returns the sorted names of all adapters on disk, right or damaged."""
        return () if self._places is None else self._places.names()

    def resident(self) -> Mapping[str, Known]:
        """Returns the adapters in memory."""
        with self._lock:
            return dict(self._known)

    def drop(self, name: str) -> None:
        """Forgets an adapter, pinned or not; it stays on disk."""
        with self._lock:
            self._pinned.discard(name)
            self._known.pop(name, None)

    def pin(self, name: str) -> Known:
        """Reads an adapter, which then stays in memory until it is dropped."""
        known = self.read(name)
        with self._lock:
            self._pinned.add(name)
        return known

    def pinned(self) -> frozenset[str]:
        """Returns the names that stay in memory."""
        with self._lock:
            return frozenset(self._pinned)

    def pinned_modules(self) -> Iterator[Module]:
        """Iterates over the modules that stay in memory."""
        known = self.resident()
        for name in self.pinned():
            if name in known:
                yield from known[name].modules.values()
