"""Imports `tasks`, and with it TensorFlow, without TensorFlow's notices."""

import contextlib
import os
import pathlib
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

import adalink_jax
from adalink_jax.errors import UserError

# The lines that TensorFlow prints on machines without CUDA, and on those with newer CPUs.
_NOTICE = re.compile(
    rb"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR$"
    rb"|^E.*\] failed call to cuInit: "
    rb"|^I.*\] Could not find cuda drivers on your machine, GPU will not be used\.$"
    rb"|^I.*\] oneDNN custom operations are on\. You may see slightly different numerical results"
)

_capture = threading.RLock()  # Of the thread that captures the standard error.


def load_tasks() -> None:
    """Imports `tasks`, which registers the tasks of this project with SeqIO, without notices.

    Raises:
      UserError: another module named ``tasks`` was imported before this package was.
    """
    with contextlib.nullcontext() if "tasks" in sys.modules else without_notices():
        import tasks
    expected = pathlib.Path(adalink_jax.__file__).parent.parent / "tasks"
    actual = pathlib.Path(getattr(tasks, "__path__", [tasks.__file__])[0])
    if actual.resolve() != expected.resolve():
        raise UserError(
            f"Python imports {actual} as 'tasks', which hides the tasks of adalink_jax in "
            f"{expected}; give it another name"
        )


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Removes TensorFlow's notices that there is no CUDA from the standard error.

    A library writes them, not through Python, and some before TensorFlow reads its log level. So
    the standard error is captured meanwhile, and everything else is printed afterwards.
    """
    with _capture, tempfile.TemporaryFile() as captured:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            captured.seek(0)
            others = b"".join(line for line in captured if not _NOTICE.search(line))
            sys.stderr.write(others.decode(errors="replace"))
