"""The user's SentencePiece vocabulary, opened on first use."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import sentencepiece
import seqio
import tensorflow as tf
from google.protobuf import message
from sentencepiece import sentencepiece_model_pb2

from tasks.errors import DataError

logger = logging.getLogger(__name__)

VARIABLE = "VOCABULARY"
_ModelProto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]: made at run time
EXTRA_IDS = 100  # T5's sentinels <extra_id_0> … <extra_id_99>, at the end in reverse order


@dataclasses.dataclass(frozen=True)
class _Model:
    tokenizer: sentencepiece.SentencePieceProcessor
    serialized: bytes
    content: bytes
    identity: str


_lock = threading.Lock()


# A run uses one vocabulary; some more are cached for processes that compare runs.
@functools.lru_cache(maxsize=4)
def _load(path: str, where: str, stamp: tuple[int, int], extra_ids: int) -> _Model:
    """Reads a model file; `stamp` (size, time) gives a replaced file a new cache entry."""
    del stamp
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
    except tf.errors.OpError as error:
        raise DataError(f"{where}: cannot be read ({type(error).__name__})") from error
    try:
        proto = _ModelProto.FromString(content)
        for i in reversed(range(extra_ids)):
            proto.pieces.add(
                piece=f"▁<extra_id_{i}>",
                score=0.0,
                type=_ModelProto.SentencePiece.USER_DEFINED,
            )
        serialized = proto.SerializeToString()
        tokenizer = sentencepiece.SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(serialized)
    except (message.DecodeError, RuntimeError, ValueError) as error:
        raise DataError(f"{where}: not a SentencePiece model") from error
    if tokenizer.pad_id() != 0 or tokenizer.eos_id() < 1 or tokenizer.unk_id() < 1:
        raise DataError(
            f"{where}: has pad {tokenizer.pad_id()}, eos {tokenizer.eos_id()}, unk "
            f"{tokenizer.unk_id()}; a T5 vocabulary has pad 0 and both others"
        )
    say_added_tokens(path, tokenizer)
    return _Model(tokenizer, serialized, content, hashlib.sha256(content).hexdigest())


def say_added_tokens(path: str, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """Warns of tokens that a tokenizer beside a model has, and that the model does not know.

    transformers keeps in other files what was added to a vocabulary. How it splits a text around
    such a token depends on the token's settings there, which nothing here follows.

    Args:
      path: the SentencePiece model's path.
      tokenizer: the model, with its sentinels.
    """
    added: dict[int, str] = {}
    for name, tokens_of in _ADDED.items():
        file = os.path.join(os.path.dirname(path), name)
        try:
            with tf.io.gfile.GFile(file, "rb") as opened:
                content = json.loads(opened.read())
            added |= {int(number): str(text) for number, text in tokens_of(content)}
        except tf.errors.OpError:  # There is no such file.
            continue
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            logger.warning("%s cannot be read: the tokens that it adds are not known", file)
    pieces = {number: tokenizer.IdToPiece(number) for number in range(tokenizer.GetPieceSize())}
    unknown = sorted(n for n in added if pieces.get(n, "").removeprefix("▁") != added[n])
    if unknown:
        logger.warning(
            "%s: the tokenizer beside it has %d added tokens that are not known here, such as %r "
            "(id %d): a text with one becomes other ids than in transformers",
            *(path, len(unknown), added[unknown[0]], unknown[0]),
        )


# File of a tokenizer → (id, text) of each token that was added to its vocabulary.
_ADDED: dict[str, Callable[[Any], list[tuple[Any, Any]]]] = {
    "tokenizer.json": lambda file: [(t["id"], t["content"]) for t in file["added_tokens"]],
    "added_tokens.json": lambda file: [(number, text) for text, number in file.items()],
    "tokenizer_config.json": lambda file: [
        (number, t["content"]) for number, t in file.get("added_tokens_decoder", {}).items()
    ],
}


class UserVocabulary(seqio.SentencePieceVocabulary):
    """The SentencePiece model at the path in the environment variable VOCABULARY.

    The variable is read at every use, never at import, so one process can change it between runs.
    Loaded models are cached by path, size and modification time. Two instances are equal if they
    have the same number of sentinels, because they always refer to the same file. Instances are
    pickled and copied without the model.

    Args:
      extra_ids: number of sentinels added after the model's own pieces (T5: 100, which turns its
        32,000 pieces into a vocabulary of 32,100).

    Raises:
      DataError: at first use, if the variable is not set, or is not the path of a readable
        SentencePiece model with T5's special ids.
    """

    def __init__(self, extra_ids: int = EXTRA_IDS):
        super().__init__(sentencepiece_model_file="", extra_ids=extra_ids)

    def _open(self) -> _Model:
        shown = self.sentencepiece_model_file
        if not shown:
            raise DataError(
                f"no vocabulary: set {VARIABLE} to T5's SentencePiece file "
                f"(an environment variable, or --gin.{VARIABLE}='…/spiece.model'); "
                "docs/howto/files.md says where to get it"
            )
        path = os.path.abspath(os.path.expanduser(shown)) if "://" not in shown else shown
        try:
            stat = tf.io.gfile.stat(path)
        except tf.errors.OpError as error:
            raise DataError(f"{self._where}: no such file") from error
        if stat.is_directory:
            raise DataError(f"{self._where}: a folder; expected a SentencePiece model file")
        with _lock:  # loading a SentencePiece model is not thread-safe
            return _load(path, self._where, (stat.length, stat.mtime_nsec), self.extra_ids)

    def load_model(self) -> None:
        """Opens the file now, so that errors appear outside of traced functions."""
        self._open()

    @property
    def sentencepiece_model_file(self) -> str:
        """The path as the user wrote it; empty if VOCABULARY is not set."""
        return os.environ.get(VARIABLE, "")

    @property
    def _where(self) -> str:
        """How an error names the file."""
        return f"{VARIABLE}={self.sentencepiece_model_file}"

    @property
    def tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        """The Python tokenizer."""
        return self._open().tokenizer

    @property
    def sp_model(self) -> bytes:
        """The serialized model with its sentinels."""
        return self._open().serialized

    @property
    def content(self) -> bytes:
        """The model file as it lies on disk."""
        return self._open().content

    @property
    def identity(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return self._open().identity

    def __str__(self) -> str:
        return f"UserVocabulary({VARIABLE}={self.sentencepiece_model_file})"


class FileVocabulary(UserVocabulary):
    """A SentencePiece model at a path of its own; no environment variable changes it.

    Args:
      path: its file.
      extra_ids: as in `UserVocabulary`.

    Raises:
      DataError: at first use, as in `UserVocabulary`.
    """

    def __init__(self, path: str, extra_ids: int = EXTRA_IDS):
        super().__init__(extra_ids)
        self._path = path

    @property
    def sentencepiece_model_file(self) -> str:
        """The path."""
        return self._path

    @property
    def _where(self) -> str:
        return f"vocabulary {self._path}"

    def __str__(self) -> str:
        return f"FileVocabulary({self._path})"
