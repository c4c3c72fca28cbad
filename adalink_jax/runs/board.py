"""TensorBoard's event file of a run, written by the training thread itself.

The writers of other packages have a thread of their own. When a full disk ends that thread, the
next value waits for it for ever. Here an error is said once and ends the file, not the run.
"""

import contextlib
import logging
import os
import pathlib
import socket
import struct
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
        # Imported here because only a run needs it.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        protos: Any = event_pb2  # Its classes are made when it is imported.
        self._event, self._scalar = protos.Event, summary.scalar
        self._checksum = record_writer.masked_crc32c
        self._folder, self._file = folder, None
        try:
            folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
            self._file = open(folder / name, "xb", buffering=0)
        except OSError as error:
            self._end(error)
        start = protos.SessionLog(status=protos.SessionLog.START)
        self._write({"file_version": "brain.Event:2"}, {"step": first_step, "session_log": start})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values by name."""
        scalars = self._scalar
        self._write(*({"step": step, "summary": scalars(n, v)} for n, v in values.items()))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # Nothing is left to be written.
                self._file.close()
            self._file = None

    def _write(self, *events: Mapping[str, Any]) -> None:
        """Writes events as TFRecords: length, its checksum, content, its checksum."""
        if self._file is None:
            return
        records = bytearray()
        for event in events:
            content = self._event(wall_time=time.time(), **event).SerializeToString()
            length = struct.pack("<Q", len(content))
            for part in (length, content):
                records += part + struct.pack("<I", self._checksum(part))
        try:
            while records:  # What a full disk does not take is refused the next time.
                del records[: self._file.write(records)]
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        logger.warning(
            "%s cannot be written (%s): no more events for TensorBoard; metrics.jsonl has all",
            *(self._folder, error.strerror),
        )
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
