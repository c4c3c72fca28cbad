"""Locks: a file that says which process holds a folder.

Nothing else tells: `flock` does not reach across the hosts of every network file system. A killed
process needs no farewell, since a dead owner's lock is taken over.
"""

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adalink_jax.errors import UserError

# Seconds: between two signs of life of a lock's owner; and without one before other machines think
# it dead.
_BEAT, _SILENCE = 5.0, 60.0

# What a file system says that has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)

_KEY = 16  # Digits of the name of what guards the removal of a dead lock.

logger = logging.getLogger(__name__)


class InUse(UserError):
    """Another process holds a lock."""


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str) -> Iterator[Callable[[], None]]:
    """Holds a lock: no other process can hold it until the block ends.

    If the owner is on this machine, it holds the lock while it runs. If it is on another one, it
    shows a sign of life every few seconds, and is thought dead after a minute without one. No clock
    is read, so none can mislead. A child that the owner forks does not hold the lock.

    Args:
      path: the lock's file, in a folder that exists.
      what: what is held, for errors.

    Yields:
      A function that raises `UserError` if the lock was lost, for instance because this process
      stood still for so long that another thought it dead.

    Raises:
      InUse: another process holds the lock.
      OSError: the file cannot be written.
    """
    descriptor = _acquired(path, what)
    _remove_guards(path)
    owner, over = os.getpid(), threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, over), daemon=True)
    beating.start()

    def check() -> None:
        try:
            # Opened, because a network file system may remember who the path was a minute ago.
            with open(path, "rb") as file:
                if os.path.samestat(os.fstat(file.fileno()), os.fstat(descriptor)):
                    return
        except OSError:
            pass
        raise UserError(
            f"{what} is not held by this process any more: {path} was removed or taken over, so "
            "nothing more is written"
        )

    try:
        yield check
    finally:
        if os.getpid() == owner:
            over.set()
            beating.join()
            with contextlib.suppress(UserError, OSError):
                check()
                path.unlink()
        os.close(descriptor)


def _beat(descriptor: int, over: threading.Event) -> None:
    while not over.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _acquired(path: pathlib.Path, what: str) -> int:
    """Makes the lock's file, once nobody who lives has one there; returns its descriptor."""
    about = {
        "process": process(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": " ".join(sys.argv),
    }
    # Written under a name of its own, and then linked to the lock's: a lock that has no owner yet,
    # as of a process that was killed there, would be waited for.
    own = path.with_name(f"{path.name}.{about['process']}.{threading.get_ident()}")
    content = json.dumps(about, indent=1).encode()
    try:
        descriptor = _written(own, content)
        try:
            while True:
                try:
                    os.link(own, path)
                    return descriptor
                except FileExistsError:
                    _clear(path, what)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LINKS:
                raise
        except BaseException:
            os.close(descriptor)
            raise
    finally:
        with contextlib.suppress(OSError):
            own.unlink()
    while True:
        try:
            return _written(path, content)
        except FileExistsError:
            _clear(path, what)


def _written(path: pathlib.Path, content: bytes) -> int:
    """Writes a file that must not exist; returns its descriptor."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)  # Other hosts of a network file system would see no content.
    except OSError:
        path.unlink()
        os.close(descriptor)
        raise
    return descriptor


def _clear(path: pathlib.Path, what: str) -> None:
    """Removes a dead owner's lock.

    Raises:
      InUse: the owner lives.
    """
    found = _lock_at(path)
    if found is None:
        return
    owner = _owner(found[0])
    if _lives(owner, path, found):
        who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
        since = f" since {owner.get('since')}" if owner else ""
        raise InUse(f"{what} is in use by {who}{since}; wait for it or end it ({path})")
    # Two may find the same lock dead. Only one of them at a time may remove it, and only this one:
    # the other would remove the first one's new lock.
    key = hashlib.sha256(b"%d %b" % (found[1], found[0])).hexdigest()[:_KEY]
    with locked(path.with_name(f"{path.name}.{key}"), what):
        if _lock_at(path) == found:
            path.unlink()


def _remove_guards(path: pathlib.Path) -> None:
    """Removes what is left by a process that was killed while it removed or made a lock.

    Only the holder of the lock may: nobody removes that lock, so nobody needs a guard.
    """
    guard = re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]{{{_KEY}}})+")
    made = re.compile(rf"{re.escape(path.name)}(?:\.[0-9a-f]{{{_KEY}}})*\.(\w+-\d+-\d+)\.\d+")
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            left = path.with_name(name)
            if guard.fullmatch(name):
                maker = str(_owner(left.read_bytes()).get("process"))
            elif named := made.fullmatch(name):
                maker = named[1]
            else:
                continue
            if runs(maker) is False:
                left.unlink()


def _owner(content: bytes) -> dict[str, Any]:
    """Returns what a lock says about its owner; nothing if it was not written to its end."""
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return {}


def _lock_at(path: pathlib.Path) -> tuple[bytes, int] | None:
    """Returns a lock's content and the time of its owner's last sign of life; None without one."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _lives(owner: Mapping[str, Any], path: pathlib.Path, found: tuple[bytes, int]) -> bool:
    """Returns whether a lock's owner runs here, or shows a sign of life from elsewhere."""
    known = runs(str(owner.get("process")))
    if known is not None:
        return known
    logger.warning(
        "%s is a lock of process %s on %s: waiting up to %d s for a sign of its life",
        *(path, owner.get("pid", "?"), owner.get("host", "?"), _SILENCE),
    )
    until = time.monotonic() + _SILENCE
    while time.monotonic() < until:
        time.sleep(min(1.0, _SILENCE / 10))
        if (now := _lock_at(path)) != found:
            return now is not None and now[0] == found[0]
    return False


def process() -> str:
    """Returns a name of this process that no other has, on any machine, before or after."""
    return f"{_machine() or 'elsewhere'}-{os.getpid()}-{_started(os.getpid()) or 0}"


def runs(name: str) -> bool | None:
    """Returns whether the process of this name (`process`) runs; None if that is not known here."""
    machine, _, numbers = name.partition("-")
    pid, _, started = numbers.partition("-")
    if machine != _machine() or not (pid.isdecimal() and started.isdecimal()):
        return None
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # Another user's, whose start may be hidden.
        return None
    except (ProcessLookupError, OverflowError):
        return False
    return _started(int(pid)) == int(started)


def _machine() -> str | None:
    """Returns a hash of what process numbers depend on: host, boot and container; None unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Not Linux.
        return None
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """Returns when a process started, in ticks since the boot; None if it has ended."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *rest = stat.rpartition(b")")[2].split()  # The name before may hold anything.
    return None if state in (b"Z", b"X") else int(rest[18])
