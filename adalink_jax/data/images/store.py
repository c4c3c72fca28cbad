"""Features of pictures on disk: computed once for an encoder, for all tasks and runs.

A folder holds files of many rows. A file has the digests of its pictures and their features, is
written atomically, never changed, and checked byte by byte before its rows are used. So a run that
is killed keeps all files that it has written, and a damaged file is made anew.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from adalink_jax import files, locks
from adalink_jax.data import cache
from adalink_jax.errors import UserError

# Pictures of a file, which a kill can lose. More where there are many, as an open file is one of
# the thousand that a process may have; fewer where they are large, as a file is in memory at once.
_PICTURES, _FILES, _BYTES = 256, 400, 2**30
# Seconds between two looks at a folder in which another process computes.
_LOOK = 1.0

logger = logging.getLogger(__name__)


class Store:
    """The features of one encoder, by the digest of each picture.

    Attributes:
      folder: the folder of the files.
    """

    def __init__(self, folder: pathlib.Path, shape: tuple[int, int], dtype: str):
        """Opens a folder, which need not exist.

        Args:
          folder: the folder, for this encoder alone.
          shape: (M, Dv), the shape of a picture's features.
          dtype: their dtype, "float16" or "float32".
        """
        self.folder = folder
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._read: dict[pathlib.Path, tuple[np.ndarray, np.ndarray]] = {}
        self._rows: dict[bytes, tuple[np.ndarray, int]] = {}

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Returns the digests that have no features here, each once, in their order.

        Files with features of these digests are opened and checked; a damaged one is removed.
        """
        wanted = [one for one in dict.fromkeys(digests) if one not in self._rows]
        if wanted:
            self._look(set(wanted))
        return [one for one in wanted if one not in self._rows]

    def take(self, digests: Sequence[bytes]) -> np.ndarray:
        """Returns the features [n, M, Dv] of pictures that are not `missing`."""
        found = [self._rows[one] for one in digests]
        return np.stack([features[row] for features, row in found])

    def fill(
        self, digests: Sequence[bytes], compute: Callable[[Sequence[bytes]], np.ndarray]
    ) -> None:
        """Adds what is missing, in files of many rows. Meanwhile other processes wait.

        Args:
          digests: the pictures.
          compute: gives the features [n, M, Dv] of n of them.

        Raises:
          UserError: the folder cannot be written; or an error of `compute`.
        """
        if not self.missing(digests):
            return
        with self._held() as check:
            left = self.missing(digests)  # Another process may have been here.
            most = _BYTES // (int(np.prod(self._shape)) * self._dtype.itemsize)
            count = max(1, min(most, max(_PICTURES, -(-len(left) // _FILES))))
            for start in range(0, len(left), count):
                part = left[start : start + count]
                features = compute(part)
                check()
                self._write(part, features)
        if self.missing(digests):
            raise UserError(f"image features in {self.folder} cannot be read back: its disk fails")

    def _write(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:32]
        keys = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        path = self.folder / f"{name}.safetensors"
        try:
            cache.write(path, {"digests": keys, "features": features}, {})
        except UserError as error:
            raise UserError(
                f"image features: {error}; set ADALINK_CACHE_DIR to a folder that can be written"
            ) from error

    def _look(self, wanted: set[bytes]) -> None:
        """Opens the files that hold some of these digests."""
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        for path in (self.folder / name for name in names if name.endswith(".safetensors")):
            if path in self._read or path.name.startswith("."):
                continue
            try:
                if wanted.isdisjoint(_keys(cache.glance(path, "digests"))):
                    continue
                arrays, _ = cache.read(path)
                digests, features = arrays["digests"], arrays["features"]
                expected = (len(digests), *self._shape)
                if features.shape != expected or features.dtype != self._dtype:
                    raise cache.Damaged("its features have another shape")
            except (cache.Damaged, KeyError) as error:
                logger.warning("image features %s are damaged (%s): made anew", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            self._read[path] = digests, features
            self._rows |= {key: (features, row) for row, key in enumerate(_keys(digests))}

    @contextlib.contextmanager
    def _held(self) -> Iterator[Callable[[], None]]:
        """Holds the folder, once no other process does."""
        with contextlib.ExitStack() as open_:
            said = False
            while True:
                try:
                    check = open_.enter_context(files.held(self.folder, "image features"))
                    break
                except locks.InUse as error:
                    if not said:
                        logger.warning("waiting: %s", error)
                    said = True
                    time.sleep(_LOOK)  # Another process, maybe on another host: no event comes.
            yield check


def _keys(digests: np.ndarray) -> list[bytes]:
    """Returns the rows of uint8 [n, 32] as bytes."""
    content = digests.tobytes()
    return [content[i : i + 32] for i in range(0, len(content), 32)]
