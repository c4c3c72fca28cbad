"""TensorBoard's event file of a run, written by the training thread itself.

The writers of other packages have a thread of their own. When a full disk ends that thread, the
next value waits for it for ever. Here an error is said once and ends the file, not the run.
"""

import contextlib
import logging
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


class Board:
    """An event file with scalars.

    Args:
      folder: the folder of event files; created if needed.
      first_step: values of this and later steps in earlier files are hidden from now on.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        # Imported here because only a run needs it. A run has it in any case, for its data.
        import tensorflow as tf

        self._tf, self._folder, self._writer = tf, folder, None
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(exist_ok=True)
            self._writer = tf.io.TFRecordWriter(os.fspath(folder / name))
        except OSError as error:
            self._end(str(error.strerror))
        except tf.errors.OpError as error:
            self._end(error.message)
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._write({"file_version": "brain.Event:2"}, {"step": first_step, "session_log": start})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values by name."""
        summary = self._tf.compat.v1.Summary
        scalars = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write({"step": step, "summary": summary(value=scalars)})

    def add_summary(self, step: int, summary: bytes) -> None:
        """Adds a summary of another kind, as a serialized message of TensorBoard."""
        self._write({"step": step, "summary": self._tf.compat.v1.Summary.FromString(summary)})

    def close(self) -> None:
        """Closes the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(self._tf.errors.OpError):  # Nothing is left to be written.
                writer.close()

    def _write(self, *events: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        try:
            for event in events:
                content = self._tf.compat.v1.Event(wall_time=time.time(), **event)
                self._writer.write(content.SerializeToString())
            self._writer.flush()
        except self._tf.errors.OpError as error:
            self._end(error.message)

    def _end(self, reason: str) -> None:
        logger.warning(
            "%s cannot be written (%s): no more events for TensorBoard; metrics.jsonl has all",
            *(self._folder, reason.split("; ")[-1]),  # TensorFlow's begins with the file.
        )
        self.close()
