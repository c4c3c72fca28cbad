"""The hosts of a run: they find each other, compare their settings, and end together.

A host is a process of the run. Each host starts a second process,
`adalink_jax.distributed.watcher`, which notices when another host is missing, fails or dies.
"""

import atexit
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

import adalink_jax
from adalink_jax import signals
from adalink_jax.distributed import watcher
from adalink_jax.errors import UserError

# Seconds a host waits for the others before the run begins. Scheduling them may take minutes.
_WAIT = "ADALINK_HOSTS_WAIT_SECONDS"
_DEFAULT_WAIT = 300.0
# Seconds, a day: the longest such wait, and how long JAX's own signs of life may stay away. JAX
# would abort a host that waits for one that is stopped; the watchers know which of the two it is.
_LONGEST = 24 * 3600
# Variables that set a host's place among the others.
_PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# JAX's other clusters with one process per host: SLURM, and TPU pods with and without GKE.
_CLUSTERS = ("slurm", "gcetpu", "gketpu")

_joined: "_Hosts | None" = None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Makes this process one host of a run inside the block, if the environment has several.

    JAX_COORDINATOR_ADDRESS (of host 0, with a free port), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    describe the hosts; the command lines have T5X's flags for them. SLURM jobs with several tasks
    and TPU pods are detected as JAX detects them. The block must begin before the first use of a
    device. All hosts leave it together. If a host raises, is killed, is stopped or sends no sign of
    life, all others print a line that names it and end within a minute, without an exception; in
    about five minutes if it stands still at a point (`reached`) that another has left behind, or
    waits all the time for a disk.

    ADALINK_HOSTS_TOKEN is a secret that the hosts share. Host 0 refuses a process without it. If
    no token is set, any process that reaches host 0's port before the last host can take its place.

    Raises:
      UserError: the environment is invalid; or a host is missing after ADALINK_HOSTS_WAIT_SECONDS
        (default 300).
    """
    global _joined
    place = _place() if _joined is None else None
    if place is None:
        yield
        return
    _joined = hosts = _Hosts(*place)
    try:
        hosts.begin()
        yield
        hosts.finish()
    except signals.Stopped:  # All hosts have agreed on it.
        hosts.finish()
        raise
    except BaseException as error:
        hosts.fail(error)
        raise
    finally:
        _joined = None


def gather(value: Any) -> list[Any]:
    """Returns the JSON-able values of all hosts, in the hosts' order. All hosts must call it."""
    return [value] if _joined is None else _joined.gather(value)


def reached(point: str) -> None:
    """Says that the run has come to a point of its work, such as "step 12".

    All hosts must come to the same points. A host that comes to no new one and uses no CPU time
    holds the others up; `joined` says what follows.
    """
    if _joined is not None:
        _joined.reached(point)


def agree(**parts: Mapping[str, Any]) -> None:
    """Checks that nested records are equal on all hosts. All hosts must call it.

    Args:
      parts: JSON-able records, each under the name of what it describes.

    Raises:
      UserError: a record differs; the message names the record, the hosts and the values.
    """
    if _joined is None:
        return
    everyone = [json.loads(json.dumps(theirs)) for theirs in gather(parts)]
    for part in parts:
        records = [_flat(theirs[part]) for theirs in everyone]
        texts = [json.dumps(record, sort_keys=True) for record in records]
        common = texts.index(collections.Counter(texts).most_common(1)[0][0])
        odd = next((i for i, text in enumerate(texts) if text != texts[common]), None)
        if odd is not None:
            ours, theirs = records[common], records[odd]
            names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"hosts must do the same, but host {_joined.label(odd)} has another {part} than "
                f"host {_joined.label(common)}: {names[0]} is {theirs.get(names[0])!r:.80} there "
                f"and {ours.get(names[0])!r:.80} here{more}"
            )


def code_digest() -> str:
    """Returns the SHA-256 of this package's source files, to compare the code of hosts."""
    root, digest = pathlib.Path(adalink_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def _flat(record: Any, names: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        return {".".join(names): record}
    return {k: v for name, value in record.items() for k, v in _flat(value, (*names, name)).items()}


def _place() -> tuple[str, int, int] | None:
    """Returns host 0's address, the number of hosts and this one's index; None for one host."""
    env = os.environ
    if not env.keys().isdisjoint(_PLACE):
        if missing := [name for name in _PLACE if name not in env]:
            raise UserError(
                f"a host of several needs {', '.join(_PLACE)} (as flags: "
                f"--coordinator_address, --process_count, --process_index); {missing[0]} is not set"
            )
        address, count, index = (env[name] for name in _PLACE)
        if not all(text.isdecimal() and len(text) < 10 for text in (count, index)):
            raise UserError(
                f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {index!r}; both must be whole "
                "numbers"
            )
        count, index = int(count), int(index)
        port = address.rpartition(":")[2]
        if not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 1 << 16):
            raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be like node-0:8476")
        if not 0 <= index < count:
            raise UserError(
                f"JAX_PROCESS_ID is {index}; with JAX_NUM_PROCESSES={count} it must be from 0 to "
                f"{count - 1}"
            )
    else:
        # JAX has no public function that detects a cluster without joining it.
        from jax._src import clusters

        known = (c for c in clusters.ClusterEnv._cluster_types if c.name in _CLUSTERS)
        cluster = next((c for c in known if c.is_env_present()), None)
        if cluster is None or (count := cluster.get_process_count()) == 1:
            return None
        address = cluster.get_coordinator_address(round(_wait()), env.get("JAX_COORDINATOR_PORT"))
        index = cluster.get_process_id()
    return (address, count, index) if count > 1 else None


def _wait() -> float:
    value = os.environ.get(_WAIT, _DEFAULT_WAIT)
    with contextlib.suppress(ValueError):
        if 0 <= float(value) <= _LONGEST:
            return float(value)
    raise UserError(f"{_WAIT} is {value!r}; it must be a number of seconds, at most {_LONGEST:,}")


class _Hosts:
    """The connection to all hosts of a run, through this host's watcher process."""

    def __init__(self, address: str, count: int, index: int):
        token = os.environ.get(watcher.TOKEN, "")
        self._settings = {"address": address, "count": count, "index": index}
        self._settings |= {"wait": _wait(), "token": token}
        self._names: list[str] = []
        self._replies: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._begun = self._over = self._failed = False

    def label(self, index: int) -> str:
        """Returns a host's name in errors."""
        return f"{index} ({self._names[index]})"

    def begin(self) -> None:
        """Waits for all hosts, then starts JAX on them."""
        # In its own session, so that a signal to the run does not stop the watcher: it must still
        # tell the other hosts that this one ended.
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", watcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._say(**self._settings, name=socket.gethostname(), pid=os.getpid())
        threading.Thread(target=self._listen, name="hosts", daemon=True).start()
        here = self._replies.get()
        if "here" not in here:
            raise UserError(here["end"])
        self._begun = True
        self._names = here["here"]["names"]
        if not jax.distributed.is_initialized():
            host, port = self._settings["address"].rpartition(":")[0], here["here"]["port"]
            interface = here["here"]["interface"]
            interface = f"[{interface}]" if ":" in interface else interface
            handler = signal.getsignal(signal.SIGTERM)
            jax.distributed.initialize(
                f"{host}:{port}",
                self._settings["count"],
                self._settings["index"],
                coordinator_bind_address=f"{interface}:{port}" if interface else None,
                heartbeat_timeout_seconds=_LONGEST,
            )
            # JAX catches SIGTERM without ending the process. Then only SIGKILL would end a host.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)

    def reached(self, point: str) -> None:
        """Tells the watcher."""
        self._say(reached=point)

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all hosts."""
        self._say(reached="a comparison of the hosts")
        self._say(gather=value)
        return self._replies.get()["gathered"]

    def finish(self) -> None:
        """Waits until all hosts have finished."""
        self._say(done=True)
        self._replies.get()

    def fail(self, error: BaseException) -> None:
        """Tells the other hosts. This process then exits; JAX would make it wait for them."""
        if not self._begun:
            return
        text = str(error).partition("\n")[0]
        mistake = isinstance(error, UserError)
        if mistake:
            message = {"mistaken": text}
        else:
            # When a host dies, collectives fail on the others. Its death must be reported first.
            # This host cannot know whether its failure is another's death, so it waits.
            time.sleep(2 * watcher.GRACE)
            message = {"failed": f"{type(error).__name__}: {text}"[:500]}
        self._failed = True
        self._say(**message)
        # Let the others end first: JAX would abort them once this host is gone.
        with contextlib.suppress(queue.Empty):
            self._replies.get(timeout=watcher.MERCY)
        atexit.register(_leave, 2 if mistake else 1)

    def _say(self, **message: Any) -> None:
        assert self._watcher.stdin is not None  # `begin` asked for a pipe.
        with contextlib.suppress(BrokenPipeError):  # `_listen` sees it too, and ends the process.
            self._watcher.stdin.write(watcher.line(**message))
            self._watcher.stdin.flush()

    def _listen(self) -> None:
        assert self._watcher.stdout is not None  # `begin` asked for a pipe.
        for message in map(json.loads, self._watcher.stdout):
            self._over |= "over" in message
            if self._begun and not self._failed and "end" in message:
                _leave(1)
            self._replies.put(message)
        if self._begun and not self._over and not self._failed:
            print("error: the process that watches over the hosts is gone", file=sys.stderr)
            _leave(1)
        self._replies.put({"end": "the process that watches over the hosts has not started"})


def _leave(code: int) -> None:
    """Exits at once, without waiting for any threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
