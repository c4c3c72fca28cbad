"""Where many adapters lie: below one folder, or in one packed file with an index.

A packed file is a safetensors file. Its header is the index; for an adapter NAME it holds the bytes
of ``NAME/adapter.json`` and ``NAME/adapter.safetensors`` as they were in its folder, so that what
is read is checked as from there.
"""

import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import safetensors

from adalink_jax import files
from adalink_jax.adapters.load import adapter_folder
from adalink_jax.checkpoints import Adapter, load_adapter
from adalink_jax.checkpoints.adapters import RECORD, TENSORS, adapter_of
from adalink_jax.checkpoints.formats.safetensors_files import write_tensors
from adalink_jax.errors import UserError, nearest

_FORMAT = {"format": "adalink_jax adapters", "version": "1"}


class Places(Protocol):
    """Adapters by name, as they are on disk at the time of asking."""

    def names(self) -> Sequence[str]:
        """Returns the sorted names of all adapters, right or damaged."""
        ...

    def holds(self, name: str) -> bool:
        """Returns whether there is an adapter of this name, or a folder that should hold one."""
        ...

    def written(self, name: str) -> tuple[int, ...]:
        """Returns what changes where the adapter is written anew."""
        ...

    def load(self, name: str, **checks: Any) -> Adapter:
        """Loads an adapter; `checks` as in `load_adapter`.

        Raises:
          UserError: it is damaged or of another base; no path of the server's is in the message.
        """
        ...


def places_of(path: pathlib.Path) -> Places:
    """Returns the adapters below a folder, or in a packed file.

    Raises:
      UserError: there is neither; or the file is no packed one.
    """
    if path.is_dir():
        return Folders(path)
    if path.is_file():
        return Pack(path)
    raise UserError(f"no folder {path} of adapters{_like(path)}")


def _like(path: pathlib.Path) -> str:
    """Asks whether another folder beside a path that is not there was meant."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return nearest(path.name, (one.name for one in beside if one.is_dir()))


class Folders(Places):
    """Adapters, or runs that wrote one, directly below a folder."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._changed = -1
        # Folders below, by name, and whether an adapter was seen in each.
        self._seen: dict[str, bool] = {}

    def names(self) -> Sequence[str]:
        changed = self._folder.stat().st_mtime_ns
        if self._changed != changed:
            with os.scandir(self._folder) as entries:
                names = sorted(one.name for one in entries if one.is_dir())
            # Hidden folders are adapters that are being written.
            self._seen = {name: False for name in names if not name.startswith(".")}
            self._changed = changed
        # A run's folder gets its adapter later, which does not change the folder above.
        seen = {name: seen or self._is_adapter(name) for name, seen in self._seen.items()}
        self._seen = seen
        return [name for name, is_adapter in seen.items() if is_adapter]

    def others(self) -> Sequence[str]:
        """Returns the sorted names of the folders that held no adapter when names were asked."""
        return [name for name, is_adapter in self._seen.items() if not is_adapter]

    def holds(self, name: str) -> bool:
        # ".." is above the folder.
        plain = pathlib.PurePath(name).name == name and not name.startswith(".")
        try:
            return plain and files.present_folder(self._folder / name).is_dir()
        except ValueError:  # A byte that no path has.
            return False

    def _is_adapter(self, name: str) -> bool:
        folder = files.present_folder(adapter_folder(str(self._folder / name)))
        # Either file: one without the other is a damaged adapter, which answers its own error.
        return (folder / RECORD).exists() or (folder / TENSORS).exists()

    def written(self, name: str) -> tuple[int, ...]:
        return _written(files.present_folder(adapter_folder(str(self._folder / name))) / RECORD)

    def load(self, name: str, **checks: Any) -> Adapter:
        try:
            return load_adapter(adapter_folder(str(self._folder / name)), **checks)
        except UserError as error:
            raise UserError(str(error).replace(f"{self._folder}/", "")) from error


class Pack(Places):
    """Adapters in one packed file; written anew, it is opened anew."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._open()

    def _open(self) -> None:
        stamp = _written(self._path)
        if stamp == self._stamp:
            return
        try:
            opened = safetensors.safe_open(self._path, "numpy")
            is_pack = (opened.metadata() or {}).get("format") == _FORMAT["format"]
        except Exception as error:  # Damaged headers raise several unrelated classes.
            raise UserError(f"{self._path}: no safetensors file; truncated or damaged") from error
        if not is_pack:
            raise UserError(f"{self._path}: no packed adapters; `adalink adapter pack` writes them")
        ends = f"/{RECORD}"
        names = sorted(one.removesuffix(ends) for one in opened.keys() if one.endswith(ends))
        self._file, self._names, self._stamp = opened, names, stamp
        self._set = frozenset(names)

    def names(self) -> Sequence[str]:
        with self._lock:
            self._open()
            return self._names

    def holds(self, name: str) -> bool:
        with self._lock:
            self._open()
            return name in self._set

    def written(self, name: str) -> tuple[int, ...]:
        with self._lock:
            self._open()
            return self._stamp

    def load(self, name: str, **checks: Any) -> Adapter:
        with self._lock:
            file = self._file

        def content(part: str) -> bytes:
            try:
                return file.get_tensor(f"{name}/{part}").tobytes()
            except Exception as error:  # As above.
                raise UserError(f"adapter '{name}': no {part} in the packed file") from error

        return adapter_of(content(RECORD), lambda: content(TENSORS), f"'{name}'", **checks)


def pack(folder: str, to: str) -> int:
    """Writes all adapters below a folder into one file, each as it is, after checking it.

    Args:
      folder: the folder of adapters, or of runs that wrote one.
      to: the file to write; it must not exist.

    Raises:
      UserError: the folder holds none, one of them is damaged, or the file exists.
    """
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new file")
    if not pathlib.Path(folder).is_dir():
        raise UserError(f"no folder {folder} of adapters{_like(pathlib.Path(folder))}")
    places = {}
    folders = Folders(pathlib.Path(folder))
    for name in folders.names():
        place = files.present_folder(adapter_folder(os.path.join(folder, name)))
        load_adapter(place)
        places |= {f"{name}/{part}": place / part for part in (RECORD, TENSORS)}
    if not places:
        raise UserError(f"{folder} holds no adapters")

    def read(name: str) -> np.ndarray:
        return np.fromfile(places[name], np.uint8)

    for name in folders.others():
        print(f"{name}: no adapter in this folder, so it is left out")
    shapes = {name: (place.stat().st_size,) for name, place in places.items()}
    with files.replaced_file(to) as file:
        write_tensors(pathlib.Path(file.name), shapes, read, _FORMAT, packed=shapes)
    print(f"{to}: {len(places) // 2:,} adapters, {os.path.getsize(to):,} bytes")
    return 0


def _written(path: pathlib.Path) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
