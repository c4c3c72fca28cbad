"""Memory in pages of 2 MiB, with which a training step on a CPU takes a fifth to a third less time.

Each step asks the system for fresh memory: a hundred thousand pages of 4 KiB, or a few hundred of
2 MiB. glibc reads what to ask for when a process starts; other systems ignore it. Results are the
same bytes (docs/results/speed.md).
"""

import contextlib
import os
import pathlib
import sys

HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_OFFERED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge() -> None:
    """Starts this process anew with huge pages, as the same process, before it has done anything.

    Does nothing where they are set or refused (``GLIBC_TUNABLES``), and where there are none.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    with contextlib.suppress(OSError):  # Then it goes on as it is.
        if "[never]" not in _OFFERED.read_text(encoding="ascii"):
            os.execve(sys.executable, sys.orig_argv, {**os.environ, **HUGE})
