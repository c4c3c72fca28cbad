"""The features of pictures: what a frozen encoder makes of them, before training and only once."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from adalink_jax import progress
from adalink_jax.data import cache
from adalink_jax.data.images import reading
from adalink_jax.data.images.store import Store
from adalink_jax.errors import UserError

_T = TypeVar("_T")
_R = TypeVar("_R")

# The digest of an example that has no picture.
_NONE = bytes(32)
# Threads that read and prepare pictures; Pillow decodes without Python's lock.
_THREADS = min(8, os.cpu_count() or 1)


@runtime_checkable
class Encoder(Protocol):
    """A frozen encoder of images.

    Attributes:
      width: Dv, the width of its tokens.
      tokens: M, their number.
      preprocessing: how it wants its pictures.
      fingerprint: the SHA-256 of its architecture and arrays, hexadecimal.
    """

    @property
    def width(self) -> int:
        """Dv."""
        ...

    @property
    def tokens(self) -> int:
        """M."""
        ...

    @property
    def preprocessing(self) -> Any:
        """A frozen dataclass that JSON can hold, with ``prepare``: uint8 [H, W, 3] to [S, S, 3]."""
        ...

    @property
    def fingerprint(self) -> str:
        """64 digits."""
        ...

    def __call__(self, pixels: Any) -> Any:
        """Returns float32 [B, M, Dv] of float32 [B, S, S, 3]."""
        ...


def identity_of(encoder: Encoder, dtype: str) -> dict[str, Any]:
    """Returns a JSON-able record of everything but the pictures that determines their features.

    Args:
      encoder: the frozen encoder.
      dtype: what features are rounded to.
    """
    return {
        "fingerprint": encoder.fingerprint,
        "preprocessing": _plain(encoder.preprocessing),
        "tokens": encoder.tokens,
        "width": encoder.width,
        "dtype": dtype,
    }


def check_trained_with(
    identity: Mapping[str, Any], recorded: Any, who: str = "the adapter"
) -> None:
    """Raises `UserError` if an adapter was trained with another encoder.

    Args:
      identity: the encoder's `identity_of`.
      recorded: what the adapter's record says of the encoder; anything else than a mapping says
        nothing.
      who: the adapter, for the message.
    """
    if not isinstance(recorded, Mapping):
        return
    for name in ("fingerprint", "preprocessing"):
        if recorded.get(name) != identity[name]:
            raise UserError(
                f"{who} was trained with another image encoder: its {name} was "
                f"{recorded.get(name)!r:.200} and is {identity[name]!r:.200}"
            )


def check_width(encoder: Encoder, width: int | None, setting: str) -> None:
    """Raises `UserError` if a base does not take what an encoder gives.

    Args:
      encoder: the frozen encoder.
      width: the base's `image_width`.
      setting: what set the encoder, for the message.
    """
    if width is None:
        raise UserError(
            f"{setting} is set, but the base reads text alone: it has no projection of images "
            "(image_width)"
        )
    if width != encoder.width:
        raise UserError(
            f"the image encoder's tokens have {encoder.width} numbers, but the base takes "
            f"{width} (image_width); give the encoder that it was trained with"
        )


class Features:
    """The features of the pictures of examples, by the examples' numbers.

    Attributes:
      shape: (M, Dv), the number and width of a picture's tokens.
    """

    def __init__(
        self,
        digests: np.ndarray,
        take: Callable[[Sequence[bytes]], np.ndarray],
        shape: tuple[int, int],
    ):
        """Makes them of the examples' digests [N, 32], and of what gives the features of some."""
        self.shape = shape
        self._digests, self._take = digests, take

    def shown(self, examples: np.ndarray) -> int:
        """Returns how many of these examples have a picture."""
        return int(np.count_nonzero(self._digests[examples].any(axis=1)))

    def batch(self, examples: np.ndarray, rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
        """Returns the part of a batch that holds images.

        Args:
          examples: int64 [n], numbers of examples.
          rows: int64 [n], the row of each.
          count: B, the number of rows.

        Returns:
          encoder_images, float32 [B, M, Dv], and encoder_image_mask, int32 [B, M]: 1 where there is
          an image. A row without a picture, or without an example, holds 0 in both.
        """
        images = np.zeros((count, *self.shape), np.float32)
        mask = np.zeros((count, self.shape[0]), np.int32)
        digests = [self._digests[example].tobytes() for example in examples]
        # Several captions or questions of a batch may have one picture.
        distinct = [one for one in dict.fromkeys(digests) if one != _NONE]
        if distinct:
            found = dict(zip(distinct, self._take(distinct), strict=True))
            for row, one in zip(rows, digests, strict=True):
                if one != _NONE:
                    images[row], mask[row] = found[one], 1
        return {"encoder_images": images, "encoder_image_mask": mask}


class Pictures:
    """The pictures of a run, and the frozen encoder that sees them.

    Features are computed before training and stored (`store.Store`), so that all runs share them;
    or, on request, computed whenever a batch needs them. Both give the same values: the encoder
    always gets batches of one size, and its outputs are rounded to the same dtype.

    Attributes:
      shape: (M, Dv), the number and width of a picture's tokens.
      identity: JSON-able record of everything but the pictures that determines the features.
    """

    def __init__(
        self,
        encoder: Encoder,
        folder: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "float32",
        stored: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        say: Callable[[str], None] = lambda line: None,
    ):
        """Takes an encoder; reads nothing yet.

        Args:
          encoder: the frozen encoder.
          folder: the folder of pictures in files; None where all are drawn (`tasks.PICTURES`).
          dtype: what features are rounded to, "float32" (exact) or "float16" (half the space).
          stored: whether features are stored, or computed for each batch.
          cache_dir: where they are stored, in its folder ``images``; as for `corpus.tokens`.
          batch_size: number of pictures that the encoder gets at a time.
          say: prints a line of progress.
        """
        self.shape = (encoder.tokens, encoder.width)
        self.identity = identity_of(encoder, dtype)
        self._encoder: Encoder | None = encoder
        self._folder, self._dtype, self._batch_size = folder, np.dtype(dtype), batch_size
        self._say = say
        self._digests: dict[str, bytes] = {"": _NONE}
        self._keys: dict[bytes, str] = {}
        # In a thread of its own, the encoder runs on one device of this host, whatever mesh the
        # caller is on.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._store = None
        if stored:
            known = json.dumps({**self.identity, "reading": reading.FORMAT}, sort_keys=True)
            name = hashlib.sha256(known.encode()).hexdigest()[:32]
            self._store = Store(cache.folder(cache_dir) / "images" / name, self.shape, dtype)

    def digests(self, keys: Sequence[str]) -> np.ndarray:
        """Reads pictures, and returns the SHA-256 of each one's content.

        Args:
          keys: the picture of each example (`reading.read`); "" for none.

        Returns:
          uint8 [N, 32]; zeros where there is no picture.

        Raises:
          UserError: there is no such picture.
        """
        new = [key for key in dict.fromkeys(keys) if key not in self._digests]
        reads = progress.bar("reading", len(new), "pictures")
        with contextlib.closing(_ahead(self._digest, new)) as found, reads as bar:
            for key, digest in zip(new, found, strict=True):
                self._digests[key] = digest
                self._keys.setdefault(digest, key)
                bar.advance()
        content = b"".join(self._digests[key] for key in keys)
        return np.frombuffer(content, np.uint8).reshape(-1, 32)

    def features(self, digests: np.ndarray) -> Features:
        """Returns the features of examples, after computing those that are not stored yet.

        Args:
          digests: uint8 [N, 32], results of `digests`.

        Raises:
          UserError: a picture is damaged, or has changed meanwhile; a feature is not finite; the
            cache folder cannot be written.
        """
        if self._store is None:
            return Features(digests, self._encoded, self.shape)
        wanted = [one for one in dict.fromkeys(row.tobytes() for row in digests) if one != _NONE]
        if left := self._store.missing(wanted):
            if self._encoder is None:
                raise UserError("there are pictures whose features were not computed before")
            self._say(f"images: {len(left):,} of {len(wanted):,} pictures to encode")
            with progress.bar("encoding", len(left), "pictures") as bar:
                self._store.fill(left, lambda some: self._encoded(some, bar))
        return Features(digests, self._store.take, self.shape)

    def let_go(self) -> None:
        """Lets go of the encoder, and of its memory, where features are stored."""
        if self._store is not None:
            self._encoder = None

    def _digest(self, key: str) -> bytes:
        content, _ = reading.fetched(key, self._folder)
        return reading.digest(content)

    def _prepared(self, digest: bytes) -> np.ndarray:
        content, name = reading.fetched(self._keys[digest], self._folder)
        if reading.digest(content) != digest:
            raise UserError(f"picture {name} has changed since the run began to read it")
        assert self._encoder is not None  # Since `features`.
        return self._encoder.preprocessing.prepare(reading.decoded(content, name))

    def _encoded(self, digests: Sequence[bytes], bar: progress.Bar | None = None) -> np.ndarray:
        """Returns the features [n, M, Dv] of pictures."""
        out = np.empty((len(digests), *self.shape), self._dtype)
        encoder = self._encoder
        assert encoder is not None  # As it was not let go.
        with contextlib.closing(_ahead(self._prepared, digests)) as prepared:
            for start in range(0, len(digests), self._batch_size):
                some = list(itertools.islice(prepared, self._batch_size))
                # Always of one size: another one may be another program, with other last bits.
                pixels = np.zeros((self._batch_size, *some[0].shape), np.float32)
                pixels[: len(some)] = some
                found = np.asarray(self._thread.submit(encoder, pixels).result())
                if found.shape != (self._batch_size, *self.shape):
                    shape, said = list(found.shape[1:]), list(self.shape)
                    raise UserError(f"the image encoder gives {shape} a picture; it says {said}")
                with np.errstate(over="ignore"):
                    out[start : start + len(some)] = found[: len(some)]
                self._check_finite(out[start : start + len(some)], digests[start:])
                if bar is not None:
                    bar.advance(len(some))
        return out

    def _check_finite(self, features: np.ndarray, digests: Sequence[bytes]) -> None:
        finite = np.isfinite(features).all(axis=(1, 2))
        if not finite.all():
            key = self._keys[digests[int(np.argmin(finite))]]
            raise UserError(
                f"the features of picture '{key}' are not finite in {self._dtype}: the encoder is "
                "damaged, or they need Images.dtype = 'float32'"
            )


def _ahead(make: Callable[[_T], _R], items: Iterable[_T]) -> Generator[_R]:
    """Yields ``make(item)`` in order, made in advance by threads."""
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")
    pending: collections.deque[concurrent.futures.Future[_R]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > 8 * _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _plain(preprocessing: Any) -> Mapping[str, Any]:
    """Returns a frozen dataclass as JSON holds it, with the name of its class."""
    fields = json.loads(json.dumps(dataclasses.asdict(preprocessing)))
    return {"kind": type(preprocessing).__name__, **fields}
